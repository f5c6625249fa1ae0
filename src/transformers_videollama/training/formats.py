# SPDX-License-Identifier: Apache-2.0
"""Training data of every format that Video-LLaMA was published with, and of the library's own, in one schema."""

import csv
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from math import isfinite
from numbers import Real
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from datasets import (
    Dataset,
    Features,
    IterableDataset,
    List,
    Value,
    concatenate_datasets,
    interleave_datasets,
)
from datasets.exceptions import DatasetGenerationError

from ..exceptions import TrainingDataError
from ..media import is_url
from .encoding import LAYOUTS, MEDIA_TYPES, ROLES


# What `blip_caption` takes away, and how many words it leaves
CAPTION_PUNCTUATION = str.maketrans(dict.fromkeys('.!"()*#:;~', " "))
CAPTION_WORDS = 50

# One item of a message: text has "text", media have "path" (a path or an address) and may have a range of seconds
ITEM = {
    "type": Value("string"),
    "text": Value("string"),
    "path": Value("string"),
    "start": Value("float64"),
    "end": Value("float64"),
}

# What a sample is, whatever format it comes from
FEATURES = Features(
    {
        "id": Value("string"),
        "source": Value("string"),
        "layout": Value("string"),
        "messages": List({"role": Value("string"), "content": List(ITEM)}),
    }
)

# Goes into the names of cached files: raise it whenever the same file gives other samples than before
CACHE_VERSION = 2

# Characters of a JSON file that are read at once
CHUNK = 1 << 20

# COCO's picture files as LLaVA's lists call them lack this
COCO_PREFIX = "COCO_train2014_"

IMAGE_MARK = "<image>"

SPACE = re.compile(r"\s*")


