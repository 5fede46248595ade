import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMPipeline, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from training import mini, networks
from training.deepening import deepened
from training.mini import Budget, Training, checkpoint_path, train
from training.pictures import chunk_path
from training.recipe import MODELS, Recipe, generator, to_tensor
from training.recipes import RECIPES, Diffusion, latent_scheduler, styled_variant
from training.styled import LOOK_NAMES, NO_LOOK, StyledScenes, strange
from training.texture import texture_error, texture_network


def shipped(*parts):
    """Skip a test of weights that this checkout does not carry."""
    missing = [part for part in parts if not (MODELS / part).exists()]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not trained yet")


@dataclass
class Tiny(Recipe):
    """A convolution that learns to halve: every property of the loop in milliseconds."""

    lr: float = 1e-2

    def build(self):
        return torch.nn.Conv2d(3, 3, 1)

    def batch(self, step):
        return {"x": torch.randn(4, 3, 8, 8, generator=generator(self.seed, step))}

    def loss(self, net, batch):
        return (net(batch["x"]).float() - batch["x"] / 2).square().mean()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EX4_CACHE", str(tmp_path))
    monkeypatch.setitem(RECIPES, "tiny", Tiny)
    monkeypatch.setattr(mini, "_show", lambda *_: None)
    monkeypatch.setattr(mini, "committed_weights", lambda name: {})
    return tmp_path


def same(a, b):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_interrupted_training_equals_uninterrupted(cache):
    device = torch.device("cpu")
    whole, first = Training("tiny", Tiny(), device), Training("tiny", Tiny(), device)
    for _ in range(20):
        whole.one_step()
    for _ in range(7):
        first.one_step()
    first.save(checkpoint_path("tiny"))
    second = Training("tiny", Tiny(seed=1), device)
    second.load(checkpoint_path("tiny"))
    while second.step < 20:
        second.one_step()
    assert same(whole.net, second.net) and same(whole.averaged(), second.averaged())


def test_checkpoint_is_never_half_written(cache, monkeypatch):
    training = Training("tiny", Tiny(), torch.device("cpu"))
    training.save(checkpoint_path("tiny"))
    before = checkpoint_path("tiny").read_bytes()

    def break_off(state, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", break_off)
    with pytest.raises(KeyboardInterrupt):
        training.save(checkpoint_path("tiny"))
    assert checkpoint_path("tiny").read_bytes() == before


def test_new_layers_are_trained_alone_at_first(cache, monkeypatch):
    monkeypatch.setattr(mini, "NEW_ALONE", 2)
    training = Training("tiny", Tiny(), torch.device("cpu"))
    training.new, before = {"bias"}, {k: v.clone() for k, v in training.net.state_dict().items()}
    for _ in range(2):
        training.one_step()
    assert torch.equal(training.net.weight, before["weight"]) and not torch.equal(training.net.bias, before["bias"])
    training.one_step()
    assert not torch.equal(training.net.weight, before["weight"])


def test_command_trains_for_its_minutes_and_resumes(cache):
    train("tiny", Budget(0.01))
    steps = torch.load(checkpoint_path("tiny"), weights_only=True)["step"]
    train("tiny", Budget(0.01), resume=True)
    assert 0 < steps < torch.load(checkpoint_path("tiny"), weights_only=True)["step"]


def test_a_loss_that_is_not_finite_changes_nothing(cache):
    training = Training("tiny", Tiny(), torch.device("cpu"))
    training.recipe.loss = lambda net, batch: net(batch["x"]).sum() * float("nan")
    before = {k: v.clone() for k, v in training.net.state_dict().items()}
    training.one_step()
    assert all(torch.equal(v, before[k]) for k, v in training.net.state_dict().items())


def test_another_architecture_is_refused_in_one_sentence(cache):
    training = Training("tiny", Tiny(), torch.device("cpu"))
    training.save(checkpoint_path("tiny"))
    training.recipe.build = lambda: torch.nn.Conv2d(3, 3, 3)
    other = Training("tiny", training.recipe, torch.device("cpu"))
    with pytest.raises(RuntimeError, match="another architecture of tiny"):
        other.load(checkpoint_path("tiny"))


def test_min_snr_weight_and_noising():
    recipe = Diffusion(scheduler=latent_scheduler(), text=False)
    batch = recipe.noised(torch.ones(512, 8, 2, 2), generator(1, 3))
    abar = recipe.scheduler.alphas_cumprod[batch["t"]]
    snr = abar / (1 - abar)
    assert torch.allclose(batch["weight"], snr.clamp(max=5) / snr, atol=1e-4)
    abar = abar[:, None, None, None]
    clean = (batch["x"] - (1 - abar).sqrt() * batch["noise"]) / abar.sqrt()
    assert torch.allclose(clean, torch.ones_like(clean), atol=1e-3)
    again = recipe.noised(torch.ones(512, 8, 2, 2), generator(1, 3))
    assert torch.equal(batch["x"], again["x"])


def test_strange_words_are_rare_and_reproducible():
    import numpy as np

    said = [strange("a cat", np.random.default_rng(i)) for i in range(500)]
    assert said == [strange("a cat", np.random.default_rng(i)) for i in range(500)]
    changed = [s for s in said if s != "a cat"]
    assert 5 < len(changed) < 50 and all(s.startswith("a cat") for s in changed)


def test_to_tensor_range_and_area_reduction():
    import numpy as np

    picture = np.zeros((1, 4, 4, 3), np.uint8)
    picture[:, :, :2] = 255
    assert to_tensor(picture).aminmax() == (-1.0, 1.0)
    assert to_tensor(picture, 2)[0, 0].tolist() == [[1.0, -1.0], [1.0, -1.0]]


def test_the_tokenizer_is_the_same_in_every_process_and_knows_every_word():
    code = "import json; from training.networks import tokenizer; print(json.dumps(tokenizer().get_vocab()))"
    command = [sys.executable, "-c", code]
    other = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(networks.__file__).parents[1])
    words = networks.tokenizer()
    assert json.loads(other.stdout) == words.get_vocab()
    for word in networks.vocabulary():
        assert len(words(word).input_ids) == 3, word
    assert len(words("zyzzyva").input_ids) > 4


