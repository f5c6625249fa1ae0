# SPDX-License-Identifier: Apache-2.0
"""What a result must be, and which errors may come in place of one."""

import inspect
import traceback
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import transformers
from huggingface_hub.dataclasses import validate_typed_dict
from huggingface_hub.errors import StrictDataclassError

import transformers_videollama
from transformers_videollama import VideoLlamaError


PACKAGE = str(Path(transformers_videollama.__file__).parent)
LIBRARY = str(Path(transformers.__file__).parent)
# What was tried, by test and outcome; printed at the end
TRIED: Counter = Counter()


class Unexpected(AssertionError):
    """Neither a correct result nor an error that may come."""


def is_ours(error: BaseException) -> bool:
    """Whether an error is of the package."""
    return isinstance(error, VideoLlamaError)


def is_refusal(error: BaseException) -> bool:
    """Whether an error was raised on purpose for values of a wrong type, shape or range.

    The library's interface for these is `TypeError` and `ValueError`: its processors raise them, what is built on it catches
    them, and ours do as they do. On purpose means by a `raise` of the package, or by a check of the library that ours inherit,
    and not by something that failed below. What a file, a conversation or a session is like is never refused in this way.
    """
    if is_ours(error):
        return True
    # The check of the types of options by their annotations, which all processors of the library share
    if isinstance(error, StrictDataclassError):
        return True
    frame = traceback.extract_tb(error.__traceback__)[-1]
    if type(error) is TypeError and "unexpected keyword argument" in str(error):
        return frame.filename == inspect.getfile(validate_typed_dict)
    is_checked = frame.filename.startswith((PACKAGE, LIBRARY))
    return type(error) in (TypeError, ValueError) and is_checked and "raise " in _statement(frame)


def _statement(frame: traceback.FrameSummary) -> str:
    """All lines of the statement that failed: the first of several may be what the interpreter names."""
    if not Path(frame.filename).is_file():
        return ""
    lines = Path(frame.filename).read_text(encoding="utf-8").splitlines()
    return "\n".join(lines[frame.lineno - 1 : frame.end_lineno])


def outcome(error: BaseException | None) -> str:
    """For the count."""
    return "result" if error is None else type(error).__name__


def check(condition: bool, message: str) -> None:
    if not condition:
        raise Unexpected(message)


def check_tensor(tensor: torch.Tensor, shape: tuple, name: str) -> None:
    """Shape (None: any length above 0), type and finite values of what the model is given."""
    fits = tensor.ndim == len(shape) and all(
        have > 0 if want is None else have == want for have, want in zip(tensor.shape, shape)
    )
    check(fits, f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
    check(tensor.dtype == torch.float32, f"{name} is {tensor.dtype}")
    check(bool(torch.isfinite(tensor).all()), f"{name} is not finite")


def check_videos(inputs: dict, size: tuple[int, int], num_frames: int | None) -> None:
    """Pixels, mask, and what the metadata say of the frames."""
    pixels, mask = inputs["pixel_values_videos"], inputs["video_frame_mask"]
    check_tensor(pixels, (None, None, 3, *size), "pixel_values_videos")
    check(
        mask.shape == pixels.shape[:2] and mask.dtype == torch.int64,
        f"mask of shape {tuple(mask.shape)}, {mask.dtype}",
    )
    counts = mask.sum(1).tolist()
    check(max(counts) == mask.shape[1] and min(counts) > 0, f"masks of {counts} frames in {mask.shape[1]}")
    for count, row, video in zip(counts, mask, pixels):
        check(row.tolist() == [1] * count + [0] * (len(row) - count), f"mask {row.tolist()}")
        check(not video[count:].any(), "padding is not 0")
    check(num_frames is None or max(counts) <= num_frames, f"{counts} frames, at most {num_frames} were asked for")
    for count, metadata in zip(counts, inputs.get("video_metadata", [])):
        indices, total = list(metadata.frames_indices), metadata.total_num_frames
        check(len(indices) == count, f"{count} frames and indices {indices}")
        check(
            indices == sorted(set(indices)) and 0 <= indices[0] <= indices[-1] < total, f"indices {indices} of {total}"
        )
        if getattr(metadata, "frame_times", None) is not None:
            times = metadata.timestamps
            check(len(times) == count and np.isfinite(times).all(), f"times {times} of {count} frames")
            check(times == sorted(times) and times[0] >= 0, f"times {times}")


def check_sounds(inputs: dict, num_mel_bins: int, num_mel_frames: int) -> None:
    features, mask = inputs["input_features"], inputs["input_features_mask"]
    check_tensor(features, (None, None, num_mel_bins, num_mel_frames), "input_features")
    check(mask.shape == features.shape[:2] and bool((mask == 1).all()), f"mask {mask.tolist()}")


def check_same(first: dict, second: dict, but: tuple[str, ...] = ()) -> None:
    """The same input gives the same result, and of some names at least one of the same shape."""
    check(first.keys() == second.keys(), f"{sorted(first)} and then {sorted(second)}")
    for name, value in first.items():
        if isinstance(value, torch.Tensor):
            is_same = value.shape == second[name].shape if name in but else torch.equal(value, second[name])
            check(is_same, f"{name} differs when it is computed again")
