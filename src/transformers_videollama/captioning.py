# SPDX-License-Identifier: Apache-2.0
"""Captions of many files: in batches, read ahead by worker processes, and on disk before the next batch begins."""

import json
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch.nn.utils.rnn import pad_sequence
from transformers import ProcessorMixin

from .exceptions import NoAudioError, VideoLlamaError
from .files import media_kind
from .media import MediaSource, has_audio, is_url
from .modeling_video_llama import VideoLlamaForConditionalGeneration


QUESTION = "Describe what happens in this video in one sentence."

# Worker processes of a run that was killed hold its lock for as long as they take to notice
LOCK_SECONDS = 5


@dataclass(frozen=True)
class Caption:
    """What was said of a file, and what was looked at for it: one line of the output.

    Attributes:
        file: URL, or path: relative to the folder of the output where the file is in it, absolute otherwise.
        caption: The answer of the model.
        times: Seconds of the frames that were looked at; empty for a picture or a sound.
        has_audio: Whether it was heard.
        question: What the model was asked.
        model: Name of the model.
        num_frames: How many frames were asked for; a shorter clip has fewer.
    """

    file: str
    caption: str
    times: list[float]
    has_audio: bool
    question: str
    model: str
    num_frames: int


@dataclass(frozen=True)
class FailedFile:
    """A file that has no caption, and why: one line of the file of failures."""

    file: str
    reason: str


@dataclass(frozen=True)
class CaptionReport:
    """What a run did.

    Attributes:
        captions: Those of this run, in the order of the output.
        failed: The files of this run that have none.
        num_skipped: How many files had theirs before.
    """

    captions: list[Caption]
    failed: list[FailedFile]
    num_skipped: int


def caption_files(
    files: Iterable[str | Path],
    output: str | Path,
    model: VideoLlamaForConditionalGeneration,
    processor: ProcessorMixin,
    question: str = QUESTION,
    audio: bool | None = None,
    num_frames: int = 8,
    batch_size: int = 8,
    num_workers: int = 0,
    model_name: str | None = None,
    on_done: Callable[[Caption | FailedFile], None] | None = None,
    **generation_kwargs,
) -> CaptionReport:
    r"""Writes captions of files to a JSON Lines file, and goes on where an earlier run stopped.

    A line is a [`Caption`]. Lines come in the order of `files`, those of a later run behind those of an earlier one. They are on
    disk (`fsync`) before the next batch begins: whatever ends a run, the next one does the batch again that was under way, and
    nothing else. A last line that was cut short is removed. Files that can't be captioned are written with their reasons to a
    file beside the output, `captions.failed.jsonl` for `captions.jsonl`, and stay there until a run that has them among its
    `files` succeeds. One that fails takes nothing else with it, even if it crashes the worker process that reads it.

    Answers are greedy, so that a file gets the same caption whatever is in its batch (up to rounding).

    Args:
        files: Paths or URLs of videos, pictures and sounds; [`expand_files`] makes them of folders and patterns. Those that have
            a line in the output are not done again, however their paths are written.
        output: A `.jsonl` file. It is made where it does not exist.
        model: Model that answers.
        processor: Its processor.
        question: What is asked of every file.
        audio: Whether videos are heard. None: if they have sound, and the model an audio branch. True: one without it fails.
        num_frames: Frames of each video.
        batch_size: Files that the model is given at once. A batch that fails, for lack of memory say, is done one by one.
        num_workers: Processes that read files while the model answers; with 0 they are read in between. They are started as the
            platform does: where that is not by `fork`, a script needs the `if __name__ == "__main__":` of `multiprocessing`.
        model_name: Is written to every line. By default what the model was loaded from.
        on_done: Called with each result, once it is on disk.
        generation_kwargs: Arguments of `generate`, such as `max_new_tokens=32` or `num_beams=4`.

    Raises:
        VideoLlamaError: If the output was made with another question, model, number of frames or use of sound, or is no file of
            captions, or another run is writing to it.
    """
    output = Path(output)
    model_name = model_name or model.name_or_path
    settings = {"question": question, "model": model_name, "num_frames": num_frames}
    lines, failed_lines = JsonLines(output, Caption), JsonLines(failures_path(output), FailedFile)
    with _lock(output):
        done = {caption.file for caption in lines.repair()}
        names = {_name(file, output): str(file) for file in files}
        waiting = uncaptioned(names.values(), output, question, model_name, audio, num_frames)
        waiting = [(_name(file, output), file) for file in waiting]
        still_failed = {failure.file: failure for failure in failed_lines.repair()}

        report = CaptionReport([], [], len(names) - len(waiting))
        read = partial(
            read_file,
            processor=processor,
            question=question,
            audio=audio,
            num_frames=num_frames,
            can_hear=model.config.audio_config is not None,
        )
        with read_ahead(waiting, read, num_workers, 2 * batch_size) as samples:
            while batch := list(islice(samples, batch_size)):
                readable = [sample for sample in batch if isinstance(sample, Sample)]
                answers = iter(_answer(readable, model, processor, generation_kwargs))
                results = [
                    _result(sample, next(answers), settings) if isinstance(sample, Sample) else sample
                    for sample in batch
                ]
                captions = [result for result in results if isinstance(result, Caption)]
                failures = [result for result in results if isinstance(result, FailedFile)]
                lines.append(captions)
                failed_lines.append(failures)
                report.captions.extend(captions)
                report.failed.extend(failures)
                if on_done is not None:
                    for result in results:
                        on_done(result)
        still_failed.update({failure.file: failure for failure in report.failed})
        done.update(caption.file for caption in report.captions)
        failed_lines.replace([failure for file, failure in still_failed.items() if file not in done])
    return report


