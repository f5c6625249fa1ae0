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
"""The errors that this package raises for a user's input. All are `ValueError`s; the names say what to catch."""


class VideoLlamaError(ValueError):
    """Base of every error below."""


class MediaError(VideoLlamaError):
    """A file, URL or buffer cannot be read as the picture, video or sound that was expected of it."""


class MediaNotFoundError(MediaError, FileNotFoundError):
    """A path or URL leads to nothing."""


class NoAudioError(MediaError):
    """Sound was asked of a source that has no audio track, or of a range of it without sound."""


class DecodeTimeoutError(MediaError, TimeoutError):
    """A clip was not decoded within the time limit."""


class TimeRangeError(MediaError):
    """A range of seconds is empty, begins before the clip or after its end, or is not made of numbers."""


class StreamError(MediaError):
    """A live stream has stalled, or broke off in the middle."""


class PlaceholderError(VideoLlamaError):
    """The placeholders in the text and the images, videos or sounds given with it do not match."""


class ConversationError(VideoLlamaError):
    """A conversation is not made of messages, or a message not of items, as they have to be."""


class ContextLengthError(VideoLlamaError):
    """A conversation is longer than the context of the model."""


class SessionError(VideoLlamaError):
    """A chat session cannot do what is asked, or cannot be loaded."""


class CheckpointError(VideoLlamaError):
    """A checkpoint lacks weights that the model needs, or holds others, or of other shapes."""


class SharingError(VideoLlamaError):
    """The Hub does not let a checkpoint be pushed where it was to go."""


class TrainingDataError(VideoLlamaError):
    """Training data are not of the format that was named, cannot be laid out, or too much of them cannot be read."""


class FeatureCacheError(VideoLlamaError):
    """Features computed before are of other weights, other preprocessing or other data, or are damaged."""
