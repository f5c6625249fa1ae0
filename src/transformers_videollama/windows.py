# SPDX-License-Identifier: Apache-2.0
"""Long clips as overlapping windows, each with 32 tokens for what is seen and 8 for what is heard in it.

The original looks at 8 frames of a clip, however long, and hears 16 seconds. Here a clip of an hour is many clips, whose times the
prompt states.
"""

import math
from dataclasses import dataclass
from typing import Any

from .media import MediaSource, read_duration


@dataclass(frozen=True)
class Window:
    """A part of a clip.

    Attributes:
        start: Where it begins, in seconds.
        end: Where it ends, in seconds.
    """

    start: float
    end: float

    @property
    def label(self) -> str:
        """What the prompt says before it."""
        return f"From {self.start:.1f} to {self.end:.1f} seconds:"


def split_into_windows(
    duration: float, seconds: float = 30.0, overlap: float = 5.0, max_windows: int | None = None
) -> list[Window]:
    """Covers a clip with windows of equal length.

    Args:
        duration: Of the clip, in seconds.
        seconds: Length of a window. A shorter clip is one window.
        overlap: What two neighbours share at least, in seconds; the last two may share more, as the last ends with the clip.
        max_windows: If more would be needed, windows are made longer until so many suffice.

    Raises:
        ValueError: If lengths are not positive, or the overlap is not shorter than a window.
    """
    if not (math.isfinite(duration) and duration > 0 and math.isfinite(seconds) and seconds > 0):
        raise ValueError(
            f"A clip and its windows have lengths above 0, got duration={duration} and seconds={seconds}."
        )
    if not 0 <= overlap < seconds:
        raise ValueError(f"The overlap must be from 0 to less than a window of {seconds} s, got {overlap}.")
    if max_windows is not None and max_windows < 1:
        raise ValueError(f"max_windows must be at least 1, got {max_windows}.")
    count = max(1, math.ceil((duration - overlap) / (seconds - overlap)))
    if max_windows is not None and count > max_windows:
        count = max_windows
        seconds = (duration + (count - 1) * overlap) / count
    starts = [min(index * (seconds - overlap), max(duration - seconds, 0)) for index in range(count)]
    return [Window(start, min(start + seconds, duration)) for start in starts]


def windows_of(
    video: Any, seconds: float = 30.0, overlap: float = 5.0, max_windows: int | None = None
) -> list[dict[str, Any]]:
    """The content of a message about a long clip: for each window its times, and the clip from there to there.

    Frames and sounds are read window by window, and no others; `num_frames` for the processor is that of each window.

    Args:
        video: Path, URL, bytes or binary file.
        seconds: Length of a window.
        overlap: What two neighbours share, in seconds.
        max_windows: If more would be needed, windows are made longer until so many suffice.

    Raises:
        MediaError: If the clip can't be read.
        ValueError: If lengths are not positive, or the overlap is not shorter than a window.

    Example:

    ```python
    >>> content = windows_of("lecture.mp4", seconds=60, max_windows=20)
    >>> messages = [{"role": "user", "content": [*content, {"type": "text", "text": "What is it about?"}]}]
    ```
    """
    media = MediaSource.of(video)
    content = []
    for window in split_into_windows(read_duration(media), seconds, overlap, max_windows):
        content.append({"type": "text", "text": window.label})
        content.append({"type": "video", "video": media, "start": window.start, "end": window.end})
    return content
