# SPDX-License-Identifier: Apache-2.0
"""Every stage of the original, from its own checkpoint through our converter, within 1e-5 + 1e-4·|x| in float32."""

import json
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file

from transformers_videollama import VideoLlamaForConditionalGeneration
from transformers_videollama.conversion.rules import interpolate_position_embedding

from ..helpers import PARITY


ATOL, RTOL, LOSS_ATOL = 1e-5, 1e-4, 1e-5
PLACEHOLDER = 32000  # the original's, for whatever it sees or hears

EXPECTED = load_file(PARITY / "expected.safetensors")
INPUTS = load_file(PARITY / "inputs.safetensors")
TEXTS = json.loads((PARITY / "texts.json").read_text())
VISION_INPUTS = {"video": INPUTS["video"].transpose(1, 2), "image": INPUTS["image"].transpose(1, 2)}
FRAMES_224 = INPUTS["video224"].float().transpose(1, 2)

Stages = dict[str, torch.Tensor]


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def model(request, converted) -> VideoLlamaForConditionalGeneration:
    return VideoLlamaForConditionalGeneration.from_pretrained(
        converted, dtype=torch.float32, attn_implementation=request.param
    ).eval()


def record(module: torch.nn.Module, run: Callable, *args, **kwargs) -> tuple:
    """What a function returns, and what a module inside of it did."""
    outputs = []
    handle = module.register_forward_hook(
        lambda module, args, kwargs, output: outputs.append((kwargs, output)), with_kwargs=True
    )
    try:
        return run(*args, **kwargs), outputs[0]
    finally:
        handle.remove()


def vision_stages(model, name: str) -> Stages:
    patch_embedding = model.model.vision_tower.embeddings.patch_embedding
    output, (_, patches) = record(
        patch_embedding, model.get_video_features, VISION_INPUTS[name], output_hidden_states=True
    )
    stages = {
        "vit_patch_embed": patches.flatten(2).transpose(1, 2),
        "ln_vision": output.vision_outputs.last_hidden_state,
        "blip2_qformer": output.qformer_outputs.last_hidden_state,
        "frame_hidden_state": output.frame_hidden_states,
        "video_qformer": output.video_qformer_outputs.last_hidden_state,
        "llama_proj": output.pooler_output,
        "atts": torch.ones(output.pooler_output.shape[:2], dtype=torch.long),
    }
    layers = {
        "vit_block": output.vision_outputs,
        "blip2_qformer_layer": output.qformer_outputs,
        "video_qformer_layer": output.video_qformer_outputs,
    }
    for layer_name, outputs in layers.items():
        for index, hidden_state in enumerate(outputs.hidden_states[1:]):
            stages[f"{layer_name}_{index}"] = hidden_state
    return {f"{name}.{stage}": value for stage, value in stages.items()}


def audio_stages(model, name: str) -> Stages:
    if name == "audio":
        inputs, trunk_name, embeds_name = {"input_features": INPUTS["audio"].squeeze(2)}, "audio_model", "audio_embeds"
    else:
        inputs, trunk_name, embeds_name = {"audio_pixel_values": FRAMES_224}, "vision_model", "image_embeds"
    embeddings = getattr(model.model.audio_tower, trunk_name).embeddings
    output, (_, tokens) = record(embeddings, model.get_audio_features, **inputs, output_hidden_states=True)
    trunk_outputs = output.audio_outputs[f"{trunk_name}_output"]
    stages = {
        "tokens": tokens,
        "trunk": output.last_hidden_state,
        "feature": trunk_outputs.pooler_output,
        "final": output.audio_outputs[embeds_name],
        "qformer_in": output.segment_hidden_states,
        "audio_qformer": output.audio_qformer_outputs.last_hidden_state,
        "audio_llama_proj": output.pooler_output,
        "atts": torch.ones(output.pooler_output.shape[:2], dtype=torch.long),
    }
    stages |= {f"block_{index}": hidden_state for index, hidden_state in enumerate(trunk_outputs.hidden_states[1:])}
    return {f"{name}.{stage}": value for stage, value in stages.items()}


def language_stages(model, name: str, **inputs) -> Stages:
    output, (language_inputs, language_output) = record(model.model.language_model, model, **inputs)
    logits = output.logits
    stages = {
        "inputs_embeds": language_inputs["inputs_embeds"],
        "attention_mask": inputs["attention_mask"],
        "hidden": language_output.last_hidden_state,
        "logits_sub": logits[..., EXPECTED["logits_vocab_idx"]],
        "logits_lse": logits.logsumexp(-1),
        "logits_argmax": logits.argmax(-1),
    }
    if "labels" in inputs:
        stages |= {"labels": inputs["labels"], "loss": output.loss}
    return {f"{name}.{stage}": value for stage, value in stages.items()}


