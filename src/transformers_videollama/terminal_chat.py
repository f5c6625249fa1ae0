# SPDX-License-Identifier: Apache-2.0
"""A conversation in a terminal, or in lines that come through a pipe: `videollama chat`."""

import shlex
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from glob import escape, glob
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

import torch
from platformdirs import user_state_path
from rich.console import Console
from rich.table import Table

from .chat import ChatItem, VideoLlamaChat
from .exceptions import SessionError, VideoLlamaError
from .files import media_kind
from .media import MediaSource, is_url


PROMPT = "> "
HISTORY_LENGTH = 1000

# What a user's files, words and machine can lead to; anything else is a fault of the program
USER_ERRORS = (VideoLlamaError, OSError, ImportError, ValueError, torch.OutOfMemoryError)


@dataclass(frozen=True)
class Command:
    """A command of the conversation.

    Attributes:
        run: Called with the rest of the line.
        argument: What the rest of the line is, for the help.
        help: One line.
    """

    run: Callable[[str], None]
    argument: str
    help: str


def add_media(chat: VideoLlamaChat, source: Any, audio: bool | None = None, num_frames: int = 8) -> ChatItem:
    """Adds a file to a conversation as what it is.

    Args:
        chat: Conversation.
        source: Path, URL or [`MediaSource`].
        audio: Whether the sound of a video is heard. None: if it has any, and the model an audio branch.
        num_frames: Of a video.

    Raises:
        MediaError: If it can't be read, or is neither a video nor a picture nor a sound.
    """
    media = MediaSource.of(source)
    kind = media_kind(media)
    if kind == "video":
        return chat.add_video(media, audio=audio, num_frames=num_frames)
    return chat.add_image(media) if kind == "image" else chat.add_audio(media)


def describe(chat: VideoLlamaChat, item: ChatItem) -> str:
    """One line on what the model is given of an item."""
    sound = f"sound in {chat.processor.feature_extractor.num_segments} segments"
    if item.kind != "video":
        return f"{item.name}: {'a picture' if item.kind == 'image' else sound}"
    frames = f"{len(item.times)} frames" if len(item.times) != 1 else "1 frame"
    if item.times:
        length = f" of {item.duration:.1f}" if item.duration else ""
        frames += f" from {item.times[0]:.1f} to {item.times[-1]:.1f}{length} seconds"
    return f"{item.name}: {frames}, {sound if item.has_audio else 'no sound'}"


