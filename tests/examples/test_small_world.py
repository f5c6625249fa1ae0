# SPDX-License-Identifier: Apache-2.0
"""The small world of the default checkpoint: what is asked is true, and what is trained on is what the model will read."""

import json
import re
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
from clips import Clip
from evaluate import Asked, interval, row_of, table, verdict_of
from make_model import make_processor
from pretrain_llama import TextEncoder, draw_dialogue, draw_sample, group_of, prompt
from questions import PHRASINGS, TYPES, Question, ask, caption, dialogue
from sounds import MAKERS, RATE, background, soundtrack, synthesise
from stage_data import audio_rows, joint_rows, vision_rows
from train_vision import middle_map, nearest_things
from transformers import AutoTokenizer
from world import COUNTABLE, DURATION, KINDS, NAMES, SOUNDS, THINGS, Scene, random_scene

from transformers_videollama.training import SampleEncoder

from ..helpers import TINY


DOG_MOVES = Scene("moving", ("dog",), direction="left", sounds=("bell",))
DOG_STILL = Scene("still", ("dog",), place="at the top left", sounds=("dog",))
OWLS = Scene("several", ("owl",), count=3)
PAIR = Scene("pair", ("apple", "rain"), sounds=("cow", "rain"))
SEQUENCE = Scene("sequence", ("cat", "ball"), sounds=("cat",))
EMPTY = Scene("empty", sounds=("thunderstorm",))


@pytest.fixture(scope="module")
def processor():
    return make_processor(AutoTokenizer.from_pretrained(TINY))


# ---------------------------------------------------------------------------------------------------------------------
# Truth
# ---------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("type", "scene", "answers"),
    [
        ("object", DOG_MOVES, {"I see a dog."}),
        ("object", OWLS, {"I see three owls."}),
        ("object", PAIR, {"I see an apple and rain."}),
        ("object", SEQUENCE, {"I see a cat and then a ball."}),
        ("object", EMPTY, {"I see nothing."}),
        ("direction", DOG_MOVES, {"It moves to the left."}),
        ("direction", DOG_STILL, {"It does not move."}),
        ("direction", OWLS, None),
        ("first", SEQUENCE, {"I see a cat first."}),
        ("last", SEQUENCE, {"I see a ball last."}),
        ("first", PAIR, None),
        ("side", PAIR, {"I see an apple on the left.", "I see rain on the right."}),
        ("sound", DOG_MOVES, {"I hear a bell."}),
        ("sound", PAIR, {"I hear a cow and then rain."}),
        ("sound", OWLS, {"I hear nothing."}),
        ("first sound", PAIR, {"I hear a cow first."}),
        ("last sound", PAIR, {"I hear rain last."}),
        ("last sound", DOG_MOVES, None),
        ("match", DOG_MOVES, {"I see a dog and I hear a bell, so no."}),
        ("match", DOG_STILL, {"I see a dog and I hear a dog, so yes."}),
        ("match", OWLS, {"I see three owls and I hear nothing, so no."}),
        ("match", EMPTY, {"I see nothing and I hear a thunderstorm, so no."}),
        ("match", PAIR, None),
        ("clip", PAIR, {"I see an apple on the left and rain on the right. I hear a cow and then rain."}),
        ("clip", DOG_STILL, {"I see a dog at the top left. I hear a dog."}),
    ],
)
def test_answers_are_true(type, scene, answers):
    asked = [ask(type, scene, Random(seed)) for seed in range(30)]
    assert {question.answer for question in asked if question is not None} == (answers or set())
    assert all(question.type == type for question in asked if question is not None)


def test_what_is_asked_for_is_in_the_question_and_its_answer_true():
    for scene in (DOG_MOVES, OWLS, PAIR, SEQUENCE, EMPTY):
        for seed in range(60):
            seen = ask("is seen", scene, Random(seed))
            name = _asked_for(seen, NAMES)
            assert seen.answer.endswith(f"so {'yes' if name in scene.names else 'no'}.")
            heard = ask("is heard", scene, Random(seed))
            name = _asked_for(heard, SOUNDS)
            assert heard.answer.endswith(f"so {'yes' if name in scene.sounds else 'no'}.")
            if (counted := ask("count", scene, Random(seed))) is not None:
                name = next(name for name in COUNTABLE if THINGS[name].several in counted.text.lower())
                number = ("no", "one", "two", "three")[scene.count if name in scene.names else 0]
                assert counted.answer.endswith(
                    f"so {number}." if name in scene.names else f"so no {THINGS[name].several}."
                )


