# SPDX-License-Identifier: Apache-2.0
"""Long clips are covered by windows, each with the frames and the sound of its own time."""

import os
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from transformers import AutoProcessor

from transformers_videollama import ContextLengthError, VideoLlamaChat, VideoLlamaForConditionalGeneration, windows_of
from transformers_videollama.media import read_duration
from transformers_videollama.windows import Window, split_into_windows

from .helpers import SAMPLE_CLIP
from .media_files import write_clip


GREEDY = {"do_sample": False, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def model(converted):
    return VideoLlamaForConditionalGeneration.from_pretrained(converted, dtype=torch.float32)


@pytest.fixture(scope="module")
def processor(converted):
    return AutoProcessor.from_pretrained(converted)


@pytest.mark.parametrize("duration", [0.5, 30.0, 31.0, 55.0, 95.5, 3600.0])
@pytest.mark.parametrize(("seconds", "overlap"), [(30.0, 5.0), (10.0, 0.0), (7.0, 6.5)])
@pytest.mark.parametrize("max_windows", [None, 1, 7])
def test_windows_cover_a_clip_evenly(duration, seconds, overlap, max_windows):
    windows = split_into_windows(duration, seconds, overlap, max_windows)
    lengths = [window.end - window.start for window in windows]

    assert windows[0].start == 0
    assert windows[-1].end == pytest.approx(duration)
    assert max(lengths) - min(lengths) < 1e-6
    assert lengths[0] >= min(seconds, duration) - 1e-6
    for left, right in zip(windows, windows[1:]):
        assert left.start < right.start
        assert left.end - right.start >= overlap - 1e-6
    if max_windows is None:
        assert lengths[0] == pytest.approx(min(seconds, duration))
    else:
        assert len(windows) <= max_windows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0,), "have lengths above 0"),
        ((10.0, -1.0), "have lengths above 0"),
        ((float("nan"),), "have lengths above 0"),
        ((10.0, 5.0, 5.0), "from 0 to less than a window"),
        ((10.0, 5.0, -1.0), "from 0 to less than a window"),
        ((10.0, 5.0, 1.0, 0), "max_windows must be at least 1"),
    ],
)
def test_windows_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        split_into_windows(*arguments)


def test_the_content_of_a_message_names_the_times(tmp_path):
    content = windows_of(SAMPLE_CLIP, seconds=3, overlap=1)

    assert [item["text"] for item in content if item["type"] == "text"] == [
        "From 0.0 to 3.0 seconds:",
        "From 2.0 to 5.0 seconds:",
        "From 3.0 to 6.0 seconds:",
    ]
    assert [(item["start"], item["end"]) for item in content if item["type"] == "video"] == [(0, 3), (2, 5), (3, 6)]
    assert Window(59.96, 90).label == "From 60.0 to 90.0 seconds:"


def test_frames_and_sound_of_a_window_are_those_of_its_time(processor, tmp_path):
    clip = write_clip(tmp_path / "silent.mp4")
    duration = read_duration(clip)
    content = windows_of(clip, seconds=duration / 2, overlap=0)
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": "What?"}]}]
    inputs = processor.apply_chat_template(
        messages,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"num_frames": 4, "return_metadata": True},
    )

    assert inputs["pixel_values_videos"].shape[:2] == (2, 4)
    first, second = (metadata.timestamps for metadata in inputs["video_metadata"])
    assert max(first) < duration / 2 <= min(second)
    assert max(second) < duration


@pytest.mark.parametrize("audio", [None, False])
def test_a_session_answers_as_a_run_of_the_same_messages(audio, model, processor):
    chat = VideoLlamaChat(model, processor, **GREEDY)
    items = chat.add_windows(SAMPLE_CLIP, seconds=3, overlap=1, num_frames=4, audio=audio)
    answer = chat.ask("What happens?")
    content = [*windows_of(SAMPLE_CLIP, seconds=3, overlap=1), {"type": "text", "text": "What happens?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        load_audio_from_video=audio is None,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"num_frames": 4},
    )
    output_ids = model.generate(**inputs, **GREEDY)

    assert len(items) == 3
    assert answer == processor.decode(output_ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def test_windows_that_the_context_has_no_room_for_say_how_many_fit(model, processor):
    chat = VideoLlamaChat(model, processor, **GREEDY)
    chat.add_image(torch.zeros(3, 28, 28, dtype=torch.uint8))
    with pytest.raises(
        ContextLengthError, match=r"\d+ windows take about \d+ tokens, .* pass max_windows=\d+ or less"
    ) as error:
        chat.add_windows(SAMPLE_CLIP, seconds=0.1, overlap=0)
    fitting = int(str(error.value).split("max_windows=")[1].split()[0])

    assert len(chat.pending) == 1
    assert len(chat.add_windows(SAMPLE_CLIP, seconds=0.1, overlap=0, max_windows=fitting)) == fitting
    assert chat.ask("What?") is not None


def write_hour(path: Path) -> Path:
    """An hour of small frames, one a second, with sound."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=1, options={"preset": "ultrafast", "g": "10"})
        video.width = video.height = 64
        audio = container.add_stream("aac", rate=16000, layout="mono")
        for second in range(3600):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), second % 256, dtype=np.uint8), format="rgb24")
            container.mux(video.encode(frame))
            wave = np.sin(np.arange(16000, dtype=np.float32) * (0.05 + second % 7 / 50))[None]
            sound = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            sound.sample_rate, sound.pts = 16000, second * 16000
            container.mux(audio.encode(sound))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
    return path


@pytest.mark.slow
def test_an_hour_is_answered_in_the_memory_of_a_window(model, processor, tmp_path, monkeypatch):
    clip = write_hour(tmp_path / "hour.mp4")
    chat = VideoLlamaChat(model, processor, **GREEDY)
    memory = []
    add_video = chat.add_video
    monkeypatch.setattr(chat, "add_video", lambda *a, **k: (add_video(*a, **k), memory.append(resident()))[0])
    items = chat.add_windows(clip, max_windows=12)

    assert len(items) == 12
    assert items[0].times[0] == 0
    assert items[-1].times[-1] > 3400
    assert all(item.has_audio for item in items)
    assert chat.ask("What happens?") is not None
    # Five minutes of sound are 20 MB, some times over while they are resampled; an hour would be twelve times that
    assert max(memory) - max(memory[:2]) < 200 * 2**20


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
