# SPDX-License-Identifier: Apache-2.0
"""Adapters: LoRA on LLaMA with the branches beside it, and bitsandbytes on LLaMA alone.

```python
model = VideoLlamaForConditionalGeneration.from_pretrained("path/to/converted", quantization_config=quantization_config(4))
config = lora_config("vision_branch")
adapter = get_peft_model(prepare_for_lora(model, config), config)
```
"""

import torch
from peft import LoraConfig
from transformers import BitsAndBytesConfig
from transformers.utils import is_bitsandbytes_available

from ..modeling_video_llama import BRANCHES, VideoLlamaForConditionalGeneration


# What LoRA adapts by default, as in its paper, and all that it can adapt in LLaMA
ATTENTION_TARGETS = ("q_proj", "v_proj")
LINEAR_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

# All parts of the model but LLaMA
PARTS_BESIDE_LLAMA = (
    "vision_tower",
    "query_tokens",
    "qformer",
    "audio_tower",
    *(part for parts in BRANCHES.values() for part in parts),
)


def lora_config(
    branches: str | None = "both",
    r: int = 16,
    lora_alpha: int = 32,
    lora_dropout: float = 0.05,
    target_modules: str | list[str] | None = None,
    **kwargs,
) -> LoraConfig:
    """LoRA on LLaMA, with the branches trained and saved beside it.

    PEFT finds modules by the ends of their names, and the encoders have a `q_proj` and an `audio_projection` too. Here every
    name begins at the root of [`VideoLlamaForConditionalGeneration`], so that they stay as they are.

    Args:
        branches: "vision_branch", "audio_branch" or "both": the Q-Former, query tokens, position table and projection that
            are trained in full and go with the adapter. None leaves them as they are. "both" also suits a model without an
            audio branch.
        r, lora_alpha, lora_dropout: See [`~peft.LoraConfig`].
        target_modules: Names of LLaMA's linear layers, by default `["q_proj", "v_proj"]`; "all-linear" for all seven of
            them; or a regular expression that whole names of modules match, such as
            `r"model\\.language_model\\.layers\\.3\\d\\..*_proj"`.
        kwargs: Other fields of [`~peft.LoraConfig`]. `modules_to_save` are added to those of the branches.

    Returns:
        [`~peft.LoraConfig`] for `get_peft_model`, `model.add_adapter` or `SFTTrainer`. See also `prepare_for_lora`.

    Raises:
        ValueError: If there is no such branch or layer.
    """
    choices = {None: [], "both": [*BRANCHES["vision_branch"], *BRANCHES["audio_branch"]], **BRANCHES}
    if branches not in list(choices):
        raise ValueError(f"branches must be one of {list(choices)}, got {branches!r}.")
    if target_modules is None:
        target_modules = ATTENTION_TARGETS
    elif target_modules == "all-linear":
        target_modules = LINEAR_TARGETS
    if not isinstance(target_modules, str):
        if not target_modules or (unknown := set(target_modules) - set(LINEAR_TARGETS)):
            raise ValueError(
                f"target_modules holds {sorted(unknown) if target_modules else 'nothing'}, but LLaMA's linear layers are "
                f"{list(LINEAR_TARGETS)}: name some of them, or give a regular expression of whole names."
            )
        target_modules = rf"model\.language_model\..*\.({'|'.join(target_modules)})"
    modules_to_save = [f"model.{part}" for part in choices[branches]]
    modules_to_save += [name for name in kwargs.pop("modules_to_save", None) or [] if name not in modules_to_save]
    return LoraConfig(
        **{
            "task_type": "CAUSAL_LM",
            "r": r,
            "lora_alpha": lora_alpha,
            "lora_dropout": lora_dropout,
            "target_modules": target_modules,
            "modules_to_save": modules_to_save or None,
            **kwargs,
        }
    )


def prepare_for_lora(
    model: VideoLlamaForConditionalGeneration, config: LoraConfig | None = None
) -> VideoLlamaForConditionalGeneration:
    """Makes a base model ready for an adapter, to train one as well as to load one by `PeftModel.from_pretrained`.

    What it does, in place: the branches become float32, since steps of training are smaller than what bfloat16 can tell
    apart, and PEFT sees to that for LoRA only; and layers of 4 bits on the CPU are kept from the packing by which
    bitsandbytes speeds them up after training mode has ended, because gradients are lost in packed layers. For a model in
    float32 it does nothing.

    In place of PEFT's `prepare_model_for_kbit_training`, which makes everything float32 that is not quantised: the frozen
    encoders too, which then take twice the memory.

    Args:
        model: The base, quantised or not.
        config: Of the adapter; only checked.

    Returns:
        The model that was given.

    Raises:
        ValueError: If the model has none of the modules that the adapter is to train and save.
    """
    names = [name for name, _ in model.named_modules()]
    to_save = list(config.modules_to_save or []) if config is not None else []
    if to_save and not any(name.endswith(part) for name in names for part in to_save):
        raise ValueError(
            f"The model has none of {to_save}, which the adapter would train: choose other branches, or a model that has "
            "them."
        )
    for part in (part for parts in BRANCHES.values() for part in parts):
        if hasattr(model.model, part):
            getattr(model.model, part).float()
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def quantization_config(bits: int = 4, **kwargs) -> BitsAndBytesConfig:
    """bitsandbytes for LLaMA's linear layers; encoders, Q-Formers, projections and the LM head keep their precision.

    Args:
        bits: 4 (NF4 with double quantisation, computed in bfloat16: QLoRA) or 8 (LLM.int8()).
        kwargs: Other fields of [`~transformers.BitsAndBytesConfig`], in place of these defaults.
            `llm_int8_skip_modules` are added to those that are kept.

    Returns:
        [`~transformers.BitsAndBytesConfig`] for `from_pretrained(quantization_config=…)`.

    Raises:
        ValueError: If there is no quantisation to so many bits.
        ImportError: If bitsandbytes is not installed.
    """
    if bits not in (4, 8):
        raise ValueError(f"bits must be 4 or 8, got {bits!r}.")
    if not is_bitsandbytes_available():
        raise ImportError("Quantisation needs bitsandbytes: pip install bitsandbytes")
    # With and without the prefix that the parts have below the LM head
    kept = [prefix + part for part in PARTS_BESIDE_LLAMA for prefix in ("model.", "")]
    kept += ["lm_head", *(kwargs.pop("llm_int8_skip_modules", None) or [])]
    four_bits = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": torch.bfloat16,
    }
    return BitsAndBytesConfig(
        **{**(four_bits if bits == 4 else {"load_in_8bit": True}), "llm_int8_skip_modules": kept, **kwargs}
    )


__all__ = ["lora_config", "prepare_for_lora", "quantization_config"]
