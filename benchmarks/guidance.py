"""Cost of style-guided diffusion: ``python benchmarks/guidance.py``.

(a) One guided step against the bare forward and backward passes it needs: U-Net (both branches of the prompt's
    guidance), decoder and feature network, written out without this library's loop, shift or trace. The sides take
    turns within one process; medians.
(b) The cheap gradient against FreeDoM's settings (100 steps, recurrence) on the same seeds: seconds a picture, Gram
    distance on held-out layers, and the judge's top-1 prompt agreement, with 95 % bootstrap intervals.
(c) Peak memory of one guided step by mode: a subprocess each, less what the imports and the models take.
(d) One picture in 30 steps, in seconds: unguided, cheap, full.

The models are the embedded ones; the exit code is 0 whatever the numbers are.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from common import machine, peak_mib, table
from torch import Tensor

from ex4lib import images, metrics, models
from ex4lib.diffusion import pipelines, schedulers
from ex4lib.diffusion.denoisers import Denoiser, Latents, frozen
from ex4lib.diffusion.guidance import CHEAP, FREEDOM, FULL, Guidance
from ex4lib.diffusion.sampling import sample
from ex4lib.statistics import Gram
from experiments import drawings

PROMPT, STYLE = "a cat", "van-gogh-village-street-in-auvers"
SCALE = 0.25  # of the cheap gradient in (b): as much as the style distance of FreeDoM's settings takes
MODES = {
    "unguided": (None, False),
    "cheap": (CHEAP, False),
    "full": (FULL, False),
    "full, checkpointing": (FULL, True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repeats and steps, under a minute")
    parser.add_argument("--json", type=Path, help="write every number to this file")
    parser.add_argument("--memory-of", choices=MODES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(memory(arguments.memory_of))
        return
    quick = arguments.quick
    results: dict = {"machine": machine()}
    print(json.dumps(results["machine"], indent=2))
    results["overhead"] = overhead(repeats=2 if quick else 15)
    table("(a) one guided step, seconds (medians)", results["overhead"])
    results["cheap"] = cheap_against_freedom(steps=5 if quick else 100, seeds=2 if quick else 16)
    table("(b) the cheap gradient against FreeDoM's settings", results["cheap"])
    results["memory"] = [{"mode": mode, "peak_mib": memory_apart(mode)} for mode in MODES]
    table("(c) peak memory of one step", results["memory"])
    results["picture"] = pictures(steps=3 if quick else 30)
    table(f"(d) one picture in {3 if quick else 30} steps", results["picture"])
    if arguments.json:
        images.write_bytes(arguments.json, json.dumps(results, indent=2).encode())


def setting(size: int = 128):
    """Pipeline, denoiser, objective and first latents of one picture."""
    pipe = pipelines.stable_diffusion()
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        told, negative = pipe.encode_prompt(PROMPT, pipe.device, 1, True)
    scale = models.guidance_scale()
    denoiser = Denoiser(pipe.unet, Latents(pipe.vae), embeddings=told, negative=negative, guidance_scale=scale)
    objective = pipelines.StyleObjective(models.features(), [images.load(STYLE)], (size, size))
    side = size // pipe.vae_scale_factor
    shape = (1, pipe.unet.config.in_channels, side, side)
    return pipe, denoiser, objective, torch.randn(shape, generator=torch.Generator().manual_seed(0))


def overhead(repeats: int) -> list[dict]:
    """Rows of (a)."""
    pipe, denoiser, objective, x = setting()
    rows = []
    for name, guidance in (("full", FULL), ("cheap", CHEAP)):
        times: dict[str, list[float]] = {"bare": [], "guided": []}
        for _ in range(repeats + 1):  # the first warms up
            started = time.perf_counter()
            bare_passes(pipe, denoiser, objective, x, through=name == "full")
            times["bare"].append(time.perf_counter() - started)
            steps = sample(denoiser, pipe.scheduler, x, steps=30, objective=objective, guidance=guidance)
            started = time.perf_counter()
            next(steps)
            times["guided"].append(time.perf_counter() - started)
        row = {side: statistics.median(values[1:]) for side, values in times.items()}
        rows.append({"mode": name, **row, "ratio": row["guided"] / row["bare"]})
    return rows


def bare_passes(pipe, denoiser: Denoiser, objective, x: Tensor, *, through: bool) -> Tensor:
    """The forward and backward passes of a guided step and nothing else, by hand."""
    scheduler = schedulers.timed(pipe.scheduler, 30)
    t = scheduler.timesteps[0]
    a = float(scheduler.alphas_cumprod[t])
    statistic, network = Gram(), objective.objective.network
    with frozen(denoiser):
        leaf = x.clone().requires_grad_(through)
        with torch.set_grad_enabled(through):
            both = pipe.unet(torch.cat([leaf] * 2), t, torch.cat([denoiser.negative, denoiser.embeddings])).sample
            free, told = both.chunk(2)
            clean = (leaf - (1 - a) ** 0.5 * (free + denoiser.guidance_scale * (told - free))) / a**0.5
        top = clean.detach().requires_grad_()
        picture = pipe.vae.decode(top / pipe.vae.config.scaling_factor).sample / 2 + 0.5
        features = network(picture, [part.layer for part in objective.objective.parts])
        loss = sum((statistic(features[p.layer]) - p.target).square().mean() for p in objective.objective.parts)
        (gradient,) = torch.autograd.grad(loss, top)
        return torch.autograd.grad(clean, leaf, gradient)[0] if through else gradient


def cheap_against_freedom(steps: int, seeds: int) -> list[dict]:
    """Rows of (b)."""
    pipe, network, judge = pipelines.stable_diffusion(), models.features(), models.judge()
    pipe.set_progress_bar_config(disable=True)
    style, rows = images.load(STYLE), []
    sides: dict[str, tuple[Guidance | None, int]] = {
        "unguided": (None, steps),
        "FreeDoM": (FREEDOM, steps),
        "cheap": (dataclasses.replace(CHEAP, scale=SCALE), max(2, steps * 3 // 10)),
    }
    found: dict[str, dict[str, list]] = {name: {"seconds": [], "gram": [], "agrees": []} for name in sides}
    for seed in range(seeds):  # the sides take turns
        for name, (guidance, count) in sides.items():
            started = time.perf_counter()
            picture = pipe(
                PROMPT,
                style_image=None if guidance is None else style,
                guidance=guidance or FULL,
                features=network,
                num_inference_steps=count,
                guidance_scale=models.guidance_scale(),
                eta=1.0 if guidance is FREEDOM else 0.0,
                generator=torch.Generator().manual_seed(seed),
                output_type="pt",
            ).images
            found[name]["seconds"].append(time.perf_counter() - started)
            found[name]["gram"].append(metrics.style_distance(network, picture, style))
            rivals = drawings.CAPTIONS
            found[name]["agrees"].append(float(judge.agrees(picture, PROMPT, rivals)))
    for name, values in found.items():
        row: dict = {"mode": name, "steps": sides[name][1], "n": seeds}
        for key, numbers in values.items():
            mean, low, high = drawings.interval(numbers)
            row |= {key: mean, f"{key} 95 %": f"{low:.3g} to {high:.3g}"}
        rows.append(row)
    return rows


def memory(mode: str) -> float:
    """Peak MiB of one step in this process, less what imports and models take."""
    guidance, checkpointing = MODES[mode]
    pipe, denoiser, objective, x = setting()
    before = peak_mib(fresh=True)
    options = {"objective": objective, "guidance": guidance} if guidance else {}
    next(sample(denoiser, pipe.scheduler, x, steps=30, checkpointing=checkpointing, **options))
    return peak_mib() - before


def memory_apart(mode: str) -> float:
    command = [sys.executable, __file__, "--memory-of", mode]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def pictures(steps: int, repeats: int = 3) -> list[dict]:
    """Rows of (d)."""
    pipe, _, _, _ = setting()
    rows = []
    for mode in ("unguided", "cheap", "full"):
        guidance, seconds = MODES[mode][0], []
        call = {} if guidance is None else {"style_image": STYLE, "guidance": dataclasses.replace(guidance)}
        for seed in range(repeats):
            started = time.perf_counter()
            pipe(
                PROMPT,
                num_inference_steps=steps,
                guidance_scale=models.guidance_scale(),
                generator=torch.Generator().manual_seed(seed),
                **call,
            )
            seconds.append(time.perf_counter() - started)
        rows.append({"mode": mode, "steps": steps, "seconds": min(seconds), "of": repeats})
    return rows


if __name__ == "__main__":
    main()
