"""Detectors of the package transformers: their configurations and checkpoints, and their parts as modules.

transformers is imported only when one of these detectors is built or loaded.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from defeat.detector.weights import IMAGENET_MEAN, IMAGENET_STD
from defeat.errors import InputError, first_line, missing_package, quoted

RT_KINDS = ("rt_detr", "rt_detr_v2", "d_fine", "deimv2")
LW_KINDS = ("lw_detr", "rf_detr")
KINDS = (*RT_KINDS, *LW_KINDS)
HUB_PREFIX = "hf:"  # marks the name of a model of the hub where a folder or a run directory is expected
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PREPROCESSOR = "preprocessor_config.json"
SIDE = 640  # input size in pixels of published checkpoints that do not name one
DIVISOR = 32
HEADS = 8  # attention heads of published configurations
PRIOR = 0.01  # first score of every class, as published; the default of transformers fits 80 classes
FEED_FORWARD = 4  # width of the feed-forward layers over that of the network


@dataclass(frozen=True)
class Checkpoint:
    """A trained model of transformers.

    Attributes:
        model: the model, with its weights.
        classes: names of its classes, in the order of the labels.
        size: side of its square input in pixels.
        mean: mean that its processor subtracts, for values in 0..1.
        std: standard deviation that it divides by.
        antialias: whether it antialiases images that it shrinks.
        source: where it was read from: a folder, or `hf:ORG/NAME`.
    """

    model: nn.Module
    classes: tuple[str, ...]
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    antialias: bool
    source: str

    @property
    def kind(self) -> str:
        """Model type, one of `KINDS`."""
        model: Any = self.model
        return str(model.config.model_type)


@dataclass(frozen=True)
class Parts:
    """A model of transformers, taken apart.

    Attributes:
        body: backbone; computes a list of feature maps.
        neck: computes feature maps by name from feature maps by name, as torchvision's pyramids do.
        head: everything after the encoder. Its input are the maps of the neck, see `run_head`.
        body_channels: channels of the body's feature maps, finest first.
        config: configuration of the model.
        loss: function that computes the losses.
    """

    body: nn.Module
    neck: nn.Module
    head: nn.Module
    body_channels: list[int]
    config: Any
    loss: Any


class MapsOfBackbone(nn.Module):
    """A backbone of transformers that returns a list of feature maps.

    Args:
        backbone: the backbone.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute feature maps (B, C, H, W) of images (B, 3, H, W), finest first."""
        return list(self.backbone(images).feature_maps)


class HybridNeck(nn.Module):
    """Input projections and the hybrid encoder of the RT-DETR line (Zhao et al., CVPR 2024).

    Args:
        projections: a module per level that maps the body's channels to those of the encoder.
        encoder: attention on the coarsest level, and fusion of the levels.
    """

    def __init__(self, projections: nn.ModuleList, encoder: nn.Module) -> None:
        super().__init__()
        self.projections, self.encoder = projections, encoder

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compute the encoder's feature maps (B, C, H, W) from the body's, finest first in both."""
        pairs = zip(self.projections, maps.values(), strict=True)
        output: Any = self.encoder([projection(level) for projection, level in pairs])
        levels = output.feature_maps if hasattr(output, "feature_maps") else output.last_hidden_state
        return {str(index): level for index, level in enumerate(levels)}


class GivenMaps(nn.Module):
    """Takes the place of the encoder in a head: returns maps that were computed before."""

    def __init__(self) -> None:
        super().__init__()
        self.maps: list[Tensor] = []

    def forward(self, *_: Any, **__: Any) -> SimpleNamespace:
        """Return the maps under the names that the models read."""
        return SimpleNamespace(last_hidden_state=self.maps, feature_maps=self.maps, hidden_states=None, attentions=None)


def require_transformers(kind: str) -> Any:
    """Import transformers.

    Args:
        kind: what needs it, for the message.

    Raises:
        InputError: it is not installed.
    """
    for name in ("transformers", "scipy"):  # scipy for the assignment in their losses
        if find_spec(name) is None:
            raise missing_package(kind, name, "transformers")
    return import_module("transformers")


