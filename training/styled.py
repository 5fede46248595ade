"""The scenes on a device, painted anew for every batch, and the tokens of their captions."""

import json
import multiprocessing
from pathlib import Path

import numpy as np
import torch
from transformers import CLIPTokenizer

from . import looks, networks
from .painter import paint
from .pictures import Pictures, write_atomically
from .things import THINGS
from .words import PAINTED_LOOKS, caption

LOOK_NAMES = tuple(PAINTED_LOOKS)
ANIMALS = {name for name, thing in THINGS.items() if thing.kind in ("animal", "swimmer")}

NO_LOOK = 0  # the number of the choice that no word of the caption names
NAMED_SHARE = 0.25  # of the pictures that are painted in a look that the caption names


def caption_tokens(path: Path, tokenizer: CLIPTokenizer | None = None) -> Path:
    """Tokens of every scene of a chunk, said without a look and with each painted look.

    Written beside the chunk as int16 ``(scenes, 1 + looks, TOKENS)``, unless they are there. `tokenizer` is that of
    the world unless another is given.
    """
    tokenizer = tokenizer or networks.tokenizer()
    target = path.with_name(f"{path.stem}-tokens-{len(tokenizer)}.npz")
    if not target.exists():
        said = []
        for number, scene in enumerate(json.loads(path.with_suffix(".json").read_text())):
            rng = np.random.default_rng((number, 5))
            said += [strange(caption(scene, rng, look), rng) for look in (None, *PAINTED_LOOKS)]
        tokens = tokenizer(said, padding="max_length", truncation=True, return_tensors="np").input_ids
        tokens = tokens.reshape(-1, 1 + len(PAINTED_LOOKS), networks.TOKENS).astype(np.int16)
        write_atomically(target, lambda file: np.savez_compressed(file, tokens=tokens))
    return target


def write_tokens(paths: list[Path], workers: int) -> None:
    """`caption_tokens` of several chunks, in as many processes as `workers`."""
    if workers <= 1:
        for path in paths:
            caption_tokens(path)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.map(caption_tokens, paths, chunksize=1)


def strange(said: str, rng: np.random.Generator) -> str:
    """Now and then a word from outside the world is added, so that such words are learnt to mean nothing."""
    if rng.random() > 0.04:
        return said
    syllables = "pi cas so van mo net ku bi ra lith ogr neo fu tur dra wen"
    word = "".join(rng.choice(syllables.split(), rng.integers(1, 4)))
    return f"{said}, {word}" if rng.random() < 0.5 else f"{said} in the style of {word}"


class StyledScenes:
    """Scenes of one or more streams: 8-bit pictures and caption tokens on `device`, styles drawn per batch.

    Arguments:
        device: where the pictures lie; 65,536 scenes of 128 px take 3.2 GB.
        chunks: how many chunks of each stream, None for all that are drawn.
        tokenizer: of the captions; None is that of the world.
    """

    def __init__(
        self,
        *streams: str,
        device: torch.device,
        chunks: int | None = None,
        tokenizer: CLIPTokenizer | None = None,
    ):
        self.device, self.drawn = device, Pictures(*streams, size=networks.SIZES["vae"], chunks=chunks)
        self.levels = torch.cat([torch.from_numpy(np.array(chunk)) for chunk in self.drawn.chunks]).to(device)
        tokens = [np.load(caption_tokens(path, tokenizer))["tokens"] for path in self.drawn.paths]
        self.tokens = torch.from_numpy(np.concatenate(tokens)).to(device)
        self.with_animals = torch.tensor([not ANIMALS.isdisjoint(scene["things"]) for scene in self.drawn.said]).to(
            device
        )

    def __len__(self) -> int:
        return len(self.levels)

    def chosen(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Random scene numbers ``(count,)``."""
        return torch.randint(0, len(self), (count,), generator=generator, device=self.device)

    def plain(self, scenes: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Pictures ``(B, 3, S, S)`` in [0, 1] as drawn, half of them mirrored."""
        pictures = self.levels[scenes].permute(0, 3, 1, 2).float() / 255
        mirrored = torch.rand(len(scenes), 1, 1, 1, generator=generator, device=self.device) < 0.5
        return torch.where(mirrored, pictures.flip(-1), pictures)

    def painted(self, pictures: torch.Tensor, rng: np.random.Generator, generator: torch.Generator):
        """Pictures in styles, and the number of each one's look: `NO_LOOK`, or 1 + its place in `LOOK_NAMES`."""
        named = rng.random(len(pictures)) < NAMED_SHARE
        numbers = np.where(named, rng.integers(1, 1 + len(PAINTED_LOOKS), len(pictures)), NO_LOOK)
        order = torch.from_numpy(np.argsort(~named, kind="stable")).to(self.device)
        first = int(named.sum())
        names = [LOOK_NAMES[n - 1] for n in numbers[named]]
        parts = [looks.apply(pictures[order[:first]], names, generator)] if first else []
        parts += [paint(pictures[order[first:]], generator)] if first < len(pictures) else []
        styled = torch.empty_like(pictures)
        styled[order] = torch.cat(parts)
        return styled, torch.from_numpy(numbers).to(self.device)
