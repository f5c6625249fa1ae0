# SPDX-License-Identifier: Apache-2.0
"""LLaMA in 4 and 8 bits by bitsandbytes, on the CPU: what is quantised, and LoRA on top of it."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoProcessor, ProcessorMixin, Trainer, TrainingArguments

from transformers_videollama import VideoLlamaForConditionalGeneration, VideoLlamaModel
from transformers_videollama.modeling_video_llama import BRANCHES
from transformers_videollama.training import peft as adapters
from transformers_videollama.training.peft import lora_config, prepare_for_lora, quantization_config

from ..helpers import SAMPLE_CLIP, TINY, tiny_config
from .runs import collate_conversations


bnb = pytest.importorskip("bitsandbytes")

# PEFT asks every model for what transformers has renamed
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

LINEAR_TYPES = {4: bnb.nn.Linear4bit, 8: bnb.nn.Linear8bitLt}
BITS = pytest.mark.parametrize("bits", [4, 8])


def collator(processor: ProcessorMixin) -> Callable[[list], dict[str, torch.Tensor]]:
    """Questions about the clip to what the model takes, with labels on the answers."""

    def collate(questions: list[str]) -> dict[str, torch.Tensor]:
        conversations = [
            [
                {
                    "role": "user",
                    "content": [{"type": "video", "path": str(SAMPLE_CLIP)}, {"type": "text", "text": question}],
                },
                {"role": "assistant", "content": "A ball bounces, and it can be heard."},
            ]
            for question in questions
        ]
        return collate_conversations(processor, conversations)

    return collate


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose LLaMA is as narrow as 4 bits allow: blocks of 64 weights, and outputs in blocks of 32."""
    text_config = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 128, "initializer_range": 0.1}
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    VideoLlamaForConditionalGeneration(tiny_config(text_config=text_config)).save_pretrained(folder)
    AutoProcessor.from_pretrained(TINY).save_pretrained(folder)
    return folder


def load(
    base: Path, bits: int | None = None, dtype: torch.dtype = torch.float32, **kwargs
) -> VideoLlamaForConditionalGeneration:
    if bits is not None:
        computed = {"bnb_4bit_compute_dtype": dtype} if bits == 4 else {}
        kwargs["quantization_config"] = quantization_config(bits, **computed, **kwargs)
    return VideoLlamaForConditionalGeneration.from_pretrained(base, dtype=dtype, **kwargs)


