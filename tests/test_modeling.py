# SPDX-License-Identifier: Apache-2.0
"""What the model does with what it is given: any mix of inputs, masks, long videos, wrong inputs, other precisions."""

import json

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask

from transformers_videollama import (
    PlaceholderError,
    VideoLlamaConfig,
    VideoLlamaForConditionalGeneration,
    VideoLlamaModel,
    VideoLlamaQFormerModel,
    VideoLlamaVideoQFormerConfig,
    modeling_video_llama_encoder,
)
from transformers_videollama.modeling_video_llama_encoder import VideoLlamaEncoderLayer

from .helpers import PACKAGE, tiny_config


@pytest.fixture
def config(tiny_model) -> VideoLlamaConfig:
    return tiny_model.config


def frames(*shape: int, size: int = 28, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, 3, size, size, generator=torch.Generator().manual_seed(seed))


def mel(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, 128, 204, generator=torch.Generator().manual_seed(seed))


def prompt(config: VideoLlamaConfig, items: str, length: int = 0) -> list[int]:
    """Token ids of a prompt with an image (i), a video (v) or a sound (a) for each letter, left-padded to a length."""
    ids = [1, 319]
    for item in items:
        modality = {"i": "image", "v": "video", "a": "audio"}[item]
        count = config.num_audio_query_tokens if item == "a" else config.num_video_query_tokens
        ids += [getattr(config, f"{modality}_token_id")] * count + [13563]
    return [0] * (length - len(ids)) + ids


def logits_after(model, input_ids: list[list[int]], **inputs) -> torch.Tensor:
    """Scores of the next token of each row; rows start with BOS after their padding."""
    input_ids = torch.tensor(input_ids)
    with torch.no_grad():
        return model(input_ids=input_ids, attention_mask=(input_ids != 0).long(), **inputs).logits[:, -1]


def test_a_batch_of_any_mix_gives_each_sample_what_it_gets_alone(tiny_model, config):
    image, videos, sounds = frames(2, seed=1), frames(3, 4, seed=2), mel(3, 8, seed=3)
    frame_mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
    segment_mask = torch.tensor([[1] * 8, [1] * 3 + [0] * 5, [1] * 8])
    length = len(prompt(config, "vava"))
    rows = ["", "iv", "a", "vava", "i"]

    together = logits_after(
        tiny_model,
        [prompt(config, row, length) for row in rows],
        pixel_values=image,
        pixel_values_videos=videos,
        video_frame_mask=frame_mask,
        input_features=sounds,
        input_features_mask=segment_mask,
    )
    alone = [
        logits_after(tiny_model, [prompt(config, "")]),
        logits_after(
            tiny_model,
            [prompt(config, "iv")],
            pixel_values=image[:1],
            pixel_values_videos=videos[:1],
            video_frame_mask=frame_mask[:1],
        ),
        logits_after(tiny_model, [prompt(config, "a")], input_features=sounds[:1]),
        logits_after(
            tiny_model,
            [prompt(config, "vava")],
            pixel_values_videos=videos[1:],
            video_frame_mask=frame_mask[1:],
            input_features=sounds[1:],
            input_features_mask=segment_mask[1:],
        ),
        logits_after(tiny_model, [prompt(config, "i")], pixel_values=image[1:]),
    ]

    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mask", [[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 0, 1, 0, 1]])
def test_a_masked_frame_changes_nothing(tiny_model, mask):
    mask = torch.tensor([mask])
    video = frames(1, 5)
    video[mask == 0] = float("nan")

    masked = tiny_model.get_video_features(video, mask).pooler_output
    without = tiny_model.get_video_features(video[mask.bool()].unsqueeze(0)).pooler_output

    torch.testing.assert_close(masked, without, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["input_features", "audio_pixel_values"])
def test_a_masked_segment_changes_nothing(tiny_model, name):
    mask = torch.tensor([[1, 1, 0, 1, 0]])
    values = mel(1, 5) if name == "input_features" else frames(1, 5)
    values[mask == 0] = float("nan")

    masked = tiny_model.get_audio_features(**{name: values}, input_features_mask=mask).pooler_output
    without = tiny_model.get_audio_features(**{name: values[mask.bool()].unsqueeze(0)}).pooler_output

    torch.testing.assert_close(masked, without, atol=1e-6, rtol=0)


