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
"""The attention of every part of Video-LLaMA but LLaMA, and the pre-norm encoder of ViT-G/14 and of ImageBind's trunks.

It stands apart because `modeling_video_llama` is built on `modeling_imagebind` and both are built on this.
"""

from collections.abc import Callable

import torch
from torch import nn
from torchvision.ops import StochasticDepth
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import is_flash_attention_requested


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in plain matrix products: the one implementation that can return its weights."""
    attn_weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        attn_weights = attn_weights + attention_mask
    attn_weights = nn.functional.softmax(attn_weights, dim=-1)
    attn_weights = nn.functional.dropout(attn_weights, p=dropout, training=module.training)
    attn_output = torch.matmul(attn_weights, value).transpose(1, 2).contiguous()
    return attn_output, attn_weights


class VideoLlamaAttention(nn.Module):
    """Multi-head attention without a causal mask: self-attention, or cross-attention where encoder states are given.

    Args:
        config: Of the part it belongs to; read are `hidden_size`, `num_attention_heads`, `attention_dropout`.
        encoder_hidden_size: Width of what the keys and values are made of; `hidden_size` if not given.
        key_bias: EVA-CLIP has no bias on its keys.
        add_bias_kv: One more, learned, key and value behind those of the sequence (ImageBind's sound trunk).
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        encoder_hidden_size: int | None = None,
        key_bias: bool = True,
        add_bias_kv: bool = False,
    ):
        super().__init__()
        if config.hidden_size % config.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads, got {config.hidden_size} and "
                f"{config.num_attention_heads} in {type(config).__name__}."
            )
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = False

        encoder_hidden_size = config.hidden_size if encoder_hidden_size is None else encoder_hidden_size
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(encoder_hidden_size, config.hidden_size, bias=key_bias)
        self.v_proj = nn.Linear(encoder_hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.bias_k = nn.Parameter(torch.zeros(1, 1, config.hidden_size)) if add_bias_kv else None
        self.bias_v = nn.Parameter(torch.zeros(1, 1, config.hidden_size)) if add_bias_kv else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        batch_size, query_length, _ = hidden_states.shape
        encoder_hidden_states = hidden_states if encoder_hidden_states is None else encoder_hidden_states

        query = self.q_proj(hidden_states)
        key = self.k_proj(encoder_hidden_states)
        value = self.v_proj(encoder_hidden_states)
        if self.bias_k is not None:
            key = torch.cat([key, self.bias_k.expand(batch_size, -1, -1)], dim=1)
            value = torch.cat([value, self.bias_v.expand(batch_size, -1, -1)], dim=1)

        if attention_mask is not None and is_flash_attention_requested(self.config):
            # The library's own unpadding takes the queries to be padded like the keys. Here only the keys are.
            lengths = attention_mask.sum(-1, dtype=torch.int32)
            query, key, value = (
                query.reshape(1, -1, query.shape[-1]),
                *(states[attention_mask.bool()].unsqueeze(0) for states in (key, value)),
            )
            kwargs |= {
                "cu_seq_lens_q": torch.arange(batch_size + 1, dtype=torch.int32, device=query.device) * query_length,
                "cu_seq_lens_k": nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0)),
                "max_length_q": query_length,
                "max_length_k": int(lengths.max()),
            }
            attention_mask = None

        # (batch, length, hidden_size) -> (batch, num_heads, length, head_dim)
        query, key, value = (
            states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for states in (query, key, value)
        )
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attn_output, attn_weights = attention_interface(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        attn_output = attn_output.reshape(batch_size, query_length, -1)
        return self.out_proj(attn_output), attn_weights


class VideoLlamaMLP(nn.Module):
    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation_fn(self.fc1(hidden_states)))


class VideoLlamaEncoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: PreTrainedConfig, drop_path_rate: float):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = VideoLlamaAttention(config, key_bias=config.key_bias, add_bias_kv=config.add_bias_kv)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = VideoLlamaMLP(config)
        self.drop_path = StochasticDepth(drop_path_rate, mode="row")

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        attn_output, _ = self.self_attn(self.layer_norm1(hidden_states), **kwargs)
        hidden_states = hidden_states + self.drop_path(attn_output)
        return hidden_states + self.drop_path(self.mlp(self.layer_norm2(hidden_states)))


class VideoLlamaEncoder(nn.ModuleList):
    """The layers of a pre-norm Transformer, without a norm at the end. A list, so that weights are named `layers.0.…`."""

    def __init__(self, config: PreTrainedConfig):
        drop_path_rates = torch.linspace(0, config.drop_path_rate, config.num_hidden_layers, device="cpu").tolist()
        super().__init__(VideoLlamaEncoderLayer(config, rate) for rate in drop_path_rates)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        for layer in self:
            hidden_states = layer(hidden_states, **kwargs)
        return hidden_states
