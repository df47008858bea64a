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
from defeat.engine.experiment import Distillation
from defeat.engine.step import step_losses, total_loss
from defeat.types import Batch, Target

BOXES = (1, 10, 100, 1000)
IMAGES = (1, 2, 4, 8)


def batch_of(work: Work, images: int, boxes: int, classes: int) -> Batch:
    """Noise images with `boxes` random boxes each."""
    generator = torch.Generator().manual_seed(boxes)
    pixels = torch.rand(images, 3, work.size, work.size, generator=generator)
    targets = []
    for number in range(images):
        corner = (work.size - 24) * torch.rand(boxes, 2, generator=generator)
        side = 4 + 20 * torch.rand(boxes, 2, generator=generator)
        labels, flags = torch.randint(classes, (boxes,), generator=generator), torch.zeros(boxes, dtype=torch.bool)
        size = (work.size, work.size)
        targets.append(Target(torch.cat([corner, corner + side], dim=1), labels, flags, flags, number, size))
    sizes = [(work.size, work.size)] * images
    return Batch(pixels, sizes, [target.to(torch.device(work.device)) for target in targets], sizes, classes)


def cases(work: Work) -> dict[str, Callable[[], object]]:
    """Steps of the baseline (keys `alone`), distilled steps, and the computation of the regions."""
    student, teacher, method = work.pair()
    optimizer = optimizer_of(student, method)
    steps: dict[str, Callable[[], object]] = {}

    def add(name: str, batch: Batch) -> None:
        def baseline() -> None:
            learn(optimizer, total_loss(student.forward_train(batch).losses))

        def distilled() -> None:
            output, terms = step_losses(student, batch, PROGRESS, Distillation(teacher, method))
            learn(optimizer, total_loss(output.losses | terms))

        steps[f"alone, {name}"], steps[f"distilled, {name}"] = baseline, distilled

    for boxes in BOXES:
        batch = batch_of(work, work.batch, boxes, len(student.info.classes))
        add(f"{boxes} boxes an image", batch)
        shapes = {stride: (work.size // stride,) * 2 for stride in student.info.neck}
        given = [target.boxes for target in batch.targets]
        steps[f"regions, {boxes} boxes an image"] = partial(method.painted, given, shapes)
    for images in IMAGES:
        add(f"{images} images", batch_of(work, images, 10, len(student.info.classes)))
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
