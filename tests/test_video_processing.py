# SPDX-License-Identifier: Apache-2.0
"""Frames: the original's choice and pixels, any mixture of inputs in a batch, and masks where it is ragged."""

import io

import numpy as np
import PIL.Image
import pytest
import torch
from transformers.testing_utils import CaptureLogger
from transformers.trainer_utils import set_seed
from transformers.video_utils import VideoMetadata

from transformers_videollama import VideoLlamaVideoProcessor, media, video_processing_video_llama
from transformers_videollama.exceptions import MediaError, MediaNotFoundError
from transformers_videollama.video_processing_video_llama import make_flat_list_of_videos

from .helpers import clip, expected
from .media_files import write_clip


CLIPS = ["dog_barking", "boat", "silence_girl", "birthday"]


@pytest.fixture(scope="module")
def processor():
    return VideoLlamaVideoProcessor()


@pytest.fixture(scope="module")
def small_clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("video") / "small.mp4", frames=30)


@pytest.fixture(scope="module")
def short_clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("video") / "short.mp4", frames=3)


def array(frames: int = 12, height: int = 20, width: int = 30) -> np.ndarray:
    return np.random.default_rng(frames).integers(0, 255, (frames, height, width, 3), dtype=np.uint8)


# The original's frames
@pytest.mark.parametrize("name", CLIPS)
def test_pixels_frames_and_times_are_those_of_the_original(processor, name):
    facts, tensors = expected(name)
    inputs = processor(clip(name), return_tensors="pt", return_metadata=True)
    assert inputs["pixel_values_videos"].shape == (1, 8, 3, 224, 224)
    assert inputs["video_frame_mask"].tolist() == [[1] * 8]
    metadata = inputs["video_metadata"][0]
    assert metadata.frames_indices == facts["frame_indices"]
    times = ", ".join(str(round(time, 1)) for time in metadata.timestamps)
    assert f"The video contains 8 frames sampled at {times} seconds. " == facts["message"]

    pixels = inputs["pixel_values_videos"][0].transpose(0, 1)  # (3, frames, height, width)
    pooled = torch.nn.functional.avg_pool2d(pixels, 16)
    assert (pooled - tensors["pixels_pool14"]).abs().max() < 1e-5
    assert (pixels.mean(dim=(2, 3)).T - tensors["pixels_frame_mean"]).abs().max() < 1e-5
    assert (pixels.std(dim=(2, 3)).T - tensors["pixels_frame_std"]).abs().max() < 1e-5
    if "pixel_values" in tensors:
        assert torch.equal(pixels.half(), tensors["pixel_values"])


@pytest.mark.parametrize("name", CLIPS)
def test_pixels_without_decord_are_the_same(processor, name, monkeypatch):
    with_decord = processor(clip(name), return_tensors="pt")
    read_with_pyav = lambda source, fn, size: media.read_video(source, fn, size, backend="pyav")  # noqa: E731
    monkeypatch.setattr(video_processing_video_llama, "read_video", read_with_pyav)
    with_pyav = processor(clip(name), return_tensors="pt")
    assert torch.equal(with_decord["pixel_values_videos"], with_pyav["pixel_values_videos"])


def test_frames_decoded_beforehand_differ_by_the_resizing_alone(processor):
    frames, metadata = media.read_video(clip("boat"))
    from_file = processor(clip("boat"), return_tensors="pt", return_metadata=True)
    from_array = processor(frames, video_metadata=[metadata], return_tensors="pt", return_metadata=True)
    assert from_array["video_metadata"][0].timestamps == from_file["video_metadata"][0].timestamps
    difference = from_array["pixel_values_videos"] - from_file["pixel_values_videos"]
    assert difference.abs().mean() * 0.27 < 2 / 255


# Sampling
def test_uniform_sampling_never_gives_more_frames_than_asked_for_or_there(processor):
    for total in range(1, 201):
        for num_frames in range(1, 41):
            indices = processor.sample_frames(VideoMetadata(total_num_frames=total), num_frames=num_frames)
            assert len(indices) == min(num_frames, total)
            assert indices[0] == 0
            assert indices[-1] < total
            assert len(indices) == 1 or np.diff(indices).min() >= 1


