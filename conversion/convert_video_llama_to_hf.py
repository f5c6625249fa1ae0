# SPDX-License-Identifier: Apache-2.0
"""Converts a released Video-LLaMA, six sources, into one folder that `from_pretrained` loads.

    python conversion/convert_video_llama_to_hf.py --release DIR --output OUT

Every tensor of every source is used, or matches a rule that says why it is not. What is missing, left over or of another
shape stops the conversion with the names, and leaves no output. (The original loads with `strict=False` and does not look.)
"""

import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import typer
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, logging

from transformers_videollama import (
    VideoLlamaConfig,
    VideoLlamaFeatureExtractor,
    VideoLlamaForConditionalGeneration,
    VideoLlamaImageProcessor,
    VideoLlamaProcessor,
    VideoLlamaVideoProcessor,
)
from transformers_videollama.exceptions import CheckpointError
from transformers_videollama.processing_video_llama import load_chat_templates


logger = logging.get_logger(__name__)

# What the released chat of the original passes to `generate`
SAMPLING = {"do_sample": True, "top_p": 0.9, "temperature": 1.0, "max_new_tokens": 300}
STOP = {
    "vicuna": {"stop_strings": ["###"], "stop_token_sequences": [[835], [2277, 29937]]},
    "llama_2": {},
}


# ---------------------------------------------------------------------------------------------------------------------
# Which tensor goes where


