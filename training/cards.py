"""Model cards and attribution: the prose is here, every number is read from `evaluation.json`."""

import json
from collections.abc import Iterable
from pathlib import Path

from . import networks
from .artwork import FAMILIES
from .pictures import write_atomically
from .recipe import MODELS
from .things import THINGS
from .words import PAINTED_LOOKS

#: Artwork of the world before, which mini-pixel and mini-ddpm still know.
EARLIER_FAMILIES = {
    "fluent-emoji-high-contrast": (
        "Fluent Emoji High Contrast",
        "Microsoft",
        "MIT",
        "https://github.com/microsoft/fluentui-emoji",
    ),
}
BARS = {
    "mini-judge": [
        ("recall_at_1_among_256_plain", 0.85, "plain held-out scenes whose caption is found among 256"),
        ("recall_at_1_among_256_heavily_painted", 0.70, "the same, heavily painted"),
    ],
    "mini-sd": [
        ("autoencoder.psnr_plain", 31.0, "autoencoder on plain scenes, dB PSNR at 128 px"),
        ("autoencoder.psnr_paintings", 25.0, "autoencoder on eight paintings it never saw, dB PSNR"),
        ("autoencoder.paintings_nearest_to_themselves", 8, "of them nearest to themselves after the round trip"),
        ("samples.caption_found_among_64", 0.90, "samples whose caption the judge finds among 64"),
        ("samples.thing_alone_found_among_all", 0.75, "samples of a thing alone found among all things"),
        ("samples.look_found", 0.80, "samples whose painted look the judge finds"),
        ("speed.picture_seconds", -3.0, "seconds a picture (30 steps, guidance, float32 CPU)"),
        ("speed.load_seconds", -3.0, "seconds to load"),
    ],
    "mini-pixel": [
        ("caption_found_among_64", 0.50, "samples whose caption the judge finds among 64"),
        ("look_found", 0.80, "samples whose painted look the judge finds"),
    ],
    "mini-ddpm": [("called_a_face_by_the_judge", 0.80, "samples the judge calls a face")],
}
ABOUT = {
    "mini-sd": (
        "A small Stable Diffusion: a `StableDiffusionPipeline` of a CLIP text tower, a U-Net on\n"
        "32 x 32 x 4 latents (epsilon-prediction, a tenth of the captions dropped) and an autoencoder\n"
        "of its own, 128 px.",
        """from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained("ex4lib/assets/models/mini-sd")
pipe("a castle next to a river", num_inference_steps=30, guidance_scale=4).images[0]""",
        """![samples](samples.jpg)

Samples of one seed, not chosen, for the prompts of `training.sampling.GRID`.

![reconstructions](reconstructions.jpg)

Held-out scenes above their reconstructions.""",
    ),
    "mini-pixel": (
        "A `UNet2DConditionModel` in pixels on the text tower of `../mini-sd`: the stand-in for\n"
        "DeepFloyd IF where views of a picture must be views of what the model denoises.",
        """from diffusers import DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

root = "ex4lib/assets/models"
unet = UNet2DConditionModel.from_pretrained(f"{root}/mini-pixel/unet")
scheduler = DDPMScheduler.from_pretrained(f"{root}/mini-pixel/scheduler")
text_encoder = CLIPTextModel.from_pretrained(f"{root}/mini-sd/text_encoder")
tokenizer = CLIPTokenizer.from_pretrained(f"{root}/mini-sd/tokenizer")""",
        "![samples](samples.jpg)\n\nSamples of one seed, not chosen.",
    ),
    "mini-ddpm": (
        "An unconditional `DDPMPipeline` in pixels on faces only (smileys, people, animals): its world is\n"
        "narrow on purpose.",
        """from diffusers import DDPMPipeline

DDPMPipeline.from_pretrained("ex4lib/assets/models/mini-ddpm")(num_inference_steps=100).images[0]""",
        "![samples](samples.jpg)\n\nSamples, not chosen; under each row the nearest training pictures.",
    ),
    "mini-judge": (
        "A `CLIPModel` for scoring only, trained apart: other seed, other architecture, other scenes than\n"
        "anything it judges.",
        """from transformers import CLIPModel, CLIPProcessor

judge = CLIPModel.from_pretrained("ex4lib/assets/models/mini-judge")""",
        "",
    ),
}


