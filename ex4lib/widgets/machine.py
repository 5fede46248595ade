"""The machine behind the explorers: settings in, a loop watched and stoppable at every step, pictures out.

Core ipywidgets only, in the API that 7.7 and 8 share, so that the explorers work on Colab as in JupyterLab.
"""

import asyncio
import contextlib
import html
import re
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from IPython.display import display
from ipywidgets import HTML, Accordion, Button, HBox, IntProgress, IntSlider, Output, SelectionSlider, Text, VBox
from matplotlib.figure import Figure
from torch import Tensor

from ex4lib import figures, images
from ex4lib.widgets import watching
from ex4lib.widgets.controls import MEANINGS, THUMBNAIL, Slot, hint, move
from ex4lib.widgets.watching import FILM, Job, Result, Settings, Store, computed, from_store, png, position

#: Seconds given to the event loop after each step, in which a click on Cancel gets through.
PAUSE = 0.005


class Explorer:
    """Controls on the left; on the right the inputs, before and after side by side, a step to look at, and export.

    Run starts ``task`` on the notebook's event loop, which it leaves to others after each step; without a loop,
    ``asyncio.run(explorer.run())``. A mistake in the settings becomes one sentence in ``status``; any other exception
    is shown whole in ``errors`` and raised by ``task``. The picture before is the one that was kept, or else the
    previous run's, or else the photograph.

    Arguments:
        name, about: what is explored, in words, and a sentence for the reader.
        controls: ipywidgets controls by name of the setting.
        begin: settings -> `Job`; called by Run, so that models are loaded there and not before.
        folded: names of the settings that are folded away.
        look: settings -> pictures by name, cheaply; they follow the controls at once.
        store: where `static` looks for finished runs and keeps them, such as ``experiments.store.stored``.
        initial: settings to begin with.

    Raises:
        ValueError: a setting that does not exist, or that its control does not accept; of what shows, keeps or exports
            a result, that there is none yet.
        RuntimeError: from what starts a run, that one is running.
    """

    def __init__(
        self,
        name: str,
        about: str,
        controls: Mapping[str, Any],
        begin: Callable[[Settings], Job],
        *,
        folded: Sequence[str] = (),
        look: Callable[[Settings], Mapping[str, Tensor]] = lambda settings: {},
        store: Store | None = None,
        **initial: Any,
    ):
        self.name, self.controls, self.begin, self.look, self.store = name, dict(controls), begin, look, store
        self.task: asyncio.Task | None = None
        self.result: Result | None = None
        self.previous: tuple[Result, int] | None = None
        self.kept: tuple[Result, int] | None = None
        self._stop = self._moving = False
        self.set(**initial)

        self.run_button = _button("Run", "run with these settings", self._press_run, disabled=False)
        self.run_button.button_style = "primary"
        self.cancel_button = _button("Cancel", "stop after the present step", self.cancel)
        # The header of an Accordion cannot be reached by keyboard; this button can.
        self.fold_button = _button("More", "show or hide more settings", self._fold_or_unfold, disabled=False)
        self.keep_button = _button("Keep", "keep this picture as the one before", lambda: self._try(self.keep))
        self.clear_button = _button("Clear", "remove the picture before", lambda: self._try(self.clear))
        self.export_button = _button(
            "Export", "write a figure with its settings", lambda: self._try(self.export, self.export_name.value)
        )
        self.export_name = Text(value=re.sub(r"\W+", "-", name.lower()), description="name")
        self.scrub = SelectionSlider(options=[("none yet", 0)], description="look at", disabled=True)
        self.zoom = IntSlider(value=320, min=128, max=1024, step=64)
        self.progress, self.status, self.exported, self.errors = IntProgress(max=1), HTML(), HTML(), Output()
        self.inputs = {picture: Slot(picture, 100) for picture in self.look(self.settings())}
        self.before, self.after = Slot("Before", 320, "Run twice to compare."), Slot("After", 320, "Press Run.")
        self.fold = Accordion()
        self.view = self._arranged(about, folded)
        self._follow_controls()

        self.scrub.observe(lambda _: self._present(), "value")
        self.zoom.observe(lambda _: [slot.widen(self.zoom.value) for slot in (self.before, self.after)], "value")
        for control in self.controls.values():
            control.observe(lambda _: self._try(self._follow_controls), "value")

    def settings(self) -> Settings:
        """What the controls stand at."""
        return {name: control.value for name, control in self.controls.items()}

    def set(self, **settings: Any) -> None:
        """Move controls."""
        move(self.controls, settings)

    async def run(self) -> Result | None:
        """Run with the present settings; None if they were mistaken, which ``status`` then says."""
        self._require_idle()
        self._busy(True)
        return await self._run()

    def cancel(self) -> None:
        """Stop after the present step, and keep what there is."""
        self._stop = True

    def static(self, **settings: Any) -> Figure:
        """The static twin: inputs, some steps and the picture on display; a row above for what was kept.

        Without ``settings`` it shows the last result. Else, or where there is none yet, the controls are moved and the
        run is made on the spot, or comes from ``store`` (8 bits, at most 256 px).
        """
        if settings or self.result is None:
            self._require_idle()
            self.set(**settings)
            present = self.settings()
            job = self.begin(present)
            self.result = from_store(self.store, self.name, present, job) if self.store else computed(present, job)
            self._say("finished")
            self._busy(False)
            self._present(latest=True)
        return self.figure(FILM)

    async def _run(self) -> Result | None:
        try:
            with self._reported():
                self._say("loading ...")
                await asyncio.sleep(PAUSE)  # the page hears of it before the kernel is busy
                start, settings, ending = time.perf_counter(), self.settings(), "finished"
                result = Result(settings, self.begin(settings))
                previous = self._shown()[-1] if self.result else None
                self._compare(self.kept or previous)
                with contextlib.closing(result.steps()) as frames:
                    for frame in frames:
                        self.progress.max, self.progress.value = result.total, result.done
                        self._say(result.words)
                        if frame is not None:
                            self.after.show(frame, position(result.done, result.total))
                        await asyncio.sleep(PAUSE)
                        if self._stop and result.done < result.total:
                            ending = f"cancelled after {position(result.done, result.total)}"
                            break
                self.previous, self.result = previous, result
                self._say(f"{ending}, {time.perf_counter() - start:.1f} s")
                return result
        finally:
            self._busy(False)
            self._present(latest=True)

    def _require_idle(self) -> None:
        if self.run_button.disabled:
            raise RuntimeError(f"{self.name} is running: wait, or cancel it")

    def _press_run(self) -> None:
        if self.run_button.disabled:  # a second click that was on its way
            return
        self._busy(True)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # a script
            asyncio.run(self._run())
        else:
            self.task = loop.create_task(self._run())

    def keep(self) -> None:
        """Keep the picture on display as the one before, to compare others with and to export beside them."""
        self.kept = self._shown()[-1]
        self._present()

    def clear(self) -> None:
        """Forget the picture before."""
        self.kept = self.previous = None
        self._present()

    def figure(self, film: int = 0) -> Figure:
        """Inputs, ``film`` steps and the picture on display; a row above for what was kept."""
        return watching.figure(self._shown(), film)

    def provenance(self) -> dict[str, Any]:
        """What made the picture on display: configuration, seed, losses, hashes of inputs and weights; also `kept`."""
        return watching.provenance(self.name, self._shown())

    def export(self, name: str) -> figures.Saved:
        """Write the picture on display, and what was kept, to ``figures/exported/NAME.png`` with its provenance.

        A name that is taken gets a number, which ``status`` says; see `watching.write`.
        """
        saved, line = watching.write(self.name, self._shown(), name)
        taken = "" if saved.path.stem == name else f"{name} is taken; "
        self._say(f"{taken}written to {saved.path}")
        self.exported.value = f'<pre style="white-space: pre-wrap; line-height: 1.3">{html.escape(line)}</pre>'
        return saved

    def _shown(self) -> list[tuple[Result, int]]:
        """What was kept, if anything, and what is on display: results and step numbers."""
        if self.result is None:
            raise ValueError(f"{self.name} has no result yet: press Run first")
        return [*([self.kept] if self.kept else []), (self.result, self.scrub.value)]

    def _ipython_display_(self) -> None:
        """Show the widgets; where there are none, as on GitHub, say so instead of listing them."""
        widget = {"version_major": 2, "version_minor": 0, "model_id": self.view.model_id}
        text = f"{self.name}, an explorer: run this notebook to use it."
        display({"text/plain": text, "application/vnd.jupyter.widget-view+json": widget}, raw=True)

    def _arranged(self, about: str, folded: Sequence[str]) -> VBox:
        for name, control in {**self.controls, "picture_width": self.zoom}.items():
            control.description = name.replace("_", " ")
            control.style.description_width, control.layout.width = "92px", "auto"
            hint(control, MEANINGS.get(name, ""))
        for control, meaning in ((self.scrub, "a step of the run"), (self.export_name, "name of the exported figure")):
            control.style.description_width, control.layout.width = "52px", "300px"
            hint(control, meaning)
        self.progress.layout.width = "auto"
        self.fold.children = [VBox([*(self.controls[name] for name in folded), self.zoom])]
        self.fold.selected_index = None
        self.fold.set_title(0, "More settings")

        title = HTML(f'<div style="line-height: 1.3"><b>{html.escape(self.name)}.</b> {html.escape(about)}</div>')
        unfolded = [control for name, control in self.controls.items() if name not in folded]
        buttons = HBox([self.run_button, self.cancel_button, self.fold_button])
        margins = {"flex": "0 0 296px", "margin": "0 12px 0 0"}
        left = VBox([*unfolded, buttons, self.progress, self.status, self.fold], layout=margins)
        for slot in self.inputs.values():
            slot.page.layout.flex = "0 0 auto"  # above each other without gaps
        wrapped = {"flex_flow": "row wrap"}
        inputs = VBox([slot.page for slot in self.inputs.values()], layout={"flex": "0 0 auto"})
        pictures = HBox([inputs, self.before.page, self.after.page], layout=wrapped)
        looking = HBox([self.scrub, self.keep_button, self.clear_button], layout=wrapped)
        exporting = HBox([self.export_name, self.export_button], layout=wrapped)
        # On a narrow page this column stands below the controls.
        right = VBox([pictures, looking, exporting, self.exported], layout={"flex": "1 1 400px"})
        return VBox([title, HBox([left, right], layout=wrapped), self.errors])

    def _fold_or_unfold(self) -> None:
        self.fold.selected_index = 0 if self.fold.selected_index is None else None

    def _follow_controls(self) -> None:
        for name, picture in self.look(self.settings()).items():
            self.inputs[name].show(png(picture))
        if self.result is None:
            self._compare(None)

    def _present(self, *, latest: bool = False) -> None:
        """Show the result at the step that is looked at, and what was before; ``latest`` moves on to the last step."""
        if self._moving or self.result is None:
            return
        if latest:
            self._moving = True
            self.scrub.options = [(f"step {number}", number) for number in self.result.frames]
            self.scrub.value = max(self.result.frames)
            self._moving = False
        before, after = self.kept or self.previous, self._shown()[-1]
        self.clear_button.disabled = before is None
        names = watching.differing([before or after, after])
        self._compare(before, names)
        self._show(self.after, after, "After", names)

    def _compare(self, before: tuple[Result, int] | None, names: Sequence[str] = ()) -> None:
        """Show what was before: a result, or else the photograph, if there is one."""
        if before is not None:
            title = "Before: kept" if before is self.kept else "Before: the previous run"
            return self._show(self.before, before, title, names)
        pictures = self.look(self.settings()) if self.result is None else self.result.inputs
        self.before.title = "Before: the photo" if "photo" in pictures else "Before"
        self.before.show(png(images.load(pictures["photo"], THUMBNAIL)) if "photo" in pictures else None)

    def _show(self, slot: Slot, shown: tuple[Result, int], title: str, names: Sequence[str]) -> None:
        result, number = shown
        slot.title = title
        slot.show(result.frames[number], position(number, result.total), result.settings, names)

    def _busy(self, running: bool) -> None:
        self.run_button.disabled, self.cancel_button.disabled = running, not running
        for control in (self.scrub, self.keep_button, self.export_button):
            control.disabled = running or self.result is None
        self.clear_button.disabled = running or (self.kept or self.previous) is None
        if running:
            self._stop, self.errors.outputs, self.progress.value = False, (), 0

    def _say(self, text: str, role: str = "status") -> None:
        words = html.escape(" ".join(text.split()))
        self.status.value = f'<div role="{role}" style="line-height: 1.3; overflow-wrap: anywhere">{words}</div>'

    def _try(self, action: Callable[..., Any], *arguments: Any) -> None:
        with self._reported():
            action(*arguments)

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        """Mistakes become a sentence; any other exception is shown whole and goes on."""
        try:
            yield
        except (ValueError, OSError) as error:
            self._say(f"Error: {error}", "alert")
        except Exception as error:
            self._say(f"Error: {type(error).__name__}, see below", "alert")
            # Set, not captured: what an Output captures depends on the cell that is running.
            lines = "".join(traceback.format_exception(error)).splitlines()
            record = {"output_type": "error", "ename": type(error).__name__, "evalue": str(error), "traceback": lines}
            self.errors.outputs = (record,)
            raise


def _button(description: str, tooltip: str, action: Callable[[], Any], *, disabled: bool = True) -> Button:
    button = Button(description=description, tooltip=tooltip, disabled=disabled, layout={"width": "90px"})
    button.on_click(lambda _: action())
    return button
