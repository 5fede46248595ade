"""A CLIP model that scores pictures against prompts; it is never the one that drew them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from ex4lib import checks, models
from ex4lib.images import check


class Judge:
    """``CLIPModel`` of a folder or hub id, with its tokenizer and the normalisation of its image processor.

    Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021).
    """

    def __init__(self, source: str, device: torch.device | str = "cpu"):
        self.name = Path(source).name
        self.model = CLIPModel.from_pretrained(source).to(device).eval().requires_grad_(False)
        self.tokenizer = CLIPTokenizer.from_pretrained(source)
        processor = CLIPImageProcessor.from_pretrained(source)
        self.size: int = self.model.config.vision_config.image_size
        normalisation = torch.tensor([processor.image_mean, processor.image_std], device=device)
        self.mean, self.std = normalisation.view(2, 1, 3, 1, 1)

    @classmethod
    def load(cls, name: str | None = None, *, device: torch.device | str | None = None) -> Judge:
        """The profile's judge, or another by hub id or folder; it is not the one that any text to image model uses."""
        return cls(models.source("judge", name), models.chosen_device(device))

    @torch.no_grad()
    def image_features(self, images: Tensor, batch: int = 256) -> Tensor:
        """Unit vectors ``(B, D)`` of images ``(B, 3, H, W)`` in [0, 1].

        Pictures that are not square are squeezed, not cropped, so that their borders are judged, too.
        """
        pictures = check(images, "images").float()
        rows = []
        for part in pictures.split(batch):
            part = F.interpolate(part, (self.size,) * 2, mode="bicubic", antialias=True).clamp(0, 1).to(self.mean)
            rows.append(_features(self.model.get_image_features(pixel_values=(part - self.mean) / self.std)))
        return torch.cat(rows)

    @torch.no_grad()
    def text_features(self, prompts: str | Sequence[str]) -> Tensor:
        """Unit vectors ``(P, D)`` of prompts; one text is a list of one."""
        texts = checks.prompts(prompts, "prompts")
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        tokens = {key: tokens[key].to(self.mean.device) for key in ("input_ids", "attention_mask")}
        return _features(self.model.get_text_features(**tokens))

    def scores(self, images: Tensor, prompts: str | Sequence[str]) -> Tensor:
        """Cosine similarities ``(B, P)`` in [-1, 1], on the CPU; CLIP score is 100 times this."""
        return (self.image_features(images) @ self.text_features(prompts).T).cpu()

    def agrees(self, images: Tensor, prompt: str, others: Sequence[str]) -> Tensor:
        """For each image ``(B,)`` whether ``prompt`` scores above all ``others``: top-1 prompt agreement."""
        rivals = [other for other in dict.fromkeys(others) if other != prompt]
        return self.scores(images, [prompt, *rivals]).argmax(1) == 0


def _features(output) -> Tensor:
    """Unit vectors, of transformers 4 (a tensor) or 5 (an output with ``pooler_output``)."""
    return F.normalize(output if isinstance(output, Tensor) else output.pooler_output, dim=-1)
