# SPDX-License-Identifier: Apache-2.0
"""Text with pictures, videos and sounds, as paths, bytes, arrays: what the model is given, and what is refused."""

import base64
import logging
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import AutoProcessor

from transformers_videollama import (
    MediaNotFoundError,
    NoAudioError,
    PlaceholderError,
    VideoLlamaProcessor,
    processing_video_llama,
)
from transformers_videollama.exceptions import ConversationError

from .helpers import BUILT_IN, SAMPLE_CLIP, TINY
from .media_files import write_clip


OPTIONS = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}


@pytest.fixture
def silent_clip(tmp_path) -> Path:
    return write_clip(tmp_path / "silent.mp4", audio_rate=None)


@pytest.fixture
def warnings(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("transformers_videollama"), "propagate", True)
    return lambda text: [record.getMessage() for record in caplog.records if text in record.getMessage()]


def ask(*items: dict, question: str = "What is it?") -> list[dict]:
    return [{"role": "user", "content": [*items, {"type": "text", "text": question}]}]


def text_of(inputs, processor: VideoLlamaProcessor) -> str:
    return processor.tokenizer.decode(inputs["input_ids"][0])


def test_a_video_is_described_by_the_times_of_its_frames(processor):
    inputs = processor.apply_chat_template(ask({"type": "video", "path": str(SAMPLE_CLIP)}), **OPTIONS)

    expected = "contains 8 frames sampled at 0.0, 0.8, 1.5, 2.2, 3.0, 3.8, 4.5, 5.2 seconds."
    assert expected in text_of(inputs, processor)
    assert inputs["pixel_values_videos"].shape == (1, 8, 3, 28, 28)


def test_a_clip_with_sound_is_heard_before_it_is_seen(processor):
    inputs = processor.apply_chat_template(
        ask({"type": "video", "path": str(SAMPLE_CLIP)}), load_audio_from_video=True, **OPTIONS
    )
    ids = inputs["input_ids"][0].tolist()

    assert ids.count(processor.audio_token_id) == processor.num_audio_query_tokens
    assert ids.index(processor.audio_token_id) < ids.index(processor.video_token_id)
    assert inputs["input_features"].shape == (1, 8, 128, 204)


@pytest.mark.parametrize("form", ["path", "pathlib", "bytes", "file"])
def test_a_clip_may_be_given_in_any_form(processor, form):
    expected = processor.apply_chat_template(
        ask({"type": "video", "path": str(SAMPLE_CLIP)}), load_audio_from_video=True, **OPTIONS
    )
    with SAMPLE_CLIP.open("rb") as file:
        source = {"path": str(SAMPLE_CLIP), "pathlib": SAMPLE_CLIP, "bytes": SAMPLE_CLIP.read_bytes(), "file": file}[
            form
        ]
        inputs = processor.apply_chat_template(
            ask({"type": "video", "video": source}), load_audio_from_video=True, **OPTIONS
        )

    assert expected.keys() == inputs.keys()
    assert all(torch.equal(expected[key], inputs[key]) for key in expected)


def test_a_rendered_prompt_and_its_clip_give_the_same(processor):
    messages = ask({"type": "video", "path": str(SAMPLE_CLIP)})
    expected = processor.apply_chat_template(messages, load_audio_from_video=True, **OPTIONS)

    prompt = processor.apply_chat_template(messages, load_audio_from_video=True, add_generation_prompt=True)
    inputs = processor(text=prompt, videos=[SAMPLE_CLIP], load_audio_from_video=True, return_tensors="pt")

    assert all(torch.equal(expected[key], inputs[key]) for key in expected)


def test_a_conversation_is_not_changed_by_being_read(processor):
    messages = ask({"type": "video", "path": str(SAMPLE_CLIP)})
    processor.apply_chat_template(messages, load_audio_from_video=True, **OPTIONS)

    assert messages == ask({"type": "video", "path": str(SAMPLE_CLIP)})


def test_a_silent_clip_gets_the_prompt_without_sound_and_one_warning_with_its_name(processor, silent_clip, warnings):
    messages = ask({"type": "video", "path": str(silent_clip)})
    expected = processor.apply_chat_template(messages, **OPTIONS)

    inputs = processor.apply_chat_template(messages, load_audio_from_video=True, **OPTIONS)

    assert torch.equal(inputs["input_ids"], expected["input_ids"])
    assert "input_features" not in inputs
    assert warnings("silent.mp4") == [f"{silent_clip} has no audio track: the prompt is the one without sound."]


