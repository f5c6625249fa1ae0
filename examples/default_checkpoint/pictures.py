# SPDX-License-Identifier: Apache-2.0
"""Draws what the default checkpoint sees: things of six icon sets, augmented, on backgrounds.

python pictures.py --sheet sheet.png
"""

import argparse
import io
import json
import math
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from platformdirs import user_cache_path
from world import PLACES, THINGS, Scene, random_scene


STYLES = ("noto", "noto-v1", "twemoji", "emojione", "fxemoji")
# Held out wholly, to measure what is recognised in a drawing style that training never showed
UNSEEN_STYLE = "fluent-emoji-flat"

VERSIONS = {
    "noto": "1.2.9",
    "noto-v1": "1.2.5",
    "twemoji": "1.2.5",
    "emojione": "1.2.3",
    "fxemoji": "1.2.2",
    "fluent-emoji-flat": "1.2.6",
}

# Rises when the rasterised icons change, for caches of before to be left alone
_CACHE = 2
_MARGIN = 0.04

# Variants that hardly differ, and signs that are no drawing of a thing
_LEFT_OUT = re.compile(
    r"skin-tone|-(light|medium-light|medium|medium-dark|dark)$"
    r"|flag|keycap|oclock|thirty|button|regional-?indicator|^(letter|digit)-|asterisk|ideograph|squared|latin|^input"
    r"|^(family|kiss|couple|people-holding|men-holding|women-holding)\b.*-|^(man|woman|men|women)-|facing-right"
    r"|arrow|^hundred|symbol|-sign$|squar|triangle|trade-mark|copyright|registered|-room$"
    r"|^(red|orange|yellow|green|blue|purple|brown|black|white)-.*(circle|diamond|heart)"
)

# Where fxemoji has another name than the others: theirs by its own. Elsewhere only the hyphens are missing.
_FXEMOJI = {
    "alarmclock": "alarm-clock",
    "aubergine": "eggplant",
    "basketballandhoop": "basketball",
    "blacktelephone": "telephone",
    "bolt": "high-voltage",
    "bunny": "rabbit-face",
    "bunnyside": "rabbit",
    "cat": "cat-face",
    "catside": "cat",
    "cellphone": "mobile-phone",
    "chilipepper": "hot-pepper",
    "clap": "clapping-hands",
    "dog": "dog-face",
    "dogside": "dog",
    "dragonhead": "dragon-face",
    "dragonside": "dragon",
    "dromedarycamel": "camel",
    "evergreen": "evergreen-tree",
    "hampster": "hamster",
    "hocho": "kitchen-knife",
    "housebuilding": "house",
    "leopardside": "leopard",
    "manltepiececlock": "mantelpiece-clock",
    "mouse": "mouse-face",
    "mouseside": "mouse",
    "pandaface": "panda",
    "pig": "pig-face",
    "pigside": "pig",
    "poo": "pile-of-poo",
    "present": "wrapped-gift",
    "racecar": "racing-car",
    "raincloud": "cloud-with-rain",
    "sliceofpizza": "pizza",
    "steamlocomotive": "locomotive",
    "stormcloud": "cloud-with-lightning",
    "telephonereceiver2": "telephone-receiver",
    "tie": "necktie",
    "tiger": "tiger-face",
    "tigerside": "tiger",
    "walking": "person-walking",
    "whitemediumstar": "star",
    "wolfface": "wolf",
}

# Drawings that show something else than their name says
_WRONG: dict[str, frozenset[str]] = {
    "noto-v1": frozenset({"cricket"}),
    "emojione": frozenset({"cricket"}),
}


class PicturesError(RuntimeError):
    """Icons could not be had."""


# --- icon sets --------------------------------------------------------------------------------------------------


def _cache() -> Path:
    return user_cache_path("transformers_videollama") / "icons"


