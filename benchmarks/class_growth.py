"""Measure how the cost of a step, of a prediction and of an evaluation grows with the number of classes.

    python -m benchmarks.class_growth [--classes 20 80 1203] [--images 5000] [--repeats 5] [--out FILE]

Steps and predictions: 2 noise images of 224 pixels with 10 boxes each, one thread, interleaved. Evaluations: AP of
images with 100 detections each, each in a new process, with its memory beyond that of the detections.
"""

import argparse
import multiprocessing
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from time import process_time

import torch
from torch import nn

from benchmarks.measure import interleaved, publish
from benchmarks.speed.evaluation import split
from benchmarks.speed.growth import batch_of, steps_on
from benchmarks.speed.work import NECK_CHANNELS, SMALL
from defeat.detector import Detector, DetectorSpec, build
from defeat.distillation import DeFeat
from defeat.evaluation.evaluator import Evaluator
from defeat.types import Batch

SIZE, IMAGES, BOXES = 224, 2, 10


def detector(family: str, backbone: str, channels: int, classes: int, size: int = SIZE) -> Detector:
    """A detector with random weights."""
    torch.manual_seed(0)
    names = tuple(f"class {number}" for number in range(classes))
    return build(
        DetectorSpec(family, backbone, names, size, size, neck_channels=channels, options=SMALL[family]), weights="none"
    )


def noise(classes: int) -> Batch:
    """Images with boxes of random classes."""
    return batch_of(SIZE, IMAGES, BOXES, classes, sides=(8, 64))


def steps_of(family: str, classes: int) -> dict[str, Callable[[], object]]:
    """Baseline step, distilled step and prediction."""
    student = detector(family, "tf_efficientnet_lite0", NECK_CHANNELS["student"], classes).train()
    teacher = detector(family, "tf_efficientnet_lite2", NECK_CHANNELS["teacher"], classes).eval().requires_grad_(False)
    batch = noise(classes)
    baseline, distilled = steps_on(student, teacher, DeFeat(student.info, teacher.info), batch)
    predictor = detector(family, "tf_efficientnet_lite0", NECK_CHANNELS["student"], classes).eval()
    images = list(batch.images)
    return {
        f"{family}, baseline step, {classes} classes": baseline,
        f"{family}, distilled step, {classes} classes": distilled,
        f"{family}, prediction, {classes} classes": partial(predict, predictor, images),
    }


@torch.no_grad()
def predict(module: nn.Module, images: list[torch.Tensor]) -> None:
    """Detect objects in images."""
    assert isinstance(module, Detector)
    module.predict(images)


def evaluation(images: int, classes: int) -> tuple[float, float]:
    """CPU seconds and peak memory in MiB of an evaluation, in a new process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe()
    process = context.Process(target=_evaluate, args=(sender, images, classes))
    process.start()
    seconds, memory = receiver.recv()
    process.join()
    return seconds, memory


def _evaluate(pipe: Connection, images: int, classes: int) -> None:
    torch.set_num_threads(1)
    detections, targets = split(images, 100, classes)
    before, start = peak_memory(), process_time()
    evaluator = Evaluator([str(label) for label in range(classes)])
    evaluator.update(detections, targets)
    evaluator.compute()
    pipe.send((process_time() - start, peak_memory() - before))


def peak_memory() -> float:
    """Peak resident memory of this process in MiB; `getrusage` would count that of its parent, too."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[20, 80, 1203])
    parser.add_argument("--images", type=int, default=5000, help="images of the evaluation")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    given = parser.parse_args()
    torch.set_num_threads(1)
    steps: dict[str, Callable[[], object]] = {}
    for family in SMALL:
        for classes in given.classes:
            steps |= steps_of(family, classes)
    milliseconds = {name: round(value, 1) for name, value in interleaved(steps, given.repeats).items()}
    seconds, memory = {}, {}
    for classes in given.classes:
        taken, peak = evaluation(given.images, classes)
        seconds[f"{classes} classes"], memory[f"{classes} classes"] = round(taken, 1), round(peak)
    work = {"classes": given.classes, "images": given.images, "repeats": given.repeats}
    publish({"milliseconds": milliseconds, "evaluation_seconds": seconds, "evaluation_MiB": memory}, work, given.out)


if __name__ == "__main__":
    main()
