# SPDX-License-Identifier: Apache-2.0
"""Makes clips with captions out of real pictures and real sounds: Tux Paint's stamps, as Debian and Ubuntu package them.

python examples/real_clips/make_clips.py --out clips --num-clips 12

Of each clip a stamp is the picture, before a background, still or moving, and the sound effect of the stamp is its sound. In the
output folder, `captions.jsonl` and `captions.csv` are what `videollama train --data messages=…` and `--data webvid=…` read.
"""

import argparse
import csv
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import av
import numpy as np
from PIL import Image
from platformdirs import user_cache_path


PACKAGE = "tuxpaint-stamps-default"
STAMPS = Path("usr/share/tuxpaint/stamps")
COPYRIGHT = Path("usr/share/doc") / PACKAGE / "copyright"

FPS, RATE = 10, 44100
# Captions that name a thing. Others are signs, wishes and rules of games
NAME = re.compile(r"(?P<name>(?:An?|The) [^.!?“”]{2,60})\.")
# Whose sounds are spoken words
SPOKEN = ("symbols", "seasonal/hanukkah")
# Shorter sounds are repeated after a pause, in seconds
SHORTEST_PERIOD = 0.8

QUESTION = "What is in this clip?"
CROSSED_QUESTION = "What is seen, and what is heard?"


class StampsError(RuntimeError):
    """The stamps cannot be had, or are not what they should be."""


# ---------------------------------------------------------------------------------------------------------------------
# Stamps
# ---------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Stamp:
    """A picture with its caption and its sound effect: three files of one name.

    Attributes:
        picture: PNG with transparency.
        sound: OGG or WAV.
        caption: "A cow."
    """

    picture: Path
    sound: Path
    caption: str

    @property
    def name(self) -> str:
        """As in the middle of a sentence: "a cow"."""
        return self.caption[0].lower() + self.caption[1:-1]

    @cached_property
    def image(self) -> Image.Image:
        """The picture in RGBA, cut to what is visible of it."""
        with Image.open(self.picture) as picture:
            image = picture.convert("RGBA")
        return image.crop(image.getchannel("A").getbbox())

    @cached_property
    def waveform(self) -> np.ndarray:
        """The whole sound, `(samples,)` at `RATE`, float32, between -0.7 and 0.7 if it is audible at all."""
        resampler = av.AudioResampler("fltp", "mono", RATE)
        with av.open(str(self.sound)) as container:
            frames = [part for frame in container.decode(audio=0) for part in resampler.resample(frame)]
        frames += resampler.resample(None)
        samples = np.concatenate([frame.to_ndarray()[0] for frame in frames])
        peak = np.abs(samples).max()
        return (samples * 0.7 / peak if peak > 0.02 else 0 * samples).astype(np.float32)


def find_stamps(folder: Path) -> list[Stamp]:
    """The stamps of a folder that have a picture and a sound, and a caption that names what they are.

    Args:
        folder: With `.txt`, `.png` and `.ogg` or `.wav` files of the same names, at any depth.

    Raises:
        StampsError: If there is no such folder, or no such stamp in it.
    """
    if not folder.is_dir():
        raise StampsError(f"There is no folder {folder}: check the path, or leave out --stamps to download them.")
    stamps = []
    for text in sorted(folder.rglob("*.txt")):
        picture = text.with_suffix(".png")
        sound = next((path for path in map(text.with_suffix, (".ogg", ".wav")) if path.is_file()), None)
        lines = text.read_text(encoding="utf-8", errors="replace").splitlines()
        is_spoken = any(f"/{part}/" in f"/{text.relative_to(folder).as_posix()}" for part in SPOKEN)
        if sound and picture.is_file() and lines and NAME.fullmatch(lines[0]) and not is_spoken:
            stamps.append(Stamp(picture, sound, lines[0]))
    if not stamps:
        raise StampsError(
            f"{folder} has no stamp with a picture (.png), a sound (.ogg or .wav) and a caption (.txt) of the same name: give "
            f"the folder {STAMPS} of the unpacked package {PACKAGE}, or leave out --stamps to download it."
        )
    return stamps


