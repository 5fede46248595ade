"""Style guidance for pipelines of diffusers: ``with guided(pipe, style): pipe(...)``.

The pipeline stays as it is. Inside the context its network (the U-Net or transformer) keeps the graph of its calls, and
its ``scheduler.step`` shifts the prediction by `guidance.guide` before the scheduler sees it: there sample, noise level
and combined prediction meet, whatever the pipeline does around it.

How a pipeline combines the calls of its network (classifier-free guidance, skip-layer guidance, rescaling) is not
visible. It is measured: the combined prediction is fitted as ``Σ_k c_k · f_k`` over the calls' outputs, per image, and
its gradient is ``Σ_k c_k · J_kᵀ g0``. Where the fit is poor, the step is guided without the network's Jacobian, and
the trace says so (method ``clean``). Nothing of this is read from the device before somebody looks at the trace.
"""

import contextlib
import dataclasses
import functools
import inspect
import math
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ex4lib import checks, images, models
from ex4lib.colour import Palette
from ex4lib.diffusion import guidance as rules
from ex4lib.diffusion import schedulers
from ex4lib.diffusion.denoisers import Latents, Pixels, frozen, split
from ex4lib.diffusion.guidance import NO_CORRECTION, THROUGH, Guidance, Situation, check_count, check_scheduler
from ex4lib.diffusion.process import Level
from ex4lib.diffusion.sampling import Step, is_due, plain
from ex4lib.features import VGG
from ex4lib.losses import Objective, style_terms
from ex4lib.statistics import Statistic, at_least_float32

#: Networks that can be guided, by class name, and the families of pipelines that use them.
NETWORKS = {
    "UNet2DConditionModel": "Stable Diffusion 1.x, 2.x and XL, DeepFloyd IF",
    "UNet2DModel": "DDPM and DDIM",
    "SD3Transformer2DModel": "Stable Diffusion 3",
    "FluxTransformer2DModel": "Flux",
    "PixArtTransformer2DModel": "PixArt",
}
#: Relative rms error up to which a combination of network outputs is taken for linear, by precision of the pipeline.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
#: More calls of the network than this between two steps are not kept.
MOST_CALLS = 4
#: What `guided` is told about paintings, not about an objective.
OF_PAINTINGS = ("style_loss", "style_layers", "style_layer_weights", "style_weights", "style_each", "regions")
#: Smaller pictures are enlarged to this before the feature network sees them.
LEAST_SIZE = 128
STYLE_LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1")


