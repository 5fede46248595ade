"""The explorers as a person uses them: moved, run, cancelled, scrubbed, compared, exported; in a kernel at the end."""

import asyncio
import base64
import contextlib
import dataclasses
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import diffusers
import nbformat
import numpy as np
import pytest
import torch
from documents import saved_rows
from nbclient import NotebookClient
from PIL import Image

from ex4lib import figures, files, images, models, transfer, widgets
from ex4lib.diffusion import editing, pipelines, sampling
from ex4lib.diffusion.guidance import settings
from ex4lib.diffusion.pixel import pixel_model
from ex4lib.diffusion.process import strided_timesteps
from ex4lib.widgets import Explorer, Job, explorers, watching
from experiments import illusions
from experiments.anagram_explorer import anagram_explorer
from experiments.loops import VIEWS
from experiments.store import stored
from tests.random_models import random_network, save_ddpm, save_pixel, save_stable_diffusion

ROOT = Path(__file__).resolve().parent.parent


# --- a loop of one's own, to see the machine at work --------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Step:
    index: int
    total: int
    shade: float


class Loop:
    """Makes jobs of so many steps that get lighter; remembers what was made, decoded and closed."""

    def __init__(self, total=40, before=lambda index: None):
        self.total, self.before = total, before
        self.made, self.decoded, self.closed, self.begun = 0, 0, 0, []

    def steps(self):
        try:
            for index in range(1, self.total + 1):
                self.before(index)
                self.made += 1
                yield Step(index, self.total, index / self.total)
        finally:
            self.closed += 1

    def picture(self, step):
        self.decoded += 1
        return torch.full((1, 3, 8, 8), step.shade)

    def begin(self, settings):
        self.begun.append(settings)
        return Job(
            self.steps(),
            picture=self.picture,
            final=self.picture,
            loss=lambda step: 1 - step.shade,
            inputs={"grey": torch.full((1, 3, 8, 8), 0.5)},
            weights=lambda: {"nothing": "0" * 64},
        )


def explorer_of(loop, store=None, **initial):
    from ipywidgets import BoundedIntText, Dropdown, FloatSlider

    controls = {
        "weight": FloatSlider(value=1.0, max=5.0),
        "kind": Dropdown(options=["a", "b"]),
        "seed": BoundedIntText(),
    }
    return Explorer("Test", "A test.", controls, loop.begin, store=store, **initial)


def run(explorer):
    return asyncio.run(explorer.run())


def shade(png):
    with Image.open(io.BytesIO(png)) as picture:
        return picture.getpixel((0, 0))[0] / 255


def picture_of(slot):
    """The file that a page shows; its text for screen readers is the title."""
    alt, content = re.search(r'<img alt="([^"]*)".* src="data:image/png;base64,([^"]*)"', slot.page.value).groups()
    assert alt == slot.title
    return base64.b64decode(content)


def test_a_run_shows_its_steps_and_decodes_only_some():
    loop, seen = Loop(40), []
    explorer = explorer_of(loop, weight=2.5)
    explorer.status.observe(lambda change: seen.append(change["new"]), "value")
    explorer.after.page.observe(lambda _: seen.append(shade(explorer.after.picture)), "value")
    result = run(explorer)
    assert loop.begun == [{"weight": 2.5, "kind": "a", "seed": 0}] and loop.closed == 1
    assert result.done == result.total == 40 and len(result.losses) == 40 and result.losses[9] == pytest.approx(0.75)
    assert list(result.frames) == [1, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 36, 39, 40]
    assert loop.decoded == len(result.frames)
    shades = [each for each in seen if isinstance(each, float)]
    assert shades[:-1] == pytest.approx([number / 40 for number in result.frames], abs=1 / 255)  # and last its settings
    assert any("step 12 of 40, loss 0.7" in each for each in seen if isinstance(each, str))
    assert "finished" in explorer.status.value and explorer.progress.value == explorer.progress.max == 40
    assert torch.equal(result.image, torch.ones(1, 3, 8, 8))


def test_run_button_without_a_loop_runs_to_the_end():
    explorer = explorer_of(Loop(3))
    explorer.run_button.click()
    assert explorer.result.done == 3


