# SPDX-License-Identifier: Apache-2.0
"""One sample of training data to token ids, labels and the inputs of its pictures, videos and sounds.

A sample has a layout, which says how its messages become text:

- "chat": what the processor's chat template writes, so that what is trained is what `generate` sees.
- "conversation": the dialogues of the original's training.
- "caption": BOS, placeholders, caption, line feed; nothing else.
- "prompted_caption": a picture in one of four prompts of the original, then its caption.

Labels are on answers only: their text and what ends them. What the original also labelled, and where its way to count tokens
goes wrong, is said at `_original_vicuna_labels` and `_original_llama_2_labels`, which do as it did.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any, Literal, Protocol

import torch
from transformers import ProcessorMixin
from transformers.utils import logging

from ..exceptions import ConversationError, NoAudioError, TrainingDataError
from ..files import media_kind
from ..media import MediaSource, VideoLlamaVideoMetadata, is_media_source
from ..processing_video_llama import PROMPT_FAMILIES, VICUNA_STOP, load_chat_templates


logger = logging.get_logger(__name__)

LAYOUTS = ("chat", "conversation", "caption", "prompted_caption")
BRANCH_MODES = ("vision_branch", "audio_branch", "both")
SAMPLINGS = ("uniform", "headtail")
AUDIO_SOURCES = ("frames", "sound")
ROLES = ("system", "user", "assistant")
MEDIA_TYPES = ("image", "video", "audio")

# What the loss passes over
IGNORED = -100

# `parity/prompts.json`, "caption": the prompts of MiniGPT-4's second stage, what is around them, and what ends a caption
CAPTION_PROMPTS = (
    "Describe this image in detail.",
    "Take a look at this image and describe what you notice.",
    "Please provide a detailed description of the picture.",
    "Could you describe the contents of this image for me?",
)
CAPTION_TEMPLATES = {
    "vicuna": ("###Human: {} ###Assistant: ", "###"),
    "llama_2": ("[INST] <<SYS>>\n \n<</SYS>>\n\n{} [/INST] ", "</s>"),
}
CAPTION_END = "\n"
# System messages of the original's training
TRAINING_SYSTEMS = {"vicuna": "", "llama_2": " "}

Item = Mapping[str, Any]


@dataclass(frozen=True)
class CachedFeatures:
    """What an encoder gave for one item.

    Attributes:
        embeds: Of a picture or video `(frames, num_query_tokens, qformer_hidden)`, with 1 frame for a picture: the output of
            the frame Q-Former, before frame positions. Of what is heard `(segments, output_dim)`: embeddings of ImageBind,
            before segment positions.
        times: Seconds of the whole clip at which its frames were taken, one for each, for the prompt's "The video contains 8
            frames sampled at …". None for a picture, a sound and a clip without a clock.
    """

    embeds: torch.Tensor
    times: Sequence[float] | None = None


class FeatureCache(Protocol):
    """What [`SampleEncoder`] asks for features in place of decoding. It has to be picklable, for workers of data loaders.

    An item is given as it stands in its message: "type", and "path", "start" and "end" as far as they are set. A cache holds
    one choice of frames for each, so "headtail" gives the same frames in every epoch.

    Both methods raise `FeatureCacheError` for an item that is not in the cache.
    """

    def vision(self, item: Item) -> CachedFeatures:
        """Features of a picture or video for the vision branch."""
        ...

    def audio(self, item: Item, audio_from: Literal["frames", "sound"]) -> CachedFeatures | None:
        """Features for the audio branch: of the frames of a picture or video through ImageBind's vision trunk, or of the sound
        of a video or sound file. None if a video has no sound."""
        ...


@dataclass
class _Read:
    """What became of an item.

    Attributes:
        modality: Which placeholder the chat template writes for it.
        words: What the prompt says in place of that placeholder.
        placeholders: Its tokens without words.
        inputs: Tensors by name of the encoder's output.
        is_heard: Whether there is a sound, or frames in its place, that the prompt asks to listen to.
    """

    modality: str
    words: str
    placeholders: str
    inputs: dict[str, torch.Tensor]
    is_heard: bool = False


@dataclass
class _Message:
    role: str
    items: list[Item]
    # For each item its text, or what became of it; empty until the media are read
    parts: list[str | _Read] = field(default_factory=list)


class SampleEncoder:
    r"""
    Samples to `input_ids`, `labels` and the inputs of their media, unbatched. Picklable; keeps nothing between calls.

    Args:
        processor ([`VideoLlamaProcessor`]):
            Processor of the model.
        branch (`str`, *optional*, defaults to `"vision_branch"`):
            What sees and hears. `"vision_branch"`: pictures and videos are seen. `"audio_branch"`: each becomes the placeholders
            of a sound, in the same words, fed by its frames as `audio_pixel_values` (how the published branch was trained), or
            by its sound. `"both"`: videos are seen and heard, in the words of a clip with sound.
        max_text_tokens (`int` or `dict[str, int]`, *optional*):
            Length that text is cut to, or one for each layout by name, as the published stage 2 needs:
            `{"prompted_caption": 320, "conversation": 512}`. Captions: tokens of the caption and what ends it. Dialogues: tokens
            of all of it, placeholders among them. Both as in the original. Without it, only the context of the model limits.
        original_labels (`bool`, *optional*, defaults to `False`):
            Labels of the original for layout "conversation": also the `###` before each turn and the names of assistants.
        num_frames (`int`, *optional*, defaults to 8):
            Frames of a video. A shorter one gives all it has.
        sampling (`"uniform"` or `"headtail"`, *optional*, defaults to `"uniform"`):
            How frames are chosen, see [`VideoLlamaVideoProcessorKwargs`].
        audio_from (`"frames"` or `"sound"`, *optional*, defaults to `"frames"`):
            What the audio branch gets while it is trained, in `"audio_branch"` and `"both"`. With `"vision_branch"` it always
            gets sound. On frames, an item of type "audio" names a video, which is heard and not seen: before another video it
            is the sound of that one, so that what is heard need not be what is seen.
        audio_frame_size (`int`, *optional*, defaults to 224):
            Pixels of a side of the frames for the audio branch. If frames for the vision branch are as large, a clip is decoded
            once for both.
        load_audio_from_video (`bool`, *optional*, defaults to `False`):
            For `"vision_branch"`: whether the sound of videos is heard too. The other two settle it themselves.
        prompt_family (`"vicuna"` or `"llama_2"`, *optional*):
            By default that of the processor's chat template.
        seed (`int`, *optional*, defaults to 0):
            Of prompts and of `"headtail"`, together with the epoch and the index of a sample.
        feature_cache ([`FeatureCache`], *optional*):
            Gives features in place of pixels and spectrograms; no file is opened then.

    Raises:
        ValueError: If an option is none of those named, or sound is asked of a processor that has no feature extractor.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        *,
        branch: str = "vision_branch",
        max_text_tokens: int | Mapping[str, int] | None = None,
        original_labels: bool = False,
        num_frames: int = 8,
        sampling: str = "uniform",
        audio_from: str = "frames",
        audio_frame_size: int = 224,
        load_audio_from_video: bool = False,
        prompt_family: str | None = None,
        seed: int = 0,
        feature_cache: FeatureCache | None = None,
    ):
        _check_choice("branch", branch, BRANCH_MODES)
        _check_choice("sampling", sampling, SAMPLINGS)
        _check_choice("audio_from", audio_from, AUDIO_SOURCES)
        if prompt_family is not None:
            _check_choice("prompt_family", prompt_family, PROMPT_FAMILIES)
        limits = max_text_tokens if isinstance(max_text_tokens, Mapping) else dict.fromkeys(LAYOUTS, max_text_tokens)
        for layout, limit in limits.items():
            _check_choice("max_text_tokens", layout, LAYOUTS)
            if limit is not None and (not isinstance(limit, int) or limit < 1):
                raise ValueError(f"max_text_tokens is {limit!r} for layout {layout!r}, expected a number of tokens.")
        needs_sound = (branch != "vision_branch" and audio_from == "sound") or load_audio_from_video
        if needs_sound and feature_cache is None and getattr(processor, "feature_extractor", None) is None:
            raise ValueError("Sound is to be heard, but this processor has no feature extractor: give one that has.")
        self.processor = processor
        self.branch = branch
        self.text_limits = dict(limits)
        self.original_labels = original_labels
        self.num_frames = num_frames
        self.sampling = sampling
        self.audio_from = audio_from if branch != "vision_branch" else "sound"
        self.audio_frame_size = audio_frame_size
        self.load_audio_from_video = load_audio_from_video
        self.seed = seed
        self.feature_cache = feature_cache
        self.template = _chat_template(processor, prompt_family)
        self.prompt_family = prompt_family or _family_of(self.template)

    def __call__(self, sample: Mapping[str, Any], epoch: int = 0, index: int = 0) -> dict[str, Any]:
        """
        Encodes a sample.

        Args:
            sample: A row with "messages" and "layout" ("chat" if absent). An item of a message is `{"type": "text", "text": …}`
                or `{"type": "image" | "video" | "audio", "path": …}`, with "start" and "end", seconds, for a part of a video or
                sound; fields that are None count as absent. In place of a path, in-memory forms of the processors come under
                "image", "video" or "audio"; the times of such frames under "video_metadata", fields of a `VideoMetadata`.
            epoch: For other random choices in each epoch.
            index: Of the sample, for other random choices in each.

        Returns:
            `input_ids` and `labels` of shape `(length,)`, -100 where there is no label, and as far as there are such items, in
            the order of their placeholders, lists of tensors: `pixel_values` `(3, height, width)`, `pixel_values_videos`
            `(frames, 3, height, width)`, `input_features` `(segments, num_mel_bins, num_mel_frames)`, `audio_pixel_values`
            `(segments, 3, size, size)`; from a cache `image_embeds` `(num_query_tokens, qformer_hidden)`,
            `video_frame_embeds` `(frames, num_query_tokens, qformer_hidden)`, `audio_segment_embeds` `(segments, output_dim)`.

        Raises:
            MediaError: If a file can't be read.
            TrainingDataError: If the sample can't be laid out, or not be cut to its length without loss of media or of all
                answers.
            FeatureCacheError: If an item is not in the cache.
        """
        layout = sample.get("layout") or "chat"
        if layout not in LAYOUTS:
            raise TrainingDataError(f"The layout of a sample is {layout!r}, expected one of {', '.join(LAYOUTS)}.")
        messages = [self._check_message(message) for message in _messages_of(sample)]
        if "caption" in layout:
            _check_caption(messages, layout)
        elif not any(message.role == "assistant" for message in messages):
            raise TrainingDataError(
                "A sample has no message of role 'assistant', so there is nothing to learn from it."
            )

        self._read_media(messages, random=partial(self._random, epoch, index))
        lay_out = {
            "chat": self._lay_out_chat,
            "conversation": self._lay_out_conversation,
            "caption": self._lay_out_caption,
            "prompted_caption": partial(self._lay_out_prompted_caption, prompts=self._random(epoch, index, "prompt")),
        }[layout]
        input_ids, labels = lay_out(messages)

        encoded: dict[str, Any] = {"input_ids": torch.tensor(input_ids), "labels": torch.tensor(labels)}
        for message in messages:
            for part in message.parts:
                for name, tensor in part.inputs.items() if isinstance(part, _Read) else ():
                    encoded.setdefault(name, []).append(tensor)
        return encoded

    def _random(self, epoch: int, index: int, purpose: str) -> Random:
        """A generator for one purpose, the same in every process."""
        return Random(f"{self.seed} {epoch} {index} {purpose}")

    # -----------------------------------------------------------------------------------------------------------------
    # Messages
    # -----------------------------------------------------------------------------------------------------------------
    def _check_message(self, message: Any) -> _Message:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, Mapping) else (None, None)
        items = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if role not in ROLES or not isinstance(items, list | tuple):
            raise TrainingDataError(
                f"A message is {message!r}, expected a 'role', {', '.join(map(repr, ROLES))}, and a 'content', a text or a list "
                "of items."
            )
        for item in items:
            kind = item.get("type") if isinstance(item, Mapping) else None
            if kind not in ("text", *MEDIA_TYPES) or (kind == "text" and not isinstance(item.get("text"), str)):
                raise TrainingDataError(
                    f"An item of a message is {item!r}, expected {{'type': 'text', 'text': …}} or "
                    "{'type': 'image', 'video' or 'audio', 'path': …}."
                )
            if kind != "text" and role != "user":
                raise TrainingDataError(
                    f"A message of role {role!r} holds an item of type {kind!r}: only messages of role 'user' may."
                )
            tokens = (self.processor.image_token, self.processor.video_token, self.processor.audio_token)
            if kind == "text" and (token := next((token for token in tokens if token in item["text"]), None)):
                raise TrainingDataError(
                    f"A text holds the placeholder {token}, which only an item of a message may stand for: take it out of the "
                    "text."
                )
        return _Message(role, list(items))

    def _read_media(self, messages: list[_Message], random: Any) -> None:
        number = 0
        for message in messages:
            previous = None
            for item in message.items:
                if item["type"] == "text":
                    message.parts.append(item["text"])
                else:
                    seed = random(f"frames {number}").getrandbits(32)
                    # A sound directly before a video is the sound of that video, as for the processor
                    read = self._read(item, has_own_sound=previous == "audio", seed=seed)
                    message.parts.extend([] if read is None else [read])
                    number += 1
                previous = item["type"]

    # -----------------------------------------------------------------------------------------------------------------
    # Media
    # -----------------------------------------------------------------------------------------------------------------
    def _read(self, item: Item, has_own_sound: bool, seed: int) -> _Read | None:
        """An item as this branch takes it, or None where it adds nothing to the sound before it."""
        processor, kind = self.processor, item["type"]
        heard_tokens = processor.audio_token * processor.num_audio_query_tokens
        if kind == "audio":
            if self.audio_from == "frames":
                item = self._video_that_is_heard(item)
            if (heard := self._hear(item, seed)[0]) is None:
                raise NoAudioError(f"{_name(item)} has no sound.")
            return _Read("audio", processor.replace_audio_token({}, 0), heard_tokens, heard, is_heard=True)

        if self.branch == "audio_branch":
            if self.audio_from == "sound":
                if has_own_sound and kind == "video":
                    return None
                if kind == "image" or (heard := self._hear(item, seed)[0]) is None:
                    lack = TrainingDataError if kind == "image" else NoAudioError
                    raise lack(
                        f"{_name(item)} has no sound to train the audio branch on: leave it out, or set audio_from='frames'."
                    )
                return _Read("audio", processor.replace_audio_token({}, 0), heard_tokens, heard, is_heard=True)
            heard, metadata = self._hear(item, seed)
            words = self._words(kind, metadata)
            for token in (processor.image_token, processor.video_token):
                words = words.replace(token * processor.num_video_query_tokens, heard_tokens)
            return _Read(kind, words, heard_tokens, heard)

        if kind == "image":
            tokens = processor.image_token * processor.num_video_query_tokens
            return _Read("image", self._words("image"), tokens, self._see(item, seed)[0])
        seen, metadata = self._see(item, seed)
        tokens = processor.video_token * processor.num_video_query_tokens
        heard = None
        if not has_own_sound and (self.branch == "both" or self.load_audio_from_video):
            pixels = seen.get("pixel_values_videos")
            heard = self._hear(item, seed, pixels)[0]
            if heard is None:
                logger.warning_once("There are videos without sound: their prompts are the ones without sound.")
        if heard is None:
            words = self._words("video", metadata)
            # The processor writes other words for a video with a sound before it, which do not end with a blank
            return _Read("video", words.rstrip() if has_own_sound else words, tokens, seen)
        words = processor.replace_video_token({"video_metadata": [metadata]}, 0, video_to_audio_indices=[0])
        return _Read("video", words, heard_tokens + tokens, {**heard, **seen}, is_heard=True)

    def _video_that_is_heard(self, item: Item) -> Item:
        """The video that stands for a sound in training on frames, so that a clip can be heard with another one's "sound"."""
        video = heard_as_frames(item)
        is_file = item.get("audio") is None
        if not is_file or (self.feature_cache is None and media_kind(_source(video)) != "video"):
            raise TrainingDataError(
                f"{_name(item)} is a sound, which has no frames to train the audio branch on: give a video in its place, leave "
                "it out, or set audio_from='sound'."
            )
        return video

    def _words(self, kind: str, metadata: VideoLlamaVideoMetadata | None = None) -> str:
        if kind == "image":
            return self.processor.replace_image_token({}, 0)
        return self.processor.replace_video_token({"video_metadata": [metadata]}, 0)

    def _see(self, item: Item, seed: int) -> tuple[dict[str, torch.Tensor], VideoLlamaVideoMetadata | None]:
        """Inputs of the vision branch, and the metadata of a video."""
        is_image = item["type"] == "image"
        if self.feature_cache is not None:
            cached = self.feature_cache.vision(item)
            if is_image:
                return {"image_embeds": cached.embeds[0]}, None
            return {"video_frame_embeds": cached.embeds}, _metadata_of(cached)
        frames, metadata = self.read_frames(item, seed=seed)
        return {"pixel_values": frames[0]} if is_image else {"pixel_values_videos": frames}, metadata

    def _hear(
        self, item: Item, seed: int, seen_frames: torch.Tensor | None = None
    ) -> tuple[dict[str, torch.Tensor] | None, VideoLlamaVideoMetadata | None]:
        """Inputs of the audio branch, None if there is no sound, and the metadata of frames."""
        if self.feature_cache is not None:
            cached = self.feature_cache.audio(item, self.audio_from)
            return (None, None) if cached is None else ({"audio_segment_embeds": cached.embeds}, _metadata_of(cached))
        if self.audio_from == "sound":
            sound = self.read_sound(item)
            return None if sound is None else {"input_features": sound}, None
        size = self.audio_frame_size
        if seen_frames is not None and seen_frames.shape[-2:] == (size, size):
            return {"audio_pixel_values": seen_frames}, None
        frames, metadata = self.read_frames(item, size=size, seed=seed)
        return {"audio_pixel_values": frames}, metadata

    def read_frames(
        self, item: Item, size: int | None = None, seed: int = 0
    ) -> tuple[torch.Tensor, VideoLlamaVideoMetadata | None]:
        """
        Decodes a picture or video, normalised for either branch.

        Args:
            item: Of type "image" or "video".
            size: Pixels of a side. Those of the processors if not given.
            seed: Of "headtail".

        Returns:
            Frames `(frames, 3, height, width)`, one for a picture, and for a video the metadata with the times of its frames.

        Raises:
            MediaError: If it can't be read.
            TrainingDataError: If the item names nothing to read.
        """
        options = {} if size is None else {"size": {"height": size, "width": size}}
        source = _source(item)
        if item["type"] == "image":
            image_processor = self.processor.image_processor
            pictures = image_processor(image_processor.fetch_images(source), return_tensors="pt", **options)
            return pictures["pixel_values"], None
        videos = self.processor.video_processor(
            [source],
            num_frames=self.num_frames,
            sampling=self.sampling,
            seed=seed,
            return_metadata=True,
            video_metadata=None if item.get("video_metadata") is None else [item["video_metadata"]],
            **options,
        )
        return videos["pixel_values_videos"][0], videos["video_metadata"][0]

    def read_sound(self, item: Item) -> torch.Tensor | None:
        """
        Decodes a sound, or that of a video.

        Returns:
            Log-mel segments `(segments, num_mel_bins, num_mel_frames)`, or None for a video without sound.

        Raises:
            MediaError: If it can't be read.
            TrainingDataError: If the item names nothing to read.
        """
        source, extractor = _source(item), getattr(self.processor, "feature_extractor", None)
        if extractor is None:
            raise TrainingDataError(
                f"{_name(item)} is to be heard, but this processor has no feature extractor: leave sounds out, or use a processor "
                "that has one."
            )
        if item["type"] == "video" and not is_media_source(source):
            return None
        try:
            waveform = extractor.fetch_audio(source)
        except NoAudioError:
            if item["type"] == "audio":
                raise
            return None
        features = extractor([waveform], sampling_rate=extractor.sampling_rate, return_tensors="pt")
        return features["input_features"][0]

    # -----------------------------------------------------------------------------------------------------------------
    # Layouts
    # -----------------------------------------------------------------------------------------------------------------
    def _lay_out_chat(self, messages: list[_Message]) -> tuple[list[int], list[int]]:
        # Told of every item, so that a prompt is written alike whether what is heard comes before or after it
        is_heard = any(part.is_heard for part in _reads(messages))
        stubs = [
            {
                "role": message.role,
                "content": [
                    {"type": "text", "text": part, "has_audio": is_heard}
                    if isinstance(part, str)
                    else {"type": part.modality, "has_audio": is_heard}
                    for part in message.parts
                ],
            }
            for message in messages
        ]
        pieces, end = [], 0
        text = self._render(stubs)
        for position, message in enumerate(messages):
            if message.role != "assistant":
                continue
            prompt = self._render(stubs[:position], add_generation_prompt=True)
            answered = self._render(stubs[: position + 1])
            if not (text.startswith(prompt) and text.startswith(answered) and end <= len(prompt) <= len(answered)):
                raise TrainingDataError(
                    "The chat template writes the first messages of a conversation differently when others follow, so its "
                    "answers can't be told from its questions: use a template that does not, or layout 'conversation'."
                )
            pieces += [text[end : len(prompt)], text[len(prompt) : len(answered)]]
            end = len(answered)
        pieces.append(text[end:])
        return self._encode_pieces(self._expand(pieces, messages), "chat")

    def _render(self, stubs: list[dict[str, Any]], add_generation_prompt: bool = False) -> str:
        if not stubs:
            raise TrainingDataError("A sample begins with an answer, which the chat template has no prompt for.")
        try:
            return self.processor.apply_chat_template(
                stubs, chat_template=self.template, add_generation_prompt=add_generation_prompt
            )
        except ConversationError as error:
            raise TrainingDataError(str(error)) from error

    def _expand(
        self, texts: list[str], messages: list[_Message], words_of: Any = lambda part: part.words
    ) -> list[str]:
        """Texts with the words for items in place of their placeholders."""
        reads = list(_reads(messages))
        return self.processor.get_text_with_replacements(
            list(texts),
            *([words_of(read) for read in reads if read.modality == modality] for modality in MEDIA_TYPES),
        )[0]

    def _lay_out_conversation(self, messages: list[_Message]) -> tuple[list[int], list[int]]:
        family = self._known_family("conversation")
        system, turns = TRAINING_SYSTEMS[family], messages
        if messages[0].role == "system":
            system, turns = "".join(messages[0].parts), messages[1:]
        if any(turn.role == "system" for turn in turns):
            raise TrainingDataError("A message of role 'system' stands among the others, expected it before them.")
        contents = self._expand([self._joined(turn) for turn in turns], turns, words_of=_conversation_words)
        lay_out = self._vicuna_pieces if family == "vicuna" else self._llama_2_pieces
        pieces, original_labels = lay_out(system, [turn.role for turn in turns], contents)
        return self._encode_pieces(pieces, "conversation", original_labels if self.original_labels else None)

    def _joined(self, turn: _Message) -> str:
        """The content of a turn, with a blank where no other white space is between an item and its neighbour.

        The original puts what it says of a picture where the text has its mark, so white space of the text stays as it is.
        """
        text, end = "", " "
        for part in turn.parts:
            is_text = isinstance(part, str)
            begin = part[:1] if is_text else "<"
            text += " " if text and begin and not end.isspace() and not begin.isspace() else ""
            text += part if is_text else getattr(self.processor, f"{part.modality}_token")
            end = (part if is_text else _conversation_words(part))[-1:] or end
        return text

    def _vicuna_pieces(self, system: str, roles: list[str], contents: list[str]) -> tuple[list[str], Any]:
        names = {"user": "Human", "assistant": "Assistant"}
        header = f"{system}\n\n"
        pieces = [header + VICUNA_STOP]
        for role, content in zip(roles, contents):
            if role == "user":
                pieces[-1] += f"{names[role]}: {content}\n{VICUNA_STOP}"
            else:
                pieces[-1] += f"{names[role]}:"
                pieces += [f" {content}\n{VICUNA_STOP}", ""]
        turns = [f"{VICUNA_STOP}{names[role]}: {content}\n" for role, content in zip(roles, contents)]
        return pieces, partial(self._original_vicuna_labels, header=header, turns=turns, roles=roles)

    def _llama_2_pieces(self, system: str, roles: list[str], contents: list[str]) -> tuple[list[str], Any]:
        if roles[0] == "assistant":
            # As in the original: these models are to be asked first
            roles, contents = roles[1:], contents[1:]
        if any(role != ("user", "assistant")[index % 2] for index, role in enumerate(roles)):
            raise TrainingDataError(
                f"The roles of a conversation are {', '.join(roles)}, but LLaMA-2's layout needs 'user' and 'assistant' in turn: "
                "join the messages that follow each other, or use layout 'chat'."
            )
        pieces = [f"[INST] <<SYS>>\n{system}\n<</SYS>>\n\n"]
        for index, (role, content) in enumerate(zip(roles, contents)):
            if role == "user":
                pieces[-1] += f"{'<s>[INST] ' if index else ''}{content} [/INST]"
            elif content:
                pieces += [f" {content} </s>", ""]
        return pieces, self._original_llama_2_labels

    def _lay_out_caption(self, messages: list[_Message]) -> tuple[list[int], list[int]]:
        placeholders = "".join(part.placeholders for part in messages[0].parts)
        return self._encode_caption([placeholders], messages[1], CAPTION_END, "caption")

    def _lay_out_prompted_caption(self, messages: list[_Message], prompts: Random) -> tuple[list[int], list[int]]:
        template, end = CAPTION_TEMPLATES[self._known_family("prompted_caption")]
        picture = _conversation_words(messages[0].parts[0])
        prompt = template.format(f"{picture} {prompts.choice(CAPTION_PROMPTS)}")
        return self._encode_caption([prompt], messages[1], end, "prompted_caption")

    def _known_family(self, layout: str) -> str:
        if self.prompt_family is None:
            raise TrainingDataError(
                f"Layout {layout!r} is written for {' and '.join(PROMPT_FAMILIES)}, but the chat template of this processor is of "
                "neither: say by `prompt_family` which one to use, or use layout 'chat'."
            )
        return self.prompt_family

    # -----------------------------------------------------------------------------------------------------------------
    # Tokens
    # -----------------------------------------------------------------------------------------------------------------
    def _encode_pieces(
        self, pieces: list[str], layout: str, original_labels: Any = None
    ) -> tuple[list[int], list[int]]:
        """Tokenises pieces as one text, every second of which is an answer with what ends it."""
        tokenizer, text = self.processor.tokenizer, "".join(pieces)
        encoding = tokenizer(
            text,
            # As the processor decides
            add_special_tokens=tokenizer.bos_token is None or not text.startswith(tokenizer.bos_token),
            return_offsets_mapping=True,
            verbose=False,
        )
        input_ids, labels = encoding["input_ids"], [IGNORED] * len(encoding["input_ids"])
        starts = [start for start, _ in encoding["offset_mapping"]]
        spans, end = [], 0
        for index, piece in enumerate(pieces):
            spans += [(end, end + len(piece))] if index % 2 else []
            end += len(piece)
        answers = iter(spans)
        span = next(answers, None)
        for position, start in enumerate(starts):
            while span is not None and start >= span[1]:
                span = next(answers, None)
            if span is not None and start >= span[0]:
                labels[position] = input_ids[position]

        length = self._max_length(layout)
        has_answer = any(label != IGNORED for label in labels[:length])
        if original_labels is None or len(input_ids) > length:
            self._check_cut(input_ids, length, has_answer)
        if original_labels is not None:
            labels = original_labels(text=text, input_ids=input_ids)
        return input_ids[:length], labels[:length]

    def _encode_caption(
        self, prompts: list[str], answer: _Message, end: str, layout: str
    ) -> tuple[list[int], list[int]]:
        """Tokenises prompt and caption on their own, as the original does."""
        tokenizer = self.processor.tokenizer
        prompt_ids = tokenizer("".join(prompts), verbose=False)["input_ids"]
        caption = " ".join(answer.parts)
        if not caption.strip():
            raise TrainingDataError("The caption of a sample is empty.")
        caption_ids = tokenizer(caption + end, add_special_tokens=False, verbose=False)["input_ids"]
        caption_ids = caption_ids[: self.text_limits.get(layout)]
        input_ids = prompt_ids + caption_ids
        length = tokenizer.model_max_length
        self._check_cut(input_ids, length, has_answer=length > len(prompt_ids))
        labels = [IGNORED] * len(prompt_ids) + caption_ids
        return input_ids[:length], labels[:length]

    def _max_length(self, layout: str) -> int:
        limit, context = self.text_limits.get(layout), self.processor.tokenizer.model_max_length
        return context if limit is None else min(limit, context)

    def _check_cut(self, input_ids: list[int], length: int, has_answer: bool) -> None:
        """Raises if a sample that is cut to `length` tokens loses an item or all of its answers, or has none."""
        processor = self.processor
        placeholders = {processor.image_token_id, processor.video_token_id, processor.audio_token_id}
        if not placeholders.isdisjoint(input_ids[length:]):
            raise TrainingDataError(
                f"A sample has {len(input_ids)} tokens, and cut to {length} it would lose pictures, videos or sounds: raise "
                "max_text_tokens, or shorten the text before the last of them."
            )
        if not has_answer:
            raise TrainingDataError(
                f"A sample has {len(input_ids)} tokens, and cut to {length} nothing of its answers is left: raise "
                "max_text_tokens, or shorten the text before its answer."
                if len(input_ids) > length
                else "The answers of a sample are empty, so there is nothing to learn from it."
            )

    def _count(self, text: str) -> int:
        """Tokens of a text on its own, BOS included."""
        return len(self.processor.tokenizer(text, verbose=False)["input_ids"])

    def _original_vicuna_labels(
        self, text: str, input_ids: list[int], header: str, turns: list[str], roles: list[str]
    ) -> list[int]:
        """
        The original's labels of "conversation" for Vicuna: everything but the header and the turns of the user.

        It finds turns by the number of tokens that each has on its own, BOS included. That number is right only because a BOS
        and `###` are as many tokens as `##` and `#`, which `###` becomes after a line feed; where a text is cut into other
        tokens on its own than in place, all labels after it are off. Two more things that it teaches: of each turn of the user
        the first two tokens, `###`, keep their labels, so a model learns to go on after its answer; and so do the names of
        assistants, which at inference the prompt gives.
        """
        labels = list(input_ids)
        begin = self._count(header)
        labels[:begin] = [IGNORED] * begin
        for turn, role in zip(turns, roles):
            end = begin + self._count(turn)
            if role == "user":
                labels[begin + 2 : end] = [IGNORED] * len(labels[begin + 2 : end])
            begin = end
        return labels

    def _original_llama_2_labels(self, text: str, input_ids: list[int]) -> list[int]:
        """
        The original's labels of "conversation" for LLaMA-2: what is after `[/INST]`, up to and with `</s>`.

        It splits at `</s>`, and counts the tokens of each round, and of its instruction, on their own. The BOS of a round makes
        up for the `</s>` that is cut off it, and for the first for the BOS of all. A round that does not have exactly one
        `[/INST] ` ends the labels: an empty answer, or a text that quotes it, leaves all that follows without any, and a
        sample of one empty answer has none at all, which makes a loss of NaN if it is alone in its batch.
        """
        labels = [IGNORED] * len(input_ids)
        begin = 1
        for dialogue in text.split("</s>"):
            parts = dialogue.split("[/INST] ")
            if len(parts) != 2:
                break
            end = begin + self._count(dialogue)
            # Without the BOS and the blank, which is part of the first token of the answer
            answer = begin + self._count(f"{parts[0]}[/INST] ") - 2
            labels[answer:end] = input_ids[answer:end]
            begin = end
        return labels


