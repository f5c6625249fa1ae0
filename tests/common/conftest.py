# SPDX-License-Identifier: Apache-2.0
"""What the library's own tests find around them: their markers, and the names of our classes in its static tables."""

from unittest import mock

import pytest
from transformers.models.auto import modeling_auto


MARKERS = ("accelerate_tests", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test", "torch_compile_test")
MODEL_NAMES = {
    "video_llama": "VideoLlamaModel",
    "video_llama_vision": "VideoLlamaVisionModel",
    "video_llama_qformer": "VideoLlamaQFormerModel",
    "imagebind": "ImageBindModel",
    "imagebind_vision": "ImageBindVisionModel",
    "imagebind_audio": "ImageBindAudioModel",
}
GENERATIVE_MODEL_NAMES = {"video_llama": "VideoLlamaForConditionalGeneration"}


def pytest_configure(config):
    for marker in MARKERS:
        config.addinivalue_line("markers", f"{marker}: of the test suites of transformers")


@pytest.fixture(autouse=True, scope="module")
def names_in_static_tables():
    """Auto classes don't write the tables in which the suites look up what a model is for."""
    with (
        mock.patch.dict(modeling_auto.MODEL_MAPPING_NAMES, MODEL_NAMES),
        mock.patch.dict(modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, GENERATIVE_MODEL_NAMES),
        mock.patch.dict(modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES, GENERATIVE_MODEL_NAMES),
    ):
        yield
