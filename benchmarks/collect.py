"""Evaluate finished runs on some splits and gather everything about them in one file.

python benchmarks/collect.py RUN [RUN ...] --data DATA --splits val test --alone RUN --out benchmarks/results/NAME.json

The figures are those of the saved models, measured again here. With --alone each run's gain over that one is given with
its 95 % interval over the images (paired bootstrap).
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from defeat.detector import load
from defeat.evaluation.bootstrap import SAMPLES, bootstrap_weights, interval_over_images
from defeat.evaluation.evaluator import Evaluator
from defeat.evaluation.matching import average_precision_of_samples, match_scenes
from defeat.evaluation.splits import detect_split

# Settings that say nothing about what was trained.
LOCAL = {"data", "out", "resume", "workers", "teacher"}
KEPT = ("commit", "machine", "versions", "seed", "steps", "parameters", "train_seconds", "step_ms_median")


def gather(folder: Path, found: dict[str, Evaluator]) -> dict[str, Any]:
    """Figures of one run on each split, its settings, and where they come from."""
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    results = json.loads((folder / "results.json").read_text())
    return {
        "figures": {split: evaluator.compute().to_dict() for split, evaluator in found.items()},
        "settings": {name: value for name, value in settings.items() if name not in LOCAL},
        **{name: results[name] for name in KEPT},
    }


def samples(evaluator: Evaluator) -> np.ndarray:
    """AP of each class on samples of the images: (S, K), the same samples for every run."""
    scenes = evaluator.scenes()
    matches = match_scenes(scenes, len(evaluator.classes))
    return 100 * average_precision_of_samples(matches, bootstrap_weights(len(scenes), SAMPLES))


def gain(
    run: dict[str, Any], alone: dict[str, Any], split: str, run_samples: np.ndarray, alone_samples: np.ndarray
) -> dict[str, float]:
    """AP points of a run above another on a split, with the ends of the interval over its images."""
    ahead, before = (one["figures"][split]["metrics"]["AP"] for one in (run, alone))
    interval = interval_over_images(np.nanmean(run_samples - alone_samples, axis=1))
    return {"AP": ahead - before, "low": interval.low, "high": interval.high}


def main() -> None:
    """Evaluate, print AP and AP50, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--splits", nargs="+", default=["val", "test"])
    parser.add_argument("--alone", type=Path, help="run of the student alone, that the others are held against")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    gathered: dict[str, Any] = {}
    drawn: dict[tuple[str, str], np.ndarray] = {}
    for folder in dict.fromkeys([given.alone or given.runs[0], *given.runs]):
        detector = load(folder)
        found = {split: detect_split(detector, given.data, split, 8, given.workers) for split in given.splits}
        gathered[folder.name] = run = gather(folder, found)
        words = f"{folder.name:24}"
        for split, evaluator in found.items():
            metrics = run["figures"][split]["metrics"]
            words += f"{split}: AP {metrics['AP']:.1f} AP50 {metrics['AP50']:.1f}  "
            if given.alone is None:
                continue
            drawn[folder.name, split] = samples(evaluator)
            if folder != given.alone:
                pair = drawn[folder.name, split], drawn[given.alone.name, split]
                one = gain(run, gathered[given.alone.name], split, *pair)
                run.setdefault("gain", {})[split] = one
                words += f"{one['AP']:+.1f} ({one['low']:+.1f} to {one['high']:+.1f})  "
        print(words, flush=True)
    given.out.write_text(json.dumps(gathered, indent=1) + "\n")


if __name__ == "__main__":
    main()
