"""The recipes, and the tutorial preset against a transcription of the PyTorch tutorial."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from ex4lib import colour, images, models, transfer
from ex4lib.losses import Objective
from ex4lib.statistics import STATISTICS
from ex4lib.tiles import TiledRecipe
from ex4lib.transfer import TUTORIAL, Recipe, invert, starting_image, stylize, synthesize
from tests.random_models import random_network

#: A recipe for narrow networks and small pictures.
SMALL = Recipe(content_layers=("relu3_1",), style_layers=("relu1_1", "relu2_1"), layer_weights=None)


@pytest.fixture
def network():
    return random_network().float()


@pytest.fixture
def pair(picture):
    return picture(24, 32, dtype=torch.float32), picture(40, 32, dtype=torch.float32)


# --- the tutorial -------------------------------------------------------------------------------------------------


class Normalization(nn.Module):
    """As in the PyTorch tutorial."""

    def __init__(self, mean, std):
        super().__init__()
        self.mean = mean.clone().detach().view(-1, 1, 1)
        self.std = std.clone().detach().view(-1, 1, 1)

    def forward(self, img):
        return (img - self.mean) / self.std


def gram_matrix(input):
    """As in the PyTorch tutorial."""
    a, b, c, d = input.size()
    features = input.view(a * b, c * d)
    return torch.mm(features, features.t()).div(a * b * c * d)


def tutorial_loss(stack, image, content, style):
    """The tutorial's total loss: walk through the layers and add a loss after each named one."""
    normalization = Normalization(torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225]))
    x, target_content, target_style = (normalization(each) for each in (image, content, style))
    content_score, style_score, i = 0, 0, 0
    for layer in stack:
        x, target_content, target_style = layer(x), layer(target_content), layer(target_style)
        if isinstance(layer, nn.Conv2d):
            i += 1
            if i == 4:
                content_score = content_score + F.mse_loss(x, target_content.detach())
            style_score = style_score + F.mse_loss(gram_matrix(x), gram_matrix(target_style).detach())
            if i == 5:
                break
    return style_score * 1000000 + content_score * 1


@pytest.mark.parametrize("architecture", ["vgg19", "vgg16"])
def test_the_tutorial_preset_is_the_tutorial(torchvision_features, generator, architecture, monkeypatch):
    folder, stacks = torchvision_features
    monkeypatch.setenv("EX4_MODELS", str(folder))
    network = models.features(architecture, device="cpu")
    content, style = (torch.rand(1, 3, 32, 32, generator=generator) for _ in range(2))
    image = torch.rand(1, 3, 32, 32, generator=generator).requires_grad_()
    expected = tutorial_loss(stacks[architecture], image, content, style)
    got = TUTORIAL.objective(network, content, [style])(image)
    assert got.shape == (1,)
    assert got.item() == pytest.approx(expected.item(), rel=1e-4)
    (expected_gradient,) = torch.autograd.grad(expected, image)
    (gradient,) = torch.autograd.grad(got.sum(), image)
    assert (gradient - expected_gradient).norm() < 1e-4 * expected_gradient.norm()


def test_the_tutorial_preset_is_the_tutorial_in_float64(generator):
    """The same on a narrow network without rounding, its layers read off as plain modules."""
    network = random_network()
    stack = []
    for name in network.layers:
        kinds = {"relu": nn.ReLU(), "pool": nn.MaxPool2d(2, 2)}
        stack.append(network.convolutions[name] if name.startswith("conv") else kinds[name[:4]])
    content, style, image = (torch.rand(1, 3, 24, 24, generator=generator, dtype=torch.float64) for _ in range(3))
    expected = tutorial_loss(stack, image, content, style)
    assert TUTORIAL.objective(network, content, [style])(image).item() == pytest.approx(expected.item(), rel=1e-5)


