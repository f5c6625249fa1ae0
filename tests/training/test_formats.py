# SPDX-License-Identifier: Apache-2.0
"""Training data of each format: what the samples are, what is refused and how it is named, and how sources are mixed."""

import json
import os
import pickle
from collections import Counter
from itertools import islice

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from transformers_videollama.exceptions import TrainingDataError
from transformers_videollama.training import formats
from transformers_videollama.training.formats import FEATURES, DataSource, load_training_data


datasets.disable_progress_bars()

WEBVID = "videoid,contentUrl,page_dir,name\n"


def load(source, tmp_path, streaming=False, **kwargs):
    """All samples, as the data set gives them."""
    dataset = load_training_data(source, streaming=streaming, cache_dir=tmp_path / "cache", **kwargs)
    assert dataset.features == FEATURES
    return list(dataset)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def write_lines(path, rows):
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def shown(sample):
    """The messages in short: a text is itself, and media are (type, path) with their range if they have one."""
    turns = []
    for message in sample["messages"]:
        items = []
        for item in message["content"]:
            if item["type"] == "text":
                assert (item["path"], item["start"], item["end"]) == (None, None, None)
                items.append(item["text"])
            else:
                assert item["text"] is None
                limits = (item["start"], item["end"])
                items.append((item["type"], item["path"], *(limits if limits != (None, None) else ())))
        turns.append((message["role"], *items))
    return turns


def refusal(source, tmp_path):
    """The error of a source, which is the same whether it is streamed."""
    with pytest.raises(TrainingDataError) as error:
        load(source, tmp_path)
    with pytest.raises(TrainingDataError) as streamed:
        load(source, tmp_path, streaming=True)
    assert str(error.value) == str(streamed.value)
    return str(error.value)


