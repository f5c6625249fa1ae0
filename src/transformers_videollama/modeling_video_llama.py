# Copyright 2026 The transformers_videollama authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Video-LLaMA (https://huggingface.co/papers/2306.02858): a frozen LLaMA that sees and hears a video.

Vision branch: ViT-G/14 → Q-Former per frame → frame positions → Q-Former per video → linear → 32 tokens for LLaMA.
Audio branch: ImageBind per segment → segment positions → Q-Former per sound → linear → 8 tokens for LLaMA.
"""

import copy
import os
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import (
    AutoModel,
    Cache,
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithCrossAttentions,
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
)
from transformers.processing_utils import Unpack
from transformers.utils import (
    ModelOutput,
    TransformersKwargs,
    auto_docstring,
    can_return_tuple,
    logging,
    torch_compilable_check,
)
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_video_llama import VideoLlamaConfig, VideoLlamaQFormerConfig, VideoLlamaVisionConfig
from .exceptions import PlaceholderError
from .modeling_imagebind import ImageBindModel, ImageBindOutput
from .modeling_video_llama_encoder import (
    VideoLlamaAttention,
    VideoLlamaEncoder,
    VideoLlamaEncoderLayer,
    VideoLlamaMLP,
)
from .sharing import VideoLlamaSharingMixin


logger = logging.get_logger(__name__)

MODALITIES = ("image", "video", "audio")

# What is trained (paper, section 2.2), by branch; everything else is frozen
BRANCHES = {
    "vision_branch": ("video_qformer", "video_query_tokens", "video_projection", "frame_position_embedding"),
    "audio_branch": ("audio_qformer", "audio_query_tokens", "audio_projection", "audio_position_embedding"),
}

# What `forward` takes for the items of each modality
ITEM_INPUTS = {
    "image": ("pixel_values", "image_embeds"),
    "video": ("pixel_values_videos", "video_frame_mask", "video_frame_embeds"),
    "audio": ("input_features", "input_features_mask", "audio_pixel_values", "audio_segment_embeds"),
}


class TrainablePart(NamedTuple):
    """A part of a model, for the table that training begins with: its name, its parameters, and how many are trained."""

    name: str
    num_parameters: int
    num_trainable: int


@auto_docstring(
    custom_intro="What a branch computes: its tokens for LLaMA in `pooler_output`, and every stage before them."
)
@dataclass
class VideoLlamaFeaturesOutput(BaseModelOutputWithPooling):
    r"""
    pooler_output (`torch.FloatTensor` of shape `(items, num_query_tokens, text_hidden_size)`):
        The tokens that replace the placeholders of each image, video or sound.
    last_hidden_state (`torch.FloatTensor`):
        Output of the encoder, ViT-G/14 or an ImageBind trunk, of shape `(frames or segments, length, hidden_size)`. Only
        unmasked frames and segments are encoded. Its layers are in `hidden_states` and `attentions`.
    vision_outputs (`BaseModelOutputWithPooling`, *optional*):
        Output of [`VideoLlamaVisionModel`], one row per unmasked frame.
    qformer_outputs (`BaseModelOutputWithCrossAttentions`, *optional*):
        Output of the frame Q-Former, one row per unmasked frame.
    frame_hidden_states (`torch.FloatTensor` of shape `(videos, frames * num_query_tokens, hidden_size)`, *optional*):
        Frame tokens with their positions: what the video Q-Former attends to, where not masked.
    video_qformer_outputs (`BaseModelOutputWithCrossAttentions`, *optional*):
        Output of the video Q-Former.
    audio_outputs (`ImageBindOutput`, *optional*):
        Output of [`ImageBindModel`], one row per unmasked segment.
    segment_hidden_states (`torch.FloatTensor` of shape `(sounds, segments, output_dim)`, *optional*):
        Segment embeddings with their positions: what the audio Q-Former attends to, where not masked.
    audio_qformer_outputs (`BaseModelOutputWithCrossAttentions`, *optional*):
        Output of the audio Q-Former.
    """

    vision_outputs: BaseModelOutputWithPooling | None = None
    qformer_outputs: BaseModelOutputWithCrossAttentions | None = None
    frame_hidden_states: torch.FloatTensor | None = None
    video_qformer_outputs: BaseModelOutputWithCrossAttentions | None = None
    audio_outputs: ImageBindOutput | None = None
    segment_hidden_states: torch.FloatTensor | None = None
    audio_qformer_outputs: BaseModelOutputWithCrossAttentions | None = None

    def to_tuple(self) -> tuple:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


@auto_docstring(custom_intro="Output of LLaMA, with the tokens that it was given for what it saw and heard.")
@dataclass
class VideoLlamaModelOutputWithPast(BaseModelOutputWithPast):
    r"""
    image_hidden_states (`torch.FloatTensor` of shape `(images, num_video_query_tokens, text_hidden_size)`, *optional*):
        The tokens of the images.
    video_hidden_states (`torch.FloatTensor` of shape `(videos, num_video_query_tokens, text_hidden_size)`, *optional*):
        The tokens of the videos.
    audio_hidden_states (`torch.FloatTensor` of shape `(sounds, num_audio_query_tokens, text_hidden_size)`, *optional*):
        The tokens of the sounds.
    """

    image_hidden_states: torch.FloatTensor | None = None
    video_hidden_states: torch.FloatTensor | None = None
    audio_hidden_states: torch.FloatTensor | None = None


@auto_docstring(
    custom_intro="Language modelling output of LLaMA, with the tokens that it was given for what it saw and heard."
)
@dataclass
class VideoLlamaCausalLMOutputWithPast(CausalLMOutputWithPast):
    r"""
    loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned when `labels` is provided):
        Language modelling loss (for next-token prediction).
    logits (`torch.FloatTensor` of shape `(batch, length, vocab_size)`):
        Scores of each vocabulary token before the softmax.
    image_hidden_states (`torch.FloatTensor` of shape `(images, num_video_query_tokens, text_hidden_size)`, *optional*):
        The tokens of the images.
    video_hidden_states (`torch.FloatTensor` of shape `(videos, num_video_query_tokens, text_hidden_size)`, *optional*):
        The tokens of the videos.
    audio_hidden_states (`torch.FloatTensor` of shape `(sounds, num_audio_query_tokens, text_hidden_size)`, *optional*):
        The tokens of the sounds.
    """

    image_hidden_states: torch.FloatTensor | None = None
    video_hidden_states: torch.FloatTensor | None = None
    audio_hidden_states: torch.FloatTensor | None = None


class VideoLlamaQFormerLayer(GradientCheckpointingLayer):
    """Post-norm: self-attention of the queries, cross-attention to the encoder in every n-th layer, MLP."""

    def __init__(self, config: VideoLlamaQFormerConfig, layer_idx: int):
        super().__init__()
        self.self_attn = VideoLlamaAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.has_cross_attention = layer_idx % config.cross_attention_frequency == 0
        if self.has_cross_attention:
            self.cross_attn = VideoLlamaAttention(config, encoder_hidden_size=config.encoder_hidden_size)
            self.cross_attn_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = VideoLlamaMLP(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        attn_output, _ = self.self_attn(hidden_states, **kwargs)
        hidden_states = self.self_attn_layer_norm(hidden_states + self.dropout(attn_output))
        if self.has_cross_attention:
            attn_output, _ = self.cross_attn(hidden_states, encoder_hidden_states, encoder_attention_mask, **kwargs)
            hidden_states = self.cross_attn_layer_norm(hidden_states + self.dropout(attn_output))
        return self.final_layer_norm(hidden_states + self.dropout(self.mlp(hidden_states)))


class VideoLlamaVisionEmbeddings(nn.Module):
    def __init__(self, config: VideoLlamaVisionConfig):
        super().__init__()
        self.image_size = config.image_size
        self.class_embedding = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.patch_embedding = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )
        num_patches = (config.image_size // config.patch_size) ** 2
        self.position_embedding = nn.Parameter(torch.zeros(1, num_patches + 1, config.hidden_size))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if pixel_values.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"Frames of {tuple(pixel_values.shape[-2:])} pixels were given, but the model takes "
                f"{(self.image_size, self.image_size)}: let its processor resize them."
            )
        patch_embeds = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))
        patch_embeds = patch_embeds.flatten(2).transpose(1, 2)  # (frames, num_patches, hidden_size)
        class_embeds = self.class_embedding.expand(patch_embeds.shape[0], -1, -1)
        return torch.cat([class_embeds, patch_embeds], dim=1) + self.position_embedding


def keep_frozen_in_evaluation(module: nn.Module) -> None:
    """Puts the submodules that have parameters, but none that is trained, in evaluation mode."""
    for child in module.children():
        are_trained = {parameter.requires_grad for parameter in child.parameters()}
        if are_trained == {False}:
            child.eval()
            # Gradients run through a frozen LLaMA. Its layers recompute themselves in training mode only; what could drop
            # out is below them, and stays in evaluation mode.
            for layer in child.modules():
                if isinstance(layer, GradientCheckpointingLayer) and layer.gradient_checkpointing:
                    layer.training = True
        elif are_trained:
            keep_frozen_in_evaluation(child)


@auto_docstring
class VideoLlamaPreTrainedModel(PreTrainedModel):
    config: VideoLlamaConfig
    base_model_prefix = "model"
    input_modalities = ("image", "video", "audio", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = [
        "VideoLlamaVisionEmbeddings",
        "ImageBindVisionEmbeddings",
        "ImageBindAudioEmbeddings",
        "VideoLlamaEncoderLayer",
        "VideoLlamaQFormerLayer",
    ]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, VideoLlamaVisionEmbeddings):
            init.normal_(module.class_embedding, std=self.config.initializer_range)
            init.normal_(module.position_embedding, std=self.config.initializer_range)

    # trf-ignore: TRF057 (it is no forward: there is nothing for the decorator to fill in)
    # trf-ignore: TRF033 (what is trained is no property of the model that its configuration could keep)
    def set_trainable(self, *names: str) -> None:
        """Chooses what is trained, and freezes everything else. Frozen parts stay in evaluation mode, see `train`.

        Args:
            names (`str`):
                "vision_branch" or "audio_branch": the Q-Former of videos or sounds, its query tokens, its position table
                and its projection, which are what the original trains; "both" for both of them; or names of modules or
                parameters, such as "language_model.layers.31" or "video_projection.bias". None freezes the whole model.

        Raises:
            ValueError: If the model has no part of such a name.
        """
        prefix = f"{self.base_model_prefix}." if hasattr(self, self.base_model_prefix) else ""
        branches = {**BRANCHES, "both": [part for parts in BRANCHES.values() for part in parts]}
        modules, parameters = dict(self.named_modules()), dict(self.named_parameters())
        chosen = []
        for name in names:
            for part in branches.get(name, (name,)):
                full_name = next(
                    (full for full in (prefix + part, part) if full in modules or full in parameters), None
                )
                if full_name is None:
                    have = [
                        child for child, _ in (self.get_submodule(prefix[:-1]) if prefix else self).named_children()
                    ]
                    raise ValueError(
                        f"This model has no part {part!r} (asked for by set_trainable({name!r})): choose among {have}, the "
                        f"modules and parameters in them, and {list(branches)}."
                    )
                chosen.append(full_name)
        self.requires_grad_(False)
        for full_name in chosen:
            (modules.get(full_name) or parameters[full_name]).requires_grad_(True)
        self.train(self.training)

    # trf-ignore: TRF057 (as above)
    def trainable_parts(self) -> list[TrainablePart]:
        """The parts of the model, one for each child of the base model and one for each beside it."""
        parts = []
        for name, child in self.named_children():
            grandchildren = child.named_children() if name == self.base_model_prefix else [("", child)]
            for grandchild_name, part in grandchildren:
                sizes = [(parameter.numel(), parameter.requires_grad) for parameter in part.parameters()]
                parts.append(
                    TrainablePart(
                        grandchild_name or name,
                        sum(size for size, _ in sizes),
                        sum(size for size, used in sizes if used),
                    )
                )
        return parts

    # trf-ignore: TRF057 (as above)
    def enable_input_require_grads(self) -> None:
        """As in the library, but for LLaMA alone: the library also lets gradients into what frozen towers compute, which would
        then keep all of it for a backward pass that nothing needs."""
        if isinstance(self.base_model, VideoLlamaModel):
            self.base_model.language_model.enable_input_require_grads()
        else:
            super().enable_input_require_grads()

    # trf-ignore: TRF057 (as above)
    def disable_input_require_grads(self) -> None:
        """Takes back what `enable_input_require_grads` did."""
        if isinstance(self.base_model, VideoLlamaModel):
            self.base_model.language_model.disable_input_require_grads()
        else:
            super().disable_input_require_grads()

    # trf-ignore: TRF057 (as above)
    def train(self, mode: bool = True) -> "VideoLlamaPreTrainedModel":
        """As in any module, but for parts without a parameter that is trained: they stay in evaluation mode, so that nothing
        drops out of what is frozen. The original does the same for its image encoder and image Q-Former."""
        super().train(mode)
        if mode:
            keep_frozen_in_evaluation(self)
        return self


@auto_docstring(custom_intro="ViT-G/14 of EVA-CLIP as BLIP-2 uses it: 39 blocks, then a LayerNorm over every token.")
class VideoLlamaVisionModel(VideoLlamaPreTrainedModel):
    config: VideoLlamaVisionConfig
    input_modalities = ("image",)
    main_input_name = "pixel_values"
    _can_record_outputs = {"hidden_states": VideoLlamaEncoderLayer, "attentions": VideoLlamaAttention}

    def __init__(self, config: VideoLlamaVisionConfig):
        super().__init__(config)
        self.embeddings = VideoLlamaVisionEmbeddings(config)
        self.layers = VideoLlamaEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.post_layernorm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embedding

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    @auto_docstring
    def forward(
        self, pixel_values: torch.FloatTensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple | BaseModelOutputWithPooling:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(images, channels, height, width)`):
            Images of the size in the configuration.
        """
        hidden_states = self.post_layernorm(self.layers(self.embeddings(pixel_values), **kwargs))
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=hidden_states[:, 0])


