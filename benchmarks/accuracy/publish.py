"""Publish the result of a comparison: `bench.json` without paths of the machine, and a Markdown table.

    python benchmarks/accuracy/publish.py FOLDER NAME

FOLDER is the `--out` of `defeat bench`. Writes `results/NAME.json` and `results/NAME.md` in the folder of this file.
"""

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

from defeat.evaluation.bootstrap import Interval
from defeat.report.gains import Gain
from defeat.report.tables import decimal, gain_cells
from defeat.report.variants import baseline_of

RESULTS = Path(__file__).parent / "results"
LOCAL = (
    "data",
    "teacher",
    "teacher_weights",
    "weights",
    "unlabelled",
    "class_map",
    "cache_teacher",
    "student_from",
)  # settings that may contain a path
HEADS = ["method", "AP", "AP per seed", "gain", "95 % seeds", "95 % images", "gap closed", "training time"]


def without_folders(content: dict[str, Any]) -> dict[str, Any]:
    """Reduce the paths in the settings to their last part."""
    settings = content["settings"]
    settings |= {name: Path(settings[name]).name for name in LOCAL if settings.get(name)}
    return content | {"settings": settings}


def table(content: dict[str, Any]) -> str:
    """The comparison as a Markdown table."""
    rows = [HEADS, ["---"] * len(HEADS), ["teacher", decimal(content["teacher"]["AP"]), *[""] * (len(HEADS) - 2)]]
    rows += [_row(variant) for variant in (baseline_of(content), *content["others"])]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    commits = ", ".join(sorted({(cell["commit"] or "unknown")[:7] for cell in content["cells"].values()}))
    hours = sum(cell["wall_seconds"] or 0 for cell in content["cells"].values()) / 3600
    facts = (f"{len(content['cells'])} cells", f"{hours:.1f} hours in total", f"{content['images']} test images")
    lines.append(f"\n{', '.join(facts)}; commit {commits}.")
    return "\n".join(lines) + "\n"


def _row(variant: dict[str, Any]) -> list[str]:
    cells = [variant["name"], decimal(fmean(variant["ap"])), " ".join(decimal(ap) for ap in variant["ap"])]
    if variant["gain"] is None:
        return [*cells, *[""] * (len(HEADS) - len(cells))]
    return [*cells, *gain_cells(_gain(variant["gain"]), variant["gap_closed"]), decimal(variant["time_ratio"], 2)]


def _gain(content: dict[str, Any]) -> Gain:
    intervals = {name: Interval(**content[name]) for name in ("over_seeds", "over_images") if content[name] is not None}
    return Gain(content["mean"], tuple(content["by_seed"]), **intervals)


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
