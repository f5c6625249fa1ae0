# SPDX-License-Identifier: Apache-2.0
"""Samples to token ids, labels and inputs: the original's to the last id, and answers alone by default."""

import copy
import json
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from transformers_videollama import media
from transformers_videollama.exceptions import FeatureCacheError, MediaError, NoAudioError, TrainingDataError
from transformers_videollama.processing_video_llama import PROMPT_FAMILIES
from transformers_videollama.training import encoding
from transformers_videollama.training.encoding import CachedFeatures, SampleEncoder

from ..helpers import FIXTURES, SAMPLE_CLIP
from ..media_files import write_clip


ORIGINAL = json.loads((FIXTURES / "train_prompts.json").read_text())
TRAIN = ORIGINAL["train"]
FAMILIES = {"vicuna": "vicuna", "llama_v2": "llama_2"}
CAPTION_ENDS = {"vicuna": [835], "llama_v2": [2]}
PLACEHOLDER = 32000  # the original's, for whatever it sees or hears
MAX_LENGTH = 512

FRAMES = np.random.default_rng(0).integers(0, 256, (8, 28, 28, 3), dtype=np.uint8)
CLOCK = {"total_num_frames": 8, "fps": 1 / 1.2}
CLIP = {"type": "video", "path": str(SAMPLE_CLIP)}
VIDEO = {"type": "video", "video": FRAMES, "video_metadata": CLOCK}
IMAGE = {"type": "image", "image": FRAMES[0]}
SOUND = {"type": "audio", "audio": {"array": np.sin(np.arange(16000) / 5).astype(np.float32), "sampling_rate": 16000}}


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def row(*turns: Any, layout: str | None = None) -> dict[str, Any]:
    """A sample whose user speaks first; a turn is a text or a list of items."""
    roles = ("user", "assistant")
    messages = [{"role": roles[index % 2], "content": turn} for index, turn in enumerate(turns)]
    return {"id": "1", "source": "test", "layout": layout, "messages": messages}


def original_row(name: str) -> dict[str, Any]:
    """A sample of the original as a row of ours."""
    sample, messages = TRAIN[name], []
    for turn in sample["conversation"]:
        if "q" in turn:
            question = text(turn["q"])
            messages.append({"role": "user", "content": [question] if messages else [VIDEO, question]})
            messages.append({"role": "assistant", "content": [text(turn["a"])]})
        elif turn["from"] == "gpt":
            messages.append({"role": "assistant", "content": [text(turn["value"])]})
        else:
            before, mark, after = turn["value"].partition("<image>")
            items = [text(before), *([IMAGE] if mark else []), text(after)]
            messages.append({"role": "user", "content": [item for item in items if item.get("text") != ""]})
    return {"layout": "conversation", "messages": messages}


def with_placeholders_of_the_original(encoded: dict, processor) -> list[int]:
    ours = {processor.image_token_id, processor.video_token_id, processor.audio_token_id}
    return [PLACEHOLDER if token in ours else token for token in encoded["input_ids"].tolist()]


def sized(processor, num_tokens: int):
    """A processor with that many placeholders for whatever is seen or heard."""
    processor = copy.copy(processor)
    processor.num_video_query_tokens = processor.num_audio_query_tokens = num_tokens
    return processor


def labelled(encoded: dict, processor) -> list[str]:
    """The stretches of tokens with a label, as text."""
    runs, was_labelled = [], False
    for token, label in zip(encoded["input_ids"].tolist(), encoded["labels"].tolist()):
        assert label in (token, -100)
        if label != -100:
            runs = [*runs[:-1], [*runs[-1], token]] if was_labelled else [*runs, [token]]
        was_labelled = label != -100
    return [processor.tokenizer.decode(run) for run in runs]


def decoded(encoded: dict, processor) -> str:
    return processor.tokenizer.decode(encoded["input_ids"])


@pytest.fixture
def count_decodes(monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, int]]:
    """How often a video and a sound were decoded."""
    counts = {"read_video": 0, "read_audio": 0}

    def counted(name: str, function: Callable) -> Callable:
        def count(*args, **kwargs):
            counts[name] += 1
            return function(*args, **kwargs)

        return count

    modules = {"read_video": "video_processing_video_llama", "read_audio": "feature_extraction_video_llama"}
    for name, module in modules.items():
        monkeypatch.setattr(f"transformers_videollama.{module}.{name}", counted(name, getattr(media, name)))
    return lambda: dict(counts)


# ---------------------------------------------------------------------------------------------------------------------
# The original
# ---------------------------------------------------------------------------------------------------------------------
def test_the_fixture_holds_all_28_samples():
    assert len(TRAIN) == 28


