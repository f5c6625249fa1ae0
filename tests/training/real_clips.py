# SPDX-License-Identifier: Apache-2.0
"""Clips of real pictures and sounds, made by `examples/real_clips/make_clips.py` out of stamps that are downloaded once."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from ..common.library_suites import cache_folder
from ..helpers import NO_SKIPS, ROOT


SCRIPT = ROOT / "examples" / "real_clips" / "make_clips.py"


def load_script() -> ModuleType:
    """The script as a module."""
    if SCRIPT.stem not in sys.modules:
        spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
        sys.modules[SCRIPT.stem] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[SCRIPT.stem])
    return sys.modules[SCRIPT.stem]


def stamps_folder() -> Path:
    """The stamps, downloaded if they aren't there yet.

    Where they can't be, the test that asks is skipped. With `VIDEO_LLAMA_NO_SKIPS=1` set, as in CI, it fails.
    """
    script = load_script()
    try:
        return script.fetch_stamps(cache_folder() / "tuxpaint_stamps")
    except script.StampsError as error:
        if NO_SKIPS:
            raise
        pytest.skip(f"Tux Paint's stamps can't be downloaded: {error}")
