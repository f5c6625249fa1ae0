# SPDX-License-Identifier: Apache-2.0
"""Ranges of seconds: what lies in them and no more, at the times of the whole clip, however long that is."""

import io
import pickle

import av
import numpy as np
import pytest
import torch
from transformers.testing_utils import CaptureLogger
from transformers.video_utils import VideoMetadata

from transformers_videollama import VideoLlamaFeatureExtractor, VideoLlamaVideoProcessor, media
from transformers_videollama.exceptions import MediaError, NoAudioError, TimeRangeError, VideoLlamaError

from .helpers import clip
from .media_files import hide_frames, sound, turn, write_clip, write_long_clip, write_sound


BACKENDS = ["decord", "pyav"]
CONTAINERS = [
    ("clip.mp4", {}),
    ("clip.mkv", {}),
    ("clip.mov", {}),
    ("clip.ts", {}),
    ("fragmented.mp4", {"movflags": "frag_keyframe+empty_moov"}),
]
RANGES = [(0, 1), (0, 0.05), (1, 3), (0.95, 1.05), (2.5, 6), (4.3, 4.4), (5.9, None), (None, 2), (0, None)]


def eight_of(metadata: VideoMetadata) -> np.ndarray:
    count = min(8, metadata.total_num_frames)
    return np.arange(0, metadata.total_num_frames, metadata.total_num_frames / count).astype(int)[:count]


@pytest.fixture(scope="module")
def small_clip(tmp_path_factory):
    """Six seconds at ten frames per second, with sound."""
    path = tmp_path_factory.mktemp("ranges") / "small.mp4"
    return write_clip(path, 60, audio_rate=44100, seconds=6.0, audio_start=0.0, codec_options={"g": "12"})


@pytest.fixture(scope="module", params=["mp4", "mkv"])
def hour(request, tmp_path_factory):
    return write_long_clip(tmp_path_factory.mktemp("hour") / f"hour.{request.param}")


# Frames
@pytest.mark.parametrize("backend", [None, *BACKENDS])
@pytest.mark.parametrize(("start", "end"), RANGES)
def test_a_range_has_the_frames_that_begin_in_it_and_their_times(small_clip, start, end, backend):
    whole, metadata = media.read_video(small_clip)
    times = np.array(metadata.timestamps)
    expected = np.flatnonzero((times >= (start or 0) - 1e-6) & (times < (end or 6) - 1e-6))
    frames, metadata = media.read_video(media.MediaSource.of(small_clip).between(start, end), backend=backend)
    assert np.array_equal(frames, whole[expected])
    assert metadata.timestamps == pytest.approx(times[expected], abs=1e-9)
    assert metadata.total_num_frames == len(expected)
    assert metadata.frames_indices == list(range(len(expected)))
    assert metadata.video_backend == (backend or "pyav")


@pytest.mark.parametrize(("name", "options"), CONTAINERS)
@pytest.mark.parametrize("keyframes", ["5", "250"])
def test_ranges_are_found_in_any_container(tmp_path, name, options, keyframes):
    path = write_clip(tmp_path / name, 60, options=options, codec_options={"g": keyframes, "bf": "3"})
    whole, metadata = media.read_video(path)
    times = metadata.timestamps
    for start, end in [(0, 1), (1, 3), (2.5, 4), (5, None)]:
        frames, metadata = media.read_video(media.MediaSource.of(path).between(start, end))
        expected = [index for index, time in enumerate(times) if start <= time + 1e-6 and time + 1e-6 < (end or 6)]
        assert np.array_equal(frames, whole[expected])
        assert metadata.timestamps == pytest.approx([times[index] for index in expected], abs=1e-3)


@pytest.mark.parametrize("name", ["dog_barking", "boat", "silence_girl", "birthday"])
def test_ranges_of_recordings_are_the_same_by_both_decoders_and_cut_from_the_whole(name):
    whole, whole_metadata = media.read_video(clip(name), size=(32, 32))
    times = np.array(whole_metadata.timestamps)
    for start, end in [(0, 2), (1.7, 4.4), (3, None)]:
        expected = np.flatnonzero((times >= start - 1e-3) & (times < (end or 1e9) - 1e-3))
        for backend in BACKENDS:
            source = media.MediaSource.of(clip(name)).between(start, end)
            frames, metadata = media.read_video(source, size=(32, 32), backend=backend)
            assert np.array_equal(frames, whole[expected])
            assert metadata.timestamps == pytest.approx(times[expected], abs=1e-3)