# ---------------------------------------------------------------------------------------------------------------------
# Sources
# ---------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class DataSource:
    """A file of training data, or a folder of such, and how much of the mixture it is.

    | format | files | a sample |
    |---|---|---|
    | webvid | CSV with `videoid,page_dir,name`, or a folder of these | MEDIA/page_dir/videoid.mp4 and its caption, in small letters as in the original |
    | llava_cc3m | JSON list of `{image, caption}` or `{image, conversations}` (chat.json, metadata.json) | picture and caption, likewise |
    | llava_instruct | JSON list of `{image, conversations: [{from, value}]}` | a conversation, the picture where `<image>` stood |
    | videochat | JSON list of `{video, QA: [{q, a}]}` | a conversation, the video before the first question |
    | minigpt4_align | filter_cap.json, `{annotations: [{image_id, caption}]}`, or its folder | MEDIA/image_id.jpg and its caption |
    | messages | JSONL or Parquet with `messages`, or a folder of these | what `apply_chat_template` takes |

    Columns and keys that are not named here are ignored; in `messages`, this holds for those beside `messages`, not for those
    in it. A sample is named by its `id` (WebVid: `videoid`, MiniGPT-4: `image_id`), or else by its file and place in it.

    Args:
        format: One of the above.
        path: The file or folder.
        media: Folder, or address, that the paths in the file are relative to. By default the folder of the file; for
            minigpt4_align the folder `image` in it.
        weight: Share of the mixture, relative to those of the other sources (100 and 24, say). None: each sample once.

    Raises:
        TrainingDataError: If the format is unknown, or the weight no number above 0.
    """

    format: str
    path: str
    media: str | None = None
    weight: float | None = None

    def __post_init__(self):
        if self.format not in FORMATS:
            raise TrainingDataError(
                f"Training data of the format {self.format!r} are unknown: choose one of {', '.join(FORMATS)}."
            )
        for name, value in (("path", self.path), ("media", self.media)):
            if value is None and name == "media":
                continue
            if not isinstance(value, str | os.PathLike) or not os.fspath(value):
                raise TrainingDataError(f"The {name} of {self.format} is {value!r}: pass that of a file or folder.")
            value = os.fspath(value)
            object.__setattr__(self, name, value if is_url(value) else os.path.expanduser(value))
        if self.weight is not None:
            if not _is_number(self.weight) or self.weight <= 0:
                raise TrainingDataError(
                    f"The weight of {self.format} is {self.weight!r}: pass a number above 0, or none to take each sample once."
                )
            object.__setattr__(self, "weight", float(self.weight))

    @classmethod
    def parse(cls, text: str) -> "DataSource":
        """
        Read a source as it is written on the command line: `FORMAT=PATH[,media=FOLDER][,weight=NUMBER]`.

        A path may hold commas, but not one that is followed by a word and an equals sign.

        Raises:
            TrainingDataError: If it is not written so.
        """
        format, equals, rest = text.partition("=")
        path, *options = re.split(r",(?=\w+=)", rest)
        values = dict(option.split("=", 1) for option in options)
        if not equals or not path or not set(values) <= {"media", "weight"} or len(values) < len(options):
            raise TrainingDataError(
                f"Got {text!r} for training data, expected FORMAT=PATH[,media=FOLDER][,weight=NUMBER], such as "
                "webvid=train.csv,media=videos,weight=100."
            )
        if "weight" in values:
            try:
                values["weight"] = float(values["weight"])
            except ValueError:
                pass  # refused by name below
        return cls(format, path, **values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DataSource":
        """
        Read a source from a mapping with `format`, `path` and, if wanted, `media` and `weight`.

        Raises:
            TrainingDataError: If there are other keys, or one of the first two is missing.
        """
        known = [field.name for field in fields(cls)]
        if not isinstance(values, Mapping) or not {"format", "path"} <= set(values) <= set(known):
            raise TrainingDataError(
                f"Got {values!r} for training data, expected a mapping with format and path and, if wanted, media and weight."
            )
        return cls(**values)


def load_training_data(
    sources: DataSource | str | Mapping[str, Any] | Sequence[DataSource | str | Mapping[str, Any]],
    streaming: bool = False,
    seed: int = 42,
    cache_dir: str | os.PathLike | None = None,
) -> Dataset | IterableDataset:
    """
    Training data of any formats, as one data set with the schema [`FEATURES`].

    Sources with weights are mixed at random in the ratio of these, until each sample has been drawn at least once: sources that
    run out begin anew. Sources without weights follow each other. Whether videos and pictures can be read is seen when they are.

    Args:
        sources: One source or more: [`DataSource`], or what its `parse` or `from_dict` reads.
        streaming: Read files as samples are asked for, from the beginning in each pass. Otherwise they are read once and put
            into an Arrow file on disk, which is used as long as they do not change.
        seed: Of the mixture.
        cache_dir: Where to put the Arrow files. By default where `datasets` has its own.

    Returns:
        `datasets.Dataset`, or with `streaming` `datasets.IterableDataset`.

    Raises:
        TrainingDataError: If a file or folder is missing, has a row that is not of its format (both are named), or no row at
            all; or if some sources have a weight and others none. With `streaming`, rows are looked at when they are reached.
    """
    if isinstance(sources, DataSource | str | Mapping):
        sources = [sources]
    sources = [_as_source(source) for source in sources]
    if not sources:
        raise TrainingDataError("There are no training data: name at least one file.")
    weights = [source.weight for source in sources if source.weight is not None]
    if weights and len(weights) < len(sources):
        bare = next(source for source in sources if source.weight is None)
        raise TrainingDataError(
            f"{bare.format}={bare.path} has no weight, and {len(weights)} of {len(sources)} sources have one: give a weight to "
            "all of them, or to none."
        )
    parts = [_load_source(source, streaming, cache_dir) for source in sources]
    if len(parts) == 1:
        return parts[0]
    if not weights:
        return concatenate_datasets(parts)
    probabilities = [weight / sum(weights) for weight in weights]
    return interleave_datasets(parts, probabilities, seed=seed, stopping_strategy="all_exhausted")


def _as_source(value: Any) -> DataSource:
    if isinstance(value, DataSource):
        return value
    return DataSource.parse(value) if isinstance(value, str) else DataSource.from_dict(value)


def _load_source(
    source: DataSource, streaming: bool, cache_dir: str | os.PathLike | None
) -> Dataset | IterableDataset:
    files = _find_files(source)
    media = source.media or os.path.join(os.path.dirname(files[0]), FORMATS[source.format].media)
    if not is_url(media):
        media = os.path.abspath(media)
        if not os.path.isdir(media):
            raise TrainingDataError(
                f"The media of {source.format}={source.path} should be in {media}, which is no folder: pass media=FOLDER."
            )
    kwargs = {"format": source.format, "files": files, "media": media}
    if streaming:
        return IterableDataset.from_generator(_samples, features=FEATURES, gen_kwargs=kwargs)
    kwargs["stamps"] = (CACHE_VERSION, *map(_stamp, files))
    if FORMATS[source.format].looks_for_media and not is_url(media):
        kwargs["stamps"] += (_stamp(media),)
    try:
        return Dataset.from_generator(
            _samples,
            features=FEATURES,
            gen_kwargs=kwargs,
            cache_dir=None if cache_dir is None else os.fspath(cache_dir),
        )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, TrainingDataError):
            raise error.__cause__ from None
        raise


