"""Cost of guidance and style transfer on a GPU: ``python benchmarks/gpu.py``, under eight minutes.

(a) The tests of devices with ``--device cuda``.
(b) One guided step of Stable Diffusion 1.5 and XL in their real shapes, in the stock pipelines of diffusers: seconds
    and peak memory beside the bare passes that it needs (both branches of the U-Net, decoder, feature network, and
    their backward passes, written out without this library's loop). All modes of a model take turns; medians.
(c) Style transfer: one evaluation against the bare forward and backward pass of the same network in both layouts of
    memory, and time to the value that the PyTorch tutorial's procedure reaches (as in ``benchmarks/nst.py``).
(d) Pictures per second of the embedded model's shapes, by batch.

All weights are random (seeded), so that nothing is downloaded: times and memory do not depend on them. The text
encoders are stood for by as much memory. Results are written to ``gpu.json`` after every row, and those of (b) after
every mode, so that an interrupted run keeps them; a row that fails prints one sentence.
``--tiny`` runs everything on the CPU with small shapes, to see that the script works.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

STARTED = time.perf_counter()  # before the imports, which count
sys.path.insert(0, str(Path(__file__).parents[1]))

import diffusers  # noqa: E402
import nst  # noqa: E402
import torch  # noqa: E402
from common import machine, table  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from ex4lib import images, models  # noqa: E402
from ex4lib.diffusion import denoisers  # noqa: E402
from ex4lib.diffusion.denoisers import Latents, frozen  # noqa: E402
from ex4lib.diffusion.guidance import CHEAP, FULL  # noqa: E402
from ex4lib.diffusion.steering import StyleObjective, guided  # noqa: E402
from ex4lib.features import BLOCKS, VGG  # noqa: E402
from ex4lib.statistics import Gram  # noqa: E402
from ex4lib.transfer import DEFAULT  # noqa: E402

ROOT = Path(__file__).parents[1]
STYLE = "van-gogh-village-street-in-auvers"
GIB = 2**30
#: Seconds that each section may take; a section that ends early leaves its time to the next.
BUDGETS = {"tests": 70.0, "guidance": 250.0, "transfer": 80.0, "batches": 50.0}

NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
#: The published configurations, with the parameters of their text encoders.
UNETS = {
    "SD 1.5": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "SD XL": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
TEXT_PARAMETERS = {"SD 1.5": 123_060_480, "SD XL": 123_060_480 + 694_659_840}
#: Name, guidance, checkpointing, tiny autoencoder. The first three share nothing that the last four need.
MODES = (
    ("unguided", None, False, False),
    ("full", FULL, False, False),
    ("full, checkpointing", FULL, True, False),
    ("full, tiny autoencoder", FULL, False, True),
    ("full, tiny, checkpointing", FULL, True, True),
    ("clean", CHEAP, False, False),
    ("clean, tiny autoencoder", CHEAP, False, True),
)
#: The most important first: what is late is left out.
CONFIGURATIONS = (
    ("SD 1.5", 512, torch.float16),
    ("SD XL", 1024, torch.float16),
    ("SD 1.5", 512, torch.bfloat16),
    ("SD 1.5", 1024, torch.float16),
    ("SD XL", 512, torch.float16),
    ("SD XL", 1024, torch.bfloat16),
    ("SD 1.5", 1024, torch.bfloat16),
    ("SD XL", 512, torch.bfloat16),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="file that every number is written to")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try the script on a CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, help="for each section, in place of its own budget")
    parser.add_argument("--only", choices=BUDGETS, nargs="+", default=list(BUDGETS), help="sections to run")
    arguments = parser.parse_args()
    diffusers.utils.logging.set_verbosity_error()  # it warns of `to` on half precisions
    run = Run(torch.device(arguments.device), arguments.tiny, arguments.json)
    sections = {"tests": tests, "guidance": guidance, "transfer": transfer, "batches": batches}
    run.end = STARTED
    for name in arguments.only:
        run.end += arguments.seconds or BUDGETS[name]
        if name == arguments.only[0]:
            run.end = max(run.end, time.perf_counter() + (arguments.seconds or BUDGETS[name]) / 2)
        run.attempt(name, sections[name], run)
    print(f"\n{time.perf_counter() - STARTED:.0f} s in all")


class Run:
    """Where and how long the benchmark runs, and what it has measured so far."""

    def __init__(self, device: torch.device, tiny: bool, path: Path | None):
        self.device, self.tiny, self.path, self.end = device, tiny, path, float("inf")
        self.results: dict = {"machine": machine() | {"tiny": tiny} | _accelerator(device)}
        print(json.dumps(self.results["machine"], indent=2), flush=True)

    @property
    def left(self) -> float:
        """Seconds left to this section."""
        return self.end - time.perf_counter()

    def add(self, section: str, rows: list[dict]) -> None:
        """Keep rows, print them and write the file."""
        known = self.results.setdefault(section, [])
        known += rows
        table(f"{section}, {time.perf_counter() - STARTED:.0f} s after the start", rows)
        self.write()

    def write(self) -> None:
        if self.path is not None:
            images.write_bytes(self.path, json.dumps(self.results, indent=2).encode())

    def attempt(self, what: str, function: Callable, *arguments):
        """The function's result; an error is one sentence, and None."""
        try:
            return function(*arguments)
        except Exception as error:
            sentence = f"{what} failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            print(sentence[:400], flush=True)
            self.results.setdefault("failures", []).append(sentence[:2000])
            self.write()
            return None
        finally:
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def clock(self) -> float:
        """The time when everything that was asked for is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def fresh_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> float | None:
        """The most memory that tensors held since `fresh_peak`, weights included, in GiB."""
        return torch.cuda.max_memory_allocated(self.device) / GIB if self.device.type == "cuda" else None


def _accelerator(device: torch.device) -> dict:
    if device.type != "cuda":
        return {"device": str(device)}
    found = torch.cuda.get_device_properties(device)
    return {"device": found.name, "memory_gib": round(found.total_memory / GIB, 1), "cuda": torch.version.cuda}


# (a)


def tests(run: Run) -> None:
    """The tests of devices in a process of their own; what they print survives the end of their time."""
    command = [sys.executable, "-m", "pytest", "-q", "tests/test_devices.py", "--device", run.device.type]
    command += ["-p", "no:cacheprovider", "--tb=short", "--durations=3"]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        try:
            code = process.wait(max(run.left, 5))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = "out of time"
        output.seek(0)
        text = output.read()
    print(text[-6000:], flush=True)
    run.results["tests_output"] = text[-20000:]
    summary = [line for line in text.splitlines() if " passed" in line or " failed" in line or " error" in line]
    run.add("tests", [{"command": " ".join(command[1:6]), "exit": code, "summary": (summary or ["none"])[-1]}])


# (b)


@torch.no_grad()
def filled(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A module that was made on the meta device, with random weights made where they are used."""
    module = module.to(dtype).to_empty(device=device).eval()
    draw = torch.Generator(device).manual_seed(0)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, parameter[0].numel() ** -0.5, generator=draw)
        else:
            parameter.zero_()
    for norm in module.modules():
        if isinstance(norm, (nn.GroupNorm, nn.LayerNorm)) and norm.weight is not None:
            norm.weight.fill_(1.0)
    return module