def split_in_three(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Query, key and value, which the source keeps in one tensor."""
    return tensor.chunk(3)


def without_batch(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """`(1, tokens, hidden_size)` to the `(tokens, hidden_size)` of an embedding."""
    return (tensor.squeeze(0),)


@dataclass(frozen=True)
class Rule:
    """What becomes of the tensors whose whole name matches.

    Args:
        pattern: Regular expression.
        targets: Their names here, with `\\1` for a group. None where they are not used.
        reason: Why they are not used.
        split: One tensor to as many as there are targets.
    """

    pattern: str
    targets: tuple[str, ...] = ()
    reason: str = ""
    split: Callable[[torch.Tensor], tuple[torch.Tensor, ...]] = lambda tensor: (tensor,)


def use(pattern: str, *targets: str, **kwargs) -> Rule:
    return Rule(pattern, targets, **kwargs)


def ignore(pattern: str, reason: str) -> Rule:
    return Rule(pattern, reason=reason)


PARAMETER = r"(weight|bias)"
ROTARY = ignore(
    r"(llama_model\.)?model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", "buffer: recomputed from the config"
)


def qformer_rules(source: str, target: str) -> list[Rule]:
    """Rules for a BERT-like Q-Former named `source` in its file and `target` here."""
    layer, ours = rf"{source}\.bert\.encoder\.layer\.(\d+)", rf"{target}.layers.\1"
    rules = [use(rf"{source}\.bert\.embeddings\.LayerNorm\.{PARAMETER}", rf"{target}.layer_norm.\1")]
    for theirs, name in (("attention", "self_attn"), ("crossattention", "cross_attn")):
        for part in ("query", "key", "value"):
            rules.append(use(rf"{layer}\.{theirs}\.self\.{part}\.{PARAMETER}", rf"{ours}.{name}.{part[0]}_proj.\2"))
        rules += [
            use(rf"{layer}\.{theirs}\.output\.dense\.{PARAMETER}", rf"{ours}.{name}.out_proj.\2"),
            use(rf"{layer}\.{theirs}\.output\.LayerNorm\.{PARAMETER}", rf"{ours}.{name}_layer_norm.\2"),
        ]
    return rules + [
        use(rf"{layer}\.intermediate_query\.dense\.{PARAMETER}", rf"{ours}.mlp.fc1.\2"),
        use(rf"{layer}\.output_query\.dense\.{PARAMETER}", rf"{ours}.mlp.fc2.\2"),
        use(rf"{layer}\.output_query\.LayerNorm\.{PARAMETER}", rf"{ours}.final_layer_norm.\2"),
        ignore(rf"{source}\.bert\.embeddings\.position_ids", "buffer: the numbers from 0 to 511"),
        ignore(rf"{source}\.bert\.embeddings\.(word|position)_embeddings\.weight", "text input of the Q-Former, not used"),
        ignore(rf"{layer}\.(intermediate\.dense|output\.(dense|LayerNorm))\.{PARAMETER}", "text branch of the Q-Former, not used"),
        ignore(rf"{source}\.cls\..+", "text head of the Q-Former, not used"),
    ]  # fmt: skip


def eva_vit_rules(names: Iterable[str], num_layers: int, grid_size: int) -> list[Rule]:
    """Rules for `eva_vit_g.pth`, which holds more blocks than BLIP-2 uses."""
    blocks = {int(match[1]) for name in names if (match := re.match(r"blocks\.(\d+)\.", name))}
    unused = "|".join(str(block) for block in sorted(blocks) if block >= num_layers)
    tower, layer = "model.vision_tower", r"blocks\.(\d+)"
    ours = rf"{tower}.layers.\1"
    return [
        use(r"cls_token", f"{tower}.embeddings.class_embedding"),
        use(
            r"pos_embed",
            f"{tower}.embeddings.position_embedding",
            split=lambda tensor: (interpolate_position_embedding(tensor, grid_size),),
        ),
        use(rf"patch_embed\.proj\.{PARAMETER}", rf"{tower}.embeddings.patch_embedding.\1"),
        ignore(
            rf"blocks\.({unused})\..+",
            f"block after the first {num_layers}: BLIP-2 reads the output of an earlier one",
        ),
        use(rf"{layer}\.norm([12])\.{PARAMETER}", rf"{ours}.layer_norm\2.\3"),
        use(rf"{layer}\.attn\.([qv])_bias", rf"{ours}.self_attn.\2_proj.bias"),
        use(
            rf"{layer}\.attn\.qkv\.weight",
            *(rf"{ours}.self_attn.{name}_proj.weight" for name in "qkv"),
            split=split_in_three,
        ),
        use(rf"{layer}\.attn\.proj\.{PARAMETER}", rf"{ours}.self_attn.out_proj.\2"),
        use(rf"{layer}\.mlp\.(fc[12])\.{PARAMETER}", rf"{ours}.mlp.\2.\3"),
        ignore(rf"(norm|head)\.{PARAMETER}", "classification end of the ViT, not used by BLIP-2"),
    ]


def interpolate_position_embedding(position_embedding: torch.Tensor, grid_size: int) -> torch.Tensor:
    """Fits the positions of a ViT to another grid of patches, bicubically as the original; the class token keeps its own.

    Args:
        position_embedding: `(1, 1 + patches, hidden_size)`.
        grid_size: Patches along a side of the image.

    Returns:
        `(1, 1 + grid_size ** 2, hidden_size)`.
    """
    num_patches = position_embedding.shape[1] - 1
    if num_patches == grid_size**2:
        return position_embedding
    class_embedding, patches = position_embedding[:, :1], position_embedding[:, 1:]
    side = math.isqrt(num_patches)
    patches = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
    patches = nn.functional.interpolate(patches, size=(grid_size, grid_size), mode="bicubic", align_corners=False)
    patches = patches.permute(0, 2, 3, 1).flatten(1, 2).to(class_embedding.dtype)
    return torch.cat([class_embedding, patches], dim=1)


BLIP2_RULES = [
    use(r"query_tokens", "model.query_tokens.weight", split=without_batch),
    use(rf"ln_vision\.{PARAMETER}", r"model.vision_tower.post_layernorm.\1"),
    *qformer_rules("Qformer", "model.qformer"),
    ignore(rf"(t5|opt)_proj\.{PARAMETER}", "BLIP-2's own way into its language model"),
    ignore(rf"(vision_proj|text_proj|itm_head)\.{PARAMETER}|temp", "heads of BLIP-2's first training stage"),
]

# A branch checkpoint holds what was trained and every buffer of the model it was trained in
BUFFERS = [
    ROTARY,
    ignore(r"(video_|audio_)?Qformer\.bert\.embeddings\.position_ids", "buffer: the numbers from 0 to 511"),
    ignore(r"audio_encoder\.modality_preprocessors\.text\.mask", "buffer of ImageBind's text trunk, not used"),
    ignore(
        r"audio_encoder\.modality_postprocessors\.\w+\.\d+\.log_logit_scale", "buffer: the same as in ImageBind's file"
    ),
]
VISION_RULES = [
    use(r"video_query_tokens", "model.video_query_tokens.weight", split=without_batch),
    use(r"video_frame_position_embedding\.weight", "model.frame_position_embedding.weight"),
    *qformer_rules("video_Qformer", "model.video_qformer"),
    use(rf"llama_proj\.{PARAMETER}", r"model.video_projection.\1"),
    *BUFFERS,
]
AUDIO_RULES = [
    use(r"audio_query_tokens", "model.audio_query_tokens.weight", split=without_batch),
    use(r"audio_position_embedding\.weight", "model.audio_position_embedding.weight"),
    *qformer_rules("audio_Qformer", "model.audio_qformer"),
    use(rf"audio_llama_proj\.{PARAMETER}", r"model.audio_projection.\1"),
    *BUFFERS,
]


# The one tensor that becomes a number of the configuration
AUDIO_SCALE = "modality_postprocessors.audio.1.log_logit_scale"


def imagebind_rules(with_vision: bool) -> list[Rule]:
    """Rules for `imagebind_huge.pth`: six modalities, of which sound is heard and images are for training."""
    rules = []
    for modality, stem in (("vision", r"rgbt_stem\.proj\.1"), ("audio", r"rgbt_stem\.proj")):
        if modality == "vision" and not with_vision:
            continue
        ours, theirs = f"model.audio_tower.{modality}_model", rf"modality_trunks\.{modality}\.blocks\.(\d+)"
        preprocessor, layer = rf"modality_preprocessors\.{modality}", rf"{ours}.layers.\1"
        rules += [
            use(rf"{preprocessor}\.cls_token", f"{ours}.embeddings.class_embedding"),
            use(rf"{preprocessor}\.pos_embedding_helper\.pos_embed", f"{ours}.embeddings.position_embedding"),
            use(rf"{preprocessor}\.{stem}\.weight", f"{ours}.embeddings.patch_embedding.weight"),
            use(rf"{preprocessor}\.rgbt_stem\.norm_layer\.{PARAMETER}", rf"{ours}.embeddings.layer_norm.\1"),
            use(rf"modality_trunks\.{modality}\.pre_transformer_layer\.0\.{PARAMETER}", rf"{ours}.pre_layernorm.\1"),
            use(rf"{theirs}\.norm_([12])\.{PARAMETER}", rf"{layer}.layer_norm\2.\3"),
            use(
                rf"{theirs}\.attn\.in_proj_{PARAMETER}",
                *(rf"{layer}.self_attn.{name}_proj.\2" for name in "qkv"),
                split=split_in_three,
            ),
            use(rf"{theirs}\.attn\.(bias_[kv])", rf"{layer}.self_attn.\2"),
            use(rf"{theirs}\.attn\.out_proj\.{PARAMETER}", rf"{layer}.self_attn.out_proj.\2"),
            use(rf"{theirs}\.mlp\.(fc[12])\.{PARAMETER}", rf"{layer}.mlp.\2.\3"),
            use(rf"modality_heads\.{modality}\.0\.{PARAMETER}", rf"{ours}.post_layernorm.\1"),
            use(rf"modality_heads\.{modality}\.2\.weight", f"model.audio_tower.{modality}_projection.weight"),
        ]
    unused = "text|depth|thermal|imu" if with_vision else "text|depth|thermal|imu|vision"
    return rules + [
        ignore(re.escape(AUDIO_SCALE), "a fixed factor: audio_config.audio_logit_scale"),
        ignore(rf"modality_\w+\.({unused})\..+", "a modality that Video-LLaMA does not use"),
    ]


LLAMA_RULES = [
    use(
        r"model\.(embed_tokens|norm|layers\.\d+\.(?!self_attn\.rotary_emb).+?)\.weight",
        r"model.language_model.\1.weight",
    ),
    use(r"lm_head\.weight", "lm_head.weight"),
    ROTARY,
]


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a `.pth`, `.bin` or `.safetensors` file by name. Code in a pickle is refused, never run.

    Raises:
        CheckpointError: If the file is missing, can't be read, or holds something else than named tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with path.open("rb") as file:
            is_zip = file.read(2) == b"PK"
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:
        raise CheckpointError(f"{path} could not be read as a checkpoint: {error}") from error
    tensors = checkpoint.get("model", checkpoint) if isinstance(checkpoint, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise CheckpointError(f"{path} does not hold tensors by name, at its top or under 'model'.")
    return dict(tensors)


def load_llama_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Tensors of a Hugging Face LLaMA folder, of one file or of shards."""
    for stem in ("model.safetensors", "pytorch_model.bin"):
        if (folder / stem).is_file():
            return load_tensors(folder / stem)
        index = folder / f"{stem}.index.json"
        if index.is_file():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict):
                raise CheckpointError(f"{index} has no weight_map, so it names no shards.")
            shards = sorted(set(weight_map.values()))
            return {name: tensor for shard in shards for name, tensor in load_tensors(folder / shard).items()}
    raise CheckpointError(f"{folder} holds neither model.safetensors nor pytorch_model.bin, whole or in shards.")


