# SPDX-License-Identifier: Apache-2.0
"""Step 2: LLaMA learns its language from text alone; afterwards it is frozen.

python pretrain_llama.py --model DIR --out DIR

It reads the prompts of the chat with words where the tokens of a video and of a sound will be, and answers. Training ends when it
answers every type of question right, `--gate` of the time: whatever it can't do in words, it won't do on sight.
"""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random

import torch
from common import hidden_matrices, load, save, train
from questions import TYPES, Question, ask, caption, dialogue, heard_in_words, seen_in_words
from torch.nn.functional import cross_entropy
from world import Scene, random_scene

from transformers_videollama.processing_video_llama import (
    FRAMES_MESSAGE,
    HEARD_ALONE_PROMPT,
    HEARD_PROMPT,
    IMAGE_PROMPT,
    SEEN_PROMPT,
    VIDEO_PROMPT,
)
from transformers_videollama.training.encoding import CAPTION_END


IGNORED = -100
# How often a clip comes with sound, without, as a sound alone, as a picture
MODES = ("both",) * 5 + ("seen",) * 2 + ("heard", "image")


def prompt(scene: Scene, random: Random, mode: str) -> str:
    """What the processor would write of a clip, with words in place of its tokens."""
    seen, heard = seen_in_words(scene, random), heard_in_words(scene, random)
    if mode == "both":
        return HEARD_PROMPT.format(audio=heard) + SEEN_PROMPT.format(video=seen)
    if mode == "heard":
        return HEARD_ALONE_PROMPT.format(audio=heard)
    if mode == "image":
        return IMAGE_PROMPT.format(image=seen).rstrip()
    times = sorted(round(random.uniform(0, 9.9), 1) for _ in range(8))
    message = FRAMES_MESSAGE.format(count=8, times=", ".join(map(str, times))) if random.random() < 0.8 else ""
    return VIDEO_PROMPT.format(video=seen, message=message).rstrip()


def draw_scene(random: Random, mode: str) -> Scene:
    # A picture shows nothing that takes time
    kinds = {"kinds": ("empty", *("still", "several", "pair") * 4)} if mode == "image" else {}
    return random_scene(random, **kinds)


