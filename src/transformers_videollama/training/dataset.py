# SPDX-License-Identifier: Apache-2.0
"""Data sets for training: samples become inputs of the model, and those that can't be read are counted, listed and skipped.

What cannot be read is what the encoder raises [`MediaError`] or [`TrainingDataError`] for. Anything else is no fault of the
data and ends the run.

The counts, and the number of the epoch, lie in memory that is shared with the worker processes of a `DataLoader`, started by
fork or spawn, persistent or not. So what workers find is known to all of them and to the process that trains, and a new epoch
reaches workers that are there already.
"""

import json
import os
import random
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from math import sqrt
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets.iterable_dataset import ExamplesIterable
from torch.utils.data import get_worker_info
from transformers.utils import logging

from ..exceptions import MediaError, TrainingDataError


logger = logging.get_logger(__name__)

# `encoder(sample, epoch=…, index=…)`: sample of the schema, number of the pass and of the sample
Encoder = Callable[..., dict[str, Any]]

# Shares of fewer samples than these say little
MIN_TRIED = 20

# Workers of one `DataLoader` whose counts are kept apart
MAX_WORKERS = 1024

# Samples that are read from a stream at once: none of their media are
READ_AHEAD = 100

UNTRIED, READ, FAILED = range(3)


class Failures:
    """
    The samples that cannot be read: each is one line of a file, however often and by whichever process it is met.

    Args:
        path: File that lines are added to, objects with `id`, `source`, `paths` and `reason`. None: no file.

    Raises:
        TrainingDataError: If that cannot be a file.
    """

    def __init__(self, path: str | os.PathLike | None):
        self.path = None if path is None else Path(path)
        # Why samples failed in this process, and which ones any process has listed
        self.reasons, self._listed, self._position = {}, set(), 0
        if self.path is not None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with open(self.path, "ab"):
                    pass
            except OSError as error:
                raise TrainingDataError(
                    f"{path} cannot list what is not readable ({error}): pass the path of a file, new or old, as failures_path."
                ) from error

    def add(self, sample: Mapping[str, Any], error: Exception) -> None:
        """List a sample, unless it is listed: of what other processes and earlier runs listed, nothing is written again."""
        key = _key(sample)
        is_first = not self.reasons
        self.reasons[key] = str(error)
        if is_first:
            place = "" if self.path is None else f" All such samples are listed in {self.path}."
            logger.warning(
                f"Sample {sample['id']} cannot be read and is skipped: {str(error).removesuffix('.')}.{place}"
            )
        if self.path is None:
            return
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            rest = self._read_new(file)
            if key not in self._listed:
                name, source, paths = key
                line = json.dumps(
                    {"id": name, "source": source, "paths": paths, "reason": str(error)}, ensure_ascii=False
                )
                # In one write, so that lines of several processes do not mix; what was cut short before stays by itself
                os.write(file, (b"\n" if rest else b"") + line.encode(errors="backslashreplace") + b"\n")
        finally:
            os.close(file)

    def _read_new(self, file: int) -> bytes:
        """Note the lines that were added since the last time. Returns what is there of a line without an end."""
        os.lseek(file, self._position, os.SEEK_SET)
        chunks = iter(lambda: os.read(file, 1 << 20), b"")
        *lines, rest = b"".join(chunks).split(b"\n")
        self._position = os.lseek(file, 0, os.SEEK_CUR) - len(rest)
        for line in lines:
            try:
                values = json.loads(line)
                self._listed.add((values["id"], values["source"], tuple(values["paths"])))
            except (ValueError, KeyError, TypeError):
                continue  # a line that was cut short, or another's
        return rest


def _key(sample: Mapping[str, Any]) -> tuple[str, str, tuple[str, ...]]:
    items = (item for message in sample["messages"] for item in message["content"])
    return sample["id"], sample["source"], tuple(item["path"] for item in items if item["path"] is not None)