def _find_files(source: DataSource) -> tuple[str, ...]:
    """Absolute paths of the files of a source."""
    format, path = FORMATS[source.format], os.path.abspath(source.path)
    if os.path.isfile(path):
        return (path,)
    if not os.path.isdir(path):
        raise TrainingDataError(f"{source.path} does not exist: check the path of {source.format}.")
    files = sorted(str(file) for pattern in format.patterns for file in Path(path).glob(pattern) if file.is_file())
    if not files:
        wanted = f"has no {' or '.join(format.patterns)}" if format.patterns else "is a folder"
        raise TrainingDataError(f"{source.path} {wanted}: pass the path of the file of {source.format}.")
    return tuple(files)


def _stamp(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _samples(format: str, files: tuple[str, ...], media: str, stamps: Any = None) -> Iterator[dict[str, Any]]:
    """The samples of a source, in the order of its files. `stamps` tells cached files apart."""
    locate, rules, has_any = partial(_locate, media), FORMATS[format], False
    for file in files:
        for place, entry in rules.read(file):
            try:
                if not isinstance(entry, Mapping):
                    raise TrainingDataError(f"is {_show(entry)}, expected an object with keys")
                name, layout, messages = rules.parse(entry, locate)
            except TrainingDataError as error:
                raise TrainingDataError(f"{file}, {place}: {error}. Mend or remove it.") from None
            name = f"{os.path.basename(file)}, {place}" if name is None else str(name)
            yield {"id": name, "source": format, "layout": layout, "messages": messages}
            has_any = True
    if not has_any:
        raise TrainingDataError(f"{', '.join(files)} of the format {format} has no samples: check the file.")


def _locate(media: str, path: str) -> str:
    """Where a file lies that the data call `path`."""
    if is_url(path) or os.path.isabs(path):
        return path
    return f"{media.rstrip('/')}/{path}" if is_url(media) else os.path.join(media, path)


# ---------------------------------------------------------------------------------------------------------------------
# Files: each reader gives the place of an entry for messages, and the entry
# ---------------------------------------------------------------------------------------------------------------------
@contextmanager
def _readable(file: str, what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeDecodeError, csv.Error, pyarrow.ArrowException) as error:
        raise TrainingDataError(
            f"{file} cannot be read as {what} ({error}): check the file, or copy or download it again."
        ) from error


def _read_csv(file: str, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    with _readable(file, "CSV in UTF-8"), open(file, encoding="utf-8-sig", newline="") as text:
        rows = csv.reader(text, strict=True)
        header = next(rows, [])
        missing = [name for name in columns if name not in header]
        if missing:
            raise TrainingDataError(
                f"{file}, line 1: has the columns {_show(header)}, expected {', '.join(columns)}. Name them in the first line."
            )
        while True:
            place = f"line {rows.line_num + 1}"
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                raise TrainingDataError(
                    f"{file}, {place}: is no row of CSV ({error}), such as one with a quote that is not closed. Mend it."
                ) from None
            if not row:
                continue
            if len(row) != len(header):
                raise TrainingDataError(
                    f"{file}, {place}: has {len(row)} fields, expected {len(header)}. Mend it: commas need quotes."
                )
            yield place, dict(zip(header, row))


def _read_lines(file: str) -> Iterator[tuple[str, Any]]:
    with _readable(file, "JSON lines"), open(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise TrainingDataError(
                    f"{file}, line {number}: is not valid JSON ({error}), expected one object a line. Mend or remove it."
                ) from None
            yield f"line {number}", entry


def _read_parquet(file: str) -> Iterator[tuple[str, Any]]:
    with _readable(file, "Parquet"), pyarrow.parquet.ParquetFile(file) as table:
        if "messages" not in table.schema_arrow.names:
            raise TrainingDataError(
                f"{file} has the columns {_show(table.schema_arrow.names)}, expected messages and, if wanted, id and layout."
            )
        names = [name for name in ("id", "layout", "messages") if name in table.schema_arrow.names]
        number = 0
        for batch in table.iter_batches(batch_size=256, columns=names):
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row


def _read_messages(file: str) -> Iterator[tuple[str, Any]]:
    suffix = os.path.splitext(file)[1].lower()
    if suffix not in (".jsonl", ".parquet"):
        raise TrainingDataError(
            f"{file} is neither .jsonl nor .parquet, as messages have to be: convert or rename it."
        )
    return _read_parquet(file) if suffix == ".parquet" else _read_lines(file)


def _read_list(file: str) -> Iterator[tuple[str, Any]]:
    """The entries of a JSON list of any size, of which no more than some are in memory at once."""
    decoder, number, size = json.JSONDecoder(), 1, CHUNK
    with _readable(file, "JSON in UTF-8"), open(file, encoding="utf-8-sig") as text:
        buffer, is_end = text.read(CHUNK), False
        begin = SPACE.match(buffer).end()
        if buffer[begin : begin + 1] != "[":
            raise TrainingDataError(
                f"{file} begins with {_show(buffer[begin : begin + 20])}, expected a JSON list: '[' and its entries."
            )
        begin = SPACE.match(buffer, begin + 1).end()
        is_last = buffer[begin : begin + 1] == "]"
        begin += is_last
        while not is_last:
            place = f"entry {number}"
            try:
                begin = SPACE.match(buffer, begin).end()
                entry, end = decoder.raw_decode(buffer, begin)
                end = SPACE.match(buffer, end).end()
                separator = buffer[end : end + 1]
                reason = f"{_show(buffer[end : end + 20])} after it, expected a comma or the end of the list"
            except json.JSONDecodeError as error:
                separator, reason = "", f"{error.msg}, character {error.pos - begin + 1} of the entry"
            except RecursionError:
                separator, reason = "", "it is nested too deeply"
            if separator and separator in ",]":
                yield place, entry
                begin, number, size, is_last = end + 1, number + 1, CHUNK, separator == "]"
            elif is_end:
                is_cut = begin == len(buffer)
                what = "the file ends here, and its list does not" if is_cut else f"is not valid JSON ({reason})"
                raise TrainingDataError(f"{file}, {place}: {what}. Mend it, or copy or download the file again.")
            else:
                # Twice as much each time: an entry of any size is parsed but a few times over
                more = text.read(size)
                buffer, begin, is_end, size = buffer[begin:] + more, 0, not more, 2 * size
        if (buffer[begin:] + text.read()).strip():
            raise TrainingDataError(f"{file} goes on after the end of its list: copy or download it again.")


def _read_annotations(file: str) -> Iterator[tuple[str, Any]]:
    with _readable(file, "JSON in UTF-8"), open(file, encoding="utf-8-sig") as text:
        try:
            content = json.load(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise TrainingDataError(f"{file} is not valid JSON ({error}): copy or download it again.") from None
    entries = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        found = f"the keys {_show(list(content))}" if isinstance(content, dict) else _show(content)
        raise TrainingDataError(f"{file} has {found}, expected an object with a list of annotations.")
    for number, entry in enumerate(entries, 1):
        yield f"entry {number}", entry


# ---------------------------------------------------------------------------------------------------------------------
# Entries: each parser gives the name of the sample or None, its layout and its messages
# ---------------------------------------------------------------------------------------------------------------------
Parsed = tuple[Any, str, list[dict[str, Any]]]


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text, "path": None, "start": None, "end": None}


def _media(kind: str, path: str, start: float | None = None, end: float | None = None) -> dict[str, Any]:
    return {"type": kind, "text": None, "path": path, "start": start, "end": end}


def _exchange(question: list[dict[str, Any]], answer: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": [_text(answer)]}]


def _string(entry: Mapping[str, Any], key: str, what: str = "text") -> str:
    """A text that must be there, and not blank."""
    value = entry.get(key)
    if not isinstance(value, str) or not value.strip():
        found = f"{_show(value)} as" if key in entry else "no"
        raise TrainingDataError(f"has {found} {key!r}, expected {what}")
    return value


def _list(entry: Mapping[str, Any], key: str, keys: str) -> list[Mapping[str, Any]]:
    """A list of objects that must be there, and not empty."""
    value = entry.get(key)
    if not isinstance(value, list) or not value or not all(isinstance(part, Mapping) for part in value):
        found = f"{_show(value)} as" if key in entry else "no"
        raise TrainingDataError(f"has {found} {key!r}, expected a list of objects with {keys}")
    return value


def _as_original(caption: str) -> str:
    """A caption as the original's first stage trains on it (LAVIS' `blip_caption`): small letters, most punctuation gone, at
    most 50 words. One of nothing but punctuation stays as it is."""
    words = caption.lower().translate(CAPTION_PUNCTUATION).split()
    return " ".join(words[:CAPTION_WORDS]) or caption


def _parse_webvid(row: Mapping[str, str], locate: Callable[[str], str]) -> Parsed:
    video = _string(row, "videoid", "the name of a file without .mp4")
    path = locate(os.path.join(row["page_dir"], f"{video}.mp4"))
    caption = _as_original(_string(row, "name", "a caption"))
    return video, "caption", _exchange([_media("video", path)], caption)


def _parse_llava_cc3m(entry: Mapping[str, Any], locate: Callable[[str], str]) -> Parsed:
    path = locate(_string(entry, "image", "the path of a picture"))
    if "caption" in entry or "conversations" not in entry:
        caption = _string(entry, "caption", "a caption (or 'conversations' with it)")
    else:
        turns = _list(entry, "conversations", "from and value")
        roles = [turn.get("from") for turn in turns]
        if roles != ["human", "gpt"]:
            raise TrainingDataError(
                f"has conversations of {_show(roles)}, expected human and gpt, who says the caption"
            )
        caption = _string(turns[1], "value", "a caption")
    return entry.get("id"), "caption", _exchange([_media("image", path)], _as_original(caption))


def _parse_llava_instruct(entry: Mapping[str, Any], locate: Callable[[str], str]) -> Parsed:
    image = _string(entry, "image", "the path of a picture")
    turns = _list(entry, "conversations", "from and value")
    roles = [turn.get("from") for turn in turns]
    if roles != ["human", "gpt"] * (len(turns) // 2):
        raise TrainingDataError(f"has conversations of {_show(roles)}, expected human and gpt by turns, gpt the last")
    values = [_string(turn, "value") for turn in turns]
    marks = [value.count(IMAGE_MARK) for value in values]
    if sum(marks) != 1 or sum(marks[::2]) != 1:
        raise TrainingDataError(
            f"has {sum(marks)} times {IMAGE_MARK} in its conversations, expected it once and said by human"
        )
    path, messages = _find_coco(locate(image)), []
    for question, answer in zip(values[::2], values[1::2]):
        before, mark, after = question.partition(IMAGE_MARK)
        items = [_text(before)] if before else []
        items += [_media("image", path)] if mark else []
        messages += _exchange(items + ([_text(after)] if after else []), answer)
    return entry.get("id"), "conversation", messages


def _find_coco(path: str) -> str:
    """A picture as LLaVA calls it, or as COCO does if only that exists."""
    folder, name = os.path.split(path)
    prefixed = os.path.join(folder, COCO_PREFIX + name)
    return prefixed if not is_url(path) and not os.path.exists(path) and os.path.exists(prefixed) else path


def _parse_videochat(entry: Mapping[str, Any], locate: Callable[[str], str]) -> Parsed:
    items, messages = [_media("video", locate(_string(entry, "video", "the path of a video")))], []
    for turn in _list(entry, "QA", "q and a"):
        messages += _exchange([*items, _text(_string(turn, "q", "a question"))], _string(turn, "a", "an answer"))
        items = []
    return entry.get("id"), "conversation", messages


def _parse_minigpt4_align(entry: Mapping[str, Any], locate: Callable[[str], str]) -> Parsed:
    image = entry.get("image_id")
    if isinstance(image, bool) or not isinstance(image, str | int) or image == "":
        raise TrainingDataError(f"has {_show(image)} as 'image_id', expected the name of a file without .jpg")
    question = [_media("image", locate(f"{image}.jpg"))]
    return image, "prompted_caption", _exchange(question, _string(entry, "caption", "a caption"))


def _parse_messages(row: Mapping[str, Any], locate: Callable[[str], str]) -> Parsed:
    layout = "chat" if row.get("layout") is None else row["layout"]
    if layout not in LAYOUTS:
        raise TrainingDataError(f"has {_show(layout)} as 'layout', expected one of {', '.join(LAYOUTS)}")
    messages = []
    for number, message in enumerate(_list(row, "messages", "role and content"), 1):
        try:
            messages.append(_parse_message(message, locate))
        except TrainingDataError as error:
            raise TrainingDataError(f"message {number} {error}") from None
    roles = [message["role"] for message in messages]
    if "system" in roles[1:]:
        raise TrainingDataError(f"has messages of {', '.join(roles)}, expected that of system to be the first")
    if roles[-1] != "assistant":
        raise TrainingDataError(
            f"has messages of {', '.join(roles)}, expected assistant, whose words are learnt, as the last"
        )
    _check_layout(layout, roles, messages)
    return row.get("id"), layout, messages


def _check_layout(layout: str, roles: list[str], messages: list[dict[str, Any]]) -> None:
    if layout == "conversation":
        turns = roles[1:] if roles[0] == "system" else roles
        if turns != ["user", "assistant"] * (len(turns) // 2):
            raise TrainingDataError(
                f"has messages of {', '.join(roles)}, expected user and assistant by turns in the layout conversation"
            )
    elif layout != "chat":
        kinds = [item["type"] for message in messages for item in message["content"]]
        expected = ("image",) if layout == "prompted_caption" else MEDIA_TYPES
        if roles != ["user", "assistant"] or len(kinds) != 2 or kinds[0] not in expected:
            raise TrainingDataError(
                f"has messages of {', '.join(roles)} with {', '.join(kinds)}, expected one {' or '.join(expected)} of user and "
                f"one text of assistant in the layout {layout}"
            )


def _parse_message(message: Mapping[str, Any], locate: Callable[[str], str]) -> dict[str, Any]:
    _refuse_other_keys(message, ("role", "content"))
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise TrainingDataError(f"has {_show(role)} as 'role', expected one of {', '.join(ROLES)}")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list) or not content:
        raise TrainingDataError(f"has {_show(content)} as 'content', expected text or a list of items")
    items = []
    for number, item in enumerate(content, 1):
        try:
            items.append(_parse_item(item, locate))
        except TrainingDataError as error:
            raise TrainingDataError(f"has an item {number} that {error}") from None
    if role != "user" and any(item["type"] != "text" for item in items):
        raise TrainingDataError(f"is of {role} and has media, expected text alone")
    if role == "assistant" and not "".join(item["text"] for item in items).strip():
        raise TrainingDataError("is of assistant and says nothing, expected text to learn")
    return {"role": role, "content": items}


def _parse_item(item: Any, locate: Callable[[str], str]) -> dict[str, Any]:
    if not isinstance(item, Mapping):
        raise TrainingDataError(f"is {_show(item)}, expected an object with type and text or path")
    kind = item.get("type")
    if kind == "text":
        _refuse_other_keys(item, ("type", "text"))
        if not isinstance(item.get("text"), str):
            raise TrainingDataError(f"has {_show(item.get('text'))} as 'text', expected text")
        return _text(item["text"])
    if kind not in MEDIA_TYPES:
        raise TrainingDataError(f"has {_show(kind)} as 'type', expected text, {', '.join(MEDIA_TYPES)}")
    _refuse_other_keys(item, ("type", "path", "url", kind, *(() if kind == "image" else ("start", "end"))))
    # The library takes a file under any of these names
    given = [key for key in ("path", "url", kind) if item.get(key) is not None]
    if len(given) != 1 or not isinstance(item[given[0]], str) or not item[given[0]].strip():
        raise TrainingDataError(f"is {_show(dict(item))}, expected one path or url of its {kind}")
    start, end = item.get("start"), item.get("end")
    for key, value in (("start", start), ("end", end)):
        if value is not None and (not _is_number(value) or value < 0):
            raise TrainingDataError(f"has {_show(value)} as {key!r}, expected seconds from the start of the {kind}")
    if end is not None and end <= (start or 0):
        raise TrainingDataError(f"has a range from {start or 0} to {end} seconds, expected an end after the start")
    return _media(
        kind, locate(item[given[0]]), None if start is None else float(start), None if end is None else float(end)
    )


def _refuse_other_keys(entry: Mapping[str, Any], known: Sequence[str]) -> None:
    # Parquet has a null for each key that others have
    others = [key for key, value in entry.items() if value is not None and key not in known]
    if others:
        raise TrainingDataError(f"has {_show(others)} among its keys, expected no more than {', '.join(known)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and isfinite(value)


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:99]}…"


# ---------------------------------------------------------------------------------------------------------------------
# The formats
# ---------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Format:
    """How a format is read.

    Attributes:
        read: Gives the entries of a file, each with its place.
        parse: Makes of an entry the name of the sample, its layout and its messages.
        patterns: Files that a folder stands for; none if a folder is not taken.
        media: Where media lie, seen from the folder of the file, if nothing else is said.
        looks_for_media: Whether samples depend on which media there are.
    """

    read: Callable[[str], Iterator[tuple[str, Any]]]
    parse: Callable[[Mapping[str, Any], Callable[[str], str]], Parsed]
    patterns: tuple[str, ...] = ()
    media: str = ""
    looks_for_media: bool = False


FORMATS = {
    "webvid": Format(partial(_read_csv, columns=("videoid", "page_dir", "name")), _parse_webvid, ("*.csv",)),
    "llava_cc3m": Format(_read_list, _parse_llava_cc3m),
    "llava_instruct": Format(_read_list, _parse_llava_instruct, looks_for_media=True),
    "videochat": Format(_read_list, _parse_videochat),
    "minigpt4_align": Format(_read_annotations, _parse_minigpt4_align, ("filter_cap.json",), "image"),
    "messages": Format(_read_messages, _parse_messages, ("*.jsonl", "*.parquet")),
}
