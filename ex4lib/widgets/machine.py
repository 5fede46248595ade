"""The machine behind the explorers: settings in, a loop watched and stoppable at every step, pictures out.

Core ipywidgets only, in the API that 7.7 and 8 share, so that the explorers work on Colab as in JupyterLab.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ipywidgets
from IPython.display import display
from ipywidgets import HTML, Button, HBox, Layout, VBox
from matplotlib.figure import Figure
from torch import Tensor

from ex4lib import figures
from ex4lib.widgets import exports
from ex4lib.widgets.controls import GAP, THUMBNAIL, Slot, hint, move, paragraph
from ex4lib.widgets.watching import (
    FILM,
    Job,
    Recorder,
    Result,
    Settings,
    Store,
    View,
    from_store,
    no_store,
    png,
    watched,
)

#: Seconds given to the event loop after each step, in which a click on Cancel gets through.
PAUSE = 0.005


class Explorer:
    """Controls, Run and Cancel, a live preview, a scrubber, two slots side by side, and export.

    Run starts ``task`` on the notebook's event loop: it makes one step at a time and lets the loop breathe after each.
    Without a loop, ``asyncio.run(explorer.run())``. A mistake in the settings becomes one sentence in ``status``; any
    other exception is shown whole in ``errors`` and raised by ``task``.

    Arguments:
        name: what is explored, in words.
        about: a sentence for the reader.
        controls: ipywidgets controls by name of the setting.
        begin: settings -> `Job`; called by Run, so that models are loaded there and not before.
        look: settings -> pictures by name, cheaply; they follow the controls at once.
        initial: settings to begin with.
        store: where `static` looks for finished runs and keeps them, such as ``experiments.store.stored``.

    Raises:
        ValueError: an initial setting that there is not, or that its control does not take.
    """

    def __init__(
        self,
        name: str,
        about: str,
        controls: Mapping[str, Any],
        begin: Callable[[Settings], Job],
        *,
        look: Callable[[Settings], Mapping[str, Tensor]] | None = None,
        initial: Mapping[str, Any] | None = None,
        store: Store | None = None,
    ):
        self.store = store or no_store
        self.name, self.controls, self.begin, self.look = name, dict(controls), begin, look or (lambda settings: {})
        self.task: asyncio.Task | None = None
        self.result: Result | None = None
        self.kept: tuple[Result, int] | None = None
        self._stop = self._moving = False
        for setting, control in self.controls.items():
            control.description = setting.replace("_", " ")
            control.style.description_width, control.layout.width = "8em", "27em"
            hint(control)
        self.set(**(initial or {}))

        self.run_button = Button(description="Run", button_style="primary")
        self.cancel_button = Button(description="Cancel", disabled=True)
        self.progress, self.status = ipywidgets.IntProgress(max=1), HTML()
        self.left, self.right = Slot("Kept"), Slot("Now")
        self.scrub = ipywidgets.SelectionSlider(options=[("none yet", 0)], description="look at", disabled=True)
        self.zoom = ipywidgets.IntSlider(value=320, min=128, max=1024, step=64, description="zoom (px)")
        hint(self.scrub, "a step of the run")
        hint(self.zoom)
        self.keep_button = Button(description="Keep beside", disabled=True)
        self.clear_button = Button(description="Clear the kept", disabled=True)
        self.export_name = ipywidgets.Text(value=re.sub(r"\W+", "-", name.lower()), description="name")
        self.export_button, self.exported = Button(description="Export", disabled=True), HTML()
        self.errors = ipywidgets.Output()
        self.thumbnails = {each: Slot(each, THUMBNAIL) for each in self.look(self.settings())}
        self.view = self._arranged(about)
        self._follow_controls()
        self._follow_zoom()

        self.run_button.on_click(lambda _: self._press_run())
        self.cancel_button.on_click(lambda _: self.cancel())
        self.keep_button.on_click(lambda _: self._try(self.keep))
        self.clear_button.on_click(lambda _: self._try(self.clear))
        self.export_button.on_click(lambda _: self._try(lambda: self.export(self.export_name.value)))
        self.scrub.observe(lambda _: self._present(), "value")
        self.zoom.observe(lambda _: self._follow_zoom(), "value")
        for control in self.controls.values():
            control.observe(lambda _: self._try(self._follow_controls), "value")

    # --- settings ---------------------------------------------------------------------------------------------------

    def settings(self) -> Settings:
        """What the controls stand at."""
        return {name: control.value for name, control in self.controls.items()}

    def set(self, **settings: Any) -> None:
        """Move controls.

        Raises:
            ValueError: a setting that there is not, or a value that its control does not take.
        """
        move(self.controls, settings)

    # --- running ----------------------------------------------------------------------------------------------------

    async def run(self) -> Result | None:
        """Run with the present settings; None if they were mistaken, which ``status`` then says.

        Raises:
            RuntimeError: it is running.
        """
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

        Raises:
            ValueError: as `set`, and what the recipe refuses.
            RuntimeError: it is running.
        """
        if settings or self.result is None:
            self._require_idle()
            self.set(**settings)
            chosen = self.settings()
            self.result = from_store(self.store, self.name, chosen, self.begin(chosen))
            self._say("finished")
            self._busy(False)
            self._present(latest=True)
        return self.figure(FILM)

    async def _run(self) -> Result | None:
        try:
            with self._reported():
                settings = self.settings()
                self._say("loading ...")
                await asyncio.sleep(PAUSE)  # the page hears of it before the kernel is busy
                recorder, ended = Recorder(settings, self.begin(settings)), "finished"
                with contextlib.closing(watched(recorder.job)) as views:
                    for view in views:
                        recorder.add(view)
                        self._preview(view, recorder.frames.get(view.number))
                        await asyncio.sleep(PAUSE)
                        if self._stop and view.number < view.total:
                            ended = f"cancelled after step {view.number} of {view.total}"
                            break
                self.result = recorder.result()
                self._say(f"{ended}, {recorder.seconds:.1f} s")
                return self.result
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
        except RuntimeError:
            loop = None
        if loop is None:  # a script
            asyncio.run(self._run())
        else:
            self.task = loop.create_task(self._run())

    # --- comparing and exporting ------------------------------------------------------------------------------------

    def keep(self) -> None:
        """Put the picture on display into the left slot, to compare others with.

        Raises:
            ValueError: there is no result yet.
            RuntimeError: it is running.
        """
        self._require_idle()
        self.kept = self._shown()[-1]
        self._busy(False)
        self._present()

    def clear(self) -> None:
        """Empty the left slot.

        Raises:
            RuntimeError: it is running.
        """
        self._require_idle()
        self.kept = None
        self._busy(False)
        self._present()

    def figure(self, film: int = 0) -> Figure:
        """Inputs, ``film`` steps and the picture on display; a row above for what was kept.

        Raises:
            ValueError: there is no result yet.
        """
        return exports.figure(self._shown(), film)

    def provenance(self) -> dict[str, Any]:
        """What made the picture on display: configuration, seed, hashes of inputs and weights, losses; ``kept`` alike.

        Raises:
            ValueError: there is no result yet.
        """
        return exports.provenance(self.name, self._shown())

    def export(self, name: str) -> figures.Saved:
        """Write the picture on display, and what was kept, to ``figures/exported/NAME.png`` with its provenance.

        A name that is taken gets a number, which ``status`` says.

        Raises:
            ValueError: no result yet, or a name with other than letters, digits, dashes and underscores.
        """
        saved, line = exports.write(self.name, self._shown(), name)
        taken = "" if saved.path.stem == name else f"{name} is taken; "
        self._say(f"{taken}written to {saved.path}")
        self.exported.value = f"<pre>{html.escape(line)}</pre>"
        return saved

    def _shown(self) -> list[tuple[Result, int]]:
        """What was kept, if anything, and what is on display: results and step numbers."""
        if self.result is None:
            raise ValueError(f"{self.name} has no result yet: press Run first")
        return [*([self.kept] if self.kept else []), (self.result, self.scrub.value)]

    # --- what is on the page ----------------------------------------------------------------------------------------

    def _ipython_display_(self) -> None:
        """Show the widgets; where there are none, as on GitHub, say so instead of listing them."""
        widget = {"version_major": 2, "version_minor": 0, "model_id": self.view.model_id}
        text = f"{self.name}, an explorer: run this notebook to use it."
        display({"text/plain": text, "application/vnd.jupyter.widget-view+json": widget}, raw=True)

    def _arranged(self, about: str) -> VBox:
        def row(*parts: Any) -> HBox:
            return HBox(parts, layout=Layout(flex_flow="row wrap"))

        thumbnails = [slot.box for slot in self.thumbnails.values()]
        return VBox(
            [
                HTML(paragraph(f"<b>{html.escape(self.name)}</b><br>{html.escape(about)}")),
                row(VBox(list(self.controls.values()), layout=Layout(margin=GAP)), *thumbnails),
                row(self.run_button, self.cancel_button, self.progress),
                self.status,
                row(self.scrub, self.zoom),
                row(self.keep_button, self.clear_button, self.export_name, self.export_button),
                self.exported,
                row(self.left.box, self.right.box),  # below what is pressed, which so stays where it is
                self.errors,
            ]
        )

    def _follow_controls(self) -> None:
        for name, picture in self.look(self.settings()).items():
            self.thumbnails[name].show(png(picture))

    def _follow_zoom(self) -> None:
        for slot in (self.left, self.right):
            slot.widen(self.zoom.value)

    def _preview(self, view: View, frame: bytes | None) -> None:
        self.progress.max, self.progress.value = view.total, view.number
        step, loss = f"step {view.number} of {view.total}", "" if view.loss is None else f"loss {view.loss:.4g}"
        self._say(", ".join(filter(None, (step, loss, view.note))))
        if frame is not None:
            self.right.show(frame, step)

    def _present(self, *, latest: bool = False) -> None:
        """Bring the slots up to the result, what was kept and the scrubber; ``latest`` moves that to the end."""
        if self._moving or self.result is None:
            return
        if latest:
            self._moving = True
            self.scrub.options = [(f"step {number}", number) for number in self.result.frames]
            self.scrub.value = max(self.result.frames)
            self._moving = False
        self.left.hide()
        shown = self._shown()
        names = exports.differing(shown)
        for slot, (result, number) in zip((self.right, self.left), reversed(shown), strict=False):
            slot.show(result.frames[number], f"step {number} of {result.total}", result.settings, names)

    def _busy(self, running: bool) -> None:
        self.run_button.disabled, self.cancel_button.disabled = running, not running
        for control in (self.scrub, self.keep_button, self.export_button):
            control.disabled = running or self.result is None
        self.clear_button.disabled = running or self.kept is None
        if running:
            self._stop, self.errors.outputs, self.progress.value = False, (), 0

    def _say(self, text: str, role: str = "status") -> None:
        self.status.value = f'<span role="{role}">{html.escape(" ".join(text.split()))}</span>'

    def _try(self, action: Callable[[], Any]) -> None:
        with self._reported():
            action()

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
