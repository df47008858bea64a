"""Repeats the step at which a run stopped because a loss was not finite."""

from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from defeat.assembly.assemble import load_teacher
from defeat.assembly.earlier import recorded_settings
from defeat.assembly.pairing import pair
from defeat.assembly.settings import settings_class
from defeat.assembly.students import build_student
from defeat.engine.checkpoint import RunDirectory
from defeat.engine.experiment import Distillation
from defeat.engine.failed_step import FOLDER, read_step
from defeat.engine.quantisation import SimulatedInt8
from defeat.engine.step import step_losses
from defeat.types import Progress


def replay(run: str | Path, rank: int = 0) -> dict[str, Tensor]:
    """Compute the losses of the step at which a run stopped because one was not finite, on the CPU in float32.

    Args:
        run: run directory.
        rank: process whose batch to use, in a run of several processes.

    Returns:
        Losses by name, with their autograd graph, for `torch.autograd.set_detect_anomaly` or a debugger.

    Raises:
        InputError: the run has no such step, or a file is damaged.
    """
    directory = RunDirectory(run)
    content = recorded_settings(directory.read_config())
    command = content.pop("command")
    settings = settings_class(command)(**content)
    about, batch, weights = read_step(directory.folder / FOLDER, rank)
    torch.manual_seed(about["seed"])
    student = build_student(settings, tuple(about["classes"])).train()
    distillation = None
    parts: dict[str, torch.nn.Module] = {"student": student}
    forward = None
    if settings.quantise == "int8":
        parts["int8"] = forward = SimulatedInt8(student)
    if (named := settings.distillation) is not None:
        teacher = load_teacher(named).eval().requires_grad_(False)
        parts["method"] = method = pair(student, teacher, named, Console(quiet=True))
        distillation = Distillation(teacher, method)
    torch.nn.ModuleDict(parts).load_state_dict(weights)
    torch.manual_seed(about["seed"])
    prepared = student.prepare(*batch)
    output, terms = step_losses(student, prepared, Progress(**about["progress"]), distillation, forward=forward)
    return output.losses | terms
