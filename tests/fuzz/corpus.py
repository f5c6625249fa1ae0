# SPDX-License-Identifier: Apache-2.0
"""Real files to damage: small ones of many kinds, made here, and those of the shared data where it is there."""

from pathlib import Path

import av
import numpy as np
from PIL import Image

from ..helpers import SAMPLE_CLIP, SHARED
from ..media_files import sound, write_clip, write_sound


SMALL = {"frames": 14, "fps": 10, "size": (32, 48)}
CLIPS = {
    "h264.mp4": {"audio_rate": 16000, "seconds": 1.4},
    "faststart.mp4": {"audio_rate": 44100, "seconds": 1.4, "options": {"movflags": "faststart"}},
    "fragments.mp4": {"options": {"movflags": "frag_keyframe+empty_moov"}, "audio_rate": 16000, "seconds": 1.4},
    "h264.mkv": {"audio_rate": 48000, "seconds": 1.4},
    "ffv1.mkv": {"codec": "ffv1"},
    "vp8.webm": {"codec": "libvpx"},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "mpeg4.avi": {"codec": "mpeg4", "audio_rate": 16000, "seconds": 1.4},
    "mpeg2.ts": {"codec": "mpeg2video", "audio_rate": 16000, "seconds": 1.4},
    "h264.ts": {"audio_rate": 16000, "seconds": 1.4},
    "h264.mov": {"audio_rate": 16000, "seconds": 1.4},
    "flv.flv": {"codec": "flv", "audio_rate": 44100, "seconds": 1.4},
}
SOUNDS = {"mono.wav": 16000, "stereo.flac": 44100, "stereo.mp3": 44100, "opus.ogg": 48000}
PICTURES = {
    "rgb.jpg": "RGB",
    "cmyk.jpg": "CMYK",
    "rgba.png": "RGBA",
    "palette.png": "P",
    "rgb.webp": "RGB",
    "two.bmp": "1",
}
PICTURES |= {"grey.tiff": "L", "film.gif": "P"}


def make(folder: Path) -> dict[str, bytes]:
    """The bytes of all files by name."""
    for name, options in CLIPS.items():
        write_clip(folder / name, **SMALL, **options)
    for name, rate in SOUNDS.items():
        if name.endswith("ogg"):
            _write_opus(folder / name, rate)
        else:
            write_sound(folder / name, rate=rate, channels=2 if "stereo" in name else 1, seconds=0.8)
    columns, rows = np.meshgrid(np.arange(40), np.arange(30))
    gradient = np.stack([5 * columns, 7 * rows, 3 * (columns + rows)], axis=-1).astype(np.uint8)
    for name, mode in PICTURES.items():
        picture = Image.fromarray(gradient).convert(mode)
        more = [picture.rotate(90 * turn) for turn in (1, 2)] if name == "film.gif" else []
        picture.save(folder / name, **({"save_all": True, "append_images": more, "duration": 200} if more else {}))
    names = [*CLIPS, *SOUNDS, *PICTURES]
    files = {name: (folder / name).read_bytes() for name in names} | {SAMPLE_CLIP.name: SAMPLE_CLIP.read_bytes()}
    shared = SHARED / "clips"
    return files | {path.name: path.read_bytes() for path in sorted(shared.iterdir() if shared.is_dir() else [])}


def _write_opus(path: Path, rate: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libopus", rate=rate, layout="mono")
        waveform = sound(rate, 1, 0.8)
        for start in range(0, waveform.shape[1], 960):
            frame = av.AudioFrame.from_ndarray(waveform[:, start : start + 960], format="flt", layout="mono")
            frame.sample_rate, frame.pts = rate, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
