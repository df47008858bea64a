"""Error types, by hand and against the reference implementation."""

import os
import sys
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from defeat.evaluation.average_precision import Scene, coco_average_precision
from defeat.evaluation.mistakes import KINDS, count_errors, find_mistakes
from defeat.types import Detections, Target

CAT, DOG = 0, 1
HERE, THERE = [0.0, 0.0, 100.0, 100.0], [200.0, 200.0, 300.0, 300.0]


def scene(detected, objects, image_id=0, difficult=False):
    boxes = torch.tensor([box for box, _, _ in detected]).reshape(-1, 4)
    scores, labels = torch.tensor([score for _, score, _ in detected]), torch.tensor([label for *_, label in detected])
    true_boxes = torch.tensor([box for box, _ in objects]).reshape(-1, 4)
    true_labels = torch.tensor([label for _, label in objects]).long()
    crowd, flags = torch.zeros(len(objects), dtype=torch.bool), torch.full((len(objects),), difficult)
    target = Target(true_boxes, true_labels, flags, crowd, image_id, (400, 400))
    return Scene.from_image(Detections(boxes, scores.float(), labels.long()), target)


def shifted(box, fraction):
    """The box moved to the right by a fraction of its width: IoU (1 - fraction) / (1 + fraction)."""
    width = box[2] - box[0]
    return [box[0] + fraction * width, box[1], box[2] + fraction * width, box[3]]


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ((HERE, 0.8, DOG), "classification"),
        ((shifted(HERE, 0.5), 0.8, CAT), "localisation"),  # IoU 1/3
        ((shifted(HERE, 0.5), 0.8, DOG), "both"),
        ((shifted(HERE, 0.1), 0.7, CAT), "duplicate"),
        ((THERE, 0.8, CAT), "background"),
    ],
)
def test_each_error_type_by_hand(wrong, kind):
    right = [(HERE, 0.75, CAT)] if kind == "duplicate" else []
    mistakes = find_mistakes([scene([wrong, *right], [(HERE, CAT)])], 2)
    missed = int(kind in ("both", "background"))
    assert mistakes.count == dict.fromkeys(KINDS, 0) | {kind: 1, "missed": missed}


def test_costs_by_hand():
    # Two cats. The better detection classifies one as a dog, the next detects the other: precision 1 up to recall 1/2,
    # which 51 of the 101 recalls reach. With the right class both are detected: AP 100. Without the other cat: also
    # AP 100, but that one could be detected by a correction, so it is not missed.
    mistakes = find_mistakes([scene([(HERE, 0.9, DOG), (THERE, 0.8, CAT)], [(HERE, CAT), (THERE, CAT)])], 2)
    assert mistakes.ap50 == pytest.approx(100 * 51 / 101)
    assert mistakes.cost["classification"] == pytest.approx(100 * 50 / 101)
    assert mistakes.cost["missed"] == mistakes.cost["background"] == 0


def test_an_object_without_detections_is_missed_and_costs_its_recall():
    mistakes = find_mistakes([scene([(HERE, 0.9, CAT)], [(HERE, CAT), (THERE, CAT)])], 1)
    assert mistakes.count["missed"] == 1
    assert mistakes.cost["missed"] == pytest.approx(100 * 50 / 101)


def test_difficult_objects_are_no_errors():
    mistakes = find_mistakes([scene([(HERE, 0.9, CAT)], [(HERE, CAT)], difficult=True)], 1)
    assert mistakes.ap50 is None
    assert sum(mistakes.count.values()) == 0


def test_no_images_give_no_ap():
    assert find_mistakes([], 3).ap50 is None


