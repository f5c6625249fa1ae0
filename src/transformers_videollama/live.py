# SPDX-License-Identifier: Apache-2.0
"""Descriptions of a camera or a stream while it runs: a thread keeps the newest seconds, the model looks at them at its own pace.

What comes faster than the model describes is dropped and counted, so that a description is of now, however slow the model is.
"""

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from numbers import Real
from threading import Condition, Event, Thread
from typing import Any

import numpy as np
import torch
from transformers import ProcessorMixin
from transformers.utils import logging

from .exceptions import MediaError, MediaNotFoundError, NoAudioError, PlaceholderError, StreamError
from .media import MediaSource, VideoLlamaVideoMetadata, _FrameConverter, import_av, is_media_source, is_url
from .modeling_video_llama import VideoLlamaForConditionalGeneration


logger = logging.get_logger(__name__)

# Frames that are kept of a window: these many, or a multiple of those that are looked at. More would only move the choice by less
# than a sixteenth of the distance between two of them
MIN_FRAMES_KEPT, FRAMES_KEPT_PER_FRAME = 512, 16
# Seconds by which sound may come later than the pictures of the same moment, or these later than it
PATIENCE = 1.0
# Seconds by which the decoder may fall behind a stream before it leaves out frames up to the next keyframe
LATE = 1.0
# Seconds: whoever waits so long for a packet has no others waiting
AT_ONCE = 0.005
# Seconds by which a clock may be wrong where sound goes on, or a recording be shorter than its header says
JITTER, SHORTFALL = 0.05, 1.0
# Seconds of sound that are too few for one window of its spectrogram
SHORTEST_SOUND = 0.1
# Seconds that a clock has to go back to have begun anew: packets may be a little out of order
JUMP = 1.0
# Seconds that a source is given to answer when it is left
LONGEST_GOODBYE = 5.0


@dataclass(frozen=True, eq=False)
class LiveFrame:
    """A picture of a stream.

    Attributes:
        time: When it was taken, in seconds on any clock, the same for all pictures and sounds of a stream.
        pixels: `(height, width, 3)`, uint8, RGB.
    """

    time: float
    pixels: np.ndarray


@dataclass(frozen=True, eq=False)
class LiveSound:
    """A piece of the sound of a stream, of a fraction of a second.

    Attributes:
        time: When its first sample was taken, in seconds on the clock of the pictures.
        samples: `(channels, samples)` or `(samples,)`, floats between -1 and 1.
        sampling_rate: In Hz.
    """

    time: float
    samples: np.ndarray
    sampling_rate: int = 16000

    @property
    def end(self) -> float:
        """When its last sample is over, in seconds."""
        return self.time + self.samples.shape[-1] / self.sampling_rate


@dataclass(frozen=True)
class LiveDescription:
    """What the model says of some seconds of a stream.

    Attributes:
        start: Where they begin, in seconds from the start of a file, URL or device, or on the clock of the items that came.
        end: Where they end.
        text: The description.
        frame_times: When the frames were taken that the model looked at, in seconds. Empty if there was sound alone.
        has_audio: Whether it heard the sound.
        dropped_frames: Frames since the last description that nobody looked at, because the model or the decoder took too long,
            or because they were damaged. Frames between those of a window that are sampled from it do not count.
        dropped_seconds: Time since the last description that no window covers, because the model took too long.
    """

    start: float
    end: float
    text: str
    frame_times: tuple[float, ...]
    has_audio: bool
    dropped_frames: int
    dropped_seconds: float


