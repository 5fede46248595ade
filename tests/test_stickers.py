import json
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from training import artwork
from training.artwork import FAMILIES, Sprites
from training.networks import TOKENS, tokenizer, vocabulary
from training.pictures import Pictures, draw_chunk
from training.prompts import COURSE_PROMPTS, LEFT_OUT, unknown_words
from training.recolouring import recolour
from training.stickers import (
    Placed,
    Scene,
    is_held_out,
    pairs,
    render,
    sample_scene,
)
from training.things import IN_COURSES, THINGS, with_article
from training.words import ANYTHING, COLOURS, DRAWN_LOOKS, GROUNDS, LOOKS, MADE, PAINTED_LOOKS, caption


def disc(colour, size=48):
    """A round sprite in one colour: the artwork of these tests."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    sprite = np.zeros((size, size, 4), np.uint8)
    sprite[np.hypot(x, y) < size / 2] = (*colour, 255)
    return sprite


@pytest.fixture(scope="module")
def sprites():
    rng = np.random.default_rng(0)
    return Sprites({(t, f): [disc(rng.integers(0, 256, 3), 128)] for t in THINGS for f in FAMILIES})


@pytest.mark.parametrize("stream", ["train", "judge", "held-out"])
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


def test_what_the_courses_name_is_drawn_twice_as_often(sprites):
    shown = [p.thing for i in range(3000) for p in sample_scene("train", i, sprites).things[:1]]
    share = sum(t in IN_COURSES for t in shown) / len(shown)
    twice = 2 * len(IN_COURSES) / (len(THINGS) + len(IN_COURSES))
    assert abs(share - twice) < 0.04  # what is held out shifts it a little


def test_the_courses_things_are_named_in_prompts_that_the_world_has_words_for():
    said = " / ".join(prompt.lower() for prompt in COURSE_PROMPTS if prompt not in LEFT_OUT)
    for name in IN_COURSES:
        phrases = [re.sub("^(a|an|the) ", "", phrase) for phrase in THINGS[name].phrases]
        assert any(re.search(rf"\b{phrase}\b", said) for phrase in phrases), name


def test_unknown_stream_is_named(sprites):
    with pytest.raises(ValueError, match=r"stream must be one of .*not 'test'"):
        sample_scene("test", 0, sprites)


def one_thing(ground, *, look="plain", seed=0, thing="cat", **options):
    return Scene((Placed(thing, "noto", 0, 0.5, 0.7, False, **options),), ground, None, look, (0, seed))


@pytest.mark.parametrize("look", DRAWN_LOOKS)
def test_every_drawn_look_renders(sprites, look):
    picture = render(one_thing("river", look=look), sprites, 64)
    assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
    change = np.abs(picture.astype(int) - render(one_thing("river"), sprites, 64)).mean()
    assert change > 5 if look == "silhouette" else change == 0  # flat and glossy are other artwork


@pytest.mark.parametrize("made", MADE)
def test_every_material_changes_the_thing(sprites, made):
    for seed in range(3):
        picture = render(one_thing("plain", made=made, seed=seed), sprites, 128).astype(int)
        middle = np.s_[32:96, 32:96]
        assert np.abs(picture[middle] - render(one_thing("plain", seed=seed), sprites, 128)[middle]).mean() > 8


def test_a_thing_alone_is_large_and_wholly_inside(sprites):
    for index in range(300):
        scene = sample_scene("train", index, sprites)
        for placed in scene.things:
            picture = render(replace(scene, things=(placed,)), sprites, 128).astype(int)
            if scene.ground != "plain" or placed.made or scene.look != "plain":
                continue
            differs = np.abs(picture - picture[0, 0]).max(-1) > 12
            rows, columns = differs.any(1).nonzero()[0], differs.any(0).nonzero()[0]
            if len(rows) < 10:
                continue  # a disc in the colour of the ground
            assert rows[0] > 0 and columns[0] > 0 and rows[-1] < 127 and columns[-1] < 127
            assert max(np.ptp(rows), np.ptp(columns)) > 0.4 * 128


def test_a_quarter_of_the_pictures_show_a_thing_alone_without_words_for_the_ground(sprites):
    scenes = [sample_scene("train", i, sprites) for i in range(1000)]
    bare = [s for s in scenes if s.ground in ("plain", "gradient") and len(s.things) == 1]
    assert sum("background" not in s.caption for s in bare) / len(scenes) > 0.25


def test_every_word_is_said_often(sprites):
    said = Counter()
    for index in range(16384):
        said.update(set(re.findall("[a-z]+", sample_scene("train", index, sprites).caption.lower())))
    painted = set(re.findall("[a-z]+", " ".join(p for look in PAINTED_LOOKS.values() for p in look)))
    assert {w: said[w] for w in vocabulary() if w not in painted and said[w] < 50} == {}


@pytest.mark.parametrize("look", LOOKS)
def test_captions_vary_and_say_the_look(look):
    scene = one_thing("table").record
    said = {caption(scene, np.random.default_rng(i), look) for i in range(40)}
    assert len(said) > 3 and all(look == "plain" or look in each for each in said)
    assert all("cat" in each and "table" in each for each in said - {ANYTHING})
    assert json.loads(json.dumps(scene)) == scene


def test_materials_are_said():
    def said(made):
        record = one_thing("plain", made=made, thing="house").record
        return {caption(record, np.random.default_rng(i)) for i in range(200)}

    assert {"a lego house", "a toy lego house", "a house made of lego"} <= said("lego")
    assert {"an ancient house"} <= said("ancient") and {"a house covered with ivy"} <= said("ivy")
    assert {"a neon house", "a futuristic house with neon signs"} <= said("neon")


def test_sprites_are_one_portable_file(sprites, tmp_path):
    kept = Sprites(sprites.drawn, {("noto", "bear"): disc((1, 2, 3))})
    kept.save(tmp_path / "sprites.zip")
    found = Sprites.load(tmp_path / "sprites.zip")
    assert list(found.drawn) == list(kept.drawn) and list(found.faces) == list(kept.faces)
    for key, drawn in kept.drawn.items():
        for one, two in zip(drawn, found[key], strict=True):
            assert np.array_equal(one[one[..., 3] > 0], two[two[..., 3] > 0])
            assert np.array_equal(one[..., 3], two[..., 3])


@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize("size", [32, 128])
def test_every_ground_renders_for_many_seeds(sprites, ground, size):
    for seed in range(4):
        scene = one_thing(ground, thing="bus", seed=seed)
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
        assert artwork.drawings(THINGS["cat"], "emojione") == []  # left out: it looks at us
        assert set(artwork.icons("noto")) == {"cat", "kitten"}
        (drawing,) = artwork.drawings(THINGS["cat"], "noto")
        assert drawing.shape == (128, 128, 4) and tuple(drawing[64, 64]) == (255, 0, 0, 255)
        assert artwork.drawings(THINGS["dog"], "noto") == []
        assert artwork.drawings(THINGS["campfire"], "noto") == []
    finally:
        artwork.icons.cache_clear()
