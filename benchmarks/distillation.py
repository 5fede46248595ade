"""Cost of score distillation: ``python benchmarks/distillation.py``.

(a) One SDS iteration against the bare U-Net forward pass (both branches of the prompt's guidance) that it needs: noise,
    schedule, optimiser and trace are what is above it. The sides take turns within one process; medians.
(b) Peak memory of one iteration by method: a subprocess each, less what the imports and the models take.

The models are the embedded ones; the exit code is 0 whatever the numbers are.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from common import machine, peak_mib, table

from ex4lib import images
from ex4lib.diffusion import pipelines
from experiments.assignment import ASSIGNMENT, distil_prompt

PROMPT, SOURCE_PROMPT, SOURCE = "a cat sitting on a table", "a dog sitting on a table", "chelsea"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repeats, under a minute")
    parser.add_argument("--json", type=Path, help="write every number to this file")
    parser.add_argument("--memory-of", choices=ASSIGNMENT, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(memory(arguments.memory_of))
        return
    results: dict = {"machine": machine()}
    print(json.dumps(results["machine"], indent=2))
    results["overhead"] = overhead(repeats=5 if arguments.quick else 60)
    table("(a) one SDS iteration, seconds (medians)", results["overhead"])
    results["memory"] = [{"loss": loss, "peak_mib": memory_apart(loss)} for loss in ASSIGNMENT]
    table("(b) peak memory of one iteration", results["memory"])
    if arguments.json:
        images.write_bytes(arguments.json, json.dumps(results, indent=2).encode())


def overhead(repeats: int) -> list[dict]:
    """Rows of (a)."""
    pipe = pipelines.stable_diffusion()
    denoiser = pipe.denoiser(PROMPT, guidance_scale=25.0)
    steps = distil_prompt(pipe, PROMPT, loss="sds", steps=repeats + 1)
    side, channels = pipe.unet.config.sample_size, pipe.unet.config.in_channels
    x, t = torch.randn(2, channels, side, side), torch.tensor(500)
    embeddings = torch.cat([denoiser.negative, denoiser.embeddings])
    times: dict[str, list[float]] = {"bare": [], "iteration": []}
    for _ in range(repeats + 1):  # the first warms up
        started = time.perf_counter()
        with torch.no_grad():
            pipe.unet(x, t, embeddings)
        times["bare"].append(time.perf_counter() - started)
        started = time.perf_counter()
        next(steps)
        times["iteration"].append(time.perf_counter() - started)
    row = {side: statistics.median(values[1:]) for side, values in times.items()}
    return [{"loss": "sds", **row, "ratio": row["iteration"] / row["bare"]}]


def memory(loss: str) -> float:
    """Peak MiB of one iteration in this process, less what imports and models take."""
    pipe = pipelines.stable_diffusion()
    edit = {"source": images.load(SOURCE), "source_prompt": SOURCE_PROMPT} if loss in ("pds", "dds") else {}
    before = peak_mib(fresh=True)
    next(distil_prompt(pipe, PROMPT, loss=loss, steps=2, **edit))
    return peak_mib() - before


def memory_apart(loss: str) -> float:
    command = [sys.executable, __file__, "--memory-of", loss]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


if __name__ == "__main__":
    main()
