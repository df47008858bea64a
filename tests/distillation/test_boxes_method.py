"""The method `boxes`: values derived by hand, matching, and pairs that it refuses."""

import math
from dataclasses import replace

import pytest
import torch

from defeat.distillation import build_method
from defeat.errors import InputError
from defeat.types import Detections, Proposals, Queries
from tests.distillation.made_up import CLASSES, START, boxed, dense, info, output, proposals

NOTHING = {8: torch.zeros(1, 1, 1, 1)}
BOX, LEFT_HALF, FAR = [0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 5.0, 10.0], [40.0, 40.0, 50.0, 50.0]


def student(kind="dense", **changes):
    return info({8: 1}, offers=frozenset({kind}), **changes)


def built(kind="dense", teacher=None, background="none", **options):
    """The method; it learns all boxes of the teacher, whatever is annotated."""
    given = {"unconfirmed": "keep"} | options
    return build_method("boxes", student(kind, background=background), teacher or info({8: 1}), given)


def detected(*rows, **fields):
    """A teacher's output with detections of (box, score, label)."""
    boxes = torch.tensor([row[0] for row in rows]).reshape(-1, 4)
    scores, labels = (torch.tensor([row[column] for row in rows]) for column in (1, 2))
    return replace(output(NOTHING), detections=[Detections(boxes, scores.float(), labels.long())], **fields)


def predicted(*boxes, logits=None):
    corners = torch.tensor(boxes)[None]
    values = torch.zeros(1, len(boxes), 2) if logits is None else torch.tensor([logits])
    return output(NOTHING, dense=dense(values, torch.zeros(1, len(boxes), dtype=torch.int64), corners))


def losses(method, own, teacher):
    return {name: loss.item() for name, loss in method(own, teacher, [boxed()], START).items()}


def test_equal_boxes_and_scores_give_no_loss():
    logit = math.log(3)  # a score of 3/4
    given = losses(built(), predicted(BOX, logits=[[-5.0, logit]]), detected((BOX, 0.75, 1)))
    assert given == {"head_class": pytest.approx(0, abs=1e-6), "head_box": pytest.approx(0, abs=1e-6)}


def test_a_score_of_one_half_for_three_quarters_and_a_box_of_half_the_size():
    # Divergence of (3/4, 1/4) and (1/2, 1/2): 3/4 ln(3/2) + 1/4 ln(1/2). The box has an IoU and a GIoU of 1/2.
    given = losses(built(box_weight=1.0), predicted(LEFT_HALF), detected((BOX, 0.75, 0)))
    assert given["head_class"] == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-4)
    assert given["head_box"] == pytest.approx(0.75 * 0.5)  # over the sum of the scores, at least one


def test_boxes_weigh_by_the_teachers_score_and_low_scores_are_left_out():
    own = predicted(LEFT_HALF, FAR)
    teacher = detected((BOX, 0.6, 0), (FAR, 0.2, 0))
    method = built(class_weight=0.0, box_weight=1.0)
    assert losses(method, own, teacher)["head_box"] == pytest.approx(0.6 * 0.5 / 1.0)  # over at least one
    assert losses(built(class_weight=0.0, box_weight=1.0, least_score=0.7), own, teacher) == {"head_box": 0.0}


def test_predictions_above_the_threshold_and_the_nearest_are_matched():
    method = built(iou_threshold=0.5)
    boxes = torch.tensor([BOX, LEFT_HALF, [0.0, 0.0, 2.0, 10.0], [38.0, 38.0, 45.0, 45.0]])
    index, owner = method._match(boxes, torch.tensor([BOX, FAR]))
    assert index.tolist() == [0, 1, 3]
    assert owner.tolist() == [0, 0, 1]  # the last is below the threshold, and the nearest to the second box


def test_softmax_students_follow_the_score_among_all_classes_and_the_background():
    # Logits (0, ln 2, 0): the score of the second class is 2/4.
    method = built("proposals", background="last", box_weight=0.0)
    rows = proposals([torch.tensor([BOX])], torch.tensor([[0.0, math.log(2), 0.0]]), torch.tensor([1]))
    given = losses(method, output(NOTHING, proposals=rows), detected((BOX, 0.5, 1)))
    assert given["head_class"] == pytest.approx(0, abs=1e-6)


