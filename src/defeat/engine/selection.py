"""What a run makes of its evaluations: the learning curve, the best student, and when training has gone far enough."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor

from defeat.detector import Detector
from defeat.errors import InputError
from defeat.evaluation.evaluator import EvaluationResult, Evaluator
from defeat.settings import Checked, at_least, setting, settings_part

MINIMAL = 0.1  # AP points; less is no improvement
FALLS = 2  # of the learning rate, before a run ends


@settings_part
class SelectionSettings(Checked):
    """Evaluation and choice of the student."""

    eval_every: int = setting(default=1, compared=False)
    """Evaluate every so many epochs, and after the last one; 0 for after the last one only."""
    keep: Literal["best", "last"] = setting(default="last")
    """Which student to report and save: that of the last evaluation, or the best, by AP over all of them; best needs
    a split to evaluate on that is not test."""
    patience: int | None = setting(default=None)
    """Instead of by --lr-milestones, the learning rate falls to a tenth when AP has not improved by 0.1 points in so
    many evaluations, and the run ends when it has not after the second fall either; needs a split to evaluate on
    that is not test."""

    def check(self) -> None:
        """Refuse values that can't work."""
        at_least("eval_every", self.eval_every, 0)
        at_least("patience", self.patience, 1)
        if self.chooses and self.eval_every == 0:
            raise InputError(f"{self.chooses} needs evaluations during the training: give --eval-every 1, or more.")

    @property
    def chooses(self) -> str:
        """The option by which AP decides about the training; empty where it does not."""
        return "--keep best" if self.keep == "best" else "--patience" if self.patience is not None else ""

    def require_no_choice_on(self, split: str) -> None:
        """Refuse to choose weights, or the length of the training, on a split that is named `test`.

        Raises:
            InputError: naming the option.
        """
        if split == "test" and self.chooses:
            raise InputError(
                f"{self.chooses} on a split named test would choose by the images that judge the result, which "
                "flatters every figure: give another --eval-split, such as val, and measure afterwards with `defeat "
                "evaluate RUN --split test`."
            )


@dataclass(frozen=True)
class CurvePoint:
    """An evaluation during training.

    Attributes:
        epoch: epochs trained until then; a fraction where the run ended within one.
        step: optimiser steps until then.
        AP: COCO's AP, 0..100; None where the split has no object.
        AP50: the same at an IoU of 0.5.
    """

    epoch: float
    step: int
    AP: float | None
    AP50: float | None


@dataclass
class Patience:
    """Lets the learning rate fall when AP has stopped to improve, and ends the run when that no longer helps.

    An evaluation improves AP when it is at least `MINIMAL` points above the last one that did. After `evaluations` in a
    row that don't, the learning rate falls to a tenth and the count begins anew; after `FALLS` falls the run is over
    instead. Evaluations before the first AP of `MINIMAL` do not count: a detector that finds nothing yet learns.

    Attributes:
        evaluations: how many in a row may pass without an improvement.
        reference: AP of the last evaluation that improved it.
        waited: evaluations since then, or since the last fall.
        falls: how often the learning rate has fallen.
        over: whether the run has gone far enough.
    """

    evaluations: int
    reference: float = 0.0
    waited: int = 0
    falls: int = 0
    over: bool = False

    def look(self, accuracy: float | None) -> str | None:
        """Take in the AP of an evaluation, 0..100.

        Returns:
            A sentence, where the learning rate falls or the run is over.
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
        return f"{stalled}: the learning rate falls to a tenth."


@dataclass(frozen=True)
class Best:
    """The best student so far.

    Attributes:
        point: its evaluation.
        weights: its state dict, on the CPU.
        evaluation: its figures.
        found: what it detected.
    """

    point: CurvePoint
    weights: dict[str, Tensor]
    evaluation: EvaluationResult
    found: Evaluator


@dataclass(frozen=True)
class Outcome:
    """What a run reports and saves.

    Attributes:
        student: the detector, with the weights that are kept.
        point: the evaluation of these weights; None, as what follows, for a run without evaluation.
        evaluation: their figures.
        found: what they detected.
    """

    student: Detector
    point: CurvePoint | None = None
    evaluation: EvaluationResult | None = None
    found: Evaluator | None = None


class Selection:
    """Takes in the evaluations of a run.

    Args:
        keep_best: whether to keep the best student, by AP; of equal ones the first.
        patience: evaluations without an improvement, see `Patience`; None to train until the end.

    Attributes:
        curve: all evaluations, in order.
        best: the best student so far; None without `keep_best`.
        patience: when the learning rate falls and the run ends; None without.
    """

    def __init__(self, keep_best: bool = False, patience: int | None = None) -> None:
        self.keep_best = keep_best
        self.curve: list[CurvePoint] = []
        self.best: Best | None = None
        self.patience = None if patience is None else Patience(patience)

    @property
    def falls(self) -> int:
        """How often the learning rate has fallen to a tenth."""
        return 0 if self.patience is None else self.patience.falls

    @property
    def over(self) -> bool:
        """Whether the run has gone far enough."""
        return self.patience is not None and self.patience.over

    def look(self, point: CurvePoint, student: Detector, evaluation: EvaluationResult, found: Evaluator) -> str | None:
        """Take in an evaluation; one of a step that was evaluated before changes nothing.

        Args:
            point: where it stands.
            student: what was evaluated.
            evaluation: its figures.
            found: what it detected.

        Returns:
            A sentence, where the learning rate falls or the run is over.
        """
        if self.curve and self.curve[-1].step == point.step:
            return None
        self.curve.append(point)
        if self.keep_best and (self.best is None or (point.AP or 0.0) > (self.best.point.AP or 0.0)):
            weights = {name: value.detach().cpu().clone() for name, value in student.state_dict().items()}
            self.best = Best(point, weights, evaluation, found)
        return None if self.patience is None else self.patience.look(point.AP)

    def state(self) -> dict[str, Any]:
        """Everything, as plain numbers and CPU tensors."""
        best = self.best
        return {
            "curve": [asdict(point) for point in self.curve],
            "patience": None if self.patience is None else dict(vars(self.patience)),
            "best": None
            if best is None
            else {"point": asdict(best.point), "weights": best.weights, "found": best.found.state()},
        }

    def restore(self, state: Mapping[str, Any], classes: tuple[str, ...]) -> None:
        """Go on from what `state` gave.

        Args:
            state: that.
            classes: names of the student's classes.
        """
        self.curve = [CurvePoint(**point) for point in state["curve"]]
        if self.patience is not None and state["patience"] is not None:
            vars(self.patience).update(state["patience"])
        if self.keep_best and (best := state["best"]) is not None:
            found = Evaluator(classes)
            found.merge([best["found"]])
            self.best = Best(CurvePoint(**best["point"]), best["weights"], found.compute(), found)
