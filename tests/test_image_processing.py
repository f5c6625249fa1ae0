# SPDX-License-Identifier: Apache-2.0
"""Stills: the original's pixels from any source."""

import base64
import io

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file

from transformers_videollama import VideoLlamaImageProcessor
from transformers_videollama.exceptions import MediaError, MediaNotFoundError

from .helpers import shared


@pytest.fixture(scope="module")
def processor():
    return VideoLlamaImageProcessor()


@pytest.fixture(scope="module")
def picture():
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", ["dog", "Iron_clothes"])
def test_pixels_are_those_of_the_original(processor, name):
    tensors = load_file(shared(f"parity/preprocess/image_{name}.safetensors"))
    pixels = processor(shared(f"clips/{name}.jpg"), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 224, 224)
    assert pixels.dtype == torch.float32
    assert torch.equal(pixels[0].half(), tensors["pixel_values"])
    pooled = torch.nn.functional.avg_pool2d(pixels[0], 16)
    assert (pooled - tensors["pixels_pool14"]).abs().max() < 1e-5
    assert (pixels[0].mean(dim=(1, 2)) - tensors["pixels_mean"]).abs().max() < 1e-5
    assert (pixels[0].std(dim=(1, 2)) - tensors["pixels_std"]).abs().max() < 1e-5


def test_any_source_gives_the_same_pixels(processor, picture, tmp_path):
    path = tmp_path / "picture.png"
    picture.save(path)
    data = path.read_bytes()
    array = np.array(picture)
    encoded = base64.b64encode(data).decode()
    sources = [
        path, str(path), path.as_uri(), data, io.BytesIO(data), encoded, f"data:image/png;base64,{encoded}",
        array, array.transpose(2, 0, 1), torch.from_numpy(array), torch.from_numpy(array).permute(2, 0, 1),
    ]  # fmt: skip
    reference = processor(picture, return_tensors="pt")["pixel_values"]
    for source in sources:
        assert torch.equal(processor(source, return_tensors="pt")["pixel_values"], reference)
    together = processor([[path], [data, picture]], return_tensors="pt")["pixel_values"]
    assert torch.equal(together, reference.expand(3, -1, -1, -1))


def test_pictures_of_different_sizes_share_a_batch(processor, picture):
    batch = [picture, picture.resize((10, 90)), np.array(picture)[:7]]
    assert processor(batch, return_tensors="np")["pixel_values"].shape == (3, 3, 224, 224)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_every_colour_mode_is_converted_as_the_original_does(processor, picture, mode):
    converted = picture.convert("RGBA" if mode == "LA" else mode).convert(mode)
    pixels = processor(converted, return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels, processor(converted.convert("RGB"), return_tensors="pt")["pixel_values"])


def test_files_are_turned_upright(processor, picture, tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to view
    picture.save(tmp_path / "turned.png", exif=exif)
    upright = processor(picture.transpose(PIL.Image.Transpose.ROTATE_270), return_tensors="pt")
    turned = processor(tmp_path / "turned.png", return_tensors="pt")
    assert torch.equal(turned["pixel_values"], upright["pixel_values"])


@pytest.mark.parametrize("shape", [(20, 30), (5, 20, 30), (20,), (1, 1, 3, 20, 30)])
def test_arrays_of_the_wrong_shape_are_refused(processor, shape):
    with pytest.raises(ValueError, match=r"an image has shape \(.*expected \(3, height, width\)"):
        processor(np.zeros(shape, dtype=np.uint8))


def test_nan_pixels_are_refused(processor):
    image = np.zeros((3, 20, 30), dtype=np.float32)
    image[0, 1, 2] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite pixels"):
        processor(image)


@pytest.mark.parametrize("image", [np.zeros((0, 20, 3), np.uint8), np.zeros((20, 30, 3), np.complex64)])
def test_arrays_that_hold_no_pixels_are_refused(processor, image):
    with pytest.raises(ValueError, match="an image has shape .* and type .*, expected pixels in it, and numbers"):
        processor(image)


@pytest.mark.parametrize("images", [[], [[]], ()])
def test_no_image_is_refused(processor, images):
    with pytest.raises(ValueError, match="got an empty list of images, expected at least one"):
        processor(images)


def test_files_that_cannot_be_read_are_named(processor, tmp_path):
    for missing in (tmp_path / "none.png", str(tmp_path / "none.png")):
        with pytest.raises(MediaNotFoundError, match="none.png does not exist"):
            processor(missing)
    (tmp_path / "notes.png").write_text("not a picture")
    with pytest.raises(MediaError, match="notes.png cannot be decoded as an image"):
        processor(tmp_path / "notes.png")
    with pytest.raises(TypeError, match="int"):
        processor(3)


def test_saving_and_loading_keeps_every_option(tmp_path):
    processor = VideoLlamaImageProcessor(size={"height": 32, "width": 48}, do_normalize=False)
    processor.save_pretrained(tmp_path)
    reloaded = VideoLlamaImageProcessor.from_pretrained(tmp_path)
    assert reloaded.to_dict() == processor.to_dict()
    assert reloaded(np.zeros((3, 20, 20), np.uint8), return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 48)
