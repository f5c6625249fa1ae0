# SPDX-License-Identifier: Apache-2.0
"""Decoding goes on: files of every awkward kind, decoders that hang, processes that fork, and memory that stays."""

import contextlib
import functools
import gc
import math
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers.testing_utils import CaptureLogger

from transformers_videollama import VideoLlamaFeatureExtractor, VideoLlamaVideoProcessor, media
from transformers_videollama.exceptions import DecodeTimeoutError, MediaError, VideoLlamaError

from .helpers import ROOT
from .media_files import damage_packets, drop_packets, sound, turn, write_clip


BACKENDS = ["decord", "pyav"]
UNEVEN = [0, 0.1, 0.2, 1, 1.1, 1.2, 3, 3.1, 3.15, 3.4, 5, 5.5]

# Each kind of file, by what writes it into a folder. Where decord turns RGB out at a clip's own size, its old scaler
# rounds odd sizes and 10 bits otherwise: by as much as is said here of 255, and by less than 1 on average.
KINDS = {
    "variable frame rate": (lambda folder: write_clip(folder / "a.mp4", 12, times=UNEVEN), 0),
    "variable frame rate, Matroska": (lambda folder: write_clip(folder / "a.mkv", 12, times=UNEVEN), 0),
    "turned by 90 degrees": (lambda folder: turned(folder, 90), 0),
    "turned by 180 degrees": (lambda folder: turned(folder, 180), 0),
    "turned by 270 degrees": (lambda folder: turned(folder, 270), 0),
    "odd size": (lambda folder: write_clip(folder / "a.mp4", 20, size=(49, 67), codec="mpeg4"), 15),
    "odd size, full chroma": (lambda folder: write_clip(folder / "a.mp4", 20, size=(49, 67), pix_fmt="yuv444p"), 0),
    "odd size, VP9": (lambda folder: write_clip(folder / "a.webm", 20, size=(49, 67), codec="libvpx-vp9"), 3),
    "10 bit": (lambda folder: write_clip(folder / "a.mp4", 20, pix_fmt="yuv420p10le"), 3),
    "10 bit, HEVC": (lambda folder: hevc(folder), 3),
    "sound longer than video": (lambda folder: write_clip(folder / "a.mp4", 20, audio_rate=44100, seconds=5.0), 0),
    "sound shorter than video": (lambda folder: write_clip(folder / "a.mp4", 50, audio_rate=44100, seconds=1.0), 0),
    "5.1 sound": (lambda folder: write_clip(folder / "a.mp4", 20, audio_rate=48000, channels=6, seconds=2.0), 0),
    "8 kHz mono": (lambda folder: write_clip(folder / "a.mp4", 20, audio_rate=8000, channels=1, seconds=2.0), 0),
    "late sound": (lambda folder: write_clip(folder / "a.mp4", 30, audio_rate=44100, seconds=2.0, audio_start=1.0), 0),
}


def turned(folder: Path, degrees: int) -> Path:
    return turn(write_clip(folder / "lying.mp4", 20, size=(64, 48)), folder / "a.mp4", degrees)


def hevc(folder: Path) -> Path:
    options = {"x265-params": "log-level=none:open-gop=0"}
    return write_clip(folder / "a.mp4", 20, pix_fmt="yuv420p10le", codec="libx265", codec_options=options)


def eight_of(metadata: media.VideoMetadata) -> np.ndarray:
    return np.arange(0, metadata.total_num_frames, metadata.total_num_frames / 8).astype(int)[:8]


@pytest.fixture(scope="module")
def small_clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("decoding") / "small.mp4"
    return write_clip(path, 60, audio_rate=44100, codec_options={"g": "12", "bf": "2"})


