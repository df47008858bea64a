"""The command that evaluates a trained detector on a split."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from defeat.assembly.settings import read_class_map
from defeat.data import OnBadData, class_names
from defeat.data.settings import MOST_WORKERS
from defeat.detector import load
from defeat.detector.devices import choose_device
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
    console: Console | None = None,
) -> EvaluationResult:
    """Evaluate a trained detector: COCO's and PASCAL VOC's average precision.

    Args:
        run: run directory, or a torchvision model such as `torchvision:retinanet_resnet50_fpn`.
        data: folder of a data set; by default the one that the run was trained on.
        split: split to evaluate on; by default the one that the run was evaluated on, else test.
        batch_size: images at a time.
        workers: processes that load images.
        device: auto (a GPU where there is one), cpu or cuda.
        class_map: YAML file with a line `detector's class: class of the data` for each class that the two call by
            different names; the detector is then evaluated on the classes that both know.
        detections: file to write all detections and annotations to (safetensors), as `detections.safetensors` of a run.
        on_bad_data: where files of the data are broken or missing: stop, and list them; or skip the images that they
            are about, and count them, after decoding all images once.
        console: where to show progress; None for none.

    Raises:
        InputError: run or data are not valid, or share no class.
    """
    at_least("batch_size", batch_size, 1)
    at_least("workers", workers, 0, MOST_WORKERS)
    for name, value in {"data": data, "split": split, "class_map": class_map, "detections": detections}.items():
        if value == "":
            raise InputError(f"{option(name)} is empty.")
    if detections is not None and (Path(detections).is_dir() or not Path(detections).parent.is_dir()):
        raise InputError(f"--detections {detections} can't be written: name a file in a folder that is there.")
    detector = load(run).to(choose_device(device))
    if data is None or split is None:
        directory = None if str(run).startswith("torchvision:") else RunDirectory(run)
        trained_on = directory.read_config().get("data") if directory else None
        known = directory.evaluated_split() if directory and data in (None, trained_on) else None
        split = split or known or "test"
        data = data or trained_on
    if data is None:
        raise InputError("Name the data to evaluate on with --data.")
    classes = None
    if class_map is not None:
        classes = shared_classes(detector.info, class_names(data, split, on_bad_data), read_class_map(class_map))
    evaluator = detect_split(detector, data, split, batch_size, workers, console, classes, on_bad_data)
    if detections is not None:
        save_detections(Path(detections), evaluator)
    return evaluator.compute()


def shared_classes(info: DetectorInfo, found: Sequence[str], names: Mapping[str, str | None]) -> ClassMap:
    """Meet the classes of data with those of a detector, and leave out what the detector does not know.

    Raises:
        InputError: a name is unknown, or no class is shared.
    """
    known = renamed_classes(info, found, names).classes
    shared = tuple(name for name in found if name in known)
    if not shared:
        raise InputError(
            f"The detector knows none of the classes of the data ({listed(found)}); it knows {listed(info.classes)}."
        )
    return ClassMap(shared, known)
