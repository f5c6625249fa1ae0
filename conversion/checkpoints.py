# SPDX-License-Identifier: Apache-2.0
"""Reads checkpoints of strangers: names and shapes first, values only when they are asked for, code never."""

import hashlib
import io
import json
import os
import pickletools
import re
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME, logging

from transformers_videollama.exceptions import CheckpointError


# The pickle of ImageBind, the file with the most tensors, has 0.2 MB
MAX_PICKLE_BYTES = 16 * 2**20
MAX_JSON_BYTES = 64 * 2**20
# What a pickle of tensors calls by name. torch's own list is longer, and has calls that fill the memory.
NEEDED_GLOBALS = re.compile(
    r"collections OrderedDict"
    r"|torch\._utils _rebuild_(tensor_v2|parameter)"
    r"|torch(\.storage)? (Untyped|Half|BFloat16|Float|Double|Long|Int|Short|Char|Byte|Bool)Storage"
)


def name_of(path: Path) -> str:
    """Name of a file or folder; of a snapshot in the Hub's cache, that of the repository."""
    path = Path(os.path.abspath(path))
    return path.parents[1].name.split("--")[-1] if path.parent.name == "snapshots" else path.name


def read_json(path: Path) -> dict:
    """A JSON object.

    Raises:
        CheckpointError: If the file is missing, too large or too deep, or holds something else.
    """
    try:
        if (size := path.stat().st_size) > MAX_JSON_BYTES:
            raise CheckpointError(f"{path} has {size} bytes, expected {MAX_JSON_BYTES} at most for a JSON file.")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} could not be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected an object.")
    return content


def check_pickle(start: bytes, path: Path, count: int = 1) -> None:
    """Refuses pickles that call anything but what tensors are made of. Nothing is run.

    Args:
        start: The first pickle and those that follow it.
        path: Named in the error.
        count: Of the pickles.
    """
    stream = io.BytesIO(start)
    for _ in range(count):
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name not in ("GLOBAL", "INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4"):
                continue
            if not isinstance(argument, str) or not NEEDED_GLOBALS.fullmatch(argument):
                called = argument.replace(" ", ".") if isinstance(argument, str) else "something it does not spell out"
                raise CheckpointError(
                    f"{path} was refused: its pickle calls {called}, which tensors alone do not need. Nothing of it was run. "
                    "Get the file from where it was released, or save its tensors alone where you trust it."
                )


