# SPDX-License-Identifier: Apache-2.0
"""Small media files for tests, the same every time."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def write_clip(
    path: Path,
    frames: int = 30,
    fps: int = 10,
    size: tuple[int, int] = (48, 64),
    audio_rate: int | None = None,
    channels: int = 2,
    seconds: float = 3.0,
    times: list[float] | None = None,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    pix_fmt: str = "yuv420p",
    codec_options: dict[str, str] | None = None,
    audio_codec: str = "aac",
    audio_start: float | None = None,
    waveform: np.ndarray | None = None,
) -> Path:
    """
    Write a video whose frames get brighter from left to right and from one to the next.

    Args:
        size: `(height, width)`.
        audio_rate: rate in Hz of a sound track of `seconds` with `channels`; none if not given.
        times: seconds at which the frames are shown, in place of `fps`.
        options: of the container, such as `{"movflags": "faststart"}`.
        codec_options: of the encoder, such as `{"g": "5"}` for a keyframe every five frames.
        audio_start: second at which the sound begins, with a clock that counts what the encoder puts before it.
        waveform: the sound in place of tones, `(channels, samples)`, float32.
    """
    height, width = size
    with av.open(str(path), "w", options=options or {}) as container:
        video = container.add_stream(codec, rate=fps, options=codec_options or {})
        video.width, video.height, video.pix_fmt = width, height, pix_fmt
        audio = container.add_stream(audio_codec, rate=audio_rate, layout=_layout(channels)) if audio_rate else None
        for index in range(frames):
            picture = np.zeros((height, width, 3), dtype=np.uint8)
            picture[..., 0] = np.linspace(0, 120, width, dtype=np.uint8)
            picture[..., 1] = np.linspace(0, 120, height, dtype=np.uint8)[:, None]
            picture += np.uint8(min(4 * index, 130))
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times is not None:
                frame.time_base = Fraction(1, 1000)
                frame.pts = round(times[index] * 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if audio is not None:
            samples = sound(audio_rate, channels, seconds) if waveform is None else waveform
            _encode_sound(container, audio, samples, audio_start)
    return path


def write_long_clip(path: Path, repeats: int = 57, fps: int = 10, audio_rate: int = 16000) -> Path:
    """Write a clip of 64 seconds so many times over, an hour by default: in seconds, as it is encoded once."""
    seconds = 64  # a whole number of frames of sound
    once = write_clip(
        path.with_name(f"once_{path.stem}.mp4"), seconds * fps, fps, (32, 48), audio_rate, 1, seconds, audio_start=0.0
    )
    with av.open(str(once)) as source, av.open(str(path), "w") as container:
        streams = {stream.index: container.add_stream_from_template(stream) for stream in source.streams}
        packets = [packet for packet in source.demux() if packet.size and 0 <= packet.pts * packet.time_base < seconds]
        copied = [(bytes(packet), packet.pts, packet.dts, packet) for packet in packets]
        ticks = [int(seconds / packet.time_base) for packet in packets]
        time_bases = [packet.time_base for packet in packets]
        for repeat in range(repeats):
            for (data, pts, dts, packet), period, time_base in zip(copied, ticks, time_bases):
                copy = av.Packet(data)
                copy.pts, copy.dts = pts + repeat * period, dts + repeat * period
                copy.time_base, copy.duration, copy.is_keyframe = time_base, packet.duration, packet.is_keyframe
                copy.stream = streams[packet.stream.index]
                container.mux(copy)
    return path


def write_sound(path: Path, rate: int = 44100, channels: int = 1, seconds: float = 3.0) -> Path:
    """Write a sound file; its suffix says of which kind."""
    codec = {".wav": "pcm_s16le", ".flac": "flac", ".mp3": "libmp3lame"}[path.suffix]
    with av.open(str(path), "w") as container:
        audio = container.add_stream(codec, rate=rate, layout=_layout(channels))
        _encode_sound(container, audio, sound(rate, channels, seconds))
    return path


def sound(rate: int, channels: int, seconds: float) -> np.ndarray:
    """A different tone on each channel; shape `(channels, samples)`, float32."""
    time = np.arange(int(rate * seconds)) / rate
    return np.stack([0.3 * np.sin(2 * np.pi * 220 * (index + 1) * time) for index in range(channels)]).astype(
        np.float32
    )


def turn(source: Path, target: Path, degrees: int) -> Path:
    """Copy an mp4 with a display matrix that says how to turn it for viewing, as phones write it."""
    data = bytearray(source.read_bytes())
    height, width = _frame_size(source)
    matrix = {
        90: (0, 1, 0, -1, 0, 0, height, 0),
        180: (-1, 0, 0, 0, -1, 0, width, height),
        270: (0, -1, 0, 1, 0, 0, 0, width),
    }[degrees]
    position = data.find(b"tkhd") + 44
    data[position : position + 36] = struct.pack(">9i", *(65536 * value for value in matrix), 0x40000000)
    target.write_bytes(data)
    return target


def hide_frames(source: Path, target: Path, first: float, last: float) -> Path:
    """Copy an mp4 with an edit list that shows the seconds from `first` to `last` alone, as lossless cutting does."""
    data = bytearray(source.read_bytes())
    position = data.find(b"elst") + 12
    _, start = struct.unpack(">Ii", data[position : position + 8])
    ticks = 1 / _tick(source)
    # The length counts in the file's ticks, a thousandth of a second here, and the start in those of the track.
    data[position : position + 8] = struct.pack(">Ii", round(1000 * (last - first)), start + round(first * ticks))
    target.write_bytes(data)
    return target


def drop_packets(source: Path, target: Path, count: int) -> Path:
    """Copy a video without its first packets, as cutting a stream anywhere does."""
    with av.open(str(source)) as container, av.open(str(target), "w") as copy:
        stream = copy.add_stream_from_template(container.streams.video[0])
        for packet in [packet for packet in container.demux(video=0) if packet.size][count:]:
            packet.stream = stream
            copy.mux(packet)
    return target


def damage_packets(source: Path, target: Path, packets: range) -> Path:
    """Copy a video with nothing but zeros in some packets: they count as frames, and no frame comes out of them."""
    data = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        spans = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    for index in packets:
        position, size = spans[index]
        data[position + 4 : position + size] = bytes(size - 4)
    target.write_bytes(data)
    return target


def _layout(channels: int) -> str:
    return {1: "mono", 2: "stereo", 6: "5.1"}[channels]


def _encode_sound(container, stream, waveform: np.ndarray, start: float | None = None) -> None:
    planar = av.AudioFrame.from_ndarray(waveform, format="fltp", layout=_layout(len(waveform)))
    planar.sample_rate = stream.rate
    if start is not None:
        planar.time_base, planar.pts = Fraction(1, stream.rate), round(start * stream.rate)
    resampler = av.AudioResampler(stream.format, stream.layout, stream.rate, frame_size=stream.frame_size or 1024)
    for frame in [*resampler.resample(planar), *resampler.resample(None)]:
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def _frame_size(path: Path) -> tuple[int, int]:
    with av.open(str(path)) as container:
        return container.streams.video[0].height, container.streams.video[0].width


def _tick(path: Path) -> Fraction:
    with av.open(str(path)) as container:
        return container.streams.video[0].time_base
