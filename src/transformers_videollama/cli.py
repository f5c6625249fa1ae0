# SPDX-License-Identifier: Apache-2.0
"""The `videollama` command."""

import filecmp
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import AutoProcessor
from transformers.utils import logging

from .captioning import QUESTION, Caption, FailedFile, caption_files, failures_path, uncaptioned
from .chat import VideoLlamaChat
from .conversion.convert_video_llama_to_hf import main as convert_command
from .conversion.export_video_llama_to_original import main as export_command
from .exceptions import NoAudioError
from .files import expand_files, media_kind
from .media import MediaSource, has_audio
from .modeling_video_llama import VideoLlamaForConditionalGeneration
from .processing_video_llama import VideoLlamaProcessor
from .terminal_chat import USER_ERRORS, TerminalChat, add_media, describe
from .training.cache import cache_features_command


PACKAGE = Path(__file__).resolve().parent
BUILT_IN = PACKAGE / "checkpoints" / "default"
ASSETS = PACKAGE / "assets"
SMALL_WORLD = (
    "The built-in model knows only a small world of its own, about fifty drawn things and their sounds: its answer about "
    "anything else means nothing.\n"
    "For the real weights: videollama convert --release Video-LLaMA-2-7B-Finetuned --output DIR, and then --model DIR."
)

