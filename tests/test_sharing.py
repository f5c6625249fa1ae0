# SPDX-License-Identifier: Apache-2.0
"""Sharing on the Hub: the model card, and what a push carries. All of it against a local stand-in, see `hub_stand_in.py`."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import CommitOperationAdd, EvalResult, HfApi, ModelCard, parse_local_safetensors_file_metadata
from huggingface_hub.errors import RepositoryNotFoundError
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoProcessor

from transformers_videollama import (
    SharingError,
    VideoLlamaConfig,
    VideoLlamaForConditionalGeneration,
    adapter_card,
    model_card,
)
from transformers_videollama.processing_video_llama import load_chat_templates

from .helpers import PACKAGE, ROOT, SAMPLE_CLIP, tiny_config
from .hub_stand_in import HubStandIn


SOURCES = [
    {"file": "VL_LLaMA_2_7B_Finetuned.pth", "sha256": "ab" * 32, "bytes": 265_438_123},
    {"file": "imagebind_huge.pth", "sha256": "cd" * 32, "bytes": 4_803_584_173},
]
PROVENANCE = {
    "release": "DAMO-NLP-SG/Video-LLaMA-2-7B-Finetuned",
    "prompt_family": "llama_2",
    "sources": SOURCES,
}
RESULT = EvalResult("video-text-to-text", "me/msvd", "MSVD-QA", "accuracy", 51.6, dataset_split="test")
CODE_FILES = {
    "configuration_video_llama.py", "exceptions.py", "feature_extraction_video_llama.py", "image_processing_video_llama.py",
    "media.py", "modeling_imagebind.py", "modeling_video_llama.py", "modeling_video_llama_encoder.py",
    "processing_video_llama.py", "sharing.py", "video_processing_video_llama.py",
}  # fmt: skip
MODEL_FILES = {"config.json", "generation_config.json", "model.safetensors"}
PROCESSOR_FILES = {"chat_template.jinja", "processor_config.json", "tokenizer.json", "tokenizer_config.json"}
PROCESSOR_FILES |= {f"additional_chat_templates/{family}.jinja" for family in ("vicuna", "llama_2")}


@pytest.fixture
def model(tiny_model) -> VideoLlamaForConditionalGeneration:
    tiny_model.config.provenance = PROVENANCE
    return tiny_model


@pytest.fixture
def loaded(processor, model, tmp_path) -> VideoLlamaForConditionalGeneration:
    """The model as loaded from a folder with its processor."""
    model.save_pretrained(tmp_path / "loaded")
    processor.save_pretrained(tmp_path / "loaded")
    return VideoLlamaForConditionalGeneration.from_pretrained(tmp_path / "loaded")


def card_of(hub: HubStandIn, repo_id: str, revision: str = "main") -> ModelCard:
    return ModelCard(hub.files(repo_id, revision)["README.md"].decode())


def snippet(card: ModelCard) -> str:
    return re.search(r"```python\n(.*?)```", card.text, flags=re.DOTALL)[1]


class TestCard:
    def test_it_counts_the_parameters_of_each_part(self, tiny_model):
        card = model_card(tiny_model.config)

        counts = [int(count.replace(",", "")) for count in re.findall(r"\| \**([\d,]+)\** \|\n", card.text)]
        assert sum(counts[:-1]) == counts[-1] == tiny_model.num_parameters()

    def test_it_gives_the_sizes_of_the_released_model(self):
        card = model_card(VideoLlamaConfig(dtype="float16"))

        assert "| language model (LLaMA) | 32 layers, width 4096; 32,000 tokens | 6,738,415,616 |" in card.text
        assert "In float16 the weights take 17.2 GB." in card.text

    def test_it_names_the_release_and_every_source_by_checksum(self):
        card = model_card(tiny_config(provenance=PROVENANCE), "me/tiny")

        assert card.data.base_model == PROVENANCE["release"]
        for source in SOURCES:
            assert f"| `{source['file']}` | {source['bytes']:,} | `{source['sha256']}` |" in card.text

    @pytest.mark.parametrize(
        ("family", "has_audio", "license", "name"),
        [
            ("llama_2", True, "other", "llama2-and-cc-by-nc-4.0"),
            ("llama_2", False, "llama2", None),
            ("vicuna", True, "other", "llama-non-commercial-and-cc-by-nc-4.0"),
            ("vicuna", False, "other", "llama-non-commercial"),
            (None, True, None, None),
            (None, False, None, None),
        ],
    )
    def test_the_licences_are_those_of_the_parts(self, hub, family, has_audio, license, name):
        overrides = {} if has_audio else {"audio_config": None}
        config = tiny_config(provenance=family and {**PROVENANCE, "prompt_family": family}, **overrides)
        card = model_card(config, "me/tiny")

        assert (card.data.license, card.data.license_name) == (license, name)
        assert ("CC-BY-NC 4.0" in card.text) == has_audio
        assert ("LLAMA 2 Community License" in card.text) == (family == "llama_2")
        assert ("not recorded what the weights were made from" in card.text) == (family is None)
        card.validate()

    def test_results_are_in_the_text_and_in_the_metadata(self, hub):
        card = model_card(tiny_config(), "me/tiny", results=[RESULT], example_output="A ball | bounces.")

        assert ModelCard(str(card)).data.eval_results == [RESULT]
        assert "| MSVD-QA | test | accuracy | 51.6 |" in card.text
        assert "It prints:\n\n```text\nA ball | bounces.\n```" in card.text
        card.validate()

    def test_a_chinese_release_is_said_to_be_one(self):
        source = {**SOURCES[0], "file": "finetune-ziya13b-zh.pth"}

        assert model_card(tiny_config(provenance={**PROVENANCE, "sources": [source]})).data.language == ["zh", "en"]
        assert model_card(tiny_config(provenance=PROVENANCE)).data.language == ["en"]

    @pytest.mark.parametrize("family", ["vicuna", "llama_2"])
    def test_the_prompt_is_the_one_that_the_processor_writes(self, processor, family):
        question = {"type": "text", "text": "What do you see?"}
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "video", "path": str(SAMPLE_CLIP)}, question]}],
            chat_template=load_chat_templates()[family],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
        )
        card = model_card(tiny_config(provenance={**PROVENANCE, "prompt_family": family}))
        prompt = card.text.split("for a clip of 6 seconds:\n\n```text\n")[1].split("\n```")[0]
        written_out = re.sub(r"<VideoHere>×(\d+)", lambda count: "<VideoHere>" * int(count[1]), prompt)

        assert processor.tokenizer(written_out)["input_ids"] == list(inputs["input_ids"][0])


class TestFolder:
    def test_a_saved_folder_has_a_card_and_passes_the_checks_of_huggingface_hub(self, hub, model, processor, tmp_path):
        model.save_pretrained(tmp_path / "folder")
        processor.save_pretrained(tmp_path / "folder")
        paths = [path for path in (tmp_path / "folder").rglob("*") if path.is_file()]
        names = {path.relative_to(tmp_path / "folder").as_posix() for path in paths}
        weights = parse_local_safetensors_file_metadata(tmp_path / "folder" / "model.safetensors")

        assert names == CODE_FILES | MODEL_FILES | PROCESSOR_FILES | {"README.md"}
        assert all(CommitOperationAdd(name, tmp_path / "folder" / name).upload_info.size for name in names)
        assert sum(weights.parameter_count.values()) == model.num_parameters()
        card = ModelCard.load(tmp_path / "folder" / "README.md")
        card.validate()
        assert all(source["sha256"] in card.text for source in SOURCES)

    def test_a_card_that_is_there_is_kept(self, model, tmp_path):
        (tmp_path / "README.md").write_text("mine")
        model.save_pretrained(tmp_path)

        assert (tmp_path / "README.md").read_text() == "mine"

    def test_another_process_than_the_main_one_writes_no_card(self, model, tmp_path):
        model.save_pretrained(tmp_path, is_main_process=False)

        assert not (tmp_path / "README.md").exists()


WITHOUT_PACKAGE = """
import json, re, sys

class Uninstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "transformers_videollama":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Uninstalled())
import torch
from huggingface_hub import ModelCard

repo_id, clip, output = sys.argv[1:]
code = re.search(r"```python\\n(.*?)```", ModelCard.load(repo_id).text, flags=re.DOTALL)[1]
exec(code.replace("clip.mp4", clip))
with torch.no_grad():
    logits = model.float()(**inputs).logits
torch.save({"input_ids": inputs["input_ids"], "logits": logits}, output)
# What was loaded by its own code can be shared on
print(model.push_to_hub("me/again"))
"""


class TestPush:
    def test_one_commit_carries_all_and_works_where_the_package_is_not_installed(
        self, hub, model, processor, tmp_path
    ):
        commit = model.push_to_hub("me/tiny", processor=processor, private=True)

        assert hub.titles("me/tiny") == ["Upload model"]
        assert str(commit).startswith(hub.endpoint)
        assert hub.files("me/tiny").keys() == CODE_FILES | MODEL_FILES | PROCESSOR_FILES | {
            "README.md",
            ".gitattributes",
        }
        assert card_of(hub, "me/tiny").text == model_card(model.config, "me/tiny").text
        weights = HfApi().get_safetensors_metadata("me/tiny")
        assert sum(weights.parameter_count.values()) == model.num_parameters()
        assert HfApi().model_info("me/tiny").card_data.base_model == PROVENANCE["release"]

        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path / "home"),
            "HF_HOME": str(tmp_path / "home"),
            "HF_ENDPOINT": hub.endpoint,
            "HF_TOKEN": "hf_me",
            "HF_HUB_DISABLE_XET": "1",
        }
        result = subprocess.run(
            [sys.executable, "-c", WITHOUT_PACKAGE, "me/tiny", str(SAMPLE_CLIP), str(tmp_path / "there.pt")],
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
        )
        assert result.returncode == 0, result.stderr
        there = torch.load(tmp_path / "there.pt", weights_only=True)
        messages = [
            {
                "role": "user",
                "content": [
                    {"type": "video", "path": str(SAMPLE_CLIP)},
                    {"type": "text", "text": "What do you see and hear?"},
                ],
            }
        ]
        inputs = processor.apply_chat_template(
            messages,
            load_audio_from_video=True,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            logits = model(**inputs).logits
        assert torch.equal(there["input_ids"], inputs["input_ids"])
        torch.testing.assert_close(there["logits"], logits, rtol=0, atol=1e-5)
        assert hub.files("me/again").keys() == hub.files("me/tiny").keys()
        assert hub.files("me/again")["model.safetensors"] == hub.files("me/tiny")["model.safetensors"]

    def test_the_processor_is_that_of_where_the_model_was_loaded_from(self, hub, loaded, caplog):
        loaded.push_to_hub("me/tiny")

        assert hub.files("me/tiny").keys() >= PROCESSOR_FILES
        assert "no processor" not in caplog.text

        again = VideoLlamaForConditionalGeneration.from_pretrained("me/tiny")
        again.push_to_hub("me/again")
        assert hub.files("me/again").keys() >= PROCESSOR_FILES

    def test_a_model_without_a_processor_is_pushed_with_a_warning(self, hub, model, processor, caplog, monkeypatch):
        monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
        model.push_to_hub("me/tiny")
        assert "me/tiny will have no processor" in caplog.text
        assert not hub.files("me/tiny").keys() & PROCESSOR_FILES

        caplog.clear()
        processor.push_to_hub("me/tiny")
        model.push_to_hub("me/tiny", commit_message="Again")
        assert "no processor" not in caplog.text

    def test_a_processor_pushed_before_the_model_leaves_room_for_the_card(self, hub, model, processor):
        processor.push_to_hub("me/tiny")
        assert "automatically generated" in card_of(hub, "me/tiny").text
        model.push_to_hub("me/tiny")

        assert card_of(hub, "me/tiny").text == model_card(model.config, "me/tiny").text

    def test_a_processor_pushed_after_the_model_leaves_the_card_alone(self, hub, model, processor):
        model.push_to_hub("me/tiny")
        card = hub.files("me/tiny")["README.md"]
        processor.push_to_hub("me/tiny")

        assert hub.files("me/tiny")["README.md"] == card
        assert hub.files("me/tiny").keys() >= PROCESSOR_FILES

    def test_weights_are_split_as_asked(self, hub, model):
        model.push_to_hub("me/tiny", max_shard_size="5MB")

        weights = HfApi().get_safetensors_metadata("me/tiny")
        assert weights.sharded
        assert sum(weights.parameter_count.values()) == model.num_parameters()
        loaded = VideoLlamaForConditionalGeneration.from_pretrained("me/tiny").state_dict()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())

    def test_a_private_repository_is_seen_by_its_owner_alone(self, hub, model):
        model.push_to_hub("me/tiny", private=True)

        assert HfApi().model_info("me/tiny").private
        for token in (False, "hf_colleague"):
            with pytest.raises(RepositoryNotFoundError):
                HfApi(token=token).model_info("me/tiny")

    def test_a_revision_is_a_branch_of_its_own(self, hub, model, processor):
        model.push_to_hub("me/tiny", processor=processor)
        model.lm_head.weight.data.zero_()
        before = hub.files("me/tiny")
        model.push_to_hub("me/tiny", revision="silent", commit_message="Say nothing", commit_description="At all")

        assert hub.files("me/tiny") == before
        assert hub.titles("me/tiny", "silent") == ["Upload model", "Say nothing"]
        assert HfApi().list_repo_commits("me/tiny", revision="silent")[0].message == "At all"
        loaded = VideoLlamaForConditionalGeneration.from_pretrained("me/tiny", revision="silent")
        assert not loaded.lm_head.weight.any()
        AutoProcessor.from_pretrained("me/tiny", revision="silent")

    def test_a_card_is_kept_on_the_branch_that_has_it(self, hub, model):
        model.push_to_hub("me/tiny", revision="branch")
        mine = ModelCard("---\nlicense: mit\n---\nThat of the branch.")
        mine.push_to_hub("me/tiny", revision="branch")
        model.push_to_hub("me/tiny", revision="branch", commit_message="Again")

        assert card_of(hub, "me/tiny", "branch").text == mine.text
        assert "README.md" not in hub.files("me/tiny")

    def test_a_change_can_be_proposed_to_others(self, hub, model, processor):
        HfApi(token="hf_colleague").create_repo("lab/tiny")
        commit = model.push_to_hub("lab/tiny", processor=processor, create_pr=True)

        assert commit.pr_url == f"{hub.endpoint}/lab/tiny/discussions/1"
        assert hub.files("lab/tiny").keys() == {".gitattributes"}
        assert hub.files("lab/tiny", "refs/pr/1").keys() >= CODE_FILES | MODEL_FILES | PROCESSOR_FILES | {"README.md"}

    def test_an_existing_card_is_kept_to_the_byte(self, hub, model):
        HfApi().create_repo("me/tiny")
        text = b"---\n# By hand\nlicense:   mit\n---\nMy card.\n"
        HfApi().upload_file(path_or_fileobj=text, path_in_repo="README.md", repo_id="me/tiny")
        model.push_to_hub("me/tiny")
        assert hub.files("me/tiny")["README.md"] == text

        model.push_to_hub("me/tiny", tags=["balls"])
        card = card_of(hub, "me/tiny")
        assert (card.data.tags, card.data.license) == (["balls"], "mit")
        assert "My card." in card.text

    def test_a_given_card_replaces_one_and_takes_tags(self, hub, model):
        model.push_to_hub("me/tiny")
        card = model_card(model.config, "me/tiny", results=[RESULT])
        model.push_to_hub("me/tiny", card=card, tags=["balls"], commit_message="Results")

        assert card_of(hub, "me/tiny").data.eval_results == [RESULT]
        assert card_of(hub, "me/tiny").data.tags == ["video-llama", "multimodal", "audio", "balls"]

    def test_a_card_that_cannot_be_read_is_not_replaced(self, hub, model):
        model.push_to_hub("me/tiny")
        hub.broken_paths.add("/me/tiny/resolve/main/README.md")
        model.lm_head.weight.data.zero_()
        before = hub.files("me/tiny")

        with pytest.raises(OSError, match="cannot find the requested files in the local cache|400"):
            model.push_to_hub("me/tiny")
        assert hub.files("me/tiny") == before

    def test_a_card_that_the_hub_refuses_stops_the_push_before_the_weights(self, hub, model):
        card = model_card(model.config, "me/tiny")
        card.data.license = "very-free"

        with pytest.raises(ValueError, match='"license" must be one of'):
            model.push_to_hub("me/tiny", card=card)
        assert not any(method == "PUT" for method, _ in hub.requests)

    @pytest.mark.parametrize(
        ("repo_id", "token", "match"),
        [
            ("me/tiny", None, "me/tiny was not pushed, because no token was given: run `hf auth login`"),
            ("me/tiny", True, "me/tiny was not pushed, because no token was given: run `hf auth login`"),
            ("me/tiny", "hf_wrong", "me/tiny was not pushed, because the token that was given is not valid"),
            ("lab/tiny", "hf_me", "lab/tiny was not pushed, because the token may not write there: give a repository"),
            ("nobody/tiny", "hf_me", "nobody/tiny was not pushed, because the token may not write there"),
        ],
    )
    def test_a_refusal_is_explained(self, hub, model, monkeypatch, repo_id, token, match):
        monkeypatch.delenv("HF_TOKEN")
        with pytest.raises(SharingError, match=match):
            model.push_to_hub(repo_id, token=token)
        assert not hub.repos

    def test_a_repository_that_others_own_is_not_written_to(self, hub, model):
        HfApi(token="hf_colleague").create_repo("lab/tiny")
        with pytest.raises(SharingError, match="lab/tiny was not pushed, because the token may not write there"):
            model.push_to_hub("lab/tiny")

    def test_saving_with_push_to_hub_pushes_what_was_saved(self, hub, model, processor, tmp_path):
        folder = tmp_path / "tiny"
        processor.save_pretrained(folder)
        (folder / "notes.txt").write_text("not to be shared")
        model.save_pretrained(folder, push_to_hub=True, commit_message="Epoch 1", private=True, tags=["balls"])

        assert hub.titles("me/tiny") == ["Epoch 1"]
        assert hub.files("me/tiny").keys() == CODE_FILES | MODEL_FILES | PROCESSOR_FILES | {
            "README.md",
            ".gitattributes",
        }
        assert hub.repos["me/tiny"].private
        assert card_of(hub, "me/tiny").data.tags == ["video-llama", "multimodal", "audio", "balls"]
        assert (folder / "model.safetensors").read_bytes() == hub.files("me/tiny")["model.safetensors"]

        model.save_pretrained(tmp_path / "other", push_to_hub=True, repo_id="me/named", is_main_process=False)
        assert "me/named" not in hub.repos

    def test_the_card_of_a_folder_goes_with_it(self, hub, model, tmp_path):
        (tmp_path / "README.md").write_text("---\nlicense: mit\n---\nMy own words.\n")
        model.save_pretrained(tmp_path, push_to_hub=True, repo_id="me/tiny")

        assert card_of(hub, "me/tiny").text.strip() == "My own words."

    def test_a_whole_folder_can_be_uploaded(self, hub, model, processor, tmp_path):
        model.save_pretrained(tmp_path / "folder")
        processor.save_pretrained(tmp_path / "folder")
        HfApi().create_repo("me/tiny")
        HfApi().upload_folder(repo_id="me/tiny", folder_path=tmp_path / "folder")

        assert "Licences" in card_of(hub, "me/tiny").text
        loaded = VideoLlamaForConditionalGeneration.from_pretrained("me/tiny")
        assert loaded.config.provenance == PROVENANCE
        assert len(AutoProcessor.from_pretrained("me/tiny").tokenizer) == len(processor.tokenizer)


# PEFT asks for the old name of an attribute
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
class TestAdapter:
    @pytest.fixture
    def inputs(self, processor) -> dict:
        inputs = processor(text="<VideoHere> What is it?", videos=[str(SAMPLE_CLIP)], return_tensors="pt")
        return {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}

    @pytest.fixture
    def base(self, hub, model, processor) -> VideoLlamaForConditionalGeneration:
        model.push_to_hub("me/base", processor=processor)
        return VideoLlamaForConditionalGeneration.from_pretrained("me/base").eval()

    def train(self, base, inputs) -> PeftModel:
        torch.manual_seed(0)
        config = LoraConfig(
            target_modules=r"model\.language_model.*\.(q_proj|v_proj)",
            modules_to_save=["video_projection", "audio_projection"],
        )
        adapter = get_peft_model(base, config)
        optimizer = torch.optim.SGD([p for p in adapter.parameters() if p.requires_grad], lr=1.0)
        for _ in range(2):
            adapter(**inputs, labels=inputs["input_ids"]).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return adapter.eval()

    def logits(self, model, inputs) -> torch.Tensor:
        with torch.no_grad():
            return model(**inputs).logits

    def test_it_is_pushed_by_peft_and_answers_the_same_from_the_hub(self, hub, base, inputs):
        untrained = self.logits(base, inputs)
        adapter = self.train(base, inputs)
        adapter.push_to_hub("me/adapter")
        adapter_card(adapter, "me/adapter").push_to_hub("me/adapter")
        code = snippet(card_of(hub, "me/adapter")).replace("trust_remote_code=True, device_map", "device_map")
        namespace = {}
        exec(code, namespace)

        assert hub.files("me/adapter").keys() == {
            ".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors"
        }  # fmt: skip
        there = self.logits(namespace["model"].eval(), inputs)
        torch.testing.assert_close(there, self.logits(adapter, inputs), rtol=0, atol=1e-5)
        assert (there - untrained).abs().max() > 1e-3
        assert isinstance(namespace["model"], PeftModel)

    def test_its_card_names_the_base_model_and_the_licences_of_it(self, hub, base, inputs):
        adapter = get_peft_model(base, LoraConfig(target_modules=["q_proj"]))
        HfApi().create_repo("me/adapter")
        adapter_card(adapter, "me/adapter").push_to_hub("me/adapter")
        adapter.push_to_hub("me/adapter")
        card = card_of(hub, "me/adapter")

        assert (card.data.base_model, card.data.library_name) == ("me/base", "peft")
        assert card.data.license_name == "llama2-and-cc-by-nc-4.0"
        assert "CC-BY-NC 4.0" in card.text
        assert json.loads(hub.files("me/adapter")["adapter_config.json"])["base_model_name_or_path"] == "me/base"

    def test_a_base_model_that_nobody_else_has_is_not_named(self, loaded):
        adapter = get_peft_model(loaded, LoraConfig(target_modules=["q_proj"]))

        with pytest.raises(SharingError, match="push that model too, and give its repository as base_model"):
            adapter_card(adapter, "me/adapter")
        assert adapter_card(adapter, "me/adapter", base_model="me/base").data.base_model == "me/base"

    def test_an_adapter_in_the_model_is_pushed_alone(self, hub, base, processor):
        base.add_adapter(LoraConfig(target_modules=["q_proj"]))
        base.push_to_hub("me/adapter", processor=processor)

        assert hub.files("me/adapter").keys() >= {"adapter_config.json", "adapter_model.safetensors"}
        assert not hub.files("me/adapter").keys() & (PROCESSOR_FILES | {"model.safetensors"})
        assert "Licences" not in card_of(hub, "me/adapter").text


class TestStandIn:
    """The stand-in refuses what the Hub refuses; else passing it would show nothing."""

    @pytest.mark.parametrize(
        "metadata",
        [
            "license: very-free",
            "license: other",
            "license: other\nlicense_name: Mine Own",
            "license: other\nlicense_name: mine\nlicense_link: somewhere",
            "base_model: /home/me/model",
            "pipeline_tag: watching",
            "language: English",
            "tags: [1]",
            "model-index: [{name: a, results: [{metrics: []}]}]",
            "a: b: c",
        ],
    )
    def test_bad_metadata(self, hub, metadata):
        HfApi().create_repo("me/tiny")
        content = f"---\n{metadata}\n---\nText"

        with pytest.raises(ValueError, match="Invalid metadata in README.md"):
            HfApi().upload_file(path_or_fileobj=content.encode(), path_in_repo="README.md", repo_id="me/tiny")

    def test_uploads_that_are_not_what_was_announced(self, hub):
        HfApi().create_repo("me/tiny")
        operation = CommitOperationAdd("model.safetensors", b"weights")
        operation.upload_info.sha256 = bytes(32)

        with pytest.raises(RuntimeError, match="Error while uploading") as raised:
            HfApi().create_commit("me/tiny", [operation], commit_message="Wrong")
        assert "What was sent is not the file of 7 bytes" in str(raised.value.__cause__)
        assert "model.safetensors" not in hub.files("me/tiny")

    def test_what_is_not_there(self, hub):
        HfApi().create_repo("me/tiny")

        assert not HfApi().file_exists("me/tiny", "nothing.json")
        assert not HfApi().revision_exists("me/tiny", "nowhere")
        assert not HfApi().repo_exists("me/nothing")
        assert HfApi().repo_exists("me/tiny")


def test_the_code_that_travels_imports_nothing_but_its_neighbours():
    for name in CODE_FILES:
        imports = re.findall(r"^\s*from (\.\S*) import", Path(PACKAGE, name).read_text(), flags=re.MULTILINE)
        assert {f"{module.removeprefix('.')}.py" for module in imports} <= CODE_FILES
    assert "transformers_videollama" not in "".join(
        re.findall(r"^\s*(?:from|import) (\S+)", Path(PACKAGE, "sharing.py").read_text(), flags=re.MULTILINE)
    )


GUIDE_RUNNER = """
import re, subprocess, sys
from pathlib import Path

