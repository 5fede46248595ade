"""Train, export and evaluate the embedded models.

    python -m training.mini vae --minutes 20 --resume
    python -m training.mini export
    python -m training.mini evaluate

MODEL is one of vae, mini-clip, mini-judge, mini-sd, mini-pixel, mini-ddpm (trained in that order: mini-sd
and mini-pixel stand on the exported text tower and on scenes in styles encoded by the exported autoencoder).
`training.program` runs all of it in one go on a machine with an accelerator. Checkpoints, logs and
samples lie in the user's cache directory; `export` writes the averaged weights into `ex4lib/assets/models`.
"""

import copy
import dataclasses
import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from ex4lib import cli
from experiments.files import cache_dir

from . import networks
from .deepening import deepened
from .export import committed_weights, export
from .pictures import CHUNK, Pictures, draw_chunks, write_atomically
from .recipe import Recipe
from .recipes import LARGE, RECIPES, styled_variants, trained_vae
from .styled import StyledScenes, write_tokens

SAVE_EVERY = 50.0  # seconds: an interruption loses less than a minute
SHOW_EVERY = 1200.0  # seconds: a grid of samples costs about a minute
PAUSE = 5.0  # seconds: a step that takes longer was interrupted
WARM_UP = 100  # steps
NEW_ALONE = 100  # steps in which only the new layers of a deepened network are trained
SCENES = {"train": 16, "judge": 5, "held-out": 1}  # chunks
app = typer.Typer(add_completion=False)