class _Reader:
    """What both data sets have: the encoder, the number of the epoch, and what is done about samples that can't be read."""

    def _set_up(self, encoder: Encoder, max_failures: float, failures_path: str | os.PathLike | None) -> None:
        if isinstance(max_failures, bool) or not isinstance(max_failures, int | float) or not 0 <= max_failures <= 1:
            raise TrainingDataError(f"Got max_failures={max_failures!r}, expected a share: a number from 0 to 1.")
        self.encoder, self.max_failures = encoder, float(max_failures)
        self.failures = Failures(failures_path)
        self._pass = torch.zeros((), dtype=torch.int64).share_memory_()

    def _encode(self, sample: Mapping[str, Any], index: int) -> dict[str, Any] | None:
        """A sample as inputs of the model, or None where it can't be read."""
        try:
            return self.encoder(sample, epoch=int(self._pass), index=index)
        except (MediaError, TrainingDataError) as error:
            self.failures.add(sample, error)
            return None

    def _check_share(self, is_all: bool = False) -> None:
        """Raise if too much of the data cannot be read. Once all of them are tried, nothing is left to chance."""
        failed, tried = self.num_failed, self.num_tried
        # Of data that are a little below the limit, the first few samples are often a little above it: by up to twice the
        # standard deviation of such a count, that is chance
        expected = self.max_failures * tried
        chance = 0 if is_all else 2 * sqrt(expected)
        if failed > expected + chance and (tried >= MIN_TRIED or self.max_failures == 0):
            allowed = f"more than the {self.max_failures:.4g} that max_failures allows"
            raise TrainingDataError(
                f"{failed} of {tried} samples ({failed / tried:.1%}) cannot be read, {allowed}. {self._advice} or raise "
                "max_failures."
            )

    @property
    def _advice(self) -> str:
        reasons = self.failures.reasons.values()
        last = f"The last reason: {next(reversed(reasons)).removesuffix('.')}. " if reasons else ""
        if self.failures.path is None:
            return f"{last}Pass failures_path for a list of all, mend or remove them,"
        return f"{last}All are listed in {self.failures.path}: mend or remove them,"


