# SPDX-License-Identifier: Apache-2.0
"""Decoding: any source, either decoder, the original's samples, and an error that helps where nothing can be read."""

import functools
import http.server
import io
import pickle
import sys
import threading

import av
import fsspec
import numpy as np
import PIL.Image
import pytest
import torch
from transformers.testing_utils import CaptureLogger
from transformers.video_utils import VideoMetadata

from transformers_videollama import media
from transformers_videollama.exceptions import MediaError, MediaNotFoundError, NoAudioError, VideoLlamaError

from .helpers import clip, expected
from .media_files import hide_frames, sound, turn, write_clip, write_sound


CLIPS = ["dog_barking", "boat", "silence_girl", "birthday"]
BACKENDS = ["decord", "pyav"]


def eight_of(metadata: VideoMetadata) -> np.ndarray:
    return np.arange(0, metadata.total_num_frames, metadata.total_num_frames / 8).astype(int)[:8]


@pytest.fixture(scope="module")
def small_clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("media") / "small.mp4", audio_rate=44100)


@pytest.fixture
def without_decord(monkeypatch):
    monkeypatch.setitem(sys.modules, "decord", None)


# Sources
def test_a_path_its_bytes_and_an_open_file_give_the_same_frames_and_sound(small_clip):
    data = small_clip.read_bytes()
    with open(small_clip, "rb") as file:
        sources = [
            str(small_clip), small_clip, small_clip.as_uri(), data, bytearray(data), memoryview(data),
            io.BytesIO(data), file, media.MediaSource.of(data),
        ]  # fmt: skip
        frames, metadata = media.read_video(small_clip)
        waveform, _ = media.read_audio(small_clip)
        for source in sources:
            assert np.array_equal(media.read_video(source)[0], frames)
            assert media.read_video(source)[1].timestamps == metadata.timestamps
            assert np.array_equal(media.read_audio(source)[0], waveform)
            assert media.has_audio(source)


def test_a_file_object_is_read_from_its_beginning_and_left_where_it_was(small_clip):
    file = io.BytesIO(small_clip.read_bytes())
    file.seek(100)
    assert len(media.read_video(file)[0]) == 30
    assert file.tell() == 100


def test_urls_are_fetched(small_clip):
    with fsspec.open("memory://media/small.mp4", "wb") as file:
        file.write(small_clip.read_bytes())
    assert len(media.read_video("memory://media/small.mp4")[0]) == 30

    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=small_clip.parent)
    handler.log_message = lambda *args: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert len(media.read_video(f"{address}/small.mp4")[0]) == 30
        with pytest.raises(MediaNotFoundError, match=r"http://127.*/other.mp4 does not exist"):
            media.read_video(f"{address}/other.mp4")
        server.shutdown()


def test_a_url_that_cannot_be_fetched_says_which_and_why():
    with pytest.raises(MediaError, match=r"http://127.0.0.1:9/a.mp4 could not be fetched .* download the file"):
        media.read_video("http://127.0.0.1:9/a.mp4")
    with pytest.raises(MediaNotFoundError, match="memory://none.mp4 does not exist"):
        media.read_audio("memory://none.mp4")


def test_a_missing_file_is_both_a_media_error_and_a_file_not_found_error(tmp_path):
    for read in (media.read_video, media.read_audio, media.read_image, media.has_audio):
        with pytest.raises(MediaNotFoundError, match="none.mp4 does not exist: check the path") as caught:
            read(tmp_path / "none.mp4")
        assert isinstance(caught.value, FileNotFoundError)
        assert isinstance(caught.value, VideoLlamaError)
        assert isinstance(caught.value, ValueError)


def test_folders_empty_files_text_mode_and_other_objects_are_refused(tmp_path):
    with pytest.raises(MediaError, match="is a folder"):
        media.read_video(tmp_path)
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(MediaError, match="empty.mp4 is empty"):
        media.read_video(tmp_path / "empty.mp4")
    with pytest.raises(MediaError, match="opened in text mode"):
        media.read_video(io.StringIO("text"))
    with pytest.raises(TypeError, match="got a int, expected a path"):
        media.read_video(3)


def test_names_of_long_sources_are_cut():
    with pytest.raises(MediaNotFoundError) as caught:
        media.read_video("A" * 100000)
    assert len(str(caught.value)) < 1000


# Video
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CLIPS)
def test_frames_are_those_of_the_original(name, backend):
    facts, tensors = expected(name)
    frames, metadata = media.read_video(clip(name), eight_of, size=(224, 224), backend=backend)
    assert metadata.frames_indices == facts["frame_indices"]
    assert metadata.total_num_frames == facts["n_frames"]
    assert metadata.fps == pytest.approx(facts["fps"])
    times = ", ".join(str(round(time, 1)) for time in metadata.timestamps)
    assert f"The video contains 8 frames sampled at {times} seconds. " == facts["message"]
    if "frames_uint8" in tensors:
        assert np.array_equal(frames, tensors["frames_uint8"].permute(1, 2, 3, 0).numpy())


