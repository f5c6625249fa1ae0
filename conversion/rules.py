# SPDX-License-Identifier: Apache-2.0
"""Which tensor of the original goes where, and which is not used and why. The same rules read backwards give its names again."""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn


Split = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]
Join = Callable[[tuple[torch.Tensor, ...]], torch.Tensor]


def as_it_is(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (tensor,)


def split_in_three(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Query, key and value, which the source keeps in one tensor."""
    return tensor.chunk(3)


def without_batch(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """`(1, tokens, hidden_size)` to the `(tokens, hidden_size)` of an embedding."""
    return (tensor.squeeze(0),)


def with_batch(parts: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """`(tokens, hidden_size)` to the `(1, tokens, hidden_size)` of the original."""
    return parts[0].unsqueeze(0)


@dataclass(frozen=True)
class Rule:
    """What becomes of the tensors whose whole name matches.

    Args:
        pattern: Regular expression of plain text, with groups for what differs.
        targets: Their names here, with `\\1` for a group. None where they are not used.
        reason: Why they are not used.
        split: One tensor to as many as there are targets.
        join: The way back, where the original's file is written.
    """

    pattern: str
    targets: tuple[str, ...] = ()
    reason: str = ""
    split: Split = as_it_is
    join: Join = lambda parts: parts[0]

    def source_name(self, target: str) -> str | None:
        """The original's name of a tensor that this rule gives here; None if it doesn't give it."""
        texts_and_groups = re.split(r"\(([^()?]*)\)", self.pattern)
        texts, groups = texts_and_groups[::2], texts_and_groups[1::2]
        for name in self.targets:
            named = re.sub(
                r"\\\\(\d)", lambda number: f"(?P<g{number[1]}>{groups[int(number[1]) - 1]})", re.escape(name)
            )
            if match := re.fullmatch(named, target):
                values = [match[f"g{index}"] for index in range(1, len(groups) + 1)]
                return "".join(text + value for text, value in zip(texts, [*values, ""])).replace("\\", "")
        return None


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
    blocks = {int(match[1]) for name in names if (match := re.match(r"blocks\.(\d{1,4})\.", name))}
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
    use(r"video_query_tokens", "model.video_query_tokens.weight", split=without_batch, join=with_batch),
    use(r"video_frame_position_embedding\.weight", "model.frame_position_embedding.weight"),
    *qformer_rules("video_Qformer", "model.video_qformer"),
    use(rf"llama_proj\.{PARAMETER}", r"model.video_projection.\1"),
    *BUFFERS,
]
AUDIO_RULES = [
    use(r"audio_query_tokens", "model.audio_query_tokens.weight", split=without_batch, join=with_batch),
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
