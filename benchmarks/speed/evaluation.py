"""Measure the time of AP on many images, compared with pycocotools and, where installed, faster-coco-eval.

    python -m benchmarks.speed.evaluation [--images 5000] [--detections 100] [--classes 80] [--repeats 3] [--out FILE]

The timing includes everything from detections in memory to COCO's twelve metrics; ours also computes two VOC metrics.
"""

import argparse
import contextlib
import io
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmarks.measure import interleaved, publish
from defeat.evaluation.evaluator import Evaluator
from defeat.types import Detections, Target

BOXES = 7  # annotated objects per image, as in COCO
SIDE = 640


def split(images: int, detections: int, classes: int) -> tuple[list[Detections], list[Target]]:
    """Images with boxes: each object is detected several times with noise, and there are random false detections."""
    generator = torch.Generator().manual_seed(0)
    all_detections: list[Detections] = []
    targets: list[Target] = []
    for number in range(images):
        boxes = _boxes(BOXES, generator)
        labels = torch.randint(classes, (BOXES,), generator=generator)
        copies = min(detections // BOXES // 2, 4)
        noisy = boxes.repeat(copies, 1) + 8 * torch.randn(BOXES * copies, 4, generator=generator)
        false = _boxes(detections - len(noisy), generator)
        false_labels = torch.randint(classes, (len(false),), generator=generator)
        detected = torch.cat([noisy, false])
        detected[:, 2:] = torch.maximum(detected[:, 2:], detected[:, :2] + 1)
        scores = torch.rand(len(detected), generator=generator)
        all_detections.append(Detections(detected, scores, torch.cat([labels.repeat(copies), false_labels])))
        flags = torch.zeros(BOXES, dtype=torch.bool)
        targets.append(Target(boxes, labels, flags, flags, number, (SIDE, SIDE)))
    return all_detections, targets


def _boxes(count: int, generator: torch.Generator) -> torch.Tensor:
    corner = SIDE * 0.8 * torch.rand(count, 2, generator=generator)
    side = 8 * 2 ** (4.5 * torch.rand(count, 2, generator=generator))
    return torch.cat([corner, (corner + side).clamp(max=SIDE)], dim=1)


def ours(detections: list[Detections], targets: list[Target], classes: int) -> Callable[[], float | None]:
    """Our evaluation: COCO's AP in percent."""
    names = [str(label) for label in range(classes)]

    def evaluation() -> float | None:
        evaluator = Evaluator(names)
        evaluator.update(detections, targets)
        return evaluator.compute().metrics["AP"]

    return evaluation


def theirs(
    coco: Any, evaluator: Any, detections: list[Detections], targets: list[Target], classes: int
) -> Callable[[], float]:
    """Evaluation with the interface of pycocotools: AP in percent."""
    content = {
        "images": [{"id": target.image_id, "height": SIDE, "width": SIDE} for target in targets],
        "categories": [{"id": label, "name": str(label)} for label in range(classes)],
        "annotations": _annotations(targets),
    }
    rows = [
        [target.image_id, x1, y1, x2 - x1, y2 - y1, score, label]
        for target, found in zip(targets, detections, strict=True)
        for (x1, y1, x2, y2), score, label in zip(
            found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
        )
    ]
    results = [{"image_id": row[0], "bbox": row[1:5], "score": row[5], "category_id": row[6]} for row in rows]

    def evaluation() -> float:
        with contextlib.redirect_stdout(io.StringIO()):
            ground_truth = coco()
            ground_truth.dataset = content
            ground_truth.createIndex()
            run = evaluator(ground_truth, ground_truth.loadRes([dict(result) for result in results]), "bbox")
            run.evaluate()
            run.accumulate()
            run.summarize()
        return 100 * float(run.stats[0])

    return evaluation


def _annotations(targets: list[Target]) -> list[dict[str, Any]]:
    annotations: list[dict[str, Any]] = []
    for target in targets:
        for (x1, y1, x2, y2), label in zip(target.boxes.tolist(), target.labels.tolist(), strict=True):
            box = [x1, y1, x2 - x1, y2 - y1]
            area, number = box[2] * box[3], len(annotations) + 1
            annotations.append(
                {
                    "id": number,
                    "image_id": target.image_id,
                    "category_id": label,
                    "bbox": box,
                    "area": area,
                    "iscrowd": 0,
                }
            )
    return annotations


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100, help="detections per image")
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    given = parser.parse_args()
    torch.set_num_threads(1)
    detections, targets = split(given.images, given.detections, given.classes)
    evaluations: dict[str, Callable[[], Any]] = {
        "defeat": ours(detections, targets, given.classes),
        "pycocotools": theirs(COCO, COCOeval, detections, targets, given.classes),
    }
    if find_spec("faster_coco_eval"):
        from faster_coco_eval import COCO as FasterCOCO  # noqa: N811
        from faster_coco_eval import COCOeval_faster

        evaluations["faster-coco-eval"] = theirs(FasterCOCO, COCOeval_faster, detections, targets, given.classes)
    precision = {name: round(evaluate(), 3) for name, evaluate in evaluations.items()}
    times = {name: round(value / 1000, 2) for name, value in interleaved(evaluations, given.repeats).items()}
    shares = {f"{name} : pycocotools": round(value / times["pycocotools"], 3) for name, value in times.items()}
    del shares["pycocotools : pycocotools"]
    work = {name: value for name, value in vars(given).items() if name != "out"}
    publish({"AP": precision, "seconds": times, "ratios": shares}, work, given.out)


if __name__ == "__main__":
    main()
