"""A blind forced choice: which of three paintings does each picture follow? For a reader, and for the judges."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ex4lib import figures, images
from ex4lib.features import VGG
from experiments import metrics

LETTERS = "ABC"


@dataclasses.dataclass(frozen=True)
class ForcedChoice:
    """Pictures in random order, and the letters of the paintings that they were guided by."""

    pictures: tuple[Tensor, ...]
    answers: str
    paintings: tuple[str, ...]

    @classmethod
    def of(cls, pictures: Mapping[str, Sequence[Tensor]], count: int = 12, seed: int = 0) -> ForcedChoice:
        """Draw ``count`` pictures ``(1, 3, H, W)`` at random from those of three paintings."""
        paintings = tuple(pictures)
        if len(paintings) != len(LETTERS):
            raise ValueError(f"pictures must be of {len(LETTERS)} paintings, got {len(paintings)}")
        pool = [(x, letter) for name, letter in zip(paintings, LETTERS, strict=True) for x in pictures[name]]
        order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))[:count].tolist()
        return cls(tuple(pool[i][0] for i in order), "".join(pool[i][1] for i in order), paintings)

    def figure(self, columns: int = 6) -> Figure:
        """The numbered pictures, and the three paintings below."""
        numbered = [(x, str(number)) for number, x in enumerate(self.pictures, 1)]
        rows = [numbered[i : i + columns] for i in range(0, len(numbered), columns)]
        squares = [images.resize(images.crop_square(images.load(name)), (256, 256)) for name in self.paintings]
        rows.append(list(zip(squares, LETTERS, strict=True)))
        pictures, captions = ([[pair[i] for pair in row] for row in rows] for i in (0, 1))
        captions = [row + [""] * (columns - len(row)) for row in captions]
        return figures.grid(pictures, captions=captions, cell=1.2)

    def judged(self, network: VGG) -> str:
        """The letters that a judge answers: the nearest of the three paintings."""
        distances = metrics.style_distances(torch.cat(self.pictures), self.paintings, network)
        return "".join(LETTERS[i] for i in distances.argmin(1).tolist())

    def right(self, answers: str) -> int:
        """How many letters are right; letters in any case, anything else is left out.

        Raises:
            ValueError: not one letter for each picture.
        """
        letters = [letter for letter in answers.upper() if letter.isalpha()]
        if len(letters) != len(self.answers):
            raise ValueError(f"answers must hold {len(self.answers)} letters of {LETTERS}, got {len(letters)}")
        return sum(a == b for a, b in zip(letters, self.answers, strict=True))