namespace = {}
for language, code in re.findall(r"```(bash|python)\\n(.*?)```", Path(sys.argv[1]).read_text(), flags=re.DOTALL):
    if language == "bash":
        subprocess.run(code, shell=True, check=True)
    else:
        exec(compile(code, sys.argv[1], "exec"), namespace)
loaded, adapter = namespace["loaded"], namespace["adapter"]
assert {name for name, _ in loaded.named_parameters()} == {name for name, _ in adapter.named_parameters()}
"""


def test_the_guide_runs_as_printed(hub, converted, tmp_path):
    shutil.copytree(converted, tmp_path / "video-llama-2-7b")
    environment = os.environ | {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    command = [sys.executable, "-c", GUIDE_RUNNER, str(ROOT / "docs" / "sharing.md")]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    assert result.returncode == 0, result.stderr
    uploaded = hub.files("me/video-llama")
    assert {path for path in uploaded if not path.startswith(".")} == CODE_FILES | MODEL_FILES | PROCESSOR_FILES | {
        "README.md"
    }
    weights = (converted / "model.safetensors").read_bytes()
    assert uploaded["model.safetensors"] == weights
    assert card_of(hub, "me/video-llama").data.base_model == "DAMO-NLP-SG/Video-LLaMA-2-7B-Finetuned"
    assert card_of(hub, "me/my-video-llama").data.eval_results[0].metric_value == 51.6
    assert card_of(hub, "me/my-adapter").data.base_model == "me/video-llama"