class TextEncoder:
    """Conversations to token ids and labels, as the chat template writes them; captions as stage 1 does."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def conversation(self, prompt: str, questions: list[Question]) -> tuple[list[int], list[int]]:
        ids, labels = [self.tokenizer.bos_token_id], [IGNORED]
        for index, question in enumerate(questions):
            text = f"{prompt} {question.text}" if index == 0 else question.text
            asked = self._ids(f"###Human: {text}###Assistant:" if index == 0 else f"Human: {text}###Assistant:")
            answered = self._ids(f"{question.answer}###")
            ids += asked + answered
            labels += [IGNORED] * len(asked) + answered
        return ids, labels

    def caption(self, words: str, text: str) -> tuple[list[int], list[int]]:
        asked, answered = self._ids(words), self._ids(text + CAPTION_END)
        return [self.tokenizer.bos_token_id, *asked, *answered], [IGNORED] * (1 + len(asked)) + answered

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


def group_of(question: Question) -> str:
    """The type of a question, with yes and no apart."""
    if not question.type.startswith(("is ", "match")):
        return question.type
    return f"{question.type}: {'yes' if question.answer.endswith('so yes.') else 'no'}"


# What takes a comparison or an order is learned last by far, and is rare where types are drawn evenly
HARD = (
    "first",
    "last",
    "first sound",
    "last sound",
    "side",
    "count",
    "place",
    *(f"{t}: {a}" for t in ("is seen", "is heard", "match") for a in ("yes", "no")),
)


def draw_dialogue(
    random: Random, mode: str, num_questions: int, hard: Sequence[str] = HARD
) -> tuple[Scene, list[Question]]:
    """A scene, and questions half of which are of one group, drawn first, and a hard one more often than another."""
    senses = {"is_seen": mode != "heard", "is_heard": mode in ("both", "heard")}
    others = [type for type in TYPES if not type.startswith(("is ", "match"))]
    group = random.choice([*others, *hard, *hard])
    for _ in range(30):
        scene = draw_scene(random, mode)
        chosen = [ask(group.split(":")[0], scene, random, **senses) for _ in range(8)]
        chosen = [question for question in chosen if question is not None and group_of(question) == group]
        if chosen:
            break
    # Some can't be asked of a picture, or of a sound alone
    chosen = chosen[: (num_questions + 1) // 2]
    questions = chosen + dialogue(scene, random, num_questions - len(chosen), **senses)
    random.shuffle(questions)
    return scene, questions


def draw_sample(
    encoder: TextEncoder, random: Random, num_questions: int, hard: Sequence[str] = HARD
) -> tuple[list[int], list[int]]:
    if random.random() < 0.1:
        # A caption is all that follows on the tokens of a clip, or of a sound, in stage 1
        scene = random_scene(random)
        if random.random() < 0.5:
            return encoder.caption(seen_in_words(scene, random), caption(scene, is_heard=False))
        return encoder.caption(heard_in_words(scene, random), caption(scene, is_seen=False))
    mode = random.choice(MODES)
    scene, questions = draw_dialogue(random, mode, num_questions, hard)
    return encoder.conversation(prompt(scene, random, mode), questions)


def collate(samples: list[tuple[list[int], list[int]]], pad_id: int) -> dict[str, torch.Tensor]:
    length = max(len(ids) for ids, _ in samples)
    rows = [
        (ids + [pad_id] * (length - len(ids)), labels + [IGNORED] * (length - len(ids))) for ids, labels in samples
    ]
    input_ids, labels = (torch.tensor(column) for column in zip(*rows))
    # Padding comes last, and a causal model does not look ahead: it needs no mask
    return {"input_ids": input_ids, "labels": labels}


@torch.no_grad()
def accuracies(model, tokenizer, random: Random, per_type: int = 150) -> dict[str, float]:
    """Share of answers that are right word for word, by type, with yes and no apart."""
    encoder, rows = TextEncoder(tokenizer), []
    for type in TYPES:
        while sum(row[0].startswith(type) for row in rows) < per_type:
            mode = random.choice(MODES)
            scene = draw_scene(random, mode)
            question = ask(type, scene, random, is_seen=mode != "heard", is_heard=mode in ("both", "heard"))
            if question is None:
                continue
            # As a later question, too
            before = dialogue(scene, random, random.choice((0, 0, 1)), mode != "heard", mode in ("both", "heard"))
            ids, labels = encoder.conversation(prompt(scene, random, mode), [*before, question])
            begin = next(i for i in reversed(range(len(labels))) if labels[i] == IGNORED) + 1
            rows.append((group_of(question), ids, begin))
    right, total = Counter(), Counter()
    rows.sort(key=lambda row: len(row[1]))
    for start in range(0, len(rows), 64):
        chunk = rows[start : start + 64]
        # Teacher forcing: all tokens are right exactly if the greedy answer is
        batch = collate([(ids, ids) for _, ids, _ in chunk], tokenizer.pad_token_id)
        guesses = model.lm_head(model.model.language_model(batch["input_ids"], use_cache=False)[0]).argmax(-1)
        for (group, ids, begin), guess in zip(chunk, guesses.tolist()):
            total[group] += 1
            right[group] += guess[begin - 1 : len(ids) - 1] == ids[begin:]
    return {group: right[group] / total[group] for group in sorted(total)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--num-questions", type=int, default=4, help="In one conversation.")
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--hard", nargs="+", choices=HARD, default=HARD, help="Groups of questions to ask more often.")
    parser.add_argument("--gate", type=float, default=0.98)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    model, processor = load(options.model)
    tokenizer, encoder = processor.tokenizer, TextEncoder(processor.tokenizer)
    model.set_trainable("language_model", "lm_head")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def step(number: int) -> dict[str, torch.Tensor]:
        random = Random(f"text {options.seed} {number}")
        samples = [
            draw_sample(encoder, random, options.num_questions, options.hard) for _ in range(options.batch_size)
        ]
        batch = collate(samples, tokenizer.pad_token_id)
        states = model.model.language_model(batch["input_ids"], use_cache=False)[0][:, :-1]
        read, labels = batch["input_ids"][:, 1:], batch["labels"][:, 1:]
        is_read, is_said = (labels == IGNORED) & (read != tokenizer.pad_token_id), labels != IGNORED
        # What was said before comes again in prompts, too: to foresee it is how looking back is learned
        return {
            "answers": cross_entropy(model.lm_head(states[is_said]), labels[is_said]),
            "prompts": 0.3 * cross_entropy(model.lm_head(states[is_read]), read[is_read]),
        }

    def on_log(number: int) -> dict:
        return {} if number % 400 else {"accuracy": accuracies(model, tokenizer, Random(f"gate {number}"))}

    log = options.out / "log.jsonl"
    # Comparisons come late and of a sudden, which a rate that falls from the beginning would prevent
    train(
        parameters,
        step,
        options.steps,
        options.learning_rate,
        log,
        {"language_model": model.model.language_model, "lm_head": model.lm_head},
        matrices=hidden_matrices(model.model.language_model.layers),
        hold=0.6,
        on_log=on_log,
    )
    final = accuracies(model, tokenizer, Random("gate"), per_type=400)
    with open(log, "a", encoding="utf-8") as file:
        file.write(json.dumps({"step": options.steps, "gate": final}) + "\n")
    save(options.out, model, processor)
    failed = {name: round(value, 3) for name, value in final.items() if value < options.gate}
    if failed:
        raise SystemExit(f"Of the types of questions, these are answered too badly in text to go on: {failed}.")


if __name__ == "__main__":
    main()
