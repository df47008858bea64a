"""Keep the result of a comparison: `bench.json` without the folders of the machine, and its table for people.

    python benchmarks/accuracy/publish.py FOLDER NAME

FOLDER is what `defeat bench --out` named. Writes `results/NAME.json` and `results/NAME.md` beside this file.
"""

import argparse
import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
LOCAL = ("data", "teacher", "out")  # settings that name folders
HEADS = ("method", "AP", "AP of each seed", "gain", "95 % over seeds", "95 % over images", "gap closed", "time")


def without_folders(content: dict[str, Any]) -> dict[str, Any]:
    """The same with the last part of each folder's name only."""
    settings = {
        name: Path(value).name if name in LOCAL and value else value for name, value in content["settings"].items()
    }
    return content | {"settings": settings}


def table(content: dict[str, Any]) -> str:
    """The comparison as a Markdown table."""
    rows = [HEADS, ("---",) * len(HEADS), ("teacher", f"{content['teacher']['AP']:.1f}", *("",) * (len(HEADS) - 2))]
    for variant in (content["alone"], *content["others"]):
        rows.append(_row(variant))
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    commits = ", ".join(sorted({str(cell["commit"])[:7] for cell in content["cells"].values()}))
    hours = sum(cell["wall_seconds"] or 0 for cell in content["cells"].values()) / 3600
    facts = (f"{len(content['cells'])} cells", f"{hours:.1f} hours together", f"{content['images']} test images")
    lines.append(f"\n{', '.join(facts)}; commit {commits}.")
    return "\n".join(lines) + "\n"


def _row(variant: dict[str, Any]) -> tuple[str, ...]:
    seeds = " ".join(f"{value:.1f}" for value in variant["ap"])
    mean = sum(variant["ap"]) / len(variant["ap"])
    gain = variant["gain"]
    if gain is None:
        return variant["name"], f"{mean:.1f}", seeds, "", "", "", "", "1.00"
    closed, ratio = variant["gap_closed"], variant["time_ratio"]
    return (
        variant["name"],
        f"{mean:.1f}",
        seeds,
        f"{gain['mean']:+.1f}",
        *(_interval(gain[name]) for name in ("over_seeds", "over_images")),
        "" if closed is None else f"{closed:.0f} %",
        "" if ratio is None else f"{ratio:.2f}",
    )


def _interval(interval: dict[str, float] | None) -> str:
    return "" if interval is None else f"{interval['low']:+.1f} to {interval['high']:+.1f}"


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