def uncaptioned(
    files: Iterable[str | Path],
    output: str | Path,
    question: str,
    model_name: str,
    audio: bool | None = None,
    num_frames: int = 8,
) -> list[str]:
    """Those of some files that have no line in an output yet: what [`caption_files`] would do with the same arguments.

    Raises:
        VideoLlamaError: As there.
    """
    output = Path(output)
    captions, _ = JsonLines(output, Caption).read()
    settings = {"question": question, "model": model_name, "num_frames": num_frames}
    for caption in captions:
        for name, value in settings.items():
            if (theirs := getattr(caption, name)) != value:
                raise VideoLlamaError(
                    f"{output} was made with {name} {theirs!r}, and now {value!r} is given: go on with the same, or name "
                    "another output."
                )
        if audio is not None and caption.times and audio != caption.has_audio:
            raise VideoLlamaError(
                f"{output} has captions {'with' if caption.has_audio else 'without'} sound, such as that of {caption.file}, and "
                f"now they are to be made {'with' if audio else 'without'}: go on as before, or name another output."
            )
    done = {caption.file for caption in captions}
    return [str(file) for file in files if _name(file, output) not in done]


def failures_path(output: str | Path) -> Path:
    """Where the failures of an output are written: `captions.failed.jsonl` for `captions.jsonl`."""
    return Path(output).with_suffix(".failed.jsonl")


def _name(file: str | Path, output: Path) -> str:
    """The name of a file in an output, the same however its path is written and from wherever it is run."""
    if is_url(str(file)):
        return str(file)
    path, folder = Path(os.path.abspath(file)), Path(os.path.abspath(output.parent))
    return (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()


@contextmanager
def _lock(output: Path) -> Iterator[None]:
    output.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output.with_name(f".{output.name}.lock"), timeout=LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout as error:
        raise VideoLlamaError(f"Another run is writing to {output}: wait for it, or name another output.") from error
    try:
        yield
    finally:
        lock.release()


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Sample:
    """A file as inputs of the model, in a batch of one.

    Attributes:
        name: Of the file, in the output.
        inputs: Arrays by name. Tensors would go from process to process by shared memory, which containers have little of.
        times: Seconds of the frames.
        has_audio: Whether it is heard.
    """

    name: str
    inputs: dict[str, np.ndarray]
    times: list[float]
    has_audio: bool


def read_file(
    name: str,
    file: str,
    processor: ProcessorMixin,
    question: str,
    audio: bool | None,
    num_frames: int,
    can_hear: bool,
) -> Sample | FailedFile:
    """Reads a file with its question, or says why that can't be done."""
    try:
        media = MediaSource.of(file)
        kind = media_kind(media)
        is_heard = kind == "video" and audio is not False and can_hear and has_audio(media)
        if kind == "video" and audio and not is_heard:
            reason = "it has no audio track" if can_hear else "the model has no audio branch"
            raise NoAudioError(f"Sound was asked of {media.name}, but {reason}.")
        content = [{"type": kind, kind: media}, {"type": "text", "text": question}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            load_audio_from_video=is_heard,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"num_frames": num_frames, "return_metadata": True},
        )
        metadata = inputs.pop("video_metadata", None)
        times = []
        with suppress(ValueError):  # a file without a clock
            times = [round(float(time), 3) for time in metadata[0].timestamps] if metadata else []
        return Sample(name, {key: value.numpy() for key, value in inputs.items()}, times, is_heard or kind == "audio")
    except Exception as error:  # whatever a file does, it must not end the run
        return FailedFile(name, reason_of(error))