def _asked_for(question, names):
    found = [name for name in names if re.search(rf"\b{name}\b", question.text.lower())]
    return max(found, key=len)


def test_what_is_not_seen_or_not_heard_is_nothing():
    for seed in range(30):
        assert ask("object", DOG_STILL, Random(seed), is_seen=False).answer == "I see nothing."
        assert ask("sound", DOG_STILL, Random(seed), is_heard=False).answer == "I hear nothing."
        assert ask("is heard", DOG_STILL, Random(seed), is_heard=False).answer == "I hear nothing, so no."
    assert caption(DOG_STILL, is_heard=False) == "I see a dog at the top left."
    assert caption(DOG_STILL, is_seen=False) == "I hear a dog."


def test_yes_and_no_are_asked_for_as_often():
    random, answers = Random(0), Counter()
    for _ in range(4000):
        _, questions = draw_dialogue(random, "both", 4)
        answers.update(group_of(question) for question in questions)
    for type in ("is seen", "is heard", "match"):
        assert 0.35 < answers[f"{type}: yes"] / (answers[f"{type}: yes"] + answers[f"{type}: no"]) < 0.6
    assert min(answers.values()) > 0.2 * max(answers.values())
    assert {group.split(":")[0] for group in answers} == set(TYPES)


def test_scenes_are_of_all_kinds_and_sounds_belong_to_them_half_of_the_time():
    random = Random(0)
    scenes = [random_scene(random) for _ in range(4000)]
    assert set(Counter(scene.kind for scene in scenes)) == set(KINDS)
    alone = [scene for scene in scenes if len(scene.sounds) == 1 and scene.names and set(scene.names) <= set(SOUNDS)]
    share = sum(scene.sounds[0] in scene.names for scene in alone) / len(alone)
    assert 0.45 < share < 0.6
    assert all(scene.names[0] in COUNTABLE and 2 <= scene.count <= 4 for scene in scenes if scene.kind == "several")


def test_questions_have_many_phrasings():
    assert all(len(set(phrasings)) >= 7 for phrasings in PHRASINGS.values())
    asked = {question.text for seed in range(300) for question in dialogue(DOG_STILL, Random(seed), 4)}
    assert len(asked) > 700


# ---------------------------------------------------------------------------------------------------------------------
# What is trained on
# ---------------------------------------------------------------------------------------------------------------------
def test_text_is_what_the_chat_writes(processor):
    encoder, chat = TextEncoder(processor.tokenizer), SampleEncoder(processor)
    random = Random(1)
    for mode in ("both", "seen", "heard", "image"):
        scene, questions = draw_dialogue(random, mode, 3)
        words = prompt(scene, random, mode)
        messages = []
        for index, question in enumerate(questions):
            text = f"{words} {question.text}" if index == 0 else question.text
            messages += [{"role": "user", "content": text}, {"role": "assistant", "content": question.answer}]
        expected = chat({"messages": messages, "layout": "chat"})
        input_ids, labels = encoder.conversation(words, questions)
        assert input_ids == expected["input_ids"].tolist()
        assert labels == expected["labels"].tolist()


