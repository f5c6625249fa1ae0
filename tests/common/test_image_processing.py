# SPDX-License-Identifier: Apache-2.0
"""The library's suite for image processors, on ours.

It skips itself what compares two backends or tests the one of torchvision: ours has Pillow's alone, because other
bicubic filters differ from the one that the model was trained with.
"""

import unittest

from transformers_videollama import VideoLlamaImageProcessor

from .library_suites import load


suite = load("test_image_processing_common")


class VideoLlamaImageProcessingTester(suite.ImageProcessingTester):
    def __init__(self, parent):
        super().__init__(parent, max_resolution=80, size={"height": 28, "width": 20}, do_convert_rgb=True)

    def _get_image_processing_classes(self):
        return {"pil": VideoLlamaImageProcessor}


class VideoLlamaImageProcessingTest(suite.ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = VideoLlamaImageProcessingTester
    test_cast_dtype = True

    def test_new_models_require_torchvision_backend(self):
        """The suite demands it of models that are contributed to the library. See the top of this file."""
        self.assertEqual(set(self.image_processing_classes), {"pil"})

    def test_override_instance_attributes_does_not_affect_other_instances(self):
        """In place of the suite's, which skips what has no list and no dict for attributes."""
        first, second = VideoLlamaImageProcessor(), VideoLlamaImageProcessor()
        self.assertIsInstance(first.image_mean, tuple)
        first.size["height"] = -1
        self.assertEqual(second.size, {"height": 224, "width": 224})
        self.assertEqual(VideoLlamaImageProcessor().size, {"height": 224, "width": 224})

    def test_image_processor_preprocess_arguments(self):
        """In place of the suite's, which skips what does not warn of an unknown argument: ours raises."""
        with self.assertRaisesRegex(TypeError, "extra_argument"):
            VideoLlamaImageProcessor()(self.image_processor_tester.prepare_image_inputs(), extra_argument=True)

    @unittest.skip(reason="our package, which has to be imported first, needs torchvision for its models")
    def test_pil_can_run_without_torchvision(self):
        pass