# --- style transfer -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimiser", ["lbfgs", "adam"])
def test_stylize_lowers_its_loss(offline, optimiser):
    content, style = images.load("chelsea"), images.load("hokusai-great-wave")
    result = stylize(offline, content, style, size=64, evaluations=20, optimiser=optimiser)
    assert result.losses[0] > 0 and min(result.losses) < 0.5 * result.losses[0]
    assert result.image.shape == (1, 3, 43, 64)
    assert result.image.min() >= 0 and result.image.max() <= 1
    assert result.evaluations == 20 and result.notes == []


def test_stylize_is_reproducible(offline):
    content, style = images.load("coffee", 64), images.load("kandinsky-composition-viii", 64)
    runs = [
        stylize(
            offline, content, style, size=48, evaluations=4, start="noise", generator=torch.Generator().manual_seed(9)
        )
        for _ in range(2)
    ]
    assert torch.equal(runs[0].image, runs[1].image)


@pytest.mark.parametrize(("shape", "size", "expected"), [((30, 60), 40, (20, 40)), ((60, 30), 40, (40, 20))])
def test_the_longer_side_is_the_size(network, picture, shape, size, expected):
    content, style = picture(*shape, dtype=torch.float32), picture(dtype=torch.float32)
    result = stylize(network, content, style, recipe=SMALL, size=size, evaluations=2)
    assert result.image.shape[2:] == expected


def test_scales_chain_from_coarse_to_fine(network, pair):
    shapes, indices = [], []

    def watch(step):
        shapes.append(tuple(step.image.shape[2:]))
        indices.append((step.index, step.total))

    result = stylize(network, *pair, recipe=SMALL, size=48, scales=[16, 32, 48], evaluations=8, callback=watch)
    assert shapes == [(12, 16)] * 2 + [(24, 32)] * 2 + [(36, 48)] * 4
    assert indices == [(i, 8) for i in range(1, 9)]
    assert result.image.shape[2:] == (36, 48) and result.evaluations == 8


def test_a_scale_begins_with_the_best_image_of_the_last(network, pair):
    """The third evaluation, last of its scale, is made worse than the second."""
    steps, calls = [], []

    class Probe(Recipe):
        def objective(self, network, content, styles, **_):
            def loss(image):
                calls.append(1)
                return (image - 0.3).square().mean((1, 2, 3)) * (5 if len(calls) == 3 else 1)

            return loss

    content = 0.4 + 0.4 * pair[0]
    options = {"scales": [16, 32], "evaluations": 6, "optimiser": "adam"}
    recipe = Probe(content_layers=("relu1_1",), style_layers=("relu1_1",))
    stylize(network, content, pair[1], recipe=recipe, size=32, callback=steps.append, **options)
    assert (steps[2].image - steps[1].image).abs().max() > 0.01
    torch.testing.assert_close(steps[3].image, images.resize(steps[1].image, (24, 32)), rtol=0, atol=1e-4)


def test_scales_double_from_128():
    seen = []

    class Stop(Exception):
        pass

    class Probe(Recipe):
        def objective(self, network, content, styles, **_):
            seen.append(tuple(content.shape[2:]))
            return lambda image: image.square().sum((1, 2, 3))

    picture = torch.rand(1, 3, 8, 8)
    stylize(random_network().float(), picture, picture, recipe=Probe(), size=512, evaluations=3)
    assert seen == [(128, 128), (256, 256), (512, 512)]
    seen.clear()
    stylize(random_network().float(), picture, picture, recipe=Probe(), size=200, evaluations=1)
    assert seen == [(200, 200)]


def test_the_result_has_the_lowest_loss_of_its_scale(network, pair):
    result = stylize(network, *pair, recipe=SMALL, size=32, evaluations=10)
    objective = SMALL.objective(network, images.resize(pair[0], 32), [images.resize(pair[1], 32)])
    assert objective(result.image).item() == pytest.approx(min(result.losses), rel=1e-4)