def test_a_saved_tokenizer_reads_back(tmp_path):
    words = networks.tokenizer()
    networks.save_tokenizer(words, tmp_path)
    for name in ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).exists()
    (tmp_path / "tokenizer.json").unlink()  # what transformers 4 reads
    again = CLIPTokenizer.from_pretrained(tmp_path)
    for caption in ("a cat sitting on a table", "xyzzy in the style of Picasso", ""):
        assert again(caption).input_ids == words(caption).input_ids


def test_the_committed_tokenizers_read_every_caption_of_the_world():
    words = networks.tokenizer()
    assert networks.shipped_tokenizer("mini-judge").get_vocab() == words.get_vocab()
    spelt = [word for word in networks.vocabulary() if len(networks.shipped_tokenizer().tokenize(word)) > 1]
    assert len(spelt) < 20  # mini-sd's text tower knows an earlier world; the U-Net has learnt these from their pieces


@shipped("mini-sd/unet", "mini-sd/vae", "mini-sd/text_encoder", "mini-judge")
def test_the_committed_weights_fit_the_networks():
    AutoencoderKL.from_pretrained(MODELS / "mini-sd" / "vae").load_state_dict(networks.vae().state_dict())
    unet = UNet2DConditionModel.from_pretrained(MODELS / "mini-sd" / "unet")
    unet.load_state_dict(networks.mini_sd_unet(unet.config.cross_attention_dim).state_dict())
    text = CLIPTextModel.from_pretrained(MODELS / "mini-sd" / "text_encoder")
    tower = networks.mini_clip(networks.shipped_tokenizer()).text_model
    assert [p.shape for p in text.parameters()] == [p.shape for p in tower.parameters()]
    judge = CLIPModel.from_pretrained(MODELS / "mini-judge")
    judge.load_state_dict(networks.mini_judge(networks.tokenizer()).state_dict())


def test_a_deepened_unet_keeps_the_old_levels():
    options = {"layers_per_block": 1, "cross_attention_dim": 8, "norm_num_groups": 4, "attention_head_dim": 2}
    kinds = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")}
    kinds["up_block_types"] = ("CrossAttnUpBlock2D", "UpBlock2D")
    old = UNet2DConditionModel(block_out_channels=(16, 24), in_channels=8, out_channels=8, **kinds, **options)
    kinds["down_block_types"] = ("DownBlock2D", *kinds["down_block_types"])
    kinds["up_block_types"] = (*kinds["up_block_types"], "UpBlock2D")
    net = UNet2DConditionModel(block_out_channels=(8, 16, 24), time_embedding_dim=64, **kinds, **options)
    new = deepened(old.state_dict(), net)
    own, weights = net.state_dict(), old.state_dict()
    assert torch.equal(own["down_blocks.2.resnets.0.conv2.weight"], weights["down_blocks.1.resnets.0.conv2.weight"])
    assert torch.equal(own["mid_block.resnets.0.conv1.weight"], weights["mid_block.resnets.0.conv1.weight"])
    assert {"conv_in.weight", "conv_out.weight", "down_blocks.0.resnets.0.conv1.weight"} <= new
    assert not any(name.startswith(("mid_block", "down_blocks.2", "up_blocks.0")) for name in new)
    assert net(torch.zeros(1, 4, 16, 16), 10, torch.zeros(1, 3, 8)).sample.isfinite().all()


