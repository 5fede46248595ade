"""The chapter's experiments: a recipe and pictures in, one stored `Run` out.

Everything is keyed by the recipe and the pictures' SHA-256, not by weights: a fresh clone has the results without the
networks. Digits are kept as sheets of 28-pixel tiles (`scores.sheet`, `scores.cut`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import torch
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from ex4lib.models import device
from experiments.store import Run, stored

from . import mnist
from .digits import Digits
from .loop import Recipe
from .methods import ddpm_sample, flow_sample, gaussian, last, noised, precision
from .scores import Judge, nearest, several, sheet
from .unet import SIZE

KIND = "from_scratch"
SIGMAS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0)  # the course's noise levels
POINTS = 400  # of a stored loss curve


@dataclasses.dataclass(frozen=True)
class Study:
    """The two splits, and the judge, which is trained when first asked for."""

    train: Digits
    test: Digits
    progress: bool = False
    changes: tuple[tuple[str, object], ...] = ()

    def recipe(self, name: str) -> Recipe:
        """`mnist.recipe` for these pictures, with the study's changes."""
        return mnist.recipe(name, self.pictures(name), **dict(self.changes))

    def pictures(self, name: str) -> Digits:
        """`mnist.pictures`: what this network is trained on."""
        return mnist.pictures(name, self.train)

    @functools.cached_property
    def judge(self) -> Judge:
        """The classifier with real pictures, on the device the networks use."""
        classifier = self.network("classifier")
        return Judge.build(classifier, self.train, self.test).to(device())

    def network(self, name: str, epoch: int | None = None):
        """The averaged network after an epoch."""
        return mnist.trained(self.recipe(name), self.pictures(name), epoch, progress=self.progress)

    def stored(self, experiment: str, names: Sequence[str], config: dict, compute, recipe: int = 1) -> Run:
        """`store.stored` keyed by the recipes of these names."""
        config = {"experiment": experiment, "recipes": [self.recipe(name).plain() for name in names], **config}
        config |= {"data": self.train.name, "epoch_pictures": {name: self.pictures(name).epoch for name in names}}
        hashes = {"train": self.train.sha256, "test": self.test.sha256}
        return stored(KIND, config, compute, weights=hashes, recipe=recipe)


