"""Statistics against explicit sums, numpy and scipy."""

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch

from ex4lib.statistics import (
    STATISTICS,
    BuresWasserstein,
    Gram,
    MeanVar,
    SlicedWasserstein,
    at_least_float32,
    gaussian_distance,
    second_moment,
)

ALL = [Gram(), MeanVar(), BuresWasserstein(), SlicedWasserstein(projections=5, quantiles=20)]
each_statistic = pytest.mark.parametrize("statistic", ALL, ids=lambda statistic: type(statistic).__name__)


@pytest.fixture
def feature(generator):
    def make(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return make


@pytest.fixture
def mask(generator):
    """A soft mask with a hard hole."""
    weights = torch.rand(1, 1, 4, 5, generator=generator, dtype=torch.float64)
    weights[..., 1:3, 2:] = 0
    return weights


# --- each against its definition ----------------------------------------------------------------------------------


def test_gram_is_the_double_sum(feature):
    f = feature(2, 3, 4, 5)
    got = Gram()(f)
    for b in range(2):
        for i in range(3):
            for j in range(3):
                total = sum(f[b, i, y, x] * f[b, j, y, x] for y in range(4) for x in range(5))
                assert got[b, i, j].item() == pytest.approx(total.item() / (3 * 4 * 5))


def test_gram_distance_is_a_mean_square(feature):
    a, b = feature(2, 3, 3), feature(2, 3, 3)
    np.testing.assert_allclose(Gram().distance(a, b), ((a - b).numpy() ** 2).mean((1, 2)))


def test_masked_second_moment_is_the_weighted_sum(feature, mask):
    f = feature(1, 3, 4, 5)
    expected = np.einsum("iyx,jyx,yx->ij", f[0], f[0], mask[0, 0]) / mask.sum().item()
    np.testing.assert_allclose(second_moment(f, mask)[0], expected)


def test_meanvar_is_numpy_s(feature):
    f = feature(2, 3, 4, 5)
    got = MeanVar()(f)
    np.testing.assert_allclose(got[:, 0], f.numpy().mean((2, 3)))
    np.testing.assert_allclose(got[:, 1], f.numpy().var((2, 3), ddof=0))
    other = feature(2, 2, 3)
    expected = ((got - other).numpy()[:, 0] ** 2).mean(1) + ((got - other).numpy()[:, 1] ** 2).mean(1)
    np.testing.assert_allclose(MeanVar().distance(got, other), expected)


def test_masked_meanvar_is_numpy_s_weighted_average(feature, mask):
    f = feature(1, 3, 4, 5)
    got = MeanVar()(f, mask)[0].numpy()
    rows, weights = f[0].flatten(1).numpy(), mask.flatten().numpy()
    mean = np.average(rows, axis=1, weights=weights)
    np.testing.assert_allclose(got[0], mean)
    np.testing.assert_allclose(got[1], np.average((rows - mean[:, None]) ** 2, axis=1, weights=weights))


def test_bures_wasserstein_is_scipy_s(feature):
    epsilon = 1e-4
    statistic = BuresWasserstein(epsilon)
    a, b = feature(2, 4, 5, 6), 0.5 + 2 * feature(2, 4, 7, 6)
    got = statistic.distance(statistic(a), statistic(b))
    for image in range(2):
        x, y = a[image].flatten(1).numpy(), b[image].flatten(1).numpy()
        own, other = (np.cov(z, bias=True) + epsilon * np.eye(4) for z in (x, y))
        root = scipy.linalg.sqrtm(other)
        cross = np.real(scipy.linalg.sqrtm(root @ own @ root))
        expected = ((x.mean(1) - y.mean(1)) ** 2).sum() + np.trace(own + other - 2 * cross)
        assert got[image].item() == pytest.approx(expected / 4, rel=1e-8)


def test_bures_wasserstein_in_one_dimension(feature):
    """Between one-dimensional Gaussians: (μ - μ*)² + (σ - σ*)²."""
    statistic = BuresWasserstein(1e-12)
    a, b = feature(1, 1, 8, 8), 3 + 2 * feature(1, 1, 8, 8)
    expected = (a.mean() - b.mean()) ** 2 + (a.std(correction=0) - b.std(correction=0)) ** 2
    assert statistic.distance(statistic(a), statistic(b)).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("positions", [1, 2, 5, 40])
def test_bures_wasserstein_of_fewer_positions_than_channels(positions):
    """Covariances without full rank, of large and uneven features: float32 agrees with float64."""
    generator = torch.Generator().manual_seed(positions)
    scales = torch.logspace(-3, 3, 64, dtype=torch.float64)[:, None, None]
    a, b = (scales * torch.rand(1, 64, 1, positions, generator=generator, dtype=torch.float64) for _ in range(2))
    statistic = BuresWasserstein()
    exact = statistic.distance(statistic(a), statistic(b)).item()
    single = a.float().requires_grad_()
    loss = statistic.distance(statistic(single), statistic(b.float()))
    (gradient,) = torch.autograd.grad(loss.sum(), single)
    assert gradient.isfinite().all()
    assert loss.item() == pytest.approx(exact, rel=0.02)


def test_gaussian_distance_of_commuting_covariances():
    """Of diagonal covariances: ‖μ - μ*‖² + Σ (σ - σ*)²."""
    mean, other_mean, deviation, other = torch.rand(4, 3, 5, dtype=torch.float64)
    got = gaussian_distance(mean, torch.diag_embed(deviation**2), other_mean, torch.diag_embed(other**2))
    expected = (mean - other_mean).square().sum(1) + (deviation - other).square().sum(1)
    torch.testing.assert_close(got, expected)


def test_bures_wasserstein_survives_dead_channels_in_float32():
    f = torch.rand(1, 8, 4, 4)
    f[:, 3:] = 0
    f.requires_grad_()
    statistic = BuresWasserstein()
    loss = statistic.distance(statistic(f), statistic(torch.rand(1, 8, 4, 4)))
    (gradient,) = torch.autograd.grad(loss.sum(), f)
    assert loss.isfinite().all() and gradient.isfinite().all()


def projections(statistic, channels):
    """The directions of a sliced Wasserstein statistic, read off its answers to unit vectors."""
    columns = [
        statistic(torch.eye(channels, dtype=torch.float64)[i].view(1, -1, 1, 1))[0, :, 0] for i in range(channels)
    ]
    return torch.stack(columns, 1).numpy()


def test_sliced_wasserstein_is_sorting(feature):
    statistic = SlicedWasserstein(projections=6, quantiles=20, seed=3)
    a, b = feature(1, 3, 4, 5), feature(1, 3, 5, 4)
    directions = projections(statistic, 3)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1)
    own, other = (np.sort(directions @ f[0].flatten(1).numpy(), axis=1) for f in (a, b))
    np.testing.assert_allclose(statistic(a)[0], own, rtol=0, atol=1e-13)
    got = statistic.distance(statistic(a), statistic(b)).item()
    assert got == pytest.approx(((own - other) ** 2).mean(), rel=1e-12)