@shipped("mini-sd/unet", "mini-sd/vae", "mini-sd/text_encoder")
def test_stock_stable_diffusion_pipeline_runs_the_committed_folder():
    pipe = StableDiffusionPipeline.from_pretrained(MODELS / "mini-sd")
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        assert {p.dtype for p in part.parameters()} == {torch.float32}
    assert pipe.safety_checker is None
    assert pipe.tokenizer.model_max_length == pipe.text_encoder.config.max_position_embeddings
    assert pipe.text_encoder.config.eos_token_id == pipe.tokenizer.eos_token_id
    options = {"num_inference_steps": 2, "output_type": "pt"}
    runs = [pipe("a cat", generator=torch.Generator().manual_seed(0), **options).images for _ in range(2)]
    assert runs[0].shape == (1, 3, 128, 128) and torch.isfinite(runs[0]).all() and torch.equal(*runs)


@shipped("mini-ddpm")
def test_stock_ddpm_pipeline_runs_the_committed_folder():
    pipe = DDPMPipeline.from_pretrained(MODELS / "mini-ddpm")
    pipe.set_progress_bar_config(disable=True)
    assert {p.dtype for p in pipe.unet.parameters()} == {torch.float32}
    side = networks.SIZES["mini-ddpm"]
    assert pipe(num_inference_steps=2).images[0].size == (side, side)


@shipped("mini-pixel", "mini-sd/text_encoder")
def test_mini_pixel_runs_on_the_text_tower_of_mini_sd():
    unet = UNet2DConditionModel.from_pretrained(MODELS / "mini-pixel" / "unet")
    DDPMScheduler.from_pretrained(MODELS / "mini-pixel" / "scheduler")
    width = json.loads((MODELS / "mini-sd" / "text_encoder" / "config.json").read_text())["hidden_size"]
    side = unet.config.sample_size
    said = torch.zeros(1, networks.TOKENS, width)
    assert unet(torch.zeros(1, 3, side, side), 10, said).sample.shape == (1, 3, side, side)


@shipped("mini-judge")
def test_judge_loads_in_float32_and_compares():
    model = CLIPModel.from_pretrained(MODELS / "mini-judge")
    words = CLIPTokenizer.from_pretrained(MODELS / "mini-judge")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    tokens = words(["a cat", "a dog"], padding="max_length", truncation=True, return_tensors="pt")
    side = model.config.vision_config.image_size
    out = model(pixel_values=torch.zeros(1, 3, side, side), input_ids=tokens.input_ids)
    assert out.logits_per_image.shape == (1, 2)


def test_weights_fit_the_repository_and_are_half_precision():
    from safetensors import safe_open

    files = [
        f
        for name in ("mini-sd", "mini-pixel", "mini-ddpm", "mini-judge")
        for f in MODELS.rglob(f"{name}/**/*.safetensors")
    ]
    assert files and sum(f.stat().st_size for f in files) <= 48e6
    for file in files:
        with safe_open(file, "pt") as weights:
            kinds = {weights.get_tensor(k).dtype for k in weights.keys()}  # noqa: SIM118
        assert torch.float32 not in kinds


@shipped("mini-sd/unet", "mini-pixel", "mini-ddpm", "mini-judge")
def test_every_model_has_a_card_and_its_numbers():
    for name in ("mini-sd", "mini-pixel", "mini-ddpm", "mini-judge"):
        assert (MODELS / name / "README.md").exists()
        assert json.loads((MODELS / name / "evaluation.json").read_text())["measured"]
    assert all(word in (MODELS / "ATTRIBUTION.md").read_text() for word in ("CC BY 4.0", "Apache-2.0", "MIT"))