def test_vocabulary_has_the_words_of_the_world_and_letters_for_others(processor):
    tokenizer, encoder, random = processor.tokenizer, TextEncoder(processor.tokenizer), Random(2)
    assert len(tokenizer) < 1200
    unknown = tokenizer.unk_token_id
    for _ in range(300):
        assert unknown not in draw_sample(encoder, random, 4)[0]
    for text in ("I see a thunderstorm.", "A quick zebra jumps over 27 fences!", "Ünïcode, 日本"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert len(tokenizer.tokenize("I see three elephants at the top left.")) == 9
    # The sentences of the prompts are one token each
    assert len(encoder.conversation(prompt(DOG_STILL, Random(0), "both"), [])[0]) < 40


def make_clip(number: int, scene: Scene) -> Clip:
    return Clip(f"test-{number}", Path(f"/clips/{number:05d}.mp4"), scene, ())


def test_rows_of_the_stages_say_what_is_in_their_clips():
    random = Random(3)
    clips = [make_clip(number, random_scene(random)) for number in range(400)]
    by_path = {f"{clip.path.name}": clip.scene for clip in clips}

    captions = list(vision_rows(clips, Path("/clips"), random, 1, 0))
    assert len(captions) == len(clips)
    for row in captions:
        assert row["layout"] == "caption"
        scene = by_path[row["messages"][0]["content"][0]["path"]]
        assert row["messages"][1]["content"] == caption(scene, is_heard=False)

    heard = list(audio_rows(clips, Path("/clips"), random, 1, 0))
    for row in heard:
        scene = by_path[row["messages"][0]["content"][0]["path"]]
        assert scene.kind != "pair"
        assert set(scene.names) <= set(SOUNDS)
        assert row["messages"][1]["content"] == caption(Scene("empty", sounds=scene.names), is_seen=False)
    # Asked as of a sound, which it is in use
    for row in audio_rows(clips, Path("/clips"), random, 2, 1):
        (item, question), answer = row["messages"][0]["content"], row["messages"][1]["content"]
        names = by_path[item["path"]].names
        assert item["type"] == "audio"
        assert answer.startswith("I hear")
        if answer.endswith(("so yes.", "so no.")):
            assert answer.endswith("so yes.") == any(
                f" {THINGS[name]}".lower() in question["text"].lower() for name in names
            )
        else:
            assert any(name in answer for name in names or ("nothing",))

    num_matches = num_asked = 0
    for row in joint_rows(clips, Path("/clips"), random, 1500, 3):
        items = [item for item in row["messages"][0]["content"] if item["type"] != "text"]
        assert [item["type"] for item in items] in (["audio"], ["audio", "video"])
        sounds = by_path[items[0]["path"]].names
        seen = by_path[items[1]["path"]] if len(items) == 2 else Scene("empty")
        for message in row["messages"][1::2]:
            if message["content"].startswith("I hear") and " first." not in message["content"]:
                assert message["content"].split(", so ")[0].removesuffix(" last.").split(" ")[-1].strip(
                    "."
                ) in " ".join(sounds or ("nothing",))
            if " and I hear " in message["content"] and ", so " in message["content"]:
                num_asked += 1
                is_match = message["content"].endswith("so yes.")
                assert is_match == (bool(sounds) and seen.names == sounds)
                num_matches += is_match
    assert 0.2 < num_matches / num_asked < 0.6


def test_each_part_of_a_picture_is_taught_the_thing_nearest_to_it():
    boxes = [("dog", 0.0, 0.0, 0.25, 0.5), ("cat", 0.75, 0.5, 1.0, 1.0)]
    things = nearest_things(boxes, 4, 8, {"dog": 3, "cat": 5}).reshape(4, 4, 3)
    assert (things[:, 0] == (3, 3, 2)).all()
    assert (things[:, -1] == (5, 7, 8)).all()
    assert set(things[..., 0].ravel()) == {3, 5}
    assert not nearest_things([], 4, 8, {}).any()


def test_each_patch_tells_where_the_middle_of_its_own_thing_is():
    # Two of a kind, side by side: wide and low at the top left, narrow and high on the right
    boxes = [("dog", 0.0, 0.0, 0.5, 0.25), ("dog", 0.7, 0.1, 0.95, 0.9)]
    middles = middle_map(boxes, 8).reshape(8, 8, 2)

    assert (middles[:2, 1:3] == (1, 2)).all()
    assert (middles[2:6, 6] == (4, 6)).all()
    assert not middles[3:, :5].any()
    assert not middle_map([], 8).any()


# ---------------------------------------------------------------------------------------------------------------------
# Sounds
# ---------------------------------------------------------------------------------------------------------------------
def test_every_sounding_thing_has_a_sound_of_its_own_that_is_new_each_time():
    assert set(MAKERS) == set(SOUNDS)
    for name in SOUNDS:
        first, again, other = (synthesise(name, np.random.default_rng(seed), 2.0) for seed in (1, 1, 2))
        assert first.shape == (2 * RATE,)
        assert first.dtype == np.float32
        assert np.isfinite(first).all()
        assert 0.25 < np.abs(first).max() <= 1
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)