@pytest.mark.parametrize("implementation", ["sdpa", "flex_attention"])
def test_attention_implementations_agree_on_masked_inputs(implementation):
    torch.manual_seed(0)
    eager = VideoLlamaForConditionalGeneration(tiny_config(attn_implementation="eager")).eval()
    other = VideoLlamaForConditionalGeneration(tiny_config(attn_implementation=implementation)).eval()
    other.load_state_dict(eager.state_dict())
    inputs = {
        "pixel_values_videos": frames(2, 4),
        "video_frame_mask": torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]]),
        "input_features": mel(2, 4),
        "input_features_mask": torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]),
    }
    ids = [prompt(eager.config, "va")] * 2

    expected, actual = logits_after(eager, ids, **inputs), logits_after(other, ids, **inputs)

    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


def test_flash_attention_is_given_ragged_keys_as_packed_sequences(monkeypatch):
    """FlashAttention needs a GPU; this checks what it is called with, by a reference that reads the same arguments."""

    def packed_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
        assert attention_mask is None
        if "cu_seq_lens_k" not in kwargs:
            outputs = [torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=scaling)]
        else:
            q_ends, k_ends = kwargs["cu_seq_lens_q"].tolist(), kwargs["cu_seq_lens_k"].tolist()
            assert kwargs["max_length_q"] == max(b - a for a, b in zip(q_ends, q_ends[1:]))
            assert kwargs["max_length_k"] == max(b - a for a, b in zip(k_ends, k_ends[1:]))
            assert (query.shape[2], key.shape[2]) == (q_ends[-1], k_ends[-1])
            outputs = [
                torch.nn.functional.scaled_dot_product_attention(
                    query[:, :, q0:q1], key[:, :, k0:k1], value[:, :, k0:k1], scale=scaling
                )
                for q0, q1, k0, k1 in zip(q_ends, q_ends[1:], k_ends, k_ends[1:])
            ]
        return torch.cat(outputs, dim=2).transpose(1, 2), None

    AttentionInterface.register("packed_reference", packed_attention)
    AttentionMaskInterface.register("packed_reference", flash_attention_mask)
    torch.manual_seed(0)
    fields = tiny_config().video_qformer_config.to_dict()
    eager = VideoLlamaQFormerModel(VideoLlamaVideoQFormerConfig(**fields, attn_implementation="eager")).eval()
    queries, keys = torch.randn(3, 6, 40), torch.randn(3, 8, 40)
    mask = torch.tensor([[1] * 8, [1] * 2 + [0] * 6, [0] * 3 + [1] * 5])
    expected = eager(queries, keys, mask).last_hidden_state

    eager.set_attn_implementation("packed_reference")
    monkeypatch.setattr(modeling_video_llama_encoder, "is_flash_attention_requested", lambda config: True)
    actual = eager(queries, keys, mask).last_hidden_state

    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


class TestMorePositionsThanWereLearned:
    def test_positions_are_spread_over_the_table_with_one_warning(self, tiny_model, config, caplog):
        last = config.max_frame_positions - 1
        video = frames(1, 1).expand(1, 2 * last + 1, -1, -1, -1)
        for _ in range(2):
            outputs = tiny_model.get_video_features(video)
        tokens = outputs.qformer_outputs.last_hidden_state
        positions = outputs.frame_hidden_states.unflatten(1, (-1, config.num_query_tokens)) - tokens
        table = tiny_model.model.frame_position_embedding.weight

        torch.testing.assert_close(positions[0, ::2, 0], table, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(positions[0, 1::2, 0], (table[1:] + table[:-1]) / 2, atol=1e-5, rtol=1e-4)
        assert len([record for record in caplog.records if "interpolated" in record.message]) == 1

    def test_a_short_video_in_the_same_batch_is_untouched(self, tiny_model, config):
        long = config.max_frame_positions + 8
        videos, mask = frames(2, long), torch.ones(2, long)
        mask[1, 5:] = 0

        together = tiny_model.get_video_features(videos, mask).pooler_output
        alone = tiny_model.get_video_features(videos[1:, :5]).pooler_output

        torch.testing.assert_close(together[1:], alone, atol=1e-6, rtol=0)

    def test_sounds_may_be_longer_too(self, tiny_model, config):
        outputs = tiny_model.get_audio_features(mel(1, 2 * config.max_audio_positions))

        assert outputs.pooler_output.shape[1] == config.num_audio_query_tokens


def test_placeholders_among_the_labels_are_ignored(tiny_model, config):
    input_ids = torch.tensor([prompt(config, "v") + [319, 13563]])
    masked = input_ids.masked_fill(input_ids == config.video_token_id, -100)
    inputs = {"input_ids": input_ids, "pixel_values_videos": frames(1, 2)}

    assert tiny_model(**inputs, labels=input_ids).loss == tiny_model(**inputs, labels=masked).loss


def test_a_ragged_batch_compiles_to_one_graph_with_the_same_result(tiny_model):
    inputs = {
        "pixel_values_videos": frames(2, 3),
        "video_frame_mask": torch.tensor([[1, 1, 1], [1, 0, 0]]),
    }
    expected = tiny_model.get_video_features(**inputs).pooler_output

    compiled = torch.compile(tiny_model.model.get_video_features, fullgraph=True, backend="eager")
    actual = compiled(**inputs).pooler_output

    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-5)


