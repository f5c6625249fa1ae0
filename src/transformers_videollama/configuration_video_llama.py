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
"""Configuration of Video-LLaMA (https://huggingface.co/papers/2306.02858): one class per role.

The defaults are the sizes of the released 7B model. Other sizes are data: `configs/*.json`.
"""

import os
from dataclasses import field
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import CONFIG_NAME, auto_docstring

from .exceptions import CheckpointError


@auto_docstring(
    custom_intro="Configuration of [`VideoLlamaVisionModel`], the ViT-G/14 of EVA-CLIP that BLIP-2 uses.",
    checkpoint="DAMO-NLP-SG/Video-LLaMA-2-7B-Finetuned",
)
@strict
class VideoLlamaVisionConfig(PreTrainedConfig):
    r"""
    drop_path_rate (`float`, *optional*, defaults to 0.0):
        Stochastic depth rate of the last layer; it grows linearly from 0 at the first one.
    post_layernorm_eps (`float`, *optional*, defaults to 1e-05):
        Epsilon of the LayerNorm after the last layer (the original's `ln_vision`). The layers use `layer_norm_eps`.
    key_bias (`bool`, *optional*, defaults to `False`):
        Whether the key projections have a bias. EVA-CLIP biases queries and values only.
    add_bias_kv (`bool`, *optional*, defaults to `False`):
        Whether every self-attention has one more, learned, key and value.
    """

    model_type = "video_llama_vision"
    base_config_key = "vision_config"

    hidden_size: int = 1408
    intermediate_size: int = 6144
    num_hidden_layers: int = 39
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 14
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    post_layernorm_eps: float = 1e-5
    attention_dropout: float | int = 0.0
    drop_path_rate: float | int = 0.0
    key_bias: bool = False
    add_bias_kv: bool = False
    initializer_range: float = 0.02


@auto_docstring(
    custom_intro="Configuration of [`VideoLlamaQFormerModel`] in its first role: it reads one frame.",
    checkpoint="DAMO-NLP-SG/Video-LLaMA-2-7B-Finetuned",
)
@strict
class VideoLlamaQFormerConfig(PreTrainedConfig):
    r"""
    encoder_hidden_size (`int`, *optional*, defaults to 1408):
        Width of the hidden states that the queries attend to.
    cross_attention_frequency (`int`, *optional*, defaults to 2):
        A layer has cross-attention where its index is a multiple of this.
    """

    model_type = "video_llama_qformer"
    base_config_key = "qformer_config"
    attribute_map = {"attention_dropout": "attention_probs_dropout_prob"}

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    encoder_hidden_size: int = 1408
    cross_attention_frequency: int = 2
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    initializer_range: float = 0.02


@auto_docstring(
    custom_intro="Configuration of [`VideoLlamaQFormerModel`] in its second role: it reads the frames of a video.",
    checkpoint="DAMO-NLP-SG/Video-LLaMA-2-7B-Finetuned",
)
@strict
class VideoLlamaVideoQFormerConfig(VideoLlamaQFormerConfig):
    r"""
    encoder_hidden_size (`int`, *optional*, defaults to 768):
        Width of the hidden states that the queries attend to: what the frame Q-Former gives.
    cross_attention_frequency (`int`, *optional*, defaults to 1):
        A layer has cross-attention where its index is a multiple of this.
    """

    model_type = "video_llama_video_qformer"
    base_config_key = "video_qformer_config"

    num_hidden_layers: int = 2
    encoder_hidden_size: int = 768
    cross_attention_frequency: int = 1


@auto_docstring(
    custom_intro="Configuration of [`VideoLlamaQFormerModel`] in its third role: it reads the segments of a sound.",
    checkpoint="DAMO-NLP-SG/Video-LLaMA-2-7B-Finetuned",
)
@strict
class VideoLlamaAudioQFormerConfig(VideoLlamaQFormerConfig):
    r"""
    encoder_hidden_size (`int`, *optional*, defaults to 1024):
        Width of the hidden states that the queries attend to: the ImageBind embedding.
    cross_attention_frequency (`int`, *optional*, defaults to 1):
        A layer has cross-attention where its index is a multiple of this.
    """

    model_type = "video_llama_audio_qformer"
    base_config_key = "audio_qformer_config"

    num_hidden_layers: int = 2
    encoder_hidden_size: int = 1024
    cross_attention_frequency: int = 1


@auto_docstring(
    custom_intro="Configuration of [`ImageBindVisionModel`].",
    checkpoint="DAMO-NLP-SG/Video-LLaMA-2-7B-Finetuned",
)
@strict
class ImageBindVisionConfig(PreTrainedConfig):
    r"""
    temporal_patch_size (`int`, *optional*, defaults to 2):
        Frames under one patch. An image is repeated that often.
    drop_path_rate (`float`, *optional*, defaults to 0.0):
        Stochastic depth rate of the last layer; it grows linearly from 0 at the first one.
    key_bias (`bool`, *optional*, defaults to `True`):
        Whether the key projections have a bias.
    add_bias_kv (`bool`, *optional*, defaults to `False`):
        Whether every self-attention has one more, learned, key and value.
    """

    model_type = "imagebind_vision"
    base_config_key = "vision_config"

    hidden_size: int = 1280
    intermediate_size: int = 5120
    num_hidden_layers: int = 32
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 14
    temporal_patch_size: int = 2
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    attention_dropout: float | int = 0.0
    drop_path_rate: float | int = 0.0
    key_bias: bool = True
    add_bias_kv: bool = False
    initializer_range: float = 0.02