class StyleObjective:
    """Style loss of pictures of any size: ``image (B, 3, H, W) -> (B,)``.

    The mean over layers of ``d(S, S*) / d(0, S*)`` (for Gram matrices ``‖G - G*‖² / ‖G*‖²``), so that a raw scale means
    the same for every layer and painting. Pictures with a longer side under `LEAST_SIZE` are enlarged to it.

    Arguments:
        network, styles: the feature network, and pictures ``(1, 3, H, W)``.
        size: ``(H, W)`` of the pictures that will be judged.
        style_loss: a name of `ex4lib.statistics.STATISTICS`, or a statistic.
        layers, layer_weights: of the network; the weights are even by default.
        style_weights: shares of the styles, default even.
        regions: for each style a mask ``(1, 1, H, W)`` of the part of the picture that it applies to.
        style_each: style k is for picture k of the batch.
        longest: longer side at which the network sees the pictures; None is their own, but at least `LEAST_SIZE`.
    """

    def __init__(
        self,
        network: VGG,
        styles: Sequence[Tensor],
        size: tuple[int, int],
        *,
        style_loss: str | Statistic = "gram",
        layers: Sequence[str | int] = STYLE_LAYERS,
        layer_weights: Sequence[float] | None = None,
        style_weights: Sequence[float] | None = None,
        regions: Sequence[Tensor] | None = None,
        style_each: bool = False,
        longest: int | None = None,
    ):
        if (style_weights is not None) + (regions is not None) + style_each > 1:
            raise ValueError("styles either blend, or have a region each, or a picture each: give one of the three")
        network, layers = network.variant(pooling="average", padding="replicate"), network.names(layers)
        factor = longest / max(size) if longest else max(1.0, LEAST_SIZE / max(size))
        self.size = tuple(round(side * factor) for side in size)
        minimum, longer = network.minimum_size(layers), []
        for style in styles:
            longer.append(max(*self.size, math.ceil(minimum * max(style.shape[-2:]) / min(style.shape[-2:]))))
            if min(style.shape[-2:]) < minimum:
                least = f"at least {minimum} x {minimum} pixels for the layers {', '.join(layers)}"
                raise ValueError(f"a style image must be {least}, got {style.shape[-2]} x {style.shape[-1]}")
        styles = [images.resize(style.to(network.mean), side) for style, side in zip(styles, longer, strict=True)]
        options = {"relative": True, "layer_weights": layer_weights}
        self.styles, self.regions = styles, regions
        shares = checks.weights(style_weights, len(styles), "style_weights")
        self.shares = [share / sum(shares) for share in shares]
        if style_each:
            styles = torch.cat([images.resize(images.crop_square(style), max(self.size)) for style in styles])
            self.styles, self.shares = [styles], [1.0]
        elif regions is not None:
            options["regions"] = [images.resize(region.to(network.mean), self.size) for region in regions]
        else:
            options["style_weights"] = style_weights
        parts = style_terms(network, styles, layers, style_loss, 1 / len(layers), **options)
        self.objective, self.batch = Objective(network, parts), len(styles) if style_each else None

    def __call__(self, image: Tensor) -> Tensor:
        if self.batch not in (None, image.shape[0]):
            raise ValueError(f"there are {self.batch} styles, one for each picture, but {image.shape[0]} pictures")
        if tuple(image.shape[-2:]) != self.size:
            image = F.interpolate(image, self.size, mode="bicubic", antialias=True)  # not clamped, unlike images.resize
        return self.objective(image)

    def palette(self, encode: Callable[[Tensor], Tensor]) -> Palette:
        """The colours of the styles, as ``encode`` shows them: pictures in [0, 1] -> clean samples."""
        return Palette.of(encode, self.styles, self.shares, self.regions)


def guided(
    pipe,
    style,
    *,
    style_scale: float | Sequence[float] | None = None,
    style_loss: str | Statistic | None = None,
    style_layers: Sequence[str | int] = STYLE_LAYERS,
    style_layer_weights: Sequence[float] | None = None,
    style_weights: Sequence[float] | None = None,
    style_each: bool = False,
    regions: Sequence[Tensor] | None = None,
    guidance: Guidance | str = "default",
    window: tuple[float, float] | None = None,
    features: VGG | str | None = None,
    decoder: nn.Module | None = None,
    checkpointing: bool = False,
    measure: bool = False,
    on_step: Callable[[Step], None] | None = None,
) -> contextlib.AbstractContextManager[Sequence[dict]]:
    """A context in which a pipeline of diffusers draws in the style of a painting.

    Example:
        >>> with guided(pipe, "hokusai-great-wave") as trace:
        ...     image = pipe("a cat").images[0]

    Arguments:
        pipe: a pipeline with one of `NETWORKS` and a scheduler of `schedulers.SUPPORTED` or `schedulers.FLOW`.
        style: a picture as `images.load` takes it; several, which blend; or an objective of one's own, images
            ``(B, 3, H, W)`` in [0, 1] -> losses ``(B,)``.
        style_scale: strength, in the unit of the guidance; None is the guidance's own. Per image if a sequence.
        style_loss, style_layers, style_layer_weights: see `StyleObjective`; None is the guidance's own.
        style_weights: shares of several styles. regions: a region of the picture for each. style_each: a picture each.
        guidance: a `Guidance`, or a name of `guidance.PRESETS`. window: other than its own.
        features: the feature network or its name; None is the profile's default.
        decoder: a tiny autoencoder (``AutoencoderTiny``) for the gradients; the final picture is the pipeline's.
        checkpointing: less memory for more time.
        measure: the trace holds the loss after each shift, too, for another pass of decoder and features.
        on_step: called with every `sampling.Step`, guided or not.

    Returns:
        a context manager that gives the trace: a dictionary for each guided step (see `sampling.Step`), with the
        ``method`` that was used, read from the device when it is asked for. Afterwards the pipeline is as it was.

    Raises:
        ValueError: a pipeline, scheduler, style or guidance that cannot be used, in one sentence, when it is called.
        RuntimeError: on exit, if the pipeline made no step: its scheduler was replaced inside.
    """
    if callable(style) and (unused := changed(locals(), OF_PAINTINGS)):
        raise ValueError(f"{', '.join(unused)} cannot be used with an objective of one's own, but with paintings")
    in_pixels = getattr(pipe, "vae", None) is None
    settings = rules.settings(guidance, in_pixels=in_pixels, style_scale=style_scale, window=window)
    network = _network(pipe)
    _check(pipe, network, settings)
    device = torch.device(getattr(pipe, "_execution_device", None) or pipe.device)
    if not callable(style):
        options = {"style_loss": style_loss or settings.style_loss, "layers": style_layers, "style_each": style_each}
        options |= {"layer_weights": style_layer_weights, "style_weights": style_weights, "longest": settings.size}
        style = _Style(features, device, style, regions, _usual_size(pipe, network), **options)
    session = _Session(pipe, network, settings, style, decoder, device, measure, on_step)
    watched = settings.is_on or on_step is not None
    return _context(session, checkpointing) if watched else contextlib.nullcontext([])


