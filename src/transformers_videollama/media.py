# Copyright 2026 The transformers_videollama authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Decoding of videos, sounds and pictures. This module knows files and samples; it knows nothing of models.

A *source* is a path (`str` or `os.PathLike`), an address (`file://`, `http(s)://`, `data:` or anything else that
fsspec opens), the bytes of a file, a binary file-like object, or a [`MediaSource`] made of one of these. No system
FFmpeg is needed: decord and PyAV bring their own.

Frames come from **decord** where it is installed, as in the original Video-LLaMA, scaled inside the decoder. **PyAV**
serves where decord has no wheel (ARM, macOS) and where decord gives up on a file. Both count frames from the packets,
so both sample the same ones; with FFmpeg's bilinear scaler in both, the pixels of either are those of the original to
the bit.

Sound always comes from **PyAV**, followed by torchaudio's resampler: that reproduces the original's 16 kHz waveforms
to the bit. decord 0.6 cannot: on the clips in the parity data its `AudioReader` returned stereo samples up to 1e7 and
NaN (memory that it never wrote), and its mono mix was off by up to 0.39 at the native rate and by up to 1.9 at 16 kHz.

A source may be limited to a range of seconds, [`MediaSource.between`]. Then PyAV jumps to the keyframe before the
range and reads on to its end, whatever the length of the clip: nothing is kept between calls. (decord reads all packets
of a file before it gives the first frame: half a second to a second for an hour of tiny frames.)