def test_sliced_wasserstein_in_one_dimension(feature):
    statistic = SlicedWasserstein(projections=3, quantiles=30)
    a = feature(1, 1, 5, 6)
    b = feature(1, 1, 5, 6)
    expected = ((np.sort(a.flatten()) - np.sort(b.flatten())) ** 2).mean()  # W2² of two samples of one size
    assert statistic.distance(statistic(a), statistic(b)).item() == pytest.approx(expected)
    assert statistic.distance(statistic(a), statistic(a + 0.7)).item() == pytest.approx(0.49)


def test_sliced_wasserstein_of_samples_of_different_sizes():
    """Uniform on [0, 1] against uniform on [0, 2]: W2² = ∫ q² dq = 1/3."""
    statistic = SlicedWasserstein(projections=1, quantiles=200)
    a, b = torch.linspace(0, 1, 400).view(1, 1, 20, 20), torch.linspace(0, 2, 900).view(1, 1, 30, 30)
    assert statistic.distance(statistic(a), statistic(b)).item() == pytest.approx(1 / 3, rel=0.01)


def test_sliced_wasserstein_has_fixed_directions(feature):
    f = feature(1, 3, 4, 5)
    assert torch.equal(SlicedWasserstein(seed=1)(f), SlicedWasserstein(seed=1)(f))
    assert not torch.equal(SlicedWasserstein(seed=1)(f), SlicedWasserstein(seed=2)(f))


# --- what all have in common --------------------------------------------------------------------------------------


def test_the_names():
    assert {name: type(make()) for name, make in STATISTICS.items()} == {
        "gram": Gram,
        "meanvar": MeanVar,
        "bures": BuresWasserstein,
        "sliced": SlicedWasserstein,
    }


@each_statistic
def test_the_distance_to_itself_is_zero_and_to_others_positive(statistic, feature):
    own, other = statistic(feature(2, 3, 4, 5)), statistic(feature(2, 3, 4, 5))
    assert statistic.distance(own, own).abs().max() < 1e-12
    assert statistic.distance(own, other).shape == (2,)
    assert (statistic.distance(own, other) > 1e-3).all()
    torch.testing.assert_close(statistic.distance(own, other), statistic.distance(other, own))


