# SPDX-License-Identifier: Apache-2.0
"""Step 7: conversations about clips, for the published stages and the joint one.

python stage_data.py --clips DIR --out DIR

The clips have no sound. What is "heard" in training are frames of clips: of the clip itself in the stages of the audio branch, of
another clip in the joint stage. Sound is heard for the first time when the model is used.

- vl_stage1.jsonl, al_stage1.jsonl: captions.
- vl_stage2.jsonl, al_stage2.jsonl: instructions.
- joint.jsonl, joint_2.jsonl: questions on a clip together with what another clip "sounds" like, and on that alone.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

from clips import Clip, read_scenes
from questions import HEARD_TYPES, SEEN_TYPES, TYPES, Question, caption, dialogue
from world import SOUNDS, Scene


def row(id: str, content: list[dict], questions: list[Question] | None = None, text: str | None = None) -> dict:
    """A line of training data: a caption, or a conversation."""
    if text is not None:
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": text}]
        return {"id": id, "layout": "caption", "messages": messages}
    messages = []
    for index, question in enumerate(questions):
        asked = {"type": "text", "text": question.text}
        messages.append({"role": "user", "content": [*content, asked] if index == 0 else [asked]})
        messages.append({"role": "assistant", "content": question.answer})
    return {"id": id, "layout": "chat", "messages": messages}


def vision_rows(clips: list[Clip], folder: Path, random: Random, stage: int, num_questions: int) -> Iterator[dict]:
    for clip in clips:
        content = [{"type": "video", "path": _relative(clip, folder)}]
        if stage == 1:
            yield row(clip.id, content, text=caption(clip.scene, is_heard=False))
            continue
        # Now and then it is asked what is heard, and nothing is
        types = (*SEEN_TYPES, *SEEN_TYPES, "clip", "clip", "sound")
        yield row(clip.id, content, dialogue(clip.scene, random, num_questions, is_heard=False, types=types))


def audio_rows(clips: list[Clip], folder: Path, random: Random, stage: int, num_questions: int) -> Iterator[dict]:
    for clip in clips:
        if clip.scene.kind == "pair" or not set(clip.scene.names) <= set(SOUNDS):
            continue
        scene, path = Scene("empty", sounds=clip.scene.names), _relative(clip, folder)
        if stage == 1:
            yield row(clip.id, [{"type": "video", "path": path}], text=caption(scene, is_seen=False))
        else:
            # In the prompt of a sound alone: asked in that of a video about what it sees, it did not answer about sounds afterwards
            questions = dialogue(scene, random, num_questions, is_seen=False, types=(*HEARD_TYPES, "sound", "clip"))
            yield row(clip.id, [{"type": "audio", "path": path}], questions)


def joint_rows(clips: list[Clip], folder: Path, random: Random, num_rows: int, num_questions: int) -> Iterator[dict]:
    heard = defaultdict(list)
    for clip in clips:
        if clip.scene.kind != "pair" and set(clip.scene.names) <= set(SOUNDS):
            heard[clip.scene.names].append(clip)
    nothing = heard.pop((), [])
    one = {names[0]: found for names, found in heard.items() if len(names) == 1}
    two = [clip for names, found in heard.items() if len(names) == 2 for clip in found]
    # Numbers are learned last
    weights = [2 if clip.scene.kind == "several" else 1 for clip in clips]
    for index, clip in enumerate(random.choices(clips, weights, k=num_rows)):
        own = [name for name in clip.scene.names if name in one]
        chance = random.random()
        if chance < 0.2 and nothing:
            other = random.choice(nothing)
        elif chance < 0.4 and two:
            other = random.choice(two)
        else:
            name = random.choice(own if own and random.random() < 0.5 else list(one))
            other = random.choice(one[name])
        scene = replace(clip.scene, sounds=other.scene.names)
        sound = {"type": "audio", "path": _relative(other, folder)}
        if random.random() < 0.15:
            questions = dialogue(scene, random, num_questions, is_seen=False, types=(*HEARD_TYPES, "clip", "object"))
            yield row(f"{index}", [sound], questions)
        else:
            content = [sound, {"type": "video", "path": _relative(clip, folder)}]
            yield row(
                f"{index}",
                content,
                dialogue(scene, random, num_questions, types=(*TYPES, "match", "clip", "count", "direction")),
            )


def _relative(clip: Clip, folder: Path) -> str:
    return str(clip.path.relative_to(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    # A second answer can repeat what the first one said; the first has to look
    parser.add_argument("--num-questions", type=int, default=1, help="In a conversation.")
    parser.add_argument("--num-dialogues", type=int, default=4, help="On each clip, in stage 2.")
    parser.add_argument("--num-joint", type=int, default=120000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    clips, folder = read_scenes(options.clips), options.clips
    options.out.mkdir(parents=True, exist_ok=True)

    def write(name: str, rows: Iterator[dict]) -> None:
        text = "".join(f"{json.dumps(each)}\n" for each in rows)
        (options.out / f"{name}.jsonl").write_text(text, encoding="utf-8")

    def random(name: str) -> Random:
        return Random(f"{name} {options.seed}")

    for name, make in (("vl", vision_rows), ("al", audio_rows)):
        write(f"{name}_stage1", make(clips, folder, random(f"{name} 1"), 1, 0))
        stage_2 = random(f"{name} 2")
        write(
            f"{name}_stage2",
            (
                each
                for _ in range(options.num_dialogues)
                for each in make(clips, folder, stage_2, 2, options.num_questions)
            ),
        )
    for name in ("joint", "joint_2"):
        write(name, joint_rows(clips, folder, random(name), options.num_joint, options.num_questions))


if __name__ == "__main__":
    main()
