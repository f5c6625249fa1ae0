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
"""

import io
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import InitVar, dataclass
from fractions import Fraction
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from huggingface_hub.utils import get_session
from transformers.utils import logging
from transformers.video_utils import VideoMetadata

from .exceptions import MediaError, MediaNotFoundError, NoAudioError


logger = logging.get_logger(__name__)

# Decoders report times as float32 or in ticks of the container's clock. A time this close to `index / fps` is the time
# of a clip with a constant frame rate, for which the division itself is exact.
CLOCK_TOLERANCE = 1e-3

MAX_NAME_LENGTH = 200


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
    """

    data: str | bytes
    name: str

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
    """

    frame_times: InitVar[list[float] | None] = None
    source: InitVar[str | None] = None

    def __post_init__(self, frame_times: list[float] | None, source: str | None):
        self.frame_times = frame_times
        self.source = source

    @property
    def timestamps(self) -> list[float]:
        """Seconds from the first frame of the clip to each sampled frame."""
        if self.frame_times is None or self.frames_indices is None:
            return super().timestamps
        if len(self.frame_times) != len(self.frames_indices):
            return super().timestamps
        return list(self.frame_times)


def read_video(
    source: Any,
    sample_indices_fn: Callable[[VideoMetadata], Sequence[int]] | None = None,
    size: tuple[int, int] | None = None,
    backend: str | None = None,
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
            not or where decord fails on this file.

    Returns:
        `tuple[np.ndarray, VideoLlamaVideoMetadata]`: frames of shape `(frames, height, width, 3)`, uint8 RGB, upright
        if the file says how it was held; and the metadata with `frames_indices` and `timestamps` of these frames.
        `height` and `width` are those of the frames returned.

    Raises:
        MediaNotFoundError: the source leads to nothing.
        MediaError: the source is no video, is cut short or damaged, or no frame is left to decode.
        ImportError: the backend is not installed.
    """
    if backend not in (None, "decord", "pyav"):
        raise ValueError(f"got backend={backend!r}, expected 'decord', 'pyav' or None for whichever works")
    media = MediaSource.of(source)
    _check_complete(media)

    attempts = []
    if backend != "pyav":
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

    for attempt, is_last in zip(attempts, [False] * (len(attempts) - 1) + [True]):
        try:
            return attempt(media, sample_indices_fn, size)
        except MediaError as error:
            if is_last:
                raise
            logger.info(f"{error}. Trying PyAV.")


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


def _frame_times(times: Sequence[float], indices: Sequence[int], fps: float | None) -> list[float]:
    """Times as the decoder states them; exact where the frame rate is constant (see `CLOCK_TOLERANCE`)."""
    times = [float(time) for time in times]
    if not fps:
        return times
    nominal = [index / fps for index in indices]
    return [exact if abs(exact - time) < CLOCK_TOLERANCE else time for exact, time in zip(nominal, times)]


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
    decord = import_decord()
    height, width = size or (-1, -1)
    with _decord_errors(media):
        reader = decord.VideoReader(media.open(), ctx=decord.cpu(0), height=height, width=width)
        num_frames, fps = len(reader), float(reader.get_avg_fps()) or None
    if reason := _misread_by_decord(media, num_frames, fps):
        raise MediaError(f"decord cannot decode {media.name} ({reason})")

    metadata = VideoLlamaVideoMetadata(
        total_num_frames=num_frames,
        fps=fps,
        duration=num_frames / fps if fps else None,
        video_backend="decord",
        source=media.name,
    )
    indices = _select(metadata, sample_indices_fn)
    with _decord_errors(media):
        frames = reader.get_batch(indices)
        # Whoever uses decord elsewhere may have switched its output to torch tensors.
        frames = frames.asnumpy() if hasattr(frames, "asnumpy") else np.asarray(frames)
        times = reader.get_frame_timestamp(indices)[:, 0]
    if frames.shape[-1] != 3:
        # decord 0.6 takes padding at the end of each row for a channel when it turns a clip at its own size.
        raise MediaError(f"decord cannot decode {media.name} (frames of shape {frames.shape})")

    metadata.frames_indices = indices
    metadata.frame_times = _frame_times(times, indices, fps)
    metadata.height, metadata.width = frames.shape[1:3]
    return frames, metadata


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


def _read_video_pyav(
    media: MediaSource, sample_indices_fn: Callable | None, size: tuple[int, int] | None
) -> tuple[np.ndarray, VideoLlamaVideoMetadata]:
    # The container's own count (`stream.frames`) is 0 or wrong in many files. Its packets are right nearly always, and
    # reading them decodes nothing.
    with _open_container(media, "a video") as container:
        stream = _video_stream(container, media)
        fps = float(stream.average_rate or stream.guessed_rate or 0) or None
        tick_seconds = float(stream.time_base)
        ticks, keyframe_ticks = [], []
        for packet in container.demux(stream):
            # An edit list hides frames: they have packets, and decoding drops them.
            if packet.size and not packet.is_discard:
                ticks.append(packet.pts)
                if packet.is_keyframe:
                    keyframe_ticks.append(packet.pts)

    frames = None
    if None not in ticks and len(set(ticks)) == len(ticks):
        ticks.sort()
        metadata, indices = _pyav_metadata(media, len(ticks), fps, sample_indices_fn)
        frames = _decode_at_ticks(media, [ticks[index] for index in indices], sorted(keyframe_ticks), size)
    if frames is None:
        # No clock, or a clock that the decoded frames do not follow: what can be decoded is the only count left.
        with _open_container(media, "a video") as container:
            ticks = [frame.pts for frame in container.decode(_video_stream(container, media))]
        metadata, indices = _pyav_metadata(media, len(ticks), fps, sample_indices_fn)
        frames = _decode_at_indices(media, indices, size)

    metadata.frames_indices = indices
    if None not in ticks:
        times = [(ticks[index] - ticks[0]) * tick_seconds for index in indices]
        metadata.frame_times = _frame_times(times, indices, fps)
    metadata.height, metadata.width = frames.shape[1:3]
    return frames, metadata