def test_a_larger_stroke_scale_shows_the_style_larger(network, pair):
    shapes = []

    class Probe(Recipe):
        def objective(self, network, content, styles, **_):
            shapes.append(tuple(styles[0].shape[2:]))
            return lambda image: image.square().sum((1, 2, 3))

    for scale in (0.5, 2.0):
        recipe = Probe(content_layers=("relu1_1",), style_layers=("relu1_1",))
        stylize(network, *pair, recipe=recipe, size=32, evaluations=1, stroke_scale=scale)
    assert shapes == [(16, 13), (64, 51)]


def test_several_styles_blend(network, picture, pair):
    content, first = pair
    second = picture(dtype=torch.float32)

    def losses(styles, **options):
        return stylize(network, content, styles, recipe=SMALL, size=32, evaluations=2, **options).losses

    assert losses([first, second], style_weights=[1, 0]) == pytest.approx(losses(first), rel=1e-5)
    assert losses([first, second], style_weights=[0, 2]) == pytest.approx(losses([second]), rel=1e-5)
    assert losses([first, second]) == pytest.approx(losses([second, first]), rel=1e-5)
    assert losses([first, second])[0] != pytest.approx(losses(first)[0], rel=1e-3)


def test_masks_paint_each_region_in_its_style():
    """Two flat styles, black and white, each in its half; the first layer is the picture itself."""
    network = random_network(channels=(3, 5, 6, 6, 6)).float()
    identity = torch.zeros(3, 3, 3, 3)
    identity[range(3), range(3), 1, 1] = 1
    network.convolutions["conv1_1"].weight.copy_(identity)
    content = torch.full((1, 3, 32, 32), 0.5)
    styles = [torch.full((1, 3, 32, 32), 0.1), torch.full((1, 3, 32, 32), 0.9)]
    left = torch.zeros(1, 1, 32, 32)
    left[..., :16] = 1
    recipe = Recipe(("conv1_1",), ("conv1_1",), None, "meanvar", content_weight=0.0, tv_weight=0.0)
    result = stylize(network, content, styles, recipe=recipe, size=32, evaluations=40, regions=[left, 1 - left])
    assert set(result.terms) == {"style/conv1_1/0", "style/conv1_1/1"}
    assert (result.image[..., :16] - 0.1).abs().mean() < 0.05
    assert (result.image[..., 16:] - 0.9).abs().mean() < 0.05


def test_a_single_mask_leaves_the_rest_alone(network, pair):
    content, style = images.resize(pair[0], (32, 32)), pair[1]
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., :8] = 1
    recipe = dataclasses.replace(SMALL, style_layers=("relu1_1",), tv_weight=0.0, style_weight=100.0)
    result = stylize(network, content, style, recipe=recipe, size=32, evaluations=15, regions=[mask])
    change = (result.image - content).abs().mean((0, 1, 2))
    assert change[:8].mean() > 0.02
    assert change[24:].max() < 0.2 * change[:8].mean()


def test_luminance_keeps_the_chroma(network, picture):
    content = 0.35 + 0.3 * picture(32, 32, dtype=torch.float32)
    recipe, style = dataclasses.replace(SMALL, style_weight=100.0), picture(dtype=torch.float32)
    result = stylize(network, content, style, recipe=recipe, size=32, evaluations=12, keep_colour="luminance")
    inside = ((result.image > 0) & (result.image < 1)).all(1)
    assert inside.float().mean() > 0.5
    for channel in range(3):
        own, before = (x[:, channel] - colour.luminance(x)[:, 0] for x in (result.image, content))
        torch.testing.assert_close(own[inside], before[inside], rtol=0, atol=1e-5)
    assert (colour.luminance(result.image) - colour.luminance(content)).abs().mean() > 0.001


def test_luminance_starts_from_the_grey_copy_of_a_picture(network, picture):
    content, style, start = (picture(dtype=torch.float32) for _ in range(3))
    options = {"recipe": SMALL, "size": 32, "evaluations": 3, "keep_colour": "luminance"}
    coloured, grey = (stylize(network, content, style, start=x, **options) for x in (start, colour.grey(start)))
    np.testing.assert_allclose(coloured.losses, grey.losses, rtol=1e-3)
    assert coloured.loss <= coloured.losses[0]


