"""Checks that catch what would otherwise fail in silence, each with a sentence that says what to do."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed
from safetensors import safe_open
from torch import Tensor, nn

from defeat.detector import Detector, TeacherNetwork
from defeat.detector.teacher import can_predict
from defeat.distillation import Method
from defeat.distillation.class_map import ClassMap
from defeat.distillation.processes import processes
from defeat.engine.gradients import gradient
from defeat.errors import InputError
from defeat.evaluation.evaluator import Evaluator
from defeat.types import Detections, DetectorOutput, Target

FIRST_STEPS = 20  # in which every term must have taught something
# Times the detector's own gradient; with the default weights it is 10 to 30 times, which gains most (docs/accuracy.md).
STRONG = 100.0
PATIENCE = 5  # measurements in a row
WINDOW = 10  # steps over which a loss is looked at
RISEN = 3.0  # times the loss of the first steps
SAME_SCORE = 0.01  # what rounding may change


def require_finite(losses: Mapping[str, Tensor], step: int, images: Sequence[int]) -> None:
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


def require_finite_weights(module: nn.Module, step: int) -> None:
    """Keep weights that are not finite out of every checkpoint.

    Raises:
        InputError: naming the first such weight and the step.
    """
    # The sum of absolute values is finite exactly where all of them are, and their sum fits a float64.
    for name, weight in module.named_parameters():
        if not bool(weight.detach().abs().sum(dtype=torch.float64).isfinite()):
            raise InputError(
                f"The weights are not finite after step {step} ({name}). Lower --lr or set --grad-clip; the last "
                "checkpoint is intact."
            )


def require_able_teacher(
    teacher: TeacherNetwork, classes: ClassMap, images: Sequence[tuple[Tensor, Target]], floor: float = 1.0
) -> float | None:
    """Refuse a teacher that detects next to nothing.

    Args:
        teacher: a trained detector, in eval mode.
        classes: meets the classes of the data with the teacher's.
        images: a sample of the data.
        floor: least AP50 on the sample, in percent.

    Returns:
        AP50 on the sample, in percent; None where nothing can be measured: the two share no class, or the teacher gives
        no detections.

    Raises:
        InputError: AP50 is below the floor.
    """
    if not classes.pairs or not can_predict(teacher):
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


@dataclass
class FirstSteps:
    """Watches the first steps: each term must be above zero and teach the student and the adaptation layers.

    All processes look at the same steps, because a term may sum over them, and each must be satisfied.

    Attributes:
        method: whose terms they are.
        steps: steps looked at.
        with_objects: those of them with an annotated object in the batch: without any, a term may be zero.
        heard: terms that have taught the student.
        silent: what each other term lacked in the last step.
        unreached: names of the method's parameters that no term has reached yet.
        done: whether there is nothing left to look for.
    """

    method: Method
    steps: int = 0
    with_objects: int = 0
    heard: set[str] = field(default_factory=set)
    silent: dict[str, str] = field(default_factory=dict)
    unreached: set[str] = field(default_factory=set)
    done: bool = False

    def __post_init__(self) -> None:
        """Expect every trained parameter to be reached."""
        self.unreached = {name for name, weight in self.method.named_parameters() if weight.requires_grad}

    def look(self, terms: Mapping[str, Tensor], output: DetectorOutput, targets: Sequence[Target]) -> None:
        """Look at a step, before its backward pass.

        Args:
            terms: losses of distillation, with their graph.
            output: what the student gave.
            targets: the annotations of the batch.

        Raises:
            InputError: the first steps are over, and a term or a layer has not taught or learned anything.
        """
        if self.done:
            return
        maps = [one for part in (output.neck, output.backbone) for one in part.values() if one.requires_grad]
        weights = {name: weight for name, weight in self.method.named_parameters() if weight.requires_grad}
        for name, term in terms.items():
            self._look_at(name, term, maps, weights)
        self.steps += 1
        self.with_objects += any(len(target.labels) for target in targets)
        for name in self.heard:
            self.silent.pop(name, None)
        self.done = _everywhere(not self.silent and not self.unreached, next(iter(output.neck.values())).device)
        if not self.done and self.steps >= FIRST_STEPS:
            self.judge()

    def _look_at(self, name: str, term: Tensor, maps: list[Tensor], weights: Mapping[str, Tensor]) -> None:
        found = gradient(term, [*maps, *weights.values()])
        self.unreached -= {key for key, grad in zip(weights, found[len(maps) :], strict=True) if grad is not None}
        if float(term.detach()) == 0:
            lacks = "zero"
        elif not any(grad is not None and bool(grad.any()) for grad in found[: len(maps)]):
            lacks = "without a gradient at the student's neck and backbone"
        else:
            self.heard.add(name)
            return
        self.silent[name] = lacks

    def judge(self) -> None:
        """Stop a run whose first steps left something to be desired.

        Raises:
            InputError: a term has not taught, or a layer not learned anything.
        """
        self.done = True
        rank = f" in process {torch.distributed.get_rank()}" if processes() > 1 else ""
        if self.silent and self.with_objects:
            name, lacks = next(iter(self.silent.items()))
            raise InputError(
                f"The term {name} was {lacks} in each of the first {self.steps} steps{rank}, so it teaches the student "
                "nothing: give it a weight of 0 to go on without it, or look for what cuts it off from the student."
            )
        if self.unreached and self.with_objects:
            raise InputError(
                f"The first {self.steps} steps taught {sorted(self.unreached)[0]} of the method nothing{rank}: no term "
                "depends on it. Leave out the level or the part that it belongs to."
            )

    def state(self) -> dict[str, Any]:
        """What was seen so far, as plain lists and numbers."""
        return {
            "steps": self.steps,
            "with_objects": self.with_objects,
            "heard": sorted(self.heard),
            "silent": dict(self.silent),
            "unreached": sorted(self.unreached),
            "done": self.done,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.steps, self.with_objects, self.done = state["steps"], state["with_objects"], state["done"]
        self.heard, self.silent, self.unreached = set(state["heard"]), dict(state["silent"]), set(state["unreached"])


def _everywhere(satisfied: bool, device: torch.device) -> bool:
    """Whether all processes are satisfied."""
    if processes() == 1:
        return satisfied
    flag = torch.tensor(float(satisfied), device=device)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MIN)
    return bool(flag)


@dataclass
class PullWatch:
    """Says once when distillation has pulled much harder than the detector's own losses for a while."""

    in_a_row: int = 0
    said: bool = False

    def look(self, together: float, step: int) -> str | None:
        """Take in a measurement.

        Args:
            together: gradient of all terms of distillation over that of the detector's own losses, at the neck.
            step: the step it was measured in.

        Returns:
            The sentence, the first time that it is due.
        """
        self.in_a_row = self.in_a_row + 1 if together > STRONG else 0
        if self.said or self.in_a_row < PATIENCE:
            return None
        self.said = True
        return (
            f"Distillation has pulled on the student's neck more than {STRONG:g} times as hard as the detector's own "
            f"losses for a while ({together:.1f} times at step {step}). That may help, or drown them: if AP falls "
            "behind the student alone, try --balance 1."
        )