def test_two_sounds_come_in_order():
    for seed in range(4):
        track = soundtrack(("cricket", "thunderstorm"), np.random.default_rng(seed))
        assert track.shape == (round(DURATION * RATE),)
        power = np.abs(np.fft.rfft(track.reshape(2, -1))) ** 2
        # A cricket is high, thunder low
        pitch = (power * np.arange(power.shape[1])).sum(1) / power.sum(1)
        assert pitch[0] > 1.5 * pitch[1]
    assert np.abs(background(np.random.default_rng(0), 2.0)).max() < 0.1


# ---------------------------------------------------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------------------------------------------------
def test_intervals_are_wilsons():
    # Of 8 of 10: Wilson, 1927
    assert interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert interval(0, 20)[0] == 0
    assert interval(20, 20)[1] == 1


def test_table_counts_what_is_right_and_what_the_commonest_answer_would_be():
    asked = [("yes", "no"), ("yes", "yes"), ("no", "no"), ("yes", "yes")]
    found = [
        Asked(
            "match",
            Question("match", "?", f"I see a dog and I hear a cow, so {truth}."),
            f"I see a dog and I hear a cow, so {told}.",
        )
        for truth, told in asked
    ]
    found.append(Asked("sound", Question("sound", "?", "I hear a dog."), "I hear a cow."))
    count = Question("count", "?", "I see three dogs, so three.")
    found += [Asked("count: several", count, count.answer), Asked("count: none", count, "I see three dogs, so two.")]
    of_all, none, several, match, sound = table(found)
    assert [row["type"] for row in (of_all, none, several)] == ["count: all", "count: none", "count: several"]
    assert [(row["questions"], row["verdict"]) for row in (of_all, none, several)] == [(2, 0.5), (1, 0), (1, 1)]
    assert (match["questions"], match["right"], match["verdict"], match["chance"]) == (4, 0.75, 0.75, 0.75)
    assert (sound["questions"], sound["right"], sound["chance"]) == (1, 0, 1)
    assert json.dumps(match)
    assert match["verdict_low"] < 0.75 < match["verdict_high"]


@pytest.mark.parametrize(
    ("type", "scene", "groups"),
    [
        ("count", OWLS, {"count: several"}),
        ("count", PAIR, {"count: one", "count: none"}),
        ("place", DOG_STILL, {"place: there", "place: not there"}),
        ("object", PAIR, {"object: two"}),
        ("object", OWLS, {"object: several"}),
        ("sound", EMPTY, {"sound: one"}),
        ("direction", DOG_MOVES, {"direction"}),
    ],
)
def test_questions_are_counted_by_what_is_true(type, scene, groups):
    random = Random(0)
    asked = [ask(type, scene, random) for _ in range(60)]
    assert {row_of(question, scene) for question in asked} == groups


@pytest.mark.parametrize(
    ("asked", "answer", "verdict"),
    [
        ("Where is the dog?", "I see a dog at the top left.", "at the top left"),
        ("Where is it?", "I see a cat at the top left.", "at the top left"),
        ("Where is the fire truck?", "I see rain on the left and a fire truck on the right.", "on the right"),
        ("Where is the dog?", "I see a cat on the left and rain on the right.", None),
        ("Where is the dog?", "I see a cat on the left, not a dog.", "not there"),
        ("Where is the dog?", "I see a dog moving up.", None),
    ],
)
def test_of_a_place_it_counts_where_it_is(asked, answer, verdict):
    assert verdict_of(Question("place", asked, ""), answer) == (verdict or answer)
