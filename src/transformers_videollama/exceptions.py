# SPDX-License-Identifier: Apache-2.0
"""The errors that this package raises for a user's input. All are `ValueError`s; the names say what to catch."""


class VideoLlamaError(ValueError):
    """Base of every error below."""


class MediaError(VideoLlamaError):
    """A file, URL or buffer cannot be read as the picture, video or sound that was expected of it."""


class MediaNotFoundError(MediaError, FileNotFoundError):
    """A path or URL leads to nothing."""


class NoAudioError(MediaError):
    """Sound was asked of a source that has no audio track."""


class PlaceholderError(VideoLlamaError):
    """The placeholders in the text and the images, videos or sounds given with it do not match."""


class CheckpointError(VideoLlamaError):
    """A checkpoint lacks weights that the model needs, or holds others, or of other shapes."""
