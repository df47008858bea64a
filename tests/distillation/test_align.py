"""Level correspondence, adaptation layers and resizing."""

import pytest
import torch

from defeat.distillation.align import Adaptation, LevelPair, match_levels, rescale_boxes, resize_map
from defeat.errors import InputError


def pair(stride, channels, teacher_channels, teacher_stride=None):
    return LevelPair("neck", stride, teacher_stride or stride, channels, teacher_channels)


def test_levels_are_matched_at_their_common_strides():
    student, teacher = {4: 8, 8: 8, 16: 9}, {32: 7, 16: 6, 8: 5}
    assert match_levels(student, teacher, "neck") == {8: pair(8, 8, 5), 16: pair(16, 9, 6)}
    assert match_levels(student, teacher, "neck", only=(16, 32)) == {16: pair(16, 9, 6)}


def test_missing_levels_may_be_matched_to_the_nearest():
    # The teacher has nothing finer than 8 and nothing coarser than 32.
    levels = match_levels({4: 1, 8: 1, 128: 2}, {8: 5, 32: 7}, "neck", missing="nearest")
    assert levels == {4: pair(4, 1, 5, 8), 8: pair(8, 1, 5), 128: pair(128, 2, 7, 32)}
    # Of two that are equally near, the finer one is used.
    assert match_levels({16: 1}, {32: 7, 8: 5}, "neck", missing="nearest") == {16: pair(16, 1, 5, 8)}
    with pytest.raises(InputError, match="Did you mean 'nearest'"):
        match_levels({16: 1}, {32: 7}, "neck", missing="neares")


@pytest.mark.parametrize(("teacher", "only"), [({8: 8}, None), ({4: 8, 8: 8}, (8,))])
def test_levels_without_a_common_stride_are_refused_with_both_sides(teacher, only):
    with pytest.raises(InputError) as caught:
        match_levels({4: 8}, teacher, "backbone", only)
    message = f"The student's backbone has strides [4] and the teacher's {sorted(teacher)}: they share no level"
    assert str(caught.value).startswith(message)


def test_a_relu_may_follow_the_adaptation():
    torch.manual_seed(0)
    plain, with_relu = Adaptation({8: pair(8, 3, 5)}), Adaptation({8: pair(8, 3, 5)}, activation=True)
    with_relu.load_state_dict(plain.state_dict())
    level = torch.randn(2, 3, 6, 7)
    assert plain(level, 8).min() < 0
    assert torch.equal(with_relu(level, 8), plain(level, 8).clamp(min=0))


def test_adaptation_maps_the_students_channels_to_the_teachers():
    adaptation = Adaptation({8: pair(8, 3, 5), 16: pair(16, 4, 5)})
    assert adaptation(torch.randn(2, 3, 6, 7), 8).shape == (2, 5, 6, 7)
    assert adaptation(torch.randn(2, 4, 3, 4), 16).shape == (2, 5, 3, 4)


def test_adaptation_starts_as_identity_where_channels_match():
    level = torch.randn(2, 3, 4, 5)
    for kernel in (1, 3):
        torch.manual_seed(0)
        adaptation = Adaptation({8: pair(8, 3, 3), 16: pair(16, 3, 4)}, kernel=kernel)
        assert torch.equal(adaptation(level, 8), level)
        torch.manual_seed(0)
        random = Adaptation({8: pair(8, 3, 3), 16: pair(16, 3, 4)}, "default", kernel=kernel)
        assert not torch.equal(random(level, 8), level)
        # Where channels differ there is no identity, and the random weights are the same.
        assert torch.equal(random(level, 16), adaptation(level, 16))


def test_adaptation_may_use_three_by_three_cells():
    adaptation = Adaptation({8: pair(8, 1, 1)}, kernel=3)
    weight = adaptation.layers["8"].weight
    assert weight.shape == (1, 1, 3, 3)
    with torch.no_grad():
        weight.fill_(1)
        adaptation.layers["8"].bias.zero_()
    dot = torch.zeros(1, 1, 5, 5)
    dot[0, 0, 2, 2] = 1
    assert adaptation(dot, 8)[0, 0].nonzero().tolist() == [[row, column] for row in (1, 2, 3) for column in (1, 2, 3)]


