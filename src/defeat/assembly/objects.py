"""Objects of the Python API that replace settings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from defeat.assembly.settings import TrainSettings
from defeat.assembly.students import described_by
from defeat.data import DetectionDataset
from defeat.data.images import MAX_PIXELS
from defeat.data.objects import ImagesWithBoxes, ObjectDataset
from defeat.detector import BoxFunction, BoxTeacher, Detector, TeacherNetwork
from defeat.distillation import Method
from defeat.errors import InputError

MethodFactory = Callable[..., Method]  # of two DetectorInfos, and the options of the method as keywords


@dataclass(frozen=True)
class Objects:
    """Objects given in Python; None for what the settings describe.

    Attributes:
        student: the detector to train, with its weights.
        teacher: a trained detector, a list of several, or an object that only gives boxes.
        method: a method built for this pair, or a callable that builds one from both detectors' info.
        data: images to train on.
        eval_data: images to evaluate on; without it, a run whose `data` is an object is not evaluated.
    """

    student: Detector | None = None
    teacher: TeacherNetwork | BoxTeacher | Sequence[TeacherNetwork] | None = None
    method: Method | MethodFactory | None = None
    data: DetectionDataset | ImagesWithBoxes | None = None
    eval_data: DetectionDataset | ImagesWithBoxes | None = None

    def training(self, classes: Sequence[str] | None, settings: TrainSettings) -> DetectionDataset | None:
        """The training data, if it was given as an object.

        Raises:
            InputError: it is not a data set, or its class names are missing.
        """
        return (
            None if self.data is None else as_dataset(self.data, classes, settings.split, "data", settings.max_pixels)
        )

    def evaluation(self, classes: Sequence[str], settings: TrainSettings) -> DetectionDataset | None:
        """The evaluation data, if it was given as an object.

        Raises:
            InputError: it is not a data set, or has other classes.
        """
        if self.eval_data is None:
            return None
        return as_dataset(self.eval_data, classes, "val", "eval_data", settings.max_pixels)

    def described(self, settings: TrainSettings) -> TrainSettings:
        """Settings with the description of the given student, if there is one."""
        return settings if self.student is None else described_by(settings, self.student.spec)


def as_dataset(
    source: DetectionDataset | ImagesWithBoxes,
    classes: Sequence[str] | None,
    split: str,
    name: str,
    max_pixels: int = MAX_PIXELS,
) -> DetectionDataset:
    """Wrap a user's data set as a `DetectionDataset`.

    Args:
        source: the data set.
        classes: names of its classes, in the order of the labels; None for those of a `DetectionDataset`.
        split: name of the split.
        name: name of the argument, for messages.
        max_pixels: most pixels of an image file.

    Raises:
        InputError: it is not a data set, or its classes are missing or differ.
    """
    if isinstance(source, DetectionDataset):
        if classes is not None and tuple(classes) != source.classes:
            raise InputError(f"{name} has the classes {', '.join(source.classes)}, not {', '.join(classes)}.")
        return source
    if not isinstance(source, ImagesWithBoxes):
        raise InputError(
            f"{name} is a {type(source).__name__}: give a path, a DetectionDataset, or a data set of (image, target) "
            "with a length, as torchvision's detectors read it."
        )
    if classes is None:
        raise InputError(f"{name} does not name its classes: give classes=[...] in the order of its labels.")
    return ObjectDataset(source, classes, split, max_pixels)


def name_of(thing: object) -> str:
    """Name of an object in a run directory; those of several teachers are separated by commas."""
    if isinstance(thing, list) and thing:
        return ",".join(name_of(each) for each in thing)
    if isinstance(thing, partial):
        thing = thing.func
    if isinstance(thing, BoxFunction):
        thing = thing.function
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"<{named.__module__}.{named.__qualname__}>"