# Awkward files
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sample_indices_fn", [None, eight_of])
@pytest.mark.parametrize("size", [(224, 224), (30, 41), None])
def test_both_decoders_give_the_same_frames_of_awkward_files(tmp_path, kind, sample_indices_fn, size):
    write, tolerance = KINDS[kind]
    path = write(tmp_path)
    by_pyav, metadata_of_pyav = media.read_video(path, sample_indices_fn, size, backend="pyav")
    if kind == "turned by 180 degrees" and size is None:
        # decord 0.6 takes padding at the end of each row for a channel: it is noticed, and PyAV serves.
        with pytest.raises(MediaError, match="decord cannot decode"):
            media.read_video(path, sample_indices_fn, size, backend="decord")
        by_decord, metadata = media.read_video(path, sample_indices_fn, size)
    else:
        by_decord, metadata = media.read_video(path, sample_indices_fn, size, backend="decord")
    assert metadata.frames_indices == metadata_of_pyav.frames_indices
    assert metadata.total_num_frames == metadata_of_pyav.total_num_frames
    assert metadata.timestamps == pytest.approx(metadata_of_pyav.timestamps, abs=1e-6)
    assert by_decord.shape == by_pyav.shape
    difference = np.abs(by_decord.astype(int) - by_pyav)
    assert difference.max() <= (tolerance if size is None else 0)
    assert difference.mean() < 1


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("num_b_frames", ["0", "2"])
def test_frames_before_the_first_keyframe_do_not_count(tmp_path, suffix, num_b_frames):
    options = {"g": "12", "bf": num_b_frames, "sc_threshold": "0"}
    whole = write_clip(tmp_path / "whole.mp4", 60, codec_options=options)
    path = drop_packets(whole, tmp_path / f"cut.{suffix}", 3)
    with pytest.raises(MediaError, match="decord cannot decode"):
        media.read_video(path, backend="decord")
    expected, _ = media.read_video(whole)
    for backend in (None, "pyav"):
        frames, metadata = media.read_video(path, backend=backend)
        assert np.array_equal(frames, expected[12:])
        assert metadata.timestamps == pytest.approx(np.arange(48) / 10, abs=1e-3)
        chosen, _ = media.read_video(path, lambda metadata: [0, 20, 47], backend=backend)
        assert np.array_equal(chosen, expected[[12, 32, 59]])
        # Where nothing undecodable is asked for, either.
        chosen, metadata = media.read_video(path, lambda metadata: [20], backend=backend)
        assert metadata.total_num_frames == 48
        assert np.array_equal(chosen, expected[[32]])
    frames, metadata = media.read_video(media.MediaSource.of(path).between(1, 2))
    assert np.array_equal(frames, expected[22:32])
    assert metadata.timestamps[0] == pytest.approx(1.0)


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_open_groups_of_pictures_are_jumped_into_rightly(tmp_path, codec):
    name = codec[3:] + "-params"
    options = {name: "open-gop=1:keyint=12:min-keyint=12:bframes=3:scenecut=0:log-level=none"}
    path = write_clip(tmp_path / "open.mp4", 60, codec=codec, codec_options=options)
    with pytest.raises(MediaError, match="in open groups of pictures, it jumps to the wrong frames"):
        media.read_video(path, backend="decord")
    every_frame, _ = media.read_video(path)
    for index in range(60):
        frames, _ = media.read_video(path, lambda metadata, index=index: [index])
        assert np.array_equal(frames, every_frame[[index]])


@pytest.mark.parametrize("damaged", [range(55, 60), range(24, 60)])
def test_a_clip_with_fewer_frames_than_it_says_is_retried_by_pyav(tmp_path, small_clip, damaged):
    path = damage_packets(small_clip, tmp_path / "fewer.mp4", damaged)
    with pytest.raises(MediaError, match="decord cannot decode"):
        media.read_video(path, lambda metadata: [metadata.total_num_frames - 1], backend="decord")
    with CaptureLogger(media.logger) as logs:
        frames, metadata = media.read_video(path)
    assert logs.out.count(f"fewer.mp4: {len(damaged)} video packets could not be decoded and were skipped") == 1
    assert metadata.video_backend == "pyav"
    assert metadata.total_num_frames == damaged.start
    assert np.array_equal(frames, media.read_video(small_clip)[0][: damaged.start])


def test_a_damaged_frame_in_the_middle_costs_no_more_than_its_group(tmp_path, small_clip):
    path = damage_packets(small_clip, tmp_path / "damaged.mp4", range(30, 31))
    whole, _ = media.read_video(small_clip)
    for backend in (None, "pyav"):
        frames, metadata = media.read_video(path, backend=backend)
        assert metadata.total_num_frames == 59
        assert np.array_equal(frames[:24], whole[:24])
        assert np.array_equal(frames[-24:], whole[-24:])


