# SPDX-License-Identifier: Apache-2.0
"""The library's suite for models, on each of ours.

No test of it is switched off here. It skips itself

- what needs an accelerator or several (flash and flex attention, kernels, offloading, default devices, compilation),
  DeepSpeed or the kernels library. `test_generation.py` holds what of that can be tested on a CPU;
- what is about models of another kind: encoder-decoders, sparse experts, sliding windows, a partial or axial RoPE,
  position embeddings that can be resized, modules that are kept in float32, checkpoints whose keys are renamed;
- for the towers and Q-Formers: what is about words (`inputs_embeds`, resizing, RoPE, losses), composite models and
  tensor parallel plans; for the composite models: what is about the others. It says "does not support SDPA" of either.
"""

import unittest

import torch
from transformers.testing_utils import torch_device

from transformers_videollama import (
    ImageBindAudioModel,
    ImageBindConfig,
    ImageBindModel,
    ImageBindVisionModel,
    VideoLlamaConfig,
    VideoLlamaForConditionalGeneration,
    VideoLlamaModel,
    VideoLlamaQFormerModel,
    VideoLlamaVisionModel,
)

from ..helpers import tiny_config
from .library_suites import load


suite = load("test_modeling_common")
GenerationTesterMixin = load("generation.test_utils").GenerationTesterMixin

# Every part has two layers and two heads of 16 features, the least that kernels take
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
SOUND = {"num_mel_bins": 26, "num_mel_frames": 36, "drop_path_rate": 0.0}  # 2 x 3 patches
PICTURE = {"image_size": 28, "patch_size": 14}  # 2 x 2 patches


def suite_config(**overrides) -> VideoLlamaConfig:
    """The tiny configuration, as small as the suite wants it and with placeholders that are part of the vocabulary."""
    qformer = {**SIZES, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "encoder_hidden_size": 32}
    return tiny_config(
        **{
            "text_config": {**SIZES, "vocab_size": 99, "num_key_value_heads": 2, "head_dim": 16},
            "vision_config": {**SIZES, **PICTURE},
            "qformer_config": qformer,
            "video_qformer_config": qformer,
            "audio_config": {
                "audio_config": {**SIZES, **SOUND},
                "vision_config": {**SIZES, **PICTURE},
                "output_dim": 32,
            },
            "audio_qformer_config": qformer,
            "num_query_tokens": 3,
            "num_video_query_tokens": 4,
            "num_audio_query_tokens": 2,
            "image_token_id": 5,
            "audio_token_id": 6,
            "video_token_id": 7,
            **overrides,
        }
    )


def random_values(*shape: int) -> torch.Tensor:
    return suite.floats_tensor(shape)


class ModelTester:
    """What the suite asks for of any model. Seven samples, as many as it stretches smaller batches to."""

    batch_size = 7
    is_training = True
    hidden_size = SIZES["hidden_size"]
    num_hidden_layers = SIZES["num_hidden_layers"]
    num_attention_heads = SIZES["num_attention_heads"]

    def __init__(self, parent: unittest.TestCase):
        self.parent = parent


def check_patch_embedding(test: unittest.TestCase) -> None:
    """In place of the suite's test, which wants an embedding of words and replaces it."""
    for model_class in test.all_model_classes:
        model = model_class(test.model_tester.get_config())
        test.assertIsInstance(model.get_input_embeddings(), (torch.nn.Conv2d, torch.nn.Conv3d))
        test.assertIsNone(model.get_output_embeddings())


class ModelTest(suite.ModelTesterMixin):
    """The suite with what holds for all of ours."""

    # Our files have no line with a year of copyright, by which the suite tells the models that it need not check
    test_can_init_all_missing_weights_before_2023 = True
    # Exporters are tested by a mixin that the source distribution lacks
    test_torch_exportable = False