Decoding is cut off after a time limit, `timeout` in seconds. By default it is the environment variable
`VIDEO_LLAMA_DECODE_TIMEOUT`, which worker processes inherit, or 600; `inf` sets none. Each file is decoded in a thread
of its own: native code cannot be stopped from outside, but the caller can go on. What is stuck keeps its thread, its
file and its memory until it comes to an end or the process does, which it does not hold up; what it returns then goes
nowhere. Nothing else is shared between decodes, and nothing survives them that a fork could inherit.
"""

import io
import os
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import InitVar, dataclass, replace
from fractions import Fraction
from itertools import chain, pairwise
from math import ceil, gcd, inf, isfinite
from numbers import Real
from threading import Thread
from typing import Any, TypeVar
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from huggingface_hub.utils import get_session
from transformers.utils import logging
from transformers.video_utils import VideoMetadata

from .exceptions import DecodeTimeoutError, MediaError, MediaNotFoundError, NoAudioError, TimeRangeError


logger = logging.get_logger(__name__)

# Decoders report times as float32 or in ticks of the container's clock. A time this close to `index / fps` is the time
# of a clip with a constant frame rate, for which the division itself is exact.
CLOCK_TOLERANCE = 1e-3

# Seconds by which to jump short of a range, one after the other, until there is a keyframe before it: containers differ
# in which of a frame's times they jump by.
LOOKBACKS = (0, 10, 60)

# Seconds of sound that are decoded before a range and dropped: codecs overlap their frames and borrow bits from earlier
# ones.
SOUND_PREROLL = 1

# Seconds by which the times of frames of sound may be off their neighbours' without there being a gap.
MAX_JITTER = Fraction(1, 20)

# Samples, of the lower rate, that torchaudio's resampler looks to either side: 6 / 0.99.
RESAMPLING_REACH = 8

# Seconds after the beginning where no clip goes on: jumping there leads to its last packets.
FAR_BEYOND = 10**7

# An end this many seconds beyond that of the clip is no matter of rounding.
END_TOLERANCE = 1

MAX_NAME_LENGTH = 200

DEFAULT_TIMEOUT = 600.0
TIMEOUT_VARIABLE = "VIDEO_LLAMA_DECODE_TIMEOUT"

Decoded = TypeVar("Decoded")


# ---------------------------------------------------------------------------------------------------------------------
# Optional packages
# ---------------------------------------------------------------------------------------------------------------------
def import_torchaudio():
    """
    The one place where torchaudio is imported.

    Raises:
        ImportError: torchaudio is missing, or was built for another torch and does not load.
    """
    try:
        import torchaudio
        import torchaudio.compliance.kaldi
        import torchaudio.functional
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise ImportError(
            "Sound needs a torchaudio that loads with the installed torch; these work together: "
            "pip install 'torch>=2.11,<2.15' 'torchaudio==2.11.*'."
        ) from error
    return torchaudio


def import_av():
    """
    The one place where PyAV is imported.

    Raises:
        ImportError: PyAV is missing.
    """
    try:
        import av
    except (ImportError, OSError) as error:
        raise ImportError("Decoding this source needs PyAV: pip install 'av>=15'.") from error
    return av


def import_decord():
    """
    The one place where decord is imported.

    Raises:
        ImportError: decord is missing or does not load.
    """
    try:
        import decord
    except (ImportError, OSError, RuntimeError) as error:
        raise ImportError("The decord backend needs decord: pip install 'decord==0.6.0'.") from error
    return decord


def import_fsspec():
    """
    The one place where fsspec is imported.

    Raises:
        ImportError: fsspec is missing.
    """
    try:
        import fsspec
    except ImportError as error:
        raise ImportError("Addresses other than http need fsspec: pip install 'fsspec>=2023.5'.") from error
    return fsspec


# ---------------------------------------------------------------------------------------------------------------------
# Sources
# ---------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class MediaSource:
    """
    A source that has been looked up once: the path of a local file, or bytes. Whoever needs the picture and the sound
    of one URL makes one of these first and hands it to every function, so that the file is fetched once.

    Args:
        data (`str` or `bytes`):
            Path of an existing file, or the bytes of a file.
        name (`str`):
            What error messages call the source.
        start (`float`, *optional*):
            Second of the clip from which on it is read. Set by [`~MediaSource.between`].
        end (`float`, *optional*):
            Second of the clip up to which it is read. Set by [`~MediaSource.between`].
    """

    data: str | bytes
    name: str
    start: float | None = None
    end: float | None = None

    @classmethod
    def of(cls, source: Any) -> "MediaSource":
        """
        Look a source up: find the file, fetch the URL, read the file-like object.

        Args:
            source (`str`, `os.PathLike`, `bytes`, `bytearray`, `memoryview`, binary file-like or `MediaSource`):
                What to read. A file-like object is read from its beginning and left at the position where it was.

        Returns:
            `MediaSource`: the looked-up source. A `MediaSource` comes back as it is.

        Raises:
            MediaNotFoundError: no such file or address.
            MediaError: a folder, an empty file, a URL that cannot be fetched, a file opened in text mode.
            TypeError: not a source at all.
        """
        if _is_looked_up(source):
            return source
        if isinstance(source, os.PathLike):
            source = os.fspath(source)
        if isinstance(source, str):
            name = source if len(source) <= MAX_NAME_LENGTH else f"{source[:MAX_NAME_LENGTH]}…"
            if source.startswith("file://"):
                source = url2pathname(urlparse(source).path)
            data = _fetch(source, name) if is_url(source) else source
        elif isinstance(source, bytes | bytearray | memoryview):
            data = bytes(source)
            name = f"<bytes, {len(data)} bytes>"
        elif hasattr(source, "read"):
            data, name = _read_file_object(source)
        else:
            raise TypeError(
                f"got a {type(source).__name__}, expected a path, a URL, bytes or a file opened in binary mode"
            )

        if isinstance(data, str):
            if os.path.isdir(data):
                raise MediaError(f"{name} is a folder: pass the path of a file in it")
            if not os.path.isfile(data):
                raise MediaNotFoundError(
                    f"{name} does not exist: check the path (the working folder is {os.getcwd()})"
                )
        if (os.path.getsize(data) if isinstance(data, str) else len(data)) == 0:
            raise MediaError(f"{name} is empty (0 bytes): copy or download it again")
        return cls(data, name)

    def open(self) -> str | io.BytesIO:
        """The path, or a fresh binary stream over the bytes: what decoders accept."""
        return self.data if isinstance(self.data, str) else io.BytesIO(self.data)

    def between(self, start: float | None = None, end: float | None = None) -> "MediaSource":
        """
        The same source, limited to a range of seconds. It shares the path or bytes, and nothing is read yet.

        Frames that begin at `start` or later and before `end` belong to the range, so ranges that meet share no frame
        and lose none. If none begins in it, it has the one on the screen at `start`. Its sound covers exactly the same
        time, with silence where the track has begun late or ended early. Nothing before the last keyframe and the last
        second of sound before the range is decoded, nor anything after it.

        Args:
            start (`float`, *optional*, defaults to 0):
                Seconds from the first frame of the clip, or from the first sample of a sound without video.
            end (`float`, *optional*):
                Seconds from there, too. To the end of the clip if not given or beyond it; an end more than a second
                beyond it is warned of.

        Returns:
            `MediaSource`: a light copy. A range set before is replaced; without arguments there is none.

        Raises:
            TimeRangeError: the range is empty, begins before 0, or its bounds are not finite numbers. That it begins
                beyond the end of the clip is found when it is read.
        """
        for name, value in (("start", start), ("end", end)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, Real) or not isfinite(value)):
                raise TimeRangeError(
                    f"got {name}={value!r} for {self.name}, expected a number of seconds, or None for the {name} of "
                    "the clip"
                )
        if start is not None and start < 0:
            raise TimeRangeError(
                f"got start={start} for {self.name}, expected 0 seconds or more: count from its start"
            )
        if end is not None and end <= (start or 0):
            raise TimeRangeError(
                f"got a range from {start or 0} to {end} seconds of {self.name}, which is empty: pass an end after "
                "the start"
            )
        return replace(self, start=None if start is None else float(start), end=None if end is None else float(end))

    @property
    def is_limited(self) -> bool:
        """Whether the source is limited to a range of seconds."""
        return self.start is not None or self.end is not None


def _is_looked_up(value: Any) -> bool:
    # By name: `trust_remote_code` loads this file once for each class that it loads, and what one of them looked up is
    # handed to another.
    return type(value).__name__ == MediaSource.__name__


def is_url(source: str) -> bool:
    """Whether a string is an address for fsspec rather than a path."""
    return "://" in source or source.startswith("data:")


def is_media_source(value: Any) -> bool:
    """Whether a value is something that [`MediaSource.of`] reads, as opposed to decoded frames or samples."""
    if isinstance(value, str | os.PathLike | bytes | bytearray | memoryview) or _is_looked_up(value):
        return True
    # An opened `PIL.Image` has a `read` of its own in some formats, and is decoded data here.
    return hasattr(value, "read") and not isinstance(value, PIL.Image.Image)


def _fetch(url: str, name: str) -> bytes:
    try:
        if url.startswith(("http://", "https://")):
            response = get_session().get(url, follow_redirects=True, timeout=60)
            if response.status_code == 404:
                raise FileNotFoundError(url)
            response.raise_for_status()
            return response.content
        fsspec = import_fsspec()
        with fsspec.open(url, "rb") as file:
            return file.read()
    except ImportError as error:
        raise ImportError(f"{name} cannot be read without another package: {error}") from error
    except FileNotFoundError as error:
        raise MediaNotFoundError(f"{name} does not exist: check the address") from error
    except Exception as error:  # each protocol has errors of its own, and they share no base
        raise MediaError(
            f"{name} could not be fetched ({type(error).__name__}: {error}): check the address and the connection, or "
            "download the file and pass its path"
        ) from error


def _read_file_object(file: Any) -> tuple[bytes, str]:
    file_name = getattr(file, "name", None)
    seekable = not hasattr(file, "seekable") or file.seekable()
    position = file.tell() if seekable else None
    if seekable:
        file.seek(0)
    data = file.read()
    if seekable:
        file.seek(position)
    if isinstance(data, str):
        raise MediaError(f"{file_name or '<file object>'} is opened in text mode: open it with mode 'rb'")
    return data, file_name if isinstance(file_name, str) else f"<{type(file).__name__}, {len(data)} bytes>"


def _check_complete(media: MediaSource) -> None:
    """
    Raise if an mp4 or mov file ends before its own table of contents says so.

    Decoders differ here: decord silently takes the part that is there for the whole clip. The boxes at the top level
    of the file state their sizes, so the question has an exact answer that costs a few reads (ISO/IEC 14496-12, 4.2).
    """
    file_size = os.path.getsize(media.data) if isinstance(media.data, str) else len(media.data)
    with open(media.data, "rb") if isinstance(media.data, str) else media.open() as file:
        position = 0
        while position + 8 <= file_size:
            file.seek(position)
            header = file.read(16)
            size, kind = int.from_bytes(header[:4], "big"), header[4:8]
            if position == 0 and kind not in (b"ftyp", b"wide", b"free", b"moov", b"mdat"):
                return
            if size == 1:
                size = int.from_bytes(header[8:16], "big")
            # Only these kinds prove that the walk is still on a box boundary: files may end in padding.
            if position + size > file_size and kind in (b"mdat", b"moov", b"moof"):
                raise MediaError(
                    f"{media.name} is cut short: it has {file_size} of at least {position + size} bytes. Copy or "
                    "download it again"
                )
            if size < 8:  # 0: this box runs to the end of the file
                return
            position += size


# ---------------------------------------------------------------------------------------------------------------------
# Time limit
# ---------------------------------------------------------------------------------------------------------------------
def _time_limit(timeout: float | None) -> float:
    """The limit in seconds: what is given, or the environment's."""
    given = os.environ.get(TIMEOUT_VARIABLE, DEFAULT_TIMEOUT) if timeout is None else timeout
    try:
        limit = float(given)
    except (TypeError, ValueError):
        limit = -1.0
    if not limit > 0:
        what = f"{TIMEOUT_VARIABLE}=" if timeout is None else "timeout="
        raise ValueError(f"got {what}{given!r}, expected seconds above 0, or inf for no limit")
    return limit


