# SPDX-License-Identifier: Apache-2.0
"""The converter uses every tensor or says why not, and refuses what does not make a whole model."""

import json
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMultimodalLM, AutoProcessor, AutoTokenizer, GenerationConfig
from typer.testing import CliRunner

from transformers_videollama import CheckpointError, VideoLlamaConfig, VideoLlamaForConditionalGeneration
from transformers_videollama.cli import app
from transformers_videollama.conversion.plan import Converted, Source
from transformers_videollama.conversion.rules import (
    AUDIO_RULES,
    BLIP2_RULES,
    LLAMA_RULES,
    VISION_RULES,
    eva_vit_rules,
    imagebind_rules,
)
from transformers_videollama.conversion.tokenizer import read_tokenizer

from ..helpers import FIXTURES, PACKAGE, PARITY, TINY, convert_release, shared


VL, AL = "VL_LLaMA_2_7B_Finetuned.pth", "AL_LLaMA_2_7B_Finetuned.pth"


@pytest.fixture
def release(tmp_path) -> Path:
    """A copy of the original's files, to break."""
    return shutil.copytree(PARITY / "original", tmp_path / "release")


@pytest.fixture
def options(llama_tokenizer) -> dict[str, Path]:
    return {"config": PARITY / "config.json", "given": {"tokenizer": llama_tokenizer}}


def edit(path: Path, change) -> None:
    """Changes the tensors of a checkpoint in place."""
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint.get("model", checkpoint))
    torch.save(checkpoint, path)


def assert_refused(release: Path, options: dict, match: str) -> None:
    """The conversion stops with a message, and leaves nothing behind."""
    output = release.parent / "out"
    with pytest.raises(CheckpointError, match=match):
        convert_release(release, output, **options)
    assert sorted(path.name for path in release.parent.iterdir()) == ["release"]


def test_every_tensor_of_every_source_is_used_or_ignored_for_a_reason(tmp_path, options):
    converted = convert_release(PARITY / "original", tmp_path / "out", **options).converted
    names = set()
    for path in [*(PARITY / "original").glob("*.pth"), PARITY / "original" / "llama-2-7b-chat-hf"]:
        checkpoint = torch.load(path / "pytorch_model.bin" if path.is_dir() else path, weights_only=True)
        names |= {f"{path.name}: {name}" for name in checkpoint.get("model", checkpoint)}
    used = {str(origin) for origin in converted.origins.values()}

    assert used | converted.ignored.keys() == names
    assert not used & converted.ignored.keys()
    assert all(converted.ignored.values())


def test_weights_keep_the_precision_they_were_released_in(converted):
    weights = load_file(converted / "model.safetensors")

    assert weights["model.vision_tower.layers.0.mlp.fc1.weight"].dtype == torch.float16
    assert weights["model.video_qformer.layers.0.mlp.fc1.weight"].dtype == torch.float32
    assert weights["lm_head.weight"].dtype == torch.float16


def test_the_last_norm_of_the_vit_has_the_original_epsilon(converted):
    model = VideoLlamaForConditionalGeneration.from_pretrained(converted)

    assert model.model.vision_tower.post_layernorm.eps == 1e-5
    assert model.model.vision_tower.layers[0].layer_norm1.eps == 1e-6
    assert model.config.audio_config.audio_logit_scale == 20.0


def tokenizer_folder(kind: str, folder: Path) -> Path:
    """A LLaMA's tokenizer in one of the forms that their folders have."""
    folder.mkdir()
    if kind == "sentencepiece":
        shutil.copy(shared("parity/llama_tokenizer/tokenizer.model"), folder)
        config = {"tokenizer_class": "LlamaTokenizer"}
    else:
        shutil.copy(TINY / "tokenizer.json", folder)
        config = {"tokenizer_class": "LlamaTokenizer", **({} if kind == "unsaid" else {"legacy": kind == "legacy"})}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("kind", ["legacy", "not_legacy", "unsaid", "sentencepiece"])