@auto_docstring(
    custom_intro="Configuration of [`ImageBindAudioModel`].",
    checkpoint="DAMO-NLP-SG/Video-LLaMA-2-7B-Finetuned",
)
@strict
class ImageBindAudioConfig(PreTrainedConfig):
    r"""
    num_mel_frames (`int`, *optional*, defaults to 204):
        Number of 10 ms spectrogram frames of one segment.
    kernel_size (`int`, *optional*, defaults to 16):
        Side of a square spectrogram patch.
    stride (`int`, *optional*, defaults to 10):
        Distance between neighbouring patches: they overlap.
    stem_layer_norm_eps (`float`, *optional*, defaults to 1e-05):
        Epsilon of the LayerNorm on the patch embeddings. The layers use `layer_norm_eps`.
    drop_path_rate (`float`, *optional*, defaults to 0.1):
        Stochastic depth rate of the last layer; it grows linearly from 0 at the first one.
    key_bias (`bool`, *optional*, defaults to `True`):
        Whether the key projections have a bias.
    add_bias_kv (`bool`, *optional*, defaults to `True`):
        Whether every self-attention has one more, learned, key and value.
    """

    model_type = "imagebind_audio"
    base_config_key = "audio_config"

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_mel_bins: int = 128
    num_mel_frames: int = 204
    kernel_size: int = 16
    stride: int = 10
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    stem_layer_norm_eps: float = 1e-5
    attention_dropout: float | int = 0.0
    drop_path_rate: float | int = 0.1
    key_bias: bool = True
    add_bias_kv: bool = True
    initializer_range: float = 0.02


@auto_docstring(
    custom_intro="Configuration of [`ImageBindModel`]: its two trunks and their joint space.",
    checkpoint="DAMO-NLP-SG/Video-LLaMA-2-7B-Finetuned",
)
@strict
class ImageBindConfig(PreTrainedConfig):
    r"""
    vision_config (`dict` or `ImageBindVisionConfig`, *optional*):
        The vision trunk. `None` leaves it out: sound needs the audio trunk alone.
    output_dim (`int`, *optional*, defaults to 1024):
        Width of the embedding that the modalities share.
    audio_logit_scale (`float`, *optional*, defaults to 20.0):
        Fixed factor on the normalised audio embeddings. The vision embeddings have none.
    """

    model_type = "imagebind"
    sub_configs_defaults = {
        "audio_config": ImageBindAudioConfig,
        "vision_config": SubConfigSpec(config_class=ImageBindVisionConfig, optional=True),
    }

    audio_config: dict | PreTrainedConfig | None = None
    # An absent vision trunk is `None`, so the released one has to be the default rather than what `None` stands for
    vision_config: dict | PreTrainedConfig | None = field(default_factory=dict)
    output_dim: int = 1024
    audio_logit_scale: float | int = 20.0
    initializer_range: float = 0.02


@auto_docstring(
    custom_intro="Configuration of the [`ImageBindModel`] in [`VideoLlamaModel`].",
    checkpoint="DAMO-NLP-SG/Video-LLaMA-2-7B-Finetuned",
)
@strict
class VideoLlamaAudioConfig(ImageBindConfig):
    r"""
    vision_config (`dict` or `ImageBindVisionConfig`, *optional*):
        The vision trunk, on which the audio branch is trained. `None` leaves it out of a model that is only used.
    output_dim (`int`, *optional*, defaults to 1024):
        Width of the embedding that the modalities share.
    audio_logit_scale (`float`, *optional*, defaults to 20.0):
        Fixed factor on the normalised audio embeddings. The vision embeddings have none.
    """

    # No `base_config_key`: this has an `audio_config` itself, so the library finds it in another's by the `model_type`
    model_type = "video_llama_audio"