def _run_limited(decode: Callable[[], Decoded], media: MediaSource, seconds: float, limit: float) -> Decoded:
    """Run a decode in a thread, and wait for it no longer than so many seconds of the limit that the caller was given."""
    if seconds == inf:
        return decode()
    results, errors = [], []

    def run() -> None:
        try:
            results.append(decode())
        except BaseException as error:
            errors.append(error)

    thread = Thread(target=copy_context().run, args=(run,), name=f"decode {media.name}", daemon=True)
    thread.start()
    thread.join(seconds)
    if results:
        return results[0]
    if not errors:
        raise DecodeTimeoutError(
            f"{media.name} was not decoded within {seconds:.3g} seconds of a limit of {limit:g}, and what is stuck was "
            f"left behind: re-encode the file, or raise the limit by timeout or the variable {TIMEOUT_VARIABLE}"
        )
    try:
        raise errors[0]
    finally:
        # Otherwise the error and this frame keep each other, and a decoder with them, until the garbage is collected.
        errors.clear()


# ---------------------------------------------------------------------------------------------------------------------
# Video
# ---------------------------------------------------------------------------------------------------------------------
@dataclass
class VideoLlamaVideoMetadata(VideoMetadata):
    """
    The library's `VideoMetadata`, with the decoder's own times of the sampled frames.

    The library computes times as `index / fps`, which is wrong for clips with a variable frame rate. What is added are
    plain attributes and no mapping keys, so that `VideoMetadata(**metadata)` goes on working.

    Args:
        frame_times (`list[float]`, *optional*):
            Seconds from the first frame of the clip to each sampled frame. Without it, or once `frames_indices` has
            been replaced by a list of another length, `timestamps` is computed by the library's rule.
        source (`str`, *optional*):
            Name of the file, for messages.
        start (`float`, *optional*, defaults to 0.0):
            Second of the clip at which the range begins that the frames are from. Frames are counted from there on,
            times are those of the whole clip.
    """

    frame_times: InitVar[list[float] | None] = None
    source: InitVar[str | None] = None
    start: InitVar[float] = 0.0

    def __post_init__(self, frame_times: list[float] | None, source: str | None, start: float):
        self.frame_times = frame_times
        self.source = source
        self.start = start

    @property
    def timestamps(self) -> list[float]:
        """Seconds from the first frame of the clip to each sampled frame."""
        if (
            self.frame_times is None
            or self.frames_indices is None
            or len(self.frame_times) != len(self.frames_indices)
        ):
            return [self.start + time for time in super().timestamps]
        return list(self.frame_times)


def read_video(
    source: Any,
    sample_indices_fn: Callable[[VideoMetadata], Sequence[int]] | None = None,
    size: tuple[int, int] | None = None,
    backend: str | None = None,
    timeout: float | None = None,
) -> tuple[np.ndarray, VideoLlamaVideoMetadata]:
    """
    Decode chosen frames of a video.

    Args:
        source (`str`, `os.PathLike`, `bytes`, file-like or `MediaSource`):
            The video.
        sample_indices_fn (`Callable`, *optional*):
            Called as `sample_indices_fn(metadata=metadata)` with the clip's frame count and frame rate; returns the
            indices of the wanted frames. All frames if not given.
        size (`tuple[int, int]`, *optional*):
            `(height, width)` to decode to, whatever the aspect ratio; the clip's own size if not given. decord scales
            inside the decoder, PyAV with the same bilinear filter.
        backend (`str`, *optional*):
            `"decord"` or `"pyav"`, and no other then. If not given, decord where it is installed, and PyAV where it is
            not, where decord fails on this file, or where the source is limited to a range of seconds.
        timeout (`float`, *optional*):
            Seconds after which decoding is cut off, see the top of this module. Where decord may be followed by PyAV,
            it gets half of them.

    Returns:
        `tuple[np.ndarray, VideoLlamaVideoMetadata]`: frames of shape `(frames, height, width, 3)`, uint8 RGB, upright
        if the file says how it was held; and the metadata with `frames_indices` and `timestamps` of these frames.
        `height` and `width` are those of the frames returned. Of a source limited to a range of seconds, the frames of
        the range are counted, from 0, and their times are those of the whole clip.

    Raises:
        MediaNotFoundError: the source leads to nothing.
        TimeRangeError: the range of seconds begins after the end of the clip.
        DecodeTimeoutError: decoding took longer than the time limit.
        MediaError: the source is no video, is cut short or damaged, or no frame is left to decode.
        ImportError: the backend is not installed.
    """
    if backend not in (None, "decord", "pyav"):
        raise ValueError(f"got backend={backend!r}, expected 'decord', 'pyav' or None for whichever works")
    limit = _time_limit(timeout)
    media = MediaSource.of(source)

    attempts = []
    # decord cannot begin in the middle of a file.
    if backend == "decord" or (backend is None and not media.is_limited):
        try:
            import_decord()
            attempts.append(_read_video_decord)
        except ImportError as error:
            if backend == "decord":
                raise
            if not isinstance(error.__cause__, ModuleNotFoundError):
                logger.warning_once(f"decord is installed but does not load, PyAV is used instead: {error.__cause__}")
    if backend != "decord":
        attempts.append(_read_video_pyav)

    deadline = time.monotonic() + limit
    for attempts_left, attempt in zip(range(len(attempts), 0, -1), attempts):

        def decode(attempt: Callable = attempt) -> tuple[np.ndarray, VideoLlamaVideoMetadata]:
            _check_complete(media)
            return attempt(media, sample_indices_fn, size)

        seconds = limit if attempts_left == len(attempts) == 1 else (deadline - time.monotonic()) / attempts_left
        try:
            return _run_limited(decode, media, max(seconds, 0), limit)
        except MediaError as error:
            if attempts_left == 1 or isinstance(error, TimeRangeError):
                raise
            log = logger.warning if isinstance(error, DecodeTimeoutError) else logger.info
            log(f"{error}. Trying PyAV.")


def _select(metadata: VideoLlamaVideoMetadata, sample_indices_fn: Callable | None) -> list[int]:
    """Ask for the indices of the wanted frames, and refuse what no decoder can give."""
    num_frames = metadata.total_num_frames
    if num_frames == 0:
        raise MediaError(f"{metadata.source} has a video track with no frames: pass another file")
    indices = range(num_frames) if sample_indices_fn is None else sample_indices_fn(metadata=metadata)
    indices = [int(index) for index in indices]
    if not indices:
        raise MediaError(f"no frame was sampled from {metadata.source}, which has {num_frames}: ask for at least one")
    if min(indices) < 0 or max(indices) >= num_frames:
        raise ValueError(
            f"{metadata.source} has frames 0 to {num_frames - 1}, but frames {min(indices)} to {max(indices)} were "
            "asked for"
        )
    return indices


