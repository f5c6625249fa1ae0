# SPDX-License-Identifier: Apache-2.0
"""Recipes, the arguments that they set, and the schedules of the published stages."""

import math
import shutil

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from transformers import Trainer

from transformers_videollama.exceptions import VideoLlamaError
from transformers_videollama.training.arguments import (
    ACCELERATE_CONFIGS,
    TrainingArgumentParser,
    VideoLlamaTrainingArguments,
    find_recipe,
    read_recipe,
    recipe_names,
)


# What was published: peak and minimum of the learning rate, warm-up, steps, batch per GPU of 8, tokens of captions and of
# conversations, choice of frames
PUBLISHED = {
    "vl_stage1": (1e-4, 8e-5, 2500, 5 * 2500, 32, 32, 32, "headtail"),
    "al_stage1": (1e-4, 8e-5, 5000, 5 * 5000, 32, 32, 32, "headtail"),
    "vl_stage2": (3e-5, 1e-5, 1000, 3 * 1000, 4, 320, 512, "uniform"),
    "al_stage2": (3e-5, 1e-5, 400, 3 * 1000, 4, 512, 512, "uniform"),
}
WARMUP_FROM = 1e-6
# How much higher the learning rate is than the original's at most, and at which step, counted from 0
DEVIATIONS = {
    "vl_stage1": (4.007e-6, 5343),
    "al_stage1": (4.009e-6, 10688),
    "vl_stage2": (7.072e-6, 1463),
    "al_stage2": (2.581e-6, 1201),
}


def parse(*argv: str) -> VideoLlamaTrainingArguments:
    return TrainingArgumentParser().parse([*argv, "--use_cpu"])[0]


def original_learning_rate(step: int, name: str) -> float:
    """Linear warm-up, then a cosine that counts from step 0."""
    peak, minimum, warmup, steps, *_ = PUBLISHED[name]
    if step < warmup:
        return min(peak, WARMUP_FROM + (peak - WARMUP_FROM) * step / warmup)
    return minimum + (peak - minimum) * 0.5 * (1 + math.cos(math.pi * step / steps))


def learning_rates(args: VideoLlamaTrainingArguments) -> list[float]:
    """Of every step, from the library's own scheduler as its Trainer makes it."""
    trainer = Trainer(torch.nn.Linear(1, 1), args)
    trainer.create_optimizer()
    trainer.create_scheduler(args.max_steps)
    rates = []
    for _ in range(args.max_steps):
        rates.append(trainer.lr_scheduler.get_last_lr()[0])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    return rates


SMALL = {f"small_{name}": name for name in PUBLISHED}


def test_there_is_a_recipe_for_each_published_stage_and_one_for_it_at_small_size():
    assert set(recipe_names()) == {*PUBLISHED, *SMALL, "small_joint"}


@pytest.mark.parametrize("name", SMALL)
def test_small_recipe_trains_what_the_published_one_does(name):
    args, published = parse("--recipe", name), parse("--recipe", SMALL[name])
    for field in ("trainable", "branch", "audio_from", "num_frames", "lr_scheduler_type", "optim", "seed"):
        assert getattr(args, field) == getattr(published, field), field
    assert args.max_steps < published.max_steps


def test_joint_recipe_trains_both_branches_on_frames():
    args = parse("--recipe", "small_joint")
    assert (args.trainable, args.branch, args.audio_from) == (["both"], "both", "frames")


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipe_has_the_published_settings(name):
    args = parse("--recipe", name)
    peak, _, warmup, steps, batch, captions, conversations, sampling = PUBLISHED[name]
    assert (args.learning_rate, args.warmup_steps, args.max_steps) == (peak, warmup, steps)
    assert args.per_device_train_batch_size == batch
    assert (args.text_limits["caption"], args.text_limits["conversation"]) == (captions, conversations)
    assert (args.num_frames, args.sampling, args.seed) == (8, sampling, 42)
    assert (args.adam_beta1, args.adam_beta2, args.weight_decay) == (0.9, 0.999, 0.05)
    branch = {"vl": "vision_branch", "al": "audio_branch"}[name[:2]]
    assert (args.trainable, args.branch, args.audio_from) == ([branch], branch, "frames")


@pytest.mark.parametrize("name", PUBLISHED)
def test_schedule_is_the_librarys_and_differs_from_the_originals_by_a_known_amount(name, tmp_path):
    args = parse("--recipe", name, "--output_dir", str(tmp_path), "--report_to", "none")
    peak, minimum, warmup, steps, *_ = PUBLISHED[name]
    rates = learning_rates(args)
    assert rates[0] == pytest.approx(WARMUP_FROM)
    assert max(rates) == pytest.approx(peak)
    assert min(rates[warmup:]) == pytest.approx(minimum)
    differences = [rate - original_learning_rate(step, name) for step, rate in enumerate(rates)]
    assert max(map(abs, differences[:warmup])) < peak / warmup
    assert min(differences[warmup:]) > -1e-9
    largest = max(differences)
    assert (largest, differences.index(largest)) == (pytest.approx(DEVIATIONS[name][0], rel=1e-3), DEVIATIONS[name][1])


