# SPDX-License-Identifier: Apache-2.0
"""A converted folder is proven equal to its sources, or what differs is named; an interrupted conversion leaves nothing."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from transformers_videollama import CheckpointError, VideoLlamaConfig
from transformers_videollama.cli import app
from transformers_videollama.conversion.convert_video_llama_to_hf import made_whole
from transformers_videollama.modeling_video_llama import BRANCHES

from ..helpers import PARITY, TINY, convert_release


SOURCES = {
    "VL_LLaMA_2_7B_Finetuned.pth",
    "AL_LLaMA_2_7B_Finetuned.pth",
    "eva_vit_g.pth",
    "blip2_pretrained_flant5xxl.pth",
    "imagebind_huge.pth",
    "llama-2-7b-chat-hf/pytorch_model.bin",
}


def arguments(output: Path, *more: str, release: Path = PARITY / "original") -> list[str]:
    options = {"release": release, "config": PARITY / "config.json", "tokenizer": TINY, "output": output}
    return ["convert", *(text for name, value in options.items() for text in (f"--{name}", str(value))), *more]


def run(output: Path, *more: str, release: Path = PARITY / "original"):
    return CliRunner().invoke(app, arguments(output, *more, release=release))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def folder(converted, tmp_path) -> Path:
    """A converted folder, to break."""
    return shutil.copytree(converted, tmp_path / "folder")


@pytest.mark.parametrize(
    ("more", "rounded"),
    [([], ""), (["--dtype", "bfloat16", "--max-shard-size", "1MB"], " rounded to bfloat16")],
    ids=["as released", "bfloat16"],
)
def test_a_conversion_is_proven_on_one_page_and_beside_the_weights(more, rounded, tmp_path):
    result = run(tmp_path / "out", "--verify", *more)
    report = json.loads((tmp_path / "out" / "conversion_report.json").read_text())

    assert result.exit_code == 0, result.output
    assert f"359 of 359 tensors equal to the sources{rounded}, bit by bit" in result.stdout
    assert "88  a modality that Video-LLaMA does not use" in result.stdout
    assert len(result.stdout.splitlines()) < 80
    assert report["equal"] is True
    assert report["different"] == {}
    tensors = report["tensors"]
    assert tensors["in the sources"] == tensors["of these used"] + tensors["of these ignored"]
    assert tensors["of these ignored"] == sum(map(len, report["ignored"].values())) == 167
    assert tensors["in the folder"] == tensors["equal"] == 359
    stored = [load_file(path) for path in (tmp_path / "out").glob("*.safetensors")]
    assert report["trained by Video-LLaMA"] == {
        branch: sum(report["parameters"][part] for part in parts) for branch, parts in BRANCHES.items()
    }
    assert report["trained by Video-LLaMA"]["vision_branch"] == 42032  # as the model card of these sizes says
    assert sum(report["parameters"].values()) == sum(tensor.numel() for shard in stored for tensor in shard.values())
    assert {file["file"]: file["sha256"] for file in report["sources"]} == {
        name: sha256(PARITY / "original" / name) for name in SOURCES
    }
    assert {file["file"]: file["sha256"] for file in report["weights"]} == {
        f"out/{path.name}": sha256(path) for path in (tmp_path / "out").glob("*.safetensors")
    }


def test_the_configuration_names_the_sources_by_checksum(converted):
    provenance = VideoLlamaConfig.from_pretrained(converted).provenance

    assert (provenance["release"], provenance["prompt_family"]) == (
        "DAMO-NLP-SG/Video-LLaMA-2-7B-Finetuned",
        "llama_2",
    )
    assert {source["file"]: (source["sha256"], source["bytes"]) for source in provenance["sources"]} == {
        name: (sha256(path), path.stat().st_size) for name in SOURCES for path in [PARITY / "original" / name]
    }


def change_one_bit(weights: dict) -> None:
    weights["model.video_projection.bias"].view(torch.int32)[3] ^= 1


def swap_two(weights: dict) -> None:
    names = [f"model.audio_qformer.layers.{layer}.mlp.fc1.bias" for layer in (0, 1)]
    weights[names[0]], weights[names[1]] = weights[names[1]], weights[names[0]]


def drop_one(weights: dict) -> None:
    del weights["lm_head.weight"]


def add_one(weights: dict) -> None:
    weights["model.extra"] = torch.zeros(1)


def change_precision(weights: dict) -> None:
    weights["model.query_tokens.weight"] = weights["model.query_tokens.weight"].half()


@pytest.mark.parametrize(
    ("change", "equal", "message"),
    [
        (
            change_one_bit,
            358,
            "model.video_projection.bias: other values than VL_LLaMA_2_7B_Finetuned.pth: llama_proj.bias",
        ),
        (
            swap_two,
            357,
            "model.audio_qformer.layers.1.mlp.fc1.bias: other values than AL_LLaMA_2_7B_Finetuned.pth: audio_Q",
        ),
        (drop_one, 358, "lm_head.weight: missing in the folder"),
        (add_one, 359, "model.extra: not of the sources"),
        (
            change_precision,
            358,
            "model.query_tokens.weight: is ((8, 40), torch.float16), expected ((8, 40), torch.float32)",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_folder_that_was_converted_before_is_checked_and_what_differs_named(change, equal, message, folder):
    assert run(folder, "--verify").exit_code == 0
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    result = run(folder, "--verify")

    assert result.exit_code == 1
    assert f"{equal} of {len(weights)} tensors equal" in result.stdout
    assert message in result.stdout
    assert json.loads((folder / "conversion_report.json").read_text())["equal"] is False


def test_the_same_number_in_other_bits_is_a_difference(folder, tmp_path):
    release = shutil.copytree(PARITY / "original", tmp_path / "release")
    checkpoint = torch.load(release / "VL_LLaMA_2_7B_Finetuned.pth", weights_only=True)
    checkpoint["model"]["llama_proj.bias"][:2] = torch.tensor([0.0, torch.nan])
    torch.save(checkpoint, release / "VL_LLaMA_2_7B_Finetuned.pth")
    convert_release(release, tmp_path / "out")
    assert run(tmp_path / "out", "--verify", release=release).exit_code == 0  # NaN is equal to itself here
    weights = load_file(tmp_path / "out" / "model.safetensors")
    weights["model.video_projection.bias"][0] = -0.0
    save_file(weights, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})

    assert run(tmp_path / "out", "--verify", release=release).exit_code == 1


def test_settings_and_prompts_are_compared_too(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"video_token_id": 5}))
    (folder / "chat_template.jinja").write_text("another")
    result = run(folder, "--verify")

    assert result.exit_code == 1
    assert "config.json: video_token_id: is 5, expected 32002" in result.stdout
    assert "chat_template.jinja: is not that of llama_2" in result.stdout


def test_another_precision_is_told_in_short_with_what_to_do(tmp_path):
    assert run(tmp_path / "out", "--dtype", "bfloat16").exit_code == 0
    result = run(tmp_path / "out", "--verify")

    assert result.exit_code == 1
    assert "more, in conversion_report.json" in result.stdout
    assert "verified with the options that it was converted with: --dtype" in result.stdout
    assert len(result.stdout.splitlines()) < 80


def test_a_folder_of_something_else_is_not_written_to(tmp_path):
    folder = shutil.copytree(PARITY / "original" / "llama-2-7b-chat-hf", tmp_path / "llama")
    before = sorted(folder.iterdir())
    result = run(folder, "--verify")

    assert result.exit_code == 1
    assert "holds no Video-LLaMA, which could be verified" in result.stderr
    assert sorted(folder.iterdir()) == before


def test_an_output_that_can_not_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    result = run(tmp_path / "file" / "out")

    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.splitlines()) == 1


def test_verifying_writes_no_weights(folder):
    before = (folder / "model.safetensors").stat().st_mtime_ns
    run(folder, "--verify")

    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_without_verify_there_is_no_report(converted):
    assert not (converted / "conversion_report.json").exists()


def test_progress_is_told_in_bytes_and_time(tmp_path):
    result = run(tmp_path / "out")

    assert "Writing: 100%" in result.stderr
    assert "7.68M/7.68M [00:0" in result.stderr
    assert "Checksums of the sources: 100%" in result.stderr


class TestInterrupted:
    # Stops, for good, before the second shard
    SCRIPT = """
