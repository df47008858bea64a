"""Checks that catch what would otherwise fail in silence."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from defeat.detector import Detector
from defeat.distillation.class_map import ClassMap
from defeat.engine.evaluate import Evaluator
from defeat.errors import InputError
from defeat.types import Target


def require_finite(losses: dict[str, Tensor], step: int, images: Sequence[int]) -> None:
    """Stop at a loss that is not finite.

    Args:
        losses: scalars by name.
        step: the step that they belong to.
        images: numbers of the images in the batch.

    Raises:
        InputError: naming the terms, the step and the images.
    """
    finite = torch.stack([loss.detach().float() for loss in losses.values()]).isfinite()
    if bool(finite.all()):
        return
    names = [name for name, good in zip(losses, finite.tolist(), strict=True) if not good]
    raise InputError(
        f"The loss is not finite at step {step} (term {', '.join(names)}; images {', '.join(map(str, images))}). "
        "Lower --lr, set --grad-clip, or look at the annotations of these images. The last checkpoint is intact."
    )


def require_able_teacher(
    teacher: Detector, classes: ClassMap, images: Sequence[tuple[Tensor, Target]], floor: float = 1.0
) -> float | None:
    """Refuse a teacher that detects next to nothing.

    Args:
        teacher: a trained detector, in eval mode.
        classes: meets the classes of the data with the teacher's.
        images: a sample of the data.
        floor: least AP50 on the sample, in percent.

    Returns:
        AP50 on the sample, in percent; None where the two share no class, and nothing can be measured.

    Raises:
        InputError: AP50 is below the floor.
    """
    if not classes.pairs:
        return None
    evaluator = Evaluator(classes.student)
    for image, target in images:
        evaluator.update([classes.detections(teacher.predict([image])[0].cpu())], [target])
    accuracy = evaluator.compute().metrics["AP50"] or 0.0
    if accuracy < floor:
        raise InputError(
            f"The teacher detects next to nothing on the data (AP50 {accuracy:.1f} on {len(images)} images). "
            "Check its path, its classes and how it was trained, or give --allow-weak-teacher to go on."
        )
    return accuracy


def fingerprint(module: nn.Module) -> str:
    """A number that changes when any weight or buffer of a module does."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