def test_match_recolours_the_style(network, picture, monkeypatch):
    content, style = (0.35 + 0.3 * picture(dtype=torch.float32) for _ in range(2))
    seen = []

    class Probe(Recipe):
        def objective(self, network, content, styles, **_):
            seen.extend(styles)
            return lambda image: image.square().sum((1, 2, 3))

    stylize(network, content, style, recipe=Probe(), size=32, evaluations=1, keep_colour="match")
    for got, expected in zip(colour.colour_moments(seen[0]), colour.colour_moments(content), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("keep_colour", ["match", "luminance"])
def test_colours_of_a_batch_of_photographs_are_kept(network, picture, keep_colour):
    photographs, style = picture(batch=2, dtype=torch.float32), picture(dtype=torch.float32)
    options = {"recipe": SMALL, "size": 32, "evaluations": 1, "keep_colour": keep_colour}
    batch = stylize(network, photographs, style, **options).losses
    singles = [stylize(network, photograph[None], style, **options).losses for photograph in photographs]
    np.testing.assert_allclose(batch, np.sum(singles, 0), rtol=1e-4)


# --- wrong arguments ----------------------------------------------------------------------------------------------


@pytest.fixture
def never_evaluated(monkeypatch):
    def refuse(*_):
        raise AssertionError("the objective was evaluated")

    monkeypatch.setattr(Objective, "terms", refuse)
    monkeypatch.setattr(Objective, "__call__", refuse)


ONES, NAN = torch.ones(1, 1, 24, 32), float("nan")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"content": torch.zeros(3, 24, 32)}, "content must have shape"),
        ({"content": torch.full((1, 3, 24, 32), NAN)}, "content must lie in"),
        ({"content": torch.zeros(1, 3, 24, 32, dtype=torch.uint8)}, "content must be floating point"),
        ({"style": torch.full((1, 3, 24, 32), 255.0)}, "style must lie in"),
        ({"style": []}, "style must be one or more pictures"),
        ({"style": [], "regions": []}, "style must be one or more pictures"),
        ({"size": 0}, "size"),
        ({"size": 3}, "needs at least 4 x 4 pixels"),
        ({"scales": [64, 32]}, r"scales must rise to size 32, got \[64, 32\]"),
        ({"scales": [16, 24]}, "scales must rise to size 32"),
        ({"scales": [0, 32]}, "each of scales must be at least 1, got 0"),
        ({"evaluations": 0}, "evaluations must be at least"),
        ({"evaluations": 1, "scales": [16, 32]}, r"at least one per scale \(2\), got 1"),
        ({"start": "contents"}, "start must be content, noise, grey, statistics or a picture, got 'contents'"),
        ({"start": torch.full((1, 3, 24, 32), NAN)}, "start must lie in"),
        ({"start": torch.rand(2, 3, 24, 32)}, "start must be one picture or 1, one for each result, got 2"),
        ({"generator": 1}, "generator must be a torch.Generator or None, got 1"),
        ({"style_weights": [1, 1]}, "style_weights must be 1 finite"),
        ({"style_weights": [-1]}, "style_weights must be a finite number of at least 0, got -1"),
        ({"style_weights": [NAN]}, "style_weights must be a finite number"),
        ({"style_weights": [1], "regions": [ONES]}, "style_weights and regions"),
        ({"regions": [ONES, ONES]}, "regions must be one per style: 1 styles, 2 masks"),
        ({"regions": [torch.zeros(1, 1, 24, 32)]}, "empty at layer relu1_1"),
        ({"regions": [ONES * NAN]}, "regions must be finite"),
        ({"stroke_scale": 0.0}, "stroke_scale must be a finite number above 0"),
        ({"stroke_scale": NAN}, "stroke_scale must be a finite number above 0"),
        ({"stroke_scale": float("inf")}, "stroke_scale must be a finite number above 0"),
        ({"style_scale": 2.0}, "style_scale is now called stroke_scale"),
        ({"blend": [1]}, "blend is now called style_weights"),
        ({"masks": [ONES]}, "masks is now called regions"),
        ({"style_masks": [ONES, ONES]}, "style_masks must be one per style: 1 styles, 2 masks"),
        ({"keep_colour": "yes"}, "keep_colour must be no, match or luminance, got 'yes'"),
        ({"optimiser": "sgd"}, "optimiser must be lbfgs or adam"),
        ({"recipe": {"style_weight": -1.0}}, "style_weight must be a finite number"),
        ({"recipe": {"style_weight": NAN}}, "style_weight must be a finite number"),
        ({"recipe": {"content_weight": -1.0}}, "content_weight must be a finite number"),
        ({"recipe": {"tv_weight": NAN}}, "tv_weight must be a finite number"),
        ({"recipe": {"style_loss": "grams"}}, "style_loss must be gram, meanvar, bures or sliced"),
        ({"recipe": {"style_layers": ("relu7_1",)}}, "has no layer 'relu7_1'"),
        ({"recipe": {"content_layers": ("conv_20",)}}, "has no layer 'conv_20'"),
        ({"recipe": {"layer_weights": (1.0,)}}, "layer_weights must be 2"),
        ({"recipe": {"pooling": "mean"}}, "pooling must be"),
        ({"recipe": {"padding": "reflect"}}, "padding must be"),
    ],
)
def test_a_wrong_argument_is_an_error_before_the_first_evaluation(network, pair, never_evaluated, options, message):
    arguments = {"content": pair[0], "style": pair[1], "size": 32, "evaluations": 4} | options
    with pytest.raises(ValueError, match=message):
        recipe = dataclasses.replace(SMALL, **options.get("recipe", {}))
        stylize(network, **arguments | {"recipe": recipe})


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("keep_colour", ["no", "match", "luminance"])
def test_one_pixel_is_enlarged(network, keep_colour, pair):
    result = stylize(
        network, torch.full((1, 3, 1, 1), 0.6), pair[1], recipe=SMALL, size=32, evaluations=2, keep_colour=keep_colour
    )
    assert result.image.shape == (1, 3, 32, 32) and result.image.isfinite().all()


