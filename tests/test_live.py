# SPDX-License-Identifier: Apache-2.0
"""A camera, a stream or a file is described while it runs, as clips of the same seconds would be, and never late."""

import io
import logging
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import count, islice
from queue import Queue

import av
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, GenerationConfig

from transformers_videollama import (
    MediaError,
    MediaNotFoundError,
    NoAudioError,
    PlaceholderError,
    VideoLlamaForConditionalGeneration,
    live,
)
from transformers_videollama.exceptions import StreamError
from transformers_videollama.live import LiveFrame, LiveSound, describe_live
from transformers_videollama.media import read_audio, read_video

from .helpers import SAMPLE_CLIP, TINY
from .media_files import write_clip, write_sound


GREEDY = {"do_sample": False, "max_new_tokens": 6}
TEMPLATE = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
QUESTION = "What do you see and hear?"
RATE = 8000


@pytest.fixture
def model(converted):
    """The original's tiny checkpoint, whose answers depend on all that it is given."""
    model = VideoLlamaForConditionalGeneration.from_pretrained(converted, dtype=torch.float32)
    model.generation_config = GenerationConfig.from_pretrained(TINY)
    return model


@pytest.fixture(scope="module")
def processor(converted):
    return AutoProcessor.from_pretrained(converted)


@pytest.fixture
def mute(model):
    """The model without its LLaMA, to be quick: it remembers what it was given, and runs `meanwhile` when it is asked."""
    model.asked, model.meanwhile = [], lambda: None

    def generate(input_ids, **inputs):
        model.asked.append({"input_ids": input_ids, **inputs})
        model.meanwhile()
        return torch.cat([input_ids, torch.tensor([[450, 11203]])], dim=1)

    model.generate = generate
    return model


@pytest.fixture(autouse=True)
def the_decoder_is_never_late(monkeypatch):
    """However busy the machine is that runs the tests."""
    monkeypatch.setattr(live, "LATE", 1e9)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def frame_at(moment: float, size: tuple[int, int] = (28, 28)) -> LiveFrame:
    return LiveFrame(moment, np.full((*size, 3), int(10 * moment) % 256, dtype=np.uint8))


def sound_at(moment: float, seconds: float = 0.1, value: float | None = None) -> LiveSound:
    times = moment + np.arange(round(seconds * RATE)) / RATE
    samples = np.sin(400 * times) if value is None else np.full(len(times), value)
    return LiveSound(moment, samples.astype(np.float32)[None], RATE)


def tenths(start: float, end: float) -> list[float]:
    return [index / 10 for index in range(round(10 * start), round(10 * end))]


class Feed:
    """A stream that brings what it is told to. `bring` comes back when all of it has been taken."""

    def __init__(self):
        self.queue, self.is_closed = Queue(), False

    def __iter__(self):
        try:
            while (item := self.queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
                self.queue.task_done()
        finally:
            self.is_closed = True

    def bring(self, *items) -> None:
        for item in items:
            self.queue.put(item)
        self.queue.join()

    def end(self, error: Exception | None = None) -> None:
        self.queue.put(error)


# As clips


def inputs_of(model, source, processor, monkeypatch, **kwargs) -> tuple[list[live.LiveDescription], list[dict]]:
    """Descriptions of a stream, and what the model was given for each."""
    given = []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **inputs: given.append(inputs) or generate(**inputs))
    return list(describe_live(model, processor, source, question=QUESTION, **GREEDY, **kwargs)), given


def assert_same_inputs(given: dict, expected: dict) -> None:
    assert given.keys() - GREEDY.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(given[name], tensor), name