def test_a_budget_ends_with_the_first_of_its_limits():
    budget = Budget(minutes=1e6, steps=4)
    for left in (1.0, 0.75, 0.5, 0.25, 0.0):
        assert abs(budget.left - left) < 1e-6
        budget.step()
    assert Budget(minutes=0).left == 0
    assert Budget(minutes=1e6, until=1.0).left < 0


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Thirty scenes of circles, without the artwork from npm."""
    patch = pytest.MonkeyPatch()
    patch.setenv("EX4_CACHE", str(tmp_path_factory.mktemp("cache")))
    path = chunk_path("train", 128, 0)
    path.parent.mkdir(parents=True)
    y, x = np.mgrid[:128, :128]
    rng = np.random.default_rng(0)
    pictures = np.full((30, 128, 128, 3), 200, np.uint8)
    for picture in pictures:
        picture[(x - 64) ** 2 + (y - rng.integers(40, 90)) ** 2 < 900] = rng.integers(0, 256, 3)
    np.save(path, pictures)
    record = {"label": "sun | plain", "things": ["sun"], "colours": [None], "made": [None]}
    record |= {"ground": "plain", "ground_colour": None, "look": "plain"}
    path.with_suffix(".json").write_text(json.dumps([record] * 30))
    yield StyledScenes("train", device=torch.device("cpu"))
    patch.undo()


def test_a_batch_of_styled_scenes_says_the_look_that_it_has(scenes):
    rng, random = np.random.default_rng(1), torch.Generator().manual_seed(1)
    plain = scenes.plain(scenes.chosen(30, random), random)
    styled, looks = scenes.painted(plain, rng, random)
    assert styled.shape == plain.shape and styled.isfinite().all() and styled.min() >= 0 and styled.max() <= 1
    assert 0 < (looks != NO_LOOK).sum() < 30 and looks.max() <= len(LOOK_NAMES)
    named = (styled - plain).abs().mean((1, 2, 3))[looks != NO_LOOK]
    assert (named > 1e-3).all()
    words = networks.tokenizer()
    for number, look in enumerate(LOOK_NAMES, start=1):
        said = words.batch_decode(scenes.tokens[:, number].long(), skip_special_tokens=True)
        assert all(look in text for text in said)


def test_the_first_variant_is_the_scenes_as_drawn(scenes):
    torch.manual_seed(0)
    vae = networks.vae().eval()
    drawn, styled = (styled_variant(vae, scenes, number) for number in (0, 1))
    assert drawn.latents.shape == (30, networks.LATENTS, 32, 32) and drawn.latents.dtype == torch.float16
    assert (drawn.looks == NO_LOOK).all() and (styled.looks != NO_LOOK).any()
    again = styled_variant(vae, scenes, 1)  # from the cache
    assert torch.equal(again.latents, styled.latents) and torch.equal(again.small, styled.small)


def test_the_texture_network_is_the_offline_network(offline, scenes):
    network = texture_network(torch.device("cpu"))
    picture = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    layer = "relu3_1"
    kept, whole = (n(picture, [layer])[layer] for n in (network, offline))
    assert (kept - whole).abs().max() < 2e-3 * whole.abs().max()  # kept in fp16
    assert texture_error(network, picture, picture) == 0
    assert texture_error(network, picture * 0.5, picture) > texture_error(network, picture * 0.9, picture) > 0


@pytest.mark.parametrize("name", ["mini-sd", "mini-pixel", "vae"])
def test_a_step_of_each_recipe_lowers_the_loss_of_its_batch(name, scenes, monkeypatch):
    monkeypatch.setattr("training.recipes.trained_vae", lambda device: networks.vae().eval())
    recipe = RECIPES[name](batch_size=2)
    net, batch = recipe.build(), recipe.batch(0)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    before = recipe.loss(net, batch)
    before.backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()
    assert recipe.loss(net, batch) < before


def test_evaluation_looks_at_its_files_before_it_begins(tmp_path, monkeypatch):
    from training import evaluate

    (tmp_path / "mini-judge" / "evaluation.json").mkdir(parents=True)
    monkeypatch.setattr(evaluate, "MODELS", tmp_path)
    monkeypatch.setattr(evaluate, "Pictures", lambda *_, **__: pytest.fail("work was begun"))
    with pytest.raises(ValueError, match=r"evaluation\.json' cannot be written there"):
        evaluate.evaluate()


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "--only", "../x"],
        ["mini-sd", "--steps", "-1"],
        ["mini-sd", "--minutes", "-5"],
        ["pictures", "--workers", "0"],
        ["pictures", "--chunk", "0"],
    ],
)
def test_options_of_training_outside_their_range_are_refused(monkeypatch, capsys, arguments):
    for begun in ("train", "prepare", "export"):
        monkeypatch.setattr(mini, begun, lambda *_, **__: pytest.fail("work was begun"))
    monkeypatch.setattr(sys, "argv", ["mini", *arguments])
    with pytest.raises(SystemExit) as end:
        mini.app()
    assert end.value.code == 2 and "Invalid value" in capsys.readouterr().err
