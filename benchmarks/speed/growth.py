"""Measure how the time of a step grows with the boxes per image and the images per batch.

    python -m benchmarks.speed.growth [--family faster_rcnn] [--size 224] [--repeats 10] [--out FILE]

Noise images of one size with 1 to 1,000 boxes of 4 to 24 pixels, or 1 to 8 images with 10 boxes, interleaved.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.measure import interleaved, publish
from benchmarks.speed.bare import PROGRESS, learn, optimizer_of
from benchmarks.speed.work import Work
from defeat.detector import Detector
from defeat.distillation import Method
from defeat.engine.experiment import Distillation
from defeat.engine.step import step_losses, total_loss
from defeat.types import Batch, Target

BOXES = (1, 10, 100, 1000)
IMAGES = (1, 2, 4, 8)


def batch_of(
    size: int, images: int, boxes: int, classes: int, device: str = "cpu", sides: tuple[int, int] = (4, 24)
) -> Batch:
    """Square noise images of `size` pixels with `boxes` random boxes each, with sides of `sides` pixels."""
    least, most = sides
    generator = torch.Generator().manual_seed(boxes)
    pixels = torch.rand(images, 3, size, size, generator=generator)
    targets = []
    for number in range(images):
        corner = (size - most) * torch.rand(boxes, 2, generator=generator)
        side = least + (most - least) * torch.rand(boxes, 2, generator=generator)
        labels, flags = torch.randint(classes, (boxes,), generator=generator), torch.zeros(boxes, dtype=torch.bool)
        boxes_of_image = torch.cat([corner, corner + side], dim=1)
        targets.append(Target(boxes_of_image, labels, flags, flags, number, (size, size)).to(torch.device(device)))
    sizes = [(size, size)] * images
    return Batch(pixels, sizes, targets, sizes, classes)


def steps_on(
    student: Detector, teacher: Detector, method: Method, batch: Batch
) -> tuple[Callable[[], None], Callable[[], None]]:
    """A baseline step and a distilled step on a fixed batch."""
    optimizer = optimizer_of(student, method)

    def baseline() -> None:
        learn(optimizer, total_loss(student.forward_train(batch).losses))

    def distilled() -> None:
        output, terms = step_losses(student, batch, PROGRESS, Distillation(teacher, method))
        learn(optimizer, total_loss(output.losses | terms))

    return baseline, distilled


def cases(work: Work) -> dict[str, Callable[[], object]]:
    """Steps of the baseline (keys `alone`), distilled steps, and the computation of the regions."""
    student, teacher, method = work.pair()
    steps: dict[str, Callable[[], object]] = {}

    def add(name: str, images: int, boxes: int) -> Batch:
        batch = batch_of(work.size, images, boxes, len(student.info.classes), work.device)
        steps[f"alone, {name}"], steps[f"distilled, {name}"] = steps_on(student, teacher, method, batch)
        return batch

    for boxes in BOXES:
        batch = add(f"{boxes} boxes an image", work.batch, boxes)
        shapes = {stride: (work.size // stride,) * 2 for stride in student.info.neck}
        given = [target.boxes for target in batch.targets]
        steps[f"regions, {boxes} boxes an image"] = partial(method.painted, given, shapes)
    for images in IMAGES:
        add(f"{images} images", images, 10)
    return steps


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/voc15", help="data set whose classes are used")
    parser.add_argument("--family", default="faster_rcnn")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    given = vars(parser.parse_args())
    repeats, out = given.pop("repeats"), given.pop("out")
    torch.set_num_threads(1)
    work = Work(**given)
    table = {name: round(value, 2) for name, value in interleaved(cases(work), repeats).items()}
    publish({"milliseconds": table}, work.to_dict() | {"repeats": repeats}, out)


if __name__ == "__main__":
    main()
