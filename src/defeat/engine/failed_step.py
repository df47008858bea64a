"""The step at which a run stopped because a loss was not finite, kept so that it can be computed again."""

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


def read_step(kept: Path, rank: int) -> tuple[dict[str, Any], tuple[list[Tensor], list[Target]], dict[str, Tensor]]:
    """Read what `keep_step` wrote: the facts about the step, its batch, and the weights of student and method.

    Args:
        kept: the folder.
        rank: whose batch, of a run of several processes.

    Raises:
        InputError: a file is missing or damaged.
    """
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