@torch.no_grad()
def answers(model: nn.Module, processor: ProcessorMixin) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and what is generated."""
    model.eval()
    batch = collator(processor)(["What is there?"])
    logits = model(**batch).logits
    length = int((batch.pop("labels")[0] == -100).sum())
    prompt = {
        **batch,
        "input_ids": batch["input_ids"][:, :length],
        "attention_mask": batch["attention_mask"][:, :length],
    }
    return logits, model.generate(**prompt, max_new_tokens=6, do_sample=False)[:, length:]


@BITS
def test_exactly_the_linear_layers_of_llama_are_quantised(bits: int, base: Path):
    plain, model = load(base), load(base, bits)
    quantised = {name for name, module in model.named_modules() if isinstance(module, LINEAR_TYPES[bits])}
    linear = {name for name, module in plain.named_modules() if isinstance(module, nn.Linear)}
    assert quantised == {name for name in linear if name.startswith("model.language_model.")}
    assert len(quantised) == 7 * model.config.text_config.num_hidden_layers
    for name in linear - quantised:
        assert type(model.get_submodule(name)) is nn.Linear, name
    kept = {
        name: tensor for name, tensor in model.state_dict().items() if name.rsplit(".", 1)[0] in linear - quantised
    }
    assert kept
    for name, tensor in kept.items():
        assert torch.equal(tensor, plain.state_dict()[name]), name


def test_every_part_beside_llama_is_named(tiny_model: VideoLlamaForConditionalGeneration):
    parts = {name for name, _ in tiny_model.model.named_children()}
    assert parts - {"language_model"} == set(adapters.PARTS_BESIDE_LLAMA)


@BITS
def test_a_model_without_head(bits: int, base: Path):
    model = VideoLlamaModel.from_pretrained(base, dtype=torch.float32, quantization_config=quantization_config(bits))
    quantised = {name for name, module in model.named_modules() if isinstance(module, LINEAR_TYPES[bits])}
    assert len(quantised) == 7 * model.config.text_config.num_hidden_layers
    assert all(name.startswith("language_model.") for name in quantised)


def test_the_librarys_default_would_quantise_the_encoders(base: Path):
    """Why the parts are named."""
    config = quantization_config(8)
    config.llm_int8_skip_modules = None
    model = VideoLlamaForConditionalGeneration.from_pretrained(base, quantization_config=config)
    quantised = {name.split(".")[1] for name, module in model.named_modules() if isinstance(module, LINEAR_TYPES[8])}
    assert {"vision_tower", "qformer", "video_qformer", "video_projection", "audio_tower"} < quantised


@BITS
def test_a_quantised_model_answers_almost_as_before(bits: int, base: Path, processor: ProcessorMixin):
    logits, _ = answers(load(base), processor)
    quantised, generated = answers(load(base, bits), processor)
    error = float((quantised - logits).norm() / logits.norm())
    assert 0 < error < {4: 0.4, 8: 0.05}[bits]
    assert generated.shape == (1, 6)


@BITS
def test_the_quantised_model_can_be_saved(bits: int, base: Path, processor: ProcessorMixin, tmp_path: Path):
    model = prepare_for_lora(load(base, bits))
    logits, generated = answers(model, processor)
    model.save_pretrained(tmp_path)
    loaded = prepare_for_lora(VideoLlamaForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32))
    assert {type(module) for name, module in loaded.named_modules() if name.endswith("_proj")} & {LINEAR_TYPES[bits]}
    loaded_logits, loaded_generated = answers(loaded, processor)
    torch.testing.assert_close(loaded_logits, logits)
    assert torch.equal(loaded_generated, generated)


def train(adapter: nn.Module, processor: ProcessorMixin, folder: Path, steps: int = 10, **kwargs) -> list[float]:
    arguments = TrainingArguments(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=2,
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
    rows = ["What is there?", "What does one hear?"]
    trainer = Trainer(adapter, arguments, train_dataset=rows, data_collator=collator(processor))
    trainer.train()
    # Off with the autocast that bf16=True has put around `forward`
    trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.fixture(scope="module", params=[4, 8])
def trained(request, base: Path, processor: ProcessorMixin, tmp_path_factory) -> SimpleNamespace:
    """QLoRA after some steps on a base in bfloat16, with what it answers, and where it was saved."""
    bits, folder = request.param, tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    config = lora_config("both", target_modules="all-linear")
    adapter = get_peft_model(prepare_for_lora(load(base, bits, torch.bfloat16), config), config)
    before = {name: tensor.clone() for name, tensor in adapter.state_dict().items()}
    losses = train(adapter, processor, folder / "run", bf16=True)
    adapter.save_pretrained(folder / "saved")
    logits, generated = answers(adapter, processor)
    return SimpleNamespace(
        bits=bits,
        adapter=adapter,
        before=before,
        losses=losses,
        folder=folder / "saved",
        logits=logits,
        generated=generated,
    )


def test_training_on_a_quantised_base(trained: SimpleNamespace):
    assert all(torch.tensor(trained.losses).isfinite())
    assert trained.losses[-1] < 0.93 * trained.losses[0]
    for name, tensor in trained.adapter.state_dict().items():
        is_trained = ".lora_" in name or ".modules_to_save." in name
        assert torch.equal(tensor, trained.before[name]) != is_trained or name.endswith(".k_proj.bias"), name
    for name, parameter in trained.adapter.named_parameters():
        if parameter.requires_grad:
            assert parameter.dtype == torch.float32, name
        elif any(part in name for part in ("vision_tower", "audio_tower", "model.qformer", "lm_head", "embed_tokens")):
            assert parameter.dtype == torch.bfloat16, name


def test_lora_is_on_the_quantised_layers_alone(trained: SimpleNamespace):
    model = trained.adapter.get_base_model()
    quantised = {name for name, module in model.named_modules() if isinstance(module, LINEAR_TYPES[trained.bits])}
    with_lora = {name.split(".lora_")[0] for name, _ in model.named_parameters() if ".lora_" in name}
    assert quantised == {f"{name}.base_layer" for name in with_lora}
    for part in (part for parts in BRANCHES.values() for part in parts):
        types = {type(module) for module in getattr(model.model, part).modules()}
        assert not types & set(LINEAR_TYPES.values())


def test_a_loaded_adapter_answers_as_the_trained_one(trained: SimpleNamespace, base: Path, processor: ProcessorMixin):
    fresh = prepare_for_lora(load(base, trained.bits, torch.bfloat16))
    loaded = PeftModel.from_pretrained(fresh, trained.folder)
    logits, generated = answers(loaded, processor)
    assert torch.equal(logits, trained.logits)
    assert torch.equal(generated, trained.generated)


def test_gradient_checkpointing_on_a_quantised_base(base: Path, processor: ProcessorMixin, tmp_path: Path):
    losses = []
    for is_checkpointed in (False, True):
        torch.manual_seed(0)
        config = lora_config("both")
        adapter = get_peft_model(prepare_for_lora(load(base, 4), config), config)
        losses.append(train(adapter, processor, tmp_path / "run", steps=3, activation_checkpointing=is_checkpointed))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_gradients_are_not_lost_after_an_evaluation(base: Path, processor: ProcessorMixin):
    """bitsandbytes packs layers of 4 bits in evaluation mode on some CPUs, and packed ones pass no gradients on."""
    batch = collator(processor)(["What is there?"])
    config = lora_config("both")
    adapter = get_peft_model(prepare_for_lora(load(base, 4), config), config)
    weight = adapter.get_base_model().model.video_projection.modules_to_save["default"].weight
    gradients = []
    for _ in range(2):
        adapter.train()
        adapter.zero_grad()
        torch.manual_seed(0)
        adapter(**batch).loss.backward()
        gradients.append(weight.grad.clone())
        answers(adapter, processor)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-7)


def test_fields_of_the_configuration():
    config = quantization_config()
    assert config.load_in_4bit
    assert config.bnb_4bit_quant_type == "nf4"
    assert config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_compute_dtype == torch.bfloat16
    config = quantization_config(8, llm_int8_threshold=5.0, llm_int8_skip_modules=["down_proj"])
    assert config.load_in_8bit
    assert config.llm_int8_threshold == 5.0
    assert {"lm_head", "model.vision_tower", "down_proj"} < set(config.llm_int8_skip_modules)


def test_what_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="bits must be 4 or 8, got 3"):
        quantization_config(3)
    monkeypatch.setattr(adapters, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(ImportError, match="pip install bitsandbytes"):
        quantization_config()
