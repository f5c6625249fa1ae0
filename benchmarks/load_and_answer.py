# SPDX-License-Identifier: Apache-2.0
"""Loads a converted folder, asks it about a clip, and tells how long each took and the most memory (Linux).

python benchmarks/load_and_answer.py FOLDER CLIP
"""

import resource
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import AutoModelForMultimodalLM, AutoProcessor

import transformers_videollama  # noqa: F401, registers the Auto classes


def main(
    folder: Annotated[Path, typer.Argument(help="Of a converted model.")],
    clip: Annotated[str, typer.Argument(help="Path of a video.")],
    question: str = "What do you see and hear?",
    dtype: str = "bfloat16",
    device_map: str = "auto",
    max_new_tokens: int = 8,
) -> None:
    """Load a model and answer once."""

    def report(what: str, start: float) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{what}: {time.monotonic() - start:.0f} s, {peak:.2f} GiB at most so far", flush=True)

    start = time.monotonic()
    model = AutoModelForMultimodalLM.from_pretrained(folder, dtype=getattr(torch, dtype), device_map=device_map)
    processor = AutoProcessor.from_pretrained(folder)
    report(f"Loaded in {model.dtype} on {model.device}", start)

    messages = [{"role": "user", "content": [{"type": "video", "path": clip}, {"type": "text", "text": question}]}]
    start = time.monotonic()
    inputs = processor.apply_chat_template(
        messages,
        load_audio_from_video=True,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device)
    report(f"Clip read, {inputs['input_ids'].shape[1]} tokens", start)
    start = time.monotonic()
    output_ids = model.generate(**inputs, max_new_tokens=1, do_sample=False)
    report("First token", start)
    start = time.monotonic()
    output_ids = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    report(f"{max_new_tokens} tokens", start)
    print(repr(processor.decode(output_ids[0, inputs["input_ids"].shape[1] :])))


if __name__ == "__main__":
    typer.run(main)
