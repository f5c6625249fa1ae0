# SPDX-License-Identifier: Apache-2.0
"""The trained branches go back to the original's files as they came."""

import logging
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from transformers_videollama import CheckpointError, VideoLlamaForConditionalGeneration
from transformers_videollama.cli import app
from transformers_videollama.conversion.export_video_llama_to_original import export

from ..helpers import PARITY, convert_release


FILES = {"vision": "VL_LLaMA_2_7B_Finetuned.pth", "audio": "AL_LLaMA_2_7B_Finetuned.pth"}
# Frozen at their first value, and loaded from elsewhere by the original too
BUFFERS = ("position_ids", "inv_freq", "text.mask", "log_logit_scale")


def load(path) -> dict:
    return torch.load(path, weights_only=True)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


@pytest.mark.parametrize("branch", FILES)
@pytest.mark.parametrize("from_memory", [False, True])
def test_original_to_ours_to_original_is_the_same_to_the_bit(branch, from_memory, converted, tmp_path):
    model = converted
    if from_memory:
        model = VideoLlamaForConditionalGeneration.from_pretrained(converted, dtype=torch.float32)
    export(model, tmp_path, name="LLaMA_2_7B_Finetuned")
    source, written = load(PARITY / "original" / FILES[branch]), load(tmp_path / FILES[branch])

    assert written.keys() == source.keys()
    assert {key: type(value) for key, value in written.items() if key != "model"} == {
        key: type(value) for key, value in source.items() if key != "model"
    }
    assert written["model"].keys() == source["model"].keys()
    for name, tensor in source["model"].items():
        ours = written["model"][name]
        assert (ours.shape, ours.dtype) == (tensor.shape, tensor.dtype), name
        assert bits(ours) == bits(tensor), name
    assert sum(not name.endswith(BUFFERS) for name in written["model"]) == 58


def test_what_was_exported_converts_to_the_same_model(converted, tmp_path):
    release = shutil.copytree(PARITY / "original", tmp_path / "release")
    for file in FILES.values():
        (release / file).unlink()
    export(converted, release, name="LLaMA_2_7B_Finetuned")
    convert_release(release, tmp_path / "out")

    first, second = ((folder / "model.safetensors").read_bytes() for folder in (converted, tmp_path / "out"))
    assert first == second


def test_what_was_trained_further_is_what_is_written(converted, tmp_path):
    model = VideoLlamaForConditionalGeneration.from_pretrained(converted, dtype=torch.float32)
    with torch.no_grad():
        model.model.audio_projection.weight += 1
    (vision, audio) = export(model, tmp_path, name="mine")

    assert (vision.name, audio.name) == ("VL_mine.pth", "AL_mine.pth")
    original = load(PARITY / "original" / FILES["audio"])["model"]["audio_llama_proj.weight"]
    assert torch.equal(load(audio)["model"]["audio_llama_proj.weight"], original + 1)


def test_a_model_without_sound_gives_one_file(tmp_path):
    release = shutil.copytree(PARITY / "original", tmp_path / "release")
    convert_release(release, tmp_path / "silent", with_audio=False)

    assert [path.name for path in export(tmp_path / "silent", tmp_path / "out")] == ["VL_silent.pth"]


def test_lower_precision_is_exported_as_float32_and_said(converted, tmp_path, caplog):
    model = VideoLlamaForConditionalGeneration.from_pretrained(converted, dtype=torch.bfloat16)
    with caplog.at_level(logging.WARNING):
        vision, _ = export(model, tmp_path, name="half")

    assert "The branches are in torch.bfloat16" in caplog.text
    weight = load(vision)["model"]["llama_proj.weight"]
    assert weight.dtype == torch.float32
    assert torch.equal(weight, model.model.video_projection.weight.float())


def test_the_command_names_its_files_after_the_model_and_overwrites_nothing(converted, tmp_path):
    arguments = ["export", str(converted), str(tmp_path)]
    first, second = CliRunner().invoke(app, arguments), CliRunner().invoke(app, arguments)

    assert first.exit_code == 0, first.output
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{kind}_{converted.name}.pth" for kind in ("AL", "VL")
    ]
    assert second.exit_code == 1
    assert "exists already: remove it or give another name" in second.output


def test_a_model_that_lacks_a_part_is_refused(converted, tmp_path):
    folder = shutil.copytree(converted, tmp_path / "folder")
    weights = load_file(folder / "model.safetensors")
    del weights["model.video_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(CheckpointError, match="lacks 1 of the tensors .* model.video_projection.weight first"):
        export(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# PEFT asks the model by the old name
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters_have_to_be_merged_first(converted, tmp_path):
    model = VideoLlamaForConditionalGeneration.from_pretrained(converted, dtype=torch.float32)
    config = LoraConfig(target_modules=["video_projection"])
    with pytest.raises(CheckpointError, match="Got a PeftModel, expected a model or its folder: merge adapters first"):
        export(get_peft_model(model, config), tmp_path / "out")
    with pytest.raises(CheckpointError, match="an adapter has to be merged first"):
        export(model, tmp_path / "out", name="adapted")


def test_a_name_with_a_separator_is_refused(converted, tmp_path):
    with pytest.raises(CheckpointError, match="'a/b' is no part of a file's name"):
        export(converted, tmp_path / "out", name="a/b")


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="has no config.json"):
        export(tmp_path, tmp_path / "out")
    result = CliRunner().invoke(app, ["export", str(tmp_path / "nowhere"), str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "Error: " in result.output
    assert not (tmp_path / "out").exists()
