"""Videos: flow, warping, consistency, the temporal term, flicker, files, and the command."""

import contextlib
import functools
import os
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from ex4lib import cli, images, models, transfer, video
from experiments import metrics

av = pytest.importorskip("av")
pytest.importorskip("cv2")
SETTINGS = {"size": 48, "first_evaluations": 6, "evaluations": 4}


@pytest.fixture(scope="module")
def picture():
    return images.resize(images.load("coffee"), (96, 128))


def panned(picture, count=4, step=2, size=(36, 48)):
    """Frames of a crop that moves to the right."""
    return [picture[..., 20 : 20 + size[0], 10 + step * i : 10 + step * i + size[1]].contiguous() for i in range(count)]


@pytest.fixture
def clip(tmp_path, picture):
    """A tiny file of five frames at 12.5 per second."""
    return video.save(iter(panned(picture, 5)), tmp_path / "in.mp4", Fraction(25, 2))


def decoded(path):
    """Rate, sizes and number of frames as PyAV sees them."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return stream.average_rate, [(frame.height, frame.width) for frame in container.decode(stream)]


# --- flow, warping, consistency -----------------------------------------------------------------------------------


def test_the_flow_of_a_known_translation_is_found(picture):
    earlier, later = picture[..., 10:74, 10:106], picture[..., 13:77, 6:102]
    flow = video.optical_flow(later, earlier)[..., 8:-8, 8:-8]  # what is at p in the later one was at p + w
    torch.testing.assert_close(flow.median(2).values.median(2).values, torch.tensor([[-4.0, 3.0]]), atol=0.05, rtol=0)


@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (3, 0), (-2, 5)])
def test_warping_by_whole_pixels_is_a_roll(dx, dy, generator):
    x = torch.rand(2, 3, 24, 32, generator=generator)
    flow = torch.tensor([dx, dy], dtype=torch.float32).view(1, 2, 1, 1).expand(2, 2, 24, 32)
    expected = x.roll((-dy, -dx), (2, 3))
    inner = (..., slice(7, -7), slice(7, -7))
    torch.testing.assert_close(video.warp(x, flow)[inner], expected[inner], atol=1e-5, rtol=0)


def test_warping_by_half_a_pixel_is_exact_on_a_plane():
    x = torch.arange(32.0).expand(1, 1, 16, 32) / 32
    moved = video.warp(x, torch.tensor([0.5, 0.0]).view(1, 2, 1, 1).expand(1, 2, 16, 32))
    torch.testing.assert_close(moved[..., 4:-4], x[..., 4:-4] + 0.5 / 32)


def test_the_mask_excludes_what_left_the_frame():
    flow = torch.tensor([5.0, -3.0]).view(1, 2, 1, 1).expand(1, 2, 20, 30)
    mask = video.consistency(-flow, flow)
    expected = torch.zeros(1, 1, 20, 30)
    expected[..., 3:, :25] = 1
    assert torch.equal(mask, expected)


def test_the_mask_excludes_what_was_hidden_and_the_edges_of_what_moved():
    """A square moves over a background at rest: what it uncovers was not seen before."""
    forward, backward = torch.zeros(1, 2, 40, 40), torch.zeros(1, 2, 40, 40)
    forward[:, 0, 10:20, 10:20] = 6  # it was at columns 10 to 19 and is at 16 to 25
    backward[:, 0, 10:20, 16:26] = -6
    mask = video.consistency(forward, backward)[0, 0]
    assert mask[12:18, 10:16].sum() == 0  # uncovered
    assert mask[:, 15:17][10:20].sum() == 0 and mask[9:11, 16:26].sum() == 0  # its edges
    assert mask[12:18, 18:24].all() and mask[25:, :].all() and mask[:, 30:].all()


def test_the_temporal_term_is_the_masked_mean_square(generator):
    x, target = torch.rand(2, 2, 3, 8, 8, generator=generator)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :2] = 1
    term = video.TemporalTerm(target, mask, 1.0)
    expected = (x - target)[..., :2].square().sum((1, 2, 3)) / (3 * 8 * 8)
    torch.testing.assert_close(term.loss(x, {}), expected)
    assert term.loss(target, {}).sum() == 0


def test_a_video_at_rest_has_no_temporal_loss_and_no_flicker(picture):
    flow, mask = video.motion(picture, picture)
    assert flow.abs().max() == 0 and mask.all()
    moved = video.warp(picture, flow)
    assert video.TemporalTerm(moved, mask, 1.0).loss(picture, {}).item() < 1e-10
    assert metrics.flicker([picture] * 3, [picture] * 3) < 1e-10
    assert metrics.flicker([picture], [picture]) == 0


# --- painting -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 2])
def test_it_flickers_less_than_frames_painted_alone(offline, picture, step):
    """Each alone starts from noise, as the first frame does; a video at rest must rest."""
    frames, style = panned(picture, 4, step), images.load("hokusai-poppies")
    painted = list(video.stylize_frames(offline, frames, style, **SETTINGS, start="noise"))
    alone = []
    for number, frame in enumerate(frames):
        generator = torch.Generator().manual_seed(number)
        options = {"size": 48, "evaluations": 6, "start": "noise", "generator": generator}
        alone.append(transfer.stylize(offline, frame, style, **options).image)
    assert [tuple(image.shape) for image in painted] == [(1, 3, 36, 48)] * 4
    assert metrics.flicker(painted, frames) < 0.2 * metrics.flicker(alone, frames)


@pytest.mark.parametrize("keep_colour", ["no", "luminance"])
def test_a_finished_video_at_rest_rests(offline, picture, keep_colour):
    frames, settings = [images.resize(picture, 48)] * 2, SETTINGS | {"first_evaluations": 20}
    painted = list(video.stylize_frames(offline, frames, "hokusai-poppies", **settings, keep_colour=keep_colour))
    assert metrics.flicker(painted, frames) < 1e-4


def test_the_temporal_weight_steadies_and_runs_repeat(offline, picture):
    frames, style = panned(picture, 3), images.load("hokusai-poppies")
    free, held, again = (
        list(video.stylize_frames(offline, frames, style, **SETTINGS, temporal_weight=weight))
        for weight in (0, 500, 500)
    )
    assert all(map(torch.equal, held, again))
    assert metrics.flicker(held, frames) < 0.7 * metrics.flicker(free, frames)


def test_a_cut_begins_a_new_shot(offline, picture, monkeypatch):
    evaluations = []
    original = transfer.stylize_steps

    def watched(*arguments, **settings):
        evaluations.append(settings["evaluations"])
        return original(*arguments, **settings)

    monkeypatch.setattr(transfer, "stylize_steps", watched)
    other = images.resize(images.load("chelsea"), (36, 48))
    frames = [*panned(picture, 2), other]
    assert len(list(video.stylize_frames(offline, iter(frames), other, **SETTINGS))) == 3
    assert evaluations == [6, 4, 6]


def test_frames_are_painted_one_by_one_at_even_sizes(offline, picture):
    """No frame is asked for before the one before it was painted, but for the one that comes next."""
    asked = []

    def endless():
        while True:
            asked.append(1)
            yield picture[..., :95, :127]

    painted = video.stylize_frames(offline, endless(), "hokusai-poppies", **SETTINGS | {"size": 47})
    assert next(painted).shape == (1, 3, 36, 48) and next(painted).shape == (1, 3, 36, 48)
    assert len(asked) <= 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluations": 0}, "evaluations must be at least 1"),
        ({"first_evaluations": 0}, "evaluations must be at least 1"),
        ({"temporal_weight": -1}, "temporal_weight must be"),
        ({"size": 4}, "size must be at least"),
        ({"frames": []}, "frames must be one or more pictures"),
        ({"style": "nothing.png"}, "there is no file"),
    ],
)
def test_wrong_arguments_are_refused_when_it_is_called(offline, picture, changes, message):
    arguments = {"frames": [picture], "style": picture} | SETTINGS | changes
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        video.stylize_frames(offline, arguments.pop("frames"), arguments.pop("style"), **arguments)


# --- files --------------------------------------------------------------------------------------------------------


def test_a_file_keeps_frames_rate_and_colours(tmp_path):
    x = torch.tensor([0.8, 0.2, 0.4]).view(1, 3, 1, 1).expand(1, 3, 32, 48)
    path = video.save([x] * 7, tmp_path / "new" / "a.mp4", Fraction(24000, 1001))
    frames, rate, count = video.opened(path)
    frames = list(frames)
    assert rate == Fraction(24000, 1001) and count == len(frames) == 7
    assert frames[0].shape == x.shape and (frames[3] - x).abs().max() < 0.02
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.mp4"]


def test_what_is_finished_is_written_before_an_error_goes_on(tmp_path, picture):
    def failing():
        yield from panned(picture, 2)
        raise RuntimeError("out of paint")

    with pytest.raises(RuntimeError, match="out of paint"):
        video.save(failing(), tmp_path / "a.mp4", Fraction(10))
    assert len(list(video.opened(tmp_path / "a.mp4")[0])) == 2
    with pytest.raises(ZeroDivisionError):
        video.save((1 / 0 for _ in range(3)), tmp_path / "b.mp4", Fraction(10))
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


# --- the command --------------------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch, capsys, offline):
    monkeypatch.setattr(models, "features", lambda name=None, **_: offline)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["ex4lib", "stylize-video", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, *capsys.readouterr()

    return call


FEW = ["--size", 48, "--first-evaluations", 3, "--evaluations", 2]


def test_the_command_keeps_frames_rate_and_size(run, tmp_path, clip):
    output = tmp_path / "out.mp4"
    code, out, err = run(clip, "hokusai-poppies", *FEW, "-o", output)
    assert code == 0, err
    assert decoded(output) == decoded(clip) == (Fraction(25, 2), [(36, 48)] * 5)
    assert f"{output}: 5 frames in" in out and "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.mp4", "chelsea"], "cannot be read as a video: No such file"),
        (["empty.mp4", "chelsea"], "cannot be read as a video: Invalid data"),
        (["text.mp4", "chelsea"], "cannot be read as a video: Invalid data"),
        (["a.png", "chelsea"], "it is a picture, for which there is the command stylize"),
        ([".", "chelsea"], "cannot be read as a video: Is a directory"),
        (["in.mp4", "nothing.png"], "there is no file 'nothing.png'"),
        (["in.mp4", "chelsea", "--style-loss", "grams"], "style_loss must be gram"),
        (["in.mp4", "chelsea", "--temporal-weight", "nan"], "temporal_weight must be a finite number"),
        (["in.mp4", "chelsea", "--evaluations", "0"], "evaluations must be at least 1"),
        (["in.mp4", "chelsea", "-o", "out.avi"], "the output must end in .mp4, got 'out.avi'"),
        (["in.mp4", "chelsea", "-o", "in.mp4"], "would replace a file that is read"),
        (["in.mp4", "chelsea", "-o", "text.mp4/out.mp4"], "cannot be written there"),
    ],
)
def test_a_mistake_is_one_sentence_before_any_work(run, tmp_path, clip, monkeypatch, arguments, message):
    def refuse(*_, **__):
        raise AssertionError("work was begun")

    monkeypatch.setattr(models, "features", refuse)
    monkeypatch.chdir(tmp_path)
    Path("empty.mp4").write_bytes(b"")
    Path("text.mp4").write_text("not a video")
    images.save(torch.rand(1, 3, 8, 8), "a.png")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    code, out, err = run(*arguments, *([] if "-o" in arguments else ["-o", "out.mp4"]))
    assert code == 1 and out == "" and err.startswith("ex4lib: ") and message in err, err
    assert len(err.strip().splitlines()) == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_missing_extra_is_one_sentence(monkeypatch, clip):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match="needs the package av, of the extra video: run pip install av"):
        video.opened(clip)


def test_ctrl_c_keeps_the_frames_that_are_finished(run, tmp_path, clip, monkeypatch):
    original, painted = transfer.finish, []

    def finish(steps):
        painted.append(1)
        if len(painted) == 3:
            raise KeyboardInterrupt
        return original(steps)

    monkeypatch.setattr(transfer, "finish", finish)
    code, out, err = run(clip, "hokusai-poppies", *FEW, "-o", tmp_path / "out.mp4")
    assert code == 130 and out == "" and "interrupted; the first 2 frames are in" in err
    assert decoded(tmp_path / "out.mp4") == (Fraction(25, 2), [(36, 48)] * 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]


def test_ctrl_c_in_a_process_of_its_own_leaves_a_playable_file(tmp_path, clip):
    arguments = ["in.mp4", "hokusai-poppies", "--size", "32", "--first-evaluations", "1"]
    arguments += ["--evaluations", "1000000", "-o", "out.mp4"]  # it would stay at the second frame
    with started(["-m", "ex4lib", "stylize-video", *arguments], tmp_path, "1/5") as process:  # the bar
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "the first 1 frames are in out.mp4" in err, err
    assert decoded(tmp_path / "out.mp4") == (Fraction(25, 2), [(24, 32)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]


def test_a_process_that_is_killed_leaves_nothing(tmp_path):
    script = (
        "import itertools, pathlib, sys, torch\n"
        "from ex4lib import video\n"
        "frames = ((torch.zeros(1, 3, 16, 16), i == 50 and print('50 frames', file=sys.stderr))[0]"
        " for i in itertools.count())\n"
        "video.save(frames, pathlib.Path('out.mp4'), 10)\n"
    )
    with started(["-c", script], tmp_path, "50 frames") as process:
        process.kill()
    assert list(tmp_path.iterdir()) == []


@contextlib.contextmanager
def started(arguments, folder, sign):
    """A Python process that has written ``sign`` to its standard error."""
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2]), "EX4_PROFILE": "mini"}
    options = {"cwd": folder, "env": environment, "stderr": subprocess.PIPE, "text": True}
    # A shell that runs the tests in the background lets them ignore Ctrl-C, and what they start inherits that.
    options["preexec_fn"] = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen([sys.executable, *arguments], **options) as process:
        shown = ""
        while sign not in shown:
            assert process.poll() is None, shown
            shown += process.stderr.read(1)
        yield process
