# SPDX-License-Identifier: Apache-2.0
"""The commands `videollama ask`, `chat` and `caption`: what they say they saw, what they answer, and how they fail."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from transformers_videollama import cli
from transformers_videollama.cli import app

from .helpers import SAMPLE_CLIP
from .media_files import write_clip


# What is said where the built-in model answers about something that it can't know
REMARK = "The built-in model knows only a small world of its own"
REMEDY = "videollama convert --release Video-LLaMA-2-7B-Finetuned --output DIR, and then --model DIR"


def ask(*arguments):
    return CliRunner().invoke(app, ["ask", *map(str, arguments)])


def test_it_says_what_it_saw_and_heard():
    result = ask(SAMPLE_CLIP, "What do you see and hear?", "--max-new-tokens", 5)

    assert result.exit_code == 0, result.output
    assert "bouncing_ball.mp4: 8 frames from 0.0 to 5.2 of 6.0 seconds, sound in 8 segments" in result.stderr
    assert REMARK not in result.stderr
    assert result.stdout.strip()


def test_the_built_in_model_is_read_from_its_file_and_says_the_same_again():
    network, _ = cli.load_model(None)
    answers = [ask(SAMPLE_CLIP, "What?", "--max-new-tokens", 5).stdout for _ in range(2)]

    assert network.name_or_path == str(cli.BUILT_IN)
    assert not network.training
    if not torch.cuda.is_available():
        assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert answers[0] == answers[1]


def test_what_the_built_in_model_can_not_know_is_said_before_its_answer(tmp_path):
    clip = write_clip(tmp_path / "mine.mp4")
    result = ask(clip, "What?", "--max-new-tokens", 2)

    assert result.exit_code == 0, result.output
    assert result.stderr.count(REMARK) == result.stderr.count(REMEDY) == 1
    # Both streams in the order in which they were written
    assert result.output.endswith(result.stdout)


def test_the_sample_is_known_wherever_it_lies(tmp_path, monkeypatch):
    monkeypatch.chdir(SAMPLE_CLIP.parent)
    # As in a clone, beside what is installed
    copy = shutil.copy(SAMPLE_CLIP, tmp_path / "copy.mp4")

    for path in (SAMPLE_CLIP.name, f"../assets/{SAMPLE_CLIP.name}", copy):
        assert REMARK not in ask(path, "What?", "--max-new-tokens", 1).stderr


def test_a_sampled_answer_is_the_same_again_and_differs_with_the_seed(converted):
    options = "--model", converted, "--max-new-tokens", 5
    answers = [ask(SAMPLE_CLIP, "What?", *options, "--seed", seed).stdout for seed in (0, 0, 1)]

    assert answers[0] == answers[1] != answers[2]


def test_sound_may_be_left_out_and_the_number_of_frames_chosen():
    result = ask(SAMPLE_CLIP, "What?", "--no-audio", "--num-frames", 3, "--max-new-tokens", 2)

    assert "3 frames from 0.0 to 4.0 of 6.0 seconds, no sound" in result.stderr


def test_a_converted_checkpoint_is_used_without_a_word_of_the_built_in_one(converted, tmp_path):
    clip = write_clip(tmp_path / "silent.mp4")
    result = ask(clip, "What?", "--model", converted, "--max-new-tokens", 2)

    assert result.exit_code == 0, result.output
    assert "built-in" not in result.stderr
    assert "no sound" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.mp4", "What?"], "nowhere.mp4 does not exist"),
        (["{silent}", "What?", "--audio"], "has no audio track: leave out --audio"),
        (["{text}", "What?"], "notes.mp4"),
        (["{clip}", "What?", "--model", "{folder}"], "has no config.json"),
    ],
)
def test_errors_are_one_line_and_exit_code_1(arguments, message, tmp_path):
    (tmp_path / "notes.mp4").write_text("not a video")
    places = {
        "silent": write_clip(tmp_path / "silent.mp4"),
        "text": tmp_path / "notes.mp4",
        "clip": SAMPLE_CLIP,
        "folder": tmp_path,
    }
    result = ask(*(argument.format(**places) for argument in arguments))

    assert result.exit_code == 1
    assert f"Error: {message}" in result.stderr or message in result.stderr
    assert "Traceback" not in result.output


# chat


def chat(*arguments, lines: str):
    return CliRunner().invoke(app, ["chat", *map(str, arguments), "--max-new-tokens", "4"], input=lines)


def test_chat_answers_a_question_on_each_line_of_a_pipe():
    result = chat(SAMPLE_CLIP, lines="What do you see?\n\n/frames\nAnd then?\n")

    assert result.exit_code == 0, result.output
    assert "8 frames from 0.0 to 5.2 of 6.0 seconds, sound in 8 segments" in result.stderr
    first, frames, second = result.stdout.splitlines()
    assert first.strip()
    assert frames == f"{SAMPLE_CLIP}: 0.00, 0.75, 1.50, 2.25, 3.00, 3.75, 4.50, 5.25"
    assert second.strip()


def test_chat_samples_by_its_seed(converted):
    answers = [chat("--model", converted, "--seed", seed, lines="What?\n").stdout for seed in (0, 0, 1)]

    assert answers[0] == answers[1] != answers[2]


def test_chat_says_once_what_the_built_in_model_can_not_know(converted, tmp_path):
    clips = [write_clip(tmp_path / f"{name}.mp4") for name in "ab"]
    result = chat(SAMPLE_CLIP, *clips, lines="What?\nAnd then?\n")
    assert result.exit_code == 0, result.output
    assert result.stderr.count(REMARK) == 1
    assert result.output.endswith(result.stdout)

    assert REMARK not in chat(SAMPLE_CLIP, lines="What?\nAnd then?\n").stderr
    assert "built-in" not in chat(*clips, "--model", converted, lines="What?\n").stderr


def test_chat_says_so_too_of_what_is_added_and_of_a_conversation_that_was_kept(tmp_path):
    clip, kept = write_clip(tmp_path / "a.mp4"), tmp_path / "kept"
    added = chat(SAMPLE_CLIP, lines=f"What?\n/add {clip}\n/save {kept}\nAnd here?\n/load {kept}\nAnd then?\n")
    loaded = chat(lines=f"/load {kept}\nAnd then?\n")

    for result in (added, loaded):
        assert result.exit_code == 0, result.output
        assert result.stderr.count(REMARK) == 1
    # After the first answer, which is about the sample
    assert added.stderr.index("a.mp4: 8 frames") < added.stderr.index(REMARK)


def test_chat_goes_on_after_an_error_and_tells_it_at_the_end():
    result = chat(lines="/add nowhere.mp4\nWhat?\n")

    assert result.exit_code == 1
    assert "Error: nowhere.mp4 does not exist" in result.stderr
    assert result.stdout.strip()


def test_chat_takes_bytes_that_are_no_text_for_an_error():
    result = chat(lines=b"What?\n\xff\xfe\n")

    assert result.exit_code == 1
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)


def test_chat_about_a_clip_that_can_not_be_read_does_not_begin(monkeypatch):
    monkeypatch.setattr(cli, "load_model", lambda model: pytest.fail("the model was loaded"))
    result = chat(SAMPLE_CLIP, "nowhere.mp4", lines="What?\n")

    assert result.exit_code == 1
    assert "Error: nowhere.mp4 does not exist" in result.stderr


# caption


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "clips").mkdir()
    for name in "abc":
        write_clip(tmp_path / "clips" / f"{name}.mp4")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def caption(*arguments):
    return CliRunner().invoke(app, ["caption", *map(str, arguments), "--max-new-tokens", "2"])


def test_caption_writes_a_line_for_each_clip_of_a_folder_and_does_none_twice(folder, monkeypatch):
    result = caption("clips", "--batch-size", 2, "--num-frames", 2)

    assert result.exit_code == 0, result.output
    assert "Captions written to captions.jsonl: 3" in result.stderr
    assert "3/3" in result.stderr
    assert result.stderr.count(REMARK) == result.stderr.count(REMEDY) == 1
    lines = [json.loads(line) for line in Path("captions.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == ["clips/a.mp4", "clips/b.mp4", "clips/c.mp4"]
    assert {line["model"] for line in lines} == {"built-in"}

    monkeypatch.setattr(cli, "load_model", lambda model: pytest.fail("the model was loaded"))
    again = caption("clips/*.mp4", "--num-frames", 2)
    assert again.exit_code == 0, again.output
    assert "3 of 3 files have their caption in captions.jsonl already." in again.stderr
    other = caption("clips", "--num-frames", 2, "--question", "Who?")
    assert other.exit_code == 1
    assert "Error: captions.jsonl was made with question" in other.stderr


def test_caption_of_the_sample_or_by_another_model_says_nothing_of_the_built_in_one(folder, converted):
    sample = caption(SAMPLE_CLIP, "--out", "sample.jsonl")
    other = caption("clips/a.mp4", "--model", converted, "--out", "other.jsonl")

    for result in (sample, other):
        assert result.exit_code == 0, result.output
        assert "built-in" not in result.stderr


@pytest.mark.parametrize("num_workers", [0, 2])
def test_caption_lists_what_failed_and_tries_it_again(num_workers, folder):
    Path("clips/b.mp4").write_text("no video")
    arguments = ["clips", "nowhere.mp4", "--out", "out/all.jsonl", "--num-workers", num_workers]
    result = caption(*arguments)

    assert result.exit_code == 1
    assert "Captions written to out/all.jsonl: 2" in result.stderr
    end = result.stderr.partition("Files that failed, see out/all.failed.jsonl: 2\n")[2].splitlines()
    assert "b.mp4 is neither a video nor a picture nor a sound" in end[0]
    assert "nowhere.mp4 does not exist" in end[1]

    write_clip(folder / "clips" / "b.mp4")
    write_clip(folder / "nowhere.mp4")
    again = caption(*arguments)
    assert again.exit_code == 0, again.output
    assert len(Path("out/all.jsonl").read_text().splitlines()) == 4
    assert sorted(path.name for path in Path("out").glob("*.jsonl")) == ["all.jsonl"]


def test_caption_stopped_by_ctrl_c_says_how_to_go_on(folder, monkeypatch):
    caption_files = cli.caption_files

    def stop_after_one(*arguments, on_done, **kwargs):
        def stop(result):
            on_done(result)
            raise KeyboardInterrupt

        return caption_files(*arguments, on_done=stop, **kwargs)

    monkeypatch.setattr(cli, "caption_files", stop_after_one)
    result = caption("clips", "--batch-size", 1)
    assert result.exit_code == 130
    assert "Stopped. The same command goes on from here." in result.stderr
    monkeypatch.undo()
    monkeypatch.chdir(folder)

    assert "1 of 3 files have their caption" in caption("clips", "--batch-size", 1).stderr
    assert len(Path("captions.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["*.avi"], "No file matches *.avi"),
        (["clips", "--out", "clips/a.mp4"], "Line 1 of clips/a.mp4 is none of file, caption"),
        (["clips", "--model", "clips"], "clips has no config.json"),
    ],
)
def test_caption_tells_what_it_can_not_do_in_one_line(arguments, message, folder):
    before = (folder / "clips" / "a.mp4").read_bytes()
    result = caption(*arguments)

    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert (folder / "clips" / "a.mp4").read_bytes() == before
