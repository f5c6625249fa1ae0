# SPDX-License-Identifier: Apache-2.0
"""Damaged files give a correct result or an error of ours: no crash, no hang, no other error."""

import os
import zlib
from pathlib import Path

import pytest
from hypothesis import event, given, note
from hypothesis import strategies as st

from ..helpers import TINY
from . import corpus
from .checks import TRIED, Unexpected
from .profiles import tries
from .worker import Worker


# Seconds; a whole file takes less than half of one
LIMIT = 60.0
# Where a file that did harm is kept, to be looked at
KEPT = os.environ.get("VIDEO_LLAMA_FUZZ_KEPT")
USES = {"clip": ["video", "conversation", "sound"], "sound": ["sound", "video"], "picture": ["picture", "video"]}
PICTURES = (".jpg", ".png", ".webp", ".bmp", ".tiff", ".gif")
SOUNDS = (".wav", ".flac", ".mp3", ".ogg")


class Files(dict):
    """Files by name, that a report does not print."""

    def __repr__(self) -> str:
        return f"<{len(self)} files>"


class Damaged(bytes):
    """A file that a report does not print."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, bytes]:
    return Files(corpus.make(tmp_path_factory.mktemp("corpus")))


@pytest.fixture(scope="module")
def worker():
    worker = Worker(str(TINY), LIMIT)
    yield worker
    worker.close()


def kind_of(name: str) -> str:
    return "picture" if name.endswith(PICTURES) else "sound" if name.endswith(SOUNDS) else "clip"


@st.composite
def damaged(draw, files: dict[str, bytes]) -> tuple[str, bytes]:
    """A file of the corpus after one to three kinds of damage, near its beginning and end more often than elsewhere."""
    # Large files are slow, and most of what can be wrong with them can be with small ones
    small = sorted(name for name in files if len(files[name]) < 100_000)
    large = sorted(set(files) - set(small))
    name = draw(st.sampled_from(large if large and draw(st.integers(0, 9)) == 0 else small))
    data = bytearray(files[name])
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        if not data:
            break
        end = len(data) - 1
        place = draw(
            st.one_of(st.integers(0, min(end, 512)), st.integers(0, end), st.integers(max(0, end - 512), end))
        )
        length = draw(st.sampled_from([1, 2, 4, 8, 32, 200, 3000]))
        match draw(
            st.sampled_from(["bits", "bits", "bytes", "cut", "zero", "ones", "remove", "double", "insert", "join"])
        ):
            case "bits":
                for step in draw(st.lists(st.integers(0, 8 * 2000), min_size=1, max_size=4)):
                    position = (place + step // 8) % len(data)
                    data[position] ^= 1 << (step % 8)
            case "bytes":
                piece = draw(st.binary(min_size=1, max_size=16))
                data[place : place + len(piece)] = piece
            case "cut":
                del data[place:]
            case "zero":
                data[place : place + length] = bytes(length)
            case "ones":
                data[place : place + length] = b"\xff" * length
            case "remove":
                del data[place : place + length]
            case "double":
                data[place:place] = data[place : place + length]
            case "insert":
                data[place:place] = draw(st.binary(min_size=1, max_size=40))
            case "join":
                other = files[draw(st.sampled_from(small))]
                data[place:] = other[min(place, len(other)) :]
    return name, Damaged(data)


def keep(name: str, data: bytes) -> str:
    """Writes a file that did harm, and says where."""
    if KEPT is None:
        return "; set VIDEO_LLAMA_FUZZ_KEPT to a folder to keep the file"
    path = Path(KEPT) / f"{zlib.crc32(data):08x}-{name}"
    path.write_bytes(data)
    return f", kept as {path}"


def read(worker: Worker, name: str, data: bytes, use: str, form: str) -> None:
    kind, detail = worker.read(data=bytes(data), use=use, form=form, suffix=Path(name).suffix)
    TRIED[f"files as {use}", kind] += 1
    event(f"{use}: {kind}")
    if kind in ("crash", "hang", "unexpected"):
        raise Unexpected(f"{name} read as {use}, given as {form}: {kind}{keep(name, data)}\n{detail}")
    note(f"{kind}: {detail}")


@tries(ci=120, long=3500)
@given(data=st.data())
def test_damaged_files(data, files, worker):
    name, content = data.draw(damaged(files))
    use = data.draw(st.sampled_from(USES[kind_of(name)]))
    read(worker, name, content, use, form=data.draw(st.sampled_from(["bytes", "path", "file"])))


@tries(ci=40, long=400)
@given(data=st.binary(max_size=300), use=st.sampled_from(["video", "conversation", "sound", "picture"]))
def test_bytes_that_are_no_file(data, use, worker):
    read(worker, "random.bin", data, use, form="bytes")


def test_whole_files_are_read(files, worker):
    """What is damaged above is not refused for another reason."""
    for name, content in files.items():
        use = USES[kind_of(name)][0]
        found = worker.read(data=content, use=use, form="path", suffix=Path(name).suffix, is_whole=True)
        assert found == ("result", ""), name


@pytest.mark.parametrize("form", ["bytes", "file", "path"])
def test_a_file_that_crashes_decord_when_it_is_in_memory(form, files, worker):
    found = worker.read(data=files["mono.wav"][:305], use="video", form=form, suffix=".wav")
    assert found[0] == "MediaError", found[1]


@pytest.mark.parametrize(
    ("use", "kind", "detail"),
    [("crash", "crash", "signal 11"), ("hang", "hang", "in hang"), ("fail", "unexpected", "KeyError")],
)
def test_the_suite_sees_what_it_looks_for(use, kind, detail, worker, monkeypatch):
    monkeypatch.setattr(worker, "limit", 0.5 if use == "hang" else LIMIT)
    found = worker.read(data=b"", use=use, form="bytes", suffix=".mp4")
    assert found[0] == kind
    assert detail in found[1]
    # and goes on
    monkeypatch.undo()
    assert worker.read(data=b"", use="video", form="bytes", suffix=".mp4")[0] == "MediaError"