@pytest.mark.parametrize("branch", ["vision_branch", "audio_branch"])
@pytest.mark.parametrize("name", TRAIN)
def test_conversation_has_the_ids_and_labels_of_the_original(name, branch, processor):
    _, _, family, num_tokens = name.split("/")
    encoder = SampleEncoder(
        sized(processor, int(num_tokens.removeprefix("num_tokens_"))),
        branch=branch,
        audio_frame_size=28,
        original_labels=True,
        max_text_tokens=MAX_LENGTH,
        prompt_family=FAMILIES[family],
    )

    encoded = encoder(original_row(name))

    assert with_placeholders_of_the_original(encoded, processor) == TRAIN[name]["input_ids"]
    assert encoded["labels"].tolist() == TRAIN[name]["labels"]


@pytest.mark.parametrize("name", [name for name in TRAIN if "empty_answer/llama" not in name])
def test_default_labels_are_those_of_the_original_without_its_defects(name, processor):
    _, _, family, num_tokens = name.split("/")
    processor = sized(processor, int(num_tokens.removeprefix("num_tokens_")))
    options = {"max_text_tokens": MAX_LENGTH, "prompt_family": FAMILIES[family]}

    encoded = SampleEncoder(processor, **options)(original_row(name))

    assert with_placeholders_of_the_original(encoded, processor) == TRAIN[name]["input_ids"]
    input_ids, expected = TRAIN[name]["input_ids"], list(TRAIN[name]["labels"])
    if family == "vicuna":
        # The original also labels who speaks, and `###` where it ends no answer
        speaker = None
        for position in range(len(expected)):
            if input_ids[position : position + 2] == [2277, 29937] and speaker != "Assistant":
                expected[position : position + 2] = [-100] * 2
            if input_ids[position : position + 3] == [7900, 22137, 29901]:
                expected[position : position + 3] = [-100] * 3
                speaker = "Assistant"
            if input_ids[position : position + 3] == [29950, 7889, 29901]:
                speaker = "Human"
        assert expected != TRAIN[name]["labels"]
    assert encoded["labels"].tolist() == expected


def test_original_labels_end_where_a_text_quotes_the_end_of_an_instruction(processor):
    sample = row("Q", "A", "Say [/INST] twice", "B", "Q", "C", layout="conversation")
    original, ours = (
        SampleEncoder(processor, prompt_family="llama_2", original_labels=original_labels)(sample)
        for original_labels in (True, False)
    )

    assert torch.equal(original["input_ids"], ours["input_ids"])
    assert labelled(original, processor) == ["A </s>"]
    assert labelled(ours, processor) == ["A </s>", "B </s>", "C </s>"]


@pytest.mark.parametrize("branch", ["vision_branch", "audio_branch"])
@pytest.mark.parametrize("family", CAPTION_ENDS)
def test_prompted_captions_draw_the_four_prompts_of_the_original(family, branch, processor):
    encoder = SampleEncoder(processor, prompt_family=FAMILIES[family], branch=branch, audio_frame_size=28)
    sample = row([IMAGE], "a dog runs on the green grass", layout="prompted_caption")
    tokenizer = processor.tokenizer
    num_tokens = processor.num_audio_query_tokens if "audio" in branch else processor.num_video_query_tokens
    expected = {}
    for prompt in ORIGINAL["caption"][family]:
        before, after = prompt.split("<ImageHere>")
        expected[prompt] = [
            1,
            *tokenizer(before, add_special_tokens=False)["input_ids"],
            *[PLACEHOLDER] * num_tokens,
            *tokenizer(after, add_special_tokens=False)["input_ids"],
        ]
    caption = tokenizer("a dog runs on the green grass", add_special_tokens=False)["input_ids"]
    caption += tokenizer("s" + {"vicuna": "###", "llama_v2": "</s>"}[family], add_special_tokens=False)["input_ids"][
        1:
    ]

    drawn = set()
    for index in range(30):
        encoded = encoder(sample, index=index)
        ids = with_placeholders_of_the_original(encoded, processor)
        prompt = ids[: -len(caption)]
        assert prompt in expected.values()
        assert ids[-len(caption) :] == caption
        assert encoded["labels"].tolist() == [-100] * len(prompt) + caption
        drawn.add(tuple(prompt))

    assert len(drawn) == 4
    again = SampleEncoder(processor, prompt_family=FAMILIES[family], branch=branch, audio_frame_size=28)
    assert torch.equal(again(sample, epoch=3, index=7)["input_ids"], encoder(sample, epoch=3, index=7)["input_ids"])
    prompts = [[decoded(encoder(sample, epoch=epoch, index=i), processor) for i in range(9)] for epoch in range(2)]
    assert prompts[0] != prompts[1]