def _frame_times(times: Sequence[float], fps: float | None, indices: Sequence[int] | None = None) -> list[float]:
    """
    Times as the decoder states them; exact where the frame rate is constant (see `CLOCK_TOLERANCE`). Without the
    frames' indices in the whole clip, they are those that such a rate would give them.
    """
    times = [float(time) for time in times]
    if not fps:
        return times
    nominal = [index / fps for index in (indices or [round(time * fps) for time in times])]
    return [exact if abs(exact - time) < CLOCK_TOLERANCE else time for exact, time in zip(nominal, times)]


@dataclass
class _Bounds:
    """
    A range of seconds in ticks of a clock: what lies at `first` or later and before `stop` belongs to it. A bound
    counts as reached `CLOCK_TOLERANCE` early, because clocks with coarse ticks round times down.
    """

    first: int | None = None
    stop: int | None = None

    @classmethod
    def of(cls, media: MediaSource, origin: int, tick_seconds: Fraction) -> "_Bounds":
        """The range of a source, on a clock that shows `origin` at the beginning of the clip."""
        first, stop = (
            None if bound is None else origin + ceil((Fraction(bound) - Fraction(CLOCK_TOLERANCE)) / tick_seconds)
            for bound in (media.start, media.end)
        )
        return cls(first, stop)

    def __contains__(self, tick: int) -> bool:
        return (self.first is None or tick >= self.first) and (self.stop is None or tick < self.stop)

    def choose(self, ticks: Sequence[int]) -> list[int]:
        """Positions of the frames of the range among frames with these increasing times."""
        chosen = [position for position, tick in enumerate(ticks) if tick in self]
        if chosen or self.first is None:
            return chosen
        # The one on the screen at the start.
        return [position for position, tick in enumerate(ticks) if tick < self.first][-1:]


def _check_range(media: MediaSource, clip_end: float) -> None:
    """Refuse a range that begins after the end of the clip, in seconds; warn of one that goes on long after it."""
    if (media.start or 0) >= clip_end - CLOCK_TOLERANCE:
        raise TimeRangeError(
            f"got a range from {media.start or 0:g} seconds on, but {media.name} ends at {clip_end:.3f} seconds: pass "
            "an earlier start"
        )
    if media.end is not None and media.end > clip_end + END_TOLERANCE:
        logger.warning(
            f"{media.name} ends at {clip_end:.3f} seconds, and was to be read up to {media.end:g}: the range is cut."
        )


@contextmanager
def _decord_errors(media: MediaSource) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # decord raises several unrelated types, and its text runs over many lines
        reason = str(error).strip().splitlines()
        raise MediaError(
            f"decord cannot decode {media.name} ({reason[0] if reason else type(error).__name__})"
        ) from error


def _read_video_decord(
    media: MediaSource, sample_indices_fn: Callable | None, size: tuple[int, int] | None
) -> tuple[np.ndarray, VideoLlamaVideoMetadata]:
    if isinstance(media.data, bytes):
        # decord 0.6 ends the process with a segmentation fault when it opens some damaged files in memory; the same
        # files on the disk are an error like any other.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            path = os.path.join(folder, "video")
            with open(path, "wb") as file:
                file.write(media.data)
            return _read_video_decord(replace(media, data=path), sample_indices_fn, size)
    decord = import_decord()
    height, width = size or (-1, -1)
    with _decord_errors(media):
        reader = decord.VideoReader(media.data, ctx=decord.cpu(0), height=height, width=width)
        num_frames, fps = len(reader), float(reader.get_avg_fps()) or None
    if reason := _misread_by_decord(media, num_frames, fps):
        raise MediaError(f"decord cannot decode {media.name} ({reason})")

    in_range = range(num_frames)
    if media.is_limited:
        with _decord_errors(media):
            spans = reader.get_frame_timestamp(list(in_range))
        if not 0 < spans[-1, 1] < np.inf:
            raise MediaError(f"decord cannot decode {media.name} (its frames have no times)")
        _check_range(media, float(spans[-1, 1]))
        # In microseconds: decord's seconds are no finer after an hour.
        in_range = _Bounds.of(media, 0, Fraction(1, 10**6)).choose([round(1e6 * float(time)) for time in spans[:, 0]])

    metadata = _metadata(media, len(in_range), fps, "decord")
    indices = _select(metadata, sample_indices_fn)
    clip_indices = [in_range[index] for index in indices]
    with _decord_errors(media):
        frames = reader.get_batch(clip_indices)
        # Whoever uses decord elsewhere may have switched its output to torch tensors.
        frames = frames.asnumpy() if hasattr(frames, "asnumpy") else np.asarray(frames)
        times = reader.get_frame_timestamp(clip_indices)[:, 0]
    if frames.shape[-1] != 3:
        # decord 0.6 takes padding at the end of each row for a channel when it turns a clip at its own size.
        raise MediaError(f"decord cannot decode {media.name} (frames of shape {frames.shape})")

    metadata.frames_indices = indices
    # What is on the screen at the start of a range is seen then, whenever it came.
    metadata.frame_times = [max(time, metadata.start) for time in _frame_times(times, fps, clip_indices)]
    metadata.height, metadata.width = frames.shape[1:3]
    return frames, metadata


def _metadata(media: MediaSource, num_frames: int, fps: float | None, backend: str) -> VideoLlamaVideoMetadata:
    return VideoLlamaVideoMetadata(
        total_num_frames=num_frames,
        fps=fps,
        duration=num_frames / fps if fps else None,
        video_backend=backend,
        source=media.name,
        start=media.start or 0.0,
    )


def _misread_by_decord(media: MediaSource, num_frames: int, fps: float | None) -> str | None:
    """The reason why decord 0.6 would give wrong frames of this file without an error, if there is one."""
    with _open_container(media, "a video") as container:
        if container.format.name == "mpegts":
            return "in MPEG transport streams, it jumps to the wrong frames"
        # A file that was cut without re-encoding has more packets than the time it is to be shown for. decord counts
        # the hidden frames, cannot deliver them, and puts copies of others in their place.
        stream = container.streams.video[0] if container.streams.video else None
        if "mov" in container.format.name and stream and stream.duration and fps:
            if num_frames - float(stream.duration * stream.time_base) * fps > 1.5:
                return f"an edit list hides some of its {num_frames} frames"
        keyframe_tick = None
        for packet in container.demux(stream) if stream else ():
            if packet.is_keyframe:
                keyframe_tick = packet.pts
            elif packet.size and keyframe_tick is None:
                return "it begins without a keyframe, and frames that cannot be decoded count"
            elif packet.size and packet.pts is not None and packet.pts < keyframe_tick:
                return "in open groups of pictures, it jumps to the wrong frames"
    return None


