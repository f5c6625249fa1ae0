# SPDX-License-Identifier: Apache-2.0
"""Which files a command means, and what is in them."""

import glob
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import PIL.Image

from .exceptions import MediaError, MediaNotFoundError
from .media import MediaSource, import_av, is_url


# FFmpeg draws text files as if on a terminal
NOT_MEDIA = {"tty"}
ANIMATED_PICTURES = {"gif", "apng"}
# The standard library's `mimetypes` depends on the machine, and without a system table it misses half of these
VIDEO_SUFFIXES = frozenset(
    ".3g2 .3gp .asf .avi .divx .f4v .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogv .ts .vob .webm .wmv".split()
)


def media_kind(source: Any) -> str:
    """What a file is by its content, whatever its name says.

    Args:
        source: Path, URL, bytes, binary file or [`MediaSource`].

    Returns:
        "image", "video" or "audio". A moving GIF is a video; a sound file with a picture of its cover, or a video file without
        a picture track, is a sound.

    Raises:
        MediaNotFoundError: If there is no such file or address.
        MediaError: If it is nothing of that.
    """
    media = MediaSource.of(source)
    av = import_av()
    try:
        with av.open(media.open(), metadata_errors="replace") as container:
            name = container.format.name
            cover = av.stream.Disposition.attached_pic
            has_frames = any(not stream.disposition & cover for stream in container.streams.video)
            has_samples = bool(container.streams.audio)
    except av.error.FFmpegError:
        name, has_frames, has_samples = None, False, False
    if name in ANIMATED_PICTURES:
        return "video" if _picture_count(media) > 1 else "image"
    # FFmpeg's readers of pictures: by the suffix, or by the content
    if name == "image2" or (name or "").endswith("_pipe"):
        return "image"
    if has_frames and name not in NOT_MEDIA:
        return "video"
    if has_samples:
        return "audio"
    if _picture_count(media):
        return "image"
    raise MediaError(f"{media.name} is neither a video nor a picture nor a sound: play it to find out, or convert it.")


def _picture_count(media: MediaSource) -> int:
    """Pictures in a file that Pillow reads, 0 in any other."""
    try:
        with PIL.Image.open(media.open()) as image:
            return getattr(image, "n_frames", 1)
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError):
        return 0


def expand_files(names: Iterable[str]) -> list[str]:
    """The files that are meant by paths, folders, patterns and URLs.

    Args:
        names: A folder stands for the videos in it and in its folders, told by their suffixes; hidden ones are left out. A
            pattern (`*`, `?`, `[…]`, `**`) stands for the files that it matches, whatever they are. A path or URL stands for
            itself, whether it exists or not.

    Returns:
        Each file once, in the order of `names`; those of a folder or pattern are sorted.

    Raises:
        MediaNotFoundError: If a folder has no videos, or a pattern matches nothing.
    """
    files: dict[str, None] = {}
    for name in names:
        if is_url(name) or Path(name).is_file():
            found = [name]
        elif Path(name).is_dir():
            found = sorted(str(path) for path in Path(name).rglob("*") if _is_visible_video(path, Path(name)))
            if not found:
                raise MediaNotFoundError(f"{name} holds no videos: name another folder, or the files themselves.")
        elif glob.has_magic(name):
            found = sorted(path for path in glob.glob(name, recursive=True) if Path(path).is_file())
            if not found:
                raise MediaNotFoundError(f"No file matches {name}: check the pattern.")
        else:
            found = [name]
        files.update(dict.fromkeys(name if is_url(name) else str(Path(name)) for name in found))
    return list(files)


def _is_visible_video(path: Path, folder: Path) -> bool:
    is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return not is_hidden and path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()
