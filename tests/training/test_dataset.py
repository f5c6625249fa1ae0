# SPDX-License-Identifier: Apache-2.0
"""Data sets for training: what becomes of samples that can't be read, in one process, in workers and in several processes."""

import json
import os
import pickle
import time
from collections import Counter

import datasets
import pytest
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from torch.utils.data import DataLoader

from transformers_videollama import media
from transformers_videollama.exceptions import TrainingDataError
from transformers_videollama.training.dataset import Failures, StreamingTrainingDataset, TrainingDataset
from transformers_videollama.training.formats import FEATURES, load_training_data

from ..helpers import ROOT
from ..media_files import write_clip


datasets.disable_progress_bars()

# How workers are started, how many and whether they last: spawning one takes as long as all imports
WORKERS = pytest.mark.parametrize(
    ("method", "number", "is_persistent"), [("fork", 2, False), ("fork", 2, True), ("spawn", 1, True)]
)


class ClipEncoder:
    """Decodes the clip of a sample, and tells what it was called with. Lines of `log` are the decodes, by process."""

    def __init__(self, log):
        self.log = str(log)

    def __call__(self, sample, epoch=0, index=0):
        path = sample["messages"][0]["content"][0]["path"]
        with open(self.log, "a") as file:
            file.write(f"{os.getpid()} {sample['id']}\n")
        if sample["messages"][1]["content"][0]["text"] == "too long":
            raise TrainingDataError("no answer is left")
        if sample["messages"][1]["content"][0]["text"] == "bug":
            raise RuntimeError("a bug")
        frames, _ = media.read_video(path)
        return {"id": sample["id"], "epoch": epoch, "index": index, "frames": len(frames)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A clip, one that is cut short, and a file of text."""
    folder = tmp_path_factory.mktemp("clips")
    write_clip(folder / "good.mp4", frames=2, size=(16, 16))
    data = (folder / "good.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(data[: len(data) // 2])
    (folder / "text.mp4").write_text("no clip")
    return folder


@pytest.fixture
def encoder(tmp_path):
    return ClipEncoder(tmp_path / "log")


def decodes(encoder):
    with open(encoder.log) as file:
        return [tuple(line.split()) for line in file]


@pytest.fixture
def write_rows(folder, tmp_path):
    """Writes samples given as names of clips or answers: `.` is a good one."""

    def write(kinds):
        file = tmp_path / "data.jsonl"
        with open(file, "w") as lines:
            for number, kind in enumerate(kinds):
                clip = {"cut": "cut", "text": "text", "missing": "missing"}.get(kind, "good")
                answer = kind if kind in ("too long", "bug") else "a ball"
                content = [{"type": "video", "path": f"{folder}/{clip}.mp4"}]
                messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
                lines.write(json.dumps({"id": f"s{number}", "messages": messages}) + "\n")
        return file

    return write


@pytest.fixture
def make(write_rows, encoder, tmp_path):
    """Makes a data set of samples."""

    def make(kinds, streaming=False, **kwargs):
        data = load_training_data(f"messages={write_rows(kinds)}", streaming, cache_dir=tmp_path / "cache")
        kwargs = {"failures_path": tmp_path / "failures.jsonl", **kwargs}
        return (StreamingTrainingDataset if streaming else TrainingDataset)(data, encoder, **kwargs)

    return make


def listed(dataset):
    with open(dataset.failures.path) as file:
        return [json.loads(line) for line in file]


def same(batch):
    """A collator that leaves rows as they are."""
    return batch


def ids(batches):
    return [row["id"] for batch in batches for row in batch]


def names(numbers):
    return [f"s{number}" for number in numbers]


# ---------------------------------------------------------------------------------------------------------------------
# In any order
# ---------------------------------------------------------------------------------------------------------------------
class TestTrainingDataset:
    def test_samples_are_encoded_with_their_number_and_epoch(self, make):
        dataset = make(["."] * 3)
        assert len(dataset) == 3
        assert dataset[1] == {"id": "s1", "epoch": 0, "index": 1, "frames": 2}
        dataset.set_epoch(2)
        assert dataset.__getitems__([2, 0]) == [
            {"id": "s2", "epoch": 2, "index": 2, "frames": 2},
            {"id": "s0", "epoch": 2, "index": 0, "frames": 2},
        ]
        assert dataset[-1]["index"] == 2
        with pytest.raises(IndexError):
            dataset[3]

    def test_unreadable_samples_are_left_out_counted_and_listed(self, make, folder):
        dataset = make([".", "cut", "missing", ".", "too long", "text"])
        assert ids([dataset.__getitems__([0, 1, 2, 3, 4, 5])]) == ["s0", "s3"]
        assert (dataset.num_tried, dataset.num_failed) == (6, 4)
        lines = listed(dataset)
        assert [(line["id"], line["source"], line["paths"]) for line in lines] == [
            ("s1", "messages", [f"{folder}/cut.mp4"]),
            ("s2", "messages", [f"{folder}/missing.mp4"]),
            ("s4", "messages", [f"{folder}/good.mp4"]),
            ("s5", "messages", [f"{folder}/text.mp4"]),
        ]
        assert "cut short" in lines[0]["reason"]
        assert "does not exist" in lines[1]["reason"]
        assert lines[2]["reason"] == "no answer is left"

    def test_unreadable_samples_are_decoded_and_listed_once(self, make, encoder):
        dataset = make([".", "cut"])
        for epoch in range(3):
            dataset.set_epoch(epoch)
            assert ids([dataset.__getitems__([0, 1])]) == ["s0"]
        assert Counter(name for _, name in decodes(encoder)) == {"s0": 3, "s1": 1}
        assert len(listed(dataset)) == 1
        assert (dataset.num_tried, dataset.num_failed) == (2, 1)

    def test_rows_that_repeat_a_failed_sample_are_tried_on_their_own_and_listed_once(self, make, encoder):
        """The same clip with the same name may have another question, which can be laid out."""
        dataset = make([".", "cut"])
        dataset = TrainingDataset(
            datasets.concatenate_datasets([dataset.dataset] * 3), encoder, failures_path=dataset.failures.path
        )
        assert ids([dataset.__getitems__([0, 1, 2, 3, 4, 5])]) == ["s0"] * 3
        assert Counter(name for _, name in decodes(encoder)) == {"s0": 3, "s1": 3}
        assert (dataset.num_tried, dataset.num_failed, len(listed(dataset))) == (6, 3, 1)

    def test_a_batch_of_which_nothing_is_left_has_the_next_sample(self, make):
        dataset = make([".", "cut", "text", "cut", "."])
        assert ids([dataset.__getitems__([1, 2])]) == ["s4"]
        assert ids([make([".", "cut", "cut"]).__getitems__([2, 1])]) == ["s0"]

    def test_one_unreadable_sample_is_an_error(self, make):
        dataset = make([".", "cut"])
        for _ in range(2):
            with pytest.raises(TrainingDataError, match="Sample s1 cannot be read .*cut short"):
                dataset[1]

    def test_bugs_are_not_taken_for_unreadable_samples(self, make):
        with pytest.raises(RuntimeError, match="a bug"):
            make([".", "bug"]).__getitems__([0, 1])

    def test_too_many_failures_stop_the_run(self, make, tmp_path):
        kinds = ["."] * 18 + ["cut"] * 3 + ["."] * 18 + ["cut", "cut"]
        dataset = make(kinds)
        dataset.__getitems__(range(40))
        assert (dataset.num_tried, dataset.num_failed) == (40, 4)
        with pytest.raises(TrainingDataError) as error:
            dataset.__getitems__([40, 0])
        message = str(error.value)
        assert message.startswith(
            "5 of 41 samples (12.2%) cannot be read, more than the 0.05 that max_failures allows."
        )
        assert f"All are listed in {tmp_path}/failures.jsonl: mend or remove them, or raise max_failures." in message
        assert "cut short" in message
        assert len(listed(dataset)) == 5

    def test_once_all_are_tried_the_share_is_exact(self, make):
        dataset = make(["cut"] * 2 + ["."] * 19)
        dataset.__getitems__(range(20))
        with pytest.raises(TrainingDataError, match=r"2 of 21 samples \(9.5%\) cannot be read"):
            dataset.__getitems__([20])

    def test_few_samples_say_little(self, make):
        dataset = make(["cut"] * 10 + ["."] * 9 + ["cut"] + ["."])
        assert len(dataset.__getitems__(range(19))) == 9
        with pytest.raises(TrainingDataError, match="11 of 20 samples"):
            dataset.__getitems__([19])

    def test_the_share_is_a_choice(self, make):
        with pytest.raises(TrainingDataError, match="1 of 2 samples"):
            make([".", "cut", "."], max_failures=0).__getitems__([0, 1, 2])
        assert len(make([".", "cut"] * 20, max_failures=0.5).__getitems__(range(40))) == 20
        assert len(make(["cut"] * 39 + ["."], max_failures=1).__getitems__(range(40))) == 1
        for wrong in (-0.1, 1.1, "5%", True, float("nan")):
            with pytest.raises(TrainingDataError, match="expected a share"):
                make(["."], max_failures=wrong)

    @pytest.mark.parametrize("number", [5, 40])
    def test_data_of_which_nothing_can_be_read_end_in_an_error(self, make, number, encoder):
        dataset = make(["cut"] * number, max_failures=1)
        for _ in range(2):
            with pytest.raises(
                TrainingDataError, match=f"None of the {number} samples can be read.*cut short.*listed in"
            ):
                dataset.__getitems__([1, 2])
        assert len(decodes(encoder)) == number

    def test_a_list_is_not_needed(self, make):
        dataset = make(["cut"] * 5, failures_path=None)
        with pytest.raises(TrainingDataError, match="Pass failures_path for a list of all"):
            dataset.__getitems__([0])

    def test_it_says_so_once(self, make, caplog):
        make([".", "cut", "missing"], max_failures=1).__getitems__([0, 1, 2])
        [text] = [record.getMessage() for record in caplog.records]
        assert text.startswith("Sample s1 cannot be read and is skipped: ")

    @WORKERS
    def test_workers(self, make, encoder, monkeypatch, method, number, is_persistent):
        monkeypatch.syspath_prepend(str(ROOT))
        dataset = make(["."] * 7 + ["cut", "missing"] + ["."] * 3, max_failures=0.2)
        loader = DataLoader(
            dataset,
            batch_size=2,
            collate_fn=same,
            num_workers=number,
            persistent_workers=is_persistent,
            multiprocessing_context=method,
        )
        good = names([*range(7), 9, 10, 11])
        for epoch in range(2):
            dataset.set_epoch(epoch)
            batches = list(loader)
            assert ids(batches) == good
            assert [len(batch) for batch in batches] == [2, 2, 2, 1, 1, 2]
            assert {row["epoch"] for batch in batches for row in batch} == {epoch}
        # What one worker found is known to all, and to the next ones
        assert (dataset.num_tried, dataset.num_failed) == (12, 2)
        assert sorted(line["id"] for line in listed(dataset)) == ["s7", "s8"]
        tries = Counter(name for _, name in decodes(encoder))
        assert (tries["s7"], tries["s8"], tries["s0"]) == (1, 1, 2)
        assert str(os.getpid()) not in {process for process, _ in decodes(encoder)}

    def test_workers_stop_the_run(self, make):
        loader = DataLoader(make(["cut", "."] * 20), batch_size=2, collate_fn=same, num_workers=1)
        with pytest.raises(TrainingDataError, match="samples .* cannot be read, more than the 0.05"):
            list(loader)

    def test_it_can_be_pickled(self, make):
        dataset = make([".", "cut"])
        dataset.set_epoch(3)
        copy = pickle.loads(pickle.dumps(dataset))
        assert copy.__getitems__([0, 1]) == [{"id": "s0", "epoch": 3, "index": 0, "frames": 2}]

    def test_accelerate_passes_the_epoch_on(self, make):
        dataset = make(["."] * 4)
        loader = DataLoader(
            dataset, batch_size=2, collate_fn=same, shuffle=True, num_workers=1, persistent_workers=True
        )
        loader = prepare_data_loader(loader, num_processes=1, process_index=0, use_seedable_sampler=True)
        seen = [{row["epoch"] for batch in loader for row in batch} for _ in range(3)]
        assert seen == [{0}, {1}, {2}]


class TestFailures:
    def test_processes_and_runs_share_a_list(self, make, tmp_path):
        path = tmp_path / "new/failures.jsonl"
        sample = make(["."]).dataset[0]
        first, second = Failures(path), Failures(path)
        first.add(sample, ValueError("one"))
        second.add({**sample, "id": "ä\udcff"}, ValueError("two"))
        second.add(sample, ValueError("three"))
        Failures(path).add(sample, ValueError("four"))
        lines = [json.loads(line) for line in path.read_bytes().splitlines()]
        assert [(line["id"], line["reason"]) for line in lines] == [("s0", "one"), ("ä\udcff", "two")]

    def test_a_line_that_was_cut_short_spoils_no_other(self, make, tmp_path):
        path = tmp_path / "failures.jsonl"
        path.write_text('{"id": "s0", "sou')
        Failures(path).add(make(["."]).dataset[0], ValueError("one"))
        assert json.loads(path.read_text().splitlines()[1])["reason"] == "one"

    def test_a_folder_is_no_list(self, tmp_path):
        with pytest.raises(TrainingDataError, match="pass the path of a file, new or old, as failures_path"):
            Failures(tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# Streaming
# ---------------------------------------------------------------------------------------------------------------------
class TestStreamingTrainingDataset:
    def test_samples_come_in_another_order_each_epoch(self, make):
        dataset = make(["."] * 30, streaming=True, shuffle_buffer=10)
        orders = []
        for epoch in (0, 1, 0):
            dataset.set_epoch(epoch)
            rows = list(dataset)
            assert [row["index"] for row in rows] == list(range(30))
            assert {row["epoch"] for row in rows} == {epoch}
            orders.append([row["id"] for row in rows])
        assert orders[0] == orders[2] != orders[1]
        assert {tuple(sorted(order)) for order in orders} == {tuple(sorted(names(range(30))))}
        assert [row["id"] for row in make(["."] * 30, streaming=True, shuffle_buffer=0)] == names(range(30))
        assert [row["id"] for row in make(["."] * 30, True, shuffle_buffer=10, seed=1)] != orders[0]

    def test_the_first_sample_does_not_wait_for_the_last(self, make, encoder):
        dataset = make(["."] * 250, streaming=True, shuffle_buffer=20)
        next(iter(dataset))
        assert len(decodes(encoder)) == 1

    def test_unreadable_samples_are_left_out_counted_and_listed(self, make, encoder):
        dataset = make([".", "cut", ".", "too long", "."], streaming=True, shuffle_buffer=0)
        for epoch in range(2):
            dataset.set_epoch(epoch)
            assert [row["id"] for row in dataset] == names([0, 2, 4])
            assert (dataset.num_tried, dataset.num_failed) == (5, 2)
        assert [line["id"] for line in listed(dataset)] == ["s1", "s3"]
        assert Counter(name for _, name in decodes(encoder)) == dict.fromkeys(names(range(5)), 2)

    def test_too_many_failures_stop_the_run(self, make):
        with pytest.raises(TrainingDataError, match=r"4 of 21 samples \(19.0%\) cannot be read"):
            list(make(["cut"] * 3 + ["."] * 17 + ["cut"] + ["."], streaming=True, shuffle_buffer=0))
        with pytest.raises(TrainingDataError, match="1 of 2 samples"):
            list(make([".", "cut"], streaming=True, shuffle_buffer=0, max_failures=0))

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_data_of_which_nothing_can_be_read_end_in_an_error(self, make, num_workers):
        dataset = make(["cut"] * 7, streaming=True, max_failures=1)
        with pytest.raises(TrainingDataError, match="None of the samples can be read.*listed in"):
            list(DataLoader(dataset, batch_size=2, collate_fn=same, num_workers=num_workers))
        assert len(listed(dataset)) == 7

    def test_a_worker_that_reads_nothing_is_no_error(self, make):
        dataset = make(["cut", ".", "cut", "."], streaming=True, shuffle_buffer=0)
        loader = DataLoader(dataset, batch_size=2, collate_fn=same, num_workers=2)
        assert sorted(ids(loader)) == ["s1", "s3"]

    def test_broken_rows_stop_the_run(self, make, write_rows):
        dataset = make(["."] * 3, streaming=True)
        with open(write_rows(["."] * 3), "a") as file:
            file.write("broken\n")
        with pytest.raises(TrainingDataError, match="line 4: is not valid JSON"):
            list(dataset)

    @WORKERS
    def test_workers_split_the_samples(self, make, monkeypatch, method, number, is_persistent):
        monkeypatch.syspath_prepend(str(ROOT))
        dataset = make(["."] * 12 + ["cut"] + ["."] * 4, streaming=True, shuffle_buffer=5, max_failures=0.2)
        loader = DataLoader(
            dataset,
            batch_size=2,
            collate_fn=same,
            num_workers=number,
            persistent_workers=is_persistent,
            multiprocessing_context=method,
        )
        orders = []
        for epoch in range(2):
            dataset.set_epoch(epoch)
            batches = list(loader)
            assert {row["epoch"] for batch in batches for row in batch} == {epoch}
            assert (dataset.num_tried, dataset.num_failed) == (17, 1)
            orders.append(ids(batches))
            assert sorted(orders[-1]) == sorted(names([*range(12), *range(13, 17)]))
        assert orders[0] != orders[1]
        assert [line["id"] for line in listed(dataset)] == ["s12"]

    def test_samples_are_the_same_whatever_the_number_of_workers(self, make):
        dataset = make(["."] * 9, streaming=True, shuffle_buffer=4)
        rows = [
            {
                row["index"]: row["id"]
                for batch in DataLoader(dataset, 2, collate_fn=same, num_workers=number)
                for row in batch
            }
            for number in (0, 1, 2)
        ]
        assert rows[0] == rows[1] == rows[2]

    def test_mixtures_stream_in_workers(self, make, write_rows, encoder, tmp_path):
        file = write_rows(["."] * 6)
        data = load_training_data([f"messages={file},weight=2", f"messages={file},weight=1"], streaming=True)
        dataset = StreamingTrainingDataset(data, encoder)
        expected = Counter(row["id"] for row in dataset)
        assert Counter(ids(DataLoader(dataset, 2, collate_fn=same, num_workers=2))) == expected

    def test_it_can_be_pickled(self, make):
        dataset = make([".", "cut", "."], streaming=True)
        dataset.set_epoch(3)
        rows = list(pickle.loads(pickle.dumps(dataset)))
        assert {(row["id"], row["epoch"]) for row in rows} == {("s0", 3), ("s2", 3)}


class TestProcesses:
    """How accelerate splits the data among the processes of a run: as `Trainer` calls it, for each process in turn."""

    @staticmethod
    def prepare(dataset, number, processes=2, **kwargs):
        loader = DataLoader(dataset, batch_size=2, collate_fn=same, **kwargs)
        Accelerator(cpu=True)  # Its state must be there, as in a run
        return prepare_data_loader(
            loader, num_processes=processes, process_index=number, dispatch_batches=False, put_on_device=False
        )

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_no_sample_is_read_by_two_processes(self, make, encoder, num_workers):
        dataset = make(["."] * 16, streaming=True, shuffle_buffer=5)
        shares = [ids(self.prepare(dataset, number, num_workers=num_workers)) for number in range(2)]
        assert sorted(shares[0] + shares[1]) == sorted(names(range(16)))
        assert len(shares[0]) == len(shares[1])
        assert len(decodes(encoder)) == 16

    @pytest.mark.parametrize("num_workers", [0, 2])
    @pytest.mark.parametrize("kinds", [["."] * 13, ["."] * 12 + ["cut", "cut", "."], ["cut", ".", "cut", "."], ["."]])
    def test_processes_get_as_many_batches_as_each_other(self, make, kinds, num_workers):
        dataset = make(kinds, streaming=True, shuffle_buffer=0, max_failures=0.3)
        shares = []
        for number in range(3):
            share = list(self.prepare(dataset, number, 3, num_workers=num_workers))
            shares.append([len(batch) for batch in share])
        assert shares[0] == shares[1] == shares[2]
        assert sum(shares[0]) == -(-len(kinds) // 3)

    def test_processes_of_which_none_can_read_anything_end_in_an_error(self, make):
        dataset = make(["cut"] * 5, streaming=True)
        for number in range(2):
            with pytest.raises(TrainingDataError, match="None of the samples can be read"):
                list(self.prepare(dataset, number))

    def test_each_process_learns_of_the_epoch(self, make):
        dataset = make(["."] * 8, streaming=True, shuffle_buffer=8)
        loader = self.prepare(dataset, 1, num_workers=1, persistent_workers=True)
        orders = [[(row["id"], row["epoch"]) for batch in loader for row in batch] for _ in range(2)]
        assert [{epoch for _, epoch in order} for order in orders] == [{0}, {1}]
        assert [name for name, _ in orders[0]] != [name for name, _ in orders[1]]
        assert dataset.epoch == 1

    def test_counts_of_a_share_are_those_of_the_whole(self, make):
        dataset = make([".", "cut", "."], streaming=True, shuffle_buffer=0)
        list(self.prepare(dataset, 1))
        assert (dataset.num_tried, dataset.num_failed) == (1, 1)

    def test_batches_that_are_skipped_on_resuming_are_those_that_came_first(self, make):
        dataset = make(["."] * 6 + ["cut"] + ["."] * 5, streaming=True, shuffle_buffer=5, max_failures=0.2)
        whole = list(self.prepare(dataset, 0, 1))
        assert list(skip_first_batches(self.prepare(dataset, 0, 1), 2)) == whole[2:]

    def test_rows_in_any_order_are_split_by_the_sampler(self, make):
        dataset = make(["."] * 6 + ["cut", "."], max_failures=0.5)
        shares = [ids(self.prepare(dataset, number)) for number in range(2)]
        assert sorted(shares[0] + shares[1]) == names([0, 1, 2, 3, 4, 5, 7])


def test_large_data_are_ready_at_once(encoder):
    """A data set of a million rows is neither copied nor looked through to make it one for training."""
    row = {"id": "s", "source": "x", "layout": "chat", "messages": []}
    rows = datasets.Dataset.from_list([row], features=FEATURES).select([0] * 1_000_000)
    begin = time.perf_counter()
    dataset = TrainingDataset(rows, encoder)
    assert dataset.num_failed == 0
    assert time.perf_counter() - begin < 5
    assert dataset._states.element_size() * len(dataset) == 1_000_000
