# SPDX-License-Identifier: Apache-2.0
"""Branch checkpoints: only what was trained, with the identity of the base that it was trained on.

A file, `vision_branch.safetensors` or `audio_branch.safetensors`, holds the tensors of one branch and four values of each
tensor of the base that the branch looks through and speaks to: enough to tell one base from another, whatever precision
either is loaded in. The original saves the same tensors in its `VL_….pth` and `AL_….pth`, and loads them on any base.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel
from transformers.utils import logging

from .exceptions import CheckpointError
from .modeling_video_llama import BRANCHES


logger = logging.get_logger(__name__)

FORMAT = "video-llama branch 1"
# The frozen parts that a branch is trained between
BASES = {
    "vision_branch": ("vision_tower", "query_tokens", "qformer", "language_model", "lm_head"),
    "audio_branch": ("audio_tower", "language_model", "lm_head"),
}
VALUES_PER_TENSOR = 4
# bfloat16 keeps 8 binary digits; what is below float16's range may have become 0
RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE = 2**-7, 1e-6
IDENTITY = "identity."


def branch_file(folder: str | os.PathLike, branch: str) -> Path:
    """Where a branch lies in a folder."""
    return Path(folder) / f"{branch}.safetensors"


def branches_in(folder: str | os.PathLike) -> list[str]:
    """The branches that lie in a folder."""
    return [branch for branch in BRANCHES if branch_file(folder, branch).is_file()]


def save_branch(
    model: PreTrainedModel,
    folder: str | os.PathLike,
    branch: str = "vision_branch",
    state_dict: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Saves what was trained of a branch, and by what the base can be told.

    Args:
        model ([`VideoLlamaForConditionalGeneration`]): The model.
        folder (`str` or `os.PathLike`): Where to. Made if it is not there; another branch in it stays.
        branch (`str`): "vision_branch" or "audio_branch".
        state_dict (`dict[str, torch.Tensor]`, *optional*): The weights, where the model itself has only a shard of them.

    Returns:
        `Path`: the file, `vision_branch.safetensors` or `audio_branch.safetensors`.

    Raises:
        CheckpointError: The model has no such branch, or is wrapped for PEFT, which saves the branches itself.
    """
    tensors = _parts_of(model, model.state_dict() if state_dict is None else state_dict)
    names = _names_of_branch(tensors, branch)
    trained = {name: tensors[name].detach().cpu().contiguous() for name in names}
    values, told = {}, {}
    for part in BASES[branch]:
        samples = _identity(tensors, part)
        if samples:
            values[f"{IDENTITY}{part}"] = torch.stack(list(samples.values()))
            told[part] = list(samples)
    metadata = {
        "format": "pt",
        "kind": FORMAT,
        "branch": branch,
        "base": json.dumps(_describe_base(model)),
        "identity": json.dumps(told),
    }
    path = branch_file(folder, branch)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A file that is there is whole: a run may be ended at any time
    work = path.with_name(f".{path.name}.{os.getpid()}")
    save_file({**trained, **values}, work, metadata)
    work.replace(path)
    return path


def load_branch(
    model: PreTrainedModel, source: str | os.PathLike, branch: str | None = None, revision: str | None = None
) -> list[str]:
    """Puts the trained weights of one or both branches on a base.

    Nothing is changed unless all is as it has to be: every tensor of the branch is there and of the right shape, and the
    base is the one that it was trained on. What of the base is quantised, or not in memory, cannot be compared; it is warned
    of.

    Args:
        model ([`VideoLlamaForConditionalGeneration`]): The base.
        source (`str` or `os.PathLike`): A file, a folder, or the id of a repository on the Hub.
        branch (`str`, *optional*): Which one of a folder. All that are there if not given.
        revision (`str`, *optional*): Of the repository.

    Returns:
        `list[str]`: the branches that were loaded.

    Raises:
        CheckpointError: There is no branch, it lacks tensors, holds others or of other shapes, or the base is another.
    """
    files = _find(source, branch, revision)
    tensors = _parts_of(model, model.state_dict())
    planned = {}
    for path in files:
        found, weights, identity, base = _read(path)
        names = _names_of_branch(tensors, found)
        _check_names(path, found, weights, {name: tensors[name].shape for name in names})
        _check_base(path, model, tensors, identity, base)
        planned[found] = weights
    with torch.no_grad():
        for weights in planned.values():
            for name, weight in weights.items():
                tensors[name].copy_(weight)
    return list(planned)


