"""Sentences with numbers from results, for the cells of notebooks: the text stays true when other models run."""

from __future__ import annotations

from IPython.display import Markdown

from experiments.measures import Interval


def say(*sentences: str) -> Markdown:
    """Sentences as one paragraph, which a notebook shows as text when it is the last line of a cell."""
    return Markdown(" ".join(sentence.strip() for sentence in sentences if sentence))


def percent(value: float | Interval) -> str:
    """A share as a percentage, with its 95 % interval if it has one."""
    if isinstance(value, Interval):
        return f"{100 * value.mean:.0f} % ({100 * value.low:.0f} to {100 * value.high:.0f})"
    return f"{100 * value:.0f} %"


def number(value: float | Interval, digits: int = 2) -> str:
    """A number, with its 95 % interval if it has one."""
    if isinstance(value, Interval):
        return f"{value.mean:.{digits}f} ({value.low:.{digits}f} to {value.high:.{digits}f})"
    return f"{value:.{digits}f}"


def change(share: float | Interval) -> str:
    """A share that was removed, as a verb: "falls by 57 %", or "grows by 23 %" where it is negative."""
    value = share.mean if isinstance(share, Interval) else share
    if value >= 0:
        return f"falls by {percent(share)}"
    turned = Interval(-share.mean, -share.high, -share.low, share.count) if isinstance(share, Interval) else -share
    return f"grows by {percent(turned)}"


def moves(before: float, after: float, digits: int = 2) -> str:
    """Two numbers as a verb: "falls from 2.10 to 0.40", or "rises from 0.40 to 2.10"."""
    verb = "falls" if after < before else "rises"
    return f"{verb} from {number(before, digits)} to {number(after, digits)}"


def points(difference: Interval) -> str:
    """A difference of shares in percentage points, with its interval."""
    low, high = 100 * difference.low, 100 * difference.high
    return f"{100 * difference.mean:+.0f} points (95 % interval {low:+.0f} to {high:+.0f})"


def verdict(difference: Interval, above: str, below: str, neither: str) -> str:
    """``above`` or ``below`` where the interval leaves 0 out on that side, else ``neither``."""
    if difference.low > 0:
        return above
    return below if difference.high < 0 else neither


def sample(interval: Interval) -> str:
    """How many pictures a number rests on: "N = 160: 4 prompts, 5 paintings, 8 seeds"."""
    parts = ", ".join(f"{count} {kind}{'' if count == 1 else 's'}" for kind, count in interval.clusters.items())
    return f"N = {interval.count}" + (f": {parts}" if parts else "")