@pytest.fixture(scope="module")
def random_scenes():
    generator = torch.Generator().manual_seed(0)
    scenes = []
    for image in range(60):
        count = int(torch.randint(1, 6, (1,), generator=generator))
        corners = 250 * torch.rand(count, 2, generator=generator)
        boxes = torch.cat([corners, corners + 20 + 120 * torch.rand(count, 2, generator=generator)], dim=1)
        labels = torch.randint(4, (count,), generator=generator)
        moved = boxes.repeat(4, 1) + 18 * torch.randn(4 * count, 4, generator=generator)
        far = torch.rand(4 * count, generator=generator) < 0.2
        moved[far] = moved[far].roll(1, 0) + 90
        keep = (moved[:, 2:] > moved[:, :2] + 1).all(dim=1)
        predicted = torch.where(torch.rand(4 * count, generator=generator) < 0.7, labels.repeat(4), 3)
        scores = torch.rand(4 * count, generator=generator)
        order = scores[keep].argsort(descending=True)
        detections = Detections(moved[keep][order], scores[keep][order], predicted[keep][order])
        none = torch.zeros(count, dtype=torch.bool)
        scenes.append(Scene.from_image(detections, Target(boxes, labels, none, none, image, (400, 400))))
    return scenes


def test_the_base_is_the_ap50_of_the_evaluation(random_scenes):
    ap50 = coco_average_precision(random_scenes, 4).overall["AP50"]
    assert find_mistakes(random_scenes, 4).ap50 == pytest.approx(100 * ap50, abs=1e-9)


@pytest.fixture
def reference(monkeypatch):
    """The package of TIDE's authors, without the packages that its plots need."""
    for name in ("cv2", "pandas", "seaborn", "appdirs", "matplotlib", "matplotlib.lines", "matplotlib.pyplot"):
        monkeypatch.setitem(sys.modules, name, MagicMock())
    if os.environ.get("CI") != "true":
        pytest.importorskip("tidecv", reason="pip install --no-deps tidecv")
    import tidecv

    return tidecv


def as_reference(reference, scenes):
    truth, detections = reference.Data("truth"), reference.Data("detections")
    for scene in scenes:
        for box, label in zip(scene.true_boxes.tolist(), scene.true_labels.tolist(), strict=True):
            truth.add_ground_truth(scene.image_id, label, [*box[:2], box[2] - box[0], box[3] - box[1]])
        for box, label, score in zip(scene.boxes.tolist(), scene.labels.tolist(), scene.scores.tolist(), strict=True):
            detections.add_detection(scene.image_id, label, score, [*box[:2], box[2] - box[0], box[3] - box[1]])
    return truth, detections


@pytest.mark.slow  # only CI installs the package
def test_mistakes_equal_those_of_the_reference_implementation(reference, random_scenes, monkeypatch):
    # It divides 0 .. 100 by 100, where COCO's tools space 101 recalls evenly: a last bit decides ties.
    monkeypatch.setattr("defeat.evaluation.matching.RECALLS", np.arange(101) / 100)
    run = reference.TIDE().evaluate(*as_reference(reference, random_scenes), mode=reference.TIDE.BOX)
    names = dict(zip(("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss"), KINDS, strict=True))
    cost = {names[kind.short_name]: value for kind, value in run.fix_main_errors().items()}
    count = {names[kind.short_name]: value for kind, value in run.count_errors().items()}
    mistakes = find_mistakes(random_scenes, 4)
    assert mistakes.ap50 == pytest.approx(run.ap, abs=1e-9)
    assert mistakes.count == count
    assert all(count.values()), count  # each type occurs
    assert mistakes.cost == pytest.approx(cost, abs=1e-9)
    assert np.count_nonzero(list(cost.values())) >= 5


def test_errors_of_an_image_by_hand():
    detected = [
        (HERE, 0.9, CAT),
        (shifted(HERE, 0.1), 0.8, CAT),
        (THERE, 0.7, CAT),
        ([350.0, 0.0, 390.0, 40.0], 0.2, DOG),
    ]
    image = scene(detected, [(HERE, CAT), (THERE, DOG), ([300.0, 0.0, 330.0, 40.0], DOG)])
    expected = {("duplicate", CAT): 1, ("classification", CAT): 1, ("missed", DOG): 2}
    assert count_errors(image, 0.5) == expected
    assert count_errors(image, 0.1) == expected | {("background", DOG): 1}
    assert count_errors(image, 1.0) == {("missed", CAT): 1, ("missed", DOG): 2}
