"""What a trained detector found in every image of a split, beside the annotations, as one file.

With it two runs are compared image by image without their data and without running a detector again.
"""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from defeat.errors import InputError
from defeat.evaluation.average_precision import Scene
from defeat.evaluation.evaluator import Evaluator, unpacked
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
    """Write what an evaluator collected; the tensors are those of `Evaluator.state`."""
    state = zip(NAMES, evaluator.state(), strict=True)
    write_atomically(path, save({name: tensor.contiguous() for name, tensor in state}))


def read_detections(path: Path) -> list[Scene]:
    """Read what `save_detections` wrote, in the order of the images' numbers.

    Raises:
        InputError: the file is missing or damaged.
    """
    repair = f"`defeat evaluate {path.parent} --detections {path}` writes it"
    try:
        tensors = load_file(path)
        state = [tensors[name] for name in NAMES]
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; {repair}.") from error
    except (OSError, SafetensorError, KeyError) as error:
        raise InputError(f"{path} is damaged; {repair} anew.") from error
    images = unpacked(state)
    return [Scene.of(*images[image_id]) for image_id in sorted(images)]
