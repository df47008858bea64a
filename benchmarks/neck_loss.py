"""Measure time and memory of DeFeat's neck losses at COCO size, against a plain implementation.

    python -m benchmarks.neck_loss [--repeats 20] [--boxes 10] [--out FILE]

Batch 2, 800 x 1344 pixels, 256 channels, strides 4 to 64. The plain implementation squares the difference, repeats the
mask over the channels, multiplies and sums, separately for objects and background. All are interleaved in one process
and compared by their medians; peak memory is that of the tensors in a separate process each.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measure import interleaved, peak_memory, publish
from defeat.distillation.differences import squared_difference, standardised_difference
from defeat.distillation.losses import region_mean
from defeat.distillation.regions import gaussian_regions, near_object_regions, object_regions

BATCH, HEIGHT, WIDTH, CHANNELS = 2, 800, 1344, 256
SHAPES = {stride: (-(-HEIGHT // stride), -(-WIDTH // stride)) for stride in (4, 8, 16, 32, 64)}
REGIONS = {"objects": object_regions, "near objects": near_object_regions, "gaussian": gaussian_regions}


def random_boxes(count: int) -> list[Tensor]:
    """`count` boxes per image, of all sizes."""
    generator = torch.Generator().manual_seed(0)
    side = 8 * 2 ** (6 * torch.rand(BATCH, count, 2, generator=generator))  # 8 to 512 pixels
    corner = torch.rand(BATCH, count, 2, generator=generator) * torch.tensor([WIDTH, HEIGHT])
    limit = torch.tensor([WIDTH, HEIGHT] * 2)
    return list(torch.minimum(torch.cat([corner, corner + side], dim=2), limit))


def random_maps(learns: bool) -> dict[int, Tensor]:
    """Feature maps of the neck of a detector."""
    return {stride: torch.randn(BATCH, CHANNELS, *shape).requires_grad_(learns) for stride, shape in SHAPES.items()}


def ours(student: Tensor, teacher: Tensor, region: Tensor) -> Tensor:
    """Both losses of a level, with the weights published for COCO."""
    return both_regions(squared_difference(student, teacher), region)


def standardised(student: Tensor, teacher: Tensor, region: Tensor) -> Tensor:
    """The same on standardised feature maps, the default."""
    return both_regions(standardised_difference(student, teacher, torch.ones_like(region)), region)


def both_regions(per_cell: Tensor, region: Tensor) -> Tensor:
    """Weighted sum of both losses."""
    return 4 * region_mean(per_cell, region, CHANNELS) + 16 * region_mean(per_cell, ~region, CHANNELS)


def plain(student: Tensor, teacher: Tensor, region: Tensor) -> Tensor:
    """The same, with the mask repeated over the channels."""
    mask = region[:, None].float().repeat(1, CHANNELS, 1, 1)
    objects = ((student - teacher) ** 2 * mask).sum() / (2 * mask.sum()).clamp(min=1)
    background = ((student - teacher) ** 2 * (1 - mask)).sum() / (2 * (1 - mask).sum()).clamp(min=1)
    return 4 * objects + 16 * background


def squares(student: Tensor, teacher: Tensor, region: Tensor) -> Tensor:
    """Sum of squares without regions, as a reference."""
    return (student - teacher).square().sum()


def no_loss(student: Tensor, teacher: Tensor, region: Tensor) -> Tensor:
    """Feature maps and their gradient only, the lower limit of the memory."""
    return student.sum()


NO_LOSS, OURS, DEFAULT = "no loss", "this project", "this project, standardised"
LOSSES = {
    "plain arithmetic": plain,
    "sum of squares": squares,
    OURS: ours,
    DEFAULT: standardised,
    NO_LOSS: no_loss,
}
REFERENCES = ("plain arithmetic", "sum of squares")


def step_of(name: str, boxes: int) -> Callable[[], None]:
    """A function that computes a loss over all levels and its gradient."""
    loss = LOSSES[name]
    student, teacher, regions = random_maps(True), random_maps(False), object_regions(random_boxes(boxes), SHAPES)

    def step() -> None:
        for level in student.values():
            level.grad = None
        terms = [loss(student[stride], teacher[stride], region) for stride, region in regions.items()]
        torch.stack(terms).sum().backward()

    return step


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--boxes", type=int, default=10, help="boxes per image")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    peaks = {name: peak_memory(step_of, name, given.boxes) for name in LOSSES}
    losses = interleaved({name: step_of(name, given.boxes) for name in LOSSES if name != NO_LOSS}, given.repeats)
    painters = {
        f"{name}, {count} boxes an image": partial(paint, random_boxes(count), SHAPES)
        for count in (1, 10, 100, 1000, 10000)
        for name, paint in REGIONS.items()
    }
    tables = {
        "milliseconds": losses,
        "ratios": {f"{ours} : {name}": losses[ours] / losses[name] for ours in (OURS, DEFAULT) for name in REFERENCES},
        "mib_beside_maps_and_gradient": {name: peaks[name] - peaks[NO_LOSS] for name in losses},
        "milliseconds_of_regions": interleaved(painters, 5),
    }
    rounded = {title: {name: round(value, 3) for name, value in table.items()} for title, table in tables.items()}
    publish(rounded, {"boxes": given.boxes, "repeats": given.repeats}, given.out)


if __name__ == "__main__":
    main()
