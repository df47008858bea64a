"""Normalisation layers: `--norm` of a backbone, and group normalisation of a head."""

import math
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, GroupNormAct, convert_sync_batchnorm, freeze_batch_norm_2d
from torch import Tensor, nn

from defeat.errors import unknown_name

Norm = Literal["bn", "syncbn", "bn_eval", "frozen", "gn"]
NORMS: tuple[str, ...] = get_args(Norm)


class GroupNorm(nn.GroupNorm):
    """Group normalisation that also accepts a single value per group, whose result is the bias.

    That is a feature map of one cell with one channel per group. `nn.GroupNorm` accepts it for several images, with the
    same result, but not for one image.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Normalise (B, C, H, W) features."""
        return torch.group_norm(features, self.num_groups, self.weight, self.bias, self.eps)


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation that uses its running statistics for a single value per channel.

    The coarsest feature map may be one cell, and a batch one image: `nn.BatchNorm2d` refuses that in training.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Normalise (B, C, H, W) features."""
        if not self.training or features.numel() > features.shape[1]:
            return super().forward(features)
        return F.batch_norm(features, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


def apply_norm(body: nn.Module, norm: str) -> nn.Module:
    """Replace the batch normalisation of a backbone; affine weights are kept.

    Args:
        body: a network with `BatchNorm2d` layers; it is changed in place if possible.
        norm: `bn` (unchanged: batch statistics of one device), `syncbn` (batch statistics of all devices), `bn_eval`
            (pretrained statistics, trained affine weights; `Backbone` keeps these layers in eval mode), `frozen`
            (pretrained statistics and affine weights) or `gn` (group normalisation; the number of groups is the
            greatest common divisor of 32 and the channels; the pretrained statistics are lost).

    Raises:
        InputError: unknown name.
    """
    if norm not in NORMS:
        raise unknown_name("norm", norm, NORMS)
    if norm == "syncbn":
        body = convert_sync_batchnorm(body)
    elif norm == "frozen":
        body = freeze_batch_norm_2d(body)
    elif norm == "gn":
        body = _to_group_norm(body)
    return body


def _to_group_norm(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.BatchNorm2d):
        groups = math.gcd(32, module.num_features)
        norm: Any = nn.GroupNorm(groups, module.num_features)
        if isinstance(module, BatchNormAct2d):
            norm = GroupNormAct(module.num_features, num_groups=groups, eps=1e-5)
            norm.act, norm.drop = module.act, module.drop
        norm.load_state_dict({"weight": module.weight, "bias": module.bias})
        return cast(nn.Module, norm)
    for name, child in module.named_children():
        setattr(module, name, _to_group_norm(child))
    return module
