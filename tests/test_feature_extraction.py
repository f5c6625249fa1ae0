# SPDX-License-Identifier: Apache-2.0
"""Sound: the original's segments and spectrograms from files and waveforms of any kind."""

import io
import sys

import numpy as np
import pytest
import torch
from transformers.testing_utils import CaptureLogger

from transformers_videollama import VideoLlamaFeatureExtractor, feature_extraction_video_llama
from transformers_videollama.exceptions import MediaError, MediaNotFoundError, NoAudioError

from .helpers import clip, expected
from .media_files import sound, write_clip, write_sound


@pytest.fixture(scope="module")
def extractor():
    return VideoLlamaFeatureExtractor()


def tone(channels: int = 1, seconds: float = 3.0) -> np.ndarray:
    return sound(16000, channels, seconds)


# The original's spectrograms
@pytest.mark.parametrize("name", ["dog_barking", "boat"])
def test_segments_and_spectrograms_are_those_of_the_original(extractor, name):
    facts, tensors = expected(name)
    bounds = extractor.segment_bounds(facts["audio"]["samples_16k"])
    assert [list(bound) for bound in bounds] == facts["audio"]["clip_samples"]

    inputs = extractor(clip(name), return_tensors="pt")
    assert inputs["input_features"].shape == (1, 8, 128, 204)
    assert inputs["input_features"].dtype == torch.float32
    assert inputs["input_features_mask"].tolist() == [[1] * 8]
    # The mel is stored as float16 (0.0005 of rounding), for one clip as float32, too.
    difference = (inputs["input_features"][0, :, None] - tensors["mel"].float()).abs()
    assert difference.max() < 0.001
    assert difference.mean() < 0.0001
    if "mel_float32" in tensors:
        assert (inputs["input_features"][0, :, None] - tensors["mel_float32"]).abs().max() < 1e-4


def test_the_waveform_of_a_file_gives_what_the_file_gives(extractor):
    _, tensors = expected("dog_barking")
    from_waveform = extractor(tensors["waveform_16k"], sampling_rate=16000, return_tensors="pt")
    from_file = extractor(clip("dog_barking"), return_tensors="pt")
    assert torch.equal(from_waveform["input_features"], from_file["input_features"])


# Segments
def test_segments_have_equal_distances_and_end_a_step_before_the_end(extractor):
    assert extractor.segment_bounds(16000 * 10) == [(16000 * i, 16000 * (i + 2)) for i in range(8)]
    assert extractor.segment_bounds(16000) == [(0, 32000)] * 8
    for num_samples in range(400, 200000, 997):
        starts = [start for start, _ in extractor.segment_bounds(num_samples)]
        exact = [i * max(num_samples - 32000, 0) / 8 for i in range(8)]
        assert np.abs(np.array(starts) - exact).max() <= 1
        assert all(end - start == 32000 for start, end in extractor.segment_bounds(num_samples))


def test_a_short_sound_is_padded_before_it_is_normalised(extractor):
    features = extractor(tone(seconds=1.0), sampling_rate=16000)["input_features"][0]
    assert all(np.array_equal(segment, features[0]) for segment in features)
    assert np.allclose(features[:, :, 98:], 4.268 / 9.138)


def test_only_the_first_channel_is_heard_and_all_count_for_the_mean(extractor):
    mono, stereo = tone(1), tone(2)
    features = extractor([mono, stereo], sampling_rate=16000, return_tensors="pt")["input_features"]
    assert torch.allclose(features[0], features[1], atol=0.05)
    swapped = extractor(stereo[::-1], sampling_rate=16000, return_tensors="pt")["input_features"][0]
    assert (swapped - features[1]).abs().mean() > 0.1


def test_the_waveform_passed_in_is_not_changed(extractor):
    waveform = torch.from_numpy(tone()) + 0.1
    before = waveform.clone()
    extractor(waveform, sampling_rate=16000)
    assert torch.equal(waveform, before)


def test_silence_is_a_sound(extractor):
    features = extractor(np.zeros(32000), sampling_rate=16000)["input_features"][0]
    assert np.isfinite(features).all()


def test_other_sizes_follow_the_options():
    extractor = VideoLlamaFeatureExtractor(num_mel_bins=32, num_mel_frames=50, num_segments=3, segment_duration=0.5)
    inputs = extractor(tone(), sampling_rate=16000, return_tensors="pt")
    assert inputs["input_features"].shape == (1, 3, 32, 50)
    assert inputs["input_features_mask"].shape == (1, 3)
    cut = VideoLlamaFeatureExtractor(num_mel_frames=20)(tone(), sampling_rate=16000)["input_features"][0]
    assert cut.shape == (8, 128, 20)


# Inputs
def test_waveforms_come_in_many_forms(extractor):
    mono = tone()[0]
    reference = extractor(mono, sampling_rate=16000)["input_features"][0]
    for batch in (
        mono.tolist(),
        [mono],
        [mono[None]],
        torch.from_numpy(mono),
        [mono.tolist()],
        mono[None, None],
        (mono,),
    ):
        features = extractor(batch, sampling_rate=16000)["input_features"]
        assert len(features) == 1
        assert np.array_equal(features[0], reference)
    assert len(extractor([mono, tone(2), [0.0] * 16000], sampling_rate=16000)["input_features"]) == 3
    assert len(extractor(np.stack([tone(2)] * 3), sampling_rate=16000)["input_features"]) == 3