def test_the_tokenizer_reads_as_the_original_did_whatever_its_folder_says(kind, tmp_path):
    tokenizer = read_tokenizer(tokenizer_folder(kind, tmp_path / "llama"), context_length=2048)
    tokenizer.save_pretrained(tmp_path / "saved")
    chat = json.loads((FIXTURES / "chat_prompts.json").read_text())

    for loaded in (tokenizer, AutoTokenizer.from_pretrained(tmp_path / "saved")):
        loaded.add_tokens("<ImageHere>", special_tokens=True)
        for turns in chat.values():
            for turn in turns:
                expected = [turn["segment_ids"][0]]
                for segment in turn["segment_ids"][1:]:
                    expected += [[32000], segment]
                text = "<ImageHere>".join(turn["segments"])
                assert loaded(text)["input_ids"] == [token_id for segment in expected for token_id in segment]
        answer = "The dog, at 3:05 — 犬."
        assert loaded.decode(loaded(answer)["input_ids"], skip_special_tokens=True) == answer
        assert (loaded.padding_side, loaded.pad_token_id) == ("left", 0)


def test_a_precision_may_be_asked_for_and_shards_limited(tmp_path, options):
    output = tmp_path / "out"
    convert_release(
        PARITY / "original",
        output,
        **options,
        dtype=torch.bfloat16,
        max_shard_size="1MB",
    )
    model = AutoModelForMultimodalLM.from_pretrained(output)

    shards = [load_file(path) for path in output.glob("model-*.safetensors")]
    sizes = [sum(tensor.nbytes for tensor in shard.values()) for shard in shards]
    index = json.loads((output / "model.safetensors.index.json").read_text())
    assert {tensor.dtype for shard in shards for tensor in shard.values()} == {torch.bfloat16}
    assert index["metadata"]["total_size"] == sum(sizes)
    assert len(shards) > 2
    assert all(size <= 1e6 or len(shard) == 1 for size, shard in zip(sizes, shards))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("name", "family", "stops"),
    [("VL_LLaMA_2_7B_Finetuned.pth", "llama_2", None), ("finetune-vicuna7b-v2.pth", "vicuna", ["###"])],
)
def test_prompts_and_stop_strings_follow_the_language_model(release, options, name, family, stops, tmp_path):
    (release / VL).rename(release / name)
    (release / AL).rename(release / ("finetune_vicuna7b_audiobranch.pth" if stops else AL))
    (release / "llama-2-7b-chat-hf").rename(release / ("vicuna-7b" if stops else "llm"))
    convert_release(release, tmp_path / "out", **options)
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    generation_config = GenerationConfig.from_pretrained(tmp_path / "out")

    sequences = [[835], [2277, 29937]] if stops else None
    assert getattr(generation_config, "stop_token_sequences", None) == sequences
    assert processor.chat_template["default"] == processor.chat_template[family]
    assert generation_config.stop_strings == stops
    assert (generation_config.do_sample, generation_config.top_p, generation_config.max_new_tokens) == (True, 0.9, 300)


def test_a_release_without_sound_gives_a_model_without_audio_branch(release, options, tmp_path):
    (release / AL).unlink()
    (release / "imagebind_huge.pth").unlink()
    convert_release(release, tmp_path / "out", **options)

    assert VideoLlamaForConditionalGeneration.from_pretrained(tmp_path / "out").config.audio_config is None


def test_the_source_of_llama_may_be_safetensors_in_shards(release, options, tmp_path):
    folder = release / "llama-2-7b-chat-hf"
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    (folder / "pytorch_model.bin").unlink()
    files = {name: f"model-{'lm_head' in name}.safetensors" for name in tensors}
    for file in set(files.values()):
        save_file({name: tensor for name, tensor in tensors.items() if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))

    convert_release(release, tmp_path / "out", **options)

    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["lm_head.weight"], tensors["lm_head.weight"])


def test_what_a_folder_says_of_itself(converted):
    config = json.loads((converted / "config.json").read_text())
    generation_config = GenerationConfig.from_pretrained(converted)

    assert config["dtype"] == "float16"  # of the largest part
    assert config["architectures"] == ["VideoLlamaForConditionalGeneration"]
    assert (generation_config.bos_token_id, generation_config.eos_token_id, generation_config.pad_token_id) == (
        1,
        2,
        0,
    )