def _look_up(found: dict, path: str):
    for key in path.split("."):
        found = found.get(key, {}) if isinstance(found, dict) else {}
    return found if isinstance(found, (int, float)) else None


def _row(found: dict, path: str, bar: float, what: str) -> str:
    value = _look_up(found, path)
    if value is None:
        return f"| {what} | {abs(bar):g} | not measured | |"
    reached = value >= bar if bar > 0 else value <= -bar
    sign, verdict = "≥" if bar > 0 else "≤", "reached" if reached else "missed"
    return f"| {what} | {sign} {abs(bar):g} | {value:g} | {verdict} |"


def _parameters(folder: Path) -> float:
    from safetensors import safe_open

    total = 0
    for file in folder.rglob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            for key in weights.keys():  # noqa: SIM118 (safe_open is no dict)
                size = 1
                for side in weights.get_slice(key).get_shape():
                    size *= side
                total += size
    return total / 1e6


def card(name: str) -> str:
    """The model card of `name`, from its `evaluation.json`."""
    about, usage, pictures = ABOUT[name]
    path = MODELS / name / "evaluation.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    rows = "\n".join(_row(found, *bar) for bar in BARS[name])
    looks = ", ".join(PAINTED_LOOKS)
    world = (
        "faces of open emoji artwork on plain grounds (see `../ATTRIBUTION.md`)."
        if name == "mini-ddpm"
        else f"""scenes composed of open emoji artwork (see `../ATTRIBUTION.md`): {len(THINGS)} things on drawn
grounds, in colours, with the looks
{looks}. Captions are plain English of at most {networks.TOKENS} tokens; words from outside
that world mean little or nothing to it."""
    )
    measured = "measured" if name == "mini-ddpm" else "measured on held-out scenes"
    return (
        f"""# {name}

{about}

```python
{usage}
```

{_parameters(MODELS / name):.1f} million parameters, fp16 on disk. Trained by `python -m training.mini`
on {world}

| {measured} | bar | reached | |
|---|---|---|---|
{rows}

All numbers: `evaluation.json`, written by `python -m training.mini evaluate`. A bar that is missed
needs more training: `python -m training.mini MODEL --minutes N --resume` goes on from these weights.

{pictures}

Made for teaching and for tests without a GPU; it knows emoji artwork and nothing else. Licence: MIT for
weights and code; the artwork behind them as in `../ATTRIBUTION.md`.
""".rstrip()
        + "\n"
    )


def attribution() -> str:
    """Every family of artwork, with its author and licence."""
    rows = "\n".join(
        f"| {title} (`@iconify-json/{family}`) | {author} | {licence} | {source} |"
        for family, (title, author, licence, source) in (FAMILIES | EARLIER_FAMILIES).items()
    )
    return f"""# Artwork behind the embedded models

The models in this folder were trained on scenes composed of the drawings below. The drawings were rendered,
scaled, mirrored, recoloured, placed on drawn grounds and passed through painterly filters. The drawings are
not shipped as such; the sample grids show what the models make of them, `reconstructions.jpg` shows scenes
made from the drawings themselves, and the lower rows of mini-ddpm's grid show training pictures.

| artwork | author | licence | source |
|---|---|---|---|
{rows}

Apache-2.0: <https://www.apache.org/licenses/LICENSE-2.0>, MIT: <https://opensource.org/license/mit>,
CC BY 4.0: <https://creativecommons.org/licenses/by/4.0/>.
"""


def write_cards(names: Iterable[str] = tuple(ABOUT)) -> None:
    """Write the README.md of those models that are there, and ATTRIBUTION.md."""
    for name in names:
        if (MODELS / name).exists():
            write_atomically(MODELS / name / "README.md", lambda file, n=name: file.write(card(n).encode()))
    write_atomically(MODELS / "ATTRIBUTION.md", lambda file: file.write(attribution().encode()))
