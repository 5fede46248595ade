"""The things of the world by kind: how they are called, which icons draw them, how else people say them.

An entry is `name | icons | other ways to say it`, entries are parted by `/` or a new line. The name may
carry its own article ("the moon") or none at all (`~` before it: "~ grapes"); otherwise "a" or "an" is put
before it. Icons are tried in every artwork family; several icons are several drawings of the same thing;
without icons the name itself is the icon.
"""

import re
from dataclasses import dataclass

KINDS = {
    "animal": """
cat / dog / golden retriever | guide-dog service-dog / poodle / horse / cow / pig / sheep | ewe / goat
rabbit / mouse / tiger / leopard / elephant / camel | camel two-hump-camel / deer / monkey / gorilla
squirrel | chipmunk / crocodile / turtle / snake / lizard / snail / kangaroo / giraffe / zebra
rhinoceros / hedgehog / ant / butterfly / bee | honeybee / ladybug | lady-beetle / spider / scorpion
crab / octopus / penguin / chicken / rooster / chick | front-facing-baby-chick baby-chick / duck / swan
flamingo / peacock / parrot / eagle / owl / dove / bird / bat / dragon / t-rex | t-rex | dinosaur
""",
    "swimmer": """
fish / tropical fish / blowfish / dolphin / whale | whale spouting-whale / shark
""",
    "head": """
cat face / dog face / tiger face / rabbit face / monkey face / mouse face / pig face / cow face
horse face / lion / bear / panda / koala / fox / wolf / frog / hamster / raccoon / unicorn
""",
    "person": """
man / woman / boy / girl / baby / old man / old woman
dancer | woman-dancing | a ballerina; a dancing woman
man with a hat | man-detective detective | a man wearing a hat / farmer | man-farmer woman-farmer farmer
cook | man-cook woman-cook cook / astronaut | man-astronaut woman-astronaut astronaut
police officer | man-police-officer police-officer / guard | guard man-guard / princess / prince
santa claus | santa-claus | ~ santa claus; santa / runner | person-running man-running | a running man
surfer | person-surfing man-surfing / skier / snowboarder / wizard | man-mage mage
vampire | man-vampire vampire
""",
    "face": """
smiling face | slightly-smiling-face smiling-face-with-smiling-eyes grinning-face | a smiley; a happy face
sad face | frowning-face slightly-frowning-face | an unhappy face / angry face | angry-face pouting-face
laughing face | face-with-tears-of-joy / winking face / sleeping face / crying face | loudly-crying-face
surprised face | astonished-face / face with sunglasses | smiling-face-with-sunglasses / thinking face
clown | clown-face / robot / alien / ghost / skull / devil | smiling-face-with-horns
""",
    "food": """
burger | hamburger | a hamburger / hotdog | hot-dog | a hot dog / pizza | pizza | ~ pizza / taco
~ french fries | french-fries | ~ fries / bread | bread | a loaf of bread / croissant / ~ pancakes
cheese | cheese-wedge | ~ cheese / fried egg | cooking / ~ bacon / ~ sushi / bowl of rice | cooked-rice
~ spaghetti / birthday cake / slice of cake | shortcake | a cake / cookie / doughnut | doughnut | a donut
chocolate bar / candy / lollipop / ice cream | soft-ice-cream | an ice cream cone / honey pot | honey-pot
cup of coffee | hot-beverage | ~ coffee / mug of beer | beer-mug | a beer / glass of wine | wine-glass
cocktail | cocktail-glass / teapot / apple | red-apple / pear / orange | tangerine / lemon / banana
watermelon / ~ grapes / strawberry / ~ cherries / peach / pineapple / tomato / eggplant / avocado / carrot
corn | ear-of-corn | ~ corn / pepper | hot-pepper | a chili / cucumber / mushroom / salad | green-salad
~ popcorn / pumpkin | jack-o-lantern
""",
    "vehicle": """
car | automobile / bus | bus | a bus; a school bus / taxi / police car / truck | delivery-truck
fire engine / ambulance / tractor / sports car | racing-car | a sportscar; a racing car
jeep | sport-utility-vehicle / van | minibus / motorcycle / scooter | motor-scooter
bicycle | bicycle | a bike / train | locomotive | a locomotive / tram | tram-car
""",
    "boat": """
boat | sailboat | a sailboat / speedboat / ship | passenger-ship ship / ferry / canoe
""",
    "air": """
airplane | airplane small-airplane | a plane / helicopter / rocket | rocket | a rocket ship
flying saucer / balloon / kite / parachute
""",
    "building": """
house / cabin | hut | a hut / villa | house-with-garden / village | houses | ~ houses / church / castle
mosque / temple | classical-building / hospital / school / hotel / office building / factory / tent
circus tent / tower | tokyo-tower / statue of liberty | statue-of-liberty | the statue of liberty
fountain / ferris wheel / mountain | snow-capped-mountain mount-fuji / volcano
""",
    "plant": """
tree | deciduous-tree / pine tree | evergreen-tree / palm tree / christmas tree / cactus / rose / tulip
sunflower / daisy | blossom | a flower / hibiscus / cherry blossom
bouquet | bouquet | a bunch of flowers / maple leaf / clover | four-leaf-clover / snowman / campfire
~ people around a campfire / fire | fire | ~ flames
""",
    "heavens": """
sun | sun | the sun / moon | crescent-moon | the moon / full moon | full-moon / star | star glowing-star
cloud / rainbow / snowflake / planet | ringed-planet
earth | globe-showing-europe-africa globe-showing-americas | the earth
""",
    "object": """
umbrella / hat | top-hat | a top hat / crown / shoe | running-shoe / high heel | high-heeled-shoe / dress
shirt | t-shirt / ~ jeans / ~ sunglasses / backpack / handbag / watch / ring / diamond | gem-stone
gift | wrapped-gift | a present / light bulb / candle / book | closed-book open-book / pencil / paintbrush
~ scissors / key / lock | locked / hammer / axe / sword | dagger / shield / bomb / bell / guitar / violin
trumpet / drum / piano | musical-keyboard / camera | camera camera-with-flash
television | television | a tv / computer | laptop | a laptop / phone | mobile-phone / telephone
clock | alarm-clock alarm / hourglass | hourglass-done hourglass-not-done
football | soccer-ball | a soccer ball / basketball / trophy / teddy bear / die | game-die | ~ dice
chair / couch | couch-and-lamp | a sofa / bed / bathtub / door / anchor / money bag / magnet / telescope
mailbox | closed-mailbox-with-raised-flag / suitcase | luggage briefcase / bucket / broom / vase | amphora
heart | red-heart / crystal ball
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
    name = fields[0].lstrip("~ ")
    icons = tuple(fields[1].split()) if len(fields) > 1 and fields[1] else (name.replace(" ", "-"),)
    others = [p.strip() for p in fields[2].split(";")] if len(fields) > 2 else []
    return Thing(name, kind, icons, tuple(with_article(p) for p in (fields[0], *others)))


THINGS = {
    thing.name: thing
    for kind, entries in KINDS.items()
    for thing in (_parse(kind, entry) for entry in re.split(r" / |\n", entries.strip()))
}

# What the courses' prompts name (`prompts.COURSE_PROMPTS`): the diffusion models see more of these.
IN_COURSES = (
    "cat", "dog", "golden retriever", "squirrel", "man", "old man", "dancer", "man with a hat", "burger", "hotdog",
    "car", "bus", "sports car", "boat", "ship", "rocket", "cabin", "villa", "village", "church", "castle", "campfire",
    "people around a campfire", "pencil",
)  # fmt: skip
