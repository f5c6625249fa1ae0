# SPDX-License-Identifier: Apache-2.0
"""`videollama train`: what it prints, writes and refuses; and that a killed run goes on as if nothing had happened."""

import json
import time
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from typer.testing import CliRunner

from transformers_videollama import VideoLlamaForConditionalGeneration, load_branch
from transformers_videollama.cli import app
from transformers_videollama.modeling_video_llama import BRANCHES
from transformers_videollama.training import prepare_for_lora
from transformers_videollama.training.arguments import (
    ACCELERATE_CONFIGS,
    OWN_FIELDS,
    RECIPES,
    VideoLlamaTrainingArguments,
)
from transformers_videollama.training.run import load_model
from transformers_videollama.training.trainer import TRAINED_NAME

from .runs import command_line, run, settings, start, write_model, write_samples


MODULE = ["-m", "transformers_videollama.training"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return write_samples(tmp_path_factory.mktemp("data"), ["image", "video", "image", "text", "video", "image"])


def invoke(*argv: str):
    return CliRunner().invoke(app, ["train", *argv])


def refusal(*argv: str) -> str:
    """The one line that a command ends with."""
    result = invoke(*argv)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    lines = result.stderr.strip().splitlines()
    assert len([line for line in lines if line.startswith("Error: ")]) == 1, result.stderr
    assert lines[-1].startswith("Error: ")
    return lines[-1]


def test_run_tells_what_is_trained_and_leaves_a_branch_and_its_settings(model, data, tmp_path):
    output_dir = tmp_path / "out"
    fields = settings(model, data, output_dir, eval_data=[data], report_to="none", warmup_steps=1)
    result = invoke("--recipe", "vl_stage2", *command_line(fields))
    assert result.exit_code == 0, result.output
    for line in ("video_projection", "frozen", "Samples to train on: 6", "A step has 2 samples: 1 x 2 x 1"):
        assert line in result.stdout
    base = VideoLlamaForConditionalGeneration.from_pretrained(model)
    assert load_branch(base, output_dir) == ["vision_branch"]
    # The same settings make the same weights
    file = output_dir / "training_arguments.yaml"
    assert yaml.safe_load(file.read_text())["max_text_tokens"] == 320
    result = invoke("--recipe", str(file), "--output_dir", str(tmp_path / "again"))
    assert result.exit_code == 0, result.output
    first, second = (load_file(folder / "vision_branch.safetensors") for folder in (output_dir, tmp_path / "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_audio_branch_is_trained_on_frames_as_published(model, data, tmp_path):
    fields = settings(model, data, tmp_path / "out", report_to="none", warmup_steps=1, max_steps=2)
    result = invoke("--recipe", "al_stage1", *command_line(fields))
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "audio_branch.safetensors").exists()
    assert not (tmp_path / "out" / "vision_branch.safetensors").exists()


# PEFT's own use of what the library renamed
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("bits", [None, 8])
def test_lora_leaves_an_adapter(bits, data, tmp_path):
    sizes = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 128}
    model = write_model(tmp_path / "model", text_config=sizes)
    quantization = {} if bits is None else {"quantize_bits": bits}
    fields = settings(model, data, tmp_path / "out", report_to="none", max_steps=2, lora_rank=4, **quantization)
    result = invoke(*command_line(fields))
    assert result.exit_code == 0, result.output

    config = LoraConfig.from_pretrained(tmp_path / "out")
    assert (config.r, config.lora_alpha) == (4, 8)
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    parts = {name.removeprefix("base_model.model.model.").split(".")[0] for name in tensors}
    assert parts == {"language_model", *BRANCHES["vision_branch"]}
    assert any(name.endswith("lora_B.weight") and tensor.any() for name, tensor in tensors.items())
    base = VideoLlamaForConditionalGeneration.from_pretrained(model)
    PeftModel.from_pretrained(prepare_for_lora(base), tmp_path / "out")


def test_branches_begin_with_the_precision_that_they_are_stored_in(data, tmp_path):
    """A checkpoint is loaded in half precision as a whole, if its configuration says so."""
    model = write_model(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    args = VideoLlamaTrainingArguments(**settings(model, data, tmp_path / "out", report_to="none"))
    loaded = load_model(args)

    stored = load_file(model / "model.safetensors")
    name = "model.video_projection.weight"
    assert torch.equal(loaded.get_parameter(name), stored[name])
    assert not torch.equal(stored[name], stored[name].bfloat16().float())
    assert loaded.get_parameter("model.vision_tower.post_layernorm.weight").dtype == torch.bfloat16


def test_an_evaluation_at_the_end_and_what_was_skipped_are_told(model, tmp_path):
    data = write_samples(tmp_path, ["image", "missing", "image"])
    fields = settings(model, data, tmp_path / "out", eval_data=[data], report_to="none", max_steps=3)
    result = invoke(*command_line(fields))
    assert result.exit_code == 0, result.output
    assert "eval_loss" in result.stdout
    assert "could not be read and were skipped" in result.stderr
    assert "failures.jsonl: 1" in result.stderr


def test_help_shows_every_field_and_recipe():
    result = invoke("--help")
    assert result.exit_code == 0
    for name in (*OWN_FIELDS, "recipe", "learning_rate", "vl_stage1", "accelerate launch"):
        assert name in result.stdout
    assert "train" in CliRunner().invoke(app, ["--help"]).stdout


@pytest.mark.parametrize(
    ("name", "file"), [("ddp", ACCELERATE_CONFIGS / "ddp.yaml"), ("al_stage1", RECIPES / "al_stage1.yaml")]
)
def test_files_to_copy_can_be_found(name, file):
    assert invoke("--where", name).stdout.strip() == str(file)


def test_what_is_missing_or_wrong_is_said_in_one_line(model, data, tmp_path):
    given = command_line(settings(model, data, tmp_path / "out"))
    assert "No model was given: --model" in refusal("--recipe", "vl_stage1", "--use_cpu")
    assert "No data were given: --data" in refusal("--model", str(model), "--use_cpu")
    assert "no option '--modl': is model meant" in refusal("--modl", "x")
    assert "there are al_stage1" in refusal("--recipe", "stage1")
    assert "'nothing' are unknown: choose one of webvid" in refusal(*given, "--data", "nothing=x.csv")
    assert "nowhere.jsonl does not exist" in refusal(*given, "--data", "messages=nowhere.jsonl")
    assert "no part 'video_qfromer'" in refusal(*given, "--trainable", "video_qfromer")
    assert "lm_head is no part of a branch" in refusal(*given, "--trainable", "lm_head")
    assert "beside lora_rank, expected" in refusal(*given, "--trainable", "lm_head", "--lora_rank", "4")
    assert "quantize_bits is 4, expected none without lora_rank" in refusal(*given, "--quantize_bits", "4")
    assert "labels that are not shifted" in refusal(*given, "--label_smoothing_factor", "0.1")
    assert "push what was written when the run has ended" in refusal(*given, "--push_to_hub")
    assert "There is no folder ../nowhere" in refusal(*given, "--model", "../nowhere")
    assert "nowhere" in refusal(*given, "--model", str(tmp_path / "nowhere"))
    assert "holds no branch" in refusal(*given, "--init_branches", str(model))
    assert "no cache of features" in refusal(*given, "--feature_cache", str(tmp_path))
    assert "needs samples to answer" in refusal(*given, "--predict_with_generate")
    assert "needs samples to evaluate on" in refusal(*given, "--eval_strategy", "steps")
    assert "no complete checkpoint to go on from" in refusal(*given, "--resume_from_checkpoint", "true")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_too_many_unreadable_samples_end_the_run_with_one_line(model, tmp_path, num_workers):
    data = write_samples(tmp_path, ["image", "missing"])
    fields = settings(model, data, tmp_path / "out", max_failures=0, dataloader_num_workers=num_workers)
    line = refusal(*command_line(fields))
    assert "cannot be read, more than the 0 that max_failures allows" in line
    assert "Traceback" not in line


def test_runs_are_not_mixed_up(model, data, tmp_path):
    given = command_line(settings(model, data, tmp_path / "out", max_steps=3))
    assert invoke(*given).exit_code == 0
    assert "checkpoint-3 of a run: --resume_from_checkpoint auto" in refusal(*given)
    result = invoke(*given, "--max_steps", "5", "--resume_from_checkpoint", "auto")
    assert result.exit_code == 0
    assert "Trained for 5 steps" in result.stdout
    other = ["--output_dir", str(tmp_path / "other"), "--resume_from_checkpoint", "auto"]
    assert "Trained for 3 steps" in invoke(*given, *other).stdout


# ---------------------------------------------------------------------------------------------------------------------
# kill -9
# ---------------------------------------------------------------------------------------------------------------------
STEPS = 12


def long_run(model: Path, data: str, output_dir: Path, num_workers: int) -> list[str]:
    """A run over several epochs, with dropout and with frames drawn at random."""
    fields = settings(model, data, output_dir, max_steps=STEPS, save_steps=2, sampling="headtail")
    return [*MODULE, *command_line({**fields, "trainable": "both", "dataloader_num_workers": num_workers})]


@pytest.fixture(scope="module")
def uninterrupted(model, data, tmp_path_factory) -> dict[str, torch.Tensor]:
    """What is trained at the end of a run."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    run(long_run(model, data, folder / "out", num_workers=0), folder)
    return load_file(folder / "out" / f"checkpoint-{STEPS}" / TRAINED_NAME)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_killed_run_goes_on_to_the_same_weights(model, data, uninterrupted, tmp_path, num_workers):
    arguments = long_run(model, data, tmp_path / "out", num_workers)
    process = start(arguments, tmp_path)
    deadline = time.monotonic() + 120
    while not (tmp_path / "out" / "checkpoint-4").exists():
        assert process.poll() is None, (tmp_path / "log.txt").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert not (tmp_path / "out" / f"checkpoint-{STEPS}").exists()
    run([*arguments, "--resume_from_checkpoint", "auto"], tmp_path)
    weights = load_file(tmp_path / "out" / f"checkpoint-{STEPS}" / TRAINED_NAME)
    assert weights.keys() == uninterrupted.keys()
    assert all(torch.equal(weights[name], uninterrupted[name]) for name in weights)
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["global_step"] == STEPS
