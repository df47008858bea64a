"""Estimate what large runs take, from measured figures: GPU hours, disk, memory of the index, and money.

    python benchmarks/scale.py [--rate 57.1] [--teacher-rate 195.7] [--price 4]

The rates are images per second on one GPU of a distilled step and of the teacher alone; the defaults were measured on
an H200 (benchmarks/results/step_faster_rcnn_h200.json: Faster R-CNN, lite2 to lite0, 8 images of 640 pixels, bf16).
Nothing is trained.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
DECODED_MS = 4.4 + 2.9  # decoding and resizing a photograph on one core (docs/performance.md, "Waiting for images")
PHOTOGRAPH_KB = 165  # of COCO's train2017: 19 GB in 118,000 files
DETECTION_BYTES = 6 * 4 + 8  # box, score and label of a detection, and its part of the index
CELLS = sum((640 // stride) ** 2 for stride in (4, 8, 16, 32, 64))
MAP_BYTES = CELLS * 128 * 2  # the teacher's neck in half precision, 128 channels


@dataclass(frozen=True)
class Plan:
    """A run.

    Attributes:
        name: what it is.
        images: images on disk.
        seen: images in all steps together.
        detected: images on which the teacher runs beforehand.
    """

    name: str
    images: int
    seen: int
    detected: int = 0


PLANS = (
    Plan("COCO, 12 epochs", 118_000, 12 * 118_000),
    Plan("COCO, 24 epochs", 118_000, 24 * 118_000),
    Plan("10 million images without annotations, once", 10_000_000, 10_000_000, 10_000_000),
)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=57.1, help="images per second of a distilled step")
    parser.add_argument("--teacher-rate", type=float, default=195.7, help="images per second of the teacher")
    parser.add_argument("--price", type=float, default=4.0, help="of a GPU hour")
    given = parser.parse_args()
    opened = json.loads((RESULTS / "coco_growth.json").read_bytes())["1000000 images"]
    print("| | " + " | ".join(plan.name for plan in PLANS) + " |")
    print("|---|" + "---|" * len(PLANS))
    hours = [(plan.seen / given.rate + plan.detected / given.teacher_rate) / 3600 for plan in PLANS]
    rows = {
        "GPU hours": [f"{value:,.0f}" for value in hours],
        "the same on 8 GPUs, hours": [f"{value / 8:,.1f}" for value in hours],
        f"money, at {given.price:g} per GPU hour": [f"{value * given.price:,.0f}" for value in hours],
        "photographs on disk, GB": [f"{plan.images * PHOTOGRAPH_KB / 1e6:,.0f}" for plan in PLANS],
        "cached feature maps, one view, GB": [f"{plan.images * MAP_BYTES / 1e9:,.0f}" for plan in PLANS],
        "memory of the index, GiB": [f"{opened['kept beyond, MiB'] * plan.images / 1e6 / 1024:,.1f}" for plan in PLANS],
        "the same while it is read, GiB": [
            f"{opened['peak beyond, MiB'] * plan.images / 1e6 / 1024:,.1f}" for plan in PLANS
        ],
        "100 detections per image, GiB": [f"{plan.detected * 100 * DETECTION_BYTES / 2**30:,.0f}" for plan in PLANS],
    }
    for name, values in rows.items():
        print(f"| {name} | {' | '.join(values)} |")
    print(f"\nCPU cores that decode images for one GPU: {given.rate * DECODED_MS / 1000:.2f}")


if __name__ == "__main__":
    main()
