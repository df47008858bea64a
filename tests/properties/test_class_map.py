"""Class maps: classes are matched by name, and probabilities stay probabilities."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from defeat.distillation.class_map import UNKNOWN, ClassMap, listed, renamed_classes
from defeat.distillation.losses import sigmoid_divergence
from defeat.types import Detections
from tests.distillation.made_up import info
from tests.properties.draws import DTYPES, numbers, properties, shuffled

NAMES = st.sampled_from("abcdefg")
OWN = st.lists(NAMES, min_size=1, max_size=5, unique=True).map(tuple)
THEIRS = st.lists(NAMES, min_size=1, max_size=6).map(tuple)  # several of the teacher's classes may be one of ours


@st.composite
def class_maps(draw):
    """Class maps with at least one shared class."""
    own, theirs = draw(OWN), draw(THEIRS)
    return ClassMap(own, (*theirs, draw(st.sampled_from(own))))


@properties
@given(OWN, THEIRS)
def test_classes_are_matched_if_and_only_if_they_have_the_same_name(own, theirs):
    classes = ClassMap(own, theirs)
    met = [index for indices in classes.pairs.values() for index in indices]
    assert len(met) == len(set(met))
    assert {theirs[index] for index in met} == set(own) & set(theirs)
    for label, indices in classes.pairs.items():
        assert [theirs[index] for index in indices] == [own[label]] * len(indices)
        assert list(indices) == sorted(indices)
    to_student = classes.to_student.tolist()
    assert [index for index, label in enumerate(to_student) if label == UNKNOWN] == [
        index for index in range(len(theirs)) if index not in met
    ]


@properties
@given(OWN)
def test_equal_classes_change_nothing(own):
    same, logits, labels = ClassMap(own, own), torch.randn(3, len(own) + 1), torch.arange(-1, len(own) + 1)
    assert same.student_logits(logits) is logits
    assert same.teacher_logits(logits) is logits
    assert same.labels(labels) is labels
    assert same.describe() == []


@properties
@given(class_maps())
def test_labels_become_indices_among_the_shared_classes_in_their_order(classes):
    count, shared = len(classes.student), len(classes.pairs)
    result = classes.labels(torch.arange(-1, count + 1)).tolist()
    assert result[0] == UNKNOWN
    assert result[-1] == shared  # the background
    kept = [label for label in result[1:-1] if label != UNKNOWN]
    assert kept == list(range(shared))


@properties
@given(class_maps(), st.data())
def test_softmax_probabilities_of_shared_classes_keep_their_ratios_and_add_up_to_one(classes, data):
    logits = data.draw(numbers((3, len(classes.teacher) + 1), 30.0)).double()
    result = classes.teacher_logits(logits).softmax(dim=1)
    given_ = logits.softmax(dim=1)
    columns = [given_[:, list(indices)].sum(dim=1) for indices in classes.pairs.values()]
    expected = torch.stack([*columns, given_[:, -1]], dim=1)
    assert torch.allclose(result, expected / expected.sum(dim=1, keepdim=True), atol=1e-9)


@properties
@given(class_maps(), st.data())
def test_a_merged_class_is_present_where_any_of_its_parts_is(classes, data):
    logits = data.draw(numbers((3, len(classes.teacher)), 30.0)).double()
    result = classes.teacher_logits(logits).sigmoid()
    none = torch.stack(
        [(1 - logits[:, list(labels)].sigmoid()).prod(dim=1) for labels in classes.pairs.values()], dim=1
    )
    assert torch.allclose(result, 1 - none, atol=1e-6)


@properties
@given(class_maps(), st.booleans(), st.data(), DTYPES)
def test_shared_logits_and_their_divergence_are_finite_for_finite_logits(classes, softmax, data, dtype):
    logits = data.draw(numbers((3, len(classes.teacher) + softmax), 1e30, dtype)).float()
    expected = classes.teacher_logits(logits)
    assert expected.isfinite().all()
    assert expected.shape == (3, (len(classes.teacher) if classes.identical else len(classes.pairs)) + softmax)
    assert sigmoid_divergence(torch.zeros_like(expected), expected, 1.0).isfinite().all()


@properties
@given(class_maps(), st.booleans(), st.data())
def test_the_order_of_the_teachers_classes_does_not_matter(classes, softmax, data):
    order = shuffled(data.draw, len(classes.teacher))
    permuted = ClassMap(classes.student, tuple(classes.teacher[index] for index in order))
    logits = data.draw(numbers((2, len(classes.teacher) + softmax), 30.0)).double()
    other = logits[:, [*order, *[len(order)] * softmax]]
    assert permuted.pairs.keys() == classes.pairs.keys()
    original, reordered = classes.teacher_logits(logits), permuted.teacher_logits(other)
    assert torch.allclose(original, reordered, atol=1e-6)


@properties
@given(class_maps(), st.booleans(), st.data())
def test_students_logits_are_those_of_the_shared_classes_in_their_order(classes, softmax, data):
    logits = data.draw(numbers((2, len(classes.student) + softmax), 30.0))
    result = classes.student_logits(logits)
    assert torch.equal(result, logits[:, [*classes.pairs, *[len(classes.student)] * softmax]])


@properties
@given(class_maps(), st.data())
def test_detections_keep_their_order_and_get_labels_of_the_student(classes, data):
    labels = data.draw(st.lists(st.integers(0, len(classes.teacher) - 1), max_size=6))
    scores = torch.linspace(1, 0.1, max(1, len(labels)))[: len(labels)]
    detections = Detections(torch.zeros(len(labels), 4), scores, torch.tensor(labels, dtype=torch.int64))
    result = classes.detections(detections)
    expected = [index for index, label in enumerate(labels) if classes.teacher[label] in classes.student]
    assert torch.equal(result.scores, scores[expected])
    assert [classes.student[label] for label in result.labels] == [classes.teacher[labels[index]] for index in expected]


@properties
@given(OWN, st.lists(NAMES, min_size=1, max_size=6, unique=True), st.data())
def test_only_the_given_names_are_changed(own, theirs, data):
    names = data.draw(st.dictionaries(st.sampled_from(theirs), st.none() | st.sampled_from(own)))
    teacher = info({8: 1}, classes=tuple(theirs))
    result = renamed_classes(teacher, own, names).classes
    for before, after in zip(theirs, result, strict=True):
        assert after == (names[before] or "" if before in names else before)
    assert renamed_classes(teacher, own, {}) == teacher


@properties
@given(st.lists(st.text("xyz", min_size=1, max_size=3), max_size=12), st.integers(1, 6))
def test_a_shortened_list_of_names_ends_with_the_number_of_the_others(names, shown):
    text = listed(names, shown)
    assert text.startswith(", ".join(names[:shown]))
    assert text.endswith(f" and {len(names) - shown} more") == (len(names) > shown)
