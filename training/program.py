"""All embedded models in one go, on a machine with an accelerator and many cores: ten minutes.

    python -m training.program --minutes 8 --output weights

The artwork must be in the cache (`python -m training.mini pictures --chunk 1` fetches and draws it once); neither
npm nor a network is needed then. A rehearsal of every stage on a handful of scenes, in a copy of this folder, comes
first, so that a mistake shows in the first half minute; it also fills the cache of compiled kernels. The weights lie
in `ex4lib/assets/models` at the end, and in `output` as one archive cut into parts of at most 14 MiB.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import typer

PART = 14 * 2**20  # bytes
ROOT = Path(__file__).resolve().parents[1]
FIRST, SECOND = ("vae", "mini-clip", "mini-judge"), ("mini-sd", "mini-pixel", "mini-ddpm")


@dataclass
class Stages:
    """Commands of `training.mini` in one folder, run side by side; one that fails ends the program.

    Arguments:
        root: the checkout they run in.
        cache: their `EX4_CACHE`.
        logs: a folder for what each of them prints.
    """

    root: Path
    cache: Path
    logs: Path
    running: dict[str, subprocess.Popen] = field(default_factory=dict)

    def start(self, name: str, *arguments: str) -> None:
        self.logs.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {
            "EX4_CACHE": str(self.cache),
            "PYTHONPATH": os.pathsep.join([str(self.root), os.environ.get("PYTHONPATH", "")]),
            "TORCHDYNAMO_SUPPRESS_ERRORS": "1",  # a part that does not compile runs as it is
        }
        command = [sys.executable, "-m", "training.mini", name, *arguments]
        with (self.logs / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                command, cwd=self.root, env=environment, stdout=log, stderr=subprocess.STDOUT
            )

    def finish(self, *names: str, needed: bool = True, beside: "Rehearsal | None" = None) -> None:
        """Wait for some commands (all by default), as long as what runs `beside` them has not failed.

        Raises:
            RuntimeError: a needed one failed; the end of its log is the message.
        """
        for name in names or tuple(self.running):
            while (code := self.running[name].poll()) is None:
                time.sleep(0.3)
                if beside is not None and beside.error is not None:
                    self.stop()
                    raise beside.error
            del self.running[name]
            if code:
                log = (self.logs / f"{name}.log").read_text(errors="replace")[-3000:]
                message = f"{name} failed with exit code {code}:\n{log}"
                if needed:
                    self.stop()
                    raise RuntimeError(message)
                print(message, flush=True)

    def stop(self) -> None:
        for process in self.running.values():
            process.kill()
        self.running.clear()


class Rehearsal(threading.Thread):
    """Every stage on 32 scenes of a stream and two steps; then kernels are compiled for the later stages.

    Arguments:
        options: of the trainings that the kernels are compiled for; none are compiled without.
        start: Unix time of the program's start, for what is printed.
    """

    def __init__(self, stages: Stages, options: list[str], start: float):
        super().__init__(daemon=True)
        self.stages, self.options, self.began = stages, options, start
        self.error: RuntimeError | None = None

    def run(self) -> None:
        try:
            for wave in (("pictures",), FIRST, ("export",), ("variants",), SECOND, ("export",)):
                for name in wave:
                    small = ["--chunk", "32", "--chunks", "1", "--workers", "1"] if name == "pictures" else []
                    self.stages.start(name, *(small or ["--steps", "2", "--resume"]))
                self.stages.finish()
            say("the rehearsal is done", self.began)
            for name in SECOND if self.options else ():
                self.stages.start(name, "--steps", "3", *self.options)
            self.stages.finish(needed=False)
            say("the kernels are compiled", self.began)
        except RuntimeError as error:
            self.error = error


def run(stages: Stages, beside: Rehearsal, start: float, end: float, options: list[str]) -> None:
    """Scenes, the first models, the scenes in styles, the last models.

    The shares of time follow from how much each model gains by more: most of it goes to the autoencoder and to
    mini-sd, beside which the others run for a part of the time.
    """
    stages.finish("pictures", beside=beside)
    say("the scenes are drawn", start)
    middle, now = start + 0.36 * (end - start), time.time()
    shares = {"vae": 1.0, "mini-clip": 0.45, "mini-judge": 0.75}
    train(stages, now, middle, shares, ["--resume", *options])
    stages.finish(beside=beside)
    say("the first models are trained", start)
    stages.start("export")
    stages.finish(beside=beside)
    stages.start("variants")
    stages.finish(beside=beside)
    say("the scenes are encoded", start)
    train(stages, time.time(), end - 25, {"mini-sd": 1.0, "mini-pixel": 0.5, "mini-ddpm": 0.3}, options)
    stages.finish(needed=False)
    say("the last models are trained", start)
    stages.start("export")
    stages.finish()


def train(stages: Stages, start: float, end: float, shares: dict[str, float], options: list[str]) -> None:
    """Start trainings that stop after a share of the time from `start` to `end`."""
    for name, share in shares.items():
        until = start + share * (end - start)
        fresh = [o for o in options if o != "--resume" or name == "vae"]  # the others have other shapes or words
        stages.start(name, "--until", str(until), "--minutes", "1000", "--fade", *fresh)


def pack(models: Path, output: Path) -> list[Path]:
    """The embedded models as one archive in parts; `cat models.tar.* | tar x` restores it."""
    output.mkdir(parents=True, exist_ok=True)
    archive = output / "models.tar"
    with tarfile.open(archive, "w") as file:
        for folder in sorted(models.glob("mini-*")):
            file.add(folder, folder.name)
    content = archive.read_bytes()
    archive.unlink()
    parts = []
    for number, first in enumerate(range(0, len(content), PART)):
        parts.append(output / f"models.tar.{number}")
        parts[-1].write_bytes(content[first : first + PART])
    return parts


def say(what: str, start: float) -> None:
    print(f"{time.time() - start:6.1f} s  {what}", flush=True)


def main(
    output: Annotated[Path, typer.Option(help="folder for the parts of the archive and the logs")],
    minutes: Annotated[float, typer.Option(help="of wall-clock time for all of it")] = 8,
    workers: Annotated[int, typer.Option(help="processes that draw scenes")] = os.cpu_count() or 2,
    only_rehearse: Annotated[bool, typer.Option(help="stop after the rehearsal")] = False,
) -> None:
    """Train all embedded models."""
    start = time.time()
    end = start + 60 * minutes
    cache = Path(os.environ.get("EX4_CACHE", Path.home() / ".cache" / "ex4lib"))
    print(torch.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu", flush=True)
    copy = Path(os.environ.get("TMPDIR", "/tmp")) / "ex4lib-rehearsal"
    shutil.rmtree(copy, ignore_errors=True)
    for part in ("ex4lib", "training", "experiments"):
        shutil.copytree(ROOT / part, copy / "checkout" / part)
    shutil.copytree(
        cache, copy / "cache", ignore=shutil.ignore_patterns("checkpoints", "latents", "*.npy", "*.npz.part")
    )
    drawing = Stages(ROOT, cache, output / "logs")
    if not only_rehearse:
        drawing.start("pictures", "--workers", str(max(1, workers - 2)))
    options = ["--large", "--compile"] if torch.cuda.is_available() else []
    rehearsal = Rehearsal(Stages(copy / "checkout", copy / "cache", output / "logs" / "rehearsal"), options, start)
    rehearsal.start()
    try:
        if only_rehearse:
            rehearsal.join()
            if rehearsal.error:
                raise rehearsal.error
        else:
            run(drawing, rehearsal, start, end, options)
    except RuntimeError as error:
        drawing.stop()
        print(error, flush=True)
        raise typer.Exit(1) from None
    finally:
        rehearsal.stages.stop()
    models = (copy / "checkout" if only_rehearse else ROOT) / "ex4lib" / "assets" / "models"
    for part in pack(models, output):
        print(part, part.stat().st_size)
    say("packed", start)


if __name__ == "__main__":
    typer.run(main)