def changed(arguments: dict, names: Sequence[str]) -> list[str]:
    """Which of the named arguments of `guided` are given other values than its defaults."""
    defaults = guided.__kwdefaults__
    pairs = [(name, arguments.get(name, defaults[name]), defaults[name]) for name in names]
    return [name for name, value, default in pairs if type(value) is not type(default) or value != default]


def _check(pipe, network: nn.Module, settings: Guidance) -> None:
    """Raise a ValueError for a pipeline that cannot follow a guidance."""
    schedulers.check(pipe.scheduler)
    if settings.recurrence > 1 or settings.clipping != "scheduler":
        raise ValueError(
            "recurrence and clipping are of the library's own loop, `ex4lib.diffusion.sampling.sample`; a pipeline of "
            f"diffusers runs each step once and clips last, got {settings.recurrence} and {settings.clipping!r}"
        )
    if settings.method in THROUGH and _offloads_parts(network):
        raise ValueError(
            "the pipeline offloads parts of its network, through which gradients cannot be taken: use "
            "guidance=Guidance(method='clean') or enable_model_cpu_offload"
        )
    if settings.unit == "correction" and "UNet2DModel" in _classes(network):
        raise ValueError(NO_CORRECTION)
    check_scheduler(settings, pipe.scheduler, 1.0 if "eta" in inspect.signature(pipe.__call__).parameters else 0.0)


@contextlib.contextmanager
def _context(session: "_Session", checkpointing: bool) -> Iterator[Sequence[dict]]:
    pipe, network, scheduler = session.pipe, session.network, session.scheduler
    if getattr(scheduler.step, "session", None) is not None:
        raise ValueError("the pipeline's scheduler is already guided: leave the other `guided` first")
    original, replaced = scheduler.step, "step" in vars(scheduler)

    @functools.wraps(original)
    def step(model_output: Tensor, timestep, sample: Tensor, *rest, **options):
        return session.step(original, model_output, timestep, sample, *rest, **options)

    step.session = session
    with frozen(network, *session.spaced.modules, checkpointing=checkpointing), _recorded(network, session):
        scheduler.step = step
        try:
            yield session.trace
        finally:
            if replaced:
                scheduler.step = original
            else:
                del scheduler.step
            session.calls.clear()
    if not session.steps:
        raise RuntimeError(
            f"no step of the scheduler was seen inside `guided`: was {type(pipe).__name__}.scheduler replaced inside?"
        )
    if session.guidance.is_on and not session.trace:
        window = f"the window {session.guidance.window} of the full schedule"
        warnings.warn(f"no step was guided: {window} has none of the {session.steps} steps made", stacklevel=3)


#: Who records the calls of a network now; several threads may share its weights.
_RECORDING: dict[nn.Module, list["_Session"]] = {}
_LOCK = threading.Lock()