@pytest.mark.parametrize(
    ("kind", "channels", "rate", "seconds"),
    [
        ("sound longer than video", 2, 44100, 5.0),
        ("sound shorter than video", 2, 44100, 1.0),
        ("5.1 sound", 6, 48000, 2.0),
        ("8 kHz mono", 1, 8000, 2.0),
        ("late sound", 2, 44100, 2.0),
    ],
)
def test_awkward_sound_is_read_whole_and_by_ranges(tmp_path, kind, channels, rate, seconds):
    path = KINDS[kind][0](tmp_path)
    waveform, native_rate = media.read_audio(path, sampling_rate=None)
    assert native_rate == rate
    assert waveform.shape[0] == channels
    # The encoder pads: 1024 samples before the sound, and up to two frames after it.
    assert seconds * rate <= waveform.shape[1] <= seconds * rate + 4096
    expected = sound(rate, channels, seconds)
    middle = slice(rate // 2, 3 * rate // 4)
    decoded = waveform[:, 1024:][:, middle]
    # The channel of 5.1 for low frequencies loses the high tone that was put in.
    for channel in (0, 1, 2, 4, 5) if channels == 6 else range(channels):
        assert np.sqrt(np.mean((decoded[channel] - expected[channel, middle]) ** 2)) < 0.03
    assert media.read_audio(path)[0].shape == (channels, math.ceil(waveform.shape[1] * 16000 / rate))
    assert VideoLlamaFeatureExtractor()(path, return_tensors="pt")["input_features"].shape == (1, 8, 128, 204)

    part, _ = media.read_audio(media.MediaSource.of(path).between(0, 1.5), sampling_rate=None)
    assert part.shape == (channels, round(1.5 * rate))
    if kind == "late sound":
        assert np.argmax(np.abs(part[0]) > 0.02) == pytest.approx(rate, abs=0.01 * rate)
    else:
        assert np.array_equal(part[:, 1024:][:, middle], decoded)


# Processes
@pytest.mark.parametrize(("method", "backend"), [("fork", "decord"), ("fork", "pyav"), ("spawn", "decord")])
def test_workers_of_a_data_loader_decode_after_their_parent_did(monkeypatch, small_clip, method, backend):
    if backend == "pyav":
        monkeypatch.setitem(sys.modules, "decord", None)
    paths = [str(small_clip)] * 4
    for prepare, name in [
        (functools.partial(VideoLlamaVideoProcessor(), return_tensors="pt"), "pixel_values_videos"),
        (functools.partial(VideoLlamaFeatureExtractor(), return_tensors="pt"), "input_features"),
    ]:
        expected = prepare(paths[:1])[name]
        loader = DataLoader(
            paths,
            batch_size=2,
            collate_fn=prepare,
            num_workers=2 if method == "fork" else 1,
            multiprocessing_context=method,
            timeout=120,
        )
        batches = [batch[name] for batch in loader]
        assert len(batches) == 2
        for batch in batches:
            assert torch.equal(batch, expected.expand_as(batch))


def test_a_fork_decodes_beside_a_decode_that_is_stuck(small_clip, stalled):
    with pytest.raises(DecodeTimeoutError):
        media.read_video(stalled, timeout=0.5)
    expected, _ = media.read_video(small_clip, eight_of)

    def decode(connection) -> None:
        connection.send(media.read_video(small_clip, eight_of)[0])

    context = multiprocessing.get_context("fork")
    for _ in range(3):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=decode, args=(sender,), daemon=True)
        process.start()
        assert receiver.poll(60)
        assert np.array_equal(receiver.recv(), expected)
        process.join(60)
        assert process.exitcode == 0


