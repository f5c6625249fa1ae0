# SPDX-License-Identifier: Apache-2.0
"""Training: data, recipes, the published stages, and what is saved of them."""
