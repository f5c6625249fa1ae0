# SPDX-License-Identifier: Apache-2.0
"""LoRA on LLaMA with the branches beside it: what is adapted, what is saved, and that loading and merging keep the answers."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import ModulesToSaveWrapper
from PIL import Image
from safetensors.torch import load_file
from transformers import ProcessorMixin, Trainer, TrainingArguments

from transformers_videollama import VideoLlamaForConditionalGeneration
from transformers_videollama.modeling_video_llama import BRANCHES
from transformers_videollama.training.peft import lora_config, prepare_for_lora

from ..helpers import SAMPLE_CLIP, tiny_config
from .runs import collate_conversations


# PEFT asks every model for what transformers has renamed
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

BRANCH_PARTS = {**BRANCHES, "both": (*BRANCHES["vision_branch"], *BRANCHES["audio_branch"]), None: ()}
LAYERS = range(tiny_config().text_config.num_hidden_layers)
# A bias on all keys moves every attention score of a query alike, and softmax takes that out again: it has no gradient
WITHOUT_GRADIENT = ".k_proj.bias"


def samples() -> list[list[dict]]:
    """A clip with its sound, and two pictures."""
    noise = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    items = [
        ({"type": "video", "path": str(SAMPLE_CLIP)}, "A ball bounces, and it can be heard."),
        ({"type": "image", "image": Image.fromarray(noise[0])}, "Grey dots."),
        ({"type": "image", "image": Image.fromarray(noise[1])}, "A snowy screen."),
    ]
    return [
        [
            {"role": "user", "content": [item, {"type": "text", "text": "What is there?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ]
        for item, answer in items
    ]


def adapted(model: VideoLlamaForConditionalGeneration, config: LoraConfig) -> PeftModel:
    torch.manual_seed(0)
    return get_peft_model(prepare_for_lora(model, config), config)


def train(model: torch.nn.Module, processor: ProcessorMixin, folder: Path, steps: int, **kwargs) -> list[float]:
    """The losses of some steps, each on all samples."""
    arguments = TrainingArguments(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=len(samples()),
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        disable_tqdm=True,
        use_cpu=True,
        **kwargs,
    )
    trainer = Trainer(
        model, arguments, train_dataset=samples(), data_collator=partial(collate_conversations, processor)
    )
    trainer.train()
    # Off with the autocast that bf16=True has put around `forward`
    trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def load(path: Path, dtype: torch.dtype = torch.float32) -> VideoLlamaForConditionalGeneration:
    return VideoLlamaForConditionalGeneration.from_pretrained(path, dtype=dtype)


@torch.no_grad()
def answers(model: torch.nn.Module, processor: ProcessorMixin) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of all samples, and what is generated about the clip."""
    model.eval()
    batch = partial(collate_conversations, processor)(samples())
    prompt = processor.apply_chat_template(
        samples()[0][:1],
        load_audio_from_video=True,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    generated = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    return model(**batch).logits, generated[:, prompt["input_ids"].shape[1] :]


@pytest.fixture(scope="module")
def trained(converted: Path, processor: ProcessorMixin, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """An adapter for both branches after some steps, with what it answers, and where it was saved."""
    folder = tmp_path_factory.mktemp("adapter")
    adapter = adapted(load(converted), lora_config("both"))
    before = {name: tensor.clone() for name, tensor in adapter.state_dict().items()}
    losses = train(adapter, processor, folder / "run", steps=10)
    adapter.save_pretrained(folder / "saved")
    logits, generated = answers(adapter, processor)
    return SimpleNamespace(
        adapter=adapter,
        before=before,
        losses=losses,
        folder=folder / "saved",
        logits=logits,
        generated=generated,
    )


@pytest.mark.parametrize("branches", ["vision_branch", "audio_branch", "both", None])
def test_exactly_the_branches_are_wrapped_and_lora_is_in_llama_alone(
    branches: str | None, tiny_model: VideoLlamaForConditionalGeneration
):
    adapter = adapted(tiny_model, lora_config(branches))

    wrapped = {name for name, module in adapter.named_modules() if isinstance(module, ModulesToSaveWrapper)}
    assert wrapped == {f"base_model.model.model.{part}" for part in BRANCH_PARTS[branches]}
    lora = {name.split(".lora_")[0] for name, _ in adapter.named_parameters() if ".lora_" in name}
    attention = "base_model.model.model.language_model.layers.{}.self_attn.{}"
    assert lora == {attention.format(layer, name) for layer in LAYERS for name in ("q_proj", "v_proj")}
    trained = {name for name, parameter in adapter.named_parameters() if parameter.requires_grad}
    assert all(".lora_" in name or ".modules_to_save." in name for name in trained)
    branch_names = {name.split(".modules_to_save")[0] for name in trained if ".modules_to_save." in name}
    assert branch_names == wrapped


def test_suffixes_alone_would_wrap_imagebinds_projection(tiny_model: VideoLlamaForConditionalGeneration):
    """Why the names begin with `model.`."""
    adapter = adapted(tiny_model, LoraConfig(target_modules=["q_proj"], modules_to_save=["audio_projection"]))
    wrapped = {name for name, module in adapter.named_modules() if isinstance(module, ModulesToSaveWrapper)}
    assert "base_model.model.model.audio_tower.audio_projection" in wrapped
    assert any("vision_tower" in name for name, _ in adapter.named_parameters() if ".lora_" in name)


def test_a_model_without_audio_branch(converted: Path):
    model = VideoLlamaForConditionalGeneration(tiny_config(audio_config=None))
    adapter = adapted(model, lora_config("both"))
    wrapped = {name for name, module in adapter.named_modules() if isinstance(module, ModulesToSaveWrapper)}
    assert wrapped == {f"base_model.model.model.{part}" for part in BRANCHES["vision_branch"]}

    model = VideoLlamaForConditionalGeneration(tiny_config(audio_config=None))
    with pytest.raises(ValueError, match="none of .*audio_qformer"):
        prepare_for_lora(model, lora_config("audio_branch"))


@pytest.mark.parametrize(
    ("target_modules", "expected"),
    [
        ("all-linear", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        (["k_proj", "down_proj"], {"k_proj", "down_proj"}),
        (r"model\.language_model\.layers\.1\..*\.up_proj", {"up_proj"}),
    ],
)
def test_targets(target_modules: str | list, expected: set, tiny_model: VideoLlamaForConditionalGeneration):
    adapter = adapted(tiny_model, lora_config(None, target_modules=target_modules))
    lora = {name.split(".lora_")[0] for name, _ in adapter.named_parameters() if ".lora_" in name}
    assert {name.rsplit(".", 1)[1] for name in lora} == expected
    assert all(name.startswith("base_model.model.model.language_model.layers.") for name in lora)
    assert len(lora) == (1 if expected == {"up_proj"} else len(expected) * len(LAYERS))


def test_other_fields_are_passed_on():
    config = lora_config("vision_branch", r=4, modules_to_save=["lm_head"], use_rslora=True)
    assert config.r == 4
    assert config.use_rslora
    assert config.task_type == "CAUSAL_LM"
    assert config.modules_to_save == [*(f"model.{part}" for part in BRANCHES["vision_branch"]), "lm_head"]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"branches": "video"}, "branches must be one of .* got 'video'"),
        ({"branches": ["vision_branch"]}, "branches must be one of"),
        ({"target_modules": ["q_proj", "out_proj"]}, r"holds \['out_proj'\]"),
        ({"target_modules": []}, "holds nothing"),
    ],
)
def test_what_is_not_there_is_refused(kwargs: dict, message: str):
    with pytest.raises(ValueError, match=message):
        lora_config(**kwargs)