# Time limit
@pytest.fixture
def stalled(tmp_path):
    """A file that is read natively and never comes to its end: a pipe into which no more is written."""
    data = write_clip(tmp_path / "begun.mkv", 60, audio_rate=16000).read_bytes()
    with pipe(tmp_path / "stalled.mkv", data[: min(len(data) // 2, 60000)]) as source:
        yield source


@contextmanager
def pipe(path: Path, data: bytes) -> Iterator[media.MediaSource]:
    """A pipe that holds so much and stays open."""
    os.mkfifo(path)
    # Opened for both, or opening would block.
    descriptor = os.open(path, os.O_RDWR)
    os.write(descriptor, data)
    yield media.MediaSource(str(path), path.name)
    # Lets the threads that are stuck in it come to an end.
    os.close(descriptor)


@pytest.mark.parametrize("backend", [None, *BACKENDS])
def test_a_decode_that_does_not_return_is_cut_off(stalled, small_clip, backend):
    before = media.read_video(small_clip)[0]
    begin = time.monotonic()
    with pytest.raises(DecodeTimeoutError, match=r"stalled.mkv was not decoded within .* of a limit of 1\b") as caught:
        media.read_video(stalled, backend=backend, timeout=1)
    assert 0.9 < time.monotonic() - begin < 5
    assert isinstance(caught.value, VideoLlamaError)
    assert isinstance(caught.value, TimeoutError)
    stuck = [thread for thread in threading.enumerate() if thread.name == "decode stalled.mkv"]
    # It really is stuck, and does not keep others from decoding.
    assert len(stuck) == (2 if backend is None else 1)
    for other in BACKENDS:
        assert np.array_equal(media.read_video(small_clip, backend=other)[0], before)


@pytest.mark.parametrize("read", [media.read_audio, media.has_audio, media.read_duration])
def test_sound_and_headers_are_cut_off_too(tmp_path, read):
    with pipe(tmp_path / "empty.mkv", b"") as source:
        for stuck in (source, source.between(1, 2)):
            with pytest.raises(
                DecodeTimeoutError, match="empty.mkv was not decoded within 0.5 seconds of a limit of 0.5"
            ):
                read(stuck, timeout=0.5)


def test_pyav_takes_over_from_a_decord_that_hangs(monkeypatch, small_clip):
    release = threading.Event()

    def hang(*args):
        release.wait()
        raise MediaError("woken")

    expected, _ = media.read_video(small_clip)
    monkeypatch.setattr(media, "_read_video_decord", hang)
    with CaptureLogger(media.logger) as logs:
        frames, metadata = media.read_video(small_clip, timeout=4)
    assert np.array_equal(frames, expected)
    assert metadata.video_backend == "pyav"
    assert "small.mp4 was not decoded within 2 seconds of a limit of 4" in logs.out
    with CaptureLogger(media.logger) as logs:
        release.set()
        for thread in threading.enumerate():
            if thread.name == f"decode {small_clip}":
                thread.join(10)
    # What wakes up later says and changes nothing.
    assert logs.out == ""


def test_the_limit_is_that_of_the_environment_unless_given(monkeypatch, stalled, small_clip):
    monkeypatch.setenv("VIDEO_LLAMA_DECODE_TIMEOUT", "0.5")
    with pytest.raises(DecodeTimeoutError, match=r"stalled.mkv was not decoded .* of a limit of 0\.5"):
        VideoLlamaVideoProcessor()(stalled)
    with pytest.raises(DecodeTimeoutError):
        VideoLlamaFeatureExtractor()(stalled)
    assert len(media.read_video(small_clip, timeout=math.inf)[0]) == 60
    monkeypatch.setenv("VIDEO_LLAMA_DECODE_TIMEOUT", "soon")
    with pytest.raises(ValueError, match="got VIDEO_LLAMA_DECODE_TIMEOUT='soon', expected seconds above 0, or inf"):
        media.read_audio(small_clip)
    for timeout in (0, -1, math.nan, "x"):
        with pytest.raises(ValueError, match="got timeout=.*, expected seconds above 0"):
            media.has_audio(small_clip, timeout=timeout)


def test_a_process_ends_beside_a_decode_that_is_stuck(stalled):
    code = (
        "import sys\n"
        "from transformers_videollama import media\n"
        "from transformers_videollama.exceptions import DecodeTimeoutError\n"
        "for backend in ('decord', 'pyav'):\n"
        "    try:\n"
        "        media.read_video(media.MediaSource(sys.argv[1], 'stalled'), backend=backend, timeout=0.5)\n"
        "    except DecodeTimeoutError:\n"
        "        print('cut off')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, stalled.data], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert (done.returncode, done.stdout) == (0, "cut off\ncut off\n")


def test_errors_come_through_the_limit_and_keep_nothing_alive(small_clip):
    class Big:
        pass

    references = []

    def fail(metadata):
        big = Big()
        references.append(weakref.ref(big))
        raise KeyError("asked")

    gc.disable()
    try:
        for backend in BACKENDS:
            with contextlib.suppress(KeyError):
                media.read_video(small_clip, fail, backend=backend)
        assert [reference() for reference in references] == [None, None]
    finally:
        gc.enable()
    assert not [thread for thread in threading.enumerate() if thread.name == f"decode {small_clip}"]


# Memory
@pytest.mark.slow
def test_a_thousand_decodes_leave_memory_as_it_was(tmp_path, small_clip):
    files = [small_clip]
    for index, kind in enumerate(KINDS):
        if kind != "10 bit, HEVC":
            folder = tmp_path / str(index)
            folder.mkdir()
            files.append(KINDS[kind][0](folder))
    files.append(drop_packets(small_clip, tmp_path / "cut.mkv", 3))
    files.append(damage_packets(small_clip, tmp_path / "fewer.mp4", range(55, 60)))
    files = [file for file in files if media.has_audio(file)] * 2 + files

    def decode(index: int) -> None:
        path = files[index % len(files)]
        source = media.MediaSource.of(path)
        media.read_video(source, eight_of, (224, 224), backend=(None, "pyav")[index // len(files) % 2])
        if media.has_audio(source):
            media.read_audio(source)
        if index % 4 == 0:
            media.read_video(source.between(0.5, 1), size=(64, 64))

    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    with CaptureLogger(media.logger):
        for index in range(100):
            decode(index)
        before = resident()
        for index in range(1000):
            decode(index)
    assert resident() - before < 50
