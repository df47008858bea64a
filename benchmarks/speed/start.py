"""Measure the time of --help, and the time from the command to the end of the first training step.

python -m benchmarks.speed.start [--data ../shared/data/voc15] [--size 224] [--repeats 5] [--out FILE]
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter, sleep

from benchmarks.measure import publish

COMMAND = [sys.executable, "-m", "defeat.cli"]
INTERVAL = 0.02  # seconds between checks of a file


def seconds_of(arguments: list[str]) -> float:
    """Time of a command."""
    start = perf_counter()
    subprocess.run([*COMMAND, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return perf_counter() - start


def first_step(arguments: list[str], folder: Path) -> float:
    """Time of a training until it has logged its first step."""
    start = perf_counter()
    more = ["--out", str(folder), "--max-steps", "1", "--log-every", "1"]
    process = subprocess.Popen(
        [*COMMAND, *arguments, *more], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        while not (folder / "metrics.jsonl").exists():
            if process.poll() is not None and not (folder / "metrics.jsonl").exists():
                raise RuntimeError(process.communicate()[1])
            sleep(INTERVAL)
        return perf_counter() - start
    finally:
        process.kill()
        process.communicate()


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/voc15", help="a data set with a split `train`")
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    given = parser.parse_args()
    training = ["train", "--config", "small/photographs", "--data", given.data, "--backbone", given.backbone]
    training += ["--size", str(given.size), "--batch-size", "8"]
    seconds: dict[str, list[float]] = {"defeat --help": [], "defeat train --help": [], "first step of defeat train": []}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(given.repeats):
            times = [seconds_of(["--help"]), seconds_of(["train", "--help"])]
            times.append(first_step(training, Path(folder) / str(repeat)))
            for values, value in zip(seconds.values(), times, strict=True):
                values.append(value)
    table = {name: round(median(values), 2) for name, values in seconds.items()}
    publish(
        {"seconds": table}, {"data": Path(given.data).name, "size": given.size, "repeats": given.repeats}, given.out
    )


if __name__ == "__main__":
    main()
