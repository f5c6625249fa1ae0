# SPDX-License-Identifier: Apache-2.0
"""Says how much was tried, and what came of it."""

from pathlib import Path

import pytest

from .checks import TRIED
from .profiles import PROFILE


def pytest_terminal_summary(terminalreporter) -> None:
    if TRIED:
        terminalreporter.section(f"fuzz suite, profile {PROFILE}")
        for (test, outcome), number in sorted(TRIED.items()):
            terminalreporter.write_line(f"{number:6} {test}: {outcome}")
        terminalreporter.write_line(f"{sum(TRIED.values()):6} tried in all")


def pytest_collection_modifyitems(items):
    """Thousands of examples in one test take longer than any other test may."""
    for item in items:
        if PROFILE == "long" and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(3600))
