# SPDX-License-Identifier: Apache-2.0
"""The library's suite for video processors, on ours.

It skips itself what needs an accelerator.
"""

import unittest

from transformers.video_utils import VideoMetadata

from transformers_videollama import VideoLlamaVideoProcessor

from .library_suites import load


suite = load("test_video_processing_common")


class VideoLlamaVideoProcessingTester:
    batch_size = 5
    num_frames = 8
    num_channels = 3
    min_resolution = 30
    max_resolution = 80

    def prepare_video_processor_dict(self):
        return {
            "size": {"shortest_edge": 20},
            "do_center_crop": True,
            "crop_size": {"height": 18, "width": 18},
            "image_mean": [0.5, 0.5, 0.5],
        }

    def expected_output_video_shape(self, videos):
        return self.num_frames, self.num_channels, 18, 18

    def prepare_video_inputs(self, equal_resolution=False, return_tensors="pil"):
        return suite.prepare_video_inputs(
            self.batch_size,
            self.num_frames,
            self.num_channels,
            self.min_resolution,
            self.max_resolution,
            equal_resolution=equal_resolution,
            return_tensors=return_tensors,
        )


class VideoLlamaVideoProcessingTest(suite.VideoProcessingTestMixin, unittest.TestCase):
    fast_video_processing_class = VideoLlamaVideoProcessor
    test_cast_dtype = True

    def setUp(self):
        super().setUp()
        self.video_processor_tester = VideoLlamaVideoProcessingTester()

    @property
    def video_processor_dict(self):
        return self.video_processor_tester.prepare_video_processor_dict()

    def test_video_processor_from_dict_with_kwargs(self):
        """As the suite's, but a single size stands for a square here rather than for the shortest edge."""
        processor = VideoLlamaVideoProcessor.from_dict(self.video_processor_dict)
        self.assertEqual(processor.size, {"shortest_edge": 20})
        self.assertEqual(processor.crop_size, {"height": 18, "width": 18})
        processor = VideoLlamaVideoProcessor.from_dict(self.video_processor_dict, size=42, crop_size=84)
        self.assertEqual(processor.size, {"height": 42, "width": 42})
        self.assertEqual(processor.crop_size, {"height": 84, "width": 84})

    def test_call_sample_frames(self):
        """As the suite's up to its last demand: more frames than there are raise. Ours, as the original, gives all."""
        processor = VideoLlamaVideoProcessor(**self.video_processor_dict)
        with self.assertRaises(ValueError):
            processor.sample_frames(VideoMetadata(total_num_frames=8), fps=3)
        with self.assertRaisesRegex(AssertionError, "^ValueError not raised$"):
            super().test_call_sample_frames()
        videos = self.video_processor_tester.prepare_video_inputs(return_tensors="torch")
        pixel_values = processor(videos, num_frames=10, return_tensors="pt")["pixel_values_videos"]
        self.assertEqual(pixel_values.shape[1], 8)

    def test_override_instance_attributes_does_not_affect_other_instances(self):
        """In place of the suite's, which skips what has no list and no dict for attributes."""
        first, second = VideoLlamaVideoProcessor(), VideoLlamaVideoProcessor()
        self.assertIsInstance(first.image_mean, tuple)
        first.size["height"] = -1
        self.assertEqual(second.size, {"height": 224, "width": 224})
        self.assertEqual(VideoLlamaVideoProcessor().size, {"height": 224, "width": 224})

    def test_video_processor_preprocess_arguments(self):
        """In place of the suite's, which skips what does not warn of an unknown argument: ours raises."""
        processor = VideoLlamaVideoProcessor(**self.video_processor_dict)
        with self.assertRaisesRegex(TypeError, "extra_argument"):
            processor(self.video_processor_tester.prepare_video_inputs(), extra_argument=True)
