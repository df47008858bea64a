"""Evaluates a trained detector on a split."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from defeat.assembly.settings import read_class_map
from defeat.data import DataSource, OnBadData
from defeat.data.hold_out import HoldOutBy
from defeat.data.reading.pairs import Unannotated
from defeat.data.settings import MAX_WORKERS, require_share
from defeat.data.source import EVALUATION_SPLITS
from defeat.detector import load
from defeat.detector.devices import choose_device
from defeat.detector.pretrained import torchvision_name
from defeat.detector.transformers_models import is_checkpoint
from defeat.distillation import ClassMap, renamed_classes
from defeat.distillation.class_map import listed
from defeat.engine.checkpoint import RunDirectory
from defeat.errors import InputError
from defeat.evaluation.detections import save_detections
from defeat.evaluation.evaluator import EvaluationResult
from defeat.evaluation.splits import detect_split
from defeat.settings import at_least, option
from defeat.types import DetectorInfo


def evaluate(
    run: str | Path,
    data: str | None = None,
    split: str | None = None,
    batch_size: int = 8,
    workers: int = 2,
    device: str = "auto",
    class_map: str | None = None,
    detections: str | None = None,
    on_bad_data: OnBadData = "stop",
    unannotated: Unannotated = "auto",
    images: str | None = None,
    hold_out: float | None = None,
    hold_out_by: HoldOutBy = "file",
    max_pixels: int | None = None,
    console: Console | None = None,
) -> EvaluationResult:
    """Evaluate a trained detector with the average precision of COCO and PASCAL VOC.

    Args:
        run: run directory, a torchvision model such as `torchvision:retinanet_resnet50_fpn`, a checkpoint of a
            LibreYOLO YOLOv9, a detector of transformers (a folder written by `save_pretrained`, or `hf:ORG/NAME`), or a
            file written by `defeat export`.
        data: folder of a data set; by default the one that the run was trained on.
        split: split to evaluate on; by default the one that the run was evaluated on, and of other data test, else val.
        batch_size: images per batch.
        workers: processes that load images.
        device: auto (a GPU if there is one), cpu or cuda.
        class_map: YAML file with a line `class of the detector: class of the data` for each class with different names;
            the detector is then evaluated on the classes that both have.
        detections: safetensors file to write all detections and annotations to, as `detections.safetensors` of a run.
        on_bad_data: how to treat broken or missing files: stop, and list them; or skip their images, and count them,
            after decoding all images once.
        unannotated: what images without an annotation file are: background, to drop, an error, or auto: background
            where the layout names the image, else an error.
        images: folder of the images of a COCO file, where they are not beside it.
        hold_out: share of the images, such as 0.2, to hold out as the split val, where the data has none; by default as
            the run.
        hold_out_by: what stays together in hold_out: file, folder or prefix.
        max_pixels: most pixels of an image file, width times height; by default as the run, of other data 178,956,970.
        console: console for progress; None for no progress.

    Returns:
        The metrics of the split, in percent, overall and per class.

    Raises:
        InputError: run or data are not valid, or have no class in common.
    """
    at_least("batch_size", batch_size, 1)
    at_least("workers", workers, 0, MAX_WORKERS)
    at_least("max_pixels", max_pixels, 1)
    require_share(hold_out)
    paths = {"data": data, "split": split, "class_map": class_map, "detections": detections, "images": images}
    for name, value in paths.items():
        if value == "":
            raise InputError(f"{option(name)} is empty.")
    if detections is not None and (Path(detections).is_dir() or not Path(detections).parent.is_dir()):
        raise InputError(f"--detections {detections} can't be written: give a file in an existing folder.")
    detector = load(run).to(choose_device(device))
    source = None if data is None else DataSource(data, on_bad_data, unannotated, images, hold_out, hold_out_by)
    if source is None or split is None:
        source, split = _defaults(run, source, split, console)
        source = replace(source, on_bad_data="skip") if on_bad_data == "skip" else source
    source = source if max_pixels is None else replace(source, max_pixels=max_pixels)
    classes = None
    if class_map is not None:
        classes = shared_classes(detector.info, source.class_names(split), read_class_map(class_map))
    evaluator = detect_split(detector, source, split, batch_size, workers, console, classes)
    if detections is not None:
        save_detections(Path(detections), evaluator)
    return evaluator.compute()


def _defaults(
    run: str | Path, source: DataSource | None, split: str | None, console: Console | None
) -> tuple[DataSource, str]:
    """The data set and the split of a run, where they are not given."""
    foreign = torchvision_name(run) is not None or is_checkpoint(run) or Path(run).is_file()
    directory = None if foreign else RunDirectory(run)
    settings = directory.read_config() if directory else {}
    if source is None and settings.get("data") is None:
        raise InputError("Give the data to evaluate on with --data.")
    if directory is not None and (source is None or source.data == settings.get("data")):
        source = DataSource.of(settings)
        split = split or directory.evaluated_split()
    assert source is not None
    if split is None:
        names = source.split_names()
        split = next((name for name in reversed(EVALUATION_SPLITS) if name in names), None)
        if split is None:
            raise InputError(f"{source.data} has {', '.join(names)}: name the one to evaluate on with --split.")
        if console is not None:
            console.print(f"Evaluating on the split {split!r}.", highlight=False)
    return source, split


def shared_classes(info: DetectorInfo, classes: Sequence[str], names: Mapping[str, str | None]) -> ClassMap:
    """Map the classes of a detector to those classes of the data that it has.

    Args:
        info: description of the detector.
        classes: names of the classes of the data.
        names: the data's name by the detector's, where they differ.

    Raises:
        InputError: a name is unknown, or no class is shared.
    """
    detector_classes = renamed_classes(info, classes, names).classes
    shared = tuple(name for name in classes if name in detector_classes)
    if not shared:
        raise InputError(
            f"The detector has none of the classes of the data ({listed(classes)}); it has {listed(info.classes)}."
        )
    return ClassMap(shared, detector_classes)
