# SPDX-License-Identifier: Apache-2.0
"""A tiny model learns clips of real pictures and sounds by heart, by the commands that a large one is trained with.

As in the published training, LLaMA is taught by text alone and then frozen, and both branches learn to talk to it. The clips put
four pictures together with four sounds, three with each: the same picture looks the same with each sound, and the question is always
the same, so only a model that both sees and hears can tell.
"""

import csv
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from string import ascii_letters

import av
import pytest
import torch
import yaml
from transformers import AutoProcessor, GenerationConfig, PreTrainedModel, ProcessorMixin

from transformers_videollama import VideoLlamaForConditionalGeneration
from transformers_videollama.branches import load_branch
from transformers_videollama.media import has_audio
from transformers_videollama.processing_video_llama import HEARD_PROMPT, SEEN_PROMPT
from transformers_videollama.training.cache import cache_features
from transformers_videollama.training.formats import load_training_data
from transformers_videollama.training.run import main as train_command

from ..helpers import TINY, tiny_config
from .real_clips import SCRIPT, load_script, stamps_folder


NUM_CLIPS = 12
QFORMERS = ("qformer_config", "video_qformer_config", "audio_qformer_config")

# As the published recipes, but for a learning rate and numbers of steps that suit this size
RECIPE = {
    "per_device_train_batch_size": 16,
    "learning_rate": 3.0e-3,
    "lr_scheduler_type": "cosine_warmup_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr": 1.0e-5, "warmup_lr_rate": 0.01},
    "warmup_steps": 20,
    "optim": "adamw_torch",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "precision": "fp32",
    "save_strategy": "no",
    "logging_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "seed": 42,
}
TEXT_RECIPE = {**RECIPE, "trainable": ["language_model", "lm_head"], "save_complete_model": True, "max_steps": 250}
CLIPS_RECIPE = {**RECIPE, "trainable": ["both"], "audio_from": "sound", "max_steps": 350}


# ---------------------------------------------------------------------------------------------------------------------
# The data
# ---------------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Clips of four pictures and four sounds, each picture with three of these."""
    folder = tmp_path_factory.mktemp("real_clips")
    return load_script().make_clips(folder, stamps_folder(), NUM_CLIPS, 64, is_crossed=True)


@pytest.fixture(scope="module")
def rows(clips) -> list[dict]:
    return [json.loads(line) for line in clips.read_text(encoding="utf-8").splitlines()]


def caption_of(row: dict) -> str:
    return row["messages"][1]["content"][0]["text"]


@pytest.mark.slow
def test_command_makes_the_same_clips_each_time(tmp_path):
    options = ["--num-clips", "3", "--size", "64", "--seed", "1", "--stamps", str(stamps_folder())]
    for name in ("first", "second"):
        command = [sys.executable, str(SCRIPT), "--out", str(tmp_path / name), *options]
        subprocess.run(command, check=True, capture_output=True)
    first, second = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("first", "second")
    )
    assert first == second
    assert len(first) == 3 + 3  # clips, and two lists with the sources


@pytest.mark.slow
def test_clips_have_a_picture_and_its_sound_and_both_lists_name_them(tmp_path):
    script = load_script()
    captions = script.make_clips(tmp_path, stamps_folder(), 4, 64, seed=2)
    samples = load_training_data(f"messages={captions}", cache_dir=tmp_path / "cache")
    for sample, row in zip(samples, csv.DictReader(open(tmp_path / "captions.csv", encoding="utf-8"))):
        path = sample["messages"][0]["content"][0]["path"]
        caption = sample["messages"][1]["content"][0]["text"]
        assert (row["videoid"], row["name"]) == (sample["id"], caption)
        assert script.NAME.fullmatch(caption)
        assert has_audio(path)
        with av.open(path) as container:
            video, audio = container.streams.video[0], container.streams.audio[0]
            assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
            assert (video.height, video.width) == (64, 64)
            assert 2 <= video.frames / video.average_rate <= 4
            assert max(abs(frame.to_ndarray()).max() for frame in container.decode(audio=0)) > 0.1
    webvid = load_training_data(f"webvid={tmp_path / 'captions.csv'}", cache_dir=tmp_path / "cache")
    assert [sample["id"] for sample in webvid] == [sample["id"] for sample in samples]
    assert all(Path(sample["messages"][0]["content"][0]["path"]).is_file() for sample in webvid)
    with pytest.raises(script.StampsError, match=r"captions.jsonl is there already"):
        script.make_clips(tmp_path, stamps_folder(), 4)


