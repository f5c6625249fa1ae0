# SPDX-License-Identifier: Apache-2.0
"""What the trainer keeps, goes on from, saves, and shows; and that any mixture of samples trains."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForMultimodalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from transformers_videollama import VideoLlamaForConditionalGeneration, load_branch
from transformers_videollama.exceptions import CheckpointError, VideoLlamaError
from transformers_videollama.modeling_video_llama import BRANCHES
from transformers_videollama.training.arguments import VideoLlamaTrainingArguments
from transformers_videollama.training.peft import lora_config
from transformers_videollama.training.run import make_trainer, train
from transformers_videollama.training.trainer import TRAINED_NAME, VideoLlamaTrainer, last_checkpoint

from .runs import curve, settings, write_model, write_samples


MIXED = ["image", "text", "video", "image", "text", "image"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model", dropout=0.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return write_samples(tmp_path_factory.mktemp("data"), MIXED)


@pytest.fixture
def arguments(model, data, tmp_path):
    def make(**fields) -> VideoLlamaTrainingArguments:
        return VideoLlamaTrainingArguments(**{**settings(model, data, tmp_path / "out"), **fields})

    return make


def trained(trainer: VideoLlamaTrainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.trained_parameters().items()}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], **tolerance) -> None:
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], **(tolerance or {"rtol": 0, "atol": 0}))


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints
# ---------------------------------------------------------------------------------------------------------------------
def test_checkpoints_hold_what_is_trained_and_are_no_models(arguments, model, tmp_path):
    trainer = train(arguments())
    checkpoint = tmp_path / "out" / "checkpoint-6"
    tensors = load_file(checkpoint / TRAINED_NAME)
    assert {name.split(".")[1] for name in tensors} == set(BRANCHES["vision_branch"])
    assert_same(tensors, trained(trainer))
    kept = sum(file.stat().st_size for file in checkpoint.iterdir())
    assert kept < 0.1 * sum(file.stat().st_size for file in model.iterdir())
    with pytest.raises(ValueError, match=r"Unrecognized model"):
        AutoModelForMultimodalLM.from_pretrained(checkpoint)
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        VideoLlamaForConditionalGeneration.from_pretrained(checkpoint)


def test_best_weights_are_there_at_the_end(arguments, data, tmp_path):
    fields = {"eval_data": [data], "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2}
    # The loss falls, so that by this measure the last checkpoint is not the best
    trainer = train(arguments(**fields, load_best_model_at_end=True, greater_is_better=True))
    losses = curve(tmp_path / "out", "eval_loss")
    best = tmp_path / "out" / f"checkpoint-{2 + 2 * losses.index(max(losses))}"
    assert best.name != "checkpoint-6"
    assert trainer.state.best_model_checkpoint == str(best)
    assert_same(trained(trainer), load_file(best / TRAINED_NAME))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(max(losses), rel=1e-5)


def test_a_run_goes_on_from_the_last_complete_checkpoint(arguments, tmp_path):
    whole = trained(train(arguments(save_steps=2)))
    output_dir = tmp_path / "out"
    # As when a run is ended while it saves: the state is written last
    state = output_dir / "checkpoint-6" / "trainer_state.json"
    state.write_text(state.read_text()[:50])
    assert last_checkpoint(output_dir).name == "checkpoint-4"
    (output_dir / "checkpoint-4" / "trainer_state.json").unlink()
    assert last_checkpoint(output_dir).name == "checkpoint-2"
    trainer = make_trainer(arguments(save_steps=2))
    trainer.train(resume_from_checkpoint=True)
    assert len(curve_of(trainer)) == 6
    assert_same(trained(trainer), whole)
    with pytest.raises(CheckpointError, match=r"no-run holds no complete checkpoint"):
        make_trainer(arguments(output_dir=str(tmp_path / "no-run"))).train(resume_from_checkpoint=True)
    broken = shutil.copytree(output_dir / "checkpoint-2", tmp_path / "broken")
    (broken / "trainer_state.json").unlink()
    with pytest.raises(CheckpointError, match=r"broken is no complete checkpoint"):
        make_trainer(arguments()).train(resume_from_checkpoint=str(broken))


def curve_of(trainer: VideoLlamaTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def change_nothing(tensors):
    return tensors


def drop_one(tensors):
    return {name: value for name, value in tensors.items() if "video_projection.bias" not in name}


def reshape_one(tensors):
    return {name: value[:-1] if "video_projection.bias" in name else value for name, value in tensors.items()}


@pytest.mark.parametrize(
    ("change", "trainable", "message"),
    [
        (drop_one, "vision_branch", r"video_projection.bias is missing"),
        (reshape_one, "vision_branch", r"video_projection.bias has the shape \(47,\), expected \(48,\)"),
        (change_nothing, "video_projection", r"is not trained now"),
        (change_nothing, "both", r"audio_position_embedding.weight is missing; .* more"),
    ],
)
def test_other_tensors_than_those_that_are_trained_are_refused(arguments, tmp_path, change, trainable, message):
    train(arguments(max_steps=2, save_steps=2))
    checkpoint = tmp_path / "out" / "checkpoint-2"
    save_file(change(load_file(checkpoint / TRAINED_NAME)), checkpoint / TRAINED_NAME)
    trainer = make_trainer(arguments(trainable=[trainable], max_steps=3))
    before = trained(trainer)
    with pytest.raises(CheckpointError, match=message):
        trainer.train(resume_from_checkpoint=str(checkpoint))
    assert_same(trained(trainer), before)


def test_other_folders_than_checkpoints_are_refused(arguments, tmp_path):
    train(arguments(max_steps=2, save_steps=2))
    folder = tmp_path / "out" / "checkpoint-2"
    (folder / TRAINED_NAME).write_bytes(b"cut short")
    with pytest.raises(CheckpointError, match=r"trained\.safetensors cannot be read"):
        make_trainer(arguments()).train(resume_from_checkpoint=str(folder))
    (folder / TRAINED_NAME).unlink()
    with pytest.raises(CheckpointError, match=r"has no trained\.safetensors.*init_branches"):
        make_trainer(arguments()).train(resume_from_checkpoint=str(folder))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT uses it
def test_peft_models_are_kept_in_the_librarys_way(arguments, tmp_path, model):
    from peft import PeftModel, get_peft_model

    def make() -> VideoLlamaTrainer:
        trainer = make_trainer(arguments())
        torch.manual_seed(0)
        wrapped = get_peft_model(trainer.model, lora_config("vision_branch"))
        return VideoLlamaTrainer(
            args=trainer.args,
            model=wrapped,
            train_dataset=trainer.train_dataset,
            data_collator=trainer.data_collator,
            processing_class=trainer.processing_class,
        )

    trainer = make()
    trainer.train()
    checkpoint = tmp_path / "out" / "checkpoint-3"
    assert (checkpoint / "adapter_model.safetensors").exists()
    assert not (checkpoint / TRAINED_NAME).exists()
    again = make()
    again.train(resume_from_checkpoint=str(checkpoint))
    assert_same(trained(again), trained(trainer))
    trainer.save_model(str(tmp_path / "adapter"))
    base = VideoLlamaForConditionalGeneration.from_pretrained(model)
    assert PeftModel.from_pretrained(base, tmp_path / "adapter")


# ---------------------------------------------------------------------------------------------------------------------
# What is saved at the end
# ---------------------------------------------------------------------------------------------------------------------
def test_branches_are_saved_and_fit_on_their_base(arguments, model, tmp_path):
    trainer = train(arguments(trainable=["both"], audio_from="frames", max_steps=2))
    saved = {path.name for path in (tmp_path / "out").glob("*.safetensors")}
    assert saved == {"vision_branch.safetensors", "audio_branch.safetensors"}
    base = VideoLlamaForConditionalGeneration.from_pretrained(model)
    assert set(load_branch(base, tmp_path / "out")) == set(BRANCHES)
    parameters = dict(base.named_parameters())
    assert_same({name: parameters[name] for name in trained(trainer)}, trained(trainer))


def test_next_stage_begins_with_the_branches_of_the_last(arguments, tmp_path):
    first = trained(train(arguments(max_steps=2)))
    second = make_trainer(arguments(init_branches=[str(tmp_path / "out")], output_dir=str(tmp_path / "second")))
    assert_same(trained(second), first)


def test_complete_model_is_saved_with_the_switch(arguments, tmp_path):
    trainer = train(arguments(save_complete_model=True, trainable=["vision_branch", "lm_head"], max_steps=2))
    loaded = VideoLlamaForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert_same(dict(loaded.named_parameters()), dict(trainer.model.named_parameters()))
    assert (tmp_path / "out" / "processor_config.json").exists()
    assert "use_cache" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_what_only_a_complete_model_can_hold_is_refused_before_training(arguments):
    with pytest.raises(CheckpointError, match=r"lm_head is no part of a branch.*save_complete_model"):
        make_trainer(arguments(trainable=["vision_branch", "lm_head"]))


def test_frozen_parts_are_in_the_precision_of_the_computation_and_trained_ones_in_fp32(arguments):
    trainer = make_trainer(arguments(precision="bf16"))
    dtypes = {parameter.requires_grad: parameter.dtype for parameter in trainer.model.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    trainer.train()
    assert curve_of(trainer)[-1] < curve_of(trainer)[0]


# ---------------------------------------------------------------------------------------------------------------------
# Any samples
# ---------------------------------------------------------------------------------------------------------------------
def test_text_alone_gives_gradients_of_zero(arguments, tmp_path):
    data = write_samples(tmp_path / "text", ["text"] * 3)
    trainer = train(arguments(data=[data], trainable=["both"], weight_decay=0.0))
    untouched = make_trainer(arguments(trainable=["both"], output_dir=str(tmp_path / "other")))
    assert_same(trained(trainer), trained(untouched))
    assert curve(tmp_path / "out", "grad_norm") == [0.0] * 6


def test_a_branch_that_the_samples_do_not_need_is_left_as_it_is(arguments, tmp_path):
    data = write_samples(tmp_path / "image", ["image"] * 3)
    trainer = train(arguments(data=[data], trainable=["both"], weight_decay=0.0))
    before = trained(make_trainer(arguments(trainable=["both"], output_dir=str(tmp_path / "other"))))
    changed = {name.split(".")[1] for name, value in trained(trainer).items() if not torch.equal(value, before[name])}
    assert changed == set(BRANCHES["vision_branch"])


def test_accumulation_gives_the_same_curve(arguments, tmp_path):
    train(arguments(per_device_train_batch_size=4))
    other = arguments(per_device_train_batch_size=1, gradient_accumulation_steps=4, output_dir=str(tmp_path / "other"))
    train(other)
    assert curve(tmp_path / "other") == pytest.approx(curve(tmp_path / "out"), rel=1e-5)


def test_checkpointing_computes_layers_of_llama_again_and_gives_the_same_curve(arguments, tmp_path):
    def run(**fields) -> tuple[VideoLlamaTrainer, list[int]]:
        trainer = make_trainer(arguments(**fields))
        calls = []
        for module in trainer.model.modules():
            if isinstance(module, LlamaDecoderLayer):
                module.self_attn.register_forward_hook(lambda *args: calls.append(1))
        trainer.train()
        return trainer, calls

    plain, calls = run()
    again, more_calls = run(activation_checkpointing=True, output_dir=str(tmp_path / "other"))
    num_layers = plain.model.config.text_config.num_hidden_layers
    assert len(calls) == 6 * num_layers
    assert len(more_calls) == 2 * 6 * num_layers
    assert curve_of(again) == pytest.approx(curve_of(plain), rel=1e-6)
    assert_same(trained(again), trained(plain), rtol=1e-4, atol=1e-6)


def test_an_evaluation_changes_nothing_of_the_training(model, data, tmp_path):
    """With what is drawn at random: dropout, and the order of samples."""
    noisy = write_model(tmp_path / "model", dropout=0.3)
    results = []
    for name, evaluation in (
        ("without", {}),
        ("with", {"eval_data": [data], "eval_strategy": "steps", "eval_steps": 2}),
    ):
        fields = settings(noisy, data, tmp_path / name, report_to="none", **evaluation)
        results.append(trained(train(VideoLlamaTrainingArguments(**fields))))
    assert_same(*results)


def test_what_is_trained_is_in_fp32_whatever_was_loaded(arguments, model):
    half = VideoLlamaForConditionalGeneration.from_pretrained(model, dtype=torch.bfloat16)
    half.set_trainable("vision_branch")
    VideoLlamaTrainer(model=half, args=arguments())
    dtypes = {(parameter.dtype, parameter.requires_grad) for parameter in half.parameters()}
    assert dtypes == {(torch.float32, True), (torch.bfloat16, False)}


def test_several_gpus_in_one_process_are_refused(arguments, model):
    args = arguments()
    args._n_gpu = 2
    with pytest.raises(VideoLlamaError, match="2 GPUs are seen by one process.*accelerate launch"):
        VideoLlamaTrainer(model=VideoLlamaForConditionalGeneration.from_pretrained(model), args=args)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT uses it
def test_a_run_without_adapters_does_not_go_on_with_them(arguments):
    train(arguments())
    trainer = make_trainer(arguments(lora_rank=2))
    with pytest.raises(CheckpointError, match="checkpoint-6 is of a run without adapters"):
        trainer.train(resume_from_checkpoint=True)


def test_answers_need_an_encoder(arguments, data):
    trainer = make_trainer(arguments(eval_data=[data], predict_with_generate=True))
    subset = torch.utils.data.Subset(trainer.eval_dataset, [0, 1])
    with pytest.raises(VideoLlamaError, match="neither the Subset nor the collator has one: give a TrainingDataset"):
        trainer.evaluate(subset)


def test_unreadable_samples_are_skipped_and_counted_in_the_log(arguments, tmp_path):
    data = write_samples(tmp_path / "bad", ["image", "missing", "image", "image"])
    trainer = train(arguments(data=[data], max_failures=0.5, dataloader_num_workers=2))
    assert trainer.state.log_history[-2]["skipped_samples"] == 1
    lines = (tmp_path / "out" / "failures.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["sample-1"]


def test_a_stream_is_trained_on_and_gone_on_with_in_its_first_pass(arguments, tmp_path):
    fields = {"streaming": True, "per_device_train_batch_size": 1, "save_steps": 4, "max_steps": 8}
    trainer = train(arguments(**fields, dataloader_num_workers=2))
    assert len(curve(tmp_path / "out")) == 8
    again = make_trainer(arguments(**fields, output_dir=str(tmp_path / "again")))
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    assert_same(trained(again), trained(trainer))
    with pytest.raises(CheckpointError, match=r"after the first pass over a stream.*ignore_data_skip"):
        again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-8"))


# ---------------------------------------------------------------------------------------------------------------------
# What is shown
# ---------------------------------------------------------------------------------------------------------------------
def test_evaluation_samples_are_answered_and_written_down(arguments, data, tmp_path, monkeypatch):
    fields = {"eval_data": [data], "eval_strategy": "steps", "eval_steps": 3, "generation_max_new_tokens": 16}
    args = arguments(**fields, predict_with_generate=True, num_generate_samples=4)
    trainer = make_trainer(args)
    tokenizer, given = trainer.processing_class.tokenizer, []

    def generate(input_ids, **kwargs):
        given.append({"input_ids": input_ids, **kwargs})
        words = "A ball of colour 2.###" if "number 2" in tokenizer.decode(input_ids[0]) else "A cube.###"
        answer = tokenizer(words, add_special_tokens=False, return_tensors="pt").input_ids
        return torch.cat([input_ids, answer], dim=1)

    monkeypatch.setattr(trainer.model, "generate", generate)
    trainer.train()
    captions = [json.loads(line) for line in (tmp_path / "out" / "captions.jsonl").read_text().splitlines()]
    assert [(caption["step"], caption["id"]) for caption in captions] == [
        (step, f"sample-{number}") for step in (3, 6) for number in range(4)
    ]
    assert captions[2] == {
        "step": 3,
        "id": "sample-2",
        "clip": captions[2]["clip"],
        "prompt": captions[2]["prompt"],
        "expected": "A ball of colour 2.",
        "caption": "A ball of colour 2.",
    }
    assert captions[2]["clip"].endswith("bouncing_ball.mp4")
    assert captions[2]["prompt"].count("<VideoHere>") == 1
    assert captions[2]["prompt"].endswith("What is number 2?###Assistant:")
    assert captions[1]["clip"] is None
    assert captions[3]["caption"] == "A cube."
    assert [entry["eval_exact_match"] for entry in trainer.state.log_history if "eval_loss" in entry] == [0.25, 0.25]
    assert given[2]["pixel_values_videos"].shape[:2] == (1, 8)
    assert (given[2]["max_new_tokens"], given[2]["do_sample"]) == (16, False)


def test_model_itself_answers_within_the_length_asked_for(arguments, data, tmp_path):
    args = arguments(eval_data=[data], predict_with_generate=True, generation_max_new_tokens=3, trainable=["both"])
    trainer = make_trainer(args)
    captions = trainer.answer(trainer.eval_dataset)
    assert len(captions) == len(MIXED)
    tokenizer = trainer.processing_class.tokenizer
    for caption in captions:
        assert len(tokenizer(caption["caption"], add_special_tokens=False).input_ids) <= 5
    assert trainer.evaluate()["eval_exact_match"] == 0


def test_captions_without_a_prompt_end_with_their_line(arguments, tmp_path, model):
    data = write_samples(tmp_path / "captions", ["image"] * 2)
    file = Path(data.removeprefix("messages="))
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        row["layout"] = "caption"
        row["messages"][0]["content"] = row["messages"][0]["content"][:1]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    trainer = make_trainer(arguments(data=[data], eval_data=[data], predict_with_generate=True))
    line_feed = trainer.processing_class.tokenizer("\n", add_special_tokens=False).input_ids[-1]
    # A model that says nothing else
    trainer.model.lm_head.register_forward_hook(
        lambda module, args, logits: torch.zeros_like(logits).index_fill(-1, torch.tensor(line_feed), 1.0)
    )
    lengths = []
    generate = trainer.model.generate

    def counted(**kwargs):
        output_ids = generate(**kwargs)
        lengths.append(output_ids.shape[1] - kwargs["input_ids"].shape[1])
        return output_ids

    trainer.model.generate = counted
    captions = trainer.answer(trainer.eval_dataset)
    assert lengths == [1, 1]
    assert [(caption["expected"], caption["caption"]) for caption in captions] == [
        ("A ball of colour 0.", ""),
        ("A ball of colour 1.", ""),
    ]


def test_curves_and_captions_are_in_tensorboard(arguments, data, tmp_path):
    fields = {"eval_data": [data], "eval_strategy": "steps", "eval_steps": 3, "generation_max_new_tokens": 2}
    train(arguments(**fields, predict_with_generate=True, num_generate_samples=1, report_to="tensorboard"))
    events = EventAccumulator(str(next((tmp_path / "out" / "runs").iterdir()))).Reload()
    scalars = events.Tags()["scalars"]
    for name in ("loss", "learning_rate", "grad_norm", "skipped_samples"):
        assert [event.step for event in events.Scalars(f"train/{name}")] == [1, 2, 3, 4, 5, 6]
    assert {"eval/loss", "eval/exact_match"} <= set(scalars)
    text = events.Tensors("captions/0/text_summary")
    assert [event.step for event in text] == [3, 6]
    assert "A ball of colour 0." in text[0].tensor_proto.string_val[0].decode()