def check_archive(path: Path) -> Counter[int]:
    """Refuses a zip that is not as `torch.save` writes it: packed, overlapping, or with paths that leave it.

    Returns:
        How many of its tensors have how many bytes.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
                raise CheckpointError(
                    f"{path} was refused: {entry.filename!r} is compressed ({entry.compress_size} bytes that unpack to "
                    f"{entry.file_size}); torch.save stores tensors as they are."
                )
            if entry.filename.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", entry.filename):
                raise CheckpointError(f"{path} was refused: its entry {entry.filename!r} leaves the archive.")
        if (total := sum(entry.file_size for entry in entries)) > (size := path.stat().st_size):
            raise CheckpointError(f"{path} was refused: its entries claim {total} bytes, the file has {size}.")
        pickles = [entry for entry in entries if entry.filename.endswith("data.pkl")]
        if len(pickles) != 1:
            raise CheckpointError(
                f"{path} is an archive with {len(pickles)} data.pkl, expected one: no checkpoint of torch."
            )
        if pickles[0].file_size > MAX_PICKLE_BYTES:
            raise CheckpointError(
                f"{path} was refused: its pickle has {pickles[0].file_size} bytes without any tensor's values, expected "
                f"{MAX_PICKLE_BYTES} at most."
            )
        check_pickle(archive.read(pickles[0]), path)
        return Counter(entry.file_size for entry in entries if "/data/" in entry.filename)


def is_archive(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def load_pickled(path: Path, device: str) -> dict[str, torch.Tensor]:
    """Tensors of a `.pth` or `.bin` file: on "meta" names and shapes alone, on "cpu" mapped from the file."""
    checkpoint = torch.load(path, map_location=device, weights_only=True, mmap=is_archive(path))
    tensors = checkpoint.get("model", checkpoint) if isinstance(checkpoint, dict) else None
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in tensors.items()
    ):
        found = f" It holds {', '.join(map(repr, list(checkpoint)[:5]))}." if isinstance(checkpoint, dict) else ""
        raise CheckpointError(f"{path} does not hold tensors by name, at its top or under 'model'.{found}")
    return tensors


def check_extents(tensors: dict[str, torch.Tensor], path: Path, stored: Counter[int] | None) -> None:
    """Refuses tensors that claim more values than the file holds.

    Args:
        tensors: On the meta device.
        path: Of the file.
        stored: How many of its tensors have how many bytes, where the file says so.
    """
    size = path.stat().st_size
    storages = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage.nbytes()
        end = tensor.storage_offset() * tensor.element_size() + tensor.nbytes
        if end > min(storage.nbytes(), size) or (stored is not None and storage.nbytes() not in stored):
            raise CheckpointError(
                f"{path} was refused: {name!r} claims the shape {tuple(tensor.shape)}, {tensor.nbytes} bytes of "
                f"{storage.nbytes()}, which the file of {size} does not hold."
            )
    if (total := sum(storages.values())) > size or (stored is not None and Counter(storages.values()) - stored):
        raise CheckpointError(
            f"{path} was refused: its tensors claim {total} bytes, which the file of {size} does not hold."
        )


def check_beginning(path: Path) -> None:
    """Says what a file is that is no checkpoint, where its beginning tells."""
    with path.open("rb") as file:
        beginning = file.read(64)
    if not beginning:
        raise CheckpointError(f"{path} is empty: copy or download it again.")
    if beginning.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a pointer of Git LFS, not the file: run `git lfs pull` in its folder.")
    if beginning.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise CheckpointError(f"{path} is a web page, not a checkpoint: download the file itself.")


@dataclass
class CheckpointFile:
    """One file of tensors: `.pth`, `.bin` or `.safetensors`.

    Attributes:
        path: Of the file.
        tensors: Its tensors by name, on the meta device: shapes and precisions.
    """

    path: Path
    tensors: dict[str, torch.Tensor] = field(init=False)

    def __post_init__(self):
        if not self.path.is_file():
            raise CheckpointError(f"{self.path} does not exist.")
        check_beginning(self.path)
        try:
            if self.is_safetensors:
                tensors = self._load(None)
                self.tensors = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
                return
            stored = None
            if is_archive(self.path):
                stored = check_archive(self.path)
            else:
                # torch's format before 1.6: magic number, version, machine, the object, its storages
                with self.path.open("rb") as file:
                    check_pickle(file.read(MAX_PICKLE_BYTES), self.path, count=5)
            self.tensors = load_pickled(self.path, "meta")
            check_extents(self.tensors, self.path, stored)
        except CheckpointError:
            raise
        except Exception as error:
            raise self._unreadable(error) from error

    @property
    def is_safetensors(self) -> bool:
        return self.path.suffix.lower() == ".safetensors"

    def _unreadable(self, error: Exception) -> CheckpointError:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        return CheckpointError(f"{self.path} could not be read as a checkpoint: {reason}")

    def _load(self, names: Iterable[str] | None) -> dict[str, torch.Tensor]:
        if self.is_safetensors:
            with safe_open(self.path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in (file.keys() if names is None else names)}
        tensors = load_pickled(self.path, "cpu")
        return tensors if names is None else {name: tensors[name] for name in names}

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Tensors mapped from the file: they take memory when they are used, and give it back when they are dropped.

        A file of torch before 1.6 can't be mapped, and is read whole.
        """
        try:
            return self._load(names)
        except Exception as error:
            raise self._unreadable(error) from error