def test_what_is_wrong_is_said_in_one_line(tmp_path, monkeypatch, capsys):
    script = load_script()
    for options, message in (
        (["--stamps", str(tmp_path / "none")], "There is no folder"),
        (["--stamps", str(tmp_path)], "has no stamp with a picture"),
        (["--num-clips", "0", "--stamps", str(tmp_path)], "expected 1 or more"),
    ):
        assert script.main(["--out", str(tmp_path / "out"), *options]) == 1
        assert message in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(script.StampsError, match=r"apt-get is not on this machine: unpack .* and give its folder"):
        script.fetch_stamps(tmp_path / "stamps")
    apt = tmp_path / "apt-get"
    apt.write_text("#!/bin/sh\necho 'E: Unable to locate package' >&2\nexit 100\n")
    (tmp_path / "dpkg-deb").write_text("#!/bin/sh\nexit 0\n")
    for program in (apt, tmp_path / "dpkg-deb"):
        program.chmod(0o755)
    with pytest.raises(script.StampsError, match=r"failed \(E: Unable to locate package\)"):
        script.fetch_stamps(tmp_path / "stamps")
    assert not (tmp_path / "stamps").exists()


# ---------------------------------------------------------------------------------------------------------------------
# The training
# ---------------------------------------------------------------------------------------------------------------------
def prompt_in_words(seen: str, heard: str, question: str) -> str:
    """The prompt of a clip with sound, with names where what is seen and heard would be."""
    return HEARD_PROMPT.format(audio=heard) + SEEN_PROMPT.format(video=seen) + f" {question}"


def write_texts(rows: list[dict], path: Path) -> list[dict]:
    """A conversation in words about each picture with each sound."""
    question = rows[0]["messages"][0]["content"][1]["text"]
    names = list(dict.fromkeys(row["seen"] for row in rows))
    texts = []
    for seen, heard in product(names, names):
        caption = f"{seen[0].upper()}{seen[1:]} is seen, and {heard} is heard."
        messages = [
            {"role": "user", "content": prompt_in_words(seen, heard, question)},
            {"role": "assistant", "content": caption},
        ]
        texts.append({"messages": messages})
    path.write_text("".join(json.dumps(text) + "\n" for text in texts), encoding="utf-8")
    return texts


