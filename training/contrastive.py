"""How the two CLIP models learn: mini-clip, whose text tower conditions, and mini-judge, which scores."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from . import networks
from .pictures import Pictures
from .recipe import Recipe, generator, strange, to_tensor
from .things import THINGS
from .words import GROUNDS, LOOKS, NAMED_LOOKS


class WithHeads(torch.nn.Module):
    """A CLIPModel and the linear heads that help it while it learns; only the CLIPModel is kept."""

    def __init__(self, clip):
        super().__init__()
        self.clip = clip
        self.heads = torch.nn.Linear(clip.config.projection_dim, len(THINGS) + len(GROUNDS) + len(LOOKS))


def in_another_look(caption: str, look: str, rng: np.random.Generator) -> str:
    """The caption of a scene in `look` as it would be of the same scene in one of the other named looks."""
    other = rng.choice([each for each in NAMED_LOOKS if each != look])
    return caption.replace(look, other) if look in NAMED_LOOKS else f"{caption}, {other}"


@dataclass
class Contrastive(Recipe):
    """CLIP's symmetric loss (equal scenes are all right answers), plus naming things, ground and look.

    The judge also learns to prefer each caption over itself in another look, which scarcely ever meets it in a batch.
    """

    stream: str = "train"
    judge: bool = False
    lr: float = 1e-3
    batch_size: int = 160

    def __post_init__(self):
        self.pictures = Pictures(self.stream, size=128)
        self.size = networks.SIZES["mini-judge" if self.judge else "mini-clip"]
        self.words = networks.tokenizer()
        names = {name: i for i, name in enumerate(THINGS)}
        grounds, looks = list(GROUNDS), list(LOOKS)
        self.things = [[names[t] for t in s["things"]] for s in self.pictures.said]
        self.ground = np.array([grounds.index(s["ground"]) for s in self.pictures.said])
        self.look = np.array([looks.index(s["look"]) for s in self.pictures.said])

    def build(self) -> WithHeads:
        torch.manual_seed(self.seed)
        return WithHeads((networks.mini_judge if self.judge else networks.mini_clip)(self.words))

    def batch(self, step: int) -> dict:
        """Pictures are blurred and noised a little: what is judged later is softer than what is drawn."""
        chosen = self.indices(step, len(self.pictures))
        rng, g = np.random.default_rng((self.seed, step, 1)), generator(self.seed, step)
        x = self.pictures[chosen]
        shift = rng.integers(-8, 9, (len(x), 2))
        x = np.stack([np.roll(p, s, (0, 1)) if self.judge else p for p, s in zip(x, shift, strict=True)])
        x = to_tensor(x, self.size)
        if rng.random() < 0.4:
            soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
            x = torch.lerp(x, soft, float(rng.uniform(0.3, 1)))
        x = x + rng.uniform(0, 0.08) * torch.randn(x.shape, generator=g)
        captions = [strange(self.pictures.said[i]["caption"], rng) for i in chosen]
        tokens = self.words(captions, padding=True, truncation=True, return_tensors="pt").input_ids
        looks = [self.pictures.said[i]["look"] for i in chosen]
        wrong = [in_another_look(*said, rng) for said in zip(captions, looks, strict=True)] if self.judge else []
        wrong = self.words(wrong, padding=True, truncation=True, return_tensors="pt").input_ids if wrong else None
        targets = torch.zeros(len(x), len(THINGS))
        for row, i in enumerate(chosen):
            targets[row, self.things[i]] = 1
        labels = [self.pictures.said[i]["label"] for i in chosen]
        order = {label: k for k, label in enumerate(dict.fromkeys(labels))}
        return {
            "x": x,
            "tokens": tokens,
            "wrong": wrong,
            "things": targets,
            "ground": torch.from_numpy(self.ground[chosen]),
            "look": torch.from_numpy(self.look[chosen]),
            "same": torch.tensor([order[label] for label in labels]),
        }

    def loss(self, net: WithHeads, batch: dict) -> torch.Tensor:
        image = net.clip.get_image_features(pixel_values=batch["x"]).pooler_output
        text = net.clip.get_text_features(input_ids=batch["tokens"]).pooler_output
        total = 0.0
        for features in (image, text):
            things, ground, look = net.heads(features).float().split([len(THINGS), len(GROUNDS), len(LOOKS)], 1)
            named = F.cross_entropy(things, batch["things"] / batch["things"].sum(1, keepdim=True).clamp(min=1))
            total = total + named + 0.5 * F.cross_entropy(ground, batch["ground"])
            total = total + 0.5 * F.cross_entropy(look, batch["look"])
        image, text = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
        scale = net.clip.logit_scale.exp().clamp(max=100)
        if batch["wrong"] is not None:
            wrong = F.normalize(net.clip.get_text_features(input_ids=batch["wrong"]).pooler_output.float(), dim=-1)
            total = total + 2 * F.softplus(scale * (image * (wrong - text)).sum(-1)).mean()
        logits = scale * image @ text.T
        same = (batch["same"][:, None] == batch["same"][None]).float()
        same = same / same.sum(1, keepdim=True)
        return 0.5 * total + F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)