# ---------------------------------------------------------------------------------------------------------------------
# Formats
# ---------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("streaming", [False, True])
class TestFormats:
    def test_webvid(self, tmp_path, streaming):
        rows = '007,http://x,001_050,"Snow, and ""more"" snow"\n8,http://x,,Ein Hund läuft\n'
        file = write(tmp_path / "train.csv", "\ufeff" + WEBVID + rows)
        samples = load(DataSource("webvid", file), tmp_path, streaming)
        assert [sample["id"] for sample in samples] == ["007", "8"]
        assert {(sample["source"], sample["layout"]) for sample in samples} == {("webvid", "caption")}
        assert shown(samples[0]) == [
            ("user", ("video", f"{tmp_path}/001_050/007.mp4")),
            ("assistant", "snow, and more snow"),
        ]
        assert shown(samples[1]) == [("user", ("video", f"{tmp_path}/8.mp4")), ("assistant", "ein hund läuft")]

    def test_captions_of_the_first_stage_are_written_as_the_original_does(self, tmp_path, streaming):
        """The first four are what the original's `blip_caption` gave."""
        expected = {
            "A Dog, running (fast)... on the #grass!": "a dog, running fast on the grass",
            "word " * 60: "word " * 49 + "word",
            "  Two   spaces ; and ~tilde\n": "two spaces and tilde",
            'He said: "hi"*': "he said hi",
            "...": "...",
        }
        entries = [
            {"id": str(number), "image": "1.jpg", "caption": caption} for number, caption in enumerate(expected)
        ]
        file = write(tmp_path / "chat.json", json.dumps(entries))
        samples = load(DataSource("llava_cc3m", file), tmp_path, streaming)
        assert [shown(sample)[1][1] for sample in samples] == list(expected.values())

    def test_a_folder_of_webvid_is_its_files_in_order(self, tmp_path, streaming):
        write(tmp_path / "csv/b.csv", WEBVID + "2,,p,two\n")
        write(tmp_path / "csv/a.csv", WEBVID + "1,,p,one\n")
        (tmp_path / "videos").mkdir()
        samples = load(f"webvid={tmp_path}/csv,media={tmp_path}/videos", tmp_path, streaming)
        assert [sample["id"] for sample in samples] == ["1", "2"]
        assert shown(samples[0])[0] == ("user", ("video", f"{tmp_path}/videos/p/1.mp4"))

    def test_llava_cc3m(self, tmp_path, streaming):
        turns = [{"from": "human", "value": "Summarize it.\n<image>"}, {"from": "gpt", "value": "a cat"}]
        entries = [
            {"id": "GCC_1", "image": "1.jpg", "conversations": turns},
            {"id": 2, "image": "2.jpg", "caption": "a dog", "blip_caption": "an animal", "url": "http://x"},
        ]
        samples = load(DataSource("llava_cc3m", write(tmp_path / "chat.json", entries)), tmp_path, streaming)
        assert [sample["id"] for sample in samples] == ["GCC_1", "2"]
        assert {sample["layout"] for sample in samples} == {"caption"}
        assert shown(samples[0]) == [("user", ("image", f"{tmp_path}/1.jpg")), ("assistant", "a cat")]
        assert shown(samples[1]) == [("user", ("image", f"{tmp_path}/2.jpg")), ("assistant", "a dog")]

    @pytest.mark.parametrize(
        ("said", "items"),
        [
            ("<image>\nWhat is it?", (("image", None), "\nWhat is it?")),
            ("What is it?\n<image>", ("What is it?\n", ("image", None))),
            ("See <image> there", ("See ", ("image", None), " there")),
            ("<image>", (("image", None),)),
        ],
    )
    def test_llava_instruct_has_the_picture_where_its_mark_stood(self, tmp_path, streaming, said, items):
        turns = [("human", said), ("gpt", "A cat.\n"), ("human", "Sure?"), ("gpt", "Yes.")]
        conversations = [{"from": role, "value": text} for role, text in turns]
        file = write(tmp_path / "data.json", [{"id": "7", "image": "7.jpg", "conversations": conversations}])
        [sample] = load(DataSource("llava_instruct", file), tmp_path, streaming)
        items = tuple(item if isinstance(item, str) else ("image", f"{tmp_path}/7.jpg") for item in items)
        assert sample["layout"] == "conversation"
        assert shown(sample) == [
            ("user", *items),
            ("assistant", "A cat.\n"),
            ("user", "Sure?"),
            ("assistant", "Yes."),
        ]

    def test_llava_instruct_finds_pictures_by_the_names_of_coco(self, tmp_path, streaming):
        for name in ("1.jpg", "COCO_train2014_1.jpg", "COCO_train2014_2.jpg"):
            write(tmp_path / "coco" / name, "")
        turns = [{"from": "human", "value": "<image> What?"}, {"from": "gpt", "value": "A cat."}]
        entries = [{"image": name, "conversations": turns} for name in ("1.jpg", "2.jpg", "3.jpg", "http://x/2.jpg")]
        file = write(tmp_path / "data.json", entries)
        samples = load(DataSource("llava_instruct", file, tmp_path / "coco"), tmp_path, streaming)
        folder = f"{tmp_path}/coco"
        paths = [f"{folder}/1.jpg", f"{folder}/COCO_train2014_2.jpg", f"{folder}/3.jpg", "http://x/2.jpg"]
        assert [sample["messages"][0]["content"][0]["path"] for sample in samples] == paths
        assert samples[2]["id"] == "data.json, entry 3"

    def test_videochat(self, tmp_path, streaming):
        turns = [{"i": "Watch.", "q": "What happens?", "a": "It snows."}, {"i": "", "q": "Where?", "a": "Outside."}]
        file = write(tmp_path / "videochat.json", [{"video": "a/1.mp4", "QA": turns}])
        [sample] = load(DataSource("videochat", file), tmp_path, streaming)
        assert (sample["id"], sample["layout"]) == ("videochat.json, entry 1", "conversation")
        assert shown(sample) == [
            ("user", ("video", f"{tmp_path}/a/1.mp4"), "What happens?"),
            ("assistant", "It snows."),
            ("user", "Where?"),
            ("assistant", "Outside."),
        ]

    def test_minigpt4_align(self, tmp_path, streaming):
        annotations = [{"image_id": "2", "caption": "A cat."}, {"image_id": 3, "caption": "A dog."}]
        file = write(tmp_path / "align/filter_cap.json", {"annotations": annotations})
        (tmp_path / "align/image").mkdir()
        samples = load(DataSource("minigpt4_align", file), tmp_path, streaming)
        assert [(sample["id"], sample["layout"]) for sample in samples] == [
            ("2", "prompted_caption"),
            ("3", "prompted_caption"),
        ]
        assert shown(samples[0]) == [("user", ("image", f"{tmp_path}/align/image/2.jpg")), ("assistant", "A cat.")]
        assert load(DataSource("minigpt4_align", tmp_path / "align"), tmp_path, streaming) == samples

    def test_messages_of_both_files_are_the_same(self, tmp_path, streaming):
        content = [
            {"type": "video", "path": "1.mp4", "start": 2, "end": 5.5},
            {"type": "audio", "url": "http://x/1.wav"},
            {"type": "image", "image": "/abs/1.png"},
            {"type": "text", "text": "What is it?"},
        ]
        rows = [
            {
                "id": "a",
                "messages": [
                    {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
                    {"role": "user", "content": content},
                    {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
                ],
            },
            {
                "layout": "caption",
                "quality": 3,
                "messages": [
                    {"role": "user", "content": [{"type": "video", "path": "2.mp4"}]},
                    {"role": "assistant", "content": [{"type": "text", "text": "A dog."}]},
                ],
            },
        ]
        lines = write_lines(tmp_path / "data.jsonl", rows)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "data.parquet")
        samples = load(DataSource("messages", lines), tmp_path, streaming)
        assert [(sample["id"], sample["source"], sample["layout"]) for sample in samples] == [
            ("a", "messages", "chat"),
            ("data.jsonl, line 2", "messages", "caption"),
        ]
        assert shown(samples[0])[1] == (
            "user",
            ("video", f"{tmp_path}/1.mp4", 2.0, 5.5),
            ("audio", "http://x/1.wav"),
            ("image", "/abs/1.png"),
            "What is it?",
        )
        of_parquet = load(DataSource("messages", tmp_path / "data.parquet"), tmp_path, streaming)
        assert [sample["messages"] for sample in of_parquet] == [sample["messages"] for sample in samples]
        assert of_parquet[1]["id"] == "data.parquet, row 2"

    def test_texts_of_messages_may_be_plain(self, tmp_path, streaming):
        messages = [{"role": "user", "content": "Hi\n"}, {"role": "assistant", "content": "Hello"}]
        write(tmp_path / "data.jsonl", "\n" + json.dumps({"messages": messages}) + "\n\n")
        [sample] = load(f"messages={tmp_path}", tmp_path, streaming)
        assert shown(sample) == [("user", "Hi\n"), ("assistant", "Hello")]
        assert sample["id"] == "data.jsonl, line 2"

    def test_media_may_be_at_an_address(self, tmp_path, streaming):
        file = write(tmp_path / "train.csv", WEBVID + "1,,p,one\n")
        [sample] = load(f"webvid={file},media=s3://bucket/videos/", tmp_path, streaming)
        assert shown(sample)[0] == ("user", ("video", "s3://bucket/videos/p/1.mp4"))


# ---------------------------------------------------------------------------------------------------------------------
# Broken files
# ---------------------------------------------------------------------------------------------------------------------
GOOD = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
TURNS = [{"from": "human", "value": "<image> What?"}, {"from": "gpt", "value": "A cat."}]


class TestRefusals:
    @pytest.mark.parametrize(
        ("rows", "line", "reason"),
        [
            ("videoid,name\n1,one\n", 1, "expected videoid, page_dir, name"),
            ("", 1, "expected videoid, page_dir, name"),
            (WEBVID + '1,,p,"one\ntwo"\n2,,p\n', 4, "has 3 fields, expected 4"),
            (WEBVID + "1,,p,one, two\n", 2, "has 5 fields, expected 4"),
            (WEBVID + "1,,p,one\n2,,p,\n", 3, "has '' as 'name', expected a caption"),
            (WEBVID + "1,,p,one\n ,,p,two\n", 3, "has ' ' as 'videoid'"),
            (WEBVID + '1,,p,"one\n2,,p,two\n', 2, "quote that is not closed"),
        ],
    )
    def test_rows_of_csv(self, tmp_path, rows, line, reason):
        file = write(tmp_path / "train.csv", rows)
        message = refusal(DataSource("webvid", file), tmp_path)
        assert message.startswith(f"{file}, line {line}: ")
        assert reason in message

    @pytest.mark.parametrize(
        ("format", "entry", "reason"),
        [
            ("llava_cc3m", "a cat", "is 'a cat', expected an object with keys"),
            ("llava_cc3m", {"caption": "a cat"}, "has no 'image', expected the path of a picture"),
            ("llava_cc3m", {"image": "1.jpg"}, "has no 'caption', expected a caption (or 'conversations' with it)"),
            ("llava_cc3m", {"image": "1.jpg", "conversations": TURNS[:1]}, "expected human and gpt"),
            ("llava_cc3m", {"image": "1.jpg", "caption": 5}, "has 5 as 'caption'"),
            ("llava_instruct", {"conversations": TURNS}, "has no 'image'"),
            ("llava_instruct", {"image": "1.jpg", "conversations": TURNS[::-1]}, "expected human and gpt by turns"),
            (
                "llava_instruct",
                {"image": "1.jpg", "conversations": []},
                "expected a list of objects with from and value",
            ),
            ("llava_instruct", {"image": "1.jpg", "conversations": TURNS * 2}, "has 2 times <image>"),
            (
                "llava_instruct",
                {"image": "1.jpg", "conversations": [{"from": "human", "value": "What?"}, TURNS[1]]},
                "has 0 times <image>",
            ),
            (
                "llava_instruct",
                {
                    "image": "1.jpg",
                    "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "<image>"}],
                },
                "said by human",
            ),
            ("videochat", {"video": "1.mp4"}, "has no 'QA', expected a list of objects with q and a"),
            ("videochat", {"video": "1.mp4", "QA": [{"q": "What?"}]}, "has no 'a', expected an answer"),
            ("videochat", {"video": "", "QA": [{"q": "What?", "a": "That."}]}, "has '' as 'video'"),
        ],
    )
    def test_entries_of_json(self, tmp_path, format, entry, reason):
        good = {
            "llava_cc3m": {"image": "1.jpg", "caption": "a cat"},
            "llava_instruct": {"image": "1.jpg", "conversations": TURNS},
            "videochat": {"video": "1.mp4", "QA": [{"q": "What?", "a": "That."}]},
        }[format]
        file = write(tmp_path / "data.json", [good, good, entry])
        message = refusal(DataSource(format, file), tmp_path)
        assert message.startswith(f"{file}, entry 3: ")
        assert reason in message
        assert message.endswith("Mend or remove it.")

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            ({"a": 1}, "expected a JSON list"),
            ("", "expected a JSON list"),
            ("[]", "has no samples"),
            ('[{"image": "1.jpg", "caption": "a"}', "entry 1: is not valid JSON"),
            ('[{"image": "1.jpg", "caption": "a"},', "entry 2: the file ends here, and its list does not"),
            ('[{"image": "1.jpg", "caption": "a"},]', "entry 2: is not valid JSON (Expecting value"),
            ('[{"image": "1.jpg", "caption": "a"} {}]', "expected a comma or the end of the list"),
            ('[{"image": "1.jpg", "caption": "a"}, {"image": "2', "entry 2: is not valid JSON (Unterminated string"),
            ('[{"image": "1.jpg", "caption": "a"}] {}', "goes on after the end"),
            ("[" * 100_000, "entry 1: is not valid JSON (it is nested too deeply)"),
        ],
    )
    def test_files_of_json(self, tmp_path, content, reason):
        file = write(tmp_path / "data.json", content)
        message = refusal(DataSource("llava_cc3m", file), tmp_path)
        assert str(file) in message
        assert reason in message

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            ([], "has [], expected an object with a list of annotations"),
            ({"images": []}, "has the keys ['images'], expected"),
            ("{", "is not valid JSON"),
            ({"annotations": [{"caption": "a cat"}]}, "entry 1: has None as 'image_id'"),
            ({"annotations": [{"image_id": "1", "caption": " "}]}, "entry 1: has ' ' as 'caption'"),
            ({"annotations": []}, "has no samples"),
        ],
    )
    def test_annotations(self, tmp_path, content, reason):
        file = write(tmp_path / "filter_cap.json", content)
        message = refusal(DataSource("minigpt4_align", file, tmp_path), tmp_path)
        assert str(file) in message
        assert reason in message

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"messages": None}, "has None as 'messages', expected a list of objects with role and content"),
            (
                {"layout": "cpation"},
                "has 'cpation' as 'layout', expected one of chat, conversation, caption, prompted_caption",
            ),
            ({"layout": "caption"}, "expected one image or video or audio of user and one text of assistant"),
            ({"messages": GOOD["messages"][:1]}, "expected assistant, whose words are learnt, as the last"),
            ({"messages": [*GOOD["messages"], {"role": "system", "content": "x"}]}, "that of system to be the first"),
            (
                {"messages": [GOOD["messages"][0], *GOOD["messages"]], "layout": "conversation"},
                "expected user and assistant by turns",
            ),
        ],
    )
    def test_rows_of_messages(self, tmp_path, change, reason):
        file = write_lines(tmp_path / "data.jsonl", [GOOD, {**GOOD, **change}])
        message = refusal(DataSource("messages", file), tmp_path)
        assert message.startswith(f"{file}, line 2: ")
        assert reason in message

    @pytest.mark.parametrize(
        ("item", "reason"),
        [
            ("text", "is 'text', expected an object"),
            ({"type": "clip", "path": "1.mp4"}, "has 'clip' as 'type', expected text, image, video, audio"),
            ({"type": "text"}, "has None as 'text', expected text"),
            ({"type": "text", "text": "Hi", "txt": "x"}, "has ['txt'] among its keys"),
            ({"type": "video"}, "expected one path or url of its video"),
            ({"type": "video", "path": "1.mp4", "url": "http://x"}, "expected one path or url of its video"),
            ({"type": "video", "path": "1.mp4", "strat": 1}, "has ['strat'] among its keys"),
            ({"type": "image", "path": "1.png", "start": 1}, "has ['start'] among its keys"),
            ({"type": "video", "path": "1.mp4", "start": "1"}, "has '1' as 'start', expected seconds"),
            ({"type": "video", "path": "1.mp4", "start": True}, "has True as 'start', expected seconds"),
            ({"type": "audio", "path": "1.wav", "end": float("nan")}, "has nan as 'end', expected seconds"),
            ({"type": "audio", "path": "1.wav", "start": -1}, "has -1 as 'start', expected seconds"),
            ({"type": "video", "path": "1.mp4", "start": 2, "end": 2}, "expected an end after the start"),
        ],
    )
    def test_items_of_messages(self, tmp_path, item, reason):
        messages = [{"role": "user", "content": [{"type": "text", "text": "Hi"}, item]}, GOOD["messages"][1]]
        file = write_lines(tmp_path / "data.jsonl", [{"messages": messages}])
        message = refusal(DataSource("messages", file), tmp_path)
        assert message.startswith(f"{file}, line 1: message 1 has an item 2 that ")
        assert reason in message

    @pytest.mark.parametrize(
        ("message", "reason"),
        [
            ({"role": "human", "content": "x"}, "has 'human' as 'role', expected one of system, user, assistant"),
            ({"role": "assistant", "content": []}, "has [] as 'content', expected text or a list of items"),
            ({"role": "assistant"}, "has None as 'content'"),
            ({"role": "assistant", "content": " \n"}, "says nothing"),
            ({"role": "assistant", "content": [{"type": "image", "path": "x"}]}, "is of assistant and has media"),
            ({"role": "assistant", "content": "x", "tool_calls": [1]}, "has ['tool_calls'] among its keys"),
        ],
    )
    def test_messages(self, tmp_path, message, reason):
        file = write_lines(tmp_path / "data.jsonl", [{"messages": [GOOD["messages"][0], message]}])
        error = refusal(DataSource("messages", file), tmp_path)
        assert error.startswith(f"{file}, line 1: message 2 ")
        assert reason in error

    def test_lines_that_are_not_json(self, tmp_path):
        file = write(tmp_path / "data.jsonl", json.dumps(GOOD) + "\n" + json.dumps(GOOD)[:-1] + "\n")
        assert refusal(DataSource("messages", file), tmp_path).startswith(f"{file}, line 2: is not valid JSON")

    def test_bytes_that_are_not_text(self, tmp_path):
        for name, format in (("a.csv", "webvid"), ("a.json", "llava_cc3m"), ("filter_cap.json", "minigpt4_align")):
            (tmp_path / name).write_bytes(b"\xff\xfe[\x80\x81")
            message = refusal(DataSource(format, tmp_path / name, tmp_path), tmp_path)
            assert f"{tmp_path / name} cannot be read as" in message

    def test_damaged_parquet(self, tmp_path):
        file = write(tmp_path / "data.parquet", "no table")
        assert f"{file} cannot be read as Parquet" in refusal(DataSource("messages", file), tmp_path)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"text": "x"}]), file)
        assert "has the columns ['text'], expected messages" in refusal(DataSource("messages", file), tmp_path)

    def test_missing_files_and_folders_are_named(self, tmp_path):
        assert f"{tmp_path}/no.csv does not exist" in refusal(f"webvid={tmp_path}/no.csv", tmp_path)
        assert f"{tmp_path} has no *.csv" in refusal(f"webvid={tmp_path}", tmp_path)
        assert f"{tmp_path} is a folder" in refusal(f"videochat={tmp_path}", tmp_path)
        file = write(tmp_path / "train.csv", WEBVID + "1,,p,one\n")
        assert f"{tmp_path}/no, which is no folder" in refusal(f"webvid={file},media={tmp_path}/no", tmp_path)
        other = write(tmp_path / "data.txt", "")
        assert "neither .jsonl nor .parquet" in refusal(DataSource("messages", other), tmp_path)
        empty = write(tmp_path / "empty.csv", WEBVID)
        assert f"{empty} of the format webvid has no samples" in refusal(DataSource("webvid", empty), tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# Sources
# ---------------------------------------------------------------------------------------------------------------------
class TestDataSource:
    @pytest.mark.parametrize(
        ("text", "source"),
        [
            ("webvid=/x.csv", DataSource("webvid", "/x.csv")),
            ("webvid=/x.csv,media=/v,weight=100", DataSource("webvid", "/x.csv", "/v", 100.0)),
            ("webvid=/x.csv,weight=2.5,media=/v=1", DataSource("webvid", "/x.csv", "/v=1", 2.5)),
            ("messages=/a, b/x,y.jsonl", DataSource("messages", "/a, b/x,y.jsonl")),
        ],
    )
    def test_command_line(self, text, source):
        assert DataSource.parse(text) == source

    def test_home(self, monkeypatch):
        monkeypatch.setenv("HOME", "/home/me")
        source = DataSource.parse("webvid=~/x.csv,media=~/v")
        assert (source.path, source.media) == ("/home/me/x.csv", "/home/me/v")

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("/x.csv", "expected FORMAT=PATH"),
            ("webvid=", "expected FORMAT=PATH"),
            ("webvid=/x.csv,wieght=3", "expected FORMAT=PATH"),
            ("webvid=/x.csv,weight=3,weight=4", "expected FORMAT=PATH"),
            (
                "webvideo=/x.csv",
                "choose one of webvid, llava_cc3m, llava_instruct, videochat, minigpt4_align, messages",
            ),
            ("webvid=/x.csv,weight=much", "The weight of webvid is 'much': pass a number above 0"),
            ("webvid=/x.csv,weight=0", "pass a number above 0"),
            ("webvid=/x.csv,weight=nan", "pass a number above 0"),
            ("webvid=/x.csv,weight=-1", "pass a number above 0"),
            ("webvid=/x.csv,media=", "The media of webvid is ''"),
        ],
    )
    def test_command_line_refusals(self, text, reason):
        with pytest.raises(TrainingDataError, match="webvid|FORMAT") as error:
            DataSource.parse(text)
        assert reason in str(error.value)

    def test_recipe(self):
        values = {"format": "webvid", "path": "/x.csv", "media": None, "weight": 100}
        assert DataSource.from_dict(values) == DataSource("webvid", "/x.csv", None, 100.0)
        for wrong in ({"path": "/x.csv"}, {**values, "wieght": 3}, "webvid", {"format": "webvid", "path": 5}):
            with pytest.raises(TrainingDataError, match="webvid|expected a mapping"):
                DataSource.from_dict(wrong)
        with pytest.raises(TrainingDataError, match="weight of webvid is True"):
            DataSource.from_dict({**values, "weight": True})