def test_scrubbing_shows_the_frame_of_the_step():
    explorer = explorer_of(Loop(40))
    assert explorer.scrub.disabled and "<img" not in explorer.after.page.value
    result = run(explorer)
    assert not explorer.scrub.disabled and explorer.scrub.value == 40
    assert [label for label, _ in explorer.scrub.options][:2] == ["step 1", "step 3"]
    for number in (1, 21, 40):
        explorer.scrub.value = number
        assert explorer.after.picture == result.frames[number]
        assert shade(picture_of(explorer.after)) == pytest.approx(number / 40, abs=1 / 255)
        assert f"step {number} of 40" in explorer.after.page.value
    for width in (640, 128):
        explorer.zoom.value = width
        for slot in (explorer.before, explorer.after):
            assert slot.page.layout.max_width == f"{width}px"
        assert f"max-height: {width}px" in explorer.after.page.value
        assert f"step {number} of 40" in explorer.after.page.value


def test_cancel_stops_at_the_next_step_and_leaves_nothing_behind():
    loop = Loop(40, before=lambda index: explorer.cancel_button.click() if index == 7 else None)
    explorer = explorer_of(loop)
    result = run(explorer)
    assert loop.made == result.done == 7 and loop.closed == 1
    assert "cancelled after step 7 of 40" in explorer.status.value
    assert list(result.frames) == [1, 3, 6] and explorer.after.picture == result.frames[6]
    assert explorer.cancel_button.disabled and not explorer.run_button.disabled
    assert run(explorer).done == 7, "a cancelled explorer runs again"


def test_buttons_on_a_running_event_loop():
    async def use():
        loop = Loop(10_000)
        explorer = explorer_of(loop)
        explorer.run_button.click()
        assert explorer.run_button.disabled and not explorer.cancel_button.disabled
        explorer.run_button.click()  # on its way when the first came through
        while loop.made < 5:
            await asyncio.sleep(0)
        explorer.run_button.click()
        with pytest.raises(RuntimeError, match="Test is running"):
            await explorer.run()
        with pytest.raises(RuntimeError, match="Test is running"):
            explorer.static(weight=2.0)
        assert loop.closed == 0
        explorer.cancel_button.click()
        result = await explorer.task
        assert len(loop.begun) == 1 and loop.closed == 1 and 5 <= result.done < 100
        explorer.task.cancel()  # of a finished task: nothing

    asyncio.run(use())


def test_a_cancelled_task_closes_the_loop():
    async def use():
        loop = Loop(10_000)
        explorer = explorer_of(loop)
        explorer.run_button.click()
        while loop.made < 2:
            await asyncio.sleep(0)
        explorer.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await explorer.task
        assert loop.closed == 1 and not explorer.run_button.disabled

    asyncio.run(use())


@pytest.mark.parametrize("at", [0, 1, 5])
def test_a_mistake_is_one_sentence(at):
    def fail(index):
        if index == at:
            raise ValueError("weight must be <b>less</b>,\n got more")

    loop = Loop(8)
    explorer = explorer_of(loop)
    first = run(explorer)
    loop.before = fail
    if at == 0:
        explorer.begin = lambda settings: fail(0)
    assert run(explorer) is None
    assert "Error: weight must be &lt;b&gt;less&lt;/b&gt;, got more" in explorer.status.value
    assert not explorer.run_button.disabled and explorer.errors.outputs == ()
    assert explorer.result is first and explorer.after.picture == first.frames[8], "the last result is back"


def test_other_errors_are_not_swallowed():
    explorer = explorer_of(Loop(8, before=lambda index: 1 / (index - 3)))
    with pytest.raises(ZeroDivisionError):
        run(explorer)
    (shown,) = explorer.errors.outputs
    assert shown["output_type"] == "error" and shown["ename"] == "ZeroDivisionError"
    assert any("test_widgets.py" in line for line in shown["traceback"])
    assert "ZeroDivisionError" in explorer.status.value and not explorer.run_button.disabled
    explorer.begin = Loop(2).begin
    assert run(explorer).done == 2 and explorer.errors.outputs == ()


def test_a_loop_without_steps_is_a_mistake():
    explorer = explorer_of(Loop(0))
    assert run(explorer) is None and "the loop had no steps" in explorer.status.value


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 3}, "there is no setting 'size'; the settings are weight, kind, seed"),
        ({"weight": 7.0}, "weight must be a number from 0 to 5, got 7.0"),
        ({"weight": "much"}, "weight must be a number from 0 to 5, got 'much'"),
        ({"seed": 0.5}, "seed must be a whole number from 0 to 100, got 0.5"),
        ({"kind": "c"}, "kind must be among a, b, got 'c'"),
    ],
)
def test_settings_that_controls_do_not_take(settings, message):
    explorer = explorer_of(Loop())
    with pytest.raises(ValueError, match=re.escape(message)):
        explorer.set(**settings)
    assert explorer.settings() == {"weight": 1.0, "kind": "a", "seed": 0}
    with pytest.raises(ValueError, match=re.escape(message)):
        explorer_of(Loop(), **settings)


