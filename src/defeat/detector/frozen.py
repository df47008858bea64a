"""Faster inference of a teacher: batch normalisation folded into convolutions, optionally lower precision."""

from collections import Counter
from copy import deepcopy
from typing import Any

import torch
from timm.layers import Conv2dSame, FrozenBatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.ops.misc import FrozenBatchNorm2d

from defeat.detector.base import Detector
from defeat.detector.boxes import BoxNetwork
from defeat.detector.ensemble import TeacherEnsemble
from defeat.detector.taps import TappedTeacher

CONVOLUTIONS = (nn.Conv2d, Conv2dSame)  # others compute their weights in each forward pass
NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d, FrozenBatchNormAct2d)
PROBE = (1, 3, 128, 128)
TOLERANCE = 1e-3  # relative to the largest value of a feature map


Network = Detector | TappedTeacher | TeacherEnsemble | BoxNetwork


def frozen(detector: Network, dtype: torch.dtype | None = None) -> Network:
    """Copy a teacher for inference: eval mode, no gradients, batch normalisation folded into convolutions.

    A teacher that only gives boxes is returned: it has no weights, and sessions of ONNX Runtime can't be copied.

    Args:
        detector: teacher to copy.
        dtype: precision of backbone and neck of the copy; None for that of their weights. The feature maps are float32
            in either case.
    """
    if isinstance(detector, BoxNetwork):
        return detector
    if isinstance(detector, TeacherEnsemble):
        return TeacherEnsemble([_frozen_network(member, dtype) for member in detector.members]).eval()
    return _frozen_network(detector, dtype)


def _frozen_network(detector: Detector | TappedTeacher, dtype: torch.dtype | None) -> Detector | TappedTeacher:
    copy = deepcopy(detector).eval().requires_grad_(False)
    if not isinstance(copy, Detector):
        copy.dtype = dtype
        return copy
    copy.backbone = folded(copy.backbone)
    if dtype is not None:
        copy.backbone = LowPrecision(copy.backbone, dtype)
    return copy


class LowPrecision(nn.Module):
    """A backbone under autocast that returns float32 feature maps.

    Args:
        backbone: computes feature maps of body and neck by stride.
        dtype: autocast precision, such as bfloat16.
    """

    def __init__(self, backbone: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.backbone, self.dtype = backbone, dtype

    def forward(self, images: Tensor) -> tuple[dict[int, Tensor], ...]:
        """Compute the feature maps of (B, 3, H, W) normalised images."""
        with torch.autocast(images.device.type, self.dtype):
            parts = self.backbone(images)
        return tuple({stride: level.float() for stride, level in part.items()} for part in parts)


@torch.no_grad()
def folded(backbone: nn.Module) -> nn.Module:
    """Copy a backbone in eval mode, and fold its batch normalisation into the preceding convolutions.

    A forward pass determines which normalisation follows which convolution. If the feature maps of the copy differ,
    because another module also uses the output of a convolution, the backbone itself is returned.

    Args:
        backbone: computes feature maps of body and neck by stride.
    """
    weight, copy = next(backbone.parameters()), deepcopy(backbone)
    noise = torch.randn(PROBE, generator=torch.Generator().manual_seed(0)).to(weight)
    expected, pairs = _trace(copy, noise)
    for convolution, norm in pairs:
        _fold(copy, convolution, norm)
    parts = zip(copy(noise), expected, strict=True)
    levels = [(folded_maps[stride], maps[stride]) for folded_maps, maps in parts for stride in maps]
    equal = all(bool((level - other).abs().max() <= TOLERANCE * other.abs().max()) for level, other in levels)
    return copy if equal else backbone


def _trace(backbone: nn.Module, images: Tensor) -> tuple[Any, list[tuple[Any, Any]]]:
    """Feature maps of a backbone, and pairs of a convolution and the normalisation after it, both called once."""
    conv_outputs: list[tuple[nn.Module, Tensor]] = []
    norm_inputs: list[tuple[nn.Module, Tensor]] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if type(module) in CONVOLUTIONS:
            conv_outputs.append((module, output))
        else:
            norm_inputs.append((module, inputs[0]))

    norms = [module for module in backbone.modules() if isinstance(module, NORMS) and module.running_mean is not None]
    convolutions = [module for module in backbone.modules() if type(module) in CONVOLUTIONS]
    handles = [module.register_forward_hook(record) for module in (*norms, *convolutions)]
    try:
        maps = backbone(images)
    finally:
        for handle in handles:
            handle.remove()
    calls = Counter(module for module, _ in (*conv_outputs, *norm_inputs))
    producers = {id(output): convolution for convolution, output in conv_outputs}  # `conv_outputs` keeps them alive
    pairs = [(producers[id(features)], norm) for norm, features in norm_inputs if id(features) in producers]
    return maps, [pair for pair in pairs if all(calls[module] == 1 for module in pair)]


def _fold(backbone: nn.Module, convolution: Any, norm: Any) -> None:
    statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    weight, bias = fuse_conv_bn_weights(convolution.weight, convolution.bias, *statistics)
    convolution.weight, convolution.bias = weight.requires_grad_(False), bias.requires_grad_(False)
    rest = [layer for layer in (getattr(norm, "drop", None), getattr(norm, "act", None)) if layer is not None]
    name = next(name for name, module in backbone.named_modules() if module is norm)
    backbone.set_submodule(name, nn.Sequential(*rest).eval(), strict=True)