@pytest.fixture
def two_sources(tmp_path):
    """60 videos and 10 pictures."""
    rows = "".join(f"v{number},,p,caption {number}\n" for number in range(60))
    webvid = write(tmp_path / "train.csv", WEBVID + rows)
    entries = [{"id": f"i{number}", "image": f"{number}.jpg", "caption": "a cat"} for number in range(10)]
    return webvid, write(tmp_path / "chat.json", entries)


class TestMixing:
    @pytest.mark.parametrize("streaming", [False, True])
    def test_without_weights_each_sample_comes_once(self, tmp_path, two_sources, streaming):
        webvid, cc3m = two_sources
        samples = load([f"webvid={webvid}", {"format": "llava_cc3m", "path": str(cc3m)}], tmp_path, streaming)
        assert [sample["id"] for sample in samples] == [f"v{n}" for n in range(60)] + [f"i{n}" for n in range(10)]

    @pytest.mark.parametrize("streaming", [False, True])
    def test_weights_are_the_shares(self, tmp_path, two_sources, streaming):
        webvid, cc3m = two_sources
        sources = [f"webvid={webvid},weight=100", f"llava_cc3m={cc3m},weight=24"]
        samples = load(sources, tmp_path, streaming, seed=1)
        counts = Counter(sample["source"] for sample in samples)
        assert len({sample["id"] for sample in samples}) == 70
        assert counts["webvid"] / counts["llava_cc3m"] == pytest.approx(100 / 24, rel=0.5)
        assert load(sources, tmp_path, streaming, seed=1) == samples
        assert load(sources, tmp_path, streaming, seed=2) != samples

    def test_shares_of_many_draws(self, tmp_path, two_sources):
        webvid, _ = two_sources
        rows = "".join(f"w{number},,p,x\n" for number in range(3000))
        many = write(tmp_path / "many.csv", WEBVID + rows)
        samples = load([f"webvid={many},weight=100", f"webvid={webvid},weight=24"], tmp_path)
        of_many = sum(sample["id"].startswith("w") for sample in samples)
        assert of_many / len(samples) == pytest.approx(100 / 124, abs=0.02)

    def test_some_weights_are_refused(self, tmp_path, two_sources):
        webvid, cc3m = two_sources
        message = refusal([f"webvid={webvid},weight=100", f"llava_cc3m={cc3m}"], tmp_path)
        assert f"llava_cc3m={cc3m} has no weight, and 1 of 2 sources have one" in message
        assert "no training data" in refusal([], tmp_path)

    @pytest.mark.parametrize("weight", ["", ",weight=1"])
    def test_broken_rows_of_a_mixture_are_named(self, tmp_path, two_sources, weight):
        _, cc3m = two_sources
        broken = write(tmp_path / "broken.csv", WEBVID + "1,,p,one\n2,,p\n")
        message = refusal([f"llava_cc3m={cc3m}{weight}", f"webvid={broken}{weight}"], tmp_path)
        assert message.startswith(f"{broken}, line 3: ")


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------
class TestReading:
    @pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "json"])
    def test_streams_read_no_further_than_needed(self, tmp_path, monkeypatch, kind):
        monkeypatch.setattr(formats, "CHUNK", 1000)
        if kind == "csv":
            rows = "".join(f"{number},,p,caption\n" for number in range(5000))
            source = DataSource("webvid", write(tmp_path / "a.csv", WEBVID + rows + "broken\n"))
        elif kind == "json":
            rows = ", ".join(json.dumps({"image": f"{number}.jpg", "caption": "x"}) for number in range(5000))
            source = DataSource("llava_cc3m", write(tmp_path / "a.json", f"[{rows}, broken]"))
        elif kind == "jsonl":
            file = write(tmp_path / "a.jsonl", (json.dumps(GOOD) + "\n") * 5000 + "broken\n")
            source = DataSource("messages", file)
        else:
            table = pyarrow.Table.from_pylist([GOOD] * 5000 + [{"messages": []}])
            pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
            source = DataSource("messages", tmp_path / "a.parquet")
        stream = load_training_data(source, streaming=True)
        assert len(list(islice(stream, 3000))) == 3000
        with pytest.raises(TrainingDataError, match="5001|5002"):
            list(stream)

    @pytest.mark.parametrize("chunk", [1, 2, 7, 64, 1000])
    def test_lists_are_read_alike_in_pieces_of_any_size(self, tmp_path, monkeypatch, chunk):
        monkeypatch.setattr(formats, "CHUNK", chunk)
        entries = [
            {"image": f"{n}.jpg", "caption": 'ä "quoted" ] , [ \\ ' * (n % 4 + 1), "n": [n, {}]} for n in range(50)
        ]
        for indent in (None, 2):
            file = tmp_path / f"{indent}.json"
            file.write_text("[" + json.dumps(entries, indent=indent)[1:] + " \n", encoding="utf-8")
            assert [entry for _, entry in formats._read_list(str(file))] == entries

    def test_files_are_read_again_only_if_they_change(self, tmp_path, monkeypatch):
        file = write(tmp_path / "train.csv", WEBVID + "1,,p,one\n")
        source = DataSource("webvid", file)
        assert len(load(source, tmp_path)) == 1
        read = []
        monkeypatch.setattr(formats.csv, "reader", lambda *args, **kwargs: read.append(args))
        assert len(load(source, tmp_path)) == 1
        assert not read
        monkeypatch.undo()
        write(tmp_path / "train.csv", WEBVID + "1,,p,one\n2,,p,two\n")
        assert len(load(source, tmp_path)) == 2

    def test_pictures_that_come_later_are_found(self, tmp_path):
        file = write(tmp_path / "data.json", [{"image": "1.jpg", "conversations": TURNS}])
        (tmp_path / "coco").mkdir()
        os.utime(tmp_path / "coco", (0, 0))
        source = DataSource("llava_instruct", file, tmp_path / "coco")
        [sample] = load(source, tmp_path)
        assert shown(sample)[0][1] == ("image", f"{tmp_path}/coco/1.jpg")
        write(tmp_path / "coco/COCO_train2014_1.jpg", "")
        [sample] = load(source, tmp_path)
        assert shown(sample)[0][1] == ("image", f"{tmp_path}/coco/COCO_train2014_1.jpg")

    @pytest.mark.parametrize("streaming", [False, True])
    def test_relative_paths_hold_in_any_folder(self, tmp_path, monkeypatch, streaming):
        write(tmp_path / "data/train.csv", WEBVID + "1,,p,one\n")
        monkeypatch.chdir(tmp_path)
        dataset = load_training_data("webvid=data/train.csv", streaming, cache_dir=tmp_path / "cache")
        monkeypatch.chdir("/")
        [sample] = pickle.loads(pickle.dumps(dataset))
        assert shown(sample)[0] == ("user", ("video", f"{tmp_path}/data/p/1.mp4"))
