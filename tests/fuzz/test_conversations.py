# SPDX-License-Identifier: Apache-2.0
"""Conversations of any form give the inputs that they should, or are refused on purpose."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoProcessor

import transformers_videollama  # noqa: F401

from ..helpers import SAMPLE_CLIP, TINY
from ..media_files import write_clip, write_sound
from .checks import TRIED, check, check_same, check_sounds, check_tensor, check_videos, is_ours, is_refusal, outcome
from .profiles import tries


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(TINY)


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> dict[str, str]:
    from PIL import Image

    folder = tmp_path_factory.mktemp("media")
    Image.radial_gradient("L").resize((20, 30)).save(folder / "ring.png")
    (folder / "broken.mp4").write_bytes(SAMPLE_CLIP.read_bytes()[:2000])
    return {
        "SOUNDING": str(write_clip(folder / "sounding.mp4", frames=6, size=(32, 48), audio_rate=16000, seconds=0.6)),
        "SILENT": str(write_clip(folder / "silent.mp4", frames=6, size=(32, 48))),
        "PICTURE": str(folder / "ring.png"),
        "SOUND": str(write_sound(folder / "tone.wav", rate=16000, seconds=0.5)),
        "BROKEN": str(folder / "broken.mp4"),
        "NOWHERE": str(folder / "nowhere.mp4"),
    }


TEXT = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        [
            "",
            "What?",
            "<VideoHere>",
            "a<AudioHere> <VideoHere>",
            "<ImageHere>",
            "###",
            "{{ 7 }}",
            "</s><s>",
            "[INST]",
            "\0",
        ]
    ),
)
KINDS = {"video": ["SOUNDING", "SILENT"], "image": ["PICTURE"], "audio": ["SOUND", "SOUNDING"]}
GOOD_ITEM = st.sampled_from(list(KINDS)).flatmap(
    lambda kind: st.fixed_dictionaries({"type": st.just(kind), "path": st.sampled_from(KINDS[kind])})
)
ARRAY_ITEM = st.sampled_from(
    [
        {"type": "video", "video": np.zeros((5, 20, 20, 3), np.uint8)},
        {"type": "image", "image": np.zeros((20, 20, 3), np.uint8)},
        {"type": "audio", "audio": np.zeros(8000, np.float32)},
        {"type": "audio", "audio": {"array": np.zeros(8000, np.float32), "sampling_rate": 8000}},
        {"type": "audio", "audio": np.zeros(8000, np.int16)},
        {"type": "video", "video": np.zeros((0, 20, 20, 3), np.uint8)},
    ]
)
ODD_ITEM = st.one_of(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["video", "image", "audio", "text", "smell", None])},
        optional={
            "path": st.sampled_from(["SOUNDING", "SILENT", "PICTURE", "SOUND", "BROKEN", "NOWHERE", "", 3]),
            "url": st.sampled_from(["NOWHERE", "data:video/mp4;base64,AAAA", "data:nonsense"]),
            "text": st.one_of(TEXT, st.none(), st.integers()),
        },
    ),
    st.fixed_dictionaries(
        {"type": st.just("video_url"), "video_url": st.sampled_from([{"url": "SILENT"}, "SILENT", {}, None])}
    ),
    st.fixed_dictionaries(
        {
            "type": st.just("input_audio"),
            "input_audio": st.sampled_from([{"data": "AAAA"}, {"data": "?"}, {}, None, "x"]),
        }
    ),
    st.sampled_from(["text", None, 3, {}]),
)
TEXT_ITEM = st.fixed_dictionaries({"type": st.just("text"), "text": TEXT})
CONTENT = st.one_of(
    TEXT,
    st.lists(st.one_of(TEXT_ITEM, GOOD_ITEM), max_size=5),
    st.lists(st.one_of(TEXT_ITEM, GOOD_ITEM, ARRAY_ITEM), max_size=4),
    st.lists(st.one_of(TEXT_ITEM, GOOD_ITEM, ODD_ITEM), max_size=4),
    st.sampled_from([None, 3, {}]),
)
ROLE = st.sampled_from([*["user", "assistant"] * 4, "system", "tool", "", None])
MESSAGE = st.one_of(
    *[st.fixed_dictionaries({"role": ROLE, "content": CONTENT})] * 5,
    st.fixed_dictionaries({}, optional={"role": ROLE, "content": CONTENT}),
    st.sampled_from(["hello", None, []]),
)
GOOD_CONVERSATION = st.lists(st.lists(st.one_of(TEXT_ITEM, GOOD_ITEM), max_size=4), min_size=1, max_size=3).map(
    lambda contents: [
        {"role": ("user", "assistant")[index % 2], "content": content} for index, content in enumerate(contents)
    ]
)
CONVERSATION = st.one_of(GOOD_CONVERSATION, st.lists(MESSAGE, max_size=4))
OPTIONS = st.fixed_dictionaries(
    {"load_audio_from_video": st.booleans(), "add_generation_prompt": st.booleans()},
    optional={"chat_template": st.sampled_from(["vicuna", "llama_2", "vicuna", "llama_2", None])},
)


def with_paths(value, media: dict[str, str]):
    """Names of files replaced by their paths."""
    if isinstance(value, dict):
        return {name: with_paths(each, media) for name, each in value.items()}
    if isinstance(value, list):
        return [with_paths(each, media) for each in value]
    return media.get(value, value) if isinstance(value, str) else value


def items_of(messages: list[dict], kind: str) -> list[dict]:
    contents = [message["content"] for message in messages if isinstance(message.get("content"), list)]
    return [item for content in contents for item in content if item["type"] in (kind, f"{kind}_url")]


@tries(ci=50, long=1000)
@given(conversation=st.one_of(CONVERSATION, CONVERSATION, st.lists(CONVERSATION, max_size=2)), options=OPTIONS)
def test_conversations(conversation, options, processor, media):
    messages = with_paths(conversation, media)

    def call():
        return processor.apply_chat_template(
            messages,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
            **options,
        )

    error = None
    try:
        inputs = call()
    except Exception as raised:
        error = raised
    TRIED["conversations", outcome(error)] += 1
    if error is not None:
        # What is in an array, the processors refuse in the library's way
        has_array = "array(" in repr(messages)
        if not (is_refusal(error) if has_array else is_ours(error)):
            raise error
        return
    verify(inputs, messages, options, processor, media)
    check_same(inputs, call())


def verify(inputs, messages, options, processor, media) -> None:
    """As many placeholders as items, whose tensors are of the right form."""
    batch = messages if messages and isinstance(messages[0], list) else [messages]
    everything = [message for conversation in batch for message in conversation]
    input_ids = inputs["input_ids"]
    check(
        input_ids.shape == inputs["attention_mask"].shape == (len(batch), input_ids.shape[1]), "shapes of the prompts"
    )
    check(
        int(input_ids.min()) >= 0 and int(input_ids.max()) <= processor.video_token_id, "ids outside of the vocabulary"
    )
    counts = {kind: len(items_of(everything, kind)) for kind in ("video", "image", "audio")}
    is_heard = options["load_audio_from_video"]
    heard = [item for item in items_of(everything, "video") if is_heard and item.get("path") == media["SOUNDING"]]
    expected = {
        processor.video_token_id: processor.num_video_query_tokens * counts["video"],
        processor.image_token_id: processor.num_video_query_tokens * counts["image"],
        processor.audio_token_id: processor.num_audio_query_tokens * (counts["audio"] + len(heard)),
    }
    for token_id, number in expected.items():
        check(int((input_ids == token_id).sum()) == number, f"placeholders {token_id}: not {number}")
    if counts["video"]:
        check_videos(inputs, (28, 28), processor.video_processor.num_frames)
        check(len(inputs["pixel_values_videos"]) == counts["video"], "videos")
    if counts["image"]:
        check_tensor(inputs["pixel_values"], (counts["image"], 3, 28, 28), "pixel_values")
    if counts["audio"] + len(heard):
        check_sounds(inputs, processor.feature_extractor.num_mel_bins, processor.feature_extractor.num_mel_frames)
        check(len(inputs["input_features"]) == counts["audio"] + len(heard), "sounds")
