"""The normalisation layers of a backbone: what `--norm` does to them."""

import math
from typing import Any, Literal, cast, get_args

from timm.layers import BatchNormAct2d, GroupNormAct, convert_sync_batchnorm, freeze_batch_norm_2d
from torch import nn

from defeat.errors import unknown_name

Norm = Literal["bn", "syncbn", "bn_eval", "frozen", "gn"]
NORMS: tuple[str, ...] = get_args(Norm)


def apply_norm(body: nn.Module, norm: str) -> nn.Module:
    """Turn the batch normalisation of a backbone into what was asked for, keeping its affine weights.

    Args:
        body: a network with `BatchNorm2d` layers; it is changed in place where possible.
        norm: `bn` (as it is: statistics of the batch on one device), `syncbn` (statistics over all devices), `bn_eval`
            (statistics of the pretraining, affine weights are trained; `Backbone` holds them in eval mode), `frozen`
            (statistics and affine weights stay those of the pretraining) or `gn` (group normalisation, 32 groups or
            the largest number that divides the channels; the statistics of the pretraining are lost).

    Raises:
        InputError: the name is unknown.
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
