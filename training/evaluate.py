"""What the embedded models reach on scenes they were never trained on: numbers to JSON, pictures to grids.

Every number of the model cards comes from here. The judge scores; its own accuracy on real scenes is the
ceiling.
"""

import json
import textwrap
import time
from datetime import date

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMPipeline, StableDiffusionPipeline, UNet2DConditionModel
from matplotlib.figure import Figure

from ex4lib import figures, images, models
from ex4lib.cli.options import check_output
from experiments import measures, metrics
from experiments.judge import Judge

from . import looks, networks
from .faces import face_pictures
from .painter import paint
from .pictures import Pictures
from .recipe import MODELS, to_tensor
from .sampling import (
    GRID,
    GUIDANCE,
    STEPS,
    draw_faces,
    draw_latent,
    draw_pixels,
    grid,
    reconstruct,
)
from .styled import LOOK_NAMES
from .things import THINGS, with_article
from .words import caption


def _share(right: torch.Tensor) -> float:
    return round(float(right.float().mean()), 4)


PAINTINGS = (
    "arcimboldo-spring",
    "bruegel-the-harvesters",
    "hokusai-great-wave",
    "hokusai-poppies",
    "kandinsky-composition-viii",
    "leonardo-mona-lisa",
    "renoir-moulin-de-la-galette",
    "van-gogh-village-street-in-auvers",
)  # none of them was trained on
HEAVY = 0.9  # heaviness of the styles under which the judge has to recognise things


def different_scenes(scenes: Pictures, count: int, draw: int) -> np.ndarray:
    """Numbers of held-out scenes whose contents all differ."""
    chosen, seen = [], set()
    for i in np.random.default_rng((9, draw)).permutation(len(scenes)):
        label = scenes.said[i]["label"]
        if label not in seen:
            seen.add(label)
            chosen.append(i)
        if len(chosen) == count:
            break
    return np.array(chosen)


def said(scenes: Pictures, chosen: np.ndarray, look: str | None = None) -> list[str]:
    """A caption of each scene."""
    return [caption(scenes.said[i], np.random.default_rng((11, int(i))), look) for i in chosen]


def judge_accuracy(judge: Judge, scenes: Pictures, draws: int = 4) -> dict:
    """R@1, picture -> caption, among 256 held-out scenes with different contents, plain and in heavy styles."""
    found = {"plain": [], "heavily_painted": []}
    for draw in range(draws):
        chosen = different_scenes(scenes, 256, draw)
        pictures, captions = to_tensor(scenes[chosen]) / 2 + 0.5, said(scenes, chosen)
        heaviness = torch.full((len(chosen),), HEAVY)
        painted = paint(pictures, torch.Generator().manual_seed(draw), heaviness)
        for name, shown in (("plain", pictures), ("heavily_painted", painted)):
            found[name].append(_share(judge.scores(shown, captions).argmax(1) == torch.arange(len(chosen))))
    return {f"recall_at_1_among_256_{name}": round(float(np.mean(shares)), 4) for name, shares in found.items()}


def _psnr(originals: torch.Tensor, again: torch.Tensor) -> float:
    """Mean PSNR over pictures in [0, 1], dB, at 8 bits."""
    levels = [(x.clamp(0, 1) * 255).round() / 255 for x in (originals, again)]
    return round(float((-10 * torch.log10((levels[0] - levels[1]).square().mean((1, 2, 3)))).mean()), 2)


def autoencoder_quality(vae: AutoencoderKL, scenes: Pictures, count: int = 512) -> dict:
    """PSNR of held-out scenes and of the paintings, and which paintings are nearest to their own round trip."""
    plain = to_tensor(scenes[np.arange(min(count, len(scenes)))]) / 2 + 0.5
    painted = paint(plain, torch.Generator().manual_seed(0))
    paintings = torch.cat(
        [images.resize(images.crop_square(images.load(name)), networks.SIZES["vae"]) for name in PAINTINGS]
    )

    def again(pictures):
        return reconstruct(vae, (pictures * 2 - 1).to(vae.device)).cpu() / 2 + 0.5

    distances = metrics.style_distances(again(paintings), PAINTINGS, models.features("vgg16-hed", device="cpu"))
    nearest = measures.specificity(distances, range(len(PAINTINGS)))
    return {
        "pixels": networks.SIZES["vae"],
        "pictures": len(plain),
        "psnr_plain": _psnr(plain, again(plain)),
        "psnr_in_styles": _psnr(painted, again(painted)),
        "psnr_paintings": _psnr(paintings, again(paintings)),
        "paintings": len(PAINTINGS),
        "paintings_nearest_to_themselves": int(sum(nearest.nearest)),
    }


