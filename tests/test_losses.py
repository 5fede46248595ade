"""Terms, objectives and calibration."""

import dataclasses
import functools

import numpy as np
import pytest
import torch

from ex4lib import images
from ex4lib.losses import ContentTerm, Objective, TotalVariation, content_terms, style_terms
from ex4lib.statistics import Gram
from ex4lib.tiles import TiledRecipe
from ex4lib.transfer import Recipe
from experiments.calibration import calibrate, reweighted
from tests.random_models import random_network

STATISTICS = ("gram", "meanvar", "bures", "sliced")
LAYERS = ("relu1_1", "relu2_1", "relu3_1")


def gradient(objective, image, only=""):
    """The gradient of the parts whose name begins with ``only``."""
    x = image.clone().requires_grad_()
    loss = sum(value.sum() for name, value in objective.terms(x).items() if name.startswith(only))
    return torch.autograd.grad(loss, x)[0]


# --- terms --------------------------------------------------------------------------------------------------------


def test_content_is_a_mean_square(small, picture):
    content, image = picture(), picture(batch=2)
    (term,) = content_terms(small, content, ["conv_4"], 3.0)
    objective = Objective(small, [term])
    own, other = (small(x, ["conv2_2"])["conv2_2"].numpy() for x in (image, content))
    np.testing.assert_allclose(objective(image), 3 * ((own - other) ** 2).mean((1, 2, 3)))
    assert objective(content).item() == 0


def test_relative_content_is_a_fraction_of_the_target(small, picture):
    content, image = picture(), picture()
    (term,) = content_terms(small, content, ["relu2_2"], relative=True)
    own, other = (small(x, ["relu2_2"])["relu2_2"].numpy() for x in (image, content))
    got = Objective(small, [term])(image).item()
    assert got == pytest.approx(((own - other) ** 2).sum() / (other**2).sum())


@pytest.mark.parametrize("tile", [None, 32])
def test_relative_content_has_a_unit_for_each_image(small, picture, tile):
    """A batch of a bright and a dark photograph is a batch of two single ones, whole or in tiles."""
    photographs, image = picture(64, 64) * torch.tensor([1.0, 0.1]).view(2, 1, 1, 1), picture(64, 64, batch=2)
    kind = Recipe if tile is None else functools.partial(TiledRecipe, tile=tile)
    recipe = kind(content_layers=("relu2_1",), style_weight=0.0, content_weight=3.0)
    whole = recipe.objective(small, photographs, [picture()]).terms(image)["content/relu2_1"]
    for number in (0, 1):
        single = recipe.objective(small, photographs[number][None], [picture()])
        torch.testing.assert_close(single.terms(image[number][None])["content/relu2_1"], whole[number][None])
    network = small.variant(pooling=recipe.pooling, padding=recipe.padding)
    terms = content_terms(network, photographs, "relu2_1", 3.0, relative=True)
    torch.testing.assert_close(Objective(network, terms)(image), whole)


