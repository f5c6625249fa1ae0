# SPDX-License-Identifier: Apache-2.0
"""Writes the trained branches of a model as the VL and AL files that the original code reads."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
import typer
from huggingface_hub import snapshot_download
from transformers.utils import logging

from transformers_videollama import VideoLlamaConfig, VideoLlamaForConditionalGeneration
from transformers_videollama.conversion.checkpoints import Checkpoint
from transformers_videollama.conversion.rules import AUDIO_RULES, AUDIO_SCALE, VISION_RULES, Rule
from transformers_videollama.exceptions import CheckpointError


logger = logging.get_logger(__name__)


def vision_buffers(config: VideoLlamaConfig) -> dict[str, torch.Tensor]:
    """The buffers that a VL file has beside what was trained, as the original computes them."""
    text_config = config.text_config
    head_dim = text_config.head_dim
    exponents = torch.arange(0, head_dim, 2).float() / head_dim
    frequencies = 1.0 / text_config.rope_parameters["rope_theta"] ** exponents
    # The original's LLaMA is loaded in float16, these among it
    frequencies = frequencies.half().float()
    positions = torch.arange(512).unsqueeze(0)
    return {
        "Qformer.bert.embeddings.position_ids": positions,
        "video_Qformer.bert.embeddings.position_ids": positions.clone(),
        **{
            f"llama_model.model.layers.{layer}.self_attn.rotary_emb.inv_freq": frequencies.clone()
            for layer in range(text_config.num_hidden_layers)
        },
    }


def audio_buffers(config: VideoLlamaConfig) -> dict[str, torch.Tensor]:
    """Those of an AL file: ImageBind's too. The scales of the modalities that Video-LLaMA does not use are ImageBind's."""
    scales = {"audio": config.audio_config.audio_logit_scale, "depth": 5.0, "thermal": 10.0, "imu": 5.0}
    scale_name = f"audio_encoder.{AUDIO_SCALE}"
    return {
        **vision_buffers(config),
        "audio_encoder.modality_preprocessors.text.mask": torch.full((77, 77), -torch.inf).triu(1),
        **{
            scale_name.replace("audio.1", f"{modality}.1"): torch.tensor(scale).log()
            for modality, scale in scales.items()
        },
        "audio_Qformer.bert.embeddings.position_ids": torch.arange(512).unsqueeze(0),
    }


def original_tensors(tensors: Mapping[str, torch.Tensor], rules: list[Rule]) -> dict[str, torch.Tensor]:
    """What the rules of a branch give, under the original's names and in float32, its precision."""
    originals = {}
    for name, tensor in tensors.items():
        for rule in rules:
            if (original := rule.source_name(name)) is not None:
                originals[original] = rule.join((tensor,)).detach().cpu().float().contiguous().clone()
    return originals


def trained_names(names: list[str]) -> dict[str, list[str]]:
    """Names of the tensors that each branch trains."""
    return {
        branch: [name for name in names if any(rule.source_name(name) for rule in rules)]
        for branch, rules in (("vision", VISION_RULES), ("audio", AUDIO_RULES))
    }


def export(model: VideoLlamaForConditionalGeneration | Path, output: Path, name: str | None = None) -> list[Path]:
    """Writes `VL_{name}.pth`, and `AL_{name}.pth` of a model with an audio branch.

    The files hold `model`, with what was trained in float32 and the buffers that the original saves with it; `optimizer`,
    `config` and `scaler` are empty, as training begins anew. Of a folder, only what was trained is read.

    Args:
        model: A model, or the folder of one.
        output: Folder to write to; it is made where it does not exist.
        name: Part of the names of the files. By default that of the model's folder.

    Returns:
        The files.

    Raises:
        CheckpointError: If the folder holds no Video-LLaMA, or if one of the files exists already.
    """
    if name is not None and Path(name).name != name:
        raise CheckpointError(f"{name!r} is no part of a file's name: leave out separators.")
    if not isinstance(model, (VideoLlamaForConditionalGeneration, Path)):
        raise CheckpointError(f"Got a {type(model).__name__}, expected a model or its folder: merge adapters first.")
    if isinstance(model, VideoLlamaForConditionalGeneration):
        config, state_dict = model.config, model.state_dict()
        trained = trained_names(list(state_dict))
        tensors = {each: state_dict[each] for names in trained.values() for each in names}
        name = name or Path(config.name_or_path or "video_llama").name
    else:
        config, checkpoint = VideoLlamaConfig.from_pretrained(model), Checkpoint(model)
        trained = trained_names(list(checkpoint.tensors))
        tensors = checkpoint.read([each for names in trained.values() for each in names])
        name = name or model.resolve().name
    with torch.device("meta"):
        expected = trained_names(list(VideoLlamaForConditionalGeneration(config).state_dict()))
    if absent := sorted(each for names in expected.values() for each in names if each not in tensors):
        raise CheckpointError(
            f"{name} lacks {len(absent)} of the tensors that its branches train, {absent[0]} first: the original would load the rest "
            "without a word. Give a whole model; an adapter has to be merged first."
        )
    if lossy := sorted({str(tensor.dtype) for tensor in tensors.values()} - {"torch.float32"}):
        logger.warning(f"The branches are in {', '.join(lossy)}: the files hold the same values in float32.")

    branches = {f"VL_{name}.pth": ("vision", VISION_RULES, vision_buffers)}
    if config.audio_config is not None:
        branches[f"AL_{name}.pth"] = ("audio", AUDIO_RULES, audio_buffers)
    for filename in branches:
        if (output / filename).exists():
            raise CheckpointError(f"{output / filename} exists already: remove it or give another name.")
    output.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".export-", dir=output) as work:
        for filename, (branch, rules, buffers) in branches.items():
            originals = original_tensors({each: tensors[each] for each in trained[branch]}, rules) | buffers(config)
            checkpoint = {"model": originals, "optimizer": {}, "config": {}, "scaler": {}, "epoch": 0}
            torch.save(checkpoint, Path(work) / filename)
        for filename in branches:
            os.replace(Path(work) / filename, output / filename)
    return [output / filename for filename in branches]


def main(
    model: Annotated[Path, typer.Argument(help="Folder of a model, or its repository on the Hub.")],
    output: Annotated[Path, typer.Argument(help="Folder to write the VL and AL files to.")],
    name: Annotated[
        str | None, typer.Option(help="Part of their names.", show_default="that of the model's folder")
    ] = None,
) -> None:
    """Write the trained branches as VL_….pth and AL_….pth for the original code."""
    try:
        if not model.is_dir() and re.fullmatch(r"[\w.-]+/[\w.-]+", model.as_posix()):
            name = name or model.name
            model = Path(snapshot_download(model.as_posix(), allow_patterns=["*.json", "*.safetensors"]))
        files = export(model, output, name)
    except (CheckpointError, OSError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from error
    for file in files:
        typer.echo(f"{file}: {file.stat().st_size} bytes")


if __name__ == "__main__":
    typer.run(main)