def network(device: torch.device, precision: str = "float32", tiny: bool = False) -> VGG:
    """A VGG-19 with random weights, normal with variance 2 / (9 · C_in)."""
    draw, convolutions, before = torch.Generator().manual_seed(0), [], 3
    for depth, width in zip(BLOCKS["vgg19"], (4, 5, 6, 6, 6) if tiny else (64, 128, 256, 512, 512), strict=True):
        for _ in range(depth):
            weight = torch.randn(width, before, 3, 3, generator=draw) * (2 / (9 * before)) ** 0.5
            convolutions.append((weight, torch.zeros(width)))
            before = width
    vgg = VGG("vgg19", convolutions, mean=models.IMAGENET_MEAN, std=models.IMAGENET_STD, name="vgg19-random")
    if precision == "bfloat16":
        vgg.convolutions.to(torch.bfloat16)
    return vgg.to(device)


class Model:
    """A stock pipeline in the shapes of a published one, with embedded prompts."""

    def __init__(self, name: str, device: torch.device, dtype: torch.dtype, tiny: bool):
        self.name, self.device, self.is_xl = name, device, name == "SD XL"
        options, widths = UNETS[name], (128, 256, 512, 512)
        if tiny:
            small = {"block_out_channels": (32, 64, 64), "layers_per_block": 1, "cross_attention_dim": 32}
            options, widths = options | small | {"attention_head_dim": 4, "norm_num_groups": 8}, (16, 16, 16, 16)
            if self.is_xl:
                options |= {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 80}
                options["transformer_layers_per_block"] = 1
            else:
                kinds = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
                options["down_block_types"] = kinds
                options["up_block_types"] = ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")
        with torch.device("meta"):
            unet = diffusers.UNet2DConditionModel(**options)
            vae = diffusers.AutoencoderKL(
                block_out_channels=widths, down_block_types=("DownEncoderBlock2D",) * 4, latent_channels=4,
                up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, sample_size=options["sample_size"] * 8,
                scaling_factor=0.13025 if self.is_xl else 0.18215, norm_num_groups=8 if tiny else 32,
            )  # fmt: skip
            small_vae = diffusers.AutoencoderTiny()
        unet, vae, self.tiny_vae = (filled(part, device, dtype) for part in (unet, vae, small_vae))
        self.pipe = self._pipeline(unet, vae)
        self.pipe.set_progress_bar_config(disable=True)
        count = 1000 if tiny else TEXT_PARAMETERS[name]
        self.text_encoders = torch.empty(count, dtype=dtype, device=device)
        self.prompt = self._prompt(dtype, options, tiny)

    def _pipeline(self, unet: nn.Module, vae: nn.Module):
        if self.is_xl:
            text = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
            scheduler = diffusers.EulerDiscreteScheduler(**NOISE, timestep_spacing="leading")
            return diffusers.StableDiffusionXLPipeline(vae=vae, unet=unet, scheduler=scheduler, **text)
        parts = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
        scheduler = diffusers.DDIMScheduler(**NOISE, clip_sample=False)
        options = {"requires_safety_checker": False}
        return diffusers.StableDiffusionPipeline(vae=vae, unet=unet, scheduler=scheduler, **parts, **options)

    def _prompt(self, dtype: torch.dtype, options: dict, tiny: bool) -> dict[str, Tensor]:
        draw = torch.Generator(self.device).manual_seed(1)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(1, *shape, generator=draw, device=self.device, dtype=torch.float32).to(dtype)

        width = options["cross_attention_dim"]
        found = {"prompt_embeds": drawn(77, width), "negative_prompt_embeds": drawn(77, width)}
        if self.is_xl:
            pooled = 32 if tiny else 1280
            found |= {"pooled_prompt_embeds": drawn(pooled), "negative_pooled_prompt_embeds": drawn(pooled)}
        return found

    def draw(self, size: int, steps: int, on_end: Callable[[], None]) -> None:
        """Latents of one picture; ``on_end`` is called after every step."""

        def told(pipe, index, timestep, tensors):
            on_end()
            return tensors

        draws = torch.Generator(self.device).manual_seed(0)
        options = {"height": size, "width": size, "num_inference_steps": steps, "guidance_scale": 7.5}
        self.pipe(**self.prompt, **options, generator=draws, output_type="latent", callback_on_step_end=told)

    def bare_passes(self, space: Latents, objective: StyleObjective | None, size: int, through: bool) -> None:
        """The passes of one step and nothing else; without an objective the U-Net's forward pass only."""
        names = ("negative_prompt_embeds", "prompt_embeds")
        dtype, unet, options = self.pipe.unet.dtype, self.pipe.unet, {}
        if self.is_xl:
            pooled = torch.cat([self.prompt[name.replace("prompt", "pooled_prompt")] for name in names])
            times = torch.tensor([[size, size, 0, 0, size, size]] * 2, device=self.device, dtype=dtype)
            options["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": times}
        text = torch.cat([self.prompt[name] for name in names])
        shape, t = (1, 4, size // 8, size // 8), torch.tensor(500, device=self.device)
        leaf = torch.randn(shape, device=self.device).to(dtype).requires_grad_(through)
        with torch.set_grad_enabled(through):
            both = unet(torch.cat([leaf] * 2), t, encoder_hidden_states=text, **options, return_dict=False)[0]
            free, wanted = both.chunk(2)
            clean = (leaf.float() - 0.7 * (free + 7.5 * (wanted - free)).float()) / 0.7
        if objective is None:
            return
        with torch.enable_grad():
            top = clean.detach().requires_grad_()
            parts, statistic = objective.objective.parts, Gram()
            features = objective.objective.network(space.decode(top), [part.layer for part in parts])
            loss = sum((statistic(features[p.layer]) - p.target).square().mean() for p in parts)
            (gradient,) = torch.autograd.grad(loss, top)
            if through:
                torch.autograd.grad(clean, leaf, gradient)


def guidance(run: Run) -> None:
    """Rows of (b)."""
    configurations = CONFIGURATIONS
    if run.tiny:
        kinds = [torch.float32] if run.device.type == "cpu" else [torch.float16, torch.bfloat16]
        configurations = [(name, 64, kind) for name in UNETS for kind in kinds]
    slowest = 0.0
    for name, size, dtype in configurations:
        if run.left < max(4.0, slowest):
            print(f"no time left for {name} at {size} px in {dtype}", flush=True)
            continue
        began = time.perf_counter()
        run.attempt(f"{name} at {size} px in {dtype}", _configuration, run, name, size, dtype)
        slowest = max(slowest, 0.7 * (time.perf_counter() - began))


def _configuration(run: Run, name: str, size: int, dtype: torch.dtype) -> None:
    """All modes of one model, size and precision, in turns."""
    model, vgg = Model(name, run.device, dtype, run.tiny), network(run.device, tiny=run.tiny)
    painting = images.load(STYLE)
    objective = StyleObjective(vgg, [painting], (size, size))
    seconds: dict[str, dict[str, list[float]]] = {mode[0]: {"bare": [], "step": []} for mode in MODES}
    rows: dict[str, dict] = {}
    broken: set[str] = set()
    for turn in range(2):  # the first step of every call, and the first bare pass, warm up
        for mode in MODES:
            if mode[0] in broken or (turn and run.left < 0):
                continue
            found = run.attempt(
                f"{name}, {size} px, {mode[0]}", _mode, run, model, vgg, painting, objective, size, mode
            )
            if found is None:
                broken.add(mode[0])
                continue
            times, row = found
            rows[mode[0]] = row
            for side, values in times.items():
                seconds[mode[0]][side] += values
            run.results["unfinished"] = {"model": name, "px": size, "seconds": seconds, "rows": rows}
            run.write()
    kind = str(dtype).removeprefix("torch.")
    rows = {
        mode: {"model": name, "px": size, "precision": kind, "mode": mode}
        | {f"{side}_s": statistics.median(values) for side, values in seconds[mode].items()}
        | {"ratio": statistics.median(seconds[mode]["step"]) / statistics.median(seconds[mode]["bare"])}
        | {"step_n": len(seconds[mode]["step"])}
        | row
        for mode, row in rows.items()
    }
    run.results.pop("unfinished", None)
    if rows:
        run.add("guidance", list(rows.values()))


def _mode(run: Run, model: Model, vgg: VGG, painting: Tensor, objective, size: int, mode: tuple) -> tuple[dict, dict]:
    """Seconds of bare passes and of steps, and what the steps did."""
    _, chosen, checkpointing, tiny = mode
    denoisers._COPIES.clear()  # the float32 decoder of another mode does not belong to this one's memory
    decoder = model.tiny_vae if tiny else None
    space, times = Latents(model.pipe.vae, decoder, device=run.device), {"bare": [], "step": []}
    through = chosen is FULL
    run.fresh_peak()
    with frozen(model.pipe.unet, *space.modules, checkpointing=checkpointing):
        for _ in range(3):
            began = run.clock()
            model.bare_passes(space, objective if chosen else None, size, through)
            times["bare"].append(run.clock() - began)
    bare_peak = run.peak()
    run.fresh_peak()
    ends, trace = [], []
    if chosen is None:
        model.draw(size, 3, lambda: ends.append(run.clock()))
    else:
        options = {"guidance": chosen, "checkpointing": checkpointing, "decoder": decoder, "features": vgg}
        with guided(model.pipe, painting, **options) as trace:
            model.draw(size, 3, lambda: ends.append(run.clock()))
    times["step"] = [after - before for before, after in itertools.pairwise(ends)]
    times["bare"] = times["bare"][1:]
    row = {"bare_peak_gib": bare_peak, "peak_gib": run.peak()}
    row["method"] = "/".join(sorted({entry["method"] for entry in trace})) or "-"
    row["skipped"] = sum(entry["skipped"] for entry in trace)
    row["note"] = next((entry["note"] for entry in trace if "note" in entry), "")
    return times, row


# (c)


def transfer(run: Run) -> None:
    """Rows of (c)."""
    for size in (64,) if run.tiny else (512, 1024):
        for precision in ("float32", "bfloat16"):
            if run.left > 1:
                run.attempt(f"one evaluation, {size} px, {precision}", _evaluation, run, size, precision)
    if run.left > 2:
        run.attempt("time to the tutorial's value", _time_to_value, run)


def _pictures(run: Run, size: int, pair: tuple[str, str] = nst.PAIRS[0]) -> tuple[Tensor, Tensor]:
    content, style = (images.resize(images.crop_square(images.load(name)), size) for name in pair)
    return content.to(run.device), style.to(run.device)


def _evaluation(run: Run, size: int, precision: str) -> None:
    """The objective and its gradient beside the bare passes, in turns."""
    content, style = _pictures(run, size)
    objective = DEFAULT.objective(network(run.device, precision, run.tiny), content, [style])
    vgg = objective.network
    deepest = max(objective.layers, key=vgg.layers.index)
    plain = _plain(vgg, deepest)
    sides = {
        "bare": lambda image: vgg(image, [deepest])[deepest],
        "bare_contiguous": lambda image: plain(((image - vgg.mean) / vgg.std).to(next(plain.parameters()).dtype)),
        "objective": objective,
    }
    times: dict[str, list[float]] = {side: [] for side in sides}
    peaks = {}
    for _ in range(3 if run.tiny else 12):  # the first two warm up
        for side, function in sides.items():
            run.fresh_peak()
            image = content.detach().requires_grad_()
            began = run.clock()
            torch.autograd.grad(function(image).sum(), image)
            times[side].append(run.clock() - began)
            peaks[side] = run.peak()
    row = {"precision": precision, "px": size, "until": deepest}
    row |= {f"{side}_s": statistics.median(values[2:]) for side, values in times.items()}
    row["ratio"] = statistics.median(o / b for o, b in zip(times["objective"][2:], times["bare"][2:], strict=True))
    row |= {"bare_peak_gib": peaks["bare"], "peak_gib": peaks["objective"], "n": len(times["bare"]) - 2}
    run.add("transfer", [row])


def _plain(vgg: VGG, deepest: str) -> nn.Sequential:
    """The same layers as modules in a row, in the default layout of memory."""
    modules = []
    for layer in vgg.layers[: vgg.layers.index(deepest) + 1]:
        if layer.startswith("conv"):
            one = vgg.convolutions[layer]
            copied = nn.Conv2d(one.in_channels, one.out_channels, 3, padding=1).to(one.weight)
            copied.load_state_dict(one.state_dict())
            modules.append(copied.to(memory_format=torch.contiguous_format))
        else:
            modules.append(nn.ReLU(inplace=True) if layer.startswith("relu") else nn.AvgPool2d(2))
    return nn.Sequential(*modules).requires_grad_(False)


def _time_to_value(run: Run) -> None:
    """`nst.time_to_value` with random networks and pictures on the device."""
    nst.network = lambda precision="float32": network(run.device, precision, run.tiny)
    nst.pictures = lambda size, pair=nst.PAIRS[0]: _pictures(run, size, pair)
    nst.CLOCK = run.clock
    size, evaluations = (32, 3) if run.tiny else (512, 300)
    if not run.tiny:  # a look at the speed: a slow machine makes fewer evaluations
        began = run.clock()
        next(nst.clamped_lbfgs(nst.Tutorial(nst.network(), *nst.pictures(size)), nst.pictures(size)[0], 20))
        each = (run.clock() - began) / 20
        evaluations = max(40, min(300, int(run.left / (12 * each)) // 20 * 20))
    rows = nst.time_to_value(nst.PAIRS[0], size, evaluations)
    run.add("time to the tutorial's value", [{"px": size, "tutorial_evaluations": evaluations} | row for row in rows])


# (d)


def batches(run: Run) -> None:
    """Rows of (d)."""
    pipe, width = _small_pipeline(run)
    vgg, painting, steps = network(run.device, tiny=run.tiny), images.load(STYLE), 2 if run.tiny else 30
    for mode, chosen in (("unguided", None), ("clean", CHEAP), ("full", FULL)):  # warms up
        run.attempt(f"batch of 1, {mode}", _batch_seconds, run, pipe, width, vgg, painting, 1, 2, chosen)
    for batch in (1, 2) if run.tiny else (1, 2, 4, 8, 16):
        for mode, chosen in (("unguided", None), ("clean", CHEAP), ("full", FULL)):
            if run.left < 1:
                continue
            run.fresh_peak()
            options = (run, pipe, width, vgg, painting, batch, steps, chosen)
            seconds = run.attempt(f"batch of {batch}, {mode}", _batch_seconds, *options)
            if seconds is not None:
                row = {"batch": batch, "mode": mode, "steps": steps, "seconds": seconds}
                run.add("batches", [row | {"pictures_per_second": batch / seconds, "peak_gib": run.peak()}])


def _small_pipeline(run: Run) -> tuple:
    """The embedded model's shapes with random weights, and the width of its prompts."""
    folder, dtype = models.EMBEDDED / "mini-sd", torch.float32
    if run.device.type == "cuda" and models.native_bfloat16(run.device):
        dtype = torch.bfloat16

    def made(kind: type, part: str) -> nn.Module:
        with torch.device("meta"):
            module = kind.from_config(kind.load_config(folder / part))
        return filled(module, run.device, dtype)

    unet, vae = made(diffusers.UNet2DConditionModel, "unet"), made(diffusers.AutoencoderKL, "vae")
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae, unet=unet, text_encoder=None, tokenizer=None, safety_checker=None, feature_extractor=None,
        scheduler=diffusers.DDIMScheduler(**NOISE, clip_sample=False), requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe, unet.config.cross_attention_dim


def _batch_seconds(run: Run, pipe, width: int, vgg: VGG, painting: Tensor, batch: int, steps: int, chosen) -> float:
    draw = torch.Generator(run.device).manual_seed(0)
    prompts = torch.randn(2, batch, 16, width, generator=draw, device=run.device).to(pipe.unet.dtype)
    options = {"prompt_embeds": prompts[0], "negative_prompt_embeds": prompts[1], "guidance_scale": 4.0}
    options |= {"num_inference_steps": steps, "generator": draw, "output_type": "pt"}
    began = run.clock()
    if chosen is None:
        pipe(**options)
    else:
        with guided(pipe, painting, guidance=chosen, features=vgg):
            pipe(**options)
    return run.clock() - began


if __name__ == "__main__":
    main()