def describe_live(
    model: VideoLlamaForConditionalGeneration,
    processor: ProcessorMixin,
    source: Any,
    *,
    every: float = 5.0,
    window: float = 10.0,
    question: str = "Describe what happens.",
    audio: bool | None = None,
    num_frames: int | None = None,
    fps: float | None = None,
    system: str | None = None,
    chat_template: str | None = None,
    format: str | None = None,
    options: Mapping[str, str] | None = None,
    speed: float | None = None,
    timeout: float | None = 10.0,
    **generation_kwargs,
) -> Iterator[LiveDescription]:
    r"""Describes a camera, a stream or a file while it runs.

    Each description is what the model says of a clip with the frames and the sound of one window. The first is of the first
    `every` seconds, the next of the `window` seconds up to `2 * every`, and so on. If the model takes longer, or the loop that
    reads the descriptions, the next is of the newest window, and what lies between is dropped: a warning says so once, and every
    description says how much. What the end of the stream leaves undescribed is described last.

    Leaving the loop early ends the reading and closes the device.

    Args:
        model ([`VideoLlamaForConditionalGeneration`]):
            Model that describes.
        processor ([`VideoLlamaProcessor`]):
            Its processor.
        source (`str`, `os.PathLike`, `bytes`, binary file-like, or an iterable of `LiveFrame` and `LiveSound`):
            A file, which is played at its own speed; the URL of a stream; with `format`, the name of a device; or what another
            library captures, frames and pieces of sound each in the order of their times. Like a recording with a known length
            behind a URL, an iterable is only played at its own speed if `speed` says so, and is read in a thread.
        every (`float`, *optional*, defaults to 5.0):
            Seconds from one description to the next.
        window (`float`, *optional*, defaults to 10.0):
            Seconds that one is of, at most.
        question (`str`, *optional*):
            What is asked of each window.
        audio (`bool`, *optional*):
            Whether the sound is heard. None: if there is any, and the model has an audio branch.
        num_frames (`int`, *optional*):
            Frames per window to look at, in place of the number of the video processor.
        fps (`float`, *optional*):
            Frames per second to look at, in place of that.
        system (`str`, *optional*):
            System message, in place of that of the prompt family. As in the original, it is left out where there is sound.
        chat_template (`str`, *optional*):
            "vicuna" or "llama_2". By default the one that the checkpoint was trained with.
        format (`str`, *optional*):
            FFmpeg's name of the kind of device or stream, such as "v4l2", "avfoundation" or "dshow" for a webcam.
        options (`dict[str, str]`, *optional*):
            FFmpeg's options of it, such as `{"video_size": "640x480"}` or `{"rtsp_transport": "tcp"}`.
        speed (`float`, *optional*):
            Seconds of the stream per second. By default 1 for files and other recordings of a known length, and live sources as
            they come.
        timeout (`float`, *optional*, defaults to 10.0):
            Seconds without a frame or sound after which a stream has stalled. None: wait for ever.
        generation_kwargs:
            Arguments of `generate`, such as `do_sample=False` or `max_new_tokens=64`.

    Yields:
        [`LiveDescription`]

    Raises:
        MediaNotFoundError: If the source leads to nothing.
        StreamError: If the stream stalls, or breaks off in the middle. What came before is described first.
        NoAudioError: If sound was demanded by `audio=True`, and none came with the first window.
        MediaError: If it is no video or sound, or holds only sound and the model does not hear it.
        PlaceholderError: If the question holds a placeholder token.
        ValueError: If a length, a number of frames or a speed is not above 0.

    Example:

    ```python
    >>> camera = {"format": "v4l2", "options": {"video_size": "640x480"}}
    >>> for description in describe_live(model, processor, "/dev/video0", **camera, every=5.0, max_new_tokens=32):
    ...     print(f"{description.start:.0f}-{description.end:.0f} s: {description.text}")
    ```
    """
    lengths = {
        "every": every,
        "window": window,
        "speed": speed,
        "timeout": timeout,
        "num_frames": num_frames,
        "fps": fps,
    }
    for name, value in lengths.items():
        if value is None and name not in ("every", "window"):
            continue
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or value <= 0:
            raise ValueError(f"got {name}={value!r}, expected a number above 0")
    if num_frames is not None and fps is not None:
        raise ValueError(f"got num_frames={num_frames} and fps={fps}: they exclude each other, pass one of them")
    for kind in ("image", "video", "audio"):
        if (token := getattr(processor, f"{kind}_token")) in question:
            raise PlaceholderError(f"The question holds {token}, which stands for an item: the stream is added to it.")
    has_audio_branch = model.config.audio_config is not None
    if audio and not has_audio_branch:
        raise NoAudioError("Sound was asked of the stream, but the model has no audio branch: leave out audio=True.")
    hears = has_audio_branch and audio is not False

    describer = _Describer(model, processor, question, system, chat_template, num_frames, fps, generation_kwargs)
    num_kept = max(MIN_FRAMES_KEPT, FRAMES_KEPT_PER_FRAME * describer.num_frames_of(window))
    recorder = _Recorder(every, window, num_kept, timeout)
    pace = _Pace(recorder, speed)
    if is_media_source(source):
        if format is not None or (isinstance(source, str) and is_url(source) and not source.startswith("file://")):
            media = MediaSource(str(source), str(source))
            pace.is_live = True
        else:
            media = MediaSource.of(source)
        name = media.name
        items = _read_container(media, processor.video_processor, hears, format, options, timeout, pace)
    elif isinstance(source, Iterable):
        name = f"The stream given as {type(source).__name__}"
        items = _read_items(source, processor.video_processor, hears, pace)
    else:
        raise MediaError(
            f"got a {type(source).__name__}, expected a path, a URL, the name of a device with its format, or an iterable of "
            "LiveFrame and LiveSound"
        )
    return _descriptions(recorder, _Reader(items, recorder, name), describer, demands_sound=bool(audio))


