# SPDX-License-Identifier: Apache-2.0
"""trl's SFTTrainer takes the model, its processor and rows of conversations as they are."""

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from PIL import Image

from transformers_videollama import VideoLlamaForConditionalGeneration, VideoLlamaProcessor
from transformers_videollama.training.collator import VideoLlamaDataCollator
from transformers_videollama.training.encoding import SampleEncoder
from transformers_videollama.training.peft import lora_config

from ..helpers import SAMPLE_CLIP


trl = pytest.importorskip("trl")

# trl and PEFT use names that transformers has renamed
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),
]

QUESTION, ANSWER = "What is there?", "Dots that move."
VIDEO = {"type": "video", "path": str(SAMPLE_CLIP)}


def pictures(count: int) -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return [Image.fromarray(pixels) for pixels in noise]


def conversation(*items: dict) -> list[dict]:
    return [
        {"role": "user", "content": [*items, {"type": "text", "text": QUESTION}]},
        {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]},
    ]


def picture_rows() -> list[dict]:
    """As trl writes them: texts, and the pictures in a column of their own."""
    messages = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    return [{"images": [picture], "messages": messages} for picture in pictures(3)]


def video_rows() -> list[dict]:
    """trl takes rows for pictures only if they have such a column, and tokenises others before. The processor reads the video."""
    return [{"images": [], "messages": conversation(VIDEO)}] * 3


def sft(
    base: Path, processor: VideoLlamaProcessor, rows: list[dict], folder: Path, collator=None, **kwargs
) -> trl.SFTTrainer:
    """A trainer for some steps of LoRA with both branches."""
    arguments = trl.SFTConfig(
        str(folder),
        max_steps=3,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        max_length=None,
        **kwargs,
    )
    return trl.SFTTrainer(
        VideoLlamaForConditionalGeneration.from_pretrained(base, dtype=torch.float32),
        arguments,
        data_collator=collator,
        train_dataset=Dataset.from_list(rows),
        processing_class=processor,
        peft_config=lora_config("both"),
    )


def train(trainer: trl.SFTTrainer) -> list[float]:
    """The losses; checks that all that was to be trained was, and nothing else."""
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.train()
    changed = {name for name, tensor in trainer.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(".lora_" in name or ".modules_to_save." in name for name in changed)
    assert any(".lora_" in name for name in changed)
    assert any("video_projection.modules_to_save" in name for name in changed)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 3
    assert torch.tensor(losses).isfinite().all()
    return losses


@pytest.mark.parametrize("is_checkpointed", [True, False])
@pytest.mark.parametrize("rows", [picture_rows, video_rows])
def test_its_own_collator(
    rows, is_checkpointed: bool, converted: Path, processor: VideoLlamaProcessor, tmp_path: Path
):
    trainer = sft(
        converted, processor, rows(), tmp_path, assistant_only_loss=True, activation_checkpointing=is_checkpointed
    )
    losses = train(trainer)
    assert losses[-1] < losses[0]

    trainer.save_model(tmp_path / "saved")
    base = VideoLlamaForConditionalGeneration.from_pretrained(converted, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, tmp_path / "saved").eval()
    batch = trainer.data_collator(rows())
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, trainer.model.eval()(**batch).logits)


def test_labels_are_on_answers_alone(converted: Path, processor: VideoLlamaProcessor, tmp_path: Path):
    trainer = sft(converted, processor, video_rows(), tmp_path, assistant_only_loss=True)
    batch = trainer.data_collator(video_rows()[:1])
    labels = batch["labels"][0]
    assert processor.decode(labels[labels != -100]) == f"{ANSWER}###"

    encoder = SampleEncoder(processor)
    ours = VideoLlamaDataCollator(processor, encoder)([{"layout": "chat", "messages": conversation(VIDEO)}])
    assert set(batch) == set(ours)
    for name, tensor in ours.items():
        # trl adds no special tokens, and the templates leave BOS to the tokenizer
        tensor = tensor[:, 1:] if name in ("input_ids", "attention_mask", "labels") else tensor
        assert torch.equal(batch[name], tensor), name


def test_our_collator(converted: Path, processor: VideoLlamaProcessor, tmp_path: Path):
    paths = []
    for index, picture in enumerate(pictures(2)):
        paths.append(tmp_path / f"{index}.png")
        picture.save(paths[-1])
    items = [VIDEO, *({"type": "image", "path": str(path)} for path in paths)]
    rows = [{"id": str(index), "layout": "chat", "messages": conversation(item)} for index, item in enumerate(items)]
    encoder = SampleEncoder(processor, branch="vision_branch", load_audio_from_video=True)
    trainer = sft(
        converted,
        processor,
        rows,
        tmp_path / "run",
        collator=VideoLlamaDataCollator(processor, encoder),
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    losses = train(trainer)
    assert losses[-1] < losses[0]
