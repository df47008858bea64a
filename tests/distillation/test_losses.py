"""The arithmetic of the losses: values derived by hand, and limits in which they become known losses."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from defeat.distillation import differences
from defeat.distillation.differences import (
    absolute_difference,
    divisive_difference,
    squared_difference,
    standardise,
    standardised_difference,
)
from defeat.distillation.losses import masked_mean, region_mean, sigmoid_divergence, softmax_divergence


def test_squared_difference_sums_over_channels():
    student, teacher = torch.zeros(1, 2, 1, 2), torch.tensor([[[[1.0, 2.0]], [[3.0, 0.0]]]])
    # 1 + 9 in the first cell, 4 + 0 in the second.
    assert squared_difference(student, teacher).tolist() == [[[10.0, 4.0]]]


def test_region_mean_is_the_sum_over_twice_the_elements():
    per_cell = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]])
    region = torch.tensor([[[True, False], [False, True]], [[False, False], [True, False]]])
    # (1 + 4 + 7) / (2 * 3 cells * 5 channels), over the batch as a whole and not image by image.
    assert region_mean(per_cell, region, channels=5).item() == pytest.approx(12 / 30)


def test_region_mean_over_everything_is_half_the_mean_squared_error():
    # The limit: one region that covers the batch makes it F.mse_loss / 2, gradient included.
    student, teacher = torch.randn(2, 3, 4, 5, requires_grad=True), torch.randn(2, 3, 4, 5)
    loss = region_mean(squared_difference(student, teacher), torch.ones(2, 4, 5), channels=3)
    known = F.mse_loss(student, teacher) / 2
    assert loss.item() == pytest.approx(known.item(), rel=1e-5)
    (gradient,), (expected,) = torch.autograd.grad(loss, student), torch.autograd.grad(known, student)
    assert torch.allclose(gradient, expected, atol=1e-7)


def test_region_mean_takes_weights_between_zero_and_one():
    # (0.5 * 2 + 1 * 4) / (2 * 1.5)
    per_cell, weight = torch.tensor([[[2.0, 4.0]]]), torch.tensor([[[0.5, 1.0]]])
    assert region_mean(per_cell, weight, channels=1).item() == pytest.approx(5 / 3)


def test_an_empty_region_gives_zero_and_a_gradient_of_zero():
    student = torch.randn(1, 2, 3, 3, requires_grad=True)
    loss = region_mean(squared_difference(student, torch.zeros(1, 2, 3, 3)), torch.zeros(1, 3, 3, dtype=torch.bool), 2)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_standardise_gives_mean_zero_and_variance_one():
    # Values 1, 3 have mean 2 and variance 1; values 0, 10 mean 5 and variance 25.
    level = torch.tensor([[[[1.0, 3.0]], [[0.0, 10.0]]]])
    standardised = standardise(level, torch.ones(1, 1, 2, dtype=torch.bool))
    assert standardised.flatten().tolist() == pytest.approx([-1, 1, -1, 1], abs=1e-5)


def test_standardise_does_not_depend_on_scale_and_shift_of_a_channel():
    level, valid = torch.randn(2, 3, 4, 4), torch.ones(2, 4, 4, dtype=torch.bool)
    scale, shift = torch.tensor([1000.0, 0.1, 7.0]), torch.tensor([-5.0, 3.0, 100.0])
    changed = level * scale[:, None, None] + shift[:, None, None]
    assert torch.allclose(standardise(changed, valid), standardise(level, valid), atol=1e-3)


def test_standardise_computes_its_statistics_over_valid_cells():
    level, valid = torch.randn(2, 3, 4, 4), torch.ones(2, 4, 4, dtype=torch.bool)
    valid[0, :, 3] = False
    changed = torch.where(valid[:, None], level, 1e4)
    inside = valid[:, None].expand_as(level)
    assert torch.allclose(standardise(changed, valid)[inside], standardise(level, valid)[inside], atol=1e-5)
    assert standardise(level, valid).transpose(0, 1)[:, valid].mean(1).abs().max() < 1e-6


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_of_standardise_is_correct(memory_format):
    generator = torch.Generator().manual_seed(0)
    level = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64).contiguous(memory_format=memory_format)
    valid = torch.rand(2, 4, 5, generator=generator) < 0.7
    assert torch.autograd.gradcheck(lambda feature_map: standardise(feature_map, valid), level.requires_grad_())
    mean, variance = moments(level, valid)
    assert torch.allclose(standardise(level, valid), (level - mean) / (variance + 1e-6).sqrt())


@pytest.fixture(params=[1, 30, 2**18])
def pieces(request, monkeypatch):
    """Splits a map of 2 x 3 x 4 x 5 into single values, into a few rows, or not at all."""
    monkeypatch.setitem(differences.PIECE, "cpu", request.param)


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_standardised_difference_equals_standardising_both_maps_first(memory_format):
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 2, 3, 4, 5, generator=generator, dtype=torch.float64)
    student, teacher = (feature_map.contiguous(memory_format=memory_format) for feature_map in maps)
    valid = torch.rand(2, 4, 5, generator=generator) < 0.7
    student.requires_grad_()

    def plain_standardise(feature_map):
        mean, variance = moments(feature_map, valid)
        return (feature_map - mean) / (variance + 1e-6).sqrt()

    weight = torch.rand(2, 4, 5, generator=generator, dtype=torch.float64)
    difference = standardised_difference(student, teacher, valid)
    expected = (plain_standardise(student) - plain_standardise(teacher)).square().sum(dim=1)
    assert torch.allclose(difference, expected)
    gradients = [torch.autograd.grad((values * weight).sum(), student)[0] for values in (difference, expected)]
    assert torch.allclose(*gradients)
    assert torch.autograd.gradcheck(lambda level: standardised_difference(level, teacher, valid), student)
    assert torch.autograd.gradcheck(lambda level: standardise(level, valid), student)
    assert torch.autograd.gradcheck(lambda level: squared_difference(level, teacher), student)
    assert torch.allclose(squared_difference(student, teacher), (student - teacher).square().sum(dim=1))


def moments(level, valid):
    """Mean and variance of each channel over the valid cells."""
    weight = valid[:, None].to(level.dtype)
    mean = (level * weight).sum((0, 2, 3), keepdim=True) / weight.sum()
    return mean, ((level - mean).square() * weight).sum((0, 2, 3), keepdim=True) / weight.sum()


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_standardised_difference_of_huge_values_is_finite(side):
    student, teacher = torch.tensor([[[[1.0, 2.0, 4.0]]]]), torch.tensor([[[[3.0, 1.0, 2.0]]]])
    valid = torch.ones(1, 1, 3, dtype=torch.bool)
    expected = standardised_difference(student, teacher, valid)
    assert expected.max() > 1
    huge = {"student": student, "teacher": teacher}
    huge[side] = 5e37 * huge[side]
    assert torch.allclose(standardised_difference(huge["student"], huge["teacher"], valid), expected, atol=1e-4)


def test_a_constant_channel_becomes_zero_with_a_finite_gradient():
    level = torch.full((1, 1, 2, 2), 3.0, requires_grad=True)
    standardised = standardise(level, torch.ones(1, 2, 2, dtype=torch.bool))
    standardised.square().sum().backward()
    assert standardised.abs().max() == 0
    assert level.grad.isfinite().all()


LN3 = math.log(3)


def test_softmax_divergence_by_hand():
    # Teacher (ln 3, 0) gives (3/4, 1/4), student (0, 0) gives (1/2, 1/2): KL = 3/4 ln(3/2) + 1/4 ln(1/2).
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    divergence = softmax_divergence(torch.zeros(1, 2), torch.tensor([[LN3, 0.0]]), 1.0)
    assert divergence.item() == pytest.approx(expected, abs=1e-6)
    # At temperature 2, logits (2 ln 3, 0) give the same probabilities; the value is multiplied by 4.
    divergence = softmax_divergence(torch.zeros(1, 2), torch.tensor([[2 * LN3, 0.0]]), 2.0)
    assert divergence.item() == pytest.approx(4 * expected, abs=1e-6)


def test_sigmoid_divergence_by_hand():
    # Teacher ln 3 gives 3/4, student 0 gives 1/2: the same two-way divergence, once for each of two classes.
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    divergence = sigmoid_divergence(torch.zeros(1, 2), torch.tensor([[LN3, -LN3]]), 1.0)
    assert divergence.item() == pytest.approx(2 * expected, abs=1e-6)
    divergence = sigmoid_divergence(torch.zeros(1, 1), torch.tensor([[2 * LN3]]), 2.0)
    assert divergence.item() == pytest.approx(4 * expected, abs=1e-6)


@pytest.mark.parametrize("divergence", [softmax_divergence, sigmoid_divergence])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_divergence_is_zero_for_equal_logits_and_positive_otherwise(divergence, temperature):
    student, teacher = 3 * torch.randn(50, 6), 3 * torch.randn(50, 6)
    assert divergence(teacher, teacher, temperature).abs().max() < 1e-5
    assert divergence(student, teacher, temperature).min() > 0


def test_softmax_divergence_does_not_depend_on_a_shift_of_all_logits():
    student, teacher = torch.randn(5, 4), torch.randn(5, 4)
    expected = softmax_divergence(student, teacher, 2.0)
    assert torch.allclose(softmax_divergence(student + 3, teacher - 7, 2.0), expected, atol=1e-5)


def test_softmax_divergence_at_a_high_temperature_is_half_the_variance_of_the_difference():
    # With u = t / T and v = s / T near 0, softmax(u) = 1/K + (u - mean u)/K + ..., and to second order
    # KL = 1/2 sum_k (1/K) (d_k - mean d)^2 with d = u - v. Times T^2: the squared difference of the centred logits of
    # teacher and student, over 2 K. Its gradient is (centred s - centred t) / K.
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    difference = (student - teacher) - (student - teacher).mean(1, keepdim=True)
    limit = difference.square().sum(1) / (2 * 5)
    divergence = softmax_divergence(student, teacher, 1e4)
    assert torch.allclose(divergence, limit, rtol=1e-3)
    (gradient,) = torch.autograd.grad(divergence.sum(), student)
    assert torch.allclose(gradient, difference / 5, atol=1e-3)


def test_sigmoid_divergence_at_a_high_temperature_is_an_eighth_of_the_squared_difference():
    # Near probability 1/2 a Bernoulli variable has variance 1/4, so KL = 1/2 * 1/4 * (u - v)^2, times T^2.
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    divergence = sigmoid_divergence(student, teacher, 1e4)
    assert torch.allclose(divergence, (student - teacher).square().sum(1) / 8, rtol=1e-3)
    (gradient,) = torch.autograd.grad(divergence.sum(), student)
    assert torch.allclose(gradient, (student - teacher) / 4, atol=1e-3)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_gradient_of_a_divergence_is_the_difference_of_probabilities(temperature):
    # d KL / d v = q - p with v = s / T, and T^2 * 1/T leaves a factor T.
    student, teacher = torch.randn(6, 4, requires_grad=True), torch.randn(6, 4)
    u, v = teacher / temperature, student / temperature
    for divergence, expected in (
        (softmax_divergence, v.softmax(1) - u.softmax(1)),
        (sigmoid_divergence, v.sigmoid() - u.sigmoid()),
    ):
        (gradient,) = torch.autograd.grad(divergence(student, teacher, temperature).sum(), student)
        assert torch.allclose(gradient, temperature * expected, atol=1e-5), divergence.__name__


def test_divergence_from_a_certain_teacher_is_cross_entropy():
    # KL = cross entropy - entropy of the teacher, and a teacher with logits 100 apart has none.
    student, labels = torch.randn(7, 4, requires_grad=True), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    divergence = softmax_divergence(student, 100.0 * F.one_hot(labels, 4), 1.0)
    known = F.cross_entropy(student, labels, reduction="none")
    assert torch.allclose(divergence, known, atol=1e-5)
    divergence = sigmoid_divergence(student, 200.0 * F.one_hot(labels, 4) - 100, 1.0)
    known = F.binary_cross_entropy_with_logits(student, F.one_hot(labels, 4).float(), reduction="none").sum(1)
    assert torch.allclose(divergence, known, atol=1e-5)


@pytest.mark.parametrize("divergence", [softmax_divergence, sigmoid_divergence])
def test_extreme_logits_stay_finite(divergence):
    student = torch.tensor([[500.0, -500.0]], requires_grad=True)
    loss = divergence(student, torch.tensor([[-500.0, 500.0]]), 1.0).sum()
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_masked_mean_by_hand_and_over_nothing():
    values = torch.tensor([1.0, 5.0, 3.0], requires_grad=True)
    assert masked_mean(values, torch.tensor([True, False, True])).item() == 2
    nothing = masked_mean(values, torch.zeros(3, dtype=torch.bool))
    nothing.backward()
    assert nothing.item() == 0
    assert values.grad.tolist() == [0, 0, 0]


def test_absolute_difference_is_squared_above_one():
    # |0.5| and 2^2 in the first cell; |-1|^2 and 0 in the second.
    student, teacher = torch.tensor([[[[0.5, -1.0]], [[2.0, 0.0]]]]), torch.zeros(1, 2, 1, 2)
    assert absolute_difference(student, teacher).tolist() == [[[4.5, 1.0]]]


def test_divisive_difference_is_relative():
    # (1 - 1/2)^2 and (1 - 3/1)^2 in the first cell; nothing where both are equal.
    student, teacher = torch.tensor([[[[1.0, 7.0]], [[3.0, 5.0]]]]), torch.tensor([[[[2.0, 7.0]], [[1.0, 5.0]]]])
    assert divisive_difference(student, teacher).flatten().tolist() == pytest.approx([4.25, 0.0])


def test_the_squared_difference_has_the_gradient_that_autograd_gives():
    student = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda level: squared_difference(level, teacher), (student,))
    equal = teacher.clone().requires_grad_()
    squared_difference(equal, teacher).sum().backward()
    assert torch.equal(equal.grad, torch.zeros_like(teacher))


class Largest(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation returned."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        result = function(*arguments, **(named or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return result


def test_no_temporary_of_both_regions_is_larger_than_the_map():
    student, teacher = torch.randn(2, 16, 12, 20, requires_grad=True), torch.randn(2, 16, 12, 20)
    region = torch.rand(2, 12, 20) > 0.5
    with Largest() as largest:
        per_cell = squared_difference(student, teacher)
        (3 * region_mean(per_cell, region, 16) + 12 * region_mean(per_cell, ~region, 16)).backward()
    assert largest.elements == student.numel()


def test_differences_save_only_the_two_maps_for_the_backward_pass():
    student, teacher = torch.randn(2, 16, 12, 20, requires_grad=True), torch.randn(2, 16, 12, 20)
    valid, saved = torch.ones(2, 12, 20, dtype=torch.bool), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        results = standardised_difference(student, teacher, valid), squared_difference(student, teacher)
    maps = [tensor for tensor in saved if tensor.numel() == student.numel()]
    assert {tensor.data_ptr() for tensor in maps} == {student.data_ptr(), teacher.data_ptr()}
    assert all(result.requires_grad for result in results)