@contextlib.contextmanager
def _recorded(network: nn.Module, session: "_Session") -> Iterator[None]:
    """Calls of the network inside are recorded by the session.

    ``nn.Module.__call__`` hands over to ``_compiled_call_impl`` where it is set: outside of hooks, of the ``forward``
    that offloading replaces, and of what is compiled, so that none of them loses the record.
    """
    attributes = vars(network)  # `torch.compile` hands attributes that are set on to what it wraps
    with _LOCK:
        sessions = _RECORDING.setdefault(network, [])
        if any(other.thread == session.thread for other in sessions):
            raise ValueError("another pipeline with this network is guided in this thread: leave its `guided` first")
        sessions.append(session)
        if len(sessions) == 1:
            compiled = attributes.get("_compiled_call_impl")
            call = functools.partial(_call, network, compiled or network._call_impl, compiled)
            attributes["_compiled_call_impl"] = call
    try:
        yield
    finally:
        with _LOCK:
            sessions.remove(session)
            if not sessions:
                del _RECORDING[network]
                compiled = attributes.pop("_compiled_call_impl").args[2]
                if compiled is not None:
                    attributes["_compiled_call_impl"] = compiled


def _call(network: nn.Module, original: Callable, compiled: Callable | None, *args, **kwargs):
    sessions = _RECORDING.get(network, [])
    local = [session for session in sessions if session.thread == threading.get_ident()]
    session = (local or sessions)[0] if local or len(sessions) == 1 else None
    return original(*args, **kwargs) if session is None else session.call(original, args, kwargs)


class _Trace(Sequence):
    """Rows that are read from the device when somebody looks at them."""

    def __init__(self):
        self.rows: list[Callable[[], dict]] = []

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | slice):
        return [row() for row in self.rows[index]] if isinstance(index, slice) else self.rows[index]()

    def __repr__(self) -> str:
        return repr(list(self))


@dataclasses.dataclass(frozen=True)
class _Call:
    """A call of the network: its input and its output, with the graph between them."""

    leaf: Tensor
    output: Tensor