@dataclass
class Source:
    """One of the released files or folders, read."""

    name: str
    tensors: dict[str, torch.Tensor]
    rules: list[Rule]


# ---------------------------------------------------------------------------------------------------------------------
# Converting


@dataclass
class Converted:
    """Tensors by their names here, and what was left out."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(self, source: Source) -> None:
        """Applies a source's rules to all of its tensors."""
        for name, tensor in source.tensors.items():
            origin = f"{source.name}: {name}"
            matches = ((rule, match) for rule in source.rules if (match := re.fullmatch(rule.pattern, name)))
            rule, match = next(matches, (None, None))
            if rule is None:
                self.problems.append(f"left over   {origin} {tuple(tensor.shape)}")
            elif not rule.targets:
                self.ignored[origin] = rule.reason
            else:
                for target, part in zip(rule.targets, rule.split(tensor), strict=True):
                    target = match.expand(target)
                    if target in self.tensors:
                        self.problems.append(f"given twice {target}, by {self.origins[target]} and by {origin}")
                    self.tensors[target], self.origins[target] = part, origin

    def check(self, model: nn.Module) -> None:
        """Compares names and shapes with those of the model.

        Raises:
            CheckpointError: With the name of every tensor that is missing, left over or of another shape.
        """
        expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        for name, shape in expected.items():
            if name not in self.tensors:
                self.problems.append(f"missing     {name} {shape}")
            elif (given := tuple(self.tensors[name].shape)) != shape:
                self.problems.append(f"shape       {name} is {given}, expected {shape} (from {self.origins[name]})")
        for name in self.tensors.keys() - expected.keys():
            self.problems.append(f"left over   {self.origins[name]}: the model has no {name}")
        if self.problems:
            raise CheckpointError(
                "The sources do not make a whole model. Nothing was written.\n  "
                + "\n  ".join(sorted(self.problems))
                + "\nCheck that they belong to one release; give sizes that differ from the released ones by --config."
            )


