"""Flicker, cost and style loss of videos painted along the flow and frame by frame: ``python benchmarks/video.py``.

The video is a crop of a photograph that pans and zooms for two seconds at 12 frames per second. Flicker is
`experiments.metrics.flicker` as the root mean square in levels of 255. The style loss is that of the last frame: a
method that merely painted less would flicker less. The rows:

- the video itself, unpainted;
- each frame alone, with as many evaluations as each later frame of a shot;
- each frame from the previous result, moved, without the temporal term (weight 0);
- the same with the term: what ``ex4 stylize-video`` does.
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import time
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import torch
import torch.nn.functional as F
from common import machine, peak_mib, table
from torch import Tensor

from ex4lib import images, models, transfer, video
from experiments import metrics

CONTENT, STYLE = "coffee", "van-gogh-village-street-in-auvers"
RATE = Fraction(12)
DEFAULTS = inspect.signature(video.stylize_frames).parameters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few and small frames, under a minute")
    parser.add_argument("--content", default=CONTENT)
    parser.add_argument("--style", default=STYLE)
    parser.add_argument("--frames", type=int, help="how many, by default 24")
    parser.add_argument("--first", type=int, help="evaluations of the first frame")
    parser.add_argument(
        "--weights", type=float, nargs="+", default=[0.0, DEFAULTS["temporal_weight"].default], help="temporal ones"
    )
    parser.add_argument("--folder", type=Path, help="write the videos and video.json here")
    arguments = parser.parse_args()
    size, count, first = (64, 4, 8) if arguments.quick else (192, 24, DEFAULTS["first_evaluations"].default)
    count, first = arguments.frames or count, arguments.first or first
    later = min(DEFAULTS["evaluations"].default, first // 2)
    results: dict = {"machine": machine()}
    print(json.dumps(results["machine"], indent=2))
    network, style = models.features(), images.load(arguments.style)
    frames = list(moving_crop(images.load(arguments.content), count, size))
    rows = [measured("the video itself", frames, frames, None, arguments.folder)]
    judge = transfer.DEFAULT.objective(network, frames[-1], [images.resize(style, size)])
    painted = (transfer.stylize(network, frame, style, size=size, evaluations=later).image for frame in frames)
    rows.append(measured("each alone", painted, frames, judge, arguments.folder))
    for weight in arguments.weights:
        options = {"size": size, "first_evaluations": first, "evaluations": later, "temporal_weight": weight}
        painted = video.stylize_frames(network, frames, style, **options)
        rows.append(measured(f"temporal weight {weight:g}", painted, frames, judge, arguments.folder))
    table(f"{count} frames of {arguments.content} at {size} px as {arguments.style}", rows)
    if arguments.folder:
        results["rows"] = rows
        images.write_bytes(arguments.folder / "video.json", json.dumps(results, indent=2).encode())


def moving_crop(photograph: Tensor, count: int, size: int) -> Iterable[Tensor]:
    """Frames ``(1, 3, 3/4 size, size)`` that move along the photograph's diagonal while they zoom in by a quarter."""
    for time_ in torch.linspace(0, 1, count):
        width = 0.7 - 0.175 * time_  # the crop's share of the photograph
        centre = -0.25 + 0.5 * time_
        x = centre + width * torch.linspace(-1, 1, size)
        y = centre * 0.6 + width * torch.linspace(-1, 1, size * 3 // 4)
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)[None]
        yield F.grid_sample(photograph, grid, mode="bicubic", align_corners=False).clamp(0, 1)


def measured(
    name: str, painted: Iterable[Tensor], frames: list[Tensor], judge: Callable | None, folder: Path | None
) -> dict:
    """A row of the table; the videos are written into ``folder``."""
    began = time.process_time()
    peak_mib(fresh=True)
    painted = list(painted)
    row = {"method": name, "flicker": 255 * math.sqrt(metrics.flicker(painted, frames))}
    row |= {"style_loss": math.nan, "cpu_s": math.nan, "peak_mib": math.nan}
    if judge is not None:
        terms = judge.terms(painted[-1])
        row["style_loss"] = sum(value.item() for name, value in terms.items() if name.startswith("style"))
        row |= {"cpu_s": time.process_time() - began, "peak_mib": peak_mib()}
    if folder is not None:
        video.save(painted, folder / f"{name.replace(' ', '-').replace(',', '')}.mp4", RATE)
    print(row, flush=True)
    return row


if __name__ == "__main__":
    main()