# --- inversion and textures ---------------------------------------------------------------------------------------


def test_inversion_finds_the_features(offline):
    target = images.load("astronaut", 64)
    result = invert(offline, target, "relu2_1", evaluations=30, generator=torch.Generator().manual_seed(1))
    own, other = (offline(x, ["relu2_1"])["relu2_1"] for x in (result.image, target))
    error = ((own - other).square().sum() / other.square().sum()).item()
    assert error == pytest.approx(min(result.losses), rel=1e-3)
    assert error < 0.1 * result.losses[0]


def test_inversion_of_a_shallow_layer_gives_the_picture(picture):
    target = 0.2 + 0.6 * picture(16, 16)
    network = random_network(channels=(24, 6, 6, 6, 6))
    result = invert(network, target, "conv1_1", evaluations=150)
    torch.testing.assert_close(result.image, target, rtol=0, atol=0.02)


def test_inversion_is_seeded(network, pair):
    runs = [
        invert(network, pair[0], 5, evaluations=3, generator=torch.Generator().manual_seed(seed)).image
        for seed in (1, 1, 2)
    ]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("style_loss", ["gram", "meanvar", "bures", "sliced"])
def test_textures_get_the_statistics(network, pair, style_loss):
    result = synthesize(network, pair[1], ["relu1_1", "relu2_1"], style_loss=style_loss, size=24, evaluations=25)
    assert result.image.shape == (1, 3, 24, 24)
    assert min(result.losses) < 0.3 * result.losses[0]