class VideoLlamaModelTester(ModelTester):
    """Each sample: a picture, a video of two or three frames, a sound of one or two segments, and five words."""

    def __init__(self, parent: unittest.TestCase, **overrides):
        super().__init__(parent)
        self.overrides = overrides
        config = self.get_config()
        self.vision_config = config.vision_config.to_dict()
        self.audio_config = config.audio_config.audio_config.to_dict()
        self.seq_length = 2 * config.num_video_query_tokens + config.num_audio_query_tokens + 5

    def get_config(self) -> VideoLlamaConfig:
        # The vision trunk of the audio branch stands in for the audio trunk, never beside it: it would get no gradient
        audio_config = {"audio_config": {**SIZES, **SOUND}, "vision_config": None, "output_dim": 32}
        return suite_config(audio_config=audio_config, **self.overrides)

    def prepare_config_and_inputs_for_common(self) -> tuple[VideoLlamaConfig, dict[str, torch.Tensor]]:
        config, size = self.get_config(), PICTURE["image_size"]
        words = suite.ids_tensor((self.batch_size, 5), config.text_config.vocab_size - 8) + 8
        placeholders = (
            [config.image_token_id] * config.num_video_query_tokens
            + [config.audio_token_id] * config.num_audio_query_tokens
            + [config.video_token_id] * config.num_video_query_tokens
        )
        input_ids = torch.cat(
            [words[:, :1], torch.tensor([placeholders] * self.batch_size, device=torch_device), words[:, 1:]], dim=1
        )
        video_frame_mask = torch.ones(self.batch_size, 3, dtype=torch.long, device=torch_device)
        video_frame_mask[::2, 2] = 0
        input_features_mask = torch.ones(self.batch_size, 2, dtype=torch.long, device=torch_device)
        input_features_mask[1::2, 1] = 0
        return config, {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "pixel_values": random_values(self.batch_size, 3, size, size),
            "pixel_values_videos": random_values(self.batch_size, 3, 3, size, size),
            "video_frame_mask": video_frame_mask,
            "input_features": random_values(self.batch_size, 2, SOUND["num_mel_bins"], SOUND["num_mel_frames"]),
            "input_features_mask": input_features_mask,
        }


class VideoLlamaModelTest(ModelTest, GenerationTesterMixin, unittest.TestCase):
    """`GenerationTesterMixin` is empty, because the source distribution lacks it: see `test_generation.py`."""

    all_model_classes = (VideoLlamaModel, VideoLlamaForConditionalGeneration)
    additional_model_inputs = [
        "pixel_values",
        "pixel_values_videos",
        "video_frame_mask",
        "input_features",
        "input_features_mask",
    ]
    _is_composite = True
    # The suite expects one row for each video or sound; ours has one for each frame or segment, tested below
    skip_test_video_features_output_shape = True
    skip_test_audio_features_output_shape = True

    def setUp(self):
        # The tests of RoPE feed random words alone, none of which may be a placeholder
        beyond = {"image_token_id": 99, "audio_token_id": 100, "video_token_id": 101}
        self.model_tester = VideoLlamaModelTester(self, **(beyond if "rope" in self._testMethodName else {}))

    def test_features_have_one_row_per_frame_or_segment(self):
        for model_class in self.all_model_classes:
            config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
            model = model_class(config).to(torch_device).eval()
            with torch.no_grad():
                seen = model.get_video_features(inputs["pixel_values_videos"], inputs["video_frame_mask"])
                heard = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"])
            for features, mask, length in ((seen, "video_frame_mask", 5), (heard, "input_features_mask", 7)):
                rows = int(inputs[mask].sum())
                self.assertEqual(features.last_hidden_state.shape, (rows, length, self.model_tester.hidden_size))


