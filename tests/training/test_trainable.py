# SPDX-License-Identifier: Apache-2.0
"""What is trained, what is frozen, and features that were computed before."""

import pytest
import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from transformers_videollama import VideoLlamaConfig, VideoLlamaForConditionalGeneration
from transformers_videollama.modeling_video_llama import BRANCHES

from ..helpers import tiny_config


# Published counts of the 7B model (paper's code)
PUBLISHED = {"vision_branch": 22_104_064, "audio_branch": 22_855_680}


def trained(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.fixture(scope="module")
def full_size_model():
    with torch.device("meta"):
        return VideoLlamaForConditionalGeneration(VideoLlamaConfig(text_config={"model_type": "llama"}))


@pytest.mark.parametrize("branch", BRANCHES)
def test_trained_parameters_of_full_size_are_as_many_as_published(full_size_model, branch):
    full_size_model.set_trainable(branch)
    assert sum(part.num_trainable for part in full_size_model.trainable_parts()) == PUBLISHED[branch]
    full_size_model.set_trainable("both")
    assert full_size_model.num_parameters(only_trainable=True) == sum(PUBLISHED.values())


def test_all_but_what_is_named_is_frozen(tiny_model):
    tiny_model.set_trainable("audio_branch")
    parts = {name.split(".")[1] for name in trained(tiny_model)}
    assert parts == set(BRANCHES["audio_branch"])
    tiny_model.set_trainable("language_model.layers.1", "model.video_projection.bias", "lm_head")
    assert trained(tiny_model) == {
        *(
            f"model.language_model.layers.1.{name}"
            for name, _ in tiny_model.model.language_model.layers[1].named_parameters()
        ),
        "model.video_projection.bias",
        "lm_head.weight",
    }
    tiny_model.set_trainable()
    assert not trained(tiny_model)


def test_base_model_takes_the_same_names(tiny_model):
    tiny_model.model.set_trainable("vision_branch")
    assert {name.split(".")[1] for name in trained(tiny_model) - {"lm_head.weight"}} == set(BRANCHES["vision_branch"])


def test_unknown_parts_are_refused_and_nothing_changes(tiny_model):
    before = trained(tiny_model)
    with pytest.raises(ValueError, match=r"no part 'video_qfromer'.*video_qformer.*vision_branch"):
        tiny_model.set_trainable("vision_branch", "video_qfromer")
    assert trained(tiny_model) == before
    deaf = VideoLlamaForConditionalGeneration(tiny_config(audio_config=None))
    with pytest.raises(ValueError, match=r"no part 'audio_qformer' \(asked for by set_trainable\('both'\)\)"):
        deaf.set_trainable("both")


def test_table_holds_every_parameter_once(tiny_model):
    tiny_model.set_trainable("both")
    parts = {part.name: part for part in tiny_model.trainable_parts()}
    assert sum(part.num_parameters for part in parts.values()) == tiny_model.num_parameters()
    assert parts["vision_tower"].num_trainable == parts["lm_head"].num_trainable == 0
    assert parts["video_qformer"].num_trainable == parts["video_qformer"].num_parameters > 0


def test_frozen_parts_stay_in_evaluation_mode(tiny_model):
    tiny_model.set_trainable("vision_branch")
    tiny_model.train()
    assert tiny_model.training
    for name, module in tiny_model.named_modules():
        flags = {parameter.requires_grad for parameter in module.parameters()}
        if flags == {False}:
            assert not any(part.training for part in module.modules()), name
        elif True in flags:
            assert module.training, name
    assert tiny_model.model.video_qformer.dropout.training
    assert not tiny_model.model.qformer.dropout.training
    assert not any(module.training for module in tiny_model.eval().modules())


def test_mode_follows_what_is_chosen_while_training(tiny_model):
    tiny_model.train()
    assert tiny_model.model.qformer.training
    tiny_model.set_trainable("audio_branch")
    assert not tiny_model.model.qformer.training
    tiny_model.set_trainable("qformer")
    assert tiny_model.model.qformer.training
    tiny_model.requires_grad_(True).train()
    assert all(module.training for module in tiny_model.modules())


def items(config, generator) -> dict[str, torch.Tensor]:
    """One image, one video of two frames out of three, and one sound."""
    ids = {"image": config.num_video_query_tokens, "video": config.num_video_query_tokens}
    ids["audio"] = config.num_audio_query_tokens
    placeholders = [getattr(config, f"{name}_token_id") for name, count in ids.items() for _ in range(count)]
    size, heard_size = config.vision_config.image_size, config.audio_config.vision_config.image_size
    return {
        "input_ids": torch.tensor([[1, *placeholders, 5, 6, 7]]),
        "labels": torch.tensor([[-100, *[-100] * len(placeholders), 5, 6, 7]]),
        "pixel_values": torch.randn(1, 3, size, size, generator=generator),
        "pixel_values_videos": torch.randn(1, 3, 3, size, size, generator=generator),
        "video_frame_mask": torch.tensor([[1, 1, 0]]),
        "audio_pixel_values": torch.randn(1, 8, 3, heard_size, heard_size, generator=generator),
    }


@pytest.fixture
def converted_model(converted):
    return VideoLlamaForConditionalGeneration.from_pretrained(converted, dtype=torch.float32)


@pytest.fixture
def inputs(converted_model):
    return items(converted_model.config, torch.Generator().manual_seed(0))


def test_frozen_parts_are_not_random_under_train(converted_model, inputs):
    converted_model.set_trainable("lm_head")
    converted_model.eval()
    expected = converted_model(**inputs).loss
    converted_model.train()
    assert torch.equal(converted_model(**inputs).loss, expected)
    converted_model.set_trainable("qformer")
    assert not torch.equal(converted_model(**inputs).loss, expected)


def test_gradients_land_on_what_is_trained_alone(converted_model, inputs):
    converted_model.set_trainable("both")
    converted_model.train()
    converted_model(**inputs).loss.backward()
    with_gradient = {name for name, parameter in converted_model.named_parameters() if parameter.grad is not None}
    assert with_gradient == trained(converted_model)


def count_calls(model) -> tuple[dict[str, int], list]:
    """How often the MLPs of LLaMA begin: recomputing one stops before its end. The hooks come too."""
    calls, hooks = {}, []
    for name, module in model.model.language_model.named_modules():
        if name.endswith("mlp"):

            def note(*_, name: str = name) -> None:
                calls[name] = calls.get(name, 0) + 1

            hooks.append(module.register_forward_pre_hook(note))
    return calls, hooks


def test_gradient_checkpointing_recomputes_a_frozen_llama_and_gives_the_same_gradients(converted_model, inputs):
    converted_model.set_trainable("both")
    # Without dropout, which is drawn anew
    for module in converted_model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    converted_model.train()
    gradients = []
    for is_checkpointed in (False, True):
        if is_checkpointed:
            converted_model.activation_checkpointing_enable()
            converted_model.train()
        converted_model.zero_grad()
        calls, hooks = count_calls(converted_model)
        converted_model(**inputs).loss.backward()
        assert set(calls.values()) == {2 if is_checkpointed else 1}
        gradients.append([parameter.grad for parameter in converted_model.parameters() if parameter.requires_grad])
        for hook in hooks:
            hook.remove()
    for first, second in zip(*gradients):
        torch.testing.assert_close(first, second)
    # What could drop out is in evaluation mode nevertheless
    for layer in converted_model.model.language_model.layers:
        assert isinstance(layer, GradientCheckpointingLayer)
        assert not any(part.training for part in layer.modules() if part is not layer)


def test_frozen_towers_keep_nothing_for_a_backward_pass(converted_model, inputs):
    """The library's own method lets gradients into every embedding, those of pixels too."""
    converted_model.set_trainable("language_model.layers.1")
    converted_model.enable_input_require_grads()
    seen = converted_model.get_video_features(inputs["pixel_values_videos"])
    heard = converted_model.get_audio_features(audio_pixel_values=inputs["audio_pixel_values"])
    assert not any(output.pooler_output.requires_grad for output in (seen, heard))
    embedding = converted_model.get_input_embeddings()
    assert embedding(torch.tensor([3])).requires_grad
    converted_model.disable_input_require_grads()
    assert not embedding(torch.tensor([3])).requires_grad


# Features that were computed before
def features(model, inputs) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        image = model.get_image_features(inputs["pixel_values"])
        video = model.get_video_features(inputs["pixel_values_videos"])
        audio = model.get_audio_features(audio_pixel_values=inputs["audio_pixel_values"])
    frames = video.qformer_outputs.last_hidden_state.unflatten(0, inputs["video_frame_mask"].shape)
    return {
        "image_embeds": image.qformer_outputs.last_hidden_state,
        "video_frame_embeds": frames,
        "audio_segment_embeds": audio.audio_outputs.image_embeds.unsqueeze(0),
    }


@pytest.fixture
def given_before(converted_model, inputs):
    names = ("pixel_values", "pixel_values_videos", "audio_pixel_values")
    embeds = features(converted_model.eval(), inputs)
    return {name: value for name, value in inputs.items() if name not in names} | embeds


def test_features_give_the_loss_and_the_gradients_of_what_they_are_of(converted_model, inputs, given_before):
    converted_model.set_trainable("both")
    results = []
    for given in (inputs, given_before):
        converted_model.zero_grad()
        loss = converted_model(**given).loss
        loss.backward()
        results.append(
            [loss, *(parameter.grad for parameter in converted_model.parameters() if parameter.requires_grad)]
        )
    for first, second in zip(*results):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)


