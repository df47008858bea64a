"""Use of the evaluations during training: learning curve, best student, learning rate drops and early stopping."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor

from defeat.detector import Detector
from defeat.errors import InputError
from defeat.evaluation.evaluator import EvaluationResult, Evaluator
from defeat.settings import AUTO, Checked, at_least, setting, settings_part

MINIMAL = 0.1  # AP points; less is no improvement
FALLS = 2  # drops of the learning rate before a run ends


@settings_part
class SelectionSettings(Checked):
    """Evaluation and choice of the student."""

    eval_every: int | Literal["auto"] = setting(default=AUTO, usual=1, compared=False)
    """Number of epochs between evaluations; the last epoch is always evaluated, with 0 only the last one; auto for 1,
    or more where evaluations would take more than about an eighth of the time (always 1 with --patience)."""
    keep: Literal["best", "last"] = setting(default="last")
    """Which student to report and save: that of the last evaluation, or the one with the best AP; best needs an
    evaluation split that is not named test."""
    patience: int | None = setting(default=None)
    """Number of evaluations without an improvement of AP by 0.1 points after which the learning rate drops to a tenth,
    instead of --lr-milestones; after two drops, the run ends. Needs an evaluation split that is not named test."""

    def check(self) -> None:
        """Refuse invalid values."""
        at_least("eval_every", self.evaluation_interval, 0)
        at_least("patience", self.patience, 1)
        if self.chooses and self.evaluation_interval == 0:
            raise InputError(f"{self.chooses} needs evaluations during the training: give --eval-every 1, or more.")

    @property
    def evaluation_interval(self) -> int:
        """Number of epochs between evaluations, 1 for `auto`; 0 to evaluate the last epoch only."""
        return int(self.number("eval_every"))

    @property
    def chooses(self) -> str:
        """The option that lets AP influence the training; empty without."""
        return "--keep best" if self.keep == "best" else "--patience" if self.patience is not None else ""

    def require_no_choice_on(self, split: str) -> None:
        """Refuse to select weights, or the length of the training, on a split that is named `test`.

        Raises:
            InputError: naming the option.
        """
        if split == "test" and self.chooses:
            raise InputError(
                f"{self.chooses} on a split named test would select by the images that measure the result, which "
                "biases all metrics: give another --eval-split, such as val, and measure afterwards with `defeat "
                "evaluate RUN --split test`."
            )


@dataclass(frozen=True)
class CurvePoint:
    """An evaluation during training.

    Attributes:
        epoch: epochs trained so far; a fraction where the run ended within an epoch.
        step: optimiser steps so far.
        AP: COCO's AP, 0..100; None where the split has no objects.
        AP50: AP at IoU 0.5.
    """

    epoch: float
    step: int
    AP: float | None
    AP50: float | None


@dataclass
class Patience:
    """Drops the learning rate when AP has stopped improving, and ends the run when that no longer helps.

    An evaluation improves AP if it is at least `MINIMAL` points above the last one that did. After `evaluations` in a
    row without improvement, the learning rate drops to a tenth and the count restarts; after `FALLS` drops, the run
    ends instead. Evaluations before the first AP of `MINIMAL` do not count: the detector is still learning.

    Attributes:
        evaluations: evaluations in a row without an improvement before something happens.
        reference: AP of the last evaluation that improved it.
        waited: evaluations since then, or since the last drop.
        falls: number of drops of the learning rate so far.
        over: whether the run ends.
    """

    evaluations: int
    reference: float = 0.0
    waited: int = 0
    falls: int = 0
    over: bool = False

    def update(self, accuracy: float | None) -> str | None:
        """Process the AP of an evaluation, 0..100.

        Returns:
            A message if the learning rate drops or the run ends.
        """
        accuracy = accuracy or 0.0
        if accuracy >= self.reference + MINIMAL:
            self.reference, self.waited = accuracy, 0
            return None
        self.waited += self.reference > 0
        if self.waited < self.evaluations:
            return None
        self.waited = 0
        stalled = f"AP has not improved by {MINIMAL:g} points in {self.evaluations} evaluations"
        if self.falls == FALLS:
            self.over = True
            return f"{stalled}: the run ends here."
        self.falls += 1
        return f"{stalled}: the learning rate drops to a tenth."


@dataclass(frozen=True)
class Best:
    """The best student so far.

    Attributes:
        point: its point of the learning curve.
        weights: its state dict, on the CPU.
        evaluation: its metrics.
        evaluator: its detections.
    """

    point: CurvePoint
    weights: dict[str, Tensor]
    evaluation: EvaluationResult
    evaluator: Evaluator


@dataclass(frozen=True)
class Outcome:
    """The student that a run reports and saves; all but the student is None for a run without evaluation.

    Attributes:
        student: the detector with the selected weights.
        point: the point of the learning curve of these weights.
        evaluation: their metrics.
        evaluator: their detections.
    """

    student: Detector
    point: CurvePoint | None = None
    evaluation: EvaluationResult | None = None
    evaluator: Evaluator | None = None


class Selection:
    """Processes the evaluations of a run.

    Args:
        keep_best: whether to keep the student with the best AP; the first of equal ones.
        patience: evaluations without an improvement, see `Patience`; None to train until the end.

    Attributes:
        curve: all evaluations, in order.
        best: the best student so far; None without `keep_best`.
        patience: controls drops of the learning rate and the end of the run; None without.
    """

    def __init__(self, keep_best: bool = False, patience: int | None = None) -> None:
        self.keep_best = keep_best
        self.curve: list[CurvePoint] = []
        self.best: Best | None = None
        self.patience = None if patience is None else Patience(patience)

    @property
    def falls(self) -> int:
        """Number of drops of the learning rate so far."""
        return 0 if self.patience is None else self.patience.falls

    @property
    def over(self) -> bool:
        """Whether the run ends early."""
        return self.patience is not None and self.patience.over

    def update(
        self, point: CurvePoint, student: Detector, evaluation: EvaluationResult, evaluator: Evaluator
    ) -> str | None:
        """Process an evaluation; a repeated evaluation of the same step is ignored.

        Args:
            point: its point of the learning curve.
            student: the detector that was evaluated.
            evaluation: its metrics.
            evaluator: its detections.

        Returns:
            A message if the learning rate drops or the run ends.
        """
        if self.curve and self.curve[-1].step == point.step:
            return None
        self.curve.append(point)
        if self.keep_best and (self.best is None or (point.AP or 0.0) > (self.best.point.AP or 0.0)):
            weights = {name: value.detach().cpu().clone() for name, value in student.state_dict().items()}
            self.best = Best(point, weights, evaluation, evaluator)
        return None if self.patience is None else self.patience.update(point.AP)

    def state(self) -> dict[str, Any]:
        """State for a checkpoint, as plain numbers and CPU tensors."""
        best = self.best
        return {
            "curve": [asdict(point) for point in self.curve],
            "patience": None if self.patience is None else dict(vars(self.patience)),
            "best": None
            if best is None
            else {"point": asdict(best.point), "weights": best.weights, "found": best.evaluator.state()},
        }

    def restore(self, state: Mapping[str, Any], classes: tuple[str, ...]) -> None:
        """Restore a state of `state`.

        Args:
            state: the state.
            classes: names of the student's classes.
        """
        self.curve = [CurvePoint(**point) for point in state["curve"]]
        if self.patience is not None and state["patience"] is not None:
            vars(self.patience).update(state["patience"])
        if self.keep_best and (best := state["best"]) is not None:
            evaluator = Evaluator(classes)
            evaluator.merge([best["found"]])
            self.best = Best(CurvePoint(**best["point"]), best["weights"], evaluator.compute(), evaluator)
