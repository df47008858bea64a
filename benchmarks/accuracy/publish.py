"""Keep the result of a comparison: `bench.json` without the folders of the machine, and its table for people.

    python benchmarks/accuracy/publish.py FOLDER NAME

FOLDER is what `defeat bench --out` named. Writes `results/NAME.json` and `results/NAME.md` beside this file.
"""

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

from defeat.evaluation.bootstrap import Interval
from defeat.report.gains import Gain
from defeat.report.tables import decimal, gain_cells

RESULTS = Path(__file__).parent / "results"
LOCAL = (
    "data",
    "teacher",
    "teacher_weights",
    "weights",
    "unlabelled",
    "class_map",
    "cache_teacher",
)  # settings that may name a folder or a file of the machine
HEADS = ["method", "AP", "AP of each seed", "gain", "95 % seeds", "95 % images", "gap closed", "training time"]


def without_folders(content: dict[str, Any]) -> dict[str, Any]:
    """The same with the last part of each folder's name only."""
    settings = content["settings"]
    settings |= {name: Path(settings[name]).name for name in LOCAL if settings.get(name)}
    return content | {"settings": settings}


def table(content: dict[str, Any]) -> str:
    """The comparison as a Markdown table."""
    rows = [HEADS, ["---"] * len(HEADS), ["teacher", decimal(content["teacher"]["AP"]), *[""] * (len(HEADS) - 2)]]
    rows += [_row(variant) for variant in (content["alone"], *content["others"])]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    commits = ", ".join(sorted({(cell["commit"] or "unknown")[:7] for cell in content["cells"].values()}))
    hours = sum(cell["wall_seconds"] or 0 for cell in content["cells"].values()) / 3600
    facts = (f"{len(content['cells'])} cells", f"{hours:.1f} hours together", f"{content['images']} test images")
    lines.append(f"\n{', '.join(facts)}; commit {commits}.")
    return "\n".join(lines) + "\n"


def _row(variant: dict[str, Any]) -> list[str]:
    cells = [variant["name"], decimal(fmean(variant["ap"])), " ".join(decimal(ap) for ap in variant["ap"])]
    if variant["gain"] is None:
        return [*cells, *[""] * (len(HEADS) - len(cells))]
    return [*cells, *gain_cells(_gain(variant["gain"]), variant["gap_closed"]), decimal(variant["time_ratio"], 2)]


def _gain(found: dict[str, Any]) -> Gain:
    over = {name: Interval(**found[name]) for name in ("over_seeds", "over_images") if found[name] is not None}
    return Gain(found["mean"], tuple(found["by_seed"]), **over)


def main() -> None:
    """Write both files and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("name")
    given = parser.parse_args()
    content = without_folders(json.loads((given.folder / "bench.json").read_text()))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{given.name}.json").write_text(json.dumps(content, indent=1) + "\n")
    (RESULTS / f"{given.name}.md").write_text(table(content))
    print(table(content))


if __name__ == "__main__":
    main()