@pytest.mark.parametrize("size", [(224, 224), (50, 33), None])
@pytest.mark.parametrize("name", CLIPS)
def test_both_decoders_give_the_same_pixels(name, size):
    by_decord, metadata = media.read_video(clip(name), eight_of, size=size, backend="decord")
    by_pyav, metadata_of_pyav = media.read_video(clip(name), eight_of, size=size, backend="pyav")
    assert np.array_equal(by_decord, by_pyav)
    assert metadata.timestamps == metadata_of_pyav.timestamps
    assert (metadata.video_backend, metadata_of_pyav.video_backend) == ("decord", "pyav")
    assert (metadata.height, metadata.width) == by_decord.shape[1:3]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("faststart.mp4", {"movflags": "faststart"}),
        ("fragmented.mp4", {"movflags": "frag_keyframe+empty_moov"}),
        ("clip.mkv", {}),
        ("clip.ts", {}),
    ],
)
def test_frames_are_counted_where_the_container_does_not_say(tmp_path, name, options):
    path = write_clip(tmp_path / name, frames=30, options=options)
    for backend in (None, "pyav"):
        frames, metadata = media.read_video(path, backend=backend)
        assert metadata.total_num_frames == len(frames) == 30


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_frames_without_a_clock_are_counted_by_decoding(tmp_path, codec):
    path = write_clip(tmp_path / f"clip.{'m4v' if codec == 'mpeg4' else 'h264'}", frames=30, codec=codec)
    frames, metadata = media.read_video(path, lambda metadata: [0, 15, 29], backend="pyav")
    assert metadata.total_num_frames == 30
    assert np.diff(frames.mean(axis=(1, 2, 3))).min() > 30


@pytest.mark.parametrize("backend", BACKENDS)
def test_frames_come_in_the_order_asked_for_and_may_repeat(small_clip, backend):
    frames, _ = media.read_video(small_clip, backend=backend)
    chosen, metadata = media.read_video(small_clip, lambda metadata: [20, 3, 3], backend=backend)
    assert np.array_equal(chosen, frames[[20, 3, 3]])
    assert metadata.timestamps == [2.0, 0.3, 0.3]


def test_jumping_to_keyframes_gives_the_frames_of_decoding_them_all():
    every_frame, _ = media.read_video(clip("birthday"), size=(32, 32), backend="pyav")
    wanted = [5, 130, 131, 400]
    chosen, _ = media.read_video(clip("birthday"), lambda metadata: wanted, size=(32, 32), backend="pyav")
    assert np.array_equal(chosen, every_frame[wanted])