@each_statistic
@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck(statistic, feature, mask, masked):
    target = statistic(feature(2, 3, 4, 5))
    guide = mask if masked else None
    f = feature(2, 3, 4, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: statistic(x, guide), (f,), fast_mode=True)
    assert torch.autograd.gradcheck(lambda x: statistic.distance(statistic(x, guide), target), (f,))


@each_statistic
def test_places_do_not_matter(statistic, feature, generator):
    f = feature(1, 3, 4, 5)
    order = torch.randperm(20, generator=generator)
    torch.testing.assert_close(statistic(f.flatten(2)[..., order].view(1, 3, 5, 4)), statistic(f))


@each_statistic
def test_size_does_not_matter(statistic, feature):
    f = feature(1, 3, 4, 5)
    torch.testing.assert_close(statistic(f.repeat(1, 1, 2, 2)), statistic(f))


@each_statistic
def test_a_batch_is_its_images(statistic, feature, mask):
    f, target = feature(3, 3, 4, 5), statistic(feature(1, 3, 4, 5))
    for guide in (None, mask):
        together = statistic.distance(statistic(f, guide), target)
        alone = torch.cat([statistic.distance(statistic(each[None], guide), target) for each in f])
        torch.testing.assert_close(together, alone)


@each_statistic
def test_each_image_of_a_batch_may_have_its_own_mask(statistic, feature, generator):
    f = feature(2, 3, 4, 5)
    masks = torch.rand(2, 1, 4, 5, generator=generator, dtype=torch.float64)
    alone = torch.cat([statistic(f[i : i + 1], masks[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(statistic(f, masks), alone)


@each_statistic
@pytest.mark.parametrize("level", [1.0, 0.25])
def test_an_even_mask_is_no_mask(statistic, feature, level):
    f = feature(2, 3, 4, 5)
    torch.testing.assert_close(statistic(f, torch.full((1, 1, 4, 5), level)), statistic(f))


@each_statistic
def test_a_hard_mask_is_a_crop(statistic, feature):
    f = feature(1, 3, 6, 7)
    mask = torch.zeros(1, 1, 6, 7)
    mask[..., 1:5, 2:] = 1
    torch.testing.assert_close(statistic(f, mask), statistic(f[..., 1:5, 2:]))


@each_statistic
def test_no_gradient_outside_the_mask(statistic, feature, mask):
    f = feature(1, 3, 4, 5).requires_grad_()
    (gradient,) = torch.autograd.grad(statistic(f, mask).square().sum(), f)
    inside = mask.expand_as(f) > 0
    assert gradient[~inside].abs().max() == 0
    assert gradient[inside].abs().min() >= 0 and gradient[inside].abs().sum() > 0
    moved = f.detach() + 100 * (~inside)
    torch.testing.assert_close(statistic(moved, mask), statistic(f.detach(), mask))


@each_statistic
def test_a_mask_of_one_position(statistic, feature):
    f = feature(1, 3, 4, 5)
    mask = torch.zeros(1, 1, 4, 5)
    mask[..., 2, 3] = 1
    torch.testing.assert_close(statistic(f, mask), statistic(f[..., 2:3, 3:4]))


@each_statistic
def test_half_precision_features_give_float32_statistics(statistic, feature):
    f = feature(1, 3, 4, 5)
    half = f.to(torch.bfloat16)
    assert statistic(half).dtype == torch.float32
    assert statistic(f).dtype == torch.float64
    torch.testing.assert_close(statistic(half), statistic(half.float()))


@each_statistic
def test_memory_format_does_not_matter(statistic, feature):
    f = feature(2, 3, 4, 5)
    torch.testing.assert_close(statistic(f.contiguous(memory_format=torch.channels_last)), statistic(f))


def test_at_least_float32():
    kinds = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    got = [at_least_float32(torch.ones(1, dtype=kind)).dtype for kind in kinds]
    assert got == [torch.float32, torch.float32, torch.float32, torch.float64]


def test_gram_holds_what_meanvar_holds_of_independent_channels(feature):
    """diag(G)·C = μ² + σ²: the Gram matrix does not separate the two, MeanVar does."""
    f = feature(1, 3, 4, 5)
    mean, variance = MeanVar()(f)[0]
    torch.testing.assert_close(Gram()(f)[0].diagonal() * 3, mean**2 + variance)