def read_json(path: Path) -> dict:
    """A JSON object.

    Raises:
        CheckpointError: If the file is missing or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} could not be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected an object.")
    return content


def read_config(llama: Path, config: Path | None, with_audio: bool) -> VideoLlamaConfig:
    """The released sizes, with those of `config` in their place; the sizes of LLaMA are those of its folder."""
    if not (llama / CONFIG_NAME).is_file():
        raise CheckpointError(f"{llama} has no {CONFIG_NAME}: give the folder of a LLaMA in Hugging Face format.")
    fields = read_json(config) if config is not None else {}
    fields["text_config"] = read_json(llama / CONFIG_NAME)
    if not with_audio:
        fields["audio_config"] = None
    try:
        return VideoLlamaConfig(**fields)
    except Exception as error:
        raise CheckpointError(f"{config or llama / CONFIG_NAME} is no valid configuration: {error}") from error


def in_order_of_scores(backend: Tokenizer, sentencepiece_file: Path) -> models.BPE:
    """The merges of a tokenizer in the order of its sentencepiece scores.

    transformers 5.23 takes the order of the ids. LLaMA's runs of blanks come first among these and last by their scores, so
    "  What" would begin with another token.
    """
    scores = SentencePieceProcessor(model_file=str(sentencepiece_file))
    fields = json.loads(backend.to_str())["model"]
    merges = sorted(map(tuple, fields["merges"]), key=lambda merge: -scores.get_score(fields["vocab"]["".join(merge)]))
    return models.BPE(fields["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)


def read_tokenizer(folder: Path, context_length: int) -> PreTrainedTokenizerFast:
    """The tokenizer of a LLaMA folder, reading text as the original did: "▁" before every piece between placeholders.

    That is what `LlamaTokenizer` calls legacy. transformers 5.23 neither takes it for granted nor saves it, so the pipeline
    is set here and kept by the generic class; of the folder's tokenizer only the vocabulary counts.

    Raises:
        CheckpointError: If there is no tokenizer, or one without LLaMA's special tokens.
    """
    specials = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        # transformers would make one of three tokens
        raise CheckpointError(f"{folder} has neither tokenizer.json nor tokenizer.model: give one by --tokenizer.")
    try:
        backend = AutoTokenizer.from_pretrained(folder, **specials).backend_tokenizer
    except Exception as error:
        raise CheckpointError(
            f"{folder} holds no tokenizer that transformers can read ({error}): give one by --tokenizer."
        ) from error
    ids = [backend.token_to_id(token) for token in specials.values()]
    if ids != [0, 1, 2]:
        raise CheckpointError(
            f"The tokenizer of {folder} has the ids {ids} for {', '.join(specials.values())}, expected [0, 1, 2]: give that "
            "of the LLaMA by --tokenizer."
        )
    if not (folder / "tokenizer.json").is_file():
        backend.model = in_order_of_scores(backend, folder / "tokenizer.model")
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always", split=False)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", left=1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **specials,
        pad_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=context_length,
    )


def prompt_family(*names: str) -> str:
    """LLaMA-2-chat's prompts for releases named after it, Vicuna's for all others."""
    return "llama_2" if any("llama-2" in name.lower().replace("_", "-") for name in names) else "vicuna"


def write_weights(
    tensors: dict[str, torch.Tensor], folder: Path, max_shard_size: str, dtype: torch.dtype | None
) -> None:
    """Writes one shard after the other, so that mapped sources are in memory by one shard at a time."""
    planned = {
        name: torch.empty(tensor.shape, dtype=dtype or tensor.dtype, device="meta") for name, tensor in tensors.items()
    }
    try:
        split = split_torch_state_dict_into_shards(planned, max_shard_size=max_shard_size)
    except ValueError as error:
        raise CheckpointError(f"{max_shard_size!r} is no size of a file: {error} Write it as 5GB.") from error
    for filename, names in split.filename_to_tensors.items():
        shard = {
            name: tensors[name].to(planned[name].dtype).clone(memory_format=torch.contiguous_format) for name in names
        }
        save_file(shard, folder / filename, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")


def open_to_others(folder: Path) -> None:
    """Gives a folder and its files the permissions of any other: temporary folders and safetensors files are private."""
    umask = os.umask(0)
    os.umask(umask)
    folder.chmod(0o777 & ~umask)
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def convert(
    vision_checkpoint: Path,
    eva_vit: Path,
    blip2: Path,
    llama: Path,
    output: Path,
    audio_checkpoint: Path | None = None,
    imagebind: Path | None = None,
    tokenizer: Path | None = None,
    config: Path | None = None,
    family: str | None = None,
    dtype: torch.dtype | None = None,
    max_shard_size: str = "5GB",
) -> Converted:
    """Converts one release. All paths are local.

    Args:
        vision_checkpoint: VL file: what the vision branch trained.
        eva_vit: `eva_vit_g.pth`.
        blip2: `blip2_pretrained_flant5xxl.pth`.
        llama: Folder of a LLaMA in Hugging Face format.
        output: Folder to make. It must not exist, and exists only after success.
        audio_checkpoint: AL file: what the audio branch trained. Without it the model has no audio branch.
        imagebind: `imagebind_huge.pth`, needed with `audio_checkpoint`.
        tokenizer: Folder with a tokenizer, if the LLaMA folder has none.
        config: JSON file with a partial [`VideoLlamaConfig`], for sizes that differ from the released ones.
        family: "vicuna" or "llama_2"; by default told from the names of the VL file and the LLaMA folder.
        dtype: Of all weights. By default each keeps its own: the ViT and LLaMA are released in float16.
        max_shard_size: Of the weight files, as huggingface-hub writes sizes.

    Raises:
        CheckpointError: If a source is missing or can't be read, or if they don't make a whole model.
    """
    if output.exists() or output.is_symlink():
        raise CheckpointError(f"{output} exists already: remove it or give another folder.")
    if audio_checkpoint is not None and imagebind is None:
        raise CheckpointError(f"{audio_checkpoint} needs ImageBind: give imagebind_huge.pth by --imagebind.")
    if imagebind is not None and audio_checkpoint is None:
        raise CheckpointError(f"{imagebind} is for the audio branch: give its AL file by --audio-checkpoint too.")
    family = family or prompt_family(vision_checkpoint.name, llama.name)
    if family not in STOP:
        raise CheckpointError(f"The prompt family is {family!r}, expected one of {', '.join(STOP)}.")

    model_config = read_config(llama, config, with_audio=audio_checkpoint is not None)
    vision_config = model_config.vision_config
    grid_size = vision_config.image_size // vision_config.patch_size
    converted = Converted()
    eva_tensors = load_tensors(eva_vit)
    eva_rules = eva_vit_rules(eva_tensors, vision_config.num_hidden_layers, grid_size)
    converted.add(Source(eva_vit.name, eva_tensors, eva_rules))
    converted.add(Source(blip2.name, load_tensors(blip2), BLIP2_RULES))
    converted.add(Source(vision_checkpoint.name, load_tensors(vision_checkpoint), VISION_RULES))
    converted.add(Source(llama.name, load_llama_tensors(llama), LLAMA_RULES))
    if audio_checkpoint is not None:
        imagebind_tensors = load_tensors(imagebind)
        if AUDIO_SCALE in imagebind_tensors:
            model_config.audio_config.audio_logit_scale = round(
                imagebind_tensors[AUDIO_SCALE].double().exp().item(), 4
            )
        else:
            converted.problems.append(f"missing     {imagebind.name}: {AUDIO_SCALE}")
        with_vision = model_config.audio_config.vision_config is not None
        converted.add(Source(imagebind.name, imagebind_tensors, imagebind_rules(with_vision)))
        converted.add(Source(audio_checkpoint.name, load_tensors(audio_checkpoint), AUDIO_RULES))

    processor = VideoLlamaProcessor(
        image_processor=VideoLlamaImageProcessor(size={"height": vision_config.image_size, "width": vision_config.image_size}),
        video_processor=VideoLlamaVideoProcessor(size={"height": vision_config.image_size, "width": vision_config.image_size}),
        feature_extractor=VideoLlamaFeatureExtractor(),
        tokenizer=read_tokenizer(tokenizer or llama, model_config.text_config.max_position_embeddings),
        num_video_query_tokens=model_config.num_video_query_tokens,
        num_audio_query_tokens=model_config.num_audio_query_tokens,
        chat_template=load_chat_templates(family),
    )  # fmt: skip
    for modality in ("image", "video", "audio"):
        setattr(model_config, f"{modality}_token_id", getattr(processor, f"{modality}_token_id"))
    with torch.device("meta"):
        model = VideoLlamaForConditionalGeneration(model_config)
    converted.check(model)
    # What `from_pretrained` loads all in, if not told otherwise: the precision of the largest part
    model.config.dtype = dtype or converted.tensors["lm_head.weight"].dtype
    model.config.architectures = [type(model).__name__]

    output.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        model.note_auto_classes()
        custom_object_save(model, work, config=model.config)
        model.config.save_pretrained(work)
        processor.save_pretrained(work)
        tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        GenerationConfig(**SAMPLING, **STOP[family], **tokens).save_pretrained(work)
        write_weights(converted.tensors, work, max_shard_size, dtype)
        open_to_others(work)
        work.rename(output)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    logger.info(
        f"{len(converted.tensors)} tensors written to {output}, {len(converted.ignored)} of the sources ignored."
    )
    return converted


# ---------------------------------------------------------------------------------------------------------------------
# Command line


def find_release(folder: Path) -> dict[str, Path]:
    """The sources of a release by the names they were released under, in one folder or one level below it.

    Raises:
        CheckpointError: If one is missing, or if there are several of a kind.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder.")
    patterns = {
        "vision_checkpoint": ("VL_*.pth", "pretrain-*.pth", "finetune-*.pth"),
        "audio_checkpoint": ("AL_*.pth", "*_audiobranch.pth"),
        "eva_vit": ("eva_vit_g.pth",),
        "blip2": ("blip2_pretrained_flant5xxl.pth",),
        "imagebind": ("imagebind_huge.pth",),
        "llama": ("config.json",),
    }
    files = sorted(folder.glob("*")) + sorted(folder.glob("*/*"))
    found = {}
    for name, names in patterns.items():
        pattern = " or ".join(names)
        matching = [file for file in files if any(file.match(name) for name in names)]
        if len(matching) > 1:
            raise CheckpointError(
                f"{folder} holds several of {pattern}: {', '.join(map(str, matching))}. Name the one by its option."
            )
        if matching:
            found[name] = matching[0].parent if name == "llama" else matching[0]
        elif name not in ("audio_checkpoint", "imagebind"):
            raise CheckpointError(
                f"{folder} holds no {pattern}, nor does a folder in it: add it, or name it by its option."
            )
    if "audio_checkpoint" not in found:
        found.pop("imagebind", None)
    return found


