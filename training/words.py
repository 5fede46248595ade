"""The other words of the world: colours, materials, grounds, looks, and how a caption says them all."""

import numpy as np

from .things import THINGS, with_article

COLOURS = {
    "red": (215, 38, 40),
    "orange": (240, 130, 30),
    "yellow": (250, 205, 45),
    "golden": (214, 164, 40),
    "green": (60, 160, 70),
    "blue": (45, 105, 215),
    "purple": (130, 65, 185),
    "pink": (240, 125, 175),
    "brown": (125, 78, 45),
    "black": (42, 42, 46),
    "white": (240, 240, 240),
    "rainbow": None,  # a hue for every height
}

# Kinds that live on water, in the air or in the heavens say their place with other words than the rest.
GROUNDS = {
    "plain": {"": ["on a {colour} background", "", "", ""]},
    "gradient": {"": ["", "", "", "on a colorful background"]},
    "grass": {
        "": ["on grass", "on the grass", "in a meadow"],
        "animal": ["on grass", "sitting on grass", "sitting on grass"],
    },
    "flowers": {"": ["surrounded by flowers", "in a field of flowers", "among flowers"]},
    "desert": {"": ["in the desert", "in a desert", "on sand"]},
    "snow": {"": ["in the snow", "on snow"]},
    "night": {"": ["at night", "at night", "under the stars"]},
    "road": {
        "": ["on the road", "on a road"],
        "vehicle": ["on the road", "driving on a road", "on a road"],
    },
    "desert road": {
        "": ["on a desert road"],
        "vehicle": ["on a desert road", "driving on a desert road"],
    },
    "river": {
        "": ["next to a river", "beside a river", "by the river"],
        "boat": ["in a river", "on a river"],
        "swimmer": ["in a river", "in the river"],
    },
    "frozen river": {
        "": ["next to a frozen river", "beside a frozen river"],
        "boat": ["in a frozen river", "on a frozen river"],
    },
    "lake": {
        "": ["beside a lake", "next to a lake", "by the lake"],
        "boat": ["on a lake", "in a lake"],
        "swimmer": ["in a lake"],
    },
    "sea": {
        "": ["by the sea", "on the beach"],
        "boat": ["on the sea", "in the sea"],
        "swimmer": ["in the sea"],
    },
    "waterfall": {"": ["beside a waterfall", "next to a waterfall", "by the waterfalls"]},
    "pool": {"": ["close to the pool", "next to a pool", "by the pool"], "swimmer": ["in a pool"]},
    "forest": {"": ["surrounded by forests", "in a forest", "in the forest"]},
    "snowy forest": {"": ["surrounded by snowy forests", "in a snowy forest"]},
    "snowy mountains": {"": ["in snowy mountains", "in the snowy mountains"]},
    "table": {
        "": ["on a table", "on the table"],
        "animal": ["sitting on a table", "on a table", "on the table"],
        "person": ["at a table", "at the table"],
    },
    "room": {"": ["in a room", "in the room"]},
    "sky": {"": ["in the sky"], "air": ["in the sky", "flying in the sky"]},
}
# What a picture of the ground alone is called.
VIEWS = {
    "grass": ["a meadow"],
    "flowers": ["a field of flowers"],
    "desert": ["a desert"],
    "snow": ["~ snow", "a snowy field"],
    "night": ["the night sky"],
    "road": ["a road"],
    "desert road": ["a desert road"],
    "river": ["a river"],
    "frozen river": ["a frozen river"],
    "lake": ["a lake"],
    "sea": ["the sea"],
    "waterfall": ["a waterfall", "~ waterfalls"],
    "pool": ["a pool"],
    "forest": ["a forest", "~ forests"],
    "snowy forest": ["a snowy forest"],
    "snowy mountains": ["~ snowy mountains", "a snowy mountain"],
    "table": ["a table"],
    "room": ["a room"],
    "sky": ["the sky"],
}

# What a thing is made of or covered with, and how it is said; which kinds: `stickers.MADE_OF`.
MADE = {
    "lego": ["lego {}", "toy lego {}", "{} made of lego"],
    "wooden": ["wooden {}", "wooden {}", "wooden {} statue"],
    "ancient": ["ancient {}"],
    "snowy": ["snowy {}", "snowy {}", "{} covered with snow"],
    "ivy": ["{} covered with ivy"],
    "neon": ["neon {}", "{} with neon signs", "futuristic {} with neon signs", "futuristic {}"],
}

