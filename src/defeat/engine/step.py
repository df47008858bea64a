"""The losses of a training step."""

from collections.abc import Callable

import torch
from torch import Tensor

from defeat.detector import Detector, MapsNetwork
from defeat.engine.experiment import Distillation
from defeat.engine.teacher_cache import TeacherCache
from defeat.types import Batch, DetectorOutput, Progress

TrainingPass = Callable[..., DetectorOutput]  # of a batch, and a weight of negatives


def step_losses(
    student: Detector,
    batch: Batch,
    progress: Progress,
    distillation: Distillation | None = None,
    cache: TeacherCache | None = None,
    forward: TrainingPass | None = None,
) -> tuple[DetectorOutput, dict[str, Tensor]]:
    """Run the teacher, and the student on the same pixels.

    The teacher runs first, so that its temporary memory is freed before the student's activations are stored. Its
    random numbers do not shift the student's.

    Args:
        student: in training mode.
        batch: a batch of its `prepare`.
        progress: current step and epoch of the run.
        distillation: teacher and method; None to train without a teacher.
        cache: stored feature maps of the teacher; None to compute them.
        forward: the student's training pass; None for its `forward_train`.

    Returns:
        The student's output with its own losses, and the distillation losses by name.
    """
    forward = forward or student.forward_train
    if distillation is None:
        return forward(batch), {}
    teacher, method = distillation.teacher, distillation.method
    if not method.needs:
        return forward(batch, method.negative_weight(progress)), {}
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_available() else []):
        if cache is None:
            teacher_output = teacher.forward_teacher(teacher.adopt(batch), method.needs)
        else:
            assert isinstance(teacher, MapsNetwork)  # which `open_cache` requires
            teacher_output = cache.output(teacher, batch, method.needs)
    output = forward(batch, method.negative_weight(progress))
    return output, method(output, teacher_output, batch.targets, progress)


def total_loss(losses: dict[str, Tensor]) -> Tensor:
    """Sum of all losses, in float32."""
    return torch.stack([loss.float() for loss in losses.values()]).sum()