@contextmanager
def _open_container(media: MediaSource, what: str) -> Iterator[Any]:
    """Open a source with PyAV; `what` says in messages what the source was expected to be."""
    av = import_av()
    try:
        # Titles in a foreign encoding are no reason to refuse a file.
        with av.open(media.open(), metadata_errors="replace") as container:
            yield container
    except av.error.FFmpegError as error:
        raise MediaError(
            f"{media.name} cannot be decoded as {what} ({error.strerror or error}): it is of another kind, damaged or "
            "cut short. Play it to find out, download it again, or re-encode it to mp4 (H.264, AAC)"
        ) from error


@dataclass
class _PacketIndex:
    """
    What the packets of a video track say about its frames, as far as they were read.

    Args:
        ticks (`list[int | None]`): times of the frames, in ticks of the track's clock.
        keyframe_ticks (`list[int | None]`): times of those at which decoding can begin.
        end_tick (`int`, *optional*): end of the last frame, where the end of the file was reached.
        seek_tick (`int`, *optional*): what was jumped to before reading; `None` at the beginning of the file.
    """

    ticks: list[int | None]
    keyframe_ticks: list[int | None]
    end_tick: int | None
    seek_tick: int | None

    @property
    def is_clock(self) -> bool:
        """Whether each frame has a time, and one of its own."""
        return None not in self.ticks and len(set(self.ticks)) == len(self.ticks)


def _read_video_pyav(
    media: MediaSource, sample_indices_fn: Callable | None, size: tuple[int, int] | None
) -> tuple[np.ndarray, VideoLlamaVideoMetadata]:
    origin, bounds, frames = None, _Bounds(), None
    with _open_container(media, "a video") as container:
        stream = _video_stream(container, media)
        fps = float(stream.average_rate or stream.guessed_rate or 0) or None
        tick_seconds = stream.time_base
        # The container's own count (`stream.frames`) is 0 or wrong in many files. Its packets are right nearly always,
        # and reading them decodes nothing.
        if not media.is_limited:
            index = _index_packets(container, stream, bounds)
        elif (origin := _first_tick(container, stream, media)) is None:
            index = _PacketIndex([None], [], None, None)
        else:
            bounds = _Bounds.of(media, origin, tick_seconds)
            index = _index_range(container, stream, media, origin, bounds)
            if index.end_tick is not None:
                _check_range(media, float((index.end_tick - origin) * tick_seconds))

        if index.is_clock:
            ticks = sorted(index.ticks)
            in_range = bounds.choose(ticks)
            metadata = _metadata(media, len(in_range), fps, "pyav")
            indices = _select(metadata, sample_indices_fn)
            positions = [in_range[chosen] for chosen in indices]
            frames = _decode_at_ticks(container, media, [ticks[position] for position in positions], index, size)

    if frames is None:
        # No clock, or a clock that the decoded frames do not follow: what can be decoded is the only count left.
        ticks = list(_decoded_ticks(media, index.seek_tick, bounds))
        has_clock = _is_increasing(ticks)
        if media.is_limited and not has_clock:
            index.seek_tick = None
            ticks = list(_decoded_ticks(media, None, _Bounds()))
            in_range = _choose_by_rate(media, len(ticks), fps)
        else:
            in_range = bounds.choose(ticks) if has_clock else range(len(ticks))
            if has_clock and index.is_clock and index.ticks:
                first = min(index.ticks)
                in_range = [position for position in in_range if ticks[position] >= first]
        metadata = _metadata(media, len(in_range), fps, "pyav")
        indices = _select(metadata, sample_indices_fn)
        positions = [in_range[chosen] for chosen in indices]
        frames = _decode_at_positions(media, positions, index, size)

    metadata.frames_indices = indices
    if _is_increasing(ticks):
        first = ticks[in_range[0]] if origin is None else origin
        times = [(ticks[position] - first) * tick_seconds for position in positions]
        times = _frame_times(times, fps, None if media.is_limited else indices)
    elif fps:
        times = [position / fps for position in positions]
    else:
        times = None
    # What is on the screen at the start of a range is seen then, whenever it came.
    metadata.frame_times = times and [max(time, metadata.start) for time in times]
    metadata.height, metadata.width = frames.shape[1:3]
    return frames, metadata


def _is_increasing(ticks: Sequence[int | None]) -> bool:
    return None not in ticks and all(earlier < later for earlier, later in pairwise(ticks))


def _video_stream(container: Any, media: MediaSource) -> Any:
    if not container.streams.video:
        raise MediaError(f"{media.name} has no video track: pass a video, or pass this file as audio")
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    return stream


def _first_tick(container: Any, stream: Any, media: MediaSource) -> int | None:
    """
    When the first frame is shown, in ticks of the track's clock, which seldom begins at 0. `None` without a clock. The
    container stands at its beginning, and has to jump before it is read on.
    """
    first, has_begun = None, False
    for packet in container.demux(stream):
        has_begun |= packet.is_keyframe
        if not packet.size or packet.is_discard or not has_begun:
            continue
        if packet.pts is None:
            return next(_decoded_ticks(media, None, _Bounds()), None)
        # Packets come in the order of decoding: until then, one may be shown earlier than those before it.
        if first is not None and packet.dts is not None and packet.dts >= first:
            break
        first = packet.pts if first is None else min(first, packet.pts)
    return first if has_begun else next(_decoded_ticks(media, None, _Bounds()), None)


def _index_packets(container: Any, stream: Any, bounds: _Bounds, seek_tick: int | None = None) -> _PacketIndex:
    """Read the packets of a video track, up to the end of the bounds; decodes nothing."""
    index, ends, num_before_keyframe = _PacketIndex([], [], None, seek_tick), [], None
    frame_ticks = round(1 / stream.average_rate / stream.time_base) if stream.average_rate else 0
    for packet in container.demux(stream):
        if bounds.stop is not None and packet.dts is not None and packet.dts >= bounds.stop:
            break
        if packet.is_keyframe and num_before_keyframe is None:
            num_before_keyframe = len(index.ticks)
        # An edit list hides frames: they have packets, and decoding drops them.
        if packet.size and not packet.is_discard:
            index.ticks.append(packet.pts)
            if packet.is_keyframe:
                index.keyframe_ticks.append(packet.pts)
            if packet.pts is not None:
                ends.append(packet.pts + (packet.duration or frame_ticks))
    else:
        index.end_tick = max(ends, default=None)
    # What comes before the first keyframe cannot be decoded, or only to grey.
    del index.ticks[: num_before_keyframe or 0]
    if index.is_clock:
        index.keyframe_ticks.sort()
    return index