def answer(model, processor, inputs) -> str:
    output_ids = type(model).generate(model, **inputs, **GREEDY)
    return processor.decode(output_ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def test_a_file_in_one_window_is_described_as_the_file_itself(model, processor, monkeypatch):
    descriptions, given = inputs_of(model, SAMPLE_CLIP, processor, monkeypatch, every=20, window=20, speed=50)
    content = [{"type": "video", "path": str(SAMPLE_CLIP)}, {"type": "text", "text": QUESTION}]
    expected = processor.apply_chat_template(
        [{"role": "user", "content": content}], load_audio_from_video=True, **TEMPLATE
    )

    assert [(each.start, each.has_audio, each.dropped_frames) for each in descriptions] == [(0, True, 0)]
    assert descriptions[0].end == pytest.approx(6, abs=0.05)
    assert descriptions[0].frame_times == pytest.approx(
        tuple(range(0, 6, 1)) and [0.75 * i for i in range(8)], abs=0.1
    )
    assert_same_inputs(given[0], expected)
    assert descriptions[0].text == answer(model, processor, expected)


@pytest.mark.parametrize(
    "options", [{}, {"num_frames": 3}, {"fps": 2.0}, {"chat_template": "llama_2", "system": "Hi."}]
)
@pytest.mark.parametrize("audio", [None, False])
def test_a_window_is_described_as_a_clip_with_its_frames_and_sound(
    audio, options, model, processor, monkeypatch, tmp_path
):
    path = write_clip(tmp_path / "clip.mp4", frames=50, fps=10, audio_rate=44100, seconds=5.0)
    descriptions, given = inputs_of(
        model, path, processor, monkeypatch, every=3, window=2, speed=50, audio=audio, **options
    )
    size = processor.video_processor.size
    frames, metadata = read_video(path, size=(size["height"], size["width"]))
    chosen = [index for index, moment in enumerate(metadata.timestamps) if 1 <= moment < 3]
    sound, rate = read_audio(path, None)
    sounds = [{"type": "audio", "audio": {"array": sound[:, rate : 3 * rate], "sampling_rate": rate}}]
    content = [
        *(sounds if audio is None else []),
        {"type": "video", "video": frames[chosen]},
        {"type": "text", "text": QUESTION},
    ]
    messages = [{"role": "system", "content": options["system"]}] if "system" in options else []
    expected = processor.apply_chat_template(
        [*messages, {"role": "user", "content": content}],
        options.get("chat_template"),
        **TEMPLATE,
        processor_kwargs={
            "video_metadata": [{"total_num_frames": len(chosen), "fps": 10.0}],
            **{name: value for name, value in options.items() if name in ("num_frames", "fps")},
        },
    )

    first = descriptions[0]
    assert (first.start, first.end, first.has_audio) == (1, 3, audio is None)
    assert_same_inputs(given[0], expected)
    assert first.text == answer(model, processor, expected)
    assert len(first.frame_times) == {"num_frames": 3, "fps": 4}.get(next(iter(options), None), 8)
    assert all(1 <= moment < 3 for moment in first.frame_times)


def test_frames_of_another_library_are_described_as_a_clip_of_them(model, processor, monkeypatch):
    frames = [frame_at(moment, size=(90, 120)) for moment in tenths(100, 102)]
    descriptions, given = inputs_of(model, frames, processor, monkeypatch, every=5)
    clip = {"type": "video", "video": np.stack([frame.pixels for frame in frames])}
    expected = processor.apply_chat_template(
        [{"role": "user", "content": [clip, {"type": "text", "text": QUESTION}]}],
        **TEMPLATE,
        processor_kwargs={"video_metadata": [{"total_num_frames": 20, "fps": 10.0}]},
    )

    assert_same_inputs(given[0], expected)
    assert [(each.start, each.end) for each in descriptions] == [(100, pytest.approx(102))]
    assert descriptions[0].frame_times == tuple(frames[index].time for index in (0, 2, 5, 7, 10, 12, 15, 17))
    assert descriptions[0].text == answer(model, processor, expected)


# The schedule


def recorder(**kwargs) -> live._Recorder:
    return live._Recorder(**{"every": 5.0, "window": 10.0, "num_frames": 512, "timeout": 5.0, **kwargs})


def awaited(recorder: live._Recorder, pool: ThreadPoolExecutor):
    """The next window, that is waited for from now on."""
    window = pool.submit(recorder.next_window)
    while not recorder.is_awaited and not window.done():
        time.sleep(1e-3)
    return window


@pytest.fixture
def pool():
    with ThreadPoolExecutor(1) as pool:
        yield pool


def times_of(window: live._Window) -> list[float]:
    return [frame.time for frame in window.frames]


def test_windows_end_at_every_multiple_and_nothing_is_dropped(pool):
    ours = recorder()
    windows = []
    for start, end in ((0, 5), (5, 10), (10, 15)):
        window = awaited(ours, pool)
        for moment in tenths(start, end + 0.1):
            if moment not in ours.fronts.values():
                ours.add(frame_at(moment))
        windows.append(window.result())

    assert [(window.start, window.end) for window in windows] == [(0, 5), (0, 10), (5, 15)]
    assert times_of(windows[2]) == tenths(5, 15)
    assert not any(window.dropped_frames or window.dropped_seconds for window in windows)


def test_a_window_waits_for_its_sound_but_not_for_ever(pool):
    ours = recorder()
    window = awaited(ours, pool)
    ours.add(sound_at(0))
    for moment in tenths(0, 5.5):
        ours.add(frame_at(moment))
    assert ours.is_awaited
    for moment in tenths(0.1, 5):
        ours.add(sound_at(moment))
    assert np.all(np.abs(window.result().sound).reshape(-1, 100).max(axis=1) > 0.5)

    window = awaited(ours, pool)
    for moment in tenths(5.5, 11.1):
        ours.add(frame_at(moment))
    assert window.result().end == 10


@pytest.mark.parametrize("window", [10.0, 2.0])
def test_a_model_that_is_late_gets_the_newest_window_and_the_rest_is_counted(window, mute, processor, caplog):
    feed = Feed()
    steps = iter([(5.1, 33.0), (33.0, 59.0), (59.0, 60.0)])

    def meanwhile():
        step = next(steps, None)
        if step is not None:
            feed.bring(*map(frame_at, tenths(*step)))
        if step == (59.0, 60.0):
            feed.end()

    mute.meanwhile = meanwhile
    threading.Thread(target=lambda: feed.bring(*map(frame_at, tenths(0, 5.1)))).start()
    with caplog.at_level(logging.WARNING):
        descriptions = list(describe_live(mute, processor, feed, every=5, window=window))

    first, second, third, last = descriptions
    assert (first.start, first.end, first.dropped_frames) == (max(0, 5 - window), 5, 0)
    assert (second.start, second.end) == pytest.approx((32.9 - window, 32.9))
    # With windows of two seconds every five, 3 to 5, 8 to 10, … 28 to 30 would have been described, and 30.9 to 33 is
    assert second.dropped_frames == {10.0: 179, 2.0: 100}[window]
    assert second.dropped_seconds == pytest.approx({10.0: 17.9, 2.0: 10.0}[window])
    assert third.dropped_frames == {10.0: 160, 2.0: 100}[window]
    assert (last.start, last.end) == pytest.approx((60.0 - window, 60.0))
    assert (last.dropped_frames, last.dropped_seconds) == (0, 0)
    assert len([record for record in caplog.records if "comes faster than it is described" in record.message]) == 1


def test_all_frames_are_looked_at_or_counted(pool):
    ours = recorder(every=1.0, window=1.5, num_frames=8)
    covered = dropped = ended = 0
    for start, end in ((0, 1.1), (1.1, 9.3), (9.3, 11.4), (11.4, 14.0)):
        if start == 0:
            window = awaited(ours, pool)
        for moment in tenths(start, end):
            ours.add(frame_at(moment))
        window = window.result() if start == 0 else ours.next_window()
        dropped += window.dropped_frames
        covered += round(10 * (window.end - max(window.start, ended)))
        ended = window.end
    # The last of each window is still to come
    assert covered + dropped == 139


def test_what_the_end_leaves_is_described_last(mute, processor):
    descriptions = list(describe_live(mute, processor, map(frame_at, tenths(0, 7.3)), every=5))

    assert descriptions[-1].end == pytest.approx(7.3)
    assert 7.1 < descriptions[-1].frame_times[-1] + 1 < 7.4


# Sound


def test_sound_lines_up_with_the_frames_and_gaps_in_it_are_silence(pool):
    ours = recorder()
    window = awaited(ours, pool)
    for moment in tenths(0, 5.1):
        ours.add(frame_at(moment))
        if 1 <= moment < 2 or moment >= 3:
            # Times as cameras state them, a little off
            ours.add(LiveSound(moment + 1e-3 * (-1) ** round(10 * moment), sound_at(moment).samples, RATE))
    sound = window.result().sound[0]

    assert len(sound) == 5 * RATE
    expected = np.sin(400 * np.arange(5 * RATE) / RATE)
    seconds = np.arange(5 * RATE) / RATE
    assert np.all(sound[(seconds < 0.99) | ((2.01 < seconds) & (seconds < 2.99))] == 0)
    # No sample is lost or doubled between two pieces: the tone goes on, a thousandth late or early
    for start, end in ((1.1, 1.9), (3.1, 4.9)):
        part = slice(round(start * RATE), round(end * RATE))
        assert min(np.abs(sound[part] - np.roll(expected, shift)[part]).max() for shift in (-8, 0, 8)) < 1e-4


def test_sound_without_pictures_is_described(mute, processor):
    (description,) = describe_live(mute, processor, map(sound_at, tenths(0, 3)), every=5)

    assert (description.has_audio, description.frame_times) == (True, ())
    assert mute.asked[0].keys() >= {"input_features", "input_features_mask"}
    assert "pixel_values_videos" not in mute.asked[0]


@pytest.mark.parametrize("is_demanded", [True, None])
def test_a_stream_without_sound(is_demanded, mute, processor):
    descriptions = describe_live(mute, processor, map(frame_at, tenths(0, 3)), every=5, audio=is_demanded)
    if is_demanded:
        with pytest.raises(NoAudioError, match="The stream given as map, but it brings none: leave out audio=True"):
            next(descriptions)
    else:
        assert not next(descriptions).has_audio
    descriptions.close()


def test_sound_that_is_not_to_be_heard(mute, processor, tmp_path):
    items = [each for moment in tenths(0, 3) for each in (frame_at(moment), sound_at(moment))]
    (description,) = describe_live(mute, processor, items, every=5, audio=False)
    assert not description.has_audio

    sound = write_sound(tmp_path / "tone.wav")
    with pytest.raises(MediaError, match="tone.wav has no video track, and its sound is not to be heard"):
        next(describe_live(mute, processor, sound, audio=False))
    mute.config.audio_config = None
    with pytest.raises(MediaError, match="its sound is not to be heard"):
        next(describe_live(mute, processor, sound))
    with pytest.raises(NoAudioError, match="the model has no audio branch"):
        describe_live(mute, processor, sound, audio=True)


def test_too_little_sound_for_a_spectrogram_is_left_out(mute, processor):
    items = [frame_at(0), sound_at(0, seconds=0.01)]
    (description,) = describe_live(mute, processor, items)
    assert not description.has_audio


# The end


def test_a_stream_that_breaks_is_described_up_to_there(mute, processor):
    def camera():
        yield from map(frame_at, tenths(0, 2))
        raise OSError("unplugged")

    descriptions = describe_live(mute, processor, camera())
    assert next(descriptions).end == pytest.approx(2)
    with pytest.raises(StreamError, match=r"given as generator broke off \(OSError: unplugged\): open it again"):
        next(descriptions)


def test_a_stream_that_stalls_is_described_up_to_there(mute, processor):
    feed = Feed()
    descriptions = describe_live(mute, processor, feed, timeout=0.2)
    threading.Thread(target=lambda: feed.bring(*map(frame_at, tenths(0, 2)))).start()
    assert next(descriptions).end == pytest.approx(2)
    threading.Timer(0.1, feed.end).start()  # lets its reader go
    with pytest.raises(StreamError, match="has stalled: nothing came for 0.2 s. Open it again, or raise `timeout`"):
        next(descriptions)


def test_a_model_that_takes_longer_than_the_timeout_is_no_stall(mute, processor):
    feed = Feed()
    steps = iter([(5.1, 8)])

    def meanwhile():
        time.sleep(0.3)
        for step in steps:
            feed.bring(*map(frame_at, tenths(*step)))
        feed.end()

    mute.meanwhile = meanwhile
    threading.Thread(target=lambda: feed.bring(*map(frame_at, tenths(0, 5.1)))).start()
    assert len(list(describe_live(mute, processor, feed, timeout=0.2))) == 2


def test_leaving_early_ends_the_reader_and_closes_the_source(mute, processor):
    is_closed = []

    def camera():
        try:
            for index in count():
                yield frame_at(index / 10)
        finally:
            is_closed.append(True)

    for description in describe_live(mute, processor, camera()):
        assert description.start == 0
        break
    assert is_closed == [True]


def test_nothing_is_opened_before_it_is_read(mute, processor):
    def camera():
        raise AssertionError("opened")
        yield

    describe_live(mute, processor, camera()).close()


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "ended before a frame or sound came"),
        ([np.zeros((4, 4, 3), dtype=np.uint8)], "the stream gave a ndarray, expected LiveFrame or LiveSound"),
        ([LiveFrame(float("nan"), np.zeros((4, 4, 3), np.uint8))], "time=nan, expected a number of seconds"),
        (
            [LiveFrame(0.0, np.zeros((4, 4), np.uint8))],
            r"shape \(4, 4\) and type uint8, expected \(height, width, 3\)",
        ),
        ([LiveFrame(0.0, np.zeros((4, 4, 3)))], "type float64, expected"),
        ([LiveSound(0.0, np.zeros(9, np.int16))], "type int16, expected .* divide 16-bit samples by 32768"),
        ([LiveSound(0.0, np.full(9, np.nan))], "holds NaN or infinite samples"),
        ([LiveSound(0.0, np.zeros(9), 0)], "sampling_rate=0, expected a whole number of Hz above 0"),
    ],
)
def test_what_is_no_stream_is_refused(items, message, mute, processor):
    with pytest.raises(MediaError, match=message):
        list(describe_live(mute, processor, items))


