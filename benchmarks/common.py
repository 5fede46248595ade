"""What the benchmarks share: the machine, the most memory held, and tables."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import torch

from ex4lib import models


def machine() -> dict:
    """What the numbers depend on."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "native_bfloat16": models.native_bfloat16(),
        "load_at_start": load,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def peak_mib(fresh: bool = False) -> float:
    """The most memory this process has held since the last ``fresh`` reading, in MiB (Linux).

    ``ru_maxrss`` would not do: a child starts with its parent's.
    """
    if fresh:
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is held now
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10


def table(title: str, rows: list[dict]) -> None:
    """Print rows as a Markdown table."""

    def cell(entry: object) -> str:
        return f"{entry:.4g}" if isinstance(entry, float) else str(entry)

    print(f"\n{title}\n\n| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}")
    for row in rows:
        print(f"| {' | '.join(map(cell, row.values()))} |")
    sys.stdout.flush()
