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
"""Text, pictures, videos and sounds to the inputs of the model: the one place where modalities meet.

A placeholder in a prompt is one token, `<ImageHere>`, `<VideoHere>` or `<AudioHere>`. It becomes what the original's chat
writes about an item, with 32 placeholders for a picture or a video and 8 for a sound.
"""

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from tokenizers import AddedToken
from transformers.audio_utils import AudioInput, make_list_of_audio
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ImageInput, make_flat_list_of_images
from transformers.processing_utils import (
    MultiModalData,
    OmniModalProcessingKwargs,
    OmniModalProcessorMixin,
    Unpack,
)
from transformers.tokenization_utils_base import TextInput
from transformers.utils import logging
from transformers.video_utils import VideoInput

from .exceptions import ConversationError, NoAudioError, PlaceholderError, TimeRangeError
from .media import MediaSource, has_audio, is_media_source, read_audio
from .video_processing_video_llama import VideoLlamaVideoProcessorKwargs, make_flat_list_of_videos


logger = logging.get_logger(__name__)

PROMPT_FAMILIES = ("vicuna", "llama_2")
# What chat servers are sent, as `{"type": "video_url", "video_url": {"url": …}}`
OPENAI_ITEMS = {"image_url": "image", "video_url": "video", "audio_url": "audio"}

VICUNA_STOP = "###"

# What the original's chat writes around its placeholders, to the last blank (`conversation_video.py`)
IMAGE_PROMPT = "<Image>{image}</Image> "
VIDEO_PROMPT = "<Video>{video}</Video> {message}"
FRAMES_MESSAGE = "The video contains {count} frames sampled at {times} seconds. "
HEARD_PROMPT = "Close your eyes, open your ears and you imagine only based on the sound that: {audio}."
SEEN_PROMPT = (
    "                 Close your ears, open your eyes and you see that <Video>{video}</Video>."
    "                  Now answer my question based on what you have just seen and heard."
)
# The original never gives a sound alone. This is its wording without the video
HEARD_ALONE_PROMPT = HEARD_PROMPT + " Now answer my question based on what you have just heard."


def load_chat_templates(default: str = "vicuna") -> dict[str, str] | None:
    """The chat templates of both prompt families by name, with one of them as "default".

    Args:
        default: "vicuna" or "llama_2".

    Returns:
        None where only the code was downloaded with a checkpoint, which has its templates itself.
    """
    folder = Path(__file__).parent / "chat_templates"
    if not folder.is_dir():
        return None
    templates = {name: (folder / f"{name}.jinja").read_text(encoding="utf-8").strip() for name in PROMPT_FAMILIES}
    return {"default": templates[default], **templates}


class VideoLlamaProcessorKwargs(OmniModalProcessingKwargs, total=False):
    videos_kwargs: VideoLlamaVideoProcessorKwargs