def test_files_bytes_and_waveforms_share_a_batch(extractor, tmp_path):
    path = write_sound(tmp_path / "tone.wav", rate=16000)
    data = path.read_bytes()
    inputs = extractor([path, str(path), data, io.BytesIO(data), tone()], sampling_rate=16000, return_tensors="pt")
    features = inputs["input_features"]
    assert features.shape == (5, 8, 128, 204)
    for index in (1, 2, 3):
        assert torch.equal(features[index], features[0])
    assert (features[4] - features[0]).abs().mean() < 0.1


@pytest.mark.parametrize(("tensor_type", "kind"), [("pt", torch.Tensor), ("np", np.ndarray), (None, list)])
def test_results_come_in_the_type_asked_for(extractor, tensor_type, kind):
    inputs = extractor([tone(), tone(2)], sampling_rate=16000, return_tensors=tensor_type)
    assert list(inputs) == VideoLlamaFeatureExtractor.model_input_names
    assert all(isinstance(value, kind) for value in inputs.values())


def test_options_of_other_extractors_change_nothing(extractor):
    plain = extractor(tone(), sampling_rate=16000)["input_features"][0]
    padded = extractor(tone(), sampling_rate=16000, padding="max_length", max_length=300, truncation=True)
    assert np.array_equal(padded["input_features"][0], plain)


def test_fetch_audio_decodes_files_and_passes_waveforms_through(extractor, tmp_path):
    path = write_sound(tmp_path / "tone.wav", rate=44100, channels=2, seconds=1.0)
    waveform = extractor.fetch_audio(str(path))
    assert waveform.shape == (2, 16000)
    assert extractor.fetch_audio(path, sampling_rate=8000).shape == (2, 8000)
    nested = extractor.fetch_audio([[path, waveform], [path.read_bytes()]])
    assert [[sound.shape for sound in sounds] for sounds in nested] == [[(2, 16000)] * 2, [(2, 16000)]]
    assert extractor.fetch_audio([0.0, 0.5]).tolist() == [0.0, 0.5]
    resampled = extractor.fetch_audio({"array": waveform, "sampling_rate": 32000})
    assert resampled.shape == (2, 8000)


# Bad input
def test_another_sampling_rate_is_refused_and_a_missing_one_warned_about_once(extractor, tmp_path):
    with pytest.raises(ValueError, match="got sampling_rate=44100, expected 16000: resample"):
        extractor(tone(), sampling_rate=44100)
    feature_extraction_video_llama.logger.warning_once.cache_clear()
    with CaptureLogger(feature_extraction_video_llama.logger) as logs:
        extractor(write_sound(tmp_path / "tone.wav"))
        assert logs.io.getvalue() == ""
        extractor(tone())
        extractor(tone())
    assert logs.out.count("without `sampling_rate`") == 1


@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        (np.zeros((16000, 2)), "more channels than samples"),
        (np.zeros((1, 1, 1, 16000)), r"expected \(samples,\) or \(channels, samples\)"),
        (np.zeros((0, 16000)), r"has shape \(0, 16000\), expected"),
        (np.array([None] * 400), "is no array of numbers"),
        (np.zeros(0), "has 0 samples, expected 400 or more"),
        (np.zeros(399), "has 399 samples, expected 400 or more"),
        (np.full(16000, np.nan), "NaN or infinite"),
        (np.full(16000, np.inf), "NaN or infinite"),
        (np.full(16000, 1e300), "NaN or infinite"),
        (np.linspace(-1, 1, 16000) * 1e30, "samples of up to 1e\\+30, which are too large for a spectrogram"),
        (np.zeros(16000, np.int16), "int16 samples, expected floats .* divide"),
    ],
)
def test_waveforms_that_make_no_sense_are_refused(extractor, waveform, message):
    with pytest.raises(MediaError, match=f"sound 1 .*{message}"):
        extractor([tone(), waveform], sampling_rate=16000)


def test_nothing_and_other_objects_are_refused(extractor):
    for nothing in ([], [[]]):
        with pytest.raises(ValueError, match="empty list of sounds"):
            extractor(nothing)
    with pytest.raises(TypeError, match="got a int"):
        extractor(3)


def test_files_without_sound_are_named(extractor, tmp_path):
    with pytest.raises(NoAudioError, match="silent.mp4 has no audio track: pass load_audio_from_video=False"):
        extractor(write_clip(tmp_path / "silent.mp4", frames=5))
    with pytest.raises(MediaNotFoundError, match="none.wav does not exist"):
        extractor(tmp_path / "none.wav")
    (tmp_path / "notes.wav").write_text("not a sound")
    with pytest.raises(MediaError, match="notes.wav cannot be decoded as sound"):
        extractor(tmp_path / "notes.wav")


def test_a_missing_torchaudio_gives_the_versions_that_work_together(extractor, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchaudio", None)
    with pytest.raises(ImportError, match=r"'torch>=2.11,<2.15' 'torchaudio==2.11.\*'"):
        extractor(tone(), sampling_rate=16000)


# Saving
def test_saving_and_loading_keeps_every_option(tmp_path):
    extractor = VideoLlamaFeatureExtractor(num_segments=4, num_mel_bins=64, mean=-1.0, std=2.0)
    extractor.save_pretrained(tmp_path)
    reloaded = VideoLlamaFeatureExtractor.from_pretrained(tmp_path)
    assert reloaded.to_dict() == extractor.to_dict()