def reason_of(error: Exception) -> str:
    """An error in one line."""
    message = " ".join(str(error).split())
    is_plain = isinstance(error, VideoLlamaError | OSError) and message
    return message if is_plain else f"{type(error).__name__}: {message}"


@contextmanager
def read_ahead(
    files: list[tuple[str, str]],
    read: Callable[[str, str], Sample | FailedFile],
    num_workers: int,
    ahead: int,
) -> Iterator[Iterator[Sample | FailedFile]]:
    """Reads files in their order, by worker processes up to some number of files ahead of what is used."""
    if num_workers == 0:
        yield (read(name, file) for name, file in files)
        return
    pools: list[ProcessPoolExecutor] = []

    def new_pool(num_workers: int) -> ProcessPoolExecutor:
        context = multiprocessing.get_context()
        pools.append(
            ProcessPoolExecutor(num_workers, mp_context=context, initializer=_become_worker, initargs=(read,))
        )
        return pools[-1]

    def read_alone(name: str, file: str) -> Sample | FailedFile:
        pool = new_pool(1)
        try:
            return pool.submit(_read_in_worker, name, file).result()
        except BrokenProcessPool:
            return FailedFile(
                name, "The process that read it crashed: the file is damaged, or too large for the memory."
            )
        finally:
            pool.shutdown()

    def results() -> Iterator[Sample | FailedFile]:
        waiting, running = deque(files), deque()
        pool = new_pool(num_workers)
        while waiting or running:
            try:
                while waiting and len(running) < max(ahead, num_workers):
                    running.append((*waiting[0], pool.submit(_read_in_worker, *waiting[0])))
                    waiting.popleft()
                result = running[0][2].result()
            except BrokenProcessPool:
                # Nobody knows which file it was: each that has no result gets a process of its own to crash
                for name, file, future in running:
                    yield future.result() if future.exception() is None else read_alone(name, file)
                running.clear()
                pool = new_pool(num_workers)
            else:
                running.popleft()
                yield result

    try:
        yield results()
    finally:
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=True)


def _become_worker(read: Callable[[str, str], Sample | FailedFile]) -> None:
    global _read
    _read = read
    # As in torch's own data loaders: several processes with several threads each get in each other's way
    torch.set_num_threads(1)
    # Ctrl-C is for the main process, which ends the others
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A progress bar takes the place of stderr, and its thread may hold the lock of it at the moment of the fork
    sys.stderr = open(os.dup(2), "w", buffering=1, errors="backslashreplace")
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed process does not end its workers."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _read_in_worker(name: str, file: str) -> Sample | FailedFile:
    return _read(name, file)


