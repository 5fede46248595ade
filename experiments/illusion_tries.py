"""Visual anagrams and hybrid images as experiments: several tries, every one of them scored, the best one shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ex4lib.diffusion.pipelines import StyleGuidedStableDiffusionPipeline
from ex4lib.models import pipeline_sha256
from experiments import metrics
from experiments.drawings import interval, stack
from experiments.illusions import FLIP, low_pass
from experiments.judge import Judge
from experiments.loops import VIEWS, Model, TwoDistances, TwoViews, enlarged, looped, native
from experiments.store import Run, stored


@dataclasses.dataclass(frozen=True)
class Tries:
    """An illusion drawn with several seeds.

    ``run`` holds all pictures, ``scores`` what `illusion_scores` says of each; ``shown`` is the seed of the best, and
    ``looks`` are the ways to look at it: picture, prompt, cosine.
    """

    run: Run
    scores: dict[str, list]
    shown: int
    looks: tuple[tuple[Tensor, str, float], ...]

    @property
    def numbers(self) -> dict:
        """What a figure records: all scores, the seed shown and how many were tried."""
        prompts = [prompt for _, prompt, _ in self.looks]
        return {"prompts": prompts, "shown": self.shown, "tries": len(self.run.pictures), **self.scores}


def anagram(model: Model, judge: Judge, told: TwoViews, seeds: Sequence[int], **options) -> Tries:
    """Tries of a visual anagram; the one with the best alignment is shown. ``options`` are those of `loops.looped`."""
    run = looped(model, told, seeds, **options)
    views, pictures = [VIEWS[name] for name in told.views], stack(native(run))
    scores = illusion_scores(judge, [view.shown(pictures) for view in views], told.prompts)
    best = _best(scores["alignment"])
    seed = sorted(map(int, run.pictures))[best]
    looks = [
        (enlarged(view.shown(pictures[best : best + 1])), prompt, scores["scores"][best][k][k])
        for k, (view, prompt) in enumerate(zip(views, told.prompts, strict=True))
    ]
    return Tries(run, scores, seed, tuple(looks))


def hybrid(model: Model, judge: Judge, told: TwoDistances, seeds: Sequence[int], **options) -> Tries:
    """Tries of a hybrid image; the one that is told apart best (concealment) is shown.

    It is scored from afar by its low pass and from near by the whole picture, of which the high frequencies are the
    smaller part; ``scores["high pass"]`` is the mean cosine of the high pass alone with the near prompt. Looks: whole,
    low pass, high pass.
    """
    run = looped(model, told, seeds, **options)
    pictures = stack(native(run))
    low, high = distances(pictures)
    scores = illusion_scores(judge, [low, pictures], [told.far, told.near])
    fine = judge.scores(high, [told.near])[:, 0].tolist()
    best = _best(scores["concealment"])
    parts = ((pictures, told.near, scores["scores"][best][1][1]), (low, told.far, scores["scores"][best][0][0]))
    looks = [
        (enlarged(x[best : best + 1]), prompt, score) for x, prompt, score in (*parts, (high, told.near, fine[best]))
    ]
    return Tries(run, scores | {"high pass": fine}, sorted(map(int, run.pictures))[best], tuple(looks))


def illusion_scores(judge: Judge, views: Sequence[Tensor], prompts: Sequence[str]) -> dict[str, list]:
    """How well each of K views ``(B, 3, H, W)`` shows its own prompt and hides the others: lists by picture.

    With the cosines ``S_kj`` of view k with prompt j: ``alignment = min_k S_kk``; ``shares`` the diagonal of
    ``softmax_j(S_kj / τ)``, where 1/τ is the judge's logit scale, and ``concealment`` their mean (1/K is a view that
    shows all prompts alike); ``agreement`` the share of views that prefer their own prompt. ``scores`` holds S.

    Source: Geng et al., "Visual Anagrams" (2024), section 4.1.

    Raises:
        ValueError: not as many views as prompts.
    """
    if len(views) != len(prompts):
        raise ValueError(f"there must be one view for each prompt, got {len(views)} and {len(prompts)}")
    scores = torch.stack([judge.scores(view, prompts) for view in views], 1)
    shares = (judge.model.logit_scale.exp().cpu() * scores).softmax(-1).diagonal(dim1=1, dim2=2)
    return {
        "alignment": scores.diagonal(dim1=1, dim2=2).amin(1).tolist(),
        "concealment": shares.mean(1).tolist(),
        "agreement": (scores.argmax(-1) == torch.arange(len(views))).float().mean(1).tolist(),
        "shares": shares.tolist(),
        "scores": scores.tolist(),
    }


def distances(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures as they look from afar, and what only a near eye sees: low pass, and the rest about grey, clamped."""
    low = low_pass(pictures)
    return low, (pictures - low + 0.5).clamp(0, 1)


def table(rows: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Alignment, concealment and agreement of each row, means with 95 % intervals, as text."""
    names = ("alignment", "concealment", "agreement")
    cells = [["", *names]]
    for label, found in rows.items():
        cells.append([label, *("{:.3f} ({:.3f}, {:.3f})".format(*interval(found[name])) for name in names)])
    first, *widths = (max(map(len, column)) for column in zip(*cells, strict=True))
    return "\n".join(
        f"{label:{first}}" + "".join(f"{cell:>{width + 3}}" for cell, width in zip(row, widths, strict=True))
        for label, *row in cells
    )


def through_latents(pipe: StyleGuidedStableDiffusionPipeline, picture: Tensor) -> Run:
    """What an autoencoder makes of latents that are flipped and blurred as pictures are.

    Pictures: a picture ``(1, 3, H, W)`` decoded from its latents (``plain``), from flipped ones (``flipped``, turned
    back) and from ``blurred`` ones. Values: the PSNR of each to the picture, or to the blurred picture.
    """

    @torch.no_grad()
    def compute() -> Run:
        space, here = pipe.denoiser("").space, picture.to(pipe.device)
        latents = space.encode(here)
        found = {
            "plain": space.render(latents),
            "flipped": FLIP.shown(space.render(FLIP.apply(latents))),
            "blurred": space.render(low_pass(latents)),
        }
        aims = {"plain": here, "flipped": here, "blurred": low_pass(here)}
        psnr = {name: metrics.psnr(x.float(), aims[name].float()) for name, x in found.items()}
        return Run(psnr, {name: x.float().cpu() for name, x in found.items()})

    hashes = {"pipeline": pipeline_sha256(pipe)}
    return stored("through-latents", {}, compute, inputs={"picture": picture}, weights=hashes)


def _best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)
