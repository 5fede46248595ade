"""The prompts of the courses, and which of them the world has words for."""

import re

from experiments.distillations import EDITS, LACKING, PROMPTS

from .networks import vocabulary

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
DISTILLATION = [*PROMPTS, *(edit.target for edits in EDITS.values() for edit in edits)]
COURSE_PROMPTS = [*DISTILLATION, *DIFFUSION, *STYLE]

# The rest of the prompts has no artwork, ground, colour or look here: which words are missing.
LEFT_OUT = {
    **{prompt: list(words) for prompt, words in LACKING.items()},
    "a lithograph of a skull": ["lithograph"],
    "a lithograph of waterfalls": ["lithograph"],
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
