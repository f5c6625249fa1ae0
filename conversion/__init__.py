# SPDX-License-Identifier: Apache-2.0
"""From the released research checkpoints to Hugging Face format. Installed as `transformers_videollama.conversion`."""
