"""Checks for silent failures, each with a message that says what to do."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed
from safetensors import safe_open
from torch import Tensor, nn
from torchvision.ops import box_iou

from defeat.detector import BoxNetwork, Detector, TeacherNetwork
from defeat.detector.teacher import can_predict
from defeat.distillation import Method
from defeat.distillation.class_map import ClassMap
from defeat.distillation.processes import process_count
from defeat.engine.gradients import gradient
from defeat.errors import InputError
from defeat.evaluation.evaluator import Evaluator
from defeat.types import Detections, DetectorOutput, Target

FIRST_STEPS = 20  # in which every term must have had a gradient
# Ratio to the detector's own gradient; with the default weights it is 10 to 30, which gains most (docs/accuracy.md).
STRONG = 100.0
PATIENCE = 5  # measurements in a row
WINDOW = 10  # steps of the median of the loss
RISEN = 3.0  # ratio to the loss of the first steps
SAME_SCORE = 0.02  # difference of scores due to rounding
SAME_PLACE = 0.9  # intersection over union of boxes that differ by rounding
SAME_SIDES = 1.0  # pixels between the sides of boxes that differ by rounding; of boxes without an area, too
REPEATED = 0.8  # share of the detections that a saved model must repeat


def require_finite(losses: Mapping[str, Tensor], step: int, images: Sequence[int]) -> None:
    """Refuse a loss that is not finite.

    Args:
        losses: scalars by name.
        step: the current step.
        images: numbers of the images in the batch.

    Raises:
        InputError: naming the terms, the step and the images.
    """
    finite = torch.stack([loss.detach().float() for loss in losses.values()]).isfinite()
    if bool(finite.all()):
        return
    names = [name for name, is_finite in zip(losses, finite.tolist(), strict=True) if not is_finite]
    raise InputError(
        f"The loss is not finite at step {step} (term {', '.join(names)}; images {', '.join(map(str, images))}). "
        "Lower --lr, set --grad-clip, or check the annotations of these images. The last checkpoint is intact."
    )


def require_finite_weights(module: nn.Module, step: int) -> None:
    """Keep weights that are not finite out of every checkpoint.

    Raises:
        InputError: naming the first such weight and the step.
    """
    # The sum of absolute values is finite if and only if all values are; in float64 it does not overflow.
    for name, weight in module.named_parameters():
        if not bool(weight.detach().abs().sum(dtype=torch.float64).isfinite()):
            raise InputError(
                f"The weights are not finite after step {step} ({name}). Lower --lr or set --grad-clip; the last "
                "checkpoint is intact."
            )


def require_accurate_teacher(
    teacher: TeacherNetwork,
    classes: ClassMap,
    images: Sequence[tuple[Tensor, Target]],
    floor: float = 1.0,
    stored: Sequence[Detections] | None = None,
) -> float | None:
    """Refuse a teacher that detects next to nothing.

    Args:
        teacher: a trained detector, in eval mode.
        classes: maps the teacher's classes to the classes of the data.
        images: a sample of the data.
        floor: minimum AP50 on the sample, in percent.
        stored: the teacher's detections of these images, if it has them already.

    Returns:
        AP50 on the sample, in percent; None where it can't be measured, because the teacher can't predict, has no class
        names, or there is no image.

    Raises:
        InputError: AP50 is below the floor, or the teacher has none of the student's classes.
    """
    if not any(teacher.info.classes) or (stored is None and not can_predict(teacher)):
        return None
    if not classes.pairs:
        has_maps = not isinstance(teacher, BoxNetwork)
        advice = " Or give --allow-weak-teacher to imitate its feature maps all the same." if has_maps else ""
        raise InputError(f"{' '.join(classes.describe())}{advice}")
    if not images:
        return None
    evaluator = Evaluator(classes.student)
    if stored is None:
        assert can_predict(teacher)
        stored = [teacher.predict([image])[0].cpu() for image, _ in images]
    for (_, target), detections in zip(images, stored, strict=True):
        evaluator.update([classes.detections(detections)], [target])
    accuracy = evaluator.compute().metrics["AP50"] or 0.0
    if accuracy < floor:
        raise InputError(
            f"The teacher detects next to nothing on the data (AP50 {accuracy:.1f} on {len(images)} images). "
            "Check its path, its classes and how it was trained, or give --allow-weak-teacher to continue."
        )
    return accuracy


@dataclass
class FirstSteps:
    """Checks that in the first steps each term is above zero and has gradients at the student and adaptation layers.

    All processes check the same steps, because a term may sum over processes, and the check ends when all are done.

    Attributes:
        method: the method whose terms are checked.
        steps: number of steps so far.
        with_objects: number of those with an annotated object in the batch: without any, a term may be zero.
        active: terms that have had a gradient.
        inactive: why each other term had no gradient in the last step.
        unreached: names of the method's parameters that no term has reached yet.
        done: whether the check has ended.
    """

    method: Method
    steps: int = 0
    with_objects: int = 0
    active: set[str] = field(default_factory=set)
    inactive: dict[str, str] = field(default_factory=dict)
    unreached: set[str] = field(default_factory=set)
    done: bool = False

    def __post_init__(self) -> None:
        """Start with all trained parameters as unreached."""
        self.unreached = {name for name, weight in self.method.named_parameters() if weight.requires_grad}

    def update(self, terms: Mapping[str, Tensor], output: DetectorOutput, targets: Sequence[Target]) -> None:
        """Process a step, before its backward pass.

        Args:
            terms: distillation losses, with their graph.
            output: output of the student.
            targets: the annotations of the batch.

        Raises:
            InputError: the first steps are over, and a term or a layer has had no gradient.
        """
        if self.done:
            return
        maps = [level for part in (output.neck, output.backbone) for level in part.values() if level.requires_grad]
        weights = {name: weight for name, weight in self.method.named_parameters() if weight.requires_grad}
        for name, term in terms.items():
            self._update_term(name, term, maps, weights)
        self.steps += 1
        self.with_objects += any(len(target.labels) for target in targets)
        for name in self.active:
            self.inactive.pop(name, None)
        device = next(iter(output.neck.values())).device
        self.done = _in_all_processes(not self.inactive and not self.unreached, device)
        if not self.done and self.steps >= FIRST_STEPS:
            self.check()

    def _update_term(self, name: str, term: Tensor, maps: list[Tensor], weights: Mapping[str, Tensor]) -> None:
        gradients = gradient(term, [*maps, *weights.values()])
        of_maps, of_weights = gradients[: len(maps)], gradients[len(maps) :]
        self.unreached -= {key for key, grad in zip(weights, of_weights, strict=True) if grad is not None}
        if float(term.detach()) == 0:
            self.inactive[name] = "zero"
        elif not any(grad is not None and bool(grad.any()) for grad in of_maps):
            self.inactive[name] = "without a gradient at the student's neck and backbone"
        else:
            self.active.add(name)

    def check(self) -> None:
        """Stop the run if a term or a layer has had no gradient in the first steps.

        Raises:
            InputError: naming the term or the layer.
        """
        self.done = True
        rank = f" in process {torch.distributed.get_rank()}" if process_count() > 1 else ""
        if self.inactive and self.with_objects:
            name, reason = next(iter(self.inactive.items()))
            raise InputError(
                f"The term {name} was {reason} in each of the first {self.steps} steps{rank}, so it does not train the "
                "student: give it a weight of 0 to continue without it, or check how it depends on the student."
            )
        if self.unreached and self.with_objects:
            raise InputError(
                f"In the first {self.steps} steps{rank}, {sorted(self.unreached)[0]} of the method had no gradient: no "
                "term depends on it. Leave out the level or the part that it belongs to."
            )

    def state(self) -> dict[str, Any]:
        """State for a checkpoint, as plain lists and numbers."""
        return {
            "steps": self.steps,
            "with_objects": self.with_objects,
            "heard": sorted(self.active),
            "silent": dict(self.inactive),
            "unreached": sorted(self.unreached),
            "done": self.done,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a state of `state`."""
        self.steps, self.with_objects, self.done = state["steps"], state["with_objects"], state["done"]
        self.active, self.inactive = set(state["heard"]), dict(state["silent"])
        self.unreached = set(state["unreached"])


