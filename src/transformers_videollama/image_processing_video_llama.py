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
Still pictures for Video-LLaMA: 224x224 pixels by Pillow's bicubic filter, aspect ratio not kept, scaled to 0..1 and
normalised with CLIP's mean and standard deviation (the evaluation processor of BLIP-2, which the original uses).
"""

from contextlib import suppress
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import (
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    ImageInput,
    PILImageResampling,
    load_image,
)

from .exceptions import MediaNotFoundError
from .media import is_media_source, is_url, read_image


# trf-ignore: TRF057 (outside of the library's tree the decorator leaves its placeholders in the text)
class VideoLlamaImageProcessor(PilBackend):
    r"""
    Turns pictures into the `pixel_values` of Video-LLaMA, of shape `(images, 3, height, width)`.

    Pictures are paths, URLs, bytes, binary file-like objects, base64 strings, `PIL` images, arrays or tensors, one or
    a list. Resizing is Pillow's on the CPU, because other bicubic filters differ from the one that the model was
    trained with. Files are turned upright if their EXIF data says how the camera was held; the original leaves them
    lying.

    Args:
        size (`dict[str, int]`, *optional*, defaults to `{"height": 224, "width": 224}`):
            Size of the output in pixels.
        kwargs:
            The other options of [`~transformers.processing_utils.ImagesKwargs`].
    """

    resample = PILImageResampling.BICUBIC
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    size = {"height": 224, "width": 224}
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    model_input_names = ["pixel_values"]

    def fetch_images(self, image_url_or_urls: Any):
        """
        Load what is not loaded yet, in lists of any depth; pass arrays, tensors and `PIL` images through.

        Args:
            image_url_or_urls (`str`, `os.PathLike`, `bytes`, binary file-like, image, or a list of these):
                What to load. The library's own version takes strings only.

        Returns:
            The images, nested as they came.

        Raises:
            MediaNotFoundError: a path or URL leads to nothing.
            MediaError: a file is no picture or is damaged.
        """
        if isinstance(image_url_or_urls, list | tuple):
            return [self.fetch_images(image) for image in image_url_or_urls]
        if isinstance(image_url_or_urls, np.ndarray | torch.Tensor) and image_url_or_urls.ndim not in (3, 4):
            raise _wrong_shape(image_url_or_urls)
        if not is_media_source(image_url_or_urls):
            return super().fetch_images(image_url_or_urls)
        try:
            return read_image(image_url_or_urls)
        except MediaNotFoundError:
            # Chat templates hand base64 over as a plain string, which is no path.
            if not isinstance(image_url_or_urls, str) or is_url(image_url_or_urls):
                raise
            with suppress(ValueError):
                return load_image(image_url_or_urls)
            raise

    # trf-ignore: TRF057 (outside of the library's tree the decorator leaves its placeholders in the text)
    def preprocess(self, images: ImageInput, *args, **kwargs) -> BatchFeature:
        """
        See the library's method.

        Raises:
            MediaError: a file cannot be read.
            ValueError: an array is of the wrong shape or type, or holds NaN; the list of images is empty.
        """
        if _is_empty(images):
            raise ValueError("got an empty list of images, expected at least one")
        return super().preprocess(images, *args, **kwargs)

    def process_image(
        self, image: ImageInput, do_convert_rgb: bool | None = None, input_data_format: str | None = None, **kwargs
    ) -> np.ndarray:
        """
        Bring one picture to an array of shape `(channels, height, width)`.

        Raises:
            ValueError: an array is of the wrong shape or type, or holds NaN.
        """
        if isinstance(image, torch.Tensor):
            image = image.detach().cpu().numpy()
        if isinstance(image, np.ndarray):
            if input_data_format is None and not {1, 3, 4}.intersection((image.shape[0], image.shape[-1])):
                raise _wrong_shape(image)
            if 0 in image.shape or image.dtype.kind not in "biuf":
                raise ValueError(
                    f"an image has shape {image.shape} and type {image.dtype}, expected pixels in it, and numbers from 0 to 255 "
                    "or from 0 to 1"
                )
            if np.issubdtype(image.dtype, np.floating) and not np.isfinite(image).all():
                raise ValueError("an image holds NaN or infinite pixels: check how it was computed")
        return super().process_image(image, do_convert_rgb, input_data_format, **kwargs)

    def convert_to_rgb(self, image: ImageInput, input_data_format: str | None = None) -> np.ndarray:
        """
        Bring one picture to three channels. Of a `PIL` image the transparency is dropped, as in the original; the
        library puts it on white, as this does for arrays with four channels.
        """
        if isinstance(image, PIL.Image.Image):
            return np.array(image.convert("RGB"))
        return super().convert_to_rgb(image, input_data_format)


def _is_empty(images: Any) -> bool:
    """Whether a list, of lists perhaps, holds no image."""
    return isinstance(images, list | tuple) and all(map(_is_empty, images))


def _wrong_shape(image: np.ndarray | torch.Tensor) -> ValueError:
    return ValueError(
        f"an image has shape {tuple(image.shape)}, expected (3, height, width) or (height, width, 3), or one "
        "dimension more for a batch"
    )


__all__ = ["VideoLlamaImageProcessor"]
