# SPDX-License-Identifier: Apache-2.0
"""How long the first token of a follow-up takes in a chat session, against running the whole prompt again.

    python benchmarks/chat.py CLIP --tokenizer FOLDER

Weights are random; the sizes are those of the released vision and audio towers with fewer layers, or what `--config` says.
"""

import json
import statistics
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import AutoTokenizer

from transformers_videollama import (
    VideoLlamaChat,
    VideoLlamaConfig,
    VideoLlamaFeatureExtractor,
    VideoLlamaForConditionalGeneration,
    VideoLlamaImageProcessor,
    VideoLlamaProcessor,
    VideoLlamaVideoProcessor,
)


# A quarter of the layers of the 7B release, at its widths but LLaMA's
SIZES = {
    "text_config": {"model_type": "llama", "hidden_size": 1024, "intermediate_size": 2752, "num_hidden_layers": 8, "num_attention_heads": 8},
    "vision_config": {"num_hidden_layers": 10},
    "qformer_config": {"num_hidden_layers": 4},
    "audio_config": {"audio_config": {"num_hidden_layers": 3}, "vision_config": None},
}  # fmt: skip


def main(
    clip: Annotated[Path, typer.Argument(help="Path of a video with sound.")],
    tokenizer: Annotated[Path, typer.Option(help="Folder of a LLaMA tokenizer.")],
    config: Annotated[Path | None, typer.Option(help="VideoLlamaConfig as JSON.")] = None,
    repeats: int = 5,
) -> None:
    """Time the first token of turn 2, both ways in turn."""
    torch.manual_seed(0)
    loaded = VideoLlamaProcessor(
        VideoLlamaImageProcessor(),
        VideoLlamaVideoProcessor(),
        VideoLlamaFeatureExtractor(),
        AutoTokenizer.from_pretrained(tokenizer),
    )
    fields = SIZES if config is None else json.loads(config.read_text())
    model = VideoLlamaForConditionalGeneration(VideoLlamaConfig(**fields)).eval()
    options = {"do_sample": False, "max_new_tokens": 16, "min_new_tokens": 16}
    questions = ("What do you see and hear?", "What happens first?")

    cached, rerun = [], []
    for _ in range(repeats):
        chat = VideoLlamaChat(model, loaded, **options)
        chat.add_video(clip)
        first = chat.ask(questions[0])
        start = time.perf_counter()
        second = chat.ask(questions[1], max_new_tokens=1, min_new_tokens=1)
        cached.append(time.perf_counter() - start)

        start = time.perf_counter()
        messages = [
            {
                "role": "user",
                "content": [{"type": "video", "path": str(clip)}, {"type": "text", "text": questions[0]}],
            },
            {"role": "assistant", "content": first},
            {"role": "user", "content": questions[1]},
        ]
        inputs = loaded.apply_chat_template(
            messages, load_audio_from_video=True, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )  # fmt: skip
        output_ids = model.generate(**inputs, do_sample=False, max_new_tokens=1)
        rerun.append(time.perf_counter() - start)
        assert loaded.decode(output_ids[0, -1:], skip_special_tokens=True).strip() == second
    ratios = [whole / part for whole, part in zip(rerun, cached)]
    print(
        f"first token of turn 2: {statistics.median(cached):.3f} s in the session, {statistics.median(rerun):.3f} s anew"
    )
    print(
        f"ratio: median {statistics.median(ratios):.1f}, from {min(ratios):.1f} to {max(ratios):.1f} ({repeats} pairs)"
    )


if __name__ == "__main__":
    typer.run(main)