def test_total_variation_is_the_explicit_sum(generator):
    image = torch.rand(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    for b, got in enumerate(TotalVariation().loss(image, {})):
        x = image[b].numpy()
        rows = [(x[c, i + 1, j] - x[c, i, j]) ** 2 for c in range(3) for i in range(3) for j in range(5)]
        columns = [(x[c, i, j + 1] - x[c, i, j]) ** 2 for c in range(3) for i in range(4) for j in range(4)]
        assert got.item() == pytest.approx(np.mean(rows) + np.mean(columns))


def test_a_half_picture_is_summed_in_float32(generator):
    image = torch.rand(1, 3, 512, 512, generator=generator).half()
    torch.testing.assert_close(TotalVariation().loss(image, {}), TotalVariation().loss(image.float(), {}))


def test_total_variation_does_not_depend_on_the_resolution():
    """A ramp over n pixels has steps of 1 / n each: scaled by n² the mean square step is that of any other ramp."""
    ramp = lambda n: torch.linspace(0, 1, n + 1, dtype=torch.float64).expand(1, 3, 4, -1)  # noqa: E731
    for n in (8, 64):
        assert TotalVariation().loss(ramp(n), {}).item() == pytest.approx(n**-2)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_a_style_has_no_distance_to_itself(small, picture, statistic):
    style = picture()
    objective = Objective(small, style_terms(small, style, LAYERS, statistic))
    assert abs(objective(style).item()) < 1e-10
    assert objective(picture()).item() > 1e-6


def test_relative_gram_is_a_fraction_of_the_target(small, picture):
    style, image = picture(), picture(24, 40)
    terms = style_terms(small, style, ["relu2_1"], "gram", relative=True)
    own, other = (Gram()(small(x, ["relu2_1"])["relu2_1"]).numpy() for x in (image, style))
    got = Objective(small, terms)(image).item()
    assert got == pytest.approx(((own - other) ** 2).sum() / (other**2).sum())


@pytest.mark.parametrize("statistic", STATISTICS)
def test_statistics_of_several_styles_blend_linearly(small, picture, statistic):
    styles = [picture(32, 32), picture(32, 48)]
    alone = [style_terms(small, style, LAYERS, statistic) for style in styles]
    both = style_terms(small, styles, LAYERS, statistic, style_weights=[1, 3])
    for first, second, blended in zip(*alone, both, strict=True):
        torch.testing.assert_close(blended.target, 0.25 * first.target + 0.75 * second.target)
    even = style_terms(small, styles, LAYERS, statistic)
    torch.testing.assert_close(even[0].target, (alone[0][0].target + alone[1][0].target) / 2)


def test_layer_weights_multiply(small, picture):
    terms = style_terms(small, picture(), LAYERS, weight=2.0, layer_weights=[1, 0, 0.5])
    assert [term.weight for term in terms] == [2.0, 0.0, 1.0]


def test_a_batch_of_styles_gives_each_image_its_own(small, picture):
    styles, images = picture(batch=2), picture(batch=2)
    together = Objective(small, style_terms(small, styles, LAYERS))(images)
    for i in range(2):
        alone = Objective(small, style_terms(small, styles[i : i + 1], LAYERS))(images[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone)


# --- masks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("statistic", STATISTICS)
def test_a_mask_of_ones_is_no_mask(small, picture, statistic):
    style, image = picture(), picture(24, 32)
    plain = Objective(small, style_terms(small, style, LAYERS, statistic))
    masked = Objective(
        small,
        style_terms(
            small, style, LAYERS, statistic, regions=[torch.ones(1, 1, 24, 32)], style_masks=[torch.ones(1, 1, 32, 32)]
        ),
    )
    torch.testing.assert_close(masked(image), plain(image), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("layer", "reach"), [("relu1_1", 1), ("relu1_2", 2)])
@pytest.mark.parametrize("statistic", STATISTICS)
def test_a_region_s_gradient_ends_at_the_receptive_field(small, picture, statistic, layer, reach):
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., :12] = 1
    terms = style_terms(small, picture(), [layer], statistic, regions=[mask])
    got = gradient(Objective(small, terms), picture())
    assert got[..., 12 + reach :].abs().max() == 0
    assert got[..., 12 + reach - 1].abs().max() > 0


def test_style_masks_choose_the_region_of_the_style(small, picture):
    left, right = picture(32, 16), picture(32, 16)
    style = torch.cat([left, right], 3)
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., :16] = 1
    (masked,) = style_terms(small, style, ["relu1_1"], "meanvar", style_masks=[mask])
    (alone,) = style_terms(small, left, ["relu1_1"], "meanvar")
    # The two differ only where the convolution looks over the seam.
    assert (masked.target - alone.target).abs().max() < 0.1 * alone.target.abs().max()
    style[..., 17:] = 1 - style[..., 17:]
    (other,) = style_terms(small, style, ["relu1_1"], "meanvar", style_masks=[mask])
    torch.testing.assert_close(other.target, masked.target)


def test_style_masks_that_do_not_fit(small, picture):
    with pytest.raises(ValueError, match="style_masks must be one per style"):
        style_terms(small, [picture(), picture()], LAYERS, style_masks=[torch.ones(1, 1, 32, 32)])
    with pytest.raises(ValueError, match=r"style_masks.*size.*32 x 32"):
        style_terms(small, picture(), LAYERS, style_masks=[torch.ones(1, 1, 16, 16)])


def test_an_emptied_region_is_an_error(small, picture):
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., :2, :2] = 1
    with pytest.raises(ValueError, match="empty at layer relu3_1"):
        style_terms(small, picture(), LAYERS, regions=[mask])