def test_frames_in_a_wrong_order_are_refused(mute, processor):
    descriptions = describe_live(mute, processor, [frame_at(3), frame_at(2)])
    assert next(descriptions).frame_times == (3,)
    with pytest.raises(StreamError, match=r"a LiveFrame of 2.000 s came after one of 3.000 s"):
        next(descriptions)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"every": 0}, ValueError, "got every=0, expected a number above 0"),
        ({"window": None}, ValueError, "got window=None"),
        ({"speed": float("inf")}, ValueError, "got speed=inf"),
        ({"timeout": -1}, ValueError, "got timeout=-1"),
        ({"num_frames": 2, "fps": 1}, ValueError, "exclude each other"),
        ({"question": "What is <VideoHere>?"}, PlaceholderError, "The question holds <VideoHere>"),
        ({"source": 3}, MediaError, "got a int, expected a path, a URL"),
        ({"source": "nowhere.mp4"}, MediaNotFoundError, "nowhere.mp4 does not exist"),
    ],
)
def test_wrong_arguments_are_refused_at_once(options, error, message, model, processor):
    with pytest.raises(error, match=message):
        describe_live(model, processor, **{"source": SAMPLE_CLIP, **options})


# Memory


def test_memory_is_bounded_however_long_the_stream_and_however_slow_the_model():
    ours = recorder(every=5.0, window=10.0, num_frames=512)
    tracemalloc.start()
    try:
        for index in range(20_000):  # 11 minutes at 30 frames per second, and of sound
            ours.add(LiveFrame(index / 30, np.zeros((32, 32, 3), np.uint8)))
            ours.add(LiveSound(index / 30, np.zeros((1, 533), np.float32), 16000))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # 10 s of either, and what Python needs for it
    assert peak < 1.5 * (300 * 32 * 32 * 3 + 300 * 533 * 4)


