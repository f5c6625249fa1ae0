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
"""
Sound for Video-LLaMA: eight overlapping or spaced segments of two seconds, each as a log-mel spectrogram.

The method is that of ImageBind's audio input (arXiv 2305.05665) as Video-LLaMA (arXiv 2306.02858) uses it, reproduced
to the last step: the original subtracts the mean of each segment in place, so where segments overlap, a later one
starts from samples that earlier ones have shifted. It matters only to bands with next to no energy: without it, single
values of the normalised spectrograms in the parity data move by up to 0.44 and the others by less than 0.02.
"""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor
from transformers.feature_extraction_utils import BatchFeature
from transformers.utils import TensorType, logging

from .exceptions import MediaError
from .media import import_torchaudio, is_media_source, read_audio


logger = logging.get_logger(__name__)

# Milliseconds, from Kaldi's defaults: the window of the short-time Fourier transform and the step between windows.
FRAME_LENGTH = 25.0
FRAME_SHIFT = 10.0


class VideoLlamaFeatureExtractor(SequenceFeatureExtractor):
    r"""
    Turns sounds into the `input_features` and `input_features_mask` of Video-LLaMA's audio branch.

    Args:
        feature_size (`int`, *optional*, defaults to 1):
            Values per sample of the waveform, as the library's padding needs it. The number of mel bins is
            `num_mel_bins`.
        sampling_rate (`int`, *optional*, defaults to 16000):
            Rate in Hz of the waveforms.
        padding_value (`float`, *optional*, defaults to 0.0):
            What `pad` pads waveforms with.
        num_mel_bins (`int`, *optional*, defaults to 128):
            Mel bins of a spectrogram.
        num_mel_frames (`int`, *optional*, defaults to 204):
            Frames that a spectrogram is cut or zero-padded to. Two seconds give 198.
        num_segments (`int`, *optional*, defaults to 8):
            Segments per sound. They start at equal distances, and overlap if the sound is short. A sound shorter than
            a segment gives the same one each time.
        segment_duration (`float`, *optional*, defaults to 2.0):
            Length of a segment in seconds.
        mean (`float`, *optional*, defaults to -4.268):
            Mean that spectrograms are normalised with, after padding: the padding is not zero in the output.
        std (`float`, *optional*, defaults to 9.138):
            Standard deviation that spectrograms are normalised with.

    Example:

    ```python
    >>> feature_extractor = VideoLlamaFeatureExtractor()
    >>> inputs = feature_extractor(["clip.mp4", "bark.wav"], return_tensors="pt")
    >>> inputs["input_features"].shape
    torch.Size([2, 8, 128, 204])
    ```
    """

    model_input_names = ["input_features", "input_features_mask"]

    def __init__(
        self,
        feature_size: int = 1,
        sampling_rate: int = 16000,
        padding_value: float = 0.0,
        num_mel_bins: int = 128,
        num_mel_frames: int = 204,
        num_segments: int = 8,
        segment_duration: float = 2.0,
        mean: float = -4.268,
        std: float = 9.138,
        **kwargs,
    ):
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        self.num_mel_bins = num_mel_bins
        self.num_mel_frames = num_mel_frames
        self.num_segments = num_segments
        self.segment_duration = segment_duration
        self.mean = mean
        self.std = std

    def __call__(
        self,
        raw_speech: Any,
        sampling_rate: int | None = None,
        return_tensors: str | TensorType | None = None,
        **kwargs,
    ) -> BatchFeature:
        """
        Prepare one sound or a batch.

        Args:
            raw_speech:
                Each sound is a path, a URL, the bytes of a file or a binary file-like object, resampled as needed; or
                an array, tensor or list of floats between -1 and 1, of shape `(samples,)` or `(channels, samples)`. A
                batch is a list of sounds, or an array with three dimensions. An array with two is one sound of several
                channels.
            sampling_rate (`int`, *optional*):
                Rate in Hz of the arrays: naming it guards against sounds at another one. Files state their own.
            return_tensors (`"pt"` or `"np"`, *optional*):
                Type of the result; a list of arrays per sound if not given.
            kwargs:
                Options of other feature extractors (`padding`, `max_length`, `truncation`, …), which have no effect:
                all sounds become equally long.

        Returns:
            `BatchFeature`:

            - **input_features** of shape `(sounds, num_segments, num_mel_bins, num_mel_frames)`, float32.
            - **input_features_mask** of shape `(sounds, num_segments)`, int64: 1 where a segment is real. All are.

        Raises:
            MediaError: a file cannot be read; `NoAudioError` if it has no sound. A sound, of a file or given as a
                waveform, has the wrong shape, is empty or shorter than one window of 25 ms, holds NaN, integers or samples
                too large for a spectrogram.
            ValueError: `sampling_rate` is not that of the extractor, or there is no sound.
            ImportError: torchaudio is missing or does not load.
        """
        if sampling_rate is not None and sampling_rate != self.sampling_rate:
            raise ValueError(
                f"got sampling_rate={sampling_rate}, expected {self.sampling_rate}: resample the sound with "
                "torchaudio.functional.resample, or pass the path of its file, which is resampled for you"
            )
        sounds = _flatten(raw_speech)
        if not sounds:
            raise ValueError("got an empty list of sounds, expected at least one")
        if sampling_rate is None and not all(is_media_source(sound) for sound in sounds):
            logger.warning_once(
                f"{type(self).__name__} got waveforms without `sampling_rate`: it takes them to be at "
                f"{self.sampling_rate} Hz, and a wrong rate gives wrong features without an error."
            )

        features = []
        for index, sound in enumerate(sounds):
            if is_media_source(sound):
                sound = self.fetch_audio(sound)
            waveform = self._to_waveform(sound, index)
            spectrograms = self._extract(waveform)
            if not np.isfinite(spectrograms).all():
                raise MediaError(
                    f"sound {index} has samples of up to {waveform.abs().max():g}, which are too large for a spectrogram, "
                    "expected floats between -1 and 1: scale it"
                )
            features.append(spectrograms)
        return BatchFeature(
            {
                "input_features": features,
                "input_features_mask": [np.ones(self.num_segments, dtype=np.int64) for _ in features],
            },
            tensor_type=return_tensors,
        )

    def fetch_audio(self, audio_url_or_urls: Any, sampling_rate: int | None = None):
        """
        Decode what is not decoded yet, in lists of any depth; pass waveforms through. The library's own version
        decodes no video file without a system FFmpeg, and mixes channels.

        Args:
            audio_url_or_urls (`str`, `os.PathLike`, `bytes`, binary file-like, waveform, or a list of these):
                What to decode: sound files, videos with a sound track, and what `datasets` decodes a sound to,
                `{"array": …, "sampling_rate": …}`.
            sampling_rate (`int`, *optional*, defaults to `self.sampling_rate`):
                Rate in Hz to resample to.

        Returns:
            Waveforms of shape `(channels, samples)`, float32, nested as they came.

        Raises:
            MediaError: a file cannot be read; `NoAudioError` if it has no sound.
        """
        if isinstance(audio_url_or_urls, Mapping):
            waveform = torch.as_tensor(np.asarray(audio_url_or_urls["array"]), dtype=torch.float32)
            rates = audio_url_or_urls["sampling_rate"], sampling_rate or self.sampling_rate
            return import_torchaudio().functional.resample(waveform, *rates).numpy()
        if _is_waveform_list(audio_url_or_urls):
            return np.asarray(audio_url_or_urls, dtype=np.float32)
        if is_media_source(audio_url_or_urls):
            return read_audio(audio_url_or_urls, sampling_rate or self.sampling_rate)[0]
        if isinstance(audio_url_or_urls, list | tuple):
            return [self.fetch_audio(audio, sampling_rate) for audio in audio_url_or_urls]
        return audio_url_or_urls

    def segment_bounds(self, num_samples: int) -> list[tuple[int, int]]:
        """
        First sample and end of each segment of a sound: segment `i` starts at `i * (duration - 2 s) / 8`, at 0 if the
        sound is shorter than a segment. Ends may lie beyond the sound.

        The steps are those of pytorchvideo 0.1.5's `ConstantClipsPerVideoSampler`, floating-point duration included: a
        simpler formula is off by one sample for some lengths.

        Args:
            num_samples (`int`):
                Length of the sound at `self.sampling_rate`.

        Returns:
            `list[tuple[int, int]]`: `num_segments` pairs.
        """
        duration = Fraction(self.segment_duration)
        step = Fraction(max(num_samples / self.sampling_rate - duration, 0)) / self.num_segments
        starts = [step * index for index in range(self.num_segments)]
        return [(int(start * self.sampling_rate), int((start + duration) * self.sampling_rate)) for start in starts]

    def _to_waveform(self, sound: Any, index: int) -> torch.Tensor:
        """Check one sound, and bring it to shape `(channels, samples)`, float32."""
        try:
            waveform = sound.detach().cpu() if isinstance(sound, torch.Tensor) else torch.from_numpy(np.array(sound))
        except (TypeError, ValueError) as error:
            raise MediaError(
                f"sound {index} is no array of numbers ({error}), expected shape (samples,) or (channels, samples)"
            ) from error
        name, shape = f"sound {index}", tuple(waveform.shape)
        if waveform.ndim not in (1, 2) or shape[0] == 0 < shape[-1]:
            raise MediaError(f"{name} has shape {shape}, expected (samples,) or (channels, samples)")
        if waveform.ndim == 2 and shape[0] > shape[1]:
            raise MediaError(
                f"{name} has shape {shape}, more channels than samples, expected (channels, samples): transpose it"
            )
        if waveform.numel() and not waveform.is_floating_point():
            raise MediaError(
                f"{name} holds {waveform.dtype} samples, expected floats between -1 and 1: divide 16-bit samples by "
                "32768"
            )
        shortest = int(FRAME_LENGTH * self.sampling_rate / 1000)
        if shape[-1] < shortest:
            raise MediaError(
                f"{name} has {shape[-1]} samples, expected {shortest} or more ({FRAME_LENGTH:g} ms at "
                f"{self.sampling_rate} Hz)"
            )
        waveform = waveform.float()
        if not torch.isfinite(waveform).all():
            raise MediaError(f"{name} holds NaN or infinite samples: check how it was recorded or computed")
        return waveform.reshape(-1, shape[-1])

    def _extract(self, waveform: torch.Tensor) -> np.ndarray:
        """Waveform `(channels, samples)` to log-mel segments `(num_segments, num_mel_bins, num_mel_frames)`."""
        fbank = import_torchaudio().compliance.kaldi.fbank
        waveform = waveform.clone()  # the caller's stays as it is
        segments = []
        for start, end in self.segment_bounds(waveform.shape[1]):
            segment = waveform[:, start:end]
            # In place, as in the original (see the top of this file). The mean is that of all channels, the
            # spectrogram that of the first.
            segment -= segment.mean()
            mel = fbank(
                segment,
                channel=0,
                dither=0.0,
                frame_length=FRAME_LENGTH,
                frame_shift=FRAME_SHIFT,
                htk_compat=True,
                num_mel_bins=self.num_mel_bins,
                sample_frequency=self.sampling_rate,
                use_energy=False,
                window_type="hanning",
            ).T  # (num_mel_bins, frames)
            mel = mel[:, : self.num_mel_frames]
            mel = torch.nn.functional.pad(mel, (0, self.num_mel_frames - mel.shape[1]))
            segments.append((mel - self.mean) / self.std)
        return torch.stack(segments).numpy()


def _is_waveform_list(value: Any) -> bool:
    """Whether a list holds samples, as opposed to sounds."""
    return isinstance(value, list | tuple) and (len(value) == 0 or isinstance(value[0], int | float | np.number))


def _flatten(sounds: Any) -> list:
    """One entry per sound."""
    if isinstance(sounds, list | tuple):
        if _is_waveform_list(sounds):
            return [sounds] if sounds else []
        return [waveform for sound in sounds for waveform in _flatten(sound)]
    if isinstance(sounds, np.ndarray | torch.Tensor) and sounds.ndim == 3:
        return list(sounds)
    if isinstance(sounds, np.ndarray | torch.Tensor) or is_media_source(sounds):
        return [sounds]
    raise TypeError(f"got a {type(sounds).__name__}, expected a path, URL, bytes, array, tensor or list of floats")


__all__ = ["VideoLlamaFeatureExtractor"]
