"""What pictures of the sampling loops are judged by: nearness to a picture, agreement with a prompt, variety."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ex4lib import images, models
from ex4lib.features import VGG
from ex4lib.images import ImageSource
from experiments import measures, metrics
from experiments.drawings import CAPTIONS
from experiments.judge import Judge

#: Pictures are enlarged to this before LPIPS, which was trained on patches of 64 pixels.
LEAST_COMPARED = 64


def fidelity(network: VGG, pictures: Tensor, reference: Tensor) -> dict[str, list[float]]:
    """``psnr`` (dB), ``ssim`` and ``lpips`` of pictures ``(B, 3, H, W)`` against as many references, or against one.

    Raises:
        ValueError: the network is no VGG-16.
    """
    found = {"psnr": [], "ssim": [], "lpips": []}
    for own, other in zip(pictures.split(1), reference.expand_as(pictures).split(1), strict=True):
        larger = [images.resize(each, max(LEAST_COMPARED, *each.shape[-2:])) for each in (own, other)]
        found["psnr"].append(metrics.psnr(own, other))
        found["ssim"].append(measures.ssim(own, other))
        found["lpips"].append(measures.perceptual_distance(network, *larger))
    return found


def sampling_scores(
    judge: Judge, pictures: Tensor, prompt: str, *, rivals: Sequence[str] = CAPTIONS
) -> dict[str, float]:
    """What classifier-free guidance trades, for pictures ``(B, 3, H, W)`` of one prompt, B ≥ 2.

    ``score``: mean cosine with the prompt. ``agreement``: share for which the judge prefers the prompt over all rivals.
    ``diversity``: mean pairwise cosine distance of the judge's features. ``saturation``: mean of (max - min)/max over
    the channels of a pixel. ``clipped``: share of channel values within half a level of 0 or 1.
    """
    features = judge.image_features(pictures).cpu()
    count = len(pictures)
    similar = (features @ features.T).sum() - features.square().sum()
    most, least = pictures.amax(1), pictures.amin(1)
    return {
        "score": judge.scores(pictures, [prompt]).mean().item(),
        "agreement": judge.agrees(pictures, prompt, rivals).float().mean().item(),
        "diversity": 1 - similar.item() / (count * (count - 1)),
        "saturation": ((most - least) / most.clamp_min(1e-6)).mean().item(),
        "clipped": ((pictures < 0.5 / 255) | (pictures > 254.5 / 255)).float().mean().item(),
    }


def held_out_scenes(size: int) -> Tensor:
    """Sixteen scenes ``(16, 3, size, size)`` that no embedded model was trained on, from the card of mini-sd.

    They are the first and third row of its ``reconstructions.jpg``, 128 pixels each with 2 between them.
    """
    sheet = images.load(Path(models.EMBEDDED) / "mini-sd" / "reconstructions.jpg")
    tiles = [sheet[..., 2 + 130 * i : 130 + 130 * i, 2 + 130 * j : 130 + 130 * j] for i in (0, 2) for j in range(8)]
    return images.resize(torch.cat(tiles), size)


def seam_ratio(image: Tensor, mask: ImageSource) -> float:
    """Mean absolute difference of neighbouring pixels across the mask's border, relative to that inside the mask.

    1 is a border as smooth as what was drawn; a visible seam is above 1. Not a number for a mask without a border.
    """
    mask, across, within = (images.mask(mask, "mask").to(image.device) > 0.5).float(), [], []
    for dim in (-1, -2):
        gradient = image.diff(dim=dim).abs().mean(1, keepdim=True)
        edge = mask.diff(dim=dim).abs() > 0
        inside = torch.minimum(*(mask.narrow(dim, offset, mask.shape[dim] - 1) for offset in (0, 1))) > 0
        across.append(gradient[edge.expand_as(gradient)])
        within.append(gradient[inside.expand_as(gradient)])
    return (torch.cat(across).mean() / torch.cat(within).mean()).item()