def choose_stamps(stamps: Sequence[Stamp], count: int, generator: random.Random) -> list[Stamp]:
    """Stamps at random, at most `count`, no two with the same caption or the same sound; silent and tiny ones are left out."""
    chosen, taken = [], set()
    for stamp in generator.sample(stamps, len(stamps)):
        if len(chosen) == count:
            break
        heard = hashlib.sha256(stamp.waveform.tobytes()).digest()
        is_visible = min(stamp.image.size) >= 24 and np.asarray(stamp.image)[..., 3].mean() > 0.15 * 255
        if stamp.waveform.any() and is_visible and not taken & {heard, stamp.caption}:
            chosen.append(stamp)
            taken |= {heard, stamp.caption}
    return chosen


def fetch_stamps(folder: Path) -> Path:
    """Downloads the stamps, and keeps those that have a sound: about 10 of 160 megabytes.

    apt does it, with its usual sources and keys, but with lists and caches of its own if those of the machine do not do: nothing
    of the system is changed, and no rights are needed. Several processes may ask at once: one of them is first.

    Args:
        folder: Where to put them. What is there already is taken as it is.

    Returns:
        The same folder. Beside the stamps it holds the `copyright` of the package.

    Raises:
        StampsError: If there is no apt here, or it cannot download the package.
    """

    def keep(unpacked: Path, kept: Path) -> None:
        for stamp in find_stamps(unpacked / STAMPS):
            for path in (stamp.picture, stamp.sound, stamp.picture.with_suffix(".txt")):
                copy_into(path, kept / path.relative_to(unpacked / STAMPS))
        copy_into(unpacked / COPYRIGHT, kept / "copyright")

    return fetch_package(PACKAGE, folder, keep)


def copy_into(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def fetch_package(package: str, folder: Path, keep: Callable[[Path, Path], None]) -> Path:
    """
    Downloads a package of Debian or Ubuntu, as [`fetch_stamps`] does, and keeps what is wanted of it.

    Args:
        package: Its name.
        folder: Where to put what is kept. If it is there, nothing is done.
        keep: Copies from the unpacked package, its first argument, into its second.

    Returns:
        The same folder, with the file name of the package in `package`.

    Raises:
        StampsError: As there.
    """
    if folder.is_dir():
        return folder
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise StampsError(
                f"{program} is not on this machine: unpack the package {package} of Debian or Ubuntu elsewhere "
                f"(https://packages.debian.org/{package}), and give its folder (--stamps)."
            )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        scratch = Path(scratch)
        archive = _download(package, scratch)
        _run(["dpkg-deb", "-x", str(archive), "unpacked"], package, scratch)
        kept = scratch / "kept"
        kept.mkdir()
        keep(scratch / "unpacked", kept)
        (kept / "package").write_text(f"{archive.stem}\n", encoding="utf-8")
        try:
            kept.rename(folder)
        except OSError:
            # Another process was faster
            if not folder.is_dir():
                raise
    return folder


def _download(package: str, scratch: Path) -> Path:
    """The package, by the lists of the machine, or else by lists that are fetched for this alone."""
    for name in ("state/lists/partial", "cache/archives/partial"):
        (scratch / name).mkdir(parents=True)
    # apt hands downloads over to a user that may not write here, where it can
    common = ["-q", "-o", f"Dir::Cache={scratch / 'cache'}", "-o", "APT::Sandbox::User=root"]
    own_lists = ["-o", f"Dir::State={scratch / 'state'}", "-o", "Acquire::Languages=none"]
    status = scratch / "state" / "status"
    status.touch()
    own_lists += ["-o", f"Dir::State::status={status}"]
    try:
        _run(["apt-get", *common, "download", package], package, scratch)
    except StampsError:
        _run(["apt-get", *common, *own_lists, "update"], package, scratch)
        _run(["apt-get", *common, *own_lists, "download", package], package, scratch)
    archives = sorted(scratch.glob(f"{package}_*.deb"))
    if not archives:
        raise StampsError(
            f"apt-get has downloaded no {package}_*.deb: unpack it elsewhere, and give its folder (--stamps)."
        )
    return archives[-1]


def _run(command: list[str], package: str, folder: Path) -> None:
    result = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, errors="replace", env={**os.environ, "LC_ALL": "C"}
    )
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.startswith(("E:", "dpkg"))] or ["no reason given"]
        raise StampsError(
            f"`{' '.join(command[:1] + command[-2:])}` failed ({lines[-1].strip()}): is the network there, and does apt know "
            f"{package}? If not, unpack the package elsewhere, and give its folder (--stamps)."
        )


