"""The painter and the named looks: contracts, what each part does, and whether real paintings lie within reach."""

import pytest
import torch
import torch.nn.functional as F

from ex4lib import images
from training import looks, marks, painter

PAINTINGS = sorted(p for p in (images.ASSETS / "styles").glob("*.jpg") if not p.stem.startswith("look-"))
PHOTOGRAPHS = ("coffee", "chelsea", "astronaut")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def squares(paths, size: int = 128) -> torch.Tensor:
    """The middle squares of pictures, (B, 3, size, size)."""
    loaded = [images.load(path) for path in paths]
    cut = [p[..., (p.shape[-2] - min(p.shape[-2:])) // 2 :, (p.shape[-1] - min(p.shape[-2:])) // 2 :] for p in loaded]
    cut = [p[..., : min(p.shape[-2:]), : min(p.shape[-2:])] for p in cut]
    return torch.cat([F.interpolate(p, size=size, mode="bilinear", antialias=True) for p in cut]).clamp(0, 1)


@pytest.fixture(scope="module")
def scenes() -> torch.Tensor:
    """Simple drawings: a coloured shape with an eye on a two-coloured ground."""
    x, y = marks.positions(128, torch.device("cpu"))
    random = generator(7)
    pictures = []
    for _ in range(24):
        sky, earth, thing, eye = torch.rand(4, 3, 1, 1, generator=random)
        cx, cy, radius = (torch.rand(3, generator=random) * torch.tensor([40, 40, 20]) + 44).tolist()
        picture = torch.where(y[0] < 70, sky, earth)
        picture = torch.where((x[0] - cx) ** 2 + (y[0] - cy) ** 2 < (radius - 20) ** 2, thing, picture)
        picture = torch.where((x[0] - cx) ** 2 + (y[0] - cy) ** 2 < 30, eye, picture)
        pictures.append(picture)
    return torch.stack(pictures)


def statistics(pictures: torch.Tensor) -> dict[str, torch.Tensor]:
    """Colour moments, saturation, standard deviation of three Laplacian levels, orientation coherence: (B,) each."""
    found = {"saturation": (pictures.amax(1) - pictures.amin(1)).mean((1, 2))}
    for channel, name in enumerate(("red", "green", "blue")):
        found[f"mean {name}"] = pictures[:, channel].mean((1, 2))
        found[f"deviation {name}"] = pictures[:, channel].std((1, 2))
    level = luminance = marks.grey(pictures)
    for scale in range(3):
        low = F.avg_pool2d(level, 2)
        finer = level - F.interpolate(low, scale_factor=2, mode="bilinear", align_corners=False)
        found[f"detail {scale}"], level = finer.std((1, 2, 3)), low
    gx = luminance[..., 1:-1, 2:] - luminance[..., 1:-1, :-2]
    gy = luminance[..., 2:, 1:-1] - luminance[..., :-2, 1:-1]
    xx, yy, xy = (F.avg_pool2d(product, 9, 4) for product in (gx * gx, gy * gy, gx * gy))
    found["coherence"] = (((xx - yy) ** 2 + 4 * xy**2).sqrt() / (xx + yy + 1e-5)).mean((1, 2, 3))
    return found


@pytest.mark.parametrize(("number", "size"), [(1, 128), (2, 64), (5, 96)])
def test_paint_keeps_shape_type_range_and_input(number, size):
    pictures = torch.rand(number, 3, size, size, generator=generator())
    before = pictures.clone()
    painted = painter.paint(pictures, generator(1), torch.ones(number))
    assert painted.shape == pictures.shape and painted.dtype == torch.float32
    assert painted.isfinite().all() and painted.min() >= 0 and painted.max() <= 1
    assert torch.equal(pictures, before)


def test_paint_is_decided_by_the_generator(scenes):
    first, again, other = (painter.paint(scenes, generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_heaviness_zero_leaves_a_picture_bit_by_bit_and_nothing_else(scenes):
    heaviness = torch.arange(len(scenes)).remainder(2) * 0.8
    painted = painter.paint(scenes, generator(), heaviness)
    same = (painted == scenes).flatten(1).all(1)
    assert same[::2].all() and same[1::2].float().mean() < 0.2


def test_more_heaviness_changes_more(scenes):
    change = [
        (painter.paint(scenes, generator(5), torch.full((len(scenes),), h)) - scenes).abs().mean() for h in (0.1, 0.9)
    ]
    assert change[0] < 0.8 * change[1]


def test_shares_of_heaviness():
    heaviness = painter.draw_heaviness(20_000, generator())
    shares = [
        ((heaviness > low) & (heaviness <= high)).float().mean() for low, high in ((0, 0.5), (0.5, 0.8), (0.8, 1))
    ]
    assert torch.allclose(torch.tensor(shares), torch.tensor([0.45, 0.25, 0.05]), atol=0.015)
    assert abs((heaviness == 0).float().mean() - 0.25) < 0.015


def test_pictures_do_not_touch_each_other(scenes):
    changed = scenes.clone()
    changed[0] = 1 - changed[0]
    heaviness = torch.full((len(scenes),), 0.7)
    one, two = (painter.paint(batch, generator(2), heaviness) for batch in (scenes, changed))
    assert torch.allclose(one[1:], two[1:], atol=1e-5) and not torch.allclose(one[0], two[0], atol=1e-2)


@pytest.mark.parametrize("part", [part for part, _ in painter.PARTS], ids=lambda part: part.__name__)
def test_every_part_changes_pictures_and_keeps_what_they_show(scenes, part):
    changed = part(scenes, torch.full((len(scenes), 1, 1, 1), 0.6), generator())
    assert changed.min() >= 0 and changed.max() <= 1
    assert (changed - scenes).abs().mean() > 2e-3
    before, after = (marks.blur(marks.grey(p), 2.5).flatten(1) for p in (scenes, changed))
    agreement = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(before, after, strict=True)])
    assert agreement.median() > 0.8


def test_light_painting_keeps_the_content_readable(scenes):
    painted = painter.paint(scenes, generator(), torch.full((len(scenes),), 0.3))
    before, after = (marks.blur(marks.grey(p), 2.5).flatten(1) for p in (scenes, painted))
    agreement = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(before, after, strict=True)])
    assert (agreement > 0.7).float().mean() > 0.9