def write_model(folder: Path, texts: list[dict]) -> Path:
    """A tiny model that knows nothing yet, with a tokenizer that has whole words for what it is going to say.

    With LLaMA's 32,000 tokens, nearly all the time would be spent on the scores of those that are never said.
    """
    processor = AutoProcessor.from_pretrained(TINY)
    prompts = processor.apply_chat_template([text["messages"] for text in texts])
    words = [word for prompt in prompts for word in re.findall(r"\w+|###|[^\w\s]", prompt)]
    # With all letters, which the library needs where answers end at a stop string
    tokenizer = processor.tokenizer.train_new_from_iterator([*words, *ascii_letters], vocab_size=400)
    processor = type(processor)(
        processor.image_processor,
        processor.video_processor,
        processor.feature_extractor,
        tokenizer,
        num_video_query_tokens=processor.num_video_query_tokens,
        num_audio_query_tokens=processor.num_audio_query_tokens,
    )
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    # Encoders that nobody has trained tell pictures apart only if their weights are not all next to nothing
    wide = {"initializer_range": 0.1}
    config = tiny_config(
        **{f"{name}_token_id": getattr(processor, f"{name}_token_id") for name in ("image", "audio", "video")},
        **{name: {**wide, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} for name in QFORMERS},
        vision_config=wide,
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 96,
            "intermediate_size": 192,
            "head_dim": 24,
            **special,
        },
    )
    torch.manual_seed(0)
    model = VideoLlamaForConditionalGeneration(config)
    model.generation_config = GenerationConfig(**special, stop_strings=["###"], do_sample=False, max_new_tokens=40)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def run(recipe: dict, folder: Path, *options: str) -> list[float]:
    """`videollama train` with a recipe of one's own. Returns the loss of each step."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert train_command(["--recipe", str(folder / "recipe.yaml"), "--output_dir", str(folder), *options]) == 0
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@dataclass
class Trained:
    model: PreTrainedModel
    processor: ProcessorMixin
    text_losses: list[float]
    losses: list[float]


@pytest.fixture(scope="module")
def trained(clips, rows, tmp_path_factory) -> Trained:
    """A model after two runs of `videollama train`: on text, and then with LLaMA frozen on clips."""
    folder = tmp_path_factory.mktemp("overfit")
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        texts = write_texts(rows, folder / "texts.jsonl")
        base = write_model(folder / "base", texts)
        speaking = folder / "speaking"
        text_losses = run(TEXT_RECIPE, speaking, "--model", str(base), "--data", f"messages={folder / 'texts.jsonl'}")

        data = f"messages={clips}"
        model = VideoLlamaForConditionalGeneration.from_pretrained(speaking)
        processor = AutoProcessor.from_pretrained(speaking)
        frame_size = model.config.audio_config.vision_config.image_size
        cache = folder / "features"
        report = cache_features(
            data, cache, model, processor, branch="both", audio_from="sound", audio_frame_size=frame_size, seed=42
        )
        assert not report.failed

        options = ["--model", str(speaking), "--data", data, "--feature_cache", str(cache)]
        losses = run(CLIPS_RECIPE, folder / "branches", *options)
        for branch in ("vision_branch", "audio_branch"):
            load_branch(model, folder / "branches" / f"{branch}.safetensors")
        yield Trained(model.eval(), processor, text_losses, losses)
    finally:
        torch.set_num_threads(num_threads)


def answer(trained: Trained, inputs: dict) -> list[str]:
    """What the model says, word for word."""
    tokenizer = trained.processor.tokenizer
    output_ids = trained.model.generate(**inputs, tokenizer=tokenizer)
    texts = tokenizer.batch_decode(output_ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip().removesuffix("###").strip() for text in texts]


@pytest.fixture(scope="module")
def inputs(trained, clips, rows) -> dict:
    """All clips in one batch, as anybody would ask about them."""
    conversations = []
    for row in rows:
        video, question = row["messages"][0]["content"]
        content = [{**video, "path": str(clips.parent / video["path"])}, question]
        conversations.append([{"role": "user", "content": content}])
    return trained.processor.apply_chat_template(
        conversations,
        load_audio_from_video=True,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


@pytest.mark.slow
def test_loss_falls_below_a_tenth_of_its_start(trained):
    assert sum(trained.losses[-10:]) / 10 < 0.1 * trained.losses[0]


@pytest.mark.slow
def test_captions_are_right(trained, inputs, rows):
    assert answer(trained, inputs) == [caption_of(row) for row in rows]


@pytest.mark.slow
def test_captions_follow_the_clips(trained, inputs, rows):
    # The words are the same for every clip, and any sound may come with any picture
    assert (inputs["input_ids"] == inputs["input_ids"][0]).all()
    known = {(row["seen"], row["heard"]): caption_of(row) for row in rows}
    for shift in range(1, NUM_CLIPS):
        swapped = {**inputs, "input_features": inputs["input_features"].roll(shift, 0)}
        pairs = [(row["seen"], rows[index - shift]["heard"]) for index, row in enumerate(rows)]
        # Four of the sixteen pairs have never been seen and heard together, and are not asked for
        said = [text for text, pair in zip(answer(trained, swapped), pairs) if pair in known]
        assert said == [known[pair] for pair in pairs if pair in known]
