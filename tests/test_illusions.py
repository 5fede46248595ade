"""Views, anagrams and hybrids: orthogonality, identities, and what each prompt gets."""

import diffusers
import pytest
import torch

from ex4lib.diffusion.denoisers import Output, Pixels
from ex4lib.diffusion.guidance import Guidance
from ex4lib.diffusion.pixel import pixel_model
from ex4lib.diffusion.sampling import finish, sample
from experiments import illusions
from experiments.illusions import (
    FLIP,
    IDENTITY,
    INNER_CIRCLE,
    NEGATION,
    ROTATION,
    Anagram,
    Hybrid,
    low_pass,
    patches,
)
from tests.random_models import save_pixel

VIEWS = [IDENTITY, FLIP, ROTATION, NEGATION, INNER_CIRCLE, patches(4), patches(2, seed=3)]


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
@pytest.mark.parametrize("size", [(32, 32), (16, 32)])
def test_a_view_is_an_orthogonal_map_with_an_exact_inverse(view, size, generator):
    x, y = torch.randn(2, 3, 6, *size, generator=generator)
    assert torch.equal(view.invert(view.apply(x)), x)
    assert torch.equal(view.restore(view.permute(x)), x)
    torch.testing.assert_close((view.apply(x) * view.apply(y)).sum(), (x * y).sum())
    assert torch.equal(
        view.apply(x).abs().flatten().sort().values, x.abs().flatten().sort().values
    )  # unit variance kept


@pytest.mark.parametrize("view", [v for v in VIEWS if v is not IDENTITY], ids=lambda view: view.name)
def test_a_view_shows_something_else_and_stays_in_range(view, picture):
    image = picture(32, 32, dtype=torch.float32)
    assert (view.shown(image) - image).abs().mean() > 0.02
    torch.testing.assert_close(2 * view.shown(image) - 1, view.apply(2 * image - 1))


def test_patches_need_sides_that_can_be_divided():
    with pytest.raises(ValueError, match="30 x 32 pixels has no 4 x 4 equal patches"):
        patches(4).apply(torch.zeros(1, 3, 30, 32))


class Wish:
    """A denoiser that believes in one picture."""

    embeddings, guidance_scale, dtype = None, 1.0, torch.float64
    space, unet = Pixels(), torch.nn.Identity()

    def __init__(self, clean, alphas, variance=None):
        self.clean, self.alphas, self.variance = clean, alphas, variance

    def __call__(self, x, t):
        a = self.alphas[int(t)].double()
        return Output((x - a.sqrt() * self.clean) / (1 - a).sqrt(), self.variance)


@pytest.fixture
def scheduler():
    return diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=True)


@pytest.mark.parametrize("view", VIEWS[1:], ids=lambda view: view.name)
def test_an_anagram_settles_on_the_mean_of_both_wishes(view, scheduler, generator):
    """Each prompt wishes for a picture as seen in its view: the result is the mean of what they wish for here."""
    first, second, x = torch.randn(3, 1, 3, 16, 16, generator=generator, dtype=torch.float64)
    both = Anagram([Wish(w, scheduler.alphas_cumprod) for w in (first, second)], [IDENTITY, view])
    step, _ = finish(sample(both, scheduler, x, steps=20))
    torch.testing.assert_close(step.sample, (first + view.invert(second)) / 2, atol=1e-4, rtol=0)


def test_one_wish_twice_is_that_wish(scheduler, generator):
    wish, x = torch.randn(2, 1, 3, 16, 16, generator=generator, dtype=torch.float64)
    both = Anagram([Wish(wish, scheduler.alphas_cumprod)] * 2, [IDENTITY, IDENTITY])
    torch.testing.assert_close(both(x, 500).prediction, Wish(wish, scheduler.alphas_cumprod)(x, 500).prediction)


def test_variance_is_turned_but_not_negated(scheduler, generator):
    wish, variance = torch.randn(2, 1, 3, 8, 8, generator=generator, dtype=torch.float64)
    told = Wish(wish, scheduler.alphas_cumprod, variance)
    for view in (NEGATION, FLIP):
        found = Anagram([told, told], [view, view])(wish, 500).variance
        torch.testing.assert_close(found, view.restore(variance))


def test_a_hybrid_is_one_wish_from_afar_and_another_from_near(scheduler, generator):
    far, near, x = torch.randn(3, 1, 3, 64, 64, generator=generator, dtype=torch.float64)
    both = Hybrid(*(Wish(w, scheduler.alphas_cumprod) for w in (far, near)))
    step, _ = finish(sample(both, scheduler, x, steps=20))
    torch.testing.assert_close(step.sample, low_pass(far) + near - low_pass(near), atol=1e-4, rtol=0)
    same = Hybrid(Wish(far, scheduler.alphas_cumprod), Wish(far, scheduler.alphas_cumprod))
    torch.testing.assert_close(same(x, 300).prediction, Wish(far, scheduler.alphas_cumprod)(x, 300).prediction)


@pytest.mark.parametrize(("height", "window", "sigma"), [(64, 33, 2.0), (32, 17, 1.0), (128, 67, 4.0), (8, 5, 0.25)])
def test_the_low_pass_is_the_courses(height, window, sigma, generator, monkeypatch):
    calls = []
    original = illusions.gaussian_blur
    monkeypatch.setattr(illusions, "gaussian_blur", lambda x, k, s: calls.append((k, s)) or original(x, k, s))
    x = torch.randn(1, 3, height, height, generator=generator)
    smooth = low_pass(x)
    assert calls == [([window] * 2, [sigma] * 2)]
    assert smooth.std() < x.std()


def test_wrong_numbers_of_denoisers_and_views(scheduler, generator):
    wish = Wish(torch.zeros(1, 3, 8, 8), scheduler.alphas_cumprod)
    with pytest.raises(ValueError, match="at least two denoisers are needed, got 1"):
        Anagram([wish], [IDENTITY])
    with pytest.raises(ValueError, match="one view for each denoiser, got 1 and 2"):
        Anagram([wish, wish], [FLIP])
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        patches(0)
    with pytest.raises(ValueError, match="sigma must be a finite number above 0"):
        Hybrid(wish, wish, sigma=0)


@pytest.mark.parametrize("networks", [1, 2])
@pytest.mark.parametrize("combine", [lambda pair: Anagram(pair, [IDENTITY, FLIP]), lambda pair: Hybrid(*pair)])
def test_checkpointing_does_not_change_a_guided_illusion(combine, networks, tmp_path):
    made = [pixel_model(str(save_pixel(tmp_path / str(i) / "model"))) for i in range(networks)]
    ends = []
    for checkpointing in (False, True):
        both = combine([model.denoiser("a cat", guidance_scale=2.0) for model in (made[0], made[-1])])
        loop = sample(
            both, diffusers.DDIMScheduler(), made[0].noise(1, torch.Generator().manual_seed(0)), steps=2,
            objective=lambda x: x.square().mean((1, 2, 3)), guidance=Guidance(0.5), checkpointing=checkpointing,
        )  # fmt: skip
        ends.append(finish(loop)[0].sample)
        assert not any(model.unet.is_gradient_checkpointing for model in made)
    torch.testing.assert_close(*ends)


@pytest.mark.parametrize("size", [(64, 8), (8, 64), (1, 5), (3, 3)])
def test_the_low_pass_takes_narrow_pictures(size):
    flat = torch.full((1, 3, *size), 0.3)
    torch.testing.assert_close(low_pass(flat), flat)
