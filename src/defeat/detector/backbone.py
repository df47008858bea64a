"""Backbones: feature maps of a classification network at several strides, with a feature pyramid network."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any

import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import Bottleneck
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelP6P7

from defeat.detector.normalisation import apply_norm
from defeat.detector.weights import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    WeightSource,
    find_weights,
    fit_state_dict,
    read_state_dict,
)
from defeat.errors import InputError, unknown_name

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
CAFFE = "_caffe"  # ends the name of a ResNet whose stages begin with a 1 x 1 convolution of stride 2
CAFFE_RESNETS = tuple(name + CAFFE for name in RESNETS[2:])
Maps = dict[int, Tensor]


class Backbone(nn.Module):
    """A body with feature maps at several strides, and a feature pyramid network (Lin et al., CVPR 2017) on them.

    The parts are called `body` and `fpn` as in torchvision, so that its checkpoints can be loaded.

    Attributes:
        body_channels: channels of the body's feature maps that the pyramid uses, by stride.
        neck_channels: channels of the pyramid's feature maps by stride.
        mean: mean of R, G, B of the body's pretraining, for values in 0..1.
        std: standard deviation of R, G, B.
    """

    def __init__(
        self,
        body: nn.Module,
        fpn: nn.Module,
        body_channels: dict[int, int],
        neck_channels: dict[int, int],
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.body = body
        self.fpn = fpn
        self.body_channels = body_channels
        self.neck_channels = neck_channels
        self.mean, self.std = tuple(mean), tuple(std)
        self._frozen_norms: list[nn.Module] = []  # batch normalisation whose statistics are frozen

    def forward(self, images: Tensor) -> tuple[Maps, Maps]:
        """Compute the feature maps of body and neck by stride.

        Args:
            images: (B, 3, H, W), normalised; H and W are multiples of 32.
        """
        features = self.body(images)
        features = list(features.values()) if isinstance(features, dict) else list(features)
        pyramid = self.fpn({str(index): feature for index, feature in enumerate(features)})
        backbone = dict(zip(self.body_channels, features, strict=True))
        neck = dict(zip(self.neck_channels, pyramid.values(), strict=True))
        return backbone, neck

    def freeze(self, parameters: Sequence[tuple[str, nn.Parameter]]) -> None:
        """Freeze parameters of the body, and the statistics of the normalisation layers that own them."""
        for _, parameter in parameters:
            parameter.requires_grad_(False)
        owners = {name.rpartition(".")[0] for name, _ in parameters}
        self.freeze_statistics(module for name, module in self.body.named_modules() if name in owners)

    def freeze_stages(self, count: int, stages: Sequence[str], name: str) -> None:
        """Freeze the first stages of the body.

        Args:
            count: number of stages to freeze.
            stages: name of the last module of each stage.
            name: of the backbone, for messages.

        Raises:
            InputError: the backbone has fewer stages.
        """
        if not 0 <= count <= len(stages):
            raise InputError(f"--frozen-stages {count}: {name} has {len(stages)} stages, give 0 to {len(stages)}.")
        self.freeze(list(parameters_up_to(self.body, stages[:count])))

    def freeze_statistics(self, modules: Iterable[nn.Module]) -> None:
        """Freeze the running statistics of the batch normalisation among these modules."""
        self._frozen_norms += [module for module in modules if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        self.train(self.training)

    def train(self, mode: bool = True) -> "Backbone":
        """Set the mode of all modules except normalisation with frozen statistics."""
        super().train(mode)
        for module in self._frozen_norms:
            module.eval()
        return self


class UpperLevels(LastLevelP6P7):  # type: ignore[misc] # torchvision has no types
    """P6 and P7, by convolutions of stride 2, on CPU always in float32.

    In bfloat16 on CPU, the weight gradient of such a convolution on a feature map of one cell, as small images have it,
    reads uninitialised memory (seen with torch 2.15).

    Args:
        body_channels: channels of the body's last level.
        neck_channels: channels of the pyramid.
        source: P6 is computed from the last level of the `neck`, or of the `body`.
        activation: whether P6 passes a ReLU before P7 is computed.
    """

    def __init__(self, body_channels: int, neck_channels: int, source: str = "neck", activation: bool = True) -> None:
        super().__init__(body_channels if source == "body" else neck_channels, neck_channels)
        self.use_P5 = source == "neck"
        self.activation = activation

    def forward(self, pyramid: list[Tensor], body: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        """Append two levels and their names to the pyramid, finest first."""
        on_cpu = pyramid[-1].device.type == "cpu"
        dtype = self.p6.weight.dtype
        top, last = ([maps[-1].to(dtype) if on_cpu else maps[-1]] for maps in (pyramid, body))
        with torch.autocast("cpu", enabled=False) if on_cpu else nullcontext():
            p6 = self.p6(top[0] if self.use_P5 else last[0])
            p7 = self.p7(F.relu(p6) if self.activation else p6)
        return [*pyramid, p6, p7], [*names, "p6", "p7"]


def build_backbone(
    name: str,
    *,
    strides: Sequence[int],
    weights: str,
    norm: str,
    neck_channels: int,
    frozen_stages: int,
    extra_blocks: Callable[[int, int], ExtraFPNBlock],
    extra_strides: Sequence[int],
) -> Backbone:
    """Build a body with a feature pyramid network.

    Args:
        name: `resnet18` to `resnet152` (torchvision), `resnet50_caffe` to `resnet152_caffe` (with the stride of each
            stage in its first convolution, as in the original networks), or any timm network with NCHW feature maps at
            `strides`.
        strides: strides of the body's feature maps that the pyramid uses, e.g. 4, 8, 16, 32.
        weights: `auto`, `none` or a file (see `find_weights`).
        norm: `bn`, `syncbn`, `bn_eval`, `frozen` or `gn` (see `apply_norm`), for the body.
        neck_channels: channels of the pyramid's feature maps.
        frozen_stages: number of stages of the body that are not trained: 0 none, 1 the stem, 5 the whole body.
        extra_blocks: builds the pyramid's upper levels, given the channels of the last body level and of the neck.
        extra_strides: strides of those levels.

    Raises:
        InputError: unknown name, unsuitable network, or weights that do not match.
    """
    source = find_weights(name, weights)
    if name in (*RESNETS, *CAFFE_RESNETS):
        body, channels, stages = _torchvision_body(name, strides, source)
        mean: Sequence[float] = IMAGENET_MEAN
        std: Sequence[float] = IMAGENET_STD
    else:
        body, channels, stages, mean, std = timm_body(name, strides, source)
    last = channels[max(channels)]
    fpn = FeaturePyramidNetwork(list(channels.values()), neck_channels, extra_blocks(last, neck_channels))
    backbone = Backbone(
        apply_norm(body, norm), fpn, channels, dict.fromkeys((*strides, *extra_strides), neck_channels), mean, std
    )
    if norm == "bn_eval":
        backbone.freeze_statistics(backbone.body.modules())
    backbone.freeze_stages(frozen_stages, stages, name)
    return backbone


def parameters_up_to(body: nn.Module, stages: Sequence[str]) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters from the input to the end of the last of these stages, in the order of the forward pass."""
    names = {name for stage in stages for name in (stage, stage.replace(".", "_"))}  # timm flattens some names
    modules = [name for name, _ in body.named_modules()]
    # By the index of modules, because a stage may end with a module without parameters, such as an activation.
    ends = [index for index, name in enumerate(modules) if any(f"{name}.".startswith(f"{stage}.") for stage in names)]
    inside = set(modules[: max(ends, default=-1) + 1])
    return (pair for pair in body.named_parameters() if pair[0].rpartition(".")[0] in inside)


