"""Tiles against the whole picture: loss, every term and the gradient are the same."""

import dataclasses

import pytest
import torch

from ex4lib import tiles, transfer
from ex4lib.optimisation import finish, optimise


def objectives(network, picture, recipe, tile=64, size=(150, 231), **options):
    """The objective of a recipe for the whole picture and in tiles, and an image to evaluate them at."""
    content, image = picture(*size), picture(*size)
    styles = [picture(130, 170), picture(97, 64)]
    whole = recipe.objective(network, content, styles, **options)
    recipe = tiles.TiledRecipe(**vars(recipe), tile=tile)
    return whole, tiles.TiledObjective(recipe, network, content, styles, **options), image


@pytest.mark.parametrize("style_loss", tiles.LINEAR)
@pytest.mark.parametrize("pooling", ["average", "max"])
@pytest.mark.parametrize("kind", ["blend", "regions", "style_masks"])
def test_loss_and_gradient_are_those_of_the_whole_picture(small, picture, style_loss, pooling, kind):
    recipe = dataclasses.replace(transfer.DEFAULT, style_loss=style_loss, pooling=pooling)
    left = torch.zeros(1, 1, 150, 231, dtype=torch.float64)
    left[..., :100] = 1
    half = torch.ones(1, 1, 130, 170, dtype=torch.float64)
    half[..., :80, :] = 0.25
    options = {
        "blend": {"style_weights": [2, 1]},
        "regions": {"regions": [left, 1 - left]},
        "style_masks": {"style_masks": [half, None]},
    }[kind]
    whole, tiled, image = objectives(small, picture, recipe, **options)
    results = []
    for objective in (whole, tiled):
        point = image.clone().requires_grad_()
        terms = objective.terms(point)
        (gradient,) = torch.autograd.grad(torch.stack(list(terms.values())).sum(), point)
        results.append((terms, gradient))
    (terms, gradient), (terms_tiled, gradient_tiled) = results
    assert terms.keys() == terms_tiled.keys()
    for name, loss in terms.items():
        torch.testing.assert_close(terms_tiled[name], loss, rtol=1e-8, atol=1e-12, msg=name)
    torch.testing.assert_close(gradient_tiled, gradient, rtol=1e-6, atol=1e-9 * gradient.abs().max().item())


@pytest.mark.parametrize("size", [(64, 64), (95, 300), (33, 97), (256, 40)])
def test_sizes_of_all_kinds(small, picture, size):
    whole, tiled, image = objectives(small, picture, transfer.DEFAULT, size=size)
    torch.testing.assert_close(tiled(image), whole(image), rtol=1e-9, atol=0)


def test_a_tile_outside_of_all_regions(small, picture):
    recipe = dataclasses.replace(transfer.DEFAULT, content_weight=0.0)
    left = torch.zeros(1, 1, 64, 200, dtype=torch.float64)
    left[..., :40] = 1
    content, style, point = picture(64, 200), picture(64, 64), picture(64, 200).requires_grad_()
    whole, tiled = (
        torch.autograd.grad(kind.objective(small, content, [style], regions=[left])(point).sum(), point)[0]
        for kind in (recipe, tiles.TiledRecipe(**vars(recipe), tile=64))
    )
    torch.testing.assert_close(tiled, whole, rtol=1e-6, atol=1e-9 * whole.abs().max().item())


def test_an_optimisation_in_tiles_is_that_of_the_whole(small, picture):
    whole, tiled, image = objectives(small, picture, transfer.DEFAULT, size=(96, 140))
    results = [finish(optimise(objective, image, evaluations=4, history=3)) for objective in (whole, tiled)]
    torch.testing.assert_close(results[1].image, results[0].image, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("recipe", "tile", "message"),
    [({"style_loss": "sliced"}, 64, "style_loss in tiles must be gram or bures"), ({}, 50, "multiple of 32, got 50")],
)
def test_what_tiles_cannot_do(small, picture, recipe, tile, message):
    with pytest.raises(ValueError, match=message):
        recipe = tiles.TiledRecipe(**recipe, tile=tile)
        tiles.TiledObjective(recipe, small, picture(64, 64), [picture(64, 64)])


def test_a_recipe_in_tiles_paints_the_same_picture(small, picture):
    content, style = picture(100, 140), picture(60, 60)
    options = {"size": 140, "scales": [70, 140], "evaluations": 6}
    whole, tiled = (
        transfer.stylize(small, content, style, recipe=recipe, **options)
        for recipe in (transfer.DEFAULT, tiles.TiledRecipe(tile=64))
    )
    assert len(tiles._spans(100, 64)) == 2 and len(tiles._spans(70, 64)) == 1
    torch.testing.assert_close(tiled.losses, whole.losses, rtol=1e-7, atol=0)
    torch.testing.assert_close(tiled.image, whole.image, rtol=0, atol=1e-5)