# --- side by side, figures, export ----------------------------------------------------------------------------------


def test_two_results_stand_side_by_side():
    explorer = explorer_of(Loop(40))
    explorer.keep_button.click()
    assert "press Run first" in explorer.status.value and explorer.before.picture is None
    first = run(explorer)
    explorer.scrub.value = 21
    explorer.keep_button.click()
    explorer.set(weight=3.0)
    second = run(explorer)
    assert explorer.before.picture == first.frames[21] and explorer.after.picture == second.frames[40]
    assert explorer.before.title == "Before: kept"
    told = [slot.words for slot in (explorer.before, explorer.after)]
    assert told[0] == "step 21 of 40<br><b>weight 1</b><br>kind a; seed 0"
    assert told[1] == "step 40 of 40<br><b>weight 3</b><br>kind a; seed 0"
    figure = explorer.figure()
    assert [ax.get_ylabel() for ax in figure.axes] == ["weight 1", "", "weight 3", ""]
    assert [ax.get_xlabel() for ax in figure.axes] == ["grey", "step 21 of 40", "grey", "step 40 of 40"]
    assert figure.axes[1].images[0].get_array()[0, 0, 0] == round(255 * 21 / 40)
    assert explorer.provenance()["kept"]["config"]["weight"] == 1.0
    explorer.clear_button.click()
    assert explorer.before.picture is None and "<b>" not in explorer.after.words and explorer.clear_button.disabled
    assert "kept" not in explorer.provenance() and len(explorer.figure().axes) == 2


def test_a_second_run_stands_beside_the_first():
    loop = Loop(4)
    explorer = explorer_of(loop)
    first = run(explorer)
    assert explorer.before.picture is None and "Run twice to compare." in explorer.before.page.value
    explorer.scrub.value = 2
    explorer.set(kind="b")
    loop.before = lambda index: seen.append(explorer.before.picture)
    seen = []
    second = run(explorer)
    assert seen == [first.frames[2]] * 4, "what is compared with is there while it runs"
    assert explorer.before.title == "Before: the previous run" and explorer.after.picture == second.frames[4]
    assert explorer.before.words == "step 2 of 4<br><b>kind a</b><br>weight 1; seed 0"
    assert len(explorer.figure().axes) == 2 and "kept" not in explorer.provenance(), "it is exported only when kept"
    loop.before = lambda index: 1 / 0 if index == 2 else None
    with pytest.raises(ZeroDivisionError):
        run(explorer)
    assert explorer.before.picture == first.frames[2] and explorer.after.picture == second.frames[4]
    explorer.clear_button.click()
    assert explorer.before.picture is None and explorer.clear_button.disabled
    loop.before = lambda index: None
    run(explorer)
    assert explorer.before.picture == second.frames[4]


def test_export_writes_figure_provenance_and_typst(tmp_path):
    explorer = explorer_of(Loop(4), seed=11)
    explorer.export_button.click()
    assert "press Run first" in explorer.status.value
    run(explorer)
    explorer.export_name.value = "my-figure_1"
    explorer.export_button.click()
    path = tmp_path / "figures" / "exported" / "my-figure_1.png"
    with Image.open(path) as picture:
        row = json.loads(picture.text["ex4lib"])
        assert (np.asarray(picture.convert("RGB")) == 255).all(-1).any()
    assert row["config"] == {"explorer": "Test", "weight": 1.0, "kind": "a", "seed": 11, "step": 4, "total": 4}
    assert row["seed"] == 11 and row["weights"] == {"nothing": "0" * 64} and len(row["inputs"]["grey"]) == 64
    assert row["values"]["losses"] == [0.75, 0.5, 0.25, 0.0] and "torch" in row["environment"]
    assert saved_rows()["exported/my-figure_1"] == row
    assert str(path) in explorer.status.value
    assert (
        "#figure(image(&quot;exported/my-figure_1.png&quot;, alt: &quot;Test, step 4 of 4: " in explorer.exported.value
    )

    before = path.read_bytes()
    explorer.export_button.click()
    assert "my-figure_1 is taken; written to" in explorer.status.value
    assert path.read_bytes() == before and path.with_name("my-figure_1-2.png").is_file()
    assert "exported/my-figure_1-2.png" in explorer.exported.value
    assert explorer.export("my-figure_1").path.name == "my-figure_1-3.png"


@pytest.mark.parametrize("name", ["", "../up", "a b", "-a", "ä", "a.png", "a" * 81, "a\n"])
def test_export_refuses_names(name, tmp_path):
    explorer = explorer_of(Loop(2))
    run(explorer)
    with pytest.raises(ValueError, match="letters, digits, dashes and underscores"):
        explorer.export(name)
    explorer.export_name.value = name
    explorer.export_button.click()
    assert "Error: the name must be of letters" in explorer.status.value
    assert not (tmp_path / "figures").exists()


