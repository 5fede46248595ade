"""Speed of training from scratch: ``python benchmarks/digits.py``.

The class-conditioned DDPM of CS180's project 5B (width 64, batches of 128) is trained by `experiments.digits.loop` and
by the loop that the course's page describes, written as a student would: a `Dataset` of PIL pictures with ``ToTensor``,
a shuffling `DataLoader`, plain Adam, float32, the default memory layout and no average of the weights. Both sides have
the same network, first weights and pictures, and take turns of one step within one process. The table shows medians,
pictures per second, and the mean loss over the second half of the steps.
The exit code is always 0.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from common import machine, table
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import to_pil_image, to_tensor

from ex4lib import images
from experiments.digits.digits import Digits, load
from experiments.digits.loop import Recipe, Training
from experiments.digits.mnist import RECIPES

SIDES = ("plain loop", "ex4lib")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps of a narrow network, under a minute")
    parser.add_argument("--data", default="digits", help="digits (scikit-learn's), mnist, or a folder of MNIST's files")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write every number to this file")
    arguments = parser.parse_args()
    recipe = dataclasses.replace(RECIPES["class"], width=8) if arguments.quick else RECIPES["class"]
    results: dict = {"machine": machine()}
    print(json.dumps(results["machine"], indent=2))
    pictures = drawn_once(load(arguments.data)[0])
    results["training"] = training(recipe, pictures, 6 if arguments.quick else 60, arguments.device)
    table(f"training, batches of {recipe.batch}", results["training"])
    if arguments.json:
        images.write_bytes(arguments.json, json.dumps(results, indent=2).encode())


def drawn_once(data: Digits) -> Digits:
    """The same pictures as 8-bit pictures of 28 x 28 pixels, so that neither side draws them anew."""
    pictures, _ = data.take(torch.arange(len(data)), torch.Generator().manual_seed(0) if data.drawn else None)
    return dataclasses.replace(data, pictures=(pictures * 255).round().byte(), drawn=False, epoch=len(data))


class Pictures(Dataset):
    """PIL pictures that become tensors one by one, as torchvision's MNIST does it."""

    def __init__(self, data: Digits):
        self.pictures, self.labels = [to_pil_image(picture) for picture in data.pictures], data.labels

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return to_tensor(self.pictures[index]), int(self.labels[index])


def plain_loop(recipe: Recipe, data: Digits, device: str) -> Iterator[float]:
    """The course's algorithm 3 step by step; yields the loss of each."""
    net = recipe.build().to(device).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=recipe.lr)
    betas = torch.linspace(recipe.schedule.first, recipe.schedule.last, recipe.schedule.steps, device=device)
    bars = torch.cumprod(1 - betas, 0)
    loader = DataLoader(Pictures(data), recipe.batch, shuffle=True, drop_last=True)
    while True:
        for clean, labels in loader:
            clean, labels = clean.to(device), labels.to(device)
            t = torch.randint(0, len(betas), (len(clean),), device=device)
            noise = torch.randn_like(clean)
            bar = bars[t].view(-1, 1, 1, 1)
            noisy = bar.sqrt() * clean + (1 - bar).sqrt() * noise
            classes = F.one_hot(labels, recipe.classes).float()
            classes = classes * (torch.rand(len(clean), 1, device=device) >= recipe.drop)
            loss = F.mse_loss(net(noisy, (t + 1) / len(betas), classes), noise)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield loss.item()


def training(recipe: Recipe, data: Digits, steps: int, device: str) -> list[dict]:
    """A row for each side."""
    torch.manual_seed(0)
    plain, ours = plain_loop(recipe, data, device), Training(recipe, data, device)
    turns: dict[str, Callable[[], float]] = {"plain loop": lambda: next(plain), "ex4lib": ours.one_step}
    seconds, losses = ({side: [] for side in SIDES} for _ in range(2))
    for _ in range(steps):
        for side in SIDES:
            started = time.perf_counter()
            losses[side].append(turns[side]())
            seconds[side].append(time.perf_counter() - started)
    median = {side: statistics.median(values[1:]) for side, values in seconds.items()}  # the first warms up
    return [
        {
            "side": side,
            "seconds a step": median[side],
            "pictures a second": recipe.batch / median[side],
            "times the plain loop": median["plain loop"] / median[side],
            "loss": statistics.mean(losses[side][steps // 2 :]),
        }
        for side in SIDES
    ]


if __name__ == "__main__":
    main()
