# SPDX-License-Identifier: Apache-2.0
"""How often a checkpoint answers right, by type of question, on clips that it never saw.

python evaluate.py --model DIR --clips DIR --out results.json

Clips are read by the package's own decoders, and asked about in the chat's own prompt. An answer is right if it is the truth, word
for word; its verdict is what was asked for, where it tells something beside it. What is given and asked:

- video: seen and heard, the prompt of a clip with sound.
- video without sound: only seen, and asked about what is seen.
- video muted: only seen, and asked as if it were heard; what the sound is good for.
- sound alone: only heard.
- frames as sound: frames of the clip in place of a sound, as the audio branch was trained.
"""

import argparse
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from random import Random

import torch
from clips import Clip, read_scenes
from common import load
from questions import HEARD_TYPES, NUMBERS, SEEN_TYPES, TYPES, Question, ask
from world import PLACES, SOUNDS, THINGS, Scene

from transformers_videollama.modeling_video_llama import VideoLlamaFeaturesOutput


SENTINEL = "zzz"
MODES = ("video", "video without sound", "video muted", "sound alone", "frames as sound")


@dataclass(frozen=True)
class Asked:
    group: str
    question: Question
    answer: str

    @property
    def is_right(self) -> bool:
        return self.answer == self.question.answer


# ---------------------------------------------------------------------------------------------------------------------
# What is asked
# ---------------------------------------------------------------------------------------------------------------------
def row_of(question: Question, scene: Scene) -> str:
    """The row of the table that a question counts for."""
    if question.type == "sound":
        return f"sound: {('none', 'one', 'two in order')[len(scene.sounds)]}"
    if question.type == "object":
        return f"object: {('nothing', 'one', 'two')[len(scene.names)] if scene.kind != 'several' else 'several'}"
    if question.type == "count":
        number = NUMBERS.index(
            next(word for word in verdict_of(question, question.answer).strip(".").split() if word in NUMBERS)
        )
        return f"count: {('none', 'one', 'several')[min(number, 2)]}"
    if question.type == "place":
        verdict = verdict_of(question, question.answer)
        return f"place: {'not there' if verdict == 'not there' else 'there'}"
    return question.type


def questions_on(clip: Clip, mode: str, types: Sequence[str] | None = None) -> list[tuple[str, Question]]:
    """One question of each type that can be asked of a clip, the same whatever is evaluated."""
    random = Random(f"evaluation {clip.id} {mode}")
    is_seen, is_heard = mode.startswith("video"), mode != "video without sound"
    scene = clip.scene if mode != "frames as sound" else Scene("empty", sounds=clip.scene.names)
    if types is None:
        types = {"video": TYPES, "video without sound": (*SEEN_TYPES, "sound", "clip")}.get(
            mode, (*HEARD_TYPES, "clip")
        )
    asked = [ask(type, scene, random, is_seen, is_heard) for type in types]
    return [(row_of(each, scene), each) for each in asked if each is not None]


# ---------------------------------------------------------------------------------------------------------------------
# Answers
# ---------------------------------------------------------------------------------------------------------------------
def _content(clip: Clip, mode: str) -> tuple[list[dict], bool]:
    if mode.startswith("video"):
        return [{"type": "video", "path": str(clip.path)}], mode == "video"
    return [{"type": "audio", "path": str(clip.path)}], False