def _package(style: str) -> Path:
    """Folder with icons.json and info.json of a style, fetched from npm the first time."""
    if style not in VERSIONS:
        raise PicturesError(f"There is no icon style {style!r}; choose from {', '.join(VERSIONS)}.")
    folder = _cache() / f"{style}-{VERSIONS[style]}"
    if (folder / "icons.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    package = f"@iconify-json/{style}@{VERSIONS[style]}"
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as temporary:
        try:
            subprocess.run(
                ["npm", "pack", "--loglevel=error", package], cwd=temporary, check=True, capture_output=True, text=True
            )
        except FileNotFoundError:
            raise PicturesError(
                f"npm, which fetches {package}, is not installed; install Node.js, or unpack the package to {folder}."
            ) from None
        except subprocess.CalledProcessError as error:
            reason = (error.stderr or error.stdout).strip().splitlines()
            raise PicturesError(
                f"npm could not fetch {package} ({reason[0] if reason else f'exit {error.returncode}'}); check the "
                f"network and npm's registry, or unpack the package to {folder}."
            ) from None
        unpacked = Path(temporary) / "unpacked"
        unpacked.mkdir()
        try:
            with tarfile.open(next(Path(temporary).glob("*.tgz"))) as archive:
                for name in ("icons.json", "info.json"):
                    (unpacked / name).write_bytes(archive.extractfile(f"package/{name}").read())
        except (StopIteration, KeyError, tarfile.TarError, EOFError):
            raise PicturesError(f"What npm fetched as {package} is not that package; try once more.") from None
        try:
            os.rename(unpacked, folder)
        except OSError:
            # Somebody else was faster, or a folder without its icons lies there
            if not (folder / "icons.json").is_file():
                shutil.copytree(unpacked, folder, dirs_exist_ok=True)
    return folder


def licences() -> list[dict]:
    """Package, author and licence of each style."""
    found = []
    for style, version in VERSIONS.items():
        info = json.loads((_package(style) / "info.json").read_text(encoding="utf-8"))
        author, licence = info["author"], info["license"]
        found.append(
            {
                "style": style,
                "package": f"@iconify-json/{style}",
                "version": version,
                "author": author["name"],
                "author_url": author.get("url"),
                "licence": licence["title"],
                "spdx": licence["spdx"],
                "url": licence.get("url"),
            }
        )
    return found


def _rasterise(icon: dict, size: int) -> np.ndarray | None:
    import resvg_py

    left, top = icon.get("left", 0), icon.get("top", 0)
    width, height = icon["width"], icon["height"]
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" width="{width}" height="{height}">{icon["body"]}</svg>'
    )
    # Larger than needed, for what is left after cropping not to be enlarged by much
    png = resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True, width=round(1.5 * size))
    image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    box = image.getchannel("A").point(lambda alpha: 255 * (alpha > 8)).getbbox()
    if box is None:
        return None
    image = image.crop(box)
    inner = size * (1 - 2 * _MARGIN)
    scale = inner / max(image.size)
    # Pillow resizes RGBA with premultiplied alpha
    image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.HAMMING)
    canvas = Image.new("RGBA", (size, size))
    canvas.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return np.asarray(canvas)


@lru_cache(maxsize=1)
def _common_names() -> dict[str, str]:
    """Icon names of the other training styles by themselves without hyphens."""
    names = {}
    for style in ("noto", "twemoji"):
        for name in json.loads((_package(style) / "icons.json").read_text(encoding="utf-8"))["icons"]:
            names.setdefault(name.replace("-", ""), name)
    return names