def _in_all_processes(condition: bool, device: torch.device) -> bool:
    """Whether the condition is true in all processes."""
    if process_count() == 1:
        return condition
    flag = torch.tensor(float(condition), device=device)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MIN)
    return bool(flag)


@dataclass
class GradientWatch:
    """Warns once when the gradient of distillation stays much larger than that of the detector's own losses."""

    in_a_row: int = 0
    said: bool = False

    def update(self, together: float, step: int) -> str | None:
        """Process a measurement.

        Args:
            together: ratio of the gradient of all distillation terms to that of the detector's own losses, at the neck.
            step: the step of the measurement.

        Returns:
            The warning, once.
        """
        self.in_a_row = self.in_a_row + 1 if together > STRONG else 0
        if self.said or self.in_a_row < PATIENCE:
            return None
        self.said = True
        return (
            f"At the student's neck, the gradient of distillation has been more than {STRONG:g} times that of the "
            f"detector's own losses for a while ({together:.1f} times at step {step}). That may help, or outweigh "
            "these losses: if AP stays below the baseline, try --balance 1."
        )


@dataclass
class LossWatch:
    """Warns once when the detector's own loss stays far above that of the first steps."""

    first: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)
    said: bool = False

    def update(self, loss: float, step: int) -> str | None:
        """Process the loss of a step.

        Args:
            loss: sum of the detector's own losses.
            step: the current step.

        Returns:
            The warning, once.
        """
        if len(self.first) < WINDOW:
            self.first.append(loss)
            return None
        self.last = [*self.last[1 - WINDOW :], loss]
        before, now = median(self.first), median(self.last)
        if self.said or len(self.last) < WINDOW or now <= RISEN * before:
            return None
        self.said = True
        return (
            f"The detector's loss has risen to {now:.1f} at step {step}, from {before:.1f} in the first steps: "
            "training diverges. Lower --lr or give more --warmup-steps."
        )