def test_drop_path_leaves_out_whole_samples_in_training():
    torch.manual_seed(0)
    config = tiny_config(attn_implementation="eager").audio_config.audio_config
    layer = VideoLlamaEncoderLayer(config, drop_path_rate=0.5).train()
    hidden_states = torch.randn(1, 5, config.hidden_size).expand(64, -1, -1)

    changes = (layer(hidden_states) - hidden_states).abs().amax((1, 2))

    assert (changes == 0).any()
    assert (changes > 0).any()
    layer.eval()
    torch.testing.assert_close(layer(hidden_states), layer(hidden_states[:1]).expand(64, -1, -1))


class TestWrongInputs:
    def test_more_placeholders_than_features(self, tiny_model, config):
        with pytest.raises(PlaceholderError, match="12 video placeholders .* 6 video feature tokens"):
            logits_after(tiny_model, [prompt(config, "vv")], pixel_values_videos=frames(1, 2))

    def test_features_without_placeholders(self, tiny_model, config):
        with pytest.raises(PlaceholderError, match="0 audio placeholders .* 3 audio feature tokens"):
            logits_after(tiny_model, [prompt(config, "")], input_features=mel(1, 2))

    def test_placeholders_without_anything(self, tiny_model, config):
        with pytest.raises(PlaceholderError, match="6 image placeholders"):
            logits_after(tiny_model, [prompt(config, "i")])

    def test_a_video_given_twice(self, tiny_model, config):
        features = tiny_model.get_video_features(frames(1, 2))
        with pytest.raises(ValueError, match="pass one of the two"):
            logits_after(
                tiny_model,
                [prompt(config, "v")],
                pixel_values_videos=frames(1, 2),
                mm_encoder_outputs={"video": features},
            )

    def test_features_under_a_name_that_does_not_exist(self, tiny_model, config):
        features = tiny_model.get_video_features(frames(1, 2))
        with pytest.raises(ValueError, match="holds a VideoLlamaFeaturesOutput as 'videos', expected"):
            logits_after(tiny_model, [prompt(config, "v")], mm_encoder_outputs={"videos": features})

    def test_features_as_a_tuple(self, tiny_model, config):
        features = tiny_model.get_video_features(frames(1, 2), return_dict=False)
        with pytest.raises(ValueError, match="holds a tuple as 'video', expected"):
            logits_after(tiny_model, [prompt(config, "v")], mm_encoder_outputs={"video": features})

    def test_an_image_with_a_dimension_too_many(self, tiny_model):
        with pytest.raises(ValueError, match="pixel_values has the shape .* but 4 dimensions"):
            tiny_model.get_image_features(frames(1, 1))

    def test_sound_and_frames_for_the_audio_branch_at_once(self, tiny_model):
        with pytest.raises(ValueError, match="Exactly one of .*'input_features', 'audio_pixel_values'"):
            tiny_model.get_audio_features(mel(1, 2), audio_pixel_values=frames(1, 2))

    def test_frames_of_another_size(self, tiny_model):
        with pytest.raises(ValueError, match=r"\(32, 32\) pixels were given, but the model takes \(28, 28\)"):
            tiny_model.get_video_features(frames(1, 2, size=32))

    def test_a_video_without_its_batch_dimension(self, tiny_model):
        with pytest.raises(ValueError, match="pixel_values_videos has the shape .* but 5 dimensions"):
            tiny_model.get_video_features(frames(2))

    def test_a_mask_of_another_length(self, tiny_model):
        with pytest.raises(ValueError, match=r"mask of pixel_values_videos has the shape \(1, 3\), but \(1, 2\)"):
            tiny_model.get_video_features(frames(1, 2), torch.ones(1, 3))

    def test_a_mask_that_leaves_nothing(self, tiny_model):
        with pytest.raises(ValueError, match="leaves an item without any frame"):
            tiny_model.get_video_features(frames(2, 2), torch.tensor([[1, 1], [0, 0]]))

    def test_sound_for_a_model_without_audio_branch(self):
        model = VideoLlamaForConditionalGeneration(tiny_config(audio_config=None)).eval()
        with pytest.raises(ValueError, match="no audio branch"):
            model.get_audio_features(mel(1, 2))

    def test_frames_for_an_audio_branch_without_vision_trunk(self):
        model = VideoLlamaModel(tiny_config(audio_config={"vision_config": None})).eval()
        with pytest.raises(ValueError, match="no vision trunk"):
            model.get_audio_features(audio_pixel_values=frames(1, 2))

    def test_widths_that_do_not_meet(self):
        with pytest.raises(Exception, match="encoder_hidden_size is 40, but qformer_config.hidden_size"):
            tiny_config(qformer_config={"hidden_size": 48})


