# SPDX-License-Identifier: Apache-2.0
"""The test suites that transformers runs on its own models, made importable for ours.

They are no part of the installed package, but of its source distribution. That of the installed version is downloaded
once and kept in a cache folder. The modules that it lacks are replaced by stubs with what the suites read of them.
"""

import functools
import importlib
import os
import subprocess
import sys
import tarfile
import tempfile
import types
from pathlib import Path

import pytest
import transformers
from PIL import Image

from ..helpers import NO_SKIPS
from ..media_files import write_clip, write_sound


# The name under which the folder `tests` of the source distribution is imported
PACKAGE = "transformers_library_tests"

# What the suites pass to every configuration to see that it arrives. Ours are keyword-only, so any values will do
CONFIG_COMMON_KWARGS = {
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["BertModel"],
    "id2label": {0: "label"},
    "label2id": {"label": "0"},
    "problem_type": "regression",
}


def cache_folder() -> Path:
    """`VIDEO_LLAMA_CACHE`, or a folder of ours where the platform keeps caches."""
    if folder := os.environ.get("VIDEO_LLAMA_CACHE"):
        return Path(folder)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "transformers_videollama"


def fetch_tests(version: str) -> Path:
    """The folder `tests` of a transformers release, downloaded if it isn't there yet.

    Several processes may ask at once: each unpacks into a folder of its own, and one of them is renamed into place.

    Raises:
        RuntimeError: If pip can't download it.
    """
    folder = cache_folder() / version / "tests"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--no-binary", ":all:", "--no-deps", "--retries", "1"]
        command += ["--dest", scratch, f"transformers=={version}"]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(f"`{' '.join(command)}` failed: {result.stderr.strip().splitlines()[-1:]}")
        (archive,) = Path(scratch).glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            root = tar.getnames()[0].split("/")[0]
            members = [member for member in tar.getmembers() if member.name.startswith(f"{root}/tests/")]
            tar.extractall(scratch, members, filter="data")
        unpacked = Path(scratch, root, "tests")
        # `test_configuration_common` imports its own folder as if it was the library
        unpacked.joinpath("__init__.py").touch()
        try:
            unpacked.rename(folder)
        except OSError:
            # Another process was faster
            if not folder.is_dir():
                raise
    return folder


@functools.cache
def media_folder() -> tempfile.TemporaryDirectory:
    """A folder for the files that `local_media` makes, removed at exit."""
    return tempfile.TemporaryDirectory(prefix="video_llama_media_")


@functools.cache
def local_media(url: str) -> str:
    """A file of the kind that a URL names, made here in place of the library's own on the Hub.

    Only what the suites count is as in the originals: `tiny_video_320x240.mp4` has 11 frames at 30 per second, and
    `sample_demo_1_320x240.mp4` has sound.
    """
    path = Path(media_folder().name, url.rsplit("/", 1)[-1])
    if path.suffix in {".png", ".jpg"}:
        Image.linear_gradient("L").resize((64, 48)).convert("RGB").save(path)
    elif path.suffix in {".wav", ".mp3"}:
        write_sound(path)
    elif path.name.startswith("tiny_video"):
        write_clip(path, frames=11, fps=30)
    else:
        write_clip(path, audio_rate=44100 if path.name.startswith("sample_demo") else None)
    return str(path)


def stub(name: str, **contents) -> None:
    """Puts a module with `contents` where the suites import it from."""
    module = types.ModuleType(name)
    module.__path__ = []
    vars(module).update(contents)
    sys.modules[name] = module


@functools.cache
def prepare() -> str | None:
    """Makes `PACKAGE` importable, with stubs of what the source distribution lacks of it.

    Returns:
        What went wrong, if anything did: it is not tried again for each module.
    """
    try:
        folder = fetch_tests(transformers.__version__)
    except RuntimeError as error:
        return str(error)
    stub(PACKAGE)
    sys.modules[PACKAGE].__path__ = [str(folder)]
    for subpackage in ("exporters", "generation", "utils"):
        stub(f"{PACKAGE}.{subpackage}")
    # Tests of exports to ONNX and others, and of generation, which `test_generation.py` has of our own
    stub(f"{PACKAGE}.exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
    stub(f"{PACKAGE}.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
    stub(f"{PACKAGE}.utils.test_configuration_utils", config_common_kwargs=CONFIG_COMMON_KWARGS)
    stub("fetch_hub_objects_for_ci", url_to_local_path=local_media)
    return None


def load(name: str) -> types.ModuleType:
    """A module of the library's `tests`, such as "test_modeling_common".

    Where it can't be downloaded, the tests of the module that asks for it are skipped. With `VIDEO_LLAMA_NO_SKIPS=1`
    set, as in CI, they fail.
    """
    if (error := prepare()) is not None:
        reason = f"the test suites of transformers can't be downloaded: {error}"
        if NO_SKIPS:
            raise RuntimeError(reason)
        pytest.skip(reason, allow_module_level=True)
    # A module there puts the folder of another one, which the source distribution lacks, in front of all
    path = list(sys.path)
    try:
        return importlib.import_module(f"{PACKAGE}.{name}")
    finally:
        sys.path[:] = path
