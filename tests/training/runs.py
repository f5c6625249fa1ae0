# SPDX-License-Identifier: Apache-2.0
"""What tests of training share: a tiny model on disk, a few samples, and runs in this process or another."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor, GenerationConfig, ProcessorMixin

from transformers_videollama import VideoLlamaForConditionalGeneration

from ..helpers import SAMPLE_CLIP, TINY, tiny_config


QFORMERS = ("qformer_config", "video_qformer_config", "audio_qformer_config")


def write_model(folder: Path, dropout: float = 0.1, **config) -> Path:
    """A tiny model with its processor, random with a fixed seed; fields of its configuration can be replaced."""
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    torch.manual_seed(0)
    model = VideoLlamaForConditionalGeneration(tiny_config(**dict.fromkeys(QFORMERS, rates), **config))
    model.generation_config = GenerationConfig.from_pretrained(TINY)
    model.save_pretrained(folder)
    AutoProcessor.from_pretrained(TINY).save_pretrained(folder)
    return folder


def sample(number: int, items: list[dict], layout: str = "chat") -> dict:
    """A question about some items, or with layout "caption" none, and its answer."""
    words = [] if layout == "caption" else [{"type": "text", "text": f"What is number {number}?"}]
    messages = [
        {"role": "user", "content": [*items, *words]},
        {"role": "assistant", "content": f"A ball of colour {number}."},
    ]
    return {"id": f"sample-{number}", "layout": layout, "messages": messages}


def write_samples(folder: Path, kinds: list[str], name: str = "samples.jsonl") -> str:
    """Samples of some kinds, "image", "video", "text" or "missing"; what `--data` says for them."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, kind in enumerate(kinds):
        path = folder / f"{number}.png"
        if kind == "image":
            pixels = np.random.default_rng(number).integers(0, 255, (28, 28, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
        items = {
            "image": [{"type": "image", "path": str(path)}],
            "video": [{"type": "video", "path": str(SAMPLE_CLIP)}],
            "missing": [{"type": "video", "path": str(folder / "missing.mp4")}],
            "text": [],
        }[kind]
        rows.append(sample(number, items))
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"messages={file}"


def settings(model: Path, data: str, output_dir: Path, **fields) -> dict:
    """Fields of a short run on the CPU."""
    return {
        "model": str(model),
        "data": [data],
        "output_dir": str(output_dir),
        "max_steps": 6,
        "save_steps": 3,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 2,
        "use_cpu": True,
        "dataloader_num_workers": 0,
        "disable_tqdm": True,
        **fields,
    }


def command_line(fields: dict) -> list[str]:
    argv = []
    for name, value in fields.items():
        values = value if isinstance(value, list) else [value]
        argv += [f"--{name}", *map(str, values)]
    return argv


def environment(folder: Path) -> dict[str, str]:
    """For other processes, of which two are to share two cores."""
    names = ("PATH", "HOME", "PYTHONPATH", "TMPDIR", "VIRTUAL_ENV", "LANG")
    inherited = {name: os.environ[name] for name in names if name in os.environ}
    return {
        **inherited,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "datasets"),
    }


def start(arguments: list[str], folder: Path) -> subprocess.Popen:
    """Python with some arguments, whose output goes to a file."""
    log = open(folder / "log.txt", "a")
    return subprocess.Popen(
        [sys.executable, *arguments], env=environment(folder), cwd=folder, stdout=log, stderr=subprocess.STDOUT
    )


def run(arguments: list[str], folder: Path, timeout: float = 200) -> None:
    """The same to its end, which has to be a good one."""
    process = start(arguments, folder)
    try:
        code = process.wait(timeout)
    finally:
        process.kill()
    assert code == 0, (folder / "log.txt").read_text()


def curve(output_dir: Path, name: str = "loss") -> list[float]:
    """A logged value at every step."""
    history = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    return [entry[name] for entry in history if name in entry]


def collate_conversations(processor: ProcessorMixin, conversations: list) -> dict[str, torch.Tensor]:
    """Conversations to what the model takes, with labels on the answers."""
    batch = processor.apply_chat_template(
        conversations,
        load_audio_from_video=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_assistant_tokens_mask=True,
        processor_kwargs={"padding": True, "padding_side": "right"},
    )
    batch["labels"] = batch["input_ids"].masked_fill(batch.pop("assistant_masks") == 0, -100)
    return dict(batch)
