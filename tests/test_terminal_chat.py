# SPDX-License-Identifier: Apache-2.0
"""A conversation in lines: its commands, its errors, and Ctrl-C."""

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from PIL import Image
from rich.console import Console
from transformers import AutoProcessor, GenerationConfig

from transformers_videollama import SessionError, VideoLlamaChat, VideoLlamaForConditionalGeneration
from transformers_videollama.chat import TokenStreamer
from transformers_videollama.terminal_chat import Command, EndOfChat, TerminalChat, file_names, history

from .helpers import SAMPLE_CLIP, TINY
from .media_files import write_clip, write_sound


@pytest.fixture(scope="module")
def model(converted):
    """The original's tiny checkpoint, whose answers depend on all that it is given."""
    model = VideoLlamaForConditionalGeneration.from_pretrained(converted, dtype=torch.float32)
    model.generation_config = GenerationConfig.from_pretrained(TINY)
    return model


@pytest.fixture(scope="module")
def processor(converted):
    return AutoProcessor.from_pretrained(converted)


class Terminal(TerminalChat):
    """Takes lines, and hands back what they print."""

    def __init__(self, model, processor, **generation_kwargs):
        generation_kwargs = {"do_sample": False, "max_new_tokens": 4, **generation_kwargs}
        consoles = [Console(file=io.StringIO(), width=100, soft_wrap=True, emoji=False) for _ in range(2)]
        super().__init__(VideoLlamaChat(model, processor, **generation_kwargs), *consoles)

    def printed(self) -> tuple[str, str]:
        texts = []
        for console in (self.out, self.err):
            texts.append(console.file.getvalue())
            console.file.seek(0)
            console.file.truncate()
        return texts[0], texts[1]

    def __call__(self, line: str) -> tuple[str, str]:
        self.take_or_tell(line)
        return self.printed()


@pytest.fixture
def terminal(model, processor, tmp_path, monkeypatch) -> Terminal:
    """In a folder with a picture, a sound, and a clip without sound."""
    Image.radial_gradient("L").convert("RGB").save(tmp_path / "ring.png")
    write_sound(tmp_path / "tone.wav")
    write_clip(tmp_path / "silent.mp4")
    monkeypatch.chdir(tmp_path)
    return Terminal(model, processor)


def test_an_answer_is_that_of_the_chat_and_printed_as_it_is(terminal, model, processor, monkeypatch):
    terminal(f"/add {SAMPLE_CLIP}")
    chat = VideoLlamaChat(model, processor, do_sample=False, max_new_tokens=4)
    chat.add_video(SAMPLE_CLIP)

    assert terminal("What do you see?") == (chat.ask("What do you see?") + "\n", "")

    monkeypatch.setattr(terminal.chat, "stream", lambda question: (yield from [" [red]", ":dog:", " [/red] "]))
    assert terminal("What?") == (" [red]:dog: [/red] \n", "")


def test_files_are_added_as_what_they_are(terminal):
    os.rename("tone.wav", "unnamed")
    out, err = terminal(f"/add silent.mp4 ring.png unnamed {SAMPLE_CLIP}")

    assert out == ""
    assert err.splitlines() == [
        "silent.mp4: 8 frames from 0.0 to 2.6 of 3.0 seconds, no sound",
        "ring.png: a picture",
        "unnamed: sound in 8 segments",
        f"{SAMPLE_CLIP}: 8 frames from 0.0 to 5.2 of 6.0 seconds, sound in 8 segments",
    ]
    assert [item.kind for item in terminal.chat.items] == ["video", "image", "audio", "video"]
    assert terminal("/items") == (err, "")


def test_the_options_of_the_command_hold_for_what_is_added(model, processor, terminal):
    terminal.audio, terminal.num_frames = False, 3

    assert "3 frames from 0.0 to 4.0 of 6.0 seconds, no sound" in terminal(f"/add {SAMPLE_CLIP}")[1]


def test_a_moving_gif_is_looked_at_as_a_video(terminal):
    frames = [Image.new("RGB", (16, 16), (40 * index, 0, 0)) for index in range(4)]
    frames[0].save("moving.gif", save_all=True, append_images=frames[1:], duration=500)

    assert "moving.gif: 4 frames from 0.0 to 1.5 of 2.0 seconds, no sound" in terminal("/add moving.gif")[1]


def test_frames_are_told_by_their_times_also_in_a_conversation_that_was_kept(terminal):
    terminal(f"/add ring.png silent.mp4 {SAMPLE_CLIP}")
    expected = (
        "silent.mp4: 0.00, 0.30, 0.70, 1.10, 1.50, 1.80, 2.20, 2.60\n"
        f"{SAMPLE_CLIP}: 0.00, 0.75, 1.50, 2.25, 3.00, 3.75, 4.50, 5.25\n"
    )
    assert terminal("/frames") == (expected, "")

    terminal("What?")
    assert terminal("/save kept")[1] == "Kept in kept: 1 question, 3 items\n"
    terminal.chat = VideoLlamaChat(terminal.chat.model, terminal.chat.processor, do_sample=False, max_new_tokens=4)
    assert terminal("/load kept")[1] == "Goes on from kept: 1 question, 3 items\n"
    assert terminal("/frames") == (expected, "")
    assert terminal("And?")[0].strip()
    assert len(terminal.chat.turns) == 2


