# SPDX-License-Identifier: Apache-2.0
"""The prompts of the original's chat: the same token ids around the placeholders."""

import json

import numpy as np
import pytest
import torch

from transformers_videollama.processing_video_llama import PROMPT_FAMILIES

from ..helpers import FIXTURES, SAMPLE_CLIP


CHAT = json.loads((FIXTURES / "chat_prompts.json").read_text())
DEMO_SYSTEM = (
    "You are able to understand the visual content that the user provides. Follow the instructions carefully and explain "
    "your answers in detail."
)
SYSTEMS = {"demo_system": DEMO_SYSTEM, "empty_system": "", "default_system": None}
QUESTIONS, ANSWER = ("What is the dog doing?", "Where is it?"), "The dog is barking at the camera."
FRAMES = np.zeros((8, 28, 28, 3), dtype=np.uint8)
METADATA = {"total_num_frames": 8, "fps": 1 / 1.2, "frames_indices": list(range(8))}


def conversation(media: str, system: str, turn: int) -> list[dict]:
    """The messages that the original's chat was given before its answer number `turn`."""
    items = {
        "video": [{"type": "video", "video": FRAMES}],
        "video_audio": [{"type": "video", "path": str(SAMPLE_CLIP)}],
        "video_audio_but_no_sound_in_file": [{"type": "video", "video": FRAMES}],
        "image": [{"type": "image", "image": FRAMES[0]}],
        "text": [],
    }
    messages = [] if SYSTEMS[system] is None else [{"role": "system", "content": SYSTEMS[system]}]
    messages.append({"role": "user", "content": [*items[media], {"type": "text", "text": QUESTIONS[0]}]})
    if turn == 1:
        messages.append({"role": "assistant", "content": ANSWER})
        messages.append({"role": "user", "content": [{"type": "text", "text": QUESTIONS[1]}]})
    return messages


def segments(input_ids: torch.Tensor, processor) -> list[list[int]]:
    """The runs of text between runs of placeholders."""
    placeholders = {processor.image_token_id, processor.video_token_id, processor.audio_token_id}
    runs, was_placeholder = [[]], False
    for token_id in input_ids.tolist():
        if token_id not in placeholders:
            runs[-1].append(token_id)
        elif not was_placeholder:
            runs.append([])
        was_placeholder = token_id in placeholders
    return runs


def test_the_fixture_holds_all_41_prompts():
    assert len(CHAT) == 41


@pytest.mark.parametrize("name", CHAT)
def test_prompt_has_the_token_ids_of_the_original(name, processor):
    family, media, _, system = name.split("/")
    for turn, expected in enumerate(CHAT[name]):
        messages = conversation(media, system, turn)
        is_array = media in ("video", "video_audio_but_no_sound_in_file")
        inputs = processor.apply_chat_template(
            messages,
            chat_template=family,
            load_audio_from_video=media.startswith("video_audio"),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"do_sample_frames": False, "video_metadata": [METADATA]} if is_array else {},
        )

        assert segments(inputs["input_ids"][0], processor) == expected["segment_ids"]
        assert ("input_features" in inputs) == (expected["image_list"] == ["audio", "video"])
        assert ("pixel_values_videos" in inputs) == ("video" in expected["image_list"])
        assert ("pixel_values" in inputs) == ("image" in expected["image_list"])


@pytest.mark.parametrize("family", PROMPT_FAMILIES)
def test_a_sound_and_a_video_of_different_files_get_the_prompt_of_a_clip_with_sound(family, processor):
    separate = [{"type": "audio", "path": str(SAMPLE_CLIP)}, {"type": "video", "path": str(SAMPLE_CLIP)}]
    question = [{"type": "text", "text": "What is it?"}]
    options = {"chat_template": family, "tokenize": True, "return_dict": True, "return_tensors": "pt"}

    together = processor.apply_chat_template(
        [{"role": "user", "content": separate[1:] + question}], load_audio_from_video=True, **options
    )
    apart = processor.apply_chat_template([{"role": "user", "content": separate + question}], **options)

    assert torch.equal(together["input_ids"], apart["input_ids"])
    assert torch.equal(together["input_features"], apart["input_features"])


@pytest.mark.parametrize("family", PROMPT_FAMILIES)
def test_the_system_message_can_be_kept_with_sound(family, processor):
    messages = conversation("video_audio", "demo_system", 0)
    options = {"chat_template": family, "load_audio_from_video": True}

    assert DEMO_SYSTEM not in processor.apply_chat_template(messages, **options)
    assert DEMO_SYSTEM in processor.apply_chat_template(messages, keep_system_message=True, **options)
