"""Grading of drawn pictures as the KAIST CS492D assignment on score distillation does it.

Each picture is named after its prompt; its score is the judge's cosine with that prompt. The thresholds are for
OpenAI's CLIP ViT-B/32 and mean nothing for another judge.
"""

from __future__ import annotations

from pathlib import Path

from ex4lib import images
from experiments.files import write_json
from experiments.judge import Judge

#: The judge of the assignment.
ASSIGNMENT_JUDGE = "clip-vit-base-patch32"
#: The file that a folder's scores are written to.
SCORES = "eval.json"


def file_name(prompt: str) -> str:
    """The assignment's name of a prompt's picture: spaces become underscores.

    Raises:
        ValueError: a prompt that cannot be a file name.
    """
    if not prompt.strip() or "/" in prompt or "_" in prompt:
        raise ValueError(f"a prompt must not be empty nor hold '/' or '_' to name its file, got {prompt!r}")
    return prompt.strip().replace(" ", "_") + ".png"


def points(score: float, most: float = 10.0) -> float:
    """Points for a mean score: all above 0.28, half from 0.26, else none.

    Between 0.22 and 0.26 the slides and the README of the assignment leave it open: none.
    """
    return most if score > 0.28 else most / 2 if score >= 0.26 else 0.0


def pictures_in(folder: Path) -> list[Path]:
    """The PNG files of a folder, sorted; a ValueError if there are none."""
    paths = sorted(folder.glob("*.png"))
    if not paths:
        raise ValueError(f"there are no .png pictures in {str(folder)!r}")
    return paths


def evaluate_folder(folder: Path, judge: Judge, *, name: str) -> dict:
    """Score every PNG of a folder against the prompt in its name and write ``eval.json`` there.

    Returns ``{"scores": {prompt: cosine}, "score": mean, "judge": name, "points": number or None}``; points are None
    for any judge but the assignment's.

    Raises:
        ValueError: no pictures in the folder.
    """
    scores = {}
    for path in pictures_in(folder):
        prompt = path.stem.replace("_", " ")
        scores[prompt] = round(float(judge.scores(images.load(path), [prompt])), 4)
    mean = sum(scores.values()) / len(scores)
    graded = Path(name).name == ASSIGNMENT_JUDGE
    found = {"scores": scores, "score": round(mean, 4), "judge": name, "points": points(mean) if graded else None}
    write_json(folder / SCORES, found)
    return found
