# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in every form are read, by as much as is asked for; hostile ones are refused, and nothing of them is run."""

import json
import os
import pickle
import resource
import shutil
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from transformers_videollama import CheckpointError
from transformers_videollama.conversion.checkpoints import Checkpoint, SummedCheckpoint, read_json
from transformers_videollama.conversion.convert_video_llama_to_hf import convert
from transformers_videollama.conversion.releases import find_sources

from ..helpers import PARITY, TINY, convert_release


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {f"layers.{index}.weight": torch.randn(4, 6, generator=generator).half() for index in range(5)}


def write(tensors: dict, form: str, folder: Path) -> Path:
    """A checkpoint in one of the forms in which they are met. Returns what is given to the reader."""
    folder.mkdir()
    halves = [dict(list(tensors.items())[:2]), dict(list(tensors.items())[2:])]
    if form == "single .safetensors":
        save_file(tensors, folder / "model.safetensors")
        return folder / "model.safetensors"
    if form == "folder of shards .safetensors":
        for index, half in enumerate(halves):
            save_file(half, folder / f"model-{index}.safetensors")
    elif form == "folder of shards .bin":
        for index, half in enumerate(halves):
            torch.save(half, folder / f"pytorch_model-{index}.bin")
    elif form == "folder of one .bin":
        torch.save(tensors, folder / "pytorch_model.bin")
        return folder
    else:
        is_old = form == "single .pth of old torch"
        content = {"model": tensors, "epoch": 3} if form == "single .pth under model" else tensors
        torch.save(content, folder / "file.pth", _use_new_zipfile_serialization=not is_old)
        return folder / "file.pth"
    stem, suffix = ("model", "safetensors") if "safetensors" in form else ("pytorch_model", "bin")
    weight_map = {name: f"{stem}-{index}.{suffix}" for index, half in enumerate(halves) for name in half}
    index = folder / ("model.safetensors.index.json" if stem == "model" else "pytorch_model.bin.index.json")
    index.write_text(json.dumps({"weight_map": weight_map}))
    return folder


FORMS = [
    "single .pth",
    "single .pth under model",
    "single .pth of old torch",
    "single .safetensors",
    "folder of one .bin",
    "folder of shards .bin",
    "folder of shards .safetensors",
]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_checkpoint_gives_the_same(form, tensors, tmp_path):
    checkpoint = Checkpoint(write(tensors, form, tmp_path / "source"))
    names = ["layers.3.weight", "layers.0.weight"]
    values = checkpoint.read(names)

    assert checkpoint.tensors.keys() == tensors.keys()
    assert {tensor.device.type for tensor in checkpoint.tensors.values()} == {"meta"}
    assert {(*tensor.shape, tensor.dtype) for tensor in checkpoint.tensors.values()} == {(4, 6, torch.float16)}
    assert values.keys() == set(names)
    assert all(torch.equal(values[name], tensors[name]) for name in names)


def test_an_index_may_be_given_itself(tensors, tmp_path):
    folder = write(tensors, "folder of shards .bin", tmp_path / "source")

    assert Checkpoint(folder / "pytorch_model.bin.index.json").tensors.keys() == tensors.keys()


def test_shards_may_be_links_as_in_the_hubs_cache(tensors, tmp_path):
    folder = write(tensors, "folder of shards .safetensors", tmp_path / "source")
    (tmp_path / "blobs").mkdir()
    for shard in folder.glob("*.safetensors"):
        blob = shutil.move(shard, tmp_path / "blobs" / shard.stem)
        shard.symlink_to(os.path.relpath(blob, folder))

    assert torch.equal(Checkpoint(folder).read(["layers.4.weight"])["layers.4.weight"], tensors["layers.4.weight"])


def test_an_index_that_lists_what_no_shard_holds_is_named(tensors, tmp_path):
    folder = write(tensors, "folder of shards .bin", tmp_path / "source")
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(index.read_text().replace("layers.0.weight", "layers.9.weight"))

    with pytest.raises(CheckpointError, match="lists 'layers.9.weight', but no shard holds it"):
        Checkpoint(folder)


def test_shards_without_their_index_are_named(tensors, tmp_path):
    save_file(tensors, tmp_path / "model-00001-of-00002.safetensors")

    with pytest.raises(CheckpointError, match="model-00001-of-00002.safetensors needs its index beside it"):
        Checkpoint(tmp_path)