# ---------------------------------------------------------------------------------------------------------------------
# Answering
# ---------------------------------------------------------------------------------------------------------------------
def _answer(
    samples: list[Sample],
    model: VideoLlamaForConditionalGeneration,
    processor: ProcessorMixin,
    generation_kwargs: dict[str, Any],
) -> list[str | Exception]:
    """An answer to each sample, or why there is none."""
    if not samples:
        return []
    failure = None
    try:
        inputs = _collate(samples, processor.tokenizer.pad_token_id).items()
        inputs = {name: tensor.to(model.device) for name, tensor in inputs}
        output_ids = model.generate(**inputs, **{"do_sample": False, **generation_kwargs})
        texts = processor.batch_decode(output_ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    except Exception as error:
        # Without its traceback, which keeps the tensors of the batch
        failure = error.with_traceback(None)
    if failure is None:
        for stop_string in model.generation_config.stop_strings or []:
            texts = [text.removesuffix(stop_string) for text in texts]
        return [text.strip() for text in texts]
    if len(samples) == 1:
        return [failure]
    return [answer for sample in samples for answer in _answer([sample], model, processor, generation_kwargs)]


def _collate(samples: list[Sample], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Samples of any kinds as one batch: prompts padded on the left, frames at the end of their video."""
    names = dict.fromkeys(name for sample in samples for name in sample.inputs)
    return {
        name: pad_sequence(
            [torch.from_numpy(sample.inputs[name][0]) for sample in samples if name in sample.inputs],
            batch_first=True,
            padding_value=pad_token_id if name == "input_ids" else 0,
            padding_side="left" if name in ("input_ids", "attention_mask") else "right",
        )
        for name in names
    }


def _result(sample: Sample, answer: str | Exception, settings: dict[str, Any]) -> Caption | FailedFile:
    if isinstance(answer, Exception):
        return FailedFile(sample.name, reason_of(answer))
    return Caption(sample.name, answer, sample.times, sample.has_audio, **settings)


# ---------------------------------------------------------------------------------------------------------------------
# Keeping
# ---------------------------------------------------------------------------------------------------------------------
class JsonLines:
    """A file with one record as JSON on each line, which survives a program that ends in the middle of one.

    Args:
        path: Of the file.
        record: Data class of the records; fields of a line that it does not know are passed over.
    """

    def __init__(self, path: Path, record: type):
        self.path = path
        self.record = record

    def read(self) -> tuple[list[Any], bytes]:
        """All records, and what there is of a last line that was cut short.

        Raises:
            VideoLlamaError: If a line is no such record.
        """
        if not self.path.exists():
            return [], b""
        *lines, rest = self.path.read_bytes().split(b"\n")
        records = [self._parse(line, number) for number, line in enumerate(lines, 1) if line.strip()]
        # A machine that loses its power leaves zeros; anything else was never written by this program
        begin = f'{{"{fields(self.record)[0].name}"'.encode()
        if not (rest.startswith(begin) or begin.startswith(rest) or not rest.strip(b"\0")):
            self._parse(rest, len(lines) + 1)
        return records, rest

    def repair(self) -> list[Any]:
        """All records, after a last line that was cut short is completed, if it only lacks its end, or removed."""
        records, rest = self.read()
        if not rest:
            return records
        with open(self.path, "r+b") as file:
            file.seek(-len(rest), os.SEEK_END)
            try:
                records.append(self._parse(rest, 0))
            except VideoLlamaError:
                file.truncate()
            else:
                file.write(rest + b"\n")
            file.flush()
            os.fsync(file.fileno())
        return records

    def append(self, records: list[Any]) -> None:
        """Writes records, and returns when they are on disk."""
        if records:
            with open(self.path, "ab") as file:
                self._write(file, records)

    def replace(self, records: list[Any]) -> None:
        """Writes records in place of all that there are, at once; without any, the file is removed."""
        if not records:
            self.path.unlink(missing_ok=True)
            return
        new = self.path.with_name(f".{self.path.name}.new")
        with open(new, "wb") as file:
            self._write(file, records)
        os.replace(new, self.path)

    def _write(self, file: Any, records: list[Any]) -> None:
        for record in records:
            line = json.dumps(asdict(record), ensure_ascii=False) + "\n"
            # The bytes of a name that is not UTF-8 become JSON's own escapes
            file.write(line.encode(errors="backslashreplace"))
        file.flush()
        os.fsync(file.fileno())

    def _parse(self, line: bytes, number: int) -> Any:
        try:
            values = json.loads(line)
            return self.record(**{field.name: values[field.name] for field in fields(self.record)})
        except (ValueError, KeyError, TypeError) as error:
            names = ", ".join(field.name for field in fields(self.record))
            raise VideoLlamaError(
                f"Line {number} of {self.path} is none of {names}: mend or remove the line, or name another file."
            ) from error