def _prepare(style: str, size: int) -> Path:
    """File with all icons of a style that are drawings."""
    wanted = {name for thing in THINGS.values() for name in thing.icons}
    # Things that change may name what is left out else
    asked = zlib.crc32(" ".join(sorted(wanted)).encode())
    path = _cache() / f"{style}-{VERSIONS.get(style)}-{size}-{_CACHE}-{asked:08x}.npz"
    if path.is_file():
        return path
    data = json.loads((_package(style) / "icons.json").read_text(encoding="utf-8"))
    default = {"width": data.get("width", 16), "height": data.get("height", 16)}
    common = _common_names() if style == "fxemoji" else {}
    arrays = {}
    for own_name, icon in data["icons"].items():
        name = own_name
        if style == "fxemoji":
            name = _FXEMOJI.get(own_name) or common.get(own_name, own_name)
            if own_name not in _FXEMOJI and name in _FXEMOJI.values():
                continue
        if icon.get("hidden") or (name not in wanted and _LEFT_OUT.search(name)):
            continue
        array = _rasterise(default | icon, size)
        if array is not None:
            arrays[name] = array
    for name in sorted(wanted & set(data.get("aliases", {}))):
        alias = data["aliases"][name]
        array = arrays.get(alias["parent"])
        # What is named twice is drawn once
        if array is not None and alias["parent"] not in wanted and not alias.get("rotate"):
            arrays[name] = array[:, ::-1] if alias.get("hFlip") else array
    for name in _WRONG.get(style, ()):
        arrays.pop(name, None)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npz", delete=False) as file:
        np.savez_compressed(file, **{name: arrays[name] for name in sorted(arrays)})
    os.replace(file.name, path)
    return path


def load_icons(style: str, names: Collection[str] | None = None, size: int = 128) -> dict[str, np.ndarray]:
    """Icons of a style as RGBA arrays (size, size, 4) by name.

    Args:
        style: One of `STYLES`, or `UNSEEN_STYLE`.
        names: Only these, as far as the style has them; None: all that are drawings.
        size: Width and height in pixels.
    """
    with np.load(_prepare(style, size)) as file:
        return {name: file[name] for name in file.files if names is None or name in names}


def drawings(style: str, size: int = 128) -> dict[str, list[np.ndarray]]:
    """Drawings of each thing in a style, none where the style lacks it."""
    icons = load_icons(style, {name for thing in THINGS.values() for name in thing.icons}, size)
    return {name: [icons[icon] for icon in thing.icons if icon in icons] for name, thing in THINGS.items()}


