# SPDX-License-Identifier: Apache-2.0
"""Every release is found by its name, in a folder or by download; what is missing or does not fit is named."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from transformers import AutoProcessor, LlamaConfig

from transformers_videollama import CheckpointError, VideoLlamaForConditionalGeneration
from transformers_videollama.conversion import releases
from transformers_videollama.conversion.convert_video_llama_to_hf import convert
from transformers_videollama.conversion.releases import RELEASES, Sources, check_fit, find_sources, release_named

from ..helpers import PARITY, SAMPLE_CLIP, TINY, convert_release


# What SPEC.md §5 lists
VIDEO_LLAMA_2 = [f"Video-LLaMA-2-{size}-{stage}" for size in ("7B", "13B") for stage in ("Pretrained", "Finetuned")]
SERIES = [
    "pretrain_vicuna7b-v2",
    "finetune-vicuna7b-v2",
    "pretrain-vicuna13b",
    "finetune-vicuna13b-v2",
    "pretrain-ziya13b-zh",
    "finetune-ziya13b-zh",
    "pretrain-billa7b-zh",
    "finetune-billa7b-zh",
]
WITH_AUDIO = [*VIDEO_LLAMA_2, "pretrain_vicuna7b-v2", "finetune-vicuna7b-v2"]


def make_files(release, folder: Path, suffix: str = ".pth") -> None:
    """Empty files under the names of a release, and the folders of its LLaMA."""
    folder.mkdir(exist_ok=True)
    names = [release.vision, release.audio, *releases.COMMON.values()]
    for name in names:
        if name is not None:
            (folder / name).with_suffix(suffix).touch()
    llm = release.language_model
    for name in [llm.folder] if llm.folder else ["llama", llm.delta["repo"].split("/")[1]]:
        (folder / name).mkdir()
        (folder / name / "config.json").write_text('{"model_type": "llama"}')


def offline(*arguments):
    raise AssertionError("nothing may be downloaded")


@pytest.fixture
def no_downloads(monkeypatch):
    for name in ("hf_hub_download", "snapshot_download", "HfApi"):
        monkeypatch.setattr(releases, name, offline)
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)


def test_every_release_is_in_the_table():
    assert sorted(RELEASES) == sorted([*VIDEO_LLAMA_2, *SERIES])
    assert sorted(name for name, release in RELEASES.items() if release.audio) == sorted(WITH_AUDIO)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", RELEASES)
def test_a_release_is_found_in_a_folder_by_its_name_or_by_what_is_there(name, suffix, tmp_path, no_downloads):
    release = RELEASES[name]
    make_files(release, tmp_path / "files", suffix)

    by_name = find_sources(name, {}, local_dir=tmp_path / "files")
    in_folder = find_sources(str(tmp_path / "files"), {})

    assert by_name == in_folder
    assert by_name.release is release
    assert by_name.vision_checkpoint.name == Path(release.vision).with_suffix(suffix).name
    assert (by_name.audio_checkpoint is not None) == (by_name.imagebind is not None) == (name in WITH_AUDIO)
    assert (by_name.llama_delta is not None) == (name in SERIES)
    assert by_name.llama.name == (release.language_model.folder or "llama")


@pytest.mark.parametrize("name", WITH_AUDIO)
def test_the_audio_branch_may_be_left_out(name, tmp_path, no_downloads):
    make_files(RELEASES[name], tmp_path / "files")

    for release, local_dir in ((name, tmp_path / "files"), (tmp_path / "files", None)):
        found = find_sources(release, {}, with_audio=False, local_dir=local_dir)
        assert found.audio_checkpoint is found.imagebind is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("DAMO-NLP-SG/Video-LLaMA-2-7B-Finetuned", "Video-LLaMA-2-7B-Finetuned"),
        ("video-llama-2-7b-finetuned", "Video-LLaMA-2-7B-Finetuned"),
        ("AL_LLaMA_2_13B_Pretrained.pth", "Video-LLaMA-2-13B-Pretrained"),
        ("finetune-ziya13b-zh.pth", "finetune-ziya13b-zh"),
        ("finetune_vicuna7b_audiobranch", "finetune-vicuna7b-v2"),
        ("pretrain_vicuna7b_audiobranch.pth", "pretrain_vicuna7b-v2"),
    ],
)
def test_names_of_repositories_and_files_name_the_release(name, expected):
    assert release_named(name).name == expected


def test_prompts_are_those_of_the_language_model():
    families = {name: release.language_model.prompt_family for name, release in RELEASES.items()}

    assert {families[name] for name in VIDEO_LLAMA_2} == {"llama_2"}
    assert {families[name] for name in SERIES} == {"vicuna"}


class TestMissing:
    def test_an_unknown_name_is_answered_with_the_known_ones(self):
        with pytest.raises(
            CheckpointError, match="no-such is no folder and no release. The releases are Video-LLaMA-2-7B-Pre"
        ):
            find_sources("no-such", {})

    @pytest.mark.parametrize(
        ("missing", "message"),
        [
            (
                "VL_LLaMA_2_7B_Finetuned.pth",
                r"no vision branch .* to be had at https://huggingface.co/DAMO-NLP-SG",
            ),
            (
                "eva_vit_g.pth",
                r"no eva_vit_g.pth in .* by --eva-vit. It is to be had at https://storage.googleapis.com/.*/eva_vit_g.pth",
            ),
            ("blip2_pretrained_flant5xxl.pth", "by --blip2. It is to be had at https://storage.googleapis.com/"),
            ("imagebind_huge.pth", "by --imagebind. It is to be had at https://dl.fbaipublicfiles.com/imagebind/"),
            (
                "llama-2-7b-chat-hf",
                r"\(LLaMA-2-7B-chat\) in .* by --llama. https://huggingface.co/DAMO-NLP-SG/Video-LLaMA-2-7B-Fi",
            ),
        ],
    )
    def test_a_missing_piece_of_a_folder_is_named_with_where_it_is_to_be_had(self, missing, message, tmp_path):
        make_files(RELEASES["Video-LLaMA-2-7B-Finetuned"], tmp_path / "files")
        path = tmp_path / "files" / missing
        shutil.rmtree(path) if path.is_dir() else path.unlink()

        with pytest.raises(CheckpointError, match=message):
            find_sources(str(tmp_path / "files"), {})

    def test_what_is_given_need_not_be_in_the_folder(self, tmp_path):
        make_files(RELEASES["Video-LLaMA-2-7B-Finetuned"], tmp_path / "files")
        (tmp_path / "files" / "eva_vit_g.pth").rename(tmp_path / "eva.pth")

        found = find_sources(str(tmp_path / "files"), {"eva_vit": tmp_path / "eva.pth"})
        assert found.eva_vit == tmp_path / "eva.pth"

    @pytest.mark.parametrize("kind", ["VL_LLaMA_2_7B_Pretrained.pth", "other/eva_vit_g.pth"])
    def test_of_several_files_the_one_has_to_be_named(self, kind, tmp_path):
        make_files(RELEASES["Video-LLaMA-2-7B-Finetuned"], tmp_path / "files")
        (tmp_path / "files" / kind).parent.mkdir(exist_ok=True)
        (tmp_path / "files" / kind).touch()

        with pytest.raises(
            CheckpointError, match=f"holds several files for .*{kind}.* Name the one by --(vision-checkpoint|eva-vit)"
        ):
            find_sources(tmp_path / "files", {})

    def test_of_several_llamas_that_of_the_release_is_taken_or_one_has_to_be_named(self, tmp_path):
        make_files(RELEASES["Video-LLaMA-2-7B-Finetuned"], tmp_path / "files")
        for name in ("one", "two", "llama-2-13b-chat-hf"):
            (tmp_path / "files" / name).mkdir()
            (tmp_path / "files" / name / "config.json").write_text('{"model_type": "llama"}')
        assert find_sources(tmp_path / "files", {}).llama.name == "llama-2-7b-chat-hf"
        shutil.rmtree(tmp_path / "files" / "llama-2-7b-chat-hf")

        with pytest.raises(
            CheckpointError, match="holds several LLaMA folders: .*one, .*two. Name the one by --llama"
        ):
            find_sources(tmp_path / "files", {})

    def test_folders_of_other_models_do_not_count(self, tmp_path):
        make_files(RELEASES["Video-LLaMA-2-7B-Finetuned"], tmp_path / "files")
        for name, content in (("converted", '{"model_type": "video_llama"}'), ("junk", "[1]")):
            (tmp_path / "files" / name).mkdir()
            (tmp_path / "files" / name / "config.json").write_text(content)

        assert find_sources(tmp_path / "files", {}).llama.name == "llama-2-7b-chat-hf"

    @pytest.mark.parametrize(
        ("given", "with_audio", "local_dir", "release", "message"),
        [
            (["audio_checkpoint"], False, None, None, "Both --no-audio and --audio-checkpoint were given"),
            (["imagebind"], False, None, None, "Both --no-audio and --imagebind were given"),
            (["vision_checkpoint", "eva_vit", "blip2", "llama"], True, None, None, "There is no audio branch"),
            ([], None, "nowhere", "Video-LLaMA-2-7B-Finetuned", "nowhere is no folder: give one by --local-dir"),
            ([], None, "files", "files", "is a folder: leave out --local-dir"),
            ([], None, None, "nowhere/Video-LLaMA-2-7B-Finetuned", "is no folder and no release"),
            ([], None, None, "files/VL_LLaMA_2_7B_Finetuned.pth", "It is a file: give its folder, or the file by --vision-ch"),
            (["llama"], None, None, None, "There is no vision branch .* or all of a release by --release"),
        ],
    )  # fmt: skip
    def test_what_contradicts_itself_or_leads_nowhere(
        self, given, with_audio, local_dir, release, message, tmp_path, monkeypatch, no_downloads
    ):
        make_files(RELEASES["Video-LLaMA-2-7B-Finetuned"], tmp_path / "files")
        monkeypatch.chdir(tmp_path)
        paths = {
            name: tmp_path / "files" / ("llama-2-7b-chat-hf" if name == "llama" else "eva_vit_g.pth") for name in given
        }

        with pytest.raises(CheckpointError, match=message):
            find_sources(release, paths, with_audio, Path(local_dir) if local_dir else None)

    def test_a_folder_that_has_the_name_of_the_release_is_not_taken_for_its_files(
        self, tmp_path, monkeypatch, no_downloads
    ):
        make_files(RELEASES["Video-LLaMA-2-7B-Finetuned"], tmp_path / "files")
        (tmp_path / "Video-LLaMA-2-7B-Finetuned").mkdir()
        monkeypatch.chdir(tmp_path)

        assert find_sources("Video-LLaMA-2-7B-Finetuned", {}, local_dir=Path("files")).llama.is_dir()

    def test_audio_that_was_never_released(self, tmp_path):
        with pytest.raises(CheckpointError, match="pretrain-vicuna13b was released without an audio branch"):
            find_sources("pretrain-vicuna13b", {}, with_audio=True)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            (
                "finetune-vicuna7b-v2",
                r"Vicuna-7B v0, which is made of LLaMA-7B \(version 1\) .* lmsys/vicuna-7b-delta-v0",
            ),
            ("finetune-ziya13b-zh", r"made of LLaMA-13B \(version 1\) .* and IDEA-CCNL/Ziya-LLaMA-13B-v1"),
            ("finetune-billa7b-zh", r"made of LLaMA-7B \(version 1\) .* and Neutralzz/BiLLa-7B-SFT"),
        ],
    )
    def test_a_llama_that_may_not_be_passed_on_is_asked_for(self, name, message, tmp_path, no_downloads):
        make_files(RELEASES[name], tmp_path / "files")
        shutil.rmtree(tmp_path / "files" / "llama")

        with pytest.raises(CheckpointError, match=message):
            find_sources(name, {}, local_dir=tmp_path / "files")

    @pytest.mark.parametrize("filename", ["eva_vit_g.pth", "VL_LLaMA_2_7B_Finetuned.pth", "llama-2-7b-chat-hf"])
    def test_without_network_the_piece_and_its_home_are_named(self, filename, tmp_path, monkeypatch):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
        make_files(RELEASES["Video-LLaMA-2-7B-Finetuned"], tmp_path / "files")
        path = tmp_path / "files" / filename
        shutil.rmtree(path) if path.is_dir() else path.unlink()

        home = (
            "https://storage.googleapis.com" if filename == "eva_vit_g.pth" else "https://huggingface.co/DAMO-NLP-SG"
        )
        with pytest.raises(CheckpointError, match=f"{filename}.* could not be downloaded from {home}"):
            find_sources("Video-LLaMA-2-7B-Finetuned", {}, local_dir=tmp_path / "files")


def test_a_file_without_repository_is_downloaded_once_and_said(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    torch.save({"cls_token": torch.ones(3)}, tmp_path / "there" / "eva_vit_g.pth")
    table = json.loads(json.dumps(releases.TABLE))
    table["files"]["eva_vit_g.pth"]["url"] = (tmp_path / "there" / "eva_vit_g.pth").as_uri()
    monkeypatch.setattr(releases, "TABLE", table)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    make_files(RELEASES["Video-LLaMA-2-7B-Finetuned"], tmp_path / "files")
    (tmp_path / "files" / "eva_vit_g.pth").unlink()

    said = []
    for _ in range(2):
        found = find_sources("Video-LLaMA-2-7B-Finetuned", {}, local_dir=tmp_path / "files", say=said.append)

    assert found.eva_vit == tmp_path / "torch" / "hub" / "checkpoints" / "eva_vit_g.pth"
    assert torch.load(found.eva_vit)["cls_token"].tolist() == [1, 1, 1]
    assert len(said) == 1
    assert said[0].startswith("eva_vit_g.pth (2.0 GB) from file://")


def sources_of(vision: str, audio: str | None = None, **fields) -> Sources:
    paths = {"eva_vit": "eva.pth", "blip2": "blip2.pth", "llama": "llm", **fields}
    return Sources(
        vision_checkpoint=Path(vision),
        audio_checkpoint=None if audio is None else Path(audio),
        release=release_named(vision),
        **{name: Path(path) for name, path in paths.items()},
    )


def test_a_download_that_was_cut_off_is_not_kept(tmp_path, monkeypatch):
    torch.save({"cls_token": torch.ones(3000)}, tmp_path / "eva_vit_g.pth")
    whole = (tmp_path / "eva_vit_g.pth").read_bytes()
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda url, path: Path(path).write_bytes(whole[:5000]))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    make_files(RELEASES["Video-LLaMA-2-7B-Finetuned"], tmp_path / "files")
    (tmp_path / "files" / "eva_vit_g.pth").unlink()

    with pytest.raises(CheckpointError, match="eva_vit_g.pth could not be downloaded"):
        find_sources("Video-LLaMA-2-7B-Finetuned", {}, local_dir=tmp_path / "files")
    assert [path for path in (tmp_path / "torch").rglob("*") if path.is_file()] == []


class TestFit:
    """A branch belongs to the LLaMA it was trained with."""

    @pytest.mark.parametrize(
        ("vision", "width", "vocabulary", "fits"),
        [
            ("VL_LLaMA_2_7B_Finetuned.pth", 4096, 32000, True),
            ("VL_LLaMA_2_7B_Finetuned.pth", 5120, 32000, False),
            ("VL_LLaMA_2_7B_Finetuned.pth", 4096, 32001, False),
            ("finetune-vicuna7b-v2.pth", 4096, 32001, True),
            ("finetune-billa7b-zh.pth", 4096, 46943, True),
            ("finetune-billa7b-zh.pth", 4096, 32000, False),
            ("finetune-ziya13b-zh.pth", 5120, 39424, True),
            ("finetune-ziya13b-zh.pth", 5120, 32000, False),
            ("VL_mine.pth", 4096, 50000, True),
        ],
    )
    def test_width_and_vocabulary(self, vision, width, vocabulary, fits):
        text_config = LlamaConfig(hidden_size=width, vocab_size=vocabulary)
        if fits:
            check_fit(sources_of(vision), text_config)
            return
        with pytest.raises(
            CheckpointError, match=rf"but llm has width {width} and vocabulary {vocabulary}. Get that LLaMA: "
        ):
            check_fit(sources_of(vision), text_config)

    def test_audio_of_another_language_model(self):
        vision, audio = "VL_LLaMA_2_7B_Finetuned.pth", "finetune_vicuna7b_audiobranch.pth"
        with pytest.raises(
            CheckpointError, match="trained with Vicuna-7B v0, .* LLaMA-2-7B-chat: .* one, AL_LLaMA_2_7B_Finetuned.pth"
        ):
            check_fit(sources_of(vision, audio), None)

    def test_a_conversion_refuses_before_it_reads_the_weights(self, tmp_path):
        release = shutil.copytree(PARITY / "original", tmp_path / "release")
        for file in release.glob("*.pth"):
            file.write_text("not read")
        with pytest.raises(CheckpointError, match="VL_LLaMA_2_7B_Finetuned.pth was trained with LLaMA-2-7B-chat"):
            convert_release(release, tmp_path / "out", config=None)


class TestVicuna:
    """A release whose LLaMA is a sum, at the tiny sizes of the parity data."""

    @pytest.fixture
    def release(self, tmp_path) -> Path:
        release = shutil.copytree(PARITY / "original", tmp_path / "release")
        (release / "VL_LLaMA_2_7B_Finetuned.pth").rename(release / "finetune-vicuna7b-v2.pth")
        (release / "AL_LLaMA_2_7B_Finetuned.pth").rename(release / "finetune_vicuna7b_audiobranch.pth")
        llama = (release / "llama-2-7b-chat-hf").rename(release / "llama-7b")
        whole = torch.load(llama / "pytorch_model.bin", weights_only=True)
        generator = torch.Generator().manual_seed(0)
        base, delta = {}, {}
        for name, tensor in whole.items():
            # Multiples of 2**-6 add up without rounding
            base[name] = torch.randint(-64, 64, tensor.shape, generator=generator).to(tensor.dtype) / 64
            change = torch.randint(-64, 64, tensor.shape, generator=generator).to(tensor.dtype) / 64
            rows = "embed_tokens" in name or "lm_head" in name
            delta[name] = torch.cat([change, change[:1]]) if rows else change
        torch.save(base, llama / "pytorch_model.bin")
        folder = release / "vicuna-7b-delta-v0"
        folder.mkdir()
        torch.save(delta, folder / "pytorch_model.bin")
        config = json.loads((llama / "config.json").read_text()) | {"vocab_size": 32001}
        (folder / "config.json").write_text(json.dumps(config))
        self.base, self.delta = base, delta
        return release

    def test_base_and_delta_are_added_up_on_the_way(self, release, tmp_path):
        sources = find_sources("finetune-vicuna7b-v2", {"tokenizer": TINY}, local_dir=release)
        convert(sources, tmp_path / "out", PARITY / "config.json")
        weights = load_file(tmp_path / "out" / "model.safetensors")
        config = json.loads((tmp_path / "out" / "config.json").read_text())

        assert weights["lm_head.weight"].shape[0] == config["text_config"]["vocab_size"] == 32001
        for name in ("lm_head.weight", "model.norm.weight"):
            expected = self.delta[name].clone()
            expected[: len(self.base[name])] += self.base[name]
            ours = name.replace("model.", "model.language_model.")
            assert torch.equal(weights[ours], expected)
        provenance = config["provenance"]
        assert (provenance["release"], provenance["prompt_family"]) == ("DAMO-NLP-SG/Video-LLaMA-Series", "vicuna")
        assert {"llama-7b/pytorch_model.bin", "vicuna-7b-delta-v0/pytorch_model.bin"} < {
            source["file"] for source in provenance["sources"]
        }

    def test_the_sum_answers_about_a_clip(self, release, tmp_path):
        convert_release(release, tmp_path / "out")
        processor = AutoProcessor.from_pretrained(tmp_path / "out")
        model = VideoLlamaForConditionalGeneration.from_pretrained(tmp_path / "out", dtype=torch.float32)
        messages = [
            {"role": "user", "content": [{"type": "video", "path": str(SAMPLE_CLIP)}, {"type": "text", "text": "?"}]}
        ]
        inputs = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )

        # The placeholder lies within this vocabulary, and is replaced all the same
        assert (inputs["input_ids"] == model.config.video_token_id).sum() == model.config.num_video_query_tokens
        assert model(**inputs).logits.isfinite().all()
        assert model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[1] == inputs["input_ids"].shape[1] + 3

    def test_the_base_alone_is_not_taken_for_the_whole(self, release):
        shutil.rmtree(release / "vicuna-7b-delta-v0")
        for name, local_dir in (("finetune-vicuna7b-v2", release), (release, None)):
            with pytest.raises(CheckpointError, match="LLaMA-7B \\(version 1\\)"):
                find_sources(name, {}, local_dir=local_dir)

    def test_the_difference_alone_is_not_taken_for_the_whole(self, release):
        shutil.rmtree(release / "llama-7b")
        with pytest.raises(CheckpointError, match="There is no LLaMA folder"):
            find_sources(release, {})
        with pytest.raises(
            CheckpointError, match="has the name of a difference to LLaMA, which is of no use by itself"
        ):
            find_sources(release, {"llama": release / "vicuna-7b-delta-v0"})

    def test_the_difference_is_taken_to_a_base_that_is_given(self, release, tmp_path):
        base = (release / "llama-7b").rename(tmp_path / "my-llama")
        for name, local_dir in (("finetune-vicuna7b-v2", release), (release, None)):
            assert (
                find_sources(name, {"llama": base}, local_dir=local_dir).llama_delta == release / "vicuna-7b-delta-v0"
            )

    def test_llama_2_is_not_taken_for_a_base(self, release):
        (release / "llama-7b").rename(release / "llama-2-7b-chat-hf")
        with pytest.raises(CheckpointError, match="There is no LLaMA folder"):
            find_sources(release, {})

    def test_a_whole_vicuna_is_told_by_its_vocabulary_or_name(self, release):
        shutil.move(release / "vicuna-7b-delta-v0", release / "added-up")
        shutil.rmtree(release / "llama-7b")
        sources = find_sources(release, {})

        assert (sources.llama.name, sources.llama_delta) == ("added-up", None)

    @pytest.mark.parametrize(
        ("folder", "release", "expected"),
        [
            ("Ziya-LLaMA-13B-v1", None, {"added": r"(?!model\.embed_tokens\.|lm_head\.).*"}),
            (
                "models--Neutralzz--BiLLa-7B-SFT/snapshots/0123",
                None,
                {"added": "", "subtracted": r"model\.embed_tokens\.weight"},
            ),
            ("mine", "finetune-ziya13b-zh.pth", {"added": r"(?!model\.embed_tokens\.|lm_head\.).*"}),
            ("vicuna-7b-delta-v0", None, {"added": ".*"}),
            ("mine", "VL_mine.pth", {}),
        ],
    )
    def test_how_a_difference_is_added_is_told_by_its_name_or_the_release(self, folder, release, expected):
        assert sources_of(release or "VL_mine.pth", llama_delta=folder).delta_rules == expected

    def test_a_difference_of_unknown_kind_with_many_new_tokens_is_refused(self, release, tmp_path):
        for file in release.glob("*vicuna7b*.pth"):
            file.rename(release / ("AL_mine.pth" if "audio" in file.name else "VL_vicuna_mine.pth"))
        folder = (release / "vicuna-7b-delta-v0").rename(release / "my-delta")
        delta = torch.load(folder / "pytorch_model.bin")
        delta["model.embed_tokens.weight"] = torch.zeros(32100, 48)
        torch.save(delta, folder / "pytorch_model.bin")
        with pytest.raises(
            CheckpointError, match="has 32100 tokens and .* 32000; how such a difference is added depends"
        ):
            convert_release(release, tmp_path / "out")

    def test_a_delta_is_refused_where_none_was_released(self, release, tmp_path):
        (release / "finetune-vicuna7b-v2.pth").rename(release / "VL_LLaMA_2_7B_Finetuned.pth")
        given = {"llama": release / "llama-7b", "llama_delta": release / "vicuna-7b-delta-v0"}
        with pytest.raises(CheckpointError, match="LLaMA-2-7B-chat was not released as a difference: leave out"):
            find_sources(release, given)
