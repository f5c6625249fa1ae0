# SPDX-License-Identifier: Apache-2.0
"""Real recordings of what makes a sound in the small world, out of packages of Debian.

They are there to measure the default checkpoint with; nothing is trained on them, and none is kept in the repository.
"""

import importlib.util
import io
import struct
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import av
import numpy as np
from platformdirs import user_cache_path
from sounds import RATE, background
from world import DURATION, SOUNDS


class RecordingsError(RuntimeError):
    """The recordings cannot be had, or are not what they should be."""


@dataclass(frozen=True)
class Recording:
    """A real sound.

    Attributes:
        name: Of the thing that is heard.
        package: Debian's package that it comes from.
        file: Its name there.
        data: The file itself: OGG, WAV or FLAC.
    """

    name: str
    package: str
    file: str
    data: bytes

    def waveform(self) -> np.ndarray:
        """All of it, `(samples,)` at `RATE`, float32."""
        resampler = av.AudioResampler("fltp", "mono", RATE)
        try:
            with av.open(io.BytesIO(self.data)) as container:
                frames = [part for frame in container.decode(audio=0) for part in resampler.resample(frame)]
            frames += resampler.resample(None)
        except (av.FFmpegError, IndexError) as error:
            raise RecordingsError(f"{self.file} of the package {self.package} is not a sound: {error}.") from error
        return np.concatenate([frame.to_ndarray()[0] for frame in frames]).astype(np.float32)


# Where sounds lie in a package, and which of them are what. Left out are words, music of many instruments, relatives
# that sound alike (goat, hornet, hen), people who may be playing animals (the lion of OpenSFX), and what two packages
# both seem to have (its sheep is as long as that of GCompris)
_FILES: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "tuxpaint-stamps-default": (
        "",
        {
            "dog": ("animals/mammals/dogs/dog.ogg",),
            "cat": ("seasonal/halloween/blackcat.ogg",),
            "cow": ("animals/mammals/bovines/cow.ogg", "animals/mammals/bovines/cow_white.ogg"),
            "horse": ("animals/mammals/equines/horse.ogg",),
            "sheep": (
                "animals/mammals/bovines/ram.ogg",
                "animals/mammals/bovines/sheep.ogg",
                "animals/mammals/bovines/sheep_lamb.ogg",
            ),
            "pig": ("animals/mammals/pig.ogg", "animals/mammals/pig_golden.ogg", "animals/mammals/pig_golden2.ogg"),
            "duck": ("animals/birds/duck.ogg", "animals/birds/drake.ogg"),
            "rooster": ("animals/birds/rooster.ogg",),
            "bird": ("animals/birds/lark.ogg", "animals/birds/blackbird.ogg"),
            "frog": ("animals/amphibians/frog.ogg",),
            "bee": ("animals/insects/bee.ogg",),
            "lion": ("animals/mammals/cats/lion.ogg",),
            "elephant": ("animals/mammals/elephant.ogg",),
            "owl": ("animals/birds/owl.ogg",),
            "monkey": ("animals/mammals/apes/chimp.ogg",),
            "cricket": ("animals/insects/grasshopper.ogg",),
            "drum": ("hobbies/music/percussion/drum_tomtom_floor.ogg", "hobbies/music/percussion/drumkit.ogg"),
            "violin": ("hobbies/music/string/violin.ogg",),
            "camera": ("hobbies/camera_35mm.ogg",),
            "hammer": ("household/tools/hammer.ogg", "household/tools/mallet_metal.ogg"),
            "thunderstorm": ("naturalforces/lightningbolt.ogg",),
            "fire truck": ("vehicles/emergency/firetruck.ogg",),
        },
    ),
    "gcompris-qt-data": (
        "usr/share/gcompris-qt/rcc/*.rcc",
        {
            "dog": (
                "explore_farm_animals/resource/animals/dog.ogg",
                "memory-sound/resource/LRBark_1_LA_cut.ogg",
                "memory-sound/resource/LRBark_3_LA_cut.ogg",
            ),
            "cat": ("explore_farm_animals/resource/animals/cat.ogg",),
            "cow": ("explore_farm_animals/resource/animals/cow.ogg",),
            "horse": ("explore_farm_animals/resource/animals/horse.ogg",),
            "sheep": ("explore_farm_animals/resource/animals/sheep.ogg",),
            "pig": ("explore_farm_animals/resource/animals/pig.ogg",),
            "duck": ("explore_farm_animals/resource/animals/duck.ogg",),
            "owl": ("explore_farm_animals/resource/animals/owl.ogg",),
            "frog": ("memory-sound/resource/LRFrogsInPondDuringStormLACut.ogg",),
            "drum": (
                "instruments/resource/snare_drum.ogg",
                "instruments/resource/bongo.ogg",
                "instruments/resource/timpani.ogg",
                "instruments/resource/drum_kit.ogg",
            ),
            "guitar": (
                "instruments/resource/guitar.ogg",
                "instruments/resource/electric_guitar.ogg",
                "memory-sound/resource/guitar_melody.ogg",
            ),
            "piano": ("instruments/resource/piano.ogg",),
            "trumpet": ("instruments/resource/trumpet.ogg",),
            "violin": ("instruments/resource/violin.ogg",),
            "train": (
                "memory-sound/resource/LRTrain_slowing_down_01_LA_cut.ogg",
                "railroad/resource/sounds/train.wav",
            ),
            "helicopter": ("guessnumber/resource/helicopter.wav",),
            "rain": ("memory-sound/resource/LRRain_in_garden_01_LA_cut.ogg",),
            "applause": ("memory-sound/resource/LRApplauses_1_LA_cut.ogg",),
        },
    ),
    "openttd-opensfx": (
        "usr/share/games/openttd/baseset/opensfx/opensfx.cat",
        {
            "cow": ("Cow",),
            "horse": ("Horse",),
            "monkey": ("Tropical: Monkeys",),
            "bird": ("Tropical: Bird (1)", "Tropical: Bird (2)"),
            "train": (
                "Steam train station departure",
                "Steam engine going in tunnel",
                "Diesel/electric train station departure",
            ),
            "bell": ("Level crossing",),
            "helicopter": ("Helicopter",),
            "hammer": ("Building bridge",),
            "applause": ("Applause",),
        },
    ),
    "sound-theme-freedesktop": (
        "usr/share/sounds/freedesktop/stereo/*.oga",
        {
            "clock": ("alarm-clock-elapsed.oga",),
            "camera": ("camera-shutter.oga",),
            "telephone": ("phone-incoming-call.oga",),
        },
    ),
    "sonic-pi-samples": (
        "usr/share/sonic-pi/samples/*.flac",
        {
            "bell": ("perc_bell.flac", "perc_bell2.flac"),
            "drum": ("drum_roll.flac", "drum_tom_mid_hard.flac", "drum_snare_hard.flac"),
            "guitar": ("guit_em9.flac",),
            "piano": ("ambi_piano.flac",),
        },
    ),
    "tuxpaint-plugins-default": (
        "usr/share/tuxpaint/sounds/magic/*.ogg",
        {"thunderstorm": ("lightning.ogg",), "rain": ("rain.ogg",)},
    ),
}