def test_undo_takes_back_what_came_last(terminal):
    terminal("/add ring.png")
    terminal("What?")
    terminal("/add tone.wav")

    assert terminal("/undo")[1] == "Taken back: tone.wav\n"
    assert [item.name for item in terminal.chat.items] == ["ring.png"]
    assert terminal("/undo")[1] == "Taken back: ring.png, What?\n"
    assert terminal.chat.items == terminal.chat.turns == []
    assert terminal("/undo")[1] == "Error: There is no turn to take back: nothing was asked yet.\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/ad ring.png", "There is no command /ad. The nearest is /add; /help shows all."),
        ("/frame", "There is no command /frame. The nearest is /frames; /help shows all."),
        ("/exit", "There is no command /exit. The nearest is /"),
        ("/add", "/add needs something behind it: /add FILE…."),
        ("/save ", "/save needs something behind it: /save FOLDER."),
        ("/add nowhere.mp4", "nowhere.mp4 does not exist"),
        ("/add notes.txt", "notes.txt is neither a video nor a picture nor a sound"),
        ("/add .", ". is a folder"),
        ("/load nowhere", "nowhere holds no session"),
        ("/save notes.txt/a", "Not a directory"),
        ("/frames", "Nothing was added yet: write /add FILE."),
        ("/items", "Nothing was added yet: write /add FILE."),
        ("What is <VideoHere>?", "The question holds <VideoHere>"),
    ],
)
def test_an_error_is_one_line_and_the_conversation_goes_on(line, message, terminal, tmp_path):
    (tmp_path / "notes.txt").write_text("Some notes.\n")
    out, err = terminal(line)

    assert out == ""
    assert err.startswith("Error: ")
    assert message in err
    assert err.count("\n") == 1
    assert terminal("What?")[0].strip()


def test_the_path_of_a_file_alone_is_no_unknown_command(terminal, tmp_path):
    assert f"to add a file, write /add {tmp_path}/ring.png." in terminal(f"{tmp_path}/ring.png")[1]


def test_lack_of_memory_ends_no_conversation(terminal, monkeypatch):
    def no_memory(question):
        raise torch.OutOfMemoryError("CUDA out of memory.")
        yield

    monkeypatch.setattr(terminal.chat, "stream", no_memory)
    assert terminal("What?")[1] == "Error: CUDA out of memory.\n"


def test_help_names_every_command(terminal):
    out, _ = terminal("/help")

    assert [line.split()[0] for line in out.splitlines()] == [*terminal.commands, "anything"]


@pytest.mark.parametrize(
    ("argument", "names"),
    [
        ("a.mp4 b.mp4", ["a.mp4", "b.mp4"]),
        ("my clip.mp4", ["my clip.mp4"]),
        ("'my clip.mp4' b.mp4", ["my clip.mp4", "b.mp4"]),
        (r"my\ clip.mp4", ["my clip.mp4"]),
        ("dog's.mp4", ["dog's.mp4"]),
        ("other's.mp4", ["other's.mp4"]),
        ("~/a.mp4", ["{home}/a.mp4"]),
        ("https://host/a.mp4?b=c&d", ["https://host/a.mp4?b=c&d"]),
    ],
)
def test_names_of_files_are_understood_as_they_are_typed(argument, names, tmp_path, monkeypatch):
    for name in ("my clip.mp4", "dog's.mp4"):
        (tmp_path / name).write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/user")

    assert file_names(argument) == [name.format(home="/home/user") for name in names]


def test_tab_completes_commands_and_paths(terminal):
    os.mkdir("sub")
    assert terminal.complete("/") == [
        *("/add ", "/undo", "/frames", "/items", "/save ", "/load ", "/help", "/quit"),
    ]
    assert terminal.complete("/f") == ["/frames"]
    assert terminal.complete("/add s") == ["/add silent.mp4", "/add sub/"]
    assert terminal.complete("/undo s") == terminal.complete("What s") == []


def test_lines_are_kept_for_the_next_session_and_for_the_user_alone(tmp_path):
    readline = pytest.importorskip("readline")
    file = tmp_path / "state" / "history"
    for line in ("What?", "/quit"):
        readline.clear_history()
        with history(file, lambda text: []):
            readline.add_history(line)

    assert file.read_text() == "What?\n/quit\n"
    assert file.stat().st_mode & 0o777 == 0o600


# Ctrl-C and the end


@pytest.fixture
def keyboard(monkeypatch, tmp_path):
    monkeypatch.setattr("transformers_videollama.terminal_chat.user_state_path", lambda name: tmp_path / "state")

    def type_lines(*lines):
        lines = iter(lines)

        def read(prompt):
            line = next(lines, EOFError())
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr("builtins.input", read)

    return type_lines


