# SPDX-License-Identifier: Apache-2.0
"""A conversation answers as a run of the whole prompt would, at the cost of what is new in it."""

import json
import logging

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, GenerationConfig

from transformers_videollama import (
    ContextLengthError,
    MediaError,
    NoAudioError,
    PlaceholderError,
    SessionError,
    VideoLlamaChat,
    VideoLlamaForConditionalGeneration,
)

from .helpers import SAMPLE_CLIP, TINY
from .media_files import write_clip, write_sound


GREEDY = {"do_sample": False, "max_new_tokens": 6}
TEMPLATE = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}


@pytest.fixture
def model(converted):
    """The original's tiny checkpoint, whose answers depend on all that it is given."""
    model = VideoLlamaForConditionalGeneration.from_pretrained(converted, dtype=torch.float32)
    model.generation_config = GenerationConfig.from_pretrained(TINY)
    return model


@pytest.fixture(scope="module")
def processor(converted):
    return AutoProcessor.from_pretrained(converted)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("media")
    Image.radial_gradient("L").convert("RGB").save(folder / "ring.png")
    return {
        "video": str(SAMPLE_CLIP),
        "silent": str(write_clip(folder / "silent.mp4")),
        "image": str(folder / "ring.png"),
        "audio": str(write_sound(folder / "tone.wav")),
    }


def item_of(name: str, files: dict) -> dict:
    kind = "video" if name == "silent" else name
    return {"type": kind, "path": files[name]}


