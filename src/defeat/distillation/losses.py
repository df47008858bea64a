"""The arithmetic that methods share: differences of maps over a region, and divergences of class predictions."""

import torch
import torch.nn.functional as F
from torch import Tensor


def squared_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of two maps (B, C, H, W), summed over the channels: (B, H, W)."""
    return (student - teacher).square().sum(dim=1)


def region_mean(per_cell: Tensor, region: Tensor, channels: int) -> Tensor:
    """Sum over a region of the whole batch, over twice the number of the region's elements.

    The norm of the published code: `max(1, 2 * cells * channels)`, so that an empty region gives zero.

    Args:
        per_cell: (B, H, W), a value for each cell, already summed over its channels.
        region: (B, H, W), bool or weights in 0..1.
        channels: how many channels went into each cell's value.

    Returns:
        Scalar.
    """
    weight = region.to(per_cell.dtype)
    return (per_cell * weight).sum() / (2 * channels * weight.sum()).clamp(min=1)


def standardise(level: Tensor, valid: Tensor, eps: float = 1e-6) -> Tensor:
    """Give every channel zero mean and unit variance over the valid cells of the batch.

    Args:
        level: (B, C, H, W).
        valid: (B, H, W) bool; at least one cell is valid.
        eps: added to the variance.
    """
    weight = valid[:, None].to(level.dtype)
    count = weight.sum()
    mean = (level * weight).sum(dim=(0, 2, 3), keepdim=True) / count
    centred = level - mean
    variance = (centred.square() * weight).sum(dim=(0, 2, 3), keepdim=True) / count
    return centred * torch.rsqrt(variance + eps)


def softmax_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of softmax predictions at a temperature, times its square (Hinton et al., 2015).

    Args:
        student: (R, K+1) logits.
        teacher: (R, K+1) logits.
        temperature: above 0.

    Returns:
        (R,), not negative.
    """
    target = F.log_softmax(teacher / temperature, dim=1)
    found = F.log_softmax(student / temperature, dim=1)
    return F.kl_div(found, target, reduction="none", log_target=True).sum(dim=1) * temperature**2


def sigmoid_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of one Bernoulli variable a class, summed over classes, times the squared temperature.

    Args:
        student: (N, K) logits.
        teacher: (N, K) logits.
        temperature: above 0.

    Returns:
        (N,), not negative.
    """
    target, found = teacher / temperature, student / temperature
    probability = target.sigmoid()
    # KL = p (log p - log q) + (1 - p) (log(1 - p) - log(1 - q)), with log sigmoid so that nothing overflows.
    positive = probability * (F.logsigmoid(target) - F.logsigmoid(found))
    negative = (1 - probability) * (F.logsigmoid(-target) - F.logsigmoid(-found))
    return (positive + negative).sum(dim=1) * temperature**2


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of (R,) `values` where (R,) bool `mask` is true; zero, with a gradient of zero, where it never is."""
    weight = mask.to(values.dtype)
    return (values * weight).sum() / weight.sum().clamp(min=1)