class Checkpoint:
    """Tensors of one file, or of several that an index lists.

    Args:
        path: A `.pth`, `.bin` or `.safetensors` file, an `….index.json`, or a folder in Hugging Face format that holds one of
            them.

    Attributes:
        name: Of the file or folder.
        tensors: Its tensors by name, on the meta device.

    Raises:
        CheckpointError: If a file is missing, can't be read, is refused, or holds something else than named tensors.
    """

    def __init__(self, path: Path):
        self.path = path
        self.name = name_of(path)
        self.is_folder = path.is_dir()
        self.listed: set[str] = set()  # what an index says there is
        self.files = [CheckpointFile(file) for file in self.find_files()]
        self.file_of: dict[str, CheckpointFile] = {}
        for file in self.files:
            for name in file.tensors:
                if name in self.file_of:
                    raise CheckpointError(
                        f"{name} stands in {self.file_of[name].path} and in {file.path}: remove one."
                    )
                self.file_of[name] = file
        if absent := sorted(self.listed - self.file_of.keys()):
            raise CheckpointError(
                f"{self.path} lists {absent[0]!r}, but no shard holds it: download the shards again."
            )
        self.tensors = {name: tensor for file in self.files for name, tensor in file.tensors.items()}

    def find_files(self) -> list[Path]:
        if not self.path.is_dir():
            return self.shards() if self.path.name.endswith(".index.json") else [self.path]
        names = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
        for name in names:
            if (self.path / name).is_file():
                self.path = self.path / name
                return self.find_files()
        shards = sorted(file.name for file in self.path.glob("*-of-*") if file.suffix in (".bin", ".safetensors"))
        hint = f" {shards[0]} needs its index beside it." if shards else ""
        raise CheckpointError(f"{self.path} holds none of {', '.join(names)}.{hint}")

    def shards(self) -> list[Path]:
        weight_map = read_json(self.path).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{self.path} has no weight_map, so it names no shards.")
        for shard in weight_map.values():
            # A shard may be a link, as in the Hub's cache; its name may not lead anywhere else
            if not isinstance(shard, str) or Path(shard).name != shard or "\\" in shard or shard in (".", ".."):
                raise CheckpointError(
                    f"{self.path} was refused: its weight_map names {shard!r}, expected the name of a file beside it."
                )
        self.listed = set(weight_map)
        return [self.path.parent / shard for shard in sorted(set(weight_map.values()))]

    @property
    def paths(self) -> dict[str, Path]:
        """The files by name, those of a folder with that of the folder."""
        return {
            f"{self.name}/{file.path.name}" if self.is_folder else file.path.name: file.path for file in self.files
        }

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Tensors by name, each mapped from its file."""
        names = list(names)
        tensors = {}
        for file in self.files:
            if wanted := [name for name in names if self.file_of[name] is file]:
                tensors |= file.read(wanted)
        return tensors


class SummedCheckpoint(Checkpoint):
    """A LLaMA that was released as its difference to a base which may not be passed on.

    Args:
        path: Folder of what was released.
        base: Folder of the base.
        added: Pattern of the tensors to which the base is added, in their own precision, as FastChat's `apply_delta` and
            Fengshenbang's do. Rows that the base lacks count as zeros.
        subtracted: Pattern of those from which it is taken away, in float32, as BiLLa's `embedding_convert` does.
    """

    def __init__(self, path: Path, base: Path, added: str = ".*", subtracted: str = ""):
        super().__init__(path)
        self.base = Checkpoint(base)
        self.added, self.subtracted = re.compile(added), re.compile(subtracted)
        for name, tensor in self.tensors.items():
            if not self.is_changed(name):
                continue
            if name not in self.base.tensors:
                raise CheckpointError(f"{path} is no difference to {base}: that has no {name}.")
            theirs = self.base.tensors[name]
            if theirs.shape[1:] != tensor.shape[1:] or theirs.shape[0] > tensor.shape[0]:
                raise CheckpointError(
                    f"{path} is no difference to {base}: {name} is {tuple(tensor.shape)}, there {tuple(theirs.shape)}."
                )

    @property
    def paths(self) -> dict[str, Path]:
        return {**super().paths, **self.base.paths}

    def is_changed(self, name: str) -> bool:
        if name.endswith("rotary_emb.inv_freq"):
            return False
        return bool(self.added.fullmatch(name) or self.subtracted.fullmatch(name))

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        names = list(names)
        tensors = super().read(names)
        bases = self.base.read([name for name in names if self.is_changed(name)])
        for name, base in bases.items():
            tensor, rows = tensors[name], base.shape[0]
            if self.subtracted.fullmatch(name):
                changed = (tensor[:rows].float() - base.float()).to(tensor.dtype)
            else:
                changed = tensor[:rows] + base.to(tensor.dtype)
            tensors[name] = torch.cat([changed, tensor[rows:]])
        return tensors


def describe_files(files: dict[str, Path], what: str) -> list[dict]:
    """Name, SHA-256 and size in bytes of files.

    Args:
        files: By the names that they are to have.
        what: Title of the progress bar.
    """
    described = []
    total = sum(path.stat().st_size for path in files.values())
    with logging.tqdm(total=total, unit="B", unit_scale=True, desc=what) as progress:
        for name, path in files.items():
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while block := file.read(2**24):
                    digest.update(block)
                    progress.update(len(block))
            described.append({"file": name, "sha256": digest.hexdigest(), "bytes": path.stat().st_size})
    return described
