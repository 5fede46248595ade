"""The things of the world by kind: how they are called, which icons draw them, how else people say them.

An entry is `name | icons | other ways to say it`, entries are parted by `/` or a new line. The name may
carry its own article ("the moon") or none at all (`~` before it: "~ grapes"); otherwise "a" or "an" is put
before it. Icons are tried in every artwork family; several icons are several drawings of the same thing;
without icons the name itself is the icon. `cat!VE` leaves out the families V and E (`artwork.FAMILIES`),
because their drawing shows another pose, a face alone, or something else: drawings of a thing agree.
"""

import re
from dataclasses import dataclass

KINDS = {
    "animal": """
cat | cat!VE / dog | dog!NVE service-dog / golden retriever | guide-dog!T / horse | horse!E / cow | cow!E
pig | pig!E / sheep | ewe!ET / rabbit | rabbit!E / mouse | mouse!E / tiger | tiger!E / elephant | elephant!E
camel | two-hump-camel camel!E / deer | deer!VET / monkey / squirrel | chipmunk / crocodile | crocodile!E
turtle / snake / snail / giraffe / zebra | zebra!T / butterfly / bee | honeybee / spider / crab / octopus
penguin / rooster | rooster!T / duck | duck!TFG / swan / flamingo / parrot / owl / bird / dinosaur | sauropod
""",
    "swimmer": """
fish / dolphin | dolphin!E / whale | spouting-whale whale / shark
""",
    "person": """
man / woman / old man / princess / dancer | woman-dancing!E | a ballerina; a dancing woman
man with a hat | man-detective!ET | a man wearing a hat / astronaut | astronaut!T
~ santa claus
""",
    "face": """
smiley | slightly-smiling-face / robot / alien / ghost / skull
""",
    "food": """
burger | hamburger | a hamburger; a burger with lettuce / hotdog | hot-dog | a hot dog / ~ pizza
~ french fries / ~ bread / ~ pancakes / birthday cake
doughnut / ice cream | soft-ice-cream
cup of coffee | hot-beverage!V / teapot / apple | red-apple / orange | tangerine / banana
watermelon / ~ grapes / strawberry / ~ cherries / pineapple / carrot / mushroom / pumpkin | jack-o-lantern
""",
    "vehicle": """
car | automobile / bus | bus | a bus; a school bus / taxi / police car / truck | delivery-truck / fire engine
tractor / sports car | racing-car!E | a sportscar; a racing car / motorcycle | motorcycle!E
bicycle / train | locomotive / tram | tram-car
""",
    "boat": """
boat | sailboat!E | a sailboat / ship | passenger-ship ship
""",
    "air": """
airplane / helicopter / rocket | rocket | a rocket ship / flying saucer / balloon / kite
""",
    "building": """
house / cabin | hut | a hut / villa | house-with-garden / village | houses | ~ houses / church / castle / mosque
temple | classical-building / tent | tent!E / tower | tokyo-tower / fountain / ferris wheel
mountain | snow-capped-mountain!E / volcano
""",
    "plant": """
tree | deciduous-tree / pine tree | evergreen-tree / palm tree / christmas tree / cactus / rose | rose!V / tulip
sunflower / flower | blossom / snowman | snowman!V / campfire / ~ people around a campfire
fire
""",
    "heavens": """
the sun | sun / the moon | crescent-moon / star / cloud / rainbow | rainbow!VE
planet | ringed-planet / the earth | globe-showing-europe-africa globe-showing-americas
""",
    "object": """
umbrella / hat | top-hat / crown / shoe | running-shoe / shirt | t-shirt / backpack
gift | wrapped-gift / light bulb / candle / book | closed-book / pencil | pencil!V / ~ scissors
key / guitar / drum / camera / television / computer | laptop
clock | alarm-clock / football | soccer-ball / teddy bear / chair
couch | couch-and-lamp / bed / heart | red-heart
""",
}


@dataclass(frozen=True)
class Thing:
    """One thing of the world: `name`, `kind`, the `icons` that draw it, the `phrases` that say it."""

    name: str
    kind: str
    icons: tuple[str, ...]
    phrases: tuple[str, ...]


def with_article(phrase: str) -> str:
    """ "cat" -> "a cat", "owl" -> "an owl", "the moon" stays, "~ grapes" -> "grapes"."""
    if phrase.startswith("~"):
        return phrase[1:].strip()
    if phrase.startswith(("a ", "an ", "the ")):
        return phrase
    return f"{'an' if phrase[0] in 'aeiou' and not phrase.startswith('unicorn') else 'a'} {phrase}"


def _parse(kind: str, entry: str) -> Thing:
    fields = [field.strip() for field in entry.split("|")]
    name = fields[0].lstrip("~ ").removeprefix("the ")
    icons = tuple(fields[1].split()) if len(fields) > 1 and fields[1] else (name.replace(" ", "-"),)
    others = [p.strip() for p in fields[2].split(";")] if len(fields) > 2 else []
    return Thing(name, kind, icons, tuple(with_article(p) for p in (fields[0], *others)))


THINGS = {
    thing.name: thing
    for kind, entries in KINDS.items()
    for thing in (_parse(kind, entry) for entry in re.split(r" / |\n", entries.strip()))
}

# What the courses' prompts name (`prompts.COURSE_PROMPTS`): scenes show these twice as often.
IN_COURSES = (
    "cat", "dog", "golden retriever", "squirrel", "man", "old man", "dancer", "man with a hat", "burger", "hotdog",
    "car", "bus", "sports car", "boat", "ship", "rocket", "cabin", "villa", "village", "church", "castle", "campfire",
    "people around a campfire", "pencil",
)  # fmt: skip