def test_weights_decay_as_in_the_original(tiny_model, tmp_path):
    tiny_model.set_trainable("both")
    args = parse("--recipe", "vl_stage1", "--output_dir", str(tmp_path), "--report_to", "none")
    groups = Trainer(tiny_model, args).create_optimizer().param_groups
    # The original spares vectors: biases and what scales a LayerNorm
    for group in groups:
        assert {parameter.ndim >= 2 for parameter in group["params"]} == {group["weight_decay"] > 0}
    assert sorted(group["weight_decay"] for group in groups) == [0, 0.05]


def test_recipe_of_ones_own_is_a_copy_of_the_file(tmp_path):
    copy = tmp_path / "mine.yaml"
    shutil.copy(find_recipe("vl_stage2"), copy)
    assert read_recipe(copy) == read_recipe("vl_stage2")
    # YAML 1.1 takes this for text
    copy.write_text(copy.read_text().replace("learning_rate: 3.0e-5", "learning_rate: 2e-5").replace("1.0e-5", "1e-5"))
    args = parse("--recipe", str(copy))
    assert args.learning_rate == 2e-5
    assert args.lr_scheduler_kwargs["min_lr"] == 1e-5


def test_command_line_comes_before_the_recipe(tmp_path):
    copy = tmp_path / "mine.yaml"
    copy.write_text("data: [messages=a.jsonl, messages=b.jsonl]\nlearning_rate: 1e-5\nstreaming: true\nmax_steps: 3\n")
    args = parse("--recipe", str(copy), "--learning-rate", "1e-3", "--data", "webvid=c.csv", "--data=webvid=d.csv")
    assert args.learning_rate == 1e-3
    assert args.data == ["webvid=c.csv", "webvid=d.csv"]
    assert args.streaming
    assert not args.accelerator_config.dispatch_batches
    assert not parse("--recipe", str(copy), "--streaming", "false").streaming
    assert parse("--recipe", str(copy)).data == ["messages=a.jsonl", "messages=b.jsonl"]


def test_settings_of_a_run_make_the_same_run_again(tmp_path):
    argv = ["--recipe", "al_stage2", "--data", "messages=a.jsonl", "--max_failures", "0.5", "--use_cpu", "true"]
    args, given = TrainingArgumentParser().parse(argv)
    file = tmp_path / "again.yaml"
    file.write_text(yaml.safe_dump(given))
    again, given_again = TrainingArgumentParser().parse(["--recipe", str(file)])
    assert given_again == given
    assert again.to_dict() == args.to_dict()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1e-4\n", "unknown field 'learning_rat': is learning_rate meant?"),
        ("epochs: 3\n", "unknown field 'epochs'"),
        ("max_steps: many\n", "max_steps.*'many'"),
        ("sampling: random\n", "sampling.*uniform.*headtail"),
        ("- a\n", "holds a list"),
        ("a: [\n", "no YAML"),
    ],
)
def test_wrong_recipes_are_refused_by_name(tmp_path, text, message):
    file = tmp_path / "wrong.yaml"
    file.write_text(text)
    with pytest.raises(VideoLlamaError, match=f"wrong.yaml.*{message}"):
        parse("--recipe", str(file))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--recipe", "vl_stage3"], "no recipe 'vl_stage3': there are al_stage1, .* vl_stage2"),
        (["--recipe", "nowhere/mine.yaml"], "no recipe nowhere/mine.yaml"),
        (["--learning_rat", "1"], "no option '--learning_rat': is learning_rate meant"),
        (["clips.jsonl"], "'clips.jsonl' belongs to no option"),
        (["--learning_rate", "high"], "learning.rate.*'high'"),
        (["--max_failures", "5"], "max_failures is 5.0, expected a share"),
        (["--streaming"], "streaming needs max_steps"),
        (["--precision", "fp32", "--bf16"], "Both precision fp32 and bf16"),
        (["--remove_unused_columns"], "remove_unused_columns is True, expected false"),
    ],
)
def test_wrong_options_are_refused_by_name(argv, message):
    with pytest.raises(VideoLlamaError, match=message):
        parse(*argv)


def test_recipes_run_in_full_precision_where_there_is_no_gpu():
    args = parse("--recipe", "vl_stage1")
    assert (args.precision, args.bf16, args.fp16, args.dtype) == ("fp32", False, False, torch.float32)
    args = parse("--precision", "bf16")
    assert (args.precision, args.bf16, args.dtype) == ("bf16", True, torch.bfloat16)
    assert parse("--bf16").precision == "bf16"


@pytest.mark.parametrize(
    ("trainable", "branch"),
    [
        (["vision_branch"], "vision_branch"),
        (["audio_branch"], "audio_branch"),
        (["both"], "both"),
        (["audio_branch", "vision_branch"], "both"),
        (["video_projection"], "vision_branch"),
    ],
)
def test_prompts_are_of_what_is_trained(trainable, branch):
    assert parse("--trainable", *trainable).branch == branch
    assert parse("--trainable", *trainable, "--branch", "audio_branch").branch == "audio_branch"


def test_configurations_for_accelerate_are_known_to_it():
    ddp, fsdp2 = (load_config_from_file(str(ACCELERATE_CONFIGS / f"{name}.yaml")) for name in ("ddp", "fsdp2"))
    assert ddp.distributed_type == DistributedType.MULTI_GPU
    assert fsdp2.distributed_type == DistributedType.FSDP
    assert fsdp2.fsdp_config["fsdp_version"] == 2
    assert fsdp2.fsdp_config["fsdp_transformer_layer_cls_to_wrap"] == "LlamaDecoderLayer"
