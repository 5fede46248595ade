"""What guidance costs at equal specificity: other papers' settings against ours, ``python -m experiments.costs``.

FreeDoM takes 100 steps, some of them three times. For all prompts this needs hours without a GPU: ``--prompts`` names
some.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence

from ex4lib import models
from ex4lib.diffusion.guidance import DEFAULT, FREEDOM, MPGD
from experiments import specificity
from experiments.drawings import REPORT_PAINTINGS, REPORT_PROMPTS, Judges, text_to_image
from experiments.specificity import Setting

#: Settings that are compared. FreeDoM and MPGD are run with the number of steps of their code for Stable Diffusion.
SETTINGS = {
    "ours": Setting(DEFAULT),
    "FreeDoM": Setting(FREEDOM, steps=100, eta=1.0),
    "MPGD": Setting(MPGD, steps=100),
}
#: What the scale of each setting is multiplied by, from weak to strong.
FACTORS = (0.5, 1.0, 2.0, 4.0)


def cost_at_equal_specificity(
    pipe,
    settings: Mapping[str, Setting] = SETTINGS,
    *,
    target: float = 0.85,
    factors: Sequence[float] = FACTORS,
    paintings: Sequence[str] = REPORT_PAINTINGS,
    prompts: Sequence[str] = REPORT_PROMPTS,
    seeds: Sequence[int] = (0,),
    judges: Judges,
    features,
) -> list[dict]:
    """For each setting the weakest scale at which the intended painting is the nearest for ``target`` of the pictures.

    Returns:
        a row for each setting: ``setting``, ``scale``, ``reached`` (False where no scale reaches the target; the row
        is then that of the most specific one), and the numbers of `specificity.summary`, of which ``seconds`` is the
        time of one picture.
    """
    rows = []
    for name, setting in settings.items():
        scaled = [
            dataclasses.replace(setting, guidance=dataclasses.replace(setting.guidance, scale=factor * scale))
            for factor in sorted(factors)
            for scale in setting.guidance.scales
        ]
        best: dict = {}
        options = {"judges": judges, "features": features}
        for tried, found in specificity.search(pipe, scaled, paintings, prompts, seeds, **options):
            row = {"setting": name, "scale": tried.guidance.scale, "reached": found["specificity"] >= target, **found}
            if not best or row["specificity"] > best["specificity"]:
                best = row
            if row["reached"]:
                break
        rows.append(best)
    return rows


def main() -> None:
    """Print a row of JSON for each setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", nargs="+", choices=REPORT_PROMPTS, default=REPORT_PROMPTS, metavar="PROMPT")
    prompts = parser.parse_args().prompts
    options = {"judges": Judges.default(), "features": models.features(precision="auto"), "prompts": prompts}
    for row in cost_at_equal_specificity(text_to_image(), **options):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
