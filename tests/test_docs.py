# SPDX-License-Identifier: Apache-2.0
"""What the documentation shows works, and the code keeps to its rules of style."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import PIL.Image
import pytest
from transformers import GenerationConfig

from .helpers import ROOT, SAMPLE_CLIP, TINY
from .media_files import write_sound


def snippets(path: str) -> str:
    """All Python of a page, in order."""
    return "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(), flags=re.DOTALL))


@pytest.fixture
def checkpoint(tiny_model, processor, tmp_path) -> str:
    tiny_model.generation_config = GenerationConfig.from_pretrained(TINY)
    tiny_model.save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")
    return str(tmp_path / "checkpoint")


def test_the_usage_guide_runs_as_printed(checkpoint):
    namespace = {"checkpoint": checkpoint, "clip": str(SAMPLE_CLIP)}
    exec(compile(snippets("docs/usage.md"), "docs/usage.md", "exec"), namespace)

    assert namespace["answer"]
    assert len(namespace["answers"]) == 2
    assert namespace["features"].pooler_output.shape[0] == 1


def test_the_guide_to_conversations_runs_as_printed(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    PIL.Image.radial_gradient("L").convert("RGB").save("picture.png")
    namespace = {
        "checkpoint": checkpoint,
        "clip": str(SAMPLE_CLIP),
        "picture": "picture.png",
        "sound": str(write_sound(tmp_path / "sound.wav")),
    }
    exec(compile(snippets("docs/chat.md"), "docs/chat.md", "exec"), namespace)

    assert namespace["first"]
    assert len(namespace["answers"]) == 4
    assert capsys.readouterr().out.strip()


def test_the_readme_runs_as_printed(checkpoint, capsys):
    code = (
        snippets("README.md").replace("video-llama-2-7b-finetuned", checkpoint).replace("clip.mp4", str(SAMPLE_CLIP))
    )
    exec(compile(code, "README.md", "exec"), {})

    assert capsys.readouterr().out.strip()


def test_every_file_of_the_package_is_installed_with_it():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    files = subprocess.run(["git", "ls-files", "src"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [Path(file) for file in files.splitlines()]
    folders = {".".join(file.parent.parts[1:]) for file in files}
    patterns = ["*.py", *setuptools["package-data"]["*"]]

    assert folders | {"transformers_videollama.conversion"} == set(setuptools["packages"])
    assert [file for file in files if not any(file.match(pattern) for pattern in patterns)] == []


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["mlinter", "--no-cache", "src/transformers_videollama"],
    ],
    ids=" ".join,
)
def test_style(command):
    result = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)

    assert result.returncode == 0, result.stdout + result.stderr