def scenes_of_things(scenes: Pictures, count: int = 64) -> np.ndarray:
    """Held-out scenes of one thing each, all different things: their numbers."""
    chosen, seen = [], set()
    for i, scene in enumerate(scenes.said):
        if len(scene["things"]) == 1 and scene["things"][0] not in seen:
            seen.add(scene["things"][0])
            chosen.append(i)
        if len(chosen) == count:
            break
    return np.array(chosen)


def looks_found(judge: Judge, pictures: torch.Tensor, asked: list[tuple[str, str]]) -> torch.Tensor:
    """Whether the judge prefers each picture's (thing, look) over the same thing in the other painted looks."""
    scores = [
        judge.scores(picture[None], [f"{thing}, {other}" for other in LOOK_NAMES])[0].argmax()
        for picture, (thing, _) in zip(pictures, asked, strict=True)
    ]
    return torch.stack(scores) == torch.tensor([LOOK_NAMES.index(look) for _, look in asked])


def labelled(pictures: torch.Tensor, prompts: list[str], columns: int = 8) -> Figure:
    """Pictures in rows, each above its prompt."""
    cells = [picture[None] for picture in pictures]
    words = [textwrap.fill(prompt, 18) for prompt in prompts]
    starts = range(0, len(cells), columns)
    return figures.grid(
        [cells[start : start + columns] for start in starts],
        captions=[words[start : start + columns] for start in starts],
        cell=1.2,
    )


def text_to_image(make, judge: Judge, scenes: Pictures, seeds: int = 2) -> tuple[dict, Figure]:
    """How often the judge finds the caption of a sample among 64, a thing among all things, and the look."""
    chosen = scenes_of_things(scenes)
    captions, right = said(scenes, chosen), torch.arange(len(chosen))
    real = to_tensor(scenes[chosen]) / 2 + 0.5
    hits = torch.cat([judge.scores(make(captions, seed), captions).argmax(1) == right for seed in range(seeds)])
    alone = [with_article(thing.phrases[0]) for thing in THINGS.values()]
    found_alone = judge.scores(make(alone, 100), alone).argmax(1) == torch.arange(len(alone))
    things = ["a cat", "a castle", "a car", "a burger", "a tree", "a house", "a dog", "a boat"]
    asked = [(thing, look) for look in LOOK_NAMES for thing in things]
    found = looks_found(judge, make([f"{thing}, {look}" for thing, look in asked], 200), asked)
    names = [str(name) for name in np.resize(LOOK_NAMES, len(chosen))]
    phrases = [with_article(THINGS[scenes.said[i]["things"][0]].phrases[0]) for i in chosen]
    known = list(zip(phrases, names, strict=True))
    real_found = looks_found(judge, looks.apply(real, names, torch.Generator().manual_seed(0)), known)
    by_look = found.reshape(len(LOOK_NAMES), len(things)).float().mean(1)
    result = {
        "steps": STEPS,
        "guidance_scale": GUIDANCE,
        "captions": len(captions),
        "samples": len(hits),
        "caption_found_among_64": _share(hits),
        "ceiling_on_real_scenes": _share(judge.scores(real, captions).argmax(1) == right),
        "things": len(alone),
        "thing_alone_found_among_all": _share(found_alone),
        "look_found": _share(found),
        "look_ceiling_on_real_scenes": _share(real_found),
        "looks": {look: round(float(v), 3) for look, v in zip(LOOK_NAMES, by_look, strict=True)},
    }
    return result, labelled(make(GRID, 0), GRID)


def _write(name: str, found: dict) -> None:
    path = MODELS / name / "evaluation.json"
    path.write_text(json.dumps({**found, "measured": date.today().isoformat()}, indent=2) + "\n")


def _speed(prompt: str = "a cat sitting on a table") -> dict:
    """Seconds to load mini-sd and to draw one picture with the stock pipeline, on the CPU in float32."""
    start = time.perf_counter()
    pipe = StableDiffusionPipeline.from_pretrained(MODELS / "mini-sd")
    loaded = time.perf_counter() - start
    pipe.set_progress_bar_config(disable=True)
    seconds = []
    for seed in range(3):
        start = time.perf_counter()
        pipe(
            prompt,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(seed),
        )
        seconds.append(time.perf_counter() - start)
    return {
        "threads": torch.get_num_threads(),
        "load_seconds": round(loaded, 2),
        "picture_seconds": round(min(seconds), 2),
    }


