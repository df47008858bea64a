"""Evaluate finished runs on several splits and write metrics, settings and origin into one file.

python benchmarks/collect.py RUN [RUN ...] --data DATA --splits val test --baseline RUN \
    --out benchmarks/results/NAME.json

The saved models are evaluated again. With --baseline, the file contains the gain of each run over that run and its 95 %
interval over images (paired bootstrap).
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from defeat.data import DataSource
from defeat.detector import load
from defeat.evaluation.bootstrap import SAMPLES, bootstrap_weights, interval_over_images
from defeat.evaluation.evaluator import Evaluator
from defeat.evaluation.matching import average_precision_of_samples, match_scenes
from defeat.evaluation.splits import detect_split

# Settings that do not change what is trained.
LOCAL = {"data", "out", "resume", "workers", "teacher"}
ORIGIN = ("commit", "machine", "versions", "seed", "steps", "parameters", "train_seconds", "step_ms_median")


def gather(folder: Path, evaluators: dict[str, Evaluator]) -> dict[str, Any]:
    """Metrics of a run by split, its settings and its origin."""
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    results = json.loads((folder / "results.json").read_text())
    return {
        "figures": {split: evaluator.compute().to_dict() for split, evaluator in evaluators.items()},
        "settings": {name: value for name, value in settings.items() if name not in LOCAL},
        **{name: results[name] for name in ORIGIN},
    }


def samples(evaluator: Evaluator) -> np.ndarray:
    """Per-class AP on bootstrap samples of the images: (S, K), with the same samples for every run."""
    scenes = evaluator.scenes()
    matches = match_scenes(scenes, len(evaluator.classes))
    return 100 * average_precision_of_samples(matches, bootstrap_weights(len(scenes), SAMPLES))


def gain(
    run: dict[str, Any], baseline: dict[str, Any], split: str, run_samples: np.ndarray, baseline_samples: np.ndarray
) -> dict[str, float]:
    """Gain of a run over the baseline on a split, in AP points, with its interval over images."""
    ap, baseline_ap = (content["figures"][split]["metrics"]["AP"] for content in (run, baseline))
    interval = interval_over_images(np.nanmean(run_samples - baseline_samples, axis=1))
    return {"AP": ap - baseline_ap, "low": interval.low, "high": interval.high}


def main() -> None:
    """Evaluate, print AP and AP50, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--splits", nargs="+", default=["val", "test"])
    parser.add_argument("--baseline", "--alone", type=Path, help="run that the others are compared with")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    source = DataSource(given.data)
    gathered: dict[str, Any] = {}
    drawn: dict[tuple[str, str], np.ndarray] = {}
    for folder in dict.fromkeys([given.baseline or given.runs[0], *given.runs]):
        detector = load(folder)
        evaluators = {split: detect_split(detector, source, split, 8, given.workers) for split in given.splits}
        gathered[folder.name] = run = gather(folder, evaluators)
        line = f"{folder.name:24}"
        for split, evaluator in evaluators.items():
            metrics = run["figures"][split]["metrics"]
            line += f"{split}: AP {metrics['AP']:.1f} AP50 {metrics['AP50']:.1f}  "
            if given.baseline is None:
                continue
            drawn[folder.name, split] = samples(evaluator)
            if folder != given.baseline:
                pair = drawn[folder.name, split], drawn[given.baseline.name, split]
                change = gain(run, gathered[given.baseline.name], split, *pair)
                run.setdefault("gain", {})[split] = change
                line += f"{change['AP']:+.1f} ({change['low']:+.1f} to {change['high']:+.1f})  "
        print(line, flush=True)
    given.out.write_text(json.dumps(gathered, indent=1) + "\n")


if __name__ == "__main__":
    main()
