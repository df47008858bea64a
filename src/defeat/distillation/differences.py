"""Differences of a student's and a teacher's map, as they are or standardised, in few passes over them.

Maps are read piece by piece: what is made of a piece stays in a processor's cache. Nothing but the two maps themselves
is kept for the backward pass of the usual difference, which is squared, and standardised on both sides.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from defeat.distillation.processes import added

# Values of a map at a time: on a processor what is made of them stays in its cache, on a GPU it takes little memory.
PIECE = {"cpu": 2**18}
OTHERS = 2**24
SAFE = 1e12  # values up to this have squares whose sum over a batch fits float32


class _Piece(NamedTuple):
    """A part of a map (B, C, H, W)."""

    images: slice
    channels: slice
    rows: slice

    def of(self, level: Tensor) -> Tensor:
        """That part of a map (B, C, H, W), as a view."""
        return level[self.images, self.channels, self.rows]

    def cells(self, values: Tensor) -> Tensor:
        """The values of its cells (b, 1, h, W), of (B, H, W)."""
        return values[self.images, None, self.rows]


def _pieces(level: Tensor) -> list[_Piece]:
    """Cut a map into pieces of neighbours in memory."""
    batch, channels, height, width = level.shape
    values, whole = PIECE.get(level.device.type, OTHERS), slice(None)
    images = _slices(batch, channels * height * width, values)
    if level.is_contiguous():
        return [_Piece(some, part, whole) for some in images for part in _slices(channels, height * width, values)]
    return [_Piece(some, whole, part) for some in images for part in _slices(height, channels * width, values)]


def _slices(length: int, each: int, values: int) -> list[slice]:
    """Cut a length into parts of so many values at most, where each place has so many; at least one place a part."""
    step = max(1, values // max(1, each))
    return [slice(begin, begin + step) for begin in range(0, length, step)]


Look = Callable[[_Piece], tuple[Tensor, Tensor]]


class _Scale(NamedTuple):
    """Mean and inverse deviation of each channel of a map (C, 1, 1), in sums over the cells of all processes."""

    mean: Tensor
    inverse: Tensor

    def of(self, piece: _Piece, level: Tensor) -> Tensor:
        """A piece of a map, standardised."""
        return (piece.of(level) - self.mean[piece.channels]).mul_(self.inverse[piece.channels])


def _scale(level: Tensor, weight: Tensor, count: Tensor, eps: float) -> _Scale:
    """How to standardise a map (B, C, H, W) over its cells, which have weights (B, H, W) and this sum of weights.

    Where a square or a sum overflows, the inverse is zero or not a number. Sums are not taken as matrix products, which
    are less exact.
    """
    pieces, sums = _pieces(level), level.new_zeros(2, level.shape[1])
    for piece in pieces:
        sums[0, piece.channels] += (piece.of(level) * piece.cells(weight)).sum(dim=(0, 2, 3))
    mean = (added(sums[0]) / count)[:, None, None]
    for piece in pieces:
        squares = (piece.of(level) - mean[piece.channels]).square_()
        sums[1, piece.channels] += squares.mul_(piece.cells(weight)).sum(dim=(0, 2, 3))
    return _Scale(mean, torch.rsqrt(added(sums[1]) / count + eps)[:, None, None])


def _are_safe(*scales: _Scale) -> bool:
    """Whether nothing overflowed."""
    return bool((torch.cat([one.inverse for one in scales]) > 0).all())


def _gradient_before(like: Tensor, look: Look, share: Tensor, inverse: Tensor) -> Tensor:
    """The gradient of a map that was standardised.

    With weights w of the cells, n their sum, y the result and r the inverse deviation, the gradient g of y becomes
    `r (g - w / n (sum(g) + y sum(g y)))`; the sums are those of each channel, over the cells of all processes.

    Args:
        like: (B, C, H, W), whose shape and layout the gradient gets.
        look: gives y and g of a piece.
        share: (B, H, W), w / n.
        inverse: (C, 1, 1), r.
    """
    pieces, sums = _pieces(like), like.new_zeros(2, like.shape[1])
    for piece in pieces:
        result, gradient = look(piece)
        sums[0, piece.channels] += gradient.sum(dim=(0, 2, 3))
        sums[1, piece.channels] += (gradient * result).sum(dim=(0, 2, 3))
    first, second = added(sums)[..., None, None]
    found = torch.empty_like(like)
    for piece in pieces:
        result, gradient = look(piece)
        common = (result * second[piece.channels]).add_(first[piece.channels]).mul_(piece.cells(share))
        torch.sub(gradient, common, out=piece.of(found)).mul_(inverse[piece.channels])
    return found


class _Standardised(torch.autograd.Function):
    """Masked standardisation, with a backward pass of a few passes over the map."""

    @staticmethod
    def forward(context: Any, level: Tensor, weight: Tensor, eps: float) -> Tensor:
        count = added(weight.sum())
        scale, shrink = _scale(level, weight, count, eps), None
        if not _are_safe(scale):  # the result does not depend on the scale
            shrink = 1 / added((level.abs().amax(dim=(0, 2, 3)) / SAFE).clamp(min=1))[:, None, None]
            level = level * shrink
            scale = _scale(level, weight, count, eps)
        result = torch.empty_like(level)
        for piece in _pieces(level):
            piece.of(result).copy_(scale.of(piece, level))
        context.save_for_backward(result, weight / count, scale.inverse if shrink is None else scale.inverse * shrink)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        result, share, inverse = context.saved_tensors
        (gradient,) = gradients
        return _gradient_before(result, lambda one: (one.of(result), one.of(gradient)), share, inverse), None, None


class _SquaredDifference(torch.autograd.Function):
    """The squared difference of two maps as they are. It keeps the maps alone, and makes no map but the gradient."""

    @staticmethod
    def forward(context: Any, student: Tensor, teacher: Tensor) -> Tensor:
        context.save_for_backward(student, teacher)
        return _summed_squares(student, lambda one: one.of(student) - one.of(teacher))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        student, teacher = context.saved_tensors
        found, twice = torch.empty_like(student), 2 * gradients[0]
        for piece in _pieces(student):
            difference = torch.sub(piece.of(student), piece.of(teacher), out=piece.of(found))
            difference.mul_(piece.cells(twice))
        return found, None


class _StandardisedDifference(torch.autograd.Function):
    """The squared difference of two maps that are both standardised, which it does again in the backward pass."""

    @staticmethod
    def forward(context: Any, student: Tensor, teacher: Tensor, share: Tensor, own: _Scale, other: _Scale) -> Tensor:
        context.save_for_backward(student, teacher, share, *own, *other)
        return _summed_squares(student, lambda one: own.of(one, student).sub_(other.of(one, teacher)))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        student, teacher, share, *both = context.saved_tensors
        own, other, twice = _Scale(*both[:2]), _Scale(*both[2:]), 2 * gradients[0]

        def look(piece: _Piece) -> tuple[Tensor, Tensor]:
            result, wanted = own.of(piece, student), other.of(piece, teacher)
            return result, torch.sub(result, wanted, out=wanted).mul_(piece.cells(twice))

        return _gradient_before(student, look, share, own.inverse), None, None, None, None


def _summed_squares(like: Tensor, difference: Callable[[_Piece], Tensor]) -> Tensor:
    """The squares of a difference, which is given piece by piece, summed over the channels: (B, H, W)."""
    total = torch.zeros_like(like[:, 0])
    for piece in _pieces(like):
        total[piece.images, piece.rows] += difference(piece).square_().sum(dim=1)
    return total


def standardise(level: Tensor, valid: Tensor, eps: float = 1e-6) -> Tensor:
    """Give every channel zero mean and unit variance over the valid cells of the batch, that of all processes.

    Args:
        level: (B, C, H, W), any finite values: the result and its gradient are finite.
        valid: (B, H, W) bool; at least one cell is valid.
        eps: added to the variance.
    """
    found: Tensor = _Standardised.apply(level, valid.to(level.dtype), eps)
    return found


def squared_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of two maps (B, C, H, W), summed over the channels: (B, H, W).

    The teacher's map gets no gradient. Values up to 1e15 give a finite mean over any region, in float32.
    """
    found: Tensor = _SquaredDifference.apply(student, teacher)
    return found


