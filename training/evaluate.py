"""What the embedded models reach on scenes they were never trained on: numbers to JSON, pictures to grids.

Every number of the model cards comes from here. The judge scores; its own accuracy on real scenes is the
ceiling.
"""

import json
import time
from datetime import date

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMPipeline, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from ex4lib.judge import Judge

from . import networks
from .faces import face_pictures
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
    pick_device,
    reconstruct,
)
from .things import THINGS, with_article
from .words import NAMED_LOOKS


def _share(right: torch.Tensor) -> float:
    return round(float(right.float().mean()), 4)


def judge_accuracy(judge: Judge, scenes: Pictures, draws: int = 8) -> dict:
    """R@1, picture -> caption, among 256 held-out scenes with different captions; mean and std over draws."""
    found = []
    for k in range(draws):
        chosen, seen = [], set()
        for i in np.random.default_rng((9, k)).permutation(len(scenes)):
            caption = scenes.said[i]["caption"]
            if caption not in seen and caption != "a high quality photo":
                seen.add(caption)
                chosen.append(i)
            if len(chosen) == 256:
                break
        pictures = to_tensor(scenes[np.array(chosen)]) / 2 + 0.5
        scores = judge.scores(pictures, [scenes.said[i]["caption"] for i in chosen])
        found.append(_share(scores.argmax(1) == torch.arange(len(chosen))))
    return {"recall_at_1_among_256": round(float(np.mean(found)), 4), "std": round(float(np.std(found)), 4)}


def autoencoder_quality(vae: AutoencoderKL, scenes: Pictures, count: int = 1024) -> dict:
    """PSNR (dB, 8 bit) of held-out scenes, mean over pictures, in all and for every look."""
    chosen = np.arange(min(count, len(scenes)))
    originals = scenes[chosen]
    again = reconstruct(vae, to_tensor(originals).to(vae.device)).cpu()
    again = ((again + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    psnr = np.array([peak_signal_noise_ratio(a, b) for a, b in zip(originals, again, strict=True)])
    looks = np.array([scenes.said[i]["look"] for i in chosen])
    return {
        "pixels": int(originals.shape[1]),
        "pictures": len(chosen),
        "psnr": round(float(psnr.mean()), 2),
        "psnr_per_look": {str(look): round(float(psnr[looks == look].mean()), 2) for look in sorted(set(looks))},
    }


def captions_of_things(scenes: Pictures, count: int = 64) -> list[int]:
    """Held-out scenes of one thing each, all different things, in plain looks: their indices."""
    chosen, seen = [], set()
    for i, s in enumerate(scenes.said):
        fits = len(s["things"]) == 1 and s["look"] == "plain" and s["caption"] != "a high quality photo"
        if fits and s["things"][0] not in seen:
            seen.add(s["things"][0])
            chosen.append(i)
        if len(chosen) == count:
            return chosen
    return chosen


def looks_found(judge: Judge, pictures: torch.Tensor, asked: list[tuple[str, str]]) -> torch.Tensor:
    """Whether the judge prefers each picture's (thing, look) over the same thing in the other named looks."""
    scores = [
        judge.scores(picture[None], [f"{thing}, {other}" for other in NAMED_LOOKS])[0].argmax()
        for picture, (thing, _) in zip(pictures, asked, strict=True)
    ]
    return torch.stack(scores) == torch.tensor([NAMED_LOOKS.index(look) for _, look in asked])


def text_to_image(make, judge: Judge, scenes: Pictures, seeds: int = 2) -> tuple[dict, Image.Image]:
    """How often the judge finds the caption of a sample among 64, and the look among the named ones."""
    chosen = captions_of_things(scenes)
    captions = [scenes.said[i]["caption"] for i in chosen]
    right = torch.arange(len(captions))
    real = judge.scores(to_tensor(scenes[np.array(chosen)]) / 2 + 0.5, captions).argmax(1) == right
    samples = [make(captions, seed) for seed in range(seeds)]
    hits = torch.cat([judge.scores(x, captions).argmax(1) == right for x in samples])
    simple = [with_article(THINGS[scenes.said[i]["things"][0]].phrases[0]) for i in chosen]
    plain = judge.scores(make(simple, 100), simple).argmax(1) == right
    things = ["a cat", "a castle", "a car", "a burger", "a tree", "a house", "a dog", "a boat"]
    asked = [(thing, look) for look in NAMED_LOOKS for thing in things]
    pictures = make([f"{thing}, {look}" for thing, look in asked], 200)
    looks = looks_found(judge, pictures, asked)
    held_out = [i for i, s in enumerate(scenes.said) if s["look"] in NAMED_LOOKS and len(s["things"]) == 1][:256]
    known = [(with_article(THINGS[scenes.said[i]["things"][0]].phrases[0]), scenes.said[i]["look"]) for i in held_out]
    real_looks = looks_found(judge, to_tensor(scenes[np.array(held_out)]) / 2 + 0.5, known)
    by_look = looks.reshape(len(NAMED_LOOKS), len(things)).float().mean(1)
    result = {
        "steps": STEPS,
        "guidance_scale": GUIDANCE,
        "captions": len(captions),
        "samples": len(hits),
        "caption_found_among_64": _share(hits),
        "ceiling_on_real_scenes": _share(real),
        "share_of_ceiling": round(_share(hits) / max(_share(real), 1e-6), 4),
        "thing_alone_found_among_64": _share(plain),
        "look_found_among_8": _share(looks),
        "look_ceiling_on_real_scenes": _share(real_looks),
        "look_found": {look: round(float(v), 3) for look, v in zip(NAMED_LOOKS, by_look, strict=True)},
    }
    return result, grid(make(GRID, 0))


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
    x = to_tensor(scenes[np.arange(16)]).to(device)
    rows = [x[:8], reconstruct(vae, x[:8]), x[8:], reconstruct(vae, x[8:])]
    grid(torch.cat(rows) / 2 + 0.5).save(MODELS / "mini-sd" / "reconstructions.jpg", quality=90)
    if (MODELS / "mini-sd" / "unet").exists():
        unet = UNet2DConditionModel.from_pretrained(MODELS / "mini-sd" / "unet").eval().to(device)
        found["samples"], samples = text_to_image(lambda p, s: draw_latent(unet, vae, p, s), judge, scenes)
        samples.save(MODELS / "mini-sd" / "samples.jpg", quality=90)
        found["speed"] = _speed()
    _write("mini-sd", found)


def evaluate_pixel(judge, scenes, device):
    unet = UNet2DConditionModel.from_pretrained(MODELS / "mini-pixel" / "unet").eval().to(device)
    found, samples = text_to_image(lambda p, s: draw_pixels(unet, p, s), judge, scenes)
    larger = samples.resize([2 * side for side in samples.size], Image.Resampling.NEAREST)
    larger.save(MODELS / "mini-pixel" / "samples.jpg", quality=90)
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
    device, scenes = pick_device(), Pictures("held-out", size=networks.SIZES["vae"])
    judge = Judge(MODELS / "mini-judge", device) if (MODELS / "mini-judge" / "config.json").exists() else None
    for name in [only] if only else EVALUATIONS:
        if (MODELS / name).exists():
            EVALUATIONS[name](judge, scenes, device)
    write_cards()