def _descriptions(
    recorder: "_Recorder", reader: "_Reader", describer: "_Describer", demands_sound: bool
) -> Iterator[LiveDescription]:
    """What a recorder hands out, described, until the stream ends or its reader is left alone."""
    has_warned = False
    recorder.last_sign = time.monotonic()
    reader.start()
    try:
        while (live := recorder.next_window()) is not None:
            if demands_sound and not recorder.has_heard:
                raise NoAudioError(f"Sound was asked of {reader.name}, but it brings none: leave out audio=True.")
            if (live.dropped_frames or live.dropped_seconds) and not has_warned:
                has_warned = True
                logger.warning(
                    f"{reader.name} comes faster than it is described: {live.dropped_frames} frames and "
                    f"{live.dropped_seconds:.1f} s before {live.start:.1f} s were dropped, and more may be. Each description says "
                    "how much. Raise `every`, or lower `max_new_tokens`, `num_frames` or the frame rate of the source."
                )
            has_audio = live.sound is not None
            text, times = describer.describe(live)
            yield LiveDescription(
                live.start, live.end, text, times, has_audio, live.dropped_frames, live.dropped_seconds
            )
    finally:
        recorder.stop()
        reader.join(min(recorder.timeout or LONGEST_GOODBYE, LONGEST_GOODBYE))
        if reader.is_alive():
            logger.warning(f"{reader.name} does not answer: its reader ends with the next frame, or with the program.")