def test_sources_in_another_order_of_memory_are_read_all_the_same(release, options, converted, tmp_path):
    def turn(tensors):
        for name, tensor in tensors.items():
            if tensor.ndim == 2:
                tensors[name] = tensor.t().contiguous().t()

    edit(release / VL, turn)
    convert_release(release, tmp_path / "out", **options)

    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (converted / "model.safetensors").read_bytes()


def test_a_quantised_llama_is_no_llama_of_ours(release, options, tmp_path):
    path = release / "llama-2-7b-chat-hf" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "gptq"}}))
    convert_release(release, tmp_path / "out", **options)

    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())["text_config"]


def test_a_converted_folder_may_be_read_by_others(converted):
    modes = {path.name: path.stat().st_mode & 0o777 for path in converted.iterdir() if path.is_file()}

    assert set(modes.values()) == {modes["config.json"]}
    assert modes["config.json"] & 0o444 == 0o444


@pytest.mark.parametrize("llama", ["llama-2-7b", "llama-2-13b"])
@pytest.mark.parametrize("blip2", ["keys_the_original_model_uses", "assumed_file", "Q-Former with text branch"])
def test_the_rules_cover_every_key_of_the_released_files(llama, blip2):
    """Names and shapes at real size, without values: nothing is missing, left over or of another shape."""
    files = json.loads(shared("parity/full_size_keys.json").read_text())["files"]

    def source(name: str, rules: list, *parts: str) -> Source:
        keys = {
            key: spec
            for title, keys in files.items()
            if all(part in title for part in parts)
            for key, spec in keys.items()
        }
        assert keys
        dtypes = {key: getattr(torch, dtype) for key, (_, dtype) in keys.items()}
        tensors = {key: torch.empty(keys[key][0], dtype=dtypes[key], device="meta") for key in keys}
        return Source(SimpleNamespace(name=name, tensors=tensors), rules)

    sizes = PACKAGE / "configs" / f"video_llama_{llama.removeprefix('llama-2-')}.json"
    config = VideoLlamaConfig(**json.loads(sizes.read_text()))
    eva = source("eva", [], "eva_vit_g.pth", "assumed_file")
    eva.rules.extend(eva_vit_rules(eva.checkpoint.tensors, config.vision_config.num_hidden_layers, 16))
    converted = Converted()
    for each in (
        eva,
        source("blip2", BLIP2_RULES, "blip2_pretrained", blip2),
        source("VL", VISION_RULES, f"VL checkpoint {llama}"),
        source("AL", AUDIO_RULES, f"AL checkpoint {llama}"),
        source("imagebind", imagebind_rules(with_vision=True), "imagebind_huge.pth"),
        source("llama", LLAMA_RULES, f"{llama} HF directory"),
    ):
        converted.add(each)
    with torch.device("meta"):
        model = VideoLlamaForConditionalGeneration(config)

    converted.check(model)

    assert len(converted.tensors) == len(model.state_dict())