def test_of_a_window_with_too_many_frames_every_second_is_left_out():
    ours = recorder(window=100.0, num_frames=64)
    for index in range(3000):
        ours.add(frame_at(index / 100))
        assert len(ours.frames) <= 64
    times = times_of(ours.next_window())
    assert 32 <= len(times)
    assert np.diff(times) == pytest.approx(np.diff(times)[0])
    assert (times[0], times[-1]) == (0, pytest.approx(29.99, abs=1))
    assert ours.num_dropped == 0


# Files, streams and devices


def test_a_file_plays_at_its_own_speed(mute, processor, tmp_path):
    path = write_clip(tmp_path / "clip.mkv", frames=12, fps=10, audio_rate=16000, seconds=1.2)
    began = time.monotonic()
    arrivals = [
        (each.end, time.monotonic() - began) for each in describe_live(mute, processor, path, every=0.5, window=1.0)
    ]

    assert arrivals[0][0] == 0.5
    assert arrivals[-1][0] == pytest.approx(1.2, abs=0.1)
    for end, moment in arrivals:
        assert moment >= end - 0.15


def encode(container: str, codec: str, pixels: str, options: dict[str, str]) -> bytes:
    """A clip of 60 grey frames at 10 per second."""
    clip = io.BytesIO()
    with av.open(clip, "w", format=container) as output:
        stream = output.add_stream(codec, rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        for index in range(60):
            frame = np.full((48, 64, 3), 4 * index, dtype=np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode())
    return clip.getvalue()


def test_a_decoder_that_is_late_leaves_frames_out_up_to_a_keyframe(mute, processor, tmp_path, monkeypatch):
    path = write_clip(tmp_path / "clip.mp4", frames=60, fps=10, options=None)
    monkeypatch.setattr(live, "LATE", -1e9)
    with pytest.raises(MediaError, match="ended before a frame or sound came"):
        list(describe_live(mute, processor, path, speed=1e6))

    # Late at first, then no more: the first keyframe is gone, and nothing can be decoded before the second
    clip = encode("mp4", "libx264", "yuv420p", {"g": "20", "sc_threshold": "0", "bf": "0"})
    late = iter([5.0] * 3)
    monkeypatch.setattr(live, "LATE", 1.0)
    monkeypatch.setattr(live._Pace, "has_come", lambda self, moment, has_waited: next(late, 0.0))
    (description,) = describe_live(mute, processor, clip, every=20, window=20)

    assert description.dropped_frames == 20
    assert description.frame_times == (2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5)


def test_a_reader_that_has_to_wait_is_not_late_however_late_the_stream_is(monkeypatch):
    now = iter([0.0, 5.0, 5.0, 30.0, 31.0])
    monkeypatch.setattr(live.time, "monotonic", lambda: next(now))
    pace = live._Pace(recorder=None, speed=None)

    assert pace.has_come(0.0, has_waited=True) == 0
    assert pace.has_come(1.0, has_waited=False) == 4  # four seconds are in some buffer
    assert pace.has_come(5.0, has_waited=False) == 0
    assert pace.has_come(6.0, has_waited=True) == 0  # the camera was silent
    assert pace.has_come(7.0, has_waited=False) == 0


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_file_that_is_cut_short_is_described_up_to_there(suffix, mute, processor, tmp_path):
    options = {"movflags": "faststart"} if suffix == ".mp4" else {}
    path = write_clip(tmp_path / f"clip{suffix}", frames=100, size=(240, 320), options=options)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    descriptions = describe_live(mute, processor, path, every=20, speed=50)

    assert 2 < next(descriptions).end < 9
    with pytest.raises(StreamError, match=r"clip\.m.. broke off after \d\.\d of 10\.0 s: copy or download it again"):
        next(descriptions)


def test_a_clock_that_begins_anew_goes_on(mute, processor, tmp_path):
    path = write_clip(tmp_path / "clip.ts", frames=40, codec="mpeg2video")
    path.write_bytes(2 * path.read_bytes())
    (description,) = describe_live(mute, processor, path, every=20, window=20, speed=50)

    assert description.end == pytest.approx(8, abs=0.5)
    assert np.all(np.diff(description.frame_times) > 0)


def test_a_damaged_packet_is_dropped_and_counted(mute, processor):
    clip = bytearray(encode("avi", "png", "rgb24", {}))
    position = -1
    for _ in range(5):
        position = clip.index(b"\x89PNG", position + 1)
    clip[position : position + 60] = bytes(60)
    (description,) = describe_live(mute, processor, bytes(clip), every=20, speed=50)

    assert description.dropped_frames == 1
    assert len(description.frame_times) == 8


def test_a_picture_is_a_stream_of_one_frame(mute, processor, tmp_path):
    Image.new("RGB", (60, 40), "red").save(tmp_path / "still.png")
    (description,) = describe_live(mute, processor, tmp_path / "still.png")
    assert description.frame_times == (0,)


def test_a_device_runs_until_it_is_left(mute, processor):
    camera = "testsrc=rate=30:size=160x120,realtime"
    descriptions = describe_live(mute, processor, camera, format="lavfi", every=0.3, window=0.5)
    first, second = islice(descriptions, 2)
    descriptions.close()

    assert first.end == pytest.approx(0.3)
    assert second.end >= 0.6
    assert not second.has_audio


@pytest.mark.parametrize(
    ("source", "options", "error"),
    [
        ("/dev/no-camera", {"format": "v4l2"}, MediaNotFoundError),
        ("camera", {"format": "no-such-format"}, MediaError),
        ("http://127.0.0.1:9/stream", {"timeout": 1.0}, MediaError),
        (b"no video at all", {}, MediaError),
    ],
)
def test_what_can_not_be_opened_is_named(source, options, error, mute, processor):
    with pytest.raises(error, match="cannot be opened .*: check the name and the connection"):
        next(describe_live(mute, processor, source, **options))


class Server(BaseHTTPRequestHandler):
    """Sends a clip."""

    data, missing, may_end = b"", 0, threading.Event()

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "video/mp2t")
        self.send_header("Content-Length", str(len(self.data) + self.missing))
        self.end_headers()
        self.wfile.write(self.data)
        self.wfile.flush()
        if self.missing == 1:
            self.may_end.wait(10)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    Server.may_end.clear()
    yield server
    Server.may_end.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("missing", "message"), [(0, None), (1, "has stalled|broke off"), (100_000, "clip.ts broke off")]
)
def test_a_stream_from_a_url(missing, message, server, mute, processor, tmp_path, monkeypatch):
    path = write_clip(tmp_path / "clip.ts", frames=60, fps=10, codec="mpeg2video", size=(240, 320))
    monkeypatch.setattr(Server, "data", path.read_bytes())
    monkeypatch.setattr(Server, "missing", missing)
    url = f"http://127.0.0.1:{server.server_port}/clip.ts"
    descriptions = describe_live(mute, processor, url, every=20, window=20, timeout=0.5)

    assert next(descriptions).end == pytest.approx(6, abs=1)
    if message is None:
        assert next(descriptions, None) is None
    else:
        with pytest.raises(StreamError, match=message):
            next(descriptions)