class TestPrecision:
    @pytest.mark.parametrize(("dtype", "deviations"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
    def test_half_precision_runs_close_to_full(self, tiny_model, config, dtype, deviations):
        inputs = {"pixel_values_videos": frames(1, 2), "input_features": mel(1, 4)}
        expected = logits_after(tiny_model, [prompt(config, "va")], **inputs)

        actual = logits_after(tiny_model.to(dtype), [prompt(config, "va")], **inputs)

        assert actual.dtype == dtype
        assert (actual.float() - expected).abs().max() < deviations * expected.std()

    def test_the_vit_may_be_in_float16_as_released(self, tiny_model, config):
        inputs = {"pixel_values_videos": frames(1, 2), "input_features": mel(1, 4)}
        ids = [prompt(config, "va")]
        expected = logits_after(tiny_model, ids, **inputs)

        tiny_model.model.vision_tower.half()

        torch.testing.assert_close(logits_after(tiny_model, ids, **inputs), expected, atol=1e-2, rtol=1e-2)


class TestRealSizes:
    @staticmethod
    def build(name: str) -> VideoLlamaForConditionalGeneration:
        fields = json.loads((PACKAGE / "configs" / f"{name}.json").read_text())
        with torch.device("meta"):
            return VideoLlamaForConditionalGeneration(VideoLlamaConfig(**fields))

    @staticmethod
    def count(model, *names: str) -> int:
        return sum(p.numel() for name in names for p in model.get_submodule(f"model.{name}").parameters())

    def test_the_trained_parts_of_7b_have_the_published_sizes(self):
        model = self.build("video_llama_7b")

        assert (
            self.count(model, "video_query_tokens", "frame_position_embedding", "video_qformer", "video_projection")
            == 22_104_064
        )
        assert (
            self.count(model, "audio_query_tokens", "audio_position_embedding", "audio_qformer", "audio_projection")
            == 22_855_680
        )

    @pytest.mark.parametrize(
        ("name", "parameters"), [("video_llama_7b", 6_738_415_616), ("video_llama_13b", 13_015_864_320)]
    )
    def test_llama_has_its_real_size(self, name, parameters):
        model = self.build(name)

        assert self.count(model, "language_model") + model.lm_head.weight.numel() == parameters

    def test_the_defaults_are_the_7b_sizes(self):
        default, named = VideoLlamaConfig().to_dict(), self.build("video_llama_7b").config.to_dict()

        for part, differences in {"text_config": {"max_position_embeddings", "rms_norm_eps"}}.items():
            for field in differences:  # LLaMA-1, on which Vicuna stands, differs from LLaMA-2 in these alone
                default[part].pop(field), named[part].pop(field)
        default.pop("dtype"), named.pop("dtype")
        assert {k: v for k, v in default.items() if k != "_name_or_path"} == {
            k: v for k, v in named.items() if k != "_name_or_path"
        }
