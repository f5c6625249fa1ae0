# SPDX-License-Identifier: Apache-2.0
"""Which files are meant, and what is in them."""

import av
import numpy as np
import PIL.Image
import pytest

from transformers_videollama import MediaError, MediaNotFoundError
from transformers_videollama.files import expand_files, media_kind

from .media_files import write_clip, write_sound


def moving_picture(path, count):
    frames = [PIL.Image.new("RGB", (16, 16), (40 * index, 0, 0)) for index in range(count)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    return path


def sound_with_a_cover(path):
    with av.open(str(path), "w", format="mp3") as container:
        audio = container.add_stream("libmp3lame", rate=44100, layout="mono")
        cover = container.add_stream("png", rate=1)
        cover.width = cover.height = 16
        cover.pix_fmt = "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        resampler = av.AudioResampler(audio.format, audio.layout, audio.rate, frame_size=audio.frame_size)
        for chunk in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(audio.encode(chunk))
        container.mux(audio.encode())
    return path


@pytest.mark.parametrize(
    ("write", "kind"),
    [
        (lambda folder: write_clip(folder / "a.mp4"), "video"),
        (lambda folder: write_clip(folder / "a.mp4", audio_rate=16000), "video"),
        (lambda folder: write_sound(folder / "a.wav"), "audio"),
        (lambda folder: write_sound(folder / "a.flac"), "audio"),
        (lambda folder: sound_with_a_cover(folder / "a.mp3"), "audio"),
        (lambda folder: moving_picture(folder / "a.gif", 3), "video"),
        (lambda folder: moving_picture(folder / "a.gif", 1), "image"),
        (lambda folder: moving_picture(folder / "a.webp", 1), "image"),
        (lambda folder: moving_picture(folder / "a.png", 1), "image"),
        (lambda folder: moving_picture(folder / "a.tiff", 1), "image"),
    ],
    ids=["silent", "heard", "wav", "flac", "cover", "moving gif", "still gif", "webp", "png", "tiff"],
)
def test_a_file_is_what_it_holds_under_any_name(write, kind, tmp_path):
    path = write(tmp_path)
    unnamed = path.rename(tmp_path / "unnamed")
    misnamed = tmp_path / "a.jpg"
    misnamed.write_bytes(unnamed.read_bytes())

    assert media_kind(unnamed) == kind
    assert media_kind(unnamed.read_bytes()) == kind
    assert media_kind(misnamed) == kind


@pytest.mark.parametrize("name", ["notes.mp4", "notes.txt", "notes"])
def test_text_is_nothing_of_that(name, tmp_path):
    (tmp_path / name).write_text("Some notes.\n" * 50)

    with pytest.raises(MediaError, match=f"{name} is neither a video nor a picture nor a sound"):
        media_kind(tmp_path / name)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("b.mp4", "a.MKV", "sub/c.webm", "notes.txt", "cover.jpg", ".hidden.mp4", ".trash/d.mp4"):
        (tmp_path / "clips" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clips" / name).write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "[1].mp4").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("names", "files"),
    [
        (["clips"], ["clips/a.MKV", "clips/b.mp4", "clips/sub/c.webm"]),
        (["clips/*.mp4"], ["clips/b.mp4"]),
        (["clips/*"], ["clips/a.MKV", "clips/b.mp4", "clips/cover.jpg", "clips/notes.txt"]),
        (["clips/**/*.webm"], ["clips/sub/c.webm"]),
        (["./clips/b.mp4", "clips", "./clips/*.mp4"], ["clips/b.mp4", "clips/a.MKV", "clips/sub/c.webm"]),
        (["clips/notes.txt", "nowhere.mp4"], ["clips/notes.txt", "nowhere.mp4"]),
        (["[1].mp4"], ["[1].mp4"]),
        (["https://host/a.mp4?id=1"], ["https://host/a.mp4?id=1"]),
    ],
)
def test_folders_and_patterns_stand_for_files(names, files, folder):
    assert expand_files(names) == files


@pytest.mark.parametrize(
    ("name", "message"), [("empty", "empty holds no videos"), ("clips/*.avi", r"No file matches clips/\*\.avi")]
)
def test_what_stands_for_no_file_is_an_error(name, message, folder):
    with pytest.raises(MediaNotFoundError, match=message):
        expand_files([name])