@dataclass
class _Describer:
    """Asks a model about windows, each as about a clip."""

    model: VideoLlamaForConditionalGeneration
    processor: ProcessorMixin
    question: str
    system: str | None
    chat_template: str | None
    num_frames: int | None
    fps: float | None
    generation_kwargs: dict[str, Any]

    def num_frames_of(self, seconds: float) -> int:
        """How many frames are looked at in so many seconds."""
        defaults = self.processor.video_processor
        num_frames, fps = self.num_frames, self.fps
        if num_frames is None and fps is None:
            num_frames, fps = defaults.num_frames, defaults.fps
        return num_frames or math.ceil((fps or 0) * seconds)

    def describe(self, window: "_Window") -> tuple[str, tuple[float, ...]]:
        """What the model says of a window, and when the frames were taken that it looked at. The window loses its frames."""
        content, processor_kwargs = [], {}
        if window.sound is not None:
            # Directly before a video it counts as the sound of that
            content.append({"type": "audio", "audio": {"array": window.sound, "sampling_rate": window.sampling_rate}})
        if window.frames:
            content.append({"type": "video", "video": [frame.pixels for frame in window.frames]})
            processor_kwargs = {"video_metadata": [window.metadata()], "return_metadata": True}
            for name, value in (("num_frames", self.num_frames), ("fps", self.fps)):
                if value is not None:
                    processor_kwargs[name] = value
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        messages.append({"role": "user", "content": [*content, {"type": "text", "text": self.question}]})
        inputs = self.processor.apply_chat_template(
            messages,
            self.chat_template,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=processor_kwargs,
        )
        (metadata,) = inputs.pop("video_metadata", [None])
        times = () if metadata is None else tuple(window.frames[index].time for index in metadata.frames_indices)
        window.frames.clear()  # what was looked at is copied, and the next window is being filled
        inputs = inputs.to(self.model.device)
        output_ids = self.model.generate(**inputs, **self.generation_kwargs)
        text = self.processor.decode(output_ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for stop_string in self.model.generation_config.stop_strings or []:
            text = text.removesuffix(stop_string)
        return text.strip(), times


# ---------------------------------------------------------------------------------------------------------------------
# What is kept
# ---------------------------------------------------------------------------------------------------------------------
@dataclass
class _Window:
    """Some seconds of a stream, and what was lost before them."""

    start: float
    end: float
    frames: list[LiveFrame]
    sound: np.ndarray | None  # (channels, samples)
    sampling_rate: int | None
    dropped_frames: int
    dropped_seconds: float

    def metadata(self) -> VideoLlamaVideoMetadata:
        """Of the frames, as if they were a clip."""
        times = [frame.time - self.frames[0].time for frame in self.frames]
        # Times are rounded, and a rate a little too low would be a frame too few
        fps = round((len(times) - 1) / times[-1], 3) if len(times) > 1 and times[-1] > 0 else 1.0
        return VideoLlamaVideoMetadata(
            total_num_frames=len(times), fps=fps, duration=self.end - self.start, frame_times=times
        )


@dataclass
class _KeptFrame:
    """A frame with the number of those that it stands for."""

    frame: LiveFrame
    count: int


@dataclass
class _KeptSound:
    """A piece of sound, by its place in sound without a gap, so that rounded times leave none."""

    run_start: float
    index: int
    sound: LiveSound

    def place(self, start: float) -> int:
        """Where it begins in a window, in samples."""
        return round((self.run_start - start) * self.sound.sampling_rate) + self.index


class _Recorder:
    """The newest window of a stream, and the schedule by which windows are cut. One thread adds, another cuts.

    Args:
        every: Seconds between windows.
        window: Seconds of a window.
        num_frames: What is kept of a window at most: beyond, every second is left out.
        timeout: Seconds without anything new after which the stream has stalled.
    """

    def __init__(self, every: float, window: float, num_frames: int, timeout: float | None):
        self.every, self.window, self.num_frames, self.timeout = every, window, num_frames, timeout
        self.condition = Condition()
        self.stopped = Event()
        self.frames: deque[_KeptFrame] = deque()
        self.sounds: deque[_KeptSound] = deque()
        self.fronts: dict[type, float] = {}  # by kind, up to when everything has come
        self.origin = self.described_to = None
        self.num_dropped, self.stride = 0, 1
        self.is_awaited, self.cut_window = False, None
        self.is_over, self.is_all_described, self.is_pausing, self.error = False, False, False, None
        self.last_sign = time.monotonic()

    @property
    def has_heard(self) -> bool:
        """Whether there was any sound so far."""
        return LiveSound in self.fronts

    # The thread that reads

    def add(self, item: LiveFrame | LiveSound) -> None:
        """Keeps a frame or a piece of sound, and lets go of what is too old."""
        with self.condition:
            self.last_sign = time.monotonic()
            if self.origin is None:
                self.origin = self.described_to = item.time
            kind = type(item)
            if item.time < self.fronts.get(kind, -math.inf) - (JITTER if kind is LiveSound else 0):
                raise StreamError(
                    f"a {kind.__name__} of {item.time:.3f} s came after one of {self.fronts[kind]:.3f} s: give them in order"
                )
            if kind is LiveSound:
                self._keep_sound(item)
            else:
                self._keep_frame(item)
            if self.is_awaited and self._front() >= self._due():
                self._hand_over(self._due())
            self._let_go(self._front() - self.window)

    def drop(self, number: int = 1) -> None:
        """Counts frames that came and were not decoded."""
        with self.condition:
            self.num_dropped += number
            self.last_sign = time.monotonic()

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """While the reader waits of its own accord, the stream has not stalled."""
        with self.condition:
            self.is_pausing = True
        try:
            yield
        finally:
            with self.condition:
                self.is_pausing = False
                self.last_sign = time.monotonic()

    def finish(self, error: BaseException | None) -> None:
        """The stream has ended."""
        with self.condition:
            self.is_over, self.error = True, self.error or error
            self.condition.notify_all()

    def _keep_frame(self, frame: LiveFrame) -> None:
        self.fronts[LiveFrame] = frame.time
        if self.frames and self.frames[-1].count < self.stride:
            self.frames[-1].count += 1
            return
        self.frames.append(_KeptFrame(frame, 1))
        if len(self.frames) > self.num_frames:
            kept = list(self.frames)
            for frame, left_out in zip(kept[::2], kept[1::2]):
                frame.count += left_out.count
            self.frames = deque(kept[::2])
            self.stride *= 2

    def _keep_sound(self, sound: LiveSound) -> None:
        self.fronts[LiveSound] = max(sound.end, self.fronts.get(LiveSound, -math.inf))
        run_start, index = sound.time, 0
        if self.sounds:
            last = self.sounds[-1]
            are_alike = (last.sound.sampling_rate, len(last.sound.samples)) == (
                sound.sampling_rate,
                len(sound.samples),
            )
            next_index = last.index + last.sound.samples.shape[1]
            if are_alike and abs(last.run_start + next_index / sound.sampling_rate - sound.time) < JITTER:
                run_start, index = last.run_start, next_index
        self.sounds.append(_KeptSound(run_start, index, sound))

    def _let_go(self, start: float) -> None:
        """Of what lies before a time. What no window covers, and one should have, is counted."""
        while self.frames and self.frames[0].frame.time < start:
            kept = self.frames.popleft()
            if kept.frame.time >= self.described_to and self._scheduled(kept.frame.time, kept.frame.time + 1e-6):
                self.num_dropped += kept.count
        while self.sounds and self.sounds[0].sound.end <= start:
            self.sounds.popleft()

    # The thread that describes

    def next_window(self) -> _Window | None:
        """The next window that is due, or the newest if it is overdue; None after the last.

        Raises:
            Exception: What ended the stream, once all is described.
        """
        with self.condition:
            while True:
                if self.cut_window is None and not self.is_over:
                    if self.origin is not None and self._front() >= self._due():
                        self._hand_over(self._front())
                    else:
                        self._await()
                if (window := self.cut_window) is None and self.is_over:
                    if self.is_all_described or self.origin is None or (end := self._end()) <= self.described_to:
                        if self.error is not None:
                            raise self.error
                        return None
                    self.is_all_described = True
                    self._hand_over(end, is_last=True)
                    window = self.cut_window
                self.cut_window = None
                if window is not None and (window.frames or window.sound is not None):
                    return window
                if window is not None:  # a gap in the stream
                    self.num_dropped += window.dropped_frames

    def stop(self) -> None:
        """Nobody wants more."""
        self.stopped.set()
        with self.condition:
            self.frames.clear()
            self.sounds.clear()

    def _await(self) -> None:
        """Waits until a window is cut, or the stream ends or stalls."""
        self.is_awaited = True
        while self.cut_window is None and not self.is_over:
            left = None
            if self.timeout is not None and not self.is_pausing:
                left = self.last_sign + self.timeout - time.monotonic()
                if left <= 0:
                    self.is_over = True
                    self.error = StreamError(
                        f"The stream has stalled: nothing came for {self.timeout:g} s. Open it again, or raise `timeout`."
                    )
                    break
            self.condition.wait(self.timeout if left is None else left)
        self.is_awaited = False

    def _hand_over(self, end: float, is_last: bool = False) -> None:
        """Cuts the window before a time."""
        start = max(self.origin, end - self.window)
        self._let_go(start)
        frames = [kept.frame for kept in self.frames if kept.frame.time < end or is_last]
        sound, sampling_rate = self._sound(start, end)
        dropped_seconds = self._scheduled(self.described_to, start)
        self.cut_window = _Window(start, end, frames, sound, sampling_rate, self.num_dropped, dropped_seconds)
        self.num_dropped, self.described_to = 0, end
        self.is_awaited = False
        self.condition.notify_all()

    def _sound(self, start: float, end: float) -> tuple[np.ndarray | None, int | None]:
        """The sound of exactly a window, with silence where there was none, and its rate; of one kind, if it changed."""
        if not self.sounds or end - start < SHORTEST_SOUND:
            return None, None
        last = self.sounds[-1].sound
        sound = np.zeros((len(last.samples), round((end - start) * last.sampling_rate)), dtype=np.float32)
        is_empty = True
        for kept in self.sounds:
            samples, place = kept.sound.samples, kept.place(start)
            if (kept.sound.sampling_rate, len(samples)) != (last.sampling_rate, len(last.samples)):
                continue
            first, stop = max(place, 0), min(place + samples.shape[1], sound.shape[1])
            if first < stop:
                sound[:, first:stop] = samples[:, first - place : stop - place]
                is_empty = False
        return (None, None) if is_empty else (sound, last.sampling_rate)

    # The schedule

    def _front(self) -> float:
        """Up to when all has come, of pictures and sound."""
        return max(min(self.fronts.values()), max(self.fronts.values()) - PATIENCE)

    def _end(self) -> float:
        """Where a stream ends that has ended: with its sound, or as long after its last frame as frames lie apart."""
        ends = [self.fronts[LiveSound]] if self.has_heard else []
        if LiveFrame in self.fronts:
            count = sum(kept.count for kept in self.frames) - 1
            last = self.fronts[LiveFrame]
            ends.append(last + max((last - self.frames[0].frame.time) / count if count > 0 else 0.0, 1e-3))
        return max(ends)

    def _due(self) -> float:
        """Where the next window ends: at the first multiple of `every` behind the last."""
        # Rounded, as a window that ended at a multiple must not be due again
        return self.origin + (math.floor(round((self.described_to - self.origin) / self.every, 6)) + 1) * self.every

    def _scheduled(self, start: float, end: float) -> float:
        """How many of these seconds the windows of the schedule cover."""

        def covered_to(moment: float) -> float:
            count, rest = divmod(moment - self.origin, self.every)
            length = min(self.window, self.every)
            return count * length + max(0.0, rest - (self.every - length))

        return max(0.0, covered_to(end) - covered_to(start)) if end > start else 0.0


# ---------------------------------------------------------------------------------------------------------------------
# What is read
# ---------------------------------------------------------------------------------------------------------------------
class _Reader(Thread):
    """Brings what a source gives to a recorder, until either ends."""

    def __init__(self, items: Iterator[LiveFrame | LiveSound], recorder: _Recorder, source_name: str):
        super().__init__(name=source_name, daemon=True)
        self.items, self.recorder = items, recorder

    def run(self) -> None:
        error = None
        try:
            for item in self.items:
                if self.recorder.stopped.is_set():
                    break
                self.recorder.add(item)
            else:
                if self.recorder.origin is None and not self.recorder.stopped.is_set():
                    error = MediaError(f"{self.name} ended before a frame or sound came: play it to find out why")
        except MediaError as reason:
            error = reason
        except Exception as reason:  # what a capture library raises is its own
            error = StreamError(f"{self.name} broke off ({type(reason).__name__}: {reason}): open it again")
            error.__cause__ = reason
        finally:
            self.items.close()
            self.recorder.finish(error)


class _Pace:
    """Lets a recording play at its own speed, and tells how far the reader has fallen behind.

    Args:
        recorder: To be told of pauses.
        speed: Seconds of the stream per second; None as it comes.
    """

    def __init__(self, recorder: _Recorder, speed: float | None):
        self.recorder, self.speed = recorder, speed
        self.is_live = False
        self.began: float | None = None  # by our clock, when second 0 of the stream was, or would have been

    def has_come(self, moment: float, has_waited: bool) -> float:
        """Seconds by which the reader is late with what the stream brings of a moment."""
        now = time.monotonic()
        passed = moment / (self.speed or 1.0)
        # Whoever had to wait is not late, however late the stream is
        if self.began is None or (self.speed is None and has_waited):
            self.began = now - passed
        return now - self.began - passed

    def wait(self, moment: float) -> None:
        """Until a moment of a recording is there."""
        if self.speed is not None and (left := -self.has_come(moment, has_waited=False)) > 0:
            with self.recorder.pausing():
                self.recorder.stopped.wait(left)


def _read_items(
    source: Iterable[Any], video_processor: Any, hears: bool, pace: _Pace
) -> Iterator[LiveFrame | LiveSound]:
    """What another library captures, checked, with frames at the size that the model takes."""
    items = iter(source)
    size, resample = video_processor.size, video_processor.resample
    try:
        for item in items:
            # By name: `trust_remote_code` may have loaded this file once more
            kind = type(item).__name__
            if kind not in (LiveFrame.__name__, LiveSound.__name__):
                raise MediaError(f"the stream gave a {kind}, expected LiveFrame or LiveSound")
            moment = item.time
            if isinstance(moment, bool) or not isinstance(moment, Real) or not math.isfinite(moment):
                raise MediaError(f"a {kind} has time={moment!r}, expected a number of seconds")
            moment = float(moment)
            pace.wait(moment)
            if kind == LiveSound.__name__:
                if hears:
                    yield _checked_sound(moment, item)
                continue
            pixels = np.asarray(item.pixels)
            if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape or pixels.dtype != np.uint8:
                raise MediaError(
                    f"a LiveFrame has pixels of shape {pixels.shape} and type {pixels.dtype}, expected (height, width, 3) and "
                    "uint8, in the order red, green, blue"
                )
            if video_processor.do_resize:
                frame = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
                frame = video_processor.resize(frame.contiguous()[None], size=size, resample=resample)[0]
                pixels = frame.permute(1, 2, 0).contiguous().numpy()
            yield LiveFrame(moment, pixels if pixels is not item.pixels else pixels.copy())
    finally:
        if hasattr(items, "close"):
            items.close()


def _checked_sound(moment: float, sound: LiveSound) -> LiveSound:
    samples, sampling_rate = np.asarray(sound.samples), sound.sampling_rate
    if not (isinstance(sampling_rate, int) and sampling_rate > 0):
        raise MediaError(f"a LiveSound has sampling_rate={sampling_rate!r}, expected a whole number of Hz above 0")
    if samples.ndim not in (1, 2) or not np.issubdtype(samples.dtype, np.floating):
        raise MediaError(
            f"a LiveSound has samples of shape {samples.shape} and type {samples.dtype}, expected (channels, samples) or "
            "(samples,), and floats between -1 and 1: divide 16-bit samples by 32768"
        )
    if not np.isfinite(samples).all():
        raise MediaError(f"a LiveSound of {moment:.3f} s holds NaN or infinite samples: check how it was recorded")
    return LiveSound(moment, np.array(np.atleast_2d(samples), dtype=np.float32), sampling_rate)


def _read_container(
    media: MediaSource,
    video_processor: Any,
    hears: bool,
    format: str | None,
    options: Mapping[str, str] | None,
    timeout: float | None,
    pace: _Pace,
) -> Iterator[LiveFrame | LiveSound]:
    """The frames and the sound of a file, stream or device, at the size that the model takes."""
    av = import_av()
    try:
        container = av.open(
            media.open(),
            format=format,
            options=dict(options or {}),
            timeout=timeout if pace.is_live else None,
            metadata_errors="replace",
        )
    except (av.error.FFmpegError, ValueError) as error:
        kind = MediaNotFoundError if isinstance(error, FileNotFoundError) else MediaError
        raise kind(
            f"{media.name} cannot be opened ({getattr(error, 'strerror', None) or error}): check the name and the connection, "
            "that nobody else uses it, and `format` and `options`"
        ) from error
    with container:
        yield from _play(container, media.name, video_processor, hears, pace)


def _play(
    container: Any, name: str, video_processor: Any, hears: bool, pace: _Pace
) -> Iterator[LiveFrame | LiveSound]:
    av = import_av()
    # The cover of an album is no video
    pictures = [each for each in container.streams.video if not each.disposition & av.stream.Disposition.attached_pic]
    video = next(iter(pictures), None)
    audio = next(iter(container.streams.audio), None) if hears else None
    streams = [stream for stream in (video, audio) if stream is not None]
    if not streams:
        has_sound = len(container.streams.audio) > 0
        raise MediaError(
            f"{name} has no video track" + (", and its sound is not to be heard" if has_sound else " and no sound")
        )
    if pace.speed is None and not (pace.is_live and container.duration is None):
        pace.speed = 1.0
    size = video_processor.size["height"], video_processor.size["width"]
    convert = _FrameConverter(size if video_processor.do_resize and all(size) else None)
    to_float, kind_of_sound = None, None
    clock, last_frame, is_skipping = _StreamClock(streams[0]), -math.inf, False

    packets = container.demux(streams)
    asked = time.monotonic()
    while (packet := next(packets, None)) is not None:
        has_waited = time.monotonic() - asked > AT_ONCE
        if clock.advance(packet) and video is not None:
            video.codec_context.flush_buffers()  # what it still holds is of before the jump
        if packet.stream.type == "video":
            lateness = pace.has_come(clock.now, has_waited)
            is_skipping = lateness > LATE or (is_skipping and not packet.is_keyframe)
            if is_skipping:
                pace.recorder.drop(1 if packet.size else 0)
                video.codec_context.flush_buffers()
                asked = time.monotonic()
                continue
        try:
            decoded = packet.decode()
        except av.error.InvalidDataError:
            if packet.stream.type == "video":
                pace.recorder.drop()
            else:
                logger.warning_once(f"{name}: a damaged piece of sound is left out.")
            decoded = []
        for frame in decoded:
            moment = clock.of(frame.time)
            pace.wait(moment)
            if isinstance(frame, av.VideoFrame):
                last_frame = max(moment, last_frame)
                yield LiveFrame(last_frame, convert(frame))
                continue
            if kind_of_sound != (kind := (frame.format.name, frame.layout.name, frame.sample_rate)):
                to_float, kind_of_sound = av.AudioResampler(format="fltp"), kind
            for chunk in to_float.resample(frame):
                yield LiveSound(moment, chunk.to_ndarray(), chunk.sample_rate)
                moment += chunk.samples / chunk.sample_rate
        asked = time.monotonic()
    # Other containers only guess how long they are
    states_length = container.duration is not None and {"mp4", "matroska"} & {*container.format.name.split(",")}
    if states_length and clock.now < (length := container.duration / av.time_base) - SHORTFALL:
        raise StreamError(f"{name} broke off after {clock.now:.1f} of {length:.1f} s: copy or download it again")


class _StreamClock:
    """Seconds since the start of a stream. Where its own clock jumps back, as when it begins anew, they go on.

    Args:
        stream: That counts from 0.
    """

    def __init__(self, stream: Any):
        self.origin = None if stream.start_time is None else stream.start_time * stream.time_base
        self.last: dict[int, float] = {}  # by stream
        self.now = 0.0

    def advance(self, packet: Any) -> bool:
        """Takes note of a packet, and says whether the clock has jumped back before it."""
        ticks = packet.pts if packet.dts is None else packet.dts
        if ticks is None:
            return False
        moment = ticks * packet.time_base
        if self.origin is None:
            self.origin = moment
        last = self.last.get(packet.stream_index, -math.inf)
        if has_jumped := moment - self.origin < last - JUMP:
            self.origin = moment - Fraction(last) - (packet.duration or 0) * packet.time_base
        self.last[packet.stream_index] = float(moment - self.origin)
        self.now = max(self.now, self.last[packet.stream_index])
        return has_jumped

    def of(self, moment: float | None) -> float:
        """A time of the stream's clock. What has none is of now."""
        return self.now if moment is None else moment - float(self.origin or 0)


__all__ = ["LiveDescription", "LiveFrame", "LiveSound", "describe_live"]
