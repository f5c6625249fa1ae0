# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of training."""

import datasets
import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """What is loaded goes to a folder of the tests, and not to that of the user."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")
