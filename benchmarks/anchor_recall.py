"""Measure the recall of anchors on a training split, fitted to the data and not.

python -m benchmarks.anchor_recall DATA [DATA ..] [--size 160]
"""

import argparse

from rich.console import Console

from defeat.data import open_dataset
from defeat.detector import FAMILIES, make_options
from defeat.detector.base import DetectorSpec
from defeat.detector.families.retinanet import OCTAVES
from defeat.detector.options import with_usual_values
from defeat.detector.statistics import RECALL_IOUS, ObjectStatistics, best_overlaps, object_statistics

WITHIN_LEVEL = {"retinanet": OCTAVES}  # factors of the sides within a level; one side elsewhere


def recalls(family: str, statistics: ObjectStatistics, first_sides: list[float]) -> list[float]:
    """Share of the objects, in percent, whose best anchor has at least the IoU, per IoU of `RECALL_IOUS`."""
    sides = [[side * octave for octave in WITHIN_LEVEL.get(family, (1.0,))] for side in first_sides]
    best = best_overlaps(statistics, make_options(family, {}).strides, sides)
    return [100 * float((best >= least).float().mean()) for least in RECALL_IOUS]


def main() -> None:
    """Print a line per data set, family and choice of anchors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+")
    parser.add_argument("--size", type=int, default=160)
    given = parser.parse_args()
    for data in given.data:
        training = open_dataset(data, "train", None, "stop", Console(quiet=True))
        statistics = object_statistics(training, given.size, round(given.size * 5 / 3))
        for family in FAMILIES:
            default = with_usual_values(make_options(family, {})).anchor_sizes
            fitted = make_options(family, {}).fitted(statistics, DetectorSpec.neck_channels).anchor_sizes
            scaled = [side * given.size / DetectorSpec.size for side in default]
            for name, sides in {"default": default, "scaled": scaled, "fitted": fitted}.items():
                shares = ", ".join(f"{share:.1f}" for share in recalls(family, statistics, sides))
                print(f"{data} {family} {name} {' '.join(f'{side:g}' for side in sides)}: {shares}")


if __name__ == "__main__":
    main()