import sys, time
from transformers_videollama.conversion import convert_video_llama_to_hf as module
from transformers_videollama.cli import app

save_file = module.save_file
def slow(*arguments, **kwargs):
    save_file(*arguments, **kwargs)
    print("written", flush=True)
    time.sleep(120)
module.save_file = slow
app(sys.argv[1:])
"""

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
    def test_no_half_made_output_is_left_and_running_again_works(self, number, tmp_path):
        output = tmp_path / "made" / "out"
        command = [sys.executable, "-c", self.SCRIPT, *arguments(output, "--max-shard-size", "1MB")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout.readline() == "written\n"
        start = time.monotonic()
        process.send_signal(number)
        process.wait(timeout=60)

        assert time.monotonic() - start < 30
        assert process.returncode != 0
        assert not output.exists()
        left = sorted(path.name for path in output.parent.iterdir())
        assert left == ([".out.incomplete", ".out.lock"] if number == signal.SIGKILL else [])
        if number == signal.SIGKILL:
            (output.parent / ".out.incomplete" / "left over").touch()
        assert run(output).exit_code == 0
        assert [path.name for path in output.parent.iterdir()] == ["out"]
        assert not (output / "left over").exists()

    def test_two_conversions_do_not_write_the_same_output(self, tmp_path):
        with FileLock(tmp_path / ".out.lock"):
            with pytest.raises(CheckpointError, match="Another conversion is making"):
                with made_whole(tmp_path / "out"):
                    raise AssertionError("not reached")

    def test_too_little_room_is_said_before_it_is_used(self, tmp_path, monkeypatch):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
        with pytest.raises(CheckpointError, match=r"The weights have 7\d+ bytes, but .* has room for 1000: make room"):
            convert_release(PARITY / "original", tmp_path / "out")
        assert list(tmp_path.iterdir()) == []