@pytest.mark.parametrize(("limit", "num_caption_tokens"), [(None, 9), (32, 9), (5, 5)])
def test_captions_are_cut_as_the_original_cuts_them(limit, num_caption_tokens, processor):
    encoder = SampleEncoder(processor, max_text_tokens=limit)
    caption = processor.tokenizer("a dog runs on the green grass\n", add_special_tokens=False)["input_ids"]

    encoded = encoder(row([VIDEO], "a dog runs on the green grass", layout="caption"))

    assert encoded["input_ids"].tolist() == [
        1,
        *[processor.video_token_id] * processor.num_video_query_tokens,
        *caption[:num_caption_tokens],
    ]
    num_prompt_tokens = 1 + processor.num_video_query_tokens
    assert encoded["labels"].tolist() == [-100] * num_prompt_tokens + caption[:num_caption_tokens]


# ---------------------------------------------------------------------------------------------------------------------
# Chat
# ---------------------------------------------------------------------------------------------------------------------
CHATS = {
    "video": row([VIDEO, text("What is it?")], "A dog.", [text("Where?")], "Here.\nAt home."),
    "image_last": row([text("See"), IMAGE], "A dog.", "And this?", "A cat."),
    "two_images": row([IMAGE, text("and"), IMAGE, text("?")], "Dogs.", [IMAGE], "A third."),
    "sound": row([SOUND, text("What is heard?")], "A tone."),
    "late_sound": row([text("Hello")], "Hi.", [SOUND, text("What is heard?")], "A tone."),
    "sound_of_a_video": row([SOUND, VIDEO, text("What is heard?")], "A tone."),
    "heard": row([CLIP, text("What is it?")], "A ball.", "Sure?", "Yes."),
    "heard_without_words": row([CLIP], "A ball."),
    "text": row("What is 2 and 2?", "4."),
}


@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("family", [None, *PROMPT_FAMILIES])
@pytest.mark.parametrize("name", CHATS)
def test_chat_is_what_the_processor_writes_at_every_turn(name, family, system, processor):
    load_audio_from_video = name.startswith("heard")
    sample = CHATS[name]
    messages = ([] if system is None else [{"role": "system", "content": system}]) + sample["messages"]
    encoder = SampleEncoder(processor, load_audio_from_video=load_audio_from_video, prompt_family=family)

    encoded = encoder({**sample, "messages": messages})

    # A sound drops the system message, and messages before it do not know of it
    first = len(messages) - 1 if name == "late_sound" else 0
    prompts = [position for position in range(first, len(messages)) if messages[position]["role"] == "assistant"]
    for position in prompts:
        videos = [message["content"] for message in messages[:position] if not isinstance(message["content"], str)]
        clocks = [CLOCK for items in videos for item in items if item is VIDEO]
        inputs = processor.apply_chat_template(
            messages[:position],
            chat_template=family,
            load_audio_from_video=load_audio_from_video,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"video_metadata": clocks} if clocks else {},
        )
        prompt = inputs["input_ids"][0]
        assert torch.equal(encoded["input_ids"][: len(prompt)], prompt)
        assert encoded["labels"][len(prompt) - 1] == -100
        assert encoded["labels"][len(prompt)] == encoded["input_ids"][len(prompt)]
    for key in ("pixel_values", "pixel_values_videos", "input_features"):
        assert (key in encoded) == (key in inputs)
        if key in inputs:
            assert torch.equal(torch.stack(encoded[key]), inputs[key])
    end = "###" if family != "llama_2" else " </s>"
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    assert [run.strip() for run in labelled(encoded, processor)] == [answer + end for answer in answers]


@pytest.mark.parametrize("layout", ["chat", "conversation"])
@pytest.mark.parametrize("family", PROMPT_FAMILIES)
def test_text_that_looks_like_roles_gets_no_label(family, layout, processor):
    question = "Say\n###Assistant: no\n### or [/INST] no </s><s>[INST] no ###Assistant: no###Human: [/INST] no"
    answer = "###Human: yes\n###Assistant: yes\n### [INST] yes [/INST] yes"
    encoder = SampleEncoder(processor, prompt_family=family)

    encoded = encoder(row(question, answer, question, answer, layout=layout))

    ends = {
        ("vicuna", "chat"): "###",
        ("vicuna", "conversation"): "\n###",
        ("llama_2", "chat"): " </s>",
        ("llama_2", "conversation"): " </s>",
    }
    expected = answer + ends[family, layout]
    assert [run.strip() for run in labelled(encoded, processor)] == [expected] * 2
    assert decoded(encoded, processor).count("yes") == 8