def absolute_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """The published code's variant of an absolute difference, summed over the channels: (B, H, W).

    `|d|` where it is below 1, `d^2` elsewhere: the other way round than a Huber loss, so large differences count more.
    Values up to 1e15 give a finite mean over any region, in float32.
    """
    difference = (student - teacher).abs()
    return torch.where(difference < 1, difference, difference.square()).sum(dim=1)


def divisive_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared relative difference `(1 - s / (t + 1e-8))^2` of two maps, summed over the channels: (B, H, W).

    It has no upper limit where the teacher's map is near zero, and is not zero there for equal maps. It is finite where
    the teacher's values are at least 0.01 from zero and the student's at most 1e6.
    """
    return (1 - student / (teacher + 1e-8)).square().sum(dim=1)


def standardised_difference(student: Tensor, teacher: Tensor, valid: Tensor, eps: float = 1e-6) -> Tensor:
    """`squared_difference` of two maps, both as `standardise` gives them, without a map in between.

    Args:
        student: (B, C, H, W), any finite values.
        teacher: likewise; it gets no gradient.
        valid: (B, H, W) bool; at least one cell is valid.
        eps: added to the variance.

    Returns:
        (B, H, W).
    """
    weight = valid.to(student.dtype)
    count = added(weight.sum())
    own, other = (_scale(one.detach(), weight, count, eps) for one in (student, teacher))
    if not _are_safe(own, other):
        return squared_difference(standardise(student, valid, eps), standardise(teacher, valid, eps))
    found: Tensor = _StandardisedDifference.apply(student, teacher, weight / count, own, other)
    return found


DIFFERENCES = {"squared": squared_difference, "absolute": absolute_difference, "divisive": divisive_difference}