@pytest.mark.parametrize(("size", "expected"), [(None, (40, 32)), (20, (20, 20)), ((16, 28), (16, 28))])
def test_the_size_of_a_texture(network, pair, size, expected):
    result = synthesize(network, pair[1], ["relu1_1"], size=size, evaluations=1)
    assert result.image.shape[2:] == expected


@pytest.mark.parametrize(
    ("recipe", "arguments", "options", "message"),
    [
        (invert, ["relu9_1"], {}, "has no layer"),
        (invert, ["relu1_1"], {"tv_weight": -1.0}, "weight of tv"),
        (invert, ["relu1_1"], {"tv_weight": NAN}, "weight of tv"),
        (invert, ["relu1_1"], {"evaluations": 0}, "evaluations must be at least 1"),
        (invert, ["relu1_1"], {"start": "photo"}, "start must be"),
        (invert, ["relu1_1"], {"start": torch.rand(3, 3, 24, 32)}, "start must be one picture or 1, one for each"),
        (invert, ["relu1_1"], {"start": "grey", "generator": 1}, "generator must be a torch.Generator or None, got 1"),
        (synthesize, [["relu1_1"]], {"start": torch.rand(3, 3, 24, 32)}, "start must be one picture or 1, one for"),
        (synthesize, [["relu1_1"]], {"generator": "cpu"}, "generator must be a torch.Generator or None, got 'cpu'"),
        (synthesize, ["relu1_1, pool4"], {"size": 8}, "size must be at least 16 x 16 pixels for these layers, got 8 x"),
        (invert, ["pool5"], {}, "needs at least 32 x 32"),
        (synthesize, [["relu9_1"]], {}, "has no layer"),
        (synthesize, [[]], {}, "layers must be one or more names"),
        (synthesize, [["relu1_1"]], {"style_loss": "l2"}, "style_loss must be gram, meanvar, bures or sliced"),
        (synthesize, [["relu1_1"]], {"size": 0}, "size must be at least 1"),
        (synthesize, [["relu1_1"]], {"size": (8, 0)}, "size must be at least 1"),
        (synthesize, [["relu1_1"]], {"layer_weights": [1, 2]}, "layer_weights must be 1"),
        (synthesize, [["relu1_1"]], {"optimiser": "sgd"}, "optimiser must be"),
    ],
)
def test_wrong_arguments_of_the_other_recipes(network, pair, never_evaluated, recipe, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        recipe(network, pair[0], *arguments, **options)


def test_a_texture_too_small_for_its_layers(network, pair):
    with pytest.raises(ValueError, match="size must be at least 4 x 4"):
        synthesize(network, pair[0], ["relu3_1"], size=3)


# --- starts -------------------------------------------------------------------------------------------------------


def test_starts(pair, picture):
    content, style = pair
    draw = lambda seed: torch.Generator().manual_seed(seed)  # noqa: E731
    assert torch.equal(starting_image("content", content, style), content)
    assert torch.equal(starting_image("grey", content, style), torch.full_like(content, 0.5))
    noise = starting_image("noise", content, style, draw(1))
    assert noise.shape == content.shape and noise.min() >= 0 and noise.max() <= 1
    assert 0.15 < noise.std() < 0.25 and 0.45 < noise.mean() < 0.55
    assert torch.equal(noise, starting_image("noise", content, style, draw(1)))
    assert not torch.equal(noise, starting_image("noise", content, style, draw(2)))
    own = picture(50, 10, dtype=torch.float32)
    assert starting_image(own, content, style).shape == content.shape
    assert torch.equal(starting_image(own, own, style), own)


@pytest.mark.parametrize("optimiser", ["lbfgs", "adam"])
def test_one_start_serves_a_batch(network, picture, optimiser):
    photographs, style, start = (picture(batch=count, dtype=torch.float32) for count in (2, 1, 1))
    options = {"recipe": SMALL, "size": 32, "evaluations": 3, "optimiser": optimiser}
    results = [stylize(network, photographs, style, start=x, **options) for x in (start, torch.cat([start, start]))]
    assert results[0].image.shape == (2, 3, 32, 32) and torch.equal(results[0].image, results[1].image)
    assert starting_image(start, photographs, style).shape == photographs.shape


def test_the_statistics_start_has_the_style_s_colours(picture):
    content, style = picture(64, 64), 0.4 + 0.2 * picture(64, 64)
    start = starting_image("statistics", content, style)
    for got, expected in zip(colour.colour_moments(start), colour.colour_moments(style), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0.05, atol=1e-4)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # a narrow random network has cliffs
@pytest.mark.parametrize("start", ["content", "noise", "grey", "statistics"])
def test_every_start_leads_down(network, pair, start):
    result = stylize(network, *pair, recipe=SMALL, size=32, evaluations=12, start=start)
    assert min(result.losses) < 0.9 * result.losses[0]


def test_the_default_recipe_is_the_documented_one():
    """What the docstring, the command line and the notebooks rely on."""
    assert Recipe() == transfer.DEFAULT
    assert len(transfer.DEFAULT.layer_weights) == len(transfer.DEFAULT.style_layers)
    assert TUTORIAL.style_weight / TUTORIAL.content_weight == 1e6


# --- every shipped picture ----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", images.names())
def test_every_statistic_through_the_default_recipe(offline, name):
    """The same picture as content and as style of another, so small that deep layers have few positions."""
    for statistic in STATISTICS:
        recipe = dataclasses.replace(transfer.DEFAULT, style_loss=statistic)
        result = stylize(offline, "chelsea", name, recipe=recipe, size=32, evaluations=2)
        assert np.isfinite(result.losses).all() and result.image.isfinite().all(), statistic


# --- resuming, stopping, panoramas --------------------------------------------------------------------------------


@pytest.mark.parametrize("optimiser", ["lbfgs", "adam"])
def test_a_result_resumed_is_never_worse(offline, optimiser):
    """A picture is continued at its own size, black and white pixels included."""
    arguments = (offline, "chelsea", "hokusai-great-wave")
    first = stylize(*arguments, size=256, evaluations=6, optimiser=optimiser)
    start = (first.image * 1.2 - 0.1).clamp(0, 1)
    shapes = []
    again = stylize(
        *arguments, size=256, evaluations=2, start=start, callback=lambda step: shapes.append(step.image.shape[2:])
    )
    objective = transfer.DEFAULT.objective(
        offline, images.load("chelsea", 256), [images.load("hokusai-great-wave", 256)]
    )
    assert set(shapes) == {start.shape[2:]}
    assert again.loss <= objective(start).item() * (1 + 1e-4)
    assert again.loss == pytest.approx(objective(again.image).item(), rel=0.05)


def test_the_loss_is_that_of_the_finest_scale(network, pair):
    result = stylize(network, *pair, recipe=SMALL, size=64, scales=[16, 64], evaluations=8)
    objective = SMALL.objective(network, images.resize(pair[0], 64), [images.resize(pair[1], 64)])
    assert result.loss == pytest.approx(objective(result.image).item(), rel=1e-3)


def test_ctrl_c_keeps_the_best_picture_at_the_final_size(network, pair):
    def stop(step):
        if step.index == 3:
            raise KeyboardInterrupt

    result = stylize(network, *pair, recipe=SMALL, size=48, scales=[16, 48], evaluations=20, callback=stop)
    assert result.interrupted and result.evaluations == 3 and result.image.shape[2:] == (36, 48)


def test_seconds_end_the_loop_at_the_final_size(network, pair):
    result = stylize(network, *pair, recipe=SMALL, size=48, scales=[16, 48], evaluations=10_000, seconds=0.3)
    assert not result.interrupted and 2 <= result.evaluations < 10_000 and result.image.shape[2:] == (36, 48)
    assert stylize(network, *pair, recipe=SMALL, size=48, scales=[16, 48], seconds=0).evaluations == 2


def test_panoramas(offline):
    """A content of 9:1 and a style of 10:1 at the default size."""
    content, style = torch.rand(1, 3, 100, 900), torch.rand(1, 3, 50, 500)
    shapes = []
    stylize(offline, content, style, evaluations=2, callback=lambda step: shapes.append(tuple(step.image.shape[2:])))
    assert shapes == [(28, 256)] * 2
    with pytest.raises(ValueError, match="size 100 makes the content 11 x 100 pixels"):
        stylize(offline, content, style, size=100, evaluations=2)


def test_the_chroma_is_resized_once_per_scale(network, pair, monkeypatch):
    calls, resize = [], images.resize
    monkeypatch.setattr(images, "resize", lambda image, size: calls.append(size) or resize(image, size))
    stylize(network, *pair, recipe=SMALL, size=32, evaluations=30, keep_colour="luminance")
    assert len(calls) < 15


@pytest.mark.parametrize("layers", ["relu1_1,relu2_1", " relu1_1 , relu2_1 ", [1, 6], ["1", "6"], (np.int64(1), 6)])
def test_layers_in_every_form(network, pair, layers):
    result = synthesize(network, pair[1], layers, evaluations=1)
    assert {name for name in result.terms if name.startswith("style")} == {"style/relu1_1", "style/relu2_1"}


@pytest.mark.parametrize("kind", [Recipe, TiledRecipe])
def test_layers_of_a_recipe_in_every_form(kind):
    assert kind(content_layers="relu4_2") == kind(content_layers=["relu4_2"]) == kind()
    assert kind(content_layers=1, style_layers="relu1_1, 6").style_layers == ("relu1_1", 6)
    assert kind(style_layers=("relu1_1",)).layer_weights is None
    assert kind(style_layers=list(Recipe.style_layers)).layer_weights == Recipe.layer_weights
    assert kind(style_layers="1,3,6,8,11", layer_weights=(1.6, 1.0, 0.8, 0.4, 0.2)).layer_weights[0] == 1.6
    assert dataclasses.replace(kind(), style_layers="relu1_1").layer_weights is None
    with pytest.raises(ValueError, match="style_layers must be one or more names, got None"):
        kind(style_layers=None)


def test_style_masks_choose_a_part_of_the_style(network, picture):
    content, style = picture(32, 32, dtype=torch.float32), picture(32, 32, dtype=torch.float32)
    style[..., 16:] = 1.0
    left = torch.zeros(32, 32, dtype=torch.bool)
    left[:, :16] = True
    recipe = dataclasses.replace(SMALL, style_layers=("conv1_1",), style_loss="meanvar", content_weight=0.0)
    masked = stylize(network, content, style, recipe=recipe, size=32, evaluations=1, style_masks=[left])
    whole = stylize(network, content, style, recipe=recipe, size=32, evaluations=1)
    assert masked.losses != whole.losses


@pytest.mark.parametrize("kind", [Recipe, TiledRecipe])
def test_a_recipe_without_weight_is_refused_when_it_is_made(kind):
    with pytest.raises(ValueError, match="at least one of content_weight, style_weight, tv_weight must be above 0"):
        kind(content_weight=0, style_weight=0, tv_weight=0)
    with pytest.raises(ValueError, match="style_weight must be a finite number of at least 0, got -1"):
        kind(style_weight=-1)


def test_time_that_is_used_up_still_leaves_an_evaluation_for_each_scale(network, pair):
    result = stylize(network, *pair, recipe=SMALL, size=32, scales=(16, 32), evaluations=8, seconds=0)
    assert result.evaluations == 2 and result.image.shape[-1] == 32
    with pytest.raises(ValueError, match="seconds must be a finite number of at least 0, got -5"):
        stylize(network, *pair, recipe=SMALL, size=32, seconds=-5)
