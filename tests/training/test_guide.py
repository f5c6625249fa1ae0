# SPDX-License-Identifier: Apache-2.0
"""The guide "Fine-tune on your own clips" does what it says, word for word: only the sizes are tiny, and the Hub a stand-in."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from transformers_videollama import VideoLlamaForConditionalGeneration

from ..helpers import ROOT
from ..media_files import write_clip


# Commands of ours run in one process, which spares the imports; $(…) and other programs go through a shell
RUNNER = """
import re, shlex, subprocess, sys
from pathlib import Path
from typer.testing import CliRunner
from transformers_videollama.cli import app

namespace = {}
for language, code in re.findall(r"```(bash|python)\\n(.*?)```", Path(sys.argv[1]).read_text(), flags=re.DOTALL):
    if language == "python":
        exec(compile(code, sys.argv[1], "exec"), namespace)
        continue
    for command in code.replace("\\\\\\n", " ").splitlines():
        if command.startswith("videollama "):
            result = CliRunner().invoke(app, shlex.split(command)[1:])
            assert result.exit_code == 0, (command, result.output, result.stderr)
            print(result.stdout)
        else:
            subprocess.run(command, shell=True, check=True)
"""


@pytest.fixture
def folder(converted, tmp_path) -> Path:
    """The working folder of the guide."""
    # As from_pretrained gives it: the parity data are in float32
    model = VideoLlamaForConditionalGeneration.from_pretrained(converted, dtype=torch.float32)
    shutil.copytree(converted, tmp_path / "video-llama-2-7b")
    model.save_pretrained(tmp_path / "video-llama-2-7b")
    (tmp_path / "my_clips").mkdir()
    for index, (name, caption) in enumerate({"dog": "A dog barks.", "boat": "A man rows.", "iron": "Steam."}.items()):
        write_clip(tmp_path / "my_clips" / f"{name}.mp4", frames=10 + 10 * index)
        (tmp_path / "my_clips" / f"{name}.txt").write_text(caption + "\n")
    return tmp_path


@pytest.mark.slow
def test_the_guide_runs_as_printed(hub, folder):
    environment = os.environ | {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(folder / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    result = subprocess.run(
        [sys.executable, "-c", RUNNER, str(ROOT / "docs" / "training.md")],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=540,
    )

    assert result.returncode == 0, result.stderr[-4000:]
    rows = [json.loads(line) for line in (folder / "clips.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["boat", "dog", "iron"]
    # The adapter went to the Hub, with a card that names its base
    uploaded = hub.files("me/my-adapter")
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= uploaded.keys()
    assert "base_model: me/video-llama" in uploaded["README.md"].decode()
    assert list((folder / "my-adapter").rglob("events.out.tfevents.*"))
    merged = VideoLlamaForConditionalGeneration.from_pretrained(folder / "my-model", dtype=torch.float32)
    base = VideoLlamaForConditionalGeneration.from_pretrained(folder / "video-llama-2-7b", dtype=torch.float32)
    changed = {
        name.split(".")[1]
        for name, tensor in merged.state_dict().items()
        if not torch.equal(tensor, base.state_dict()[name])
    }
    assert {"language_model", "video_qformer", "video_projection"} <= changed
    assert not changed & {"vision_tower", "qformer", "audio_tower", "audio_qformer"}
    # Each run of a branch left one small file, and stage 2 went on from stage 1
    for run in ("stage1", "stage2", "mine", "cached", "two", "python"):
        assert [path.name for path in (folder / run).glob("*_branch.safetensors")] == ["vision_branch.safetensors"], (
            run
        )
    weights = {run: load_file(folder / run / "vision_branch.safetensors") for run in ("stage1", "stage2", "cached")}
    name = "video_projection.weight"
    assert not torch.equal(weights["stage1"][name], weights["stage2"][name])
    assert "frozen" in result.stdout
