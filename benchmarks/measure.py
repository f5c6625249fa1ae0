# SPDX-License-Identifier: Apache-2.0
"""Runs a command and tells how long it took and how much memory it had at most, mapped files included (Linux).

python benchmarks/measure.py videollama convert --release DIR --output OUT
"""

import os
import sys
import time


start = time.monotonic()
child = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(child, 0)
seconds = time.monotonic() - start
print(f"{seconds:.0f} s, {usage.ru_maxrss / 2**20:.2f} GiB at most", file=sys.stderr)
sys.exit(os.waitstatus_to_exitcode(status))
