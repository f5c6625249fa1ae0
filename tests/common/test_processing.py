# SPDX-License-Identifier: Apache-2.0
"""The library's suite for processors, on ours with the files of the tiny configuration.

It skips itself tests of what our processor has not: tools in its chat templates, and counts of the tokens of videos
and sounds for inference engines (`_get_num_multimodal_tokens`).
"""

import inspect
import tempfile
import unittest
from unittest import mock

import torch
from transformers import TokenizersBackend

from transformers_videollama import (
    VideoLlamaFeatureExtractor,
    VideoLlamaImageProcessor,
    VideoLlamaProcessor,
    VideoLlamaVideoProcessor,
)

from ..helpers import TINY
from .library_suites import load, local_media


suite = load("test_processing_common")

# What the suite expects errors to say, and what ours say
ERRORS = {
    " tokens in the prompts should be the same as the number of ": "placeholders, but .* inputs were given",
}


class VideoLlamaProcessorTest(suite.ProcessorTesterMixin, unittest.TestCase):
    processor_class = VideoLlamaProcessor
    model_id = str(TINY)

    @classmethod
    def setUpClass(cls):
        # With a processor that comes with its code, `auto_map` comes and goes, which is not what the suite compares
        for processor in (
            VideoLlamaProcessor,
            VideoLlamaImageProcessor,
            VideoLlamaVideoProcessor,
            VideoLlamaFeatureExtractor,
        ):
            patcher = mock.patch.object(processor, "_auto_class", None)
            patcher.start()
            cls.addClassCleanup(patcher.stop)
        super().setUpClass()

    @staticmethod
    def prepare_processor_dict():
        return {"num_video_query_tokens": 6, "num_audio_query_tokens": 3}

    @property
    def video_sampling_expectations(self):
        """As the suite's, but without a rate or a number, eight frames are chosen."""
        return [*super().video_sampling_expectations[:-1], {"expected_dim": 1, "output_length": 8}]

    def assertRaisesRegex(self, exception, regex, *args, **kwargs):
        return super().assertRaisesRegex(exception, ERRORS.get(regex, regex), *args, **kwargs)

    def test_chat_template_save_loading(self):
        """As the suite's, on a checkpoint with one template: beside several, `chat_template.json` is not allowed."""
        processor = self.get_processor()
        processor.chat_template = processor.tokenizer.chat_template = processor.chat_template["default"]
        with tempfile.TemporaryDirectory() as folder, mock.patch.object(self, "tmpdirname", folder):
            processor.save_pretrained(folder)
            super().test_chat_template_save_loading()

    def test_replacement_offsets(self):
        """As the suite's, which gets the text from its tokens. LLaMA's tokenizer gives another one then, with a blank
        behind each placeholder, so it is given the text that was tokenized."""
        texts = []

        def call(self, text, **kwargs):
            texts.extend(text)
            return tokenize(self, text, **kwargs)

        tokenize = TokenizersBackend.__call__
        with (
            mock.patch.object(TokenizersBackend, "__call__", call),
            mock.patch.object(TokenizersBackend, "batch_decode", return_value=texts),
        ):
            super().test_replacement_offsets()

    def test_apply_chat_template_video_frame_sampling(self):
        """As the suite's up to its last demand: to choose among the frames of a list must raise. Ours are chosen."""
        with self.assertRaisesRegex(AssertionError, "^ValueError not raised$"):
            super().test_apply_chat_template_video_frame_sampling()
        frames = [self.prepare_images_inputs() for _ in range(12)]
        inputs = self.get_processor()(text=self.video_token, videos=[frames], return_tensors="pt")
        self.assertEqual(inputs["pixel_values_videos"].shape[1], 8)

    def test_chat_template_audio_sampling_rate(self):
        """The suite's, without librosa, which the library needs for the sound of files."""
        inspect.unwrap(suite.ProcessorTesterMixin.test_chat_template_audio_sampling_rate)(self)

    def test_chat_template_audio_from_video(self):
        """In place of the suite's, which needs torchcodec, and marks the place of a video's sound in the prompt."""
        video = {"type": "video", "path": local_media("sample_demo_1_320x240.mp4")}
        sound = {"type": "audio", "path": local_media("glass-breaking-151256.mp3")}
        question = {"type": "text", "text": "Which of these animals is making the sound?"}
        conversations = [[{"role": "user", "content": [item, question]}] for item in (video, sound, video)]
        inputs = self.get_processor().apply_chat_template(
            conversations,
            load_audio_from_video=True,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )
        self.assertEqual(inputs["input_ids"].shape[0], 3)
        self.assertEqual(inputs["pixel_values_videos"].shape[:2], (2, 8))
        self.assertEqual(inputs["input_features"].shape[:2], (3, 8))
        torch.testing.assert_close(inputs["input_features"][0], inputs["input_features"][2])
        self.assertFalse(torch.equal(inputs["input_features"][0], inputs["input_features"][1]))

    # Names of parametrized tests, under which the suite leaves nothing but a skip where a package is missing
    test_apply_chat_template_audio = None
    test_apply_chat_template_video = None
    test_apply_chat_template_decoded_video = None
