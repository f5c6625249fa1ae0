# SPDX-License-Identifier: Apache-2.0
"""Batches of any samples, and with them the original's training losses, from messages to the last digit that matters."""

import copy
import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from transformers_videollama import VideoLlamaForConditionalGeneration
from transformers_videollama.exceptions import TrainingDataError
from transformers_videollama.training.collator import VideoLlamaDataCollator
from transformers_videollama.training.encoding import SampleEncoder

from ..helpers import PARITY, SAMPLE_CLIP


EXPECTED = load_file(PARITY / "expected.safetensors")
INPUTS = load_file(PARITY / "inputs.safetensors")
TEXTS = json.loads((PARITY / "texts.json").read_text())
LOSS_ATOL = 1e-5
PLACEHOLDER = 32000  # the original's, for whatever it sees or hears
FAMILIES = {"vicuna": "vicuna", "llama_v2": "llama_2"}

# The two dialogues of each batch, as the original's token ids read
CLOCK = {"total_num_frames": 4, "frame_times": [0.0, 1.2, 2.5, 3.7]}
DIALOGUES = {
    "video": (
        (
            ("{}What is the dog doing?", "A dog is barking at the camera."),
            ("Where is it?", "In a living room, next to a sofa."),
        ),
        (("{}What can you see?", "Two people are skating."),),
    ),
    "image4d": (
        (("{}\nWhat is the dog doing?", "It is a red boat."),),
        (("Where is it?\n{}", "On the river."), ("Why?", "I do not know.")),
    ),
}

NOISE = np.random.default_rng(0).integers(0, 256, (8, 28, 28, 3), dtype=np.uint8)
CLIP = {"type": "video", "path": str(SAMPLE_CLIP)}
IMAGE = {"type": "image", "image": NOISE[0]}
SOUND = {"type": "audio", "audio": {"array": np.sin(np.arange(16000) / 5).astype(np.float32), "sampling_rate": 16000}}


def row(items: list[dict] | str, answer: str, layout: str = "chat", name: str = "1") -> dict:
    return {
        "id": name,
        "layout": layout,
        "messages": [{"role": "user", "content": items}, {"role": "assistant", "content": answer}],
    }


def text(value: str) -> dict:
    return {"type": "text", "text": value}


MIX = [
    row("What is 2 and 2?", "4."),
    row([CLIP, text("What is it?")], "A ball that bounces on the floor again and again."),
    row([IMAGE, IMAGE], "Two pictures."),
    row([SOUND, text("What is heard?")], "A tone."),
    row([{"type": "video", "video": NOISE[:3]}, IMAGE, SOUND], "Noise.", layout="conversation"),
    row([IMAGE], "noise", layout="caption"),
]


