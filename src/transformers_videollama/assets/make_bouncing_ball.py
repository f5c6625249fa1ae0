# SPDX-License-Identifier: Apache-2.0
"""Makes `bouncing_ball.mp4`, the clip that the package carries: a red ball bounces on a green floor, and is heard to.

python src/transformers_videollama/assets/make_bouncing_ball.py
"""

from pathlib import Path

import av
import numpy as np


SECONDS, FPS, SIZE, RATE = 6, 12, (240, 320), 44100
PERIOD, RADIUS, HEIGHT = 1.0, 22, 130  # seconds from bounce to bounce; pixels


def frame_at(time: float) -> np.ndarray:
    """One RGB frame of shape `(240, 320, 3)`: sky, floor, the ball and its shadow."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    frame = np.empty((*SIZE, 3), np.uint8)
    frame[:] = (135, 190, 235)
    frame[rows > 200] = (60, 150, 70)
    phase = (time % PERIOD) / PERIOD
    height = HEIGHT * 4 * phase * (1 - phase)
    column = 40 + 240 * time / SECONDS
    frame[((columns - column) / (RADIUS + 4)) ** 2 + ((rows - 206) / 6) ** 2 < 1] = (40, 100, 50)
    frame[(columns - column) ** 2 + (rows - 200 + RADIUS + height) ** 2 < RADIUS**2] = (205, 35, 30)
    return frame


def sound() -> np.ndarray:
    """The whole sound track, `(1, samples)`: at every bounce a thud that falls in pitch and dies away."""
    times = np.arange(SECONDS * RATE) / RATE
    since_bounce = times % PERIOD
    thud = np.sin(2 * np.pi * (90 * since_bounce + 6 * (1 - np.exp(-30 * since_bounce))))
    click = np.random.default_rng(0).standard_normal(times.size) * np.exp(-400 * since_bounce)
    return (0.7 * thud * np.exp(-9 * since_bounce) + 0.15 * click).astype(np.float32)[None]


def main() -> None:
    path = Path(__file__).with_name("bouncing_ball.mp4")
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FPS, options={"crf": "26", "preset": "slow"})
        video.height, video.width, video.pix_fmt = *SIZE, "yuv420p"
        audio = container.add_stream("aac", rate=RATE, layout="mono", bit_rate=64000)
        for index in range(SECONDS * FPS):
            frame = av.VideoFrame.from_ndarray(frame_at(index / FPS), format="rgb24")
            container.mux(video.encode(frame))
        samples = sound()
        for start in range(0, samples.shape[1], 1024):
            frame = av.AudioFrame.from_ndarray(samples[:, start : start + 1024].copy(), format="fltp", layout="mono")
            frame.rate, frame.pts = RATE, start
            container.mux(audio.encode(frame))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))


if __name__ == "__main__":
    main()
