"""Differences of a student's and a teacher's feature map, optionally standardised, in few passes over the maps.

Maps are read in pieces, so that temporaries stay in the CPU's cache. For the default difference, squared and
standardised on both sides, only the two maps themselves are saved for the backward pass.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from defeat.distillation.processes import sum_over_processes

# Values of a map per piece: on CPU, temporaries of that size stay in the cache; on a GPU they take little memory.
PIECE = {"cpu": 2**18}
OTHERS = 2**24
SAFE = 1e12  # values up to this have squares whose sum over a batch fits float32


class _Piece(NamedTuple):
    """A part of a map (B, C, H, W)."""

    images: slice
    channels: slice
    rows: slice

    def view(self, feature_map: Tensor) -> Tensor:
        """This part of a map (B, C, H, W), as a view."""
        return feature_map[self.images, self.channels, self.rows]

    def cells(self, values: Tensor) -> Tensor:
        """The values of this part's cells (b, 1, h, W), of (B, H, W)."""
        return values[self.images, None, self.rows]


def _pieces(feature_map: Tensor) -> list[_Piece]:
    """Split a map into pieces that are contiguous in memory."""
    batch, channels, height, width = feature_map.shape
    values, everything = PIECE.get(feature_map.device.type, OTHERS), slice(None)
    image_slices = _slices(batch, channels * height * width, values)
    if feature_map.is_contiguous():
        channel_slices = _slices(channels, height * width, values)
        return [_Piece(images, part, everything) for images in image_slices for part in channel_slices]
    row_slices = _slices(height, channels * width, values)
    return [_Piece(images, everything, rows) for images in image_slices for rows in row_slices]