def test_a_batch_may_mix_clips_with_and_without_sound_pictures_and_text(processor, silent_clip):
    image = PIL.Image.new("RGB", (50, 40), "red")
    inputs = processor.apply_chat_template(
        [
            ask({"type": "video", "path": str(SAMPLE_CLIP)}),
            ask({"type": "video", "path": str(silent_clip)}, {"type": "image", "image": image}),
            ask(),
            ask({"type": "audio", "path": str(SAMPLE_CLIP)}),
        ],
        load_audio_from_video=True,
        processor_kwargs={"padding": True},
        **OPTIONS,
    )
    ids = inputs["input_ids"]

    assert [(row == processor.audio_token_id).sum().item() for row in ids] == [3, 0, 0, 3]
    assert [(row == processor.video_token_id).sum().item() for row in ids] == [6, 6, 0, 0]
    assert [(row == processor.image_token_id).sum().item() for row in ids] == [0, 6, 0, 0]
    assert len(inputs["pixel_values_videos"]) == 2
    assert len(inputs["input_features"]) == 2
    assert len(inputs["pixel_values"]) == 1
    assert (inputs["attention_mask"][:, -1] == 1).all()
    assert (inputs["attention_mask"][2, :5] == 0).all()


def test_sounds_come_in_the_order_of_the_prompts(processor):
    sound = np.sin(np.arange(32000) / 20).astype(np.float32)
    messages = ask({"type": "audio", "audio": sound}, {"type": "video", "path": str(SAMPLE_CLIP)})
    inputs = processor.apply_chat_template(messages, load_audio_from_video=True, **OPTIONS)
    alone = processor.apply_chat_template(ask({"type": "audio", "audio": sound}), **OPTIONS)

    assert len(inputs["input_features"]) == 2
    assert torch.equal(inputs["input_features"][:1], alone["input_features"])


def test_a_video_with_its_own_sound_is_not_given_another_one(processor):
    sound = np.sin(np.arange(32000) / 20).astype(np.float32)
    messages = ask({"type": "audio", "audio": sound}, {"type": "video", "path": str(SAMPLE_CLIP)})
    text = text_of(processor.apply_chat_template(messages, load_audio_from_video=True, **OPTIONS), processor)

    assert text.count("you imagine only based on the sound that") == 2
    assert text.count("based on what you have just heard.") == 1
    assert text.count("based on what you have just seen and heard.") == 1


@pytest.mark.parametrize("between", ["", " ", "\n"])
def test_a_sound_before_a_video_is_its_sound_however_they_are_set_apart(processor, between):
    sound = np.sin(np.arange(32000) / 20).astype(np.float32)
    prompts = [f"{processor.audio_token}{blank}{processor.video_token} What?" for blank in (" ", between)]
    first, second = (
        processor(text=prompt, audio=sound, videos=[SAMPLE_CLIP], sampling_rate=16000)["input_ids"]
        for prompt in prompts
    )

    assert first == second
    assert "seen and heard" in processor.tokenizer.decode(first[0])


def test_the_items_of_chat_servers_are_understood(processor):
    data = {"data": base64.b64encode(SAMPLE_CLIP.read_bytes()).decode(), "format": "mp4"}
    ours = ask({"type": "audio", "path": str(SAMPLE_CLIP)}, {"type": "video", "path": str(SAMPLE_CLIP)})
    theirs = ask(
        {"type": "input_audio", "input_audio": data},
        {"type": "video_url", "video_url": {"url": SAMPLE_CLIP.as_uri()}},
    )
    expected, inputs = (processor.apply_chat_template(messages, **OPTIONS) for messages in (ours, theirs))

    assert all(torch.equal(expected[key], inputs[key]) for key in expected)


def test_a_sound_may_be_what_datasets_decodes(processor):
    wave = np.sin(np.arange(44100 * 3) / 20)
    inputs = processor.apply_chat_template(
        ask({"type": "audio", "audio": {"array": wave, "sampling_rate": 44100}}), **OPTIONS
    )
    as_list = processor.apply_chat_template(ask({"type": "audio", "audio": wave[::2].tolist()}), **OPTIONS)

    assert inputs["input_features"].shape == as_list["input_features"].shape == (1, 8, 128, 204)


