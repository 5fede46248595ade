"""Open emoji artwork from npm: found or fetched, drawn by resvg, kept as trimmed RGBA sprites."""

import io
import json
import shutil
import subprocess
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from experiments.files import cache_dir

from .things import THINGS, Thing

# family -> (title, author, licence, where it comes from)
FAMILIES = {
    "noto": ("Noto Emoji", "Google", "Apache-2.0", "https://github.com/googlefonts/noto-emoji"),
    "noto-v1": ("Noto Emoji (v1)", "Google", "Apache-2.0", "https://github.com/googlefonts/noto-emoji"),
    "emojione": ("EmojiOne 2 (EmojiTwo)", "EmojiOne", "CC BY 4.0", "https://github.com/EmojiTwo/emojitwo"),
    "twemoji": ("Twemoji", "Twitter and contributors", "CC BY 4.0", "https://github.com/jdecked/twemoji"),
    "fluent-emoji-flat": (
        "Fluent Emoji Flat",
        "Microsoft",
        "MIT",
        "https://github.com/microsoft/fluentui-emoji",
    ),
    "fluent-emoji": ("Fluent Emoji", "Microsoft", "MIT", "https://github.com/microsoft/fluentui-emoji"),
}
WORLD = 2  # bump by hand whenever the same scene would be drawn or said differently
LETTERS = dict(zip("NVETFG", FAMILIES, strict=True))  # how `things` names a family to leave out
SPRITE = 128  # pixels; a picture is at most this large


def artwork_dir() -> Path:
    """The folder of the npm packages `@iconify-json/*`; fetched with npm on first use.

    Raises:
        RuntimeError: npm is missing or cannot fetch; one sentence says what to run.
    """
    root = cache_dir() / "artwork"
    packages = root / "node_modules" / "@iconify-json"
    missing = [f for f in FAMILIES if not (packages / f / "icons.json").exists()]
    if missing:
        wanted = " ".join(f"@iconify-json/{f}" for f in missing)
        if shutil.which("npm") is None:
            raise RuntimeError(f"The artwork is missing and npm is not installed: run `npm i {wanted}` in {root}.")
        root.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(root), *wanted.split()]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise RuntimeError(f"npm could not fetch the artwork ({last[0]}): run `npm i {wanted}` in {root}.")
    return packages


@cache
def icons(family: str) -> dict[str, str]:
    """Icon name -> complete SVG text, aliases included, for one artwork family."""
    data = json.loads((artwork_dir() / family / "icons.json").read_text())
    bodies = dict(data["icons"])
    for name, alias in data.get("aliases", {}).items():
        if alias.get("parent") in bodies:
            bodies.setdefault(name, bodies[alias["parent"]])
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    frame = f'<svg {names} viewBox="0 0 {{}} {{}}">{{}}</svg>'
    width, height = data.get("width", 16), data.get("height", 16)
    return {
        name: frame.format(icon.get("width", width), icon.get("height", height), icon["body"])
        for name, icon in bodies.items()
    }


def rasterise(svg: str, size: int = SPRITE) -> np.ndarray:
    """SVG text -> RGBA uint8 (h, w, 4), trimmed to what is drawn, its longer side `size`."""
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_string=svg, width=size * 3 // 2, height=size * 3 // 2, skip_system_fonts=True)
    picture = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    box = picture.getchannel("A").point(lambda a: 255 * (a > 16)).getbbox()
    picture = picture.crop(box)
    scale = size / max(picture.size)
    picture = picture.resize([max(1, round(s * scale)) for s in picture.size], Image.Resampling.BOX)
    return np.asarray(picture)


