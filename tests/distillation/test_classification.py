"""Which class predictions count, and how they are compared, by hand."""

import math
from dataclasses import replace

import pytest
import torch

from defeat.distillation.classification import GROUPS, ClassImitation, ClassTerm, Predictions
from defeat.distillation.losses import balanced_cross_entropy
from defeat.distillation.methods.classification import Classification
from defeat.errors import InputError
from tests.distillation.made_up import START, boxed, dense, info, output, proposals

TWO_STAGE = info({8: 1}, offers=frozenset({"proposals"}), activation="softmax", background="last")
MAPS = {8: torch.zeros(1, 1, 8, 8)}


def softmax(labels, teacher):
    """Predictions of a student with uniform probabilities, two classes and background."""
    teacher = torch.tensor(teacher, dtype=torch.float32)
    return Predictions(torch.zeros_like(teacher), teacher, torch.tensor(labels), classes=2)


SURE = [[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0], [9.0, 0.0, 0.0], [0.0, 0.0, 9.0]]
LABELS = [0, 0, 2, 2, -1]  # correct, wrong class, background, background predicted as an object, undecided


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ("positive", [1, 1, 0, 0, 0]),
        ("negative", [0, 0, 1, 1, 0]),
        ("all", [1, 1, 1, 1, 0]),
        ("teacher_correct", [1, 0, 1, 0, 0]),
        ("positive_teacher_correct", [1, 0, 0, 0, 0]),
    ],
)
def test_groups_of_proposals(group, expected):
    assert GROUPS[group](softmax(LABELS, SURE)).int().tolist() == expected


def test_with_sigmoid_a_teacher_predicts_background_where_no_class_reaches_one_half():
    teacher = torch.tensor([[2.0, 1.0], [-1.0, 0.5], [-0.5, -3.0]])
    predictions = Predictions(torch.zeros(3, 2), teacher, torch.tensor([0, 0, 2]), classes=2)
    assert predictions.teacher_labels().tolist() == [0, 1, 2]
    assert GROUPS["teacher_correct"](predictions).tolist() == [True, False, True]
    assert GROUPS["positive_teacher_correct"](predictions).tolist() == [True, False, False]


def test_an_empty_group_gives_zero_with_a_gradient_of_zero():
    predictions = softmax([2, 2], [[9.0, 0.0, 0.0], [0.0, 9.0, 0.0]])
    student = predictions.student.requires_grad_()
    loss = ClassTerm(1.0, "positive")(replace(predictions, student=student))
    loss.backward()
    assert loss.item() == 0
    assert student.grad.abs().sum() == 0


def test_cross_entropy_of_softmax_outputs_by_hand():
    # The student gives 1/2, 1/2; the teacher 3/4, 1/4. Both columns cost ln 2 for any teacher; times ten.
    predictions = Predictions(torch.zeros(1, 2), torch.tensor([[math.log(3), 0.0]]), torch.tensor([0]), classes=1)
    assert ClassTerm(3.0, "positive", "bce")(predictions).item() == pytest.approx(3 * 10 * math.log(2))


def test_cross_entropy_is_minimal_where_both_agree():
    logits = torch.tensor([[1.0, -0.5, 0.3]])
    for student in (logits.clone(), logits[:, :2].clone()):
        student.requires_grad_()
        predictions = Predictions(student, student.detach(), torch.tensor([0]), classes=2)
        ClassTerm(1.0, "all", "bce")(predictions).backward()
        assert student.grad.abs().max() < 1e-6


@pytest.mark.parametrize("columns", [3, 2])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_gradient_of_a_divergence_is_bounded_at_any_distance(columns, temperature):
    generator = torch.Generator().manual_seed(0)
    student = (1000 * torch.randn(5, columns, generator=generator)).requires_grad_()
    teacher = 1000 * torch.randn(5, columns, generator=generator)
    predictions = Predictions(student, teacher, torch.tensor([0, 1, 0, 1, 0]), classes=2)
    loss = ClassTerm(3.0, "positive", temperature=temperature)(predictions)
    loss.backward()
    assert loss.item() > 100
    # Of each of the 5 predictions: weight x temperature x |q - p| / 5, and |q - p| is at most 1 for each logit.
    assert student.grad.abs().max() <= 3 * temperature / 5 + 1e-6
    assert student.grad.abs().max() > 0.9 * 3 * temperature / 5


def scorer(calls, logits):
    def score(boxes):
        calls.append(boxes)
        return torch.full((sum(map(len, boxes)), 3), 0.0) + torch.tensor(logits)

    return score


