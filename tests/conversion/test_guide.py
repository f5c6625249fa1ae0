# SPDX-License-Identifier: Apache-2.0
"""The commands of the conversion guide do what it says, word for word: only the sizes are tiny, and the Hub a stand-in."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ..helpers import PARITY, ROOT, SAMPLE_CLIP, TINY
from ..hub_stand_in import Blob, Commit, HubStandIn, Repo


ORIGINAL = PARITY / "original"
VL, AL = "VL_LLaMA_2_7B_Finetuned.pth", "AL_LLaMA_2_7B_Finetuned.pth"
LLAMA = "llama-2-7b-chat-hf"

# Runs every command in one process, and adds the one option that the tiny sizes need
DRIVER = """
import json, shlex, sys
from typer.testing import CliRunner
from transformers_videollama.cli import app

for command in json.load(sys.stdin):
    words = shlex.split(command)[1:]
    more = ["--config", sys.argv[1]] if words[0] == "convert" else ["--max-new-tokens", "4"] if words[0] == "ask" else []
    result = CliRunner().invoke(app, words + more)
    print(json.dumps({"command": command, "code": result.exit_code, "out": result.stdout, "err": result.stderr}))
"""


def commands() -> list[str]:
    guide = (ROOT / "docs" / "conversion.md").read_text()
    return [line for block in re.findall(r"```bash\n(.*?)```", guide, flags=re.DOTALL) for line in block.splitlines()]


def upload(hub: HubStandIn, repo_id: str, folder: Path, *paths: str) -> None:
    files = [
        file
        for path in paths
        for file in ([folder / path] if (folder / path).is_file() else (folder / path).iterdir())
    ]
    blobs = {str(file.relative_to(folder)): Blob(file.read_bytes(), is_lfs=False) for file in files}
    hub.repos[repo_id] = Repo(False, {"main": Commit("Upload", "", "them", blobs)})


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, list[dict], list[str]]:
    """The folder in which all commands of the guide were run, what each gave, and the files that were downloaded."""
    folder = tmp_path_factory.mktemp("guide")
    originals = shutil.copytree(ORIGINAL, folder / "originals")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, originals / LLAMA)
    shutil.copy(SAMPLE_CLIP, folder / "clip.mp4")
    cache = folder / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    for name in ("eva_vit_g.pth", "blip2_pretrained_flant5xxl.pth", "imagebind_huge.pth"):
        shutil.copy(originals / name, cache)

    # Vicuna, whose difference to LLaMA is all zeros here
    shutil.copytree(originals / LLAMA, folder / "llama-7b")
    series, delta = folder / "series", shutil.copytree(originals / LLAMA, folder / "delta")
    zeros = {name: torch.zeros_like(tensor) for name, tensor in torch.load(delta / "pytorch_model.bin").items()}
    torch.save(zeros, delta / "pytorch_model.bin")
    series.mkdir()
    shutil.copy(originals / VL, series / "finetune-vicuna7b-v2.pth")
    shutil.copy(originals / AL, series / "finetune_vicuna7b_audiobranch.pth")

    with HubStandIn({}) as hub:
        upload(hub, "DAMO-NLP-SG/Video-LLaMA-2-7B-Finetuned", originals, VL, AL, "imagebind_huge.pth", LLAMA)
        upload(hub, "DAMO-NLP-SG/Video-LLaMA-Series", folder, "series")
        repo = hub.repos["DAMO-NLP-SG/Video-LLaMA-Series"].refs
        files = {path.removeprefix("series/"): blob for path, blob in repo["main"].files.items()}
        repo["main"] = Commit("Upload", "", "them", files)
        upload(hub, "lmsys/vicuna-7b-delta-v0", delta, *(path.name for path in delta.iterdir()))
        environment = os.environ | {
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(folder / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "TORCH_HOME": str(folder / "torch"),
        }
        process = subprocess.run(
            [sys.executable, "-c", DRIVER, str(PARITY / "config.json")],
            input=json.dumps(commands()),
            capture_output=True,
            text=True,
            cwd=folder,
            env=environment,
        )
        assert process.returncode == 0, process.stderr
        downloads = [path for method, path in hub.requests if method == "GET" and "/resolve/" in path]
    return folder, [json.loads(line) for line in process.stdout.splitlines()], downloads


def test_every_command_succeeds(done):
    _, results, _ = done

    assert len(results) == len(commands()) == 9
    for result in results:
        assert result["code"] == 0, result


def test_a_release_is_downloaded_by_name_once_and_said_before(done):
    _, results, downloads = done
    repo = "https://huggingface.co/DAMO-NLP-SG/Video-LLaMA-2-7B-Finetuned"

    for file in (VL, AL, "imagebind_huge.pth", f"{LLAMA}/ (5 files)"):
        assert f"Downloading {file} from {repo}" in results[0]["err"]
    assert sum(VL in path for path in downloads) == 1


@pytest.mark.parametrize("name", ["from-a-folder", "from-a-folder-by-name", "proven", "video-llama-vicuna-7b"])
def test_all_ways_lead_to_the_same_weights(name, done):
    folder, _, _ = done
    expected = load_file(folder / "video-llama-2-7b" / "model.safetensors")
    weights = load_file(folder / name / "model.safetensors")

    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], expected[key]) for key in expected)


def test_options_and_prompts_are_as_the_guide_says(done):
    folder, results, _ = done
    configs = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/config.json")}

    assert configs["silent"]["audio_config"] is None
    assert configs["silent"]["dtype"] == "bfloat16"
    assert configs["video-llama-vicuna-7b"]["provenance"]["prompt_family"] == "vicuna"
    proofs = [result["out"] for result in results if "--verify" in result["command"]]
    assert ["359 of 359 tensors equal" in proof for proof in proofs] == [True, True]
    assert proofs[0] == proofs[1]


def test_the_answer_and_the_way_back(done):
    folder, results, _ = done
    ask = next(result for result in results if result["command"].startswith("videollama ask"))

    assert ask["out"].strip()
    for kind, file in (("VL", VL), ("AL", AL)):
        exported = torch.load(folder / "exported" / f"{kind}_video-llama-2-7b.pth", weights_only=True)["model"]
        original = torch.load(ORIGINAL / file, weights_only=True)["model"]
        assert exported.keys() == original.keys()
        assert all(torch.equal(exported[name], original[name]) for name in original)


def test_the_table_of_the_guide_is_that_of_the_converter(done):
    from transformers_videollama.conversion.releases import RELEASES

    guide = (ROOT / "docs" / "conversion.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in guide.splitlines()
        if re.search(r"`(vicuna|llama_2)` \|$", line)
    ]
    told = {
        name: (language_model, sound, prompts.strip("`"))
        for names, language_model, sound, prompts in rows
        for name in re.findall(r"`([^`]+)`", names)
    }
    assert told == {
        name: (release.language_model.name, "yes" if release.audio else "no", release.language_model.prompt_family)
        for name, release in RELEASES.items()
    }