def test_ranges_that_meet_share_no_frame_and_lose_none(tmp_path):
    # A rate that fits no clock: frame times are rounded to milliseconds.
    path = write_clip(tmp_path / "clip.mkv", 100, fps=30)
    whole, _ = media.read_video(path)
    bounds = [*np.arange(0, 3.3, 1 / 30 * 7), None]
    source = media.MediaSource.of(path)
    parts = [media.read_video(source.between(*pair))[0] for pair in zip(bounds, bounds[1:])]
    assert np.array_equal(np.concatenate(parts), whole)
    assert [len(part) for part in parts[:-1]] == [7] * (len(parts) - 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_range_between_two_frames_has_the_one_on_the_screen(tmp_path, backend):
    path = write_clip(tmp_path / "still.mp4", 6, times=[0.0, 0.1, 0.2, 5.0, 5.1, 5.2])
    whole, _ = media.read_video(path)
    source = media.MediaSource.of(path)
    frames, metadata = media.read_video(source.between(2, 4), backend=backend)
    assert np.array_equal(frames, whole[[2]])
    assert metadata.timestamps == [2.0]
    assert media.read_video(source.between(4, 6), backend=backend)[1].timestamps == pytest.approx([5.0, 5.1, 5.2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_ranges_count_from_the_first_frame(tmp_path, backend):
    path = write_clip(tmp_path / "late.mkv", 20, times=[1 + index / 10 for index in range(20)])
    whole, _ = media.read_video(path)
    frames, metadata = media.read_video(media.MediaSource.of(path).between(0.5, 1), backend=backend)
    assert np.array_equal(frames, whole[5:10])
    assert metadata.timestamps == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9])


def test_turned_cut_and_clockless_clips_have_ranges_too(tmp_path, small_clip):
    upright = turn(small_clip, tmp_path / "turned.mp4", 90)
    frames, _ = media.read_video(media.MediaSource.of(upright).between(1, 2))
    assert np.array_equal(frames, media.read_video(upright)[0][10:20])

    cut = hide_frames(small_clip, tmp_path / "cut.mp4", 2, 4)
    frames, metadata = media.read_video(media.MediaSource.of(cut).between(1, 2))
    assert np.array_equal(frames, media.read_video(small_clip)[0][30:40])
    assert metadata.timestamps[0] == 1.0

    raw = write_clip(tmp_path / "raw.h264", 60)
    _, metadata = media.read_video(raw)
    # Such a file does not say its rate either: FFmpeg takes it for 25 frames per second.
    frames, part = media.read_video(media.MediaSource.of(raw).between(1, 2))
    assert len(frames) == metadata.fps == 25
    assert np.array_equal(frames, media.read_video(raw)[0][25:50])
    assert part.timestamps[:2] == [1.0, 1.04]


def test_frames_before_the_keyframe_and_after_the_range_are_not_decoded(small_clip, monkeypatch):
    decoded, decode_frames = [], media._decode_frames

    def record(*args):
        for frame in decode_frames(*args):
            decoded.append(float(frame.time))
            yield frame

    monkeypatch.setattr(media, "_decode_frames", record)
    media.read_video(media.MediaSource.of(small_clip).between(3, 3.5))
    # Keyframes come every 1.2 seconds.
    assert (min(decoded), max(decoded)) == (2.4, 3.4)


# Sound
@pytest.mark.parametrize(("audio_codec", "name"), [("aac", "clip.mp4"), ("aac", "clip.mkv"), ("flac", "clip.mkv"), ("pcm_s16le", "clip.mov"), ("aac", "clip.ts"), ("libmp3lame", "clip.mp4")])  # fmt: skip
@pytest.mark.parametrize("rate", [16000, 44100, 48000])
def test_flash_and_click_meet_in_every_range(tmp_path, audio_codec, name, rate):
    """Every second a frame flashes and the sound clicks: in a range, both are where the clock says."""
    waveform = np.zeros((1, 6 * rate), dtype=np.float32)
    for second in range(6):
        waveform[0, second * rate + rate // 2 : second * rate + rate // 2 + rate // 20] = 0.8
    path = write_clip(
        tmp_path / name, 60, audio_rate=rate, channels=1, waveform=waveform, audio_start=0.0, audio_codec=audio_codec
    )
    for start, end in [(0, 2), (1, 3), (2.3, 5), (4, 6)]:
        source = media.MediaSource.of(path).between(start, end)
        _, metadata = media.read_video(source)
        assert metadata.timestamps[0] == pytest.approx(start, abs=1e-3)
        samples, sampling_rate = media.read_audio(source)
        assert sampling_rate == 16000
        assert samples.shape == (1, round(16000 * (end - start)))
        for second in range(6):
            click = round(16000 * (second + 0.5 - start))
            if 0 < click < samples.shape[1] - 800:
                begins = click - 400 + np.argmax(samples[0, click - 400 : click + 400] > 0.4)
                assert begins == pytest.approx(click, abs=8)


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("clip.mp4", 1e-5), ("clip.mkv", 1e-5), ("clip.ts", 1e-5), ("tone.wav", 0), ("tone.flac", 0), ("tone.mp3", 0)],
)
@pytest.mark.parametrize("sampling_rate", [None, 16000])
def test_sound_of_a_range_is_cut_from_the_whole_to_the_sample(tmp_path, name, tolerance, sampling_rate):
    if name.startswith("clip"):
        path = write_clip(tmp_path / name, 120, audio_rate=48000, seconds=12.0, audio_start=0.0)
    else:
        path = write_sound(tmp_path / name, 44100, 2, 12.0)
    source = media.MediaSource.of(path)
    whole, rate = media.read_audio(source.between(0, 11.5), sampling_rate)
    for start, end in [(1, 2), (2.25, 7), (6, 11), (0.5, 0.75)]:
        part, part_rate = media.read_audio(source.between(start, end), sampling_rate)
        assert part_rate == rate
        assert part.shape == (2, round((end - start) * rate))
        assert np.abs(part - whole[:, round(start * rate) : round(end * rate)]).max() <= max(tolerance, 1e-6)
    # In the others, the sound of the whole does not begin with the first frame.
    if name not in ("clip.mkv", "clip.ts"):
        unlimited, _ = media.read_audio(source, sampling_rate)
        assert np.abs(unlimited[:, : whole.shape[1]] - whole).max() <= max(tolerance, 1e-6)