def _video_stream(container: Any, media: MediaSource) -> Any:
    if not container.streams.video:
        raise MediaError(f"{media.name} has no video track: pass a video, or pass this file as audio")
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    return stream


def _pyav_metadata(
    media: MediaSource, num_frames: int, fps: float | None, sample_indices_fn: Callable | None
) -> tuple[VideoLlamaVideoMetadata, list[int]]:
    metadata = VideoLlamaVideoMetadata(
        total_num_frames=num_frames,
        fps=fps,
        duration=num_frames / fps if fps else None,
        video_backend="pyav",
        source=media.name,
    )
    return metadata, _select(metadata, sample_indices_fn)


def _decode_at_ticks(
    media: MediaSource, ticks: list[int], keyframe_ticks: list[int], size: tuple[int, int] | None
) -> np.ndarray | None:
    """
    Decode the frames with these presentation times, jumping over stretches of which nothing is wanted. `None` if one
    of them does not come out of the decoder.
    """
    pictures, convert = {}, _FrameConverter(size)
    with _open_container(media, "a video") as container:
        stream = _video_stream(container, media)
        decoded = container.decode(stream)
        position = None
        for tick in sorted(set(ticks)):
            keyframes_before = bisect_right(keyframe_ticks, tick)
            # The first keyframe is where decoding starts anyway.
            if keyframes_before > 1 and (position is None or keyframe_ticks[keyframes_before - 1] > position):
                container.seek(keyframe_ticks[keyframes_before - 1], stream=stream)
                decoded = container.decode(stream)
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


def _decode_at_indices(media: MediaSource, indices: list[int], size: tuple[int, int] | None) -> np.ndarray:
    """Decode from the start and keep the frames with these indices."""
    wanted, pictures, convert = set(indices), {}, _FrameConverter(size)
    with _open_container(media, "a video") as container:
        for index, frame in enumerate(container.decode(_video_stream(container, media))):
            if index in wanted:
                pictures[index] = convert(frame)
            if len(pictures) == len(wanted):
                break
    return np.stack([pictures[index] for index in indices])


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
def has_audio(source: Any) -> bool:
    """
    Whether a video or audio file has a sound track. Reads the header only.

    Args:
        source (`str`, `os.PathLike`, `bytes`, file-like or `MediaSource`):
            The file.

    Returns:
        `bool`: `False` for a silent video. A track full of silence counts as sound.

    Raises:
        MediaNotFoundError: the source leads to nothing.
        MediaError: the source is neither video nor sound.
    """
    media = MediaSource.of(source)
    with _open_container(media, "video or sound") as container:
        return len(container.streams.audio) > 0


def read_audio(source: Any, sampling_rate: int | None = 16000) -> tuple[np.ndarray, int]:
    """
    Decode the first sound track of a video or audio file.

    Args:
        source (`str`, `os.PathLike`, `bytes`, file-like or `MediaSource`):
            The file: wav, flac, mp3, mp4 and whatever else FFmpeg reads.
        sampling_rate (`int`, *optional*, defaults to 16000):
            Rate in Hz to resample to, with `torchaudio.functional.resample`. `None` keeps the file's own.

    Returns:
        `tuple[np.ndarray, int]`: the waveform of shape `(channels, samples)`, float32, nominally within -1 and 1; and
        its sampling rate in Hz. Channels are not mixed.

    Raises:
        MediaNotFoundError: the source leads to nothing.
        NoAudioError: there is no sound track.
        MediaError: the source is neither video nor sound, is cut short or damaged, or its sound track is empty.
        ImportError: PyAV is missing, or torchaudio is and has to resample.
    """
    media = MediaSource.of(source)
    _check_complete(media)
    av = import_av()
    chunks, num_damaged = [], 0
    with _open_container(media, "sound") as container:
        if not container.streams.audio:
            raise NoAudioError(
                f"{media.name} has no audio track: pass load_audio_from_video=False, or add a file with sound"
            )
        stream = container.streams.audio[0]
        native_rate = stream.rate
        to_float = av.AudioResampler(format="fltp")
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                # Tags at the end of mp3 files look like this, too: players skip what they cannot decode.
                num_damaged += 1
                continue
            chunks.extend(chunk.to_ndarray() for frame in frames for chunk in to_float.resample(frame))
        chunks.extend(chunk.to_ndarray() for chunk in to_float.resample(None))
    if not chunks:
        raise MediaError(f"the audio track of {media.name} holds no samples: pass load_audio_from_video=False")
    if num_damaged:
        logger.warning(f"{media.name}: {num_damaged} audio packets could not be decoded and were skipped.")

    waveform = np.concatenate(chunks, axis=1)  # (channels, samples)
    if sampling_rate is None or sampling_rate == native_rate:
        return waveform, native_rate
    resample = import_torchaudio().functional.resample
    return resample(torch.from_numpy(waveform), native_rate, sampling_rate).numpy(), sampling_rate


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
