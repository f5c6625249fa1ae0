# SPDX-License-Identifier: Apache-2.0
"""The library's suite for configurations, on each of ours."""

import types
import unittest

import pytest

from transformers_videollama import (
    ImageBindAudioConfig,
    ImageBindConfig,
    ImageBindVisionConfig,
    VideoLlamaAudioConfig,
    VideoLlamaAudioQFormerConfig,
    VideoLlamaConfig,
    VideoLlamaQFormerConfig,
    VideoLlamaVideoQFormerConfig,
    VideoLlamaVisionConfig,
)

from ..helpers import tiny_config
from .library_suites import load


suite = load("test_configuration_common")

# Each configuration with fields that are not its defaults
CONFIGS = {
    VideoLlamaVisionConfig: {"hidden_size": 32, "num_attention_heads": 4, "key_bias": True},
    VideoLlamaQFormerConfig: {"hidden_size": 40, "num_attention_heads": 4, "cross_attention_frequency": 3},
    VideoLlamaVideoQFormerConfig: {"hidden_size": 40, "num_attention_heads": 4, "cross_attention_frequency": 2},
    VideoLlamaAudioQFormerConfig: {"hidden_size": 40, "num_attention_heads": 4, "cross_attention_frequency": 2},
    ImageBindVisionConfig: {"hidden_size": 48, "num_attention_heads": 4, "temporal_patch_size": 1},
    ImageBindAudioConfig: {"hidden_size": 40, "num_attention_heads": 4, "num_mel_frames": 100},
    ImageBindConfig: {"output_dim": 24, "audio_logit_scale": 10.0},
    VideoLlamaAudioConfig: {"output_dim": 24, "audio_logit_scale": 10.0},
    VideoLlamaConfig: {"num_query_tokens": 8, "num_audio_query_tokens": 3, "image_token_id": 7},
}


@pytest.mark.parametrize("config_class", CONFIGS, ids=lambda config_class: config_class.__name__)
def test_common(config_class):
    parent = unittest.TestCase()
    # A composite of values that are not the defaults, into which the suite loads single fields of the language model
    parent.model_tester = types.SimpleNamespace(get_config=tiny_config)
    tester = suite.ConfigTester(parent, config_class=config_class, has_text_modality=False, **CONFIGS[config_class])
    tester.run_common_tests()


@pytest.mark.parametrize("config_class", [VideoLlamaConfig, ImageBindConfig, VideoLlamaAudioConfig])
def test_an_absent_part_stays_absent(config_class, tmp_path):
    name = "audio_config" if config_class is VideoLlamaConfig else "vision_config"
    config_class(**{name: None}).save_pretrained(tmp_path)
    assert getattr(config_class.from_pretrained(tmp_path), name) is None


def test_the_provenance_of_a_converted_checkpoint_is_kept(tmp_path):
    provenance = {
        "release": "DAMO-NLP-SG/Video-LLaMA-2-7B-Finetuned",
        "prompt_family": "llama_2",
        "sources": [{"file": "VL_LLaMA_2_7B_Finetuned.pth", "sha256": "0" * 64, "bytes": 123}],
    }
    VideoLlamaConfig(provenance=provenance).save_pretrained(tmp_path)

    assert VideoLlamaConfig.from_pretrained(tmp_path).provenance == provenance
    assert VideoLlamaConfig().provenance is None
