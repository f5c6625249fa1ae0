# SPDX-License-Identifier: Apache-2.0
"""Training: data, recipes, the published stages, and what is saved of them."""

from importlib import import_module
from typing import Any


# Imported when they are asked for: Trainer, datasets and PEFT take seconds
_MODULES = {
    "CachedFeatures": "encoding",
    "DataSource": "formats",
    "FeatureCache": "cache",
    "SampleEncoder": "encoding",
    "StreamingTrainingDataset": "dataset",
    "TrainingDataset": "dataset",
    "VideoLlamaDataCollator": "collator",
    "VideoLlamaTrainer": "trainer",
    "VideoLlamaTrainingArguments": "arguments",
    "cache_features": "cache",
    "load_training_data": "formats",
    "lora_config": "peft",
    "prepare_for_lora": "peft",
    "quantization_config": "peft",
    "read_recipe": "arguments",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
