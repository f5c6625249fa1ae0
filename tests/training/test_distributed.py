# SPDX-License-Identifier: Apache-2.0
"""Two processes, by the configurations that come with the package, train as one does. Each has a file of its log."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from transformers_videollama.training.arguments import ACCELERATE_CONFIGS, TrainingArgumentParser
from transformers_videollama.training.run import train
from transformers_videollama.training.trainer import TRAINED_NAME

from .runs import command_line, curve, run, settings, write_model, write_samples


# Sums are in another order. The weights that come of it differ by Adam, which makes steps of one size of any gradient
LOSS, WEIGHTS = {"rel": 1e-5}, {"rtol": 1e-3, "atol": 1e-4}

# Every process has one sample of four kinds at a time: some need one branch, some both, some none
KINDS = ["image", "text", "video", "text", "image", "video", "text", "image"]

# Accelerate passes over FSDP where there is no GPU, and trains by DDP without a word. Its parts do work on CPUs
FSDP_ON_CPU = """\
import sys

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

init = AcceleratorState.__init__


def init_with_fsdp(self, *args, fsdp_plugin=None, **kwargs):
    init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        self.fsdp_plugin = fsdp_plugin
        for state in (AcceleratorState, PartialState):
            state._shared_state["distributed_type"] = DistributedType.FSDP


AcceleratorState.__init__ = init_with_fsdp

from torch.distributed.fsdp import FSDPModule

from transformers_videollama.training import run
from transformers_videollama.training.trainer import VideoLlamaTrainer

save_model = VideoLlamaTrainer.save_model


def save_and_tell(self, *args, **kwargs):
    print("in shards:", isinstance(self.model, FSDPModule), flush=True)
    save_model(self, *args, **kwargs)


VideoLlamaTrainer.save_model = save_and_tell
sys.exit(run.main())
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    # Processes have their own random numbers, so nothing may drop out
    return write_model(tmp_path_factory.mktemp("model") / "model", dropout=0.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return write_samples(tmp_path_factory.mktemp("data"), KINDS)


def fields_of(model: Path, data: str, output_dir: Path, **fields) -> dict:
    return {
        **settings(model, data, output_dir),
        "trainable": ["both"],
        "eval_data": [data],
        "eval_strategy": "steps",
        "eval_steps": 3,
        "per_device_eval_batch_size": 1,
        "predict_with_generate": True,
        "num_generate_samples": 3,
        "generation_max_new_tokens": 4,
        **fields,
    }


@pytest.fixture(scope="module")
def alone(model, data, tmp_path_factory) -> Path:
    """Output of one process."""
    output_dir = tmp_path_factory.mktemp("alone") / "out"
    fields = fields_of(model, data, output_dir, per_device_train_batch_size=4)
    train(TrainingArgumentParser().parse(command_line(fields))[0])
    return output_dir


def launch(config: str, program: list[str], fields: dict, folder: Path) -> Path:
    """Output of two processes."""
    options = ["--config_file", str(ACCELERATE_CONFIGS / f"{config}.yaml"), "--num_processes", "2"]
    options += ["--main_process_port", "0"]
    output_dir = folder / "out"
    program = [*program, *command_line({**fields, "output_dir": str(output_dir)})]
    run(["-m", "accelerate.commands.launch", *options, *program], folder)
    return output_dir


def assert_same_run(output_dir: Path, expected: Path) -> None:
    assert curve(output_dir) == pytest.approx(curve(expected), **LOSS)
    assert curve(output_dir, "eval_loss") == pytest.approx(curve(expected, "eval_loss"), **LOSS)
    weights, expected_weights = (load_file(path / "checkpoint-6" / TRAINED_NAME) for path in (output_dir, expected))
    assert weights.keys() == expected_weights.keys()
    for name in weights:
        torch.testing.assert_close(weights[name], expected_weights[name], **WEIGHTS)
    captions, expected_captions = (
        [json.loads(line) for line in (path / "captions.jsonl").read_text().splitlines()]
        for path in (output_dir, expected)
    )
    assert captions == expected_captions
    for branch in ("vision_branch", "audio_branch"):
        branch_weights = load_file(output_dir / f"{branch}.safetensors")
        for name, value in load_file(expected / f"{branch}.safetensors").items():
            torch.testing.assert_close(branch_weights[name], value, **WEIGHTS)


@pytest.mark.slow
def test_ddp_with_accumulation_and_checkpointing_trains_as_one_process(model, data, alone, tmp_path):
    fields = fields_of(
        model,
        data,
        tmp_path,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        activation_checkpointing=True,
    )
    output_dir = launch("ddp", ["-m", "transformers_videollama.training"], fields, tmp_path)
    assert "A step has 4 samples: 2 x 1 x 2" in (tmp_path / "log.txt").read_text()
    assert_same_run(output_dir, alone)


@pytest.mark.slow
def test_fsdp2_trains_as_one_process_which_can_go_on_with_its_checkpoint(model, data, alone, tmp_path):
    script = tmp_path / "fsdp_on_cpu.py"
    script.write_text(FSDP_ON_CPU)
    fields = fields_of(model, data, tmp_path, per_device_train_batch_size=2)
    output_dir = launch("fsdp2", [str(script)], fields, tmp_path)
    assert "in shards: True" in (tmp_path / "log.txt").read_text()
    assert_same_run(output_dir, alone)

    # Checkpoints are as small as any, and in the same format
    names = {path.name for path in (output_dir / "checkpoint-3").iterdir()}
    assert names == {path.name for path in (alone / "checkpoint-3").iterdir()} - {"rng_state.pth"} | {
        "rng_state_0.pth",
        "rng_state_1.pth",
    }
    fields = fields_of(model, data, tmp_path / "rest", per_device_train_batch_size=4)
    fields["resume_from_checkpoint"] = str(output_dir / "checkpoint-3")
    train(TrainingArgumentParser().parse(command_line(fields))[0])
    assert curve(tmp_path / "rest") == pytest.approx(curve(alone), **LOSS)


@pytest.mark.slow
def test_fsdp2_goes_on_with_its_own_checkpoint_to_the_same_weights(model, data, tmp_path):
    script = tmp_path / "fsdp_on_cpu.py"
    script.write_text(FSDP_ON_CPU)
    fields = fields_of(model, data, tmp_path, per_device_train_batch_size=2)
    output_dir = launch("fsdp2", [str(script)], fields, tmp_path)
    whole = load_file(output_dir / "checkpoint-6" / TRAINED_NAME)
    (output_dir / "checkpoint-6" / "trainer_state.json").unlink()
    launch("fsdp2", [str(script)], {**fields, "resume_from_checkpoint": "auto"}, tmp_path)
    again = load_file(output_dir / "checkpoint-6" / TRAINED_NAME)
    assert all(torch.equal(again[name], whole[name]) for name in whole)
