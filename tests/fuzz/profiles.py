# SPDX-License-Identifier: Apache-2.0
"""How much is tried: "ci" the same few every time; with VIDEO_LLAMA_FUZZ=long thousands, others every time."""

import os

from hypothesis import HealthCheck, settings


PROFILE = os.environ.get("VIDEO_LLAMA_FUZZ", "ci")
COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}
settings.register_profile("ci", derandomize=True, database=None, **COMMON)
settings.register_profile("long", **COMMON)
settings.load_profile(PROFILE)


def tries(ci: int, long: int, **kwargs) -> settings:
    """How many examples a test tries in either profile."""
    return settings(max_examples=long if PROFILE == "long" else ci, **kwargs)
