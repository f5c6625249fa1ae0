# SPDX-License-Identifier: Apache-2.0
"""Converts a released Video-LLaMA, six sources, into one folder that `from_pretrained` loads.

    python conversion/convert_video_llama_to_hf.py --release NAME_OR_DIR --output OUT

Every tensor of every source is used, or matches a rule that says why it is not. What is missing, left over or of another
shape stops the conversion with the names, and leaves no output. (The original loads with `strict=False` and does not look.)
"""

import json
import os
import re
import shutil
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import torch
import typer
from filelock import FileLock, Timeout
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from transformers import GenerationConfig
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, logging

from transformers_videollama.conversion import verification
from transformers_videollama.conversion.plan import SAMPLING, STOP, Converted, Plan, plan
from transformers_videollama.conversion.releases import Sources, find_sources
from transformers_videollama.exceptions import CheckpointError
from transformers_videollama.sharing import CARD_NAME, model_card


logger = logging.get_logger(__name__)

# ---------------------------------------------------------------------------------------------------------------------
# Writing


def write_weights(converted: Converted, folder: Path, max_shard_size: str, dtype: torch.dtype | None) -> None:
    """Writes one shard after the other: no more of the sources than a shard is in memory at a time."""
    planned = {
        name: torch.empty(tensor.shape, dtype=dtype or tensor.dtype, device="meta")
        for name, tensor in converted.tensors.items()
    }
    if not re.fullmatch(r"0*[1-9]\d*\s*[KMGT]?B?", max_shard_size.upper()):
        raise CheckpointError(f"{max_shard_size!r} is no size of a file: write it as 5GB.")
    try:
        split = split_torch_state_dict_into_shards(planned, max_shard_size=max_shard_size)
    except ValueError as error:
        raise CheckpointError(f"{max_shard_size!r} is no size of a file: {error} Write it as 5GB.") from error
    total = sum(tensor.nbytes for tensor in planned.values())
    if (free := shutil.disk_usage(folder).free) < total:
        raise CheckpointError(f"The weights have {total} bytes, but {folder.parent} has room for {free}: make room.")
    with logging.tqdm(total=total, unit="B", unit_scale=True, desc="Writing") as progress:
        for filename, names in split.filename_to_tensors.items():
            shard = converted.read(names)
            for name, value in shard.items():
                shard[name] = value.to(planned[name].dtype)
                if planned[name].dtype == torch.float16 and value.dtype != torch.float16:
                    check_range(value, shard[name], str(converted.origins[name]))
            save_file(shard, folder / filename, metadata={"format": "pt"})
            progress.update(sum(tensor.nbytes for tensor in shard.values()))
            del shard
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")


def check_range(value: torch.Tensor, rounded: torch.Tensor, origin: str) -> None:
    """Refuses values that float16 can't hold."""
    if rounded.isinf().sum() > value.isinf().sum():
        raise CheckpointError(
            f"{origin} has values of up to {value.abs().max():.3g}, beyond float16: choose another --dtype."
        )


def open_to_others(folder: Path) -> None:
    """Gives files the permissions of any other: those of safetensors are private."""
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


