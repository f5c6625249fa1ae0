# SPDX-License-Identifier: Apache-2.0
"""Saving and sharing: Auto classes, exact round trips, and a saved folder where the package is not installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    AutoVideoProcessor,
    GenerationConfig,
    pipeline,
)

import transformers_videollama
from transformers_videollama import CheckpointError, VideoLlamaConfig, VideoLlamaForConditionalGeneration

from .helpers import SAMPLE_CLIP, TINY


MESSAGES = [
    {
        "role": "user",
        "content": [
            {"type": "video", "path": str(SAMPLE_CLIP)},
            {"type": "text", "text": "What do you see and hear?"},
        ],
    }
]
TEMPLATE = {
    "load_audio_from_video": True,
    "add_generation_prompt": True,
    "tokenize": True,
    "return_dict": True,
    "return_tensors": "pt",
}
GREEDY = {"do_sample": False, "max_new_tokens": 8}


@pytest.fixture
def saved(tiny_model, processor, tmp_path) -> Path:
    folder = tmp_path / "saved"
    tiny_model.generation_config = GenerationConfig.from_pretrained(TINY)
    tiny_model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def answer(tiny_model, processor) -> list[int]:
    """What the model says, greedily."""
    inputs = processor.apply_chat_template(MESSAGES, **TEMPLATE)
    return tiny_model.generate(**inputs, **GREEDY)[0, inputs["input_ids"].shape[1] :].tolist()


def sizes(fields: dict) -> dict:
    """A configuration without what loading notes in it."""
    notes = {"dtype", "_name_or_path", "transformers_version"}
    return {
        name: sizes(value) if isinstance(value, dict) else value for name, value in fields.items() if name not in notes
    }


def test_auto_classes_load_a_saved_folder(saved):
    loaded = {
        auto_class: type(auto_class.from_pretrained(saved)).__name__
        for auto_class in (
            AutoConfig,
            AutoModel,
            AutoModelForImageTextToText,
            AutoModelForMultimodalLM,
            AutoProcessor,
            AutoImageProcessor,
            AutoVideoProcessor,
            AutoFeatureExtractor,
        )
    }

    assert list(loaded.values()) == [
        "VideoLlamaConfig",
        "VideoLlamaModel",
        "VideoLlamaForConditionalGeneration",
        "VideoLlamaForConditionalGeneration",
        "VideoLlamaProcessor",
        "VideoLlamaImageProcessor",
        "VideoLlamaVideoProcessor",
        "VideoLlamaFeatureExtractor",
    ]


def test_a_round_trip_is_exact(saved, tiny_model):
    loaded = VideoLlamaForConditionalGeneration.from_pretrained(saved)
    weights, expected = loaded.state_dict(), tiny_model.state_dict()

    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert sizes(loaded.config.to_dict()) == sizes(tiny_model.config.to_dict())
    assert loaded.generation_config.stop_token_sequences == [[835], [2277, 29937]]


def test_every_public_name_exists_and_is_sorted():
    names = transformers_videollama.__all__

    assert names == sorted(names)
    assert all(hasattr(transformers_videollama, name) for name in names)


def test_the_pipeline_answers_about_a_clip_with_sound(saved, answer, processor):
    pipe = pipeline("any-to-any", model=str(saved))
    output = pipe(text=MESSAGES, load_audio_from_video=True, return_full_text=False, generate_kwargs=GREEDY)

    assert output[0]["generated_text"].strip() == processor.tokenizer.decode(answer)


WITHOUT_PACKAGE = """
import json, sys

class Uninstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "transformers_videollama":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Uninstalled())
from transformers import AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor, pipeline


folder, messages, template, greedy = sys.argv[1], *map(json.loads, sys.argv[2:5])
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForMultimodalLM.from_pretrained(folder, trust_remote_code=True)
inputs = processor.apply_chat_template(messages, **template)
answer = model.generate(**inputs, **greedy)[0, inputs["input_ids"].shape[1]:].tolist()
names = [type(auto.from_pretrained(folder, trust_remote_code=True)).__name__ for auto in (AutoModel, AutoModelForImageTextToText)]
pipe = pipeline("any-to-any", model=folder, trust_remote_code=True)
output = pipe(text=messages, load_audio_from_video=True, return_full_text=False, generate_kwargs=greedy)
model.save_pretrained(folder + "-again")
print(json.dumps([answer, names, output[0]["generated_text"]]))
"""


def test_a_saved_folder_works_where_the_package_is_not_installed(saved, answer, processor, tmp_path):
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    arguments = [str(saved), *map(json.dumps, (MESSAGES, TEMPLATE, GREEDY))]
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_PACKAGE, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )

    assert result.returncode == 0, result.stderr
    there, names, text = json.loads(result.stdout.splitlines()[-1])
    assert there == answer
    assert names == ["VideoLlamaModel", "VideoLlamaForConditionalGeneration"]
    assert text.strip() == processor.tokenizer.decode(answer)
    assert (tmp_path / "saved-again" / "modeling_video_llama.py").is_file()


def test_generation_ends_at_the_stop_sequence_with_and_without_a_tokenizer(tiny_model, processor):
    tiny_model.generation_config = GenerationConfig.from_pretrained(TINY)
    sharps = processor.tokenizer("a ###", add_special_tokens=False)["input_ids"][1:]
    assert sharps == [835]
    with torch.no_grad():  # a model that says nothing but "###"
        tiny_model.lm_head.weight.zero_()
        tiny_model.model.language_model.norm.weight.zero_()
    bias = {(835,): 10.0}
    inputs = processor(text=["Hello", "Hello you there"], padding=True, return_tensors="pt")

    for options in ({}, {"tokenizer": processor.tokenizer}):
        output = tiny_model.generate(**inputs, do_sample=False, sequence_bias=bias, **options)
        assert output[:, inputs["input_ids"].shape[1] :].tolist() == [[835], [835]]


class TestWrongFolders:
    def test_a_folder_without_a_configuration(self, tmp_path):
        with pytest.raises(CheckpointError, match="has no config.json, so it is no checkpoint of this package"):
            VideoLlamaForConditionalGeneration.from_pretrained(tmp_path)

    def test_a_folder_of_another_model(self, tmp_path):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
        with pytest.raises(CheckpointError, match="model type 'llama', expected 'video_llama'"):
            VideoLlamaForConditionalGeneration.from_pretrained(tmp_path)

    def test_a_field_of_the_wrong_type(self):
        with pytest.raises(Exception, match="num_query_tokens"):
            VideoLlamaConfig(num_query_tokens="many")
