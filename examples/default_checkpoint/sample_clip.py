# SPDX-License-Identifier: Apache-2.0
"""Makes the sample clip of the package: a helicopter that rises, with its noise. Training knows nothing of it.

python sample_clip.py --out ../../src/transformers_videollama/assets/helicopter.mp4
"""

import argparse
from pathlib import Path

import numpy as np
import sounds
from clips import write_clip
from pictures import draw_frames, drawings
from world import DURATION, FPS, Scene


SCENE = Scene("moving", ("helicopter",), direction="up", sounds=("helicopter",))
# Apache-2.0
STYLE = "noto"


def make_sample(path: Path, size: int = 224, fps: int = 2 * FPS, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    num_frames = round(DURATION * fps)
    times, chosen = np.arange(num_frames) / num_frames, {name: drawings(STYLE)[name] for name in SCENE.names}
    frames, _ = draw_frames(SCENE, times, size, rng, chosen, strength=0.0, level=0.5)
    write_clip(path, frames, sounds.soundtrack(SCENE.sounds, rng), fps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    make_sample(parser.parse_args().out)


if __name__ == "__main__":
    main()
