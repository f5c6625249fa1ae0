# SPDX-License-Identifier: Apache-2.0
"""Step 10: what tests compare with: ten clips that were not trained on, a question about each, and what the checkpoint answers; and
the drawings of one set, for tests to make clips without a network.

python record.py --model DIR --out ../../tests/fixtures/default
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
from clips import Clip, make_clips
from common import SIZE, load
from evaluate import answers, questions_on
from pictures import drawings
from PIL import Image
from questions import Question


TYPES = (
    "clip",
    "object",
    "direction",
    "count",
    "place",
    "first",
    "last",
    "is seen",
    "sound",
    "match",
)
# Its drawings are Apache-2.0
STYLES = ("noto",)


def choose(folder: Path, seed: int) -> list[tuple[Clip, Question]]:
    """For each type the first clip that it can be asked about."""
    clips, chosen = make_clips(folder, 60, seed, STYLES, "recorded answers"), []
    for type in TYPES:
        for clip in clips:
            is_taken = any(clip.id == other.id for other, _ in chosen)
            asked = [] if is_taken else questions_on(clip, "video", [type])
            # Of nothing that is shown there is little to tell
            if asked and clip.scene.kind != "empty":
                chosen.append((clip, asked[0][1]))
                break
    return chosen


def save_drawings(folder: Path) -> None:
    """drawings.webp, all drawings of things one above the other, and drawings.json, whose they are."""
    found = drawings(STYLES[0], SIZE)
    sheet = np.concatenate([drawing for name in found for drawing in found[name]])
    Image.fromarray(sheet, "RGBA").save(folder / "drawings.webp", lossless=True)
    names = [name for name in found for _ in found[name]]
    (folder / "drawings.json").write_text(json.dumps(names) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model, processor = load(options.model)
    model.float().eval()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for clip, question in choose(Path(folder), options.seed):
            name = f"{question.type.replace(' ', '_')}.mp4"
            shutil.copyfile(clip.path, options.out / name)
            ((answer,),) = answers(model, processor, [clip], "video", [[question]])
            rows.append({"clip": name, "question": question.text, "answer": answer, "truth": question.answer})
    (options.out / "answers.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    save_drawings(options.out)
    print(*rows, sep="\n")


if __name__ == "__main__":
    main()