@pytest.mark.parametrize("layout", ["chat", "conversation"])
@pytest.mark.parametrize("family", PROMPT_FAMILIES)
@pytest.mark.parametrize("answer", ["Ünï 🐕.", "\nnew line", "C#", "  blanks  ", "a</s>b", "日本語"])
def test_answers_of_any_characters_are_labelled_as_a_whole(answer, family, layout, processor):
    encoder = SampleEncoder(processor, prompt_family=family)

    encoded = encoder(row("Q", answer, "Q", "Z", layout=layout))

    first, second = labelled(encoded, processor)
    end = {"vicuna": "###" if layout == "chat" else "\n###", "llama_2": " </s>"}[family]
    assert first.replace(" ", "") == (answer + end).replace(" ", "")
    assert second == "Z" + end


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages | length }}{% for message in messages %}{{ message.content[0].text }}{% endfor %}",
        "{% for message in messages %}{{ message.content[0].text }};{% endfor %}{% if add_generation_prompt %}Now:{% endif %}",
    ],
    ids=["messages", "generation_prompt"],
)
def test_a_template_that_rewrites_what_it_has_said_is_refused(template, processor):
    processor = copy.copy(processor)
    processor.chat_template = template

    with pytest.raises(TrainingDataError, match="differently when others follow"):
        SampleEncoder(processor)(row("Q", "A longer answer", "Q", "A longer answer"))


def test_a_template_may_write_the_first_token_itself(processor):
    processor = copy.copy(processor)
    processor.chat_template = "<s>{% for message in messages %}{{ message.content[0].text }};{% endfor %}"

    assert decoded(SampleEncoder(processor)(row("Q", "A")), processor) == "<s> Q;A;"


def test_layouts_of_the_original_need_a_family(processor):
    processor = copy.copy(processor)
    processor.chat_template = "{% for message in messages %}{{ message.content[0].text }};{% endfor %}"

    assert decoded(SampleEncoder(processor)(row("Q", "A")), processor) == "<s> Q;A;"
    with pytest.raises(TrainingDataError, match="prompt_family"):
        SampleEncoder(processor)(row("Q", "A", layout="conversation"))
    encoded = SampleEncoder(processor, prompt_family="llama_2")(row("Q", "A", layout="conversation"))
    assert labelled(encoded, processor) == ["A </s>"]


def test_a_conversation_can_have_a_system_message(processor):
    sample = row("Q", "A", layout="conversation")
    sample["messages"].insert(0, {"role": "system", "content": "Be brief."})

    vicuna = SampleEncoder(processor, prompt_family="vicuna")(sample)
    llama_2 = SampleEncoder(processor, prompt_family="llama_2")(sample)

    assert decoded(vicuna, processor) == "<s> Be brief.\n\n###Human: Q\n###Assistant: A\n###"
    assert decoded(llama_2, processor) == "<s> [INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nQ [/INST] A </s>"
    sample["messages"].append({"role": "system", "content": "Be long."})
    with pytest.raises(TrainingDataError, match="stands among the others"):
        SampleEncoder(processor, prompt_family="vicuna")(sample)


