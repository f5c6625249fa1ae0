# SPDX-License-Identifier: Apache-2.0
"""Step 9: one folder of the trained parts, in bfloat16, with a model card.

python export.py --model DIR --branches DIR --out DIR [--results results.json]
"""

import argparse
import json
from pathlib import Path

import pictures
import torch
from common import load, save
from questions import TYPES
from world import SOUNDS, THINGS

from transformers_videollama import load_branch


CARD = """---
license: cc-by-4.0
library_name: transformers
pipeline_tag: video-text-to-text
tags: [video-llama, video, audio]
---

# The default checkpoint

Video-LLaMA at a thousandth of its size, {millions:.1f} million parameters in bfloat16, trained from nothing by the commands in
`examples/default_checkpoint` of transformers_videollama. It comes with the package so that it answers on a fresh machine.

**It knows only its small world**: drawings of {num_things} things, still or moving, up to four of them, alone, side by side or one after
the other, and the sounds of {num_sounds} of them; it was taught English by {num_types} types of questions about them. Of anything else it
says something, and that means nothing.

- Things: {things}.
- With a sound: {sounds}.

## How it was trained

LLaMA on text, then frozen; ViT and image Q-Former on drawings, then frozen; ImageBind's audio trunk on synthesised sounds, towards its
vision trunk, then frozen; then the stages of Video-LLaMA, and one with both branches in a prompt. **The branch that hears was trained
on frames only**: it heard its first sound when it was used.
{results}
## What it was made of

{licences}

Sounds are synthesised by the training's own script (Apache-2.0). Recordings were used to measure it only, and none is shipped: from Debian's
`tuxpaint-stamps-default` and `tuxpaint-plugins-default` (GPL-2), `gcompris-qt-data` (GPL-3), `openttd-opensfx` (CC BY-SA 3.0),
`sonic-pi-samples` (CC0) and `sound-theme-freedesktop` (CC BY-SA 3.0 and GPL-2).

The weights are CC BY 4.0, as two of the sets of drawings are: name them and this package.
"""


def licences() -> str:
    rows = ["| drawings | version | by | licence |", "|---|---|---|---|"]
    for each in pictures.licences():
        use = " (to measure only)" if each["style"] == pictures.UNSEEN_STYLE else ""
        rows.append(
            f"| `{each['package']}`{use} | {each['version']} | {each['author']} | [{each['licence']}]({each['url']}) |"
        )
    return "\n".join(rows)


def results_table(path: Path | None) -> str:
    if path is None:
        return ""
    return "\n## How well it does\n\n" + path.read_text(encoding="utf-8")


def drop_code(folder: Path) -> None:
    """The package has the code already: neither its files nor what points to them, nor where the folder was."""
    for file in folder.glob("*.py"):
        file.unlink()
    for file in folder.glob("*.json"):
        if file.name == "tokenizer.json":
            continue
        kept = _without(json.loads(file.read_text(encoding="utf-8")), ("auto_map", "is_local", "local_files_only"))
        file.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o644)


def _without(value, names: tuple[str, ...]):
    if isinstance(value, dict):
        return {name: _without(each, names) for name, each in value.items() if name not in names}
    return [_without(each, names) for each in value] if isinstance(value, list) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--branches", nargs="+", default=[])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--results", type=Path, help="Markdown for the card.")
    options = parser.parse_args()
    model, processor = load(options.model)
    for folder in options.branches:
        for branch in ("vision_branch", "audio_branch"):
            if (Path(folder) / f"{branch}.safetensors").exists():
                load_branch(model, Path(folder) / f"{branch}.safetensors")
    save(options.out, model.to(torch.bfloat16), processor)
    drop_code(options.out)
    card = CARD.format(
        millions=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        num_things=len(THINGS),
        num_sounds=len(SOUNDS),
        num_types=len(TYPES),
        things=", ".join(THINGS),
        sounds=", ".join(SOUNDS),
        results=results_table(options.results),
        licences=licences(),
    )
    (options.out / "README.md").write_text(card, encoding="utf-8")
    size = sum(file.stat().st_size for file in options.out.rglob("*") if file.is_file())
    print(json.dumps({"bytes": size}))


if __name__ == "__main__":
    main()