def test_an_exported_picture_keeps_its_pixels(tmp_path):
    """A picture of 300 pixels is not shrunk by the figure around it."""
    explorer = explorer_of(Loop(2))
    explorer.begin = lambda settings: dataclasses.replace(
        Loop(2).begin(settings), final=lambda step: torch.zeros(1, 3, 300, 300), inputs={}
    )
    run(explorer)
    with Image.open(explorer.export("big").path) as picture:
        dark = (np.asarray(picture.convert("L")) < 5).any(0)
    assert dark.sum() >= 270


TRICKY = """#1 "a_b" *c* [d] $e$ <f> @g `h` ~ a\\b - + / // 'i' = é"""


def test_the_line_of_typst_is_escaped():
    line = watching.typst_line("name", TRICKY)
    alt, caption = re.fullmatch(
        r'#figure\(image\("exported/name\.png", alt: ("(?:[^"\\]|\\.)*")\), caption: \[(.*)\]\)', line
    ).groups()
    assert json.loads(alt) == TRICKY
    assert re.sub(r"\\(.)", r"\1", caption) == TRICKY
    assert not re.search(r"[#$*_`<>@\[\]~=+\-/'\"]", re.sub(r"\\.", "", caption))


def test_typst_reads_the_line(tmp_path):
    typst = pytest.importorskip("typst")
    images.save(torch.zeros(1, 3, 8, 8), tmp_path / "exported" / "name.png")
    (tmp_path / "page.typ").write_text(watching.typst_line("name", TRICKY))
    assert typst.compile(str(tmp_path / "page.typ")).startswith(b"%PDF")


def test_static_twin_is_made_once_and_then_comes_from_the_store(tmp_path):
    loop = Loop(40)
    explorer = explorer_of(loop, stored)
    figure = explorer.static(weight=2.0)
    assert explorer.controls["weight"].value == 2.0 and loop.made == 40
    labels = [ax.get_xlabel() for ax in figure.axes]
    assert labels == ["grey", *(f"step {number} of 40" for number in (1, 12, 21, 30, 40))]
    assert explorer.scrub.value == 40 and not explorer.export_button.disabled
    saved = figures.save(explorer.static(), "twin", caption="c", **explorer.provenance())
    assert saved.path.is_file() and loop.made == 40, "the last result is shown, not made again"

    again = explorer_of(loop, stored, weight=2.0)
    assert [ax.get_xlabel() for ax in again.static().axes] == labels
    assert (
        loop.made == 40
        and again.result.losses == explorer.result.losses
        and again.result.frames == explorer.result.frames
    )
    assert again.provenance() == explorer.provenance()
    again.static(weight=3.0)
    assert loop.made == 80 and loop.closed == 2
    with pytest.raises(ValueError, match="weight must be a number"):
        again.static(weight=9.0)


def test_without_a_store_the_static_twin_is_computed():
    loop = Loop(3)
    for _ in range(2):
        explorer_of(loop).static()
    assert loop.made == 6 and not list(files.figures_folder().rglob("*"))


def test_static_shows_what_run_left():
    explorer = explorer_of(Loop(3))
    run(explorer)
    assert [ax.get_xlabel() for ax in explorer.static().axes] == ["grey", *(f"step {i} of 3" for i in (1, 2, 3))]


# --- the explorers over the library -----------------------------------------------------------------------------------


@pytest.fixture
def network():
    return random_network().float()


@pytest.fixture
def own(picture):
    return {"mine": picture(24, 32, dtype=torch.float32), "yours": picture(40, 32, dtype=torch.float32)}


@pytest.fixture(scope="module")
def stable(tmp_path_factory):
    pipe = pipelines.stable_diffusion(str(save_stable_diffusion(tmp_path_factory.mktemp("sd") / "tiny-sd")))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    pipe = pipelines.ddpm(str(save_ddpm(tmp_path_factory.mktemp("ddpm") / "tiny-ddpm")))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pixel(tmp_path_factory):
    return pixel_model(str(save_pixel(tmp_path_factory.mktemp("pixel") / "model")))


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setenv("EX4_FAST", "1")


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("start", ["noise", "content"])
def test_style_transfer_is_stylize(network, own, start):
    layers = ("relu1_1", "relu3_1")
    explorer = widgets.style_transfer(
        network=network, pictures=own, photo="mine", painting="yours", style_weight=4.0, style_loss="meanvar",
        style_layers=layers, start=start, size=32, evaluations=5, seed=9,
    )  # fmt: skip
    recipe = dataclasses.replace(
        transfer.DEFAULT, style_weight=4.0, style_loss="meanvar", style_layers=layers, layer_weights=(1.6, 0.8)
    )
    expected = transfer.stylize(
        network, own["mine"], own["yours"], recipe=recipe, size=32, evaluations=5, start=start, generator=seeded(9)
    )
    result = run(explorer)
    assert torch.equal(result.image, expected.image) and result.losses == pytest.approx(expected.losses)
    assert list(result.inputs) == ["photo", "painting"] and result.weights() == {"network": network.identity}


