# SPDX-License-Identifier: Apache-2.0
"""Makes the files of a release at their real sizes, with random values: to measure a conversion without the weights.

    python benchmarks/make_full_size_release.py full_size_keys.json DIR --size 7b

`full_size_keys.json` lists name, shape and precision of every tensor of every released file; nothing of it is ours to guess.
"""

import json
from pathlib import Path
from typing import Annotated

import torch
import typer


# Where a file of the release may hold more than the original model uses, the fuller form is made
FILES = {
    "eva_vit_g.pth": ["eva_vit_g.pth::assumed_file"],
    "blip2_pretrained_flant5xxl.pth": ["blip2_pretrained_flant5xxl.pth['model']::assumed_file"],
    "imagebind_huge.pth": ["imagebind_huge.pth"],
    "VL_LLaMA_2_{SIZE}_Finetuned.pth": ["VL checkpoint llama-2-{size}['model']"],
    "AL_LLaMA_2_{SIZE}_Finetuned.pth": ["AL checkpoint llama-2-{size}['model']"],
}
CONFIGS = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "13b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
}
SHARD_BYTES = 9.98e9  # what the released LLaMA-2 folders are cut into


def random_tensor(name: str, shape: list[int], dtype: str, generator: torch.Generator) -> torch.Tensor:
    """Small values around 0, or around 1 for the scales of norms, so that activations stay finite."""
    dtype = getattr(torch, dtype)
    if not dtype.is_floating_point:
        return torch.arange(shape[-1], dtype=dtype).expand(shape).clone()
    if name.endswith("log_logit_scale"):
        return torch.full(shape, 20.0).log()
    values = torch.empty(shape).normal_(std=0.02, generator=generator)
    return (values + (name.endswith("weight") and len(shape) == 1)).to(dtype)


def main(
    keys: Annotated[Path, typer.Argument(help="full_size_keys.json")],
    folder: Annotated[Path, typer.Argument(help="Folder to make.")],
    size: Annotated[str, typer.Option(help="7b or 13b")] = "7b",
    audio: Annotated[bool, typer.Option(help="With the files of the audio branch.")] = True,
) -> None:
    """Make a release of random values at real size."""
    lists = json.loads(keys.read_text())["files"]
    generator = torch.Generator().manual_seed(0)

    def keys_of(*starts: str) -> dict[str, tuple[list[int], str]]:
        return {name: spec for start in starts for title, names in lists.items() if title.startswith(start) for name, spec in names.items()}  # fmt: skip

    folder.mkdir(parents=True)
    for filename, starts in FILES.items():
        if not audio and (filename.startswith("AL") or filename.startswith("imagebind")):
            continue
        names = keys_of(*(start.format(size=size) for start in starts))
        tensors = {name: random_tensor(name, *spec, generator) for name, spec in names.items()}
        is_wrapped = "['model']" in starts[0]
        extras = {"optimizer": {}, "config": {}, "scaler": {}, "epoch": 0} if "checkpoint" in starts[0] else {}
        torch.save(
            {"model": tensors, **extras} if is_wrapped else tensors, folder / filename.format(SIZE=size.upper())
        )
        print(f"{filename.format(SIZE=size.upper())}: {len(tensors)} tensors", flush=True)

    llama = folder / f"llama-2-{size}-chat-hf"
    llama.mkdir()
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000, "rms_norm_eps": 1e-5}
    config |= {"max_position_embeddings": 4096, "torch_dtype": "float16", **CONFIGS[size]}
    (llama / "config.json").write_text(json.dumps(config))
    names = keys_of(f"llama-2-{size} HF directory")
    shards, size_of_shard = [[]], 0
    for name, (shape, dtype) in names.items():
        nbytes = torch.empty(shape, dtype=getattr(torch, dtype), device="meta").nbytes
        if size_of_shard + nbytes > SHARD_BYTES:
            shards.append([])
            size_of_shard = 0
        shards[-1].append(name)
        size_of_shard += nbytes
    weight_map = {}
    for index, shard in enumerate(shards, start=1):
        filename = f"pytorch_model-{index:05d}-of-{len(shards):05d}.bin"
        torch.save({name: random_tensor(name, *names[name], generator) for name in shard}, llama / filename)
        weight_map |= dict.fromkeys(shard, filename)
        print(f"{filename}: {len(shard)} tensors", flush=True)
    (llama / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


if __name__ == "__main__":
    typer.run(main)
