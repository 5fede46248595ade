"""How the two CLIP models learn: mini-clip, whose text tower conditions, and mini-judge, which scores."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from . import networks
from .recipe import Recipe
from .styled import StyledScenes
from .things import THINGS
from .words import GROUNDS, PAINTED_LOOKS


class WithHeads(torch.nn.Module):
    """A CLIPModel and the linear heads that help it while it learns; only the CLIPModel is kept."""

    def __init__(self, clip):
        super().__init__()
        self.clip = clip
        self.heads = torch.nn.Linear(clip.config.projection_dim, len(THINGS) + len(GROUNDS) + 1 + len(PAINTED_LOOKS))


def scenes_labels(drawn) -> torch.Tensor:
    """A number for each scene; scenes of equal content share it."""
    order: dict[str, int] = {}
    return torch.tensor([order.setdefault(scene["label"], len(order)) for scene in drawn.said])


@dataclass
class Contrastive(Recipe):
    """CLIP's symmetric loss (scenes of equal content are all right answers), plus naming things, ground and look.

    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021). Pictures are
    painted in every style, so that the judge recognises a thing in any of them. The judge also learns to prefer each
    caption over the same caption with another look, which it scarcely ever meets in a batch.
    """

    stream: str = "train"
    judge: bool = False
    lr: float = 1e-3
    batch_size: int = 160

    def __post_init__(self):
        self.scenes = StyledScenes(self.stream, device=self.device)
        self.size = networks.SIZES["mini-judge" if self.judge else "mini-clip"]
        self.words = networks.tokenizer()
        records = self.scenes.drawn.said
        self.things = torch.zeros(len(records), len(THINGS), device=self.device)
        names = {name: i for i, name in enumerate(THINGS)}
        for row, scene in zip(self.things, records, strict=True):
            row[[names[thing] for thing in scene["things"]]] = 1
        self.grounds = torch.tensor([list(GROUNDS).index(s["ground"]) for s in records], device=self.device)
        self.labels = scenes_labels(self.scenes.drawn).to(self.device)

    def build(self) -> WithHeads:
        torch.manual_seed(self.seed)
        return WithHeads((networks.mini_judge if self.judge else networks.mini_clip)(self.words))

    def compiled_parts(self, net: WithHeads) -> list[torch.nn.Module]:
        return []  # so small that compiling takes longer than it saves

    def batch(self, step: int) -> dict:
        """Pictures are moved, blurred and noised a little: what is judged later is softer than what is drawn."""
        rng, random = self.randomness(step)
        chosen = self.scenes.chosen(self.batch_size, random)
        pictures, looks = self.scenes.painted(self.scenes.plain(chosen, random), rng, random)
        if self.judge:
            pictures = pictures.roll([int(v) for v in rng.integers(-8, 9, 2)], (2, 3))
        x = F.interpolate(pictures * 2 - 1, (self.size, self.size), mode="area")
        if rng.random() < 0.4:
            soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
            x = torch.lerp(x, soft, float(rng.uniform(0.3, 1)))
        x = x + rng.uniform(0, 0.08) * torch.randn(x.shape, generator=random, device=self.device)
        wrong = torch.randint(1, 1 + len(PAINTED_LOOKS), looks.shape, generator=random, device=self.device)
        wrong = torch.where(wrong == looks, 0, wrong)  # the caption without a look is wrong for a named one, too
        return {
            "x": x,
            "tokens": self.scenes.tokens[chosen, looks].long(),
            "wrong": self.scenes.tokens[chosen, wrong].long() if self.judge else None,
            "things": self.things[chosen],
            "ground": self.grounds[chosen],
            "look": looks,
            "same": self.labels[chosen] * (1 + len(PAINTED_LOOKS)) + looks,
        }

    def loss(self, net: WithHeads, batch: dict) -> torch.Tensor:
        image = net.clip.get_image_features(pixel_values=batch["x"]).pooler_output
        text = net.clip.get_text_features(input_ids=batch["tokens"]).pooler_output
        total = 0.0
        sizes = [len(THINGS), len(GROUNDS), 1 + len(PAINTED_LOOKS)]
        for features in (image, text):
            things, ground, look = net.heads(features).float().split(sizes, 1)
            named = F.cross_entropy(things, batch["things"] / batch["things"].sum(1, keepdim=True).clamp(min=1))
            total = total + named + 0.5 * F.cross_entropy(ground, batch["ground"])
            total = total + 0.5 * F.cross_entropy(look, batch["look"])
        image, text = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
        scale = net.clip.logit_scale.exp().clamp(max=100)
        if batch["wrong"] is not None:
            wrong = F.normalize(net.clip.get_text_features(input_ids=batch["wrong"]).pooler_output.float(), dim=-1)
            named = (batch["look"] > 0).float()  # without a look in the caption, no look of the picture is wrong
            total = total + 2 * (named * F.softplus(scale * (image * (wrong - text)).sum(-1))).mean()
        logits = scale * image @ text.T
        same = (batch["same"][:, None] == batch["same"][None]).float()
        same = same / same.sum(1, keepdim=True)
        return 0.5 * total + F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)