def test_inversion_is_invert(network, own):
    explorer = widgets.inversion(
        network=network, pictures=own, photo="yours", layer="pool2", tv_weight=0.5, size=32, evaluations=5, seed=2
    )
    target = images.resize(images.crop_square(own["yours"]), 32)
    expected = transfer.invert(network, target, "pool2", tv_weight=0.5, evaluations=5, generator=seeded(2))
    assert torch.equal(run(explorer).image, expected.image)
    assert "conv4_4" in explorer.controls["layer"].options  # of VGG-19, as the network
    assert "conv4_4" not in widgets.inversion().controls["layer"].options  # of the profile's VGG-16


PLANNED = {
    preset: settings(preset, style_scale=0.4, window=(0.25, 0.75), ramp="late") for preset in ("default", "in-pixels")
}
GUIDED = {"style_scale": 0.4, "window": (0.25, 0.75), "ramp": "late", "style_loss": "meanvar", "steps": 4, "seed": 5}


@pytest.fixture
def double(stable):
    """The shared pipeline in double precision for one test: in single, rounding grows where the gradient is small."""
    yield stable.to(torch.float64)
    stable.to(torch.float32)  # the weights were single, so that nothing is lost


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "PNDMScheduler", "EulerAncestralDiscreteScheduler"])
def test_guided_stable_diffusion_is_the_pipeline(double, own, scheduler, monkeypatch):
    stable, vgg = double, random_network("vgg16")
    explorer = widgets.guided_stable_diffusion(
        pipe=stable, features=vgg, pictures=own, painting="mine", prompt="a castle", scheduler=scheduler,
        guidance_scale=3.0, **GUIDED,
    )  # fmt: skip
    original = stable.scheduler
    result = run(explorer)
    assert stable.scheduler is original
    options = {"skip_prk_steps": True} if scheduler == "PNDMScheduler" else {}
    monkeypatch.setattr(stable, "scheduler", getattr(diffusers, scheduler).from_config(original.config, **options))
    found = stable(
        "a castle", style_image=own["mine"], guidance=PLANNED["default"],
        style_loss="meanvar", features=vgg, num_inference_steps=4, guidance_scale=3.0, generator=seeded(5),
        output_type="pt",
    )  # fmt: skip
    difference = (result.image - found.images).abs().max()  # the explorer runs the library's own loop
    assert difference < 1e-6, difference
    assert [loss for loss in result.losses if loss is not None] == pytest.approx(
        [row["loss"][0] for row in found.trace]
    )
    assert set(result.weights()) == {"tiny-sd", "features"} and list(result.inputs) == ["painting"]


def test_at_scale_0_no_network_and_no_painting_is_asked_for(stable, monkeypatch):
    monkeypatch.setattr(models, "features", lambda *_, **__: pytest.fail("loaded"))
    explorer = widgets.guided_stable_diffusion(pipe=stable, style_scale=0.0, steps=3, guidance_scale=4.0)
    expected = stable("a cat", num_inference_steps=3, guidance_scale=4.0, generator=seeded(0), output_type="pt").images
    result = run(explorer)
    assert torch.equal(result.image, expected) and result.inputs == {} and set(result.losses) == {None}


def test_guided_ddpm_is_the_pipeline(faces, own, monkeypatch):
    vgg = random_network("vgg16").float()
    explorer = widgets.guided_ddpm(pipe=faces, features=vgg, pictures=own, painting="yours", **GUIDED)
    result = run(explorer)
    monkeypatch.setattr(faces, "scheduler", diffusers.DDIMScheduler.from_config(faces.scheduler.config))
    found = faces(
        style_image=own["yours"], guidance=PLANNED["in-pixels"], style_loss="meanvar",
        features=vgg, num_inference_steps=4, generator=seeded(5), output_type="pt",
    )  # fmt: skip
    assert torch.equal(result.image, found.images)