@pytest.mark.parametrize("backend", BACKENDS)
def test_times_of_a_variable_frame_rate_are_those_of_the_decoder(tmp_path, backend):
    times = [0.0, 0.1, 0.2, 1.0, 1.1, 1.2, 3.0, 3.1]
    path = write_clip(tmp_path / "variable.mp4", frames=8, times=times)
    _, metadata = media.read_video(path, backend=backend)
    assert metadata.timestamps == pytest.approx(times, abs=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_times_count_from_the_first_frame(tmp_path, backend):
    path = write_clip(tmp_path / "late.mp4", frames=5, times=[0.5, 0.6, 0.7, 0.8, 0.9])
    assert media.read_video(path, backend=backend)[1].timestamps == [0.0, 0.1, 0.2, 0.3, 0.4]


@pytest.mark.parametrize("degrees", [90, 180, 270])
@pytest.mark.parametrize("size", [(40, 32), None])
def test_a_clip_filmed_upright_stands_upright(tmp_path, degrees, size):
    lying = write_clip(tmp_path / "lying.mp4", frames=8, size=(64, 48))
    path = turn(lying, tmp_path / "turned.mp4", degrees)
    frames, _ = media.read_video(path, size=size)
    assert np.array_equal(frames, media.read_video(path, size=size, backend="pyav")[0])
    assert frames.shape[1:3] == (size or ((64, 48) if degrees == 180 else (48, 64)))
    unturned, _ = media.read_video(lying, size=frames.shape[1:3])
    turned_back = np.rot90(media.read_video(path)[0], degrees // 90, axes=(1, 2))
    assert np.abs(turned_back.astype(int) - media.read_video(lying)[0]).max() < 30
    assert np.abs(frames.astype(int) - unturned).max() > 60


@pytest.mark.parametrize(("first", "last"), [(1.0, 3.0), (0.0, 1.0)])
def test_frames_that_an_edit_list_hides_do_not_count(tmp_path, small_clip, first, last):
    cut = hide_frames(small_clip, tmp_path / "cut.mp4", first, last)
    frames, metadata = media.read_video(cut)
    whole, _ = media.read_video(small_clip)
    assert metadata.video_backend == "pyav"
    assert metadata.timestamps[0] == 0.0
    assert np.array_equal(frames, whole[round(10 * first) : round(10 * last)])


@pytest.mark.usefixtures("without_decord")
def test_pyav_serves_where_decord_is_not_installed(small_clip):
    assert media.read_video(small_clip)[1].video_backend == "pyav"
    with pytest.raises(ImportError, match="pip install 'decord==0.6.0'"):
        media.read_video(small_clip, backend="decord")


def test_pyav_serves_where_decord_fails(tmp_path):
    path = write_clip(tmp_path / "clip.ts")
    with pytest.raises(MediaError, match=r"decord cannot decode .*clip.ts"):
        media.read_video(path, backend="decord")
    assert media.read_video(path)[1].video_backend == "pyav"


def test_frames_are_found_when_decord_is_set_to_return_torch_tensors(small_clip):
    import decord

    frames, _ = media.read_video(small_clip)
    decord.bridge.set_bridge("torch")
    try:
        assert np.array_equal(media.read_video(small_clip, backend="decord")[0], frames)
    finally:
        decord.bridge.set_bridge("native")


@pytest.mark.parametrize("backend", [None, *BACKENDS])
def test_text_named_mp4_is_no_video(tmp_path, backend):
    path = tmp_path / "notes.mp4"
    path.write_text("not a video at all\n" * 50)
    with pytest.raises(MediaError, match="notes.mp4"):
        media.read_video(path, backend=backend)
    with pytest.raises(MediaError, match=r"notes.mp4 cannot be decoded as sound .* re-encode"):
        media.read_audio(path)
    with pytest.raises(MediaError, match="notes.mp4"):
        media.has_audio(path)


@pytest.mark.parametrize("options", [{}, {"movflags": "faststart"}, {"movflags": "frag_keyframe+empty_moov"}])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_mp4_is_refused_not_taken_for_a_shorter_one(tmp_path, options, share):
    whole = write_clip(tmp_path / "whole.mp4", frames=60, audio_rate=44100, options=options)
    data = whole.read_bytes()
    half = tmp_path / "half.mp4"
    half.write_bytes(data[: int(share * len(data))])
    for read in (media.read_video, media.read_audio):
        with pytest.raises(MediaError, match=r"half.mp4 .*ownload it again"):
            read(half)


def test_a_truncated_recording_is_refused():
    with open(clip("dog_barking"), "rb") as file:
        data = file.read()
    # decord alone takes this for a clip of 61 frames.
    with pytest.raises(
        MediaError, match=r"<bytes, 227205 bytes> is cut short: it has 227205 of at least 757353 bytes"
    ):
        media.read_video(data[: int(0.3 * len(data))])


@pytest.mark.parametrize("backend", [None, *BACKENDS])
def test_a_video_without_frames_or_without_sampled_frames_is_refused(tmp_path, small_clip, backend):
    path = write_clip(tmp_path / "none.mp4", frames=0, audio_rate=44100)
    with pytest.raises(MediaError, match="none.mp4"):
        media.read_video(path, backend=backend)
    with pytest.raises(MediaError, match="no frame was sampled"):
        media.read_video(small_clip, lambda metadata: [], backend=backend)


def test_sound_is_no_video(tmp_path):
    with pytest.raises(MediaError, match="tone.wav has no video track"):
        media.read_video(write_sound(tmp_path / "tone.wav"))


def test_frames_beyond_the_end_and_unknown_backends_are_refused(small_clip):
    with pytest.raises(ValueError, match="has frames 0 to 29, but frames 5 to 30 were asked for"):
        media.read_video(small_clip, lambda metadata: [5, 30])
    with pytest.raises(ValueError, match="expected 'decord', 'pyav'"):
        media.read_video(small_clip, backend="opencv")


# Metadata
def test_metadata_behave_as_the_library_expects():
    metadata = media.VideoLlamaVideoMetadata(
        total_num_frames=20, fps=10.0, frames_indices=[0, 10], frame_times=[0.0, 1.5], source="clip.mp4"
    )
    assert metadata.timestamps == [0.0, 1.5]
    assert metadata["fps"] == 10.0
    assert VideoMetadata(**metadata).timestamps == [0.0, 1.0]
    assert pickle.loads(pickle.dumps(metadata)).timestamps == [0.0, 1.5]
    metadata.update({"frames_indices": [0, 5, 10]})
    assert metadata.timestamps == [0.0, 0.5, 1.0]
    with pytest.raises(ValueError, match="timestamps"):
        _ = media.VideoLlamaVideoMetadata(total_num_frames=20, frames_indices=[0]).timestamps


# Sound
@pytest.mark.parametrize("name", ["dog_barking", "boat"])
def test_waveforms_are_those_of_the_original(name):
    facts, tensors = expected(name)
    waveform, rate = media.read_audio(clip(name))
    assert rate == 16000
    assert waveform.dtype == np.float32
    assert waveform.shape == (facts["audio"]["channels"], facts["audio"]["samples_16k"])
    assert np.abs(waveform - tensors["waveform_16k"].numpy()).max() < 1e-6
    native, rate = media.read_audio(clip(name), sampling_rate=None)
    assert (rate, native.shape[1]) == (facts["audio"]["sample_rate"], facts["audio"]["samples"])
    if "native_first_second" in tensors:
        assert np.array_equal(native[:, :rate], tensors["native_first_second"].numpy())


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3"])
def test_sound_files_of_any_rate_keep_their_channels(tmp_path, suffix, channels, rate):
    path = write_sound(tmp_path / f"tone.{suffix}", rate, channels, seconds=1.0)
    waveform, returned_rate = media.read_audio(path)
    assert returned_rate == 16000
    assert waveform.shape[0] == channels
    assert waveform.shape[1] == pytest.approx(16000, abs=2500 if suffix == "mp3" else 1)
    native, returned_rate = media.read_audio(path, sampling_rate=None)
    assert returned_rate == rate
    if suffix != "mp3":
        assert np.abs(native - sound(rate, channels, 1.0)).max() < 1e-4


def test_a_silent_video_says_so_and_what_to_do(tmp_path):
    path = write_clip(tmp_path / "silent.mp4")
    assert not media.has_audio(path)
    message = "silent.mp4 has no audio track: pass load_audio_from_video=False, or add a file with sound"
    with pytest.raises(NoAudioError, match=message):
        media.read_audio(path)


def test_damaged_packets_of_sound_are_skipped_with_a_warning(small_clip):
    data = bytearray(small_clip.read_bytes())
    with av.open(str(small_clip)) as container:
        packets = [packet for packet in container.demux(audio=0) if packet.size]
    for packet in packets[20:23]:
        data[packet.pos : packet.pos + packet.size] = np.random.default_rng(1).bytes(packet.size)
    with CaptureLogger(media.logger) as logs:
        waveform, _ = media.read_audio(bytes(data))
    assert "audio packets could not be decoded and were skipped" in logs.out
    assert 40000 < waveform.shape[1] < media.read_audio(small_clip)[0].shape[1]


@pytest.mark.parametrize("package", ["torchaudio", "av", "fsspec"])
def test_a_missing_package_gives_the_command_that_installs_it(monkeypatch, tmp_path, package):
    path = write_sound(tmp_path / "tone.wav")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"pip install .*{package}"):
        media.read_audio("memory://tone.wav" if package == "fsspec" else path)


# Pictures
def test_pictures_come_upright_and_in_their_own_mode(tmp_path):
    picture = PIL.Image.new("L", (20, 10))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to view
    picture.save(tmp_path / "turned.png", exif=exif)
    image = media.read_image(tmp_path / "turned.png")
    assert (image.size, image.mode) == ((10, 20), "L")


def test_what_is_no_picture_is_refused(tmp_path, small_clip):
    with pytest.raises(MediaError, match=r"small.mp4 cannot be decoded as an image \(no format that Pillow knows\)"):
        media.read_image(small_clip)
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(buffer, "JPEG")
    with pytest.raises(MediaError, match="truncated"):
        media.read_image(buffer.getvalue()[:1000])


def test_only_undecoded_things_are_sources(small_clip):
    for source in ("clip.mp4", small_clip, b"", io.BytesIO(), media.MediaSource("clip.mp4", "clip.mp4")):
        assert media.is_media_source(source)
    for value in (np.zeros(3), torch.zeros(3), [], 3, PIL.Image.new("RGB", (2, 2)), None):
        assert not media.is_media_source(value)


@pytest.mark.parametrize("backend", ["decord", "pyav"])
def test_times_are_counted_from_the_first_frame(backend, tmp_path):
    times = [1.0 + index * (index + 1) / 20 for index in range(12)]
    path = write_clip(tmp_path / "late.mkv", frames=12, times=times)

    _, metadata = media.read_video(path, backend=backend)

    assert metadata.timestamps == pytest.approx([time - 1.0 for time in times], abs=2e-3)
