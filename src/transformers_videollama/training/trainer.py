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
"""The library's Trainer, which keeps only what is trained, goes on after any end, and shows what the model says."""

import copy
import json
import os
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.data import DataLoader
from torch.utils.hooks import RemovableHandle
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.integrations import TensorBoardCallback
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput, TrainOutput, has_length
from transformers.utils import logging

from ..branches import save_branch
from ..exceptions import CheckpointError, MediaError, TrainingDataError, VideoLlamaError
from ..modeling_video_llama import BRANCHES
from .arguments import VideoLlamaTrainingArguments
from .encoding import IGNORED, SampleEncoder


logger = logging.get_logger(__name__)

# In a checkpoint of a run. Not `model.safetensors`, because `from_pretrained` would make up what is not in it
TRAINED_NAME = "trained.safetensors"
CAPTIONS_NAME = "captions.jsonl"
# What wrappers add to the names of parameters
WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")


def last_checkpoint(output_dir: str | os.PathLike) -> Path | None:
    """The last checkpoint of a run that is complete, however the run ended.

    The state of the trainer is written last: a checkpoint without it, or with a part of it, was never finished.
    """
    found = {}
    for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        step = path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
        if step.isdecimal() and is_complete(path):
            found[int(step)] = path
    return found[max(found)] if found else None


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end."""
    try:
        TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    except (OSError, ValueError, TypeError):
        return False
    return True


def let_all_take_part(model: nn.Module) -> RemovableHandle:
    """Gives a gradient of zero to every trained parameter of the branches and towers that the samples do not need.

    Without it, text alone has no gradient at all, and processes whose samples are of other kinds, such as pictures without
    sound, would wait for each other: for gradients under DDP, for shards of LLaMA's layers on the way back under FSDP2. So each
    of these parameters takes part in what LLaMA is given, times zero.
    """

    def add_nothing(module: nn.Module, args: tuple, embeds: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return embeds
        # LLaMA itself is always used
        firsts = [
            parameter.flatten()[:1].sum()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and "language_model." not in name and "lm_head." not in name
        ]
        if not firsts:
            return embeds
        return embeds + 0 * torch.stack([first.to(embeds.device, embeds.dtype) for first in firsts]).sum()

    return model.get_input_embeddings().register_forward_hook(add_nothing)


class VideoLlamaTrainer(Trainer):
    """[`~transformers.Trainer`] for Video-LLaMA. It trains what has `requires_grad`, see `model.set_trainable`.

    What is different:

    - A checkpoint holds the trained tensors (`trained.safetensors`) and the state of the optimizer for them, a few hundred
      megabytes beside a model of many gigabytes. It has the same format whatever number of processes wrote it, DDP or FSDP2.
      `from_pretrained` does not take it for a model. A PEFT model is kept in the library's way.
    - `train(resume_from_checkpoint=True)` goes on from the last checkpoint that is complete.
    - `save_model()` writes branch checkpoints, see [`save_branch`], or with `save_complete_model` the whole model.
    - Samples of any kinds may come in any order, in any process.
    - With `predict_with_generate`, the model answers some evaluation samples; `captions.jsonl` in the output folder tells what
      it said at which step, and `eval_exact_match` is the share of answers that are what was expected.

    - What is trained is in float32, whatever the precision of the rest.

    Args:
        args ([`VideoLlamaTrainingArguments`]): The settings.
        kwargs: As of [`~transformers.Trainer`]. Answers are made for an `eval_dataset` whose rows have `messages`, or which
            has such a `dataset` and its `encoder`, as [`TrainingDataset`] has.
    """

    args: VideoLlamaTrainingArguments

    def __init__(self, *, args: VideoLlamaTrainingArguments, **kwargs: Any):
        if args.n_gpu > 1:
            raise VideoLlamaError(
                f"{args.n_gpu} GPUs are seen by one process, which would deal out pictures and texts apart from each other: start "
                "with accelerate launch, or choose one by CUDA_VISIBLE_DEVICES=0."
            )
        super().__init__(args=args, **kwargs)
        # Steps of training are smaller than what half precision can tell apart
        for parameter in self.model.parameters():
            if parameter.requires_grad and parameter.dtype in (torch.float16, torch.bfloat16):
                parameter.data = parameter.data.float()
        let_all_take_part(self.model)
        self.add_callback(_SetEpoch(self))

    # -----------------------------------------------------------------------------------------------------------------
    # Checkpoints
    # -----------------------------------------------------------------------------------------------------------------
    @property
    def keeps_trained_only(self) -> bool:
        """Whether checkpoints are ours, and not the library's."""
        model = self.accelerator.unwrap_model(self.model)
        return not isinstance(model, PeftModel) and not self.is_deepspeed_enabled

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name, in the order of the model."""
        named = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                for wrapper in WRAPPERS:
                    name = name.replace(wrapper, "")
                named[name] = parameter
        return named

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """Trains.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): Folder of a checkpoint of a run with the same settings, or
                True for the last one in the output folder that is complete.
            kwargs: As of [`~transformers.Trainer`].

        Raises:
            CheckpointError: If there is none, if it holds other tensors than those that are trained, or if it is from after the
                first pass over a stream.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise CheckpointError(f"{self.args.output_dir} holds no complete checkpoint: begin anew.")
        if resume_from_checkpoint:
            if not is_complete(Path(resume_from_checkpoint)):
                raise CheckpointError(
                    f"{resume_from_checkpoint} is no complete checkpoint ({TRAINER_STATE_NAME} is missing or cut short): go on "
                    "from another one."
                )
            if (Path(resume_from_checkpoint) / TRAINED_NAME).is_file() and not self.keeps_trained_only:
                raise CheckpointError(
                    f"{resume_from_checkpoint} is of a run without adapters: go on without them, or begin anew in another folder."
                )
            resume_from_checkpoint = str(resume_from_checkpoint)
            state = TrainerState.load_from_json(os.path.join(resume_from_checkpoint, TRAINER_STATE_NAME))
            if not has_length(self.train_dataset) and state.epoch >= 1 and not self.args.ignore_data_skip:
                # The library counts the batches of a stream from its beginning, as if there were one pass
                raise CheckpointError(
                    f"{resume_from_checkpoint} is from after the first pass over a stream, where nobody knows which samples come "
                    "next: set ignore_data_skip to begin with the first ones again."
                )
        return super().train(resume_from_checkpoint or None, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes what was trained: branch checkpoints, or with `save_complete_model` the whole model.

        Args:
            output_dir (`str`, *optional*): Where to, the output folder if not given.

        Raises:
            CheckpointError: If something beside the branches was trained, which only a complete model can hold.
        """
        if not self.keeps_trained_only or (self.args.save_complete_model and not _internal_call):
            config = self.accelerator.unwrap_model(self.model).config
            # The library's Trainer sets it for training, but it would slow down generation from what is saved
            use_cache = config.__dict__.pop("use_cache", None)
            try:
                super().save_model(output_dir, _internal_call)
            finally:
                config.use_cache = use_cache
            return
        output_dir = Path(self.args.output_dir if output_dir is None else output_dir)
        if _internal_call:
            self._save_trained(output_dir)
            return
        branches = self.trained_branches()
        # All processes hold a shard
        model = self.accelerator.unwrap_model(self.model)
        state_dict = self.accelerator.get_state_dict(self.model) if self.is_fsdp_enabled else None
        if self.args.should_save:
            for branch in branches:
                save_branch(model, output_dir, branch, state_dict=state_dict)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def trained_branches(self) -> list[str]:
        """The branches of which something is trained.

        Raises:
            CheckpointError: If something beside them is trained.
        """
        parts = dict.fromkeys(name.removeprefix("model.").split(".")[0] for name in self.trained_parameters())
        of_branch = {part: branch for branch, branch_parts in BRANCHES.items() for part in branch_parts}
        others = [part for part in parts if part not in of_branch]
        if others:
            raise CheckpointError(
                f"{', '.join(others)} is no part of a branch, so a branch checkpoint cannot hold it: set save_complete_model, or "
                "train it by PEFT."
            )
        return [branch for branch in BRANCHES if branch in {of_branch[part] for part in parts}]

    def _save_trained(self, folder: Path) -> None:
        tensors = {}
        for name, parameter in self.trained_parameters().items():
            tensor = _gather(parameter.detach())
            if self.args.should_save:
                tensors[name] = tensor.cpu().contiguous()
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(tensors, folder / TRAINED_NAME, metadata={"format": "pt"})

    def _load_trained(self, folder: Path) -> None:
        """Puts the tensors of a checkpoint in the place of those that are trained.

        Raises:
            CheckpointError: If there are others, or of other shapes.
        """
        path, parameters = Path(folder) / TRAINED_NAME, self.trained_parameters()
        if not path.is_file():
            raise CheckpointError(
                f"{folder} has no {TRAINED_NAME}: it is no checkpoint of such a run. Branches are loaded by init_branches, a "
                "whole model is given as model."
            )
        try:
            with safe_open(path, framework="pt") as file:
                shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
                wrong = [f"{name} is missing" for name in parameters.keys() - shapes.keys()]
                wrong += [f"{name} is not trained now" for name in shapes.keys() - parameters.keys()]
                wrong += [
                    f"{name} has the shape {shapes[name]}, expected {tuple(parameter.shape)}"
                    for name, parameter in parameters.items()
                    if name in shapes and shapes[name] != tuple(parameter.shape)
                ]
                if wrong:
                    raise CheckpointError(
                        f"{path} does not hold what is trained now: {'; '.join(sorted(wrong)[:5])}"
                        f"{f' and {len(wrong) - 5} more' if len(wrong) > 5 else ''}. Go on with the same model and trainable."
                    )
                with torch.no_grad():
                    for name, parameter in parameters.items():
                        parameter.copy_(_distribute(file.get_tensor(name), parameter))
        except SafetensorError as error:
            raise CheckpointError(f"{path} cannot be read ({error}): go on from another checkpoint.") from error

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.keeps_trained_only:
            self._load_trained(Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if self.keeps_trained_only:
            self._load_trained(Path(self.state.best_model_checkpoint))
        else:
            super()._load_best_model()

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # The main process then writes that the checkpoint is complete
        self.accelerator.wait_for_everyone()

    # The library keeps the whole model a second time for FSDP, and the optimizer in a format of its own
    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not (self.is_fsdp_enabled and self.keeps_trained_only):
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = self.optimizer.state_dict()
        state["state"] = {
            index: {name: _gather(value) for name, value in values.items()} for index, values in state["state"].items()
        }
        if self.args.should_save:
            state["state"] = {
                index: {name: value.cpu() if torch.is_tensor(value) else value for name, value in values.items()}
                for index, values in state["state"].items()
            }
            torch.save(state, os.path.join(output_dir, OPTIMIZER_NAME))
            torch.save(self.lr_scheduler.state_dict(), os.path.join(output_dir, SCHEDULER_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not (self.is_fsdp_enabled and self.keeps_trained_only) or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        state = torch.load(os.path.join(checkpoint, OPTIMIZER_NAME), map_location="cpu", weights_only=True)
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for index, values in state["state"].items():
            for name, value in values.items():
                if torch.is_tensor(value) and value.shape == parameters[index].shape:
                    values[name] = _distribute(value, parameters[index])
        self.optimizer.load_state_dict(state)
        self.lr_scheduler.load_state_dict(torch.load(os.path.join(checkpoint, SCHEDULER_NAME), weights_only=True))

    # -----------------------------------------------------------------------------------------------------------------
    # Logs
    # -----------------------------------------------------------------------------------------------------------------
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in the library, with the number of samples that could not be read so far."""
        # A stream that is split among processes is a copy of the data set
        dataset = getattr(self.callback_handler.train_dataloader, "dataset", None)
        if "loss" in logs and hasattr(dataset, "num_failed"):
            num_failed = torch.tensor([dataset.num_failed], device=self.args.device)
            logs["skipped_samples"] = int(self.accelerator.gather(num_failed).sum())
        super().log(logs, start_time)

    # -----------------------------------------------------------------------------------------------------------------
    # Answers
    # -----------------------------------------------------------------------------------------------------------------
    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As in the library; with `predict_with_generate`, some samples are answered too."""
        dataset = dataloader.dataset
        # Whatever a data loader draws, training goes on as if there had been no evaluation
        with torch.random.fork_rng():
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix=metric_key_prefix
            )
        if self.args.predict_with_generate:
            captions = self.answer(dataset)
            self._write_captions(captions)
            if captions:
                share = sum(caption["caption"] == caption["expected"] for caption in captions) / len(captions)
                output.metrics[f"{metric_key_prefix}_exact_match"] = share
        return output

    def answer(self, dataset: Any) -> list[dict[str, Any]]:
        """Lets the model answer the first samples of a data set.

        Args:
            dataset: Rows with `messages`, or a data set that has such a `dataset` and its `encoder`.

        Returns:
            For each sample a dict: `step` of training, `id` of the sample, `clip` (its first file), `prompt`, which is all up
            to the first answer, `expected`, which is that answer, and `caption`, which is what the model says.
        """
        encoder = getattr(dataset, "encoder", None) or getattr(self.data_collator, "encoder", None)
        if encoder is None:
            raise VideoLlamaError(
                f"Answers are made for samples with an encoder, but neither the {type(dataset).__name__} nor the collator has "
                "one: give a TrainingDataset, or a VideoLlamaDataCollator with an encoder."
            )
        samples = list(islice(self._samples(dataset), self.args.num_generate_samples))
        # The first answer begins where the labels do
        encoder = copy.copy(encoder)
        encoder.original_labels = False
        model = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        model.eval()
        rank, num_processes = self.accelerator.process_index, self.accelerator.num_processes
        answers = {}
        for index, sample in enumerate(samples):
            # A process alone cannot run a model of which it holds a shard
            if self.is_fsdp_enabled or index % num_processes == rank:
                answers[index] = self._answer(model, encoder, sample, index)
        if num_processes > 1 and not self.is_fsdp_enabled:
            gathered = [None] * num_processes
            torch.distributed.all_gather_object(gathered, answers)
            answers = {index: answer for part in gathered for index, answer in part.items()}
        model.train(was_training)
        return [answers[index] for index in sorted(answers) if answers[index] is not None]

    def _answer(self, model: nn.Module, encoder: SampleEncoder, sample: dict[str, Any], index: int) -> dict | None:
        """One answer, or None if the sample cannot be read."""
        messages = []
        for message in sample["messages"]:
            messages.append(message)
            if message["role"] == "assistant":
                break
        try:
            encoded = encoder({**sample, "messages": messages}, index=index)
        except (MediaError, TrainingDataError) as error:
            logger.info(f"No answer to evaluation sample {index}: {error}")
            return None
        is_answer = encoded["labels"] != IGNORED
        begin = int(is_answer.int().argmax())
        expected_ids = encoded["input_ids"][is_answer]
        prompt_ids = encoded["input_ids"][:begin]
        inputs = self.data_collator([{**encoded, "input_ids": prompt_ids, "labels": encoded["labels"][:begin]}])
        del inputs["labels"]
        tokenizer = self.processing_class.tokenizer
        # Captions without a prompt end with their line, all else as the checkpoint says
        stop = {"stop_strings": ["\n"], "tokenizer": tokenizer} if sample.get("layout") == "caption" else {}
        output_ids = model.generate(
            **self._prepare_inputs(inputs),
            max_new_tokens=self.args.generation_max_new_tokens,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            **stop,
        )
        items = [item for message in messages for item in message["content"] if isinstance(item, Mapping)]
        return {
            "step": self.state.global_step,
            "id": sample.get("id"),
            "clip": next((item["path"] for item in items if item.get("path")), None),
            "prompt": self._prompt(prompt_ids.tolist()),
            "expected": self._text(model, expected_ids),
            "caption": self._text(model, output_ids[0, begin:]),
        }

    def _text(self, model: nn.Module, token_ids: torch.Tensor) -> str:
        text = self.processing_class.tokenizer.decode(token_ids, skip_special_tokens=True).strip()
        for stop_string in model.generation_config.stop_strings or []:
            text = text.removesuffix(stop_string)
        return text.strip()

    def _prompt(self, token_ids: list[int]) -> str:
        """A prompt in which each picture, video and sound is one placeholder."""
        processor = self.processing_class
        placeholders = {processor.image_token_id, processor.video_token_id, processor.audio_token_id}
        previous = [None, *token_ids]
        shown = [token for token, before in zip(token_ids, previous) if token not in placeholders or token != before]
        return processor.tokenizer.decode(shown)

    def _samples(self, dataset: Any) -> Iterator[dict[str, Any]]:
        yield from getattr(dataset, "dataset", dataset)

    def _write_captions(self, captions: list[dict[str, Any]]) -> None:
        if not self.is_world_process_zero():
            return
        with open(os.path.join(self.args.output_dir, CAPTIONS_NAME), "a", encoding="utf-8") as file:
            for caption in captions:
                file.write(json.dumps(caption, ensure_ascii=False) + "\n")
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                for index, caption in enumerate(captions):
                    text = "\n\n".join(f"**{name}**: {caption[name]}" for name in ("clip", "expected", "caption"))
                    callback.tb_writer.add_text(f"captions/{index}", text, self.state.global_step)


class _SetEpoch(TrainerCallback):
    """Tells the epoch, by which frames are drawn, before an epoch's workers start."""

    def __init__(self, trainer: VideoLlamaTrainer):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs):
        epoch = int((state.epoch or 0) + 1e-6)
        if hasattr(self.trainer.train_dataset, "set_epoch"):
            self.trainer.train_dataset.set_epoch(epoch)
        if hasattr(self.trainer.data_collator, "epoch"):
            self.trainer.data_collator.epoch = epoch


def _gather(value: Any) -> Any:
    """A whole tensor, of which each process has a shard. All processes have to call it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def _distribute(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The shard of a whole tensor that belongs to this process, if `like` is in shards."""
    value = value.to(like.device, like.dtype)
    if isinstance(like, DTensor):
        return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
    return value
