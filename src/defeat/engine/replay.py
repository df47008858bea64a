"""The step at which a run stopped because a loss was not finite: kept, and computed again."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from defeat.data.batching import PackedBatch, pack
from defeat.detector import load
from defeat.engine.assembly import build_student, pair
from defeat.engine.checkpoint import RunDirectory
from defeat.engine.settings import DistillSettings, TrainSettings
from defeat.engine.step import step_losses
from defeat.errors import InputError
from defeat.files import write_atomically
from defeat.types import Progress, Target

FOLDER = "failed"


def keep_step(
    folder: str | Path,
    weights: dict[str, Tensor],
    batch: tuple[list[Tensor], list[Target]],
    progress: Progress,
    classes: tuple[str, ...],
    seed: int,
    rank: int = 0,
) -> Path:
    """Write all that is needed to compute a step again.

    Args:
        folder: the run directory.
        weights: of student and method, by their names in the module.
        batch: images and targets as the loader gave them.
        progress: where the run stands.
        classes: names of the student's classes.
        seed: what the step's random numbers were drawn from.
        rank: which of the processes this is.

    Returns:
        The folder that it was written to.
    """
    kept = Path(folder) / FOLDER
    kept.mkdir(parents=True, exist_ok=True)
    packed = pack([(image.cpu(), target) for image, target in zip(*batch, strict=True)])
    assert isinstance(packed, PackedBatch)
    fields = {name: value for name, value in vars(packed).items() if isinstance(value, Tensor)}
    lists = {name: value for name, value in vars(packed).items() if name not in fields}
    about = {"progress": asdict(progress), "classes": classes, "seed": seed, "lists": lists}
    write_atomically(kept / f"batch-{rank}.safetensors", save(fields, {"about": json.dumps(about)}))
    if rank == 0:
        contents = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
        write_atomically(kept / "weights.safetensors", save(contents))
    return kept


def replay(run: str | Path, rank: int = 0) -> dict[str, Tensor]:
    """Compute the losses of the step at which a run stopped because one was not finite, on the CPU in float32.

    Args:
        run: run directory.
        rank: whose batch, of a run of several processes.

    Returns:
        Losses by name, with their graph: `torch.autograd.set_detect_anomaly` and a debugger can follow it.

    Raises:
        InputError: the run kept no such step, or a file is damaged.
    """
    directory = RunDirectory(run)
    content = directory.read_config()
    command = content.pop("command", "train")
    settings = DistillSettings(**content) if command == "distill" else TrainSettings(**content)
    about, batch, weights = _read(directory.folder / FOLDER, rank)
    torch.manual_seed(about["seed"])
    student = build_student(settings, tuple(about["classes"])).train()
    teacher, method = None, None
    parts: dict[str, torch.nn.Module] = {"student": student}
    if isinstance(settings, DistillSettings):
        teacher = load(settings.teacher, settings.teacher_weights).eval().requires_grad_(False)
        parts["method"] = method = pair(student, teacher, settings, Console(quiet=True))
    torch.nn.ModuleDict(parts).load_state_dict(weights)
    torch.manual_seed(about["seed"])
    prepared = student.prepare(*batch)
    output, terms = step_losses(student, prepared, Progress(**about["progress"]), method, teacher)
    return output.losses | terms


def _read(kept: Path, rank: int) -> tuple[dict[str, Any], tuple[list[Tensor], list[Target]], dict[str, Tensor]]:
    path = kept / f"batch-{rank}.safetensors"
    if not path.is_file():
        raise InputError(f"{path} is missing: the run kept no step to compute again.")
    try:
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["about"])
        fields: dict[str, Any] = load_file(path) | about.pop("lists")
        fields.setdefault("views", [0] * len(fields["sizes"]))  # kept by an earlier version
        fields.setdefault("scales", [1.0] * len(fields["sizes"]))  # likewise
        fields["sizes"] = [tuple(size) for size in fields["sizes"]]
        return about, PackedBatch(**fields).unpack(), load_file(kept / "weights.safetensors")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{kept} is damaged; the step can't be computed again.") from error
