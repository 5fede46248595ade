"""One training loop for all networks of the chapter: batches decided by the step, an average, exact resumption."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from ex4lib.images import write_bytes

from .digits import Digits
from .methods import Schedule, ddpm_loss, denoising_loss, flow_loss, precision
from .scores import Classifier
from .unet import UNet

METHODS = ("denoise", "pure-noise", "ddpm", "flow", "classify")
SAVE_EVERY = 60.0  # seconds: an interruption loses at most that


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides a training; ``keep`` names the epochs after which the weights are kept.

    The learning rate falls by ``0.1^(1/epochs)`` after every epoch where ``decay``. ``ema`` is the decay of the
    averaged weights, with the warm-up ``min(ema, (1+n)/(10+n))`` after n updates.
    """

    name: str
    method: str
    width: int = 64
    epochs: int = 20
    batch: int = 128
    lr: float = 1e-3
    decay: bool = True
    classes: int = 0
    drop: float = 0.1
    sigma: float = 0.5
    schedule: Schedule = dataclasses.field(default_factory=Schedule)
    ema: float = 0.998
    keep: tuple[int, ...] = (1, 5, 10, 20)
    seed: int = 0

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        if self.epochs < 1 or self.batch < 2 or not self.lr > 0:
            raise ValueError(f"a training needs epochs >= 1, batch >= 2 (batch norm) and lr > 0, got {self}")

    def build(self) -> UNet | Classifier:
        """The network before it knows anything."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            if self.method == "classify":
                return Classifier(self.width, self.classes)
            return UNet(self.width, time=self.method in ("ddpm", "flow"), classes=self.classes)

    def loss(self, net: UNet | Classifier, clean: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """The method's loss on one batch."""
        if self.method == "ddpm":
            return ddpm_loss(net, clean, labels, self.schedule, self.drop, generator)
        if self.method == "flow":
            return flow_loss(net, clean, labels, self.drop, generator)
        if self.method == "classify":
            return F.cross_entropy(net(clean).float(), labels)
        return denoising_loss(net, clean, self.sigma if self.method == "denoise" else None, generator)

    def plain(self) -> dict:
        """As plain JSON, for the store and for checkpoints."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def identity(recipe: Recipe, data: Digits) -> dict:
    """What decides the weights, as plain JSON."""
    return {"recipe": recipe.plain(), "data": data.sha256, "epoch": data.epoch}


class Training:
    """A network, its optimiser, its average and its losses; can be stored and taken up again at any step."""

    def __init__(self, recipe: Recipe, data: Digits, device: torch.device | str = "cpu"):
        if data.epoch < recipe.batch:
            raise ValueError(f"an epoch of {data.epoch} pictures holds no batch of {recipe.batch}")
        self.recipe, self.data, self.device = recipe, data, torch.device(device)
        self.net = recipe.build().to(self.device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=recipe.lr, fused=True)
        gamma = 0.1 ** (1 / recipe.epochs) if recipe.decay else 1.0
        self.rate = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, gamma)
        self.average = AveragedModel(self.net, avg_fn=_averaging(recipe.ema), use_buffers=True)
        self.step, self.losses, self.seconds = 0, [], 0.0
        self.epoch_steps = data.epoch // recipe.batch
        self.total = recipe.epochs * self.epoch_steps

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return self.step // self.epoch_steps

    def batch(self, step: int) -> tuple[Tensor, Tensor, torch.Generator]:
        """Pictures, labels and the generator of a step: decided by seed and step alone."""
        generator = torch.Generator().manual_seed((self.recipe.seed + 1) * 1_000_000_007 + step)
        order = self.data.order(step // self.epoch_steps, self.recipe.seed)
        begin = step % self.epoch_steps * self.recipe.batch
        clean, labels = self.data.take(order[begin : begin + self.recipe.batch], generator)
        return clean.to(self.device), labels.to(self.device), generator

    def one_step(self) -> float:
        """One batch; returns its loss before the update.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        started = time.perf_counter()
        clean, labels, generator = self.batch(self.step)
        self.net.train()
        with precision(self.device):
            loss = self.recipe.loss(self.net, clean, labels, generator)
        value = loss.item()
        if not value < float("inf"):
            raise FloatingPointError(f"the loss of {self.recipe.name} is {value} at step {self.step + 1}: lower lr")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.average.update_parameters(self.net)
        self.step += 1
        self.losses.append(value)
        if self.step % self.epoch_steps == 0:
            self.rate.step()
        self.seconds += time.perf_counter() - started
        return value

    def identity(self) -> dict:
        """What a checkpoint must agree with."""
        return identity(self.recipe, self.data)

    def save(self, path: Path) -> None:
        """Write everything atomically."""
        parts = {name: getattr(self, name).state_dict() for name in ("net", "optimizer", "rate", "average")}
        buffer = io.BytesIO()
        plain = {"step": self.step, "losses": self.losses, "seconds": self.seconds}
        torch.save({"identity": json.dumps(self.identity(), sort_keys=True), **plain, **parts}, buffer)
        write_bytes(path, buffer.getvalue())

    def load(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: the file is damaged or belongs to another recipe or other pictures.
        """
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            found = state["identity"]
        except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
            raise ValueError(f"{path} is no whole checkpoint ({error}): move it away to start anew") from error
        if found != json.dumps(self.identity(), sort_keys=True):
            raise ValueError(f"{path} belongs to another recipe or other pictures: move it away to start anew")
        for name in ("net", "optimizer", "rate", "average"):
            getattr(self, name).load_state_dict(state[name])
        self.step, self.losses, self.seconds = state["step"], state["losses"], state["seconds"]


def train(training: Training, folder: Path, *, until: int | None = None, progress: bool = False) -> Training:
    """Train to the end, or to step ``until``, from the checkpoint in ``folder`` where there is one.

    The checkpoint is written every minute and at the end; `snapshot_path` after the epochs of ``recipe.keep``.
    """
    name = training.recipe.name
    checkpoint = folder / f"{name}.pt"
    if checkpoint.is_file():
        training.load(checkpoint)
    goal = min(until if until is not None else training.total, training.total)
    if training.step >= goal:
        return training
    saved = time.monotonic()
    with tqdm(
        total=goal, initial=training.step, desc=name, unit="step", file=sys.stderr, disable=not progress, mininterval=1
    ) as bar:
        while training.step < goal:
            training.one_step()
            bar.update()
            recent = training.losses[-50:]
            rate = training.step * training.recipe.batch / training.seconds
            bar.set_postfix(loss=f"{sum(recent) / len(recent):.4f}", pictures=f"{rate:.0f}/s", refresh=False)
            if training.step % training.epoch_steps == 0 and training.epoch in training.recipe.keep:
                write_weights(training.average.module, snapshot_path(folder, name, training.epoch), training.identity())
            if time.monotonic() - saved > SAVE_EVERY:
                training.save(checkpoint)
                saved = time.monotonic()
    training.save(checkpoint)
    return training


def snapshot_path(folder: Path, name: str, epoch: int) -> Path:
    """Where the averaged weights after an epoch are kept."""
    return folder / f"{name}-epoch{epoch:02d}.safetensors"


def write_weights(net: torch.nn.Module, path: Path, origin: dict) -> None:
    """Averaged weights and batch-norm statistics in fp16, with what made them."""
    state = {key: value.half().contiguous() for key, value in net.state_dict().items() if value.is_floating_point()}
    write_bytes(path, save(state, {"identity": json.dumps(origin, sort_keys=True)}))


def read_weights(net: torch.nn.Module, path: Path) -> torch.nn.Module:
    """The network with the weights of a file, ready to draw.

    Raises:
        ValueError: the file holds another architecture.
    """
    state = {key: value.float() for key, value in load_file(path).items()}
    missing, extra = net.load_state_dict(state, strict=False)
    if extra or [key for key in missing if not key.endswith("num_batches_tracked")]:
        raise ValueError(f"{path} holds another architecture")
    return net.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def _averaging(decay: float):
    def average(averaged: Tensor, now: Tensor, updates: Tensor | int) -> Tensor:
        share = 1 - min(decay, (1 + int(updates)) / (10 + int(updates)))
        return averaged + share * (now - averaged)

    return average
