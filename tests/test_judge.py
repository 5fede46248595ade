"""The judge against transformers' own preprocessing and model."""

import pytest
import torch
from transformers import CLIPImageProcessor

from ex4lib import images, models
from experiments.judge import Judge
from tests.random_models import save_judge
from training import networks


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_judge(tmp_path_factory.mktemp("clip"))


def test_scores_are_clips_own(folder, picture):
    judge, prompts = Judge(folder), ["a cat", "a castle next to a river"]
    pictures = picture(100, 100, batch=3, dtype=torch.float32)
    processor = CLIPImageProcessor.from_pretrained(folder)
    pixels = processor([images.to_pil(x[None]) for x in pictures], return_tensors="pt").pixel_values
    tokens = judge.tokenizer(prompts, padding=True, return_tensors="pt")
    with torch.no_grad():
        found = judge.model(pixel_values=pixels, **tokens)
    expected = found.logits_per_image / judge.model.logit_scale.exp()
    torch.testing.assert_close(judge.scores(pictures, prompts), expected, atol=2e-3, rtol=0)


def test_features_are_unit_vectors_and_do_not_depend_on_the_batch(folder, picture):
    judge = Judge(folder)
    pictures = picture(40, 60, batch=5, dtype=torch.float32)
    features = judge.image_features(pictures, batch=2)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(features, judge.image_features(pictures), atol=1e-5, rtol=0)


def test_agreement_is_the_first_place(folder, picture):
    judge, prompts = Judge(folder), ["a cat", "a dog", "a house"]
    pictures = picture(60, 60, batch=8, dtype=torch.float32)
    best = judge.scores(pictures, prompts).argmax(1)
    for i, prompt in enumerate(prompts):
        assert torch.equal(judge.agrees(pictures, prompt, prompts), best == i)


def test_a_local_folder_stands_for_a_name_of_the_hub(folder, monkeypatch):
    monkeypatch.setenv("EX4_PROFILE", "full")
    monkeypatch.setenv("EX4_MODELS", str(folder.parent))
    (folder.parent / "clip-vit-base-patch32").symlink_to(folder)
    assert models.source("judge").endswith("clip-vit-base-patch32")
    assert Judge.load(device="cpu").size == networks.SIZES["mini-judge"]
    assert models.source("ddpm") == "google/ddpm-celebahq-256"
    with pytest.raises(ValueError, match=r"part must be ddpm, stable-diffusion, .* got 'unet'"):
        models.source("unet")


def test_one_prompt_is_a_list_of_one(folder):
    judge = Judge(folder)
    assert torch.equal(judge.text_features("a cat"), judge.text_features(["a cat"]))
