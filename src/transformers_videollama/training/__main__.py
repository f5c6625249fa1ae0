# SPDX-License-Identifier: Apache-2.0
"""`python -m transformers_videollama.training`, for `accelerate launch -m`."""

import sys

from .run import main


if __name__ == "__main__":
    sys.exit(main())