def _campfire(family: str) -> np.ndarray:
    """Emoji have no campfire: the family's own fire over two crossed logs."""
    fire = Image.fromarray(rasterise(icons(family)["fire"], 104))
    canvas = Image.new("RGBA", (512, 512))
    draw = ImageDraw.Draw(canvas)
    bark, rings = (111, 70, 42, 255), (214, 170, 120, 255)
    for x0, x1 in ((60, 452), (452, 60)):
        draw.line([(x0, 470), (x1, 400)], fill=bark, width=56)
        draw.ellipse([x0 - 30, 440, x0 + 30, 500], fill=rings)
    canvas = canvas.reduce(4)
    canvas.alpha_composite(fire, ((128 - fire.width) // 2, 0))
    return np.asarray(canvas.crop(canvas.getbbox()))


def _around_campfire(family: str) -> np.ndarray:
    """A woman and a man on either side of the campfire."""
    canvas = Image.new("RGBA", (128, 128))
    for name, x in (("woman", 0), ("man", 76)):
        person = Image.fromarray(rasterise(icons(family)[name], 72))
        canvas.alpha_composite(person.resize((52, 60)), (x, 20))
    fire = Image.fromarray(_campfire(family)).resize((60, 60))
    canvas.alpha_composite(fire, (34, 60))
    return np.asarray(canvas.crop(canvas.getbbox()))


COMPOSED = {"campfire": _campfire, "people around a campfire": _around_campfire}


def drawings(thing: Thing, family: str) -> list[np.ndarray]:
    """Every drawing of `thing` in `family` as RGBA sprites; the empty list where the family has none."""
    known = icons(family)
    if thing.name in COMPOSED:
        needed = ("fire", "man", "woman")
        return [COMPOSED[thing.name](family)] if all(n in known for n in needed) else []
    icon_names = [icon.partition("!") for icon in thing.icons]
    left_out = [{LETTERS[letter] for letter in letters} for _, _, letters in icon_names]
    fitting = [icon[0] for icon, families in zip(icon_names, left_out, strict=True) if family not in families]
    return [rasterise(known[name]) for name in fitting if name in known]


def _webp(sprite: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(sprite).save(file, "WEBP", lossless=True, quality=50, method=3)
    return file.getvalue()


def sprites_path() -> Path:
    """Where the drawings of this world lie: one portable file."""
    return cache_dir() / "pictures" / f"world{WORLD}-sprites.zip"


class Sprites:
    """All drawings of the world: `sprites[thing, family]` is a list of RGBA uint8 arrays (h, w, 4).

    Drawn once (a minute) and kept in one zip of WebP pictures, which is all that another machine needs to draw
    scenes and faces; a new `WORLD` draws again. `faces[family, icon]` are the faces of `faces.face_pictures`.
    """

    def __init__(
        self, drawn: dict[tuple[str, str], list[np.ndarray]], faces: dict[tuple[str, str], np.ndarray] | None = None
    ):
        self.drawn = {key: value for key, value in drawn.items() if value}
        self.faces = faces or {}
        self._families = {thing: [f for f in FAMILIES if (thing, f) in self.drawn] for thing, _ in self.drawn}

    def __getitem__(self, key: tuple[str, str]) -> list[np.ndarray]:
        return self.drawn[key]

    def families(self, thing: str) -> list[str]:
        """The families that draw `thing`, in the order of `FAMILIES`."""
        return self._families.get(thing, [])

    def save(self, path: Path) -> None:
        """Write everything to one zip: `things/NAME/FAMILY/NUMBER.webp` and `faces/FAMILY/ICON.webp`."""
        things = {f"things/{t}/{f}/{k}": s for (t, f), drawn in self.drawn.items() for k, s in enumerate(drawn)}
        faces = {f"faces/{family}/{icon}": sprite for (family, icon), sprite in self.faces.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        with zipfile.ZipFile(part, "w") as file:
            for name, sprite in (things | faces).items():
                file.writestr(zipfile.ZipInfo(f"{name}.webp"), _webp(sprite))
        part.replace(path)

    @classmethod
    def read(cls, path: Path) -> "Sprites":
        """The sprites that `save` wrote."""
        drawn, faces = {}, {}
        with zipfile.ZipFile(path) as file:
            for name in file.namelist():
                kind, *key = name.removesuffix(".webp").split("/")
                sprite = np.asarray(Image.open(io.BytesIO(file.read(name))).convert("RGBA"))
                if kind == "faces":
                    faces[tuple(key)] = sprite
                else:
                    drawn.setdefault(tuple(key[:2]), []).append(sprite)
        return cls(drawn, faces)

    @classmethod
    def load(cls, path: Path | None = None) -> "Sprites":
        """The sprites at `path`, by default `sprites_path()`; drawn from the artwork if there are none yet."""
        path = path or sprites_path()
        if not path.exists():
            from .faces import face_names

            drawn = {(t.name, f): drawings(t, f) for t in THINGS.values() for f in FAMILIES}
            cls(drawn, {(f, name): rasterise(icons(f)[name]) for f, name in face_names()}).save(path)
        return cls.read(path)
