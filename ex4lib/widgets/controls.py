"""Parts of an explorer: controls and their tooltips, pictures chosen by name, places where pictures are shown."""

import base64
import contextlib
import functools
import html
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from ipywidgets import HTML, Dropdown, FloatLogSlider
from PIL import Image
from torch import Tensor
from traitlets import TraitError

from ex4lib import images
from ex4lib.images import ImageSource
from ex4lib.widgets.watching import Settings, in_words

#: A caller's own pictures by name.
Pictures: TypeAlias = "Mapping[str, ImageSource] | None"
#: Longer side of the pictures that follow the controls, in pixels.
THUMBNAIL = 256
#: What a setting means, for its tooltip.
MEANINGS = {
    "style_weight": "weight of the style against the content",
    "style_layers": "choose several with Shift or Ctrl",
    "tv_weight": "weight of the smoothness prior",
    "size": "longer side of the result in pixels",
    "evaluations": "how often the loss is computed",
    "style_scale": "strength of the guidance as a share of the predicted noise; 0 is the model alone",
    "window": "the part of the steps that are guided",
    "steps": "number of denoising steps",
    "guidance_scale": "strength of the prompt",
    "seed": "the same seed draws the same noise",
}


def move(controls: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Set controls by name; a ValueError says which name does not exist, or what its control accepts."""
    for name, value in settings.items():
        if name not in controls:
            raise ValueError(f"there is no setting {name!r}; the settings are {', '.join(controls)}")
        control, value = controls[name], tuple(value) if isinstance(value, list) else value
        before = control.value
        with contextlib.suppress(TraitError):
            control.value = value
        if control.value != value:  # it was refused, or a slider stopped at its end
            control.value = before
            raise ValueError(f"{name} must be {_accepted(control)}, got {value!r}")


def hint(control: Any, meaning: str | None = None) -> None:
    """Set a control's tooltip: its meaning, and the numbers that it accepts.

    ipywidgets 7.7 has another name for the tooltip of a control with a label. Without one, version 8 shows "null".
    """
    name = "tooltip" if control.has_trait("tooltip") else "description_tooltip"
    range_of_numbers = _accepted(control) if hasattr(control, "min") else None
    setattr(control, name, "; ".join(filter(None, (meaning, range_of_numbers))) or control.description)


def _accepted(control: Any) -> str:
    if hasattr(control, "options"):
        labels = (option[-1] if isinstance(option, tuple) else option for option in control.options)
        return "among " + ", ".join(map(str, labels))
    if not hasattr(control, "min"):
        return "a text"
    low, high = control.min, control.max
    if isinstance(control, FloatLogSlider):
        low, high = control.base**low, control.base**high
    kind = {tuple: "two rising numbers", int: "a whole number"}.get(type(control.value), "a number")
    return f"{kind} from {low:g} to {high:g}"


class Shelf:
    """Pictures to choose from: the caller's, by name, and the shipped ones."""

    def __init__(self, pictures: Pictures):
        self.pictures = dict(pictures or {})
        self._thumbnail = functools.cache(lambda name: images.load(self.pictures.get(name, name), THUMBNAIL))

    def control(self, default: str) -> Dropdown:
        """A choice of them."""
        shipped = [name for name in images.names() if name not in self.pictures]
        return Dropdown(options=[*self.pictures, *shipped], value=default)

    def load(self, settings: Settings, *controls: str) -> dict[str, Tensor]:
        """The pictures ``(1, 3, H, W)`` that some controls name, by the control's name."""
        return {name: images.load(self.pictures.get(settings[name], settings[name])) for name in controls}

    def look(self, *controls: str) -> Callable[[Settings], dict[str, Tensor]]:
        """The same as a function of settings, small."""
        return lambda settings: {name: self._thumbnail(settings[name]) for name in controls}


class Slot:
    """A place for a picture with a title above it, words below, and the text ``empty`` while there is no picture.

    The picture is part of an HTML page because the Image of ipywidgets has no text for screen readers.
    """

    def __init__(self, title: str, width: int, empty: str = ""):
        self.title, self.empty, self.page = title, empty, HTML()
        self.picture: bytes | None = None
        self.words = ""
        self.page.layout.margin = "0 12px 0 0"
        self.widen(width)

    def widen(self, width: int) -> None:
        """Set the largest width; in a row the slot takes what room there is, and at least two thirds of this."""
        self.page.layout.max_width, self.page.layout.flex = f"{width}px", f"1 1 {width * 2 // 3}px"
        self.width = width
        self._draw()

    def show(
        self, picture: bytes | None, words: str = "", settings: Settings | None = None, names: Sequence[str] = ()
    ) -> None:
        """Show a PNG or the empty place, and below it words and settings, those in ``names`` first and in bold."""
        lines = {name: html.escape(in_words({name: value})) for name, value in (settings or {}).items()}
        bold = [f"<b>{line}</b>" for name, line in lines.items() if name in names]
        rest = "; ".join(line for name, line in lines.items() if name not in names)
        self.picture = picture
        self.words = "<br>".join(part for part in (html.escape(words), *bold, rest) if part)
        self._draw()

    def _draw(self) -> None:
        title = html.escape(self.title, quote=True)
        if self.picture is None:
            style = "border: 1px dashed; padding: 30% 1em; text-align: center"
            place = f'<div style="{style}">{html.escape(self.empty)}</div>'
        else:
            width, height = Image.open(io.BytesIO(self.picture)).size  # known before decoding, so that nothing jumps
            place = (
                f'<img alt="{title}" width="{width}" height="{height}" style="width: 100%; height: auto; '
                f'max-height: {self.width}px; object-fit: contain; object-position: left top" '
                f'src="data:image/png;base64,{base64.b64encode(self.picture).decode()}">'
            )
        self.page.value = (
            f'<div style="line-height: 1.3"><b>{title}</b>{place}'
            f'<div style="font-size: 12px; overflow-wrap: anywhere">{self.words}</div></div>'
        )


def seeded(settings: Settings) -> torch.Generator:
    """The random numbers of a run."""
    return torch.Generator().manual_seed(settings["seed"])


def once(ready: Any, load: Callable[[], Any]) -> Callable[[], Any]:
    """What was passed in, or else what ``load`` returns when it is first needed."""
    return functools.cache(lambda: load() if ready is None else ready)