def _stamps_script() -> ModuleType:
    """`make_clips.py`, which knows how to get packages without rights."""
    path = Path(__file__).resolve().parent.parent / "real_clips" / "make_clips.py"
    if path.stem not in sys.modules:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        # Its dataclasses look their module up
        sys.modules[path.stem] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[path.stem])
    return sys.modules[path.stem]


def _fetch(package: str, pattern: str, folder: Path) -> Path:
    """Downloads a package, if its folder is not there, and keeps what `pattern` names and its copyright."""
    script = _stamps_script()

    def keep(unpacked: Path, kept: Path) -> None:
        for path in (*unpacked.glob(pattern), *unpacked.glob(f"usr/share/doc/{package}/copyright")):
            script.copy_into(path, kept / path.relative_to(unpacked))

    try:
        # Of the stamps other parts are kept, for other uses
        return script.fetch_package(package, folder, keep) if pattern else script.fetch_stamps(folder)
    except (script.StampsError, OSError) as error:
        raise RecordingsError(f"Debian's package {package} could not be had: {error}") from error


def _read_rcc(data: bytes) -> Iterator[tuple[str, bytes]]:
    """The files of a compiled resource of Qt, each with its path.

    After "qres" are a version and where the tree, the contents and the names lie, all big-endian. A node of the tree
    has its name, flags (1: zlib, 2: folder, 4: zstd) and either its children or its content, and from version 2 on a time.
    """
    magic, version, tree, contents, names = struct.unpack_from(">4s4I", data)
    if magic != b"qres":
        raise ValueError('it does not start with "qres"')
    size = 22 if version >= 2 else 14
    nodes = [(0, "")]
    while nodes:
        index, parent = nodes.pop()
        node = tree + index * size
        at, flags = struct.unpack_from(">IH", data, node)
        path = parent
        if index:
            (length,) = struct.unpack_from(">H", data, names + at)
            path += data[names + at + 6 : names + at + 6 + 2 * length].decode("utf-16-be")
        if flags & 2:
            count, first = struct.unpack_from(">II", data, node + 6)
            nodes += [(first + child, f"{path}/" if index else "") for child in range(count)]
        # Sounds are packed already, and so kept as they are: zstd, which Python does not know yet, is not met
        elif not flags & 4:
            (at,) = struct.unpack_from(">I", data, node + 10)
            (length,) = struct.unpack_from(">I", data, contents + at)
            content = data[contents + at + 4 : contents + at + 4 + length]
            # The first four bytes are the size
            yield path, zlib.decompress(content[4:]) if flags & 1 else content


