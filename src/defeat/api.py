"""The training functions of `import defeat`: arguments are values as on the command line, or objects."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from defeat.assembly.objects import MethodFactory, Objects, name_of
from defeat.assembly.plan import Plan, make_plan
from defeat.assembly.run import run
from defeat.assembly.settings import DistillSettings, TrainSettings
from defeat.data import DetectionDataset
from defeat.data.objects import ImagesWithBoxes
from defeat.detector import BoxTeacher, Detector, TeacherNetwork
from defeat.distillation import Method
from defeat.engine.fit import RunResult
from defeat.errors import InputError
from defeat.settings import Role, setting, settings_part
from defeat.signatures import checked_arguments, with_arguments_of

Data = str | DetectionDataset | ImagesWithBoxes
OBJECTS = ("student", "eval_data")  # arguments that the command line does not have


@settings_part
class TrainArguments(TrainSettings):
    """Arguments of `train`."""

    data: Data = setting(role=Role.SOURCE, compared=False)  # type: ignore[assignment]
    """Folder or file of a VOC, COCO, YOLO, labelme, VIA or CVAT data set, see docs/data.md, or `demo`; a
    `DetectionDataset`; or a data set of (image, {"boxes", "labels"}) in the format of torchvision's detectors, with
    `classes`."""
    student: Detector | None = setting(default=None)
    """Detector to train, instead of `detector`, `backbone` and the other detector settings."""
    eval_data: Data | None = setting(default=None)
    """Data set to evaluate on; by default the split `eval_split` of `data`, or none where `data` is an object."""


@settings_part
class DistillArguments(DistillSettings, TrainArguments):
    """Arguments of `distill` and `plan`."""

    data: Data = setting(role=Role.SOURCE, compared=False)  # type: ignore[assignment]
    teacher: str | TeacherNetwork | BoxTeacher | Sequence[str | TeacherNetwork] = setting(  # type: ignore[assignment]
        role=Role.SOURCE
    )
    """Run directory of the teacher, a torchvision model such as torchvision:fasterrcnn_resnet50_fpn_v2, a `Detector`,
    or any network as a `TappedTeacher`; or a teacher that only gives boxes, for `unlabelled`: boxes:FILE, a results
    file of COCO, onnx:FILE, a `BoxTeacher`, or a function as a `BoxFunction`. A list of several teaches at once."""
    method: str | Method | MethodFactory = setting(default="defeat", role=Role.CELL)  # type: ignore[assignment]
    """Name of a distillation method, a `Method` built with `student.info` and `teacher.info`, or a class or function
    that builds one of these two and of `method_options`."""


@with_arguments_of(TrainArguments)
def train(**arguments: Any) -> RunResult:
    """Train a detector.

    Returns:
        The run directory and the metrics.

    Raises:
        InputError: an argument, the data or the run directory is not valid.
    """
    settings, objects = _split(TrainArguments, arguments)
    return run(TrainSettings(**settings), given=objects)


@with_arguments_of(DistillArguments)
def distill(**arguments: Any) -> RunResult:
    """Train a student with the help of a teacher.

    Returns:
        The run directory and the metrics.

    Raises:
        InputError: an argument, the data, the teacher, the pair or the run directory is not valid.
    """
    settings, objects = _split(DistillArguments, arguments)
    return run(DistillSettings(**settings), given=objects)


@with_arguments_of(DistillArguments)
def plan(**arguments: Any) -> Plan:
    """Show what `distill` would do and cost, without training.

    Returns:
        Data, detectors, level and class correspondence, losses of the first step, and the cost on this machine.

    Raises:
        InputError: an argument, the data, the teacher, the pair or the run directory is not valid.
    """
    settings, objects = _split(DistillArguments, arguments)
    return make_plan(DistillSettings(**settings), Console(stderr=True), objects)


def _split(kind: Any, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], Objects]:
    """Split arguments into settings, with a name in place of each object, and objects."""
    values = checked_arguments(kind, arguments)
    if isinstance(values.get("teacher"), list) and all(isinstance(name, str) for name in values["teacher"]):
        values = {**values, "teacher": ",".join(values["teacher"])}
    objects = {
        name: value
        for name, value in values.items()
        if name in OBJECTS or (name in ("data", "teacher", "method") and not isinstance(value, str))
    }
    if isinstance(objects.get("eval_data"), str):
        raise InputError("eval_data must be a data set; the split of a folder is named by eval_split.")
    names = {name: name_of(objects[name]) for name in ("data", "teacher", "method") if name in objects}
    settings = {name: value for name, value in values.items() if name not in objects}
    return settings | names, Objects(**objects)