# ---------------------------------------------------------------------------------------------------------------------
# Clips
# ---------------------------------------------------------------------------------------------------------------------
def draw_frames(stamp: Stamp, count: int, size: int, generator: np.random.Generator) -> np.ndarray:
    """Frames with a stamp that stands still or moves along a line, before a plain background or one that changes its colour.

    Returns:
        RGB, `(count, size, size, 3)`, uint8.
    """
    colours = generator.integers(40, 256, (2, 3))
    angle = generator.uniform(0, 2 * np.pi)
    rows, columns = np.mgrid[:size, :size] / (size - 1) - 0.5
    share = np.clip(0.5 + rows * np.sin(angle) + columns * np.cos(angle), 0, 1)[..., None]
    if generator.random() < 0.3:
        share = 0 * share
    background = Image.fromarray((colours[0] + share * (colours[1] - colours[0])).astype(np.uint8))

    longest = generator.uniform(0.55, 0.8) * size
    scale = longest / max(stamp.image.size)
    picture = stamp.image.resize([max(1, round(scale * side)) for side in stamp.image.size], Image.Resampling.LANCZOS)
    free = np.array([size - side for side in picture.size])
    start, end = generator.uniform(0, 1, (2, 2)) * free
    if generator.random() < 0.3:
        end = start
    frames = []
    for progress in np.linspace(0, 1, count):
        frame = background.copy()
        left, top = np.rint(start + progress * (end - start)).astype(int)
        frame.paste(picture, (int(left), int(top)), picture)
        frames.append(np.asarray(frame))
    return np.stack(frames)


