"""The functions of `import defeat` that train: arguments are words of the command line, or objects."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from os import PathLike
from typing import Any, ParamSpec, TypeVar

from rich.console import Console

from defeat.assembly.objects import MethodFactory, Objects, name_of
from defeat.assembly.plan import Plan, make_plan
from defeat.assembly.run import run
from defeat.assembly.settings import DistillSettings, TrainSettings
from defeat.data import DetectionDataset
from defeat.data.objects import ImagesWithBoxes
from defeat.detector import Detector, TeacherNetwork
from defeat.distillation import Method
from defeat.engine.fit import RunResult
from defeat.errors import InputError, unknown_name
from defeat.settings import Role, field_docs, setting, settings_part

Data = str | DetectionDataset | ImagesWithBoxes
OBJECTS = ("student", "eval_data")  # arguments that the command line has not
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


@settings_part
class TrainArguments(TrainSettings):
    """Arguments of `train`."""

    data: Data = setting(role=Role.SOURCE, compared=False)  # type: ignore[assignment]
    """Folder of a VOC, COCO or YOLO data set, or `demo`; a `DetectionDataset`; or a data set of (image, {"boxes",
    "labels"}) as torchvision's detectors read it, with `classes`."""
    student: Detector | None = setting(default=None)
    """The detector to train, instead of `detector`, `backbone` and what else describes one."""
    eval_data: Data | None = setting(default=None)
    """Images to evaluate on; by default the split `eval_split` of `data`, or none where `data` is an object."""


@settings_part
class DistillArguments(DistillSettings, TrainArguments):
    """Arguments of `distill` and `plan`."""

    data: Data = setting(role=Role.SOURCE, compared=False)  # type: ignore[assignment]
    teacher: str | TeacherNetwork = setting(role=Role.SOURCE)  # type: ignore[assignment]
    """Run directory of the teacher, a torchvision model such as torchvision:fasterrcnn_resnet50_fpn_v2, a detector, or
    any network as a `TappedTeacher`."""
    method: str | Method | MethodFactory = setting(default="defeat", role=Role.CELL)  # type: ignore[assignment]
    """Name of a distillation method, a method built with `student.info` and `teacher.info`, or what builds one of
    these two."""


def _with_arguments_of(
    kind: Callable[Parameters, Any],
) -> Callable[[Callable[..., Result]], Callable[Parameters, Result]]:
    """Give a function the signature of a dataclass, and describe its arguments by the docstrings of the fields."""

    def described(function: Callable[..., Result]) -> Callable[Parameters, Result]:
        assert isinstance(kind, type)
        docs = field_docs(kind)
        arguments = "\n".join(f"    {one.name}: {docs.get(one.name, '')}" for one in fields(kind))
        function.__doc__ = f"{inspect.getdoc(function)}\n\nArgs:\n{arguments}"
        result = inspect.signature(function).return_annotation
        function.__signature__ = inspect.signature(kind).replace(return_annotation=result)  # type: ignore[attr-defined]
        return function

    return described


@_with_arguments_of(TrainArguments)
def train(**arguments: Any) -> RunResult:
    """Train a detector.

    Returns:
        Where the run is, and its figures.

    Raises:
        InputError: an argument, the data or the run directory is not valid.
    """
    words, given = _split(TrainArguments, arguments)
    return run(TrainSettings(**words), given=given)


@_with_arguments_of(DistillArguments)
def distill(**arguments: Any) -> RunResult:
    """Train a student with the help of a teacher.

    Returns:
        Where the run is, and its figures.

    Raises:
        InputError: an argument, the data, the teacher, the pair or the run directory is not valid.
    """
    words, given = _split(DistillArguments, arguments)
    return run(DistillSettings(**words), given=given)


@_with_arguments_of(DistillArguments)
def plan(**arguments: Any) -> Plan:
    """Say what `distill` would do and cost, without training.

    Returns:
        What meets what, first losses, and the cost of the run on this machine.

    Raises:
        InputError: what cannot work, with the way out.
    """
    words, given = _split(DistillArguments, arguments)
    return make_plan(DistillSettings(**words), Console(stderr=True), given)


def _split(kind: Any, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], Objects]:
    """The words among the arguments, with a name for each object, and the objects."""
    _require_complete(kind, arguments)
    paths = {name: str(value) for name, value in arguments.items() if isinstance(value, PathLike)}
    values = {**arguments, **paths}
    objects = {
        name: value
        for name, value in values.items()
        if name in OBJECTS or (name in ("data", "teacher", "method") and not isinstance(value, str))
    }
    if isinstance(objects.get("eval_data"), str):
        raise InputError("eval_data must be a data set; the split of a folder is named by eval_split.")
    names = {name: name_of(objects[name]) for name in ("data", "teacher") if name in objects}
    words = {name: value for name, value in values.items() if name not in objects}
    return words | names, Objects(**objects)


def _require_complete(kind: Any, arguments: Mapping[str, Any]) -> None:
    known = {one.name: one for one in fields(kind)}
    for name in arguments:
        if name not in known:
            raise unknown_name("argument", name, known)
    for name, one in known.items():
        if name not in arguments and one.default is MISSING and one.default_factory is MISSING:
            raise InputError(f"The argument {name} is missing.")
