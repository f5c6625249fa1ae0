# SPDX-License-Identifier: Apache-2.0
"""A conversation about videos, pictures and sounds: each is looked at once, and what was said is not read again."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import DynamicCache, ProcessorMixin, StoppingCriteria, StoppingCriteriaList, TextStreamer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import logging

from .exceptions import ContextLengthError, NoAudioError, PlaceholderError, SessionError
from .media import MediaSource, has_audio, is_media_source, read_duration
from .modeling_video_llama import VideoLlamaForConditionalGeneration
from .windows import split_into_windows


logger = logging.get_logger(__name__)

# What the encoder of each modality is given, the values first
INPUT_NAMES = {
    "image": ("pixel_values",),
    "video": ("pixel_values_videos", "video_frame_mask"),
    "audio": ("input_features", "input_features_mask"),
}
MODALITIES = tuple(INPUT_NAMES)
SESSION_NAME, FEATURES_NAME = "session.json", "features.safetensors"
SESSION_FORMAT = 1
# What a session keeps of an item, beside its features
ITEM_FIELDS = ("kind", "name", "has_audio", "text", "times", "duration", "label")


@dataclass
class ChatItem:
    """A video, picture or sound of a conversation, as the model knows it.

    Attributes:
        kind: "image", "video" or "audio".
        name: What it was called when it was added.
        has_audio: Whether it is a video whose sound is heard too.
        text: What the prompt says of it, with its placeholders.
        times: Of the frames of a video that were looked at, in seconds, as far as they are known.
        duration: Length of a video in seconds, if it is known.
        features: Its tokens for LLaMA by modality, each `(tokens, hidden_size)`.
        label: What the prompt says before it: the times of a window.
    """

    kind: str
    name: str
    has_audio: bool
    text: str
    times: list[float]
    duration: float | None
    features: dict[str, torch.Tensor] = field(repr=False)
    label: str = ""

    @property
    def content(self) -> list[dict[str, Any]]:
        """As items of a message."""
        label = [{"type": "text", "text": self.label}] if self.label else []
        return [*label, {"type": self.kind, "has_audio": self.has_audio}]


@dataclass
class ChatTurn:
    """A question, with what was added for it, and its answer."""

    items: list[ChatItem]
    question: str
    answer: str | None = None


class TokenStreamer(TextStreamer):
    """Hands on the text of an answer as it becomes certain, without the string that ends it.

    Args:
        tokenizer: Of the model.
        on_text: Called with each piece.
        stop_strings: That end an answer.
    """

    def __init__(self, tokenizer, on_text: Callable[[str], None], stop_strings: list[str] | None = None):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.on_text = on_text
        self.stop_strings = stop_strings or []
        self.pending = ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.pending += text
        if stream_end:
            for stop_string in self.stop_strings:
                self.pending = self.pending.removesuffix(stop_string)
            held = 0
        else:
            # What may be the beginning of a stop string is held back until it is known
            held = max(
                (
                    length
                    for stop_string in self.stop_strings
                    for length in range(len(stop_string) + 1)
                    if self.pending.endswith(stop_string[:length])
                ),
                default=0,
            )
        certain, self.pending = self.pending[: len(self.pending) - held], self.pending[len(self.pending) - held :]
        if certain:
            self.on_text(certain)


class StopWhen(StoppingCriteria):
    """Ends generation when an event is set."""

    def __init__(self, event: Event):
        self.event = event

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        return torch.full((input_ids.shape[0],), self.event.is_set(), dtype=torch.bool, device=input_ids.device)


class VideoLlamaChat:
    r"""A conversation about videos, pictures and sounds, of which some may be added at every turn.

    Each is encoded once, when it is added. The keys and values of all that was read and said are kept, so that a question
    costs only its own tokens; greedy answers are those that a run of the whole prompt gives. What a prompt says is what
    [`VideoLlamaProcessor.apply_chat_template`] writes of the same messages.

    When the context fills, the oldest turns are left out of the prompt, with a warning. What was added in them is not: it moves to
    the first turn that is left. (The original cuts the prompt from the left, through its video.)

    Args:
        model ([`VideoLlamaForConditionalGeneration`]):
            Model to talk with.
        processor ([`VideoLlamaProcessor`]):
            Its processor.
        system (`str`, *optional*):
            System message, in place of that of the prompt family. As in the original, it is left out once there is sound.
        chat_template (`str`, *optional*):
            "vicuna" or "llama_2". By default the one that the checkpoint was trained with.
        generation_kwargs:
            Arguments of `generate` for every answer, such as `do_sample=False` or `max_new_tokens=64`.

    Example:

    ```python
    >>> chat = VideoLlamaChat(model, processor, do_sample=False)
    >>> chat.add_video("clip.mp4")
    >>> print(chat.ask("What do you see and hear?"))
    >>> for piece in chat.stream("What happens first?"):
    ...     print(piece, end="", flush=True)
    ```
    """

    def __init__(
        self,
        model: VideoLlamaForConditionalGeneration,
        processor: ProcessorMixin,
        system: str | None = None,
        chat_template: str | None = None,
        **generation_kwargs,
    ):
        self.model = model
        self.processor = processor
        self.system = system
        self.chat_template = chat_template
        self.generation_kwargs = generation_kwargs
        self.turns: list[ChatTurn] = []
        self.pending: list[ChatItem] = []
        self._num_left_out = 0
        self._forget()

    # What is talked about

    def add_video(self, video: Any, audio: bool | None = None, **kwargs) -> ChatItem:
        """Adds a video to the next question.

        Args:
            video: Path, URL, bytes, binary file, or frames of the shape `(frames, height, width, 3)` or `(frames, 3, height,
                width)`.
            audio: Whether its sound is heard. None: if it has any, and the model an audio branch.
            kwargs: Of the video processor, such as `num_frames` or `fps`.

        Raises:
            MediaError: If it can't be read, or if sound was asked of a silent one (`NoAudioError`).
        """
        if is_media_source(video):
            video = MediaSource.of(video)
            can_be_heard = has_audio(video) and self.model.config.audio_config is not None
            if audio and not can_be_heard:
                raise NoAudioError(
                    f"Sound was asked of {video.name}, but "
                    + ("it has no audio track" if not has_audio(video) else "the model has no audio branch")
                    + ": leave out audio=True."
                )
            audio = can_be_heard if audio is None else audio
        elif audio:
            raise NoAudioError("Sound was asked of decoded frames, which have none: add it by add_audio, before them.")
        return self._add("video", video, load_audio_from_video=bool(audio), return_metadata=True, **kwargs)

    def add_windows(
        self,
        video: Any,
        seconds: float = 30.0,
        overlap: float = 5.0,
        max_windows: int | None = None,
        audio: bool | None = None,
        **kwargs,
    ) -> list[ChatItem]:
        """Adds a long video to the next question as overlapping windows, each with its times, frames and sound.

        One window is read and encoded after the other, so that an hour takes no more memory than a window. For the windows see
        [`~windows.split_into_windows`].

        Args:
            video: Path, URL, bytes or binary file.
            seconds: Length of a window.
            overlap: What two neighbours share, in seconds.
            max_windows: If more would be needed, windows are made longer until so many suffice.
            audio: Whether the sound is heard. None: if there is any, and the model has an audio branch.
            kwargs: Of the video processor for each window, such as `num_frames`.

        Raises:
            ContextLengthError: If the context of the model is too short for so many windows; it says how many fit.
            MediaError: If it can't be read, or if sound was asked of a silent one.
        """
        media = MediaSource.of(video)
        windows = split_into_windows(read_duration(media), seconds, overlap, max_windows)
        before = list(self.pending)
        try:
            for number, window in enumerate(windows):
                item = self.add_video(media.between(window.start, window.end), audio, **kwargs)
                item.label = window.label
                if number == 0:
                    self._check_room(item, len(windows))
        except BaseException:
            self.pending = before
            raise
        return self.pending[len(before) :]

    def _check_room(self, item: ChatItem, count: int) -> None:
        """Refuses windows that the context has no room for, when the first one tells how many tokens one takes."""
        tokens = len(self.processor.tokenizer(f"{item.label} {item.text} ", add_special_tokens=False)["input_ids"])
        context = self.model.config.text_config.max_position_embeddings
        # The marks of the prompt, a question, and the answer
        fitting = (context - self._room(self.generation_kwargs) - 100) // tokens
        if count > fitting:
            raise ContextLengthError(
                f"{count} windows take about {count * tokens} tokens, but the context of the model has {context}: pass max_windows="
                f"{max(fitting, 1)} or less for longer windows, or add a part of the video."
            )

    def add_image(self, image: Any, **kwargs) -> ChatItem:
        """Adds a picture to the next question: path, URL, bytes, binary file, `PIL` image or array.

        Raises:
            MediaError: If it can't be read.
        """
        return self._add("image", image, **kwargs)

    def add_audio(self, audio: Any, **kwargs) -> ChatItem:
        """Adds a sound to the next question: path, URL, bytes, binary file, or array at 16 kHz. Directly before a video it
        counts as the sound of that.

        Raises:
            MediaError: If it can't be read.
        """
        return self._add("audio", audio, **kwargs)

    def _add(self, kind: str, value: Any, load_audio_from_video: bool = False, **kwargs) -> ChatItem:
        """Reads and encodes an item."""
        media = MediaSource.of(value) if is_media_source(value) else value
        name = media.name if isinstance(media, MediaSource) else f"{kind} given as {type(value).__name__}"
        plural = {"image": "images", "video": "videos", "audio": "audio"}[kind]
        inputs = self.processor(
            text=getattr(self.processor, f"{kind}_token"),
            **{plural: [media]},
            load_audio_from_video=load_audio_from_video,
            return_tensors="pt",
            **kwargs,
        )
        if kind == "video":
            sounds = [0 if load_audio_from_video else None]
            text = self.processor.replace_video_token(inputs, 0, video_to_audio_indices=sounds)
        else:
            text = getattr(self.processor, f"replace_{kind}_token")(inputs, 0)
        features = {}
        for modality, names in INPUT_NAMES.items():
            if inputs.get(names[0]) is not None:
                encode = getattr(self.model, f"get_{modality}_features")
                tensors = {name: inputs[name].to(self.model.device) for name in names if inputs.get(name) is not None}
                tensors[names[0]] = tensors[names[0]].to(self.model.dtype)
                with torch.no_grad():
                    features[modality] = encode(**tensors, return_dict=True).pooler_output[0]
        times, duration = [], None
        if kind == "video":
            metadata = inputs["video_metadata"][0]
            duration = metadata.duration
            with suppress(ValueError):  # of frames that are given as arrays
                times = [float(time) for time in metadata.timestamps]
        item = ChatItem(kind, name, load_audio_from_video, text, times, duration, features)
        self.pending.append(item)
        return item

    @property
    def items(self) -> list[ChatItem]:
        """All that was added, in order."""
        return [item for turn in self.turns for item in turn.items] + self.pending

    # Asking

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The whole conversation as messages; items have their kind alone."""
        return self._messages(self.turns)

    def ask(self, question: str, **kwargs) -> str:
        """Answers a question about what was added, now and before.

        Args:
            question: Text.
            kwargs: Arguments of `generate`.

        Raises:
            ContextLengthError: If the question and all that was added do not fit the context of the model.
            PlaceholderError: If the question holds a placeholder token.
        """
        return self._answer(question, **kwargs)

    def stream(self, question: str, **kwargs) -> Iterator[str]:
        """As `ask`, but hands out the answer piece by piece. Whoever stops reading it early ends the answer there.

        Args:
            question: Text.
            kwargs: Arguments of `generate`.
        """
        pieces: SimpleQueue[str | BaseException | None] = SimpleQueue()
        is_unwanted = Event()
        streamer = TokenStreamer(self.processor.tokenizer, pieces.put, self._stop_strings())

        def run() -> None:
            try:
                self._answer(question, streamer=streamer, is_unwanted=is_unwanted, **kwargs)
                pieces.put(None)
            except BaseException as error:
                pieces.put(error)

        thread = Thread(target=run, daemon=True)
        thread.start()
        try:
            while (piece := pieces.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            is_unwanted.set()
            thread.join()

    def undo(self) -> ChatTurn:
        """Takes back the last question, its answer and what was added for it. What was added since stays.

        Raises:
            SessionError: If nothing was asked yet.
        """
        if not self.turns:
            raise SessionError("There is no turn to take back: nothing was asked yet.")
        return self.turns.pop()

    def _answer(
        self, question: str, streamer: TokenStreamer | None = None, is_unwanted: Event | None = None, **kwargs
    ) -> str:
        if not isinstance(question, str):
            raise SessionError(f"A question is text, got {question!r}.")
        for modality in MODALITIES:
            if (token := getattr(self.processor, f"{modality}_token")) in question:
                raise PlaceholderError(
                    f"The question holds {token}, which stands for an item: add the item by add_{modality}."
                )
        kwargs = {**self.generation_kwargs, **kwargs}
        turn = ChatTurn(self.pending, question)
        prompt = self._fit(turn, kwargs)
        if is_unwanted is not None:
            criteria = StoppingCriteriaList(kwargs.pop("stopping_criteria", None) or [])
            kwargs["stopping_criteria"] = StoppingCriteriaList([*criteria, StopWhen(is_unwanted)])
        output_ids = self._generate(prompt, streamer=streamer, **kwargs)
        text = self.processor.decode(output_ids, skip_special_tokens=True)
        for stop_string in self._stop_strings():
            text = text.removesuffix(stop_string)
        turn.answer = text.strip()
        self.turns.append(turn)
        self.pending = []
        return turn.answer

    def _stop_strings(self) -> list[str]:
        return self.model.generation_config.stop_strings or []

    # Prompts

    def _messages(self, turns: list[ChatTurn]) -> list[dict[str, Any]]:
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        for turn in turns:
            content = [part for item in turn.items for part in item.content]
            content.append({"type": "text", "text": turn.question})
            messages.append({"role": "user", "content": content})
            if turn.answer is not None:
                messages.append({"role": "assistant", "content": turn.answer})
        return messages

    def _prompt(self, turns: list[ChatTurn]) -> "Prompt":
        """The tokens of a conversation that ends with a question, and what belongs to their placeholders."""
        items = [item for turn in turns for item in turn.items]
        text = self.processor.apply_chat_template(
            self._messages(turns), chat_template=self.chat_template, add_generation_prompt=True
        )
        replacements = {kind: [item.text for item in items if item.kind == kind] for kind in MODALITIES}
        (text,), _ = self.processor.get_text_with_replacements(
            [text], replacements["image"], replacements["video"], replacements["audio"]
        )
        input_ids = self.processor.tokenizer(text)["input_ids"]
        token_ids = {modality: getattr(self.processor, f"{modality}_token_id") for modality in MODALITIES}
        return Prompt.of(input_ids, items, token_ids)

    def _room(self, kwargs: dict[str, Any]) -> int:
        """Tokens that are kept for an answer."""
        return kwargs.get("max_new_tokens") or self.model.generation_config.max_new_tokens or 20

    def _fit(self, turn: ChatTurn, kwargs: dict[str, Any]) -> "Prompt":
        """The prompt of a question, without the oldest turns if it would not fit with them."""
        context = self.model.config.text_config.max_position_embeddings
        room = self._room(kwargs)
        for num_left_out in range(len(self.turns) + 1):
            prompt = self._prompt(without_oldest([*self.turns, turn], num_left_out))
            if len(prompt.input_ids) + room <= context:
                break
        else:
            raise ContextLengthError(
                f"The question and the {len(self.items)} items of the conversation take {len(prompt.input_ids)} tokens, and "
                f"{room} are kept for the answer, but the context of the model has {context}: ask in fewer words, lower "
                "max_new_tokens, or begin a new conversation with fewer items."
            )
        if num_left_out > self._num_left_out:
            logger.warning(
                f"The context of {context} tokens is full: the {num_left_out} oldest of {len(self.turns)} turns are left out of "
                "the prompt. What was added in them stays."
            )
        self._num_left_out = num_left_out
        return prompt

    # Generation

    def _forget(self) -> None:
        """Lets go of the keys and values of what was read."""
        self._cache, self._cached_keys = None, []

    def _is_cache_of_use(self, kwargs: dict[str, Any]) -> bool:
        """Whether an answer is generated in the one way that the session's own cache is for."""
        config = self.model.generation_config
        others = {
            "cache_implementation",
            "past_key_values",
            "assistant_model",
            "prompt_lookup_num_tokens",
            "use_cache",
        }
        is_one = all(
            (kwargs.get(name) or getattr(config, name, None) or 1) == 1
            for name in ("num_beams", "num_return_sequences")
        )
        return is_one and not others & kwargs.keys() and config.cache_implementation is None

    def _generate(self, prompt: "Prompt", **kwargs) -> list[int]:
        """The tokens of an answer."""
        input_ids = torch.tensor([prompt.input_ids], device=self.model.device)
        inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
        if not self._is_cache_of_use(kwargs):
            self._forget()
            output_ids = self.model.generate(**inputs, mm_encoder_outputs=prompt.features(), **kwargs)
            return output_ids[0, input_ids.shape[1] :].tolist()
        try:
            self._read(prompt, input_ids)
            output_ids = self.model.generate(**inputs, past_key_values=self._cache, **kwargs)[0].tolist()
        except BaseException:
            self._forget()  # nobody knows how far it came
            raise
        answer_ids = output_ids[len(prompt.input_ids) :]
        self._cached_keys = [*prompt.keys, *answer_ids][: self._cache.get_seq_length()]
        return answer_ids

    def _read(self, prompt: "Prompt", input_ids: torch.Tensor) -> None:
        """Brings the cache to the prompt without its last token, reading what is not in it yet."""
        if self._cache is None:
            self._cache = DynamicCache(config=self.model.config)
        # The last token is left to `generate`, which has to begin with something
        last = len(prompt.keys) - 1
        known = zip(self._cached_keys, prompt.keys[:last])
        start = next((index for index, (ours, theirs) in enumerate(known) if ours != theirs), None)
        start = min(len(self._cached_keys), last) if start is None else start
        start = next((begin for begin, end, _, _ in prompt.runs if begin < start < end), start)
        if (surplus := self._cache.get_seq_length() - start) > 0:
            self._cache.crop(-surplus)
        if start < last:
            with torch.no_grad():
                self.model(
                    input_ids=input_ids[:, start:last],
                    attention_mask=torch.ones_like(input_ids[:, :last]),
                    past_key_values=self._cache,
                    mm_encoder_outputs=prompt.features(start),
                    use_cache=True,
                    logits_to_keep=1,
                )

    # Keeping

    def save(self, folder: str | Path) -> None:
        """Writes the conversation and the features of what was added, to be continued by `load`, without the files.

        Args:
            folder: Is made where it does not exist; a session in it is replaced.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        items = self.items
        numbers = {id(item): number for number, item in enumerate(items)}
        session = {
            "format": SESSION_FORMAT,
            "model": self._fingerprint(),
            "system": self.system,
            "chat_template": self.chat_template,
            "items": [{name: getattr(item, name) for name in ITEM_FIELDS} for item in items],
            "turns": [
                {"items": [numbers[id(item)] for item in turn.items], "question": turn.question, "answer": turn.answer}
                for turn in self.turns
            ],
            "pending": [numbers[id(item)] for item in self.pending],
        }
        features = {
            f"{number}.{modality}": tensor.cpu().contiguous()
            for number, item in enumerate(items)
            for modality, tensor in item.features.items()
        }
        save_file(features, folder / FEATURES_NAME)
        (folder / SESSION_NAME).write_text(json.dumps(session, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(
        cls,
        folder: str | Path,
        model: VideoLlamaForConditionalGeneration,
        processor: ProcessorMixin,
        **generation_kwargs,
    ) -> "VideoLlamaChat":
        """A conversation that `save` wrote. Its text is read again at the next question.

        Raises:
            SessionError: If there is none, it can't be read, or was had with another model or precision.
        """
        folder = Path(folder)
        try:
            session = json.loads((folder / SESSION_NAME).read_text(encoding="utf-8"))
            features = load_file(folder / FEATURES_NAME)
            if session["format"] != SESSION_FORMAT:
                raise SessionError(
                    f"{folder} holds a session of format {session['format']}, expected {SESSION_FORMAT}."
                )
            chat = cls(model, processor, session["system"], session["chat_template"], **generation_kwargs)
            if session["model"] != chat._fingerprint():
                raise SessionError(
                    f"The session in {folder} was had with another model, or in another precision: load it with the same."
                )
            items = [
                ChatItem(
                    **fields,
                    features={
                        modality: features[f"{number}.{modality}"].to(model.device)
                        for modality in MODALITIES
                        if f"{number}.{modality}" in features
                    },
                )
                for number, fields in enumerate(session["items"])
            ]
            chat.turns = [
                ChatTurn([items[number] for number in turn["items"]], turn["question"], turn["answer"])
                for turn in session["turns"]
            ]
            chat.pending = [items[number] for number in session["pending"]]
        except SessionError:
            raise
        except (OSError, ValueError, KeyError, IndexError, TypeError, SafetensorError) as error:
            raise SessionError(
                f"{folder} holds no session that can be read: {error!r}. Give a folder that `save` wrote."
            ) from error
        return chat

    def _fingerprint(self) -> str:
        """What tells whether features were computed for this model."""
        digest = hashlib.sha256()
        for name in ("video_projection", "audio_projection"):
            if (projection := getattr(self.model.model, name, None)) is not None and not projection.weight.is_meta:
                digest.update(projection.weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


@dataclass
class Prompt:
    """The tokens of a prompt, and what belongs to their placeholders.

    Attributes:
        input_ids: The tokens.
        keys: What each stands for: the token, or for a placeholder the item, its modality and the place in it. Prompts whose
            keys begin the same have the same keys and values in a cache.
        runs: First and last but one token of every run of placeholders, with its modality and features.
    """

    input_ids: list[int]
    keys: list[Any]
    runs: list[tuple[int, int, str, torch.Tensor]]

    @classmethod
    def of(cls, input_ids: list[int], items: list[ChatItem], token_ids: dict[str, int]) -> "Prompt":
        """Finds the placeholders of items, in the order of each modality.

        Raises:
            PlaceholderError: If there are fewer than an item has features, as in a session that was damaged.
        """
        keys, runs = list(input_ids), []
        for modality, token_id in token_ids.items():
            places = iter([index for index, each in enumerate(input_ids) if each == token_id])
            for item in items:
                if (features := item.features.get(modality)) is None:
                    continue
                indices = list(islice(places, features.shape[0]))
                if len(indices) < features.shape[0]:
                    raise PlaceholderError(
                        f"What the conversation says of {item.name} has {len(indices)} {modality} placeholders, but its features "
                        f"are for {features.shape[0]}: load a session that `save` wrote."
                    )
                runs.append((indices[0], indices[-1] + 1, modality, features))
                for offset, index in enumerate(indices):
                    keys[index] = (id(features), offset)
        return cls(input_ids, keys, sorted(runs, key=lambda run: run[0]))

    def features(self, start: int = 0) -> dict[str, BaseModelOutputWithPooling]:
        """Of the placeholders from a token on, as `mm_encoder_outputs`."""
        by_modality: dict[str, list[torch.Tensor]] = {}
        for begin, _, modality, features in self.runs:
            if begin >= start:
                by_modality.setdefault(modality, []).append(features)
        return {
            modality: BaseModelOutputWithPooling(pooler_output=torch.stack(features))
            for modality, features in by_modality.items()
        }


def without_oldest(turns: list[ChatTurn], number: int) -> list[ChatTurn]:
    """A conversation without the words of its oldest turns.

    What was added in them goes to the first turn that is left: sounds behind its own items and the rest before them, as a sound
    before a video would be taken for the sound of that.
    """
    moved = [item for turn in turns[:number] for item in turn.items]
    first = turns[number]
    seen = [item for item in moved if item.kind != "audio"]
    heard = [item for item in moved if item.kind == "audio"]
    return [ChatTurn([*seen, *first.items, *heard], first.question, first.answer), *turns[number + 1 :]]