def rerun(model, processor, turns: list[tuple[list[str], str]], answers: list[str], files: dict, template: str) -> str:
    """The answer to the last question when the whole conversation is read at once."""
    messages = []
    for (names, question), answer in zip(turns, [*answers, None]):
        content = [item_of(name, files) for name in names] + [{"type": "text", "text": question}]
        messages.append({"role": "user", "content": content})
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
    inputs = processor.apply_chat_template(messages, template, load_audio_from_video=True, **TEMPLATE)
    output_ids = model.generate(**inputs, **GREEDY)
    text = processor.decode(output_ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return text.removesuffix("###").strip()


def add(chat: VideoLlamaChat, name: str, files: dict) -> None:
    {"video": chat.add_video, "silent": chat.add_video, "image": chat.add_image, "audio": chat.add_audio}[name](
        files[name]
    )


CONVERSATIONS = {
    "one clip, many questions": [(["video"], "What do you see and hear?"), ([], "What first?"), ([], "And then?")],
    "two clips compared": [(["video", "silent"], "Which is longer?"), ([], "Why?")],
    "a still with a sound from elsewhere": [(["image", "audio"], "Do they match?"), ([], "Why?")],
    "sound alone": [(["audio"], "What do you hear?"), ([], "How loud?")],
    "clip, then picture": [(["silent"], "What do you see?"), ([], "Where?"), (["image"], "Is it like this?")],
    "sound comes in late": [(["silent"], "What do you see?"), (["video"], "And here?"), ([], "Are they alike?")],
    "text only": [([], "What is a ball?"), ([], "And a wall?")],
    "text, then clip twice": [([], "Hello?"), (["video"], "What?"), (["video"], "The same again?")],
}


@pytest.mark.parametrize("template", ["vicuna", "llama_2"])
@pytest.mark.parametrize("turns", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_answers_are_those_of_the_whole_prompt(turns, template, model, processor, files):
    chat = VideoLlamaChat(model, processor, chat_template=template, **GREEDY)
    answers = []
    for index, (names, question) in enumerate(turns):
        for name in names:
            add(chat, name, files)
        answer = chat.ask(question)
        assert answer == rerun(model, processor, turns[: index + 1], answers, files, template)
        answers.append(answer)
    assert len(set(answers)) > 1  # the tiny model says different things


def read_tokens(model, monkeypatch) -> list[int]:
    """Numbers of tokens that LLaMA is given, call by call."""
    lengths = []
    forward = model.model.language_model.forward

    def counted(*args, inputs_embeds=None, **kwargs):
        lengths.append(inputs_embeds.shape[1])
        return forward(*args, inputs_embeds=inputs_embeds, **kwargs)

    monkeypatch.setattr(model.model.language_model, "forward", counted)
    return lengths


@pytest.mark.parametrize("template", ["vicuna", "llama_2"])
def test_a_follow_up_costs_only_its_own_text(template, model, processor, files, monkeypatch):
    encoded = []
    monkeypatch.setattr(
        model.model.vision_tower,
        "forward",
        lambda *a, f=model.model.vision_tower.forward, **k: encoded.append(1) or f(*a, **k),
    )
    chat = VideoLlamaChat(model, processor, chat_template=template, **GREEDY)
    chat.add_video(files["video"])
    lengths = read_tokens(model, monkeypatch)
    chat.ask("What do you see and hear?")
    first, lengths[:] = sum(lengths), []
    chat.ask("What first?")
    second = sum(lengths)

    # the question, the marks around it, the end of the last answer, and six new tokens
    assert second < 40 < first
    assert len(encoded) == 1


def test_streaming_gives_the_same_in_pieces(model, processor, files):
    chats = [VideoLlamaChat(model, processor, **GREEDY) for _ in range(2)]
    for chat in chats:
        chat.add_video(files["video"])
    for question in ("What do you see?", "Where?"):
        pieces = list(chats[0].stream(question))
        assert "".join(pieces).strip() == chats[1].ask(question)
        assert len(pieces) > 1
    assert chats[0].messages == chats[1].messages


def test_an_answer_that_is_not_read_to_its_end_ends_there(model, processor, files):
    chat = VideoLlamaChat(model, processor, do_sample=False, max_new_tokens=1500)
    stream = chat.stream("Tell me everything.")
    next(stream)
    stream.close()

    assert len(chat.turns) == 1
    assert len(processor.tokenizer(chat.turns[0].answer)["input_ids"]) < 1000
    assert chat.ask("And?", max_new_tokens=3) is not None


def test_errors_while_streaming_reach_the_reader(model, processor):
    chat = VideoLlamaChat(model, processor, **GREEDY)
    with pytest.raises(PlaceholderError, match="The question holds <VideoHere>, which stands for an item"):
        list(chat.stream("What is <VideoHere>?"))
    assert chat.turns == []


@pytest.mark.parametrize("stop", [[835], [2277, 29937]])
def test_a_vicuna_answer_ends_at_its_stop_string_which_is_never_shown(stop, model, processor, monkeypatch):
    said = processor.tokenizer("A dog.", add_special_tokens=False)["input_ids"] + stop
    steps = iter(said + [450] * 50)

    def spoken(input_ids, scores):
        forced = torch.full_like(scores, -torch.inf)
        forced[:, next(steps)] = 0
        return forced

    chat = VideoLlamaChat(model, processor, do_sample=False, max_new_tokens=20, logits_processor=[spoken])
    pieces = list(chat.stream("What?"))

    assert "".join(pieces).strip() == chat.turns[0].answer == "A dog."


def test_every_row_of_a_batch_ends_at_its_own_stop_string(model, processor):
    said = ["A dog.", "A boat on a lake, and a bird.", "No", "Three words ##"]
    stops = [[835], [2277, 29937], [2277, 29937], [835]]
    rows = [processor.tokenizer(text, add_special_tokens=False)["input_ids"] + stop for text, stop in zip(said, stops)]
    conversations = [[{"role": "user", "content": f"Question {number}?"}] for number in range(len(said))]
    inputs = processor.apply_chat_template(conversations, "vicuna", processor_kwargs={"padding": True}, **TEMPLATE)
    length = inputs["input_ids"].shape[1]

    def spoken(input_ids, scores):
        step = input_ids.shape[1] - length
        forced = torch.full_like(scores, -torch.inf)
        for row, token_ids in enumerate(rows):
            forced[row, token_ids[step] if step < len(token_ids) else 450] = 0
        return forced

    output_ids = model.generate(**inputs, do_sample=False, max_new_tokens=30, logits_processor=[spoken])[:, length:]

    for row, token_ids in zip(output_ids.tolist(), rows):
        assert row == token_ids + [0] * (output_ids.shape[1] - len(token_ids))
    answers = [
        text.removesuffix("###").strip() for text in processor.batch_decode(output_ids, skip_special_tokens=True)
    ]
    assert answers == said


class TestContext:
    @pytest.fixture
    def small(self, model):
        model.config.text_config.max_position_embeddings = 300
        return model

    def test_the_oldest_turns_go_when_it_fills_and_clips_stay(self, small, processor, files, caplog):
        chat = VideoLlamaChat(small, processor, **GREEDY)
        chat.add_video(files["silent"])
        prompts = []
        generate = small.generate
        small.generate = lambda **kwargs: prompts.append(kwargs["input_ids"][0].tolist()) or generate(**kwargs)
        with caplog.at_level(logging.WARNING):
            for index in range(20):
                chat.ask(f"Question number {index}, in some more words than it needs?")

        assert "turns are left out of the prompt. What was added in them stays." in caplog.text
        assert len(chat.turns) == 20
        for prompt in prompts:
            assert len(prompt) + 6 <= 300
            assert prompt[0] == processor.tokenizer.bos_token_id
            assert prompt.count(processor.video_token_id) == processor.num_video_query_tokens
        last = processor.tokenizer.decode(prompts[-1])
        assert "Question number 19" in last
        assert "Question number 0," not in last
        assert max(map(len, prompts)) > 240  # no more is left out than has to be

    def test_after_a_cut_answers_are_still_those_of_the_prompt(self, small, processor, files):
        chat = VideoLlamaChat(small, processor, **GREEDY)
        chat.add_video(files["silent"])
        for index in range(12):
            answer = chat.ask(f"Question number {index}, in some more words than it needs?")
        chat._forget()
        turn = chat.undo()
        chat.pending = turn.items

        assert chat.ask(turn.question) == answer

    def test_a_sound_that_moves_is_not_taken_for_that_of_a_video(self, small, processor, files):
        chat = VideoLlamaChat(small, processor, **GREEDY)
        chat.add_audio(files["audio"])
        chat.ask("What do you hear? " + "Say it in very many words. " * 20)
        chat.add_video(files["silent"])
        prompts = []
        generate = small.generate
        small.generate = lambda **kwargs: prompts.append(kwargs["input_ids"][0].tolist()) or generate(**kwargs)
        chat.ask("What do you see? " + "Say it in very many words. " * 10)

        text = processor.tokenizer.decode(prompts[0])
        assert "The video contains 8 frames" in text
        assert "Now answer my question based on what you have just heard." in text
        assert "Close your ears" not in text

    def test_what_can_not_fit_is_refused_and_nothing_lost(self, small, processor, files):
        chat = VideoLlamaChat(small, processor, **GREEDY)
        chat.add_image(files["image"])
        chat.ask("What?")
        with pytest.raises(ContextLengthError, match=r"take \d+ tokens, and 6 are kept .* the model has 300"):
            chat.ask("word " * 400)
        assert len(chat.turns) == 1
        assert chat.ask("Why?")


def test_undo_takes_back_a_turn_with_what_was_added(model, processor, files):
    chat = VideoLlamaChat(model, processor, **GREEDY)
    chat.add_video(files["silent"])
    chat.ask("What do you see?")
    expected = chat.ask("Where?")
    chat.add_image(files["image"])
    chat.ask("Is it like this?")
    undone = chat.undo()
    chat.undo()

    assert (undone.question, [item.name for item in undone.items]) == ("Is it like this?", [files["image"]])
    assert [item.name for item in chat.items] == [files["silent"]]
    assert chat.ask("Where?") == expected
    chat.undo()
    chat.undo()
    with pytest.raises(SessionError, match="nothing was asked yet"):
        chat.undo()


def test_undo_leaves_what_was_added_for_the_next_question(model, processor, files):
    chat = VideoLlamaChat(model, processor, **GREEDY)
    chat.add_video(files["silent"])
    chat.ask("What do you see?")
    chat.add_image(files["image"])
    chat.undo()
    assert [item.name for item in chat.items] == [files["image"]]
    expected = VideoLlamaChat(model, processor, **GREEDY)
    expected.add_image(files["image"])
    assert chat.ask("What is it?") == expected.ask("What is it?")


class TestSessions:
    @pytest.fixture
    def chat(self, model, processor, files) -> VideoLlamaChat:
        chat = VideoLlamaChat(model, processor, system="Be brief.", chat_template="llama_2", **GREEDY)
        chat.add_video(files["video"])
        chat.ask("What do you see and hear?")
        chat.add_image(files["image"])
        return chat

    def test_a_placeholder_that_was_damaged_is_an_error_of_ours(self, chat, model, processor, tmp_path):
        chat.save(tmp_path / "session")
        file = tmp_path / "session" / "session.json"
        text = file.read_text(encoding="utf-8")
        file.write_text(text.replace("<ImageHere>", "<ImageHerf>", 1), encoding="utf-8")
        loaded = VideoLlamaChat.load(tmp_path / "session", model, processor, **GREEDY)
        with pytest.raises(PlaceholderError, match="image placeholders, but its features are for 6"):
            loaded.ask("What?")

    def test_a_session_goes_on_where_it_was_saved_without_the_files(
        self, chat, model, processor, files, tmp_path, monkeypatch
    ):
        chat.save(tmp_path / "session")
        monkeypatch.setattr(model.model.vision_tower, "forward", None)
        loaded = VideoLlamaChat.load(tmp_path / "session", model, processor, **GREEDY)

        assert loaded.messages == chat.messages
        assert [(item.kind, item.name) for item in loaded.items] == [
            ("video", files["video"]),
            ("image", files["image"]),
        ]
        assert len(loaded.pending) == 1
        assert loaded.ask("Is it like this?") == chat.ask("Is it like this?")

    def test_another_model_is_refused(self, chat, model, processor, tmp_path):
        chat.save(tmp_path)
        with torch.no_grad():
            model.model.video_projection.weight += 1
        with pytest.raises(SessionError, match="was had with another model, or in another precision"):
            VideoLlamaChat.load(tmp_path, model, processor)

    @pytest.mark.parametrize(
        "content",
        [None, "{", "[]", '{"format": 2}', '{"format": 1}', '{"format": 1, "model": "", "system": null, "items": 3}'],
    )
    def test_what_is_no_session_is_refused(self, content, chat, model, processor, tmp_path):
        chat.save(tmp_path)
        (tmp_path / "session.json").unlink()
        if content is not None:
            (tmp_path / "session.json").write_text(content)
        with pytest.raises(SessionError, match="holds (no session that can be read|a session of format 2)"):
            VideoLlamaChat.load(tmp_path, model, processor)

    def test_features_that_are_cut_off_are_refused(self, chat, model, processor, tmp_path):
        chat.save(tmp_path)
        path = tmp_path / "features.safetensors"
        path.write_bytes(path.read_bytes()[:-10])
        with pytest.raises(SessionError, match="no session that can be read"):
            VideoLlamaChat.load(tmp_path, model, processor)

    def test_numbers_of_items_that_are_not_there_are_refused(self, chat, model, processor, tmp_path):
        chat.save(tmp_path)
        session = json.loads((tmp_path / "session.json").read_text())
        session["turns"][0]["items"] = [7]
        (tmp_path / "session.json").write_text(json.dumps(session))
        with pytest.raises(SessionError, match="no session that can be read"):
            VideoLlamaChat.load(tmp_path, model, processor)


class TestAdding:
    def test_sound_is_heard_where_there_is_any(self, model, processor, files):
        chat = VideoLlamaChat(model, processor)

        assert chat.add_video(files["video"]).has_audio
        assert not chat.add_video(files["silent"]).has_audio
        assert not chat.add_video(files["video"], audio=False).has_audio
        assert {*chat.items[0].features} == {"audio", "video"}

    def test_sound_that_is_demanded_and_not_there_is_an_error(self, model, processor, files):
        chat = VideoLlamaChat(model, processor)
        with pytest.raises(NoAudioError, match="Sound was asked of .*silent.mp4, but it has no audio track"):
            chat.add_video(files["silent"], audio=True)
        with pytest.raises(NoAudioError, match="asked of decoded frames"):
            chat.add_video(torch.zeros(4, 3, 28, 28, dtype=torch.uint8), audio=True)
        model.config.audio_config = None
        with pytest.raises(NoAudioError, match="the model has no audio branch"):
            chat.add_video(files["video"], audio=True)
        assert not chat.add_video(files["video"]).has_audio

    def test_a_file_that_can_not_be_read_changes_nothing(self, model, processor, tmp_path):
        (tmp_path / "broken.mp4").write_bytes(b"no video")
        chat = VideoLlamaChat(model, processor, **GREEDY)
        for add_one in (chat.add_video, chat.add_image, chat.add_audio):
            with pytest.raises(MediaError):
                add_one(str(tmp_path / "broken.mp4"))
        assert chat.items == []
        assert chat.ask("Hello?")

    def test_options_of_the_processor_are_passed_on(self, model, processor, files):
        item = VideoLlamaChat(model, processor).add_video(files["silent"], num_frames=3)

        assert "The video contains 3 frames" in item.text

    def test_a_question_is_text(self, model, processor):
        with pytest.raises(SessionError, match="A question is text, got None"):
            VideoLlamaChat(model, processor).ask(None)


def test_beams_are_searched_without_the_cache(model, processor, files):
    chats = [VideoLlamaChat(model, processor, **GREEDY, num_beams=3) for _ in range(2)]
    for chat in chats:
        chat.add_video(files["video"])
    first = chats[0].ask("What?"), chats[0].ask("Where?")
    second = chats[1].ask("What?"), chats[1].ask("Where?")

    assert first == second
    assert chats[0]._cache is None


def test_a_failure_in_the_middle_leaves_a_session_that_works(model, processor, files):
    chat, fresh = (VideoLlamaChat(model, processor, **GREEDY) for _ in range(2))
    for each in (chat, fresh):
        each.add_video(files["video"])
        each.ask("What?")

    def fails(input_ids, scores):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chat.ask("Where?", logits_processor=[fails])

    assert len(chat.turns) == 1
    assert chat.ask("Where?") == fresh.ask("Where?")