def _index_range(container: Any, stream: Any, media: MediaSource, origin: int, bounds: _Bounds) -> _PacketIndex:
    """The packets from a keyframe before the bounds on: jumps there, or reads from the beginning where it cannot."""
    first = origin if bounds.first is None else max(bounds.first, origin)
    for lookback in LOOKBACKS:
        seek_tick = max(first - round(lookback / stream.time_base), origin)
        if _seek(container, stream, seek_tick):
            index = _index_packets(container, stream, bounds, seek_tick)
            if index.is_clock and index.keyframe_ticks and index.keyframe_ticks[0] <= first:
                return index
    with _open_container(media, "a video") as fresh_container:
        return _index_packets(fresh_container, _video_stream(fresh_container, media), bounds)


def _seek(container: Any, stream: Any, tick: int) -> bool:
    """Jump to the last keyframe before a time; say whether the container can."""
    try:
        container.seek(tick, stream=stream)
    except import_av().error.FFmpegError:
        return False
    return True


def _choose_by_rate(media: MediaSource, num_frames: int, fps: float | None) -> list[int]:
    """Positions of the frames of a range, where nothing but the frame rate tells their times."""
    if not fps:
        raise MediaError(f"{media.name} states no times, so no range of seconds can be found in it: convert it to mp4")
    _check_range(media, num_frames / fps)
    frame_seconds = 1 / Fraction(fps)
    return _Bounds.of(media, 0, frame_seconds).choose(range(num_frames))


@contextmanager
def _from(container: Any, media: MediaSource, seek_tick: int | None) -> Iterator[tuple[Any, Any]]:
    """A container and its video track, where reading began: not all can jump back to their beginning."""
    if container is None or seek_tick is None:
        with _open_container(media, "a video") as container:
            stream = _video_stream(container, media)
            if seek_tick is not None:
                container.seek(seek_tick, stream=stream)
            yield container, stream
    else:
        stream = _video_stream(container, media)
        container.seek(seek_tick, stream=stream)
        yield container, stream


def _decode_frames(container: Any, stream: Any, media: MediaSource, warns: bool = False) -> Iterator[Any]:
    """The frames that can be decoded; if wanted, a warning at the end tells of what cannot."""
    num_damaged = 0
    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except import_av().error.InvalidDataError:
            num_damaged += 1
    if num_damaged and warns:
        logger.warning(f"{media.name}: {num_damaged} video packets could not be decoded and were skipped.")


def _decoded_ticks(media: MediaSource, seek_tick: int | None, bounds: _Bounds) -> Iterator[int | None]:
    """Times of the frames that come out of the decoder, up to the end of the bounds."""
    with _from(None, media, seek_tick) as (container, stream):
        stream.thread_type = "SLICE"  # decoding several frames at once loses good ones beside a damaged one
        for frame in _decode_frames(container, stream, media, warns=True):
            if bounds.stop is not None and frame.pts is not None and frame.pts >= bounds.stop:
                return
            yield frame.pts


def _decode_at_ticks(
    container: Any, media: MediaSource, ticks: list[int], index: _PacketIndex, size: tuple[int, int] | None
) -> np.ndarray | None:
    """
    Decode the frames with these presentation times, jumping over stretches of which nothing is wanted. `None` if one
    of them does not come out of the decoder.
    """
    pictures, convert = {}, _FrameConverter(size)
    with _from(container, media, index.seek_tick) as (container, stream):
        decoded = _decode_frames(container, stream, media)
        position = None
        for tick in sorted(set(ticks)):
            keyframes_before = bisect_right(index.keyframe_ticks, tick)
            # The first keyframe is where decoding starts anyway.
            if keyframes_before > 1 and (position is None or index.keyframe_ticks[keyframes_before - 1] > position):
                container.seek(index.keyframe_ticks[keyframes_before - 1], stream=stream)
                decoded = _decode_frames(container, stream, media)
            for frame in decoded:
                if frame.pts is not None and frame.pts >= tick:
                    break
            else:
                return None
            if frame.pts != tick:
                return None
            position = tick
            pictures[tick] = convert(frame)
    return np.stack([pictures[tick] for tick in ticks])


def _decode_at_positions(
    media: MediaSource, positions: list[int], index: _PacketIndex, size: tuple[int, int] | None
) -> np.ndarray:
    """Decode from where reading began, and keep the frames at these positions."""
    wanted, pictures, convert = set(positions), {}, _FrameConverter(size)
    with _from(None, media, index.seek_tick) as (container, stream):
        stream.thread_type = "SLICE"  # as above
        for position, frame in enumerate(_decode_frames(container, stream, media)):
            if position in wanted:
                pictures[position] = convert(frame)
            if len(pictures) == len(wanted):
                break
    return np.stack([pictures[position] for position in positions])


class _FrameConverter:
    """
    Turns decoded frames upright, scales them and converts them to RGB, with the filters and in the order of decord:
    the pixels are the same to the bit. (`VideoFrame.reformat` takes another path through the same library, and differs
    by up to 0.3/255 on average and 17/255 at most.)
    """

    def __init__(self, size: tuple[int, int] | None):
        self.size = size
        self.graphs = {}

    def __call__(self, frame: Any) -> np.ndarray:
        """Convert one frame to an array of shape `(height, width, 3)`, uint8."""
        key = (frame.width, frame.height, frame.format.name, frame.rotation)
        if key not in self.graphs:
            self.graphs[key] = self._build(frame)
        graph = self.graphs[key]
        graph.push(frame)
        return graph.pull().to_ndarray()

    def _build(self, frame: Any) -> Any:
        quarter_turns = frame.rotation // 90 % 4
        height, width = (frame.width, frame.height) if quarter_turns % 2 else (frame.height, frame.width)
        height, width = self.size or (height, width)
        turn = [[], [("transpose", "cclock")], [("hflip", None), ("vflip", None)], [("transpose", "clock")]]
        graph = import_av().filter.Graph()
        nodes = [
            graph.add_buffer(
                width=frame.width,
                height=frame.height,
                format=frame.format.name,
                time_base=frame.time_base or Fraction(1),
            )
        ]
        for name, arguments in [
            *turn[quarter_turns],
            ("scale", f"{width}:{height}:flags=bilinear"),
            ("format", "rgb24"),
            ("buffersink", None),
        ]:
            nodes.append(graph.add(name, arguments))
            nodes[-2].link_to(nodes[-1])
        graph.configure()
        return graph


# ---------------------------------------------------------------------------------------------------------------------
# Sound
# ---------------------------------------------------------------------------------------------------------------------
def has_audio(source: Any, timeout: float | None = None) -> bool:
    """
    Whether a video or audio file has a sound track. Reads the header only, and of a source that is limited to a range
    of seconds the first packets of sound in it.

    Args:
        source (`str`, `os.PathLike`, `bytes`, file-like or `MediaSource`):
            The file.
        timeout (`float`, *optional*):
            Seconds after which reading is cut off, see the top of this module.

    Returns:
        `bool`: `False` for a silent video, and for a range in which the track has no sound. A track full of silence
        counts as sound.

    Raises:
        MediaNotFoundError: the source leads to nothing.
        DecodeTimeoutError: reading took longer than the time limit.
        MediaError: the source is neither video nor sound.
    """
    limit = _time_limit(timeout)
    media = MediaSource.of(source)

    def read() -> bool:
        with _open_container(media, "video or sound") as container:
            if not container.streams.audio:
                return False
            if not media.is_limited:
                return True
            stream = container.streams.audio[0]
            start, end = _sound_bounds(container, stream, media)
            return any(_end_of(packet) > start for packet in _sound_packets(container, stream, media, start, end))

    return _run_limited(read, media, limit, limit)