def test_sdedit_is_edit(pixel, own, fast):
    explorer = widgets.sdedit(
        model=pixel, pictures=own, photo="mine", prompt="a dog", start=1, guidance_scale=2.0, seed=4
    )
    picture = images.resize(images.crop_square(own["mine"]), 16)
    steps = editing.edit(
        pixel.denoiser("a dog", guidance_scale=2.0), pixel.scheduler, picture, start=1, steps=strided_timesteps(330),
        generator=seeded(4),
    )  # fmt: skip
    expected, _ = sampling.finish(steps)
    result = run(explorer)
    assert torch.equal(result.image, expected.sample_image) and result.done == result.total == 3


@pytest.mark.parametrize("view", [name for name in VIEWS if name != "identity"])
def test_an_anagram_is_shown_both_ways(pixel, fast, view):
    explorer = anagram_explorer(
        model=pixel, prompt="a dog", other_prompt="a tree", view=view, guidance_scale=2.0, seed=4
    )
    told = [pixel.denoiser(prompt, guidance_scale=2.0) for prompt in ("a dog", "a tree")]
    draws = seeded(4)
    steps = sampling.sample(
        illusions.Anagram(told, [illusions.IDENTITY, VIEWS[view]]), pixel.scheduler, pixel.noise(1, draws),
        steps=strided_timesteps(330), generator=draws,
    )  # fmt: skip
    expected, _ = sampling.finish(steps)
    left, right = run(explorer).image.chunk(2, dim=-1)
    assert torch.equal(left, expected.sample_image) and torch.equal(right, VIEWS[view].shown(expected.sample_image))


ALL = (
    widgets.style_transfer, widgets.inversion, widgets.guided_stable_diffusion, widgets.guided_ddpm, widgets.sdedit,
    anagram_explorer,
)  # fmt: skip


def test_nothing_is_loaded_before_run(monkeypatch):
    for room, name in (
        (models, "features"),
        (pipelines, "stable_diffusion"),
        (pipelines, "ddpm"),
        (explorers, "pixel_model"),
    ):
        monkeypatch.setattr(room, name, lambda *_, **__: pytest.fail("loaded"))
    for make in ALL:
        make()


def test_models_are_loaded_once(network, own, monkeypatch):
    calls = []
    monkeypatch.setattr(models, "features", lambda *_, **__: calls.append(1) or network)
    explorer = widgets.style_transfer(pictures=own, photo="mine", painting="yours", size=32, evaluations=2)
    first, second = run(explorer), run(explorer)
    assert calls == [1] and torch.equal(first.image, second.image)


def test_missing_weights_are_one_sentence(monkeypatch, tmp_path):
    explorer = widgets.sdedit()
    monkeypatch.setitem(models.SOURCES["mini"], "pixel", str(tmp_path / "nowhere"))
    assert run(explorer) is None
    assert "nowhere" in explorer.status.value and 'role="alert"' in explorer.status.value
    assert explorer.errors.outputs == () and not explorer.run_button.disabled


def test_the_full_profile_reads_local_models(tmp_path, monkeypatch, fast):
    save_pixel(tmp_path / "IF-I-XL-v1.0")
    monkeypatch.setenv("EX4_PROFILE", "full")
    monkeypatch.setenv("EX4_MODELS", str(tmp_path))
    assert run(anagram_explorer()).image.shape == (1, 3, 16, 32)


def test_thumbnails_follow_the_controls(own):
    explorer = widgets.style_transfer(pictures=own)
    assert (
        explorer.controls["photo"].options[:2] == ("mine", "yours")
        and "astronaut" in explorer.controls["photo"].options
    )
    before = {name: picture_of(slot) for name, slot in explorer.inputs.items()}
    assert list(before) == ["photo", "painting"]
    explorer.controls["painting"].value = "mine"
    after = {name: picture_of(slot) for name, slot in explorer.inputs.items()}
    assert after["photo"] == before["photo"] and after["painting"] != before["painting"]
    with Image.open(io.BytesIO(after["painting"])) as thumbnail:
        assert max(thumbnail.size) == 256


def test_the_photograph_is_the_picture_before(network, own):
    explorer = widgets.style_transfer(network=network, pictures=own, photo="mine", size=32, evaluations=2)
    assert explorer.before.title == "Before: the photo" and picture_of(explorer.before) == picture_of(
        explorer.inputs["photo"]
    )
    explorer.set(photo="yours")
    assert picture_of(explorer.before) == picture_of(explorer.inputs["photo"])
    run(explorer)
    shown = explorer.before.picture
    explorer.set(photo="mine")
    assert explorer.before.picture == shown, "it stays that of the run"


