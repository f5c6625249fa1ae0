# SPDX-License-Identifier: Apache-2.0
"""Figures of evaluate.py as a table in Markdown, a column for each set of clips.

python tables.py seen=results/seen.json unseen=results/unseen.json [--mode video]
"""

import argparse
import json
from pathlib import Path

from evaluate import MODES


def share(row: dict | None) -> str:
    if row is None:
        return ""
    interval = f"{100 * row['verdict_low']:.0f}–{100 * row['verdict_high']:.0f}"
    return f"{100 * row['verdict']:.1f} % ({interval}, n={row['questions']})"


def markdown(columns: dict[str, list[dict]]) -> str:
    """What is asked for, with its interval of 95 %, and how often the commonest answer would be right in the first column."""
    by_type = {name: {row["type"]: row for row in rows} for name, rows in columns.items()}
    types = list(dict.fromkeys(type for rows in by_type.values() for type in rows))
    lines = [f"| type of question | {' | '.join(columns)} | commonest answer |", "|---" * (len(columns) + 2) + "|"]
    for type in types:
        chance = next(rows[type]["chance"] for rows in by_type.values() if type in rows)
        shares = " | ".join(share(rows.get(type)) for rows in by_type.values())
        lines.append(f"| {type} | {shares} | {100 * chance:.0f} % |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", help="NAME=FILE, or NAME=FILE:MODE")
    parser.add_argument("--mode", choices=MODES, default="video")
    options = parser.parse_args()
    columns = {}
    for each in options.results:
        name, _, place = each.partition("=")
        file, _, mode = place.partition(":")
        columns[name] = json.loads(Path(file).read_text(encoding="utf-8"))[mode or options.mode]
    print(markdown(columns))


if __name__ == "__main__":
    main()