def _read_cat(data: bytes) -> Iterator[tuple[str, bytes]]:
    """The sounds of a `.cat` of OpenTTD, each with what it is.

    At the start is where each one lies, and how long it is; there it has its name after the length of that, and then
    is a WAV. Names are a title in quotes, its author and its licence.
    """
    count = (struct.unpack_from("<I", data)[0] & 0x7FFFFFFF) // 8
    for index in range(count):
        start, size = struct.unpack_from("<II", data, 8 * index)
        start &= 0x7FFFFFFF
        if start >= len(data):
            continue
        first = start + 1 + data[start]
        title = data[start + 1 : first].decode("latin-1").strip("\0")
        if data[first : first + 4] == b"RIFF":
            yield title.split('"')[1] if '"' in title else title, data[first : first + size]


def _contents(package: str, pattern: str, folder: Path, wanted: set[str]) -> dict[str, bytes]:
    """The wanted files of an unpacked package, also out of archives."""
    found = {}
    if not pattern:
        paths = [(name, folder / name) for name in sorted(wanted)]
    else:
        paths = [(path.name, path) for path in sorted(folder.glob(pattern))]
    for name, path in paths:
        try:
            if path.suffix == ".rcc":
                # Most archives have no sounds: the first part of what is wanted is the name of its archive
                if any(name_.startswith(f"{path.stem}/") for name_ in wanted):
                    prefix = "gcompris/src/activities/"
                    found.update((inner.removeprefix(prefix), data) for inner, data in _read_rcc(path.read_bytes()))
            elif path.suffix == ".cat":
                found.update(_read_cat(path.read_bytes()))
            elif name in wanted:
                found[name] = path.read_bytes()
        except (OSError, ValueError, struct.error, zlib.error) as error:
            raise RecordingsError(f"{path} of the package {package} cannot be read: {error}.") from error
    return {name: found[name] for name in wanted & found.keys()}


def real_recordings(folder: Path | None = None) -> dict[str, list[Recording]]:
    """Real recordings by the name of what is heard: for evaluation only, and not for training.

    They are files of packages of Debian, which are downloaded once, some 250 megabytes. Files that another version of
    a package does not have are left out.

    Args:
        folder: Where the packages are unpacked, each in a folder of its own, or are to be; by default the user's cache.

    Returns:
        Recordings by name; not all of `SOUNDS` have one.

    Raises:
        RecordingsError: If a package cannot be fetched, or none of its files are there.
    """
    folder = folder or user_cache_path("transformers_videollama", appauthor=False)
    recordings: dict[str, list[Recording]] = {}
    for package, (pattern, names) in _FILES.items():
        own = {"tuxpaint-stamps-default": "tuxpaint_stamps", "gcompris-qt-data": "gcompris"}.get(package, package)
        wanted = {file for files in names.values() for file in files}
        found = _contents(package, pattern, _fetch(package, pattern, folder / own), wanted)
        if not found:
            raise RecordingsError(
                f"{folder / own} has no sound of the package {package}: delete it to download it again."
            )
        for name, files in names.items():
            new = [Recording(name, package, file, found[file]) for file in files if file in found]
            recordings.setdefault(name, []).extend(new)
    return {name: recordings[name] for name in SOUNDS if recordings.get(name)}


def recording_soundtrack(recording: Recording, duration: float = DURATION) -> np.ndarray:
    """A recording as the sound of a clip: the loudest part of a long one, a short one again and again.

    Args:
        recording: What is heard.
        duration: Seconds.

    Returns:
        `(samples,)` at `RATE`, float32, with a peak of 0.7.
    """
    n, sound = round(duration * RATE), recording.waveform()
    # Silence before and after would make pauses longer than they should be
    loud = np.flatnonzero(np.abs(sound) > 0.02 * np.abs(sound).max())
    if not loud.size:
        raise RecordingsError(f"{recording.file} of the package {recording.package} is silent.")
    sound = sound[loud[0] : loud[-1] + 1]
    if sound.size >= n:
        energy = np.cumsum(np.pad(sound.astype(np.float64) ** 2, (1, 0)))
        start = int(np.argmax(energy[n:] - energy[:-n]))
        sound = sound[start : start + n]
    else:
        # The shorter it is, the longer the pause, but never long
        pause = int(np.clip(0.8 - sound.size / RATE, 0.1, 0.4) * RATE)
        sound = np.resize(np.pad(sound, (0, pause)), n)
    return (0.7 * sound / np.abs(sound).max()).astype(np.float32)


@cache
def _recordings() -> dict[str, list[Recording]]:
    return real_recordings()


def recorded_soundtrack(sounds: Sequence[str], random: np.random.Generator, duration: float = DURATION) -> np.ndarray:
    """As `soundtrack`, of recordings: any of those of each sound, one after the other."""
    if not sounds:
        return background(random, duration)
    parts = []
    for name in sounds:
        recordings = _recordings()[name]
        recording = recordings[random.integers(len(recordings))]
        parts.append(recording_soundtrack(recording, duration / len(sounds)))
    return np.concatenate(parts)