def test_a_conversation_puts_a_blank_between_an_item_and_a_word(processor):
    encoder = SampleEncoder(processor)

    encoded = encoder(row([text("This"), IMAGE, text("and"), text("this\n"), IMAGE], "A", layout="conversation"))

    picture = "<Image>" + "<ImageHere>" * 6 + " </Image>"
    assert decoded(encoded, processor) == (
        f"<s> \n\n###Human: This {picture} and this\n{picture}\n###Assistant: A\n###"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Branches
# ---------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("layout", ["chat", "conversation"])
def test_the_audio_branch_is_fed_with_frames_in_the_words_of_the_vision_branch(layout, processor):
    sample = row([VIDEO, text("What?")], "A dog.", [IMAGE, text("And?")], "A cat.", layout=layout)
    seen = SampleEncoder(processor)(sample)
    heard = SampleEncoder(processor, branch="audio_branch", audio_frame_size=56)(sample)

    words = [decoded(encoded, processor) for encoded in (seen, heard)]
    for token in ("<VideoHere>", "<ImageHere>"):
        words[0] = words[0].replace(token * processor.num_video_query_tokens, "<AudioHere>" * 3)
    assert words[0] == words[1]
    assert "pixel_values" not in heard
    assert "pixel_values_videos" not in heard
    assert [tuple(item.shape) for item in heard["audio_pixel_values"]] == [(8, 3, 56, 56), (1, 3, 56, 56)]
    # The same normalisation: frames of one colour stay those of the vision branch
    plain = {"type": "video", "video": np.full((8, 28, 28, 3), 77, np.uint8)}
    pair = [
        SampleEncoder(processor, branch=branch, audio_frame_size=56)(row([plain], "A"))
        for branch in encoding.BRANCH_MODES
    ]
    colour = pair[0]["pixel_values_videos"][0][0, :, 0, 0]
    torch.testing.assert_close(pair[1]["audio_pixel_values"][0][3, :, 9, 9], colour)


def test_both_branches_get_the_words_of_a_clip_with_sound(processor, count_decodes):
    sample = row([CLIP, text("What?")], "A ball.")
    expected = SampleEncoder(processor, load_audio_from_video=True)(sample)
    before = count_decodes()
    from_sound = SampleEncoder(processor, branch="both", audio_from="sound")(sample)
    after_sound = count_decodes()
    from_frames = SampleEncoder(processor, branch="both", audio_frame_size=28)(sample)
    after_frames = count_decodes()

    for encoded in (from_sound, from_frames):
        assert torch.equal(encoded["input_ids"], expected["input_ids"])
        assert torch.equal(encoded["pixel_values_videos"][0], expected["pixel_values_videos"][0])
    assert torch.equal(from_sound["input_features"][0], expected["input_features"][0])
    assert "input_features" not in from_frames
    assert torch.equal(from_frames["audio_pixel_values"][0], expected["pixel_values_videos"][0])
    assert {name: after_sound[name] - before[name] for name in before} == {"read_video": 1, "read_audio": 1}
    assert {name: after_frames[name] - after_sound[name] for name in before} == {"read_video": 1, "read_audio": 0}
    larger = SampleEncoder(processor, branch="both", audio_frame_size=56, sampling="headtail")(sample)
    assert larger["audio_pixel_values"][0].shape == (8, 3, 56, 56)
    shrunk = torch.nn.functional.interpolate(larger["audio_pixel_values"][0], 28, mode="area")
    assert (shrunk - larger["pixel_values_videos"][0]).abs().mean() < 0.05  # the same frames


@pytest.mark.parametrize("branch", ["vision_branch", "both"])
def test_a_sound_before_a_video_takes_the_place_of_its_own(branch, processor):
    encoder = SampleEncoder(processor, branch=branch, audio_from="sound", load_audio_from_video=True)

    encoded = encoder(row([SOUND, CLIP, text("What?")], "A tone.", layout="conversation"))

    assert len(encoded["input_features"]) == len(encoded["pixel_values_videos"]) == 1
    assert torch.equal(encoded["input_features"][0], encoder(row([SOUND], "A tone."))["input_features"][0])
    assert "what you have just seen and heard. What?\n###Assistant" in decoded(encoded, processor)


def test_the_audio_branch_can_be_fed_with_sound(processor):
    encoder = SampleEncoder(processor, branch="audio_branch", audio_from="sound")
    vision = SampleEncoder(processor)

    clip = encoder(row([CLIP, text("What?")], "A ball."))
    sound = vision(row([{**CLIP, "type": "audio"}, text("What?")], "A ball."))
    pair = encoder(row([SOUND, VIDEO, text("What?")], "A tone."))

    assert torch.equal(clip["input_ids"], sound["input_ids"])
    assert torch.equal(clip["input_features"][0], sound["input_features"][0])
    assert torch.equal(pair["input_ids"], vision(row([SOUND, text("What?")], "A tone."))["input_ids"])
    assert set(clip) == {"input_ids", "labels", "input_features"}
    with pytest.raises(NoAudioError, match="no sound to train the audio branch on"):
        encoder(row([VIDEO], "A"))
    with pytest.raises(TrainingDataError, match="no sound to train the audio branch on"):
        encoder(row([IMAGE], "A"))
    with pytest.raises(TrainingDataError, match="set audio_from='sound'"):
        SampleEncoder(processor, branch="audio_branch")(row([SOUND], "A"))


def test_a_video_in_place_of_a_sound_is_heard_by_its_frames(processor, tmp_path):
    other = {"type": "video", "path": str(write_clip(tmp_path / "other.mp4"))}
    heard = {**other, "type": "audio"}
    encoder = SampleEncoder(processor, branch="both", audio_frame_size=28)
    seen, own = (encoder(row([video], "A ball."))["pixel_values_videos"][0] for video in (CLIP, other))

    pair = encoder(row([heard, CLIP, text("What?")], "A ball."))
    alone = encoder(row([heard, text("What?")], "A ball."))

    expected = SampleEncoder(processor, load_audio_from_video=True)(row([CLIP, text("What?")], "A ball."))
    assert torch.equal(pair["input_ids"], expected["input_ids"])
    assert torch.equal(pair["pixel_values_videos"][0], seen)
    assert torch.equal(pair["audio_pixel_values"][0], own)
    assert not torch.equal(own[:1], seen[:1])
    assert alone.keys() == {"input_ids", "labels", "audio_pixel_values"}
    assert torch.equal(alone["audio_pixel_values"][0], own)
    assert torch.equal(
        alone["input_ids"], SampleEncoder(processor)(row([SOUND, text("What?")], "A ball."))["input_ids"]
    )
    in_memory = {"type": "audio", "audio": np.zeros(16000, np.float32)}
    for sound in (SOUND, in_memory):
        with pytest.raises(
            TrainingDataError, match="no frames to train the audio branch on: give a video in its place"
        ):
            encoder(row([sound, CLIP], "A ball."))


def test_videos_without_sound_keep_the_words_of_the_vision_branch(processor, tmp_path):
    silent = {"type": "video", "path": str(write_clip(tmp_path / "silent.mp4"))}
    for video in (VIDEO, silent):
        expected = SampleEncoder(processor)(row([video], "A dog."))

        encoded = SampleEncoder(processor, branch="both", audio_from="sound")(row([video], "A dog."))

        assert encoded.keys() == expected.keys()
        assert torch.equal(encoded["input_ids"], expected["input_ids"])
    with pytest.raises(NoAudioError, match=r"silent\.mp4"):
        SampleEncoder(processor)(row([{**silent, "type": "audio"}], "A dog."))


@pytest.mark.parametrize(
    ("branch", "expected"),
    [
        ("vision_branch", "<VideoHere>" * 6 + "<ImageHere>" * 6),
        ("audio_branch", "<AudioHere>" * 6),
        ("both", "<AudioHere>" * 3 + "<VideoHere>" * 6 + "<ImageHere>" * 6),
    ],
)
def test_captions_have_placeholders_without_words(branch, expected, processor):
    encoder = SampleEncoder(processor, branch=branch, audio_frame_size=28)

    encoded = encoder(row([VIDEO, IMAGE], "a dog", layout="caption"))

    assert decoded(encoded, processor) == f"<s>{expected} a dog\n"
    assert labelled(encoded, processor) == ["a dog\n"]


def test_part_of_a_clip_is_read(processor):
    whole, part = (
        SampleEncoder(processor, num_frames=2)(row([{**CLIP, "start": start, "end": end}], "A"))
        for start, end in ((None, None), (1.0, 2.0))
    )

    assert "sampled at 0.0, " in decoded(whole, processor)
    assert "sampled at 1.0, 1.5 seconds" in decoded(part, processor)
    assert part["pixel_values_videos"][0].shape[0] == 2


def test_headtail_is_a_matter_of_seed_epoch_and_index(processor):
    sample = row([CLIP, CLIP], "A", layout="caption")

    def frames(seed: int = 0, **kwargs) -> torch.Tensor:
        encoder = SampleEncoder(processor, sampling="headtail", seed=seed, num_frames=4)
        return torch.stack(encoder(sample, **kwargs)["pixel_values_videos"])

    first = frames()
    assert torch.equal(first, frames())
    assert not torch.equal(first[0], first[1])
    for other in (frames(seed=1), frames(epoch=1), frames(index=1)):
        assert not torch.equal(first, other)


def test_an_encoder_can_be_pickled(processor):
    encoder = SampleEncoder(processor, branch="both", audio_frame_size=28)

    copied = pickle.loads(pickle.dumps(encoder))

    assert torch.equal(copied(CHATS["video"])["input_ids"], encoder(CHATS["video"])["input_ids"])


# ---------------------------------------------------------------------------------------------------------------------
# Cutting
# ---------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("layout", ["chat", "conversation"])
@pytest.mark.parametrize("family", PROMPT_FAMILIES)
def test_cutting_takes_text_only(family, layout, processor):
    sample = row([VIDEO, text("What?")], "A dog runs on the grass.", "Why?", "It plays.", layout=layout)
    whole = SampleEncoder(processor, prompt_family=family)(sample)
    first_answer = (whole["labels"] != -100).nonzero()[0].item()
    last_placeholder = (whole["input_ids"] == processor.video_token_id).nonzero()[-1].item()

    for length in range(1, len(whole["input_ids"]) + 2):
        encoder = SampleEncoder(processor, prompt_family=family, max_text_tokens=length)
        if length > first_answer:
            encoded = encoder(sample)
            assert torch.equal(encoded["input_ids"], whole["input_ids"][:length])
            assert torch.equal(encoded["labels"], whole["labels"][:length])
        else:
            reason = "nothing of its answers" if length > last_placeholder else "would lose pictures"
            with pytest.raises(TrainingDataError, match=reason):
                encoder(sample)


def test_media_behind_the_cut_refuse_the_sample(processor):
    sample = row("What?", "A dog runs on the grass.", [IMAGE], "A picture.", layout="conversation")

    for original_labels in (False, True):
        encoder = SampleEncoder(processor, max_text_tokens=24, original_labels=original_labels)
        with pytest.raises(TrainingDataError, match="would lose pictures"):
            encoder(sample)


def test_layouts_can_have_lengths_of_their_own(processor):
    encoder = SampleEncoder(processor, max_text_tokens={"caption": 2, "conversation": 20})
    long = "one two three four five six seven eight nine ten eleven twelve thirteen"

    assert len(encoder(row([VIDEO], long, layout="caption"))["input_ids"]) == 1 + 6 + 2
    assert len(encoder(row("Q", long, layout="conversation"))["input_ids"]) == 20
    assert len(encoder(row("Q", long))["input_ids"]) > 20


@pytest.mark.parametrize("layout", ["chat", "conversation", "caption", "prompted_caption"])
def test_the_context_of_the_model_limits_too(layout, processor):
    answer = "word " * 3000

    encoded = SampleEncoder(processor)(row([IMAGE], answer, layout=layout))

    assert len(encoded["input_ids"]) == len(encoded["labels"]) == processor.tokenizer.model_max_length


# ---------------------------------------------------------------------------------------------------------------------
# Cache
# ---------------------------------------------------------------------------------------------------------------------
class FakeCache:
    """Features of constant values, by what was asked."""

    def __init__(self, with_sound: bool = True):
        self.with_sound, self.asked = with_sound, []

    def vision(self, item):
        self.asked.append(("vision", item["path"]))
        if item["path"] == "unknown":
            raise FeatureCacheError("unknown is not in the cache.")
        num_frames = 1 if item["type"] == "image" else 2
        times = None if item["type"] == "image" else torch.tensor([0.0, 1.26])
        return CachedFeatures(torch.full((num_frames, 4, 5), 7.0), times)

    def audio(self, item, audio_from):
        self.asked.append((audio_from, item["path"]))
        if audio_from == "sound":
            return CachedFeatures(torch.full((8, 6), 3.0)) if self.with_sound else None
        return CachedFeatures(torch.full((2, 6), 4.0), [0.0, 1.26])


CACHED = row([{"type": "video", "path": "a.mp4"}, {"type": "image", "path": "b.png"}, text("What?")], "A dog.")


def test_a_cache_takes_the_place_of_pixels_and_keeps_the_times_of_frames(processor):
    cache = FakeCache()

    encoded = SampleEncoder(processor, feature_cache=cache)(CACHED)

    assert cache.asked == [("vision", "a.mp4"), ("vision", "b.png")]
    assert encoded.keys() == {"input_ids", "labels", "video_frame_embeds", "image_embeds"}
    assert encoded["video_frame_embeds"][0].shape == (2, 4, 5)
    assert encoded["image_embeds"][0].shape == (4, 5)
    assert "The video contains 2 frames sampled at 0.0, 1.3 seconds." in decoded(encoded, processor)


def test_a_cache_feeds_the_audio_branch(processor):
    frames, both = (
        SampleEncoder(processor, feature_cache=FakeCache(), branch=branch)(CACHED)
        for branch in ("audio_branch", "both")
    )
    sound, silent = (
        SampleEncoder(processor, feature_cache=FakeCache(with_sound), branch="both", audio_from="sound")(CACHED)
        for with_sound in (True, False)
    )

    assert frames.keys() == {"input_ids", "labels", "audio_segment_embeds"}
    assert [tuple(item.shape) for item in frames["audio_segment_embeds"]] == [(2, 6), (2, 6)]
    assert "2 frames sampled at 0.0, 1.3 seconds" in decoded(frames, processor)
    assert both["audio_segment_embeds"][0].mean() == 4
    assert sound["audio_segment_embeds"][0].mean() == 3
    assert "audio_segment_embeds" not in silent
    assert "2 frames sampled at 0.0, 1.3 seconds" in decoded(silent, processor)
    with pytest.raises(FeatureCacheError):
        SampleEncoder(processor, feature_cache=FakeCache())(row([{"type": "video", "path": "unknown"}], "A"))


# ---------------------------------------------------------------------------------------------------------------------
# What is refused
# ---------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("layout", encoding.LAYOUTS)
@pytest.mark.parametrize("token", ["<ImageHere>", "<VideoHere>", "<AudioHere>"])
@pytest.mark.parametrize("place", ["question", "answer"])
def test_text_with_placeholders_is_refused(place, token, layout, processor):
    question, answer = (f"See {token}", "A") if place == "question" else ("See", f"A {token}")

    with pytest.raises(TrainingDataError, match=f"placeholder {token}"):
        SampleEncoder(processor)(row([IMAGE, text(question)], answer, layout=layout))


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        ({"messages": None}, "'messages' of a sample are None"),
        ({"messages": []}, "'messages' of a sample are"),
        ({"messages": ["Q"]}, "A message is 'Q'"),
        ({"messages": [{"role": "bot", "content": "Q"}]}, "'bot'"),
        ({"messages": [{"role": "user", "content": None}]}, "A message is"),
        (row([{"type": "text", "text": None}], "A"), "An item of a message is"),
        (row([{"type": "smell", "path": "x"}], "A"), "An item of a message is"),
        (row([{"type": "video", "path": None}], "A"), "names nothing to read"),
        (row([{**IMAGE, "start": 1.0}], "A"), "leave 'start' and 'end' out"),
        (row([{**VIDEO, "end": 1.0}], "A"), "leave 'start' and 'end' out"),
        (row("Q", [IMAGE]), "role 'assistant' holds an item"),
        (row("Q"), "no message of role 'assistant'"),
        (row("Q", "A", layout="poem"), "layout of a sample is 'poem'"),
        (row("Q", "A", layout="caption"), "pictures, videos or sounds without text"),
        (row([IMAGE, text("Q")], "A", layout="caption"), "user: image, text; assistant: text"),
        (row([IMAGE], "A", "Q", "A", layout="caption"), "pictures, videos or sounds without text"),
        (row([VIDEO], "A", layout="prompted_caption"), "expected one picture"),
        (row([IMAGE, IMAGE], "A", layout="prompted_caption"), "expected one picture"),
        (row([IMAGE], " ", layout="caption"), "caption of a sample is empty"),
        ({"messages": [{"role": "assistant", "content": "A"}]}, "begins with an answer"),
        (
            {"messages": [{"role": "user", "content": "Q"}] * 2, "layout": "conversation"},
            "no message of role 'assistant'",
        ),
    ],
)
def test_what_cannot_be_laid_out_is_refused(sample, reason, processor):
    with pytest.raises(TrainingDataError, match=reason):
        SampleEncoder(processor)(sample)


