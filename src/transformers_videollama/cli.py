# SPDX-License-Identifier: Apache-2.0
"""The `videollama` command."""

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from transformers import AutoProcessor, GenerationConfig, PreTrainedTokenizerBase, TextStreamer
from transformers.utils import logging

from .configuration_video_llama import VideoLlamaConfig
from .conversion.convert_video_llama_to_hf import main as convert_command
from .conversion.export_video_llama_to_original import main as export_command
from .exceptions import NoAudioError, VideoLlamaError
from .media import MediaSource, has_audio
from .modeling_video_llama import VideoLlamaForConditionalGeneration
from .processing_video_llama import VideoLlamaProcessor


BUILT_IN = Path(__file__).parent / "checkpoints" / "default"

app = typer.Typer(help="Talk with Video-LLaMA about what it sees and hears.", no_args_is_help=True)
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

app.command(name="convert")(convert_command)
app.command(name="export")(export_command)


def load_model(model: Path | None) -> tuple[VideoLlamaForConditionalGeneration, VideoLlamaProcessor]:
    """A converted checkpoint, or the built-in one.

    Args:
        model: Folder of a checkpoint. None for the built-in model, which is tiny, and random until a trained one exists.
    """
    if model is not None:
        network = VideoLlamaForConditionalGeneration.from_pretrained(
            model, device_map="auto" if torch.cuda.is_available() else None
        )
        return network.eval(), AutoProcessor.from_pretrained(model)
    err.print(
        "The built-in model is tiny and its weights are [bold]random[/bold]: it shows that everything works, but its answer "
        "means nothing. Give a converted checkpoint by --model.",
        style="yellow",
    )
    torch.manual_seed(0)
    network = VideoLlamaForConditionalGeneration(VideoLlamaConfig.from_pretrained(BUILT_IN))
    network.generation_config = GenerationConfig.from_pretrained(BUILT_IN)
    return network.eval(), AutoProcessor.from_pretrained(BUILT_IN)


class AnswerStreamer(TextStreamer):
    """Prints an answer as it comes, without the stop string that ends it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_string: str = ""):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.stop_string = stop_string
        self.pending = ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.pending += text
        # What may be the beginning of the stop string is held back until it is known
        held = max(n for n in range(len(self.stop_string) + 1) if self.pending.endswith(self.stop_string[:n]))
        if stream_end:
            out.print(self.pending.removesuffix(self.stop_string), markup=False)
        elif held < len(self.pending):
            out.print(self.pending[: len(self.pending) - held], end="", markup=False)
            self.pending = self.pending[len(self.pending) - held :]


def describe(clip: MediaSource, inputs: dict) -> str:
    """One line on what the model is given of a clip."""
    metadata = inputs["video_metadata"][0]
    times = metadata.timestamps
    sound = f"sound in {inputs['input_features'].shape[1]} segments" if "input_features" in inputs else "no sound"
    length = f" of {metadata.duration:.1f}" if metadata.duration else ""
    return f"{clip.name}: {len(times)} frames from {times[0]:.1f} to {times[-1]:.1f}{length} seconds, {sound}"


@app.command()
def ask(
    clip: Annotated[str, typer.Argument(help="Path or URL of a video.")],
    question: Annotated[str, typer.Argument(help="What to ask about it.")],
    model: Annotated[
        Path | None, typer.Option(help="Folder of a converted checkpoint.", show_default="built-in")
    ] = None,
    audio: Annotated[
        bool | None,
        typer.Option(
            "--audio/--no-audio", help="Demand the sound, or do without.", show_default="sound if there is any"
        ),
    ] = None,
    num_frames: Annotated[int, typer.Option(min=1, help="Frames to look at.")] = 8,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Length of the answer at most.", show_default="the checkpoint's")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
) -> None:
    """Ask about a video with its sound. The answer is streamed; what was seen and heard is told first."""
    logging.set_verbosity_error()
    try:
        media = MediaSource.of(clip)
        is_heard = audio is not False and has_audio(media)
        if audio and not is_heard:
            raise NoAudioError(f"{clip} has no audio track: leave out --audio, or give a clip with sound.")
        network, processor = load_model(model)
        content = [{"type": "video", "video": media}, {"type": "text", "text": question}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            load_audio_from_video=is_heard,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"num_frames": num_frames, "return_metadata": True},
        )
    except (VideoLlamaError, OSError, ImportError, ValueError) as error:
        err.print(f"Error: {error}", style="red", markup=False)
        raise typer.Exit(1) from error

    err.print(describe(media, inputs), style="dim", markup=False)
    inputs.pop("video_metadata")
    torch.manual_seed(seed)
    length = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
    stop_string, *_ = network.generation_config.stop_strings or [""]
    streamer = AnswerStreamer(processor.tokenizer, stop_string)
    network.generate(**inputs.to(network.device), **length, streamer=streamer)