@pytest.mark.parametrize("make", ALL)
def test_less_used_settings_are_folded_away(make):
    explorer = make()
    (hidden,) = explorer.fold.children
    folded = [part.description for part in hidden.children]
    assert (
        explorer.fold.selected_index is None and len(folded) >= 2 and 3 <= len(explorer.controls) + 1 - len(folded) <= 5
    )
    explorer.fold_button.click()
    assert explorer.fold.selected_index == 0
    explorer.fold_button.click()
    assert explorer.fold.selected_index is None
    shown = [part.description for part in everything(explorer.view) if part in explorer.controls.values()]
    assert sorted(shown) == sorted(name.replace("_", " ") for name in explorer.controls)


# --- ipywidgets 7.7 and 8 ---------------------------------------------------------------------------------------------

SLIDER = {"value", "min", "max", "step", "description", "disabled", "continuous_update", "readout", "readout_format"}
CHOICE = {"_options_labels", "index", "description", "disabled", "options", "value", "label"}
#: Traits that 7.7.1 and 8 both have, of the classes used.
COMMON = {
    "Accordion": {"children", "selected_index", "titles"}, "Box": {"children"},
    "HBox": {"children"}, "VBox": {"children"},
    "Button": {"description", "disabled", "icon", "button_style", "tooltip"},
    "HTML": {"value", "placeholder", "description"},
    "Text": {"value", "placeholder", "description", "disabled", "continuous_update"},
    "Image": {"value", "format", "width", "height"}, "Output": {"outputs", "msg_id"},
    "IntProgress": {"value", "min", "max", "bar_style", "description", "orientation"},
    "IntSlider": SLIDER, "FloatSlider": SLIDER, "FloatLogSlider": SLIDER | {"base"}, "FloatRangeSlider": SLIDER,
    "BoundedIntText": {"value", "min", "max", "step", "description", "disabled", "continuous_update"},
    "Dropdown": CHOICE, "SelectMultiple": CHOICE | {"rows"},
    "SelectionSlider": CHOICE | {"continuous_update", "readout"},
    "Layout": {"width", "max_width", "flex", "flex_flow", "margin"},
    "SliderStyle": {"description_width", "handle_color"},
    "DescriptionStyle": {"description_width"},
}  # fmt: skip


def changed(widget):
    """Synchronised traits that do not stand at their defaults; not tooltips, which are set only where they are."""
    names = [
        name for name in widget.traits(sync=True) if not re.match("layout|style|tooltip|description_tooltip|_", name)
    ]
    return {name for name in names if getattr(widget, name) != widget.trait_defaults(name)}


def everything(widget):
    yield widget
    for part in (*getattr(widget, "children", ()), getattr(widget, "layout", None), getattr(widget, "style", None)):
        if part is not None:
            yield from everything(part)


@pytest.mark.parametrize("make", ALL)
def test_only_what_both_versions_of_ipywidgets_have(make):
    explorer, interactive = make(), 0
    for widget in everything(explorer.view):
        kind = type(widget).__name__
        if kind.endswith("Style") and kind not in COMMON:
            assert changed(widget) <= {"description_width"}, kind  # version 8 has more classes for the same
            continue
        assert kind in COMMON and changed(widget) <= COMMON[kind], (kind, changed(widget) - COMMON.get(kind, set()))
        if hasattr(widget, "disabled"):  # what is operated says in words what it is
            interactive += 1
            assert widget.description
    assert interactive == len(explorer.controls) + 9


@pytest.mark.parametrize("make", ALL)
def test_what_is_operated_has_a_tooltip(make):
    """Sliders and numbers say "null" in ipywidgets 8 where they have none; 7.7 has another name for it."""
    explorer = make()
    for part in everything(explorer.view):
        if hasattr(part, "disabled"):
            assert part.tooltip if part.has_trait("tooltip") else part.description_tooltip, part
    with_tooltip = explorer.zoom.has_trait("tooltip")
    said = explorer.zoom.tooltip if with_tooltip else explorer.zoom.description_tooltip
    assert said == "a whole number from 128 to 1024"


OLD = """
import ipywidgets
from tests.test_widgets import ALL, Loop, explorer_of, run, test_less_used_settings_are_folded_away
from tests.test_widgets import test_what_is_operated_has_a_tooltip, test_only_what_both_versions_of_ipywidgets_have

for make in ALL:
    test_only_what_both_versions_of_ipywidgets_have(make)
    test_what_is_operated_has_a_tooltip(make)
    test_less_used_settings_are_folded_away(make)
explorer = explorer_of(Loop(4))
run(explorer)
explorer.scrub.value = 2
explorer.keep_button.click()
run(explorer)
print(ipywidgets.__version__, explorer.status.value)
"""