def test_sound_that_begins_late_or_ends_early_leaves_silence_in_its_place(tmp_path):
    path = write_clip(tmp_path / "clip.mkv", 100, audio_rate=16000, channels=1, seconds=4.0, audio_start=3.0, audio_codec="flac")  # fmt: skip
    tone = sound(16000, 1, 4.0)
    source = media.MediaSource.of(path)
    late, _ = media.read_audio(source.between(2, 4))
    assert late.shape == (1, 32000)
    assert not late[:, :16000].any()
    assert np.abs(late[:, 16000:] - tone[:, :16000]).max() < 1e-4
    early, _ = media.read_audio(source.between(6, 8))
    assert early.shape == (1, 32000)
    assert np.abs(early[:, :16000] - tone[:, 48000:]).max() < 1e-4
    assert not early[:, 16000:].any()
    assert media.read_audio(source.between(6))[0].shape == (1, 16000)

    assert media.has_audio(source.between(2, 4))
    for start, end in [(0, 3), (7, 10), (8, None)]:
        silent = source.between(start, end)
        assert not media.has_audio(silent)
        with pytest.raises(NoAudioError, match=rf"clip.mkv has no sound from {start} seconds to .*: pass load_audio"):
            media.read_audio(silent)


def test_a_gap_in_the_sound_stays_a_gap(tmp_path):
    path = tmp_path / "gap.mkv"
    tone = sound(16000, 1, 1.024)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        for second in (0, 3):
            for begin in range(0, tone.shape[1], 1024):
                frame = av.AudioFrame.from_ndarray(
                    (tone[:, begin : begin + 1024] * 32767).astype(np.int16), format="s16", layout="mono"
                )
                frame.sample_rate, frame.pts = 16000, second * 16000 + begin
                container.mux(stream.encode(frame))
    part, _ = media.read_audio(media.MediaSource.of(path).between(0.5, 3.5))
    assert np.abs(part[:, :8000] - tone[:, 8000:16000]).max() < 1e-3
    assert not part[:, 8384:40000].any()
    assert np.abs(part[:, 40000:] - tone[:, :8000]).max() < 1e-3


