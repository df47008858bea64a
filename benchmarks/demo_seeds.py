"""Measure the gain of `defeat demo` on several seeds, each with its own training and test scenes.

    python benchmarks/demo_seeds.py RUNS [--seeds 10]

Each seed takes as long as `make demo`; seeds whose folder in RUNS is finished are not trained again. Writes
`results/demo_seeds.json`.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from defeat.engine.provenance import commit, machine, versions
from defeat.report.variants import baseline_of

RESULT = Path(__file__).parent / "results" / "demo_seeds.json"


def measured(runs: Path, seed: int) -> dict[str, Any]:
    """The result of the demo with a seed."""
    folder = runs / f"seed{seed}"
    if not (folder / "bench.json").is_file():
        command = [sys.executable, "-m", "defeat.cli", "demo", "--seed", str(seed), "--out", str(folder)]
        subprocess.run(command, check=True)
    content = json.loads((folder / "bench.json").read_text())
    (distilled,) = content["others"]
    gain = distilled["gain"]
    return {
        "seed": seed,
        "teacher": content["teacher"]["AP"],
        "baseline": baseline_of(content)["ap"],
        "distilled": distilled["ap"],
        "gain": gain["mean"],
        "over_images": [gain["over_images"]["low"], gain["over_images"]["high"]],
    }


def main() -> None:
    """Train missing seeds, and write and print all results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    given = parser.parse_args()
    rows = []
    for seed in range(given.seeds):
        rows.append(measured(given.runs, seed))
        origin = {"commit": commit(), "machine": machine(), "versions": versions()}
        RESULT.write_text(json.dumps(origin | {"demos": rows}, indent=1) + "\n")
        row = rows[-1]
        low, high = row["over_images"]
        print(
            f"seed {seed}: {row['baseline']} -> {row['distilled']}: {row['gain']:+.1f} ({low:+.1f} .. {high:+.1f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
