"""Scenes drawn ahead and kept on disk, because drawing on the fly would be slower than training."""

import json
import multiprocessing
from pathlib import Path

import numpy as np

from experiments.files import cache_dir

from .artwork import WORLD, Sprites
from .stickers import render, sample_scene

CHUNK = 4096


def write_atomically(path: Path, write) -> None:
    """`write(part)` beside, then rename: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        write(file)
    part.replace(path)


def chunk_path(stream: str, size: int, chunk: int) -> Path:
    """Where chunk number `chunk` of a stream lies; its captions are beside it, as JSON."""
    return cache_dir() / "pictures" / f"world{WORLD}-{stream}-{size}" / f"{chunk:04d}.npy"


def draw_chunk(stream: str, size: int, chunk: int, count: int = CHUNK) -> Path:
    """Draw scenes `chunk*count ...` of a stream, unless they are there."""
    path = chunk_path(stream, size, chunk)
    if path.exists():
        return path
    sprites = Sprites.load()
    scenes = [sample_scene(stream, chunk * count + i, sprites) for i in range(count)]
    pictures = np.stack([render(scene, sprites, size) for scene in scenes])
    said = [{"caption": s.caption, **s.record} for s in scenes]
    write_atomically(path.with_suffix(".json"), lambda file: file.write(json.dumps(said).encode()))
    write_atomically(path, lambda file: np.save(file, pictures))
    return path


def draw_chunks(stream: str, size: int, chunks: int, workers: int = 1, count: int = CHUNK) -> None:
    """Draw the first `chunks` chunks, of `count` scenes each, of a stream in `workers` processes."""
    Sprites.load()
    missing = [(stream, size, k, count) for k in range(chunks) if not chunk_path(stream, size, k).exists()]
    if workers <= 1 or len(missing) <= 1:
        for job in missing:
            draw_chunk(*job)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.starmap(draw_chunk, missing, chunksize=1)


class Pictures:
    """Drawn chunks of one or more streams: `pictures[i]` uint8 arrays by index, `said[i]` what they show.

    Arguments:
        chunks: how many of each stream; None for all that are drawn.
    """

    def __init__(self, *streams: str, size: int, chunks: int | None = None):
        paths = []
        for stream in streams:
            draw_chunks(stream, size, 1)
            paths += sorted(chunk_path(stream, size, 0).parent.glob("*.npy"))[:chunks]
        self.paths = paths
        self.chunks = [np.load(path, mmap_mode="r") for path in paths]
        self.said = [s for path in paths for s in json.loads(path.with_suffix(".json").read_text())]
        self.starts = np.cumsum([0, *(len(c) for c in self.chunks)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, indices) -> np.ndarray:
        """uint8 (B, S, S, 3) for a sequence of indices."""
        where = np.searchsorted(self.starts, indices, side="right") - 1
        return np.stack([self.chunks[k][i - self.starts[k]] for k, i in zip(where, indices, strict=True)])