def require_student_only(folder: Path, student: Detector) -> None:
    """Check that the saved file contains only the student: no adaptation layers, no tensors of the teacher.

    Raises:
        RuntimeError: it contains other tensors, which is an internal error.
    """
    with safe_open(folder / "model.safetensors", "pt") as file:
        saved, expected = set(file.keys()), student.state_dict().keys()
    if saved != expected:
        different = sorted(saved ^ expected)
        raise RuntimeError(
            "The tensors of the saved model are not those of the student: "
            f"{', '.join(different[:3])} ({len(different)} names)."
        )


def require_same_detections(saved: Sequence[Detections], evaluated: Sequence[Detections]) -> None:
    """Check that the saved model repeats the detections of the last evaluation.

    Of the detections in the better half of each image, nearly all must have a counterpart of the same class, place and
    score. Not all: a GPU sums in another order for another number of images, and a rounding error near a threshold of
    non-maximum suppression replaces a detection by its neighbour.

    Args:
        saved: detections of the model read from its file, in some images.
        evaluated: detections of the last evaluation in the same images.

    Raises:
        RuntimeError: they differ by more than rounding, which is an internal error.
    """
    repeated = total = 0
    for now, before in zip(saved, evaluated, strict=True):
        for one, other in ((before, now), (now, before)):
            half = (len(one.scores) + 1) // 2
            same = one.labels[:half, None] == other.labels
            same &= (one.scores[:half, None] - other.scores).abs() <= SAME_SCORE
            near = torch.cdist(one.boxes[:half], other.boxes, p=inf) <= SAME_SIDES
            same &= near | (box_iou(one.boxes[:half], other.boxes) >= SAME_PLACE)
            repeated += int(same.any(1).sum())
            total += half
    if repeated < REPEATED * total:
        raise RuntimeError(
            "The saved model does not repeat the detections of the last evaluation "
            f"({repeated} of {total} are the same): its AP is not the run's."
        )


def fingerprint(module: nn.Module) -> str:
    """Hash of all weights and buffers of a module."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