def configuration(
    kind: str,
    backbone: str,
    indices: Sequence[int],
    channels: Sequence[int],
    width: int,
    *,
    queries: int,
    decoder_layers: int,
    denoising: int,
) -> dict[str, Any]:
    """Configuration of one of `RT_KINDS` with a timm backbone; what is not given here has the default of its kind.

    Args:
        kind: model type, one of `RT_KINDS`.
        backbone: name of a timm network.
        indices: which of its feature maps are used, at strides 8, 16 and 32.
        channels: their channels.
        width: channels of encoder and decoder.
        queries: number of object queries.
        decoder_layers: number of decoder layers.
        denoising: number of denoising queries in training.

    Raises:
        InputError: the width is not a multiple of four, or transformers is missing.
    """
    if width % 4:
        raise InputError(f"--neck-channels of {kind} must be a multiple of 4, not {width}.")
    body = {
        "model_type": "timm_backbone",
        "backbone": backbone.removeprefix("timm:"),
        "out_indices": list(indices),
        "use_pretrained_backbone": False,
    }
    values = {
        "backbone_config": body,
        # transformers replaces timm's layers of normalisation with activation, and loses the activation.
        "freeze_backbone_batch_norms": False,
        "encoder_in_channels": list(channels),
        **_of_width(width, len(channels)),
        "decoder_layers": decoder_layers,
        "initializer_bias_prior_prob": PRIOR,
        "num_queries": queries,
        "num_denoising": denoising,
    }
    return plain(require_transformers(kind).AutoConfig.for_model(kind, **values))


def plain(config: Any) -> dict[str, Any]:
    """A configuration as plain values, complete, for `model.json`."""
    content: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return content


def with_width(config: Mapping[str, Any], width: int) -> dict[str, Any]:
    """A configuration with other channels in encoder and decoder."""
    return {**config, **_of_width(width, len(config["decoder_in_channels"]))}


def _of_width(width: int, levels: int) -> dict[str, Any]:
    heads = math.gcd(HEADS, width // 2)
    return {
        "encoder_hidden_dim": width,
        "encoder_ffn_dim": FEED_FORWARD * width,
        "encoder_attention_heads": heads,
        "d_model": width,
        "decoder_in_channels": [width] * levels,
        "decoder_ffn_dim": FEED_FORWARD * width,
        "decoder_attention_heads": heads,
    }


def model_of(config: Mapping[str, Any], classes: Sequence[str]) -> nn.Module:
    """Build a model with random weights.

    Args:
        config: plain values, see `plain`.
        classes: names of the classes, in the order of the labels.

    Raises:
        InputError: the configuration is not valid, or not of one of `KINDS`.
    """
    kind = _kind(config)
    transformers = require_transformers(kind)
    names = {"id2label": dict(enumerate(classes)), "label2id": {name: label for label, name in enumerate(classes)}}
    values = {name: value for name, value in config.items() if name not in ("model_type", "num_labels")} | names
    try:
        with _quiet(transformers):
            fixed = _for_any_size(transformers.AutoConfig.for_model(kind, **values))
            model: nn.Module = transformers.AutoModelForObjectDetection.from_config(fixed)
    except Exception as error:  # of any type, raised by modules with untrusted arguments
        raise InputError(f"The configuration of {kind} is not valid: {first_line(error)}.") from error
    for layer in model.modules():  # RT-DETR's are drawn near zero, so that hardly any signal passes
        if type(layer) is nn.BatchNorm2d:
            nn.init.ones_(layer.weight)
    return model


def _kind(config: Mapping[str, Any]) -> str:
    kind = config.get("model_type")
    if kind not in KINDS:
        raise InputError(f"The configuration is that of {quoted(kind)}, not of one of {', '.join(KINDS)}.")
    return str(kind)


def _for_any_size(config: Any) -> Any:
    """A configuration whose positions are computed for each batch: equal at the size that it names."""
    if config.model_type in LW_KINDS:  # which interpolate theirs
        return config
    config.anchor_image_size = None
    config.eval_size = None
    if config.num_feature_levels != len(config.feat_strides):
        raise InputError(f"it has {config.num_feature_levels} levels of features for strides {config.feat_strides}")
    return config


def is_checkpoint(source: str | Path) -> bool:
    """Whether a source is a model of the hub, `hf:ORG/NAME`, or a folder written by `save_pretrained`."""
    folder = Path(source)
    if str(source).startswith(HUB_PREFIX):
        return True
    return (folder / CONFIG).is_file() and not (folder / "model.json").is_file()


def read_checkpoint(source: str | Path, family: str = "") -> Checkpoint:
    """Load a trained model; its weights are read from safetensors only, and no code of it is run.

    Args:
        source: a folder written by `save_pretrained`, or `hf:ORG/NAME`.
        family: the kind that it must have; empty for any.

    Raises:
        InputError: it is not a detector of `KINDS`, or of the family, can't be reached, or is incomplete.
    """
    name = str(source).removeprefix(HUB_PREFIX)
    local = not str(source).startswith(HUB_PREFIX)
    transformers = require_transformers(str(source))
    options: dict[str, Any] = {"local_files_only": local, "trust_remote_code": False}
    if local and not any((Path(name) / file).is_file() for file in (WEIGHTS, INDEX)):
        raise InputError(f"{name} has no {WEIGHTS}: weights are read from safetensors only.")
    try:
        with _quiet(transformers):
            config = transformers.AutoConfig.from_pretrained(name, **options)
            kind = _kind({"model_type": config.model_type})
            if family not in ("", kind):
                raise InputError(f"it is a {kind}, not a {family}.")
            fixed = _for_any_size(config)
            model, report = transformers.AutoModelForObjectDetection.from_pretrained(
                name, config=fixed, use_safetensors=True, output_loading_info=True, dtype=torch.float32, **options
            )
            processor = _processor(name, options)
    except InputError as error:
        raise InputError(f"{source} can't be used: {str(error).rstrip('.')}.") from error
    except Exception as error:  # of many types, raised for missing, damaged and unreachable files
        reach = "" if local else " (is the hub reachable, and the name ORG/NAME right?)"
        raise InputError(f"{source} can't be loaded{reach}: {first_line(error)}.") from error
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"{source} is not a complete {kind}: {len(missing)} tensors are missing, such as {missing[0]}."
        )
    classes = tuple(str(fixed.id2label[label]) for label in range(fixed.num_labels))
    if len(set(classes)) < len(classes):
        classes = tuple(f"{name} ({label})" for label, name in enumerate(classes))
    return Checkpoint(model, classes, *_input_of(processor, source, fixed), _antialias(processor, kind), str(source))