def _slices(length: int, values_per_index: int, max_values: int) -> list[slice]:
    """Split a dimension into slices of at most `max_values` values, and at least one index."""
    step = max(1, max_values // max(1, values_per_index))
    return [slice(begin, begin + step) for begin in range(0, length, step)]


class _ChannelStatistics(NamedTuple):
    """Mean and inverse standard deviation of each channel of a map (C, 1, 1), over the cells of all processes."""

    mean: Tensor
    inverse: Tensor

    def standardise(self, piece: _Piece, feature_map: Tensor) -> Tensor:
        """A piece of the map, standardised."""
        return (piece.view(feature_map) - self.mean[piece.channels]).mul_(self.inverse[piece.channels])


def _channel_statistics(feature_map: Tensor, weight: Tensor, count: Tensor, eps: float) -> _ChannelStatistics:
    """Statistics of a map (B, C, H, W) over its cells, with weights (B, H, W) that sum to `count`.

    Where a square or a sum overflows, the inverse is zero or not a number. Sums are not computed as matrix products,
    which are less exact.
    """
    pieces, sums = _pieces(feature_map), feature_map.new_zeros(2, feature_map.shape[1])
    for piece in pieces:
        sums[0, piece.channels] += (piece.view(feature_map) * piece.cells(weight)).sum(dim=(0, 2, 3))
    mean = (sum_over_processes(sums[0]) / count)[:, None, None]
    for piece in pieces:
        squares = (piece.view(feature_map) - mean[piece.channels]).square_()
        sums[1, piece.channels] += squares.mul_(piece.cells(weight)).sum(dim=(0, 2, 3))
    return _ChannelStatistics(mean, torch.rsqrt(sum_over_processes(sums[1]) / count + eps)[:, None, None])


def _no_overflow(*statistics: _ChannelStatistics) -> bool:
    """Whether the statistics were computed without overflow."""
    return bool((torch.cat([of_map.inverse for of_map in statistics]) > 0).all())


def _standardisation_gradient(
    like: Tensor, piece_gradient: Callable[[_Piece], tuple[Tensor, Tensor]], share: Tensor, inverse: Tensor
) -> Tensor:
    """The gradient with respect to a map, given the gradient with respect to the standardised map.

    With cell weights w, their sum n, the standardised map y and the inverse deviation r, the gradient g of y becomes
    `r (g - w / n (sum(g) + y sum(g y)))`; the sums are per channel, over the cells of all processes.

    Args:
        like: (B, C, H, W), whose shape and memory layout the gradient gets.
        piece_gradient: returns y and g of a piece.
        share: (B, H, W), w / n.
        inverse: (C, 1, 1), r.
    """
    pieces, sums = _pieces(like), like.new_zeros(2, like.shape[1])
    for piece in pieces:
        standardised, gradient = piece_gradient(piece)
        sums[0, piece.channels] += gradient.sum(dim=(0, 2, 3))
        sums[1, piece.channels] += (gradient * standardised).sum(dim=(0, 2, 3))
    gradient_sum, product_sum = sum_over_processes(sums)[..., None, None]
    result = torch.empty_like(like)
    for piece in pieces:
        standardised, gradient = piece_gradient(piece)
        common = (standardised * product_sum[piece.channels]).add_(gradient_sum[piece.channels])
        common.mul_(piece.cells(share))
        torch.sub(gradient, common, out=piece.view(result)).mul_(inverse[piece.channels])
    return result


class _Standardise(torch.autograd.Function):
    """Masked standardisation, with a backward pass that reads the map a few times."""

    @staticmethod
    def forward(context: Any, feature_map: Tensor, weight: Tensor, eps: float) -> Tensor:
        count = sum_over_processes(weight.sum())
        statistics, shrink = _channel_statistics(feature_map, weight, count, eps), None
        if not _no_overflow(statistics):  # shrink the map first: the result does not depend on its scale
            largest = feature_map.abs().amax(dim=(0, 2, 3))
            shrink = 1 / sum_over_processes((largest / SAFE).clamp(min=1))[:, None, None]
            feature_map = feature_map * shrink
            statistics = _channel_statistics(feature_map, weight, count, eps)
        result = torch.empty_like(feature_map)
        for piece in _pieces(feature_map):
            piece.view(result).copy_(statistics.standardise(piece, feature_map))
        inverse = statistics.inverse if shrink is None else statistics.inverse * shrink
        context.save_for_backward(result, weight / count, inverse)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        result, share, inverse = context.saved_tensors
        (gradient,) = gradients

        def piece_gradient(piece: _Piece) -> tuple[Tensor, Tensor]:
            return piece.view(result), piece.view(gradient)

        return _standardisation_gradient(result, piece_gradient, share, inverse), None, None


class _SquaredDifference(torch.autograd.Function):
    """The squared difference of two maps. It saves only the maps, and allocates no map except the gradient."""

    @staticmethod
    def forward(context: Any, student: Tensor, teacher: Tensor) -> Tensor:
        context.save_for_backward(student, teacher)
        return _sum_of_squares(student, lambda piece: piece.view(student) - piece.view(teacher))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        student, teacher = context.saved_tensors
        result, twice = torch.empty_like(student), 2 * gradients[0]
        for piece in _pieces(student):
            difference = torch.sub(piece.view(student), piece.view(teacher), out=piece.view(result))
            difference.mul_(piece.cells(twice))
        return result, None


class _StandardisedDifference(torch.autograd.Function):
    """The squared difference of two standardised maps; the backward pass standardises them again."""

    @staticmethod
    def forward(
        context: Any,
        student: Tensor,
        teacher: Tensor,
        share: Tensor,
        student_statistics: _ChannelStatistics,
        teacher_statistics: _ChannelStatistics,
    ) -> Tensor:
        context.save_for_backward(student, teacher, share, *student_statistics, *teacher_statistics)

        def difference(piece: _Piece) -> Tensor:
            return student_statistics.standardise(piece, student).sub_(teacher_statistics.standardise(piece, teacher))

        return _sum_of_squares(student, difference)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        student, teacher, share, *saved = context.saved_tensors
        student_statistics, teacher_statistics = _ChannelStatistics(*saved[:2]), _ChannelStatistics(*saved[2:])
        twice = 2 * gradients[0]

        def piece_gradient(piece: _Piece) -> tuple[Tensor, Tensor]:
            standardised = student_statistics.standardise(piece, student)
            target = teacher_statistics.standardise(piece, teacher)
            return standardised, torch.sub(standardised, target, out=target).mul_(piece.cells(twice))

        gradient = _standardisation_gradient(student, piece_gradient, share, student_statistics.inverse)
        return gradient, None, None, None, None


def _sum_of_squares(like: Tensor, difference: Callable[[_Piece], Tensor]) -> Tensor:
    """The squares of a difference, computed piece by piece and summed over the channels: (B, H, W)."""
    total = torch.zeros_like(like[:, 0])
    for piece in _pieces(like):
        total[piece.images, piece.rows] += difference(piece).square_().sum(dim=1)
    return total


def standardise(feature_map: Tensor, valid: Tensor, eps: float = 1e-6) -> Tensor:
    """Normalise every channel to zero mean and unit variance over the valid cells of the batch, of all processes.

    Args:
        feature_map: (B, C, H, W), any finite values: the result and its gradient are finite.
        valid: (B, H, W) bool; at least one cell is valid.
        eps: added to the variance.
    """
    result: Tensor = _Standardise.apply(feature_map, valid.to(feature_map.dtype), eps)
    return result


def standardised_like(feature_map: Tensor, other: Tensor, valid: Tensor, eps: float = 1e-12) -> Tensor:
    """Give every channel the mean and the deviation that another map has over the valid cells of the batch.

    Args:
        feature_map: (B, C, H, W), any finite values.
        other: (B, C, H, W) up to 1e15, without gradient.
        valid: (B, H, W) bool; at least one cell is valid.
        eps: added to both variances.
    """
    weight = valid.to(other.dtype)
    statistics = _channel_statistics(other, weight, sum_over_processes(weight.sum()), eps)
    return standardise(feature_map, valid, eps) / statistics.inverse + statistics.mean


def squared_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of two maps (B, C, H, W), summed over the channels: (B, H, W).

    The teacher's map gets no gradient. Values up to 1e15 give a finite mean over any region, in float32.
    """
    result: Tensor = _SquaredDifference.apply(student, teacher)
    return result


def absolute_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """The published code's variant of an absolute difference, summed over the channels: (B, H, W).

    `|d|` where it is below 1, `d^2` elsewhere: the reverse of a Huber loss, so large differences count more. Values up
    to 1e15 give a finite mean over any region, in float32.
    """
    difference = (student - teacher).abs()
    return torch.where(difference < 1, difference, difference.square()).sum(dim=1)


def divisive_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared relative difference `(1 - s / (t + 1e-8))^2` of two maps, summed over the channels: (B, H, W).

    It is unbounded where the teacher's map is near zero, and there it is not zero for equal maps. It is finite where
    the teacher's values are at least 0.01 from zero and the student's at most 1e6.
    """
    return (1 - student / (teacher + 1e-8)).square().sum(dim=1)


def standardised_difference(student: Tensor, teacher: Tensor, valid: Tensor, eps: float = 1e-6) -> Tensor:
    """`squared_difference` of two maps after `standardise`, without storing the standardised maps.

    Args:
        student: (B, C, H, W), any finite values.
        teacher: (B, C, H, W), any finite values; it gets no gradient.
        valid: (B, H, W) bool; at least one cell is valid.
        eps: added to the variance.

    Returns:
        (B, H, W).
    """
    weight = valid.to(student.dtype)
    count = sum_over_processes(weight.sum())
    student_statistics = _channel_statistics(student.detach(), weight, count, eps)
    teacher_statistics = _channel_statistics(teacher.detach(), weight, count, eps)
    if not _no_overflow(student_statistics, teacher_statistics):
        return squared_difference(standardise(student, valid, eps), standardise(teacher, valid, eps))
    result: Tensor = _StandardisedDifference.apply(
        student, teacher, weight / count, student_statistics, teacher_statistics
    )
    return result


DIFFERENCES = {"squared": squared_difference, "absolute": absolute_difference, "divisive": divisive_difference}