def seen_or_heard(model, name: str, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Inputs of a training batch of the original, whose one placeholder here has a name for each modality."""
    _, train_flag, kind, *_ = name.split(".")
    if train_flag == "flag1":  # the audio branch, on frames
        frames = FRAMES_224 if kind == "video" else FRAMES_224[:, :1]
        modality, inputs = "audio", {"audio_pixel_values": frames}
    elif kind == "video":
        modality, inputs = "video", {"pixel_values_videos": VISION_INPUTS["video"]}
    else:
        modality, inputs = "image", {"pixel_values": VISION_INPUTS["image"].squeeze(1)}
    token_id = getattr(model.config, f"{modality}_token_id")
    return {"input_ids": input_ids.masked_fill(input_ids == PLACEHOLDER, token_id), **inputs}


def conversation_stages(model) -> Stages:
    """The conversations of training stage 2."""
    stages = {}
    for key, input_ids in INPUTS.items():
        if key.startswith("multi.") and key.endswith(".input_ids"):
            name = key.removesuffix(".input_ids")
            stages |= language_stages(
                model,
                name,
                **seen_or_heard(model, name, input_ids),
                attention_mask=EXPECTED[f"{name}.attention_mask"],
                labels=EXPECTED[f"{name}.labels"],
            )
    return stages


def caption_stages(model, tokenizer) -> Stages:
    """The captions of training stage 1, and of stage 2 with a prompt around the picture."""

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    stages = {}
    for name, text in TEXTS.items():
        if not name.startswith("caption."):
            continue
        num_tokens = model.config.num_audio_query_tokens if "flag1" in name else model.config.num_video_query_tokens
        before, after = (text["prompt"] or "<ImageHere>").split("<ImageHere>")
        prompt = [tokenizer.bos_token_id, *encode(before), *[PLACEHOLDER] * num_tokens, *encode(after)]
        captions = [encode(caption + text["end_sym"])[: text["max_txt_len"]] for caption in text["text_input"]]
        length = max(map(len, captions))
        input_ids = torch.tensor([prompt + caption + [0] * (length - len(caption)) for caption in captions])
        attention_mask = torch.tensor(
            [[1] * (len(prompt) + len(caption)) + [0] * (length - len(caption)) for caption in captions]
        )
        labels = torch.tensor(
            [[-100] * len(prompt) + caption + [-100] * (length - len(caption)) for caption in captions]
        )
        stages |= language_stages(
            model, name, **seen_or_heard(model, name, input_ids), attention_mask=attention_mask, labels=labels
        )
    return stages


def generation_stages(model, tokenizer) -> Stages:
    """The original's chat: two prompt families, video, video with sound, image, one turn and two, 12 greedy tokens."""
    sources = {
        "video.llama_proj": ("<VideoHere>", "pixel_values_videos", VISION_INPUTS["video"]),
        "image.llama_proj": ("<ImageHere>", "pixel_values", VISION_INPUTS["image"].squeeze(1)),
        "audio.audio_llama_proj": ("<AudioHere>", "input_features", INPUTS["audio"].squeeze(2)),
    }
    stages = {}
    for name, text in TEXTS.items():
        if not name.startswith("gen."):
            continue
        prompt, inputs = text["prompt"], {}
        for source in text["image_list"]:
            source, index = source.removesuffix("]").split("[")
            token, key, values = sources[source]
            number = model.config.num_audio_query_tokens if "Audio" in token else model.config.num_video_query_tokens
            prompt = (
                prompt.replace("<ImageHere>", token * number, 1)
                if token != "<ImageHere>"
                else prompt.replace(token, token * number)
            )
            inputs[key] = values[int(index)].unsqueeze(0)
        inputs |= tokenizer(prompt, return_tensors="pt")
        length = inputs["input_ids"].shape[1]
        (output, (language_inputs, _)) = record(
            model.model.language_model,
            model.generate,
            **inputs,
            do_sample=False,
            max_new_tokens=12,
            output_logits=True,
            return_dict_in_generate=True,
        )
        best_two = torch.stack(output.logits, dim=1)[0].topk(2).values
        # transformers 4.28 put a BOS before what it generated from embeddings
        sequences = torch.cat([torch.tensor([[tokenizer.bos_token_id]]), output.sequences[:, length:]], dim=1)
        stages |= {
            f"{name}.context_emb": language_inputs["inputs_embeds"],
            f"{name}.sequences": sequences,
            f"{name}.margin": best_two[:, 0] - best_two[:, 1],
        }
    return stages


@torch.no_grad()
def all_stages(model, tokenizer) -> Stages:
    stages = {"logits_vocab_idx": EXPECTED["logits_vocab_idx"]}
    grid_size = model.config.vision_config.image_size // model.config.vision_config.patch_size
    stages["interp.pos_embed"] = interpolate_position_embedding(INPUTS["interp.pos_embed_16x16"], grid_size)
    for name in ("video", "image"):
        stages |= vision_stages(model, name)
    for name in ("audio", "ibvision"):
        stages |= audio_stages(model, name)
    input_ids = INPUTS["llama_text.input_ids"]
    stages |= language_stages(model, "llama_text", input_ids=input_ids, attention_mask=torch.ones_like(input_ids))
    stages |= conversation_stages(model)
    stages |= caption_stages(model, tokenizer)
    stages |= generation_stages(model, tokenizer)
    return stages


def at_real_positions(name: str, value: torch.Tensor) -> torch.Tensor:
    """Without the padding of a batch, where the original's values mean nothing."""
    mask = EXPECTED.get(f"{name.rpartition('.')[0]}.attention_mask")
    if mask is None or value.shape[:2] != mask.shape or name.endswith("attention_mask"):
        return value
    return value[mask.bool()]


def test_every_stage_of_the_original_is_reproduced(model, processor):
    stages = all_stages(model, processor.tokenizer)

    assert stages.keys() == EXPECTED.keys()
    failures = []
    for name, expected in EXPECTED.items():
        value = stages[name].reshape(expected.shape)
        if name.endswith(".loss"):
            is_equal = torch.allclose(value, expected, atol=LOSS_ATOL, rtol=0)
        elif expected.is_floating_point():
            value, expected = at_real_positions(name, value), at_real_positions(name, expected)
            is_equal = torch.allclose(value, expected, atol=ATOL, rtol=RTOL)
        else:
            is_equal = torch.equal(at_real_positions(name, value), at_real_positions(name, expected))
        if not is_equal:
            failures.append(f"{name}: max |Δ| {(value - expected).abs().max():.3g}")
    assert not failures, "\n".join(failures)