# --- objectives ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("statistic", STATISTICS)
def test_a_batch_is_its_images(small, picture, statistic):
    network = small.float()
    parts = [
        *content_terms(network, picture(dtype=torch.float32), ["relu3_1"]),
        *style_terms(network, picture(dtype=torch.float32), LAYERS, statistic, relative=True),
        TotalVariation(0.5),
    ]
    objective, images = Objective(network, parts), picture(batch=3, dtype=torch.float32)
    alone = torch.cat([objective(image[None]) for image in images])
    torch.testing.assert_close(objective(images), alone, rtol=1e-5, atol=1e-7)


def test_an_objective_is_the_sum_of_its_weighted_terms(small, picture):
    image = picture(batch=2)
    parts = [*content_terms(small, picture(), ["relu2_1"]), *style_terms(small, picture(), LAYERS), TotalVariation()]
    weights = [0.5, 1.0, 2.0, 3.0, 7.0]
    weighted = [dataclasses.replace(part, weight=weight) for part, weight in zip(parts, weights, strict=True)]
    expected = sum(w * Objective(small, [part])(image) for part, w in zip(parts, weights, strict=True))
    torch.testing.assert_close(Objective(small, weighted)(image), expected)
    assert list(Objective(small, weighted).terms(image)) == [
        "content/relu2_1",
        "style/relu1_1",
        "style/relu2_1",
        "style/relu3_1",
        "tv",
    ]


def test_terms_of_weight_zero_cost_nothing(small, picture):
    calls = []
    small.convolutions["conv3_1"].register_forward_hook(lambda *_: calls.append(1))
    parts = style_terms(small, picture(), ["relu1_1", "relu3_1"], layer_weights=[1, 0])
    calls.clear()
    assert list(Objective(small, parts).terms(picture())) == ["style/relu1_1"]
    assert calls == []


def test_smoothness_alone_needs_no_network(picture):
    image = picture()
    assert torch.equal(Objective(None, [TotalVariation(2.0)])(image), 2 * TotalVariation().loss(image, {}))


def test_one_pass_serves_all_terms(small, picture):
    calls = []
    parts = [*content_terms(small, picture(), ["relu3_1"]), *style_terms(small, picture(), LAYERS)]
    small.convolutions["conv1_1"].register_forward_hook(lambda *_: calls.append(1))
    Objective(small, parts)(picture(batch=2))
    assert len(calls) == 1


@dataclasses.dataclass(frozen=True)
class _Difference:
    """A term of one's own, of the difference between the means of its layers; it keeps a list of the calls."""

    layers: tuple[str, ...]
    calls: list
    weight: float = 2.0

    @property
    def name(self):
        return "/".join(self.layers)

    def loss(self, image, features):
        self.calls.append(self.name)
        first, *_, last = (features[layer].mean((1, 2, 3)) for layer in self.layers)
        return first - last


def test_a_loss_is_made_as_soon_as_its_layers_are_reached(small, picture):
    """In the order of the layers and before deeper layers are computed; the losses keep the order of the terms."""
    image, calls = picture(), []
    parts = [_Difference(layers, calls) for layers in (("relu3_1", "relu1_1"), ("relu2_1", "relu1_1"))]
    small.convolutions["conv2_2"].register_forward_hook(lambda *_: calls.append("conv2_2"))
    losses = Objective(small, parts).terms(image)
    assert calls == ["relu2_1/relu1_1", "conv2_2", "relu3_1/relu1_1"] and list(losses) == [part.name for part in parts]
    means = {name: feature.mean() for name, feature in small(image, LAYERS).items()}
    for part in parts:
        torch.testing.assert_close(losses[part.name][0], 2 * (means[part.layers[0]] - means["relu1_1"]))


def test_targets_take_no_gradient(small, picture):
    style = picture().requires_grad_()
    parts = [*style_terms(small, style, LAYERS), *content_terms(small, style, ["relu2_1"])]
    assert not any(part.target.requires_grad for part in parts)


def test_an_objective_of_images_alone(small, picture):
    with pytest.raises(ValueError, match="at least one term"):
        Objective(small, [])


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_bad_weights(small, picture, weight):
    for build in (
        lambda: Objective(small, [TotalVariation(weight)]),
        lambda: content_terms(small, picture(), ["relu1_1"], weight),
        lambda: style_terms(small, picture(), ["relu1_1"], weight=weight),
    ):
        with pytest.raises(ValueError, match=r"the weight of .* must be a finite number of at least 0"):
            build()