def test_a_snapshot_of_the_hub_is_called_after_its_repository(tensors, tmp_path):
    (tmp_path / "models--me--llama-2-7b" / "snapshots").mkdir(parents=True)
    folder = write(tensors, "folder of one .bin", tmp_path / "models--me--llama-2-7b" / "snapshots" / "0123")

    assert list(Checkpoint(folder).paths) == ["llama-2-7b/pytorch_model.bin"]


def test_a_tensor_in_two_shards_is_named(tensors, tmp_path):
    folder = write(tensors, "folder of shards .bin", tmp_path / "source")
    torch.save(tensors, folder / "pytorch_model-1.bin")

    with pytest.raises(CheckpointError, match=r"layers.0.weight stands in .*-0.bin and in .*-1.bin"):
        Checkpoint(folder)


def resident() -> int:
    """Bytes of this process in memory, mapped files included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_only_what_is_read_comes_into_memory_and_leaves_it_again(suffix, tmp_path):
    large = {f"layers.{index}.weight": torch.ones(8, 2**20) for index in range(8)}  # 32 MiB each
    path = tmp_path / f"large.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(large, path)
    del large

    before = resident()
    checkpoint = Checkpoint(path)
    opened = resident()
    values = checkpoint.read(["layers.5.weight"])
    total = values["layers.5.weight"].sum().item()
    read = resident()
    del values
    dropped = resident()

    assert total == 8 * 2**20
    assert opened - before < 16 * 2**20
    assert 24 * 2**20 < read - opened < 48 * 2**20
    assert dropped - opened < 16 * 2**20


class TestSums:
    """LLaMAs that were released as a difference to a base."""

    @pytest.fixture
    def base(self, tmp_path) -> Path:
        (tmp_path / "base").mkdir()
        generator = torch.Generator().manual_seed(1)
        names = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
        self.base_tensors = {name: torch.randn(6, 3, generator=generator).half() for name in names}
        torch.save(self.base_tensors, tmp_path / "base" / "pytorch_model.bin")
        return tmp_path / "base"

    @pytest.fixture
    def delta(self, tmp_path) -> Path:
        (tmp_path / "delta").mkdir()
        generator = torch.Generator().manual_seed(2)
        rows = {"model.embed_tokens.weight": 7, "model.norm.weight": 6, "lm_head.weight": 7}
        self.delta_tensors = {name: torch.randn(n, 3, generator=generator).half() for name, n in rows.items()}
        torch.save(self.delta_tensors, tmp_path / "delta" / "pytorch_model.bin")
        return tmp_path / "delta"

    def test_vicuna_is_its_delta_and_llama_with_zeros_for_the_new_row(self, base, delta):
        values = SummedCheckpoint(delta, base).read(self.delta_tensors)

        for name, tensor in self.delta_tensors.items():
            expected = torch.zeros_like(tensor)
            expected[:6] = self.base_tensors[name]
            expected += tensor
            assert values[name].dtype == torch.float16
            assert torch.equal(values[name], expected)

    def test_ziya_keeps_its_own_embedding_and_head(self, base, delta):
        added = r"(?!model\.embed_tokens\.|lm_head\.).*"
        values = SummedCheckpoint(delta, base, added=added).read(self.delta_tensors)

        assert torch.equal(values["lm_head.weight"], self.delta_tensors["lm_head.weight"])
        assert torch.equal(values["model.embed_tokens.weight"], self.delta_tensors["model.embed_tokens.weight"])
        norms = self.base_tensors["model.norm.weight"] + self.delta_tensors["model.norm.weight"]
        assert torch.equal(values["model.norm.weight"], norms)

    def test_billa_has_llamas_embedding_taken_away(self, base, delta):
        checkpoint = SummedCheckpoint(delta, base, added="", subtracted=r"model\.embed_tokens\.weight")
        values = checkpoint.read(self.delta_tensors)

        name = "model.embed_tokens.weight"
        expected = self.delta_tensors[name].clone()
        expected[:6] = (expected[:6].float() - self.base_tensors[name].float()).half()
        assert torch.equal(values[name], expected)
        assert torch.equal(values["lm_head.weight"], self.delta_tensors["lm_head.weight"])

    def test_frequencies_of_the_positions_are_not_added(self, base, delta):
        for folder in (base, delta):
            tensors = torch.load(folder / "pytorch_model.bin")
            tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
            torch.save(tensors, folder / "pytorch_model.bin")
        name = "model.layers.0.self_attn.rotary_emb.inv_freq"

        assert torch.equal(SummedCheckpoint(delta, base).read([name])[name], torch.ones(2))

    def test_a_delta_to_another_model_is_refused(self, base, delta):
        torch.save({"model.norm.weight": torch.zeros(6, 4)}, delta / "pytorch_model.bin")
        with pytest.raises(
            CheckpointError, match=r"is no difference to .*: model.norm.weight is \(6, 4\), there \(6, 3\)"
        ):
            SummedCheckpoint(delta, base)
        torch.save({"model.other.weight": torch.zeros(6, 4)}, delta / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match="that has no model.other.weight"):
            SummedCheckpoint(delta, base)


# ---------------------------------------------------------------------------------------------------------------------
# Hostile files. Each is a real one, put in the place of eva_vit_g.pth or into the LLaMA folder of a release.


class Calls:
    """Pickled as a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def lying_tensor(shape: tuple[int, ...], stride: tuple[int, ...]) -> Calls:
    """Pickled as a tensor of four values that claims to be larger."""
    storage = torch.storage.TypedStorage(
        wrap_storage=torch.zeros(4).untyped_storage(), dtype=torch.float32, _internal=True
    )
    return Calls(torch._utils._rebuild_tensor_v2, storage, 0, shape, stride, False, OrderedDict())


