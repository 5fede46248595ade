"""All embedded models in one go, in one process, on a machine with an accelerator and many cores.

    python -m training.program --minutes 9 --output weights

The drawings must be in the cache (`training.artwork.Sprites.load` fetches and draws them once); npm and a network are
not needed then. The weights lie in `ex4lib/assets/models` at the end, and in `output` as one archive cut into parts
of at most 14 MiB (`cat models.tar.* | tar x`).
"""

import time

START = time.time()  # before the imports, which take long on some machines

# ruff: noqa: E402
import multiprocessing
import os
import tarfile
from pathlib import Path
from typing import Annotated

import torch
import typer

from ex4lib import cli
from ex4lib.cli.options import check_output

from . import networks
from .export import export
from .mini import SCENES, Budget, checkpoint_path, train
from .pictures import CHUNK, draw_chunk
from .recipe import MODELS
from .styled import caption_tokens

PART = 14 * 2**20  # bytes
#: How much of the time each model gets, in the order of training: most of it goes where more gains most.
SHARES = {"vae": 0.2, "mini-clip": 0.07, "mini-judge": 0.15, "mini-ddpm": 0.08, "mini-sd": 0.38, "mini-pixel": 0.12}


def say(what: str, start: float) -> None:
    """Print what has happened after how many seconds."""
    print(f"{time.time() - start:6.1f} s  {what}", flush=True)


def draw(job: tuple[str, int, int]) -> None:
    """One chunk of scenes and the tokens of their captions."""
    stream, chunk, count = job
    torch.set_num_threads(1)
    caption_tokens(draw_chunk(stream, networks.SIZES["vae"], chunk, count))


def draw_all(workers: int, chunk: int, chunks: int) -> None:
    """All scenes, in processes that are forked, since starting a new one costs more than drawing a chunk."""
    jobs = [(stream, k, chunk) for stream, most in SCENES.items() for k in range(min(most, chunks))]
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        pool.map(draw, jobs, chunksize=1)


def pack(output: Path) -> list[Path]:
    """The embedded models as one archive in parts."""
    output.mkdir(parents=True, exist_ok=True)
    archive = output / "models.tar"
    with tarfile.open(archive, "w") as file:
        for folder in sorted(MODELS.glob("mini-*")):
            file.add(folder, folder.name)
    content = archive.read_bytes()
    archive.unlink()
    parts = []
    for number, first in enumerate(range(0, len(content), PART)):
        parts.append(output / f"models.tar.{number}")
        parts[-1].write_bytes(content[first : first + PART])
    return parts


def main(
    output: Annotated[Path, typer.Option(help="folder for the parts of the archive")],
    minutes: Annotated[float, typer.Option(help="of wall-clock time for all of it", min=0)] = 9,
    workers: Annotated[int, typer.Option(help="processes that draw scenes", min=1)] = os.cpu_count() or 2,
    only: Annotated[str, typer.Option(help="names of the models to train, with commas between them")] = "",
    resume: Annotated[bool, typer.Option(help="begin with the weights that lie in the package")] = False,
    chunk: Annotated[int, typer.Option(help="scenes in a chunk", min=1)] = CHUNK,
    chunks: Annotated[int, typer.Option(help="chunks of a stream of scenes, at most", min=1)] = 100,
) -> None:
    """Train all embedded models, or some of them."""
    check_output(output / "models.tar", (".tar",))
    start = START
    say("imported", start)
    draw_all(workers, chunk, chunks)
    say("the scenes are drawn", start)
    shares = {name: share for name, share in SHARES.items() if not only or name in only.split(",")}
    end = start + 60 * minutes - 12 * len(shares)  # an export takes some seconds
    large = torch.cuda.is_available()
    for number, name in enumerate(shares):
        rest = sum(list(shares.values())[number:])
        until = time.time() + (end - time.time()) * shares[name] / rest
        train(name, Budget(1000, until=until), resume=resume, fade=True, large=large)
        export(name, torch.load(checkpoint_path(name), map_location="cpu", weights_only=True)["averaged"])
        say(f"{name} is trained", start)
    for part in pack(output):
        print(part, part.stat().st_size)
    say("packed", start)


if __name__ == "__main__":
    cli.main(lambda: typer.run(main), "training.program")