def test_a_new_adapter_answers_as_its_base(converted: Path, processor: ProcessorMixin):
    logits, generated = answers(load(converted), processor)
    new_logits, new_generated = answers(adapted(load(converted), lora_config("both")), processor)
    assert torch.equal(new_logits, logits)
    assert torch.equal(new_generated, generated)


def test_what_is_frozen_stays_in_evaluation_mode(tiny_model: VideoLlamaForConditionalGeneration):
    adapter = adapted(tiny_model, lora_config("vision_branch"))
    adapter.eval()
    adapter.train()
    model = adapter.get_base_model().model
    for frozen in (model.vision_tower, model.qformer, model.audio_tower, model.audio_qformer):
        assert not any(module.training for module in frozen.modules())
    assert not any(module.training for module in model.video_qformer.original_module.modules())
    assert all(module.training for module in model.video_qformer.modules_to_save["default"].modules())
    assert model.language_model.layers[0].self_attn.q_proj.lora_dropout["default"].training


def test_training_lowers_the_loss_and_leaves_the_base_as_it_was(trained: SimpleNamespace):
    assert trained.losses[-1] < 0.65 * trained.losses[0]
    for name, tensor in trained.adapter.state_dict().items():
        is_trained = ".lora_" in name or ".modules_to_save." in name
        is_changed = not torch.equal(tensor, trained.before[name])
        assert is_changed == is_trained or name.endswith(WITHOUT_GRADIENT), name