def evaluate_judge(judge, scenes, device):
    _write("mini-judge", judge_accuracy(judge, scenes))


def evaluate_sd(judge, scenes, device):
    vae = AutoencoderKL.from_pretrained(MODELS / "mini-sd" / "vae").eval().to(device)
    found = {"autoencoder": autoencoder_quality(vae, scenes)}
    x = to_tensor(scenes[np.arange(16)])
    x = (paint(x / 2 + 0.5, torch.Generator().manual_seed(1)) * 2 - 1).to(device)
    rows = [x[:8], reconstruct(vae, x[:8]), x[8:], reconstruct(vae, x[8:])]
    grid(torch.cat(rows) / 2 + 0.5).save(MODELS / "mini-sd" / "reconstructions.jpg", quality=90)
    if (MODELS / "mini-sd" / "unet").exists():
        unet = UNet2DConditionModel.from_pretrained(MODELS / "mini-sd" / "unet").eval().to(device)
        found["samples"], samples = text_to_image(lambda p, s: draw_latent(unet, vae, p, s), judge, scenes)
        samples.savefig(MODELS / "mini-sd" / "samples.jpg", pil_kwargs={"quality": 90})
        found["speed"] = _speed()
    _write("mini-sd", found)


def evaluate_pixel(judge, scenes, device):
    unet = UNet2DConditionModel.from_pretrained(MODELS / "mini-pixel" / "unet").eval().to(device)
    found, samples = text_to_image(lambda p, s: draw_pixels(unet, p, s), judge, scenes)
    samples.savefig(MODELS / "mini-pixel" / "samples.jpg", pil_kwargs={"quality": 90})
    _write("mini-pixel", found)


def evaluate_ddpm(judge, scenes, device):
    """The judge tells faces from all other things; the nearest training picture stands under every sample."""
    unet = DDPMPipeline.from_pretrained(MODELS / "mini-ddpm").unet.eval().to(device)
    x = draw_faces(unet, 40)
    kinds = torch.tensor([t.kind in ("face", "head", "person") for t in THINGS.values()])
    captions = [with_article(t.phrases[0]) for t in THINGS.values()]
    known = to_tensor(np.asarray(face_pictures(networks.SIZES["mini-ddpm"]))) / 2 + 0.5
    distance = torch.stack([(known - p).square().mean((1, 2, 3)) for p in x[:16]])
    nearest = known[distance.argmin(1)]
    grid(torch.cat([x[:8], nearest[:8], x[8:16], nearest[8:16]])).save(MODELS / "mini-ddpm" / "samples.jpg", quality=90)
    _write(
        "mini-ddpm",
        {
            "samples": len(x),
            "called_a_face_by_the_judge": _share(kinds[judge.scores(x, captions).argmax(1)]),
            "training_pictures_called_a_face": _share(kinds[judge.scores(known[::8], captions).argmax(1)]),
            "rmse_to_nearest_training_picture": round(float(distance.min(1).values.sqrt().mean()), 4),
        },
    )


EVALUATIONS = {
    "mini-judge": evaluate_judge,
    "mini-sd": evaluate_sd,
    "mini-pixel": evaluate_pixel,
    "mini-ddpm": evaluate_ddpm,
}


def evaluate(only: str = "") -> None:
    """Evaluate the committed models (or `only` one): `evaluation.json` and pictures beside each, then cards.

    Raises:
        ValueError: `only` is no embedded model.
    """
    from .cards import write_cards

    if only and only not in EVALUATIONS:
        raise ValueError(f"only must be one of {', '.join(EVALUATIONS)}, not {only!r}.")
    chosen = [name for name in [only] if only] or [name for name in EVALUATIONS if (MODELS / name).exists()]
    for name in chosen:
        check_output(MODELS / name / "evaluation.json", (".json",))
    device, scenes = models.device(), Pictures("held-out", size=networks.SIZES["vae"])
    judge = Judge(MODELS / "mini-judge", device) if (MODELS / "mini-judge" / "config.json").exists() else None
    for name in chosen:
        EVALUATIONS[name](judge, scenes, device)
    write_cards([only] if only else EVALUATIONS)