def read_duration(source: Any, timeout: float | None = None) -> float:
    """
    Length of a video or sound in seconds, from its first frame or sample to the end of the last one. Jumps to the end
    and reads the last packets: headers are often wrong, and do not say where the video ends and where the sound.

    Args:
        source (`str`, `os.PathLike`, `bytes`, file-like or `MediaSource`):
            The file. Of one that is limited to a range of seconds, the length of the range as far as there is a clip.
        timeout (`float`, *optional*):
            Seconds after which reading is cut off, see the top of this module.

    Returns:
        `float`: seconds; of the video where there is one.

    Raises:
        MediaNotFoundError: the source leads to nothing.
        TimeRangeError: the range of seconds begins after the end of the clip.
        DecodeTimeoutError: reading took longer than the time limit.
        MediaError: the source is neither video nor sound, is cut short or empty.
    """
    limit = _time_limit(timeout)
    media = MediaSource.of(source)

    def read() -> float:
        _check_complete(media)
        with _open_container(media, "video or sound") as container:
            if (video := _moving_pictures(container)) is not None:
                origin = _first_tick(container, video, media)
                if origin is None:
                    _, metadata = _read_video_pyav(media.between(), lambda metadata: [0], None)
                    if not metadata.duration:
                        raise MediaError(f"{media.name} states no times: convert it to mp4")
                    return metadata.duration
                far = _Bounds(first=origin + round(FAR_BEYOND / video.time_base))
                index = _index_range(container, video, media, origin, far)
                return float((index.end_tick - origin) * video.time_base)
            if not container.streams.audio:
                raise MediaError(f"{media.name} has neither video nor sound: pass another file")
            stream = container.streams.audio[0]
            origin = (stream.start_time or 0) * stream.time_base
            packets = _sound_packets(container, stream, media, origin + FAR_BEYOND, None)
            end = max(map(_end_of, packets), default=origin)
            if end == origin:
                raise MediaError(f"the audio track of {media.name} holds no samples: pass another file")
            return float(end - origin)

    duration = _run_limited(read, media, limit, limit)
    _check_range(media, duration)
    return min(duration, duration if media.end is None else media.end) - (media.start or 0)


def read_audio(source: Any, sampling_rate: int | None = 16000, timeout: float | None = None) -> tuple[np.ndarray, int]:
    """
    Decode the first sound track of a video or audio file.

    Args:
        source (`str`, `os.PathLike`, `bytes`, file-like or `MediaSource`):
            The file: wav, flac, mp3, mp4 and whatever else FFmpeg reads.
        sampling_rate (`int`, *optional*, defaults to 16000):
            Rate in Hz to resample to, with `torchaudio.functional.resample`. `None` keeps the file's own.
        timeout (`float`, *optional*):
            Seconds after which decoding is cut off, see the top of this module.

    Returns:
        `tuple[np.ndarray, int]`: the waveform of shape `(channels, samples)`, float32, nominally within -1 and 1; and
        its sampling rate in Hz. Channels are not mixed. Of a source limited to a range of seconds, the waveform is as
        long as the part of the range that the clip has, to the sample, and silent where the track has no sound.

    Raises:
        MediaNotFoundError: the source leads to nothing.
        NoAudioError: there is no sound track, or no sound in the range of seconds.
        TimeRangeError: the range of seconds begins after the end of the clip.
        DecodeTimeoutError: decoding took longer than the time limit.
        MediaError: the source is neither video nor sound, is cut short or damaged, or its sound track is empty.
        ImportError: PyAV is missing, or torchaudio is and has to resample.
    """
    limit = _time_limit(timeout)
    media = MediaSource.of(source)

    def decode() -> tuple[np.ndarray, int, int]:
        _check_complete(media)
        with _open_container(media, "sound") as container:
            if not container.streams.audio:
                raise NoAudioError(
                    f"{media.name} has no audio track: pass load_audio_from_video=False, or add a file with sound"
                )
            stream = container.streams.audio[0]
            if media.is_limited:
                return _decode_sound_range(container, stream, media, sampling_rate)
            return *_decode_sound(container, stream, media), 0

    waveform, native_rate, margin = _run_limited(decode, media, limit, limit)
    if sampling_rate is None or sampling_rate == native_rate:
        return waveform, native_rate
    resample = import_torchaudio().functional.resample
    num_samples = round((waveform.shape[1] - 2 * margin) * sampling_rate / native_rate)
    waveform = resample(torch.from_numpy(waveform), native_rate, sampling_rate).numpy()
    if media.is_limited:
        margin = margin * sampling_rate // native_rate
        waveform = waveform[:, margin : margin + num_samples]
    return waveform, sampling_rate


@dataclass
class _SoundFrame:
    """
    Samples that a decoder gave.

    Args:
        tick (`int`, *optional*): their time on the track's clock; `None` where they follow on those before them.
        samples (`np.ndarray`): of shape `(channels, samples)`, float32.
        rate (`int`): in Hz. That of the track is often 0 or half of it until something is decoded.
    """

    tick: int | None
    samples: np.ndarray
    rate: int


def _decode_packets(packets: Iterable[Any], media: MediaSource) -> Iterator[_SoundFrame]:
    """The frames of sound that can be decoded."""
    av = import_av()
    to_float, num_damaged = av.AudioResampler(format="fltp"), 0
    for packet in packets:
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            # Tags at the end of mp3 files look like this, too: players skip what they cannot decode.
            num_damaged += 1
            continue
        for frame in frames:
            tick = frame.pts
            for chunk in to_float.resample(frame):
                yield _SoundFrame(tick, chunk.to_ndarray(), chunk.sample_rate)
                tick = None
    yield from (_SoundFrame(None, chunk.to_ndarray(), chunk.sample_rate) for chunk in to_float.resample(None))
    if num_damaged:
        logger.warning(f"{media.name}: {num_damaged} audio packets could not be decoded and were skipped.")


def _decode_sound(container: Any, stream: Any, media: MediaSource) -> tuple[np.ndarray, int]:
    """Waveform `(channels, samples)` of a whole sound track, and its rate in Hz."""
    frames = list(_decode_packets(container.demux(stream), media))
    if not frames:
        raise MediaError(f"the audio track of {media.name} holds no samples: pass load_audio_from_video=False")
    return np.concatenate([frame.samples for frame in frames], axis=1), frames[0].rate


