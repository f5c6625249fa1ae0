# SPDX-License-Identifier: Apache-2.0
"""Fixtures of all tests: the tiny model and processor, and the original's checkpoint converted once."""

import logging
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers.utils.hub
from transformers import AutoProcessor

from transformers_videollama import VideoLlamaForConditionalGeneration, VideoLlamaProcessor

from .helpers import PARITY, TINY, convert_release, tiny_config
from .hub_stand_in import HubStandIn


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


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub on which "me" is logged in, and "colleague" and the organization "lab" are others."""
    with HubStandIn({"hf_me": "me", "hf_colleague": "colleague"}, {"colleague": ["lab"]}) as hub:
        constants = huggingface_hub.constants
        url = f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        # Made before, for another endpoint
        for api in (huggingface_hub.hf_api.api, transformers.utils.hub.hf_api()):
            monkeypatch.setattr(api, "endpoint", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", "hf_me")
        yield hub