def test_weights_that_are_all_zero(small, picture):
    with pytest.raises(ValueError, match="at least one of the weights of an objective must be above 0"):
        Objective(small, [TotalVariation(0.0), *style_terms(small, picture(), ["relu1_1"], weight=0)])
    with pytest.raises(ValueError, match="at least one of the weights"):
        reweighted(Objective(small, [TotalVariation(1.0)]), {"tv": 0.0})


def test_terms_of_one_name(small, picture):
    terms = style_terms(small, picture(), ["relu1_1"])
    with pytest.raises(ValueError, match="different names"):
        Objective(small, [*terms, *terms])
    Objective(small, [*terms, *style_terms(small, picture(), ["relu1_1"], regions=[torch.ones(1, 1, 32, 32)])])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ["relu9_9"]}, "has no layer 'relu9_9'"),
        ({"statistic": "grams"}, "style_loss must be gram, meanvar, bures or sliced"),
        ({"layer_weights": [1, 2]}, "layer_weights must be 3"),
        ({"layer_weights": [1, -1, 1]}, "layer_weights"),
        ({"layer_weights": [1, float("nan"), 1]}, "layer_weights"),
        ({"layer_weights": [0, 0, 0]}, "layer_weights"),
        ({"style_weights": [1, 2]}, "style_weights must be 1"),
        ({"images": []}, "style image must be one or more pictures"),
        ({"images": torch.full((1, 3, 32, 32), 2.0)}, r"style image must lie in \[0, 1\]"),
        ({"images": torch.rand(1, 3, 3, 3, dtype=torch.float64)}, "needs at least 4 x 4 pixels"),
    ],
)
def test_bad_styles(small, picture, options, message):
    arguments = {"images": picture(), "layers": LAYERS} | options
    with pytest.raises(ValueError, match=message):
        style_terms(small, **arguments)


def test_style_masks_and_regions_are_pictures_of_any_kind(small, picture):
    coffee = images.mask("coffee")
    style = picture(*coffee.shape[-2:])
    for argument in ("style_masks", "regions"):
        terms = [style_terms(small, style, LAYERS, **{argument: [mask]}) for mask in ("coffee", coffee)]
        for named, given in zip(*terms, strict=True):
            assert torch.equal(named.target, given.target)
            assert (named.mask is None and given.mask is None) or torch.equal(named.mask, given.mask)


def test_sizes_that_differ_from_the_image_are_one_sentence(small, picture):
    """Also those with as many pixels."""
    content = Objective(small, content_terms(small, picture(16, 64), ["relu2_1"]))
    with pytest.raises(ValueError, match="the content at relu2_1 must have the size of the image: 16 x 16, got 8 x 32"):
        content(picture(32, 32))
    region = torch.ones(1, 1, 16, 64)
    style = Objective(small, style_terms(small, picture(), ["relu2_1"], regions=[region]))
    with pytest.raises(ValueError, match="regions at relu2_1 must have the size of the image: 16 x 16, got 8 x 32"):
        style(picture(32, 32))
    tiled = TiledRecipe(tile=32, content_layers="relu2_1").objective(small, picture(64, 96), [picture()])
    with pytest.raises(ValueError, match=r"must have the content's size \(64, 96\), got \(96, 64\)"):
        tiled(picture(96, 64))


def test_nothing_to_be_relative_to(picture):
    """A layer that never answers has no norm to divide by."""
    silent = random_network()
    silent.convolutions["conv1_1"].weight.data.zero_()
    silent.convolutions["conv1_1"].bias.data.fill_(-1)
    with pytest.raises(ValueError, match="layer relu1_1 gives the target a norm of 0"):
        content_terms(silent, picture(), ["relu1_1"], relative=True)
    with pytest.raises(ValueError, match="layer relu1_1 gives the target a norm of 0"):
        TiledRecipe(tile=32, content_layers=("relu1_1",)).objective(silent, picture(64, 64), [picture()])
    with pytest.raises(ValueError, match="layer relu1_1 gives the target a norm of 0"):
        style_terms(silent, picture(), ["relu1_1"], relative=True)