def all_drawings(styles: Sequence[str] = STYLES, size: int = 128) -> dict[str, dict[str, np.ndarray]]:
    """Icons that two of the styles or more have: by name, then by style."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for style in styles:
        for name, array in load_icons(style, size=size).items():
            found.setdefault(name, {})[style] = array
    return {name: found[name] for name in sorted(found) if len(found[name]) > 1}


# --- one drawing ------------------------------------------------------------------------------------------------


def _crop(image: Image.Image) -> Image.Image:
    box = image.getchannel("A").point(_VISIBLE).getbbox()
    return image.crop(box) if box else image


_VISIBLE = [0] * 24 + [255] * 232


def _warp(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Flips, turns, shears and stretches, on a canvas that holds what comes out."""
    flip, angle, shear, stretch, vertical = rng.random(5)
    if flip < 0.5 and strength > 0:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    # Half of all drawings stand nearly straight, as they do in the sets
    angle = (2 * angle - 1) * math.radians(20) * strength * (1 if vertical < 0.5 else 0.25)
    shear = (2 * shear - 1) * 0.15 * strength
    stretch = math.exp((2 * stretch - 1) * math.log(1.25) / 2 * strength)
    width, height = image.size
    canvas = round(1.25 * max(width, height))
    cos, sin = math.cos(angle), math.sin(angle)
    a, b = cos / stretch, sin / stretch + shear
    d, e = -sin * stretch, cos * stretch
    middle = canvas / 2
    matrix = (a, b, width / 2 - (a + b) * middle, d, e, height / 2 - (d + e) * middle)
    return image.transform((canvas, canvas), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


_GREY = np.array([0.299, 0.587, 0.114], np.float32)


def _colour_matrix(rng: np.random.Generator, strength: float) -> tuple[np.ndarray, np.ndarray]:
    hue, rare, saturation, brightness, contrast, grey = rng.random(6)
    turn = (2 * hue - 1) * strength * math.pi * (1.0 if rare < 0.1 else 0.12)
    level = 0.0 if grey < 0.1 * strength else 1 + (2 * saturation - 1) * 0.5 * strength
    gain = 1 + (2 * contrast - 1) * 0.35 * strength
    shift = (2 * brightness - 1) * 0.2 * strength
    cos, sin = math.cos(turn), math.sin(turn)
    # A turn about the grey axis
    third, root = (1 - cos) / 3, sin / math.sqrt(3)
    x, y, z = cos + third, third - root, third + root
    hues = np.array([[x, y, z], [z, x, y], [y, z, x]], np.float32)
    saturate = level * np.eye(3, dtype=np.float32) + (1 - level) * _GREY
    return gain * (hues @ saturate), np.float32(0.5 * (1 - gain) + shift)


def _grow(alpha: np.ndarray) -> np.ndarray:
    grown = alpha.copy()
    np.maximum(grown[1:], alpha[:-1], out=grown[1:])
    np.maximum(grown[:-1], alpha[1:], out=grown[:-1])
    np.maximum(grown[:, 1:], alpha[:, :-1], out=grown[:, 1:])
    np.maximum(grown[:, :-1], alpha[:, 1:], out=grown[:, :-1])
    return grown


def _recolour(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Other colours, fewer colours, an outline, shading: what one set of drawings has and another has not."""
    if strength <= 0:
        return image
    few, posterise, outline, shade, blur, sheer = rng.random(6) / strength
    alpha = image.getchannel("A")
    if few < 0.12:
        colours = image.convert("RGB").quantize(int(rng.integers(4, 9)), Image.Quantize.MEDIANCUT, dither=0)
        image = colours.convert("RGB")
        image.putalpha(alpha)
    pixels = np.asarray(image).astype(np.float32) * np.float32(1 / 255)
    colours, alpha = pixels[..., :3], pixels[..., 3:]
    height, width = alpha.shape[:2]
    matrix, shift = _colour_matrix(rng, strength)
    colours = (colours.reshape(-1, 3) @ matrix.T + shift).reshape(height, width, 3)
    if posterise < 0.1:
        levels = int(rng.integers(3, 6))
        colours = np.round(colours * levels) / levels
    if shade < 0.3:
        # Some sets are flat, some are lit from one side
        x, y = rng.uniform(-0.3, 0.3, 2)
        colours = colours + (
            np.linspace(-x, x, width, dtype=np.float32)[None, :, None]
            + np.linspace(-y, y, height, dtype=np.float32)[:, None, None]
        )
    if sheer < 0.06:
        # Towards a silhouette
        mean = (colours * alpha).sum((0, 1)) / max(float(alpha.sum()), 1e-6)
        colours = colours + (mean - colours) * np.float32(rng.uniform(0.3, 0.65))
    if outline < 0.2:
        edge = 1 + int(rng.random() < 0.4 and max(width, height) > 40)
        pad = ((edge, edge), (edge, edge), (0, 0))
        colours, alpha = np.pad(colours, pad), np.pad(alpha, pad)
        around = alpha[..., 0]
        for _ in range(edge):
            around = _grow(around)
        ink = np.full(3, rng.choice((0.05, 0.2, 0.97)), np.float32) + rng.uniform(-0.05, 0.05, 3).astype(np.float32)
        colours = ink + (colours - ink) * alpha
        alpha = around[..., None]
    pixels = np.concatenate((colours, alpha), 2)
    np.clip(pixels, 0, 1, out=pixels)
    image = Image.fromarray((pixels * np.float32(255) + np.float32(0.5)).astype(np.uint8), "RGBA")
    if blur < 0.2:
        image = image.convert("RGBa").filter(ImageFilter.BoxBlur(float(rng.uniform(0.2, 0.9)))).convert("RGBA")
    return image


def _draw(rgba: np.ndarray, pixels: int, rng: np.random.Generator, strength: float) -> Image.Image:
    """An augmented drawing without margins, its longer side `pixels` long."""
    image = Image.fromarray(rgba, "RGBA")
    # For speed: few pixels are wanted
    if len(rgba) > 2.2 * pixels:
        image = image.reduce(2)
    image = _crop(_warp(image, rng, strength))
    return _recolour(_resize(image, pixels), rng, strength)


def _mean(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image.resize((4, 4), Image.Resampling.BOX)).reshape(-1, 4).astype(np.float32) / 255
    return (pixels[:, :3] * pixels[:, 3:]).sum(0) / max(float(pixels[:, 3].sum()), 1e-6)


def _resize(image: Image.Image, pixels: int) -> Image.Image:
    scale = pixels / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image if size == image.size else image.resize(size, Image.Resampling.BILINEAR)


def augment(rgba: np.ndarray, rng: np.random.Generator, strength: float = 1.0) -> np.ndarray:
    """A drawing as another hand might have drawn it, of the same size.

    Args:
        rgba: (size, size, 4).
        rng: Source of all choices.
        strength: How much is changed; 0: nothing.
    """
    if strength <= 0:
        return rgba
    size = len(rgba)
    image = _draw(rgba, round(size * (1 - 2 * _MARGIN)) - 4, rng, strength)
    canvas = Image.new("RGBA", (size, size))
    canvas.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return np.asarray(canvas)


# --- backgrounds ------------------------------------------------------------------------------------------------


def _colour(rng: np.random.Generator, level: float) -> np.ndarray:
    """Any colour, though rarely a garish one; a light one at level 0."""
    grey, depth = rng.random(2)
    grey = 0.95 - 0.85 * level * grey
    return np.clip(grey + (rng.random(3) - 0.5) * (0.1 + 0.6 * level * depth), 0, 1).astype(np.float32)


@lru_cache(maxsize=8)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    line = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / size
    return line[None, :], line[:, None]


def _smooth(values: np.ndarray, size: int) -> np.ndarray:
    image = Image.fromarray((values * 255).astype(np.uint8), "L")
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC)).astype(np.float32) * np.float32(1 / 255)


def random_background(
    rng: np.random.Generator, size: int, level: float = 1.0, avoid: np.ndarray | None = None
) -> np.ndarray:
    """A background (size, size, 3) of moderate contrast.

    Args:
        rng: Source of all choices.
        size: Width and height in pixels.
        level: 0: plain and light; the more, the more often patterned, darker and of more contrast.
        avoid: Colours (n, 3), from 0 to 1, to keep some distance from.
    """
    base = _colour(rng, level)
    for _ in range(6):
        if avoid is None or np.abs(base - avoid).sum(1).min() > 0.5:
            break
        base = _colour(rng, level)
    kind = int(rng.integers(0, 8)) if rng.random() < level else 0
    if kind == 0:
        return np.broadcast_to((base * 255).astype(np.uint8), (size, size, 3)).copy()
    x, y = _grid(size)
    # Not all the way to another colour
    other = base + (_colour(rng, level) - base) * np.float32(rng.uniform(0.2, 0.7)) * np.float32(level)
    angle, phase, scale = rng.random(3)
    if kind == 1:
        angle *= 2 * math.pi
        mask = np.clip(0.5 + (x - 0.5) * np.float32(math.cos(angle)) + (y - 0.5) * np.float32(math.sin(angle)), 0, 1)
    elif kind == 2:
        middle_x, middle_y = rng.random(2).astype(np.float32)
        mask = np.clip(((x - middle_x) ** 2 + (y - middle_y) ** 2) * np.float32(1 + 2 * scale), 0, 1)
    elif kind == 3:
        angle *= math.pi
        number = 3 + 9 * scale
        wave = x * np.float32(number * math.cos(angle)) + y * np.float32(number * math.sin(angle)) + np.float32(phase)
        mask = (wave % 1 < 0.5).astype(np.float32)
    elif kind == 4:
        number = np.float32(3 + 7 * scale)
        mask = ((np.floor(x * number + np.float32(phase)) + np.floor(y * number)) % 2).astype(np.float32)
    elif kind == 5:
        mask = _smooth(rng.random((4, 4), np.float32), size)
        if angle < 0.5:
            mask = np.clip((mask - 0.5) * 8 + 0.5, 0, 1)
    elif kind == 6:
        cells = int(8 + 24 * scale)
        mask = _smooth(rng.random((cells, cells), np.float32), size)
    else:
        line = np.float32(0.35 + 0.4 * phase)
        ground = (y > line).astype(np.float32)
        shade = np.float32(0.25 * scale) * y
        mask = np.broadcast_to(np.clip(ground * np.float32(0.85) + shade, 0, 1), (size, size))
    values = base + mask[..., None] * (other - base)
    return (np.clip(values, 0, 1) * np.float32(255)).astype(np.uint8)


# --- scenes -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Placed:
    """An object at one moment.

    Attributes:
        name: Index of the thing in the scene's names.
        x: Centre, as a fraction of the frame's width.
        y: Centre, as a fraction of its height.
        size: Longer side, as a fraction of the frame.
        flip: Whether it is turned against the others.
    """

    name: int
    x: float
    y: float
    size: float
    flip: bool = False


@dataclass(frozen=True)
class Plan:
    """What is drawn by lot once for a clip.

    Attributes:
        objects: Where they are when they come.
        motion: How far the first goes in the whole clip, in fractions of the frame.
        wobble: How far it sways beside its way, how often, and from where on.
        change: When a sequence changes, as a fraction of the clip.
    """

    objects: tuple[Placed, ...] = ()
    motion: tuple[float, float] = (0.0, 0.0)
    wobble: tuple[float, float, float] = (0.0, 0.0, 0.0)
    change: float = 0.5


def _inside(centre: float, size: float) -> float:
    return min(max(centre, size / 2), 1 - size / 2)


def _spread(count: int, rng: np.random.Generator) -> tuple[Placed, ...]:
    size = rng.uniform(0.22, 0.4)
    while True:
        for _ in range(8):
            placed: list[Placed] = []
            for _ in range(count):
                own = min(max(size * rng.uniform(0.92, 1.08), 0.22), 0.4)
                for x, y in rng.uniform(own / 2, 1 - own / 2, (12, 2)).tolist():
                    if all(
                        max(abs(x - other.x), abs(y - other.y)) > (own + other.size) / 2 + 0.02 for other in placed
                    ):
                        placed.append(Placed(0, x, y, own, bool(rng.random() < 0.5)))
                        break
                else:
                    break
            if len(placed) == count:
                return tuple(placed)
        size = max(0.22, size * 0.93)


def plan_scene(scene: Scene, rng: np.random.Generator) -> Plan:
    """Sizes, places and times that the scene leaves open."""
    if scene.kind == "still":
        row, column = PLACES[scene.place]
        size = rng.uniform(0.3, 0.8 if row == column == 1 else 0.45)
        x, y = ((cell + 0.5) / 3 + rng.uniform(-0.05, 0.05) for cell in (column, row))
        return Plan((Placed(0, _inside(x, size), _inside(y, size), size),))
    if scene.kind == "moving":
        size = rng.uniform(0.28, 0.5)
        # Mostly the whole way; the rest of it is left out at its start and its end
        left_out = (1 - size - 0.45) * rng.random() ** 2
        before = left_out * rng.random()
        start, way = size / 2 + before, 1 - size - left_out
        if scene.direction in ("left", "up"):
            start, way = 1 - start, -way
        wobble = (0.012 * rng.random(), rng.uniform(1, 4), rng.random())
        cross = rng.uniform(size / 2 + wobble[0], 1 - size / 2 - wobble[0])
        if scene.direction in ("left", "right"):
            return Plan((Placed(0, start, cross, size),), (way, 0.0), wobble)
        return Plan((Placed(0, cross, start, size),), (0.0, way), wobble)
    if scene.kind == "several":
        return Plan(_spread(scene.count, rng))
    if scene.kind == "pair":
        objects = []
        for index in range(2):
            size = rng.uniform(0.3, 0.48)
            # On its own half as a whole
            x = rng.uniform(max(0.2, size / 2), min(0.3, 0.5 - size / 2))
            objects.append(Placed(index, 1 - x if index else x, rng.uniform(size / 2, 1 - size / 2), size))
        return Plan(tuple(objects))
    if scene.kind == "sequence":
        objects = []
        for index in range(2):
            size = rng.uniform(0.4, 0.8)
            x, y = (_inside(0.5 + shift, size) for shift in rng.uniform(-0.12, 0.12, 2).tolist())
            objects.append(Placed(index, x, y, size))
        return Plan(tuple(objects), change=rng.uniform(0.45, 0.55))
    return Plan()


def layout(scene: Scene, t: float, plan: Plan) -> list[Placed]:
    """What is seen at a moment, as a fraction of the clip."""
    if scene.kind == "moving":
        (placed,) = plan.objects
        sway = plan.wobble[0] * math.sin(2 * math.pi * (plan.wobble[1] * t + plan.wobble[2]))
        along, down = plan.motion
        return [
            replace(
                placed, x=placed.x + along * t + (0 if along else sway), y=placed.y + down * t + (0 if down else sway)
            )
        ]
    if scene.kind == "sequence":
        return [plan.objects[int(t >= plan.change)]]
    return list(plan.objects)


Box = tuple[str, float, float, float, float]


def draw_frames(
    scene: Scene,
    times: Sequence[float],
    size: int,
    rng: np.random.Generator,
    drawings: dict[str, list[np.ndarray]],
    strength: float = 1.0,
    level: float = 1.0,
) -> tuple[np.ndarray, list[list[Box]]]:
    """Frames of a scene, and where its things are in them.

    Args:
        scene: What happens.
        times: Moments, as fractions of the clip.
        size: Width and height in pixels.
        rng: Source of all choices.
        drawings: Of each thing of the scene; one of them is taken for the clip.
        strength: Of `augment`.
        level: Of `random_background`.

    Returns:
        uint8 (frames, size, size, 3), and for each frame (name, x0, y0, x1, y1) of each object, in fractions.
    """
    plan = plan_scene(scene, rng)
    largest = [0] * len(scene.names)
    for placed in plan.objects:
        largest[placed.name] = max(largest[placed.name], round(placed.size * size))
    images = []
    for name, pixels in zip(scene.names, largest):
        if not drawings.get(name):
            raise PicturesError(f"There is no drawing of {name!r} to draw; give styles that have one.")
        choice = drawings[name][int(rng.integers(len(drawings[name])))]
        images.append(_draw(choice, max(4, pixels), rng, strength))
    avoid = np.stack([_mean(image) for image in images]) if images else None
    background = random_background(rng, size, level, avoid)
    # Light and shadow pass over a whole clip
    if level > 0:
        light = 1 + (2 * rng.random(2) - 1) * 0.08 * level
    else:
        light = np.ones(2)
    ready: dict[Placed, Image.Image] = {}

    def image_of(placed: Placed) -> Image.Image:
        # The same in all frames, wherever it has gone
        key = replace(placed, x=0.0, y=0.0)
        if key not in ready:
            image = images[placed.name]
            if len(plan.objects) > len(images):
                image = _resize(image, max(4, round(placed.size * size)))
            ready[key] = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if placed.flip else image
        return ready[key]

    canvas = Image.fromarray(background, "RGB")
    frames, boxes = np.empty((len(times), size, size, 3), np.uint8), []
    for index, t in enumerate(times):
        frame = canvas.copy()
        found = []
        for placed in layout(scene, t, plan):
            image = image_of(placed)
            found.append((scene.names[placed.name], *_paste(frame, image, placed.x, placed.y)))
        gain = float(light[0] + (light[1] - light[0]) * t)
        if abs(gain - 1) > 0.01:
            frame = frame.point([min(255, round(gain * value)) for value in range(256)] * 3)
        frames[index] = np.asarray(frame)
        boxes.append(found)
    return frames, boxes


def _paste(frame: Image.Image, image: Image.Image, x: float, y: float) -> tuple[float, float, float, float]:
    size = frame.width
    left = min(max(round(x * size - image.width / 2), 0), max(size - image.width, 0))
    top = min(max(round(y * size - image.height / 2), 0), max(size - image.height, 0))
    frame.paste(image, (left, top), image)
    right, bottom = min(left + image.width, size), min(top + image.height, size)
    return left / size, top / size, right / size, bottom / size


def draw_icons(
    icons: Sequence[np.ndarray],
    places: Sequence[tuple[float, float, float]],
    size: int,
    rng: np.random.Generator,
    strength: float = 1.0,
    level: float = 1.0,
) -> tuple[np.ndarray, list[tuple[float, float, float, float]]]:
    """Icons on a background, each at a centre (x, y) and of a size in fractions: uint8 (size, size, 3) and their boxes."""
    images = [_draw(rgba, max(4, round(part * size)), rng, strength) for rgba, (_, _, part) in zip(icons, places)]
    frame = Image.fromarray(random_background(rng, size, level, np.stack([_mean(image) for image in images])), "RGB")
    boxes = [_paste(frame, image, x, y) for image, (x, y, _) in zip(images, places)]
    return np.asarray(frame), boxes


# --- to look at -------------------------------------------------------------------------------------------------


def contact_sheet(path: str | Path, styles: Sequence[str] = (*STYLES, UNSEEN_STYLE), cell: int = 64) -> None:
    """Draws all things in all styles, a row for each thing."""
    by_style = {style: drawings(style) for style in styles}
    slots = max(len(thing.icons) for thing in THINGS.values())
    label = 110
    sheet = Image.new("RGB", (label + len(styles) * (slots * cell + 12), 16 + len(THINGS) * cell), "white")
    draw = ImageDraw.Draw(sheet)
    for column, style in enumerate(styles):
        draw.text((label + column * (slots * cell + 12), 2), style, "black")
    for row, name in enumerate(THINGS):
        top = 16 + row * cell
        draw.rectangle((0, top, sheet.width, top + cell), "#f4f4f4" if row % 2 else "#dde4ea")
        draw.text((4, top + cell // 2 - 6), name, "black")
        for column, style in enumerate(styles):
            for slot, rgba in enumerate(by_style[style][name]):
                image = Image.fromarray(rgba, "RGBA").resize((cell - 4, cell - 4), Image.Resampling.HAMMING)
                sheet.paste(image, (label + column * (slots * cell + 12) + slot * cell + 2, top + 2), image)
    sheet.save(path)


def clip_sheet(path: str | Path, styles: Sequence[str] = STYLES, num_clips: int = 24, size: int = 96) -> None:
    """Draws eight frames of some clips, a row for each clip."""
    merged: dict[str, list[np.ndarray]] = {name: [] for name in THINGS}
    for style in styles:
        for name, found in drawings(style).items():
            merged[name] += found
    sheet = Image.new("RGB", (8 * (size + 2), num_clips * (size + 16)), "white")
    draw = ImageDraw.Draw(sheet)
    for row in range(num_clips):
        scene = random_scene(Random(row))
        frames, boxes = draw_frames(scene, np.arange(8) / 7, size, np.random.default_rng(row), merged)
        text = " ".join(str(part) for part in (scene.kind, scene.names, scene.place, scene.direction, scene.count))
        draw.text((2, row * (size + 16) + 2), text, "black")
        for column, frame in enumerate(frames):
            corner = (column * (size + 2), row * (size + 16) + 16)
            sheet.paste(Image.fromarray(frame), corner)
            for _, x0, y0, x1, y1 in boxes[column] if column == 0 else ():
                draw.rectangle(
                    [corner[i % 2] + round(value * size) - (i > 1) for i, value in enumerate((x0, y0, x1, y1))],
                    outline="red",
                )
    sheet.save(path)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sheet", type=Path, help="draw all things in all styles to this file")
    parser.add_argument("--clips", type=Path, help="draw frames of some clips to this file")
    parser.add_argument("--licences", action="store_true", help="list the icon sets' licences")
    arguments = parser.parse_args()
    if arguments.sheet:
        contact_sheet(arguments.sheet)
    if arguments.clips:
        clip_sheet(arguments.clips)
    if arguments.licences:
        for licence in licences():
            print("{style}: {package}@{version} by {author}, {licence} ({spdx}), {url}".format(**licence))


if __name__ == "__main__":
    main()