def _parts_of(model: PreTrainedModel, state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors by name without the prefix of the base model."""
    if any(".modules_to_save." in name or name.startswith("base_model.model.") for name in state_dict):
        raise CheckpointError(
            f"Got a {type(model).__name__}, which PEFT has wrapped, expected a VideoLlamaForConditionalGeneration: save the "
            "branches with the adapter by its save_pretrained, or call merge_and_unload first."
        )
    return {name.removeprefix("model."): tensor for name, tensor in state_dict.items()}


def _names_of_branch(tensors: Mapping[str, torch.Tensor], branch: str) -> list[str]:
    if branch not in BRANCHES:
        raise CheckpointError(f"Got the branch {branch!r}, expected one of {list(BRANCHES)}.")
    names = [name for name in tensors if name.split(".")[0] in BRANCHES[branch]]
    if not names:
        raise CheckpointError(f"The model has no {branch}: use a base that has one.")
    return names


def _describe_base(model: PreTrainedModel) -> dict:
    return {"name": model.config._name_or_path or None, "provenance": getattr(model.config, "provenance", None)}


def _identity(tensors: Mapping[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    """Some values of each tensor of a part, float32, of shape `(VALUES_PER_TENSOR,)`, as far as they can be compared."""
    values = {}
    for name in sorted(tensors):
        tensor = tensors[name]
        # Quantised weights are packed integers, weights that are not in memory are on "meta"
        if name.split(".")[0] == part and tensor.is_floating_point() and tensor.device.type != "meta":
            places = torch.linspace(0, tensor.numel() - 1, VALUES_PER_TENSOR, dtype=torch.float64).round().long()
            values[name] = tensor.detach().flatten()[places.to(tensor.device)].float().cpu()
    return values


def _find(source: str | os.PathLike, branch: str | None, revision: str | None) -> list[Path]:
    path = Path(source)
    if path.is_file():
        return [path]
    if not path.is_dir():
        patterns = [f"{name}.safetensors" for name in BRANCHES]
        try:
            path = Path(snapshot_download(str(source), allow_patterns=patterns, revision=revision))
        except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(
                f"{source} is no file and no folder, and could not be fetched from the Hub: check its name ({reason})."
            ) from error
    found = [name for name in branches_in(path) if branch in (None, name)]
    if not found:
        wanted = [branch] if branch is not None else list(BRANCHES)
        raise CheckpointError(
            f"{source} holds no branch: expected {' or '.join(f'{name}.safetensors' for name in wanted)} in it. A whole model "
            "is loaded by from_pretrained."
        )
    return [branch_file(path, name) for name in found]


def _read(path: Path) -> tuple[str, dict[str, torch.Tensor], dict[str, torch.Tensor], dict]:
    """Branch, its tensors, values of the base's tensors by their names, and what the base was called."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("kind") != FORMAT:
                raise CheckpointError(
                    f"{path} is no branch of Video-LLaMA (kind {metadata.get('kind')!r}, expected {FORMAT!r}): a branch is "
                    "what save_branch or videollama train wrote."
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): copy or download it again.") from error
    identity = {}
    for part, names in json.loads(metadata["identity"]).items():
        identity |= dict(zip(names, tensors.pop(f"{IDENTITY}{part}")))
    return metadata["branch"], tensors, identity, json.loads(metadata["base"])


def _check_names(
    path: Path, branch: str, weights: Mapping[str, torch.Tensor], shapes: Mapping[str, torch.Size]
) -> None:
    wrong = [f"{name} is missing" for name in shapes.keys() - weights.keys()]
    wrong += [f"{name} is not of this model" for name in weights.keys() - shapes.keys()]
    wrong += [
        f"{name} has the shape {tuple(weights[name].shape)}, expected {tuple(shape)}"
        for name, shape in shapes.items()
        if name in weights and weights[name].shape != shape
    ]
    if wrong:
        raise CheckpointError(
            f"{path} does not fit the {branch} of this model: {'; '.join(sorted(wrong)[:5])}"
            f"{f' and {len(wrong) - 5} more' if len(wrong) > 5 else ''}. Load it on the base that it was trained on."
        )


def _check_base(
    path: Path,
    model: PreTrainedModel,
    tensors: Mapping[str, torch.Tensor],
    identity: Mapping[str, torch.Tensor],
    base: Mapping,
) -> None:
    parts = dict.fromkeys(name.split(".")[0] for name in identity)
    ours = {name: value for part in parts for name, value in _identity(tensors, part).items()}
    different, not_compared = {}, []
    for part in parts:
        names = [name for name in identity if name.split(".")[0] == part]
        compared = [name for name in names if name in ours]
        is_other = [
            name
            for name in compared
            if not torch.allclose(ours[name], identity[name], RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE, equal_nan=True)
        ]
        if is_other:
            different[part] = f"{part} ({len(is_other)} of {len(compared)} tensors, {is_other[0]} first)"
        if len(compared) < len(names):
            not_compared.append(f"{part} ({len(names) - len(compared)} of {len(names)} tensors)")
    if different:
        raise CheckpointError(
            f"{path} was trained on another base ({_name_of(base)}) than this model ({_name_of(_describe_base(model))}): they "
            f"differ in {', '.join(different.values())}. Load that base, and the branch on it."
        )
    if not_compared:
        logger.warning(
            f"Whether {path} was trained on this base could not be seen for {', '.join(not_compared)}: their weights are "
            "quantised, not in memory, or not there."
        )


def _name_of(base: Mapping) -> str:
    release = (base.get("provenance") or {}).get("release")
    return str(release or base.get("name") or "without a name")
