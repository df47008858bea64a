"""Evaluate finished runs on some splits and gather everything about them in one file.

python benchmarks/collect.py RUN [RUN ...] --data DATA --splits val test --out benchmarks/results/NAME.json

The figures are those of the saved models, measured again here.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import yaml

from defeat.engine.inference import evaluate

# Settings that say nothing about what was trained.
LOCAL = {"data", "out", "resume", "workers", "teacher"}
KEPT = ("commit", "machine", "versions", "seed", "steps", "parameters", "train_seconds", "step_ms_median")


def gather(folder: Path, data: str, splits: list[str]) -> dict[str, Any]:
    """Figures of one run on each split, its settings, and where they come from."""
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    results = json.loads((folder / "results.json").read_text())
    return {
        "figures": {split: evaluate(folder, data, split).to_dict() for split in splits},
        "settings": {name: value for name, value in settings.items() if name not in LOCAL},
        **{name: results[name] for name in KEPT},
    }


def main() -> None:
    """Evaluate, print AP and AP50, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--splits", nargs="+", default=["val", "test"])
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    gathered = {folder.name: gather(folder, given.data, given.splits) for folder in given.runs}
    for name, found in gathered.items():
        figures = {split: one["metrics"] for split, one in found["figures"].items()}
        print(f"{name:24}" + "  ".join(f"{s}: AP {m['AP']:.1f} AP50 {m['AP50']:.1f}" for s, m in figures.items()))
    given.out.write_text(json.dumps(gathered, indent=1) + "\n")


if __name__ == "__main__":
    main()
