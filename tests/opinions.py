"""A judge whose opinions are known, for tests of scores."""

import math
import types

import torch

COLOURS = {"red": (1.0, 0, 0), "green": (0, 1.0, 0), "yellow": (0.6, 0.8, 0)}


class Opinionated:
    """A judge that sees a picture's mean colour; prompts are colours."""

    model = types.SimpleNamespace(logit_scale=torch.tensor(math.log(10.0)))

    def image_features(self, images):
        return torch.nn.functional.normalize(images.mean((2, 3)), dim=-1)

    def scores(self, images, prompts):
        return self.image_features(images) @ torch.tensor([COLOURS[prompt] for prompt in prompts]).T

    def agrees(self, images, prompt, others):
        return self.scores(images, [prompt, *others]).argmax(1) == 0


def plain(*colour):
    return torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, 8, 8)