def _torchvision_body(
    name: str, strides: Sequence[int], source: WeightSource
) -> tuple[nn.Module, dict[int, int], list[str]]:
    caffe = name.endswith(CAFFE)
    if caffe and source.kind == "download":
        raise InputError(f"There are no weights of {name!r} to download: give --weights none, or a file.")
    try:
        architecture = name.removesuffix(CAFFE)
        network = torchvision.models.get_model(architecture, weights="DEFAULT" if source.kind == "download" else None)
    except OSError as error:
        raise no_download(name, error) from error
    for block in network.modules() if caffe else ():
        if isinstance(block, Bottleneck):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
    if source.path is not None:
        fit_state_dict(network, read_state_dict(source.path), source.path, ("fc",))
    layers = {4: "layer1", 8: "layer2", 16: "layer3", 32: "layer4"}
    widest = network.fc.in_features  # channels at stride 32, halved at each lower stride
    channels = {stride: widest * stride // 32 for stride in strides}
    body = IntermediateLayerGetter(network, {layers[stride]: str(index) for index, stride in enumerate(strides)})
    return body, channels, ["bn1", *layers.values()]


def timm_body(
    name: str, strides: Sequence[int], source: WeightSource
) -> tuple[nn.Module, dict[int, int], list[str], Sequence[float], Sequence[float]]:
    """Build a timm network without its classifier.

    Args:
        name: name of the network.
        strides: strides of the feature maps that it returns.
        source: source of its weights.

    Returns:
        The network, the channels of its maps by stride, the names of its stages, and mean and standard deviation of
        its pretraining.

    Raises:
        InputError: unknown name, unsuitable network, or weights that do not match.
    """
    name = name.removeprefix("timm:")
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), n=5)  # there are more than a thousand
        error = unknown_name("backbone", name, {*RESNETS, *CAFFE_RESNETS, *near})
        raise InputError(f"{error} Other convolutional networks of timm.list_models() are valid, too.")
    probe = _probe(name)
    reductions, channels, layout = probe.reductions, probe.channels, probe.layout
    if layout != "NCHW" or not set(strides) <= set(reductions):
        raise InputError(
            f"Backbone {name!r} has {layout} feature maps at strides {list(reductions)}; "
            f"expected NCHW at strides {list(strides)}. Choose a convolutional network."
        )
    indices = [reductions.index(stride) for stride in strides]
    options: dict[str, Any] = {"features_only": True, "pretrained": source.kind != "none"}
    if source.path is not None:
        network = timm.create_model(name, pretrained=False)
        classifier = network.pretrained_cfg.get("classifier") or ()
        head = (classifier,) if isinstance(classifier, str) else tuple(classifier)
        state = fit_state_dict(network, read_state_dict(source.path), source.path, head)
        options["pretrained_cfg_overlay"] = {"state_dict": state}
    try:
        with _quiet_timm():
            body = timm.create_model(name, out_indices=[probe.indices[i] for i in indices], **options)
    except OSError as error:
        raise no_download(name, error) from error
    configuration = timm.get_pretrained_cfg(name)
    if configuration is None or source.kind not in ("download", "file"):
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    else:
        mean, std = configuration.mean, configuration.std
    body_channels = {stride: channels[index] for stride, index in zip(strides, indices, strict=True)}
    return body, body_channels, list(probe.stages), mean, std


