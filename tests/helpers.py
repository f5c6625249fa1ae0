# SPDX-License-Identifier: Apache-2.0
"""What all tests share: the one tiny configuration, and where data lies."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from transformers_videollama import VideoLlamaConfig
from transformers_videollama.conversion.convert_video_llama_to_hf import convert
from transformers_videollama.conversion.plan import Plan
from transformers_videollama.conversion.releases import find_sources


TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
FIXTURES = TESTS / "fixtures"
PARITY = FIXTURES / "parity"
PACKAGE = ROOT / "src" / "transformers_videollama"
# The tiny configuration, with its processor and a LLaMA tokenizer; without weights
TINY = FIXTURES / "tiny"
# The small model that is part of the package
BUILT_IN = PACKAGE / "checkpoints" / "default"
SAMPLE_CLIP = PACKAGE / "assets" / "bouncing_ball.mp4"
# The one that the README asks about
FIRST_CLIP = PACKAGE / "assets" / "helicopter.mp4"
# Clips of other people and numbers too large to commit. They are no part of the repository: without them, tests skip
SHARED = Path(os.environ.get("VIDEO_LLAMA_SHARED", ROOT.parent / "shared"))
NO_SKIPS = os.environ.get("VIDEO_LLAMA_NO_SKIPS") == "1"


def tiny_config(**overrides) -> VideoLlamaConfig:
    """The tiny configuration with some fields replaced; fields of sub-configs are merged."""
    fields = json.loads((TINY / "config.json").read_text())
    for name, value in overrides.items():
        is_merged = isinstance(value, dict) and isinstance(fields.get(name), dict)
        fields[name] = {**fields[name], **value} if is_merged else value
    return VideoLlamaConfig(**fields)


def shared(path: str) -> Path:
    """A file of the shared data; skips the test that asks if it is not there."""
    if not (SHARED / path).exists():
        assert not NO_SKIPS, f"{SHARED / path} is missing"
        pytest.skip(f"{SHARED / path} is missing: set VIDEO_LLAMA_SHARED to the folder with the parity data")
    return SHARED / path


def clip(name: str) -> str:
    """Path of a sample video."""
    return str(shared(f"clips/{name}.mp4"))


def expected(name: str) -> tuple[dict, dict[str, torch.Tensor]]:
    """What the original's preprocessing gave for a sample: facts, and tensors by name."""
    facts = shared(f"parity/preprocess/{name}.json")
    return json.loads(facts.read_text()), load_file(facts.with_suffix(".safetensors"))


def convert_release(
    release: Path | str, output: Path, given: dict | None = None, with_audio: bool | None = None, **kwargs
) -> Plan:
    """Converts the original's tiny checkpoint, or what a test made of it."""
    sources = find_sources(release, {"tokenizer": TINY, **(given or {})}, with_audio)
    return convert(sources, output, **{"config": PARITY / "config.json", **kwargs})