# Bounds
def test_a_range_is_a_light_copy_and_replaces_the_one_before(small_clip):
    data = small_clip.read_bytes()
    source = media.MediaSource.of(data)
    part = source.between(1, 2)
    assert part.data is source.data
    assert (part.start, part.end, part.is_limited) == (1.0, 2.0, True)
    assert not source.is_limited
    assert not part.between().is_limited
    assert (part.between(3).start, part.between(3).end) == (3.0, None)
    assert media.MediaSource.of(part) is part
    assert pickle.loads(pickle.dumps(part)) == part
    for same in (small_clip, io.BytesIO(data)):
        frames, _ = media.read_video(media.MediaSource.of(same).between(np.float32(1), 2))
        assert np.array_equal(frames, media.read_video(part)[0])


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (-1, 2, "got start=-1 for .*small.mp4, expected 0 seconds or more"),
        (2, 2, "from 2 to 2 seconds of .*small.mp4, which is empty: pass an end after the start"),
        (3, 1, "from 3 to 1 seconds of .* which is empty"),
        (None, 0, "from 0 to 0 seconds of .* which is empty"),
        ("1", 2, "got start='1' for .* expected a number of seconds, or None for the start"),
        (1, True, "got end=True for .* expected a number of seconds"),
        (float("nan"), 2, "got start=nan"),
        (0, float("inf"), "got end=inf .* or None for the end of the clip"),
    ],
)
def test_ranges_that_are_none_are_refused(small_clip, start, end, message):
    with pytest.raises(TimeRangeError, match=message) as caught:
        media.MediaSource.of(small_clip).between(start, end)
    assert isinstance(caught.value, VideoLlamaError)


