"""Several teachers as one: outputs, merged detections, and what is refused."""

import pytest
import torch

from defeat.detector import TeacherEnsemble, first_of
from defeat.detector.boxes import BoxFunction, PredictedBoxes
from defeat.detector.frozen import frozen
from defeat.detector.teacher import can_predict, gives_maps
from defeat.errors import InputError
from defeat.types import Detections
from tests.detector.tiny import images, tiny_batch, tiny_detector

BOX, NEAR, FAR = [0.0, 0.0, 20.0, 20.0], [1.0, 0.0, 21.0, 20.0], [40.0, 40.0, 60.0, 60.0]


def detects(*rows, classes=("cat", "dog")):
    """A detector that detects given (box, score, label) in every image."""
    detector = tiny_detector("retinanet", classes=classes).eval()
    boxes = torch.tensor([row[0] for row in rows]).reshape(-1, 4)
    scores, labels = torch.tensor([row[1] for row in rows]), torch.tensor([row[2] for row in rows], dtype=torch.int64)
    detector.predict = lambda given: [Detections(boxes, scores, labels) for _ in given]
    return detector


def merged(*members):
    (found,) = TeacherEnsemble(members).predict(images((64, 64)))
    return [
        (tuple(box), round(score, 3), label)
        for box, score, label in zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
    ]


def test_classes_are_those_of_all_and_labels_follow_their_names():
    cars, people = detects((BOX, 0.5, 0), classes=("car", "bus")), detects((FAR, 0.9, 1), classes=("bus", "person"))
    assert TeacherEnsemble([cars, people]).info.classes == ("car", "bus", "person")
    assert merged(cars, people) == [(tuple(FAR), 0.9, 2), (tuple(BOX), 0.5, 0)]


def test_of_two_detections_of_an_object_the_one_with_the_higher_score_stays():
    assert merged(detects((BOX, 0.5, 0)), detects((NEAR, 0.9, 0), (FAR, 0.4, 0))) == [
        (tuple(NEAR), 0.9, 0),
        (tuple(FAR), 0.4, 0),
    ]
    # Of another class, it is another object.
    assert len(merged(detects((BOX, 0.5, 0)), detects((NEAR, 0.9, 1)))) == 2


def test_a_teacher_alone_with_a_class_keeps_its_choice():
    assert len(merged(detects((BOX, 0.5, 0), (NEAR, 0.4, 0)), detects((FAR, 0.9, 1)))) == 3
    # Also where another one knows the class, and detects another object.
    assert len(merged(detects((BOX, 0.5, 0), (NEAR, 0.4, 0)), detects((FAR, 0.9, 0)))) == 3
    assert len(merged(detects((BOX, 0.5, 0)), detects((BOX, 0.5, 0)))) == 1


def test_every_teacher_sees_the_batch_in_its_own_size():
    student = tiny_detector("retinanet")
    first, second = tiny_detector("retinanet", seed=1), tiny_detector("faster_rcnn", size=128, max_size=192)
    ensemble = frozen(TeacherEnsemble([first, second]))
    batch = tiny_batch(student.train())
    output = ensemble.forward_teacher(ensemble.adopt(batch), {"neck"})
    alone = [frozen(member) for member in (first, second)]
    expected = [member.forward_teacher(member.adopt(batch), {"neck"}) for member in alone]
    assert [member.scale for member in output.members] == [1.0, 2.0]
    for given, other in zip(output.members, expected, strict=True):
        assert all(torch.equal(given.neck[stride], other.neck[stride]) for stride in other.neck)
    assert all(torch.equal(output.neck[stride], expected[0].neck[stride]) for stride in output.neck)


def test_it_is_frozen_predicts_and_has_no_maps_of_its_own():
    ensemble = frozen(TeacherEnsemble([tiny_detector("retinanet"), tiny_detector("fcos")]))
    assert not any(weight.requires_grad for weight in ensemble.parameters())
    assert not ensemble.training
    assert can_predict(ensemble)
    assert not gives_maps(ensemble)
    assert first_of(ensemble) is ensemble.members[0]
    assert first_of(ensemble.members[1]) is ensemble.members[1]


def test_one_teacher_and_teachers_without_maps_are_refused():
    with pytest.raises(InputError, match="two or more"):
        TeacherEnsemble([tiny_detector("retinanet")])
    boxes = PredictedBoxes(BoxFunction(lambda given: [], classes=["cat"]))
    with pytest.raises(InputError, match="must all have feature maps"):
        TeacherEnsemble([tiny_detector("retinanet"), boxes])
