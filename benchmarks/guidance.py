"""Cost of style-guided diffusion: ``python benchmarks/guidance.py``.

(a) One guided step against the bare forward and backward passes it needs: U-Net (both branches of the prompt's
    guidance), decoder and feature network, written out without this library's loop, shift or trace. The sides take
    turns within one process; medians.
(b) FreeDoM's and MPGD's settings against ours: seconds of a picture and prompt agreement at the weakest scale at which
    the intended painting is the nearest of eight for 85 % of the pictures.
(c) Peak memory of one guided step by mode: a subprocess each, less what the imports and the models take.
(d) One picture in 30 steps, in seconds: unguided, by the presets cheap, default and full, and without a Jacobian at
    every step (clean).

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

from ex4lib import images, models
from ex4lib.diffusion import pipelines, schedulers
from ex4lib.diffusion.denoisers import Denoiser, Latents, frozen
from ex4lib.diffusion.guidance import CHEAP, DEFAULT, FULL, Guidance
from ex4lib.diffusion.sampling import sample
from ex4lib.statistics import Gram
from experiments import costs, drawings

PROMPT, STYLE = "a cat", "van-gogh-village-street-in-auvers"
CLEAN = Guidance(method="clean")
MODES = {
    "unguided": (None, False),
    "cheap": (CHEAP, False),
    "default": (DEFAULT, False),
    "clean": (CLEAN, False),
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
    results["specificity"] = equal_specificity(quick)
    table("(b) settings at equal specificity", results["specificity"])
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
    for name, guidance in (("full", FULL), ("clean", CLEAN)):
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
    with frozen(denoiser.unet, *denoiser.space.modules):
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


def equal_specificity(quick: bool) -> list[dict]:
    """Rows of (b)."""
    pipe = pipelines.stable_diffusion()
    pipe.set_progress_bar_config(disable=True)
    options: dict = {"judges": drawings.Judges.default(), "features": models.features()}
    settings = costs.SETTINGS
    if quick:
        settings = {name: dataclasses.replace(setting, steps=4) for name, setting in settings.items()}
        options |= {"factors": [1.0], "paintings": costs.REPORT_PAINTINGS[:1], "prompts": costs.REPORT_PROMPTS[:1]}
    names = ("setting", "scale", "reached", "pictures", "specificity", "agreement", "fall", "seconds")
    return [{name: row[name] for name in names} for row in costs.cost_at_equal_specificity(pipe, settings, **options)]


def memory(mode: str) -> float:
    """Peak MiB of one guided step, here the first, in this process, less what imports and models take."""
    guidance, checkpointing = MODES[mode]
    guidance = guidance and dataclasses.replace(guidance, window=(0.0, 1.0), ramp="constant")
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
    for mode in ("unguided", "cheap", "default", "clean", "full"):
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
