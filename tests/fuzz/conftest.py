# SPDX-License-Identifier: Apache-2.0
"""Says how much was tried, and what came of it."""

from .checks import TRIED
from .profiles import PROFILE


def pytest_terminal_summary(terminalreporter) -> None:
    if TRIED:
        terminalreporter.section(f"fuzz suite, profile {PROFILE}")
        for (test, outcome), number in sorted(TRIED.items()):
            terminalreporter.write_line(f"{number:6} {test}: {outcome}")
        terminalreporter.write_line(f"{sum(TRIED.values()):6} tried in all")