class Training:
    """A network, its optimiser and its average, that can be stored and taken up again at any step."""

    def __init__(self, name: str, recipe: Recipe, device: torch.device):
        self.name, self.recipe, self.device = name, recipe, device
        torch.manual_seed(recipe.seed)
        torch.backends.cudnn.benchmark = True  # the shapes of all batches are the same
        self.net = recipe.build().to(device)
        if name != "vae" or device.type == "cuda":  # on the CPU its group norms are faster in the default layout
            self.net.to(memory_format=torch.channels_last)
        self.optimizer = recipe.optimizer(self.net)
        self._average_anew()
        self.step, self.new = 0, set()
        # A U-Net in bfloat16 throughout is faster than autocast, which keeps its many normalisations in float32.
        half = device.type == "cuda" and name in ("mini-sd", "mini-pixel", "mini-ddpm")
        self.half = copy.deepcopy(self.net).to(torch.bfloat16) if half else None

    def one_step(self, lr_scale: float = 1.0) -> float:
        """One batch: the loss before the update. A loss that is not finite leaves the weights as they are."""
        batch = self.recipe.batch(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr * lr_scale * min(1.0, (self.step + 1) / WARM_UP)
        # The CPU's fused attention takes five times as long backward as plain products for so few tokens.
        attention = sdpa_kernel(SDPBackend.MATH) if self.device.type == "cpu" else nullcontext()
        fast = self.half is None and networks.native_bf16(self.device)
        net = self.net if self.half is None else self.copied()
        with attention, torch.autocast(self.device.type, torch.bfloat16, enabled=fast):
            loss = self.recipe.loss(net, batch)
        self.optimizer.zero_grad(set_to_none=True)
        if torch.isfinite(loss):
            loss.backward()
            if self.half is not None:
                for parameter, half in zip(self.net.parameters(), net.parameters(), strict=True):
                    parameter.grad, half.grad = half.grad.float(), None
            if self.step < NEW_ALONE and self.new:
                for name, parameter in self.net.named_parameters():
                    parameter.grad = parameter.grad if name in self.new else None
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
            self.optimizer.step()
            self.ema.step(self.net.parameters())
        self.step += 1
        return loss.item()

    @torch.no_grad()
    def copied(self) -> torch.nn.Module:
        """The bfloat16 copy that does the work, with the weights as they are now."""
        for parameter, half in zip(self.net.parameters(), self.half.parameters(), strict=True):
            half.copy_(parameter)
        return self.half

    def averaged(self) -> torch.nn.Module:
        """The network with the averaged weights, for export (the training goes on with its own)."""
        net = self.recipe.build()
        net.load_state_dict(self.net.state_dict())
        self.ema.copy_to(net.parameters())
        return net.eval()

    def save(self, path: Path) -> None:
        state = {
            "step": self.step,
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
            "averaged": {k: v.half() for k, v in self.averaged().state_dict().items() if v.is_floating_point()},
        }
        write_atomically(path, lambda file: torch.save(state, file))

    def load(self, path: Path) -> None:
        state = torch.load(path, map_location=self.device, weights_only=True)
        try:
            self.net.load_state_dict(state["net"])
        except RuntimeError:
            raise RuntimeError(
                f"{path} holds another architecture of {self.name}: move it away to start anew."
            ) from None
        if state["optimizer"].keys() == self.optimizer.state_dict().keys():  # else: of another kind, begun anew
            self.optimizer.load_state_dict(state["optimizer"])
        self.ema.load_state_dict(state["ema"])
        self.ema.to(self.device)
        self.step = state["step"]

    def deepen(self, path: Path) -> None:
        """Begin with the U-Net at `path`, which has one level less; the layers it lacks are trained alone at first."""
        self.new = deepened(load_file(path), self.net)
        self._average_anew()

    def _average_anew(self) -> None:
        self.ema = EMAModel(self.net.parameters(), decay=0.9995, use_ema_warmup=True, power=0.8, foreach=True)

    def warm_start(self) -> bool:
        """Begin with the weights that ship with the package, where they fit."""
        weights = committed_weights(self.name)
        own = self.net.state_dict()
        fitting = {k: v.to(own[k]) for k, v in weights.items() if k in own and own[k].shape == v.shape}
        if fitting:
            self.net.load_state_dict(fitting, strict=False)
            self._average_anew()
        return bool(fitting)


def checkpoint_path(name: str) -> Path:
    """Where the training of `name` is kept between runs."""
    return cache_dir() / "checkpoints" / f"{name}.pt"


@dataclasses.dataclass
class Budget:
    """How much of a training is left, from 1 down to 0; the sooner of all limits counts.

    Arguments:
        minutes: of training. A step counts at most `PAUSE` seconds, so that time in which the process is stopped
            does not count.
        steps: number of steps; 0 is no limit.
        until: Unix time in seconds; 0 is no limit.
    """

    minutes: float
    steps: int = 0
    until: float = 0

    def __post_init__(self):
        self.made, self.spent, self.last = 0, 0.0, time.time()
        self.started = self.last

    def step(self) -> None:
        now = time.time()
        self.spent, self.last = self.spent + min(now - self.last, PAUSE) / 60, now
        self.made += 1

    @property
    def left(self) -> float:
        shares = [1 - self.spent / self.minutes if self.minutes > 0 else 0]
        shares += [1 - self.made / self.steps] if self.steps else []
        shares += [(self.until - time.time()) / max(1e-6, self.until - self.started)] if self.until else []
        return min(shares)


def train(
    name: str,
    budget: Budget,
    *,
    resume: bool = False,
    lr_scale: float = 1.0,
    fade: bool = False,
    compiled: bool = False,
    large: bool = False,
    deepen: Path | None = None,
) -> None:
    """Train `name` until the budget is spent.

    `fade` lowers the learning rate to nothing over the second half; `compiled` fuses the network's operations
    (torch.compile), which takes a minute before the first step and pays in long runs; `large` takes the batches of
    `recipes.LARGE`, which fill an accelerator; `deepen` is the weight file of a U-Net with one level less.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe = RECIPES[name](device=device, **(LARGE[name] if large else {}))
    training, path = Training(name, recipe, device), checkpoint_path(name)
    if resume and path.exists():
        training.load(path)
    elif resume:
        training.warm_start()
    elif deepen is not None:
        training.deepen(deepen)
    if compiled:
        for part in recipe.compiled_parts(training.net):
            part.compile()
    log = path.with_suffix(".jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    saved = shown = time.monotonic()
    mean, bar = None, tqdm(desc=name, unit="step", initial=training.step, mininterval=5, file=sys.stderr)
    while (left := budget.left) > 0:
        loss = training.one_step(lr_scale * (min(1.0, 2 * left) if fade else 1.0))
        mean = loss if mean is None else 0.98 * mean + 0.02 * loss
        bar.update()
        budget.step()
        now = time.monotonic()
        if now - saved > SAVE_EVERY and not large:  # a large training takes minutes in all
            training.save(path)
            entry = {"step": training.step, "loss": round(mean, 5), "minutes": round(budget.spent, 2)}
            with log.open("a") as file:
                file.write(json.dumps(entry) + "\n")
            bar.set_postfix(loss=f"{mean:.4f}")
            saved = now
        if now - shown > SHOW_EVERY:
            _show(name, training)
            shown = time.monotonic()
    bar.close()
    training.save(path)
    print(f"{name}: step {training.step}, loss {mean}", flush=True)
    if not budget.steps and not budget.until:
        _show(name, training)


def _show(name: str, training: Training) -> None:
    """A grid of what the averaged network can do now."""
    from .sampling import sample_grid

    picture = sample_grid(name, training.averaged(), training.recipe)
    if picture is not None:
        target = cache_dir() / "samples" / f"{name}-{training.step:07d}.png"
        write_atomically(target, lambda file: picture.save(file, format="PNG"))


def prepare(workers: int, chunk: int, chunks: int) -> None:
    """Draw the scenes, at most `chunks` chunks of a stream, and say their captions, in `workers` processes."""
    for stream, most in SCENES.items():
        draw_chunks(stream, networks.SIZES["vae"], min(most, chunks), workers=workers, count=chunk)
        write_tokens(Pictures(stream, size=networks.SIZES["vae"]).paths, workers)


@app.command()
def main(
    model: Annotated[str, typer.Argument(help=f"{', '.join(RECIPES)}, or: pictures, variants, export, evaluate")],
    minutes: Annotated[float, typer.Option(help="how long to train", min=0)] = 10,
    resume: Annotated[bool, typer.Option(help="go on from the checkpoint, else from the committed weights")] = False,
    steps: Annotated[int, typer.Option(help="stop after so many steps, if that is sooner", min=0)] = 0,
    until: Annotated[float, typer.Option(help="stop at this Unix time, if that is sooner", min=0)] = 0,
    lr_scale: Annotated[float, typer.Option(help="factor on the learning rate", min=0)] = 1.0,
    fade: Annotated[bool, typer.Option(help="let the learning rate fade out over the second half")] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="torch.compile the network: for long runs")] = False,
    large: Annotated[bool, typer.Option(help="batches that fill an accelerator")] = False,
    deepen: Annotated[Path | None, typer.Option(help="weights of a U-Net with one level less, to begin with")] = None,
    only: Annotated[str, typer.Option(help="export or evaluate only this model")] = "",
    workers: Annotated[int, typer.Option(help="processes that draw pictures", min=1)] = 2,
    chunk: Annotated[int, typer.Option(help="scenes in a chunk", min=1)] = CHUNK,
    chunks: Annotated[int, typer.Option(help="chunks of a stream of scenes, at most", min=1)] = 100,
) -> None:
    """Train, export or evaluate the embedded models."""
    if only and only not in RECIPES:
        raise typer.BadParameter(f"--only {only!r} is not one of {', '.join(RECIPES)}.")
    if model == "pictures":
        prepare(workers, chunk, chunks)
    elif model == "variants":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        styled_variants(StyledScenes("train", device=device), trained_vae(device))
    elif model == "export":
        for name in [only] if only else RECIPES:
            if checkpoint_path(name).exists():
                export(name, torch.load(checkpoint_path(name), map_location="cpu", weights_only=True)["averaged"])
    elif model == "evaluate":
        from .evaluate import evaluate

        evaluate(only)
    elif model in RECIPES:
        budget = Budget(minutes, steps, until)
        train(model, budget, resume=resume, lr_scale=lr_scale, fade=fade, compiled=compiled, large=large, deepen=deepen)
    else:
        raise typer.BadParameter(f"{model!r} is not one of {', '.join(RECIPES)}, pictures, variants, export, evaluate.")


if __name__ == "__main__":
    cli.main(app, "training.mini")
