# SPDX-License-Identifier: Apache-2.0
"""What is asked about a scene, in many phrasings, and what is true of it.

An answer has one wording for each truth, so that whether a model is right can be told word by word. Where something is asked
that is not there, the answer says so. It says first what there is: a small LLaMA learns soon to compare what it has just said with
what it was asked, and hardly ever to compare what it was asked with what it has not said.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from world import COUNTABLE, NAMES, PLACES, SOUNDS, THINGS, Scene


NUMBERS = ("no", "one", "two", "three", "four")
WAYS = {"left": "to the left", "right": "to the right", "up": "up", "down": "down"}


@dataclass(frozen=True)
class Question:
    """
    Attributes:
        type: One of `TYPES`.
        text: As asked.
        answer: The truth, in the words that the model is taught.
    """

    type: str
    text: str
    answer: str


# ---------------------------------------------------------------------------------------------------------------------
# The truth
# ---------------------------------------------------------------------------------------------------------------------
def sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def seen(scene: Scene) -> str:
    """What is seen, without where and how."""
    if scene.kind == "empty":
        return "nothing"
    if scene.kind == "several":
        return f"{NUMBERS[scene.count]} {THINGS[scene.names[0]].several}"
    return {"sequence": " and then ", "pair": " and "}.get(scene.kind, "").join(
        str(THINGS[name]) for name in scene.names
    )


def seen_in_full(scene: Scene) -> str:
    if scene.kind == "still":
        return f"{seen(scene)} {scene.place}"
    if scene.kind == "moving":
        return f"{seen(scene)} moving {WAYS[scene.direction]}"
    if scene.kind == "pair":
        left, right = (str(THINGS[name]) for name in scene.names)
        return f"{left} on the left and {right} on the right"
    return seen(scene)


def heard(scene: Scene) -> str:
    return " and then ".join(str(THINGS[name]) for name in scene.sounds) or "nothing"


def caption(scene: Scene, is_seen: bool = True, is_heard: bool = True) -> str:
    """All there is to say, such as "I see a dog moving to the left. I hear a bell."."""
    parts = [f"I see {seen_in_full(scene)}."] if is_seen else []
    return " ".join(parts + ([f"I hear {heard(scene)}."] if is_heard else []))


# ---------------------------------------------------------------------------------------------------------------------
# Phrasings
# ---------------------------------------------------------------------------------------------------------------------
PHRASINGS: dict[str, tuple[str, ...]] = {
    "object": (
        "What do you see?",
        "What can you see?",
        "What is in the video?",
        "What is in this clip?",
        "What is in the picture?",
        "What is this?",
        "What is it?",
        "What is there?",
        "What is there to see?",
        "What is shown?",
        "What does the video show?",
        "What is on the screen?",
        "What are you looking at?",
        "Who or what is in the video?",
        "Which thing do you see?",
        "Which things do you see?",
        "Name what you see.",
        "Say what you see.",
        "Tell me what you see.",
        "Tell me what is in the video.",
        "Can you tell me what you see?",
        "Can you tell me what this is?",
        "Do you see anything?",
        "Is there anything to see?",
        "Which animal or thing is shown?",
        "What kind of thing is this?",
    ),
    "direction": (
        "Which way does {it} move?",
        "Which way does {it} go?",
        "Which way is {it} moving?",
        "In which direction does {it} move?",
        "In which direction is {it} moving?",
        "In what direction does {it} go?",
        "What direction is {it} going?",
        "Where does {it} go?",
        "Where does {it} move?",
        "Where is {it} going?",
        "Where is {it} moving to?",
        "How does {it} move?",
        "Does {it} move?",
        "Is {it} moving?",
        "Tell me which way {it} moves.",
        "Does {it} move to the left or to the right?",
        "Does {it} go up or down?",
    ),
    "count": (
        "How many {things} are there?",
        "How many {things} do you see?",
        "How many {things} can you see?",
        "How many {things} are in the video?",
        "How many {things} are shown?",
        "How many {things}?",
        "Count the {things}.",
        "Can you count the {things}?",
        "What is the number of {things}?",
        "Tell me how many {things} there are.",
        "Tell me the number of {things}.",
    ),
    "place": (
        "Where is {it}?",
        "Where do you see {it}?",
        "Where can you see {it}?",
        "Where in the picture is {it}?",
        "Where in the video is {it}?",
        "At which place is {it}?",
        "In which part of the picture is {it}?",
        "In what place is {it}?",
        "What is the place of {it}?",
        "Tell me where {it} is.",
        "Can you tell me where {it} is?",
        "Say where {it} is.",
    ),
    "first": (
        "What comes first?",
        "What do you see first?",
        "What is seen first?",
        "What is shown first?",
        "What is the first thing you see?",
        "What is in the video at first?",
        "What is there at the beginning?",
        "What does the video begin with?",
        "What do you see at the start?",
        "Which thing comes first?",
        "Tell me what you see first.",
    ),
    "last": (
        "What comes last?",
        "What do you see last?",
        "What is seen last?",
        "What is shown last?",
        "What is the last thing you see?",
        "What is in the video at last?",
        "What is there at the end?",
        "What does the video end with?",
        "What do you see at the end?",
        "Which thing comes last?",
        "What comes after that?",
        "Tell me what you see last.",
    ),
    "side": (
        "What is {side}?",
        "What do you see {side}?",
        "What can you see {side}?",
        "What is there {side}?",
        "What is shown {side}?",
        "Which thing is {side}?",
        "Tell me what is {side}.",
    ),
    "is seen": (
        "Is there {a}?",
        "Do you see {a}?",
        "Can you see {a}?",
        "Is there {a} in the video?",
        "Is there {a} in the picture?",
        "Is there {a} to see?",
        "Does the video show {a}?",
        "Is {a} shown?",
        "Is this {a}?",
        "Is it {a}?",
        "Have you seen {a}?",
        "Can you tell me if there is {a}?",
    ),
    "sound": (
        "What do you hear?",
        "What can you hear?",
        "What is heard?",
        "What is that sound?",
        "What is the sound?",
        "What sound is this?",
        "What sound do you hear?",
        "Which sound do you hear?",
        "Which sounds do you hear?",
        "What sound is in the video?",
        "What makes the sound?",
        "What makes that noise?",
        "What is making the noise?",
        "What does it sound like?",
        "What are you listening to?",
        "What is there to hear?",
        "Who or what do you hear?",
        "Do you hear anything?",
        "Is there any sound?",
        "Is there anything to hear?",
        "Name what you hear.",
        "Say what you hear.",
        "Tell me what you hear.",
        "Can you tell me what you hear?",
        "Tell me what the sound is.",
    ),
    "is heard": (
        "Do you hear {a}?",
        "Can you hear {a}?",
        "Is there {a} to hear?",
        "Is {a} heard?",
        "Is that the sound of {a}?",
        "Is there the sound of {a}?",
        "Does it sound like {a}?",
        "Have you heard {a}?",
        "Can you tell me if you hear {a}?",
    ),
    "first sound": (
        "What do you hear first?",
        "What is heard first?",
        "What is the first sound?",
        "Which sound comes first?",
        "What is the first sound you hear?",
        "What do you hear at the beginning?",
        "Tell me what you hear first.",
    ),
    "last sound": (
        "What do you hear last?",
        "What is heard last?",
        "What is the last sound?",
        "What is the second sound?",
        "Which sound comes last?",
        "What is the last sound you hear?",
        "What do you hear at the end?",
        "Tell me what you hear last.",
    ),
    "match": (
        "Does the sound match the picture?",
        "Does the sound match the video?",
        "Does the sound fit the picture?",
        "Does the sound go with the picture?",
        "Does what you hear match what you see?",
        "Do the sound and the picture match?",
        "Do picture and sound match?",
        "Do you hear what you see?",
        "Is the sound from what you see?",
        "Is that the sound of what you see?",
        "Does the sound belong to the picture?",
        "Is it the right sound?",
    ),
    "clip": (
        "Describe the clip.",
        "Describe the video.",
        "Describe what you see and hear.",
        "Please describe the video.",
        "Can you describe the video?",
        "What do you see and hear?",
        "What can you see and hear?",
        "What do you see and what do you hear?",
        "What is seen and heard?",
        "What is seen, and what is heard?",
        "What happens?",
        "What happens in the video?",
        "What happens in this clip?",
        "What is happening?",
        "What is going on?",
        "What is the video about?",
        "Tell me about the video.",
        "Tell me all you see and hear.",
        "Tell me what you see and hear.",
        "Tell me what happens.",
        "Give a description of the video.",
    ),
}
TYPES = tuple(PHRASINGS)
# What is asked of what is seen, of what is heard, and of both
SEEN_TYPES = ("object", "direction", "count", "place", "first", "last", "side", "is seen")
HEARD_TYPES = ("sound", "is heard", "first sound", "last sound")
OPENINGS = (
    "",
    "",
    "",
    "",
    "",
    "",
    "Please ",
    "Now ",
    "And ",
    "So ",
    "Well, ",
    "Hello! ",
    "Hey, ",
    "Please tell me: ",
    "Tell me: ",
)
ENDINGS = ("", "", "", "", "", "", " Please.", " Thank you.", " Be short.", " Answer in one sentence.")


def phrase(type: str, random: Random, **words: str) -> str:
    """One of the phrasings, as somebody in a hurry or with manners would write it."""
    text = random.choice(PHRASINGS[type]).format(**words)
    opening = random.choice(OPENINGS)
    if opening and not text.startswith("Please") and not opening.startswith("Please "):
        text = opening + (
            text if opening.endswith(("! ", ": ")) and random.random() < 0.5 else text[0].lower() + text[1:]
        )
    text += random.choice(ENDINGS)
    chance = random.random()
    if chance < 0.1:
        text = text.rstrip("?.")
    if chance < 0.05 or chance > 0.9:
        text = text.lower()
    return text


# ---------------------------------------------------------------------------------------------------------------------
# Questions
# ---------------------------------------------------------------------------------------------------------------------
def _other(random: Random, names: Sequence[str], but: Sequence[str]) -> str:
    return random.choice([name for name in names if name not in but])


def _it(name: str, random: Random) -> str:
    return f"the {name}" if random.random() < 0.7 else "it"


def _object(scene: Scene, random: Random) -> tuple[dict, str]:
    return {}, f"I see {seen(scene)}."


def _direction(scene: Scene, random: Random) -> tuple[dict, str] | None:
    if scene.kind not in ("moving", "still"):
        return None
    words = {"it": _it(scene.names[0], random)}
    return words, f"It moves {WAYS[scene.direction]}." if scene.kind == "moving" else "It does not move."


def _count(scene: Scene, random: Random) -> tuple[dict, str] | None:
    names = [name for name in scene.names if name in COUNTABLE]
    if not names or (scene.kind != "several" and random.random() < 0.4):
        names = [_other(random, COUNTABLE, scene.names)]
    name = random.choice(names)
    things = THINGS[name].several
    number = NUMBERS[scene.count] if name in scene.names else f"no {things}"
    return {"things": things}, f"I see {seen(scene)}, so {number}."


def _place(scene: Scene, random: Random) -> tuple[dict, str] | None:
    if scene.kind not in ("still", "pair", "empty") or random.random() < 0.1:
        name = _other(random, NAMES, scene.names)
        return {"it": f"the {name}"}, f"I see {seen_in_full(scene)}, not {THINGS[name]}."
    words = {"it": _it(scene.names[0], random) if scene.kind == "still" else "it"}
    if scene.kind == "pair":
        words = {"it": f"the {random.choice(scene.names)}"}
    return words, f"I see {seen_in_full(scene)}."


def _in_turn(index: int, word: str) -> Callable:
    def ask(scene: Scene, random: Random) -> tuple[dict, str] | None:
        if scene.kind != "sequence":
            return None
        return {}, f"I see {THINGS[scene.names[index]]} {word}."

    return ask


def _side(scene: Scene, random: Random) -> tuple[dict, str] | None:
    if scene.kind == "still":
        # At the side where it is, or at another
        place = scene.place if random.random() < 0.6 else random.choice(list(PLACES))
        is_there = place == scene.place
        return {"side": place}, f"I see {THINGS[scene.names[0]] if is_there else 'nothing'} {place}."
    if scene.kind != "pair":
        return None
    index = random.randrange(2)
    place = ("on the left", "on the right")[index]
    return {"side": place}, f"I see {THINGS[scene.names[index]]} {place}."


def _is_seen(scene: Scene, random: Random) -> tuple[dict, str]:
    is_there = bool(scene.names) and random.random() < 0.5
    others = (*scene.sounds, *scene.sounds, *random.sample(NAMES, 3))
    name = random.choice(scene.names) if is_there else _other(random, others, scene.names)
    thing = THINGS[name]
    return {"a": str(thing)}, f"I see {seen(scene)}, so {'yes' if is_there else 'no'}."


def _sound(scene: Scene, random: Random) -> tuple[dict, str]:
    return {}, f"I hear {heard(scene)}."


def _is_heard(scene: Scene, random: Random) -> tuple[dict, str]:
    is_there = bool(scene.sounds) and random.random() < 0.5
    others = (*[name for name in scene.names if name in SOUNDS] * 2, *random.sample(SOUNDS, 3))
    name = random.choice(scene.sounds) if is_there else _other(random, others, scene.sounds)
    thing = THINGS[name]
    return {"a": str(thing)}, f"I hear {heard(scene)}, so {'yes' if is_there else 'no'}."


def _sound_in_turn(index: int, word: str) -> Callable:
    def ask(scene: Scene, random: Random) -> tuple[dict, str] | None:
        if len(scene.sounds) != 2:
            return None
        return {}, f"I hear {THINGS[scene.sounds[index]]} {word}."

    return ask


def _match(scene: Scene, random: Random) -> tuple[dict, str] | None:
    # With two sounds, or two things that are seen, there may be no yes and no no
    if len(scene.sounds) == 2 or len(scene.names) == 2:
        return None
    if not scene.sounds or not scene.names:
        return {}, f"I see {seen(scene)} and I hear {heard(scene)}, so no."
    answer = "yes" if scene.sounds == scene.names else "no"
    return {}, f"I see {seen(scene)} and I hear {heard(scene)}, so {answer}."


_ASK: dict[str, Callable[[Scene, Random], tuple[dict, str] | None]] = {
    "object": _object,
    "direction": _direction,
    "count": _count,
    "place": _place,
    "first": _in_turn(0, "first"),
    "last": _in_turn(-1, "last"),
    "side": _side,
    "is seen": _is_seen,
    "sound": _sound,
    "is heard": _is_heard,
    "first sound": _sound_in_turn(0, "first"),
    "last sound": _sound_in_turn(-1, "last"),
    "match": _match,
}


def ask(type: str, scene: Scene, random: Random, is_seen: bool = True, is_heard: bool = True) -> Question | None:
    """
    A question of a type.

    Args:
        type: One of `TYPES`.
        scene: What it is about.
        random: Of the phrasing, and of what is asked for.
        is_seen: Whether there is a picture.
        is_heard: Whether there is a sound, be it silence. Of a clip without, what is heard is nothing.

    Returns:
        None if it can't be asked of this scene.
    """
    if not is_seen:
        scene = Scene("empty", sounds=scene.sounds)
    if not is_heard:
        scene = Scene(scene.kind, scene.names, scene.place, scene.direction, scene.count)
    if type == "clip":
        return Question(type, phrase(type, random), caption(scene, is_seen, is_heard))
    if (asked := _ASK[type](scene, random)) is None:
        return None
    words, answer = asked
    return Question(type, phrase(type, random, **words), answer)


def dialogue(
    scene: Scene,
    random: Random,
    num_questions: int,
    is_seen: bool = True,
    is_heard: bool = True,
    types: Sequence[str] = TYPES,
) -> list[Question]:
    """Questions in turn, of types drawn evenly from those that can be asked."""
    questions: list[Question] = []
    while len(questions) < num_questions:
        question = ask(random.choice(types), scene, random, is_seen, is_heard)
        if question is not None:
            questions.append(question)
    return questions


# ---------------------------------------------------------------------------------------------------------------------
# Scenes in words
# ---------------------------------------------------------------------------------------------------------------------
def seen_in_words(scene: Scene, random: Random) -> str:
    """
    What stands in a prompt where the tokens of a video will be, for a LLaMA that reads before it sees.

    Mostly it comes as key words, in any order where order says nothing and each behind what tells it from another one: tokens of
    a video are no sentence, and can be anything that LLaMA finds easy to read. A fifth are sentences.
    """
    if scene.kind == "empty":
        return " ".join(["nothing"] * random.randint(1, 3))
    if random.random() < 0.2:
        return seen_in_full(scene)
    name = scene.names[0]
    if scene.kind == "still":
        groups = [name, scene.place, "still"]
    elif scene.kind == "moving":
        groups = [name, f"moving {WAYS[scene.direction]}"]
    elif scene.kind == "several":
        groups = [THINGS[name].several, NUMBERS[scene.count]]
    elif scene.kind == "pair":
        groups = [f"left {scene.names[0]}", f"right {scene.names[1]}"]
    else:
        groups = [f"first {scene.names[0]}", f"last {scene.names[1]}"]
    return _shuffled(groups, random)


def heard_in_words(scene: Scene, random: Random) -> str:
    """As [`seen_in_words`], of what is heard."""
    if not scene.sounds:
        return " ".join(["nothing"] * random.randint(1, 3))
    if random.random() < 0.2:
        return heard(scene)
    if len(scene.sounds) == 1:
        return " ".join([scene.sounds[0]] * random.randint(1, 4))
    return _shuffled([f"first {scene.sounds[0]}", f"last {scene.sounds[1]}"], random)


def _shuffled(groups: list[str], random: Random) -> str:
    groups = groups * random.randint(1, 3)
    random.shuffle(groups)
    return " ".join(groups)