# trf-ignore: TRF057 (outside of the library's tree the decorator leaves its placeholders in the text)
class VideoLlamaProcessor(OmniModalProcessorMixin):
    r"""
    Prompts with pictures, videos and sounds to the inputs of [`VideoLlamaForConditionalGeneration`].

    Args:
        image_processor ([`VideoLlamaImageProcessor`]):
            Still pictures.
        video_processor ([`VideoLlamaVideoProcessor`]):
            Frames of videos.
        feature_extractor ([`VideoLlamaFeatureExtractor`]):
            Sounds, of files of their own or of videos.
        tokenizer ([`PreTrainedTokenizerFast`]):
            Tokenizer of the LLaMA. The placeholder tokens are added to it.
        chat_template (`str` or `dict[str, str]`, *optional*):
            A Jinja template, or several by name with one named "default". By default those of both prompt families,
            "vicuna" and "llama_2", with Vicuna's as the default.
        num_video_query_tokens (`int`, *optional*, defaults to 32):
            Placeholders for a picture or a video.
        num_audio_query_tokens (`int`, *optional*, defaults to 8):
            Placeholders for a sound.
    """

    valid_processor_kwargs = VideoLlamaProcessorKwargs

    # The times of the frames are part of the prompt
    videos_kwargs = {"return_metadata": True}
    audio_kwargs = {"sampling_rate": 16000}

    def __init__(
        self,
        image_processor=None,
        video_processor=None,
        feature_extractor=None,
        tokenizer=None,
        chat_template=None,
        num_video_query_tokens: int = 32,
        num_audio_query_tokens: int = 8,
    ):
        if tokenizer is None:
            raise ValueError("A processor needs the tokenizer of its LLaMA, got None.")
        self.num_video_query_tokens = num_video_query_tokens
        self.num_audio_query_tokens = num_audio_query_tokens
        self.image_token, self.audio_token, self.video_token = "<ImageHere>", "<AudioHere>", "<VideoHere>"
        placeholders = [self.image_token, self.audio_token, self.video_token]
        # In this order they get the ids that the original gives them, behind LLaMA's 32000 tokens
        tokenizer.add_tokens(
            [AddedToken(token, normalized=False, special=True) for token in placeholders], special_tokens=True
        )
        self.image_token_id, self.audio_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids(placeholders)
        super().__init__(
            image_processor,
            video_processor,
            feature_extractor,
            tokenizer,
            chat_template=load_chat_templates() if chat_template is None else chat_template,
        )

    # trf-ignore: TRF057 (as above)
    def __call__(
        self,
        images: ImageInput | None = None,
        text: TextInput | list[TextInput] | None = None,
        videos: VideoInput | None = None,
        audio: AudioInput | None = None,
        audio_from_video_indices: list[int] | None = None,
        **kwargs: Unpack[VideoLlamaProcessorKwargs],
    ) -> BatchFeature:
        r"""
        Prompts and what belongs to their placeholders to inputs of the model. Pictures, videos and sounds may be paths, URLs,
        bytes, binary files, arrays or tensors, pictures also `PIL` images, in the order of their placeholders.

        Args:
            images (*optional*):
                One picture or a list.
            text (`str` or `list[str]`, *optional*):
                Prompts with one `<ImageHere>`, `<VideoHere>` or `<AudioHere>` for each item; `apply_chat_template` writes them.
            videos (*optional*):
                One video or a list. Arrays have the shape `(frames, height, width, 3)` or `(frames, 3, height, width)`.
            audio (*optional*):
                One sound or a list. Arrays have the shape `(samples,)` or `(channels, samples)`, at 16 kHz.
            audio_from_video_indices (`list[int]`, *optional*):
                Where each sound comes from, in the order of the prompts: None for one of `audio`, i for the sound of
                `videos[i]`. Needed where `audio` is given with `load_audio_from_video=True`.
            load_audio_from_video (`bool`, *optional*, defaults to `False`):
                Whether the sound of each video is read from the same file. A video without sound is named in a warning, and
                gets the prompt without sound.
            kwargs:
                Options of the tokenizer and the three processors, such as `num_frames`, `fps`, `padding`, `return_tensors`.

        Returns:
            [`BatchFeature`] with `input_ids` and `attention_mask` of shape `(batch, length)`, `pixel_values` of shape
            `(images, 3, height, width)`, `pixel_values_videos` of shape `(videos, frames, 3, height, width)` with
            `video_frame_mask`, and `input_features` of shape `(sounds, segments, num_mel_bins, num_mel_frames)` with
            `input_features_mask`, as far as there are such items.

        Raises:
            MediaError: If a file can't be read.
            PlaceholderError: If the prompts have more or fewer placeholders than items are given.
            ValueError: If a prompt is longer than the model's context.
        """
        inputs = super().__call__(
            images=images,
            text=text,
            videos=videos,
            audio=audio,
            audio_from_video_indices=audio_from_video_indices,
            **kwargs,
        )
        for row, input_ids in enumerate(inputs.get("input_ids", [])):
            if len(input_ids) > self.tokenizer.model_max_length:
                raise ValueError(
                    f"Prompt {row} has {len(input_ids)} tokens, but the context of the model is "
                    f"{self.tokenizer.model_max_length}: shorten its text, or split it into several."
                )
        return inputs

    def apply_chat_template(
        self,
        conversation: list[dict[str, Any]] | list[list[dict[str, Any]]],
        chat_template: str | None = None,
        load_audio_from_video: bool = False,
        tokenize: bool = False,
        **kwargs,
    ) -> str | list[str] | BatchFeature:
        r"""
        Turns conversations into prompts, and with `tokenize=True, return_dict=True` into inputs of the model. See
        [`~ProcessorMixin.apply_chat_template`].

        The original drops the system message of a conversation with sound, and so does this; `keep_system_message=True`
        keeps it.

        Args:
            conversation (`list[dict]` or `list[list[dict]]`):
                Messages, or a batch of them. Content is a string, or a list of `{"type": "text", "text": …}` and
                `{"type": "image" | "video" | "audio", "path" | "url" | type: …}`. With "start" or "end", seconds, only this
                part of a video or sound is read; the times of its frames are those of the whole clip.
            chat_template (`str`, *optional*):
                "vicuna" or "llama_2", or a template. By default the one that the checkpoint was trained with.
            load_audio_from_video (`bool`, *optional*, defaults to `False`):
                Whether the sound of each video is heard too, where it has one.
            tokenize (`bool`, *optional*, defaults to `False`):
                Whether to read the items too, and return inputs of the model instead of a prompt.

        Raises:
            ConversationError: If messages or items are not as they have to be, or the template refuses them.
            MediaError: If a file can't be read.
            PlaceholderError: If a text holds a placeholder token.
        """
        if not conversation or not isinstance(conversation, (list, tuple)) or not conversation[0]:
            raise ConversationError(
                f"A conversation is a list of messages, or a list of such lists, got {conversation!r}."
            )
        look_up = partial(self._look_up_item, load_audio_from_video=load_audio_from_video, is_read=tokenize)
        is_batch = bool(conversation) and isinstance(conversation[0], (list, tuple))
        conversations = [
            [self._look_up_message(message, look_up) for message in messages]
            for messages in (conversation if is_batch else [conversation])
        ]
        try:
            return super().apply_chat_template(
                conversations if is_batch else conversations[0],
                chat_template=chat_template,
                load_audio_from_video=load_audio_from_video,
                tokenize=tokenize,
                **kwargs,
            )
        except TemplateError as error:
            raise ConversationError(f"The chat template refuses the conversation: {error}") from error

    def _look_up_message(self, message: dict[str, Any], look_up: Callable) -> dict[str, Any]:
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), (str, list, tuple)):
            raise ConversationError(
                "A message has a role, 'user', 'assistant' or 'system', and a content, which is a text or a list of items, got "
                f"{message!r}."
            )
        if isinstance(message["content"], str):
            return message
        return {**message, "content": [look_up(item) for item in message["content"]]}

    def _look_up_item(self, item: dict[str, Any], load_audio_from_video: bool, is_read: bool) -> dict[str, Any]:
        """An item of a message, with its sound decoded if it is one, and told whether it has sound if it is a video."""
        kind = item.get("type") if isinstance(item, Mapping) else None
        if not isinstance(kind, str) or (kind == "text" and not isinstance(item.get("text"), str)):
            raise ConversationError(
                f"An item of a message is {{'type': 'text', 'text': …}} or {{'type': 'video', 'path': …}}, got {item!r}."
            )
        limits = {name: item[name] for name in ("start", "end") if item.get(name) is not None}
        if kind in OPENAI_ITEMS:
            kind, value = OPENAI_ITEMS[kind], item.get(kind)
            item = {"type": kind, "url": value["url"] if isinstance(value, dict) and "url" in value else value}
        if kind == "input_audio":
            try:
                kind, item = "audio", {"type": "audio", "audio": base64.b64decode(item[kind]["data"])}
            except (KeyError, TypeError, ValueError) as error:
                raise ConversationError(
                    f"A message holds {item}, expected {{'type': 'input_audio', 'input_audio': {{'data': …}}}} with a sound "
                    "file in base64."
                ) from error
        if kind not in ("image", "video", "audio"):
            return item
        source = next((item[key] for key in (kind, "url", "path", "base64") if item.get(key) is not None), None)
        if source is None and is_read:
            raise ConversationError(
                f"A message holds {item}, which names no {kind}: add its 'path', 'url' or '{kind}'."
            )
        if limits and source is not None:
            if kind == "image" or not is_media_source(source):
                raise TimeRangeError(
                    f"A message limits an item of type {kind} to {limits}, but only files of videos and sounds can be "
                    "limited: leave 'start' and 'end' out, or give a file."
                )
            source = MediaSource.of(source).between(**limits)
        if kind == "audio" and is_read:
            self._warn_of_unknown_rates(source)
            return {"type": kind, kind: self.feature_extractor.fetch_audio(source)}
        if kind == "video" and is_media_source(source):
            media = MediaSource.of(source)
            return {"type": kind, kind: media, "has_audio": load_audio_from_video and has_audio(media)}
        # Rows of `datasets` hold every field of every kind, most of them None
        return {name: value for name, value in item.items() if value is not None}

    def _warn_of_unknown_rates(self, audio: Any) -> None:
        """A wrong rate gives wrong features without an error, and samples alone do not say theirs."""
        sounds = audio if isinstance(audio, (list, tuple)) else [audio]
        if not all(is_media_source(sound) or isinstance(sound, Mapping) for sound in sounds):
            logger.warning_once(
                "A sound was given as an array without its rate, and is taken to be at "
                f"{self.feature_extractor.sampling_rate} Hz. Give its file, or {{'array': …, 'sampling_rate': …}}."
            )

    def prepare_inputs_layout(
        self,
        images: ImageInput | None = None,
        text: TextInput | list[TextInput] | None = None,
        videos: VideoInput | None = None,
        audio: AudioInput | None = None,
        **kwargs: Unpack[VideoLlamaProcessorKwargs],
    ):
        """Prompts, pictures, videos and sounds as flat lists; pictures and sounds are loaded, videos only looked up."""
        is_rate_given = "sampling_rate" in kwargs or "sampling_rate" in kwargs.get("audio_kwargs", {})
        if audio is not None and not is_rate_given:
            self._warn_of_unknown_rates(audio)
        images, text, _, audio = super().prepare_inputs_layout(images=images, text=text, audio=audio, **kwargs)
        if videos is not None:
            # Looked up once, so that frames and sound come from one download
            videos = [
                MediaSource.of(video) if is_media_source(video) else video
                for video in make_flat_list_of_videos(videos)
            ]
        return images, text, videos, audio

    def validate_inputs(
        self,
        images: ImageInput | None = None,
        text: TextInput | list[TextInput] | None = None,
        videos: VideoInput | None = None,
        audio: AudioInput | None = None,
        **kwargs: Unpack[VideoLlamaProcessorKwargs],
    ):
        """
        Raises:
            ValueError: If nothing is given, or prompts that are not text.
            PlaceholderError: If the prompts have more or fewer placeholders than items are given.
        """
        if images is None and text is None and videos is None and audio is None:
            raise ValueError("Nothing was given to process: pass text, images, videos, audio or several of them.")
        if text is None:
            return
        if not all(isinstance(prompt, str) for prompt in text):
            raise ValueError(f"`text` must be a string or a list of strings, got {text!r}.")
        given = {
            "image": 0 if images is None else len(make_flat_list_of_images(images)),
            "video": 0 if videos is None else len(videos),
            "audio": 0 if audio is None else len(make_list_of_audio(audio)),
        }
        for modality, count in given.items():
            token = getattr(self, f"{modality}_token")
            placeholders = sum(prompt.count(token) for prompt in text)
            if placeholders != count:
                raise PlaceholderError(
                    f"The prompts hold {placeholders} {token} placeholders, but {count} {modality} inputs were given: write "
                    f"one {token} for each {modality}, or let apply_chat_template write them."
                )

    def _resolve_audio_from_video(
        self,
        videos: list,
        audio: list | None = None,
        audio_from_video_indices: list[int | None] | None = None,
    ) -> tuple[list | None, list[int | None]]:
        """The library's method needs torchcodec and a system FFmpeg; this one reads the file as its frames are read.

        Returns:
            All sounds in the order of the prompts, or None, and for each video the index of its sound among them, or None.
        """
        audio = list(audio or [])
        if audio_from_video_indices is None:
            if audio:
                raise ValueError(
                    "Both `audio` and `load_audio_from_video=True` were given: say by `audio_from_video_indices` in which "
                    "order the sounds come, None for one of `audio` and i for the sound of videos[i]."
                )
            audio_from_video_indices = list(range(len(videos)))
        # Whoever has read the sounds of the videos already passes them all in `audio`
        are_all_given = len(audio) == len(audio_from_video_indices)
        if not are_all_given and len(audio) != audio_from_video_indices.count(None):
            raise ValueError(
                f"`audio_from_video_indices` has {audio_from_video_indices.count(None)} places for `audio`, but "
                f"{len(audio)} sounds were given."
            )

        given, sounds, video_to_audio = iter(audio), [], [None] * len(videos)
        for video_index in audio_from_video_indices:
            if video_index is None or are_all_given:
                sound = next(given)
            elif (sound := self._read_sound(videos[video_index])) is None:
                continue
            if video_index is not None:
                video_to_audio[video_index] = len(sounds)
            sounds.append(sound)
        return sounds or None, video_to_audio

    def _read_sound(self, video: Any) -> Any:
        """The sound of a video file, `(channels, samples)`, or None after a warning if it has none."""
        if not is_media_source(video):
            logger.warning(
                "A video was given as decoded frames, which have no sound: the prompt is the one without sound. Give its file, "
                "or its sound as `audio`."
            )
            return None
        try:
            return read_audio(video, sampling_rate=self.feature_extractor.sampling_rate)[0]
        except NoAudioError:
            lack = "sound in its range of seconds" if video.is_limited else "audio track"
            logger.warning(f"{video.name} has no {lack}: the prompt is the one without sound.")
            return None

    def _process_videos(
        self,
        videos: list,
        audio: list | None = None,
        processed_audio: dict | None = None,
        video_to_audio_indices: list[int | None] | None = None,
        **kwargs,
    ) -> tuple[BatchFeature, list[str]]:
        processed_videos = self.video_processor(videos, **kwargs["videos_kwargs"])
        replacements = [
            self.replace_video_token(processed_videos, index, video_to_audio_indices=video_to_audio_indices)
            for index in range(len(videos))
        ]
        return processed_videos, replacements

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        """What a prompt says of a picture."""
        return IMAGE_PROMPT.format(image=self.image_token * self.num_video_query_tokens)

    def replace_video_token(
        self,
        video_inputs: dict,
        video_idx: int,
        video_to_audio_indices: list[int | None] | None = None,
        **kwargs,
    ) -> str:
        """What a prompt says of a video: the times of its frames, or with sound the original's words for that."""
        video = self.video_token * self.num_video_query_tokens
        if video_to_audio_indices is not None and video_to_audio_indices[video_idx] is not None:
            audio = self.audio_token * self.num_audio_query_tokens
            return HEARD_PROMPT.format(audio=audio) + SEEN_PROMPT.format(video=video)
        return VIDEO_PROMPT.format(video=video, message=self._frames_message(video_inputs, video_idx))

    def replace_audio_token(self, audio_inputs: dict, audio_idx: int, **kwargs) -> str:
        """What a prompt says of a sound that comes without a video."""
        return HEARD_ALONE_PROMPT.format(audio=self.audio_token * self.num_audio_query_tokens)

    def _frames_message(self, video_inputs: dict, video_idx: int) -> str:
        metadata = video_inputs["video_metadata"][video_idx]
        try:
            times = metadata.timestamps
        except ValueError:
            logger.warning_once(
                "The times of frames that are given as arrays are unknown, so the prompt does not state them. Pass "
                "`video_metadata` with fps and frames_indices."
            )
            return ""
        return FRAMES_MESSAGE.format(count=len(times), times=", ".join(str(round(float(time), 1)) for time in times))

    def get_text_with_replacements(
        self,
        text: list[str],
        images_replacements: Sequence[str] = (),
        videos_replacements: Sequence[str] = (),
        audio_replacements: Sequence[str] = (),
    ) -> tuple[list[str], list[dict[str, Any]]]:
        """Writes what prompts say of items in place of their placeholders.

        A sound directly before a video is the sound of that video, and gets the original's words for a clip with sound.
        """
        videos_replacements, audio_replacements = list(videos_replacements), list(audio_replacements)
        video_index = audio_index = 0
        pair = f"{self.audio_token} {self.video_token}"
        text = [re.sub(rf"{self.audio_token}\s*{self.video_token}", pair, prompt) for prompt in text]
        for prompt in text:
            for match in re.finditer("|".join((pair, self.audio_token, self.video_token)), prompt):
                if match.group() == pair and self.audio_token not in videos_replacements[video_index]:
                    audio = self.audio_token * self.num_audio_query_tokens
                    video = self.video_token * self.num_video_query_tokens
                    audio_replacements[audio_index] = HEARD_PROMPT.format(audio=audio)
                    # The blank between the two placeholders is one of those that the original writes
                    videos_replacements[video_index] = SEEN_PROMPT.format(video=video).removeprefix(" ")
                audio_index += self.audio_token in match.group()
                video_index += self.video_token in match.group()
        return super().get_text_with_replacements(text, images_replacements, videos_replacements, audio_replacements)

    def decode(self, *args, skip_special_tokens: bool = False, **kwargs) -> str | list[str]:
        """See the tokenizer's method. The `###` that ends an answer of a Vicuna release counts as a special token."""
        texts = self.tokenizer.decode(*args, skip_special_tokens=skip_special_tokens, **kwargs)
        templates = self.chat_template
        template = templates.get("default", "") if isinstance(templates, dict) else templates or ""
        if not skip_special_tokens or VICUNA_STOP not in template:
            return texts
        if isinstance(texts, str):
            return texts.removesuffix(VICUNA_STOP)
        return [text.removesuffix(VICUNA_STOP) for text in texts]

    def batch_decode(self, *args, **kwargs) -> list[str]:
        """See `decode`."""
        return self.decode(*args, **kwargs)

    def post_process_image_text_to_text(
        self, generated_outputs, skip_special_tokens: bool = True, **kwargs
    ) -> str | list[str]:
        """Decoded answers; see `decode`."""
        return self.decode(generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs)

    def _get_num_multimodal_tokens(
        self,
        image_sizes: list[tuple[int, int]] | None = None,
        video_sizes: list[tuple[int, int, int]] | None = None,
        audio_lengths: list[int] | None = None,
        **kwargs,
    ) -> MultiModalData:
        """Placeholders per item, and patches per picture, which do not depend on its size. For inference engines."""
        data = MultiModalData()
        if image_sizes is not None:
            data.num_image_tokens = [self.num_video_query_tokens] * len(image_sizes)
            data.num_image_patches = [1] * len(image_sizes)
        if video_sizes is not None:
            data.num_video_tokens = [self.num_video_query_tokens] * len(video_sizes)
        if audio_lengths is not None:
            data.num_audio_tokens = [self.num_audio_query_tokens] * len(audio_lengths)
        return data


__all__ = ["VideoLlamaProcessor"]