def test_adaptation_may_use_a_single_cell():
    adaptation = Adaptation({8: pair(8, 2, 3)}, kernel=1)
    assert adaptation.layers["8"].weight.shape == (3, 2, 1, 1)
    dot = torch.zeros(1, 2, 5, 5)
    dot[0, 0, 2, 2] = 1
    changed = adaptation(dot, 8) - adaptation(torch.zeros_like(dot), 8)
    assert {tuple(cell) for cell in changed[0].sum(dim=0).nonzero().tolist()} == {(2, 2)}


def test_adaptation_may_compute_in_bfloat16():
    torch.manual_seed(0)
    adaptation = Adaptation({8: pair(8, 32, 16)})
    level = torch.randn(2, 32, 6, 7, requires_grad=True)
    exact = adaptation(level, 8)
    adaptation.dtype = torch.bfloat16
    rounded = adaptation(level, 8)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    assert torch.allclose(rounded, exact, atol=0.02)
    gradients = [torch.autograd.grad(result.sum(), (level, *adaptation.parameters())) for result in (exact, rounded)]
    for expected, gradient in zip(*gradients, strict=True):
        assert gradient.dtype == torch.float32
        assert torch.allclose(gradient, expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("kernel", [2, 5, -1])
def test_other_kernels_are_refused(kernel):
    with pytest.raises(InputError, match=f"adaptation_kernel must be 0, 1 or 3, not {kernel}"):
        Adaptation({8: pair(8, 1, 1)}, kernel=kernel)


def test_published_adaptation_starts_near_zero():
    torch.manual_seed(0)
    layer = Adaptation({8: pair(8, 64, 64)}, "published").layers["8"]
    # 36864 draws: their deviation is within a few hundredths of 1e-4.
    assert layer.weight.std().item() == pytest.approx(1e-4, rel=0.15)
    assert layer.weight.abs().max() < 1e-3
    assert layer.bias.abs().max() == 0
    assert Adaptation({8: pair(8, 64, 64)}).layers["8"].weight.std() > 1e-2


def test_an_unknown_initialisation_suggests_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'published'"):
        Adaptation({8: pair(8, 1, 1)}, "publishd")


def test_a_map_of_the_same_size_is_not_copied():
    level = torch.randn(1, 2, 4, 6)
    assert resize_map(level, 1.0, (4, 6)) is level


def test_a_larger_map_is_resized_in_place_of_its_cells():
    # The teacher works at double size: cells of the student's map are blocks of two by two of the teacher's. A map that
    # is constant over large blocks has the same values in their middle.
    blocks = torch.rand(1, 3, 2, 2)
    large = blocks.repeat_interleave(8, 2).repeat_interleave(8, 3)
    resized = resize_map(large, 2.0, (8, 8))
    assert torch.allclose(resized[..., 2::4, 2::4], blocks, atol=1e-5)
    # A ramp stays a ramp: the mean of columns 2i and 2i + 1 is 2i + 0.5 away from the border.
    ramp = torch.arange(16.0).expand(1, 1, 16, 16)
    resized = resize_map(ramp, 2.0, (8, 8))
    assert torch.allclose(resized[0, 0, 4, 1:-1], 2 * torch.arange(1.0, 7.0) + 0.5, atol=1e-4)


def test_padding_beyond_the_students_is_cut_off():
    # At scale 1.5 the student's 4 x 6 cells are 6 x 9 of the teacher's, whose padding reaches to 8 x 12.
    level = torch.ones(1, 1, 8, 12)
    level[..., 6:, :] = 1e6
    level[..., 9:] = 1e6
    resized = resize_map(level, 1.5, (4, 6))
    assert resized.shape == (1, 1, 4, 6)
    assert torch.allclose(resized, torch.ones(1, 1, 4, 6))


def test_boxes_follow_the_scale():
    boxes = [torch.tensor([[1.0, 2.0, 3.0, 4.0]])]
    assert rescale_boxes(boxes, 1) is boxes
    assert rescale_boxes(boxes, 0.5)[0].tolist() == [[0.5, 1, 1.5, 2]]