DTYPES = {"auto": None, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def main(
    output: Annotated[Path, typer.Option(help="Folder to make.")],
    release: Annotated[Path | None, typer.Option(help="Folder with all sources under their released names.")] = None,
    vision_checkpoint: Annotated[Path | None, typer.Option(help="VL_….pth: the trained vision branch.")] = None,
    audio_checkpoint: Annotated[Path | None, typer.Option(help="AL_….pth: the trained audio branch.")] = None,
    eva_vit: Annotated[Path | None, typer.Option(help="eva_vit_g.pth")] = None,
    blip2: Annotated[Path | None, typer.Option(help="blip2_pretrained_flant5xxl.pth")] = None,
    imagebind: Annotated[Path | None, typer.Option(help="imagebind_huge.pth, with an audio branch.")] = None,
    llama: Annotated[Path | None, typer.Option(help="Folder of the LLaMA in Hugging Face format.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Folder of its tokenizer, where it has none.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="Partial VideoLlamaConfig as JSON, for other sizes than the released.")
    ] = None,
    prompt_family: Annotated[
        str | None, typer.Option(help="vicuna or llama_2; told from the file names if not given.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto (as released), float32, float16 or bfloat16.")] = "auto",
    max_shard_size: Annotated[str, typer.Option(help="Size of the weight files.")] = "5GB",
) -> None:
    """Convert a released Video-LLaMA checkpoint to Hugging Face format."""
    given = {
        "vision_checkpoint": vision_checkpoint,
        "audio_checkpoint": audio_checkpoint,
        "eva_vit": eva_vit,
        "blip2": blip2,
        "imagebind": imagebind,
        "llama": llama,
    }
    if dtype not in DTYPES:
        raise typer.BadParameter(f"is {dtype!r}, expected one of {', '.join(DTYPES)}.", param_hint="--dtype")
    try:
        sources = find_release(release) if release is not None else {}
        sources |= {name: path for name, path in given.items() if path is not None}
        for name in ("vision_checkpoint", "eva_vit", "blip2", "llama"):
            if name not in sources:
                raise typer.BadParameter("give it, or --release.", param_hint=f"--{name.replace('_', '-')}")
        converted = convert(
            **sources,
            output=output,
            tokenizer=tokenizer,
            config=config,
            family=prompt_family,
            dtype=DTYPES[dtype],
            max_shard_size=max_shard_size,
        )
    except CheckpointError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from error
    typer.echo(
        f"{output}: {len(converted.tensors)} tensors, {len(converted.ignored)} tensors of the sources not used:"
    )
    reasons = list(converted.ignored.values())
    for reason in dict.fromkeys(reasons):
        typer.echo(f"  {reasons.count(reason):5d}  {reason}")


if __name__ == "__main__":
    typer.run(main)
