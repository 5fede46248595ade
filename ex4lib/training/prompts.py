"""The prompts of the courses, and which of them the world has words for."""

import re

from .networks import vocabulary

SDS = [
    "a boat in a river",
    "A burger on the table",
    "A cabin surrounded by forests",
    "A car on the road",
    "A castle next to a river",
    "a cat sitting on a table",
    "A church beside a lake",
    "A dog sitting on grass",
    "A red bus driving on a desert road",
    "A villa close to the pool",
]
EDITS_OF_THE_SLIDES = [
    "a boat in a frozen river",
    "A hotdog on the table",
    "A cabin surrounded by snowy forests",
    "futuristic car with neon signs on the road",
    "A toy lego castle close to the pool",
    "a squirrel sitting on a table",
    "A church beside a waterfall",
    "A cat sitting on grass",
    "A red sportscar driving on a desert road",
    "An ancient villa close to the pool",
]
EDITS_OF_THE_REPOSITORY = [
    "a golden boat in a river",
    "A burger with lettuce on the table",
    "A cabin surrounded by flowers",
    "A yellow sportscar on the road",
    "A rainbow castle next to a river",
    "a wooden cat statue sitting on a table",
    "A church beside a lake at night",
    "A golden retriever sitting on grass",
    "A yellow school bus driving on a desert road",
    "A villa covered with ivy close to the pool",
]
DIFFUSION = [
    "an oil painting of a snowy mountain village",
    "a man wearing a hat",
    "a rocket ship",
    "a high quality photo",
    "",
    "an oil painting of an old man",
    "an oil painting of people around a campfire",
    "a lithograph of a skull",
    "a lithograph of waterfalls",
    "a photo of the amalfi coast",
    "a photo of a man",
    "a photo of a hipster barista",
    "a photo of a dog",
    "a pencil",
]
STYLE = [
    "A cat",
    "A picture of a cat with the style of Picasso",
    "a ballerina",
    "a ballerina in Picasso's Seated Nude style",
    "a ballerina in cubism style Picasso",
]
COURSE_PROMPTS = [*SDS, *EDITS_OF_THE_SLIDES, *EDITS_OF_THE_REPOSITORY, *DIFFUSION, *STYLE]

# The rest of the prompts has no artwork, ground, colour or look here: which words are missing.
LEFT_OUT = {
    "futuristic car with neon signs on the road": ["futuristic", "neon", "signs"],
    "A toy lego castle close to the pool": ["toy", "lego"],
    "An ancient villa close to the pool": ["ancient"],
    "A burger with lettuce on the table": ["lettuce"],
    "a wooden cat statue sitting on a table": ["wooden"],
    "A villa covered with ivy close to the pool": ["covered", "ivy"],
    "a lithograph of a skull": ["lithograph"],
    "a lithograph of waterfalls": ["lithograph", "waterfalls"],
    "a photo of the amalfi coast": ["amalfi", "coast"],
    "a photo of a hipster barista": ["hipster", "barista"],
    "A picture of a cat with the style of Picasso": ["picasso"],
    "a ballerina in Picasso's Seated Nude style": ["picasso", "s", "seated", "nude"],
    "a ballerina in cubism style Picasso": ["cubism", "picasso"],
}


def unknown_words(prompt: str) -> list[str]:
    """The words of `prompt` that no caption of the world ever says, in order."""
    known = set(vocabulary())
    return [word for word in re.findall(r"[a-z]+", prompt.lower()) if word not in known]
