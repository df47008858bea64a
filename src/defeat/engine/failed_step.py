"""The step at which a run stopped because a loss was not finite, saved for debugging."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from defeat.data.batching import PackedBatch, pack
from defeat.errors import InputError
from defeat.files import write_atomically
from defeat.types import Progress, Target

FOLDER = "failed"


def save_step(
    folder: str | Path,
    weights: dict[str, Tensor],
    batch: tuple[list[Tensor], list[Target]],
    progress: Progress,
    classes: tuple[str, ...],
    seed: int,
    rank: int = 0,
) -> Path:
    """Write everything needed to compute a step again.

    Args:
        folder: the run directory.
        weights: weights of student and method, by their names in the module.
        batch: images and targets of the loader.
        progress: current step and epoch of the run.
        classes: names of the student's classes.
        seed: random seed of the step.
        rank: rank of this process.

    Returns:
        The folder of the step.
    """
    step_folder = Path(folder) / FOLDER
    step_folder.mkdir(parents=True, exist_ok=True)
    packed = pack([(image.cpu(), target) for image, target in zip(*batch, strict=True)])
    assert isinstance(packed, PackedBatch)
    fields = {name: value for name, value in vars(packed).items() if isinstance(value, Tensor)}
    lists = {name: value for name, value in vars(packed).items() if name not in fields}
    about = {"progress": asdict(progress), "classes": classes, "seed": seed, "lists": lists}
    write_atomically(step_folder / f"batch-{rank}.safetensors", save(fields, {"about": json.dumps(about)}))
    if rank == 0:
        contents = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
        write_atomically(step_folder / "weights.safetensors", save(contents))
    return step_folder


def read_step(folder: Path, rank: int) -> tuple[dict[str, Any], tuple[list[Tensor], list[Target]], dict[str, Tensor]]:
    """Read a step written by `save_step`.

    Args:
        folder: the folder of the step.
        rank: rank of the process whose batch is read.

    Returns:
        Progress, classes and seed of the step; its batch; and the weights of student and method.

    Raises:
        InputError: a file is missing or damaged.
    """
    path = folder / f"batch-{rank}.safetensors"
    if not path.is_file():
        raise InputError(f"{path} is missing: the run saved no failed step.")
    try:
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["about"])
        fields: dict[str, Any] = load_file(path) | about.pop("lists")
        fields.setdefault("views", [0] * len(fields["sizes"]))  # steps of earlier versions
        fields.setdefault("scales", [1.0] * len(fields["sizes"]))  # likewise
        fields["sizes"] = [tuple(size) for size in fields["sizes"]]
        return about, PackedBatch(**fields).unpack(), load_file(folder / "weights.safetensors")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder} is damaged; the step can't be computed again.") from error
