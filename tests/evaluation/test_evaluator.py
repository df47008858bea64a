"""Average precision of a split equals values derived by hand."""

import pickle

import pytest
import torch

from defeat.evaluation.evaluator import EvaluationResult, Evaluator
from defeat.types import Detections, Target

KEYS = {"AP", "AP50", "AP75", "APs", "APm", "APl", "voc07_ap50", "voc_ap50"}
SQUARE = [10.0, 10.0, 60.0, 60.0]  # area 2500: medium
OTHER = [100.0, 100.0, 150.0, 150.0]
NOWHERE = [200.0, 10.0, 250.0, 60.0]

DetectedBoxes = list[tuple[list[float], float, int]]  # box, score, label
TrueBoxes = list[tuple[list[float], int]]  # box, label


def _detections(detected: DetectedBoxes) -> Detections:
    boxes = torch.tensor([box for box, _, _ in detected]).reshape(-1, 4)
    scores = torch.tensor([score for _, score, _ in detected])
    return Detections(boxes, scores, torch.tensor([label for _, _, label in detected], dtype=torch.int64))


def _target(
    objects: TrueBoxes, image_id: int = 0, difficult: tuple[int, ...] = (), crowd: tuple[int, ...] = ()
) -> Target:
    return Target(
        boxes=torch.tensor([box for box, _ in objects]).reshape(-1, 4),
        labels=torch.tensor([label for _, label in objects], dtype=torch.int64),
        difficult=torch.tensor([index in difficult for index in range(len(objects))], dtype=torch.bool),
        crowd=torch.tensor([index in crowd for index in range(len(objects))], dtype=torch.bool),
        image_id=image_id,
        size=(300, 300),
    )


def _evaluate(*images: tuple[DetectedBoxes, Target], classes: tuple[str, ...] = ("cat", "dog")) -> EvaluationResult:
    evaluator = Evaluator(classes)
    for detected, target in images:
        evaluator.update([_detections(detected)], [target])
    return evaluator.compute()


def _random_images(count: int) -> list[tuple[DetectedBoxes, Target]]:
    """Objects of two classes, detected with an error, with a wrong class or not at all; some scores are equal."""
    generator = torch.Generator().manual_seed(3)
    images = []
    for image_id in range(count):
        corners = 200 * torch.rand(4, 2, generator=generator)
        boxes = torch.cat([corners, corners + 10 + 90 * torch.rand(4, 2, generator=generator)], dim=1)
        labels = torch.randint(2, (4,), generator=generator).tolist()
        moved = boxes + 6 * torch.randn(boxes.shape, generator=generator)
        scores = (torch.randint(1, 6, (4,), generator=generator) / 5).tolist()
        predicted = [label if score > 0.3 else 1 - label for label, score in zip(labels, scores, strict=True)]
        detected = list(zip(moved.tolist(), scores, predicted, strict=True))
        objects = list(zip(boxes.tolist(), labels, strict=True))
        images.append((detected, _target(objects, image_id, difficult=(0,), crowd=(1,))))
    return images


def test_one_of_two_objects_detected() -> None:
    # Recall stops at 0.5 with precision 1. COCO samples recalls 0, 0.01 .. 1: 51 of 101 have precision 1, the rest 0.
    # VOC 2007 samples 0, 0.1 .. 1: 6 of 11. The area under the curve is 0.5. The other class has no object.
    result = _evaluate(([(SQUARE, 0.9, 0)], _target([(SQUARE, 0), (OTHER, 0)])))
    assert set(result.metrics) == KEYS
    for key in ("AP", "AP50", "AP75", "APm"):
        assert result.metrics[key] == pytest.approx(100 * 51 / 101)
    assert result.metrics["voc07_ap50"] == pytest.approx(100 * 6 / 11)
    assert result.metrics["voc_ap50"] == pytest.approx(50.0)
    assert result.metrics["APs"] is None
    assert result.metrics["APl"] is None
    assert result.per_class["cat"]["AP"] == pytest.approx(100 * 51 / 101)
    assert result.per_class["dog"] == {"AP": None, "AP50": None, "voc07_ap50": None, "voc_ap50": None}
    assert (result.images, result.objects) == (1, 2)


def test_a_false_positive_with_a_higher_score_halves_precision() -> None:
    # The false positive comes first, so precision is 1/2 at every recall up to 1.
    result = _evaluate(([(NOWHERE, 0.9, 0), (SQUARE, 0.8, 0)], _target([(SQUARE, 0)])))
    for key in ("AP", "AP50", "voc07_ap50", "voc_ap50"):
        assert result.metrics[key] == pytest.approx(50.0)


def test_a_false_positive_with_a_lower_score_costs_nothing() -> None:
    result = _evaluate(([(NOWHERE, 0.7, 0), (SQUARE, 0.8, 0)], _target([(SQUARE, 0)])))
    assert result.metrics["AP"] == pytest.approx(100.0)
    assert result.metrics["voc_ap50"] == pytest.approx(100.0)