# A look and how it is said around a caption; `plain` is most pictures.
DRAWN_LOOKS = {  # a property of the drawing, so a scene has it
    "plain": ["{}"],
    "flat": ["{}, flat", "a flat picture of {}", "{}, flat style"],
    "glossy": ["{}, glossy", "a glossy picture of {}", "{}, glossy style"],
    "silhouette": ["{}, silhouette", "a silhouette of {}"],
}
PAINTED_LOOKS = {  # laid over a picture afterwards by the painter
    "oil painting": ["{}, oil painting", "an oil painting of {}"],
    "mosaic": ["{}, mosaic", "a mosaic of {}"],
    "pencil sketch": ["{}, pencil sketch", "a pencil sketch of {}"],
    "pointillism": ["{}, pointillism", "{}, pointillism", "a pointillism painting of {}"],
    "woodblock print": ["{}, woodblock print", "a woodblock print of {}"],
}
LOOKS = DRAWN_LOOKS | PAINTED_LOOKS
NAMED_LOOKS = tuple(look for look in LOOKS if look != "plain")
OPENINGS = ["{}"] * 12 + ["a picture of {}", "a photo of {}", "a drawing of {}", "an image of {}"]
ANYTHING = "a high quality photo"  # the prompt that asks for no thing in particular
JOINS = [" and ", " and ", " next to ", " beside "]


def all_phrases() -> list[str]:
    """Everything that captions are put together from, with `{}` and `{colour}` where words are put in."""
    said = [ANYTHING, *(p for t in THINGS.values() for p in t.phrases), *THINGS, *COLOURS, *JOINS, *OPENINGS]
    said += [p for views in VIEWS.values() for p in views]
    said += [p for places in GROUNDS.values() for phrases in places.values() for p in phrases]
    said += [p for phrases in (*LOOKS.values(), *MADE.values()) for p in phrases]
    return [*said, "a", "an", "the", "on", "background"]


def _choose(rng: np.random.Generator, options):
    return options[rng.integers(len(options))]


def _say_thing(rng: np.random.Generator, name: str, colour: str | None, made: str | None) -> str:
    phrase = _choose(rng, THINGS[name].phrases)
    if not colour and not made:
        return phrase
    article, _, rest = phrase.partition(" ")
    if article not in ("a", "an", "the"):
        article, rest = "", phrase
    if colour:
        rest = f"{colour} {rest}"
    if made:
        rest = _choose(rng, MADE[made]).format(rest)
    return {"": rest, "the": f"the {rest}"}.get(article) or with_article(rest)


def _say_place(rng: np.random.Generator, scene: dict) -> str:
    if scene["ground_colour"]:
        return f"on {with_article(scene['ground_colour'])} background"
    phrases = GROUNDS[scene["ground"]]
    where = _choose(rng, phrases.get(THINGS[scene["things"][0]].kind, phrases[""]))
    return "" if "{colour}" in where else where


def caption(scene: dict, rng: np.random.Generator, look: str | None = None) -> str:
    """Say a scene in one of many ways.

    Arguments:
        scene: the record of a scene, as `Pictures.said` holds it: its keys things, colours, made, ground,
            ground_colour and look are read.
        rng: chooses openings, synonyms and order.
        look: a key of `LOOKS` to be said in place of the scene's own, for a picture painted in it.

    Raises:
        KeyError: an unknown look, thing, ground or material.
    """
    look = look or scene["look"]
    if not scene["things"]:
        said = with_article(_choose(rng, VIEWS[scene["ground"]]))
    else:
        each = [_say_thing(rng, *t) for t in zip(scene["things"], scene["colours"], scene["made"], strict=True)]
        said = f"{_choose(rng, JOINS).join(each)} {_say_place(rng, scene)}".strip()
        if look == "plain" and rng.random() < 0.015:
            return ANYTHING
    around = OPENINGS if look == "plain" else LOOKS[look]
    return _choose(rng, around).format(said)
