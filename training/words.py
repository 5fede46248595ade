"""The other words of the world: colours, grounds, looks, and how a caption says them."""

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
    "gradient": {"": ["", "", "on a colorful background"]},
    "grass": {
        "": ["on grass", "on the grass", "in a meadow"],
        "animal": ["on grass", "sitting on grass", "standing on grass"],
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
    "waterfall": {"": ["beside a waterfall", "next to a waterfall", "by the waterfall"]},
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
    "grass": "a meadow",
    "flowers": "a field of flowers",
    "desert": "a desert",
    "snow": "~ snow",
    "night": "the night sky",
    "road": "a road",
    "desert road": "a desert road",
    "river": "a river",
    "frozen river": "a frozen river",
    "lake": "a lake",
    "sea": "the sea",
    "waterfall": "a waterfall",
    "pool": "a pool",
    "forest": "a forest",
    "snowy forest": "a snowy forest",
    "snowy mountains": "~ snowy mountains",
    "table": "a table",
    "room": "a room",
    "sky": "the sky",
}

# A look and how it is said around a caption; `plain` is most pictures; `engraving` is told by no word at all.
LOOKS = {
    "plain": ["{}"],
    "flat": ["{}, flat", "a flat picture of {}", "{}, flat style"],
    "glossy": ["{}, glossy", "a glossy picture of {}", "{}, glossy style"],
    "silhouette": ["{}, silhouette", "a silhouette of {}", "{}, silhouette"],
    "oil painting": ["{}, oil painting", "an oil painting of {}", "{}, oil painting"],
    "mosaic": ["{}, mosaic", "a mosaic of {}", "{}, mosaic"],
    "pencil sketch": ["{}, pencil sketch", "a pencil sketch of {}", "{}, pencil sketch"],
    "pointillism": ["{}, pointillism", "{}, pointillism", "a pointillism painting of {}"],
    "woodblock print": ["{}, woodblock print", "a woodblock print of {}", "{}, woodblock print"],
    "engraving": ["{}"],
}
NAMED_LOOKS = tuple(look for look in LOOKS if look not in ("plain", "engraving"))
OPENINGS = ["{}"] * 12 + ["a picture of {}", "a photo of {}", "a drawing of {}"]
ANYTHING = "a high quality photo"  # the prompt that asks for no thing in particular
