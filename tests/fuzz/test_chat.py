# SPDX-License-Identifier: Apache-2.0
"""A conversation, whatever is done in it, holds what was said, and answers as a run of the whole prompt would."""

import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
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

from ..helpers import SAMPLE_CLIP, TINY
from ..media_files import write_clip, write_sound
from .checks import TRIED
from .profiles import tries


GREEDY = {"do_sample": False, "max_new_tokens": 5}
TEMPLATE = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
KINDS = {"sounding": "video", "silent": "video", "picture": "image", "sound": "audio"}
QUESTION = st.one_of(
    st.sampled_from(["What do you see?", "Why?", "", " ", "###", "{{ 7 * 6 }}", "</s>", "[/INST]"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)


class Talk(RuleBasedStateMachine):
    """Does things to a conversation, and keeps a list of what it should hold."""

    model = processor = files = None  # set by the test

    @initialize(template=st.sampled_from(["vicuna", "llama_2"]), system=st.sampled_from([None, None, "Be brief."]))
    def begin(self, template, system):
        self.template, self.system = template, system
        self.chat = VideoLlamaChat(self.model, self.processor, system=system, chat_template=template, **GREEDY)
        self.turns: list[tuple[list[str], str, str]] = []
        self.pending: list[str] = []
        self.folders: list[tuple[Path, list, list]] = []

    def count(self, what: str) -> None:
        TRIED["steps of conversations", what] += 1

    def add(self, name: str, **kwargs):
        return getattr(self.chat, f"add_{KINDS[name]}")(self.files[name], **kwargs)

    @rule(name=st.sampled_from(sorted(KINDS)))
    def add_item(self, name):
        item = self.add(name)
        assert (item.kind, item.has_audio) == (KINDS[name], name == "sounding")
        self.pending.append(name)
        self.count("add")

    @rule(
        kind=st.sampled_from(["video", "image", "audio"]),
        what=st.sampled_from(["broken", "nowhere", "silent", "bytes"]),
    )
    def add_what_can_not_be_read(self, kind, what):
        source = {**self.files, "bytes": b"no media", "silent": self.files["silent" if kind == "audio" else "sound"]}[
            what
        ]
        with pytest.raises(MediaError):
            getattr(self.chat, f"add_{kind}")(source)
        with pytest.raises(NoAudioError):
            self.add("silent", audio=True)
        self.compare_messages()
        self.count("add what can not be read")

    @rule(question=QUESTION)
    def ask(self, question):
        self.said(question, self.chat.ask(question))
        self.count("ask")

    @rule(question=QUESTION)
    def stream(self, question):
        text = "".join(self.chat.stream(question))
        assert text.strip() == self.chat.turns[-1].answer
        self.said(question, text.strip())
        self.count("stream")

    @rule(question=QUESTION)
    def leave_a_stream(self, question):
        stream = self.chat.stream(question, max_new_tokens=40)
        next(stream, None)
        stream.close()
        self.said(question, self.chat.turns[-1].answer, is_whole=False)
        self.count("leave a stream")

    @rule(
        question=st.sampled_from(
            ["What is <VideoHere>?", "<ImageHere>", "a<AudioHere>", "word " * 3000, None, 3, b"What?"]
        ),
        is_streamed=st.booleans(),
    )
    def ask_what_is_refused(self, question, is_streamed):
        error = SessionError if not isinstance(question, str) else PlaceholderError
        with pytest.raises(ContextLengthError if str(question).startswith("word") else error):
            list(self.chat.stream(question)) if is_streamed else self.chat.ask(question)
        self.compare_messages()
        self.count("ask what is refused")

    @rule()
    def undo(self):
        if not self.turns:
            with pytest.raises(SessionError):
                self.chat.undo()
        else:
            names, question, answer = self.turns.pop()
            undone = self.chat.undo()
            assert (undone.question, undone.answer) == (question, answer)
            assert [item.name for item in undone.items] == [self.files[name] for name in names]
        self.count("undo")

    @rule()
    def save(self):
        folder = Path(tempfile.mkdtemp())
        self.chat.save(folder)
        self.folders.append((folder, list(self.turns), list(self.pending)))
        self.count("save")

    @precondition(lambda self: self.folders)
    @rule(data=st.data())
    def load(self, data):
        folder, turns, pending = data.draw(st.sampled_from(self.folders))
        self.chat = VideoLlamaChat.load(folder, self.model, self.processor, **GREEDY)
        self.turns, self.pending = list(turns), list(pending)
        self.compare_messages()
        self.count("load")

    @precondition(lambda self: self.folders)
    @rule(name=st.sampled_from(["session.json", "features.safetensors"]), data=st.data())
    def load_what_is_damaged(self, name, data):
        folder, *_ = self.folders.pop()
        content = bytearray((folder / name).read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            del content[place:]
        else:
            content[place] ^= 1 << data.draw(st.integers(0, 7))
        (folder / name).write_bytes(content)
        try:
            VideoLlamaChat.load(folder, self.model, self.processor).ask("What?", **GREEDY)
            self.count("load what is damaged, not noticed")  # a letter of an answer or a number of a feature
        except (SessionError, PlaceholderError):
            self.count("load what is damaged: refused")
        shutil.rmtree(folder)

    @precondition(lambda self: self.turns or self.pending)
    @rule()
    def answer_as_a_run_of_the_whole_prompt(self):
        question = "What is it?"
        turns = [*self.turns, (self.pending, question, None)]
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        for names, asked, answer in turns:
            content = [{"type": KINDS[name], "path": self.files[name]} for name in names]
            messages.append({"role": "user", "content": [*content, {"type": "text", "text": asked}]})
            if answer is not None:
                messages.append({"role": "assistant", "content": answer})
        inputs = self.processor.apply_chat_template(messages, self.template, load_audio_from_video=True, **TEMPLATE)
        if inputs["input_ids"].shape[1] > 1800:  # the oldest turns may be left out by now
            return
        output_ids = self.model.generate(**inputs, **GREEDY)
        text = self.processor.decode(output_ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for stop_string in self.model.generation_config.stop_strings or []:
            text = text.removesuffix(stop_string)
        answer = self.chat.ask(question)
        assert answer == text.strip()
        self.said(question, answer)
        self.count("compare with a whole run")

    def said(self, question: str, answer: str, is_whole: bool = True) -> None:
        assert isinstance(answer, str)
        self.turns.append((self.pending, question, answer))
        self.pending = []
        self.compare_messages()

    def compare_messages(self) -> None:
        """What the conversation holds is what was said, in order, and the items are those that were added."""
        expected = [] if self.system is None else [{"role": "system", "content": self.system}]
        for names, question, answer in self.turns:
            items = [{"type": KINDS[name], "has_audio": name == "sounding"} for name in names]
            expected.append({"role": "user", "content": [*items, {"type": "text", "text": question}]})
            expected.append({"role": "assistant", "content": answer})
        assert self.chat.messages == expected
        names = [name for added, *_ in self.turns for name in added] + self.pending
        assert [item.name for item in self.chat.items] == [self.files[name] for name in names]

    def teardown(self):
        for folder, *_ in getattr(self, "folders", []):
            shutil.rmtree(folder)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("media")
    Image.radial_gradient("L").convert("RGB").resize((40, 30)).save(folder / "ring.png")
    (folder / "broken.mp4").write_bytes(SAMPLE_CLIP.read_bytes()[:2000])
    return {
        "sounding": str(write_clip(folder / "sounding.mp4", frames=8, size=(32, 48), audio_rate=16000, seconds=0.8)),
        "silent": str(write_clip(folder / "silent.mp4", frames=8, size=(32, 48))),
        "picture": str(folder / "ring.png"),
        "sound": str(write_sound(folder / "tone.wav", rate=16000, seconds=0.5)),
        "broken": str(folder / "broken.mp4"),
        "nowhere": str(folder / "nowhere.mp4"),
    }


def test_conversations_hold_what_was_said(converted, files):
    model = VideoLlamaForConditionalGeneration.from_pretrained(converted, dtype=torch.float32)
    model.generation_config = GenerationConfig.from_pretrained(TINY)
    Talk.model, Talk.processor, Talk.files = model, AutoProcessor.from_pretrained(converted), files
    run_state_machine_as_test(Talk, settings=tries(ci=10, long=150, stateful_step_count=12))