def test_headtail_takes_half_of_the_frames_from_each_half(processor):
    for total in range(1, 60):
        for num_frames in range(1, 12):
            metadata = VideoMetadata(total_num_frames=total)
            indices = processor.sample_frames(metadata, num_frames=num_frames, sampling="headtail")
            count = min(num_frames, total)
            assert len(set(indices.tolist())) == len(indices) == count
            assert (np.sort(indices) == indices).all()
            assert (indices < total // 2).sum() == count // 2
            assert 0 <= indices[0]
            assert indices[-1] < total


def test_headtail_is_reproducible_by_its_seed_and_by_the_global_one(processor):
    metadata = VideoMetadata(total_num_frames=1000)
    by_seed = [processor.sample_frames(metadata, sampling="headtail", seed=seed).tolist() for seed in (1, 1, 2)]
    assert by_seed[0] == by_seed[1] != by_seed[2]
    by_global_seed = []
    for _ in range(2):
        set_seed(7)
        by_global_seed.append(processor.sample_frames(metadata, sampling="headtail").tolist())
    assert by_global_seed[0] == by_global_seed[1]


def test_a_seeded_clip_gets_the_same_frames_in_any_batch(processor, small_clip):
    options = {"sampling": "headtail", "seed": 3, "num_frames": 4, "return_metadata": True}
    alone = processor(small_clip, **options)["video_metadata"][0].frames_indices
    in_batch = processor([array(), small_clip], **options)["video_metadata"][1].frames_indices
    assert alone == in_batch


def test_fps_samples_by_time_and_pushes_the_default_number_aside(processor, small_clip):
    inputs = processor(small_clip, fps=2, return_tensors="pt", return_metadata=True)
    assert inputs["video_metadata"][0].frames_indices == [0, 5, 10, 15, 20, 25]
    assert len(processor(small_clip, fps=100)["pixel_values_videos"][0]) == 30
    assert len(processor(small_clip, fps=0.01)["pixel_values_videos"][0]) == 1
    assert len(processor(small_clip, num_frames=4)["pixel_values_videos"][0]) == 4


def test_fps_and_num_frames_exclude_each_other(processor, small_clip, tmp_path):
    for call in (
        lambda: processor(small_clip, fps=2, num_frames=4),
        lambda: processor.sample_frames(VideoMetadata(total_num_frames=30, fps=10), fps=2, num_frames=4),
        lambda: VideoLlamaVideoProcessor(fps=2, num_frames=4),
    ):
        with pytest.raises(ValueError, match=r"num_frames=4 and fps=2: they exclude each other"):
            call()
    by_fps = VideoLlamaVideoProcessor(fps=2)
    assert len(by_fps(small_clip)["pixel_values_videos"][0]) == 6
    assert len(by_fps(small_clip, num_frames=4)["pixel_values_videos"][0]) == 4
    by_fps.save_pretrained(tmp_path)
    reloaded = VideoLlamaVideoProcessor.from_pretrained(tmp_path)
    assert (reloaded.fps, reloaded.num_frames) == (2, None)
    changed = VideoLlamaVideoProcessor.from_pretrained(tmp_path, num_frames=5)
    assert (changed.fps, changed.num_frames) == (None, 5)


def test_sampling_that_makes_no_sense_is_refused(processor):
    metadata = VideoMetadata(total_num_frames=30)
    with pytest.raises(ValueError, match="does not state its own frame rate"):
        processor.sample_frames(metadata, fps=2)
    with pytest.raises(ValueError, match="does not state its own frame rate"):
        processor(array(), fps=2)
    with pytest.raises(ValueError, match="expected 'uniform' or 'headtail'"):
        processor.sample_frames(metadata, sampling="random")
    with pytest.raises(ValueError, match="got seed=-1, expected a number from 0 on"):
        processor.sample_frames(metadata, sampling="headtail", seed=-1)
    with pytest.raises(ValueError, match="cannot sample 0 of 30 frames"):
        processor.sample_frames(metadata, num_frames=0)


def test_all_frames_are_used_when_sampling_is_off(processor, small_clip):
    inputs = processor([small_clip, array()], do_sample_frames=False, return_metadata=True)
    assert [mask.sum() for mask in inputs["video_frame_mask"]] == [30, 12]
    assert inputs["video_metadata"][1].frames_indices == list(range(12))


# Batches
def test_a_batch_may_mix_all_forms_of_video(processor, small_clip, short_clip):
    frames = array()
    pictures = [PIL.Image.fromarray(frame) for frame in frames[:2]]
    videos = [
        str(small_clip), small_clip, small_clip.read_bytes(), io.BytesIO(small_clip.read_bytes()), short_clip,
        frames, torch.from_numpy(frames).permute(0, 3, 1, 2), list(frames), pictures, media.MediaSource.of(small_clip),
    ]  # fmt: skip
    inputs = processor(videos, return_tensors="pt", return_metadata=True)
    pixels, mask = inputs["pixel_values_videos"], inputs["video_frame_mask"]
    assert pixels.shape == (10, 8, 3, 224, 224)
    assert mask.sum(dim=1).tolist() == [8, 8, 8, 8, 3, 8, 8, 8, 2, 8]
    for index in (1, 2, 3, 9):
        assert torch.equal(pixels[index], pixels[0])
    for index in (6, 7):
        assert torch.equal(pixels[index], pixels[5])
    assert [len(metadata.frames_indices) for metadata in inputs["video_metadata"]] == mask.sum(dim=1).tolist()


def test_short_videos_are_padded_with_zeros_and_masked(processor, small_clip, short_clip):
    inputs = processor([short_clip, small_clip], return_tensors="pt")
    assert inputs["video_frame_mask"].tolist() == [[1, 1, 1, 0, 0, 0, 0, 0], [1] * 8]
    assert inputs["video_frame_mask"].dtype == torch.int64
    assert (inputs["pixel_values_videos"][0, 3:] == 0).all()
    alone = processor(short_clip, return_tensors="pt")
    assert alone["pixel_values_videos"].shape[1] == 3
    assert torch.equal(inputs["pixel_values_videos"][0, :3], alone["pixel_values_videos"][0])


@pytest.mark.parametrize("tensor_type", ["pt", "np", None])
def test_results_come_in_the_type_asked_for(processor, short_clip, tensor_type):
    inputs = processor([short_clip, array()], return_tensors=tensor_type)
    kind = {"pt": torch.Tensor, "np": np.ndarray, None: list}[tensor_type]
    assert list(inputs) == VideoLlamaVideoProcessor.model_input_names
    assert all(isinstance(value, kind) for value in inputs.values())
    assert [tuple(video.shape) for video in inputs["pixel_values_videos"]] == [(8, 3, 224, 224)] * 2


def test_nested_batches_of_chat_templates_are_flattened(processor, small_clip, short_clip):
    nested = [[str(small_clip)], [], [str(short_clip), array()]]
    assert processor(nested, return_tensors="pt")["video_frame_mask"].sum(dim=1).tolist() == [8, 3, 8]
    assert len(make_flat_list_of_videos(nested)) == 3


def test_frames_may_be_files_of_pictures(processor, tmp_path):
    frames = array(frames=3)
    paths = []
    for index, frame in enumerate(frames):
        paths.append(str(tmp_path / f"{index}.png"))
        PIL.Image.fromarray(frame).save(paths[-1])
    from_files = processor([[paths]], return_tensors="pt")["pixel_values_videos"]
    assert torch.equal(from_files, processor(frames, return_tensors="pt")["pixel_values_videos"])


def test_one_picture_and_batches_in_one_array_are_videos(processor):
    assert processor(PIL.Image.new("RGB", (20, 30)), return_tensors="pt")["video_frame_mask"].tolist() == [[1]]
    assert processor(array()[0], return_tensors="pt")["video_frame_mask"].tolist() == [[1]]
    assert processor(np.stack([array()] * 2), return_tensors="pt")["pixel_values_videos"].shape[:2] == (2, 8)


def test_channels_are_found_and_converted_to_three(processor):
    frames = array()
    pixels = processor(frames, return_tensors="pt")["pixel_values_videos"]
    first = processor(frames.transpose(0, 3, 1, 2), return_tensors="pt")["pixel_values_videos"]
    assert torch.equal(first, pixels)
    opaque = np.concatenate([frames, np.full_like(frames[..., :1], 255)], axis=-1)
    assert torch.allclose(processor(opaque, return_tensors="pt")["pixel_values_videos"], pixels, atol=0.01)
    grey = processor(frames[..., :1], return_tensors="pt", do_normalize=False)["pixel_values_videos"]
    assert grey.shape[2] == 3
    assert torch.equal(grey[:, :, 0], grey[:, :, 2])
    ambiguous = frames[:, :3]
    last = processor(ambiguous, input_data_format="channels_last", return_tensors="pt")["pixel_values_videos"]
    assert last.shape == (1, 8, 3, 224, 224)


def test_other_sizes_crops_and_no_resizing(processor, small_clip):
    assert processor(small_clip, size={"height": 30, "width": 40})["pixel_values_videos"][0].shape[2:] == (30, 40)
    assert processor(small_clip, size=32)["pixel_values_videos"][0].shape[2:] == (32, 32)
    assert processor(small_clip, size={"shortest_edge": 24})["pixel_values_videos"][0].shape[2:] == (24, 32)
    assert processor(small_clip, do_resize=False)["pixel_values_videos"][0].shape[2:] == (48, 64)
    cropped = processor(small_clip, do_center_crop=True, crop_size={"height": 10, "width": 12})
    assert cropped["pixel_values_videos"][0].shape[2:] == (10, 12)
    with pytest.raises(ValueError, match="different shapes"):
        processor([small_clip, array()], do_resize=False, return_tensors="pt")


@pytest.mark.parametrize(
    "size", [[8], {"height": 10**30, "width": 8}, {"height": 8, "width": 0}, {"shortest_edge": -1}]
)
def test_sizes_that_make_no_sense_are_refused(processor, size):
    with pytest.raises(ValueError, match=r"got size=.*expected a"):
        processor(array(), size=size)


def test_values_are_scaled_and_normalised(processor):
    white = processor(np.full((2, 8, 8, 3), 255, np.uint8), return_tensors="pt")["pixel_values_videos"]
    mean, std = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
    assert torch.allclose(white[0, 0, :, 0, 0], (1 - mean) / std, atol=1e-5)
    with CaptureLogger(video_processing_video_llama.logger) as logs:
        scaled = processor(np.ones((2, 8, 8, 3), np.float32), do_rescale=False, return_tensors="pt")
        assert torch.allclose(scaled["pixel_values_videos"], white, atol=1e-5)
        video_processing_video_llama.logger.warning_once.cache_clear()
        processor(np.ones((2, 8, 8, 3), np.float32))
    assert logs.out.count("pass do_rescale=False") == 1


# Metadata
def test_metadata_of_decoded_frames_give_their_times(processor):
    inputs = processor(array(20), video_metadata={"total_num_frames": 20, "fps": 10.0}, return_metadata=True)
    assert inputs["video_metadata"][0].timestamps == [0.0, 0.2, 0.5, 0.7, 1.0, 1.2, 1.5, 1.7]
    nested = [[{"total_num_frames": 20, "fps": 10.0}], [VideoMetadata(total_num_frames=12, fps=4.0)]]
    inputs = processor([array(20), array(12)], video_metadata=nested, fps=2, return_metadata=True)
    assert [len(metadata.frames_indices) for metadata in inputs["video_metadata"]] == [4, 6]


def test_metadata_passed_in_are_not_changed_and_frames_sampled_before_keep_their_times(processor, small_clip):
    frames, metadata = media.read_video(small_clip, lambda metadata: [0, 7, 29])
    inputs = processor(frames, video_metadata=[metadata], do_sample_frames=False, return_metadata=True)
    assert inputs["video_metadata"][0].timestamps == [0.0, 0.7, 2.9]
    given = VideoMetadata(total_num_frames=12, fps=4.0)
    processor(array(12), video_metadata=[given])
    assert given.frames_indices is None


def test_metadata_that_do_not_fit_are_refused(processor):
    with pytest.raises(ValueError, match="got 2 videos and 1 video_metadata"):
        processor([array(), array()], video_metadata=[{"total_num_frames": 12}])
    with pytest.raises(ValueError, match=r"says 170 frames, but videos\[0\] has 12: .* do_sample_frames=False"):
        processor(array(), video_metadata={"total_num_frames": 170, "fps": 24})
    for fields in ({}, {"fps": 24}, {"total_num_frames": 12, "colour": "red"}):
        with pytest.raises(ValueError, match=r"video_metadata\[0\] is .*expected a VideoMetadata or its fields"):
            processor(array(), video_metadata=fields)


# Bad input
@pytest.mark.parametrize("shape", [(8, 20, 30, 5), (8, 7, 20, 30), (20, 30)])
def test_arrays_of_the_wrong_shape_are_refused(processor, shape):
    with pytest.raises(ValueError, match=r"shape \(.*expected \(frames, 3, height, width\)"):
        processor(np.zeros(shape, np.uint8))


def test_videos_without_frames_or_pixels_are_refused(processor):
    with pytest.raises(MediaError, match=r"videos\[1\] has no frames"):
        processor([array(), np.zeros((0, 20, 30, 3), np.uint8)])
    with pytest.raises(ValueError, match=r"videos\[1\] holds pixels that are too large"):
        processor([array(), np.full((2, 20, 30, 3), 1e39)])
    mixed = [PIL.Image.new("RGB", (30, 20)), np.zeros((20, 30, 3), np.uint8)]
    with pytest.raises(ValueError, match=r"videos\[0\] are of different kinds, \['ndarray', 'picture'\]"):
        processor([mixed])
    with pytest.raises(ValueError, match="expected pixels in it"):
        processor(np.zeros((4, 0, 30, 3), np.uint8))
    for nothing in ([], [[]]):
        with pytest.raises(ValueError, match="empty list of videos"):
            processor(nothing)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinite_pixels_are_refused(processor, value):
    frames = array().astype(np.float32)
    frames[0, 3, 4, 1] = value
    with pytest.raises(ValueError, match=r"videos\[1\] holds NaN or infinite pixels"):
        processor([array(), frames])


def test_frames_of_different_sizes_in_one_video_are_refused(processor):
    with pytest.raises(ValueError, match=r"the frames of videos\[0\] have different shapes"):
        processor([PIL.Image.new("RGB", (20, 30)), PIL.Image.new("RGB", (30, 20))])


def test_files_that_cannot_be_read_are_named(processor, tmp_path):
    with pytest.raises(MediaNotFoundError, match="none.mp4 does not exist"):
        processor([array(), tmp_path / "none.mp4"])
    (tmp_path / "notes.mp4").write_text("not a video")
    with pytest.raises(MediaError, match="notes.mp4 cannot be decoded as a video"):
        processor(tmp_path / "notes.mp4")
    with pytest.raises(TypeError, match="got a int"):
        processor([3])


# Saving
def test_saving_and_loading_keeps_every_option(tmp_path):
    processor = VideoLlamaVideoProcessor(num_frames=4, sampling="headtail", seed=5, size={"height": 32, "width": 48})
    processor.save_pretrained(tmp_path)
    reloaded = VideoLlamaVideoProcessor.from_pretrained(tmp_path)
    assert reloaded.to_dict() == processor.to_dict()
    assert (reloaded.num_frames, reloaded.sampling, reloaded.seed) == (4, "headtail", 5)
    assert VideoLlamaVideoProcessor.from_dict(processor.to_dict(), size=42).size == {"height": 42, "width": 42}


def test_unknown_options_are_refused(processor):
    with pytest.raises(TypeError, match="frames_per_clip"):
        processor(array(), frames_per_clip=4)
