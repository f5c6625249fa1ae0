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
Frames for Video-LLaMA: decode, sample, resize, normalise, pad the batch.

A clip becomes at most eight frames of 224x224 pixels, aspect ratio not kept, scaled to 0..1 and normalised with CLIP's
mean and standard deviation (Video-LLaMA, arXiv 2306.02858, and its released code). A file is decoded straight to the
target size, which gives the original's pixels; frames that come decoded are resized here, which gives about 1/255 of
difference on average, because they are RGB already.
"""

from collections.abc import Callable, Mapping
from copy import copy
from functools import partial
from typing import Any, Literal

import numpy as np
import PIL.Image
import torch
from huggingface_hub.dataclasses import validate_typed_dict
from transformers.image_processing_utils import BatchFeature, get_size_dict
from transformers.image_transforms import convert_to_rgb
from transformers.image_utils import (
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    ChannelDimension,
    PILImageResampling,
    infer_channel_dimension_format,
)
from transformers.processing_utils import Unpack, VideosKwargs
from transformers.utils import logging
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoInput, VideoMetadata

from .exceptions import MediaError
from .media import VideoLlamaVideoMetadata, is_media_source, read_image, read_video


logger = logging.get_logger(__name__)

# Pixels of a side: no model takes more, and a number that is too long for memory is found here
MAX_SIZE = 2**14


class VideoLlamaVideoProcessorKwargs(VideosKwargs, total=False):
    r"""
    sampling (`"uniform"` or `"headtail"`, *optional*, defaults to `self.sampling`):
        How frames are chosen. `"uniform"`: at equal distances from the first frame on. `"headtail"`: half of them at
        random from the first half of the clip and half from the second, in order; the original's training stage 1.
    seed (`int`, *optional*, defaults to `self.seed`):
        Seed of `"headtail"`. Each clip is sampled with a generator of its own, freshly seeded, so a clip gets the same
        frames whatever else is in the batch. Without a seed, numpy's global generator is used, which
        `transformers.set_seed` and data loader workers seed.
    """

    sampling: Literal["uniform", "headtail"] | None
    seed: int | None


class VideoLlamaVideoProcessor(BaseVideoProcessor):
    r"""
    Turns videos into the `pixel_values_videos` and `video_frame_mask` of Video-LLaMA.

    Every option below can be set here, and overridden in a call.

    Args:
        size (`dict[str, int]`, *optional*, defaults to `{"height": 224, "width": 224}`):
            Size of the frames in pixels.
        num_frames (`int`, *optional*, defaults to 8):
            Frames per clip. A clip with fewer gives all it has, each once.
        fps (`float`, *optional*):
            Frames per second of clip, in place of `num_frames`: whichever of the two is named, here or in a call,
            holds. Both at once are an error.
        sampling (`"uniform"` or `"headtail"`, *optional*, defaults to `"uniform"`):
            How frames are chosen, see [`VideoLlamaVideoProcessorKwargs`].
        seed (`int`, *optional*):
            Seed of `"headtail"`.
        do_sample_frames (`bool`, *optional*, defaults to `True`):
            Whether to choose frames at all. If not, every frame of a clip is used.
        kwargs:
            The other options of [`~transformers.processing_utils.VideosKwargs`].

    Example:

    ```python
    >>> processor = VideoLlamaVideoProcessor()
    >>> inputs = processor(["clip.mp4", three_frames], return_tensors="pt", return_metadata=True)
    >>> inputs["pixel_values_videos"].shape
    torch.Size([2, 8, 3, 224, 224])
    >>> inputs["video_frame_mask"][1]
    tensor([1, 1, 1, 0, 0, 0, 0, 0])
    >>> inputs["video_metadata"][0].timestamps
    [0.0, 0.875, 1.75, 2.625, 3.5416666666666665, 4.416666666666667, 5.291666666666667, 6.166666666666667]
    ```
    """

    resample = PILImageResampling.BILINEAR
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    size = {"height": 224, "width": 224}
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    do_sample_frames = True
    num_frames = 8
    fps = None
    sampling = "uniform"
    seed = None
    valid_kwargs = VideoLlamaVideoProcessorKwargs
    model_input_names = ["pixel_values_videos", "video_frame_mask"]

    def __init__(self, **kwargs: Unpack[VideoLlamaVideoProcessorKwargs]):
        super().__init__(**_one_rate(kwargs))

    @classmethod
    def from_dict(cls, video_processor_dict: dict[str, Any], **kwargs):
        """
        As in the library, with one addition: an `fps` or `num_frames` among `kwargs` replaces the other one in the
        dict.
        """
        if kwargs.get("fps") is not None or kwargs.get("num_frames") is not None:
            video_processor_dict = {**video_processor_dict, "fps": None, "num_frames": None}
        return super().from_dict(video_processor_dict, **kwargs)

    def sample_frames(
        self,
        metadata: VideoMetadata,
        num_frames: int | None = None,
        fps: int | float | None = None,
        sampling: str | None = None,
        seed: int | None = None,
        **kwargs,
    ) -> np.ndarray:
        """
        Choose frames of a clip.

        `"uniform"` takes `int(i * total / n)` for `i < n`: the original's rule, computed as it does and capped at `n`,
        because its floating-point steps can add up to one index too many. A clip shorter than `n` frames gives all of
        them; the library's rule raises there.

        Args:
            metadata (`VideoMetadata`):
                States `total_num_frames`, and `fps` if `fps` is asked for.
            num_frames (`int`, *optional*, defaults to `self.num_frames`):
                How many frames to choose at most.
            fps (`float`, *optional*, defaults to `self.fps`):
                How many frames to choose per second, at least one in all, in place of `num_frames`.
            sampling (`"uniform"` or `"headtail"`, *optional*, defaults to `self.sampling`):
                How to choose them.
            seed (`int`, *optional*, defaults to `self.seed`):
                Seed of `"headtail"`.

        Returns:
            `np.ndarray`: increasing indices of shape `(frames,)`. All of the clip if neither number is set.

        Raises:
            ValueError: both `num_frames` and `fps`; `fps` for a clip that does not state its own; no frame to choose;
                an unknown `sampling`; a negative `seed`.
        """
        if num_frames is not None and fps is not None:
            raise ValueError(f"got num_frames={num_frames} and fps={fps}: they exclude each other, pass one of them")
        if num_frames is None and fps is None:
            num_frames, fps = self.num_frames, self.fps
        sampling = sampling or self.sampling
        seed = self.seed if seed is None else seed
        if seed is not None and seed < 0:
            raise ValueError(f"got seed={seed}, expected a number from 0 on, or None")

        total = metadata.total_num_frames
        if fps is not None:
            if not metadata.fps:
                raise ValueError(
                    f"cannot sample fps={fps} frames per second of a video that does not state its own frame rate: "
                    "pass video_metadata with its fps, or use num_frames"
                )
            num_frames = max(1, int(total / metadata.fps * fps))
        num_frames = total if num_frames is None else min(num_frames, total)
        if num_frames < 1:
            raise ValueError(
                f"cannot sample {num_frames} of {total} frames: pass a video with frames and num_frames of 1 or more"
            )

        if sampling == "uniform":
            return np.arange(0, total, total / num_frames).astype(int)[:num_frames]
        if sampling == "headtail":
            generator = np.random if seed is None else np.random.default_rng(seed)
            middle, num_head = total // 2, num_frames // 2
            head = generator.choice(middle, num_head, replace=False) if num_head else []
            tail = middle + generator.choice(total - middle, num_frames - num_head, replace=False)
            return np.sort(np.concatenate([head, tail])).astype(int)
        raise ValueError(f"got sampling={sampling!r}, expected 'uniform' or 'headtail'")

    def fetch_videos(
        self,
        video_url_or_urls: Any,
        sample_indices_fn: Callable[[VideoMetadata], Any] | None = None,
        size: tuple[int, int] | None = None,
    ):
        """
        Decode a file, or a list of files, with decord or PyAV (the library's own version knows neither).

        Args:
            video_url_or_urls (`str`, `os.PathLike`, `bytes`, binary file-like, or a list of these):
                What to decode, see [`read_video`].
            sample_indices_fn (`Callable`, *optional*):
                Chooses the frames. All of them if not given.
            size (`tuple[int, int]`, *optional*):
                `(height, width)` to decode to. The clip's own if not given.

        Returns:
            `tuple`: frames of shape `(frames, height, width, 3)`, uint8, and their metadata; or two lists of these.
        """
        if isinstance(video_url_or_urls, list | tuple):
            videos = [self.fetch_videos(video, sample_indices_fn, size) for video in video_url_or_urls]
            return list(zip(*videos))
        return read_video(video_url_or_urls, sample_indices_fn, size=size)

    def preprocess(self, videos: VideoInput, **kwargs: Unpack[VideoLlamaVideoProcessorKwargs]) -> BatchFeature:
        """
        Prepare one video or a batch, whatever mixture of forms it comes in.

        Args:
            videos:
                Each video is a path, a URL, the bytes of a file, a binary file-like object; an array or tensor of
                shape `(frames, height, width, channels)` or `(frames, channels, height, width)`; or a list of frames,
                which are `PIL` images, arrays with three dimensions, or, inside a batch of batches, paths of pictures.
                A batch is a list of videos, a list of such lists (as chat templates give), or an array with five
                dimensions.
            kwargs:
                The options of the constructor, and:

                - **video_metadata** (`VideoMetadata`, `dict` or a list of these, one per video): what decoded frames
                  do not say themselves, such as the `fps` of their clip. Files are described by their decoder instead.
                - **return_metadata** (`bool`): whether to return `video_metadata`.
                - **return_tensors** (`"pt"` or `"np"`).

        Returns:
            `BatchFeature`:

            - **pixel_values_videos** of shape `(videos, frames, 3, height, width)`, float32: zero-padded to the
              longest video. A list of tensors `(frames, 3, height, width)` without `return_tensors`.
            - **video_frame_mask** of shape `(videos, frames)`, int64: 1 where a frame is real.
            - **video_metadata** (with `return_metadata=True`): one [`VideoLlamaVideoMetadata`] per video with the
              `frames_indices`, `fps` and `timestamps` of its frames.

        Raises:
            MediaError: a file cannot be read, or a video has no frames.
            ValueError: an array is of the wrong shape or holds NaN; the metadata do not fit the videos; `fps` and
                `num_frames` are given together.
        """
        validate_typed_dict(self.valid_kwargs, kwargs)
        kwargs = _one_rate(kwargs)
        videos = make_flat_list_of_videos(videos)
        if not videos:
            raise ValueError("got an empty list of videos, expected at least one")
        metadata = _flatten_metadata(kwargs.pop("video_metadata", None), num_videos=len(videos))
        return_metadata = kwargs.pop("return_metadata", self.return_metadata)
        return_tensors = kwargs.pop("return_tensors", None)
        input_data_format = kwargs.pop("input_data_format", None)
        do_convert_rgb = kwargs.get("do_convert_rgb", self.do_convert_rgb)
        do_rescale = kwargs.get("do_rescale", self.do_rescale)

        sample_indices_fn = None
        if kwargs.pop("do_sample_frames", self.do_sample_frames):
            options = {name: kwargs.pop(name, None) for name in ("num_frames", "fps", "sampling", "seed")}
            sample_indices_fn = partial(self.sample_frames, **options)
        decoding_size = self._decoding_size(**kwargs)

        for index, video in enumerate(videos):
            if is_media_source(video):
                frames, metadata[index] = self.fetch_videos(video, sample_indices_fn, decoding_size)
                channels = ChannelDimension.LAST
            else:
                frames, metadata[index] = _sample_decoded(video, metadata[index], sample_indices_fn, index)
                frames, channels = _stack_frames(frames, input_data_format, do_convert_rgb, index)
            videos[index] = _to_channels_first(frames, channels, index)
            if do_rescale and videos[index].is_floating_point() and videos[index].max() <= 1:
                logger.warning_once(
                    f"No pixel of videos[{index}] is above 1: if it is scaled to 0..1 already, pass do_rescale=False."
                )

        # Every video is a tensor by now, with its channels first and only the frames that count: what is left (resize,
        # crop, rescale, normalise) is the library's. Decoded files pass the resize untouched, they have its size.
        kwargs["input_data_format"] = ChannelDimension.FIRST
        processed = super().preprocess(videos, do_sample_frames=False, **kwargs)["pixel_values_videos"]
        for index, video in enumerate(processed):
            if not torch.isfinite(video).all():
                raise ValueError(f"videos[{index}] holds pixels that are too large for float32: scale them to 0..255")
        features = _pad_batch(processed, return_tensors)
        if return_metadata:
            features["video_metadata"] = metadata
        return features

    def _decoding_size(self, do_resize=None, size=None, default_to_square=None, **kwargs) -> tuple[int, int] | None:
        """Height and width to decode to; `None` where the library resizes by a rule of its own, or not at all."""
        do_resize = self.do_resize if do_resize is None else do_resize
        default_to_square = self.default_to_square if default_to_square is None else default_to_square
        size = self.size if size is None else size
        if not do_resize or size is None:
            return None
        if isinstance(size, list | tuple) and len(size) != 2:
            raise ValueError(f"got size={size!r}, expected a height and a width")
        size = get_size_dict(size, default_to_square=default_to_square)
        for name, pixels in size.items():
            if pixels is not None and not 0 < pixels <= MAX_SIZE:
                raise ValueError(f"got size={size!r}, expected a {name} from 1 to {MAX_SIZE} pixels")
        return (size["height"], size["width"]) if "height" in size else None


def make_flat_list_of_videos(videos: Any) -> list:
    """
    Flatten whatever [`VideoLlamaVideoProcessor`] accepts into one entry per video.

    The library's `make_batched_videos` takes the form of the first video for that of all, and drops paths that are not
    strings.

    Returns:
        `list`: files as they came, arrays and tensors with four dimensions, and lists of frames.

    Raises:
        TypeError: something in `videos` is no video.
        ValueError: an array has another number of dimensions than 3 (a frame), 4 (a video) or 5 (a batch).
    """
    return _flatten(videos, depth=0)


def _flatten(videos: Any, depth: int) -> list:
    if is_media_source(videos):
        return [videos]
    if isinstance(videos, PIL.Image.Image):
        return [[videos]]
    if isinstance(videos, np.ndarray | torch.Tensor):
        if videos.ndim not in (3, 4, 5):
            raise ValueError(
                f"got shape {tuple(videos.shape)}, expected (frames, 3, height, width) or (frames, height, width, 3), "
                "or one dimension more for a batch"
            )
        return list(videos) if videos.ndim == 5 else [videos if videos.ndim == 4 else videos[None]]
    if not isinstance(videos, list | tuple):
        raise TypeError(f"got a {type(videos).__name__}, expected a path, URL, bytes, array, tensor or list of frames")
    # `[conversation][video][frame]`: only there can paths be told to be pictures rather than clips.
    if videos and (all(_is_frame(item) for item in videos) or (depth == 2 and all(map(is_media_source, videos)))):
        return [list(videos)]
    return [video for item in videos for video in _flatten(item, depth + 1)]


def _is_frame(value: Any) -> bool:
    return isinstance(value, PIL.Image.Image) or (isinstance(value, np.ndarray | torch.Tensor) and value.ndim == 3)


def _kind_of_frame(frame: Any) -> str:
    return "picture" if isinstance(frame, PIL.Image.Image) else type(frame).__name__


def _one_rate(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Let a named `fps` or `num_frames` push the default of the other aside."""
    fps, num_frames = kwargs.get("fps"), kwargs.get("num_frames")
    if fps is not None and num_frames is not None:
        raise ValueError(f"got num_frames={num_frames} and fps={fps}: they exclude each other, pass one of them")
    if fps is not None:
        return {**kwargs, "num_frames": None}
    if num_frames is not None:
        return {**kwargs, "fps": None}
    return kwargs


def _flatten_metadata(metadata: Any, num_videos: int) -> list[VideoMetadata | None]:
    if metadata is None:
        return [None] * num_videos
    flat = [metadata] if isinstance(metadata, Mapping) else []
    for entry in [] if flat else metadata:
        flat.extend(entry if isinstance(entry, list | tuple) else [entry])
    if len(flat) != num_videos:
        raise ValueError(f"got {num_videos} videos and {len(flat)} video_metadata: pass one per video")
    return [_to_metadata(entry, index) for index, entry in enumerate(flat)]


def _to_metadata(entry: Any, index: int) -> VideoMetadata:
    """A copy, because the indices of the sampled frames are written into it."""
    if isinstance(entry, VideoMetadata):
        return copy(entry)
    try:
        return VideoLlamaVideoMetadata(**entry)
    except TypeError as error:
        raise ValueError(
            f"video_metadata[{index}] is {entry!r}, expected a VideoMetadata or its fields, total_num_frames among them "
            f"({error})"
        ) from error


def _sample_decoded(
    frames: Any, metadata: VideoMetadata | None, sample_indices_fn: Callable | None, index: int
) -> tuple[Any, VideoMetadata]:
    """Choose frames of a video that is decoded already, before any of them is converted."""
    total = len(frames)
    if total == 0:
        raise MediaError(f"videos[{index}] has no frames, expected at least one")
    if metadata is None:
        metadata = VideoLlamaVideoMetadata(total_num_frames=total)
    if sample_indices_fn is None:
        if metadata.frames_indices is None:
            metadata.frames_indices = list(range(total))
        return frames, metadata
    if metadata.total_num_frames != total:
        raise ValueError(
            f"video_metadata[{index}] says {metadata.total_num_frames} frames, but videos[{index}] has {total}: if "
            "its frames are sampled already, pass do_sample_frames=False"
        )
    metadata.frames_indices = [int(chosen) for chosen in sample_indices_fn(metadata=metadata)]
    times = getattr(metadata, "frame_times", None)
    if times is not None and len(times) == total:
        metadata.frame_times = [times[chosen] for chosen in metadata.frames_indices]
    if isinstance(frames, list):
        return [frames[chosen] for chosen in metadata.frames_indices], metadata
    return frames[metadata.frames_indices], metadata


def _stack_frames(
    frames: Any, input_data_format: str | None, do_convert_rgb: bool | None, index: int
) -> tuple[Any, str | None]:
    """Make one array of a list of frames; tell where its channels are, as far as the frames do."""
    if not isinstance(frames, list):
        return frames, input_data_format
    frames = [read_image(frame) if is_media_source(frame) else frame for frame in frames]
    if len(kinds := {_kind_of_frame(frame) for frame in frames}) > 1:
        raise ValueError(
            f"the frames of videos[{index}] are of different kinds, {sorted(kinds)}: convert them to one first"
        )
    if isinstance(frames[0], PIL.Image.Image):
        # Here and not later, because palettes and 16-bit pictures mean nothing without their mode.
        frames = [convert_to_rgb(frame, return_numpy=True) if do_convert_rgb else np.array(frame) for frame in frames]
        frames = [frame if frame.ndim == 3 else frame[..., None] for frame in frames]
        input_data_format = ChannelDimension.LAST
    shapes = sorted({tuple(frame.shape) for frame in frames})
    if len(shapes) > 1:
        raise ValueError(f"the frames of videos[{index}] have different shapes, {shapes}: resize them to one first")
    stack = torch.stack if isinstance(frames[0], torch.Tensor) else np.stack
    return stack(frames), input_data_format


def _to_channels_first(frames: Any, channels: str | None, index: int) -> torch.Tensor:
    """Check decoded frames, and bring them to `(frames, channels, height, width)`."""
    # Arrays of bytes, or turned ones, may be read-only or have negative strides, which torch refuses.
    frames = frames if isinstance(frames, torch.Tensor) else torch.from_numpy(np.array(frames))
    try:
        channels = channels or infer_channel_dimension_format(frames, num_channels=(1, 3, 4))
    except ValueError as error:
        raise ValueError(
            f"videos[{index}] has shape {tuple(frames.shape)}, expected (frames, 3, height, width) or "
            "(frames, height, width, 3)"
        ) from error
    if channels == ChannelDimension.LAST:
        frames = frames.permute(0, 3, 1, 2)
    if 0 in frames.shape:
        raise ValueError(f"videos[{index}] has shape {tuple(frames.shape)} with channels first, expected pixels in it")
    if frames.is_floating_point():
        if not torch.isfinite(frames).all():
            raise ValueError(f"videos[{index}] holds NaN or infinite pixels: check how its frames were computed")
    elif frames.dtype != torch.uint8:
        # The resizing of other integers is not implemented.
        frames = frames.float()
    return frames.contiguous()


def _pad_batch(videos: list[torch.Tensor], return_tensors: str | None) -> BatchFeature:
    """Zero-pad videos `(frames, 3, height, width)` to the longest one, and say which frames are real."""
    if return_tensors is not None and len({video.shape[1:] for video in videos}) > 1:
        raise ValueError(
            f"the frames of the batch have different shapes, {sorted({tuple(video.shape[1:]) for video in videos})}, "
            "and cannot be stacked: leave do_resize on with a height and a width, or process the videos one by one"
        )
    longest = max(len(video) for video in videos)
    padded, masks = [], []
    for video in videos:
        num_missing = longest - len(video)
        padded.append(torch.nn.functional.pad(video, (0, 0, 0, 0, 0, 0, 0, num_missing)))
        mask = torch.zeros(longest, dtype=torch.int64, device=video.device)
        mask[: len(video)] = 1
        masks.append(mask)
    features = {"pixel_values_videos": padded, "video_frame_mask": masks}
    return BatchFeature(data=features, tensor_type=return_tensors)


__all__ = ["VideoLlamaVideoProcessor", "VideoLlamaVideoProcessorKwargs", "make_flat_list_of_videos"]
