# SPDX-License-Identifier: Apache-2.0
"""The scripts of `examples/default_checkpoint` import each other by their names, as when they are run."""

import sys

from ..helpers import ROOT


SCRIPTS = ROOT / "examples" / "default_checkpoint"
if str(SCRIPTS) not in sys.path:
    sys.path.insert(0, str(SCRIPTS))
