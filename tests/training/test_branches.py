# SPDX-License-Identifier: Apache-2.0
"""Branch checkpoints: what is in them, and what they are refused on."""

import logging

import pytest
import torch
from huggingface_hub import HfApi
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from transformers_videollama import VideoLlamaForConditionalGeneration, load_branch, save_branch
from transformers_videollama.branches import branches_in
from transformers_videollama.exceptions import CheckpointError
from transformers_videollama.modeling_video_llama import BRANCHES

from ..helpers import tiny_config


def base(seed: int = 0, **overrides) -> VideoLlamaForConditionalGeneration:
    torch.manual_seed(seed)
    return VideoLlamaForConditionalGeneration(tiny_config(**overrides))


def weights_of(model, branch: str) -> dict[str, torch.Tensor]:
    return {
        name: tensor.clone() for name, tensor in model.state_dict().items() if name.split(".")[1] in BRANCHES[branch]
    }


@pytest.fixture
def trained() -> VideoLlamaForConditionalGeneration:
    """The base with other weights in its branches."""
    model = base()
    with torch.no_grad():
        for branch in BRANCHES:
            for tensor in [model.state_dict()[name] for name in weights_of(model, branch)]:
                tensor.add_(torch.randn(tensor.shape))
    return model


@pytest.mark.parametrize("branch", BRANCHES)
def test_a_branch_comes_back_on_its_base_and_nothing_else_changes(branch, trained, tmp_path):
    path = save_branch(trained, tmp_path / "new", branch)
    model = base()
    other = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    assert load_branch(model, path) == [branch]

    loaded = weights_of(trained, branch)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.get(name, other[name])), name
    assert sum(not torch.equal(other[name], tensor) for name, tensor in loaded.items()) == len(loaded)


def test_the_file_holds_what_was_trained_and_little_more(trained, tmp_path):
    path = save_branch(trained, tmp_path, "vision_branch")
    tensors = load_file(path)
    names = {f"model.{name}" for name in tensors if not name.startswith("identity.")}
    assert names == weights_of(trained, "vision_branch").keys()
    size_of_branch = sum(4 * tensor.numel() for tensor in weights_of(trained, "vision_branch").values())
    num_tensors = len(trained.state_dict())
    assert path.stat().st_size < size_of_branch + 200 * num_tensors
    assert [file.name for file in tmp_path.iterdir()] == ["vision_branch.safetensors"]


def test_a_folder_gives_all_its_branches_or_one(trained, tmp_path):
    for branch in BRANCHES:
        save_branch(trained, tmp_path, branch)
    assert branches_in(tmp_path) == list(BRANCHES)
    assert load_branch(base(), tmp_path) == list(BRANCHES)
    assert load_branch(base(), tmp_path, branch="audio_branch") == ["audio_branch"]


def test_branches_come_from_the_hub(hub, trained, tmp_path):
    save_branch(trained, tmp_path / "branch")
    HfApi().create_repo("me/branch")
    HfApi().upload_folder(repo_id="me/branch", folder_path=tmp_path / "branch")
    model = base()
    assert load_branch(model, "me/branch") == ["vision_branch"]
    assert torch.equal(model.model.video_projection.bias, trained.model.video_projection.bias)
    with pytest.raises(CheckpointError, match="me/none is no file and no folder, and could not be fetched"):
        load_branch(model, "me/none")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_base_is_known_in_another_precision(trained, tmp_path, dtype):
    save_branch(trained, tmp_path)
    model = base().to(dtype)
    assert load_branch(model, tmp_path) == ["vision_branch"]
    save_branch(model, tmp_path / "rounded")
    assert load_branch(base(), tmp_path / "rounded") == ["vision_branch"]


@pytest.mark.parametrize(
    ("branch", "part"),
    [
        ("vision_branch", "vision_tower.layers.1.mlp.fc1.weight"),
        ("vision_branch", "query_tokens.weight"),
        ("vision_branch", "qformer.layers.3.mlp.fc2.weight"),
        ("vision_branch", "language_model.layers.1.mlp.down_proj.weight"),
        ("audio_branch", "audio_tower.audio_model.layers.0.mlp.fc1.weight"),
        ("audio_branch", "language_model.embed_tokens.weight"),
    ],
)
def test_another_base_is_refused_and_nothing_changes(branch, part, trained, tmp_path):
    save_branch(trained, tmp_path, branch)
    model = base()
    with torch.no_grad():
        model.model.get_parameter(part).mul_(1.05)
    before = weights_of(model, branch)
    with pytest.raises(
        CheckpointError, match=rf"another base .*differ in {part.split('.')[0]} \(1 of \d+ tensors, {part}"
    ):
        load_branch(model, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights_of(model, branch).items())


def test_parts_that_a_branch_does_not_touch_may_differ(trained, tmp_path):
    save_branch(trained, tmp_path, "audio_branch")
    model = base()
    with torch.no_grad():
        model.model.vision_tower.post_layernorm.weight.add_(1)
        model.model.video_projection.weight.add_(1)
    assert load_branch(model, tmp_path) == ["audio_branch"]


def test_one_wrong_branch_of_two_leaves_both_as_they_were(trained, tmp_path):
    for branch in BRANCHES:
        save_branch(trained, tmp_path, branch)
    model = base()
    with torch.no_grad():
        model.model.audio_tower.audio_model.layers[0].layer_norm1.weight.add_(1)
    before = weights_of(model, "vision_branch")
    with pytest.raises(CheckpointError, match="audio_tower"):
        load_branch(model, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights_of(model, "vision_branch").items())


def test_a_base_without_imagebinds_vision_trunk_is_the_same_base(trained, tmp_path, caplog):
    """It is only needed for training."""
    save_branch(trained, tmp_path, "audio_branch")
    used = base(audio_config={"vision_config": None})
    state = base().state_dict()
    used.load_state_dict({name: state[name] for name in used.state_dict()})
    logging.getLogger("transformers_videollama").propagate = True
    assert load_branch(used, tmp_path) == ["audio_branch"]


def test_other_shapes_and_names_are_refused(trained, tmp_path):
    path = save_branch(trained, tmp_path)
    with pytest.raises(
        CheckpointError, match=r"video_query_tokens.weight has the shape \(6, 40\), expected \(5, 40\)"
    ):
        load_branch(base(num_video_query_tokens=5), path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors["video_projection.scale"] = tensors.pop("video_projection.bias")
    save_file(tensors, path, metadata)
    with pytest.raises(
        CheckpointError, match="video_projection.bias is missing; video_projection.scale is not of this"
    ):
        load_branch(base(), path)


def test_what_is_no_branch_is_refused(trained, tmp_path):
    with pytest.raises(CheckpointError, match="holds no branch: expected vision_branch.safetensors or audio"):
        load_branch(base(), tmp_path)
    with pytest.raises(CheckpointError, match="no file and no folder, and could not be fetched"):
        load_branch(base(), tmp_path / "none" / "at" / "all")
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"no branch of Video-LLaMA \(kind None"):
        load_branch(base(), tmp_path / "other.safetensors")
    path = save_branch(trained, tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_branch(base(), path)
    with pytest.raises(CheckpointError, match="expected one of"):
        save_branch(trained, tmp_path, "video_branch")
    with pytest.raises(CheckpointError, match="has no audio_branch"):
        save_branch(base(audio_config=None), tmp_path, "audio_branch")