# ---------------------------------------------------------------------------------------------------------------------
# Parts of a sample
# ---------------------------------------------------------------------------------------------------------------------
def _check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(choices)}.")


def _messages_of(sample: Mapping[str, Any]) -> Sequence[Any]:
    messages = sample.get("messages")
    if not isinstance(messages, list | tuple) or not messages:
        raise TrainingDataError(f"The 'messages' of a sample are {messages!r}, expected a list of messages.")
    return messages


def _check_caption(messages: list[_Message], layout: str) -> None:
    kinds = [[item["type"] for item in message.items] for message in messages]
    is_asked = [message.role for message in messages] == ["user", "assistant"]
    fits = is_asked and kinds[0] and "text" not in kinds[0]
    if layout == "prompted_caption":
        fits = is_asked and kinds[0] == ["image"]
    if not fits:
        expected = "one picture" if layout == "prompted_caption" else "pictures, videos or sounds without text"
        given = "; ".join(
            f"{message.role}: {', '.join(items) or 'nothing'}" for message, items in zip(messages, kinds)
        )
        raise TrainingDataError(
            f"A sample of layout {layout!r} has the messages {given}, expected {expected} from the user and then the caption: use "
            "layout 'chat' for anything else."
        )


def heard_as_frames(item: Item) -> Item:
    """What is decoded of an item of type "audio" where the audio branch is trained on frames: a video."""
    return {**item, "type": "video"} if item["type"] == "audio" else item


