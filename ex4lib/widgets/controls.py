"""Parts of an explorer's page: controls and moving them, pictures to choose from by name, slots that show pictures."""

from __future__ import annotations

import functools
import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from ipywidgets import HTML, BoundedIntText, Dropdown, FloatLogSlider, VBox
from ipywidgets import Image as ImageWidget
from torch import Tensor
from traitlets import TraitError

from ex4lib import images
from ex4lib.images import ImageSource
from ex4lib.widgets.exports import told
from ex4lib.widgets.watching import Settings

#: Longer side of thumbnails in pixels.
THUMBNAIL = 128
#: Margin of what stands in a row with others.
GAP = "0 1em 0 0"


def move(controls: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Set controls by name.

    Raises:
        ValueError: a name that there is not, or a value that its control does not take.
    """
    for name, value in settings.items():
        if name not in controls:
            raise ValueError(f"there is no setting {name!r}; the settings are {', '.join(controls)}")
        control, value = controls[name], tuple(value) if isinstance(value, list) else value
        before = control.value
        try:
            control.value = value
        except TraitError:
            raise ValueError(f"{name} must be {_accepted(control)}, got {value!r}") from None
        if control.value != value:  # a slider that stopped at its end
            control.value = before
            raise ValueError(f"{name} must be {_accepted(control)}, got {value!r}")


def hint(control: Any, text: str | None = None) -> None:
    """What a control says when its label is pointed at: ``text``, or the numbers it takes.

    Left out, ipywidgets 8 says "null" there; 7.7 has no such trait and says the label.
    """
    if control.has_trait("tooltip") and (text or hasattr(control, "min")):
        control.tooltip = text or _accepted(control)


def paragraph(content: str) -> str:
    """Lines of HTML set as text; as they come, widgets give each the height of a control."""
    return f'<div style="line-height: 1.4">{content}</div>'


def _accepted(control: Any) -> str:
    if hasattr(control, "options"):
        return "among " + ", ".join(str(each[-1] if isinstance(each, tuple) else each) for each in control.options)
    if not hasattr(control, "min"):
        return "a text"
    low, high = control.min, control.max
    if isinstance(control, FloatLogSlider):
        low, high = control.base**low, control.base**high
    kind = {tuple: "two rising numbers", int: "a whole number"}.get(type(control.value), "a number")
    return f"{kind} from {low:g} to {high:g}"


class Shelf:
    """Pictures to choose from: the caller's own, by name, and the shipped ones."""

    def __init__(self, own: Mapping[str, ImageSource] | None):
        self.own = dict(own or {})
        self._thumbnail = functools.cache(lambda name: images.load(self.own.get(name, name), THUMBNAIL))

    def control(self, default: str) -> Dropdown:
        """A choice of them."""
        shipped = [name for name in images.names() if name not in self.own]
        return Dropdown(options=[*self.own, *shipped], value=default)

    def load(self, settings: Settings, *controls: str) -> dict[str, Tensor]:
        """The pictures that some controls stand at, ``(1, 3, H, W)`` by the control's name."""
        return {each: images.load(self.own.get(settings[each], settings[each])) for each in controls}

    def look(self, *controls: str) -> Callable[[Settings], dict[str, Tensor]]:
        """The same as a function of settings, small."""
        return lambda settings: {each: self._thumbnail(settings[each]) for each in controls}


class Slot:
    """A picture with a title above it and words below; hidden until there is one."""

    def __init__(self, title: str, width: int = 320):
        self.image, self.words = ImageWidget(format="png"), HTML()
        self.box = VBox([HTML(f"<b>{html.escape(title)}</b>"), self.image, self.words])
        self.box.layout.margin = GAP
        self.widen(width)
        self.hide()

    def widen(self, width: int) -> None:
        """Set the width of the picture in pixels; the words below wrap to it, or to a readable one."""
        self.image.layout.width, self.words.layout.max_width = f"{width}px", f"{max(width, 240)}px"

    def show(
        self, content: bytes, words: str = "", settings: Settings | None = None, names: Sequence[str] = ()
    ) -> None:
        """Show a PNG; ``settings`` are told below it, those in ``names`` first and in bold."""
        lines = {name: html.escape(told({name: value})) for name, value in (settings or {}).items()}
        bold = [f"<b>{line}</b>" for name, line in lines.items() if name in names]
        rest = "; ".join(line for name, line in lines.items() if name not in names)
        parts = [part for part in (html.escape(words), *bold, rest) if part]
        self.image.value, self.words.value, self.box.layout.display = content, paragraph("<br>".join(parts)), None

    def hide(self) -> None:
        self.box.layout.display = "none"


def seed_box() -> BoundedIntText:
    """A box for the seed."""
    return BoundedIntText(value=0, min=0, max=2**31 - 1)


def seeded(settings: Settings) -> torch.Generator:
    """The random numbers of a run."""
    return torch.Generator().manual_seed(settings["seed"])


def once(ready: Any, load: Callable[[], Any]) -> Callable[[], Any]:
    """What was passed in, or else what ``load`` gives when it is first asked for."""
    return functools.cache(lambda: load() if ready is None else ready)
