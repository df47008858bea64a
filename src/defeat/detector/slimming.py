"""Narrower detectors: the channels with the smallest norms are removed from every layer of a backbone's body.

Which tensors share a channel (through residual connections, depthwise convolutions, squeeze and excitation) is found by
torch-pruning (Fang et al., DepGraph, CVPR 2023), which is needed to remove channels, not to load the result.
"""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from timm.layers import FrozenBatchNormAct2d
from torch import Tensor, nn
from torchvision.ops.misc import FrozenBatchNorm2d

from defeat.detector.backbone import Backbone
from defeat.detector.base import Detector
from defeat.detector.description import LEAST_WIDTH
from defeat.errors import InputError, first_line, missing_package

MULTIPLE = 8  # of channels, for which processors are fastest
FROZEN_NORMS = (FrozenBatchNorm2d, FrozenBatchNormAct2d)
PROBE = (1, 3, 128, 128)


class _Maps(nn.Module):
    """A backbone as a function that returns a list, which torch-pruning can trace."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> list[Tensor]:
        """The feature maps of body and neck of (B, 3, H, W) images."""
        return [level for part in self.backbone(images) for level in part.values()]


def make_narrower(detector: Detector, width: float) -> None:
    """Remove channels from the body of a detector, those with the smallest norms; neck and head keep theirs.

    A group of tensors that share a channel is judged by the L2 norm of all weights of the channel. The feature maps of
    the result are smaller than before, so that it has to be trained.

    Args:
        detector: the detector to change, in place.
        width: share of the channels of each layer to keep, 0.1..1, rounded to multiples of 8 channels.

    Raises:
        InputError: torch-pruning is not installed, or the backbone can't be made narrower.
    """
    try:
        import torch_pruning
    except ImportError as error:
        raise missing_package("--width", "torch-pruning", "slim") from error
    training = detector.training
    frozen = {name for name, parameter in detector.named_parameters() if not parameter.requires_grad}
    weight = next(detector.parameters())
    body = detector.backbone.get_submodule("body")
    inside = set(body.modules())
    others = [module for module in detector.backbone.modules() if module not in inside and not _contains(module, body)]
    detector.eval().requires_grad_(True)  # torch-pruning follows the gradient
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch-pruning, on parameters outside of layers
            pruner = torch_pruning.pruner.BasePruner(
                _Maps(detector.backbone),
                torch.rand(PROBE, generator=torch.Generator().manual_seed(0)).to(weight),
                importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
                pruning_ratio=1 - width,
                round_to=MULTIPLE,
                ignored_layers=others,
                customized_pruners=dict.fromkeys(FROZEN_NORMS, _frozen_norm_pruner()),
            )
            pruner.step()
            _describe(detector)
            detector.predict([torch.zeros(PROBE[1:])])  # the heads of some families read the body
    except Exception as error:  # of any type, raised by networks that torch-pruning can't follow
        reason = first_line(error)
        raise InputError(
            f"--width {width:g}: {detector.spec.backbone} of {detector.spec.family} can't be made narrower ({reason}); "
            "choose a smaller --backbone instead."
        ) from error
    detector.train(training)
    for name, parameter in detector.named_parameters():
        parameter.requires_grad_(name not in frozen)
    detector.spec = replace(detector.spec, width=max(LEAST_WIDTH, width * detector.spec.width))


def fit_shapes(detector: Detector, weights: Mapping[str, Tensor]) -> None:
    """Change the layers of a detector to the shapes of the weights of one that `make_narrower` changed.

    Args:
        detector: a detector with the original number of channels; its weights are lost.
        weights: a state dict with tensors of the same names.

    Raises:
        InputError: the shapes do not fit each other.
    """
    for name, module in detector.backbone.named_modules(prefix="backbone"):
        _resize(module, name, weights)
    if next(detector.parameters()).is_meta:
        return
    try:
        _describe(detector)
    except RuntimeError as error:
        raise InputError(f"The layers do not fit each other ({first_line(error)}).") from error


def as_narrow_as(trained: Detector, detector: Detector) -> Detector:
    """Give a detector the shapes of a trained one from which channels were removed, if they were; it is returned."""
    if trained.spec.width < 1:
        fit_shapes(detector, trained.state_dict())
        detector.spec = replace(detector.spec, width=trained.spec.width)
    return detector


def _frozen_norm_pruner() -> Any:
    """What removes channels from a normalisation whose weights are buffers."""
    import torch_pruning

    class FrozenNormPruner(torch_pruning.function.BasePruningFunc):  # type: ignore[misc]
        """Keeps the other channels of all of its tensors."""

        def prune_out_channels(self, layer: Any, idxs: list[int]) -> Any:
            """Remove the channels with these indices."""
            removed = set(idxs)
            kept = [index for index in range(self.get_out_channels(layer)) if index not in removed]
            for name, values in [*layer.named_buffers(recurse=False)]:
                if values.ndim == 1:
                    setattr(layer, name, values[kept])
            _count_channels(layer)
            return layer

        def get_out_channels(self, layer: Any) -> int:
            """Number of channels."""
            return int(layer.weight.numel())

        prune_in_channels, get_in_channels = prune_out_channels, get_out_channels

    return FrozenNormPruner()


def _contains(module: nn.Module, body: nn.Module) -> bool:
    return any(part is body for part in module.modules())


def _resize(module: nn.Module, name: str, weights: Mapping[str, Tensor]) -> None:
    """Give the tensors of a module, without those of its parts, the shapes of weights."""
    tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    changed = [(own, old, tensor.shape) for own, old in tensors if (tensor := weights.get(f"{name}.{own}")) is not None]
    changed = [(own, old, shape) for own, old, shape in changed if shape != old.shape]
    for own, old, shape in changed:
        if len(shape) != old.ndim:
            raise InputError(f"The tensor {name}.{own} can't have the shape {tuple(shape)}.")
        new = old.new_zeros(shape)
        setattr(module, own, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
    if changed:
        _count_channels(module)


def _count_channels(module: Any) -> None:
    """Set the numbers of channels of a layer to those of its weight."""
    shape = getattr(module, "weight", torch.empty(0)).shape
    if isinstance(module, nn.Conv2d):
        if module.groups == module.in_channels > 1:
            module.groups = shape[0]
        module.out_channels, module.in_channels = shape[0], shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape
    elif hasattr(module, "num_features"):
        module.num_features = shape[0]
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(shape)


@torch.no_grad()
def _describe(detector: Detector) -> None:
    """Update the channels of the body's feature maps in the properties of a detector.

    Raises:
        RuntimeError: the layers do not fit each other.
    """
    training = detector.training
    body, _ = detector.eval().backbone(torch.zeros(PROBE).to(next(detector.parameters())))
    detector.train(training)
    channels = {stride: level.shape[1] for stride, level in body.items()}
    detector.info = replace(detector.info, backbone=channels)
    if isinstance(detector.backbone, Backbone):
        detector.backbone.body_channels = channels
