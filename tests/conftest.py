# SPDX-License-Identifier: Apache-2.0
"""Fixtures of all tests: the tiny model and processor, and the original's checkpoint converted once."""

import logging
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor

from transformers_videollama import VideoLlamaForConditionalGeneration, VideoLlamaProcessor

from .helpers import PARITY, TINY, convert_release, tiny_config


class RaiseOnDeprecation(logging.Handler):
    """Turns what the library logs about deprecated use into errors, as the filters do with what it warns of."""

    def emit(self, record: logging.LogRecord) -> None:
        if "deprecated" in record.getMessage():
            raise AssertionError(f"Deprecated use of transformers: {record.getMessage()}")


@pytest.fixture(autouse=True)
def raise_on_deprecation():
    logger, handler = logging.getLogger("transformers"), RaiseOnDeprecation()
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)


@pytest.fixture
def tiny_model() -> VideoLlamaForConditionalGeneration:
    """The tiny model, random with a fixed seed, in evaluation mode."""
    torch.manual_seed(0)
    return VideoLlamaForConditionalGeneration(tiny_config()).eval()


@pytest.fixture(scope="session")
def processor() -> VideoLlamaProcessor:
    """Processor of the tiny model, with Vicuna's prompts."""
    return AutoProcessor.from_pretrained(TINY)


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory, llama_tokenizer: Path) -> Path:
    """The original's tiny checkpoint, converted."""
    output = tmp_path_factory.mktemp("converted") / "model"
    convert_release(PARITY / "original", output, {"tokenizer": llama_tokenizer})
    return output


@pytest.fixture(scope="session")
def llama_tokenizer() -> Path:
    """Folder with a LLaMA tokenizer."""
    return TINY
