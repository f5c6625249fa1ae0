# Copyright 2026 The transformers_videollama authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""`videollama train`, and the same under `accelerate launch -m transformers_videollama.training`."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import snapshot_download
from peft import PeftModel, get_peft_model
from rich.console import Console
from rich.table import Table
from safetensors import safe_open
from transformers import AutoProcessor, ProcessorMixin

from ..branches import load_branch
from ..exceptions import FeatureCacheError, VideoLlamaError
from ..modeling_video_llama import VideoLlamaForConditionalGeneration
from .arguments import ACCELERATE_CONFIGS, TrainingArgumentParser, VideoLlamaTrainingArguments, find_recipe
from .cache import FeatureCache
from .collator import VideoLlamaDataCollator
from .dataset import StreamingTrainingDataset, TrainingDataset
from .encoding import SampleEncoder
from .formats import load_training_data
from .peft import lora_config, prepare_for_lora, quantization_config
from .trainer import VideoLlamaTrainer, last_checkpoint


# What made a run, as a recipe that makes it again
ARGUMENTS_NAME = "training_arguments.yaml"
FAILURES_NAME = "failures.jsonl"

out = Console(highlight=False, soft_wrap=True, emoji=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


class SetupError(VideoLlamaError):
    """An error of the library before training begins, which is about what the user gave."""


def main(argv: Sequence[str] | None = None) -> int:
    """Trains as the command line says.

    Args:
        argv: Without the name of the program; that of this process if not given.

    Returns:
        Exit code: 1 where the user's files or words are at fault, after one line that says why.
    """
    # Workers are forked, of which the tokenizer would warn
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        with _setting_up():
            args, given = TrainingArgumentParser().parse(list(sys.argv[1:] if argv is None else argv))
            if args is None:
                print(_where(given["where"]))
                return 0
        train(args, given)
    except (VideoLlamaError, OSError, ImportError, torch.OutOfMemoryError) as error:
        err.print(f"Error: {_one_line(error)}", style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        err.print("Stopped. The same command with --resume_from_checkpoint auto goes on from the last checkpoint.")
        return 130
    return 0


def train(args: VideoLlamaTrainingArguments, given: dict[str, Any] | None = None) -> VideoLlamaTrainer:
    """A whole run: loads model and data, trains, evaluates if there is something to evaluate on, and saves.

    Args:
        args: The settings. `model` and `data` must be set.
        given: The settings as a recipe, which is written beside the results.

    Returns:
        The trainer, after the run.

    Raises:
        VideoLlamaError: If settings, data or checkpoints do not fit.
    """
    with _setting_up():
        checkpoint = _check(args)
        trainer = make_trainer(args)
    if trainer.is_world_process_zero():
        _tell(trainer)
        if given is not None:
            text = yaml.safe_dump(given, sort_keys=False, allow_unicode=True)
            (Path(args.output_dir) / ARGUMENTS_NAME).write_text(text, encoding="utf-8")
    trainer.train(resume_from_checkpoint=checkpoint)
    if args.eval_data and args.eval_strategy == "no":
        trainer.log_metrics("eval", trainer.evaluate())
    trainer.save_model()
    if trainer.is_world_process_zero():
        trainer.state.save_to_json(os.path.join(args.output_dir, "trainer_state.json"))
        if num_failed := getattr(trainer.train_dataset, "num_failed", 0):
            path = Path(args.output_dir) / FAILURES_NAME
            err.print(
                f"Samples that could not be read and were skipped, see {path}: {num_failed}", style="red", markup=False
            )
        out.print(f"Trained for {trainer.state.global_step} steps. Written to {args.output_dir}", markup=False)
    return trainer


def make_trainer(args: VideoLlamaTrainingArguments) -> VideoLlamaTrainer:
    """Model, data and trainer of a run, ready to begin.

    Raises:
        VideoLlamaError: If settings, data or checkpoints do not fit.
    """
    processor = AutoProcessor.from_pretrained(args.model)
    model = load_model(args)
    encoder = make_encoder(args, processor, model)
    # After the weights were compared with those of the cache
    set_precision(model, args.dtype)
    if args.lora_rank is not None:
        model = add_lora(model, args)
    failures = Path(args.output_dir) / FAILURES_NAME
    with args.main_process_first(desc="reading the lists of samples"):
        train_dataset = make_dataset(args, args.data, encoder, failures)
        eval_dataset = None
        if args.eval_data:
            eval_failures = failures.with_stem(f"{failures.stem}.eval")
            eval_dataset = make_dataset(args, args.eval_data, encoder, eval_failures, is_streamed=False)
    trainer = VideoLlamaTrainer(
        model=model,
        args=args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        data_collator=VideoLlamaDataCollator(processor),
        processing_class=processor,
    )
    if trainer.keeps_trained_only and not args.save_complete_model:
        # Before hours of training, not after them
        trainer.trained_branches()
    return trainer


def load_model(args: VideoLlamaTrainingArguments) -> VideoLlamaForConditionalGeneration:
    """The model of a run, with what it begins with, in the precision of its checkpoint.

    Raises:
        CheckpointError: If a branch checkpoint does not fit.
        ValueError: If the model has no part that is to be trained.
    """
    quantization = {}
    if args.quantize_bits is not None:
        quantization["quantization_config"] = quantization_config(args.quantize_bits)
    model = VideoLlamaForConditionalGeneration.from_pretrained(args.model, **quantization)
    model.set_trainable(*args.trainable)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    restore_precision(model, args.model)
    for source in args.init_branches:
        load_branch(model, source)
    return model


def restore_precision(model: VideoLlamaForConditionalGeneration, name: str) -> None:
    """Reads what is trained once more, as it is stored: a checkpoint is loaded in one precision, most often a half one, but
    holds the branches in float32."""
    folder = Path(name)
    if not folder.is_dir():
        folder = Path(snapshot_download(name, allow_patterns=["*.safetensors", "*.json"]))
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, framework="pt") as file, torch.no_grad():
            for key in trained.keys() & set(file.keys()):
                trained[key].copy_(file.get_tensor(key))


def set_precision(model: VideoLlamaForConditionalGeneration, dtype: torch.dtype) -> None:
    """Puts frozen parts in the precision of the computation, and keeps trained ones in fp32."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else dtype)


def add_lora(model: VideoLlamaForConditionalGeneration, args: VideoLlamaTrainingArguments) -> PeftModel:
    """LoRA on LLaMA, and the branches that are trained beside it."""
    branches = args.trainable[0] if len(set(args.trainable)) == 1 else "both"
    alpha = 2 * args.lora_rank if args.lora_alpha is None else args.lora_alpha
    config = lora_config(branches, r=args.lora_rank, lora_alpha=alpha, lora_dropout=args.lora_dropout)
    return get_peft_model(prepare_for_lora(model, config), config)


def make_encoder(
    args: VideoLlamaTrainingArguments, processor: ProcessorMixin, model: VideoLlamaForConditionalGeneration
) -> SampleEncoder:
    """What makes a sample into inputs of the model, as the arguments say.

    Raises:
        FeatureCacheError: If the features of the cache are of other weights or other settings.
        VideoLlamaError: If the model lacks what the branch needs.
    """
    audio_config = model.config.audio_config
    if args.branch != "vision_branch" and audio_config is None:
        raise VideoLlamaError(f"{args.model} has no audio branch: convert one with it, or train the vision_branch.")
    sizes = {}
    if audio_config is not None and audio_config.vision_config is not None:
        sizes["audio_frame_size"] = audio_config.vision_config.image_size
    elif args.branch != "vision_branch" and args.audio_from == "frames":
        raise VideoLlamaError(
            f"{args.model} has no ImageBind vision trunk, which the audio branch is trained through: convert one that "
            "has it, or set audio_from to sound."
        )
    encoder = SampleEncoder(
        processor,
        branch=args.branch,
        max_text_tokens=args.text_limits,
        original_labels=args.original_labels,
        num_frames=args.num_frames,
        sampling=args.sampling,
        audio_from=args.audio_from,
        load_audio_from_video=args.load_audio_from_video,
        seed=args.seed,
        **sizes,
    )
    if args.feature_cache is not None:
        cache = FeatureCache.for_encoder(encoder, args.feature_cache, model)
        if trained := cache.trained_parts(model):
            raise FeatureCacheError(
                f"{', '.join(trained)} is to be trained, but {args.feature_cache} stands in its place: train without a cache, or "
                "leave it frozen."
            )
        encoder.feature_cache = cache
    return encoder


def make_dataset(
    args: VideoLlamaTrainingArguments,
    sources: list[str],
    encoder: SampleEncoder,
    failures: Path,
    is_streamed: bool | None = None,
) -> TrainingDataset | StreamingTrainingDataset:
    """Samples of some sources, encoded as they are asked for."""
    is_streamed = args.streaming if is_streamed is None else is_streamed
    rows = load_training_data(sources, streaming=is_streamed, seed=args.seed)
    limits = {"max_failures": args.max_failures, "failures_path": failures}
    if is_streamed:
        return StreamingTrainingDataset(rows, encoder, seed=args.seed, **limits)
    return TrainingDataset(rows, encoder, **limits)


def parts_table(trainer: VideoLlamaTrainer) -> Table:
    """What is trained and what is frozen."""
    table = Table("part", "parameters", "trained", title="What is trained")
    for column in table.columns[1:]:
        column.justify = "right"
    totals = [0, 0]
    for part in trainer.accelerator.unwrap_model(trainer.model).trainable_parts():
        table.add_row(
            part.name,
            f"{part.num_parameters:,}",
            f"{part.num_trainable:,}" if part.num_trainable else "frozen",
            style="bold" if part.num_trainable else "dim",
        )
        totals = [totals[0] + part.num_parameters, totals[1] + part.num_trainable]
    table.add_section()
    table.add_row("all", *(f"{total:,}" for total in totals))
    return table


def _tell(trainer: VideoLlamaTrainer) -> None:
    args = trainer.args
    out.print(parts_table(trainer))
    for name, dataset in (("train", trainer.train_dataset), ("evaluate", trainer.eval_dataset)):
        if dataset is not None:
            count = f"{len(dataset):,}" if hasattr(dataset, "__len__") else "a stream of"
            out.print(f"Samples to {name} on: {count}", markup=False)
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    out.print(
        f"A step has {batch} samples: {args.world_size} x {args.train_batch_size} x {args.gradient_accumulation_steps} "
        f"(processes, batch, accumulation), in {args.precision}",
        markup=False,
    )


def _check(args: VideoLlamaTrainingArguments) -> Path | None:
    """Looks at what can be looked at before the model is loaded.

    Returns:
        The checkpoint to go on from.
    """
    if args.model is None:
        raise VideoLlamaError("No model was given: --model FOLDER, a converted checkpoint.")
    if (os.sep in args.model or args.model.startswith(".")) and not os.path.isdir(args.model):
        raise VideoLlamaError(f"There is no folder {args.model}: give that of a converted checkpoint by --model.")
    if not args.data:
        raise VideoLlamaError("No data were given: --data FORMAT=FILE, such as --data messages=clips.jsonl.")
    if args.predict_with_generate and not args.eval_data:
        raise VideoLlamaError("predict_with_generate needs samples to answer: --eval_data FORMAT=FILE.")
    if args.eval_strategy != "no" and not args.eval_data:
        raise VideoLlamaError("eval_strategy needs samples to evaluate on: --eval_data FORMAT=FILE.")
    if "tensorboard" in args.report_to and find_spec("tensorboard") is None:
        raise VideoLlamaError("TensorBoard is not installed: pip install tensorboard, or give --report_to none.")
    last = last_checkpoint(args.output_dir)
    wanted = str(args.resume_from_checkpoint or "false")
    if wanted.lower() == "auto":
        return last
    if wanted.lower() == "true":
        if last is None:
            raise VideoLlamaError(
                f"{args.output_dir} holds no complete checkpoint to go on from: leave out --resume_from_checkpoint, or set it to "
                "auto."
            )
        return last
    if wanted.lower() != "false":
        return Path(wanted)
    if last is not None:
        raise VideoLlamaError(
            f"{args.output_dir} holds {last.name} of a run: --resume_from_checkpoint auto goes on with it, and another "
            "--output_dir begins anew."
        )
    return None


def _where(name: str) -> Path:
    config = ACCELERATE_CONFIGS / f"{name}.yaml"
    return config if config.is_file() else find_recipe(name)


@contextmanager
def _setting_up() -> Iterator[None]:
    """Before training begins, whatever the library finds to be wrong is about what the user gave."""
    try:
        yield
    except VideoLlamaError:
        raise
    except (ValueError, RuntimeError) as error:
        raise SetupError(str(error)) from error


def _one_line(error: BaseException) -> str:
    text = str(error)
    if "Original Traceback" in text:
        # A worker's error comes with its traceback in front
        text = text.strip().splitlines()[-1].partition(": ")[2]
    if isinstance(error, torch.OutOfMemoryError):
        text = f"The memory of the GPU does not suffice: lower per_device_train_batch_size. {text}"
    return " ".join(text.split()) or type(error).__name__
