# SPDX-License-Identifier: Apache-2.0
"""The library's suite for feature extractors of sequences, on ours."""

import random
import unittest

import numpy as np

from transformers_videollama import VideoLlamaFeatureExtractor

from .library_suites import load


suite = load("test_sequence_feature_extraction_common")


class VideoLlamaFeatureExtractionTester:
    """Sounds of 400 samples, which is the shortest that is taken, and more."""

    batch_size = 7
    feature_size = 1
    min_seq_length = 400
    max_seq_length = 2000
    seq_length_diff = (max_seq_length - min_seq_length) // (batch_size - 1)

    def prepare_feat_extract_dict(self):
        return {"feature_size": self.feature_size, "padding_value": 0.0, "num_mel_bins": 32, "num_segments": 4}

    def prepare_inputs_for_common(self, equal_length: bool = False, numpify: bool = False):
        lengths = range(self.min_seq_length, self.max_seq_length, self.seq_length_diff)
        lengths = [self.max_seq_length] * self.batch_size if equal_length else lengths
        sounds = [[random.random() for _ in range(length)] for length in lengths]
        return [np.asarray(sound, dtype=np.float32) for sound in sounds] if numpify else sounds


class VideoLlamaFeatureExtractionTest(suite.SequenceFeatureExtractionTestMixin, unittest.TestCase):
    feature_extraction_class = VideoLlamaFeatureExtractor

    def setUp(self):
        self.feat_extract_tester = VideoLlamaFeatureExtractionTester()
