# SPDX-License-Identifier: Apache-2.0
"""Captions of many files: what a line says, and that nothing is lost or done twice, whatever happens."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from filelock import FileLock
from PIL import Image
from transformers import AutoProcessor, GenerationConfig

from transformers_videollama import VideoLlamaError, VideoLlamaForConditionalGeneration, captioning, media
from transformers_videollama.captioning import (
    QUESTION,
    Caption,
    FailedFile,
    JsonLines,
    Sample,
    caption_files,
    uncaptioned,
)

from .helpers import ROOT, SAMPLE_CLIP, TINY
from .media_files import write_clip, write_sound


@pytest.fixture(scope="module")
def model(converted):
    """The original's tiny checkpoint, whose answers depend on all that it is given."""
    model = VideoLlamaForConditionalGeneration.from_pretrained(converted, dtype=torch.float32)
    model.generation_config = GenerationConfig.from_pretrained(TINY)
    return model


@pytest.fixture(scope="module")
def processor(converted):
    return AutoProcessor.from_pretrained(converted)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with clips a to e, each brighter than the one before."""
    write_clip(tmp_path / "a.mp4")
    for index, name in enumerate("bcde", 1):
        write_clip(tmp_path / f"{name}.mp4", frames=10 + 10 * index)
    monkeypatch.chdir(tmp_path)
    return tmp_path


CLIPS = ["a.mp4", "b.mp4", "c.mp4", "d.mp4", "e.mp4"]


@pytest.fixture
def run(model, processor, folder):
    """Captions files into `captions.jsonl`, in batches of two."""

    def run(files=CLIPS, output="captions.jsonl", **kwargs):
        kwargs = {"batch_size": 2, "max_new_tokens": 3, "model_name": "tiny", **kwargs}
        return caption_files(files, output, model, processor, **kwargs)

    return run


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_line_says_what_was_looked_at(run, folder):
    Image.new("RGB", (32, 32), "red").save(folder / "dot.png")
    run([SAMPLE_CLIP, "a.mp4", "dot.png"], num_frames=3)

    heard, silent, picture = lines(folder / "captions.jsonl")
    assert all(line.pop("caption") for line in (heard, silent, picture))
    settings = {"question": QUESTION, "model": "tiny", "num_frames": 3}
    assert heard == {"file": SAMPLE_CLIP.as_posix(), "times": [0.0, 2.0, 4.0], "has_audio": True, **settings}
    assert silent == {"file": "a.mp4", "times": [0.0, 1.0, 2.0], "has_audio": False, **settings}
    assert picture == {"file": "dot.png", "times": [], "has_audio": False, **settings}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_mixed_batch_gives_each_file_what_it_gets_alone(num_workers, run, model, processor, folder):
    Image.radial_gradient("L").convert("RGB").save(folder / "ring.png")
    write_sound(folder / "tone.wav")
    write_clip(folder / "short.mp4", frames=3)
    kinds = {
        str(SAMPLE_CLIP): "video",
        "ring.png": "image",
        "short.mp4": "video",
        "tone.wav": "audio",
        "a.mp4": "video",
    }
    report = run(kinds, batch_size=5, num_workers=num_workers, max_new_tokens=6)

    expected = []
    for file, kind in kinds.items():
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": [{"type": kind, "path": file}, {"type": "text", "text": QUESTION}]}],
            load_audio_from_video=file == str(SAMPLE_CLIP),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        output_ids = model.generate(**inputs, do_sample=False, max_new_tokens=6)
        answer = processor.decode(output_ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        expected.append(answer.strip())
    assert [caption.caption for caption in report.captions] == expected
    assert len(set(expected)) > 2


def test_sound_can_be_left_out_or_demanded(run, folder):
    write_clip(folder / "heard.mp4", audio_rate=16000)
    without = run(["heard.mp4"], "without.jsonl", audio=False)
    demanded = run(["heard.mp4", "a.mp4"], "demanded.jsonl", audio=True)

    assert [caption.has_audio for caption in without.captions] == [False]
    assert [caption.has_audio for caption in demanded.captions] == [True]
    assert [failure.reason for failure in demanded.failed] == ["Sound was asked of a.mp4, but it has no audio track."]


# Going on


def test_a_later_run_does_what_is_new_and_writes_it_behind(run, folder):
    first = run(["c.mp4", "a.mp4"])
    before = (folder / "captions.jsonl").read_bytes()
    second = run(CLIPS)

    assert (folder / "captions.jsonl").read_bytes().startswith(before)
    assert [line["file"] for line in lines(folder / "captions.jsonl")] == ["c.mp4", "a.mp4", "b.mp4", "d.mp4", "e.mp4"]
    assert (first.num_skipped, second.num_skipped) == (0, 2)


def test_a_file_is_known_by_any_way_to_write_its_path(run, folder, monkeypatch):
    run(["a.mp4", "./a.mp4", str(folder / "a.mp4")])
    assert len(lines(folder / "captions.jsonl")) == 1

    (folder / "sub").mkdir()
    monkeypatch.chdir(folder / "sub")
    assert run(["../a.mp4"], "../captions.jsonl").num_skipped == 1
    # Another file of the same name is another file
    write_clip(folder / "sub" / "a.mp4")
    assert run(["a.mp4"], "../captions.jsonl").num_skipped == 0
    assert [line["file"] for line in lines(folder / "captions.jsonl")] == ["a.mp4", "sub/a.mp4"]


def test_an_interrupted_run_keeps_its_batches_and_is_gone_on_with(run, folder):
    whole = run(output="whole.jsonl")

    def interrupt(result):
        if result.file == "d.mp4":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(on_done=interrupt, num_workers=2)
    assert [line["file"] for line in lines(folder / "captions.jsonl")] == ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]

    report = run()
    assert [caption.file for caption in report.captions] == ["e.mp4"]
    assert (folder / "captions.jsonl").read_bytes() == (folder / "whole.jsonl").read_bytes()
    assert len(whole.captions) == 5


@pytest.mark.parametrize("kept", [0, 1, 5, 30, -20, -2, -1])
def test_a_line_cut_short_is_done_again_or_completed(kept, run, folder):
    run()
    whole = (folder / "captions.jsonl").read_bytes()
    start = whole[:-1].rindex(b"\n") + 1
    (folder / "captions.jsonl").write_bytes(whole[: start + kept] if kept >= 0 else whole[:kept])
    report = run()

    assert (folder / "captions.jsonl").read_bytes() == whole
    # With all but its line break, the line is whole
    assert [caption.file for caption in report.captions] == ([] if kept == -1 else ["e.mp4"])


def test_each_batch_is_on_disk_before_the_next_begins(run, model, folder, monkeypatch):
    events, generate, fsync = [], type(model).generate, os.fsync

    def record_generate(self, *args, **kwargs):
        events.append("generate")
        return generate(self, *args, **kwargs)

    def record_fsync(descriptor):
        events.append(f"fsync {len(lines(folder / 'captions.jsonl'))}")
        fsync(descriptor)

    monkeypatch.setattr(type(model), "generate", record_generate)
    monkeypatch.setattr(os, "fsync", record_fsync)
    run(on_done=lambda result: events.append(result.file))

    assert events == [
        *("generate", "fsync 2", "a.mp4", "b.mp4"),
        *("generate", "fsync 4", "c.mp4", "d.mp4"),
        *("generate", "fsync 5", "e.mp4"),
    ]


@pytest.mark.slow
def test_a_killed_command_leaves_no_processes_and_is_gone_on_with(folder):
    command = [
        sys.executable,
        "-c",
        "from transformers_videollama.cli import app; app()",
        "caption",
        ".",
        "--batch-size",
        "1",
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (folder / "captions.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout
    process.send_signal(signal.SIGKILL)
    process.wait()
    result = subprocess.run(command, capture_output=True, text=True)

    assert result.returncode == 0, result.stderr
    assert sorted(line["file"] for line in lines(folder / "captions.jsonl")) == CLIPS
    assert len(children.split()) >= 2
    assert not any(os.path.exists(f"/proc/{pid}") for pid in children.split())


# Failures


def test_a_file_that_fails_is_kept_with_its_reason_until_it_succeeds(run, folder):
    (folder / "b.mp4").rename(folder / "good.mp4")
    (folder / "b.mp4").write_text("no video")
    report = run([*CLIPS, "nowhere.mp4"])

    failures = lines(folder / "captions.failed.jsonl")
    assert [line["file"] for line in lines(folder / "captions.jsonl")] == ["a.mp4", "c.mp4", "d.mp4", "e.mp4"]
    assert [failure["file"] for failure in failures] == ["b.mp4", "nowhere.mp4"]
    assert [failure.reason for failure in report.failed] == [failure["reason"] for failure in failures]
    assert "neither a video nor a picture nor a sound" in failures[0]["reason"]
    assert "nowhere.mp4 does not exist" in failures[1]["reason"]

    (folder / "good.mp4").replace(folder / "b.mp4")
    run(["b.mp4"])  # nowhere.mp4 is not among the files, and stays
    assert [failure["file"] for failure in lines(folder / "captions.failed.jsonl")] == ["nowhere.mp4"]

    write_clip(folder / "nowhere.mp4")
    assert run([*CLIPS, "nowhere.mp4"]).failed == []
    assert not (folder / "captions.failed.jsonl").exists()


def test_a_file_that_fails_again_is_kept_once(run, folder):
    for _ in range(3):
        run(["a.mp4", "nowhere.mp4"])

    assert len(lines(folder / "captions.failed.jsonl")) == 1


def test_failures_of_a_run_that_was_ended_are_not_lost(run, folder):
    def interrupt(result):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(["nowhere.mp4", "a.mp4", "b.mp4"], on_done=interrupt)
    assert [failure["file"] for failure in lines(folder / "captions.failed.jsonl")] == ["nowhere.mp4"]


def test_a_batch_that_the_model_refuses_is_done_one_by_one(run, model, folder, monkeypatch):
    generate, sizes = type(model).generate, []

    def refuse(self, input_ids, pixel_values_videos, **kwargs):
        sizes.append(len(input_ids))
        if len(input_ids) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")
        if pixel_values_videos.shape[1] == 3:
            raise RuntimeError("shape mismatch")
        return generate(self, input_ids=input_ids, pixel_values_videos=pixel_values_videos, **kwargs)

    write_clip(folder / "short.mp4", frames=3)
    expected = run(["a.mp4", "b.mp4"], "expected.jsonl").captions
    monkeypatch.setattr(type(model), "generate", refuse)
    report = run(["a.mp4", "short.mp4", "b.mp4"], batch_size=3)

    assert sizes == [3, 1, 1, 1]
    assert report.captions == expected
    assert report.failed == [FailedFile("short.mp4", "RuntimeError: shape mismatch")]


def read_or_crash(name: str, file: str) -> Sample:
    if file == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    return Sample(name, {}, [], False)


@pytest.mark.parametrize("crashing", [[0], [3], [3, 4], [9], range(10)])
def test_a_file_that_crashes_its_reader_fails_alone(crashing):
    files = [(str(index), "crash" if index in crashing else "fine") for index in range(10)]
    with captioning.read_ahead(files, read_or_crash, num_workers=2, ahead=4) as results:
        results = list(results)

    assert [getattr(result, "name", None) or result.file for result in results] == [name for name, _ in files]
    failed = [result for result in results if isinstance(result, FailedFile)]
    assert [int(failure.file) for failure in failed] == list(crashing)
    assert all("The process that read it crashed" in failure.reason for failure in failed)


# What is not touched


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": "Who?"}, f"was made with question '{QUESTION}', and now 'Who\\?' is given"),
        ({"model_name": "other"}, "was made with model 'tiny', and now 'other' is given"),
        ({"num_frames": 4}, "was made with num_frames 8, and now 4 is given"),
        ({"audio": True}, "has captions without sound, such as that of a.mp4"),
    ],
)
def test_captions_of_another_kind_are_not_mixed_in(change, message, run, folder):
    run(["a.mp4"])
    before = (folder / "captions.jsonl").read_bytes()

    with pytest.raises(VideoLlamaError, match=message):
        run(["b.mp4"], **change)
    with pytest.raises(VideoLlamaError, match=message):
        uncaptioned(["a.mp4"], "captions.jsonl", **{"question": QUESTION, "model_name": "tiny", **change})
    assert (folder / "captions.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [SAMPLE_CLIP.read_bytes(), b"A note without a line break", b'{"file": "a.mp4"}\n', b"[1]\n", b'{"name": "a'],
    ids=["clip", "note", "other fields", "list", "cut short elsewhere"],
)
def test_a_file_that_is_none_of_captions_is_refused_as_it_is(content, run, folder):
    (folder / "captions.jsonl").write_bytes(content)

    with pytest.raises(VideoLlamaError, match=r"Line \d+ of captions.jsonl is none of file, caption, times"):
        run()
    assert (folder / "captions.jsonl").read_bytes() == content


def test_fields_that_a_user_added_stay(run, folder):
    run(["a.mp4"])
    line = {**lines(folder / "captions.jsonl")[0], "checked": True}
    (folder / "captions.jsonl").write_text(json.dumps(line) + "\n")
    run(["a.mp4", "b.mp4"])

    assert lines(folder / "captions.jsonl")[0] == line


def test_two_runs_do_not_write_to_one_output(run, folder, monkeypatch):
    monkeypatch.setattr(captioning, "LOCK_SECONDS", 0)
    with FileLock(folder / ".captions.jsonl.lock"), pytest.raises(VideoLlamaError, match="Another run is writing to"):
        run()
    assert len(run().captions) == 5


@pytest.mark.slow
def test_workers_that_are_spawned_read_as_forked_ones(run, folder, monkeypatch):
    captions = run(output="forked.jsonl", num_workers=2).captions
    spawn = multiprocessing.get_context("spawn")
    monkeypatch.setattr(captioning.multiprocessing, "get_context", lambda: spawn)
    # A spawned worker imports what is handed to it, and the working folder is not on its path
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    assert run(output="spawned.jsonl", num_workers=2).captions == captions


def test_a_file_that_hangs_a_worker_fails_and_the_others_go_on(run, folder, monkeypatch):
    def hang(media, *_):
        time.sleep(60 if media.name == "b.mp4" else 0)
        return read(media, *_)

    read = media._read_video_pyav
    monkeypatch.setattr(media, "_read_video_pyav", hang)
    monkeypatch.setattr(media, "import_decord", lambda: (_ for _ in ()).throw(ImportError()))
    monkeypatch.setattr(media.logger, "warning_once", lambda _: None)
    monkeypatch.setenv("VIDEO_LLAMA_DECODE_TIMEOUT", "5")
    report = run(num_workers=2)

    assert [failure.file for failure in report.failed] == ["b.mp4"]
    assert "5 seconds" in report.failed[0].reason
    assert [line["file"] for line in lines(folder / "captions.jsonl")] == ["a.mp4", "c.mp4", "d.mp4", "e.mp4"]


# Lines


CAPTION = Caption("ä.mp4", 'A "dog"\n犬', [0.0, 1.5], True, "What?", "tiny", 2)


def test_a_line_cut_at_any_byte_costs_itself_alone(tmp_path):
    JsonLines(tmp_path / "whole", Caption).append([CAPTION, CAPTION])
    whole = (tmp_path / "whole").read_bytes()
    one = len(whole) // 2
    for end in range(len(whole) + 1):
        (tmp_path / "cut").write_bytes(whole[:end])
        cut = JsonLines(tmp_path / "cut", Caption)
        num_whole = (end + 1) // one  # a line that lacks nothing but its end counts
        assert cut.repair() == [CAPTION] * num_whole
        assert (tmp_path / "cut").read_bytes() == whole[: num_whole * one]


@pytest.mark.parametrize("rest", [b"\0" * 100, b'{"file": "a.m' + b"\0" * 100])
def test_the_zeros_that_a_power_failure_leaves_are_removed(rest, tmp_path):
    file = JsonLines(tmp_path / "captions.jsonl", Caption)
    file.append([CAPTION])
    whole = file.path.read_bytes()
    file.path.write_bytes(whole + rest)

    assert file.repair() == [CAPTION]
    assert file.path.read_bytes() == whole


def test_words_stay_readable_and_names_that_are_no_text_come_back(tmp_path):
    unspeakable = FailedFile(os.fsdecode(b"caf\xe9.mp4"), "犬")
    file = JsonLines(tmp_path / "failed.jsonl", FailedFile)
    file.append([unspeakable])

    assert file.read() == ([unspeakable], b"")
    assert "犬" in file.path.read_text(encoding="utf-8")