def test_paintings_lie_within_what_the_painter_makes(scenes):
    """No painting is used in training: this says whether the family is wide enough to hold them."""
    photographs = squares(PHOTOGRAPHS).repeat(8, 1, 1, 1)
    batch, random = torch.cat([photographs, scenes]).repeat(6, 1, 1, 1), generator(1)
    painted = painter.paint(batch, random, 0.15 + 0.85 * torch.rand(len(batch), generator=random))
    made, real = statistics(painted), statistics(squares(PAINTINGS))
    outside = [
        (name, path.stem, float(value))
        for name, values in real.items()
        for path, value in zip(PAINTINGS, values, strict=True)
        if not made[name].quantile(0.01) <= value <= made[name].quantile(0.99)
    ]
    assert len(PAINTINGS) == 8 and not outside


@pytest.mark.parametrize("look", looks.FILTERS)
def test_a_look_varies_and_leaves_the_thing_recognisable(scenes, look):
    twice = looks.apply(scenes[:1].repeat(2, 1, 1, 1), [look] * 2, generator())
    assert (twice[0] - twice[1]).abs().mean() > 0.01
    drawn = looks.apply(scenes, [look] * len(scenes), generator())
    assert drawn.shape == scenes.shape and drawn.dtype == scenes.dtype and drawn.min() >= 0 and drawn.max() <= 1
    assert torch.equal(drawn, looks.apply(scenes, [look] * len(scenes), generator()))
    before, after = (marks.blur(marks.grey(p), 2.5).flatten(1) for p in (scenes, drawn))
    agreement = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(before, after, strict=True)])
    assert agreement.median() > 0.6


def test_looks_are_told_from_each_other_by_their_statistics(scenes):
    """The nearest class mean of standardised statistics finds the look of unseen pictures."""
    names = ["plain", *looks.FILTERS]
    halves = []
    for part, seed in ((scenes[:12], 1), (scenes[12:], 2)):
        drawn = [looks.apply(part, [name] * len(part), generator(seed)) for name in names]
        halves.append(torch.stack([torch.stack(list(statistics(d).values()), 1) for d in drawn]))
    known, unseen = halves
    centre, spread = known.mean((0, 1)), known.std(1).mean(0) + 1e-6
    means = ((known - centre) / spread).mean(1)
    found = torch.cdist(((unseen - centre) / spread).flatten(0, 1), means).argmin(1).view(len(names), -1)
    assert (found == torch.arange(len(names))[:, None]).float().mean() > 0.75


def test_looks_go_to_the_pictures_that_are_named(scenes):
    names = ["plain", "mosaic", "glossy", "mosaic", "pencil sketch", "silhouette"]
    drawn = looks.apply(scenes[:6], names, generator())
    same = (drawn == scenes[:6]).flatten(1).all(1)
    assert same.tolist() == [name not in looks.FILTERS for name in names]


def test_one_name_for_each_picture(scenes):
    with pytest.raises(ValueError, match="names: 1 names came for 2 pictures"):
        looks.apply(scenes[:2], ["mosaic"], generator())
