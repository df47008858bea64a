"""Name the tool that wrote a checkpoint, so that a refusal can say how to go on. Nothing in the file is executed."""

import zipfile
from pathlib import Path

MAX_BYTES = 64_000_000  # of the part that names the contents; the tensors are elsewhere
OWN_NETWORK = (
    "build its network in a function of your own and give --teacher package.module:factory with --teacher-taps "
    "(`defeat taps` lists its layers)"
)
IMPORTED = "`defeat import {path} --out RUN` makes a run directory of it"
ARCHITECTURES = IMPORTED + " if it is a {names}; for another architecture, " + OWN_NETWORK
MMDETECTION = ARCHITECTURES.replace("{names}", "Faster R-CNN, RetinaNet, FCOS or GFL on a ResNet")
DETECTRON2 = ARCHITECTURES.replace("{names}", "Faster R-CNN or RetinaNet on a ResNet with a feature pyramid")
STATE_DICT = "give --teacher torchvision:{name} --teacher-weights {path}"
TORCHVISION = f"{IMPORTED}, or {STATE_DICT}"
# What a checkpoint contains, the tool that wrote it, and how to use its detector as a teacher; the first match counts.
KINDS: tuple[tuple[tuple[bytes, ...], str, str], ...] = (
    ((b"ultralytics",), "Ultralytics", OWN_NETWORK),
    ((b"yolox",), "YOLOX", OWN_NETWORK),
    ((b"mmengine",), "MMDetection 3", MMDETECTION),
    ((b"bbox_head.",), "MMDetection", MMDETECTION),
    ((b"roi_head.bbox_head",), "MMDetection", MMDETECTION),
    ((b"neck.lateral_convs.",), "MMDetection", MMDETECTION),
    ((b"proposal_generator.",), "Detectron2", DETECTRON2),
    ((b"backbone.bottom_up.",), "Detectron2", DETECTRON2),
    ((b"roi_heads.box_head.fc6",), "torchvision", TORCHVISION.format(name="fasterrcnn_resnet50_fpn", path="{path}")),
    ((b"roi_heads.box_head.",), "torchvision", STATE_DICT.format(name="fasterrcnn_resnet50_fpn_v2", path="{path}")),
    (
        (b"head.classification_head.module_list.", b"backbone.extra."),
        "torchvision",
        TORCHVISION.format(name="ssdlite320_mobilenet_v3_large", path="{path}"),
    ),
    (
        (b"head.regression_head.bbox_ctrness.",),
        "torchvision",
        TORCHVISION.format(name="fcos_resnet50_fpn", path="{path}"),
    ),
    (
        (b"head.classification_head.", b"conv.0.1."),
        "torchvision",
        TORCHVISION.format(name="retinanet_resnet50_fpn_v2", path="{path}"),
    ),
    (
        (b"head.classification_head.",),
        "torchvision",
        TORCHVISION.format(name="retinanet_resnet50_fpn", path="{path}"),
    ),
    ((b"class_embed", b"bbox_embed"), "DETR", OWN_NETWORK),
    ((b"pytorch-lightning_version",), "Lightning", OWN_NETWORK),
)
SUFFIXES = {
    ".onnx": "an ONNX model",
    ".engine": "a TensorRT engine",
    ".tflite": "a TensorFlow Lite model",
    ".torchscript": "a TorchScript model",
    ".pb": "a TensorFlow model",
    ".h5": "a Keras model",
    ".keras": "a Keras model",
    ".xml": "an OpenVINO model",
}


def refusal(path: Path) -> str:
    """Say what a file is that was given as a detector, and how its detector can become a teacher.

    Args:
        path: an existing file.
    """
    if (path.parent / "model.json").is_file():
        return f"{path} is not a run directory but a file of one: give the folder, {path.parent}."
    own = "A detector of this library is a run directory, with model.json and model.safetensors."
    if path.suffix.lower() in SUFFIXES:
        kind = SUFFIXES[path.suffix.lower()]
        return (
            f"{path} is {kind}, which gives no feature maps to learn from: give the run that it is from, or its "
            f"network in PyTorch. {own}"
        )
    content = names_in(path)
    for needles, tool, advice in KINDS:
        if all(needle in content for needle in needles):
            return f"{path} is a checkpoint of {tool}: {advice.format(path=path)}. {own}"
    return f"{path} is a file. {own} To use another network as a teacher, {OWN_NETWORK}."


def names_in(path: Path) -> bytes:
    """The pickled part of a checkpoint, as bytes: it has the names of modules and tensors."""
    try:
        if not zipfile.is_zipfile(path):
            with path.open("rb") as file:
                return file.read(MAX_BYTES)  # the older format of torch.save, or safetensors
        with zipfile.ZipFile(path) as archive:
            member = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            with archive.open(member) as file:
                return file.read(MAX_BYTES)
    except (OSError, zipfile.BadZipFile, StopIteration, NotImplementedError, RuntimeError):
        return b""
