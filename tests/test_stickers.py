import json
import re

import numpy as np
import pytest

from training import artwork
from training.artwork import FAMILIES, Sprites
from training.networks import TOKENS, tokenizer, vocabulary
from training.pictures import Pictures, draw_chunk
from training.prompts import COURSE_PROMPTS, LEFT_OUT, unknown_words
from training.stickers import (
    Placed,
    Scene,
    is_held_out,
    pairs,
    recolour,
    render,
    sample_scene,
)
from training.things import IN_COURSES, THINGS, with_article
from training.words import COLOURS, GROUNDS, LOOKS, NAMED_LOOKS


def disc(colour, size=48):
    """A round sprite in one colour: the artwork of these tests."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    sprite = np.zeros((size, size, 4), np.uint8)
    sprite[np.hypot(x, y) < size / 2] = (*colour, 255)
    return sprite


@pytest.fixture(scope="module")
def sprites():
    rng = np.random.default_rng(0)
    return Sprites({(t, f): [disc(rng.integers(0, 256, 3))] for t in THINGS for f in FAMILIES})


@pytest.mark.parametrize("stream", ["train", "courses", "judge", "held-out"])
def test_scene_and_picture_are_decided_by_stream_and_index(sprites, stream):
    for index in (0, 5):
        one, two = (sample_scene(stream, index, sprites) for _ in range(2))
        assert one == two
        assert np.array_equal(render(one, sprites, 48), render(two, sprites, 48))


def test_streams_differ(sprites):
    captions = [[sample_scene(s, i, sprites).caption for i in range(20)] for s in ("train", "judge")]
    assert captions[0] != captions[1]


def test_held_out_pairs_are_never_trained_on(sprites):
    trained = {p for s in ("train", "judge") for i in range(600) for p in pairs(sample_scene(s, i, sprites))}
    held_out = [sample_scene("held-out", i, sprites) for i in range(150)]
    assert all(is_held_out(scene) for scene in held_out)
    for scene in held_out:
        assert not set(pairs(scene)) <= trained


def test_the_stream_of_the_courses_shows_what_their_prompts_name(sprites):
    scenes = [sample_scene("courses", index, sprites) for index in range(100)]
    assert all(scene.things[0].thing in IN_COURSES for scene in scenes if scene.things)
    assert sum(bool(scene.things) for scene in scenes) > 90


def test_the_courses_things_are_named_in_prompts_that_the_world_has_words_for():
    said = " / ".join(prompt.lower() for prompt in COURSE_PROMPTS if prompt not in LEFT_OUT)
    for name in IN_COURSES:
        phrases = [re.sub("^(a|an|the) ", "", phrase) for phrase in THINGS[name].phrases]
        assert any(re.search(rf"\b{phrase}\b", said) for phrase in phrases), name


def test_unknown_stream_is_named(sprites):
    with pytest.raises(ValueError, match=r"stream must be one of .*not 'test'"):
        sample_scene("test", 0, sprites)


@pytest.mark.parametrize("look", LOOKS)
def test_every_look_renders_and_differs_from_plain(sprites, look):
    scene = Scene("", (Placed("cat", "noto", 0, 0.5, 0.7, False),), "river", None, look, (0, 0))
    picture = render(scene, sprites, 64)
    assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
    plain = render(Scene("", scene.things, "river", None, "plain", (0, 0)), sprites, 64)
    if look in ("plain", "flat", "glossy"):  # those looks are other artwork, not another treatment
        assert np.array_equal(picture, plain)
    else:
        assert np.abs(picture.astype(int) - plain).mean() > 5


@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize("size", [32, 128])
def test_every_ground_renders_for_many_seeds(sprites, ground, size):
    for seed in range(4):
        scene = Scene("", (Placed("bus", "noto", 0, 0.5, 0.7, True),), ground, None, "plain", (0, seed))
        assert render(scene, sprites, size).shape == (size, size, 3)


@pytest.mark.parametrize("colour", [c for c in COLOURS if COLOURS[c]])
def test_recolour_gives_the_colour_and_keeps_the_shape(colour):
    sprite = disc((200, 40, 60))
    painted = recolour(sprite, colour)
    assert np.array_equal(painted[..., 3], sprite[..., 3])
    assert np.abs(painted[24, 24, :3].astype(int) - COLOURS[colour]).max() <= 2


def test_every_course_prompt_is_understood_or_listed():
    for prompt in COURSE_PROMPTS:
        assert unknown_words(prompt) == LEFT_OUT.get(prompt, [])
    assert set(LEFT_OUT) <= set(COURSE_PROMPTS)


def test_one_look_has_no_word():
    assert "engraving" in LOOKS and "engraving" not in NAMED_LOOKS and "engraving" not in vocabulary()


def test_articles():
    assert [with_article(p) for p in ("cat", "owl", "unicorn", "the moon", "~ grapes")] == [
        "a cat",
        "an owl",
        "a unicorn",
        "the moon",
        "grapes",
    ]


def test_words_are_single_tokens_and_captions_fit(sprites):
    words = tokenizer()
    assert all(len(words.tokenize(word)) == 1 for word in vocabulary())
    captions = [sample_scene("train", i, sprites).caption for i in range(300)]
    assert max(len(words(caption).input_ids) for caption in captions) <= TOKENS
    assert words("zyx").input_ids[-1] == words.eos_token_id and len(words("zyx").input_ids) > 3


def test_chunks_are_drawn_once_and_read_back(sprites, tmp_path, monkeypatch):
    monkeypatch.setenv("EX4_CACHE", str(tmp_path))
    monkeypatch.setattr(Sprites, "load", classmethod(lambda cls: sprites))
    path = draw_chunk("train", 32, 0, count=3)
    stamp = path.stat().st_mtime_ns
    assert draw_chunk("train", 32, 0, count=3).stat().st_mtime_ns == stamp
    pictures = Pictures("train", size=32)
    assert len(pictures) == 3 and pictures[np.array([2, 0])].shape == (2, 32, 32, 3)
    scene = sample_scene("train", 2, sprites)
    assert pictures.said[2]["caption"] == scene.caption
    assert np.array_equal(pictures[[2]][0], render(scene, sprites, 32))
    assert not list(tmp_path.rglob("*.part"))


def test_missing_npm_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("EX4_CACHE", str(tmp_path))
    monkeypatch.setattr(artwork.shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match=r"^The artwork is missing and npm is not installed: .*\.$"):
        artwork.artwork_dir()


def test_artwork_is_found_and_drawn(tmp_path, monkeypatch):
    pytest.importorskip("resvg_py")
    monkeypatch.setenv("EX4_CACHE", str(tmp_path))
    icon = {"body": '<circle cx="8" cy="8" r="6" fill="#ff0000"/>', "width": 16, "height": 16}
    for family in FAMILIES:
        folder = tmp_path / "artwork" / "node_modules" / "@iconify-json" / family
        folder.mkdir(parents=True)
        found = {"icons": {"cat": icon}, "aliases": {"kitten": {"parent": "cat"}}}
        (folder / "icons.json").write_text(json.dumps(found))
    artwork.icons.cache_clear()
    try:
        assert set(artwork.icons("noto")) == {"cat", "kitten"}
        (drawing,) = artwork.drawings(THINGS["cat"], "noto")
        assert drawing.shape == (128, 128, 4) and tuple(drawing[64, 64]) == (255, 0, 0, 255)
        assert artwork.drawings(THINGS["dog"], "noto") == []
        assert artwork.drawings(THINGS["campfire"], "noto") == []
    finally:
        artwork.icons.cache_clear()


def test_shipped_looks_are_what_the_filters_make_of_the_photograph():
    from ex4lib import images, metrics
    from training import looks

    for look in looks.SHIPPED:
        made = images.load(looks.in_look(look))
        assert metrics.psnr(images.load(looks.shipped_path(look)), made) > 32  # JPEG alone lies between
