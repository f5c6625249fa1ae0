# SPDX-License-Identifier: Apache-2.0
"""What the frozen encoders make of a data set, computed once and read from disk in training.

A cache is a folder:

- `features-00000.arrow`, …: Arrow IPC files with a record batch for each item and encoder, so that reading an item reads
  nothing else. bfloat16 lies there as its bytes.
- `index.arrow`: where each item lies, sorted.
- `failures.jsonl`: what cannot be read, and why.
- `cache.json`: of which weights and which preprocessing the features are, what there is, and whether the last run came to its
  end.

Of a clip there is one choice of frames. "headtail", which draws other frames in each epoch of a training without a cache, gives
those of one draw in all epochs with one: take "uniform" unless a published stage is to be followed as far as that goes.
"""

import hashlib
import json
import os
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import torch
import typer
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import AutoProcessor, PreTrainedModel, ProcessorMixin
from transformers.image_utils import SizeDict
from transformers.utils import logging

from ..captioning import LOCK_SECONDS, FailedFile, JsonLines, read_ahead, reason_of
from ..configuration_video_llama import VideoLlamaConfig
from ..exceptions import FeatureCacheError, MediaError, VideoLlamaError
from ..media import is_url
from ..modeling_video_llama import VideoLlamaForConditionalGeneration
from .encoding import AUDIO_SOURCES, BRANCH_MODES, SAMPLINGS, CachedFeatures, Item, SampleEncoder, heard_as_frames


logger = logging.get_logger(__name__)

FORMAT = "video-llama features 2"
INFO, INDEX, FAILURES, LOCK = "cache.json", "index.arrow", "failures.jsonl", ".lock"
SHARDS, UNFINISHED = "features-*.arrow", ".features-*.part"

# The frozen parts whose output is kept: ViT-G/14 with BLIP-2's Q-Former, and ImageBind's trunks for pictures and for sound
ENCODERS = {
    "vision": ("vision_tower", "query_tokens", "qformer"),
    "frames": ("audio_tower.vision_model", "audio_tower.vision_projection"),
    "sound": ("audio_tower.audio_model", "audio_tower.audio_projection"),
}
# Attributes of the processors that change what the encoders are given
PICTURE_SETTINGS = (
    "size", "crop_size", "do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb", "resample",
    "rescale_factor", "image_mean", "image_std",
)  # fmt: skip
SOUND_SETTINGS = (
    "sampling_rate", "num_mel_bins", "num_mel_frames", "num_segments", "segment_duration", "mean", "std", "padding_value",
)  # fmt: skip

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
SHARD_SIZE = 512 * 2**20
# A process has a limited number of files that it may open
MAX_OPEN_SHARDS = 16
# Failures that the command shows
LISTED = 20
# The same values in memory of any precision give the same hash
HASHED_DTYPE = torch.bfloat16
VALUES_HASHED_AT_ONCE = 2**24