@dataclass(frozen=True)
class _FeatureMaps:
    """The feature maps of a timm network.

    Attributes:
        reductions: the stride of each.
        channels: the channels of each.
        indices: the index of each, by which timm selects it.
        stages: the module that ends with each.
        layout: order of their axes.
    """

    reductions: tuple[int, ...]
    channels: tuple[int, ...]
    indices: tuple[int, ...]
    stages: tuple[str, ...]
    layout: str


@cache
def _probe(name: str) -> _FeatureMaps:
    """Build the network without weights, to inspect its feature maps: once, because that takes as long as the body."""
    try:
        with torch.random.fork_rng(devices=[]):
            network: Any = timm.create_model(name, features_only=True, pretrained=False)
    except (RuntimeError, AssertionError, AttributeError) as error:
        raise InputError(f"Backbone {name!r} has no feature maps ({error}); choose another one.") from error
    maps = network.feature_info
    layout = str(getattr(network, "output_fmt", None) or "NCHW").removeprefix("Format.")
    return _FeatureMaps(
        tuple(maps.reduction()), tuple(maps.channels()), tuple(maps.out_indices), tuple(maps.module_name()), layout
    )


@contextmanager
def _quiet_timm() -> Iterator[None]:
    """Suppress timm's warning about the classifier, which a detector does not use."""
    logger = logging.getLogger("timm")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def no_download(name: str, error: Exception) -> InputError:
    """The error for weights of a backbone that could not be downloaded."""
    return InputError(
        f"The pretrained weights of {name!r} could not be downloaded ({type(error).__name__}); "
        "give a file with --weights PATH, or train from random weights with --weights none."
    )