@pytest.mark.parametrize(
    ("source", "names", "calls_of_student", "calls_of_teacher"),
    [
        ("teacher", ["head_all"], 1, 0),
        ("student", ["head_all"], 0, 1),
        ("both", ["head_all", "head_all_student"], 1, 1),
    ],
)
def test_each_detector_scores_the_others_proposals(source, names, calls_of_student, calls_of_teacher):
    scored_by_student, scored_by_teacher = [], []
    student_boxes, teacher_boxes = [torch.tensor([[0.0, 0.0, 8.0, 8.0]])], [torch.tensor([[8.0, 8.0, 24.0, 24.0]] * 2)]
    student = output(
        MAPS,
        proposals=proposals(student_boxes, torch.zeros(1, 3), torch.tensor([0])),
        score_proposals=scorer(scored_by_student, [0.0, 0.0, 0.0]),
    )
    teacher = output(
        MAPS,
        scale=2.0,
        proposals=proposals(teacher_boxes, torch.tensor([[3.0, 0.0, 0.0]] * 2), torch.tensor([0, 2])),
        score_proposals=scorer(scored_by_teacher, [0.0, 3.0, 0.0]),
    )
    losses = ClassImitation(TWO_STAGE, TWO_STAGE, {"all": ClassTerm(1.0, "all")}, source)(student, teacher)
    assert list(losses) == names
    assert (len(scored_by_student), len(scored_by_teacher)) == (calls_of_student, calls_of_teacher)
    # The teacher's batch is twice as large: boxes are halved for the student and doubled for the teacher.
    assert all(torch.equal(boxes[0], teacher_boxes[0] / 2) for boxes in scored_by_student)
    assert all(torch.equal(boxes[0], student_boxes[0] * 2) for boxes in scored_by_teacher)
    assert all(loss > 0.5 for loss in losses.values())


def test_the_method_compares_anchors_of_one_stage_detectors():
    one_stage = info({8: 1}, offers=frozenset({"dense"}), anchors="the same")
    labels = torch.tensor([[0, 2, -1]])
    teacher_logits = torch.zeros(1, 3, 2)
    teacher_logits[0, 0, 0] = math.log(3)
    student, teacher = (output(MAPS, dense=dense(logits, labels)) for logits in (torch.zeros(1, 3, 2), teacher_logits))
    built = Classification(one_stage, one_stage, class_weight=6.0, warmup=0.0)
    # KL of one Bernoulli variable (3/4 from 1/2) and of an equal one, averaged over the two decided anchors.
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    losses = built(student, teacher, [boxed()], START)
    assert losses["head_all"].item() == pytest.approx(6 * divergence / 2)


def test_the_method_refuses_a_pair_that_it_cannot_compare():
    with pytest.raises(InputError, match=r"can't be distilled by its class predictions: they share neither"):
        Classification(TWO_STAGE, info({8: 1}, offers=frozenset({"dense"}), anchors="some"))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"group": "positives"}, "Did you mean 'positive'"),
        ({"comparison": "kld"}, "Did you mean 'kl'"),
        ({"proposals": "teachers"}, "Did you mean 'teacher'"),
        ({"temperature": 0.0}, "Temperatures must be above 0"),
        ({"decay": "linaer"}, "Did you mean 'linear'"),
        ({"class_weight": -1.0}, "class_weight must be 0 or more"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, expected):
    with pytest.raises(InputError) as caught:
        Classification(TWO_STAGE, TWO_STAGE, **options)
    assert expected in str(caught.value)


def test_averaged_over_all_two_terms_have_the_gradient_of_a_detectors_own_loss():
    torch.manual_seed(0)
    student, teacher, labels = (
        torch.randn(12, 4, requires_grad=True),
        torch.randn(12, 4),
        torch.tensor([0, 1, 2, 3] * 3),
    )
    labels[-1] = -1
    terms = [ClassTerm(1.0, group, average="all") for group in ("positive", "negative")]
    sum(term(Predictions(student, teacher, labels, 3)) for term in terms).backward()
    decided = labels >= 0
    # The gradient of a cross entropy with soft labels, averaged over the eleven decided predictions.
    expected = (student.detach().softmax(1) - teacher.softmax(1)) / 11 * decided[:, None]
    assert torch.allclose(student.grad, expected, atol=1e-6)
    with pytest.raises(InputError, match="average"):
        ClassTerm(1.0, "all", average="some")


def test_balanced_cross_entropy_is_weighted_by_the_distance_of_the_scores():
    # Student 1/2, teacher 3/4 (logit ln 3): BCE is ln 2 for any target, the distance 1/4.
    loss = balanced_cross_entropy(torch.zeros(1, 1), torch.tensor([[math.log(3)]]))
    assert loss.item() == pytest.approx(math.log(2) / 4)
    logits = torch.randn(5, 3)
    assert balanced_cross_entropy(logits, logits).tolist() == [0.0] * 5


def test_the_factor_of_balanced_cross_entropy_has_no_gradient():
    student = torch.zeros(1, 1, requires_grad=True)
    balanced_cross_entropy(student, torch.tensor([[math.log(3)]])).sum().backward()
    # The gradient of BCE, 1/2 - 3/4, times the distance of 1/4.
    assert student.grad.item() == pytest.approx(-1 / 16)


def test_softmax_predictions_use_the_divergence_where_balanced_is_selected():
    predictions = softmax(LABELS, SURE)
    balanced, plain = (ClassTerm(1.0, "all", comparison)(predictions) for comparison in ("balanced", "kl"))
    assert balanced.item() == plain.item() > 0