class TerminalChat:
    """Questions and commands, a line each, to a conversation.

    Answers and what commands are asked for go to `out`; what was looked at and errors go to `err`. An error is one line, and the
    conversation goes on.

    Args:
        chat: Conversation.
        out: Console of answers.
        err: Console of everything else.
        audio: Whether the sound of added videos is heard; see [`add_media`].
        num_frames: Of added videos.
        remark: Given the names of all that the conversation is about, before each answer: what has to be said first, if
            anything. It is said once.
    """

    def __init__(
        self,
        chat: VideoLlamaChat,
        out: Console,
        err: Console,
        audio: bool | None = None,
        num_frames: int = 8,
        remark: Callable[[list[str]], str | None] | None = None,
    ):
        self.chat = chat
        self.out = out
        self.err = err
        self.audio = audio
        self.num_frames = num_frames
        self.remark = remark
        self.commands = {
            "/add": Command(self.add, "FILE…", "Add videos, pictures or sounds to the next question."),
            "/undo": Command(self.undo, "", "Take back what was added last, or the last question with its answer."),
            "/frames": Command(self.frames, "", "Show which frames of which video were looked at, in seconds."),
            "/items": Command(self.items, "", "Show what the conversation is about."),
            "/save": Command(self.save, "FOLDER", "Keep the conversation."),
            "/load": Command(self.load, "FOLDER", "Go on with a conversation that was kept, in place of this one."),
            "/help": Command(self.help, "", "Show this."),
            "/quit": Command(self.quit, "", "Leave, as Ctrl-D does. Ctrl-C stops an answer."),
        }

    # Lines

    def talk(self) -> None:
        """Reads lines from a terminal until `/quit` or Ctrl-D."""
        self.err.print("Ask a question, or write /help.", style="dim")
        with history(user_state_path("videollama") / "history", self.complete):
            while True:
                try:
                    line = input(PROMPT)
                except KeyboardInterrupt:
                    self.err.print("\nCtrl-D or /quit leaves.", style="dim")
                    continue
                except EOFError:
                    self.err.print()
                    return
                try:
                    with first_interrupt_only():
                        self.take_or_tell(line)
                except KeyboardInterrupt:
                    self.out.print()
                    self.err.print("Stopped.", style="dim")
                except EndOfChat:
                    return

    def read(self, lines: Iterable[str]) -> bool:
        """Takes lines until they end or say `/quit`, as from a pipe.

        Returns:
            Whether there was no error.
        """
        is_fine = True
        with suppress(EndOfChat):
            for line in lines:
                is_fine &= self.take_or_tell(line)
        return is_fine

    def take_or_tell(self, line: str) -> bool:
        """Takes a line; an error is told, and answered by False."""
        try:
            self.take(line)
        except USER_ERRORS as error:
            self.err.print(f"Error: {error}", style="red", markup=False)
            return False
        return True

    def take(self, line: str) -> None:
        """Runs a command, or asks a question.

        Raises:
            SessionError: If there is no such command, or it lacks its argument.
            EndOfChat: By `/quit`.
        """
        line = line.strip()
        if not line:
            return
        if not line.startswith("/"):
            self.ask(line)
            return
        name, _, argument = line.partition(" ")
        if (command := self.commands.get(name)) is None:
            if Path(line).exists():
                raise SessionError(f"{name} is no command: to add a file, write /add {line}.")
            nearest = get_close_matches(name, self.commands, n=1, cutoff=0)[0]
            raise SessionError(f"There is no command {name}. The nearest is {nearest}; /help shows all.")
        if command.argument and not argument.strip():
            raise SessionError(f"{name} needs something behind it: {name} {command.argument}.")
        command.run(argument.strip())

    def complete(self, line: str) -> list[str]:
        """The lines that a begun one can become: commands, and paths behind those that take one."""
        name, blank, argument = line.partition(" ")
        if not blank:
            return [
                f"{name} " if self.commands[name].argument else name for name in self.commands if name.startswith(line)
            ]
        if name not in self.commands or not self.commands[name].argument:
            return []
        paths = sorted(glob(escape(str(Path(argument).expanduser()) if argument.startswith("~") else argument) + "*"))
        return [f"{name} {path}{'/' if Path(path).is_dir() else ''}" for path in paths]

    # Commands

    def ask(self, question: str) -> None:
        """Prints an answer as it comes."""
        if self.remark is not None and (remark := self.remark([item.name for item in self.chat.items])):
            self.err.print(remark, style="yellow", markup=False)
            self.remark = None
        # Closed, so that an answer that nobody reads on has ended before the next line is read
        with closing(self.chat.stream(question)) as pieces:
            for piece in pieces:
                self.out.print(piece, end="", markup=False)
        self.out.print()

    def add(self, argument: str) -> None:
        for file in file_names(argument):
            item = add_media(self.chat, file, self.audio, self.num_frames)
            self.err.print(describe(self.chat, item), style="dim", markup=False)

    def undo(self, argument: str) -> None:
        if self.chat.pending:
            taken = self.chat.pending.pop().name
        else:
            turn = self.chat.undo()
            taken = ", ".join([*(item.name for item in turn.items), turn.question])
        self.err.print(f"Taken back: {taken}", style="dim", markup=False)

    def frames(self, argument: str) -> None:
        videos = [item for item in self._items() if item.kind == "video"]
        if not videos:
            raise SessionError("No video was added yet: write /add FILE.")
        for item in videos:
            times = ", ".join(f"{time:.2f}" for time in item.times) or "unknown times"
            self.out.print(f"{item.name}: {times}", markup=False)

    def items(self, argument: str) -> None:
        for item in self._items():
            self.out.print(describe(self.chat, item), markup=False)

    def _items(self) -> list[ChatItem]:
        if not self.chat.items:
            raise SessionError("Nothing was added yet: write /add FILE.")
        return self.chat.items

    def save(self, argument: str) -> None:
        folder = Path(argument).expanduser()
        self.chat.save(folder)
        self.err.print(f"Kept in {folder}: {self._summary()}", style="dim", markup=False)

    def load(self, argument: str) -> None:
        folder = Path(argument).expanduser()
        chat = self.chat
        self.chat = VideoLlamaChat.load(folder, chat.model, chat.processor, **chat.generation_kwargs)
        self.err.print(f"Goes on from {folder}: {self._summary()}", style="dim", markup=False)

    def _summary(self) -> str:
        counts = {"question": len(self.chat.turns), "item": len(self.chat.items)}
        return ", ".join(f"{count} {name}{'' if count == 1 else 's'}" for name, count in counts.items())

    def help(self, argument: str) -> None:
        table = Table.grid(padding=(0, 2))
        for name, command in self.commands.items():
            table.add_row(f"{name} {command.argument}".strip(), command.help)
        table.add_row("anything else", "Ask.")
        self.out.print(table, markup=False)

    def quit(self, argument: str) -> None:
        raise EndOfChat


class EndOfChat(Exception):
    """The user leaves."""


def file_names(argument: str) -> list[str]:
    """The files behind `/add`: one whose name may hold blanks, or several in the words of a shell."""
    if is_url(argument):
        return argument.split()
    if Path(argument).expanduser().exists():
        return [str(Path(argument).expanduser())]
    try:
        return [str(Path(word).expanduser()) for word in shlex.split(argument)]
    except ValueError:  # an apostrophe in a name
        return [argument]


@contextmanager
def first_interrupt_only() -> Iterator[None]:
    """Lets the first Ctrl-C raise `KeyboardInterrupt` and no other: the answer that it stops has to come to its end."""

    def stop(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    if current_thread() is not main_thread():
        yield
        return
    usual = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


@contextmanager
def history(file: Path, complete: Callable[[str], list[str]]) -> Iterator[None]:
    """Line editing, completion by Tab, and the lines of earlier sessions; nothing of that where Python has no readline.

    Args:
        file: Where lines are kept, readable by the user alone. A folder that can't be written to keeps nothing.
        complete: The lines that a begun one can become.
    """
    try:
        import readline
    except ImportError:
        yield
        return

    def nth_completion(text: str, number: int) -> str | None:
        return dict(enumerate(complete(text))).get(number)

    readline.set_completer(nth_completion)
    readline.set_completer_delims("")
    is_libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")
    readline.set_history_length(HISTORY_LENGTH)
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
        readline.read_history_file(file)
    try:
        yield
    finally:
        with suppress(OSError):
            readline.write_history_file(file)