@pytest.mark.parametrize("roles", ["uua", "uaa"])
def test_llama_2_conversations_need_roles_in_turn(roles, processor):
    names = {"u": "user", "a": "assistant"}
    messages = [{"role": names[role], "content": "text"} for role in roles]

    with pytest.raises(TrainingDataError, match="in turn"):
        SampleEncoder(processor, prompt_family="llama_2")({"layout": "conversation", "messages": messages})
    encoded = SampleEncoder(processor, prompt_family="vicuna")({"layout": "conversation", "messages": messages})
    assert labelled(encoded, processor) == ["text\n###"] * roles.count("a")


@pytest.mark.parametrize(
    ("layout", "family"), [("conversation", "llama_2")], ids=["the original writes no end of an empty answer"]
)
def test_a_sample_without_anything_to_learn_is_refused(layout, family, processor):
    with pytest.raises(TrainingDataError, match="answers of a sample are empty"):
        SampleEncoder(processor, prompt_family=family)(row("Q", "", layout=layout))


def test_unreadable_files_keep_their_own_error(processor, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")

    for name in ("broken.mp4", "missing.mp4"):
        with pytest.raises(MediaError, match=name):
            SampleEncoder(processor)(row([{"type": "video", "path": str(tmp_path / name)}], "A"))


@pytest.mark.parametrize(
    "options",
    [
        {"branch": "both_branches"},
        {"sampling": "random"},
        {"audio_from": "video"},
        {"prompt_family": "llama_v2"},
        {"max_text_tokens": 0},
        {"max_text_tokens": {"captions": 32}},
    ],
)
def test_unknown_options_are_refused(options, processor):
    with pytest.raises(ValueError, match="|".join(options)):
        SampleEncoder(processor, **options)


def test_sound_needs_a_feature_extractor(processor):
    deaf = copy.copy(processor)
    deaf.feature_extractor = None

    with pytest.raises(ValueError, match="no feature extractor"):
        SampleEncoder(deaf, branch="both", audio_from="sound")
    with pytest.raises(TrainingDataError, match="no feature extractor"):
        SampleEncoder(deaf)(row([SOUND], "A"))
