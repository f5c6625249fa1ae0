# SPDX-License-Identifier: Apache-2.0
"""Steps per second and peak memory of training, with and without a cache of the frozen encoders' features.

    python benchmarks/feature_cache.py CLIP CLIP … --tokenizer FOLDER --fraction 0.125

Weights are random. Widths are those of the 7B release; of its layers, each frozen part has the same fraction: ViT-G/14 has 39 of
them, BLIP-2's Q-Former 12, LLaMA 32, ImageBind's vision trunk 32; and of LLaMA's 32,000 tokens too, so that the LM head has its
share. What is trained is whole. The precision is what `videollama train` takes by itself: fp32 on the CPU, and bf16 with what is
trained in fp32 on a GPU. Steps of both kinds are done in turn, and one of each is a pair. A step without a cache decodes its clips
in the same process, as `dataloader_num_workers=0` does; how long that takes is told.

On a machine that others use too, give `--threads 1`, and read the ratio of CPU seconds: it has no waiting in it.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from transformers import AutoTokenizer, set_seed

from transformers_videollama import (
    VideoLlamaConfig,
    VideoLlamaFeatureExtractor,
    VideoLlamaForConditionalGeneration,
    VideoLlamaImageProcessor,
    VideoLlamaProcessor,
    VideoLlamaVideoProcessor,
)
from transformers_videollama.training.cache import FeatureCache, cache_features
from transformers_videollama.training.collator import VideoLlamaDataCollator
from transformers_videollama.training.encoding import SampleEncoder


WORD = " ball"
VOCABULARY = 32000


class Step(NamedTuple):
    """What a step took: seconds in all and for reading, the same of CPU time, memory, and tokens of a sample."""

    seconds: float
    reading: float
    cpu: float
    reading_cpu: float
    gib: float
    tokens: int


def config_of(fraction: float) -> VideoLlamaConfig:
    def layers(number: int) -> dict[str, int]:
        return {"num_hidden_layers": max(1, round(number * fraction))}

    text = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32}
    return VideoLlamaConfig(
        text_config={**text, **layers(32), "vocab_size": round(VOCABULARY * fraction)},
        vision_config=layers(39),
        qformer_config=layers(12),
        audio_config={"audio_config": layers(12), "vision_config": layers(32)},
    )


def make_model(
    fraction: float, branch: str, device: str, precision: torch.dtype
) -> VideoLlamaForConditionalGeneration:
    torch.set_default_dtype(precision)
    with torch.device(device):
        model = VideoLlamaForConditionalGeneration(config_of(fraction))
    torch.set_default_dtype(torch.float32)
    model.set_trainable(branch)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model.train()


def reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: str) -> float:
    """GiB since the last reset: allocated on the GPU, or resident on Linux."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20


def main(
    clips: Annotated[list[Path], typer.Argument(help="Videos; a batch goes through them in turn.")],
    tokenizer: Annotated[Path, typer.Option(help="Folder of a LLaMA tokenizer.")],
    fraction: Annotated[float, typer.Option(help="Of the layers of each frozen part.")] = 0.25,
    branch: Annotated[str, typer.Option(help="vision_branch, audio_branch (from frames) or both.")] = "vision_branch",
    text_tokens: Annotated[int, typer.Option(help="Of a caption; those of the clip come to it.")] = 28,
    batch_size: int = 2,
    pairs: int = 5,
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16.", show_default="by the device")] = None,
    threads: Annotated[int | None, typer.Option(help="Of the CPU.", show_default="all")] = None,
) -> None:
    """Time steps of training, both ways in turn."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if threads is not None:
        torch.set_num_threads(threads)
    precision = precision or ("bf16" if device == "cuda" else "fp32")
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    set_seed(0)
    processor = VideoLlamaProcessor(
        VideoLlamaImageProcessor(),
        VideoLlamaVideoProcessor(),
        VideoLlamaFeatureExtractor(),
        AutoTokenizer.from_pretrained(tokenizer),
    )
    caption = WORD * text_tokens
    samples = [
        {
            "id": str(number),
            "layout": "caption",
            "messages": [
                {"role": "user", "content": [{"type": "video", "path": str(clip)}]},
                {"role": "assistant", "content": caption},
            ],
        }
        for number, clip in enumerate(clips)
    ]
    model = make_model(fraction, branch, device, dtype)
    counts = {part.name: part.num_parameters / 1e6 for part in model.trainable_parts()}
    print(", ".join(f"{name} {count:.0f}M" for name, count in counts.items() if count >= 1))
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-5)

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        cache_features(samples, folder, model, processor, branch=branch)
        print(f"cache of {len(clips)} clips: {time.perf_counter() - start:.1f} s", end=", ")
        start = time.perf_counter()
        cache = FeatureCache(folder, model, processor, branch=branch)
        print(f"opened, weights compared, in {time.perf_counter() - start:.1f} s")
        encoders = {
            "without": SampleEncoder(processor, branch=branch),
            "with": SampleEncoder(processor, branch=branch, feature_cache=cache),
        }
        collators = {name: VideoLlamaDataCollator(processor, encoder) for name, encoder in encoders.items()}

        def step(name: str, number: int) -> Step:
            reset_peak(device)
            rows = [samples[(number * batch_size + place) % len(samples)] for place in range(batch_size)]
            set_seed(number)
            start, start_cpu = time.perf_counter(), time.process_time()
            batch = collators[name](rows)
            for key in ("input_ids", "labels"):
                is_word = (batch[key] >= 0) & (batch[key] < VOCABULARY)
                batch[key] = torch.where(is_word, batch[key] % model.config.text_config.vocab_size, batch[key])
            batch = {key: value.to(device) for key, value in batch.items()}
            reading, reading_cpu = time.perf_counter() - start, time.process_time() - start_cpu
            with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
                loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
            return Step(seconds, reading, cpu, reading_cpu, peak(device), batch["input_ids"].shape[1])

        for name in encoders:
            step(name, 0)
        results = [{name: step(name, number) for name in encoders} for number in range(1, pairs + 1)]

    shape = f"batch {batch_size} of {results[0]['with'].tokens} tokens"
    print(f"{device}, {torch.get_num_threads()} threads, {precision}, {shape}, {branch}")
    for name in encoders:
        steps = [pair[name] for pair in results]
        seconds = [step.seconds for step in steps]
        print(
            f"{name:>7} the cache: {1 / statistics.median(seconds):.3f} steps/s ({statistics.median(seconds):.2f} s, "
            f"{min(seconds):.2f} to {max(seconds):.2f}; of it reading {statistics.median(step.reading for step in steps):.3f}; "
            f"{statistics.median(step.cpu for step in steps):.2f} s of CPU), {max(step.gib for step in steps):.2f} GiB at most"
        )
    measures = {
        "all": lambda step: step.seconds,
        "all but reading": lambda step: step.seconds - step.reading,
        "CPU": lambda step: step.cpu,
        "CPU but reading": lambda step: step.cpu - step.reading_cpu,
    }
    for name, measure in measures.items():
        ratios = [measure(pair["without"]) / measure(pair["with"]) for pair in results]
        print(
            f"ratio of seconds, {name}: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f} ({pairs} pairs)"
        )


if __name__ == "__main__":
    typer.run(main)