def test_a_sound_without_its_rate_is_warned_of(processor, warnings):
    wave = np.sin(np.arange(32000) / 20).astype(np.float32)
    processing_video_llama.logger.warning_once.cache_clear()
    prompt = f"{processor.audio_token} What?"

    processor(text=prompt, audio=wave, sampling_rate=16000)
    processor(text=prompt, audio=[str(SAMPLE_CLIP)])
    processor.apply_chat_template(ask({"type": "audio", "audio": {"array": wave, "sampling_rate": 8000}}), **OPTIONS)
    assert not warnings("without its rate")

    processor(text=prompt, audio=wave)
    processor.apply_chat_template(ask({"type": "audio", "audio": wave}), **OPTIONS)
    assert len(warnings("without its rate")) == 1


def test_frames_given_as_an_array_have_the_times_that_are_given_with_them(processor):
    frames = np.zeros((4, 30, 40, 3), dtype=np.uint8)
    metadata = {"total_num_frames": 4, "fps": 2.0, "frames_indices": [0, 1, 2, 3]}
    inputs = processor.apply_chat_template(
        ask({"type": "video", "video": frames}), processor_kwargs={"video_metadata": [metadata]}, **OPTIONS
    )

    assert "contains 4 frames sampled at 0.0, 0.5, 1.0, 1.5 seconds." in text_of(inputs, processor)


def test_the_number_of_frames_may_be_asked_for(processor):
    inputs = processor.apply_chat_template(
        ask({"type": "video", "path": str(SAMPLE_CLIP)}), processor_kwargs={"num_frames": 3}, **OPTIONS
    )

    assert inputs["pixel_values_videos"].shape[1] == 3
    assert "contains 3 frames" in text_of(inputs, processor)


@pytest.mark.parametrize("folder", [TINY, BUILT_IN], ids=["tiny", "built-in"])
def test_saved_processors_have_the_templates_of_the_package(folder):
    processor = AutoProcessor.from_pretrained(folder)

    assert processor.chat_template == processing_video_llama.load_chat_templates("vicuna")


