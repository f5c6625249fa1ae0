# SPDX-License-Identifier: Apache-2.0
"""The cache of features: the same loss with it as without, whatever kills its run, and never for what it was not made for."""

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from shutil import copytree

import numpy as np
import pyarrow as pa
import pytest
import torch
from filelock import FileLock
from PIL import Image
from torch.utils.data import DataLoader
from transformers import AutoProcessor
from typer.testing import CliRunner

from transformers_videollama import VideoLlamaForConditionalGeneration
from transformers_videollama.cli import app
from transformers_videollama.exceptions import FeatureCacheError, MediaError
from transformers_videollama.modeling_video_llama import BRANCHES as BRANCHES_OF_MODEL
from transformers_videollama.training import cache as caching
from transformers_videollama.training.cache import (
    CacheSettings,
    FeatureCache,
    cache_features,
    load_encoders,
    weights_hash,
)
from transformers_videollama.training.collator import VideoLlamaDataCollator
from transformers_videollama.training.dataset import TrainingDataset
from transformers_videollama.training.encoding import SampleEncoder
from transformers_videollama.training.formats import FEATURES, load_training_data

from ..media_files import write_clip, write_sound


BRANCHES = [("vision_branch", "frames"), ("audio_branch", "frames"), ("audio_branch", "sound"), ("both", "frames"), ("both", "sound")]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def processor(converted):
    return AutoProcessor.from_pretrained(converted)


@pytest.fixture(scope="module")
def model(converted):
    """The original's tiny checkpoint, whose losses depend on all that it is given."""
    return VideoLlamaForConditionalGeneration.from_pretrained(converted, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """A clip with sound, a short one without, one more with sound, a picture and a sound."""
    folder = tmp_path_factory.mktemp("media")
    write_clip(folder / "a.mp4", audio_rate=16000)
    write_clip(folder / "b.mp4", frames=5)
    write_clip(folder / "c.mp4", frames=12, audio_rate=16000)
    write_sound(folder / "s.wav", rate=16000)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(folder / "p.png")
    return folder


def sample(path: Path, name: str | None = None, layout: str = "chat", **limits: float) -> dict:
    kind = {".mp4": "video", ".png": "image", ".wav": "audio"}[path.suffix]
    empty = {"type": None, "text": None, "path": None, "start": None, "end": None}
    question = [{**empty, "type": kind, "path": str(path), **limits}]
    if layout == "chat":
        question.append({**empty, "type": "text", "text": "What is there?"})
    answer = [{**empty, "type": "text", "text": "A picture that gets brighter."}]
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"id": name or path.name, "source": "test", "layout": layout, "messages": messages}


def samples_for(media: Path, branch: str, audio_from: str) -> list[dict]:
    """All kinds of samples that a branch can be trained on, with clips that come twice, and in parts."""
    names = ["a.mp4", "b.mp4", "c.mp4", "p.png", "a.mp4", "s.wav"]
    if audio_from == "sound" and branch == "audio_branch":
        names = ["a.mp4", "c.mp4", "s.wav", "a.mp4"]
    elif audio_from == "frames":
        names.remove("s.wav")
    rows = [sample(media / name, f"{number}") for number, name in enumerate(names)]
    rows.append(sample(media / "a.mp4", "part", start=1.0, end=2.0))
    if audio_from == "frames" and branch != "vision_branch":
        # A video that is heard and not seen, before it is seen, and alone
        for number, name in enumerate(("b.mp4", "c.mp4")):
            # A part that is heard only, so that no other sample brings it into the cache
            heard = sample(media / name, f"heard {number}", start=0.1)
            content = heard["messages"][0]["content"]
            content[0]["type"] = "audio"
            if number == 0:
                content.insert(1, sample(media / "a.mp4")["messages"][0]["content"][0])
            rows.insert(number, heard)
    return [*rows, sample(media / "c.mp4", "caption", layout="caption")]


def settings_for(branch: str = "vision_branch", audio_from: str = "frames", **others) -> dict:
    return {"branch": branch, "audio_from": audio_from, **others}


def in_precision(converted: Path, precision: str) -> VideoLlamaForConditionalGeneration:
    """A model for training: all of it in fp32 or bf16, or, as Trainer has it, bf16 with fp32 for what is trained."""
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    model = VideoLlamaForConditionalGeneration.from_pretrained(converted).to(dtype)
    model.set_trainable("both")
    for parameter in model.parameters():
        if parameter.requires_grad and precision == "autocast":
            parameter.data = parameter.data.float()
    return model.train()


