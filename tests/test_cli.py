# SPDX-License-Identifier: Apache-2.0
"""The `videollama ask` command: what it says it saw, what it answers, and how it fails."""

import pytest
from typer.testing import CliRunner

from transformers_videollama.cli import AnswerStreamer, app

from .helpers import SAMPLE_CLIP
from .media_files import write_clip


def ask(*arguments):
    return CliRunner().invoke(app, ["ask", *map(str, arguments)])


def test_it_says_what_it_saw_and_heard_and_that_the_built_in_weights_are_random():
    result = ask(SAMPLE_CLIP, "What do you see and hear?", "--max-new-tokens", 5)

    assert result.exit_code == 0, result.output
    assert "its weights are random" in result.stderr
    assert "bouncing_ball.mp4: 8 frames from 0.0 to 5.2 of 6.0 seconds, sound in 8 segments" in result.stderr
    assert result.stdout.strip()


def test_an_answer_is_the_same_again_and_differs_with_the_seed():
    answers = [ask(SAMPLE_CLIP, "What?", "--max-new-tokens", 5, "--seed", seed).stdout for seed in (0, 0, 1)]

    assert answers[0] == answers[1] != answers[2]


def test_sound_may_be_left_out_and_the_number_of_frames_chosen():
    result = ask(SAMPLE_CLIP, "What?", "--no-audio", "--num-frames", 3, "--max-new-tokens", 2)

    assert "3 frames from 0.0 to 4.0 of 6.0 seconds, no sound" in result.stderr


def test_a_converted_checkpoint_is_used_without_a_word_of_random_weights(converted, tmp_path):
    clip = write_clip(tmp_path / "silent.mp4")
    result = ask(clip, "What?", "--model", converted, "--max-new-tokens", 2)

    assert result.exit_code == 0, result.output
    assert "random" not in result.stderr
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


@pytest.mark.parametrize("pieces", [["a dog", "###"], ["a dog#", "##"], ["a d", "og", "#", "#", "#"]])
def test_the_stop_string_is_never_shown(pieces, processor, capsys, monkeypatch):
    from rich.console import Console

    from transformers_videollama import cli

    monkeypatch.setattr(cli, "out", Console(highlight=False, soft_wrap=True))
    streamer = AnswerStreamer(processor.tokenizer, "###")
    for index, piece in enumerate(pieces):
        streamer.on_finalized_text(piece, stream_end=index == len(pieces) - 1)

    assert capsys.readouterr().out == "a dog\n"
