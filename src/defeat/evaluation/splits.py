"""Run a trained detector on a whole split."""

from rich.console import Console
from rich.progress import track

from defeat.data import DataSource
from defeat.data.loader import evaluation_loader
from defeat.detector.teacher import Predictor
from defeat.distillation import ClassMap
from defeat.evaluation.evaluator import Evaluator


def detect_split(
    detector: Predictor,
    source: DataSource,
    split: str,
    batch_size: int,
    workers: int,
    console: Console | None = None,
    classes: ClassMap | None = None,
) -> Evaluator:
    """Detect the objects of a whole split.

    Args:
        detector: the detector, on the device to use.
        source: the data set.
        split: its split.
        batch_size: images at a time.
        workers: processes that load images.
        console: where to show progress; None for none.
        classes: maps the detector's classes to the classes to evaluate; by default they are equal.

    Raises:
        InputError: the data is not valid, or lacks one of the classes.
    """
    classes = classes or ClassMap(detector.info.classes, detector.info.classes)
    dataset = source.open(split, classes.student, console)
    if console is not None and (problems := dataset.report()) is not None:
        console.print(f"{split}: {problems}", style="yellow", highlight=False, markup=False)
    evaluator = Evaluator(classes.student)
    loader = evaluation_loader(dataset, batch_size=batch_size, workers=workers)
    for images, targets in track(loader, "Evaluating", console=console, disable=console is None, transient=True):
        detections = [classes.detections(image_detections.cpu()) for image_detections in detector.predict(images)]
        evaluator.update(detections, targets)
    return evaluator