class TrainingDataset(_Reader, torch.utils.data.Dataset):
    """
    Training data that can be read in any order, as inputs of the model.

    A batch ([`~TrainingDataset.__getitems__`], which `DataLoader` calls) leaves out what can't be read, and so has fewer rows;
    one of which nothing is left has the next sample that can be read. The same samples make the same batches, whatever the
    number of workers.

    Args:
        dataset: Samples of the schema, from [`load_training_data`].
        encoder: Called as `encoder(sample, epoch=…, index=…)`, `index` being the row of `dataset`.
        max_failures: Share of the rows that may fail, if there are 20 or more. Beyond it, the run is stopped: once all of them have
            been tried, or before if there are more than chance explains; with 0, at the first failure.
        failures_path: File that gets one line for each sample that can't be read, with the reason.

    Raises:
        TrainingDataError: If `max_failures` is no share, or `failures_path` cannot be written. Later on: if too many samples, or
            all of them, cannot be read.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        encoder: Encoder,
        max_failures: float = 0.05,
        failures_path: str | os.PathLike | None = None,
    ):
        self.dataset = dataset
        self._set_up(encoder, max_failures, failures_path)
        self._states = torch.zeros(len(dataset), dtype=torch.uint8).share_memory_()  # [rows], one byte each

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """
        One sample.

        Raises:
            TrainingDataError: If it can't be read: where one sample is asked for, there is none to put in its place.
        """
        index = range(len(self))[index]
        encoded = self._read(index)
        if encoded is None:
            sample = self.dataset[index]
            reason = self.failures.reasons.get(_key(sample), "a worker process has tried")
            raise TrainingDataError(f"Sample {sample['id']} cannot be read ({reason}): mend or remove it.")
        return encoded

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """
        A batch: what can be read of these rows, or else the next row that can be.

        Raises:
            TrainingDataError: If no row at all can be read, or more of them cannot than `max_failures` allows.
        """
        indices = [range(len(self))[index] for index in indices]
        encoded = [row for row in map(self._read, indices) if row is not None]
        if encoded or not indices:
            return encoded
        for step in range(1, len(self)):
            row = self._read((indices[-1] + step) % len(self))
            if row is not None:
                return [row]
        raise TrainingDataError(f"None of the {len(self)} samples can be read. {self._advice} then start again.")

    def set_epoch(self, epoch: int) -> None:
        """Say which pass over the data begins: what is drawn at random in a sample is drawn anew. Reaches living workers."""
        self._pass.fill_(epoch)

    @property
    def epoch(self) -> int:
        """Number of the pass, from 0."""
        return int(self._pass)

    @property
    def num_tried(self) -> int:
        """How many rows have been read, or tried to, by this process and its workers."""
        return int(torch.count_nonzero(self._states))

    @property
    def num_failed(self) -> int:
        """How many rows could not be read. Rows that repeat one, as in a mixture, count as well, but are listed once."""
        return int((self._states == FAILED).sum())

    def _read(self, index: int) -> dict[str, Any] | None:
        if self._states[index] == FAILED:
            return None
        encoded = self._encode(self.dataset[index], index)
        was_tried = self._states[index] != UNTRIED
        self._states[index] = READ if encoded is not None else FAILED
        is_all = not was_tried and self.num_tried == len(self)
        if encoded is None or is_all:
            self._check_share(is_all)
        return encoded


class StreamingTrainingDataset(_Reader, datasets.IterableDataset, torch.utils.data.IterableDataset):
    """
    Training data that are read from beginning to end, as inputs of the model, shuffled within a buffer.

    Samples that can't be read are left out. Each worker of a `DataLoader` goes through the list of samples, which costs little,
    and reads the media of its own share. So does each process of a distributed run: accelerate splits what is a
    `datasets.IterableDataset` by [`~StreamingTrainingDataset.shard`]. For this, `dispatch_batches` has to be False in Trainer's
    `accelerator_config`; by default process 0 would read for all of them. Processes get the same number of samples, so that
    none waits for another: what a share lacks at the end, for it is smaller or has failures, is taken from its beginning.

    Args:
        dataset: Samples of the schema, from [`load_training_data`] with `streaming`.
        encoder: Called as `encoder(sample, epoch=…, index=…)`, `index` being the place in the order of this pass.
        max_failures: Share of the samples of a pass that may fail. Beyond it, by more than chance explains, the run is stopped, as
            soon as 20 have been tried; with 0, at the first failure.
        failures_path: File that gets one line for each sample that can't be read, with the reason.
        shuffle_buffer: Samples among which the next one is drawn. 0: none is, as in evaluation. Those of a file that is sorted
            are well mixed only by a buffer as large.
        seed: Of the order, with the number of the epoch.

    Raises:
        TrainingDataError: If `max_failures` is no share, or `failures_path` cannot be written. Later on: if too many samples, or
            all of them, cannot be read.
    """

    def __init__(
        self,
        dataset: datasets.IterableDataset,
        encoder: Encoder,
        max_failures: float = 0.05,
        failures_path: str | os.PathLike | None = None,
        shuffle_buffer: int = 1000,
        seed: int = 42,
    ):
        self.dataset, self.shuffle_buffer, self.seed = dataset, shuffle_buffer, seed
        self._set_up(encoder, max_failures, failures_path)
        self._num_shards, self._shard = 1, 0
        # [processes, 4]: this one's, then one for each worker: number of the pass + 1, tried, failed, whether at its end
        self._counts = torch.zeros(1 + MAX_WORKERS, 4, dtype=torch.int64).share_memory_()
        super().__init__(ExamplesIterable(_numbered, {"dataset": self}))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        num_workers, number = (1, 0) if worker is None else (worker.num_workers, worker.id)
        counts = self._counts[0 if worker is None else 1 + number % MAX_WORKERS]
        counts.copy_(torch.tensor([self.epoch + 1, 0, 0, 0]))

        def is_own(place: int) -> bool:
            return place % self._num_shards == self._shard and place // self._num_shards % num_workers == number

        lacking = 0
        for place, sample in self._ordered():
            is_first = place % self._num_shards == 0
            if is_first and place // self._num_shards % num_workers == number:
                lacking += 1
            if not is_own(place):
                continue
            encoded = self._encode(sample, place)
            counts[1] += 1
            if encoded is None:
                counts[2] += 1
                self._check_share()
            else:
                lacking -= 1
                yield encoded
        counts[3] = 1
        if self._num_shards > 1:
            lacking = yield from self._fill_up(lacking, is_own)
            has_none = lacking > 0
        else:
            of_pass = self._of_pass()
            # Whether the last worker has come to its end, and none has read anything
            has_none = of_pass[:, 3].sum() >= num_workers and bool((of_pass[:, 1] == of_pass[:, 2]).all())
        if has_none:
            raise TrainingDataError(f"None of the samples can be read. {self._advice} then start again.")

    def _fill_up(self, lacking: int, is_own: Callable[[int], bool]) -> Generator[dict[str, Any], None, int]:
        """So many samples of one's own share again, or of all where none of these can be read. Returns how many still lack."""
        for is_taken in (is_own, lambda place: True):
            has_any = True
            while has_any and lacking > 0:
                has_any = False
                for place, sample in self._ordered():
                    if lacking <= 0:
                        return 0
                    encoded = self._encode(sample, place) if is_taken(place) else None
                    if encoded is not None:
                        has_any, lacking = True, lacking - 1
                        yield encoded
        return lacking

    def _ordered(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """All samples in the order of this pass, which is that of every worker and process, with their places in it."""
        epoch = self.epoch
        self.dataset.set_epoch(epoch)
        # Unlike `iter(dataset)`, this gives all samples in a worker, too
        batches = self.dataset.iter(READ_AHEAD)
        samples = ({key: batch[key][row] for key in batch} for batch in batches for row in range(len(batch["id"])))
        return enumerate(_shuffle(samples, self.shuffle_buffer, random.Random(f"{self.seed} {epoch}")))

    def shard(self, num_shards: int, index: int, contiguous: bool = True) -> "StreamingTrainingDataset":
        """
        The share of one of several processes: every `num_shards`-th sample. It shares its counts and its epoch with this one, so
        that both tell of the share that this process has.

        Args:
            num_shards: How many processes there are.
            index: Which of them is meant, from 0.
            contiguous: Of no consequence: the samples of a share are never neighbours.
        """
        # Not by `copy.copy`: what `datasets` copies has the very dictionary of the original
        share = object.__new__(type(self))
        share.__dict__.update(self.__dict__)
        share._num_shards, share._shard = self._num_shards * num_shards, self._shard + self._num_shards * index
        return share

    @property
    def num_shards(self) -> int:
        """Into how many shares it can be split at most: any number."""
        return 1 << 30

    @property
    def n_shards(self) -> int:
        """The same, by the name that accelerate asks for."""
        return self.num_shards

    def set_epoch(self, epoch: int) -> None:
        """Say which pass over the data begins: samples are shuffled anew. Reaches living workers, and all shares."""
        self._pass.fill_(epoch)

    @property
    def epoch(self) -> int:
        """Number of the pass, from 0."""
        return int(self._pass)

    @property
    def num_tried(self) -> int:
        """How many samples of this pass have been read, or tried to, by this process and its workers."""
        return int(self._of_pass()[:, 1].sum())

    @property
    def num_failed(self) -> int:
        """How many samples of this pass could not be read."""
        return int(self._of_pass()[:, 2].sum())

    def _of_pass(self) -> torch.Tensor:
        return self._counts[self._counts[:, 0] == self.epoch + 1]


def _numbered(dataset: StreamingTrainingDataset) -> Iterator[tuple[int, dict[str, Any]]]:
    return enumerate(dataset)


def _shuffle(samples: Iterable[Any], size: int, generator: random.Random) -> Iterator[Any]:
    if size <= 1:
        yield from samples
        return
    buffer = []
    for sample in samples:
        if len(buffer) < size:
            buffer.append(sample)
            continue
        place = generator.randrange(size)
        yield buffer[place]
        buffer[place] = sample
    generator.shuffle(buffer)
    yield from buffer
