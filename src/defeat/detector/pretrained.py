"""Detectors with weights of torchvision."""

from pathlib import Path

from torchvision.models import get_model, get_model_weights

from defeat.detector.base import Detector
from defeat.detector.families import faster_rcnn, fcos, retinanet, ssdlite
from defeat.detector.weights import read_state_dict
from defeat.errors import InputError, unknown_name

PREFIX = "torchvision:"  # marks the name of a torchvision model where a run directory is expected
CONVERTERS = {
    "fasterrcnn_resnet50_fpn": faster_rcnn.from_torchvision,
    "fasterrcnn_resnet50_fpn_v2": faster_rcnn.from_torchvision,
    "fcos_resnet50_fpn": fcos.from_torchvision,
    "retinanet_resnet50_fpn": retinanet.from_torchvision,
    "retinanet_resnet50_fpn_v2": retinanet.from_torchvision,
    "ssdlite320_mobilenet_v3_large": ssdlite.from_torchvision,
}

# By the beginning of a name: the tensor whose length gives the number of classes of a checkpoint (with background), and
# its entries per class.
CLASS_TENSORS = {
    "fasterrcnn": ("roi_heads.box_predictor.cls_score.bias", 1),
    "fcos": ("head.classification_head.cls_logits.bias", 1),
    "retinanet": ("head.classification_head.cls_logits.bias", 9),
    "ssdlite320": ("head.classification_head.module_list.0.1.bias", 6),
}


def torchvision_name(source: str | Path) -> str | None:
    """The model name of a source such as `torchvision:retinanet_resnet50_fpn`; None for a run directory."""
    name = str(source)
    return name.removeprefix(PREFIX) if name.startswith(PREFIX) else None


def load_torchvision(name: str, weights: str | Path | None = None) -> Detector:
    """Load a detector of torchvision.

    Args:
        name: torchvision's name, e.g. `fasterrcnn_resnet50_fpn_v2`.
        weights: a file with a state dict; None downloads the weights that torchvision published (COCO).

    Raises:
        InputError: unknown name, failed download, or a file that does not match.
    """
    if name not in CONVERTERS:
        raise unknown_name("torchvision detector", name, CONVERTERS)
    published = get_model_weights(name).DEFAULT
    categories = tuple(published.meta["categories"])[1:]  # the first is the background
    if weights is None:
        try:
            core = get_model(name, weights=published)
        except OSError as error:
            raise InputError(
                f"The weights of torchvision's {name} could not be downloaded ({type(error).__name__}); "
                "give a file with its state dict instead."
            ) from error
        return CONVERTERS[name](core, categories, PREFIX + name)
    state = read_state_dict(Path(weights))
    tensor, entries = CLASS_TENSORS[name.partition("_")[0]]
    if tensor not in state:
        raise InputError(f"{weights} is not a checkpoint of torchvision's {name}: it has no classification layer.")
    count = len(state[tensor]) // entries
    core = get_model(name, weights=None, weights_backbone=None, num_classes=count)
    try:
        core.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(
            f"{weights} does not fit torchvision's {name}: {str(error).splitlines()[-1].strip()}"
        ) from error
    classes = categories if len(categories) == count - 1 else tuple(f"class {index}" for index in range(count - 1))
    return CONVERTERS[name](core, classes, PREFIX + name)
