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
"""ImageBind (https://huggingface.co/papers/2305.05665): the two trunks, of six, that Video-LLaMA uses.

Sounds and images are embedded in one space. Video-LLaMA trains its audio branch on frames and uses it on sound.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, auto_docstring, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_video_llama import ImageBindAudioConfig, ImageBindConfig, ImageBindVisionConfig
from .modeling_video_llama_encoder import VideoLlamaAttention, VideoLlamaEncoder, VideoLlamaEncoderLayer


@auto_docstring
@dataclass
class ImageBindOutput(ModelOutput):
    r"""
    image_embeds (`torch.FloatTensor` of shape `(num_images, output_dim)`, *optional*):
        Normalised embeddings of the images.
    audio_embeds (`torch.FloatTensor` of shape `(num_segments, output_dim)`, *optional*):
        Normalised embeddings of the sound segments, times `config.audio_logit_scale`.
    vision_model_output (`BaseModelOutputWithPooling`, *optional*):
        Output of [`ImageBindVisionModel`].
    audio_model_output (`BaseModelOutputWithPooling`, *optional*):
        Output of [`ImageBindAudioModel`].
    """

    image_embeds: torch.FloatTensor | None = None
    audio_embeds: torch.FloatTensor | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None
    audio_model_output: BaseModelOutputWithPooling | None = None

    def to_tuple(self) -> tuple:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


class ImageBindVisionEmbeddings(nn.Module):
    def __init__(self, config: ImageBindVisionConfig):
        super().__init__()
        self.config = config
        patch_size = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.class_embedding = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.patch_embedding = nn.Conv3d(
            config.num_channels, config.hidden_size, kernel_size=patch_size, stride=patch_size, bias=False
        )
        num_patches = (config.image_size // config.patch_size) ** 2
        self.position_embedding = nn.Parameter(torch.zeros(1, num_patches + 1, config.hidden_size))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if pixel_values.shape[-2:] != (self.config.image_size, self.config.image_size):
            raise ValueError(
                f"Frames of {tuple(pixel_values.shape[-2:])} pixels were given to ImageBind, but it takes "
                f"{(self.config.image_size, self.config.image_size)}: resize them to that."
            )
        # (num_images, channels, height, width) -> (num_images, channels, temporal_patch_size, height, width)
        pixel_values = pixel_values.unsqueeze(2).expand(-1, -1, self.config.temporal_patch_size, -1, -1)
        patch_embeds = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))
        patch_embeds = patch_embeds.flatten(2).transpose(1, 2)  # (num_images, num_patches, hidden_size)
        class_embeds = self.class_embedding.expand(patch_embeds.shape[0], -1, -1)
        return torch.cat([class_embeds, patch_embeds], dim=1) + self.position_embedding


class ImageBindAudioEmbeddings(nn.Module):
    def __init__(self, config: ImageBindAudioConfig):
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.patch_embedding = nn.Conv2d(
            1, config.hidden_size, kernel_size=config.kernel_size, stride=config.stride, bias=False
        )
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.stem_layer_norm_eps)
        num_patches = ((config.num_mel_bins - config.kernel_size) // config.stride + 1) * (
            (config.num_mel_frames - config.kernel_size) // config.stride + 1
        )
        self.position_embedding = nn.Parameter(torch.zeros(1, num_patches + 1, config.hidden_size))

    def forward(self, input_features: torch.Tensor) -> torch.Tensor:
        # (num_segments, mel_bins, mel_frames) -> (num_segments, num_patches, hidden_size)
        patch_embeds = self.patch_embedding(input_features.unsqueeze(1).to(self.patch_embedding.weight.dtype))
        patch_embeds = self.layer_norm(patch_embeds.flatten(2).transpose(1, 2))
        class_embeds = self.class_embedding.expand(patch_embeds.shape[0], -1, -1)
        return torch.cat([class_embeds, patch_embeds], dim=1) + self.position_embedding


@auto_docstring
class ImageBindPreTrainedModel(PreTrainedModel):
    config: ImageBindConfig
    base_model_prefix = "imagebind"
    input_modalities = ("image", "audio")
    main_input_name = "input_features"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ImageBindVisionEmbeddings", "ImageBindAudioEmbeddings", "VideoLlamaEncoderLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": VideoLlamaEncoderLayer, "attentions": VideoLlamaAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, (ImageBindVisionEmbeddings, ImageBindAudioEmbeddings)):
            init.normal_(module.class_embedding, std=std)
            init.normal_(module.position_embedding, std=std)
        elif isinstance(module, VideoLlamaAttention) and module.bias_k is not None:
            init.normal_(module.bias_k, std=std)
            init.normal_(module.bias_v, std=std)


@auto_docstring(custom_intro="ImageBind's trunk for images, ViT-H/14, up to the normalised class token.")
class ImageBindVisionModel(ImageBindPreTrainedModel):
    config: ImageBindVisionConfig
    input_modalities = ("image",)
    main_input_name = "pixel_values"

    def __init__(self, config: ImageBindVisionConfig):
        super().__init__(config)
        self.embeddings = ImageBindVisionEmbeddings(config)
        self.pre_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layers = VideoLlamaEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
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
        hidden_states = self.pre_layernorm(self.embeddings(pixel_values))
        hidden_states = self.layers(hidden_states, **kwargs)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_states, pooler_output=self.post_layernorm(hidden_states[:, 0])
        )


@auto_docstring(
    custom_intro="ImageBind's trunk for 2 s of sound as a log-mel spectrogram, up to the normalised class token."
)
class ImageBindAudioModel(ImageBindPreTrainedModel):
    config: ImageBindAudioConfig
    input_modalities = ("audio",)

    def __init__(self, config: ImageBindAudioConfig):
        super().__init__(config)
        self.embeddings = ImageBindAudioEmbeddings(config)
        self.layers = VideoLlamaEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embedding

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    @auto_docstring
    def forward(
        self, input_features: torch.FloatTensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple | BaseModelOutputWithPooling:
        r"""
        input_features (`torch.FloatTensor` of shape `(num_segments, num_mel_bins, num_mel_frames)`):
            Log-mel spectrograms, see [`VideoLlamaFeatureExtractor`].
        """
        hidden_states = self.layers(self.embeddings(input_features), **kwargs)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_states, pooler_output=self.post_layernorm(hidden_states[:, 0])
        )


@auto_docstring(custom_intro="ImageBind's embeddings of images and of sounds in one space.")
class ImageBindModel(ImageBindPreTrainedModel):
    def __init__(self, config: ImageBindConfig):
        super().__init__(config)
        self.audio_model = ImageBindAudioModel(config.audio_config)
        self.audio_projection = nn.Linear(config.audio_config.hidden_size, config.output_dim, bias=False)
        # CODEPATH: every release has the vision trunk; checkpoints that are only used may leave it out.
        if config.vision_config is not None:
            self.vision_model = ImageBindVisionModel(config.vision_config)
            self.vision_projection = nn.Linear(config.vision_config.hidden_size, config.output_dim, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.audio_model.get_input_embeddings()

    def project_image(self, pooled_output: torch.Tensor) -> torch.Tensor:
        """`(num_images, hidden_size)` of the vision trunk to normalised `(num_images, output_dim)`."""
        return nn.functional.normalize(self.vision_projection(pooled_output), dim=-1)

    def project_audio(self, pooled_output: torch.Tensor) -> torch.Tensor:
        """`(num_segments, hidden_size)` of the audio trunk to normalised and scaled `(num_segments, output_dim)`."""
        return nn.functional.normalize(self.audio_projection(pooled_output), dim=-1) * self.config.audio_logit_scale

    @can_return_tuple
    @auto_docstring
    def get_image_features(
        self, pixel_values: torch.FloatTensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple | BaseModelOutputWithPooling:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(num_images, channels, height, width)`):
            Images of the size in the configuration.

        Returns the normalised embeddings of the images in `pooler_output`, of shape `(num_images, output_dim)`.
        """
        outputs = self(pixel_values=pixel_values, return_dict=True, **kwargs)
        return BaseModelOutputWithPooling(
            last_hidden_state=outputs.vision_model_output.last_hidden_state,
            pooler_output=outputs.image_embeds,
            hidden_states=outputs.vision_model_output.hidden_states,
            attentions=outputs.vision_model_output.attentions,
        )

    @can_return_tuple
    @auto_docstring
    def get_audio_features(
        self, input_features: torch.FloatTensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple | BaseModelOutputWithPooling:
        r"""
        input_features (`torch.FloatTensor` of shape `(num_segments, num_mel_bins, num_mel_frames)`):
            Log-mel spectrograms, see [`VideoLlamaFeatureExtractor`].

        Returns the normalised and scaled embeddings of the segments in `pooler_output`, of shape `(num_segments, output_dim)`.
        """
        outputs = self(input_features=input_features, return_dict=True, **kwargs)
        return BaseModelOutputWithPooling(
            last_hidden_state=outputs.audio_model_output.last_hidden_state,
            pooler_output=outputs.audio_embeds,
            hidden_states=outputs.audio_model_output.hidden_states,
            attentions=outputs.audio_model_output.attentions,
        )

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_features: torch.FloatTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | ImageBindOutput:
        r"""
        input_features (`torch.FloatTensor` of shape `(num_segments, num_mel_bins, num_mel_frames)`, *optional*):
            Log-mel spectrograms, see [`VideoLlamaFeatureExtractor`].
        pixel_values (`torch.FloatTensor` of shape `(num_images, channels, height, width)`, *optional*):
            Images of the size in the configuration.
        """
        if input_features is None and pixel_values is None:
            raise ValueError(
                "ImageBind was given nothing: pass `input_features` (sound), `pixel_values` (images) or both."
            )
        if pixel_values is not None and self.config.vision_config is None:
            raise ValueError(
                "This ImageBind has no vision trunk (`vision_config=None`), so it can't embed images: load or convert it "
                "with the vision trunk."
            )
        # The trunks go by configurations of their own: what this one asks for is handed on
        flags = ("output_attentions", "output_hidden_states")
        kwargs = {flag: value for flag in flags if (value := getattr(self.config, flag))} | kwargs
        audio_outputs = vision_outputs = None
        if input_features is not None:
            audio_outputs = self.audio_model(input_features, return_dict=True, **kwargs)
        if pixel_values is not None:
            vision_outputs = self.vision_model(pixel_values, return_dict=True, **kwargs)
        return ImageBindOutput(
            image_embeds=None if vision_outputs is None else self.project_image(vision_outputs.pooler_output),
            audio_embeds=None if audio_outputs is None else self.project_audio(audio_outputs.pooler_output),
            vision_model_output=vision_outputs,
            audio_model_output=audio_outputs,
        )


__all__ = ["ImageBindAudioModel", "ImageBindModel", "ImageBindPreTrainedModel", "ImageBindVisionModel"]