def _reads(messages: list[_Message]) -> Iterator[_Read]:
    return (part for message in messages for part in message.parts if isinstance(part, _Read))


def _conversation_words(read: _Read) -> str:
    """What is said of an item, of a picture without the blank after it, which the original's training leaves to the text."""
    return read.words.rstrip(" ") if read.modality == "image" else read.words


def _name(item: Item) -> str:
    return f"An item of type {item['type']!r}" if item.get("path") is None else str(item["path"])


def _source(item: Item) -> Any:
    """What to read, looked up if it is a file, and limited to the item's range of seconds."""
    kind = item["type"]
    source = next((item[key] for key in (kind, "path", "url", "base64") if item.get(key) is not None), None)
    if source is None:
        raise TrainingDataError(f"An item of type {kind!r} names nothing to read: give its 'path'.")
    limits = {name: item[name] for name in ("start", "end") if item.get(name) is not None}
    if kind == "image" or not is_media_source(source):
        if limits:
            raise TrainingDataError(
                f"{_name(item)} is limited to {limits}, but only files of videos and sounds can be: leave 'start' and 'end' out."
            )
        return source
    media = MediaSource.of(source)
    return media.between(**limits) if limits else media


def _metadata_of(cached: CachedFeatures) -> VideoLlamaVideoMetadata:
    times = None if cached.times is None else [float(time) for time in cached.times]
    total = len(cached.embeds)
    return VideoLlamaVideoMetadata(total_num_frames=total, frames_indices=list(range(total)), frame_times=times)


def _chat_template(processor: ProcessorMixin, family: str | None) -> str | None:
    templates = processor.chat_template
    if family is None:
        return templates["default"] if isinstance(templates, Mapping) else templates
    if isinstance(templates, Mapping) and family in templates:
        return templates[family]
    return (load_chat_templates(family) or {}).get(family)


def _family_of(template: str | None) -> str | None:
    if template is None:
        return None
    return "llama_2" if "[/INST]" in template else "vicuna" if VICUNA_STOP in template else None


__all__ = ["LAYOUTS", "CachedFeatures", "FeatureCache", "SampleEncoder"]
