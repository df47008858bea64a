"""COCO average precision equals that of pycocotools on real annotations."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from defeat.evaluation.evaluator import Evaluator
from defeat.types import Detections, Target
from tests.shared_data import shared_folder

KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


@dataclass
class Split:
    """Annotations in both forms: COCO's dicts, and targets with labels 0..K-1."""

    annotations: dict[str, Any]
    names: list[str]
    label_of: dict[int, int]
    targets: list[Target]


@pytest.fixture(scope="module")
def split() -> Split:
    folder = shared_folder("DEFEAT_DATA", "../shared/data") / "coco-mini"
    annotations = json.loads((folder / "annotations" / "instances_val2017.json").read_text())
    for annotation in annotations["annotations"]:
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]  # an object's area is that of its box
    categories = sorted(annotations["categories"], key=lambda category: category["id"])
    label_of = {category["id"]: label for label, category in enumerate(categories)}
    targets = [_target(image, annotations["annotations"], label_of) for image in annotations["images"]]
    return Split(annotations, [category["name"] for category in categories], label_of, targets)


def _target(image: dict[str, Any], annotations: list[dict[str, Any]], label_of: dict[int, int]) -> Target:
    of_image = [annotation for annotation in annotations if annotation["image_id"] == image["id"]]
    boxes = torch.tensor([annotation["bbox"] for annotation in of_image], dtype=torch.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return Target(
        boxes=boxes,
        labels=torch.tensor([label_of[annotation["category_id"]] for annotation in of_image], dtype=torch.int64),
        difficult=torch.zeros(len(of_image), dtype=torch.bool),
        crowd=torch.tensor([annotation["iscrowd"] for annotation in of_image], dtype=torch.bool),
        image_id=image["id"],
        size=(image["height"], image["width"]),
    )


def _random_detections(target: Target, generator: torch.Generator, classes: int) -> Detections:
    """Jittered copies of the annotated boxes, some with a wrong class, and random boxes."""
    copies = target.boxes.float().repeat(3, 1)
    sides = (copies[:, 2:] - copies[:, :2]).repeat(1, 2)
    jittered = copies + 0.12 * sides * torch.randn(copies.shape, generator=generator)
    labels = target.labels.repeat(3)
    wrong = torch.rand(len(labels), generator=generator) < 0.2
    labels[wrong] = torch.randint(classes, (int(wrong.sum()),), generator=generator)
    corners = 200 * torch.rand(20, 2, generator=generator)
    random_boxes = torch.cat([corners, corners + 5 + 200 * torch.rand(20, 2, generator=generator)], dim=1)
    boxes = torch.cat([jittered, random_boxes])
    labels = torch.cat([labels, torch.randint(classes, (20,), generator=generator)])
    keep = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    scores = torch.rand(len(boxes), generator=generator)
    return Detections(boxes[keep], scores[keep], labels[keep])


def _perfect_detections(target: Target) -> Detections:
    return Detections(target.boxes.float(), torch.ones(len(target.boxes)), target.labels)


def _pycocotools(split: Split, detections: list[Detections]) -> list[float]:
    category_of = {label: category for category, label in split.label_of.items()}
    results = []
    for target, of_image in zip(split.targets, detections, strict=True):
        boxes = of_image.boxes.double()
        boxes[:, 2:] -= boxes[:, :2]
        for box, score, label in zip(boxes.tolist(), of_image.scores.tolist(), of_image.labels.tolist(), strict=True):
            category = category_of[label]
            results.append({"image_id": target.image_id, "category_id": category, "bbox": box, "score": score})
    truth = COCO()
    truth.dataset = split.annotations
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return [float(value) for value in np.asarray(evaluation.stats)[:6]]


def _defeat(split: Split, detections: list[Detections]) -> list[float | None]:
    evaluator = Evaluator(split.names)
    evaluator.update(detections, split.targets)
    metrics = evaluator.compute().metrics
    return [metrics[key] for key in KEYS]


@pytest.mark.real
@pytest.mark.parametrize("seed", [0, 1])
def test_metrics_of_random_detections_equal_pycocotools(split: Split, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    detections = [_random_detections(target, generator, len(split.names)) for target in split.targets]
    expected = _pycocotools(split, detections)
    assert 0.05 < expected[0] < 0.9  # an informative case, not a saturated one
    assert _defeat(split, detections) == pytest.approx([100 * value for value in expected], abs=1e-6)


@pytest.mark.real
def test_metrics_of_perfect_detections_equal_pycocotools(split: Split) -> None:
    detections = [_perfect_detections(target) for target in split.targets]
    expected = _pycocotools(split, detections)
    assert _defeat(split, detections) == pytest.approx([100 * value for value in expected], abs=1e-6)
    assert expected[0] == pytest.approx(1.0)


@pytest.mark.real
def test_the_annotations_contain_crowds_and_objects_of_every_size(split: Split) -> None:
    assert any(target.crowd.any() for target in split.targets)
    areas = torch.tensor([annotation["area"] for annotation in split.annotations["annotations"]])
    assert (areas < 32**2).any()
    assert ((areas > 32**2) & (areas < 96**2)).any()
    assert (areas > 96**2).any()