def loop_sound(waveform: np.ndarray, seconds: float) -> np.ndarray:
    """A sound again and again for so many seconds, `(samples,)`; the last 50 ms fade."""
    period = max(waveform.size, round(SHORTEST_PERIOD * RATE))
    samples = np.resize(np.pad(waveform, (0, period - waveform.size)), round(seconds * RATE))
    fade = round(0.05 * RATE)
    samples[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    return samples


def write_clip(path: Path, frames: np.ndarray, samples: np.ndarray) -> None:
    """Write frames `(frames, height, width, 3)` and a sound `(samples,)` as mp4: H.264 and AAC."""
    with av.open(str(path), "w") as container:
        # The same file each time: not with more threads, and not with x264's mbtree, which reads past the ends of small frames
        options = {"crf": "23", "threads": "1", "x264-params": "mbtree=0"}
        video = container.add_stream("libx264", rate=FPS, options=options)
        video.height, video.width, video.pix_fmt = *frames.shape[1:3], "yuv420p"
        audio = container.add_stream("aac", rate=RATE, layout="mono", bit_rate=64000)
        for frame in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(video.encode(None))
        for start in range(0, samples.size, 1024):
            part = av.AudioFrame.from_ndarray(samples[None, start : start + 1024].copy(), "fltp", "mono")
            part.rate, part.pts = RATE, start
            container.mux(audio.encode(part))
        container.mux(audio.encode(None))


def pairs_of(stamps: Sequence[Stamp], count: int, is_crossed: bool) -> list[tuple[Stamp, Stamp]]:
    """Which picture and which sound each clip has: those of one stamp, or with `is_crossed` those of any two."""
    if not is_crossed:
        return [(stamps[index % len(stamps)],) * 2 for index in range(count)]
    crossed = [
        (stamps[i], stamps[(i + shift) % len(stamps)]) for shift in range(len(stamps)) for i in range(len(stamps))
    ]
    return crossed[:count]


def make_clips(
    out: Path, stamps_folder: Path, num_clips: int = 12, size: int = 96, seed: int = 0, is_crossed: bool = False
) -> Path:
    """Makes a data set of clips with captions. The same arguments and libraries give the same files.

    Args:
        out: Folder, which is made. It must not hold `captions.jsonl` yet.
        stamps_folder: See [`find_stamps`].
        num_clips: How many. If there are fewer stamps, they come again before other backgrounds.
        size: Pixels of a side of the frames: even, 32 or more.
        seed: Of stamps, backgrounds, movements and lengths.
        is_crossed: Combine the pictures and the sounds of a few stamps, so that only a model that both sees and hears can tell:
            "A cow is seen, and a dog is heard."

    Returns:
        `captions.jsonl`, with a line for each clip. Beside it are `captions.csv`, the folder `clips`, and `SOURCES.md`.

    Raises:
        StampsError: If the stamps do not suffice, or the folder has clips already.
        ValueError: If a number makes no sense.
    """
    if num_clips < 1 or size < 32 or size % 2:
        raise ValueError(f"Got {num_clips} clips of {size} pixels, expected 1 or more of an even number from 32 on.")
    captions = out / "captions.jsonl"
    if captions.exists():
        raise StampsError(f"{captions} is there already: name another --out, or remove that folder.")
    generator = random.Random(seed)
    wanted = next(side for side in range(2, num_clips + 2) if side**2 >= num_clips) if is_crossed else num_clips
    stamps = choose_stamps(find_stamps(stamps_folder), wanted, generator)
    if not stamps or (is_crossed and len(stamps) < wanted):
        raise StampsError(f"{stamps_folder} has {len(stamps)} stamps that can be seen and heard, {wanted} are needed.")
    (out / "clips").mkdir(parents=True, exist_ok=True)

    rows, table = [], []
    for index, (seen, heard) in enumerate(pairs_of(stamps, num_clips, is_crossed)):
        # What is seen with several sounds looks and lasts the same each time, so that nothing else gives the sound away
        own = np.random.default_rng([seed, stamps.index(seen) if is_crossed else index])
        num_frames = 3 * FPS if is_crossed else int(own.integers(2 * FPS, 4 * FPS + 1))
        name = f"{index:04d}_{seen.picture.stem}" + (f"_{heard.picture.stem}" if is_crossed else "")
        frames = draw_frames(seen, num_frames, size, own)
        write_clip(out / "clips" / f"{name}.mp4", frames, loop_sound(heard.waveform, num_frames / FPS))
        caption, question = seen.caption, QUESTION
        if is_crossed:
            caption, question = f"{seen.caption[:-1]} is seen, and {heard.name} is heard.", CROSSED_QUESTION
        content = [{"type": "video", "path": f"clips/{name}.mp4"}, {"type": "text", "text": question}]
        messages = [
            {"role": "user", "content": content},
            {"role": "assistant", "content": [{"type": "text", "text": caption}]},
        ]
        rows.append({"id": name, "messages": messages, "seen": seen.name, "heard": heard.name})
        table.append((name, "clips", caption))
    with open(out / "captions.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("videoid", "page_dir", "name"), *table])
    (out / "SOURCES.md").write_text(_sources(stamps, stamps_folder), encoding="utf-8")
    captions.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return captions


def _sources(stamps: Sequence[Stamp], folder: Path) -> str:
    lines = [
        f"The clips are made of these files of Debian's package `{PACKAGE}`, by Bill Kendrick and the contributors of Tux Paint. They",
        "are under the GNU General Public License, version 2, and so are the clips.",
        "",
    ]
    paths = sorted(
        {path for stamp in stamps for path in (stamp.picture, stamp.sound, stamp.picture.with_suffix(".txt"))}
    )
    return "\n".join([*lines, *(f"- {path.relative_to(folder).as_posix()}" for path in paths), ""])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="Folder to write to; it is made.")
    parser.add_argument("--num-clips", type=int, default=12, help="How many clips (default: 12).")
    parser.add_argument("--size", type=int, default=96, help="Pixels of a side of the frames (default: 96).")
    parser.add_argument("--seed", type=int, default=0, help="Of all that is drawn at random (default: 0).")
    parser.add_argument(
        "--crossed",
        action="store_true",
        help="Put pictures together with the sounds of other stamps, and tell of both.",
    )
    parser.add_argument(
        "--stamps",
        type=Path,
        help=f"Folder with stamps, such as {STAMPS} of the unpacked package. By default they are downloaded by apt, once.",
    )
    given = parser.parse_args(argv)
    try:
        stamps = given.stamps
        if stamps is None:
            stamps = user_cache_path("transformers_videollama", appauthor=False) / "tuxpaint_stamps"
            if not stamps.is_dir():
                print(f"Downloading {PACKAGE}, 160 MB, into {stamps} ...", file=sys.stderr)
            fetch_stamps(stamps)
        captions = make_clips(given.out, stamps, given.num_clips, given.size, given.seed, given.crossed)
    except (StampsError, ValueError, OSError, av.FFmpegError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    print(f"{given.num_clips} clips. Their captions are in {captions}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