def test_ctrl_c_stops_an_answer_whose_beginning_stays_and_no_more_however_often(
    model, processor, keyboard, monkeypatch
):
    is_pressed, presses = threading.Event(), []

    def slow(input_ids, scores):
        # The second comes while the answer is brought to its end
        if is_pressed.wait(0.2) and not presses:
            presses.append(os.kill(os.getpid(), signal.SIGINT))
            time.sleep(0.2)
        return scores

    terminal = Terminal(model, processor, max_new_tokens=200, logits_processor=[slow])
    print_piece = terminal.out.print

    def press(*args, **kwargs):
        print_piece(*args, **kwargs)
        if args and not is_pressed.is_set():
            is_pressed.set()
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(terminal.out, "print", press)
    turns = []
    terminal.commands["/turns"] = Command(lambda argument: turns.extend(terminal.chat.turns), "", "")
    keyboard("Tell me everything.", "/turns")
    terminal.talk()
    out, err = terminal.printed()

    assert err.count("Stopped.") == len(presses) == 1
    assert len(turns) == 1
    assert out.strip()
    assert turns[0].answer.startswith(out.strip())
    assert len(processor.tokenizer(turns[0].answer)["input_ids"]) < 20
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_at_the_prompt_clears_the_line_and_ctrl_d_leaves(terminal, keyboard):
    keyboard(KeyboardInterrupt(), "What?")
    terminal.talk()
    out, err = terminal.printed()

    assert "Ctrl-D or /quit leaves." in err
    assert len(terminal.chat.turns) == 1
    assert out.strip()


def test_quit_leaves(terminal, keyboard):
    keyboard("What?", "/quit", "And?")
    terminal.talk()
    assert len(terminal.chat.turns) == 1

    assert terminal.read(["And?", "", "  ", "/quit", "Never?"])
    assert [turn.question for turn in terminal.chat.turns] == ["What?", "And?"]
    with pytest.raises(EndOfChat):
        terminal.take("/quit")
    with pytest.raises(SessionError):
        terminal.take("/leave")


def test_lines_of_a_pipe_tell_whether_one_failed(terminal):
    assert not terminal.read(["What?\n", "/add nowhere.mp4\n", "And?\n"])
    assert len(terminal.chat.turns) == 2
    assert terminal.read(["And?\n"])


@pytest.mark.slow
def test_a_session_in_a_terminal(tmp_path, converted):
    """Keys go through a terminal: editing, the history of an earlier session, Ctrl-C while the model speaks, Ctrl-D."""
    keys, screen = pty.openpty()
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "TERM": "dumb", "COLUMNS": "200"}
    program = "from transformers_videollama.cli import app; app()"
    # A model that speaks until it is stopped, as the built-in one does not
    command = [sys.executable, "-c", program, "chat", str(SAMPLE_CLIP), "--model", str(converted), "--max-new-tokens"]

    def wait_for(pattern: str) -> str:
        seen, deadline = "", time.monotonic() + 60
        while not re.search(pattern, seen):
            assert time.monotonic() < deadline, f"{pattern} did not come after {seen}"
            if select.select([keys], [], [], 1)[0]:
                seen += os.read(keys, 4096).decode(errors="replace")
        return seen

    def session(length: int) -> subprocess.Popen:
        process = subprocess.Popen(
            [*command, str(length)],
            stdin=screen,
            stdout=screen,
            stderr=screen,
            env=environment,
            start_new_session=True,
        )
        assert "8 frames from 0.0 to 5.2" in wait_for("> $")
        return process

    process = session(length=5)
    os.write(keys, b"/framez\x7fs\n")
    assert "0.00, 0.75, 1.50" in wait_for("5.25\r\n> $")
    os.write(keys, b"\x04")
    assert process.wait(30) == 0

    process = session(length=1900)
    os.write(keys, b"\x1b[A\n")
    assert "0.00, 0.75, 1.50" in wait_for("5.25\r\n> $")
    os.write(keys, b"Tell me everything.\n")
    wait_for(r"\r\n.*\w")
    os.kill(process.pid, signal.SIGINT)
    wait_for(r"Stopped\.\r\n> $")
    os.write(keys, b"/quit\n")
    assert process.wait(30) == 0
    assert (tmp_path / "videollama" / "history").read_text() == "/frames\nTell me everything.\n/quit\n"


@pytest.mark.parametrize("pieces", [["a dog", "###"], ["a dog#", "##"], ["a d", "og", "#", "#", "#"]])
def test_the_stop_string_is_never_shown(pieces, processor):
    shown = []
    streamer = TokenStreamer(processor.tokenizer, shown.append, ["###"])
    for index, piece in enumerate(pieces):
        streamer.on_finalized_text(piece, stream_end=index == len(pieces) - 1)
        assert "#" not in "".join(shown)

    assert "".join(shown) == "a dog"
