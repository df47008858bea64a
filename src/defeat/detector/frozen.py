"""A detector that learns no more computes its maps in less time."""

from collections import Counter
from copy import deepcopy
from typing import Any

import torch
from timm.layers import Conv2dSame, FrozenBatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.ops.misc import FrozenBatchNorm2d

from defeat.detector.base import Detector
from defeat.detector.taps import TappedTeacher

PLAIN = (nn.Conv2d, Conv2dSame)  # other convolutions make their weights anew in each pass
NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d, FrozenBatchNormAct2d)
PROBE = (1, 3, 128, 128)
CLOSE = 1e-3  # of a map's largest value


def frozen(detector: Detector | TappedTeacher, dtype: torch.dtype | None = None) -> Detector | TappedTeacher:
    """A copy of a teacher for inference alone: eval mode, no gradients, normalisation folded into convolutions.

    Args:
        detector: stays as it is.
        dtype: precision in which the copy's backbone and neck compute; None for that of their weights. The maps
            themselves are float32 in either case.
    """
    copy = deepcopy(detector).eval().requires_grad_(False)
    if not isinstance(copy, Detector):
        copy.dtype = dtype
        return copy
    copy.backbone = folded(copy.backbone)
    if dtype is not None:
        copy.backbone = LowPrecision(copy.backbone, dtype)
    return copy


class LowPrecision(nn.Module):
    """A backbone that computes in a lower precision where that is safe, and gives float32 maps.

    Args:
        backbone: gives maps of body and neck by stride.
        dtype: such as bfloat16.
    """

    def __init__(self, backbone: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.backbone, self.dtype = backbone, dtype

    def forward(self, images: Tensor) -> tuple[dict[int, Tensor], ...]:
        """Compute the maps of (B, 3, H, W) normalised images."""
        with torch.autocast(images.device.type, self.dtype):
            parts = self.backbone(images)
        return tuple({stride: level.float() for stride, level in part.items()} for part in parts)


@torch.no_grad()
def folded(backbone: nn.Module) -> nn.Module:
    """A copy of a backbone in eval mode whose batch normalisation is part of the convolutions before it.

    Which normalisation reads which convolution is seen in a forward pass. Where the copy does not give the same maps,
    because something else reads a convolution, too, the backbone itself is returned.

    Args:
        backbone: gives maps of body and neck by stride.
    """
    weight, copy = next(backbone.parameters()), deepcopy(backbone)
    noise = torch.randn(PROBE, generator=torch.Generator().manual_seed(0)).to(weight)
    wanted, pairs = _looked_at(copy, noise)
    for convolution, norm in pairs:
        _fold(copy, convolution, norm)
    found = copy(noise)
    levels = [(ours[stride], theirs[stride]) for ours, theirs in zip(found, wanted, strict=True) for stride in theirs]
    same = all(bool((ours - theirs).abs().max() <= CLOSE * theirs.abs().max()) for ours, theirs in levels)
    return copy if same else backbone


def _looked_at(backbone: nn.Module, images: Tensor) -> tuple[Any, list[tuple[Any, Any]]]:
    """What a backbone gives, and convolutions with the normalisation that reads them, where both take part once."""
    made: list[tuple[nn.Module, Tensor]] = []
    read: list[tuple[nn.Module, Tensor]] = []

    def seen(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if type(module) in PLAIN:
            made.append((module, output))
        else:
            read.append((module, inputs[0]))

    norms = [one for one in backbone.modules() if isinstance(one, NORMS) and one.running_mean is not None]
    watched = [*norms, *(one for one in backbone.modules() if type(one) in PLAIN)]
    handles = [module.register_forward_hook(seen) for module in watched]
    try:
        given = backbone(images)
    finally:
        for handle in handles:
            handle.remove()
    passes = Counter(module for module, _ in (*made, *read))
    makers = {id(output): convolution for convolution, output in made}  # `made` keeps the outputs alive
    pairs = [(makers[id(level)], norm) for norm, level in read if id(level) in makers]
    return given, [pair for pair in pairs if all(passes[module] == 1 for module in pair)]


def _fold(backbone: nn.Module, convolution: Any, norm: Any) -> None:
    statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    weight, bias = fuse_conv_bn_weights(convolution.weight, convolution.bias, *statistics)
    convolution.weight, convolution.bias = weight.requires_grad_(False), bias.requires_grad_(False)
    rest = [one for one in (getattr(norm, "drop", None), getattr(norm, "act", None)) if one is not None]
    name = next(name for name, module in backbone.named_modules() if module is norm)
    backbone.set_submodule(name, nn.Sequential(*rest).eval(), strict=True)