@dataclass
class LossWatch:
    """Says once when the detector's own loss stays far above that of the first steps; a single bad batch is none."""

    first: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)
    said: bool = False

    def look(self, loss: float, step: int) -> str | None:
        """Take in the loss of a step.

        Args:
            loss: sum of the detector's own losses.
            step: the step it belongs to.

        Returns:
            The sentence, the first time that it is due.
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


def require_student_alone(folder: Path, student: Detector) -> None:
    """Make sure that the saved file holds the student: no adaptation layer, nothing of the teacher.

    Raises:
        RuntimeError: it holds anything else, which is a fault of this program.
    """
    with safe_open(folder / "model.safetensors", "pt") as file:
        saved, own = set(file.keys()), student.state_dict().keys()
    if saved != own:
        different = sorted(saved ^ own)
        raise RuntimeError(
            f"The saved model is not the student alone: {', '.join(different[:3])} ({len(different)} names)."
        )


def require_same_detections(saved: Sequence[Detections], evaluated: Sequence[Detections]) -> None:
    """Make sure that the saved model detects what the last evaluation found.

    Args:
        saved: what the model, read from its file, finds in some images.
        evaluated: what the trained one found in the same images.

    Raises:
        RuntimeError: they differ by more than rounding, which is a fault of this program.
    """
    for now, before in zip(saved, evaluated, strict=True):
        count = min(len(now.scores), len(before.scores))
        # Near the threshold of the score rounding may add a detection or drop one; the better half stays.
        same = abs(len(now.scores) - len(before.scores)) <= 1 + count // 20
        better = slice((count + 1) // 2)
        if not same or bool((now.scores[better] - before.scores[better]).abs().gt(SAME_SCORE).any()):
            raise RuntimeError(
                "The saved model does not detect what the last evaluation found: its AP is not the run's."
            )


def fingerprint(module: nn.Module) -> str:
    """A number that changes when any weight or buffer of a module does."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
