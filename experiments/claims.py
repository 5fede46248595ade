"""What the comparisons of notebook 06 bear out, in sentences made from their tables."""

from __future__ import annotations

from collections.abc import Mapping

from experiments.comparisons import MEASURES, WORDS, Table, at_equal, curve, difference, joined, mean, removed, select
from experiments.drawings import TITLES
from experiments.sentences import change, number, percent, points, sample, verdict

GRAM, MEANVAR = "guided, Gram", "guided, MeanVar"


def at_default(tables: Mapping[str, Table], name: str) -> str:
    """What a method does to style and prompt at its default strength, against the unguided pictures."""
    table, plain = tables[name], tables["unguided"]
    return (
        f"**{name}**: the style distance {change(removed(table, plain, 'style'))}. The intended painting is nearest "
        f"for {percent(mean(table, 'nearest'))}, and prompt agreement changes by "
        f"{100 * difference(table, plain, 'agrees').mean:+.0f} points ({sample(mean(table, 'style'))})."
    )


def matched(tables: Mapping[str, Table], loss: str, on: str, measure: str) -> str:
    """Guidance against style transfer where both have the same mean of ``on``."""
    target = tables[f"guided, {loss}"]
    found = at_equal(target, curve(f"transfer, {loss}", tables), on, measure)
    where = f"At equal {MEASURES[on]}, by {loss},"
    if found is None:
        return f"{where} nothing compares: no weight of transfer reaches guidance's {number(mean(target, on).mean)}."
    size = points(found) if measure in ("agrees", "nearest") else number(found)
    side = verdict(found, "a higher", "a lower", "no clearly different")
    return f"{where} guidance has {side} {MEASURES[measure]}: the difference is {size} ({sample(found)})."


def losses_apart(tables: Mapping[str, Table]) -> str:
    """Guidance by MeanVar against guidance by Gram matrices, by the distance of either."""
    parts = []
    for measure, label in (("style", "Gram"), ("meanvar", "MeanVar")):
        gap = difference(tables[MEANVAR], tables[GRAM], measure)
        side = verdict(gap, "farther from", "nearer to", "about as near to")
        parts.append(f"{side} the painting by the {label} distance (difference {number(gap)})")
    return f"Beside guidance by Gram matrices at the same scale, guidance by MeanVar ends {parts[0]}, and {parts[1]}."


def colour_and_texture(tables: Mapping[str, Table], name: str) -> str:
    """The shares of the colour and of the texture distance that a method removes."""
    colour, texture = (removed(tables[name], tables["unguided"], k) for k in ("colour", "texture"))
    return f"{name}: the colour distance {change(colour)}, the texture distance {change(texture)}."


def by_painting(tables: Mapping[str, Table], ways: Mapping[str, str]) -> dict[str, dict[str, Table]]:
    """The rows of comparison B by painting and way; ``ways`` maps a way's label to its condition."""
    return {
        name: {label: select(tables[condition], painting=[name]) for label, condition in ways.items()}
        for name in WORDS
        if name in tables["words"]["painting"]
    }


def words_against(rows: Mapping[str, Mapping[str, Table]], painting: str) -> str:
    """A painting against its words, and whether words beside the painting help."""
    ways = rows[painting]
    style, agreement = (difference(ways["painting"], ways["words"], k) for k in ("style", "agrees"))
    extra = difference(ways["both"], ways["painting"], "style")
    near = verdict(
        style, "farther from the painting than", "nearer to the painting than", "about as near to the painting as"
    )
    often = verdict(agreement, "more often", "less often", "about as often")
    help_ = verdict(extra, "take it farther away", "bring it nearer still", "change little")
    return (
        f"For {TITLES[painting]}, guidance ends {near} the words “{WORDS[painting][2:]}” ({number(style)}), "
        f"and the prompt is found {often} ({points(agreement)}). Words beside the painting {help_} ({number(extra)})."
    )


def course_reports(tables: Mapping[str, Table], rows: Mapping[str, Mapping[str, Table]]) -> list[str]:
    """Each claim of the two course reports with the number that answers it."""
    natural = at_equal(tables[GRAM], curve("transfer, Gram", tables), "style", "agrees")
    if natural is None:
        first = "At no weight has transfer the same style distance, so that nothing compares."
    else:
        often = verdict(natural, "more often than", "less often than", "about as often as")
        first = f"At equal style distance the prompt is found {often} after transfer ({points(natural)})."
    colour, texture = (removed(tables[GRAM], tables["unguided"], k) for k in ("colour", "texture"))
    mainly = "Yes" if colour.low > texture.high else "No" if texture.low > colour.high else "Not clear"
    named = list(rows)[:2]
    both, alone = (joined(*(rows[name][way] for name in named)) for way in ("both", "painting"))
    gain = difference(both, alone, "style")
    superior = verdict(gain, "No", "Yes", "Not clear")
    weaker = at_equal(tables[MEANVAR], curve(GRAM, tables), "agrees", "style")
    if weaker is None:
        last = "Guidance by the two losses has no prompt agreement in common, so that nothing compares."
    else:
        side = verdict(weaker, "farther from", "nearer to", "about as near to")
        last = f"At equal prompt agreement MeanVar ends {side} the painting ({number(weaker)})."
    return [
        f"*Guided diffusion looks more natural than style transfer.* {first}",
        f"*Guidance works mainly in colours.* {mainly}: the colour distance {change(colour)}, and the texture "
        f"distance {change(texture)}.",
        f"*Words and a painting together are superior.* {superior}: for paintings that have a word, the style distance "
        f"of both together differs from that of the painting alone by {number(gain)}.",
        f"*MeanVar takes over the picture* (first report), *MeanVar is weaker* (second report). {last}",
    ]
