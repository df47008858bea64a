"""YOLOv9 and YOLOX networks of the package LibreYOLO: their modules, losses and checkpoints.

LibreYOLO is imported only when one of these detectors is built or loaded.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from defeat.detector.foreign_files import names_in
from defeat.detector.normalisation import BatchNorm
from defeat.errors import InputError, missing_package, unknown_name

SIZES = {f"yolo9_{size}": size for size in "tsmc"}  # by the name of the backbone
YOLOX_SIZES = {f"yolox_{size}": size for size in "ntsmlx"}
OF_FAMILY = {"yolo9": SIZES, "yolox": YOLOX_SIZES}
MARK = b"libreyolo_version"  # key that every checkpoint of LibreYOLO has
REG_MAX = 16  # values of a distribution of distances, in strides
PRIOR = 0.01  # first score of every class; the published 0.00005 of YOLOv9 learns less in short trainings
TOWERS = "head.cv3.0.0.conv.weight"  # its length is the width of the classification towers
MAX_WIDTH = 1024  # channels; published towers have 256 at most
UNUSED = ("head.dfl.", "aux.", "aux_head.")  # constants, and the branch that is used in LibreYOLO's training only


@dataclass(frozen=True)
class Parts:
    """A network, taken apart.

    Attributes:
        body: computes feature maps of strides 8, 16 and 32.
        neck: computes as many maps of the same strides from them.
        head: of YOLOv9, the convolutions of each level that predict distributions of distances, and those that predict
            class logits; of YOLOX, its head.
        body_channels: channels of the body's maps.
        neck_channels: channels of the neck's maps.
    """

    body: nn.Module
    neck: nn.Module
    head: Any
    body_channels: tuple[int, ...]
    neck_channels: tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint:
    """A trained detector of LibreYOLO.

    Attributes:
        family: `yolo9` or `yolox`.
        backbone: name of the backbone, a key of `SIZES` or `YOLOX_SIZES`.
        classes: names of its classes, in the order of the labels.
        size: long side of an image after resizing, in pixels.
        options: options of the family.
        state: tensors by name.
    """

    family: str
    backbone: str
    classes: tuple[str, ...]
    size: int
    options: Mapping[str, Any]
    state: Mapping[str, Tensor]


def require_libreyolo(family: str = "yolo9") -> Any:
    """Import the modules of a family.

    Args:
        family: `yolo9` or `yolox`.

    Returns:
        The modules `nn` and `loss`, as attributes.

    Raises:
        InputError: LibreYOLO is not installed, or can't be imported.
    """
    if find_spec("libreyolo") is None:
        raise missing_package(family, "libreyolo", "yolo")
    level = logging.getLogger("libreyolo").level
    try:
        import_module(f"libreyolo.models.{family}.nn")
        import_module(f"libreyolo.models.{family}.loss")
    except ImportError as error:  # its OpenCV needs libraries of the system, such as libGL.so.1
        raise InputError(f"{family} can't import the package libreyolo: {str(error).rstrip('.')}.") from error
    finally:
        logging.getLogger("libreyolo").setLevel(level)
    return import_module(f"libreyolo.models.{family}")


def network(backbone: str, classes: int, class_channels: int = 0) -> Parts:
    """Build a YOLOv9 with random weights.

    Args:
        backbone: key of `SIZES`.
        classes: number of classes.
        class_channels: width of the classification towers; 0 for the published one, which depends on the classes.

    Raises:
        InputError: unknown name, or LibreYOLO is not installed.
    """
    if backbone not in SIZES:
        raise unknown_name("backbone of yolo9", backbone, SIZES)
    modules = require_libreyolo().nn
    device = torch.get_default_device()
    with torch.device("cpu"):  # it reads values of tensors, which those without memory don't have
        model = modules.LibreYOLO9Model(SIZES[backbone], REG_MAX, classes)
    config = modules.YOLO9_CONFIGS[SIZES[backbone]]
    head = model.head
    if class_channels:  # by a private function, as no public way exists
        with torch.device("cpu"):
            head.cv3 = head._build_class_towers(config["head_channels"], class_channels, classes)
    for towers in head.cv3:
        nn.init.constant_(towers[-1].bias, math.log(PRIOR / (1 - PRIOR)))
    model.to(device)
    for part in (model.backbone, model.neck, head):
        _accept_single_values(part)
    body_channels = (config["stages"][0][1], config["stages"][1][1], config["spp_out"])
    head_channels = tuple(config["head_channels"])
    return Parts(model.backbone, model.neck, (head.cv2, head.cv3), body_channels, head_channels)


def yolox_network(backbone: str, classes: int) -> Parts:
    """Build a YOLOX with random weights, and the published first scores of 0.01 for objectness and classes.

    Args:
        backbone: key of `YOLOX_SIZES`.
        classes: number of classes.

    Raises:
        InputError: unknown name, or LibreYOLO is not installed.
    """
    if backbone not in YOLOX_SIZES:
        raise unknown_name("backbone of yolox", backbone, YOLOX_SIZES)
    kind = require_libreyolo("yolox").nn.LibreYOLOXModel
    device = torch.get_default_device()
    with torch.device("cpu"):
        model = kind(YOLOX_SIZES[backbone], classes)
        model.init_weights(PRIOR)
    model.to(device)
    neck, width = model.backbone, kind.CONFIGS[YOLOX_SIZES[backbone]]["width"]
    body, neck.backbone = neck.backbone, nn.Identity()  # the neck then takes the maps of the body
    for part in (body, neck, model.head):
        _accept_single_values(part)
    channels = tuple(int(channels * width) for channels in neck.in_channels)
    return Parts(body, neck, model.head, channels, channels)


def _accept_single_values(module: nn.Module) -> None:
    """Replace batch normalisation by one that accepts a map of one cell from a batch of one image."""
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            device = child.running_var.device if child.running_var is not None else None
            norm = BatchNorm(child.num_features, eps=child.eps, momentum=child.momentum, device=device)
            norm.load_state_dict(child.state_dict())
            setattr(module, name, norm)
        else:
            _accept_single_values(child)


def is_checkpoint(source: str | Path) -> bool:
    """Whether a path is a checkpoint of LibreYOLO; nothing in the file is executed."""
    path = Path(source)
    return path.is_file() and MARK in names_in(path)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of LibreYOLO; no code in it is executed.

    Raises:
        InputError: it can't be read, is not complete, or is not a detector of the family.
    """
    try:
        content: Any = torch.load(path, "cpu", weights_only=True)
        family, size, names = content["model_family"], content["size"], content["names"]
        unused = UNUSED if family == "yolo9" else ()
        state = {name: tensor for name, tensor in content["model"].items() if not name.startswith(unused)}
        classes = tuple(str(names[label]) for label in range(int(content["nc"])))
        side = int(content["imgsz"])
        task = content["task"]
        class_channels = len(state[TOWERS]) if TOWERS in state else 0
    except Exception as error:  # torch.load raises exceptions of many types
        raise InputError(f"{path} can't be read as a checkpoint of LibreYOLO ({type(error).__name__}).") from error
    if family not in OF_FAMILY or task != "detect":
        raise InputError(
            f"{path} is a checkpoint of LibreYOLO's {family} ({task}); only detectors of yolo9 and yolox are read."
        )
    backbone, sizes = f"{family}_{size}", OF_FAMILY[family]
    if backbone not in sizes or (family == "yolo9" and not class_channels):
        raise InputError(f"{path} is a {family} of size {size!r}, which is not one of {', '.join(sizes.values())}.")
    if class_channels > MAX_WIDTH:  # before memory is allocated: a small file can contain a huge view
        raise InputError(f"{path} has classification towers of {class_channels} channels; {MAX_WIDTH} are the most.")
    options = {"class_channels": class_channels} if family == "yolo9" else {}
    return Checkpoint(family, backbone, classes, side, options, renamed(state, family))


def renamed(state: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    """Tensors with the names that they have in a detector of the family."""
    prefixes: Sequence[tuple[str, str]] = (("backbone.", "backbone.body."), ("neck.", "backbone.fpn."))
    if family == "yolox":
        prefixes = (("backbone.backbone.", "backbone.body."), ("backbone.", "backbone.fpn."))
    result = {}
    for name, tensor in state.items():
        for theirs, ours in prefixes:
            if name.startswith(theirs):
                name = ours + name.removeprefix(theirs)
                break
        result[name] = tensor
    return result
