# SPDX-License-Identifier: Apache-2.0
"""Draws the curves of the training.

python figures.py --work DIR --out docs/images
"""

import argparse
import json
from pathlib import Path

import matplotlib


matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


STAGES = ("vl_stage1", "vl_stage2", "al_stage1", "al_stage2", "joint", "joint_2")
# The same drawing gives the same file
plt.rcParams.update(
    {"svg.hashsalt": "video-llama", "svg.fonttype": "none", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3}
)


def read_log(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def curve(rows: list[dict], name: str) -> tuple[list[int], list[float]]:
    kept = [row for row in rows if name in row]
    return [row["step"] for row in kept], [row[name] for row in kept]


def draw_text(work: Path, out: Path) -> None:
    """LLaMA: its loss, and how often each type of question is answered right."""
    rows = _joined(work, ("text", "text_2"))
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for name, label in (("answers", "answers"), ("prompts", "0.3 x prompts")):
        left.plot(*curve(rows, name), label=label)
    left.set(title="LLaMA on text", xlabel="step", ylabel="cross-entropy", yscale="log")
    left.legend()
    measured = [row for row in rows if "accuracy" in row]
    for group in sorted(measured[0]["accuracy"]):
        right.plot(
            [row["step"] for row in measured], [row["accuracy"][group] for row in measured], marker=".", label=group
        )
    right.set(title="right, by type of question", xlabel="step", ylim=(0, 1.02))
    right.legend(fontsize=6, ncols=2)
    figure.savefig(out / "default_text.svg", metadata={"Date": None})


def _joined(work: Path, folders: tuple[str, ...]) -> list[dict]:
    """The logs of rounds one after the other, as one."""
    rows, before = [], 0
    for folder in folders:
        log = read_log(work / folder / "log.jsonl")
        rows += [row | {"step": row["step"] + before} for row in log]
        before = rows[-1]["step"]
    return rows


def draw_encoders(work: Path, out: Path) -> None:
    """What sees and hears: losses, and how often it is right."""
    figure, axes = plt.subplots(1, 4, figsize=(12, 3), layout="constrained")
    panels = (
        (
            ("vit", "vit_2", "vit_3"),
            "ViT",
            (("patches", "loss of patches"), ("things_right", "patches of things right")),
        ),
        (
            ("encoders",),
            "image Q-Former",
            (("language", "loss of answers"), ("count_right", "count right"), ("which_right", "thing right")),
        ),
        (("imagebind",), "ImageBind, vision", (("names", "loss"), ("things_right", "things right"))),
        (("audio",), "ImageBind, audio", (("names", "loss"), ("new_sounds_right", "new sounds right"))),
    )
    for axis, (folders, title, names) in zip(axes, panels):
        rows = _joined(work, folders)
        for name, label in names:
            axis.plot(*curve(rows, name), label=label)
        axis.set(title=title, xlabel="step")
        axis.legend(fontsize=7)
    figure.savefig(out / "default_encoders.svg", metadata={"Date": None})


def draw_stages(work: Path, out: Path) -> None:
    """The published stages and the joint one."""
    figure, axes = plt.subplots(1, len(STAGES), figsize=(12, 2.6), layout="constrained")
    for axis, stage in zip(axes, STAGES):
        history = json.loads((work / stage / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
        axis.plot(*curve(history, "loss"))
        axis.set(title=stage, xlabel="step", yscale="log")
    axes[0].set_ylabel("cross-entropy")
    figure.savefig(out / "default_stages.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="Folder of build.sh.")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for draw in (draw_text, draw_encoders, draw_stages):
        draw(options.work, options.out)


if __name__ == "__main__":
    main()
