"""File with a detector's detections on a whole split, and the annotations.

It allows comparing two runs image by image without their data and without running a detector again.
"""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from defeat.errors import InputError
from defeat.evaluation.average_precision import Scene
from defeat.evaluation.evaluator import Evaluator, unpack_state
from defeat.files import write_atomically

NAMES = (
    "image_id",
    "size",
    "detections_an_image",
    "objects_an_image",
    "boxes",
    "scores",
    "labels",
    "true_boxes",
    "true_labels",
    "difficult",
    "crowd",
)


def save_detections(path: Path, evaluator: Evaluator) -> None:
    """Write the detections and annotations of an evaluator; the tensors are those of `Evaluator.state`."""
    state = zip(NAMES, evaluator.state(), strict=True)
    write_atomically(path, save({name: tensor.contiguous() for name, tensor in state}))


def read_detections(path: Path) -> list[Scene]:
    """Read a file of `save_detections`; images in the order of their numbers.

    Raises:
        InputError: the file is missing or damaged.
    """
    command = f"`defeat evaluate {path.parent} --detections {path}`"
    try:
        tensors = load_file(path)
        state = [tensors[name] for name in NAMES]
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; {command} writes it.") from error
    except (OSError, SafetensorError, KeyError) as error:
        raise InputError(f"{path} is damaged; {command} writes it again.") from error
    images = unpack_state(state)
    return [Scene.from_image(*images[image_id]) for image_id in sorted(images)]