@auto_docstring(
    custom_intro="Configuration of [`VideoLlamaModel`] and [`VideoLlamaForConditionalGeneration`].",
    checkpoint="DAMO-NLP-SG/Video-LLaMA-2-7B-Finetuned",
)
@strict
class VideoLlamaConfig(PreTrainedConfig):
    r"""
    qformer_config (`dict` or `VideoLlamaQFormerConfig`, *optional*):
        The BLIP-2 Q-Former that reads one frame.
    video_qformer_config (`dict` or `VideoLlamaVideoQFormerConfig`, *optional*):
        The Q-Former that reads the frames of a video.
    audio_config (`dict` or `VideoLlamaAudioConfig`, *optional*):
        ImageBind. `None` gives a model without the audio branch.
    audio_qformer_config (`dict` or `VideoLlamaAudioQFormerConfig`, *optional*):
        The Q-Former that reads the segments of a sound. Unused where `audio_config` is `None`.
    num_query_tokens (`int`, *optional*, defaults to 32):
        Number of tokens that the frame Q-Former gives for each frame.
    num_video_query_tokens (`int`, *optional*, defaults to 32):
        Number of tokens that LLaMA is given for an image or a video.
    num_audio_query_tokens (`int`, *optional*, defaults to 8):
        Number of tokens that LLaMA is given for a sound.
    max_frame_positions (`int`, *optional*, defaults to 32):
        Rows of the frame position table; longer videos interpolate it.
    max_audio_positions (`int`, *optional*, defaults to 8):
        Rows of the segment position table; longer sounds interpolate it.
    provenance (`dict`, *optional*):
        What the weights were converted from, for the model card: `release` (`str` or `None`, its repository on the Hub),
        `prompt_family` ("vicuna" or "llama_2") and `sources`, a list of `{"file": str, "sha256": str, "bytes": int}`. `None`
        for a model that was not converted. Nothing is computed from it.

    Example:

    ```python
    >>> from transformers_videollama import VideoLlamaConfig, VideoLlamaForConditionalGeneration

    >>> # The sizes of the released 7B model
    >>> configuration = VideoLlamaConfig()

    >>> # The same without the audio branch
    >>> configuration = VideoLlamaConfig(audio_config=None)
    ```"""

    model_type = "video_llama"
    sub_configs_defaults = {
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
        "vision_config": VideoLlamaVisionConfig,
        "qformer_config": VideoLlamaQFormerConfig,
        "video_qformer_config": VideoLlamaVideoQFormerConfig,
        "audio_config": SubConfigSpec(config_class=VideoLlamaAudioConfig, optional=True),
        "audio_qformer_config": VideoLlamaAudioQFormerConfig,
    }

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    qformer_config: dict | PreTrainedConfig | None = None
    video_qformer_config: dict | PreTrainedConfig | None = None
    # An absent audio branch is `None`, so the released one has to be the default rather than what `None` stands for
    audio_config: dict | PreTrainedConfig | None = field(default_factory=dict)
    audio_qformer_config: dict | PreTrainedConfig | None = None
    num_query_tokens: int = 32
    num_video_query_tokens: int = 32
    num_audio_query_tokens: int = 8
    max_frame_positions: int = 32
    max_audio_positions: int = 8
    provenance: dict | None = None
    # Beyond the 32000 tokens of LLaMA, whose embeddings are not resized: the model replaces them before the look-up
    image_token_id: int = 32000
    audio_token_id: int = 32001
    video_token_id: int = 32002
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs) -> "VideoLlamaConfig":
        """See [`~PreTrainedConfig.from_dict`].

        Raises:
            CheckpointError: If it is the configuration of another model, of which the library would take what fits.
        """
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise CheckpointError(
                f"{config_dict.get('_name_or_path') or 'The checkpoint'} is of the model type {model_type!r}, expected "
                f"{cls.model_type!r}: convert the original release first (videollama convert)."
            )
        return super().from_dict(config_dict, **kwargs)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """See [`~PreTrainedConfig.get_config_dict`].

        Raises:
            CheckpointError: If a local folder has no `config.json`.
        """
        if os.path.isdir(pretrained_model_name_or_path) and not kwargs.get("subfolder"):
            if not os.path.isfile(os.path.join(pretrained_model_name_or_path, CONFIG_NAME)):
                raise CheckpointError(
                    f"{pretrained_model_name_or_path} has no {CONFIG_NAME}, so it is no checkpoint of this package: convert "
                    "the original release first (videollama convert)."
                )
        return super().get_config_dict(pretrained_model_name_or_path, **kwargs)

    def validate_architecture(self):
        """Part of `@strict`-powered validation: what one part gives is what the next one reads."""
        joints = [
            ("qformer_config", self.qformer_config, "vision_config.hidden_size", self.vision_config.hidden_size),
            ("video_qformer_config", self.video_qformer_config, "qformer_config.hidden_size", self.qformer_config.hidden_size),
        ]  # fmt: skip
        if self.audio_config is not None:
            joints.append(
                ("audio_qformer_config", self.audio_qformer_config, "audio_config.output_dim", self.audio_config.output_dim)
            )  # fmt: skip
        for name, qformer_config, source, width in joints:
            if qformer_config.encoder_hidden_size != width:
                raise ValueError(
                    f"{name}.encoder_hidden_size is {qformer_config.encoder_hidden_size}, but {source}, which it reads, "
                    f"is {width}: set both to the same width."
                )


__all__ = [
    "ImageBindAudioConfig",
    "ImageBindConfig",
    "ImageBindVisionConfig",
    "VideoLlamaAudioConfig",
    "VideoLlamaAudioQFormerConfig",
    "VideoLlamaConfig",
    "VideoLlamaQFormerConfig",
    "VideoLlamaVideoQFormerConfig",
    "VideoLlamaVisionConfig",
]
