"""Speed and memory of style transfer beside the PyTorch tutorial's procedure: ``python benchmarks/nst.py``.

(a) One evaluation: forward and gradient of the default recipe's objective against the bare forward and backward of
    the same network, truncated at the deepest layer used. Both sides alternate; medians.
(b) Time to a value: the tutorial's procedure (content conv_4, style conv_1..conv_5, Gram / (abcd), 1e6 : 1, max
    pooling, zero padding, frozen truncated VGG, L-BFGS with torch's defaults on pixels that the closure clamps) runs
    for 300 evaluations; the goal is the lowest objective of its clamped pictures, because the procedure may diverge
    later. Each row of the table adds one trick to the row above. All rows, with a second run of the tutorial among
    them, take turns within one process, and each is stopped when the objective of its clamped picture first reaches
    the goal. Every picture is judged by one float32 function, whose time is counted for nobody; the targets are
    counted for everybody. The tutorial's loop ends at the first multiple of 20 above 300; here it ends at 300.
(c) The same for the last row of each precision over six pairs of pictures: the geometric mean of its shares of the
    tutorial's time, with Student's 95 % interval of their logarithms.
(d) Peak memory of one evaluation: a subprocess per side, less what the imports and the network take.

The network is the offline VGG-16 on both sides, the pictures are square crops of shipped ones. bfloat16 rows appear
where the processor multiplies bfloat16. The exit code is 0 whatever the numbers are.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import scipy.stats
import torch
import torch.nn.functional as F
from common import machine, peak_mib, table
from torch import Tensor, nn

from ex4lib import images, models
from ex4lib.features import VGG
from ex4lib.losses import Objective
from ex4lib.optimisation import optimise
from ex4lib.transfer import DEFAULT, TUTORIAL

CLOCK = time.perf_counter

#: The first pair serves (a), (b) and (d).
PAIRS = [
    ("chelsea", "van-gogh-village-street-in-auvers"),
    ("chelsea", "kandinsky-composition-viii"),
    ("astronaut", "hokusai-great-wave"),
    ("astronaut", "renoir-moulin-de-la-galette"),
    ("coffee", "van-gogh-village-street-in-auvers"),
    ("coffee", "bruegel-the-harvesters"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small pictures and few evaluations, under a minute")
    parser.add_argument("--json", type=Path, help="write every number to this file")
    parser.add_argument(
        "--cpu-time", action="store_true", help="one thread and its CPU time, for a machine that others use too"
    )
    parser.add_argument("--memory-of", choices=("tutorial", *precisions()), help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(memory(arguments.memory_of, arguments.size))
        return
    quick = arguments.quick
    if arguments.cpu_time:
        global CLOCK
        CLOCK = time.process_time
        torch.set_num_threads(1)
    results: dict = {"machine": machine() | {"clock": CLOCK.__name__}}
    print(json.dumps(results["machine"], indent=2))
    results["overhead"] = overhead((128,) if quick else (256, 512), repeats=3 if quick else 7)
    table("(a) one evaluation, seconds (medians)", results["overhead"])
    size, evaluations = (64, 20) if quick else (256, 300)
    results["time_to_value"] = time_to_value(PAIRS[0], size, evaluations)
    table(f"(b) time to the tutorial's value after {evaluations} evaluations, {size} px", results["time_to_value"])
    results["pairs"] = over_pairs(PAIRS[:2] if quick else PAIRS, size, evaluations, results["time_to_value"])
    table("(c) share of the tutorial's time over pairs", results["pairs"])
    results["memory"] = memory_table(256 if quick else 1024)
    table("(d) peak memory of one evaluation", results["memory"])
    if arguments.json:
        images.write_bytes(arguments.json, json.dumps(results, indent=2).encode())


def precisions() -> tuple[str, ...]:
    return ("float32", "bfloat16") if models.native_bfloat16() else ("float32",)


def network(precision: str = "float32") -> VGG:
    return models.features("vgg16-hed", precision=precision, device="cpu")


def pictures(size: int, pair: tuple[str, str] = PAIRS[0]) -> tuple[Tensor, Tensor]:
    """Content and style, square crops."""
    content, style = (images.resize(images.crop_square(images.load(name)), size) for name in pair)
    return content, style


# (a)


def overhead(sizes: tuple[int, ...], repeats: int) -> list[dict]:
    """Rows of (a)."""
    rows = []
    for precision in precisions():
        for size in sizes:
            content, style = pictures(size)
            objective = DEFAULT.objective(network(precision), content, [style])
            vgg = objective.network
            deepest = max(objective.layers, key=vgg.layers.index)

            def bare(image: Tensor, vgg: VGG = vgg, deepest: str = deepest) -> Tensor:
                return vgg(image, [deepest])[deepest]

            times: dict[str, list[float]] = {"bare": [], "objective": []}
            for _ in range(repeats + 1):  # the first warms up
                times["bare"].append(gradient_time(bare, content))
                times["objective"].append(gradient_time(objective, content))
            row = {name: statistics.median(values[1:]) for name, values in times.items()}
            ratio = row["objective"] / row["bare"]
            rows.append({"precision": precision, "size": size, "until": deepest, **row, "ratio": ratio})
    return rows


def gradient_time(function: Callable[[Tensor], Tensor], image: Tensor) -> float:
    """Seconds of one forward pass and the gradient to the image."""
    image = image.detach().requires_grad_()
    started = CLOCK()
    torch.autograd.grad(function(image).sum(), image)
    return CLOCK() - started


# (b)


class Tutorial(nn.Module):
    """The PyTorch tutorial's model: layers in a row with losses between them, cut after the last loss."""

    def __init__(self, vgg: VGG, content: Tensor, style: Tensor, channels_last: bool = False):
        super().__init__()
        self.register_buffer("mean", vgg.mean)
        self.register_buffer("std", vgg.std)
        self.convolutions = nn.ModuleList()
        for convolution in list(vgg.convolutions.values())[:5]:
            # Own memory: a change of layout must not reach the network it came from.
            copied = nn.Conv2d(convolution.in_channels, convolution.out_channels, 3, padding=1)
            copied.load_state_dict(convolution.state_dict())
            self.convolutions.append(copied)
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.eval().requires_grad_(False).to(memory_format=self.format)
        with torch.no_grad():
            self.content_target = self.responses(content)[3]
            self.style_targets = [gram(response) for response in self.responses(style)]

    def responses(self, image: Tensor) -> list[Tensor]:
        x, responses = ((image - self.mean) / self.std).contiguous(memory_format=self.format), []
        for number, convolution in enumerate(self.convolutions, start=1):
            x = convolution(x)
            responses.append(x)
            if number < 5:
                x = F.relu(x)
            if number in (2, 4):
                x = F.max_pool2d(x, 2, 2)
        return responses

    def forward(self, image: Tensor) -> Tensor:
        responses = self.responses(image)
        targets = zip(responses, self.style_targets, strict=True)
        style = sum(F.mse_loss(gram(response), target) for response, target in targets)
        return 1e6 * style + F.mse_loss(responses[3], self.content_target)


