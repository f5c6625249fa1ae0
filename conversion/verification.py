# SPDX-License-Identifier: Apache-2.0
"""Proves a converted folder equal to its sources, tensor by tensor, and tells what was found."""

import json
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers.utils import CONFIG_NAME, logging

from transformers_videollama import VideoLlamaConfig
from transformers_videollama.conversion.checkpoints import Checkpoint, describe_files, read_json
from transformers_videollama.conversion.plan import Plan
from transformers_videollama.exceptions import CheckpointError
from transformers_videollama.modeling_video_llama import BRANCHES


REPORT_NAME = "conversion_report.json"

# What a configuration has that is not of the sources
NOTES = {"_name_or_path", "auto_map", "dtype", "provenance", "transformers_version"}
MAX_DIFFERENT = 20  # told on the page


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """What is stored: equal for equal NaNs, different for 0 and -0."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def without_notes(settings: Any) -> Any:
    if not isinstance(settings, dict):
        return settings
    return {name: without_notes(value) for name, value in settings.items() if name not in NOTES}


def different_settings(folder: Path, planned: Plan) -> dict[str, str]:
    """What the configuration and the chat template of a folder have that is not of the sources."""
    ours = without_notes(VideoLlamaConfig.from_pretrained(folder).to_dict())
    expected = without_notes(planned.model.config.to_dict())
    different = {
        f"config.json: {name}": f"is {ours.get(name)}, expected {expected.get(name)}"
        for name in ours.keys() | expected.keys()
        if ours.get(name) != expected.get(name)
    }
    template = folder / "chat_template.jinja"
    if not template.is_file() or template.read_text(encoding="utf-8") != planned.processor.chat_template["default"]:
        different[template.name] = f"is not that of {planned.family}"
    return different


def verify(folder: Path, planned: Plan, dtype: torch.dtype | None = None) -> dict:
    """Compares the weights of a converted folder with what its sources give, bit by bit.

    Args:
        folder: Of the converted model.
        planned: The conversion, from `plan`.
        dtype: That was asked for when it was converted. By default each tensor keeps its own.

    Returns:
        The report: `equal`, `tensors` (counts), `different` (by name, with the reason), `parameters` (by part), `ignored`
        (by reason), `sources` and `weights` (files with their checksums), `release`, `prompt_family`, `versions`.

    Raises:
        CheckpointError: If the folder holds something else than a Video-LLaMA, or can't be read.
    """
    if read_json(folder / CONFIG_NAME).get("model_type") != VideoLlamaConfig.model_type:
        raise CheckpointError(f"{folder} holds no Video-LLaMA, which could be verified: give a converted folder.")
    converted, checkpoint = planned.converted, Checkpoint(folder)
    different = dict.fromkeys(converted.tensors.keys() - checkpoint.tensors.keys(), "missing in the folder")
    different |= dict.fromkeys(checkpoint.tensors.keys() - converted.tensors.keys(), "not of the sources")
    with logging.tqdm(total=len(converted.tensors), unit=" tensors", desc="Comparing") as progress:
        for file in checkpoint.files:
            names = [name for name in file.tensors if name in converted.tensors]
            ours, theirs = file.read(names), converted.read(names)
            for name in names:
                expected = theirs[name].to(dtype or theirs[name].dtype)
                if (ours[name].shape, ours[name].dtype) != (expected.shape, expected.dtype):
                    given, wanted = ((tuple(each.shape), each.dtype) for each in (ours[name], expected))
                    different[name] = f"is {given}, expected {wanted}"
                elif not torch.equal(bits(ours[name]), bits(expected)):
                    different[name] = f"other values than {converted.origins[name]}"
                progress.update()
            del ours, theirs

    different |= different_settings(folder, planned)

    parameters, trainable = Counter(), Counter()
    for name, tensor in converted.tensors.items():
        part = "lm_head" if name.startswith("lm_head") else name.split(".")[1]
        parameters[part] += tensor.numel()
        for branch, parts in BRANCHES.items():
            if part in parts:
                trainable[branch] += tensor.numel()
    all_names = converted.tensors.keys() | checkpoint.tensors.keys()
    ignored = {reason: [] for reason in converted.ignored.values()}
    for name, reason in converted.ignored.items():
        ignored[reason].append(name)
    return {
        "equal": not different,
        "rounded_to": str(dtype).removeprefix("torch.") if dtype is not None else None,
        "release": planned.sources.release.name if planned.sources.release is not None else None,
        "prompt_family": planned.family,
        "tensors": {
            "in the sources": sum(len(source.checkpoint.tensors) for source in converted.sources),
            "of these used": len({str(origin) for origin in converted.origins.values()}),
            "of these ignored": len(converted.ignored),
            "in the folder": len(checkpoint.tensors),
            "equal": len(all_names - different.keys()),
        },
        "different": different,
        "parameters": dict(parameters),
        "trained by Video-LLaMA": dict(trainable),
        "ignored": ignored,
        "sources": planned.files,
        "weights": describe_files(checkpoint.paths, "Checksums of the folder"),
        "versions": {
            name: version(name) for name in ("transformers-videollama", "transformers", "torch", "safetensors")
        },
    }


def write_report(report: dict, folder: Path) -> None:
    (folder / REPORT_NAME).write_text(json.dumps(report, indent=2) + "\n")


def page(report: dict, folder: Path) -> str:
    """The report on one page."""
    counts = report["tensors"]
    rounded = f" rounded to {report['rounded_to']}" if report["rounded_to"] else ""
    lines = [
        f"{folder}: {counts['equal']} of {counts['in the folder']} tensors equal to the sources{rounded}, bit by bit",
        f"release {report['release'] or 'unknown'}, prompts of {report['prompt_family']}",
        "",
        f"Tensors of the sources   {counts['in the sources']:6d}",
        f"  used                   {counts['of these used']:6d}",
        f"  ignored                {counts['of these ignored']:6d}",
        *(f"    {len(names):6d}  {reason}" for reason, names in report["ignored"].items()),
        "",
        "Parameters",
        *(f"  {part:28s} {number:15,d}" for part, number in report["parameters"].items()),
        f"  {'all':28s} {sum(report['parameters'].values()):15,d}",
        *(
            f"  {'trained: ' + branch:28s} {number:15,d}"
            for branch, number in report["trained by Video-LLaMA"].items()
        ),
        "",
        "Checksums (SHA-256)",
        *(
            f"  {file['sha256']}  {file['bytes']:14,d}  {file['file']}"
            for kind in ("sources", "weights")
            for file in report[kind]
        ),
    ]
    if different := sorted(report["different"].items()):
        lines += ["", "Different", *(f"  {name}: {reason}" for name, reason in different[:MAX_DIFFERENT])]
        if len(different) > MAX_DIFFERENT:
            lines.append(f"  … and {len(different) - MAX_DIFFERENT} more, in {REPORT_NAME}")
        lines.append(
            "A folder is verified with the options that it was converted with: --dtype, --prompt-family, --config."
        )
    return "\n".join(lines)