class VideoLlamaVisionModelTester(ModelTester):
    seq_length = (PICTURE["image_size"] // PICTURE["patch_size"]) ** 2 + 1

    def get_config(self):
        return suite_config().vision_config

    def prepare_config_and_inputs_for_common(self):
        size = PICTURE["image_size"]
        return self.get_config(), {"pixel_values": random_values(self.batch_size, 3, size, size)}


class VideoLlamaVisionModelTest(ModelTest, unittest.TestCase):
    all_model_classes = (VideoLlamaVisionModel,)
    test_resize_embeddings = False

    def setUp(self):
        self.model_tester = VideoLlamaVisionModelTester(self)

    def test_model_get_set_embeddings(self):
        check_patch_embedding(self)


class VideoLlamaQFormerModelTester(ModelTester):
    seq_length = 4
    encoder_seq_length = 4

    def get_config(self):
        return suite_config().qformer_config

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        return config, {
            "query_embeds": random_values(self.batch_size, self.seq_length, config.hidden_size),
            "encoder_hidden_states": random_values(self.batch_size, 6, config.encoder_hidden_size),
        }


class VideoLlamaQFormerModelTest(ModelTest, unittest.TestCase):
    all_model_classes = (VideoLlamaQFormerModel,)
    additional_model_inputs = ["encoder_hidden_states"]
    test_resize_embeddings = False

    def setUp(self):
        self.model_tester = VideoLlamaQFormerModelTester(self)

    def test_model_get_set_embeddings(self):
        """Queries and encoder states come in embedded."""
        model = VideoLlamaQFormerModel(self.model_tester.get_config())
        self.assertIsNone(model.get_input_embeddings())
        self.assertIsNone(model.get_output_embeddings())


class ImageBindVisionModelTester(ModelTester):
    seq_length = (PICTURE["image_size"] // PICTURE["patch_size"]) ** 2 + 1

    def get_config(self):
        return suite_config().audio_config.vision_config

    def prepare_config_and_inputs_for_common(self):
        size = PICTURE["image_size"]
        return self.get_config(), {"pixel_values": random_values(self.batch_size, 3, size, size)}


class ImageBindVisionModelTest(ModelTest, unittest.TestCase):
    all_model_classes = (ImageBindVisionModel,)
    test_resize_embeddings = False

    def setUp(self):
        self.model_tester = ImageBindVisionModelTester(self)

    def test_model_get_set_embeddings(self):
        check_patch_embedding(self)


class ImageBindAudioModelTester(ModelTester):
    seq_length = 2 * 3 + 1
    key_length = seq_length + 1  # `add_bias_kv`

    def get_config(self):
        return suite_config().audio_config.audio_config

    def prepare_config_and_inputs_for_common(self):
        shape = (self.batch_size, SOUND["num_mel_bins"], SOUND["num_mel_frames"])
        return self.get_config(), {"input_features": random_values(*shape)}


class ImageBindAudioModelTest(ModelTest, unittest.TestCase):
    all_model_classes = (ImageBindAudioModel,)
    test_resize_embeddings = False

    def setUp(self):
        self.model_tester = ImageBindAudioModelTester(self)

    def test_model_get_set_embeddings(self):
        check_patch_embedding(self)


class ImageBindModelTester(ModelTester):
    def __init__(self, parent: unittest.TestCase):
        super().__init__(parent)
        self.vision_model_tester = ImageBindVisionModelTester(parent)
        self.audio_model_tester = ImageBindAudioModelTester(parent)

    def get_config(self) -> ImageBindConfig:
        return ImageBindConfig(
            audio_config=self.audio_model_tester.get_config().to_dict(),
            vision_config=self.vision_model_tester.get_config().to_dict(),
            output_dim=32,
        )

    def prepare_config_and_inputs_for_common(self):
        _, vision_inputs = self.vision_model_tester.prepare_config_and_inputs_for_common()
        _, audio_inputs = self.audio_model_tester.prepare_config_and_inputs_for_common()
        return self.get_config(), {**audio_inputs, **vision_inputs}


class ImageBindModelTest(ModelTest, unittest.TestCase):
    """The outputs of the two trunks lie in its own, so the tests that look for them there are written anew."""

    all_model_classes = (ImageBindModel,)
    additional_model_inputs = ["pixel_values"]
    # Makes the suite skip `test_attention_outputs` and `test_eager_matches_sdpa_inference`: both are below
    has_attentions = False
    test_resize_embeddings = False
    _is_composite = True

    def setUp(self):
        self.model_tester = ImageBindModelTester(self)

    def test_model_get_set_embeddings(self):
        check_patch_embedding(self)

    def check_trunk_outputs(self, name: str, shapes: dict[str, tuple[int, ...]], count: int) -> None:
        """A flag works as an argument and in the configuration; shapes are those of the first layer's."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        flag = f"output_{name}"
        for in_config in (False, True):
            setattr(config, flag, in_config)
            model = ImageBindModel._from_config(config, attn_implementation="eager").to(torch_device).eval()
            outputs = model(**inputs, **({} if in_config else {flag: True}))
            for trunk, shape in shapes.items():
                recorded = outputs[f"{trunk}_model_output"][name]
                self.assertEqual(len(recorded), count)
                self.assertEqual(recorded[0].shape, (self.model_tester.batch_size, *shape))

    def test_hidden_states_output(self):
        shapes = {"vision": (5, self.model_tester.hidden_size), "audio": (7, self.model_tester.hidden_size)}
        self.check_trunk_outputs("hidden_states", shapes, count=self.model_tester.num_hidden_layers + 1)

    def test_attention_outputs(self):
        heads = self.model_tester.num_attention_heads
        shapes = {"vision": (heads, 5, 5), "audio": (heads, 7, 8)}  # `add_bias_kv`
        self.check_trunk_outputs("attentions", shapes, count=self.model_tester.num_hidden_layers)

    def test_retain_grad_hidden_states_attentions(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = ImageBindModel._from_config(config, attn_implementation="eager").to(torch_device)
        outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
        trunks = (outputs.vision_model_output, outputs.audio_model_output)
        recorded = [states for trunk in trunks for states in (trunk.hidden_states[0], trunk.attentions[0])]
        for states in recorded:
            states.retain_grad()
        (outputs.image_embeds[0, 0] + outputs.audio_embeds[0, 0]).backward()
        for states in recorded:
            self.assertIsNotNone(states.grad)

    def test_eager_matches_sdpa_embeddings(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        eager = ImageBindModel._from_config(config, attn_implementation="eager").to(torch_device).eval()
        sdpa = ImageBindModel._from_config(config, attn_implementation="sdpa").to(torch_device).eval()
        sdpa.load_state_dict(eager.state_dict())
        with torch.no_grad():
            expected, outputs = eager(**inputs), sdpa(**inputs)
        torch.testing.assert_close(outputs.image_embeds, expected.image_embeds)
        torch.testing.assert_close(outputs.audio_embeds, expected.audio_embeds)
