"""A trained detector on a whole split."""

from rich.console import Console
from rich.progress import track

from defeat.data import OnBadData, open_dataset
from defeat.data.loader import evaluation_loader
from defeat.detector import Detector
from defeat.distillation import ClassMap
from defeat.evaluation.evaluator import Evaluator


def detect_split(
    detector: Detector,
    data: str,
    split: str,
    batch_size: int,
    workers: int,
    console: Console | None = None,
    classes: ClassMap | None = None,
    on_bad_data: OnBadData = "stop",
) -> Evaluator:
    """Detect the objects of a whole split.

    Args:
        detector: the detector, on the device to use.
        data: path of the data set.
        split: its split.
        batch_size: images at a time.
        workers: processes that load images.
        console: where to show progress; None for none.
        classes: meets the classes to look for with the detector's; by default they are its own.
        on_bad_data: see `open_dataset`.

    Raises:
        InputError: the data are not valid, or lack one of the classes.
    """
    classes = classes or ClassMap(detector.info.classes, detector.info.classes)
    dataset = open_dataset(data, split, classes.student, on_bad_data, console)
    if on_bad_data == "skip" and console is not None and (problems := dataset.report()) is not None:
        console.print(f"{split}: {problems}", style="yellow", highlight=False, markup=False)
    evaluator = Evaluator(classes.student)
    loader = evaluation_loader(dataset, batch_size=batch_size, workers=workers)
    for images, targets in track(loader, "Evaluating", console=console, disable=console is None, transient=True):
        evaluator.update([classes.detections(found.cpu()) for found in detector.predict(images)], targets)
    return evaluator