@auto_docstring(
    custom_intro="The query branch of BLIP-2's Q-Former. It reads a frame, the frames of a video, or the segments of a sound."
)
class VideoLlamaQFormerModel(VideoLlamaPreTrainedModel):
    config: VideoLlamaQFormerConfig
    input_modalities = ("image",)
    main_input_name = "query_embeds"
    _can_record_outputs = {
        "hidden_states": VideoLlamaQFormerLayer,
        "attentions": OutputRecorder(VideoLlamaAttention, index=1, layer_name="self_attn"),
        "cross_attentions": OutputRecorder(VideoLlamaAttention, index=1, layer_name="cross_attn"),
    }

    def __init__(self, config: VideoLlamaQFormerConfig):
        super().__init__(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList(VideoLlamaQFormerLayer(config, i) for i in range(config.num_hidden_layers))
        self.post_init()

    def get_input_embeddings(self) -> None:
        return None

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    @auto_docstring
    def forward(
        self,
        query_embeds: torch.FloatTensor,
        encoder_hidden_states: torch.FloatTensor,
        encoder_attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithCrossAttentions:
        r"""
        query_embeds (`torch.FloatTensor` of shape `(batch, num_query_tokens, hidden_size)`):
            The learned queries.
        """
        encoder_attention_mask = create_bidirectional_mask(
            config=self.config,
            inputs_embeds=query_embeds,
            attention_mask=encoder_attention_mask,
            encoder_hidden_states=encoder_hidden_states,
        )
        hidden_states = self.dropout(self.layer_norm(query_embeds))
        for layer in self.layers:
            hidden_states = layer(hidden_states, encoder_hidden_states, encoder_attention_mask, **kwargs)
        return BaseModelOutputWithCrossAttentions(last_hidden_state=hidden_states)


def embed_positions(table: nn.Embedding, mask: torch.Tensor) -> torch.Tensor:
    """Position embeddings of the unmasked items of each row, counted from the first unmasked one.

    The original has a table of 32 frames (8 segments) and fails beyond it. Here a row with more items than the table has
    is spread evenly over the table, from its first to its last entry, by linear interpolation.

    Args:
        table: `(max_positions, hidden_size)`.
        mask: Boolean, `(batch, length)`, true where an item is real.

    Returns:
        `(batch, length, hidden_size)`; without meaning where an item is masked.
    """
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    last = table.num_embeddings - 1
    if mask.shape[1] <= table.num_embeddings:
        return table(positions)
    logger.warning_once(
        f"{mask.shape[1]} frames or segments were given, but {table.num_embeddings} positions were learned: their "
        "embeddings are interpolated. Give fewer for what the model was trained on."
    )
    positions = positions * (last / (mask.sum(-1, keepdim=True) - 1).clamp(min=1)).clamp(max=1)
    lower = positions.long().clamp(max=last)
    lower_embeds, upper_embeds = table(lower), table((lower + 1).clamp(max=last))
    return torch.lerp(lower_embeds, upper_embeds, (positions - lower).unsqueeze(-1).to(lower_embeds))


def check_item_mask(mask: torch.Tensor | None, values: torch.Tensor, name: str, ndim: int) -> torch.Tensor:
    """The mask of frames or segments as a boolean `(batch, length)`, all true where none was given.

    Raises:
        ValueError: If `values` has not `ndim` dimensions, or if the mask has another batch or length, or leaves nothing.
    """
    if values.ndim != ndim:
        raise ValueError(f"{name} has the shape {tuple(values.shape)}, but {ndim} dimensions were expected.")
    if mask is None:
        return torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
    if mask.shape != values.shape[:2]:
        raise ValueError(
            f"The mask of {name} has the shape {tuple(mask.shape)}, but {tuple(values.shape[:2])} was expected: one entry "
            "for each frame or segment."
        )
    mask = mask.to(values.device, torch.bool)
    torch_compilable_check(
        mask.any(-1).all(),
        f"The mask of {name} leaves an item without any frame or segment: leave the item out instead.",
    )
    return mask


def check_one_given(**inputs: torch.Tensor | None) -> None:
    """Raises a `ValueError` unless exactly one of several inputs is given."""
    given = [name for name, value in inputs.items() if value is not None]
    if len(given) != 1:
        raise ValueError(f"Exactly one of {list(inputs)} must be given, got {given or 'none'}.")


def check_not_encoded(mm_encoder_outputs: dict[str, ModelOutput], modality: str) -> None:
    """Raises a `ValueError` if a modality was given twice."""
    if mm_encoder_outputs.get(modality) is not None:
        raise ValueError(
            f"Both raw {modality} inputs and mm_encoder_outputs['{modality}'] were given: pass one of the two."
        )


def pack(values: torch.Tensor, mask: torch.Tensor, is_ragged: bool) -> torch.Tensor:
    """`(batch, length, …)` to `(unmasked items, …)`. A compiled graph needs a fixed number of items, and gets them all."""
    return values[mask] if is_ragged and not torch.compiler.is_compiling() else values.flatten(0, 1)


def unpack(hidden_states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`(unmasked items, …)`, or all of them, to `(batch, length, …)`, 0 where an item was left out."""
    if hidden_states.shape[0] == mask.numel():
        return hidden_states.unflatten(0, mask.shape)
    mask = mask.to(hidden_states.device)
    unpacked = hidden_states.new_zeros(*mask.shape, *hidden_states.shape[1:])
    unpacked[mask] = hidden_states
    return unpacked


@auto_docstring(custom_intro="Video-LLaMA without the language modelling head: the two branches and LLaMA.")
class VideoLlamaModel(VideoLlamaPreTrainedModel):
    def __init__(self, config: VideoLlamaConfig):
        super().__init__(config)
        self.vision_tower = VideoLlamaVisionModel(config.vision_config)
        self.query_tokens = nn.Embedding(config.num_query_tokens, config.qformer_config.hidden_size)
        self.qformer = VideoLlamaQFormerModel(config.qformer_config)
        self.frame_position_embedding = nn.Embedding(config.max_frame_positions, config.qformer_config.hidden_size)
        self.video_query_tokens = nn.Embedding(config.num_video_query_tokens, config.video_qformer_config.hidden_size)
        self.video_qformer = VideoLlamaQFormerModel(config.video_qformer_config)
        self.video_projection = nn.Linear(config.video_qformer_config.hidden_size, config.text_config.hidden_size)
        # CODEPATH: releases with an AL file have the audio branch, those with a VL file alone have not.
        if config.audio_config is not None:
            self.audio_tower = ImageBindModel(config.audio_config)
            self.audio_position_embedding = nn.Embedding(config.max_audio_positions, config.audio_config.output_dim)
            self.audio_query_tokens = nn.Embedding(
                config.num_audio_query_tokens, config.audio_qformer_config.hidden_size
            )
            self.audio_qformer = VideoLlamaQFormerModel(config.audio_qformer_config)
            self.audio_projection = nn.Linear(config.audio_qformer_config.hidden_size, config.text_config.hidden_size)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def _run_qformer(
        self,
        qformer: VideoLlamaQFormerModel,
        query_tokens: nn.Embedding,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithCrossAttentions:
        # Looked up rather than read, and by modules, so that a dispatched model finds them on the right device
        query_embeds = query_tokens(torch.arange(query_tokens.num_embeddings, device=encoder_hidden_states.device))
        return qformer(
            query_embeds.expand(encoder_hidden_states.shape[0], -1, -1),
            encoder_hidden_states.to(query_embeds.dtype),
            encoder_attention_mask,
            return_dict=True,
            **kwargs,
        )

    @can_return_tuple
    @auto_docstring(custom_intro="Sees still images: each is a video of one frame.")
    def get_image_features(
        self,
        pixel_values: torch.FloatTensor | None = None,
        image_embeds: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | VideoLlamaFeaturesOutput:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(images, channels, height, width)`, *optional*):
            Still images.
        image_embeds (`torch.FloatTensor` of shape `(images, num_query_tokens, hidden_size)`, *optional*):
            What the frozen encoders gave for the images before (`qformer_outputs.last_hidden_state`), in their place.
        """
        check_one_given(pixel_values=pixel_values, image_embeds=image_embeds)
        for name, values, ndim in (("pixel_values", pixel_values, 4), ("image_embeds", image_embeds, 3)):
            if values is not None and values.ndim != ndim:
                raise ValueError(f"{name} has the shape {tuple(values.shape)}, but {ndim} dimensions were expected.")
        return self.get_video_features(
            None if pixel_values is None else pixel_values.unsqueeze(1),
            video_frame_embeds=None if image_embeds is None else image_embeds.unsqueeze(1),
            return_dict=True,
            **kwargs,
        )

    @can_return_tuple
    @auto_docstring(custom_intro="Sees videos: the original's `encode_videoQformer_visual` (paper, section 2.1.1).")
    def get_video_features(
        self,
        pixel_values_videos: torch.FloatTensor | None = None,
        video_frame_mask: torch.Tensor | None = None,
        video_frame_embeds: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | VideoLlamaFeaturesOutput:
        r"""
        pixel_values_videos (`torch.FloatTensor` of shape `(videos, frames, channels, height, width)`, *optional*):
            Frames, padded to the longest video.
        video_frame_mask (`torch.Tensor` of shape `(videos, frames)`, *optional*):
            1 where a frame is real. A masked frame is not encoded and changes nothing. Absent, all are real.
        video_frame_embeds (`torch.FloatTensor` of shape `(videos, frames, num_query_tokens, hidden_size)`, *optional*):
            What the frozen encoders gave for the frames before (`qformer_outputs.last_hidden_state`), in their place.
        """
        check_one_given(pixel_values_videos=pixel_values_videos, video_frame_embeds=video_frame_embeds)
        vision_outputs = qformer_outputs = None
        if video_frame_embeds is not None:
            mask = check_item_mask(video_frame_mask, video_frame_embeds, "video_frame_embeds", ndim=4)
            frame_hidden_states = video_frame_embeds
        else:
            mask = check_item_mask(video_frame_mask, pixel_values_videos, "pixel_values_videos", ndim=5)
            frames = pack(pixel_values_videos, mask, is_ragged=video_frame_mask is not None)
            vision_outputs = self.vision_tower(frames, return_dict=True, **kwargs)
            qformer_outputs = self._run_qformer(
                self.qformer, self.query_tokens, vision_outputs.last_hidden_state, **kwargs
            )
            frame_hidden_states = unpack(qformer_outputs.last_hidden_state, mask)
        num_query_tokens = frame_hidden_states.shape[2]
        # (videos, frames, 1, hidden_size): a frame's tokens share its position
        positions = embed_positions(self.frame_position_embedding, mask).unsqueeze(2)
        frame_hidden_states = frame_hidden_states + positions.to(frame_hidden_states.device)
        frame_hidden_states = frame_hidden_states.flatten(1, 2)  # (videos, frames * num_query_tokens, hidden_size)
        video_qformer_outputs = self._run_qformer(
            self.video_qformer,
            self.video_query_tokens,
            frame_hidden_states,
            None if video_frame_mask is None else mask.repeat_interleave(num_query_tokens, dim=1),
            **kwargs,
        )
        return VideoLlamaFeaturesOutput(
            last_hidden_state=None if vision_outputs is None else vision_outputs.last_hidden_state,
            pooler_output=self.video_projection(video_qformer_outputs.last_hidden_state),
            hidden_states=None if vision_outputs is None else vision_outputs.hidden_states,
            attentions=None if vision_outputs is None else vision_outputs.attentions,
            vision_outputs=vision_outputs,
            qformer_outputs=qformer_outputs,
            frame_hidden_states=frame_hidden_states,
            video_qformer_outputs=video_qformer_outputs,
        )

    @can_return_tuple
    @auto_docstring(custom_intro="Hears sounds: the original's `encode_audioQformer` (paper, section 2.1.2).")
    def get_audio_features(
        self,
        input_features: torch.FloatTensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        audio_pixel_values: torch.FloatTensor | None = None,
        audio_segment_embeds: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | VideoLlamaFeaturesOutput:
        r"""
        input_features (`torch.FloatTensor` of shape `(sounds, segments, num_mel_bins, num_mel_frames)`, *optional*):
            Log-mel spectrograms of the segments, padded to the longest sound.
        input_features_mask (`torch.Tensor` of shape `(sounds, segments)`, *optional*):
            1 where a segment is real. A masked segment is not encoded and changes nothing. Absent, all are real.
        audio_pixel_values (`torch.FloatTensor` of shape `(sounds, segments, channels, height, width)`, *optional*):
            Frames in place of `input_features`, seen by ImageBind's vision trunk: how the audio branch is trained.
        audio_segment_embeds (`torch.FloatTensor` of shape `(sounds, segments, output_dim)`, *optional*):
            What frozen ImageBind gave for the segments or frames before (`audio_embeds` or `image_embeds`), in their place.
        """
        if self.config.audio_config is None:
            raise ValueError(
                "Sound was given, but this model has no audio branch (`audio_config=None`): load or convert one that has."
            )
        check_one_given(
            input_features=input_features,
            audio_pixel_values=audio_pixel_values,
            audio_segment_embeds=audio_segment_embeds,
        )
        audio_outputs = encoder_outputs = None
        if audio_segment_embeds is not None:
            mask = check_item_mask(input_features_mask, audio_segment_embeds, "audio_segment_embeds", ndim=3)
            segment_hidden_states = audio_segment_embeds
        elif input_features is not None:
            mask = check_item_mask(input_features_mask, input_features, "input_features", ndim=4)
            segments = pack(input_features, mask, is_ragged=input_features_mask is not None)
            audio_outputs = self.audio_tower(input_features=segments, return_dict=True, **kwargs)
            encoder_outputs = audio_outputs.audio_model_output
            segment_hidden_states = unpack(audio_outputs.audio_embeds, mask)
        else:
            mask = check_item_mask(input_features_mask, audio_pixel_values, "audio_pixel_values", ndim=5)
            frames = pack(audio_pixel_values, mask, is_ragged=input_features_mask is not None)
            audio_outputs = self.audio_tower(pixel_values=frames, return_dict=True, **kwargs)
            encoder_outputs = audio_outputs.vision_model_output
            segment_hidden_states = unpack(audio_outputs.image_embeds, mask)

        positions = embed_positions(self.audio_position_embedding, mask)  # (sounds, segments, output_dim)
        segment_hidden_states = segment_hidden_states + positions.to(segment_hidden_states.device)
        audio_qformer_outputs = self._run_qformer(
            self.audio_qformer,
            self.audio_query_tokens,
            segment_hidden_states,
            None if input_features_mask is None else mask,
            **kwargs,
        )
        return VideoLlamaFeaturesOutput(
            last_hidden_state=None if encoder_outputs is None else encoder_outputs.last_hidden_state,
            pooler_output=self.audio_projection(audio_qformer_outputs.last_hidden_state),
            hidden_states=None if encoder_outputs is None else encoder_outputs.hidden_states,
            attentions=None if encoder_outputs is None else encoder_outputs.attentions,
            audio_outputs=audio_outputs,
            segment_hidden_states=segment_hidden_states,
            audio_qformer_outputs=audio_qformer_outputs,
        )

    def encode_items(
        self, mm_encoder_outputs: dict[str, VideoLlamaFeaturesOutput], **inputs: torch.Tensor | None
    ) -> dict[str, VideoLlamaFeaturesOutput]:
        """What is seen and heard of the items that are given, by modality.

        Args:
            mm_encoder_outputs: What was encoded before.
            inputs: Inputs of `forward`, see there.

        Raises:
            ValueError: If a modality was given twice.
        """
        encoders = {
            "image": self.get_image_features,
            "video": self.get_video_features,
            "audio": self.get_audio_features,
        }
        encoded = {}
        for modality, names in ITEM_INPUTS.items():
            given = {name: inputs[name] for name in names if inputs.get(name) is not None}
            # A mask alone says nothing
            if any(not name.endswith("_mask") for name in given):
                check_not_encoded(mm_encoder_outputs, modality)
                encoded[modality] = encoders[modality](**given, return_dict=True)
        return encoded

    def get_placeholder_mask(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """Where the tokens of each modality belong.

        Args:
            input_ids: `(batch, length)`.
            inputs_embeds: `(batch, length, hidden_size)`, read if there are no `input_ids`. Placeholders are found in it by
                their embedding, so it can't hold those whose ids are beyond the vocabulary, as the released ones are.

        Returns:
            A boolean `(batch, length)` for each of "image", "video" and "audio".
        """
        token_ids = {modality: getattr(self.config, f"{modality}_token_id") for modality in MODALITIES}
        if input_ids is not None:
            return {modality: input_ids == token_id for modality, token_id in token_ids.items()}
        embedding = self.get_input_embeddings()
        masks = {}
        for modality, token_id in token_ids.items():
            if token_id < embedding.num_embeddings:
                token_embeds = embedding(torch.tensor(token_id, device=inputs_embeds.device))
                masks[modality] = (inputs_embeds == token_embeds).all(-1)
            else:
                masks[modality] = torch.zeros(inputs_embeds.shape[:2], dtype=torch.bool, device=inputs_embeds.device)
        return masks

    def merge_features(
        self, inputs_embeds: torch.Tensor, features: dict[str, torch.Tensor], masks: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Puts the tokens of what was seen and heard in the rows of their placeholders, in the order of the prompts.

        Args:
            inputs_embeds: `(batch, length, hidden_size)`.
            features: `(items, tokens, hidden_size)` by modality.
            masks: See `get_placeholder_mask`.

        Raises:
            PlaceholderError: If a modality has more or fewer placeholders than feature tokens. The original replaced
                what it could find.
        """
        # A new token is no placeholder, and a check would make the device wait in every step of generation
        is_prompt = bool(features) or inputs_embeds.shape[1] > 1
        for modality in MODALITIES:
            modality_features, mask = features.get(modality), masks[modality]
            if is_prompt and not torch.compiler.is_compiling():
                num_tokens = 0 if modality_features is None else modality_features.shape[:-1].numel()
                if num_tokens != (num_placeholders := int(mask.sum())):
                    raise PlaceholderError(
                        f"The prompts hold {num_placeholders} {modality} placeholders (id "
                        f"{getattr(self.config, f'{modality}_token_id')}), but {num_tokens} {modality} feature tokens were "
                        f"given: pass each {modality} with its prompt, and don't truncate prompts through placeholders."
                    )
            if modality_features is not None:
                modality_features = modality_features.to(inputs_embeds.device, inputs_embeds.dtype)
                mask = mask.to(inputs_embeds.device).unsqueeze(-1)
                inputs_embeds = inputs_embeds.masked_scatter(mask, modality_features)
        return inputs_embeds

    @merge_with_config_defaults
    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        pixel_values_videos: torch.FloatTensor | None = None,
        video_frame_mask: torch.Tensor | None = None,
        input_features: torch.FloatTensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        audio_pixel_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        mm_encoder_outputs: dict[str, VideoLlamaFeaturesOutput] | None = None,
        image_embeds: torch.FloatTensor | None = None,
        video_frame_embeds: torch.FloatTensor | None = None,
        audio_segment_embeds: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | VideoLlamaModelOutputWithPast:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(images, channels, height, width)`, *optional*):
            Still images.
        pixel_values_videos (`torch.FloatTensor` of shape `(videos, frames, channels, height, width)`, *optional*):
            Frames, padded to the longest video.
        video_frame_mask (`torch.Tensor` of shape `(videos, frames)`, *optional*):
            1 where a frame is real. Absent, all are.
        input_features (`torch.FloatTensor` of shape `(sounds, segments, num_mel_bins, num_mel_frames)`, *optional*):
            Log-mel spectrograms of the segments, padded to the longest sound.
        input_features_mask (`torch.Tensor` of shape `(sounds, segments)`, *optional*):
            1 where a segment is real. Absent, all are.
        audio_pixel_values (`torch.FloatTensor` of shape `(sounds, segments, channels, height, width)`, *optional*):
            Frames in place of `input_features`: how the audio branch is trained.
        image_embeds (`torch.FloatTensor` of shape `(images, num_query_tokens, hidden_size)`, *optional*):
            What the frozen encoders gave for the images before, in place of `pixel_values`.
        video_frame_embeds (`torch.FloatTensor` of shape `(videos, frames, num_query_tokens, hidden_size)`, *optional*):
            What they gave for the frames before, in place of `pixel_values_videos`.
        audio_segment_embeds (`torch.FloatTensor` of shape `(sounds, segments, output_dim)`, *optional*):
            What frozen ImageBind gave for the segments or frames before, in place of `input_features`.
        mm_encoder_outputs (`dict[str, VideoLlamaFeaturesOutput]`, *optional*):
            What `get_image_features`, `get_video_features` and `get_audio_features` gave, as "image", "video" and "audio",
            in place of the inputs that they were given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")

        mm_encoder_outputs = {} if mm_encoder_outputs is None else dict(mm_encoder_outputs)
        for modality, output in mm_encoder_outputs.items():
            if modality not in MODALITIES or not (output is None or hasattr(output, "pooler_output")):
                raise ValueError(
                    f"mm_encoder_outputs holds a {type(output).__name__} as {modality!r}, expected what get_image_features, "
                    "get_video_features and get_audio_features give with return_dict=True, as 'image', 'video' and 'audio'."
                )
        mm_encoder_outputs |= self.encode_items(
            mm_encoder_outputs,
            pixel_values=pixel_values,
            image_embeds=image_embeds,
            pixel_values_videos=pixel_values_videos,
            video_frame_mask=video_frame_mask,
            video_frame_embeds=video_frame_embeds,
            input_features=input_features,
            input_features_mask=input_features_mask,
            audio_pixel_values=audio_pixel_values,
            audio_segment_embeds=audio_segment_embeds,
        )
        features = {
            modality: output.pooler_output for modality, output in mm_encoder_outputs.items() if output is not None
        }

        placeholder_masks = self.get_placeholder_mask(input_ids, inputs_embeds)
        if inputs_embeds is None:
            # The ids of placeholders may lie beyond the vocabulary. Their rows are replaced, so any token will do.
            is_placeholder = torch.stack(list(placeholder_masks.values())).any(0)
            inputs_embeds = self.get_input_embeddings()(input_ids.masked_fill(is_placeholder, 0))
        inputs_embeds = self.merge_features(inputs_embeds, features, placeholder_masks)

        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        return VideoLlamaModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=features.get("image"),
            video_hidden_states=features.get("video"),
            audio_hidden_states=features.get("audio"),
        )


class StopSequenceCriteria(StoppingCriteria):
    """Ends each row of a batch that ends with one of some token sequences (`StoppingCriteriaSub` of the original).

    Args:
        sequences: Token ids. The original stops Vicuna at `###` as `[835]` and as `[2277, 29937]`.
    """

    def __init__(self, sequences: list[list[int]]):
        self.sequences = sequences

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        is_done = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        for sequence in self.sequences:
            end = input_ids[:, -len(sequence) :]
            is_done |= (end == torch.tensor(sequence, device=input_ids.device)).all(-1)
        return is_done


@auto_docstring(custom_intro="Video-LLaMA with the language modelling head: answers about images, videos and sounds.")
class VideoLlamaForConditionalGeneration(VideoLlamaSharingMixin, VideoLlamaPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: VideoLlamaConfig):
        super().__init__(config)
        self.model = VideoLlamaModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def note_auto_classes(self) -> None:
        """Notes in the configuration what `trust_remote_code=True` loads; the library notes one Auto class of a class."""
        module = type(self).__module__.rsplit(".", 1)[-1]
        self.config.auto_map = {
            **(getattr(self.config, "auto_map", None) or {}),
            "AutoModel": f"{module}.{VideoLlamaModel.__name__}",
            "AutoModelForImageTextToText": f"{module}.{type(self).__name__}",
            "AutoModelForMultimodalLM": f"{module}.{type(self).__name__}",
        }

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> None:
        """See [`VideoLlamaSharingMixin.save_pretrained`]. The code goes with the weights, for `trust_remote_code=True`."""
        if self._auto_class is not None:
            self.note_auto_classes()
        super().save_pretrained(save_directory, **kwargs)

    @auto_docstring(custom_intro="Sees still images, see [`VideoLlamaModel.get_image_features`].")
    def get_image_features(
        self,
        pixel_values: torch.FloatTensor | None = None,
        image_embeds: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | VideoLlamaFeaturesOutput:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(images, channels, height, width)`, *optional*):
            Still images.
        image_embeds (`torch.FloatTensor` of shape `(images, num_query_tokens, hidden_size)`, *optional*):
            What the frozen encoders gave for the images before, in their place.
        """
        return self.model.get_image_features(pixel_values, image_embeds, **kwargs)

    @auto_docstring(custom_intro="Sees videos, see [`VideoLlamaModel.get_video_features`].")
    def get_video_features(
        self,
        pixel_values_videos: torch.FloatTensor | None = None,
        video_frame_mask: torch.Tensor | None = None,
        video_frame_embeds: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | VideoLlamaFeaturesOutput:
        r"""
        pixel_values_videos (`torch.FloatTensor` of shape `(videos, frames, channels, height, width)`, *optional*):
            Frames, padded to the longest video.
        video_frame_mask (`torch.Tensor` of shape `(videos, frames)`, *optional*):
            1 where a frame is real. Absent, all are.
        video_frame_embeds (`torch.FloatTensor` of shape `(videos, frames, num_query_tokens, hidden_size)`, *optional*):
            What the frozen encoders gave for the frames before, in their place.
        """
        return self.model.get_video_features(pixel_values_videos, video_frame_mask, video_frame_embeds, **kwargs)

    @auto_docstring(custom_intro="Hears sounds, see [`VideoLlamaModel.get_audio_features`].")
    def get_audio_features(
        self,
        input_features: torch.FloatTensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        audio_pixel_values: torch.FloatTensor | None = None,
        audio_segment_embeds: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | VideoLlamaFeaturesOutput:
        r"""
        input_features (`torch.FloatTensor` of shape `(sounds, segments, num_mel_bins, num_mel_frames)`, *optional*):
            Log-mel spectrograms of the segments, padded to the longest sound.
        input_features_mask (`torch.Tensor` of shape `(sounds, segments)`, *optional*):
            1 where a segment is real. Absent, all are.
        audio_pixel_values (`torch.FloatTensor` of shape `(sounds, segments, channels, height, width)`, *optional*):
            Frames in place of `input_features`: how the audio branch is trained.
        audio_segment_embeds (`torch.FloatTensor` of shape `(sounds, segments, output_dim)`, *optional*):
            What frozen ImageBind gave for the segments or frames before, in their place.
        """
        return self.model.get_audio_features(
            input_features, input_features_mask, audio_pixel_values, audio_segment_embeds, **kwargs
        )

    def _prepare_multimodal_encoder_kwargs_for_generation(self, model_kwargs: dict[str, Any]) -> dict[str, Any]:
        # The library encodes images and videos before it expands a batch to its beams or cuts a prompt into chunks, but
        # neither sounds nor features
        inputs = {name: model_kwargs.pop(name, None) for names in ITEM_INPUTS.values() for name in names}
        encoded = dict(model_kwargs.get("mm_encoder_outputs") or {})
        model_kwargs["mm_encoder_outputs"] = encoded | self.model.encode_items(encoded, **inputs)
        return model_kwargs

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.LongTensor,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        mm_encoder_outputs: dict[str, VideoLlamaFeaturesOutput] | None = None,
        **kwargs,
    ) -> dict[str, Any]:
        model_inputs = super().prepare_inputs_for_generation(
            input_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        # To the library, an assistant never reads a prompt for the first time, so it would not see and hear anything
        length = 0 if model_inputs.get("input_ids") is None else model_inputs["input_ids"].shape[1]
        if mm_encoder_outputs and length > 1 and past_key_values is not None and past_key_values.get_seq_length() == 0:
            model_inputs["mm_encoder_outputs"] = mm_encoder_outputs
        return model_inputs

    def _get_stopping_criteria(
        self,
        generation_config: GenerationConfig,
        stopping_criteria: StoppingCriteriaList | None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        **kwargs,
    ) -> StoppingCriteriaList:
        # The library finds stop strings by the tokenizer only. Without one, the checkpoint's own are found by their tokens
        sequences = getattr(generation_config, "stop_token_sequences", None)
        are_own = generation_config.stop_strings == self.generation_config.stop_strings
        if tokenizer is None and sequences and are_own:
            generation_config = copy.copy(generation_config)
            generation_config.stop_strings = None
            stopping_criteria = StoppingCriteriaList(stopping_criteria or [])
            stopping_criteria.append(StopSequenceCriteria(sequences))
        return super()._get_stopping_criteria(generation_config, stopping_criteria, tokenizer=tokenizer, **kwargs)

    def _expand_multimodal_outputs(
        self,
        input_ids: torch.LongTensor,
        mm_encoder_output: dict[str, VideoLlamaFeaturesOutput],
        expand_size: int = 1,
        inputs_embeds: torch.Tensor | None = None,
    ) -> dict[str, VideoLlamaFeaturesOutput]:
        # Each sample is repeated with all that it saw and heard: [A B | C] -> [A B | A B | C | C]
        masks = self.model.get_placeholder_mask(input_ids if input_ids.numel() else None, inputs_embeds)
        expanded = {}
        for modality, outputs in mm_encoder_output.items():
            if outputs is None:
                continue
            features = outputs.pooler_output  # (items, tokens, hidden_size)
            items_per_sample = masks[modality].sum(-1) // features.shape[1]
            if items_per_sample.sum() != features.shape[0]:
                raise PlaceholderError(
                    f"The prompts hold placeholders for {items_per_sample.tolist()} {modality} items, but "
                    f"{features.shape[0]} were given: pass each {modality} with its prompt."
                )
            groups = features.split(items_per_sample.tolist())
            expanded[modality] = copy.copy(outputs)
            expanded[modality].pooler_output = torch.cat([group.repeat(expand_size, 1, 1) for group in groups])
        return expanded

    @merge_with_config_defaults
    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        pixel_values_videos: torch.FloatTensor | None = None,
        video_frame_mask: torch.Tensor | None = None,
        input_features: torch.FloatTensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        audio_pixel_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        mm_encoder_outputs: dict[str, VideoLlamaFeaturesOutput] | None = None,
        image_embeds: torch.FloatTensor | None = None,
        video_frame_embeds: torch.FloatTensor | None = None,
        audio_segment_embeds: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | VideoLlamaCausalLMOutputWithPast:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(images, channels, height, width)`, *optional*):
            Still images.
        pixel_values_videos (`torch.FloatTensor` of shape `(videos, frames, channels, height, width)`, *optional*):
            Frames, padded to the longest video.
        video_frame_mask (`torch.Tensor` of shape `(videos, frames)`, *optional*):
            1 where a frame is real. Absent, all are.
        input_features (`torch.FloatTensor` of shape `(sounds, segments, num_mel_bins, num_mel_frames)`, *optional*):
            Log-mel spectrograms of the segments, padded to the longest sound.
        input_features_mask (`torch.Tensor` of shape `(sounds, segments)`, *optional*):
            1 where a segment is real. Absent, all are.
        audio_pixel_values (`torch.FloatTensor` of shape `(sounds, segments, channels, height, width)`, *optional*):
            Frames in place of `input_features`: how the audio branch is trained.
        image_embeds (`torch.FloatTensor` of shape `(images, num_query_tokens, hidden_size)`, *optional*):
            What the frozen encoders gave for the images before, in place of `pixel_values`.
        video_frame_embeds (`torch.FloatTensor` of shape `(videos, frames, num_query_tokens, hidden_size)`, *optional*):
            What they gave for the frames before, in place of `pixel_values_videos`.
        audio_segment_embeds (`torch.FloatTensor` of shape `(sounds, segments, output_dim)`, *optional*):
            What frozen ImageBind gave for the segments or frames before, in place of `input_features`.
        labels (`torch.LongTensor` of shape `(batch, length)`, *optional*):
            Tokens to predict; -100 is ignored, and so are placeholders.
        mm_encoder_outputs (`dict[str, VideoLlamaFeaturesOutput]`, *optional*):
            What `get_image_features`, `get_video_features` and `get_audio_features` gave, as "image", "video" and "audio",
            in place of the inputs that they were given.

        Example:

        ```python
        >>> from transformers import AutoProcessor
        >>> from transformers_videollama import VideoLlamaForConditionalGeneration

        >>> model = VideoLlamaForConditionalGeneration.from_pretrained("path/to/converted", device_map="auto")
        >>> processor = AutoProcessor.from_pretrained("path/to/converted")
        >>> question = [{"type": "video", "path": "clip.mp4"}, {"type": "text", "text": "What do you see and hear?"}]
        >>> inputs = processor.apply_chat_template(
        ...     [{"role": "user", "content": question}],
        ...     load_audio_from_video=True,
        ...     add_generation_prompt=True,
        ...     tokenize=True,
        ...     return_dict=True,
        ...     return_tensors="pt",
        ... ).to(model.device)
        >>> output_ids = model.generate(**inputs, max_new_tokens=64)
        >>> processor.decode(output_ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        ```"""
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            pixel_values_videos=pixel_values_videos,
            video_frame_mask=video_frame_mask,
            input_features=input_features,
            input_features_mask=input_features_mask,
            audio_pixel_values=audio_pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            mm_encoder_outputs=mm_encoder_outputs,
            image_embeds=image_embeds,
            video_frame_embeds=video_frame_embeds,
            audio_segment_embeds=audio_segment_embeds,
            return_dict=True,
            **kwargs,
        )
        slice_indices = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, slice_indices, :])
        loss = None
        if labels is not None:
            for modality in MODALITIES:  # what is seen and heard is not predicted
                labels = labels.masked_fill(labels == getattr(self.config, f"{modality}_token_id"), -100)
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        return VideoLlamaCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
            video_hidden_states=outputs.video_hidden_states,
            audio_hidden_states=outputs.audio_hidden_states,
        )


__all__ = [
    "VideoLlamaForConditionalGeneration",
    "VideoLlamaModel",
    "VideoLlamaPreTrainedModel",
    "VideoLlamaQFormerModel",
    "VideoLlamaVisionModel",
]
