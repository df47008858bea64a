"""Arithmetic shared by the methods: means over a region or a mask, and divergences of class predictions."""

import torch.nn.functional as F
from torch import Tensor

from defeat.distillation.processes import average_count


def region_mean(per_cell: Tensor, region: Tensor, channels: int) -> Tensor:
    """Sum over a region of the whole batch, divided by twice the number of the region's elements.

    The divisor is that of the published code, `max(1, 2 * cells * channels)`, so that an empty region gives zero. With
    several processes, the batch is that of all processes.

    Args:
        per_cell: (B, H, W), a value per cell, already summed over its channels; any value outside the region.
        region: (B, H, W), bool or weights in 0..1.
        channels: number of channels that were summed in each cell.

    Returns:
        Scalar.
    """
    weight = region.to(per_cell.dtype)
    inside = per_cell.masked_fill(weight == 0, 0)  # infinity times zero would not be zero
    return (inside * weight).sum() / average_count(2 * channels * weight.sum())


def softmax_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of softmax predictions at a temperature T, times T^2 (Hinton et al., 2015).

    Args:
        student: (R, K+1) logits.
        teacher: (R, K+1) logits.
        temperature: above 0.

    Returns:
        (R,), not negative.
    """
    target = F.log_softmax(teacher / temperature, dim=1)
    prediction = F.log_softmax(student / temperature, dim=1)
    return F.kl_div(prediction, target, reduction="none", log_target=True).sum(dim=1) * temperature**2


def sigmoid_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of one Bernoulli variable per class at a temperature T, summed over classes, times T^2.

    Args:
        student: (N, K) logits.
        teacher: (N, K) logits.
        temperature: above 0.

    Returns:
        (N,), not negative.
    """
    target, prediction = teacher / temperature, student / temperature
    probability = target.sigmoid()
    # KL = p (log p - log q) + (1 - p) (log(1 - p) - log(1 - q)), with log sigmoid so that nothing overflows.
    positive = probability * (F.logsigmoid(target) - F.logsigmoid(prediction))
    negative = (1 - probability) * (F.logsigmoid(-target) - F.logsigmoid(-prediction))
    return (positive + negative).sum(dim=1) * temperature**2


def softmax_cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    """Binary cross entropy between two softmax outputs, times ten, averaged over the classes, as in the published code.

    Args:
        student: (R, K+1) logits.
        teacher: (R, K+1) logits.

    Returns:
        (R,), not negative; for equal logits it has its minimum, which is not zero.
    """
    prediction, target = F.softmax(student, dim=1), F.softmax(teacher, dim=1)
    return 10 * F.binary_cross_entropy(prediction, target, reduction="none").mean(dim=1)


def sigmoid_cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    """`softmax_cross_entropy` for the sigmoid outputs of (N, K) logits: (N,)."""
    return 10 * F.binary_cross_entropy_with_logits(student, teacher.sigmoid(), reduction="none").mean(dim=1)


def balanced_cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    """Binary cross entropy with the teacher's scores, weighted by the distance of the scores, summed over the classes.

    Per class |sigmoid(t) - sigmoid(s)| BCE(s, sigmoid(t)), the factor without gradient (Yang et al., BCKD, ICCV 2023,
    equation 5). Predictions on which both agree have no gradient, so that the many easy negatives do not outweigh the
    rest. Unlike a divergence at a high temperature, the optimum is exactly the teacher's score.

    Args:
        student: (N, K) sigmoid logits.
        teacher: (N, K) sigmoid logits.

    Returns:
        (N,), not negative; zero for equal logits.
    """
    target = teacher.sigmoid()
    distance = (target - student.detach().sigmoid()).abs()
    return (F.binary_cross_entropy_with_logits(student, target, reduction="none") * distance).sum(dim=1)


def masked_mean(values: Tensor, mask: Tensor, count_mask: Tensor | None = None) -> Tensor:
    """Mean of (R,) `values` where (R,) bool `mask` is true; zero, with a gradient of zero, where it never is.

    With several processes, the mean is over all processes.

    Args:
        values: (R,).
        mask: (R,) bool, the values that are summed.
        count_mask: (R,) bool, the elements whose number the sum is divided by; `mask` when None.
    """
    weight = mask.to(values.dtype)
    count = (mask if count_mask is None else count_mask).sum().to(values.dtype)
    return (values * weight).sum() / average_count(count)