def _resampling_margin(native_rate: int, sampling_rate: int) -> int:
    """Samples to read beyond both ends of a range, so that what is resampled there is what the whole clip gives."""
    # A multiple of the number of samples after which the resampler's filters repeat.
    period = native_rate // gcd(native_rate, sampling_rate)
    return period * ceil(RESAMPLING_REACH * max(native_rate / sampling_rate, 1) / period)


def _sound_bounds(container: Any, stream: Any, media: MediaSource) -> tuple[Fraction, Fraction | None]:
    """Start and end of the range of a source, in seconds of its container's clock."""
    origin = (stream.start_time or 0) * stream.time_base
    if (video := _moving_pictures(container)) and (first := _first_tick(container, video, media)) is not None:
        origin = first * video.time_base
    return origin + Fraction(media.start or 0), None if media.end is None else origin + Fraction(media.end)


def _moving_pictures(container: Any) -> Any | None:
    """The video track, unless it is the cover of a sound."""
    cover = import_av().stream.Disposition.attached_pic
    return next((stream for stream in container.streams.video if not stream.disposition & cover), None)


def _end_of(packet: Any) -> Fraction:
    return (packet.pts + (packet.duration or 0)) * packet.time_base


def _sound_packets(
    container: Any, stream: Any, media: MediaSource, start: Fraction, end: Fraction | None
) -> Iterator[Any]:
    """The packets of a sound track from a time on or earlier and up to another, in seconds of the container's clock."""
    beginning = (stream.start_time or 0) * stream.time_base
    for lookback in LOOKBACKS:
        target = start - lookback
        # Jumping to the first sample skips what the codec needs before it.
        if target > beginning and _seek(container, stream, int(target / stream.time_base)):
            packets = container.demux(stream)
            first = next(packets)
            if first.pts is not None and first.pts * first.time_base <= target:
                yield from _until(end, chain([first], packets))
                return
    with _open_container(media, "sound") as fresh_container:
        yield from _until(end, fresh_container.demux(fresh_container.streams.audio[0]))


def _until(end: Fraction | None, packets: Iterable[Any]) -> Iterator[Any]:
    for packet in packets:
        if packet.pts is not None:
            if end is not None and packet.pts * packet.time_base >= end:
                return
            yield packet


@dataclass
class _Stretch:
    """
    Sound without a gap.

    Args:
        positions (`list[Fraction]`): where the clock puts the first sample, said anew by every frame: a clock of coarse
            ticks, as Matroska's, rounds each a little differently.
        chunks (`list[np.ndarray]`): samples of shape `(channels, samples)`.
        length (`int`): how many samples.
    """

    positions: list[Fraction]
    chunks: list[np.ndarray]
    length: int = 0

    @property
    def position(self) -> int:
        """Of the first sample, from the start of the range."""
        return round((min(self.positions) + max(self.positions)) / 2)


def _decode_sound_range(
    container: Any, stream: Any, media: MediaSource, sampling_rate: int | None
) -> tuple[np.ndarray, int, int]:
    """
    Waveform `(channels, samples)` of the range of a source, placed by the container's clock and silent where there is
    no sound; its rate in Hz; and how many samples there are at both ends beyond the range, for resampling.
    """
    start, end = _sound_bounds(container, stream, media)
    origin = start - Fraction(media.start or 0)
    # Before anything is decoded, the rate is that of the header: good enough to read a little too much.
    reach = Fraction(_resampling_margin(stream.rate or 1, sampling_rate or 1), stream.rate or 1)
    sound_end = origin

    def packets_to_decode() -> Iterator[Any]:
        nonlocal sound_end
        first, stop = start - reach - SOUND_PREROLL, None if end is None else end + reach
        for packet in _sound_packets(container, stream, media, first, stop):
            sound_end = max(sound_end, _end_of(packet))
            if _end_of(packet) > first:
                yield packet

    stretches, rate = [], None
    for frame in _decode_packets(packets_to_decode(), media):
        rate = rate or frame.rate
        if frame.tick is not None:
            position = (frame.tick * stream.time_base - start) * rate
            if stretches:
                position -= stretches[-1].length
            if not stretches or abs(position - stretches[-1].positions[-1]) > MAX_JITTER * rate:
                position = (frame.tick * stream.time_base - start) * rate
                stretches.append(_Stretch([], []))
            stretches[-1].positions.append(position)
        if stretches:
            stretches[-1].chunks.append(frame.samples)
            stretches[-1].length += frame.samples.shape[1]
    if stretches:
        sound_end = start + Fraction(stretches[-1].position + stretches[-1].length, rate)

    if end is None or sound_end < end:
        clip_end = sound_end
        if _moving_pictures(container) and container.duration:
            clip_end = max(clip_end, Fraction((container.start_time or 0) + container.duration, 10**6))
        _check_range(media, float(clip_end - origin))
        # Without an end that was asked for, silence after the sound is not worth its memory.
        end = sound_end if end is None else min(end, clip_end)
    tolerance = Fraction(CLOCK_TOLERANCE)
    if (
        sound_end < start + tolerance
        or not stretches
        or start + Fraction(stretches[0].position, rate) > end - tolerance
    ):
        raise NoAudioError(
            f"{media.name} has no sound from {media.start or 0:g} seconds to "
            f"{'its end' if media.end is None else f'{media.end:g}'}: pass load_audio_from_video=False, or another range"
        )

    margin = 0 if sampling_rate in (None, rate) else _resampling_margin(rate, sampling_rate)
    num_samples = round((end - start) * rate) + 2 * margin
    waveform = np.zeros((len(stretches[0].chunks[0]), num_samples), dtype=np.float32)
    for stretch in stretches:
        samples = np.concatenate(stretch.chunks, axis=1)
        position = stretch.position + margin
        first, last = max(position, 0), min(position + stretch.length, num_samples)
        if first < last:
            waveform[:, first:last] = samples[:, first - position : last - position]
    return waveform, rate, margin


# ---------------------------------------------------------------------------------------------------------------------
# Pictures
# ---------------------------------------------------------------------------------------------------------------------
def read_image(source: Any) -> PIL.Image.Image:
    """
    Decode a picture, and turn it upright if its EXIF data says how the camera was held.

    Args:
        source (`str`, `os.PathLike`, `bytes`, file-like or `MediaSource`):
            The picture: whatever Pillow reads.

    Returns:
        `PIL.Image.Image`: the picture in the file's own colour mode.

    Raises:
        MediaNotFoundError: the source leads to nothing.
        MediaError: the source is no picture, is cut short, or is larger than Pillow agrees to unpack.
    """
    media = MediaSource.of(source)
    try:
        with PIL.Image.open(media.open()) as image:
            return PIL.ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        reason = "no format that Pillow knows" if isinstance(error, PIL.UnidentifiedImageError) else error
        raise MediaError(
            f"{media.name} cannot be decoded as an image ({reason}): open it to find out, or convert it to png"
        ) from error