def test_proposals_are_decoded_for_the_class_of_the_box():
    asked = []

    def decode(index, label):
        asked.append((index.tolist(), label.tolist()))
        return torch.tensor([LEFT_HALF] * len(index), requires_grad=True)

    boxes = [torch.tensor([FAR, BOX]), torch.tensor([BOX])]
    rows = Proposals(boxes, torch.zeros(3, dtype=torch.int64), torch.zeros(3, 3), torch.zeros(3, 2, 4), decode)
    own = output({8: torch.zeros(2, 1, 1, 1)}, proposals=rows)
    one = Detections(torch.tensor([BOX]), torch.tensor([0.9]), torch.tensor([1]))
    teacher = replace(output({8: torch.zeros(2, 1, 1, 1)}), detections=[one, one])
    given = built("proposals", background="last")(own, teacher, [boxed(), boxed()], START)
    assert asked == [([1], [1]), ([2], [1])]
    assert given["head_box"].item() == pytest.approx(2 * 0.9 * 2 * 0.5 / 1.8)


def test_queries_of_the_last_layer_are_compared():
    boxes = torch.tensor([[[FAR, FAR]], [[FAR, BOX]]])
    queries = Queries(torch.zeros(2, 1, 2, 2), boxes, (64, 64))
    given = losses(built("queries"), output(NOTHING, queries=queries), detected((BOX, 0.5, 0)))
    assert given == {"head_class": pytest.approx(0, abs=1e-6), "head_box": pytest.approx(0, abs=1e-6)}


def test_boxes_of_a_larger_teacher_are_scaled():
    doubled = [2 * side for side in BOX]
    given = losses(built(class_weight=0.0), predicted(BOX), detected((doubled, 0.5, 0), scale=2.0))
    assert given == {"head_box": pytest.approx(0, abs=1e-6)}


def test_classes_are_matched_by_name_and_unknown_ones_left_out():
    teacher = info({8: 1}, classes=(CLASSES[1], "owl"))
    rows = detected((BOX, 0.75, 0), (BOX, 0.9, 1))
    own = predicted(BOX, logits=[[-5.0, math.log(3)]])
    assert losses(built(teacher=teacher), own, rows)["head_class"] == pytest.approx(0, abs=1e-6)


def test_mistakes_of_the_teacher_are_dropped_in_annotated_images():
    # The first box is that of an object; the second is of another class, the third of no object.
    rows = detected((BOX, 0.9, 0), (BOX, 0.8, 1), (FAR, 0.7, 0))
    method = built(unconfirmed="drop")
    target = boxed(BOX)
    every = torch.tensor([BOX, BOX, FAR])
    labels = torch.tensor([0, 1, 0])
    assert method._usable(every, labels, target).tolist() == [True, False, False]
    assert method._usable(every, labels, boxed()).tolist() == [False] * 3
    assert method._usable(every, labels, replace(target, annotated=False)).all()
    assert built(unconfirmed="keep")._usable(every, labels, target).all()
    given = method(predicted(LEFT_HALF, FAR), rows, [target], START)
    assert given["head_box"].item() == pytest.approx(2 * 0.9 * 0.5 / 1)  # over the sum of the scores, at least one


def test_without_detections_there_is_nothing_to_learn():
    assert losses(built(), predicted(BOX), detected()) == {"head_class": 0.0, "head_box": 0.0}


@pytest.mark.parametrize(
    ("kind", "teacher", "options", "message"),
    [
        ("neck", info({8: 1}), {}, "needs a student with proposals, queries or anchors"),
        ("dense", info({8: 1}, classes=("owl",)), {}, "needs a class that both detectors know"),
        ("dense", info({8: 1}), {"least_score": 2.0}, "least_score must be between 0 and 1"),
        ("dense", info({8: 1}), {"iou_threshold": -0.1}, "iou_threshold must be between 0 and 1"),
        ("dense", info({8: 1}), {"unconfirmed": "kept"}, "Did you mean 'keep'"),
    ],
)
def test_invalid_pairs_and_options_are_refused(kind, teacher, options, message):
    with pytest.raises(InputError, match=message):
        built(kind, teacher, **options)
