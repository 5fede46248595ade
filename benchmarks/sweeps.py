"""Scale of a sweep over processes: ``python benchmarks/sweeps.py --processes 1 2``.

The same grid is drawn and judged from nothing, by as many processes as are asked for, with one thread each (or, where
there are CUDA devices, one device each). The efficiency is ``t_1 / (n t_n)``, once for the whole command and once
without the time of a sweep that finds every picture in its store, which loads the same libraries and models. The order
is run forwards and backwards, so that a machine that changes its speed favours nobody; the table shows means.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from common import machine, table

from ex4lib import images

ROOT = Path(__file__).parents[1]
#: Pictures of one prompt and seed stay in one process: six groups of an unguided and two guided pictures.
GRID = {
    "prompts": ["a castle next to a river", "a cabin surrounded by forests", "a red bus driving on a desert road"],
    "styles": ["hokusai-great-wave", "van-gogh-village-street-in-auvers"],
    "style_scales": [0, 0.5],
    "seeds": [0, 1],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="numbers of processes, 1 first")
    parser.add_argument("--quick", action="store_true", help="two steps for each picture")
    parser.add_argument("--json", type=Path, help="write every number to this file")
    arguments = parser.parse_args()
    if arguments.processes[0] != 1:
        parser.error("the first number of processes must be 1, which the others are compared with")
    results: dict = {"machine": machine()}
    print(json.dumps(results["machine"], indent=2))
    results["sweep"] = efficiency(arguments.processes, GRID | {"steps": 2 if arguments.quick else 30})
    table("one sweep over several processes, seconds", results["sweep"])
    if arguments.json:
        images.write_bytes(arguments.json, json.dumps(results, indent=2).encode())


def efficiency(processes: list[int], grid: dict) -> list[dict]:
    """A row for each number of processes."""
    first = {number: [] for number in processes}
    again = {number: [] for number in processes}
    for number in [*processes, *reversed(processes)]:
        with tempfile.TemporaryDirectory() as folder:
            first[number].append(seconds(grid, number, Path(folder)))
            again[number].append(seconds(grid, number, Path(folder)))
    whole = {number: statistics.mean(first[number]) for number in processes}
    drawing = {number: whole[number] - statistics.mean(again[number]) for number in processes}
    return [
        {
            "processes": number,
            "seconds": whole[number],
            "drawing and judging": drawing[number],
            "efficiency": whole[1] / (number * whole[number]),
            "efficiency without the start": drawing[1] / (number * drawing[number]),
        }
        for number in processes
    ]


def seconds(grid: dict, processes: int, folder: Path) -> float:
    """Seconds of one command, whose store lies in ``folder``."""
    (folder / "sweep.yaml").write_text(yaml.safe_dump(grid))
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "experiments", "sweep"]
    settings = {"EX4_FIGURES": str(folder / "figures"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    started = time.perf_counter()
    subprocess.run(
        [*command, str(folder / "sweep.yaml"), "-o", str(folder / "sweep.csv")],
        check=True,
        capture_output=True,
        env=os.environ | settings,
        cwd=ROOT,
    )
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