def test_reweighted(small, picture):
    image = picture()
    parts = [*content_terms(small, picture(), ["relu2_1"]), *style_terms(small, picture(), LAYERS[:2], weight=2.0)]
    objective = Objective(small, [*parts, TotalVariation(3.0)])
    other = reweighted(objective, {"style": 10, "style/relu2_1": 7, "tv": 0})
    assert {part.name: part.weight for part in other.parts} == {
        "content/relu2_1": 1.0,
        "style/relu1_1": 20.0,
        "style/relu2_1": 7,
        "tv": 0.0,
    }
    before, after = objective.terms(image), other.terms(image)
    torch.testing.assert_close(after["style/relu1_1"], 10 * before["style/relu1_1"])
    assert [part.weight for part in objective.parts] == [1.0, 2.0, 2.0, 3.0]


# --- calibration --------------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(small, picture):
    """An objective of content and style for one statistic."""
    content, style = picture(), picture()

    def make(statistic="gram", **options):
        parts = [*content_terms(small, content, ["relu3_1"]), *style_terms(small, style, LAYERS, statistic, **options)]
        return Objective(small, [*parts, TotalVariation(0.3)]), content

    return make


def perturbed(image, noise, seed):
    disturbance = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    return (image + noise * disturbance.to(image)).clamp(0, 1)


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("ratio", [1.0, 5.0])
@pytest.mark.parametrize("per_layer", [False, True])
def test_after_calibration_the_gradients_have_the_stated_ratio(mixed, statistic, ratio, per_layer):
    objective, content = mixed(statistic)
    calibrated = calibrate(
        objective, content, ratio, noise=0.2, per_layer=per_layer, generator=torch.Generator().manual_seed(5)
    )
    x = perturbed(content, 0.2, 5)
    style, own = gradient(calibrated, x, "style").norm(), gradient(calibrated, x, "content").norm()
    assert (style / own).item() == pytest.approx(ratio, rel=1e-9)
    weights = {part.name: part.weight for part in calibrated.parts}
    assert weights["content/relu3_1"] == 1.0 and weights["tv"] == 0.3


def test_calibration_forgets_the_scale_of_the_weights(mixed):
    objective, content = mixed(layer_weights=[1, 2, 3])
    weights = [
        [part.weight for part in calibrate(reweighted(objective, {"style": factor}), content).parts]
        for factor in (1.0, 1e6)
    ]
    assert weights[0] == pytest.approx(weights[1])
    assert weights[0][1:4] == pytest.approx([weights[0][1], 2 * weights[0][1], 3 * weights[0][1]])


@pytest.mark.parametrize("statistic", STATISTICS)
def test_per_layer_weights_are_shares_of_the_gradient(mixed, statistic):
    shares = [1.0, 0.5, 0.25]
    objective, content = mixed(statistic, layer_weights=shares)
    calibrated, x = calibrate(objective, content, per_layer=True), perturbed(content, 0.1, 0)
    norms = [gradient(calibrated, x, f"style/{layer}").norm().item() for layer in LAYERS]
    assert [norm / norms[0] for norm in norms] == pytest.approx(shares)


def test_calibration_without_content(small, picture):
    image = picture()
    objective = Objective(small, style_terms(small, picture(), LAYERS))
    calibrated = calibrate(objective, image, 3.0)
    assert gradient(calibrated, perturbed(image, 0.1, 0)).norm().item() == pytest.approx(3.0)


def test_a_layer_of_weight_zero_stays_out(mixed):
    objective, content = mixed(layer_weights=[1, 0, 1])
    assert [part.weight for part in calibrate(objective, content, per_layer=True).parts][2] == 0


@pytest.mark.parametrize("per_layer", [False, True])
def test_calibration_without_a_style_gradient(small, picture, per_layer):
    class Deaf(Gram):
        """A statistic that hears nothing."""

        def __call__(self, features, mask=None):
            return super().__call__(features, mask) * 0

    content = content_terms(small, picture(), ["relu2_1"])
    deaf = style_terms(small, picture(), ["relu1_1"], Deaf())
    for parts in (content, [*content, *deaf]):
        with pytest.raises(ValueError, match="style gradient"):
            calibrate(Objective(small, parts), picture(), per_layer=per_layer)


def test_calibration_leaves_the_image_and_the_weights_alone(mixed):
    objective, content = mixed()
    before = content.clone()
    calibrate(objective, content)
    assert torch.equal(content, before) and not content.requires_grad
    assert [part.weight for part in objective.parts] == [1.0, 1.0, 1.0, 1.0, 0.3]


def test_content_term_is_a_term_of_one_layer():
    term = ContentTerm("relu1_1", torch.zeros(1, 2, 3, 3), 2.0)
    assert (term.name, term.layers) == ("content/relu1_1", ("relu1_1",))
