# SPDX-License-Identifier: Apache-2.0
"""The small world that the default checkpoint knows: its things, and what can happen in a clip of it.

A clip of six seconds shows nothing, one thing that stands still at one of nine places or moves in one of four directions, up to
four of a kind, two things side by side, or one thing after the other. Beside it one sound is heard, two in turn, or none: of what is
seen or of something else.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random


# Seconds of a clip, and its frames in a second
DURATION = 6.0
FPS = 8


@dataclass(frozen=True)
class Thing:
    """What can be seen, and heard if it makes a sound.

    Attributes:
        name: In the singular, without its article.
        icons: Names of its drawings in the icon sets, where each has most of them.
        makes_sound: Whether it is heard in clips.
        plural: Empty where an s is enough, None for what is not counted.
        article: Before the name, empty for what takes none.
    """

    name: str
    icons: tuple[str, ...]
    makes_sound: bool = True
    plural: str | None = ""
    article: str = "a"

    def __str__(self) -> str:
        return f"{self.article} {self.name}".strip()

    @property
    def several(self) -> str:
        return self.plural or f"{self.name}s"


_SOUNDING = (
    Thing("dog", ("dog", "dog-face", "poodle", "guide-dog", "service-dog")),
    Thing("cat", ("cat", "cat-face", "black-cat")),
    Thing("cow", ("cow", "cow-face", "ox")),
    Thing("horse", ("horse", "horse-face")),
    Thing("sheep", ("ewe", "ram", "sheep"), plural="sheep"),
    Thing("pig", ("pig", "pig-face")),
    Thing("duck", ("duck",)),
    Thing("rooster", ("rooster",)),
    Thing("bird", ("bird",)),
    Thing("frog", ("frog", "frog-face")),
    Thing("bee", ("honeybee",)),
    Thing("lion", ("lion", "lion-face")),
    Thing("elephant", ("elephant",), article="an"),
    Thing("owl", ("owl",), article="an"),
    Thing("monkey", ("monkey", "monkey-face")),
    Thing("snake", ("snake",)),
    Thing("cricket", ("cricket",)),
    Thing("bell", ("bell", "bellhop-bell")),
    Thing("drum", ("drum", "long-drum")),
    Thing("guitar", ("guitar",)),
    Thing("piano", ("musical-keyboard",)),
    Thing("trumpet", ("trumpet",)),
    Thing("violin", ("violin",)),
    Thing("fire truck", ("fire-engine",)),
    Thing("train", ("locomotive", "train", "tram")),
    Thing("helicopter", ("helicopter",)),
    Thing("motorcycle", ("motorcycle", "motor-scooter")),
    Thing("clock", ("alarm-clock", "mantelpiece-clock")),
    Thing("telephone", ("telephone", "telephone-receiver")),
    Thing("camera", ("camera", "camera-with-flash")),
    Thing("hammer", ("hammer",)),
    Thing("rain", ("cloud-with-rain",), plural=None, article=""),
    Thing("thunderstorm", ("cloud-with-lightning", "cloud-with-lightning-and-rain", "high-voltage"), plural=None),
    Thing("applause", ("clapping-hands",), plural=None, article=""),
)
_SILENT = (
    Thing("apple", ("red-apple", "green-apple"), article="an"),
    Thing("banana", ("banana",)),
    Thing("tree", ("deciduous-tree", "evergreen-tree")),
    Thing("flower", ("sunflower", "tulip", "hibiscus", "cherry-blossom")),
    Thing("house", ("house", "house-with-garden")),
    Thing("ball", ("soccer-ball", "basketball", "volleyball")),
    Thing("star", ("star", "glowing-star")),
    Thing("mushroom", ("mushroom", "brown-mushroom")),
    Thing("fish", ("fish", "tropical-fish", "blowfish"), plural="fish"),
    Thing("butterfly", ("butterfly",), plural="butterflies"),
    Thing("turtle", ("turtle",)),
    Thing("umbrella", ("umbrella", "closed-umbrella"), article="an"),
    Thing("cake", ("birthday-cake", "shortcake")),
    Thing("key", ("key", "old-key")),
)
THINGS: dict[str, Thing] = {
    thing.name: thing for thing in (*_SOUNDING, *(replace(thing, makes_sound=False) for thing in _SILENT))
}
NAMES = tuple(THINGS)
SOUNDS = tuple(name for name in NAMES if THINGS[name].makes_sound)
COUNTABLE = tuple(name for name in NAMES if THINGS[name].plural is not None)

KINDS = ("empty", "still", "moving", "several", "pair", "sequence")
DIRECTIONS = ("left", "right", "up", "down")
# Rows and columns of a grid of three by three, from the top left
PLACES = {
    "at the top left": (0, 0),
    "at the top": (0, 1),
    "at the top right": (0, 2),
    "on the left": (1, 0),
    "in the middle": (1, 1),
    "on the right": (1, 2),
    "at the bottom left": (2, 0),
    "at the bottom": (2, 1),
    "at the bottom right": (2, 2),
}
MAX_COUNT = 4


@dataclass(frozen=True)
class Scene:
    """What happens in a clip.

    Attributes:
        kind: One of `KINDS`.
        names: Things that are seen: none if empty, two in a pair (left, right) and a sequence (first, last), else one.
        place: Of a thing that stands still, one of `PLACES`.
        direction: Of one that moves.
        count: How many of the kind there are; more than 1 only in "several".
        sounds: What is heard, in order: none, one or two things.
    """

    kind: str
    names: tuple[str, ...] = ()
    place: str | None = None
    direction: str | None = None
    count: int = 1
    sounds: tuple[str, ...] = ()


def random_scene(
    random: Random,
    kinds: Sequence[str] = ("empty", *("still", "moving", "several", "pair", "sequence") * 4),
    num_sounds: Sequence[int] = (0, 1, 1, 1, 2),
) -> Scene:
    """A scene with a sound that belongs to it as often as not.

    Args:
        random: Source of all choices.
        kinds: To choose from, evenly.
        num_sounds: How many sounds, to choose from, evenly.
    """
    kind = random.choice(kinds)
    names = random.sample(
        COUNTABLE if kind == "several" else NAMES, {"empty": 0, "pair": 2, "sequence": 2}.get(kind, 1)
    )
    count = random.choice(num_sounds)
    sounding = [name for name in names if name in SOUNDS]
    sounds = random.sample(SOUNDS, count)
    if count == 1 and sounding and random.random() < 0.5:
        sounds = [random.choice(sounding)]
    elif count == 2 and sounding and random.random() < 0.5 and not set(sounding) & set(sounds):
        sounds[random.randrange(2)] = random.choice(sounding)
    return Scene(
        kind,
        tuple(names),
        place=random.choice(list(PLACES)) if kind == "still" else None,
        direction=random.choice(DIRECTIONS) if kind == "moving" else None,
        count=random.randint(2, MAX_COUNT) if kind == "several" else 1,
        sounds=tuple(sounds),
    )