class _Session:
    """One `guided` context: records calls of the network, and guides where the scheduler steps."""

    def __init__(self, pipe, network, guidance, objective, decoder, device, measure, on_step):
        self.pipe, self.network, self.scheduler = pipe, network, pipe.scheduler
        self.guidance, self.objective, self.measure, self.on_step = guidance, objective, measure, on_step
        self.thread, self.steps, self.trace = threading.get_ident(), 0, _Trace()
        self.timesteps, self.levels, self.times = None, [], []  # of the pictures that are being drawn
        self.calls: list[_Call] = []
        self.ids, self.began = None, None  # of Flux's packed latents; the time of the first call for a step
        vae = getattr(pipe, "vae", None)
        if vae is None and decoder is not None:
            raise ValueError(f"decoder is for pipelines with latents, but {type(pipe).__name__} draws in pixels")
        self.spaced = Pixels() if vae is None else Latents(vae, decoder, device=device, unpack=self._unpacked)

    def call(self, original: Callable, args: tuple, kwargs: dict):
        """A call of the network, with a graph if the coming step will use it."""
        self.began = self.began or time.perf_counter()
        self.ids = kwargs.get("img_ids", self.ids)
        through = self.guidance.method in THROUGH
        name = next((name for name in ("sample", "hidden_states") if name in kwargs), None)
        if not self.steps and not self.calls:
            self._check_first(len(kwargs[name] if name else args[0]))
        if not (through or self.guidance.unit == "correction") or not self._comes(args, kwargs):
            return original(*args, **kwargs)
        with torch.inference_mode(False), torch.set_grad_enabled(through):
            args, kwargs = tree_map(_usable, (args, kwargs))
            leaf = (kwargs[name] if name else args[0]).detach().requires_grad_(through)
            args, kwargs = (args, kwargs | {name: leaf}) if name else ((leaf, *args[1:]), kwargs)
            output = original(*args, **kwargs)
        self.calls = [*self.calls[1 - MOST_CALLS :], _Call(leaf, output[0])]
        return tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, output)

    def _check_first(self, rows: int) -> None:
        """Refuse, before the network runs, what does not fit its first call: each sample once, or 2 or 3 times."""
        prompted = getattr(self.pipe, "do_classifier_free_guidance", None)
        if prompted is False and self.guidance.unit == "correction":
            raise ValueError(NO_CORRECTION)
        copies = (1, 2, 3) if prompted is None else (2, 3) if prompted else (1,)
        batches = [rows // count for count in copies if rows % count == 0] or [rows]
        styles = getattr(self.objective, "count", None)
        if styles is not None and styles not in batches:
            raise ValueError(f"there are {styles} styles, one for each picture, but {min(batches)} pictures")
        if len(self.guidance.scales) not in batches:
            check_count(self.guidance.scales, min(batches))

    def step(self, original: Callable, model_output: Tensor, timestep, sample: Tensor, *rest, **options):
        """``scheduler.step`` with the prediction shifted, if this step is guided."""
        self.began = self.began or time.perf_counter()
        calls, self.calls, began = self.calls, [], self.began
        index = schedulers.position(self.scheduler, timestep)
        level = self._level(index)
        strength = rules.strength_at(self.guidance, self.scheduler, level, index)
        row, clean, number = None, None, int(self.times[index])
        if strength:
            check_scheduler(self.guidance, self.scheduler, options.get("eta", 0.0))
            with torch.inference_mode(False), torch.no_grad():
                tensors = map(_usable, (model_output, sample))
                situation, misfit = self._situation(*tensors, number, level, calls, options)
                shifted = rules.guide(situation, self.guidance, strength)
                variance = model_output[:, sample.shape[1] :]  # learned, if there is one
                model_output = torch.cat([shifted.prediction.to(model_output.dtype), variance], 1)
                clean = shifted.clean
                values = shifted.measured(level, strength, self._loss if self.measure else None)
            values = {"index": index, "timestep": number, "method": self.guidance.method} | values
            values["seconds"] = time.perf_counter() - began
            row = functools.cache(functools.partial(self._row, values, misfit, TOLERANCE[model_output.dtype]))
            self.trace.rows.append(row)
        result = original(model_output, timestep, sample, *rest, **options)
        self.steps += 1
        moved, total = result[0], len(self.times)
        if is_due(moved.device, index, total) and not moved.isfinite().all():
            raise ValueError(f"the sample is not finite after step {index + 1} of {total} (timestep {number})")
        if self.on_step is not None:
            if clean is None:
                kind, prediction = schedulers.prediction_type(self.scheduler), model_output[:, : sample.shape[1]]
                clean = level.clean(at_least_float32(sample), at_least_float32(prediction), kind)
                clean = schedulers.clip(self.scheduler, clean)
            self.on_step(Step(index, total, number, level, moved, clean, row, self.spaced.render))
        self.began = None
        return result

    def _comes(self, args: tuple, kwargs: dict) -> bool:
        """Whether the coming step may be guided. Which it is, is not known at Flux's first: its network is given σ."""
        timestep = kwargs.get("timestep", args[1] if len(args) > 1 else None)
        if isinstance(timestep, Tensor) and timestep.ndim:
            timestep = timestep[0]
        index = schedulers.position(self.scheduler, timestep)
        return index is None or rules.strength_at(self.guidance, self.scheduler, self._level(index), index) > 0

    def _level(self, index: int) -> Level:
        """The noise level of a step; all are read when a pipeline has set its timesteps."""
        if self.timesteps is not self.scheduler.timesteps:
            self.timesteps = self.scheduler.timesteps
            self.levels, self.times = schedulers.levels(self.scheduler), self.timesteps.tolist()
        return self.levels[index]

    def _row(self, values: dict, misfit: Tensor | float, tolerance: float) -> dict:
        """A row of the trace; ``misfit`` is the relative error of the combination."""
        row, error = plain(values), float(misfit)
        if not error <= tolerance:
            cause = f"the prediction is no combination of the outputs, error {error:.2g}"
            cause = "no call was seen" if error == math.inf else cause
            unguided = self.guidance.unit == "correction"
            effect = "not guided" if unguided else "guided without the Jacobian of the network"
            row |= {"method": "clean", "note": f"{effect}: {cause}"}
        return row

    def _situation(
        self, output: Tensor, sample: Tensor, number: int, level: Level, calls: Sequence[_Call], options: dict
    ) -> tuple[Situation, Tensor | float]:
        """What `guide` needs to know, and the relative error of the combination, which stays on the device."""
        prediction, variance = split(output, sample.shape[1])
        whole, parts = at_least_float32(sample), _parts(calls, sample)
        prediction, pull, correction, misfit = at_least_float32(prediction), None, None, 0.0
        if self.guidance.method in THROUGH:
            pull, misfit = torch.zeros_like, math.inf  # as if the network did not depend on its sample
        if parts:
            weights, error = _fitted(prediction, [part.output for part in parts])
            misfit = torch.stack([error, *(part.error.double() for part in parts)]).max()
            fits = misfit <= TOLERANCE[output.dtype]
            pull = pull and functools.partial(_pulled, parts, weights, fits)
            # Read once: without a combination there is no correction, an error. Later steps are then not guided.
            if self.guidance.unit == "correction" and len(parts) > 1 and (self.trace or fits):
                outputs = torch.stack([part.output.detach() for part in parts], 1)
                unprompted = outputs[torch.arange(len(outputs), device=outputs.device), weights.argmin(1)]
                correction = torch.where(fits, prediction - unprompted.to(prediction), 0.0)
        optional = {"variance": variance, "correction": correction, "eta": options.get("eta", 0.0)}
        optional["palette"] = self._coloured if self.palette else None
        return Situation(self.scheduler, level, number, whole, prediction, self._loss, pull, **optional), misfit

    def _loss(self, clean: Tensor) -> Tensor:
        return self.objective(self.spaced.decode(clean))

    @functools.cached_property
    def palette(self) -> Palette | None:
        """Of the style, if the objective has one and the guidance asks for it."""
        wanted = self.guidance.palette and hasattr(self.objective, "palette")
        return self.objective.palette(self.spaced.encode) if wanted else None

    def _coloured(self, clean: Tensor) -> Tensor:
        moved = self.palette(self._unpacked(clean))
        return moved if clean.ndim == 4 else F.pixel_unshuffle(moved, 2).flatten(2).mT  # Flux's tokens again

    def _unpacked(self, sample: Tensor) -> Tensor:
        """Flux's tokens ``(B, h·w, 4·C)``, each of 2 x 2 latents, as latents ``(B, C, 2h, 2w)``."""
        if sample.ndim == 4:
            return sample
        height, width = _grid(self.ids, sample.shape[1])
        tokens = sample.view(len(sample), height, width, -1, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return tokens.reshape(len(sample), -1, 2 * height, 2 * width)


@dataclasses.dataclass(frozen=True)
class _Part:
    """The rows of a call that belong to one of the predictions that the pipeline combines.

    ``output`` is cropped to the shape of the sample: further channels (a learned variance) and tokens are left out.
    The input's first channels are ``scale · x``; ``error`` is the relative rms by which they are not.
    """

    call: _Call
    rows: slice
    output: Tensor
    scale: Tensor
    error: Tensor


def _parts(calls: Sequence[_Call], sample: Tensor) -> list[_Part]:
    parts, batch, whole = [], len(sample), at_least_float32(sample)
    crop = tuple(slice(side) for side in sample.shape[1:])
    for call in calls:
        if call.output.ndim != sample.ndim or len(call.output) % batch:
            return []
        for first in range(0, len(call.output), batch):
            rows = slice(first, first + batch)
            with torch.enable_grad():
                output = call.output[(rows, *crop)]
            network_input = at_least_float32(call.leaf.detach()[(rows, *crop)])
            if output.shape != sample.shape or network_input.shape != sample.shape:
                return []
            scale = _dot(network_input, whole) / _dot(whole, whole)
            residual = network_input - _along(scale, whole) * whole
            error = (_dot(residual) / _dot(network_input)).sqrt().max()
            parts.append(_Part(call, rows, output, _along(scale, whole), error))
    return parts


def _fitted(prediction: Tensor, outputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Weights ``(B, K)`` with ``prediction ≈ Σ_k w_k · output_k`` per image, by least squares, and the relative error.

    Conditional and unconditional outputs are nearly equal: the fit is in float64 and in their differences from the
    first. Equal ones share a weight, by a ridge; a pseudo-inverse would wait for the device.
    """
    first, *others = (output.detach().double().flatten(1) for output in outputs)
    basis = torch.stack([first, *(other - first for other in others)], 1)
    lengths = basis.norm(dim=2, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    basis, target = basis / lengths, prediction.double().flatten(1)[..., None]
    ridge = 1e-12 * torch.eye(len(outputs), dtype=target.dtype, device=target.device)
    solution, _ = torch.linalg.solve_ex(basis @ basis.mT + ridge, basis @ target)
    error = (target - basis.mT @ solution).norm(dim=1) / target.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
    weights = (solution / lengths)[..., 0]
    weights = torch.cat([weights[:, :1] - weights[:, 1:].sum(1, keepdim=True), weights[:, 1:]], 1)
    return weights, error.max()


def _pulled(parts: Sequence[_Part], weights: Tensor, fits: Tensor, cotangent: Tensor) -> Tensor:
    """``Σ_k w_k · J_kᵀ cotangent``, one backward pass for each call of the network; 0 where the weights do not fit."""
    total = torch.zeros_like(cotangent)
    crop = tuple(slice(side) for side in cotangent.shape[1:])
    for call in {id(part.call): part.call for part in parts}.values():
        pairs = [(part, weight) for part, weight in zip(parts, weights.T, strict=True) if part.call is call]
        cotangents = [(_along(weight, cotangent) * cotangent).to(part.output) for part, weight in pairs]
        (gradient,) = torch.autograd.grad([part.output for part, _ in pairs], call.leaf, cotangents)
        for part, _ in pairs:
            total += part.scale * gradient[(part.rows, *crop)].to(total)
    return torch.where(fits, total, 0.0)


@functools.lru_cache(maxsize=1)
def _grid(ids: Tensor, tokens: int) -> tuple[int, int]:
    """Height and width of Flux's tokens, read once: its pipeline hands the same ids to every call."""
    _, rows, columns = ids[:tokens].amax(0).tolist()
    return int(rows) + 1, int(columns) + 1


def _dot(a: Tensor, b: Tensor | None = None) -> Tensor:
    return (a * (a if b is None else b)).flatten(1).sum(1)


def _along(per_image: Tensor, like: Tensor) -> Tensor:
    return per_image.view(-1, *[1] * (like.ndim - 1))


def _usable(x):
    """A tensor made in inference mode is copied, so that autograd may keep it."""
    return x.clone() if isinstance(x, Tensor) and x.is_inference() else x


def _network(pipe) -> nn.Module:
    for name in ("transformer", "unet"):
        network = getattr(pipe, name, None)
        if _classes(network) & set(NETWORKS) and not {"movq", "vqvae"} & set(pipe.components):
            return network
    families = ", ".join(NETWORKS.values())
    raise ValueError(f"style guidance supports the pipelines of {families}, got {type(pipe).__name__}")


def _classes(network: nn.Module | None) -> set[str]:
    return {cls.__name__ for cls in type(getattr(network, "_orig_mod", network)).__mro__}


def _usual_size(pipe, network: nn.Module) -> tuple[int, int]:
    """Of the pictures that the pipeline draws if it is not told otherwise."""
    side = network.config.get("sample_size") or getattr(pipe, "default_sample_size", LEAST_SIZE)
    sides = (side, side) if isinstance(side, int) else tuple(side)
    factor = pipe.vae_scale_factor if getattr(pipe, "vae", None) is not None else 1
    return tuple(factor * side for side in sides)


def _offloads_parts(network: nn.Module) -> bool:
    """Whether layers are moved to and from the device one by one (sequential or group offloading)."""
    parts = list(network.modules())
    hooks = filter(None, (getattr(part, "_diffusers_hook", None) for part in parts))
    grouped = any(hook.get_hook("group_offloading") for hook in hooks)
    return grouped or any(getattr(getattr(part, "_hf_hook", None), "offload", False) for part in parts)


class _Style:
    """A `StyleObjective` for whatever size the pictures have; ``count`` styles if there is one for each."""

    def __init__(
        self, network: VGG | str | None, device: torch.device, style, regions, usual: tuple[int, int], **options
    ):
        network = network if isinstance(network, VGG) else _features(network, str(device))
        styles = [picture for batch in images.pictures(style, "style") for picture in batch.split(1)]
        options["regions"] = None if regions is None else [images.mask(region, "regions") for region in regions]
        self.count = len(styles) if options["style_each"] else None
        self.at = functools.lru_cache(lambda size: StyleObjective(network, styles, size, **options))
        self.palette = self.at(usual).palette

    def __call__(self, image: Tensor) -> Tensor:
        return self.at(tuple(image.shape[-2:]))(image)


@functools.lru_cache(maxsize=2)
def _features(name: str | None, device: str) -> VGG:
    return models.features(name, device=device)