def _processor(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Settings of the processor of a checkpoint; empty where it has none."""
    mixin = import_module("transformers.image_processing_base").ImageProcessingMixin
    try:
        settings, _ = mixin.get_image_processor_dict(name, **options)
    except OSError:
        return {}
    return dict(settings)


def _input_of(
    settings: Mapping[str, Any], source: object, config: Any
) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """Side of the input, mean and standard deviation, of the settings of a processor."""
    divisor = size_divisor(config)
    size = settings.get("size") or {"height": SIDE, "width": SIDE}
    side = size.get("height")
    if side is None or side != size.get("width") or side % divisor:
        raise InputError(f"{source} resizes to {size}: only squares with a side that is a multiple of {divisor} work.")
    if not settings.get("do_normalize", config.model_type in LW_KINDS):
        return int(side), (0.0,) * 3, (1.0,) * 3
    mean, std = settings.get("image_mean") or IMAGENET_MEAN, settings.get("image_std") or IMAGENET_STD
    return int(side), tuple(mean), tuple(std)


def _antialias(settings: Mapping[str, Any], kind: str) -> bool:
    """Whether a processor antialiases: all do but that of RF-DETR, which is the default of its kind only."""
    default = "RfDetr" if kind == "rf_detr" else ""
    return not str(settings.get("image_processor_type") or default).startswith("RfDetr")


def size_divisor(config: Any) -> int:
    """Number of pixels of which the sides of images are a multiple, for a configuration of transformers.

    All windows of a transformer's attention have the same number of patches.
    """
    if config.model_type not in LW_KINDS:
        return DIVISOR
    body = config.backbone_config
    windows = getattr(body, "num_windows_side", body.num_windows)  # per side
    coarsest = 1 / min(getattr(config, "projector_scale_factors", None) or [1.0])
    return math.lcm(body.patch_size * windows, round(body.patch_size * coarsest))


def taken_apart(model: Any) -> Parts:
    """Separate a model of `RT_KINDS` into body, neck and head, which then own its modules.

    Args:
        model: a model of `model_of` or `read_checkpoint`; it can't be used afterwards.
    """
    head = model.model
    if hasattr(head, "conv_encoder"):  # DEIMv2
        holder = head.conv_encoder
        projections = holder.encoder_input_proj if hasattr(holder, "encoder_input_proj") else None
        del head.conv_encoder
    else:
        holder, projections = head.backbone, head.encoder_input_proj
        del head.backbone, head.encoder_input_proj
    if projections is None:
        raise InputError("its backbone has no input projections (DINOv3), which is not supported yet")
    channels = list(holder.intermediate_channel_sizes)
    body = holder.model
    timm_body = getattr(body, "_backbone", None)
    neck = HybridNeck(projections, head.encoder)
    head.encoder = GivenMaps()
    for name in ("reg_scale", "up"):  # constants, which have no gradient
        value = getattr(head.decoder, name, None)
        if isinstance(value, nn.Parameter):
            delattr(head.decoder, name)
            head.decoder.register_buffer(name, value.detach().clone())
    body = MapsOfBackbone(body) if timm_body is None else timm_body
    return Parts(body, neck, head, channels, model.config, model.loss_function)


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Suppress the warnings and progress bars of transformers."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