def curve(study: Study, name: str) -> Run:
    """Train, or take from the cache. Values: ``steps``, ``losses`` (means over equal stretches), ``rate``."""

    def compute() -> Run:
        training = mnist.finished(study.recipe(name), study.pictures(name), progress=study.progress)
        stretch = max(1, len(training.losses) // POINTS)
        losses = torch.tensor(training.losses, dtype=torch.float64)
        losses = losses[: len(losses) // stretch * stretch].view(-1, stretch).mean(1)
        values = {
            "steps": [stretch * (i + 1) for i in range(len(losses))],
            "losses": losses.tolist(),
            "rate": training.step * training.recipe.batch / training.seconds,
            "seconds": training.seconds,
            "parameters": sum(each.numel() for each in training.net.parameters()),
        }
        return Run(values)

    return study.stored("curve", [name], {}, compute)


def noising(study: Study, seed: int = 0) -> Run:
    """Five test digits at the course's noise levels; picture ``noisy``: a row per digit, a column per σ."""

    def compute() -> Run:
        clean, generator = _shown(study.test, 5), _generator(seed)
        rows = torch.stack([noised(clean, sigma, generator) for sigma in SIGMAS], 1)
        return Run({"sigmas": SIGMAS}, {"noisy": sheet(rows.flatten(0, 1), len(SIGMAS))})

    return study.stored("noising", [], {"seed": seed}, compute)


def denoising(study: Study, epoch: int, *, count: int = 360, seed: int = 0) -> Run:
    """The one-step denoiser after an epoch, at σ = 0.5 and away from it.

    Pictures: ``three`` (rows clean, noisy, denoised of eight test digits at σ = 0.5), ``levels`` (rows noisy,
    denoised of one digit, a column per σ). Values by σ over ``count`` test digits: PSNR in dB of the ``noisy`` picture
    and of the ``denoised`` one, and of the best Gaussian ``blur`` (σ from 0.5 to 2, chosen knowing the answer).
    """

    def compute() -> Run:
        net = study.network("one-step", epoch)
        clean, _ = several(study.test, count, seed=5)
        values = {"sigmas": SIGMAS, "noisy": [], "denoised": [], "blur": []}
        for sigma in SIGMAS:
            noisy = noised(clean, sigma, _generator(seed))
            values["noisy"].append(psnr(noisy, clean))
            values["denoised"].append(psnr(_apply(net, noisy), clean))
            blurs = [psnr(gaussian_blur(noisy, 9, width), clean) for width in (0.5, 0.75, 1.0, 1.5, 2.0)]
            values["blur"].append(max(blurs))
        eight = _shown(study.test, 8)
        noisy = noised(eight, 0.5, _generator(seed))
        one = eight[3:4].expand(len(SIGMAS), -1, -1, -1)
        noise = gaussian(eight[3:4], _generator(seed))
        levels = one + torch.tensor(SIGMAS).view(-1, 1, 1, 1) * noise
        pictures = {
            "three": sheet(torch.cat([eight, noisy, _apply(net, noisy)]), 8),
            "levels": sheet(torch.cat([levels, _apply(net, levels)]), len(SIGMAS)),
        }
        return Run(values, pictures)

    return study.stored("denoising", ["one-step"], {"epoch": epoch, "count": count, "seed": seed}, compute)


def answer_to_noise(study: Study, epoch: int, *, seed: int = 0) -> Run:
    """What a network that was trained to map pure noise to digits answers.

    Pictures: ``answers`` (rows noise and answer, eight columns), ``mean`` (the mean training digit). Values, all in
    root mean squares over pixels: ``spread`` of digits about their mean, ``miss`` of the answers from the mean digit,
    ``variety`` of answers about their own mean.
    """

    def compute() -> Run:
        net = study.network("pure-noise", epoch)
        digits, _ = several(study.train, 4000, seed=6)
        mean = digits.mean(0, keepdim=True)
        noise = gaussian(digits[:200], _generator(seed))
        answers = _apply(net, noise)
        values = {
            "spread": _rms(digits - mean),
            "miss": _rms(answers - mean),
            "variety": _rms(answers - answers.mean(0, keepdim=True)),
        }
        return Run(values, {"answers": sheet(torch.cat([noise[:8], answers[:8]]), 8), "mean": sheet(mean, 1)})

    return study.stored("pure noise", ["pure-noise"], {"epoch": epoch, "seed": seed}, compute)


def samples(
    study: Study,
    name: str,
    epoch: int | None = None,
    *,
    guidance_scale: float = 5.0,
    count: int = 100,
    steps: int = 50,
    seed: int = 0,
) -> Run:
    """Draw and score.

    ``count`` pictures, for a class-conditioned network as many of each class, of which 40 are kept in ``drawn`` (8 rows
    of 5; classes 0 to 4 in the upper four rows, 5 to 9 below) and the first eight with their nearest training pictures
    in ``neighbours`` (rows drawn, nearest). ``steps`` counts for flow matching only. Values: `Judge.scores`,
    ``evaluations`` of the network per picture.
    """
    recipe = study.recipe(name)
    epoch = recipe.epochs if epoch is None else epoch
    config = {"epoch": epoch, "guidance_scale": guidance_scale, "count": count, "seed": seed}
    config |= {"steps": steps} if recipe.method == "flow" else {}

    def compute() -> Run:
        labels = torch.arange(count) % 10 if recipe.classes else None
        drawn = draw(study, name, epoch, labels, count, guidance_scale, steps, seed)
        values = study.judge.scores(drawn, None if labels is None else labels.to(drawn.device))
        passes = 2 if recipe.classes and guidance_scale not in (0, 1) else 1
        values["evaluations"] = passes * (steps if recipe.method == "flow" else recipe.schedule.steps)
        return Run(values, _kept(study, drawn.cpu(), labels))

    return study.stored("samples", [name, "classifier"], config, compute)


def mismatch(study: Study, name: str = "time", *, scaled: bool = True, count: int = 120, seed: int = 0) -> Run:
    """Start of sampling against end of noising: ᾱ_T > 0 leaves a trace of the digit in x_T that N(0, I) lacks.

    Scores by start, without classes: ``gaussian``: N(0, I), as the course samples. ``mean``: the same noise with
    ``√ᾱ_T`` times the mean training digit added. ``true``: x_T of real training digits, same noise again. With
    ``scaled`` also N(0, I) in a network trained with every β times 1000/300, where ᾱ_T is next to 0; that one is
    time-conditioned and fairly compared with ``name`` = "time". Pictures by start.
    """
    names = [name, "scaled"] if scaled else [name]

    def compute() -> Run:
        schedule = study.recipe(name).schedule
        digits, _ = several(study.train, 4000, seed=7)
        noise = gaussian(torch.empty(count, 1, SIZE, SIZE), _generator(seed))
        level = schedule.bars[-1].sqrt().float()
        starts = {
            "gaussian": (name, noise),
            "mean": (name, level * digits.mean(0, keepdim=True) + (1 - level**2).sqrt() * noise),
            "true": (name, schedule.diffuse(digits[:count], torch.full((count,), schedule.steps), noise)),
        }
        if scaled:
            starts["scaled"] = ("scaled", noise)
        values, pictures = {}, {}
        for kind, (which, start) in starts.items():
            net, used = study.network(which), study.recipe(which).schedule
            end = last(ddpm_sample(net, used, start.to(device()), generator=_generator(seed + 1)))
            values[kind] = study.judge.scores(end.x) | {"bar": used.bars[-1].item()}
            pictures[kind] = sheet(end.x[: min(40, count)].cpu(), 5)
        values["real"] = study.judge.floor(count)
        values["test_mass"] = study.judge.test[0].mean().item()
        return Run(values, pictures)

    return study.stored("mismatch", [*names, "classifier"], {"count": count, "seed": seed}, compute)


def real(study: Study, count: int = 100) -> Run:
    """The judge's own accuracy and the scores of ``count`` real training pictures; picture ``real``: 40 of them."""

    def compute() -> Run:
        pictures, labels = (each.cpu() for each in study.judge.pool)
        places = torch.cat([(labels == label).nonzero()[: min(4, count // 10), 0] for label in range(10)])
        values = {"floor": study.judge.floor(count), "accuracy": study.judge.accuracy()}
        return Run(values, {"real": sheet(pictures[places][_by_class(labels[places])], 5)})

    return study.stored("real", ["classifier"], {"count": count}, compute)


def draw(
    study: Study, name: str, epoch: int, labels: Tensor | None, count: int, guidance_scale: float, steps: int, seed: int
) -> Tensor:
    """``(count, 1, 28, 28)`` by the recipe's own sampler, noise and all from one seed."""
    recipe, net, generator = study.recipe(name), study.network(name, epoch), _generator(seed)
    start = gaussian(torch.empty(count, 1, SIZE, SIZE), generator).to(device())
    labels = labels.to(device()) if labels is not None else None
    if recipe.method == "flow":
        return last(flow_sample(net, start, labels, guidance_scale=guidance_scale, steps=steps)).x
    loop = ddpm_sample(net, recipe.schedule, start, labels, guidance_scale=guidance_scale, generator=generator)
    return last(loop).x


def wide(picture: Tensor) -> Tensor:
    """A kept sheet of `samples` with a column per class: 8 rows of 5 become 4 rows of 10."""
    upper, lower = picture.chunk(2, dim=2)
    return torch.cat([upper, lower], 3)


def psnr(pictures: Tensor, clean: Tensor) -> float:
    """Mean PSNR in dB of pictures, clamped to [0, 1]; None in the store where they are equal."""
    pairs = zip(pictures.clamp(0, 1).numpy(), clean.numpy(), strict=True)
    values = [peak_signal_noise_ratio(b, a, data_range=1.0) if (a != b).any() else float("inf") for a, b in pairs]
    return sum(values) / len(values)


def _rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def _kept(study: Study, drawn: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
    shown = drawn[: min(40, len(drawn) // 10 * 10)]
    shown = shown[_by_class(labels[: len(shown)])] if labels is not None else shown
    pool = study.judge.pool[0].cpu()
    eight = drawn[:8]
    return {
        "drawn": sheet(shown, 5),
        "neighbours": sheet(torch.cat([eight, pool[nearest(eight.clamp(0, 1), pool)[1]]]), len(eight)),
    }


def _by_class(labels: Tensor) -> Tensor:
    """An order of whole classes for a sheet of 5 columns: classes 0 to 4 side by side above, 5 to 9 below."""
    columns = torch.stack([(labels == label).nonzero()[:, 0] for label in range(10)])  # (10, each)
    return torch.cat([columns[:5].T.reshape(-1), columns[5:].T.reshape(-1)])


@torch.no_grad()
def _apply(net, pictures: Tensor) -> Tensor:
    """A one-step network on pictures, in parts."""
    with precision(device()):
        parts = [net(part.to(device())).float().cpu() for part in pictures.split(128)]
    return torch.cat(parts)


def _shown(test: Digits, count: int) -> Tensor:
    """The first test digits of different classes 0, 1, 2, ..., undisturbed."""
    places = torch.stack([(test.labels == label).nonzero()[0, 0] for label in range(count)])
    return test.take(places)[0]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