class TestRefusals:
    def test_a_missing_tensor_is_named(self, release, options):
        edit(release / VL, lambda tensors: tensors.pop("llama_proj.bias"))
        assert_refused(release, options, r"missing\s+model.video_projection.bias \(48,\)")

    def test_a_missing_scale_of_the_sounds_is_named(self, release, options):
        name = "modality_postprocessors.audio.1.log_logit_scale"
        edit(release / "imagebind_huge.pth", lambda tensors: tensors.pop(name))
        assert_refused(release, options, rf"missing\s+imagebind_huge.pth: {name}")

    def test_a_tensor_that_nothing_uses_is_named(self, release, options):
        edit(release / AL, lambda tensors: tensors.update(extra_proj=torch.zeros(3)))
        assert_refused(release, options, rf"left over\s+{AL}: extra_proj \(3,\)")

    def test_a_tensor_of_another_shape_is_named(self, release, options):
        edit(release / VL, lambda tensors: tensors.update({"llama_proj.bias": torch.zeros(64)}))
        assert_refused(release, options, r"shape\s+model.video_projection.bias is \(64,\), expected \(48,\)")

    def test_sizes_other_than_the_released_need_a_config(self, release, options):
        (release / VL).rename(release / "VL_mine.pth")
        (release / AL).rename(release / "AL_mine.pth")
        assert_refused(
            release, {**options, "config": None}, "give sizes that differ from the released ones by --config"
        )

    def test_audio_without_imagebind(self, release, options):
        (release / "imagebind_huge.pth").unlink()
        assert_refused(
            release,
            options,
            "There is no imagebind_huge.pth.* to be had at https://dl.fbaipublicfiles.com/imagebind/imagebind_huge.pth",
        )

    def test_a_missing_source_is_named(self, release, options):
        (release / "eva_vit_g.pth").unlink()
        assert_refused(release, options, "There is no eva_vit_g.pth")

    def test_imagebind_without_an_audio_branch(self, release, options):
        imagebind = release / "imagebind_huge.pth"
        (release / AL).unlink()
        options["given"]["imagebind"] = imagebind
        assert_refused(release, options, "is for the audio branch: give its AL file")

    @pytest.mark.parametrize(
        ("content", "match"),
        [
            (None, "could not be read as JSON"),
            ("{broken", "could not be read as JSON"),
            ("[1]", "holds a list, expected an object"),
            ('{"num_query_tokens": "many"}', "is no valid configuration"),
        ],
    )
    def test_a_wrong_config_file(self, release, options, content, match, tmp_path_factory):
        config = tmp_path_factory.mktemp("config") / "config.json"
        if content is not None:
            config.write_text(content)
        assert_refused(release, {**options, "config": config}, match)

    def test_an_index_that_names_no_shards(self, release, options):
        folder = release / "llama-2-7b-chat-hf"
        (folder / "pytorch_model.bin").rename(folder / "pytorch_model-1.bin")
        (folder / "pytorch_model.bin.index.json").write_text("{}")
        assert_refused(release, options, "has no weight_map")

    def test_a_tokenizer_of_another_model(self, release, options, tmp_path_factory):
        folder = tmp_path_factory.mktemp("tokenizer")
        for name in ("tokenizer_config.json", "tokenizer.json"):
            content = (TINY / name).read_text().replace('"</s>"', '"</end>"')
            (folder / name).write_text(content)
        assert_refused(
            release, {**options, "given": {"tokenizer": folder}}, "expected \\[0, 1, 2\\]: give that of the LLaMA"
        )

    def test_no_tokenizer(self, release, options):
        assert_refused(
            release,
            {**options, "given": {"tokenizer": release / "llama-2-7b-chat-hf"}},
            "has neither tokenizer.json nor tokenizer.model",
        )

    def test_a_tokenizer_that_can_not_be_read(self, release, options, tmp_path_factory):
        folder = tmp_path_factory.mktemp("tokenizer")
        (folder / "tokenizer.json").write_text("{}")
        assert_refused(
            release, {**options, "given": {"tokenizer": folder}}, "holds no tokenizer that transformers can read"
        )

    @pytest.mark.parametrize(
        ("settings", "match"),
        [
            ({"num_query_tokenz": 8}, "sets num_query_tokenz, which no VideoLlamaConfig has"),
            ({"vision_config": {"widht": 8}}, "sets vision_config.widht, which no VideoLlamaConfig has"),
            ({"audio_config": None}, "leaves out the audio branch, but files of one were given"),
            (
                {"vision_config": {"num_attention_heads": 7}},
                "gives sizes that make no model|is no valid configuration",
            ),
        ],
    )
    def test_settings_that_make_no_model(self, release, options, settings, match, tmp_path_factory):
        config = tmp_path_factory.mktemp("config") / "config.json"
        config.write_text(json.dumps(json.loads((PARITY / "config.json").read_text()) | settings))
        assert_refused(release, {**options, "config": config}, match)

    def test_a_llama_with_wrong_settings_is_named_itself(self, release, options):
        path = release / "llama-2-7b-chat-hf" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": "many"}))
        assert_refused(release, options, "llama-2-7b-chat-hf/config.json is no valid configuration of a LLaMA")

    @pytest.mark.parametrize("scale", [torch.tensor([3.0, 3.0]), torch.tensor(torch.nan), torch.tensor(1e4)])
    def test_a_scale_of_sounds_that_is_none(self, release, options, scale):
        name = "modality_postprocessors.audio.1.log_logit_scale"
        edit(release / "imagebind_huge.pth", lambda tensors: tensors.update({name: scale}))
        assert_refused(release, options, rf"(shape|value)\s+imagebind_huge.pth: {name}")

    def test_a_tokenizer_larger_than_the_vocabulary(self, release, options):
        folder = release / "llama-2-7b-chat-hf"
        edit(
            folder / "pytorch_model.bin",
            lambda tensors: tensors.update(
                {name: tensors[name][:31000].clone() for name in ("model.embed_tokens.weight", "lm_head.weight")}
            ),
        )
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 31000}))
        assert_refused(release, options, "has 32000 tokens, but the vocabulary of .* has 31000")

    def test_values_that_the_precision_can_not_hold(self, release, options):
        edit(release / VL, lambda tensors: tensors["llama_proj.bias"].fill_(1e6))
        assert_refused(
            release, {**options, "dtype": torch.float16}, "llama_proj.bias has values of up to 1e\\+06, beyond float16"
        )

    def test_names_that_do_not_tell_the_prompts(self, release, options):
        (release / VL).rename(release / "VL_mine.pth")
        (release / AL).rename(release / "AL_mine.pth")
        (release / "llama-2-7b-chat-hf").rename(release / "llm")
        assert_refused(
            release, options, "do not tell which prompts the model was trained with: say it by --prompt-family"
        )

    @pytest.mark.parametrize("size", ["nonsense", "0GB", "-1GB"])
    def test_a_size_of_shards_that_is_none(self, release, options, size):
        assert_refused(release, {**options, "max_shard_size": size}, "is no size of a file: write it as 5GB")

    def test_many_problems_are_told_in_short(self, release, options):
        edit(release / VL, lambda tensors: tensors.clear())
        with pytest.raises(CheckpointError, match=r"… and \d+ more") as error:
            convert_release(release, release.parent / "out", **options)
        assert len(str(error.value).splitlines()) < 45

    def test_names_are_printed_safely(self, release, options):
        edit(release / VL, lambda tensors: tensors.update({"\x1b[2Jname": torch.zeros(1)}))
        with pytest.raises(CheckpointError) as error:
            convert_release(release, release.parent / "out", **options)
        assert "\x1b" not in str(error.value)

    def test_a_pickle_with_code_is_not_run(self, release, options, tmp_path):
        class Malicious:
            def __reduce__(self):
                return (Path.touch, (tmp_path / "was_run",))

        (release / "eva_vit_g.pth").write_bytes(pickle.dumps({"cls_token": Malicious()}))
        assert_refused(release, options, "eva_vit_g.pth was refused: its pickle calls")

    def test_a_truncated_file(self, release, options):
        path = release / "blip2_pretrained_flant5xxl.pth"
        path.write_bytes(path.read_bytes()[:5000])
        assert_refused(release, options, "blip2_pretrained_flant5xxl.pth could not be read")

    def test_an_output_that_exists_is_left_alone(self, release, options, tmp_path):
        output = tmp_path / "out"
        output.mkdir()
        with pytest.raises(CheckpointError, match="exists already"):
            convert_release(release, output, **options)
        assert not list(output.iterdir())


class TestCommand:
    def test_it_reports_what_was_not_used(self, tmp_path):
        arguments = [
            "--release",
            PARITY / "original",
            "--config",
            PARITY / "config.json",
            "--output",
            tmp_path / "out",
        ]
        result = CliRunner().invoke(app, ["convert", *map(str, arguments), "--tokenizer", str(TINY)])

        assert result.exit_code == 0, result.output
        assert "359 tensors, 167 tensors of the sources not used" in result.output
        assert "88  a modality that Video-LLaMA does not use" in result.output

    def test_an_error_is_one_message_and_exit_code_1(self, tmp_path):
        result = CliRunner().invoke(app, ["convert", "--release", str(tmp_path), "--output", str(tmp_path / "out")])

        assert result.exit_code == 1
        assert "There is no vision branch (VL_….pth)" in result.output
        assert "Traceback" not in result.output

    def test_options_that_are_missing_are_named(self, tmp_path):
        result = CliRunner().invoke(app, ["convert", "--output", str(tmp_path / "out")])

        assert result.exit_code == 1
        assert "give it by --vision-checkpoint" in result.output