@contextmanager
def made_whole(output: Path) -> Iterator[Path]:
    """A folder to work in, that becomes `output` at the end, or vanishes. What a killed run left is removed first.

    Raises:
        CheckpointError: If another conversion is making the same output.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    work = output.with_name(f".{output.name}.incomplete")
    lock = FileLock(output.with_name(f".{output.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise CheckpointError(
            f"Another conversion is making {output}: wait for it, or give another folder."
        ) from error
    try:
        if work.is_symlink() or work.is_file():
            work.unlink()
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        yield work
        work.rename(output)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        lock.release()
        with suppress(OSError):
            Path(lock.lock_file).unlink()


# ---------------------------------------------------------------------------------------------------------------------
# Converting


def convert(
    sources: Sources,
    output: Path,
    config: Path | None = None,
    family: str | None = None,
    dtype: torch.dtype | None = None,
    max_shard_size: str = "2GB",
) -> Plan:
    """Converts one release.

    Args:
        sources: Files and folders; tensors may be in `.pth`, `.bin` or `.safetensors` files, whole or in shards.
        output: Folder to make. It must not exist, and exists only after success.
        config: JSON file with a partial [`VideoLlamaConfig`], for sizes that differ from the released ones.
        family: "vicuna" or "llama_2"; by default told from the release, or from the names of the VL file and the LLaMA folder.
        dtype: Of all weights. By default each keeps its own: the ViT and LLaMA are released in float16.
        max_shard_size: Of the weight files, as huggingface-hub writes sizes. As much of the sources is in memory at a time.

    Returns:
        What went where.

    Raises:
        CheckpointError: If a source is missing or can't be read, or if they don't make a whole model.
    """
    if output.exists() or output.is_symlink():
        raise CheckpointError(f"{output} exists already: remove it or give another folder.")
    planned = plan(sources, config, family)
    converted, model = planned.converted, planned.model
    # What `from_pretrained` loads all in, if not told otherwise: the precision of the largest part
    model.config.dtype = dtype or converted.tensors["lm_head.weight"].dtype

    with made_whole(output) as work:
        write_weights(converted, work, max_shard_size, dtype)
        model.config.provenance = {
            "release": sources.release.repo if sources.release is not None else None,
            "prompt_family": planned.family,
            "sources": planned.files,
        }
        model.note_auto_classes()
        custom_object_save(model, work, config=model.config)
        model.config.save_pretrained(work)
        model_card(model.config).save(work / CARD_NAME)
        planned.processor.save_pretrained(work)
        tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        GenerationConfig(**SAMPLING, **STOP[planned.family], **tokens).save_pretrained(work)
        open_to_others(work)
    return planned


# ---------------------------------------------------------------------------------------------------------------------
# Command line


DTYPES = {"auto": None, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def stop_on_terminate() -> None:
    """Lets a `kill` clean up as Ctrl-C does."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def main(
    output: Annotated[Path, typer.Option(help="Folder to make.")],
    release: Annotated[
        str | None, typer.Option(help="Name of a release, or a folder with all sources under their released names.")
    ] = None,
    local_dir: Annotated[
        Path | None, typer.Option(help="With a name: folder to look in before anything is downloaded.")
    ] = None,
    vision_checkpoint: Annotated[Path | None, typer.Option(help="VL_….pth: the trained vision branch.")] = None,
    audio_checkpoint: Annotated[Path | None, typer.Option(help="AL_….pth: the trained audio branch.")] = None,
    audio: Annotated[
        bool | None,
        typer.Option(
            "--audio/--no-audio", help="Demand the audio branch, or do without.", show_default="if there is one"
        ),
    ] = None,
    eva_vit: Annotated[Path | None, typer.Option(help="eva_vit_g.pth")] = None,
    blip2: Annotated[Path | None, typer.Option(help="blip2_pretrained_flant5xxl.pth")] = None,
    imagebind: Annotated[Path | None, typer.Option(help="imagebind_huge.pth, with an audio branch.")] = None,
    llama: Annotated[
        Path | None, typer.Option(help="The LLaMA in Hugging Face format: a folder, or a repository on the Hub.")
    ] = None,
    llama_delta: Annotated[
        Path | None,
        typer.Option(
            help="The difference to that LLaMA (Vicuna v0, Ziya, BiLLa): a folder, or a repository on the Hub."
        ),
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Folder of its tokenizer, where it has none.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="Partial VideoLlamaConfig as JSON, for other sizes than the released.")
    ] = None,
    prompt_family: Annotated[
        str | None, typer.Option(help="vicuna or llama_2; told from the release or the file names if not given.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto (as released), float32, float16 or bfloat16.")] = "auto",
    max_shard_size: Annotated[
        str, typer.Option(help="Size of the weight files, and of what is in memory at a time.")
    ] = "2GB",
    verify: Annotated[
        bool,
        typer.Option(
            help="Prove the folder equal to its sources, bit by bit; also a folder that was converted before."
        ),
    ] = False,
) -> None:
    """Convert a released Video-LLaMA checkpoint to Hugging Face format."""
    given = {
        "vision_checkpoint": vision_checkpoint,
        "audio_checkpoint": audio_checkpoint,
        "eva_vit": eva_vit,
        "blip2": blip2,
        "imagebind": imagebind,
        "llama": llama,
        "llama_delta": llama_delta,
        "tokenizer": tokenizer,
    }
    if dtype not in DTYPES:
        raise typer.BadParameter(f"is {dtype!r}, expected one of {', '.join(DTYPES)}.", param_hint="--dtype")
    stop_on_terminate()
    report = None
    try:
        sources = find_sources(
            release,
            {name: path for name, path in given.items() if path is not None},
            audio,
            local_dir,
            say=lambda download: typer.echo(f"Downloading {download}", err=True),
        )
        if verify and output.is_dir():
            planned = plan(sources, config, prompt_family)
        else:
            planned = convert(sources, output, config, prompt_family, DTYPES[dtype], max_shard_size)
        if verify:
            report = verification.verify(output, planned, DTYPES[dtype])
            verification.write_report(report, output)
    except (CheckpointError, OSError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from error
    if report is not None:
        typer.echo(verification.page(report, output))
        raise typer.Exit(0 if report["equal"] else 1)
    converted = planned.converted
    typer.echo(f"{output}: {planned}")
    typer.echo(f"{len(converted.tensors)} tensors, {len(converted.ignored)} tensors of the sources not used:")
    for reason, number in Counter(converted.ignored.values()).items():
        typer.echo(f"  {number:5d}  {reason}")


if __name__ == "__main__":
    typer.run(main)