def test_masked_frames_of_features_change_nothing(converted_model, given_before):
    loss = converted_model(**given_before).loss
    changed = given_before["video_frame_embeds"].clone()
    changed[:, 2] = 7.0
    assert torch.equal(converted_model(**{**given_before, "video_frame_embeds": changed}).loss, loss)
    changed[:, 1] = 7.0
    assert not torch.equal(converted_model(**{**given_before, "video_frame_embeds": changed}).loss, loss)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}])
def test_generation_takes_features(converted_model, inputs, given_before, options):
    for given in (inputs, given_before):
        given.pop("labels")
    options = {"max_new_tokens": 4, "do_sample": False, **options}
    assert torch.equal(
        converted_model.generate(**inputs, **options), converted_model.generate(**given_before, **options)
    )


def test_features_and_what_they_are_of_exclude_each_other(converted_model, inputs, given_before):
    for names in (
        ("image_embeds", "pixel_values"),
        ("video_frame_embeds", "pixel_values_videos"),
        ("audio_segment_embeds", "audio_pixel_values"),
    ):
        with pytest.raises(ValueError, match=rf"Exactly one of .*{names[0]}.* must be given"):
            converted_model(**{**inputs, names[0]: given_before[names[0]]})
    with pytest.raises(ValueError, match="image_embeds has the shape"):
        converted_model.get_image_features(image_embeds=torch.zeros(2, 8))
    with pytest.raises(ValueError, match="video_frame_embeds has the shape"):
        converted_model.get_video_features(video_frame_embeds=torch.zeros(2, 8))
