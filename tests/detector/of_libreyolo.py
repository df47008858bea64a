"""Detectors of LibreYOLO, and their checkpoints, with the weights of ours."""

import torch

from defeat.detector.libreyolo_models import require_libreyolo

NAMES = {
    "yolo9": {"backbone.body.": "backbone.", "backbone.fpn.": "neck.", "head.": "head."},
    "yolox": {"backbone.body.": "backbone.backbone.", "backbone.fpn.": "backbone.", "head.": "head."},
}


def theirs(network):
    """Tensors of a detector by LibreYOLO's names."""
    state = {}
    for name, tensor in network.state_dict().items():
        prefix, new = next(pair for pair in NAMES[network.info.family].items() if name.startswith(pair[0]))
        state[new + name.removeprefix(prefix)] = tensor
    return state


def as_libreyolo(network):
    """A model of LibreYOLO with the weights of a detector."""
    family, size = network.spec.backbone.split("_")
    modules, classes = require_libreyolo(family).nn, len(network.info.classes)
    is_yolox = family == "yolox"
    model = modules.LibreYOLOXModel(size, classes) if is_yolox else modules.LibreYOLO9Model(size, 16, classes)
    # That of YOLOv9 has a branch that only its training uses.
    model.load_state_dict(theirs(network), strict=is_yolox)
    return model


def save_checkpoint(path, network, **changes):
    """Write the file that LibreYOLO would; `changes` replace entries of it."""
    from libreyolo.utils.serialization import wrap_libreyolo_checkpoint

    family, size = network.spec.backbone.split("_")
    content = wrap_libreyolo_checkpoint(
        theirs(network),
        model_family=family,
        size=size,
        task="detect",
        nc=len(network.info.classes),
        names=dict(enumerate(network.info.classes)),
        imgsz=network.info.size,
    )
    torch.save(content | changes, path)
    return path