# ---------------------------------------------------------------------------------------------------------------------
# The original
# ---------------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def converted_model(converted) -> VideoLlamaForConditionalGeneration:
    return VideoLlamaForConditionalGeneration.from_pretrained(converted, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def bare_processor(processor):
    """A processor that leaves pixels as they are: those of the parity data are random numbers already."""
    processor = copy.deepcopy(processor)
    for part in (processor.image_processor, processor.video_processor):
        part.do_rescale = part.do_normalize = part.do_resize = False
    return processor


def items_of(name: str) -> list[dict]:
    """The two pictures or clips that a parity batch was given."""
    _, train_flag, kind, *_ = name.split(".")
    frames = INPUTS["video224"].float() if train_flag == "flag1" else INPUTS["video" if kind == "video" else "image"]
    frames = frames.transpose(1, 2)  # (batch, frames, 3, height, width)
    if kind == "video":
        # Two frames were given to the audio branch, whose prompt tells of four
        times = CLOCK["frame_times"][: frames.shape[1]]
        return [
            {"type": "video", "video": clip, "video_metadata": {"total_num_frames": len(clip), "frame_times": times}}
            for clip in frames
        ]
    return [{"type": "image", "image": clip[0].numpy()} for clip in frames]


def dialogue_row(dialogue: tuple, item: dict) -> dict:
    messages = []
    for question, answer in dialogue:
        before, mark, after = question.partition("{}")
        content = [text(before), *([item] if mark else []), text(after)]
        messages.append({"role": "user", "content": [part for part in content if part.get("text") != ""]})
        messages.append({"role": "assistant", "content": [text(answer)]})
    return {"layout": "conversation", "messages": messages}


class FramesWithTimesOfFour(SampleEncoder):
    """Two frames with the words for four: the original's test data give the audio branch other frames than its prompt says."""

    def read_frames(self, item, size=None, seed=0):
        frames, metadata = super().read_frames(item, size, seed)
        if metadata is not None:
            metadata.frames_indices, metadata.frame_times = list(range(4)), CLOCK["frame_times"]
        return frames, metadata


def losses_close(model, batch: dict, name: str, processor) -> None:
    placeholders = torch.tensor([processor.image_token_id, processor.video_token_id, processor.audio_token_id])
    ids = batch["input_ids"].masked_fill(torch.isin(batch["input_ids"], placeholders), PLACEHOLDER)
    if f"{name}.input_ids" in INPUTS:
        assert torch.equal(ids, INPUTS[f"{name}.input_ids"])
    assert torch.equal(batch["attention_mask"], EXPECTED[f"{name}.attention_mask"])
    assert torch.equal(batch["labels"], EXPECTED[f"{name}.labels"])
    with torch.no_grad():
        loss = model(**batch).loss
    torch.testing.assert_close(loss, EXPECTED[f"{name}.loss"], atol=LOSS_ATOL, rtol=0)


@pytest.mark.parametrize(
    "name", sorted(key.removesuffix(".loss") for key in EXPECTED if key.startswith("multi.") and key.endswith(".loss"))
)
def test_dialogues_have_the_losses_of_the_original(name, converted_model, bare_processor):
    _, train_flag, kind, family = name.split(".")
    encoder = FramesWithTimesOfFour(
        bare_processor,
        branch="audio_branch" if train_flag == "flag1" else "vision_branch",
        original_labels=True,
        prompt_family=FAMILIES[family],
    )
    rows = [dialogue_row(dialogue, item) for dialogue, item in zip(DIALOGUES[kind], items_of(name))]

    batch = VideoLlamaDataCollator(bare_processor, encoder)(rows)

    losses_close(converted_model, batch, name, bare_processor)


@pytest.mark.parametrize("name", [name for name in TEXTS if name.startswith("caption.")])
def test_captions_have_the_losses_of_the_original(name, converted_model, bare_processor):
    facts, (_, train_flag, _, family) = TEXTS[name], name.split(".")
    layout = "caption" if facts["prompt"] is None else "prompted_caption"
    encoder = SampleEncoder(
        bare_processor,
        branch="audio_branch" if train_flag == "flag1" else "vision_branch",
        max_text_tokens=facts["max_txt_len"],
        prompt_family=FAMILIES.get(family),
    )
    rows = [row([item], caption, layout) for caption, item in zip(facts["text_input"], items_of(name))]
    if layout == "prompted_caption":
        # The prompt is drawn: the first index that draws the one of the test data
        wanted = bare_processor.tokenizer(facts["prompt"].split("<ImageHere>")[1], add_special_tokens=False)[
            "input_ids"
        ]
        index = next(i for i in range(40) if is_in(wanted, encoder(rows[0], index=i)["input_ids"].tolist()))
        rows = [encoder(sample, index=index) for sample in rows]

    batch = VideoLlamaDataCollator(bare_processor, encoder)(rows)

    losses_close(converted_model, batch, name, bare_processor)


def is_in(wanted: list[int], ids: list[int]) -> bool:
    return any(ids[start : start + len(wanted)] == wanted for start in range(len(ids)))


# ---------------------------------------------------------------------------------------------------------------------
# Batches
# ---------------------------------------------------------------------------------------------------------------------
def test_any_samples_make_a_batch(tiny_model, processor):
    encoder = SampleEncoder(processor, num_frames=5)
    collator = VideoLlamaDataCollator(processor, encoder, pad_to_multiple_of=8)

    batch = collator(MIX)

    length = batch["input_ids"].shape[1]
    assert length % 8 == 0
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == {
        "input_ids": (6, length),
        "attention_mask": (6, length),
        "labels": (6, length),
        "pixel_values": (4, 3, 28, 28),
        "pixel_values_videos": (2, 5, 3, 28, 28),
        "video_frame_mask": (2, 5),
        "input_features": (2, 8, 128, 204),
        "input_features_mask": (2, 8),
    }
    assert batch["video_frame_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
    assert batch["input_features_mask"].all()
    for index, sample in enumerate(MIX):
        alone = encoder(sample)
        num_tokens = len(alone["input_ids"])
        assert torch.equal(batch["input_ids"][index, :num_tokens], alone["input_ids"])
        assert torch.equal(batch["labels"][index, :num_tokens], alone["labels"])
        assert (batch["labels"][index, num_tokens:] == -100).all()
        assert batch["attention_mask"][index].tolist() == [1] * num_tokens + [0] * (length - num_tokens)
    # Padding changes nothing: the loss of the batch is that of its samples, weighted by their labels
    with torch.no_grad():
        together = tiny_model(**batch).loss
        losses, weights = [], []
        for sample in MIX:
            alone = collator([sample])
            losses.append(tiny_model(**alone).loss)
            weights.append((alone["labels"][:, 1:] != -100).sum())
    weights = torch.stack(weights)
    torch.testing.assert_close(together, (torch.stack(losses) * weights).sum() / weights.sum(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("branch", "audio_from"), [("audio_branch", "frames"), ("both", "frames"), ("both", "sound")])
def test_the_model_learns_from_batches_of_each_branch(branch, audio_from, tiny_model, processor):
    encoder = SampleEncoder(processor, branch=branch, audio_from=audio_from, audio_frame_size=28, num_frames=3)
    clips = [row([CLIP, text("What?")], "A ball."), row([IMAGE], "noise", layout="caption"), row("Q", "A")]

    batch = VideoLlamaDataCollator(processor, encoder)(clips)
    tiny_model(**batch).loss.backward()

    segments = {
        ("audio_branch", "frames"): [[1, 1, 1], [1, 0, 0]],
        ("both", "frames"): [[1, 1, 1]],
        ("both", "sound"): [[1] * 8],
    }
    assert batch["input_features_mask"].tolist() == segments[branch, audio_from]
    assert ("audio_pixel_values" in batch) == (audio_from == "frames")
    assert ("pixel_values_videos" in batch) == (branch == "both")
    assert tiny_model.model.audio_projection.weight.grad.abs().max() > 0
    assert (tiny_model.model.video_projection.weight.grad is None) == (branch == "audio_branch")


def test_features_of_a_cache_are_padded(processor):
    rows = [
        {
            "input_ids": torch.arange(length),
            "labels": torch.arange(length),
            "video_frame_embeds": [torch.ones(length, 4, 5)],
            "image_embeds": [torch.ones(4, 5)] * 2,
            "audio_segment_embeds": [torch.ones(length + 1, 6, dtype=torch.bfloat16)],
        }
        for length in (2, 3)
    ]

    batch = VideoLlamaDataCollator(processor)(rows)

    assert batch["video_frame_embeds"].shape == (2, 3, 4, 5)
    assert batch["video_frame_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch["image_embeds"].shape == (4, 4, 5)
    assert batch["audio_segment_embeds"].dtype == torch.bfloat16
    assert batch["input_features_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert (batch["video_frame_embeds"][0, 2] == 0).all()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("input_features", "audio_pixel_values"),
        ("input_features", "audio_segment_embeds"),
        ("pixel_values_videos", "video_frame_embeds"),
        ("pixel_values", "image_embeds"),
    ],
)
def test_what_comes_in_two_forms_is_refused(first, second, processor):
    ids = torch.arange(2)
    rows = [{"input_ids": ids, "labels": ids, name: [torch.ones(2, 2)]} for name in (first, second)]

    with pytest.raises(TrainingDataError, match=f"both {first} and {second}"):
        VideoLlamaDataCollator(processor)(rows)


def test_rows_that_are_no_samples_are_refused(processor):
    encoder = SampleEncoder(processor)

    with pytest.raises(TrainingDataError, match="remove_unused_columns=False"):
        VideoLlamaDataCollator(processor, encoder)([{}])
    with pytest.raises(TrainingDataError, match="has no encoder"):
        VideoLlamaDataCollator(processor)([MIX[0]])
    with pytest.raises(TrainingDataError, match="without rows"):
        VideoLlamaDataCollator(processor, encoder)([])
    with pytest.raises(ValueError, match="pad_to_multiple_of"):
        VideoLlamaDataCollator(processor, encoder, pad_to_multiple_of=0)


def test_a_row_gets_the_same_random_choices_wherever_it_stands(processor):
    encoder = SampleEncoder(processor, sampling="headtail", num_frames=2)
    collator = VideoLlamaDataCollator(processor, encoder)
    first, second = (row([CLIP], "ball", layout="caption", name=name) for name in "ab")

    def frames(*rows) -> list[torch.Tensor]:
        return list(collator(list(rows))["pixel_values_videos"])

    one, other = frames(first, second)
    assert torch.equal(one, frames(second, first)[1])
    assert not torch.equal(one, other)
    collator.epoch = 1
    assert not torch.equal(one, frames(first)[0])


# ---------------------------------------------------------------------------------------------------------------------
# The library around it
# ---------------------------------------------------------------------------------------------------------------------
def dataset() -> Dataset:
    """Rows as `datasets` gives them, with None for what is absent."""
    rows = [
        {
            "id": "1",
            "layout": "chat",
            "messages": [
                {"role": "user", "content": [{"type": "video", "path": str(SAMPLE_CLIP), "end": 2.0}, text("What?")]},
                {"role": "assistant", "content": [text("A ball.")]},
            ],
        },
        {
            "id": "2",
            "layout": None,
            "messages": [
                {"role": "user", "content": [text("What is 2 and 2?")]},
                {"role": "assistant", "content": [text("4.")]},
            ],
        },
    ]
    return Dataset.from_list(rows * 2)


def test_workers_of_a_data_loader_give_the_same_batches(processor):
    collator = VideoLlamaDataCollator(processor, SampleEncoder(processor, num_frames=2))
    rows = dataset()
    assert rows[0]["messages"][0]["content"][1]["path"] is None

    here, there = (
        list(DataLoader(rows, batch_size=2, collate_fn=collator, num_workers=num_workers)) for num_workers in (0, 2)
    )

    assert len(here) == len(there) == 2
    for one, other in zip(here, there):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def trainer(model, processor, folder, remove_unused_columns: bool = False) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=2,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        remove_unused_columns=remove_unused_columns,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        logging_steps=1,
    )
    collator = VideoLlamaDataCollator(processor, SampleEncoder(processor, num_frames=2))
    return Trainer(model=model, args=arguments, train_dataset=dataset(), data_collator=collator)


def test_trainer_trains_with_it(tiny_model, processor, tmp_path):
    before = tiny_model.model.video_projection.weight.detach().clone()

    run = trainer(tiny_model, processor, tmp_path)
    run.train()

    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert len(losses) == 2
    assert losses[1] < losses[0]
    assert not torch.equal(before, tiny_model.model.video_projection.weight)


def test_trainer_that_drops_columns_is_told_not_to(tiny_model, processor, tmp_path):
    with pytest.raises((TrainingDataError, ValueError), match="remove_unused_columns"):
        trainer(tiny_model, processor, tmp_path, remove_unused_columns=True).train()


class Epochs(SampleEncoder):
    """Writes the epoch that it is told in place of the labels."""

    def __call__(self, sample, epoch: int = 0, index: int = 0):
        encoded = super().__call__(sample, epoch, index)
        return {**encoded, "labels": torch.full_like(encoded["labels"], epoch)}


def test_the_epoch_reaches_workers_that_outlive_it(processor):
    collator = VideoLlamaDataCollator(processor, Epochs(processor))
    rows = Dataset.from_list([row("What?", "That.", name=str(number)) for number in range(4)])
    loader = DataLoader(rows, batch_size=2, collate_fn=collator, num_workers=1, persistent_workers=True)
    for epoch in range(3):
        collator.epoch = epoch
        assert all((batch["labels"] == epoch).all() for batch in loader)