SCHEMA = pa.schema(
    [
        ("key", pa.binary(16)),
        ("encoder", pa.string()),
        ("kind", pa.string()),
        ("path", pa.string()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        # Bytes of the file, by which one that was replaced is told; null for an address
        ("file_size", pa.int64()),
        ("times", pa.list_(pa.float64())),
        ("shape", pa.list_(pa.int32())),
        ("checksum", pa.uint32()),
        # Null for a video that has no sound
        ("values", pa.large_binary()),
    ]
)
# All but the values of a row are little
WITHOUT_VALUES = pa.ipc.IpcReadOptions(use_threads=False, included_fields=list(range(len(SCHEMA) - 1)))
WHOLE = pa.ipc.IpcReadOptions(use_threads=False)


# ---------------------------------------------------------------------------------------------------------------------
# What a cache is of
# ---------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class CacheSettings:
    """What decides which features there are: the arguments of [`SampleEncoder`] by the same names.

    Raises:
        ValueError: If an option is none of those that there are.
    """

    branch: str = "vision_branch"
    audio_from: str = "frames"
    load_audio_from_video: bool = False
    num_frames: int = 8
    sampling: str = "uniform"
    seed: int = 0
    audio_frame_size: int = 224

    def __post_init__(self):
        choices = {"branch": BRANCH_MODES, "audio_from": AUDIO_SOURCES, "sampling": SAMPLINGS}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(known)}.")
        for name in ("num_frames", "audio_frame_size"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected 1 or more.")

    @classmethod
    def of(cls, encoder: SampleEncoder) -> "CacheSettings":
        """Those of an encoder of samples."""
        return cls(
            encoder.branch,
            encoder.audio_from,
            encoder.load_audio_from_video,
            encoder.num_frames,
            encoder.sampling,
            encoder.seed,
            encoder.audio_frame_size,
        )

    def encoders_of(self, kind: str) -> tuple[str, ...]:
        """Which encoders an item of type "image", "video" or "audio" goes through."""
        is_heard_as_frames = self.branch != "vision_branch" and self.audio_from == "frames"
        if kind == "audio":
            return ("frames",) if is_heard_as_frames else ("sound",)
        seen = () if self.branch == "audio_branch" else ("vision",)
        if is_heard_as_frames:
            has_segments = kind == "video" or self.branch == "audio_branch"
            return (*seen, "frames") if has_segments else seen
        is_heard = kind == "video" and (self.branch != "vision_branch" or self.load_audio_from_video)
        return (*seen, "sound") if is_heard else seen

    @property
    def needed(self) -> tuple[str, ...]:
        """The encoders that a cache must have to be of use."""
        return tuple(dict.fromkeys((*self.encoders_of("video"), *self.encoders_of("image"))))


def weights_hash(model: PreTrainedModel, encoder: str) -> str | None:
    """
    A number that tells the weights of an encoder from others: SHA-256 of all values in bfloat16, in the order of their names.

    Args:
        model: [`VideoLlamaForConditionalGeneration`], on any device, also within PEFT.
        encoder: "vision", "frames" or "sound".

    Returns:
        64 hexadecimal digits, or None if weights are quantised or not in memory.

    Raises:
        FeatureCacheError: If the model has no such encoder.
    """
    total = hashlib.sha256()
    for part, module in _parts(model, encoder).items():
        state = module.state_dict()
        for name in sorted(state):
            tensor = state[name]
            if tensor.device.type == "meta" or not tensor.is_floating_point():
                return None
            total.update(f"{part}.{name} {tuple(tensor.shape)}\n".encode())
            for values in tensor.detach().flatten().split(VALUES_HASHED_AT_ONCE):
                total.update(values.to(HASHED_DTYPE).cpu().contiguous().view(torch.int16).numpy())
    return total.hexdigest()


def _parts(model: PreTrainedModel, encoder: str) -> dict[str, torch.nn.Module]:
    model = _base_model(model)
    parts = {}
    for name in ENCODERS[encoder]:
        module = model
        for child in name.split("."):
            module = getattr(module, child, None)
        if module is None:
            raise FeatureCacheError(
                f"The model has no {name}, which the {encoder!r} features are made by: use a model that has it, or another "
                "branch or audio_from."
            )
        parts[name] = module
    return parts


def _base_model(model: torch.nn.Module) -> torch.nn.Module:
    """The part without the LM head, of a model within PEFT too."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    return getattr(model, "model", model)


def _architecture(model: torch.nn.Module, encoder: str) -> dict[str, Any]:
    """What makes features of weights: fields of the configurations that their shapes do not tell."""
    config = _base_model(model).config
    configs = {"vision": lambda: (config.vision_config, config.qformer_config)}
    configs["frames"] = lambda: (config.audio_config, config.audio_config.vision_config)
    configs["sound"] = lambda: (config.audio_config, config.audio_config.audio_config)
    fields = {}
    for part in configs[encoder]():
        names = [name for base in reversed(type(part).__mro__) for name in _own_fields(base)]
        for name in dict.fromkeys(names):
            value = getattr(part, name)
            is_random = "drop" in name or name == "initializer_range"
            if isinstance(value, int | float | str) and not is_random:
                fields[f"{part.model_type}.{name}"] = value
    return fields


def _own_fields(config_class: type) -> list[str]:
    is_ours = config_class.__module__ == VideoLlamaConfig.__module__
    own = config_class.__dict__.get("__annotations__") or getattr(config_class, "__annotations__", {})
    return [name for name in own if name in vars(config_class)] if is_ours else []


def _preprocessing(processor: ProcessorMixin, settings: CacheSettings, encoder: str) -> dict[str, Any]:
    """What makes inputs of the encoder from files. Which library decodes them is left out: that may be another elsewhere."""
    if encoder == "sound":
        extractor = getattr(processor, "feature_extractor", None)
        if extractor is None:
            raise FeatureCacheError("The processor has no feature extractor, so it can't hear: use one that has.")
        return {name: getattr(extractor, name) for name in SOUND_SETTINGS}
    fields = {
        f"{name}.{field}": getattr(getattr(processor, f"{name}_processor"), field, None)
        for name in ("image", "video")
        for field in PICTURE_SETTINGS
    }
    if encoder == "frames":
        fields["image.size"] = fields["video.size"] = {
            "height": settings.audio_frame_size,
            "width": settings.audio_frame_size,
        }
    fields |= {"num_frames": settings.num_frames, "sampling": settings.sampling}
    if settings.sampling == "headtail":
        fields["seed"] = settings.seed
    return {name: value for name, value in fields.items() if value is not None}


def _identity(
    model: PreTrainedModel, processor: ProcessorMixin, settings: CacheSettings, encoder: str
) -> dict[str, Any]:
    """What features depend on, as JSON gives it back."""
    preprocessing = _preprocessing(processor, settings, encoder)
    identity = {
        "weights": weights_hash(model, encoder),
        "architecture": _architecture(model, encoder),
        "preprocessing": preprocessing,
        "preprocessing_hash": hashlib.sha256(_as_json(preprocessing).encode()).hexdigest(),
    }
    return json.loads(_as_json(identity))


def _as_json(value: Any) -> str:
    def plain(other: Any) -> Any:
        # Has a field for each way to state a size
        if isinstance(other, SizeDict):
            return {name: number for name, number in other if number is not None}
        raise TypeError(f"{other!r} has no form in JSON.")

    return json.dumps(value, sort_keys=True, default=plain)


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], encoder: str) -> list[str]:
    """What to say of two identities that are not the same. Weights that could not be hashed are not compared."""
    found = []
    if ours["weights"] is not None and theirs["weights"] != ours["weights"]:
        found.append(
            f"the weights of {', '.join(ENCODERS[encoder])} ({theirs['weights'][:12]}…, not {ours['weights'][:12]}…; those of "
            "another checkpoint, or rounded otherwise by the dtype= of from_pretrained)"
        )
    for part in ("architecture", "preprocessing"):
        for name in sorted(theirs[part].keys() | ours[part].keys()):
            first, second = theirs[part].get(name), ours[part].get(name)
            if first != second:
                found.append(f"{name} ({first!r}, not {second!r})")
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Items
# ---------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Name:
    """What an item is told by: its type, its absolute path or address, and its range of seconds."""

    kind: str
    path: str
    start: float | None = None
    end: float | None = None

    @classmethod
    def of(cls, item: Item) -> "_Name":
        kind = item["type"]
        path = next((item[name] for name in ("path", kind, "url") if item.get(name) is not None), None)
        if not isinstance(path, str | os.PathLike):
            found = "nothing" if path is None else f"a {type(path).__name__}"
            raise FeatureCacheError(
                f"An item of type {kind!r} names {found}, but a cache tells items by their 'path': give it, or train without "
                "a cache."
            )
        path = os.fspath(path)
        limits = () if kind == "image" else ("start", "end")
        start_and_end = [None if item.get(name) is None else float(item[name]) for name in limits]
        return cls(kind, path if is_url(path) else os.path.abspath(path), *start_and_end)

    def key(self, encoder: str) -> bytes:
        parts = json.dumps([encoder, self.kind, self.path, self.start, self.end])
        return hashlib.blake2b(parts.encode(), digest_size=16).digest()

    @property
    def item(self) -> dict[str, Any]:
        return {"type": self.kind, "path": self.path, "start": self.start, "end": self.end}

    def __str__(self) -> str:
        if self.start is None and self.end is None:
            return self.path
        return f"{self.path} ({self.start or 0:g} s to {'its end' if self.end is None else f'{self.end:g} s'})"


@dataclass(frozen=True)
class FailedItem:
    """An item without features, and why: one line of `failures.jsonl`.

    Attributes:
        path: Of the file.
        kind: "image", "video" or "audio".
        start: Second at which its range begins, if it has one.
        end: Second at which its range ends, if it has one.
        encoder: "vision", "frames" or "sound".
        reason: What was the matter.
    """

    path: str
    kind: str
    start: float | None
    end: float | None
    encoder: str
    reason: str

    @property
    def key(self) -> bytes:
        return _Name(self.kind, self.path, self.start, self.end).key(self.encoder)


def distinct_items(samples: Iterable[Mapping[str, Any]], settings: CacheSettings) -> dict[Any, tuple[str, ...]]:
    """Each item of a data set once, however many samples name it, with the encoders it goes through."""
    found = {}
    for sample in samples:
        for message in sample["messages"]:
            content = message["content"]
            for item in content if not isinstance(content, str) else ():
                if item["type"] != "text" and (encoders := settings.encoders_of(item["type"])):
                    item = heard_as_frames(item) if "frames" in encoders else item
                    name = _Name.of(item)
                    found[name] = tuple(dict.fromkeys((*found.get(name, ()), *encoders)))
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------
class FeatureCache:
    """
    Features that `videollama cache-features` wrote, for the `feature_cache` of [`SampleEncoder`].

    Only what is asked for is read, from the files themselves and not by mapping them into memory, so that what a process holds
    does not grow with the cache. The index is mapped, of which an item takes 16 bytes. Picklable; works in forked and spawned
    workers.

    Args:
        folder: The cache.
        model ([`VideoLlamaForConditionalGeneration`]): Whose encoders would make the features. Weights that are quantised or not
            in memory cannot be compared; it is warned of. In fp32 and bf16 the same weights are known again. A checkpoint of
            mixed precision, as the released ones are, is to be loaded as for the cache: without a `dtype`, and then cast.
        processor ([`VideoLlamaProcessor`]): What would preprocess.
        settings: Arguments of [`SampleEncoder`] that features depend on, by the same names: `branch`, `audio_from`,
            `load_audio_from_video`, `num_frames`, `sampling`, `seed` (of "headtail" only) and `audio_frame_size`.

    Raises:
        FeatureCacheError: If there is no cache, it was not finished, is damaged, lacks what the branch needs, or is of other
            weights or other preprocessing: what differs is said.
        ValueError: If an option is none of those that there are.
    """

    def __init__(self, folder: str | os.PathLike, model: PreTrainedModel, processor: ProcessorMixin, **settings: Any):
        self.folder = Path(folder)
        self.settings = CacheSettings(**settings)
        self.info = _read_info(self.folder)
        if self.info is None:
            raise FeatureCacheError(f"{folder} holds no cache of features: make one by videollama cache-features.")
        if not self.info["is_complete"]:
            raise FeatureCacheError(
                f"{folder} is not finished, for the run that wrote it was stopped: run the same videollama cache-features again, "
                "which goes on from there."
            )
        missing = [encoder for encoder in self.settings.needed if encoder not in self.info["encoders"]]
        if missing:
            raise FeatureCacheError(
                f"{folder} has the features {', '.join(self.info['encoders']) or 'of nothing'}, but branch "
                f"{self.settings.branch!r} needs {', '.join(missing)} too: run videollama cache-features --branch "
                f"{self.settings.branch} --audio-from {self.settings.audio_from} into the same folder."
            )
        self._check_identity(model, processor)
        self._check_files()
        self.dtype = DTYPES[self.info["dtype"]]
        self._failures = {failure.key: failure.reason for failure in _failures(self.folder).read()[0]}
        self._close()

    @classmethod
    def for_encoder(cls, encoder: SampleEncoder, folder: str | os.PathLike, model: PreTrainedModel) -> "FeatureCache":
        """Opens a cache with the settings of an encoder of samples. It is used once it is its `feature_cache`."""
        settings = CacheSettings.of(encoder)
        return cls(folder, model, encoder.processor, **vars(settings))

    def vision(self, item: Item) -> CachedFeatures:
        """
        Features of a picture or video for the vision branch.

        Args:
            item: "type", "path", and as far as they are set "start" and "end".

        Returns:
            `embeds` of shape `(frames, num_query_tokens, hidden_size)`, and the times of the frames.

        Raises:
            MediaError: If the item could not be read when the cache was made, with the reason of then.
            FeatureCacheError: If it is not in the cache, or damaged.
        """
        return self._read(_Name.of(item), "vision")

    def audio(self, item: Item, audio_from: Literal["frames", "sound"]) -> CachedFeatures | None:
        """
        Features of what is heard.

        Args:
            item: As for `vision`.
            audio_from: Whether of frames, through ImageBind's vision trunk, or of sound.

        Returns:
            `embeds` of shape `(segments, output_dim)`, and the times of frames. None for a video without sound.

        Raises:
            MediaError: As for `vision`.
            FeatureCacheError: As for `vision`.
        """
        return self._read(_Name.of(item), audio_from)

    def trained_parts(self, model: PreTrainedModel) -> list[str]:
        """The parts of a model that the features stand in place of, and of which something is to be trained."""
        return [
            name
            for encoder in self.settings.needed
            for name, part in _parts(model, encoder).items()
            if any(parameter.requires_grad for parameter in part.parameters())
        ]

    def __len__(self) -> int:
        """How many features there are: an item that two encoders looked at counts twice."""
        return self.info["index"]["rows"]

    def __repr__(self) -> str:
        kinds = ", ".join(self.info["encoders"])
        return f"FeatureCache({str(self.folder)!r}: {len(self)} features of {kinds}, {self.info['dtype']})"

    def __getstate__(self) -> dict[str, Any]:
        # Open files stay where they are
        return {**self.__dict__, "_index": None, "_shards": OrderedDict(), "_process": None}

    def _close(self) -> None:
        self._index, self._shards, self._process = None, OrderedDict(), os.getpid()

    def _check_identity(self, model: PreTrainedModel, processor: ProcessorMixin) -> None:
        used = list(self.settings.needed)
        # Sounds that come by themselves are heard whatever is trained, if they can be
        if "sound" in self.settings.encoders_of("audio") and _base_model(model).config.audio_config is not None:
            used.append("sound")
        for encoder in dict.fromkeys(used):
            if encoder not in self.info["encoders"]:
                continue
            ours = _identity(model, processor, self.settings, encoder)
            if ours["weights"] is None:
                logger.warning(
                    f"Whether {self.folder} is of these weights could not be seen for {', '.join(ENCODERS[encoder])}: they are "
                    "quantised, or not in memory."
                )
            if differences := _differences(self.info["encoders"][encoder], ours, encoder):
                raise FeatureCacheError(
                    f"{self.folder} was not made for this: its {encoder!r} features differ in {'; '.join(differences)}. Use the "
                    "model and the settings that it was made with, or make another by videollama cache-features."
                )

    def _check_files(self) -> None:
        for file in [*self.info["shards"], self.info["index"]]:
            path = self.folder / file["file"]
            size = path.stat().st_size if path.is_file() else None
            if size != file["bytes"]:
                found = "is missing" if size is None else f"has {size} bytes, expected {file['bytes']}"
                raise FeatureCacheError(f"{path} {found}: {_MEND}")

    def _read(self, name: _Name, encoder: str) -> CachedFeatures | None:
        key = name.key(encoder)
        place = self._find(key)
        if place is None:
            if key in self._failures:
                reason = self._failures[key]
                raise MediaError(reason if name.path in reason else f"{name}: {reason}")
            raise FeatureCacheError(
                f"{name} has no {encoder!r} features in {self.folder}: run videollama cache-features with these data into the "
                "same folder, or train without a cache."
            )
        row = self._row(*place)
        size = _file_size(name)
        if None not in (size, row["file_size"]) and size != row["file_size"]:
            raise FeatureCacheError(
                f"{name} was replaced since its features were computed (it has {size} bytes, and had {row['file_size']}): make "
                "another cache by videollama cache-features."
            )
        if row["values"] is None:
            return None
        return CachedFeatures(_to_tensor(row, self.dtype), row["times"])

    def _find(self, key: bytes) -> tuple[int, int] | None:
        if self._process != os.getpid():
            self._close()
        if self._index is None:
            self._index = _read_index(self.folder / INDEX)
        keys, shards, rows = self._index
        number = np.frombuffer(key[:8], ">u8")[0].astype("u8")
        place = int(np.searchsorted(keys, number))
        while place < len(keys) and keys[place] == number:
            found = int(shards[place]), int(rows[place])
            if self._row(*found)["key"] == key:
                return found
            place += 1
        return None

    def _row(self, shard: int, row: int) -> dict[str, Any]:
        if shard in self._shards:
            self._shards.move_to_end(shard)
        else:
            while len(self._shards) >= MAX_OPEN_SHARDS:
                self._shards.popitem(last=False)
            path = self.folder / self.info["shards"][shard]["file"]
            self._shards[shard] = path, _open_shard(path, is_mapped=False)
        path, reader = self._shards[shard]
        return _read_row(path, reader, row)


_MEND = (
    "remove the damaged file and run the same videollama cache-features again, which makes what is missing, or copy the cache "
    "again."
)


def _open_shard(path: Path, is_mapped: bool, options: Any = WHOLE) -> Any:
    try:
        file = pa.memory_map(str(path)) if is_mapped else pa.OSFile(str(path))
        return pa.ipc.open_file(file, options=options)
    except (OSError, pa.ArrowException) as error:
        raise FeatureCacheError(f"{path} is damaged ({' '.join(str(error).split())}): {_MEND}") from error


def _read_row(path: Path, reader: Any, row: int) -> dict[str, Any]:
    """One row, its values as a buffer.

    Raises:
        FeatureCacheError: If it is damaged.
    """
    try:
        found = _as_row(reader.get_batch(row))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise FeatureCacheError(f"{path}, row {row}, is damaged ({' '.join(str(error).split())}): {_MEND}") from error
    if _checksum(found) != found["checksum"]:
        raise FeatureCacheError(f"{path}, row {row}, is damaged (its checksum is wrong): {_MEND}")
    return found


def _as_row(batch: pa.RecordBatch) -> dict[str, Any]:
    # Reading from a damaged one may end the process
    batch.validate(full=True)
    row = {name: batch.column(name)[0].as_py() for name in SCHEMA.names[:-1]}
    values = batch.column("values")[0]
    return {**row, "values": values.as_buffer() if values.is_valid else None}


def _checksum(row: Mapping[str, Any]) -> int:
    fields = json.dumps([row["key"].hex(), row["times"], row["shape"]])
    return zlib.crc32(b"" if row["values"] is None else row["values"], zlib.crc32(fields.encode()))


def _to_tensor(row: Mapping[str, Any], dtype: torch.dtype) -> torch.Tensor:
    stored = torch.int16 if dtype == torch.bfloat16 else torch.float32
    values = np.frombuffer(row["values"], "i2" if stored == torch.int16 else "f4")
    # A copy: the buffer is not to be written to
    return torch.from_numpy(values.copy()).view(dtype).reshape(row["shape"])


def _to_bytes(features: torch.Tensor) -> bytes:
    stored = features.view(torch.int16) if features.dtype == torch.bfloat16 else features
    return stored.numpy().tobytes()


def _read_index(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        return tuple(table.column(name).to_numpy() for name in ("key", "shard", "row"))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise FeatureCacheError(f"{path} is damaged ({' '.join(str(error).split())}): {_MEND}") from error


def _read_info(folder: Path) -> dict[str, Any] | None:
    """`cache.json`, or None where there is no cache."""
    path = folder / INFO
    if not path.is_file():
        if any(folder.glob(SHARDS)):
            raise FeatureCacheError(
                f"{path} is missing, without which its features say nothing: copy the cache again."
            )
        return None
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        kind = info["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FeatureCacheError(f"{path} is damaged ({error}): copy the cache again, or make another.") from error
    if kind != FORMAT:
        raise FeatureCacheError(
            f"{path} is of the format {kind!r}, expected {FORMAT!r}: make the cache anew by videollama cache-features, or use "
            "the version of the library that made it."
        )
    return info


# ---------------------------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class CacheReport:
    """What a run did.

    Attributes:
        num_items: Distinct items of the data, as far as they go through an encoder.
        num_skipped: How many of them had their features before.
        num_written: How many got theirs by this run.
        failed: The features that are missing, because their file can't be read.
    """

    num_items: int
    num_skipped: int
    num_written: int
    failed: list[FailedItem]


def cache_features(
    data: Any,
    folder: str | os.PathLike,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    *,
    batch_size: int = 16,
    num_workers: int = 0,
    dtype: torch.dtype | None = None,
    shard_size: int = SHARD_SIZE,
    on_start: Callable[[int, int], None] | None = None,
    on_done: Callable[[str, str | None], None] | None = None,
    **settings: Any,
) -> CacheReport:
    r"""
    Runs the frozen encoders once over each item of a data set and writes what they give, for [`FeatureCache`].

    The encoders run where they are and in the precision they are in: float32, or under the autocast to bf16 or fp16 that Trainer
    trains with. A run that was ended in whatever way is gone on with by the same call: an item is on disk as soon as its batch is
    done, and is not done again. More data, and features of other encoders, can be added to a cache by calls with the same
    weights, preprocessing and precision.

    Args:
        data: What [`load_training_data`] takes: one source or more; or the samples themselves, of its schema. Weights of sources
            are of no consequence.
        folder: Where to. Made if it is not there.
        model ([`VideoLlamaForConditionalGeneration`]): Whose encoders are run. LLaMA is not used.
        processor ([`VideoLlamaProcessor`]): Its processor.
        batch_size: Items that an encoder is given at once, each with all its frames or segments. A batch that does not fit in
            memory is done in parts.
        num_workers: Processes that read files while the encoders run; with 0 they are read in between.
        dtype: Of the features on disk, `torch.bfloat16` or `torch.float32`. By default that of the encoders, bf16 for fp16.
        shard_size: Bytes of a file of features, about.
        on_start: Called before the first batch with the numbers of distinct items and of those that are done already.
        on_done: Called for each item with its path and, if it failed, the reason.
        settings: Which features, and of which preprocessing: `branch`, `audio_from`, `load_audio_from_video`, `num_frames`,
            `sampling`, `seed` and `audio_frame_size`, as for [`SampleEncoder`]. "headtail" draws frames once for all epochs.

    Returns:
        [`CacheReport`]. Files that can't be read are listed there and in `failures.jsonl`. The next run tries them again; training
        with the cache counts them as unreadable.

    Raises:
        FeatureCacheError: If the folder holds a cache of other weights, preprocessing or precision, or a damaged one; if another
            run is writing to it; if the model or processor lacks what the features are made by.
        TrainingDataError: If the data are not of their format.
        ValueError: If an option is none of those that there are.
    """
    settings = CacheSettings(**settings)
    folder = Path(folder)
    dtype = _storage_dtype(model, settings, dtype)
    for name, value in (("batch_size", batch_size), ("shard_size", shard_size)):
        if value < 1:
            raise ValueError(f"{name} is {value}, expected 1 or more.")
    items = distinct_items(_samples(data), settings)
    used = dict.fromkeys((*settings.needed, *(encoder for encoders in items.values() for encoder in encoders)))
    identities = {encoder: _identity(model, processor, settings, encoder) for encoder in used}
    unknown = [encoder for encoder, identity in identities.items() if identity["weights"] is None]
    if unknown:
        raise FeatureCacheError(
            f"The encoders of the {', '.join(unknown)} features are quantised or not in memory: load them as they are in the "
            "checkpoint."
        )
    with _lock(folder):
        info = _begin(folder, identities, dtype)
        shards = _Shards(folder, dtype, shard_size)
        waiting = {
            name: left
            for name, encoders in items.items()
            if (left := tuple(encoder for encoder in encoders if name.key(encoder) not in shards.keys))
        }
        if on_start is not None:
            on_start(len(items), len(items) - len(waiting))
        failed: list[FailedItem] = []
        log = _failures(folder)
        old_failures = {failure.key: failure for failure in log.repair()}
        try:
            results = _run(waiting, model, processor, settings, dtype, batch_size, num_workers)
            for name, rows, failures in results:
                for row in rows:
                    shards.add(row)
                log.append(failures)
                failed += failures
                if on_done is not None:
                    on_done(name.path, failures[0].reason if failures else None)
        finally:
            shards.commit()
        # Failures of other data stay listed; of those that were tried now, the reasons are those of now
        listed = old_failures | {failure.key: failure for failure in failed}
        log.replace([failure for key, failure in listed.items() if key not in shards.keys])
        _finish(folder, info, shards, log)
    num_failed = len({(failure.kind, failure.path, failure.start, failure.end) for failure in failed})
    return CacheReport(len(items), len(items) - len(waiting), len(waiting) - num_failed, failed)


def _storage_dtype(model: PreTrainedModel, settings: CacheSettings, dtype: torch.dtype | None) -> torch.dtype:
    if dtype is None:
        return torch.float32 if _run_dtype(model, settings.needed[0]) == torch.float32 else torch.bfloat16
    if dtype not in DTYPES.values():
        raise ValueError(f"dtype is {dtype}, expected torch.bfloat16 or torch.float32.")
    return dtype


def _run_dtype(model: PreTrainedModel, encoder: str) -> torch.dtype:
    return next(next(iter(_parts(model, encoder).values())).parameters()).dtype


def _samples(data: Any) -> Iterable[Mapping[str, Any]]:
    # A second of every command's start, were it imported above
    from .formats import DataSource, load_training_data

    if isinstance(data, DataSource | str) or (isinstance(data, Mapping) and "messages" not in data):
        data = [data]
    data = list(data) if isinstance(data, list | tuple) else data
    is_sources = isinstance(data, list) and not any(isinstance(row, Mapping) and "messages" in row for row in data)
    if not is_sources:
        return data
    sources = [
        source
        if isinstance(source, DataSource)
        else DataSource.parse(source)
        if isinstance(source, str)
        else DataSource.from_dict(source)
        for source in data
    ]
    # In a mixture by weights, samples come again
    sources = [DataSource(source.format, source.path, source.media) for source in sources]
    return load_training_data(sources, streaming=True)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout as error:
        raise FeatureCacheError(f"Another run is writing to {folder}: wait for it, or name another folder.") from error
    try:
        yield
    finally:
        lock.release()


def _begin(folder: Path, identities: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Notes in the folder of what its features are going to be."""
    info = _read_info(folder) or {"format": FORMAT, "dtype": _dtype_name(dtype), "encoders": {}}
    for encoder, identity in identities.items():
        theirs = info["encoders"].get(encoder, identity)
        if differences := _differences(theirs, identity, encoder):
            raise FeatureCacheError(
                f"{folder} has {encoder!r} features that differ in {'; '.join(differences)}: name another folder, or use the "
                "model and the settings of that one."
            )
    if info["dtype"] != _dtype_name(dtype):
        raise FeatureCacheError(
            f"{folder} has features in {info['dtype']}, and now {_dtype_name(dtype)} is asked for: go on with that, or name "
            "another folder."
        )
    info["encoders"] |= identities
    info["is_complete"] = False
    _write_json(folder / INFO, info)
    return info


def _finish(folder: Path, info: dict[str, Any], shards: "_Shards", log: JsonLines) -> None:
    """Writes the index, and last of all that the cache is complete."""
    index = shards.write_index()
    packages = ("transformers-videollama", "transformers", "torch", "pyarrow")
    info |= {
        "is_complete": True,
        "content": shards.counts,
        "shards": shards.files,
        "index": index,
        "num_failed": len(log.read()[0]),
        "versions": {name: _version(name) for name in packages},
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    _write_json(folder / INFO, info)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except ImportError:
        return None


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _failures(folder: Path) -> JsonLines:
    return JsonLines(folder / FAILURES, FailedItem)


def _write_json(path: Path, value: Any) -> None:
    work = path.with_name(f".{path.name}.new")
    with open(work, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, sort_keys=True)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(work, path)


class _Shards:
    """
    The files of features of a folder, and the one that is being written.

    A row is handed to the operating system as soon as it is added, in a file with a name of its own. That file gets its last
    name when it is full. What a run that was killed left of one is made into a file of its own, up to the last whole row.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, shard_size: int):
        self.folder, self.shard_size = folder, shard_size
        self.schema = SCHEMA.with_metadata({"format": FORMAT, "dtype": _dtype_name(dtype)})
        self.keys: set[bytes] = set()
        self.files: list[dict[str, Any]] = []
        self.counts: dict[str, dict[str, Any]] = {}
        self._index: list[tuple[np.ndarray, int]] = []
        self._writer = self._sink = self._path = None
        self._written: list[bytes] = []
        for path in sorted(folder.glob(SHARDS)):
            self._note(path)
        for path in sorted(folder.glob(UNFINISHED)):
            self._recover(path)

    def add(self, row: Mapping[str, Any]) -> None:
        if row["key"] in self.keys:
            return
        if self._writer is None:
            self._path = self.folder / f".features-{os.getpid()}-{time.time_ns()}.part"
            self._sink = pa.OSFile(str(self._path), "wb")
            self._writer = pa.ipc.new_file(self._sink, self.schema)
        self._writer.write_batch(pa.RecordBatch.from_pylist([dict(row)], schema=self.schema))
        self.keys.add(row["key"])
        self._written.append(row["key"])
        if self._sink.tell() >= self.shard_size:
            self.commit()

    def commit(self) -> None:
        """Completes the file that is being written."""
        if self._writer is None:
            return
        self._writer.close()
        self._sink.close()
        _sync(self._path)
        numbers = [int(path.stem.rpartition("-")[2]) for path in self.folder.glob(SHARDS)]
        path = self.folder / f"features-{max(numbers, default=-1) + 1:05}.arrow"
        os.replace(self._path, path)
        _sync(self.folder)
        self._writer = self._sink = self._path = None
        self._written = []
        self._note(path)

    def write_index(self) -> dict[str, Any]:
        keys = np.concatenate([np.empty(0, "u8"), *(keys for keys, _ in self._index)])
        shards = np.concatenate([np.empty(0, "u4"), *(np.full(len(keys), n, "u4") for keys, n in self._index)])
        rows = np.concatenate([np.empty(0, "u4"), *(np.arange(len(keys), dtype="u4") for keys, _ in self._index)])
        order = np.argsort(keys, kind="stable")
        names = ("key", "shard", "row")
        batch = pa.record_batch([pa.array(column[order]) for column in (keys, shards, rows)], names=names)
        path = self.folder / INDEX
        work = path.with_name(f".{INDEX}.new")
        with pa.OSFile(str(work), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)
        _sync(work)
        os.replace(work, path)
        return {"file": INDEX, "bytes": path.stat().st_size, "rows": len(keys)}

    def _note(self, path: Path) -> None:
        """Takes in what a complete file holds."""
        reader = _open_shard(path, is_mapped=True, options=WITHOUT_VALUES)
        keys = []
        try:
            for row in range(reader.num_record_batches):
                batch = reader.get_batch(row)
                keys.append(batch.column("key")[0].as_py())
                self._count(batch.column("encoder")[0].as_py(), batch.column("shape")[0].as_py())
        except (OSError, ValueError, pa.ArrowException) as error:
            raise FeatureCacheError(f"{path} is damaged ({' '.join(str(error).split())}): {_MEND}") from error
        self.keys.update(keys)
        numbers = np.frombuffer(b"".join(key[:8] for key in keys), ">u8").astype("u8")
        self._index.append((numbers, len(self.files)))
        self.files.append({"file": path.name, "bytes": path.stat().st_size, "rows": len(keys)})

    def _count(self, encoder: str, shape: list[int]) -> None:
        count = self.counts.setdefault(encoder, {"features": 0, "frames": 0, "without_sound": 0})
        count["features"] += 1
        count["without_sound"] += not shape
        if shape:
            count["frames"] += shape[0]
            count["shape"] = ["frames", *shape[1:]]

    def _recover(self, path: Path) -> None:
        """Makes a complete file of one that was being written when its run was killed."""
        for row in _whole_rows(path):
            self.add(row)
        self.commit()
        path.unlink()


def _whole_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file that breaks off somewhere. Between its beginning and its directory it is an Arrow stream."""
    with open(path, "rb") as file:
        file.seek(8)
        try:
            stream = pa.ipc.open_stream(file)
            while True:
                row = _as_row(stream.read_next_batch())
                if _checksum(row) != row["checksum"]:
                    return
                yield {**row, "values": None if row["values"] is None else row["values"].to_pybytes()}
        except (StopIteration, OSError, ValueError, pa.ArrowException):
            return


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


# ---------------------------------------------------------------------------------------------------------------------
# Encoding
# ---------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Decoded:
    """An item as inputs of encoders.

    Attributes:
        inputs: By encoder arrays of its frames or segments, None for a video without sound. Tensors would go from process to
            process by shared memory, which containers have little of.
        times: Of the frames, by encoder.
        failures: By encoder, why there are none.
    """

    inputs: dict[str, np.ndarray | None]
    times: dict[str, list[float] | None]
    failures: dict[str, str]


def _run(
    waiting: Mapping[_Name, tuple[str, ...]],
    model: PreTrainedModel,
    processor: ProcessorMixin,
    settings: CacheSettings,
    dtype: torch.dtype,
    batch_size: int,
    num_workers: int,
) -> Iterator[tuple[_Name, list[dict[str, Any]], list[FailedItem]]]:
    """The rows of each item, and what is missing of it, in the order of the items."""
    read = partial(_decode, encoder=SampleEncoder(processor, **vars(settings)))
    work = [(name.path, (name, encoders)) for name, encoders in waiting.items()]
    rest = iter(waiting.items())
    was_training = model.training
    model.eval()
    try:
        with read_ahead(work, read, num_workers, 2 * batch_size) as results:
            while batch := list(islice(results, batch_size)):
                yield from _finish_batch(list(islice(rest, len(batch))), batch, model, dtype)
    finally:
        model.train(was_training)


def _decode(path: str, work: tuple[_Name, tuple[str, ...]], encoder: SampleEncoder) -> _Decoded:
    """Reads an item for its encoders, each by itself: a clip with a damaged sound track can be seen."""
    name, encoders = work
    decoded, frames = _Decoded({}, {}, {}), {}
    for which in encoders:
        try:
            if which == "sound":
                sound = encoder.read_sound(name.item)
                decoded.inputs[which], decoded.times[which] = None if sound is None else sound.numpy(), None
                continue
            size = encoder.audio_frame_size if which == "frames" else None
            if size not in frames:
                seed = zlib.crc32(f"{encoder.seed} {name}".encode(errors="surrogateescape"))
                pixels, metadata = encoder.read_frames(name.item, size=size, seed=seed)
                times = None
                with suppress(ValueError):  # a file without a clock
                    times = None if metadata is None else [float(time) for time in metadata.timestamps]
                frames[size] = pixels.numpy(), times
                if pixels.shape[-2:] == (encoder.audio_frame_size, encoder.audio_frame_size):
                    frames[encoder.audio_frame_size] = frames[size]
            decoded.inputs[which], decoded.times[which] = frames[size]
        except Exception as error:  # whatever a file does, it must not end the run
            decoded.failures[which] = reason_of(error)
    return decoded


def _finish_batch(
    names: list[tuple[_Name, tuple[str, ...]]],
    batch: list[_Decoded | FailedFile],
    model: PreTrainedModel,
    dtype: torch.dtype,
) -> Iterator[tuple[_Name, list[dict[str, Any]], list[FailedItem]]]:
    features: dict[tuple[int, str], torch.Tensor] = {}
    for encoder in ENCODERS:
        given = {
            place: item.inputs[encoder]
            for place, item in enumerate(batch)
            if isinstance(item, _Decoded) and item.inputs.get(encoder) is not None
        }
        for place, values in zip(given, _encode(list(given.values()), model, encoder)):
            features[place, encoder] = values.to(dtype)
    for place, ((name, encoders), item) in enumerate(zip(names, batch)):
        rows, failures = [], []
        for encoder in encoders:
            values = features.get((place, encoder))
            reason = item.reason if isinstance(item, FailedFile) else item.failures.get(encoder)
            if values is not None and not values.isfinite().all():
                reason = (
                    f"{name} gives features that are not finite: look whether its content is, or use --dtype float32."
                )
            if reason is not None:
                failures.append(FailedItem(**_fields(name), encoder=encoder, reason=reason))
            else:
                rows.append(_make_row(name, encoder, values, item.times[encoder]))
        yield name, rows, failures


def _make_row(name: _Name, encoder: str, values: torch.Tensor | None, times: list[float] | None) -> dict[str, Any]:
    row = {
        "key": name.key(encoder),
        "encoder": encoder,
        **_fields(name),
        "file_size": _file_size(name),
        "times": times,
        "shape": [] if values is None else list(values.shape),
        "values": None if values is None else _to_bytes(values),
    }
    # Bytes of a name that are not UTF-8 can't be in a column of text; the key tells items apart
    row["path"] = name.path.encode(errors="backslashreplace").decode()
    return {**row, "checksum": _checksum(row)}


def _file_size(name: _Name) -> int | None:
    try:
        return os.path.getsize(name.path)
    except OSError:
        return None  # an address, or a file that is not at hand, which features are enough for


def _fields(name: _Name) -> dict[str, Any]:
    return {"path": name.path, "kind": name.kind, "start": name.start, "end": name.end}


def _encode(inputs: list[np.ndarray], model: PreTrainedModel, encoder: str) -> list[torch.Tensor]:
    """Features of each of some items, on the CPU."""
    if not inputs:
        return []
    failure = None
    try:
        values = torch.cat([torch.from_numpy(value) for value in inputs])
        features = _encode_values(values, model, encoder)
        return list(features.cpu().split([len(value) for value in inputs]))
    except torch.OutOfMemoryError as error:
        if len(inputs) == 1:
            raise
        # Without its traceback, which keeps the tensors of the batch
        failure = error.with_traceback(None)
    del failure
    half = len(inputs) // 2
    return _encode(inputs[:half], model, encoder) + _encode(inputs[half:], model, encoder)


@torch.no_grad()
def _encode_values(values: torch.Tensor, model: PreTrainedModel, encoder: str) -> torch.Tensor:
    """What an encoder gives for `(items, …)`, in the precision that training computes it in."""
    dtype, base = _run_dtype(model, encoder), _base_model(model)
    values = values.to(next(next(iter(_parts(model, encoder).values())).parameters()).device)
    with torch.autocast(values.device.type, dtype=dtype, enabled=dtype != torch.float32):
        if encoder == "frames":
            return base.audio_tower(pixel_values=values, return_dict=True).image_embeds
        if encoder == "sound":
            return base.audio_tower(input_features=values, return_dict=True).audio_embeds
        seen = base.vision_tower(values, return_dict=True).last_hidden_state
        return base._run_qformer(base.qformer, base.query_tokens, seen).last_hidden_state


class _Encoders(VideoLlamaForConditionalGeneration):
    _keys_to_ignore_on_load_unexpected = [r"language_model\.layers\."]


def load_encoders(folder: str | os.PathLike, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    """
    A checkpoint without the layers of LLaMA, which have no part in the features: 5 GB of memory in place of 18 (7B, bf16).

    Args:
        folder: A converted checkpoint, or its name on the Hub.
        dtype: Precision to run it in. As in training, weights are read in the precision that the checkpoint names, and then cast.

    Returns:
        [`VideoLlamaForConditionalGeneration`], which can see and hear, but not speak.
    """
    config = VideoLlamaConfig.from_pretrained(folder)
    config.text_config.num_hidden_layers = 0
    return _Encoders.from_pretrained(folder, config=config).to(dtype).eval().requires_grad_(False)


# ---------------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------------
def cache_features_command(
    model: Annotated[str, typer.Option(help="Folder or Hub name of a converted checkpoint.")],
    data: Annotated[
        list[str], typer.Option(help="FORMAT=FILE, with ,media=FOLDER where it is needed, as for videollama train.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the cache, which is added to.")],
    branch: Annotated[
        Literal["vision_branch", "audio_branch", "both"], typer.Option(help="What is going to be trained.")
    ] = "vision_branch",
    audio_from: Annotated[
        Literal["frames", "sound"],
        typer.Option(help="What the audio branch gets: frames, as in the published training, or sound."),
    ] = "frames",
    load_audio_from_video: Annotated[
        bool, typer.Option("--load-audio-from-video", help="With vision_branch: hear the sound of videos too.")
    ] = False,
    num_frames: Annotated[int, typer.Option(min=1, help="Frames of a video.")] = 8,
    sampling: Annotated[
        Literal["uniform", "headtail"],
        typer.Option(help="Which frames. headtail draws them at random, here once for all epochs."),
    ] = "uniform",
    seed: Annotated[int, typer.Option(help="Of headtail.")] = 42,
    batch_size: Annotated[int, typer.Option(min=1, help="Items that an encoder is given at once.")] = 16,
    num_workers: Annotated[int, typer.Option(min=0, help="Processes that read files while the encoders run.")] = 2,
    dtype: Annotated[
        Literal["bfloat16", "float32"], typer.Option(help="Of the encoders and of the features.")
    ] = "bfloat16",
    shard_size: Annotated[int, typer.Option(min=1, help="MiB of a file of features.")] = SHARD_SIZE // 2**20,
    max_failures: Annotated[
        float, typer.Option(min=0, max=1, help="Share of items that may be unreadable; the exit code is 1 beyond it.")
    ] = 0.05,
) -> None:
    """Run the frozen encoders once over a data set, for --feature_cache of videollama train.

    A run that was ended, in whatever way, is gone on with by the same command. Files that can't be read are listed in
    failures.jsonl beside the features; the next run tries them again.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
    # The processes that read are forked, of which the tokenizer would warn in the middle of the progress bar
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.set_verbosity_error()
    try:
        network, processor = load_encoders(model, DTYPES[dtype]), AutoProcessor.from_pretrained(model)
        if torch.accelerator.is_available():
            network.to(torch.accelerator.current_accelerator())
        audio_config = network.config.audio_config
        sizes = {}
        if audio_config is not None and audio_config.vision_config is not None:
            sizes["audio_frame_size"] = audio_config.vision_config.image_size
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
            task = progress.add_task("items", total=None)
            num_failed = 0

            def tell(path: str, reason: str | None) -> None:
                nonlocal num_failed
                num_failed += reason is not None
                failed = f", {num_failed} failed" if num_failed else ""
                progress.update(task, advance=1, description=f"items{failed}")

            report = cache_features(
                data,
                out,
                network,
                processor,
                batch_size=batch_size,
                num_workers=num_workers,
                dtype=DTYPES[dtype],
                shard_size=shard_size * 2**20,
                on_start=lambda total, done: progress.update(task, total=total, completed=done),
                on_done=tell,
                branch=branch,
                audio_from=audio_from,
                load_audio_from_video=load_audio_from_video,
                num_frames=num_frames,
                sampling=sampling,
                seed=seed,
                **sizes,
            )
    except KeyboardInterrupt:
        console.print("Stopped. The same command goes on from here.")
        raise typer.Exit(130) from None
    except (VideoLlamaError, OSError, ImportError, ValueError, torch.OutOfMemoryError) as error:
        console.print(f"Error: {' '.join(str(error).split())}", style="red", markup=False)
        raise typer.Exit(1) from error
    skipped = f", and {report.num_skipped} were there" if report.num_skipped else ""
    console.print(f"Features written to {out}: those of {report.num_written} items{skipped}", markup=False)
    if report.failed:
        console.print(
            f"Features that are missing, see {out / FAILURES}: {len(report.failed)}", style="red", markup=False
        )
        reasons = [
            failure.reason if failure.path in failure.reason else f"{failure.path}: {failure.reason}"
            for failure in report.failed
        ]
        for reason in list(dict.fromkeys(reasons))[:LISTED]:
            console.print(f"  {reason}", style="red", markup=False)
    failed = report.num_items - report.num_skipped - report.num_written
    if failed > max_failures * report.num_items:
        console.print(f"{failed} of {report.num_items} items are more than --max-failures allows.", style="red")
        raise typer.Exit(1)


__all__ = ["CacheReport", "CacheSettings", "FailedItem", "FeatureCache", "cache_features", "load_encoders"]