@pytest.mark.parametrize("start", [6, 7, 100, 500000])
def test_a_range_after_the_end_is_refused_when_it_is_read(tmp_path, small_clip, start):
    for path in (small_clip, write_clip(tmp_path / "clip.mkv", 60), write_clip(tmp_path / "clip.ts", 60)):
        for backend in (None, "pyav") if path.suffix == ".ts" else (None, *BACKENDS):
            with pytest.raises(TimeRangeError, match=rf"range from {start:g} seconds on.*ends at (5\.9|6)\S* seconds"):
                media.read_video(media.MediaSource.of(path).between(start), backend=backend)
    for suffix in ("wav", "mp3", "flac"):
        tone = write_sound(tmp_path / f"tone.{suffix}", seconds=5.9)
        with pytest.raises(TimeRangeError, match=r"ends at 5\.9\S* seconds: pass an earlier start"):
            media.read_audio(media.MediaSource.of(tone).between(start, start + 1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_end_long_after_the_clip_is_warned_of(small_clip, backend):
    source = media.MediaSource.of(small_clip)
    with CaptureLogger(media.logger) as logs:
        assert len(media.read_video(source.between(4, 6.5), backend=backend)[0]) == 20
        assert logs.out == ""
        assert len(media.read_video(source.between(4, 60), backend=backend)[0]) == 20
    assert "ends at 6.000 seconds, and was to be read up to 60: the range is cut" in logs.out


# What sees ranges
def test_the_processors_see_the_range_alone(small_clip):
    source = media.MediaSource.of(small_clip).between(2, 4)
    inputs = VideoLlamaVideoProcessor()([source, small_clip], num_frames=4, return_tensors="pt", return_metadata=True)
    assert inputs["video_metadata"][0].timestamps == [2.0, 2.5, 3.0, 3.5]
    assert inputs["video_metadata"][1].timestamps == [0.0, 1.5, 3.0, 4.5]
    assert torch.equal(inputs["pixel_values_videos"][0, 2], inputs["pixel_values_videos"][1, 2])
    assert VideoLlamaVideoProcessor()(source, fps=3)["video_frame_mask"][0].sum() == 6

    extractor = VideoLlamaFeatureExtractor()
    waveform, _ = media.read_audio(source)
    assert waveform.shape == (2, 32000)
    features = extractor(source, return_tensors="pt")["input_features"]
    assert torch.equal(features, extractor(waveform, sampling_rate=16000, return_tensors="pt")["input_features"])


def test_times_computed_anew_are_those_of_the_whole_clip(small_clip):
    _, metadata = media.read_video(media.MediaSource.of(small_clip).between(2, 4), eight_of)
    metadata.frames_indices = [0, 10]
    assert metadata.timestamps == [2.0, 3.0]


def test_messages_may_limit_videos_and_sounds(processor, small_clip):
    def ask(**item):
        messages = [{"role": "user", "content": [item, {"type": "text", "text": "What is it?"}]}]
        return processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_tensors="pt", load_audio_from_video=item.pop("heard", False)
        )  # fmt: skip

    path = str(small_clip)
    part = ask(type="video", path=path, start=2, end=4)
    text = processor.tokenizer.decode(part["input_ids"][0])
    assert "8 frames sampled at 2.0, 2.2, 2.5, 2.7, 3.0, 3.2, 3.5, 3.7 seconds" in text
    by_url = ask(type="video_url", video_url={"url": small_clip.as_uri()}, start=2, end=4)
    assert torch.equal(by_url["pixel_values_videos"], part["pixel_values_videos"])
    assert torch.equal(by_url["input_ids"], part["input_ids"])

    source = media.MediaSource.of(path).between(2, 4)
    expected = processor.feature_extractor(source, return_tensors="pt")["input_features"]
    assert torch.equal(ask(type="video", path=path, start=2, end=4, heard=True)["input_features"], expected)
    assert torch.equal(ask(type="audio", path=path, start=2, end=4)["input_features"], expected)

    with pytest.raises(TimeRangeError, match="empty"):
        ask(type="video", path=path, start=4, end=2)
    with pytest.raises(TimeRangeError, match="ends at 6.000 seconds"):
        ask(type="video", path=path, start=10)
    with pytest.raises(TimeRangeError, match=r"item of type video to \{'start': 1\}, but only files"):
        ask(type="video", video=np.zeros((4, 8, 8, 3), np.uint8), start=1)
    with pytest.raises(TimeRangeError, match="item of type image"):
        ask(type="image", path="picture.png", end=1)


def test_a_range_without_sound_gets_the_prompt_without_sound(processor, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", 60, audio_rate=16000, channels=1, seconds=2.0, audio_start=0.0)
    messages = [{"role": "user", "content": [{"type": "video", "path": str(path), "start": 3}]}]
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, load_audio_from_video=True)
    assert "input_features" not in inputs
    source = media.MediaSource.of(path).between(3)
    from transformers_videollama import processing_video_llama

    with CaptureLogger(processing_video_llama.logger) as logs:
        processor(text="<VideoHere>", videos=[source], load_audio_from_video=True)
    assert "clip.mp4 has no sound in its range of seconds: the prompt is the one without sound" in logs.out


# Length
def test_windows_of_an_hour_are_read_without_scanning_it(hour, monkeypatch):
    sizes = []
    packet_index = media._index_packets
    monkeypatch.setattr(media, "_index_packets", lambda *args: sizes.append(packet_index(*args)) or sizes[-1])
    source = media.MediaSource.of(hour)
    first, _ = media.read_video(source.between(128, 138), eight_of, size=(32, 48))
    sound_of_first, _ = media.read_audio(source.between(128, 138))
    for start in (640, 1920, 3584):
        frames, metadata = media.read_video(source.between(start, start + 10), eight_of, size=(32, 48))
        assert metadata.total_num_frames == 100
        assert metadata.timestamps[0] == start
        assert np.array_equal(frames, first)
        waveform, _ = media.read_audio(source.between(start, start + 10))
        assert np.abs(waveform - sound_of_first).max() < 1e-3
    # A keyframe comes every 64 seconds here, and with x264 no later than every 250 frames.
    assert max(len(index.ticks) for index in sizes) < 400


def test_the_last_window_of_an_hour_ends_with_it(hour):
    source = media.MediaSource.of(hour)
    _, metadata = media.read_video(source.between(3640))
    assert metadata.total_num_frames == 80
    assert metadata.timestamps[-1] == pytest.approx(3647.9)
    with pytest.raises(MediaError, match=r"ends at 3648\.0\d* seconds"):
        media.read_video(source.between(3650))


def test_the_duration_is_that_of_the_last_frame_or_sample(tmp_path, small_clip, hour):
    assert media.read_duration(hour) == pytest.approx(3648, abs=0.1)
    assert media.read_duration(small_clip) == 6.0
    assert media.read_duration(media.MediaSource.of(small_clip).between(1.5, 4)) == 2.5
    assert media.read_duration(media.MediaSource.of(small_clip).between(1.5)) == 4.5
    for suffix in ("mkv", "ts", "mov", "h264"):
        path = write_clip(tmp_path / f"clip.{suffix}", 60)
        assert media.read_duration(path) == pytest.approx(2.4 if suffix == "h264" else 6, abs=0.1)
    still = write_clip(tmp_path / "still.mp4", 6, times=[0.0, 0.1, 0.2, 5.0, 5.1, 5.2])
    assert media.read_duration(still) == pytest.approx(5.3, abs=0.1)
    longer = write_clip(tmp_path / "longer.mp4", 20, audio_rate=16000, seconds=5.0)
    assert media.read_duration(longer) == pytest.approx(2)
    for suffix in ("wav", "mp3", "flac"):
        assert media.read_duration(write_sound(tmp_path / f"tone.{suffix}", seconds=2.5)) == pytest.approx(
            2.5, abs=0.05
        )
    with pytest.raises(TimeRangeError, match="ends at 6.000 seconds"):
        media.read_duration(media.MediaSource.of(small_clip).between(7))
    with pytest.raises(MediaError):
        media.read_duration(write_clip(tmp_path / "none.mp4", frames=0))