def _read(clips: Sequence[Clip], processor, mode: str) -> dict[str, torch.Tensor]:
    """What the processor makes of clips with a stand-in for a question."""
    conversations, load_audio = [], False
    for clip in clips:
        content, load_audio = _content(clip, mode)
        conversations.append([{"role": "user", "content": [*content, {"type": "text", "text": SENTINEL}]}])
    return processor.apply_chat_template(
        conversations,
        load_audio_from_video=load_audio,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


@torch.no_grad()
def answers(
    model, processor, clips: Sequence[Clip], mode: str, asked: Sequence[Sequence[Question]]
) -> list[list[str]]:
    """Greedy answers to the questions on each clip; a clip is read and encoded once."""
    tokenizer = processor.tokenizer
    inputs = _read(clips, processor, "sound alone" if mode == "frames as sound" else mode)
    encoded = {}
    if "pixel_values_videos" in inputs:
        encoded["video"] = model.get_video_features(inputs["pixel_values_videos"], inputs["video_frame_mask"])
    if mode == "frames as sound":
        size = {"height": model.config.audio_config.vision_config.image_size}
        size["width"] = size["height"]
        frames = processor.video_processor([str(clip.path) for clip in clips], size=size, return_tensors="pt")
        encoded["audio"] = model.get_audio_features(audio_pixel_values=frames["pixel_values_videos"])
    elif "input_features" in inputs:
        encoded["audio"] = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"])

    # The question is a run of tokens between those of the prompt, whatever it is
    stand_in = tokenizer(SENTINEL, add_special_tokens=False)["input_ids"]
    rows, owners = [], []
    for index, questions in enumerate(asked):
        ids = inputs["input_ids"][index][inputs["attention_mask"][index].bool()].tolist()
        begin = next(i for i in range(len(ids)) if ids[i : i + len(stand_in)] == stand_in)
        for question in questions:
            words = tokenizer(question.text, add_special_tokens=False)["input_ids"]
            rows.append(ids[:begin] + words + ids[begin + len(stand_in) :])
            owners.append(index)
    batch = tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt")
    features = {
        name: VideoLlamaFeaturesOutput(pooler_output=output.pooler_output[owners]) for name, output in encoded.items()
    }
    output_ids = model.generate(
        **batch, mm_encoder_outputs=features, do_sample=False, max_new_tokens=40, tokenizer=tokenizer
    )
    texts = processor.batch_decode(output_ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    texts = iter(text.replace("###", "").strip() for text in texts)
    return [[next(texts) for _ in questions] for questions in asked]


def evaluate(
    model, processor, clips: Sequence[Clip], mode: str = "video", batch_size: int = 16, types=None
) -> list[Asked]:
    """
    Asks about clips.

    Args:
        model, processor: A checkpoint.
        clips: See `read_scenes`.
        mode: One of `MODES`.
        batch_size: Clips at once.
        types: Of questions, by default all that go with the mode.
    """
    if mode == "frames as sound":
        clips = [clip for clip in clips if clip.scene.kind != "pair" and set(clip.scene.names) <= set(SOUNDS)]
    found = []
    for start in range(0, len(clips), batch_size):
        chunk = clips[start : start + batch_size]
        asked = [questions_on(clip, mode, types) for clip in chunk]
        told = answers(model, processor, chunk, mode, [[each for _, each in questions] for questions in asked])
        for questions, texts in zip(asked, told):
            found += [Asked(group, question, text) for (group, question), text in zip(questions, texts)]
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------------------------------------------------
def interval(right: int, total: int) -> tuple[float, float]:
    """Wilson's interval of 95 % for a share."""
    z = 1.959964
    middle = (right + z * z / 2) / (total + z * z)
    half = z * sqrt(right * (total - right) / total + z * z / 4) / (total + z * z)
    return max(0.0, middle - half), min(1.0, middle + half)


def verdict_of(question: Question, text: str) -> str:
    """What is asked for, without what is told beside it: yes, no or a number, and of a place not what is there."""
    if ", so " in text:
        return text.rsplit(", so ", 1)[-1]
    if question.type != "place":
        return text
    if ", not " in text:
        return "not there"
    # Of two things, where the one is that was asked for
    places = [(name, place) for name, place in re.findall(_PLACED, text) if f"the {name}" in question.text.lower()]
    places = places or re.findall(_PLACED, text)
    return places[0][1] if len(places) == 1 else text


# Longer ones first, for what one begins with
_NAMES, _PLACES = ("|".join(sorted(names, key=len, reverse=True)) for names in (THINGS, PLACES))
_PLACED = re.compile(rf"\b({_NAMES}) ({_PLACES})\b")


def table(found: Sequence[Asked]) -> list[dict]:
    """
    For each group, and for all groups of a type, how often the whole answer was right, and the verdict in it, each with its
    interval; and how often the commonest verdict would be ("chance").
    """
    groups = defaultdict(list)
    for each in found:
        groups[each.group].append(each)
        if each.group != each.question.type:
            groups[f"{each.question.type}: all"].append(each)
    rows = []
    for group in sorted(groups):
        each = groups[group]
        total, truths = len(each), [verdict_of(one.question, one.question.answer) for one in each]
        shares = {
            "right": sum(one.is_right for one in each),
            "verdict": sum(verdict_of(one.question, one.answer) == truth for one, truth in zip(each, truths)),
        }
        row = {"type": group, "questions": total, "chance": Counter(truths).most_common(1)[0][1] / total}
        for name, count in shares.items():
            low, high = interval(count, total)
            row |= {name: count / total, f"{name}_low": low, f"{name}_high": high}
        rows.append(row)
    return rows


def show(rows: list[dict]) -> Iterator[str]:
    yield f"{'type':20}{'n':>6}   whole answer             verdict                  commonest"
    for row in rows:
        shares = (
            f"{row[name]:6.1%} ({row[f'{name}_low']:6.1%} – {row[f'{name}_high']:6.1%})"
            for name in ("right", "verdict")
        )
        yield f"{row['type']:20}{row['questions']:6}   {'   '.join(shares)}   {row['chance']:6.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["video"])
    parser.add_argument("--limit", type=int, help="Clips at most.")
    parser.add_argument(
        "--branches", nargs="*", default=[], help="Folders of branch checkpoints to load on the model."
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--mistakes", type=int, default=0, help="How many wrong answers to show.")
    options = parser.parse_args()
    model, processor = load(options.model)
    if options.branches:
        from transformers_videollama import load_branch

        for branch in options.branches:
            load_branch(model, branch)
    model.eval()
    clips, results = read_scenes(options.clips)[: options.limit], {}
    for mode in options.modes:
        found = evaluate(model, processor, clips, mode)
        results[mode] = table(found)
        print(f"{mode}, {len(clips)} clips", *show(results[mode]), sep="\n", flush=True)
        wrong = [each for each in found if not each.is_right]
        for each in Random(0).sample(wrong, min(options.mistakes, len(wrong))):
            print(f"    {each.question.text} | {each.question.answer} | {each.answer}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