def test_a_second_detection_of_an_object_is_a_false_positive() -> None:
    # Right, wrong (again the first object), right: recall 1/2 at precision 1, recall 1 at precision 2/3.
    # Area: 1/2 * 1 + 1/2 * 2/3 = 5/6.
    detected = [(SQUARE, 0.9, 0), (SQUARE, 0.8, 0), (OTHER, 0.7, 0)]
    result = _evaluate((detected, _target([(SQUARE, 0), (OTHER, 0)])))
    assert result.metrics["voc_ap50"] == pytest.approx(100 * 5 / 6)


def test_an_intersection_over_union_of_exactly_one_half_counts() -> None:
    # Exclusive ends: 10 x 10 inside 10 x 20 is 100 / 200.
    result = _evaluate(([([0.0, 0.0, 10.0, 10.0], 0.9, 0)], _target([([0.0, 0.0, 10.0, 20.0], 0)])))
    assert result.metrics["AP50"] == pytest.approx(100.0)
    assert result.metrics["voc_ap50"] == pytest.approx(100.0)
    assert result.metrics["AP75"] == 0.0
    assert result.metrics["AP"] == pytest.approx(10.0)  # one of ten thresholds


def test_classes_are_evaluated_separately() -> None:
    result = _evaluate(([(SQUARE, 0.9, 0), (OTHER, 0.9, 0)], _target([(SQUARE, 0), (OTHER, 1)])))
    assert result.per_class["cat"]["AP"] == pytest.approx(100.0)
    assert result.per_class["dog"]["AP"] == 0.0
    assert result.metrics["AP"] == pytest.approx(50.0)


@pytest.mark.parametrize("shift", [0.0, 5.0, 10.0])
@pytest.mark.parametrize("times", [1, 2])
def test_a_detection_on_a_difficult_box_changes_nothing(shift: float, times: int) -> None:
    # Shifted by 10 of 50 pixels, the IoU is 40 / 60: below COCO's higher thresholds, and still ignored.
    target = _target([(SQUARE, 0), (OTHER, 0)], difficult=(1,))
    without = _evaluate(([(SQUARE, 0.5, 0)], target))
    on_difficult = [([100.0 + shift, 100.0, 150.0 + shift, 150.0], 0.9, 0)] * times
    assert _evaluate(([*on_difficult, (SQUARE, 0.5, 0)], target)) == without
    assert without.metrics["AP"] == pytest.approx(100.0)
    assert without.objects == 1


def test_a_difficult_box_ignores_detections_of_its_own_class_only() -> None:
    target = _target([(SQUARE, 0), (OTHER, 1)], difficult=(1,))
    result = _evaluate(([(OTHER, 0.9, 0), (SQUARE, 0.5, 0)], target))
    assert result.metrics["AP"] == pytest.approx(50.0)
    assert result.metrics["voc_ap50"] == pytest.approx(50.0)


def test_a_difficult_box_gets_no_detection_of_its_neighbour() -> None:
    # The detection fits the required box better than the difficult one (IoU 50 * 40 / 50^2 = 0.8).
    target = _target([(SQUARE, 0), ([10.0, 10.0, 60.0, 50.0], 0)], difficult=(1,))
    assert _evaluate(([(SQUARE, 0.9, 0)], target)).metrics["AP"] == pytest.approx(100.0)


def test_detections_inside_a_crowd_change_nothing() -> None:
    # COCO's rule for a crowd divides by the detection's area: a small box inside is ignored. VOC has no crowds: there a
    # crowd is a difficult box, so the small box would be a false positive.
    target = _target([(SQUARE, 0), ([100.0, 100.0, 200.0, 200.0], 0)], crowd=(1,))
    result = _evaluate(([(OTHER, 0.9, 0), ([150.0, 150.0, 200.0, 200.0], 0.9, 0), (SQUARE, 0.5, 0)], target))
    assert result.metrics["AP"] == pytest.approx(100.0)
    whole = _evaluate(([([100.0, 100.0, 200.0, 200.0], 0.9, 0), (SQUARE, 0.5, 0)], target))
    assert whole.metrics["AP"] == pytest.approx(100.0)
    assert whole.metrics["voc_ap50"] == pytest.approx(100.0)


def test_only_the_best_hundred_detections_of_an_image_count() -> None:
    wrong: DetectedBoxes = [(NOWHERE, 0.9, 0)] * 100
    result = _evaluate(([*wrong, (SQUARE, 0.5, 0)], _target([(SQUARE, 0)])))
    assert result.metrics["AP"] == 0.0
    assert result.metrics["voc_ap50"] == pytest.approx(100 / 101)  # VOC has no such limit: precision 1 / 101