def gram(x: Tensor) -> Tensor:
    a, b, c, d = x.size()
    features = x.reshape(a * b, c * d)
    return torch.mm(features, features.t()).div(a * b * c * d)


def clamped_lbfgs(objective: Callable[[Tensor], Tensor], image: Tensor, evaluations: int) -> Iterator[list[Tensor]]:
    """The tutorial's loop; yields after each of its steps, of 20 evaluations, the pictures it judged and the last."""
    image = image.clone().requires_grad_()
    optimizer, count = torch.optim.LBFGS([image]), 0
    while count < evaluations:
        judged = []

        def closure(judged: list[Tensor] = judged) -> Tensor:
            with torch.no_grad():
                image.clamp_(0, 1)
            judged.append(image.detach().clone())
            optimizer.zero_grad()
            loss = objective(image).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        count += len(judged)
        yield [*judged[1:], image.detach().clamp(0, 1)]


def sine_lbfgs(objective: Objective, image: Tensor, evaluations: int) -> Iterator[list[Tensor]]:
    """ex4lib's loop, a picture per evaluation."""
    for step in optimise(objective, image, evaluations=evaluations):
        yield [step.image]


def tricks(content: Tensor, style: Tensor, evaluations: int) -> dict[str, Callable[[], Iterator[list[Tensor]]]]:
    """The rows of (b): each adds one trick to the one above."""
    vgg, coarse_size = network(), content.shape[-1] // 2

    def ours(net: VGG = vgg) -> Objective:
        return TUTORIAL.objective(net, content, [style])

    def coarse(net: VGG) -> Iterator[list[Tensor]]:
        small, small_style = (images.resize(image, coarse_size) for image in (content, style))
        objective, image = TUTORIAL.objective(net, small, [small_style]), small
        for step in optimise(objective, small, evaluations=evaluations // 3):
            yield []  # pictures of another size are not judged
            image = step.best
        yield from sine_lbfgs(ours(net), images.resize(image, content.shape[-1]), evaluations)

    rows = {
        "tutorial": lambda: clamped_lbfgs(Tutorial(vgg, content, style), content, evaluations),
        "+ channels-last": lambda: clamped_lbfgs(Tutorial(vgg, content, style, True), content, evaluations),
        "+ ex4lib's objective": lambda: clamped_lbfgs(ours(), content, evaluations),
        "+ sine, history 20": lambda: sine_lbfgs(ours(), content, evaluations),
        "+ coarse start": lambda: coarse(vgg),
    }
    if models.native_bfloat16():
        half = network("bfloat16")
        rows["+ bfloat16"] = lambda: coarse(half)
    return rows


def time_to_value(pair: tuple[str, str], size: int, evaluations: int, only: Sequence[str] | None = None) -> list[dict]:
    """Rows of (b), or those of these names."""
    content, style = pictures(size, pair)
    judge = Tutorial(network(), content, style)
    runs = {name: run for name, run in tricks(content, style, evaluations).items() if only is None or name in only}
    goal = min(value(judge, picture) for judged in runs["tutorial"]() for picture in judged)
    rows = {name: {"run": name, "seconds": 0.0, "evaluations": 0, "value": float("inf")} for name in runs}
    loops = {name: None for name in runs}
    while loops:
        for name in list(loops):
            row, started, judged = rows[name], CLOCK(), None
            loops[name] = loops[name] or runs[name]()
            # About as many evaluations per turn on every side as the tutorial's step has.
            for _ in range(1 if "history" not in name and "coarse" not in name and "bfloat16" not in name else 5):
                judged = next(loops[name], None)
                row["seconds"] += CLOCK() - started
                if judged is None:
                    break
                row["evaluations"] += max(len(judged), 1)
                row["value"] = min([row["value"], *(value(judge, picture) for picture in judged)])
                started = CLOCK()
                if row["value"] <= goal:
                    judged = None
                    break
            if judged is None:
                del loops[name]
    base = rows["tutorial"]["seconds"]
    for row in rows.values():
        row |= {"goal": goal, "reached": row["value"] <= goal, "share": row["seconds"] / base}
    return list(rows.values())


def over_pairs(pairs: Sequence[tuple[str, str]], size: int, evaluations: int, first: list[dict]) -> list[dict]:
    """Rows of (c); ``first`` are the rows of (b), which are the first pair's."""
    names = [name for name in ("+ coarse start", "+ bfloat16") if any(row["run"] == name for row in first)]
    tables = [first, *(time_to_value(pair, size, evaluations, ["tutorial", *names]) for pair in pairs[1:])]
    rows = []
    for name in names:
        runs = [row for table in tables for row in table if row["run"] == name]
        logs = [math.log(row["share"]) for row in runs]
        interval = scipy.stats.ttest_1samp(logs, 0).confidence_interval()
        low, mean, high = map(math.exp, (interval.low, statistics.mean(logs), interval.high))
        reached = sum(row["reached"] for row in runs)
        each = " ".join(f"{row['share']:.3f}" for row in runs)
        row = {"run": name, "share": mean, "low": low, "high": high}
        rows.append(row | {"reached": f"{reached} of {len(runs)}", "each": each})
    return rows


def value(judge: Tutorial, picture: Tensor) -> float:
    with torch.no_grad():
        return judge(picture.clamp(0, 1)).item()


# (d)


def memory(side: str, size: int) -> float:
    """Peak MiB of one evaluation in this process, less what imports, network and pictures take."""
    content, style = pictures(size)
    vgg = network("float32" if side == "tutorial" else side)
    before = peak_mib(fresh=True)
    objective = Tutorial(vgg, content, style) if side == "tutorial" else TUTORIAL.objective(vgg, content, [style])
    gradient_time(objective, content)
    return peak_mib() - before


def memory_table(size: int) -> list[dict]:
    """Rows of (d)."""
    rows = []
    for side in ("tutorial", *precisions()):
        command = [sys.executable, __file__, "--memory-of", side, "--size", str(size)]
        peak = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        rows.append({"side": side if side == "tutorial" else f"ex4lib {side}", "size": size, "peak_mib": peak})
    return [{**row, "share": row["peak_mib"] / rows[0]["peak_mib"]} for row in rows]


if __name__ == "__main__":
    main()
