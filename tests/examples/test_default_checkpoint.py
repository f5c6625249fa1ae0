# SPDX-License-Identifier: Apache-2.0
"""The weights that come with the package: they answer as they did when they were measured, and can be trained on."""

import json
import re
import shlex
from pathlib import Path

import clips
import numpy as np
import pytest
import torch
from evaluate import evaluate, table
from peft import PeftModel
from pictures import random_background
from PIL import Image, ImageDraw
from transformers import AutoProcessor
from typer.testing import CliRunner
from world import NAMES

from transformers_videollama import VideoLlamaForConditionalGeneration
from transformers_videollama.cli import app
from transformers_videollama.training.arguments import TrainingArgumentParser
from transformers_videollama.training.run import make_trainer

from ..helpers import BUILT_IN, FIRST_CLIP, FIXTURES, ROOT


RECORDED = FIXTURES / "default"
# Of all answers on 100 clips, how many are right word for word; 0.58 when this was written
FLOOR = 0.5


def load(folder: Path = BUILT_IN) -> VideoLlamaForConditionalGeneration:
    return VideoLlamaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def model():
    return load()


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(BUILT_IN)


def answers(model, processor, asked: list[tuple[str, str]], load_audio: bool = True) -> list[str]:
    """What is said of clips, all at once."""
    conversations = [
        [{"role": "user", "content": [{"type": "video", "path": path}, {"type": "text", "text": question}]}]
        for path, question in asked
    ]
    inputs = processor.apply_chat_template(
        conversations,
        load_audio_from_video=load_audio,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
    )
    output_ids = model.generate(**inputs, max_new_tokens=40, tokenizer=processor.tokenizer)
    texts = processor.batch_decode(output_ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.removesuffix("###").strip() for text in texts]


def recorded() -> list[dict]:
    return json.loads((RECORDED / "answers.json").read_text())


def test_it_answers_as_recorded(model, processor):
    rows = recorded()
    assert len(rows) == 10
    told = answers(model, processor, [(str(RECORDED / row["clip"]), row["question"]) for row in rows])
    assert told == [row["answer"] for row in rows]


def test_the_readme_prints_what_it_says(monkeypatch):
    monkeypatch.chdir(ROOT)
    readme = (ROOT / "README.md").read_text()
    command, answer = (
        re.search(rf"<!-- {name} -->\n```\w*\n(.*?)\n```", readme, flags=re.DOTALL)[1] for name in ("main", "answer")
    )
    arguments = shlex.split(command.split("videollama ")[-1])
    assert Path(arguments[1]).resolve() == FIRST_CLIP
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert result.output.strip() == answer


