"""What student and teacher compute in a step of training."""

import torch
from torch import Tensor

from defeat.detector import Detector
from defeat.engine.experiment import Distillation
from defeat.engine.teacher_cache import TeacherCache
from defeat.types import Batch, DetectorOutput, Progress


def step_losses(
    student: Detector,
    batch: Batch,
    progress: Progress,
    distillation: Distillation | None = None,
    cache: TeacherCache | None = None,
) -> tuple[DetectorOutput, dict[str, Tensor]]:
    """Run the teacher, and the student on the same pixels.

    The teacher comes first: what it needs on the way is given back before the student's maps pile up for its gradient.
    What it draws at random does not shift what the student draws.

    Args:
        student: in training mode.
        batch: what its `prepare` made.
        progress: where the run stands.
        distillation: teacher and method; None for the student alone.
        cache: what the teacher has computed before, if that is kept.

    Returns:
        What the student gave, its own losses among it, and the losses of distillation by name.
    """
    if distillation is None:
        return student.forward_train(batch), {}
    teacher, method = distillation.teacher, distillation.method
    if not method.needs:
        return student.forward_train(batch, method.negative_weight(progress)), {}
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_available() else []):
        if cache is None:
            learned = teacher.forward_teacher(teacher.adopt(batch), method.needs)
        else:
            learned = cache.output(teacher, batch, method.needs)
    output = student.forward_train(batch, method.negative_weight(progress))
    return output, method(output, learned, batch.targets, progress)


def total_loss(losses: dict[str, Tensor]) -> Tensor:
    """The sum of all losses, in float32."""
    return torch.stack([loss.float() for loss in losses.values()]).sum()