def test_sizes_are_distinguished_by_area() -> None:
    small, large = [0.0, 0.0, 20.0, 20.0], [100.0, 100.0, 250.0, 250.0]
    result = _evaluate(([(small, 0.9, 0), (SQUARE, 0.9, 1)], _target([(small, 0), (SQUARE, 1), (large, 1)])))
    assert result.metrics["APs"] == pytest.approx(100.0)
    assert result.metrics["APm"] == pytest.approx(100.0)
    assert result.metrics["APl"] == 0.0


def test_the_order_of_images_does_not_matter() -> None:
    images = _random_images(12)
    first, second = _evaluate(*images), _evaluate(*reversed(images))
    assert first == second
    assert first.metrics["AP"] is not None
    assert 1.0 < first.metrics["AP"] < 99.0


@pytest.mark.parametrize("pairs", [1, 16])  # one class at a time; two classes in each of the eight images
def test_many_classes_are_evaluated_in_parts(pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images = _random_images(8)
    images[0][0].append((SQUARE, 0.9, 3))  # a class that is detected, and has no object
    images[1] = ([*images[1][0], (OTHER, 0.7, 4)], _target([(SQUARE, 1), (OTHER, 4)], 1))
    classes = ("cat", "dog", "bird", "horse", "cow")
    whole = _evaluate(*images, classes=classes)
    assert whole.per_class["bird"]["AP"] is None
    assert whole.per_class["cow"]["AP"] == 100.0
    monkeypatch.setattr("defeat.evaluation.average_precision.MOST_PAIRS", pairs)
    assert _evaluate(*images, classes=classes) == whole


def test_merged_processes_give_the_result_of_one_process() -> None:
    images = _random_images(9)
    parts = []
    for part in (images[0::2], images[1::2] + images[:1]):  # a sampler repeats an image to even out the processes
        evaluator = Evaluator(("cat", "dog"))
        evaluator.update([_detections(detected) for detected, _ in part], [target for _, target in part])
        parts.append(pickle.loads(pickle.dumps(evaluator.state())))  # noqa: S301
    assert all(tensor.device.type == "cpu" for part in parts for tensor in part)
    merged = Evaluator(("cat", "dog"))
    merged.merge(parts)
    assert merged.compute() == _evaluate(*images)
    evaluator.merge(parts)  # including its own state
    assert evaluator.compute() == _evaluate(*images)


def test_empty_states_can_be_merged() -> None:
    evaluator = Evaluator(("cat",))
    evaluator.merge([Evaluator(("cat",)).state()])
    assert evaluator.compute().images == 0


def test_an_image_counts_once() -> None:
    image = ([(SQUARE, 0.9, 0)], _target([(SQUARE, 0), (OTHER, 0)]))
    assert _evaluate(image, image) == _evaluate(image)


def test_no_detections_give_zero() -> None:
    result = _evaluate(([], _target([(SQUARE, 0)])))
    assert result.metrics["AP"] == 0.0
    assert result.metrics["voc07_ap50"] == 0.0
    assert result.metrics["voc_ap50"] == 0.0
    assert result.metrics["APl"] is None


@pytest.mark.parametrize("detected", [[], [(SQUARE, 0.9, 0)]])
def test_metrics_without_required_objects_are_none(detected: DetectedBoxes) -> None:
    for target in (_target([]), _target([(SQUARE, 0)], difficult=(0,)), _target([(SQUARE, 0)], crowd=(0,))):
        result = _evaluate((detected, target))
        assert set(result.metrics) == KEYS
        assert set(result.metrics.values()) == {None}
        assert result.objects == 0


def test_metrics_without_images_are_none() -> None:
    assert set(_evaluate().metrics.values()) == {None}


def test_a_result_is_converted_to_plain_dicts() -> None:
    result = _evaluate(([(SQUARE, 0.9, 0)], _target([(SQUARE, 0)])))
    assert result.to_dict() == {
        "metrics": result.metrics,
        "per_class": result.per_class,
        "images": 1,
        "objects": 1,
    }


def test_evaluation_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    _evaluate(*_random_images(2))
    assert capsys.readouterr() == ("", "")


def test_labels_outside_the_classes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"labels in 0\.\.1, found 2\.\.2 in image 0"):
        _evaluate(([(SQUARE, 0.9, 2)], _target([])))
    with pytest.raises(ValueError, match="target labels"):
        _evaluate(([], _target([(SQUARE, -1)])))


def test_unequal_numbers_of_images_are_refused() -> None:
    with pytest.raises(ValueError, match="Expected as many detections as targets, got 1 and 0"):
        Evaluator(("cat",)).update([_detections([])], [])


def test_class_names_must_differ() -> None:
    with pytest.raises(ValueError, match="different class names"):
        Evaluator(("cat", "cat"))