def repacked(path: Path, change) -> None:
    """Writes a checkpoint's archive anew, with its entries changed."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        change(archive, entries)


def nested(depth: int) -> bytes:
    """A pickle of a list in a list in a list."""
    return b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."


def pickle_that_runs(path: Path, marker: Path) -> None:
    torch.save({"cls_token": Calls(os.system, f"touch {marker}")}, path)


def plain_pickle_that_runs(path: Path, marker: Path) -> None:
    path.write_bytes(pickle.dumps({"cls_token": Calls(os.system, f"touch {marker}")}, protocol=2))


def pickle_that_hides_what_it_runs(path: Path, marker: Path) -> None:
    torch.save({"cls_token": Calls(os.system, f"touch {marker}")}, path, pickle_protocol=4)


def pickle_that_fills_the_memory(path: Path, marker: Path) -> None:
    torch.save({"cls_token": Calls(bytearray, 2**40)}, path)


def second_pickle(path: Path, marker: Path) -> None:
    torch.save({"cls_token": torch.zeros(1)}, path)
    code = pickle.dumps(Calls(os.system, f"touch {marker}"), protocol=2)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other/data.pkl", code)


def compressed_archive(path: Path, marker: Path) -> None:
    torch.save({"cls_token": torch.zeros(2**22)}, path)

    def compress(archive, entries):
        for name, content in entries.items():
            archive.writestr(name, content, compress_type=zipfile.ZIP_DEFLATED)

    repacked(path, compress)
    assert path.stat().st_size < 2**17  # of 2**24


def archive_whose_entries_overlap(path: Path, marker: Path) -> None:
    torch.save({"cls_token": torch.zeros(4)}, path)
    content = bytearray(path.read_bytes())
    directory = zipfile.ZipFile(path).start_dir
    entry = content.index(b"data/0", directory) - len(path.stem) - 1 - 46
    for size in (20, 24):  # where the directory says how long an entry is, packed and unpacked
        struct.pack_into("<I", content, entry + size, 2**30)
    path.write_bytes(content)


def archive_with_a_path_that_leaves_it(path: Path, marker: Path) -> None:
    torch.save({"cls_token": torch.zeros(1)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"../../{marker.name}", b"left")


def archive_without_a_pickle(path: Path, marker: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("inner.zip", b"PK\x05\x06" + bytes(18))


def pickle_larger_than_any(path: Path, marker: Path) -> None:
    torch.save({"cls_token": torch.zeros(1), "note": "x" * 2**25}, path)


def lists_in_lists(path: Path, marker: Path) -> None:
    torch.save({"cls_token": torch.zeros(1)}, path)

    def deepen(archive, entries):
        for name, content in entries.items():
            archive.writestr(name, nested(1_000_000) if name.endswith("data.pkl") else content)

    repacked(path, deepen)


def models_in_models(path: Path, marker: Path) -> None:
    content = {"cls_token": torch.zeros(1)}
    for _ in range(100):
        content = {"model": content}
    torch.save(content, path)


def shape_beyond_the_values(path: Path, marker: Path) -> None:
    torch.save({"cls_token": lying_tensor((2**20, 2**20), (2**20, 1))}, path)


def shape_that_repeats_the_values(path: Path, marker: Path) -> None:
    torch.save({"cls_token": lying_tensor((2**20, 2**20), (0, 0))}, path)


def shape_of_a_file_of_old_torch(path: Path, marker: Path) -> None:
    content = {"cls_token": lying_tensor((2**20, 2**20), (2**20, 1))}
    torch.save(content, path, _use_new_zipfile_serialization=False)


def values_that_are_missing(path: Path, marker: Path) -> None:
    torch.save({"cls_token": torch.ones(64), "pos_embed": torch.zeros(64)}, path)
    repacked(path, lambda archive, entries: [archive.writestr(name, value[:2] if name.endswith("/data/0") else value) for name, value in entries.items()])  # fmt: skip


def record_that_is_missing(path: Path, marker: Path) -> None:
    torch.save({"cls_token": torch.ones(64), "pos_embed": torch.zeros(96)}, path)
    repacked(path, lambda archive, entries: [archive.writestr(name, value) for name, value in entries.items() if not name.endswith("/data/1")])  # fmt: skip


def shape_a_little_beyond_the_values(path: Path, marker: Path) -> None:
    torch.save({"cls_token": lying_tensor((2, 3), (3, 1)), "pos_embed": torch.zeros(1000)}, path)


def values_behind_the_end(path: Path, marker: Path) -> None:
    tensor = lying_tensor((4,), (1,))
    tensor.call = (tensor.call[0], (tensor.call[1][0], 3, *tensor.call[1][2:]))
    torch.save({"cls_token": tensor, "pos_embed": torch.zeros(1000)}, path)


def shape_that_repeats_within_the_file(path: Path, marker: Path) -> None:
    torch.save({"cls_token": lying_tensor((64,), (0,)), "pos_embed": torch.zeros(1000)}, path)


def later_pickle_of_old_torch(path: Path, marker: Path) -> None:
    torch.save({"cls_token": torch.zeros(1)}, path, _use_new_zipfile_serialization=False)
    with path.open("rb") as file:
        for _ in range(3):
            pickle.load(file)
        start = file.tell()
        file.seek(0)
        beginning = file.read(start)
    path.write_bytes(beginning + pickle.dumps({"cls_token": Calls(os.system, f"touch {marker}")}, protocol=2))


def entry_of_two_sizes(path: Path, marker: Path) -> None:
    torch.save({"cls_token": torch.zeros(64)}, path)
    content = bytearray(path.read_bytes())
    entry = content.index(b"data/0", zipfile.ZipFile(path).start_dir) - len(path.stem) - 1 - 46
    struct.pack_into("<I", content, entry + 24, 2)
    path.write_bytes(content)


def git_lfs_pointer(path: Path, marker: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 3\n")


def web_page(path: Path, marker: Path) -> None:
    path.write_text("<!DOCTYPE html><html>Log in</html>")


def empty_file(path: Path, marker: Path) -> None:
    path.touch()


def names_that_are_no_text(path: Path, marker: Path) -> None:
    torch.save({0: torch.zeros(1)}, path)


HOSTILE = {
    pickle_that_runs: r"its pickle calls posix\.system",
    plain_pickle_that_runs: r"its pickle calls posix\.system",
    pickle_that_hides_what_it_runs: "its pickle calls something it does not spell out",
    pickle_that_fills_the_memory: r"its pickle calls (__builtin__|builtins)\.bytearray",
    second_pickle: "with 2 data.pkl, expected one",
    compressed_archive: r"is compressed \(\d+ bytes that unpack to \d+\)",
    archive_whose_entries_overlap: r"its entries claim \d+ bytes, the file has \d+",
    archive_with_a_path_that_leaves_it: r"its entry '\.\./\.\./was_run' leaves the archive",
    archive_without_a_pickle: "with 0 data.pkl, expected one",
    pickle_larger_than_any: "its pickle has 335\\d+ bytes without any tensor's values",
    lists_in_lists: "does not hold tensors by name",
    models_in_models: "does not hold tensors by name",
    shape_beyond_the_values: r"claims the shape \(1048576, 1048576\), \d+ bytes",
    shape_that_repeats_the_values: r"claims the shape \(1048576, 1048576\), \d+ bytes",
    shape_of_a_file_of_old_torch: "could not be read as a checkpoint: storage has wrong byte size",
    values_that_are_missing: "its tensors claim 512 bytes, which the file of",
    record_that_is_missing: "'pos_embed' claims the shape|could not be read as a checkpoint",
    shape_a_little_beyond_the_values: "'cls_token' claims the shape|could not be read as a checkpoint",
    values_behind_the_end: "'cls_token' claims the shape|could not be read as a checkpoint",
    shape_that_repeats_within_the_file: "'cls_token' claims the shape",
    later_pickle_of_old_torch: r"its pickle calls posix\.system",
    entry_of_two_sizes: "is compressed",
    git_lfs_pointer: "is a pointer of Git LFS, not the file: run `git lfs pull`",
    web_page: "is a web page, not a checkpoint",
    empty_file: "is empty: copy or download it again",
    names_that_are_no_text: "does not hold tensors by name",
}


@pytest.fixture
def release(tmp_path) -> Path:
    return shutil.copytree(PARITY / "original", tmp_path / "release")


def assert_refused(release: Path, match: str) -> None:
    """The conversion stops with a message of one line; nothing was run, nothing written."""
    before = resident()
    with pytest.raises(CheckpointError, match=match) as error:
        convert_release(release, release.parent / "out")
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in release.parent.iterdir()) == ["release"]
    assert resident() - before < 2**28


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_a_hostile_file_is_refused(make, release):
    (release / "eva_vit_g.pth").unlink()
    make(release / "eva_vit_g.pth", release.parent / "was_run")

    assert_refused(release, HOSTILE[make])


def safetensors(header: dict, values: bytes) -> bytes:
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + values


@pytest.mark.parametrize(
    "content",
    [
        safetensors({"lm_head.weight": {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 16]}}, bytes(16)),
        safetensors({"lm_head.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 2**40]}}, bytes(16)),
        struct.pack("<Q", 2**60) + b"{}",
    ],
    ids=["shape beyond the values", "values beyond the file", "header beyond the file"],
)
def test_a_lying_safetensors_file_is_refused(content, release):
    folder = release / "llama-2-7b-chat-hf"
    (folder / "model.safetensors").write_bytes(content)

    assert_refused(release, "model.safetensors could not be read as a checkpoint")


@pytest.mark.parametrize(
    "shard",
    ["../outside.bin", "/etc/hostname", "sub/pytorch_model.bin", "..\\outside.bin", "..", 7],
)
def test_an_index_that_leaves_its_folder_is_refused(shard, release):
    folder = release / "llama-2-7b-chat-hf"
    shutil.move(folder / "pytorch_model.bin", folder.parent / "outside.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": shard}}))

    assert_refused(release, "its weight_map names .*, expected the name of a file beside it")


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, "\xff\xfe"])
def test_deep_or_broken_json_is_refused(content, release):
    (release / "llama-2-7b-chat-hf" / "config.json").write_text(content, encoding="latin-1")

    assert_refused(release, "config.json could not be read as JSON")


def test_json_of_any_size_is_not_read(tmp_path):
    path = tmp_path / "large.json"
    with path.open("wb") as file:
        file.truncate(2**27)  # sparse: it takes no room

    with pytest.raises(CheckpointError, match="has 134217728 bytes, expected 67108864 at most"):
        read_json(path)


def test_code_that_a_config_or_tokenizer_names_is_neither_asked_about_nor_loaded(release, tmp_path):
    folder = release / "llama-2-7b-chat-hf"
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "evil.Evil"}, "attn_implementation": "someone/kernel"}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, folder)
    tokenizer_config = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer_config |= {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    (folder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'was_run')!r}).touch()\n")

    convert(find_sources(release, {}), tmp_path / "out", PARITY / "config.json")

    written = json.loads((tmp_path / "out" / "config.json").read_text())["text_config"]
    assert not (tmp_path / "was_run").exists()
    assert "auto_map" not in written
    assert "attn_implementation" not in written
    assert not (tmp_path / "out" / "evil.py").exists()