def test_the_adapter_holds_what_was_trained_and_nothing_else(trained: SimpleNamespace, converted: Path):
    saved = load_file(trained.folder / "adapter_model.safetensors")
    base = load(converted).state_dict()
    expected = {f"base_model.model.{name}" for name in base if name.split(".")[1] in BRANCH_PARTS["both"]}
    for layer in LAYERS:
        for name in ("q_proj.lora_A", "q_proj.lora_B", "v_proj.lora_A", "v_proj.lora_B"):
            expected.add(f"base_model.model.model.language_model.layers.{layer}.self_attn.{name}.weight")
    assert set(saved) == expected
    names = {f"base_model.model.{name}": tensor for name, tensor in base.items()}
    for name in set(saved) & set(names):
        assert not torch.equal(saved[name], names[name]) or name.endswith(WITHOUT_GRADIENT), name


def test_a_loaded_adapter_answers_as_the_trained_one(
    trained: SimpleNamespace, converted: Path, processor: ProcessorMixin
):
    base_logits, base_generated = answers(load(converted), processor)
    loaded = PeftModel.from_pretrained(prepare_for_lora(load(converted)), trained.folder)
    logits, generated = answers(loaded, processor)
    assert torch.equal(logits, trained.logits)
    assert torch.equal(generated, trained.generated)
    assert not torch.equal(generated, base_generated)

    with loaded.disable_adapter():
        logits, generated = answers(loaded, processor)
    assert torch.equal(logits, base_logits)
    assert torch.equal(generated, base_generated)


def test_a_merged_model_answers_as_the_adapter(
    trained: SimpleNamespace, converted: Path, processor: ProcessorMixin, tmp_path: Path
):
    merged = PeftModel.from_pretrained(load(converted), trained.folder).merge_and_unload()
    assert isinstance(merged, VideoLlamaForConditionalGeneration)
    logits, generated = answers(merged, processor)
    torch.testing.assert_close(logits, trained.logits, rtol=0, atol=1e-4)
    assert torch.equal(generated, trained.generated)

    merged.save_pretrained(tmp_path)
    saved = load(tmp_path)
    assert set(saved.state_dict()) == set(load(converted).state_dict())
    saved_logits, saved_generated = answers(saved, processor)
    assert torch.equal(saved_logits, logits)
    assert torch.equal(saved_generated, generated)


def test_transformers_own_loading_answers_alike(trained: SimpleNamespace, converted: Path, processor: ProcessorMixin):
    loaded = load(converted)
    loaded.load_adapter(trained.folder)
    logits, generated = answers(loaded, processor)
    assert torch.equal(logits, trained.logits)
    assert torch.equal(generated, trained.generated)


def test_gradients_with_gradient_checkpointing(converted: Path, processor: ProcessorMixin):
    batch = partial(collate_conversations, processor)(samples())
    gradients = []
    for is_checkpointed in (False, True):
        adapter = adapted(load(converted), lora_config("both"))
        if is_checkpointed:
            adapter.get_base_model().activation_checkpointing_enable()
        adapter.train()
        torch.manual_seed(0)
        adapter(**batch).loss.backward()
        gradients.append({name: p.grad for name, p in adapter.named_parameters() if p.grad is not None})
        assert set(gradients[-1]) == {name for name, p in adapter.named_parameters() if p.requires_grad}
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_a_base_in_bfloat16(converted: Path, processor: ProcessorMixin, tmp_path: Path):
    adapter = adapted(load(converted, torch.bfloat16), lora_config("both"))
    dtypes = {name: parameter.dtype for name, parameter in adapter.named_parameters()}
    assert {dtypes[name] for name, p in adapter.named_parameters() if p.requires_grad} == {torch.float32}
    towers = ("vision_tower", "model.qformer", "audio_tower", "base_layer", "lm_head")
    assert {dtype for name, dtype in dtypes.items() if any(part in name for part in towers)} == {torch.bfloat16}

    losses = train(adapter, processor, tmp_path / "run", steps=10, bf16=True)
    assert losses[-1] < 0.65 * losses[0]
    adapter.save_pretrained(tmp_path / "saved")
    logits, generated = answers(adapter, processor)
    loaded = PeftModel.from_pretrained(prepare_for_lora(load(converted, torch.bfloat16)), tmp_path / "saved")
    loaded_logits, loaded_generated = answers(loaded, processor)
    assert torch.equal(loaded_logits, logits)
    assert torch.equal(loaded_generated, generated)
