# SPDX-License-Identifier: Apache-2.0
"""Makes clips of the small world: mp4 files, and what happens in them in scenes.jsonl.

python clips.py --out DIR --num-clips N --split NAME --styles noto twemoji --seed 0
"""

import argparse
import json
import multiprocessing
import os
import zlib
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from fractions import Fraction
from functools import lru_cache, partial
from pathlib import Path
from random import Random
from typing import NamedTuple

import av
import numpy as np
import recordings
import sounds
import world
from pictures import STYLES, UNSEEN_STYLE, PicturesError, draw_frames, drawings
from world import DURATION, FPS, KINDS, Scene, random_scene


SAMPLING_RATE = 16_000

Soundtrack = Callable[[Sequence[str], np.random.Generator], np.ndarray]


class ClipsError(RuntimeError):
    """Clips could not be made or read."""


class Clip(NamedTuple):
    """A clip of a folder, and the style that each of the scene's things is drawn in."""

    id: str
    path: Path
    scene: Scene
    styles: tuple[str, ...]


def write_clip(path: str | Path, frames: np.ndarray, waveform: np.ndarray | None, fps: float = FPS) -> None:
    """Writes an mp4 file, the same bytes for the same input.

    Args:
        path: Of the file; there is none until it is whole.
        frames: uint8 (T, H, W, 3) of even height and width.
        waveform: float32, mono, 16 kHz; None: no audio track.
        fps: Frames in a second.
    """
    path = Path(path)
    _, height, width, _ = frames.shape
    if height % 2 or width % 2:
        raise ValueError(f"H.264 takes an even height and width, not {height} x {width}.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with av.open(str(temporary), "w", format="mp4", container_options={"fflags": "+bitexact"}) as container:
            # One thread: with their number the bytes change. Nothing that looks ahead: with frames as small as these,
            # x264 reads memory there that it has not written, and the bytes differ from run to run.
            options = {
                "crf": "20",
                "preset": "veryfast",
                "threads": "1",
                "flags": "+bitexact",
                "x264-params": "rc-lookahead=0:mbtree=0:bframes=0:scenecut=0:weightp=0",
            }
            video = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=options)
            video.width, video.height, video.pix_fmt = width, height, "yuv420p"
            audio = None
            if waveform is not None:
                audio = container.add_stream("aac", rate=SAMPLING_RATE, layout="mono", options={"flags": "+bitexact"})
                audio.bit_rate = 64_000
            for frame in frames:
                container.mux(video.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
            container.mux(video.encode())
            if audio is not None:
                samples = np.ascontiguousarray(waveform, np.float32)[None]
                sound = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
                sound.sample_rate, sound.pts, sound.time_base = SAMPLING_RATE, 0, Fraction(1, SAMPLING_RATE)
                container.mux(audio.encode(sound))
                container.mux(audio.encode())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@lru_cache(maxsize=8)
def _drawings(style: str) -> dict[str, list[np.ndarray]]:
    return drawings(style)


def _draw_lots(
    index: int,
    split: str,
    seed: int,
    styles: Sequence[str],
    kinds: Sequence[str] | None,
    num_sounds: Sequence[int] | None,
    heard: Collection[str] | None,
) -> tuple[Scene, tuple[str, ...]]:
    """The scene of a clip, and a style for each of its things."""
    random = Random(f"{split} {seed} {index}")
    chosen = {"kinds": kinds, "num_sounds": num_sounds}
    for _ in range(1000):
        scene = random_scene(random, **{name: value for name, value in chosen.items() if value is not None})
        able = [[style for style in styles if _drawings(style)[name]] for name in scene.names]
        # Some styles lack some things, and not of all sounds there are recordings: another scene then
        if all(able) and (heard is None or set(scene.sounds) <= set(heard)):
            return scene, tuple(random.choice(found) for found in able)
    raise PicturesError(f"The styles {', '.join(styles)} have too few of the things; give more styles.")


def _fit(waveform: np.ndarray, num_samples: int) -> np.ndarray:
    waveform = np.asarray(waveform, np.float32)[:num_samples]
    return np.pad(waveform, (0, num_samples - len(waveform)))


def _make(
    index: int, path: Path, scene: Scene, styles: tuple[str, ...], name: str, size: int, soundtrack: Soundtrack | None
) -> None:
    # Not with the generator of the scene: what is drawn stays what it is when the lots change
    rng = np.random.default_rng([zlib.crc32(name.encode()), index])
    num_frames = round(DURATION * FPS)
    chosen = {name: _drawings(style)[name] for name, style in zip(scene.names, styles)}
    # Drawings much as they are, on any ground
    times, strength, level = np.arange(num_frames) / num_frames, rng.uniform(0, 0.4), rng.uniform(0, 1)
    frames, _ = draw_frames(scene, times, size, rng, chosen, strength, level)
    waveform = None
    if soundtrack is not None:
        num_samples = round(DURATION * SAMPLING_RATE)
        # Half of what is silent is wholly so, the other half has noise in the background
        if scene.sounds or rng.random() < 0.5:
            waveform = _fit(soundtrack(scene.sounds, rng), num_samples)
        else:
            waveform = np.zeros(num_samples, np.float32)
    write_clip(path, frames, waveform)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    os.replace(temporary, path)


def make_clips(
    folder: str | Path,
    num_clips: int,
    seed: int,
    styles: Sequence[str],
    split: str,
    size: int = 96,
    kinds: Sequence[str] | None = None,
    num_sounds: Sequence[int] | None = None,
    recorded: bool = False,
    with_sound: bool = True,
    num_workers: int = 2,
) -> list[Clip]:
    """Makes clips/00000.mp4 and so on, and scenes.jsonl, in a folder; clips that are there are kept.

    Args:
        folder: To write to.
        num_clips: How many; a later call may ask for more.
        seed: Of all choices, together with the split's name.
        styles: Drawing styles to choose from for each thing.
        split: Its name; clips of two splits differ.
        size: Width and height in pixels.
        kinds: Of scenes, to choose from; None: as in `random_scene`.
        num_sounds: To choose from; None: as in `random_scene`.
        recorded: Sounds are recordings, and not synthesised.
        with_sound: False: no audio track at all.
        num_workers: Processes; below 2: this one.
    """
    folder = Path(folder)
    heard = soundtrack = None
    if with_sound:
        soundtrack = recordings.recorded_soundtrack if recorded else sounds.soundtrack
        heard = recordings.real_recordings() if recorded else None
    # What decides on the clips: kept ones of another world would not be what scenes.jsonl says they are
    settings = {
        "split": split,
        "seed": seed,
        "styles": list(styles),
        "size": size,
        "kinds": kinds and list(kinds),
        "num_sounds": num_sounds and list(num_sounds),
        "recorded": recorded,
        "with_sound": with_sound,
        "world": zlib.crc32(Path(world.__file__).read_bytes()),
    }
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    kept = folder / "settings.json"
    if kept.is_file() and json.loads(kept.read_text(encoding="utf-8")) != settings:
        raise ClipsError(f"{folder} has clips made with other settings or of another world; delete it.")
    _write(kept, json.dumps(settings) + "\n")

    clips, jobs = [], []
    for index in range(num_clips):
        scene, chosen = _draw_lots(index, split, seed, styles, kinds, num_sounds, heard)
        clip = Clip(f"{split}-{seed}-{index:05d}", folder / "clips" / f"{index:05d}.mp4", scene, chosen)
        clips.append(clip)
        if not clip.path.is_file():
            jobs.append((index, clip.path, scene, chosen))
    make = partial(_make, name=f"{split} {seed}", size=size, soundtrack=soundtrack)
    if num_workers < 2 or len(jobs) < 2:
        for job in jobs:
            make(*job)
    else:
        # Not forked: the caller may have threads
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(num_workers, mp_context=context) as pool:
            list(pool.map(make, *zip(*jobs), chunksize=max(1, min(32, len(jobs) // num_workers))))
    lines = (
        {"id": clip.id, "path": clip.path.relative_to(folder).as_posix()}
        | asdict(clip.scene)
        | {"styles": clip.styles}
        for clip in clips
    )
    _write(folder / "scenes.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return clips


def read_scenes(folder: str | Path) -> list[Clip]:
    """The clips of a folder that `make_clips` wrote."""
    folder = Path(folder)
    path = folder / "scenes.jsonl"
    if not path.is_file():
        raise ClipsError(f"{folder} has no scenes.jsonl; make its clips with clips.py.")
    clips = []
    for line in path.read_text(encoding="utf-8").splitlines():
        fields = json.loads(line)
        identifier, relative, styles = fields.pop("id"), fields.pop("path"), tuple(fields.pop("styles"))
        fields |= {name: tuple(fields[name]) for name in ("names", "sounds")}
        clips.append(Clip(identifier, folder / relative, Scene(**fields), styles))
    return clips


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--num-clips", type=int, required=True)
    parser.add_argument("--split", required=True, help="name, part of the seed")
    parser.add_argument("--styles", nargs="+", choices=(*STYLES, UNSEEN_STYLE), default=list(STYLES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=96, help="width and height in pixels")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, help="of scenes, to choose from")
    parser.add_argument("--num-sounds", nargs="+", type=int, choices=(0, 1, 2), help="to choose from")
    parser.add_argument("--recorded", action="store_true", help="recordings, not synthesised sounds")
    parser.add_argument("--no-sound", action="store_true", help="no audio track")
    parser.add_argument("--num-workers", type=int, default=2)
    arguments = parser.parse_args()
    clips = make_clips(
        arguments.out,
        arguments.num_clips,
        arguments.seed,
        arguments.styles,
        arguments.split,
        size=arguments.size,
        kinds=arguments.kinds,
        num_sounds=arguments.num_sounds,
        recorded=arguments.recorded,
        with_sound=not arguments.no_sound,
        num_workers=arguments.num_workers,
    )
    print(f"{len(clips)} clips in {arguments.out}")


if __name__ == "__main__":
    main()