def test_it_is_small():
    files = [file for file in BUILT_IN.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 25e6
    # What the package has is not shipped twice
    assert not any(file.suffix == ".py" for file in files)
    assert 5e6 < sum(parameter.numel() for parameter in load().parameters()) < 12e6


def test_saved_and_loaded_it_is_the_same(model, processor, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    row = recorded()[0]
    asked = [(str(RECORDED / row["clip"]), row["question"])]
    assert answers(loaded, AutoProcessor.from_pretrained(tmp_path), asked) == [row["answer"]]


@pytest.fixture
def known_drawings(monkeypatch):
    """One set of drawings, from a file in place of the network."""
    sheet = np.asarray(Image.open(RECORDED / "drawings.webp").convert("RGBA"))
    found = {name: [] for name in NAMES}
    for row, name in enumerate(json.loads((RECORDED / "drawings.json").read_text())):
        found[name].append(sheet[row * sheet.shape[1] : (row + 1) * sheet.shape[1]])
    monkeypatch.setattr(clips, "_drawings", {"noto": found}.__getitem__)


@pytest.mark.slow
def test_on_a_hundred_new_clips_it_is_mostly_right(model, processor, known_drawings, tmp_path):
    made = clips.make_clips(tmp_path, 100, 11, ["noto"], "floor", num_workers=1)
    found = evaluate(model, processor, made, "video")
    assert len(found) > 700
    rows = {row["type"]: row["verdict"] for row in table(found)}
    assert sum(each.is_right for each in found) / len(found) > FLOOR
    # By chance one of fifty is right
    assert rows["object: one"] > 0.6
    assert rows["sound: one"] > 0.7


# ---------------------------------------------------------------------------------------------------------------------
# A thing that it does not know
# ---------------------------------------------------------------------------------------------------------------------
QUESTIONS = ("What do you see?", "What is this?", "Tell me what you see.", "What is in the video?")
# Words that it can say, for a thing that it has never seen
ANSWER = "I see a star fish."


def _star_fish_clip(path: Path, seed: int) -> Path:
    """Five arms with spots, somewhere on a background."""
    rng = np.random.default_rng(seed)
    picture = Image.fromarray(random_background(rng, 96, 0.3))
    draw = ImageDraw.Draw(picture)
    size = float(rng.uniform(20, 30))
    x, y = rng.uniform(size, 96 - size, 2).tolist()
    turn = float(rng.uniform(0, 2 * np.pi))
    skin, spots = [tuple(rng.integers(low, 255, 3).tolist()) for low in (120, 0)]
    middle = 0.35 * size
    draw.ellipse((x - middle, y - middle, x + middle, y + middle), fill=skin)
    for arm in range(5):
        way = turn + arm * 2 * np.pi / 5
        tip = x + size * np.cos(way), y + size * np.sin(way)
        draw.line([(x, y), tip], fill=skin, width=round(0.4 * size))
        for part in (0.3, 0.55, 0.8):
            left, top = (start + part * (end - start) - 1 for start, end in zip((x, y), tip))
            draw.ellipse((left, top, left + 3, top + 3), fill=spots)
    clips.write_clip(path, np.repeat(np.asarray(picture)[None], 16, 0), None, 4)
    return path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT uses it
def test_it_learns_a_new_thing_with_lora_and_can_be_merged(model, processor, tmp_path):
    known = [(str(RECORDED / row["clip"]), QUESTIONS[0]) for row in recorded()]
    before = answers(model, processor, known, load_audio=False)
    asked = [(str(_star_fish_clip(tmp_path / f"{seed}.mp4", seed)), QUESTIONS[seed % 4], ANSWER) for seed in range(64)]
    # What it knew is shown again, so that it is kept
    asked += [(clip, question, answer) for (clip, question), answer in zip(known, before)] * 3
    rows = []
    for number, (clip, question, answer) in enumerate(asked):
        user = [{"type": "video", "path": clip}, {"type": "text", "text": question}]
        messages = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
        rows.append(json.dumps({"id": str(number), "layout": "chat", "messages": messages}))
    data = tmp_path / "star_fish.jsonl"
    data.write_text("\n".join(rows))
    args, _ = TrainingArgumentParser().parse(
        [
            *("--model", str(BUILT_IN), "--data", f"messages={data}", "--output_dir", str(tmp_path / "adapter")),
            *("--lora_rank", "8", "--learning_rate", "5e-3", "--max_steps", "50"),
            *("--per_device_train_batch_size", "8", "--precision", "fp32", "--report_to", "none", "--use_cpu", "true"),
        ]
    )
    torch.manual_seed(0)
    trainer = make_trainer(args)
    trainer.train()
    trainer.save_model()

    new = [(str(_star_fish_clip(tmp_path / f"new{seed}.mp4", 1000 + seed)), QUESTIONS[0]) for seed in range(20)]
    assert ANSWER not in answers(model, processor, new, load_audio=False)
    adapted = PeftModel.from_pretrained(load(), tmp_path / "adapter")
    told = answers(adapted, processor, new, load_audio=False)
    assert told.count(ANSWER) >= 16
    still_told = answers(adapted, processor, known, load_audio=False)
    # Of ten; with six seeds 7 to 9 were kept. One that says the new thing of everything keeps none
    assert sum(told == answer for told, answer in zip(still_told, before)) >= 5

    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    assert answers(load(tmp_path / "merged"), processor, new, load_audio=False) == told