def train_once(model, batch: dict, precision: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradients, with dropout in what is trained, the same in each call."""
    torch.manual_seed(0)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        loss = model(**batch).loss
    loss.backward()
    gradients = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    return loss.detach(), gradients


@pytest.fixture(scope="module")
def caches(converted, processor, media, tmp_path_factory):
    """A cache of all there is, in fp32 and in bf16: of other batches than those of the training, by a model of its own."""
    folders = {}
    for dtype in (torch.float32, torch.bfloat16):
        folders[dtype] = tmp_path_factory.mktemp("caches")
        for branch, audio_from in (("both", "frames"), ("both", "sound"), ("audio_branch", "frames")):
            rows, settings = samples_for(media, branch, audio_from), settings_for(branch, audio_from)
            cache_features(rows, folders[dtype], load_encoders(converted, dtype), processor, batch_size=2, **settings)
    return folders


@pytest.mark.parametrize(
    ("precision", "tolerance", "branch", "audio_from"),
    [
        *(("fp32", 1e-6, *branch) for branch in BRANCHES),
        *(("bf16", 1e-3, *branch) for branch in BRANCHES),
        *(("autocast", 1e-3, *branch) for branch in BRANCHES[-2:]),
    ],
)
def test_loss_and_gradients_are_those_without_a_cache(
    converted, processor, media, caches, branch, audio_from, precision, tolerance
):
    model = in_precision(converted, precision)
    rows, settings = samples_for(media, branch, audio_from), settings_for(branch, audio_from)
    folder = caches[torch.float32 if precision == "fp32" else torch.bfloat16]
    cache = FeatureCache(folder, model, processor, **settings)
    batches = [
        VideoLlamaDataCollator(processor, SampleEncoder(processor, feature_cache=used, **settings))(rows)
        for used in (None, cache)
    ]
    pixels = {"pixel_values", "pixel_values_videos", "audio_pixel_values", "input_features"}
    assert not pixels & batches[1].keys()
    assert pixels & batches[0].keys()
    for name in batches[0].keys() & batches[1].keys():
        assert torch.equal(batches[0][name], batches[1][name]), name

    (loss, gradients), (cached_loss, cached_gradients) = (train_once(model, batch, precision) for batch in batches)
    assert abs(loss - cached_loss) <= tolerance
    print("DIFF", precision, branch, audio_from, loss.item(), (loss - cached_loss).item())
    assert gradients.keys() == cached_gradients.keys()
    for name, gradient in gradients.items():
        difference = (gradient - cached_gradients[name]).float().norm()
        assert difference <= 10 * tolerance * max(1e-3, gradient.float().norm()), name
    # That they are equal says something: other features give another loss, and far other gradients
    other = {name: -value if name.endswith("embeds") else value for name, value in batches[1].items()}
    other_loss, other_gradients = train_once(model, other, precision)
    assert abs(loss - other_loss) > tolerance
    parts = [part for part in BRANCHES_OF_MODEL["vision_branch" if branch == "both" else branch] if "query" in part]
    for name in (f"model.{part}.weight" for part in parts):
        assert (gradients[name] - other_gradients[name]).float().norm() > 0.1 * gradients[name].float().norm()


def test_bf16_on_disk_is_near_enough_to_fp32(model, processor, media, tmp_path):
    rows, settings = samples_for(media, "both", "frames"), settings_for("both", "frames")
    cache_features(rows, tmp_path, model, processor, dtype=torch.bfloat16, **settings)
    cache = FeatureCache(tmp_path, model, processor, **settings)
    losses, logits = [], []
    for used in (None, cache):
        batch = VideoLlamaDataCollator(processor, SampleEncoder(processor, feature_cache=used, **settings))(rows)
        with torch.no_grad():
            outputs = model(**batch)
        losses.append(outputs.loss)
        logits.append(outputs.logits)
    assert not torch.equal(*logits)
    assert abs(losses[0] - losses[1]) < 1e-3


def test_each_item_goes_through_the_encoder_once(model, processor, media, tmp_path):
    seen = []
    hook = model.model.vision_tower.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    rows = [sample(media / name) for name in ("a.mp4", "b.mp4", "a.mp4", "p.png", "b.mp4", "a.mp4")]
    report = cache_features(rows, tmp_path, model, processor, batch_size=2)
    assert (report.num_items, report.num_skipped, report.num_written) == (3, 0, 3)
    assert sum(seen) == 8 + 5 + 1

    # More data: what is there is not done again
    more = cache_features([*rows, sample(media / "c.mp4")], tmp_path, model, processor)
    assert (more.num_items, more.num_skipped, more.num_written) == (4, 3, 1)
    assert sum(seen) == 8 + 5 + 1 + 8
    hook.remove()

    cache = FeatureCache(tmp_path, model, processor)
    assert len(cache) == 4
    assert cache.info["content"]["vision"] == {
        "features": 4,
        "frames": 22,
        "shape": ["frames", 8, 40],
        "without_sound": 0,
    }
    assert "FeatureCache(" in repr(cache)
    assert cache.vision({"type": "video", "path": str(media / "b.mp4")}).embeds.shape == (5, 8, 40)
    assert cache.vision({"type": "image", "path": str(media / "p.png")}).times is None
    relative = os.path.relpath(media / "b.mp4")
    assert len(cache.vision({"type": "video", "path": relative}).times) == 5


def test_encoders_are_added_to_a_cache(model, processor, media, tmp_path):
    rows = samples_for(media, "vision_branch", "frames")
    cache_features(rows, tmp_path, model, processor)
    with pytest.raises(FeatureCacheError, match=r"has the features vision, but branch 'both' needs frames too"):
        FeatureCache(tmp_path, model, processor, branch="both")
    cache_features(rows, tmp_path, model, processor, branch="both")
    cache = FeatureCache(tmp_path, model, processor, branch="both")
    item = {"type": "video", "path": str(media / "b.mp4"), "start": None, "end": None}
    assert cache.audio(item, "frames").embeds.shape == (5, 24)
    with pytest.raises(FeatureCacheError, match="has no 'sound' features"):
        cache.audio(item, "sound")


def test_a_video_without_sound_is_known_to_have_none(model, processor, media, tmp_path):
    rows = [sample(media / "a.mp4"), sample(media / "b.mp4")]
    settings = settings_for(audio_from="sound", load_audio_from_video=True)
    cache_features(rows, tmp_path, model, processor, **settings)
    cache = FeatureCache(tmp_path, model, processor, **settings)
    assert cache.audio({"type": "video", "path": str(media / "b.mp4")}, "sound") is None
    assert cache.audio({"type": "video", "path": str(media / "a.mp4")}, "sound").embeds.shape == (8, 24)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_unreadable_files_are_listed_and_count_as_unreadable_in_training(
    model, processor, media, tmp_path, num_workers
):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    folder = tmp_path / "cache"
    rows = [sample(media / "b.mp4"), sample(bad), sample(media / "p.png"), sample(tmp_path / "gone.mp4")]
    report = cache_features(rows, folder, model, processor, num_workers=num_workers)
    assert (report.num_items, report.num_written) == (4, 2)
    assert [Path(failure.path).name for failure in report.failed] == ["bad.mp4", "gone.mp4"]
    listed = [json.loads(line) for line in (folder / "failures.jsonl").read_text().splitlines()]
    assert [line["reason"] for line in listed] == [failure.reason for failure in report.failed]

    cache = FeatureCache(folder, model, processor)
    with pytest.raises(MediaError, match=r"bad\.mp4 cannot be decoded"):
        cache.vision({"type": "video", "path": str(bad)})
    encoder = SampleEncoder(processor, feature_cache=cache)
    data = TrainingDataset(as_dataset(rows), encoder, max_failures=0.5, failures_path=tmp_path / "failed.jsonl")
    assert len(data.__getitems__([0, 1, 2, 3])) == 2
    assert data.num_failed == 2

    # The next run tries them again
    write_clip(bad, frames=3)
    report = cache_features(rows, folder, model, processor)
    assert (report.num_skipped, report.num_written, len(report.failed)) == (2, 1, 1)
    assert "bad.mp4" not in (folder / "failures.jsonl").read_text()
    assert len(FeatureCache(folder, model, processor).vision({"type": "video", "path": str(bad)}).embeds) == 3


def as_dataset(rows: list[dict]):
    import datasets

    return datasets.Dataset.from_list(rows, features=FEATURES)


def test_a_file_that_crashes_its_reader_is_one_more_that_cannot_be_read(
    model, processor, media, tmp_path, monkeypatch
):
    read_frames = SampleEncoder.read_frames

    def crash(self, item, **kwargs):
        if item["path"].endswith("c.mp4"):
            os.kill(os.getpid(), signal.SIGKILL)
        return read_frames(self, item, **kwargs)

    monkeypatch.setattr(SampleEncoder, "read_frames", crash)
    rows = [sample(media / name) for name in ("a.mp4", "c.mp4", "b.mp4")]
    report = cache_features(rows, tmp_path, model, processor, num_workers=1)
    assert report.num_written == 2
    assert "crashed" in report.failed[0].reason


def test_features_that_are_not_finite_are_refused(model, processor, media, tmp_path, monkeypatch):
    encode = caching._encode_values
    monkeypatch.setattr(caching, "_encode_values", lambda *args: encode(*args) / 0)
    report = cache_features([sample(media / "p.png")], tmp_path, model, processor)
    assert "not finite" in report.failed[0].reason


def test_a_batch_that_does_not_fit_in_memory_is_done_in_parts(model, processor, media, tmp_path, monkeypatch):
    sizes, encode = [], caching._encode_values

    def encode_little(values, *args):
        sizes.append(len(values))
        if len(values) > 8:
            raise torch.OutOfMemoryError("too much")
        return encode(values, *args)

    monkeypatch.setattr(caching, "_encode_values", encode_little)
    rows = [sample(media / name) for name in ("a.mp4", "b.mp4", "p.png")]
    assert cache_features(rows, tmp_path, model, processor).num_written == 3
    assert sizes == [14, 8, 6]


def test_headtail_keeps_one_draw(model, processor, media, tmp_path):
    rows, item = [sample(media / "a.mp4")], {"type": "video", "path": str(media / "a.mp4")}
    times = []
    for seed in (1, 1, 2):
        folder = tmp_path / str(len(times))
        settings = {"sampling": "headtail", "seed": seed}
        cache_features(rows, folder, model, processor, **settings)
        cache = FeatureCache(folder, model, processor, **settings)
        times.append(cache.vision(item).times)
    assert times[0] == times[1] != times[2]
    with pytest.raises(FeatureCacheError, match=r"seed \(2, not 1\)"):
        FeatureCache(tmp_path / "2", model, processor, sampling="headtail", seed=1)
    # Of no consequence for frames at equal distances
    cache_features(rows, tmp_path / "uniform", model, processor, seed=1)
    FeatureCache(tmp_path / "uniform", model, processor, seed=2)


# ---------------------------------------------------------------------------------------------------------------------
# Runs that are ended
# ---------------------------------------------------------------------------------------------------------------------
@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(6):
        Image.new("RGB", (28, 28), (40 * number, 0, 0)).save(folder / f"{number}.png")
    return [sample(folder / f"{number}.png") for number in range(6)]


# About two rows in a file
SMALL = {"batch_size": 2, "shard_size": 4000}


def contents(folder: Path) -> dict[bytes, list]:
    """All rows by their keys."""
    rows = {}
    for path in sorted(folder.glob("features-*.arrow")):
        reader = pa.ipc.open_file(str(path))
        for index in range(reader.num_record_batches):
            row = reader.get_batch(index).to_pylist()[0]
            rows.setdefault(row["key"], []).append(row)
    return rows


class Killer:
    """Ends the process at the n-th of the moments that matter: rows, renamings, removals and syncs, before or after each."""

    def __init__(self, moment: int):
        self.left = moment

    def watch(self, monkeypatch) -> None:
        for owner, name in ((caching._Shards, "add"), (os, "replace"), (os, "fsync"), (Path, "unlink")):
            monkeypatch.setattr(owner, name, self.around(getattr(owner, name)))

    def around(self, function):
        def call(*args, **kwargs):
            self.pass_moment()
            result = function(*args, **kwargs)
            self.pass_moment()
            return result

        return call

    def pass_moment(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def run_until(moment: int, *args, **kwargs) -> bool:
    """Whether a run in a process of its own came to its end."""

    def run() -> None:
        monkeypatch = pytest.MonkeyPatch()
        Killer(moment).watch(monkeypatch)
        cache_features(*args, **kwargs)
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == 0


def test_a_run_goes_on_wherever_it_was_killed(model, processor, pictures, tmp_path):
    cache_features(pictures, tmp_path / "whole", model, processor, **SMALL)
    expected = contents(tmp_path / "whole")
    assert len(expected) == 6
    assert len(list((tmp_path / "whole").glob("*.arrow"))) > 3
    moment, is_done = 1, False
    while not is_done:
        folder = tmp_path / str(moment)
        is_done = run_until(moment, pictures, folder, model, processor, **SMALL)
        if not is_done and (folder / "cache.json").exists():
            is_complete = json.loads((folder / "cache.json").read_text())["is_complete"]
            if not is_complete:
                with pytest.raises(FeatureCacheError, match="is not finished"):
                    FeatureCache(folder, model, processor)
        # Killed once more, and only then left alone
        is_done = run_until(moment // 2 + 1, pictures, folder, model, processor, **SMALL) and is_done
        num_there = len(contents(folder))
        report = cache_features(pictures, folder, model, processor, **SMALL)
        assert report.num_skipped + report.num_written == 6
        assert report.num_skipped >= num_there
        assert contents(folder) == expected, moment
        assert len(FeatureCache(folder, model, processor)) == 6
        assert not list(folder.glob(".*.part"))
        moment += 3
    assert moment > 40


def test_what_was_written_when_a_run_was_killed_is_kept(model, processor, pictures, tmp_path):
    cache_features(pictures, tmp_path / "whole", model, processor, batch_size=2)
    expected = [rows[0] for rows in contents(tmp_path / "whole").values()]
    shard = next((tmp_path / "whole").glob("features-*.arrow")).read_bytes()
    path = tmp_path / ".features-1-1.part"
    counts = []
    for length in [*range(0, len(shard), 251), len(shard)]:
        path.write_bytes(shard[:length])
        found = list(caching._whole_rows(path))
        assert found == expected[: len(found)]
        counts.append(len(found))
    assert counts == sorted(counts)
    assert set(counts) == set(range(7))


def test_the_command_goes_on_after_it_was_killed(converted, pictures, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps({"messages": strip(row["messages"])}) for row in pictures))
    out = tmp_path / "cache"
    # Kills itself in the middle of the second batch, its reading process left alone
    script = (
        "import os, signal\n"
        "from transformers_videollama.training import cache\n"
        "from transformers_videollama.cli import app\n"
        "make, calls = cache._make_row, []\n"
        "def make_row(*args):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 4: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return make(*args)\n"
        "cache._make_row = make_row\n"
        "app()\n"
    )
    options = ["cache-features", "--model", str(converted), "--data", f"messages={data}", "--out", str(out)]
    options += ["--batch-size", "2", "--num-workers", "1"]
    process = subprocess.run([sys.executable, "-c", script, *options], capture_output=True, timeout=100)
    assert process.returncode == -signal.SIGKILL, process.stderr
    # Three rows had been written, none of them in a complete file
    assert not list(out.glob("features-*.arrow"))
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    assert "those of 3 items, and 3 were there" in result.output
    assert all(len(rows) == 1 for rows in contents(out).values())
    assert json.loads((out / "cache.json").read_text())["dtype"] == "bfloat16"
    again = CliRunner().invoke(app, options)
    assert "those of 0 items, and 6 were there" in again.output
    refused = CliRunner().invoke(app, [*options, "--num-frames", "4"])
    assert refused.exit_code == 1
    assert "num_frames (8, not 4)" in refused.output


def strip(messages: list[dict]) -> list[dict]:
    """Messages as people write them."""
    return [
        {**message, "content": [{key: value for key, value in item.items() if value is not None} for item in message["content"]]}
        for message in messages
    ]  # fmt: skip


def test_the_command_tells_of_what_it_could_not_read(converted, pictures, tmp_path):
    data, bad = tmp_path / "data.jsonl", tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    rows = [*pictures, sample(bad)]
    data.write_text("\n".join(json.dumps({"messages": strip(row["messages"])}) for row in rows))
    options = ["cache-features", "--model", str(converted), "--data", f"messages={data}", "--num-workers", "0"]
    result = CliRunner().invoke(app, [*options, "--out", str(tmp_path / "strict")])
    assert result.exit_code == 1
    assert "Features that are missing" in result.output
    assert result.output.count("bad.png") == 1
    assert "1 of 7 items are more than --max-failures allows" in result.output
    result = CliRunner().invoke(app, [*options, "--out", str(tmp_path / "mild"), "--max-failures", "0.2"])
    assert result.exit_code == 0
    result = CliRunner().invoke(app, [*options[:-4], "--data", "messages=gone.jsonl", "--out", str(tmp_path / "x")])
    assert result.exit_code == 1
    assert "Error: gone.jsonl does not exist" in result.output


def test_sources_with_weights_are_gone_through_once(model, processor, pictures, tmp_path):
    for name, rows in (("first", pictures[:2]), ("second", pictures[1:4])):
        lines = (json.dumps({"messages": strip(row["messages"])}) for row in rows)
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    sources = [f"messages={tmp_path}/first.jsonl,weight=1", {"format": "messages", "path": f"{tmp_path}/second.jsonl", "weight": 9.0}]  # fmt: skip
    assert cache_features(sources, tmp_path / "cache", model, processor).num_items == 4
    data = load_training_data(sources[0], cache_dir=tmp_path / "arrow")
    assert cache_features(data, tmp_path / "cache", model, processor).num_skipped == 2


def test_two_runs_do_not_write_to_one_folder(model, processor, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(caching, "LOCK_SECONDS", 0.1)
    with FileLock(tmp_path / ".lock"), pytest.raises(FeatureCacheError, match="Another run is writing"):
        cache_features(pictures, tmp_path, model, processor)


# ---------------------------------------------------------------------------------------------------------------------
# What a cache is refused for
# ---------------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def made(model, processor, media, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "cache"
    rows = [sample(media / "a.mp4"), sample(media / "b.mp4"), sample(media / "p.png")]
    cache_features(rows, folder, model, processor, branch="both", shard_size=20_000)
    return folder


@pytest.fixture
def folder(made, tmp_path):
    return Path(copytree(made, tmp_path / "cache"))


@pytest.fixture
def other_model(converted):
    return VideoLlamaForConditionalGeneration.from_pretrained(converted, dtype=torch.float32)


PARTS = {
    "vision_tower.layers.1.mlp.fc1.weight": "vision",
    "query_tokens.weight": "vision",
    "qformer.layers.0.self_attn.q_proj.bias": "vision",
    "audio_tower.vision_projection.weight": "frames",
}


@pytest.mark.parametrize("name", PARTS)
def test_other_weights_are_refused(folder, other_model, processor, name):
    with torch.no_grad():
        other_model.model.get_parameter(name).view(-1)[-1] += 1
    message = rf"'{PARTS[name]}' features differ in the weights of .* \(\w{{12}}…, not \w{{12}}…; .*\)\. Use the model"
    with pytest.raises(FeatureCacheError, match=message):
        FeatureCache(folder, other_model, processor, branch="both")
    with pytest.raises(FeatureCacheError, match="name another folder"):
        cache_features(iter(()), folder, other_model, processor, branch="both")


def test_what_is_trained_may_be_other(folder, other_model, processor):
    other_model.set_trainable("both")
    with torch.no_grad():
        for parameter in other_model.parameters():
            if parameter.requires_grad:
                parameter.add_(1)
    assert len(FeatureCache(folder, other_model, processor, branch="both")) == 5


def test_precision_of_loading_does_not_matter(converted, model):
    for dtype in (torch.bfloat16, torch.float32):
        loaded = VideoLlamaForConditionalGeneration.from_pretrained(converted, dtype=dtype)
        # As training and the command do it: what the checkpoint names, here fp16, then another
        encoders, trained = (
            load_encoders(converted, dtype),
            VideoLlamaForConditionalGeneration.from_pretrained(converted),
        )
        assert trained.dtype == torch.float16
        for encoder in caching.ENCODERS:
            assert weights_hash(loaded, encoder) == weights_hash(model, encoder)
            assert weights_hash(encoders, encoder) == weights_hash(trained, encoder)
    # Weights in fp32, of Q-Former and ImageBind, were rounded to fp16
    assert weights_hash(trained, "vision") != weights_hash(model, "vision")


def test_weights_that_are_not_in_memory_are_told_of(folder, other_model, processor, caplog):
    other_model.model.vision_tower.to("meta")
    caching.logger.addHandler(caplog.handler)
    try:
        FeatureCache(folder, other_model, processor)
    finally:
        caching.logger.removeHandler(caplog.handler)
    assert "could not be seen for vision_tower" in caplog.text
    with pytest.raises(FeatureCacheError, match="quantised or not in memory"):
        cache_features(iter(()), folder, other_model, processor)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_frames": 4}, r"num_frames \(8, not 4\)"),
        ({"sampling": "headtail"}, r"sampling \('uniform', not 'headtail'\)"),
        ({"branch": "both", "audio_frame_size": 112}, r"video\.size \(\{'height': 224.*not \{'height': 112"),
        ({"branch": "both", "audio_from": "sound"}, r"needs sound too"),
    ],
)
def test_other_preprocessing_is_refused(folder, model, processor, settings, message):
    with pytest.raises(FeatureCacheError, match=message):
        FeatureCache(folder, model, processor, **settings)


def test_other_processors_are_refused(folder, model, converted):
    processor = AutoProcessor.from_pretrained(converted)
    processor.video_processor.image_mean = [0.5, 0.5, 0.5]
    with pytest.raises(FeatureCacheError, match=r"video\.image_mean \(\[0\.48.*not \[0\.5, 0\.5, 0\.5\]\)"):
        FeatureCache(folder, model, processor)


def test_other_architecture_is_refused(folder, other_model, processor):
    other_model.config.vision_config.layer_norm_eps = 0.5
    with pytest.raises(FeatureCacheError, match=r"video_llama_vision\.layer_norm_eps \(1e-06, not 0\.5\)"):
        FeatureCache(folder, other_model, processor)


def test_other_precision_on_disk_is_refused(folder, model, processor, media):
    with pytest.raises(FeatureCacheError, match="has features in float32, and now bfloat16"):
        cache_features([sample(media / "c.mp4")], folder, model, processor, dtype=torch.bfloat16)


def test_settings_that_there_are_not_are_refused(model, processor, tmp_path):
    for settings in ({"branch": "video"}, {"audio_from": "noise"}, {"sampling": "random"}, {"num_frames": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(settings))} is"):
            FeatureCache(tmp_path, model, processor, **settings)
    with pytest.raises(ValueError, match="dtype is torch.float16"):
        cache_features(iter(()), tmp_path, model, processor, dtype=torch.float16)
    with pytest.raises(ValueError, match="batch_size is 0"):
        cache_features(iter(()), tmp_path, model, processor, batch_size=0)


def test_a_model_that_can_not_hear_has_no_such_features(model, processor, media, tmp_path, other_model):
    other_model.config.audio_config.vision_config = None
    del other_model.model.audio_tower.vision_model
    with pytest.raises(FeatureCacheError, match="has no audio_tower.vision_model"):
        cache_features([sample(media / "a.mp4")], tmp_path, other_model, processor, branch="audio_branch")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("features-00001.arrow", "features-00001.arrow has"),
        ("index.arrow", "index.arrow has"),
        ("cache.json", "cache.json is damaged"),
    ],
)
def test_files_that_are_cut_short_are_refused(folder, model, processor, name, message):
    path = folder / name
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FeatureCacheError, match=message):
        FeatureCache(folder, model, processor)


def test_files_that_are_missing_are_refused_and_made_again(folder, model, processor, media):
    (folder / "features-00000.arrow").unlink()
    with pytest.raises(FeatureCacheError, match=r"features-00000\.arrow is missing: remove the damaged file and run"):
        FeatureCache(folder, model, processor)
    rows = [sample(media / "a.mp4"), sample(media / "b.mp4"), sample(media / "p.png")]
    assert cache_features(rows, folder, model, processor, branch="both").num_written > 0
    assert len(FeatureCache(folder, model, processor)) == 5
    (folder / "cache.json").unlink()
    with pytest.raises(FeatureCacheError, match=r"cache\.json is missing"):
        FeatureCache(folder, model, processor)
    with pytest.raises(FeatureCacheError, match="holds no cache of features"):
        FeatureCache(folder / "nothing", model, processor)


def test_a_byte_that_changed_is_found_when_it_is_read(folder, model, processor, media):
    item = {"type": "video", "path": str(media / "a.mp4")}
    values = FeatureCache(folder, model, processor).vision(item).embeds.numpy().tobytes()
    for path in folder.glob("features-*.arrow"):
        content = bytearray(path.read_bytes())
        place = content.find(values[:64])
        if place >= 0:
            content[place + 70] ^= 1
            path.write_bytes(content)
    with pytest.raises(
        FeatureCacheError, match=r"row 0, is damaged \(its checksum is wrong\): remove the damaged file"
    ):
        FeatureCache(folder, model, processor).vision(item)


def test_no_damage_crashes_or_goes_unnoticed(folder, model, processor, media):
    """Whatever byte is wrong: an error of this package, or the same features."""
    names = ["a.mp4", "b.mp4"]
    items = [{"type": "video", "path": str(media / name)} for name in names]
    expected = [FeatureCache(folder, model, processor).vision(item) for item in items]
    cache = FeatureCache(folder, model, processor)
    random = np.random.default_rng(0)
    for path in sorted(folder.glob("features-*.arrow")):
        whole = path.read_bytes()
        for place in random.integers(0, len(whole), 60):
            content = bytearray(whole)
            content[place] ^= int(random.integers(1, 256))
            path.write_bytes(content)
            cache._close()
            for item, wanted in zip(items, expected):
                try:
                    found = cache.vision(item)
                except FeatureCacheError:
                    continue
                assert torch.equal(found.embeds, wanted.embeds)
                assert found.times == wanted.times
        path.write_bytes(whole)


def test_a_file_that_was_replaced_is_refused_and_one_that_is_gone_is_not_needed(folder, model, processor, media):
    item = {"type": "video", "path": str(media / "a.mp4")}
    content = (media / "a.mp4").read_bytes()
    expected = FeatureCache(folder, model, processor).vision(item)
    try:
        (media / "a.mp4").write_bytes(content + b"more")
        with pytest.raises(FeatureCacheError, match=r"a\.mp4 was replaced since .* and had \d+\): make another cache"):
            FeatureCache(folder, model, processor).vision(item)
        (media / "a.mp4").unlink()
        assert torch.equal(FeatureCache(folder, model, processor).vision(item).embeds, expected.embeds)
    finally:
        (media / "a.mp4").write_bytes(content)


def test_parts_that_are_to_be_trained_are_told(folder, model, processor):
    cache = FeatureCache(folder, model, processor)
    model.set_trainable("vision_branch")
    assert cache.trained_parts(model) == []
    model.set_trainable("vision_branch", "qformer")
    assert cache.trained_parts(model) == ["qformer"]
    model.requires_grad_(True)


def test_an_item_that_is_not_in_the_cache_ends_the_run(folder, model, processor, media, tmp_path):
    cache = FeatureCache(folder, model, processor)
    for item in (
        {"type": "video", "path": str(media / "c.mp4")},
        {"type": "video", "path": str(media / "a.mp4"), "start": 1.0},
    ):
        with pytest.raises(FeatureCacheError, match=r"[ac]\.mp4( \(1 s to its end\))? has no 'vision' features"):
            cache.vision(item)
    with pytest.raises(FeatureCacheError, match="names a ndarray"):
        cache.vision({"type": "image", "image": np.zeros((4, 4, 3))})
    encoder = SampleEncoder(processor, feature_cache=cache)
    data = TrainingDataset(as_dataset([sample(media / "a.mp4"), sample(media / "c.mp4")]), encoder)
    with pytest.raises(FeatureCacheError, match=r"c\.mp4 has no 'vision' features"):
        data.__getitems__([0, 1])


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------
def test_settings_come_from_an_encoder(folder, model, processor):
    encoder = SampleEncoder(processor, branch="both")
    encoder.feature_cache = FeatureCache.for_encoder(encoder, folder, model)
    assert encoder.feature_cache.settings == CacheSettings(branch="both", audio_from="frames")
    with pytest.raises(FeatureCacheError, match="num_frames"):
        FeatureCache.for_encoder(SampleEncoder(processor, num_frames=4), folder, model)


def test_workers_read_what_their_parent_reads(folder, model, processor, media):
    cache = FeatureCache(folder, model, processor)
    rows = [sample(media / name, str(number)) for number, name in enumerate(["a.mp4", "b.mp4", "p.png"] * 4)]
    data = TrainingDataset(as_dataset(rows), SampleEncoder(processor, feature_cache=cache))
    collator = VideoLlamaDataCollator(processor)
    expected = list(DataLoader(data, batch_size=3, collate_fn=collator))
    for num_workers in (1, 2):
        loader = DataLoader(
            data, batch_size=3, collate_fn=collator, num_workers=num_workers, multiprocessing_context="fork"
        )
        for batch, wanted in zip(loader, expected, strict=True):
            assert all(torch.equal(batch[name], value) for name, value in wanted.items())
    copied = pickle.loads(pickle.dumps(cache))
    item = {"type": "video", "path": str(media / "a.mp4")}
    assert torch.equal(copied.vision(item).embeds, cache.vision(item).embeds)


def resident() -> int:
    """Bytes, those of mapped files among them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc, which only Linux has")
def test_memory_does_not_grow_with_the_cache(folder, model, processor, tmp_path):
    names = [caching._Name("image", f"/{number}.png") for number in range(200)]
    info = json.loads((folder / "cache.json").read_text())
    big = tmp_path / "big"
    big.mkdir()
    shards = caching._Shards(big, torch.float32, 10 * 2**20)
    for number, name in enumerate(names):
        shards.add(caching._make_row(name, "vision", torch.full((1, 256, 1024), float(number)), None))
    shards.commit()
    caching._finish(big, info, shards, caching._failures(big))
    assert len(shards.files) == 20

    cache = FeatureCache(big, model, processor)
    before, highest = resident(), 0
    for number, name in enumerate(names):
        assert cache.vision(name.item).embeds[0, 0, 0] == number
        highest = max(highest, resident())
    # Of 200 MiB
    assert highest - before < 30 * 2**20


def test_equal_beginnings_of_keys_are_told_apart(model, processor, pictures, tmp_path, monkeypatch):
    key = caching._Name.key
    monkeypatch.setattr(caching._Name, "key", lambda self, encoder: b"12345678" + key(self, encoder)[8:])
    cache_features(pictures, tmp_path / "cache", model, processor)
    cache = FeatureCache(tmp_path / "cache", model, processor)
    found = [cache.vision(row["messages"][0]["content"][0]).embeds for row in pictures]
    assert len({embeds.numpy().tobytes() for embeds in found}) == 6