app = typer.Typer(help="Talk with Video-LLaMA about what it sees and hears.", no_args_is_help=True)
# An answer is printed as it is, also where it holds what rich takes for the name of an emoji
out = Console(highlight=False, soft_wrap=True, emoji=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

app.command(name="convert")(convert_command)
app.command(name="export")(export_command)
app.command(name="cache-features")(cache_features_command)

# Options of several commands
ModelOption = Annotated[Path | None, typer.Option(help="Folder of a converted checkpoint.", show_default="built-in")]
AudioOption = Annotated[
    bool | None,
    typer.Option("--audio/--no-audio", help="Demand the sound, or do without.", show_default="sound if there is any"),
]
FramesOption = Annotated[int, typer.Option(min=1, help="Frames of a video to look at.")]
LengthOption = Annotated[
    int | None, typer.Option(min=1, help="Tokens of an answer at most.", show_default="the checkpoint's")
]
SeedOption = Annotated[int, typer.Option(help="Of the sampling.")]


def load_model(model: Path | None) -> tuple[VideoLlamaForConditionalGeneration, VideoLlamaProcessor]:
    """A converted checkpoint, or the built-in one.

    Args:
        model: Folder of a checkpoint. None for the built-in model, which is small.
    """
    has_gpu = torch.cuda.is_available()
    # The built-in weights are kept in bfloat16 for the size of the file; many a CPU is slow at it
    options = {"dtype": torch.float32} if model is None and not has_gpu else {}
    folder = BUILT_IN if model is None else model
    # It is loaded before one could see how far it is
    with no_progress_bar() if model is None else nullcontext():
        network = VideoLlamaForConditionalGeneration.from_pretrained(
            folder, device_map="auto" if has_gpu else None, **options
        )
    return network.eval(), AutoProcessor.from_pretrained(folder)


@contextmanager
def no_progress_bar() -> Iterator[None]:
    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def remark_on(files: Iterable[str]) -> str | None:
    """What has to be said before the built-in model answers about some files; nothing for the samples of the package."""
    return None if all(map(is_sample, files)) else SMALL_WORLD


def is_sample(file: str) -> bool:
    """Whether a file is one of the package's clips, wherever it lies: a clone has its own beside those that are installed."""
    return Path(file).is_file() and any(filecmp.cmp(file, clip, shallow=False) for clip in ASSETS.glob("*.mp4"))


@contextmanager
def errors_told() -> Iterator[None]:
    """Ends the command with one line and exit code 1 where the user's files or words are at fault."""
    logging.set_verbosity_error()
    try:
        yield
    except USER_ERRORS as error:
        err.print(f"Error: {error}", style="red", markup=False)
        raise typer.Exit(1) from error


def open_chat(
    clips: list[str], model: Path | None, audio: bool | None, num_frames: int, max_new_tokens: int | None
) -> VideoLlamaChat:
    """A conversation about clips, after a line on what is looked at of each."""
    # Files are looked at before the model is loaded, which takes longest
    sources = [MediaSource.of(clip) for clip in clips]
    for source in sources:
        if media_kind(source) == "video" and audio and not has_audio(source):
            raise NoAudioError(f"{source.name} has no audio track: leave out --audio, or give a clip with sound.")
    network, processor = load_model(model)
    length = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
    chat = VideoLlamaChat(network, processor, **length)
    for source in sources:
        item = add_media(chat, source, audio, num_frames)
        err.print(describe(chat, item), style="dim", markup=False)
    return chat


@app.command()
def ask(
    clip: Annotated[str, typer.Argument(help="Path or URL of a video, picture or sound.")],
    question: Annotated[str, typer.Argument(help="What to ask about it.")],
    model: ModelOption = None,
    audio: AudioOption = None,
    num_frames: FramesOption = 8,
    max_new_tokens: LengthOption = None,
    seed: SeedOption = 0,
) -> None:
    """Ask about a video with its sound. The answer is streamed; what was seen and heard is told first."""
    with errors_told():
        chat = open_chat([clip], model, audio, num_frames, max_new_tokens)
        torch.manual_seed(seed)
        TerminalChat(chat, out, err, remark=remark_on if model is None else None).ask(question)


@app.command(name="chat")
def chat_command(
    clips: Annotated[
        list[str] | None, typer.Argument(metavar="[CLIP]...", help="Paths or URLs of videos, pictures or sounds.")
    ] = None,
    model: ModelOption = None,
    audio: AudioOption = None,
    num_frames: FramesOption = 8,
    max_new_tokens: LengthOption = None,
    seed: SeedOption = 0,
) -> None:
    """Talk about videos, pictures and sounds. Answers are streamed; /help shows the commands.

    Where questions come through a pipe, each line is one, and the exit code is 1 if one of them failed.
    """
    with errors_told():
        chat = open_chat(clips or [], model, audio, num_frames, max_new_tokens)
    torch.manual_seed(seed)
    terminal = TerminalChat(chat, out, err, audio, num_frames, remark_on if model is None else None)
    if sys.stdin.isatty():
        terminal.talk()
        return
    with errors_told():
        is_fine = terminal.read(sys.stdin)
    if not is_fine:
        raise typer.Exit(1)


@app.command()
def caption(
    files: Annotated[
        list[str],
        typer.Argument(help="Files, URLs, folders (the videos in them), and patterns such as 'clips/**/*.mp4'."),
    ],
    output: Annotated[Path, typer.Option("--out", help="JSON Lines file, which is added to.")] = Path(
        "captions.jsonl"
    ),
    question: Annotated[str, typer.Option(help="What is asked of every file.")] = QUESTION,
    model: ModelOption = None,
    audio: AudioOption = None,
    num_frames: FramesOption = 8,
    max_new_tokens: LengthOption = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Files that the model is given at once.")] = 8,
    num_workers: Annotated[int, typer.Option(min=0, help="Processes that read files while the model answers.")] = 2,
) -> None:
    """Caption many files, a line of JSON for each, in the order of the files.

    Files that have their line are not done again: a run that was ended goes on where it stopped. Files that fail are listed
    at the end, and beside the output with their reasons; they are tried again by the next run, and the exit code is 1.
    """
    # The processes that read are forked, of which the tokenizer would warn in the middle of the progress bar
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with errors_told():
        files = expand_files(files)
        settings = {
            "question": question,
            "model_name": "built-in" if model is None else str(model),
            "audio": audio,
            "num_frames": num_frames,
        }
        # Before the model is loaded, which takes longest
        waiting = uncaptioned(files, output, **settings)
        if num_done := len(files) - len(waiting):
            err.print(
                f"{num_done} of {len(files)} files have their caption in {output} already.", style="dim", markup=False
            )
        if not waiting:
            return
        network, processor = load_model(model)
        if model is None and (remark := remark_on(waiting)):
            err.print(remark, style="yellow", markup=False)
        length = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        with Progress(*columns, TimeRemainingColumn(), console=err) as progress:
            task = progress.add_task("files", total=len(files), completed=num_done)
            num_failed = 0

            def tell(result: Caption | FailedFile) -> None:
                nonlocal num_failed
                num_failed += isinstance(result, FailedFile)
                failed = f", {num_failed} failed" if num_failed else ""
                progress.update(task, advance=1, description=f"files{failed}")

            try:
                report = caption_files(
                    files,
                    output,
                    network,
                    processor,
                    batch_size=batch_size,
                    num_workers=num_workers,
                    on_done=tell,
                    **settings,
                    **length,
                )
            except KeyboardInterrupt:
                err.print("Stopped. The same command goes on from here.")
                raise typer.Exit(130) from None
    err.print(f"Captions written to {output}: {len(report.captions)}", markup=False)
    if report.failed:
        err.print(f"Files that failed, see {failures_path(output)}: {len(report.failed)}", style="red", markup=False)
        for failure in report.failed:
            is_named = failure.reason.startswith(failure.file)
            err.print(f"  {'' if is_named else f'{failure.file}: '}{failure.reason}", style="red", markup=False)
        raise typer.Exit(1)


@app.command(
    name="train",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def train_command(context: typer.Context) -> None:
    """Train on clips of your own, or as published: train --recipe vl_stage1 --model DIR --data SPEC; see train --help."""
    # What training needs takes seconds to import
    from .training.run import main

    raise typer.Exit(main(context.args))