@pytest.mark.skipif(
    "EX4_IPYWIDGETS_7" not in os.environ, reason="EX4_IPYWIDGETS_7 names a folder with ipywidgets 7.7.1"
)
def test_the_same_code_runs_on_ipywidgets_7():
    """The folder: pip install --no-deps --target FOLDER ipywidgets==7.7.1 ipython_genutils."""
    path = os.pathsep.join([os.environ["EX4_IPYWIDGETS_7"], str(ROOT), str(ROOT / "report")])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", OLD], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("7.7.1 ") and "finished" in done.stdout


# --- in a kernel ------------------------------------------------------------------------------------------------------

FIRST = """
import time, torch
from ipywidgets import IntSlider
from ex4lib import transfer, widgets
from ex4lib.widgets import Explorer, Job
from tests.random_models import random_network

network = random_network().float()
explorer = widgets.style_transfer(network=network, photo="coffee", size=32, evaluations=4)
explorer
"""
SLOW = """
closed = 0

class Step:
    total = 100_000

def steps():
    global closed
    try:
        while True:
            time.sleep(0.01)
            yield Step
    finally:
        closed += 1

grey = lambda step: torch.full((1, 3, 8, 8), 0.5)
slow = Explorer("Slow", "", {"seed": IntSlider()}, lambda settings: Job(steps(), grey, grey))
print(slow.run_button.model_id, slow.cancel_button.model_id)
"""


@pytest.fixture(scope="module")
def kernel():
    """Runs cells in a real kernel, and clicks as a browser does."""
    notebook = nbformat.v4.new_notebook()
    client = NotebookClient(notebook, timeout=300, kernel_name="python3")

    class Kernel:
        def cell(self, source):
            notebook.cells.append(nbformat.v4.new_code_cell(source))
            client.execute_cell(notebook.cells[-1], len(notebook.cells) - 1)
            return notebook.cells[-1].outputs

        def text(self, source):
            return "".join(output.get("text", "") for output in self.cell(source))

        def click(self, model):
            data = {"method": "custom", "content": {"event": "click"}}
            client.kc.shell_channel.send(client.kc.session.msg("comm_msg", {"comm_id": model, "data": data}))

        def widget_errors(self):
            client.set_widgets_metadata()
            spec = importlib.util.spec_from_file_location("build", ROOT / "report" / "build.py")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module.callback_errors(notebook)

    path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    with client.setup_kernel(env={**os.environ, "PYTHONPATH": path, "EX4_PROFILE": "mini"}):
        running = Kernel()
        running.shown = running.cell(FIRST)
        yield running


def test_an_explorer_shows_itself_in_a_notebook(kernel):
    (shown,) = kernel.shown
    assert shown["data"]["text/plain"] == "Style transfer, an explorer: run this notebook to use it."
    assert "model_id" in shown["data"]["application/vnd.jupyter.widget-view+json"]


def test_run_by_code_in_a_notebook(kernel):
    kernel.cell("explorer.run_button.click()\nresult = await explorer.task")
    same = """
    expected = transfer.stylize(
        network, *result.inputs.values(), recipe=transfer.DEFAULT, size=32, evaluations=4
    )
    print(result.done, torch.equal(result.image, expected.image), explorer.run_button.disabled)
    """
    assert kernel.text("\n".join(line.removeprefix("    ") for line in same.splitlines())) == "4 True False\n"
    assert kernel.widget_errors() == []


def test_run_and_cancel_by_click_in_a_notebook(kernel):
    """The messages of a browser get through while the loop is running."""
    start, stop = kernel.text(SLOW).split()
    kernel.click(start)
    time.sleep(0.5)
    kernel.click(stop)
    told = kernel.text("result = await slow.task\nprint(result.done, slow.run_button.disabled, slow.status.value)")
    done, disabled, *status = told.split()
    assert 1 <= int(done) < 1000 and disabled == "False" and f"cancelled after step {done} of" in " ".join(status)
    assert kernel.text("print(closed)") == "1\n" and kernel.widget_errors() == []


def test_an_error_in_a_notebook_is_found(kernel):
    """What the notebooks' runner looks for; last, since the kernel remembers it."""
    outputs = kernel.cell(
        "broken = Explorer('Broken', '', {'seed': IntSlider()}, lambda settings: {}['model'])\n"
        "display(broken)\n"
        "broken.run_button.click()\n"
        "try:\n    await broken.task\nexcept KeyError:\n    print('raised')"
    )
    assert "raised\n" in [output.get("text") for output in outputs]
    assert kernel.widget_errors() == ["KeyError"]