def test_a_saved_processor_is_the_same_after_loading(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    messages = ask({"type": "video", "path": str(SAMPLE_CLIP)})

    expected = processor.apply_chat_template(messages, load_audio_from_video=True, **OPTIONS)
    inputs = loaded.apply_chat_template(messages, load_audio_from_video=True, **OPTIONS)

    assert all(torch.equal(expected[key], inputs[key]) for key in expected)
    assert loaded.chat_template == processor.chat_template


def test_the_end_of_a_vicuna_answer_is_not_part_of_it(processor):
    ids = processor.tokenizer("a dog###", add_special_tokens=False)["input_ids"]

    assert processor.decode(ids, skip_special_tokens=True) == "a dog"
    assert processor.batch_decode([ids, ids], skip_special_tokens=True) == ["a dog", "a dog"]
    assert processor.post_process_image_text_to_text([ids])[0] == "a dog"
    assert processor.decode(ids) == "a dog###"


def test_fields_that_a_row_of_a_dataset_leaves_empty_are_none(processor):
    picture = PIL.Image.new("RGB", (8, 8), "red")
    empty = dict.fromkeys(("text", "path", "url", "image", "video", "audio", "start", "end"))
    items = [{"type": "image", "image": picture}, {"type": "video", "path": str(SAMPLE_CLIP)}]
    rows = [{**empty, **item} for item in items]

    expected = processor.apply_chat_template(ask(*items), **OPTIONS)
    inputs = processor.apply_chat_template(ask(*rows), **OPTIONS)

    assert all(
        torch.equal(inputs[name], expected[name]) for name in ("input_ids", "pixel_values", "pixel_values_videos")
    )


class TestWrongInputs:
    def test_a_missing_file(self, processor):
        with pytest.raises(MediaNotFoundError, match="nowhere.mp4 does not exist"):
            processor.apply_chat_template(ask({"type": "video", "path": "nowhere.mp4"}), **OPTIONS)

    def test_sound_of_a_file_that_has_none(self, processor, silent_clip):
        with pytest.raises(NoAudioError, match="silent.mp4 has no audio track"):
            processor.apply_chat_template(ask({"type": "audio", "path": str(silent_clip)}), **OPTIONS)

    def test_more_placeholders_than_videos(self, processor):
        text = f"{processor.video_token} and {processor.video_token}?"
        with pytest.raises(PlaceholderError, match="2 <VideoHere> placeholders, but 1 video inputs"):
            processor(text=text, videos=[SAMPLE_CLIP])

    def test_a_placeholder_that_a_user_writes(self, processor):
        messages = ask({"type": "video", "path": str(SAMPLE_CLIP)}, question="What is <VideoHere>?")
        with pytest.raises(PlaceholderError, match="let apply_chat_template write them"):
            processor.apply_chat_template(messages, **OPTIONS)

    def test_a_prompt_longer_than_the_context(self, processor):
        messages = ask({"type": "video", "path": str(SAMPLE_CLIP)}, question="word " * 3000)
        with pytest.raises(ValueError, match=r"Prompt 0 has \d+ tokens, but the context of the model is 2048"):
            processor.apply_chat_template(messages, **OPTIONS)

    def test_truncation_through_placeholders(self, processor):
        with pytest.raises(ValueError, match="Mismatch in `video` token count"):
            processor(text=processor.video_token, videos=[SAMPLE_CLIP], truncation=True, max_length=8)

    def test_truncation_of_the_text_behind_them_is_allowed(self, processor):
        text = f"{processor.video_token} {'word ' * 300}"
        inputs = processor(text=text, videos=[SAMPLE_CLIP], truncation=True, max_length=100)

        assert len(inputs["input_ids"][0]) == 100

    def test_sound_of_frames_given_as_an_array_is_said_to_be_missing(self, processor, warnings):
        frames = np.zeros((4, 30, 40, 3), dtype=np.uint8)
        processor.apply_chat_template(ask({"type": "video", "video": frames}), load_audio_from_video=True, **OPTIONS)

        assert len(warnings("decoded frames, which have no sound")) == 1

    def test_a_role_that_does_not_exist(self, processor):
        with pytest.raises(Exception, match="The roles are 'system', 'user' and 'assistant', got 'tool'"):
            processor.apply_chat_template([{"role": "tool", "content": "x"}])

    @pytest.mark.parametrize("kind", ["image", "video", "audio"])
    def test_an_item_that_names_nothing(self, processor, kind):
        with pytest.raises(ValueError, match=f"names no {kind}: add its 'path'"):
            processor.apply_chat_template(ask({"type": kind}), **OPTIONS)

    @pytest.mark.parametrize("kind", ["audios", "video_file"])
    def test_a_type_of_content_that_does_not_exist(self, processor, kind):
        with pytest.raises(Exception, match=f"'text', 'image', 'video' and 'audio', got '{kind}'"):
            processor.apply_chat_template(ask({"type": kind, "path": str(SAMPLE_CLIP)}), **OPTIONS)

    @pytest.mark.parametrize("conversation", [[], {"role": "user", "content": "Hello"}, [[]]])
    def test_what_is_no_conversation(self, processor, conversation):
        with pytest.raises(ValueError, match="A conversation is a list of messages"):
            processor.apply_chat_template(conversation, **OPTIONS)

    def test_no_tokenizer(self):
        with pytest.raises(ValueError, match="needs the tokenizer"):
            VideoLlamaProcessor()

    def test_nothing_at_all(self, processor):
        with pytest.raises(ValueError, match="Nothing was given"):
            processor()


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        ([], "A conversation is a list of messages"),
        (["hello"], "A message has a role, 'user', 'assistant' or 'system', and a content, .*, got 'hello'"),
        ([{"role": "user"}], "A message has a role"),
        ([{"role": "user", "content": 3}], "A message has a role"),
        ([{"role": "tool", "content": "hello"}], "The roles are 'system', 'user' and 'assistant', got 'tool'"),
        ([{"role": "user", "content": ["hello"]}], "An item of a message is .*, got 'hello'"),
        ([{"role": "user", "content": [{}]}], "An item of a message is"),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], "An item of a message is"),
        (
            [{"role": "user", "content": [{"type": "smell", "path": "rose"}]}],
            "The types of content are .*, got 'smell'",
        ),
        ([{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}], "a sound file in base64"),
        ([{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "A"}}]}], "in base64"),
        ([{"role": "user", "content": [{"type": "video"}]}], "names no video"),
    ],
)
def test_what_is_no_conversation_is_refused(conversation, message, processor):
    with pytest.raises(ConversationError, match=message):
        processor.apply_chat_template(conversation, tokenize=True, return_dict=True)
