"""Loss weights calibrated by gradients before training: `--balance`."""

import json
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import torch
from rich.console import Console

from defeat.assembly.assemble import Assembly, record_of
from defeat.assembly.pairing import pair
from defeat.assembly.settings import DistillSettings
from defeat.distillation import Method
from defeat.engine.checkpoint import RunDirectory, is_writer
from defeat.engine.devices import training_device
from defeat.engine.experiment import Experiment
from defeat.engine.gradients import GradientRatios, measure_gradient_ratios
from defeat.engine.step import step_losses
from defeat.errors import InputError
from defeat.files import write_into
from defeat.types import Progress

BATCHES = 8
DIGITS = 3  # significant digits of the weights, so that files stay readable and processes agree
FILE = "balance.json"


@dataclass(frozen=True)
class Balance:
    """Measured gradients, and the weights that follow.

    Attributes:
        asked: requested ratio of the gradient of all terms to that of the detector's own losses.
        pulls: measured ratio of each term with the weights `before`, median over some batches.
        together: measured ratio of all terms together.
        before: weights of the method by the names of its options.
        after: weights that give the requested ratio.
    """

    asked: float
    pulls: dict[str, float]
    together: float
    before: dict[str, float]
    after: dict[str, float]

    def describe(self) -> str:
        """One sentence for the terminal."""
        changes = [f"{name} {weight:g} -> {self.after[name]:g}" for name, weight in self.before.items()]
        return (
            f"The terms pull {self.together:.3g} times as hard on the student's neck as the detector's own losses; for "
            f"{self.asked:g} times: {', '.join(changes)}."
        )


def balanced(assembly: Assembly, experiment: Experiment, console: Console, write: bool = True) -> Experiment:
    """Set the weights that `settings.balance` asks for; a resumed run keeps the weights that it began with.

    Args:
        assembly: has the settings.
        experiment: made from it, with a frozen teacher; its weights and random state don't change.
        console: where to print what was measured.
        write: whether to write the measurement into the run directory.

    Returns:
        The experiment with these weights in its method and in its record.

    Raises:
        InputError: the method has no weight or no gradient to balance, or the resumed run was balanced otherwise.
    """
    settings, distillation = assembly.settings.distillation, experiment.distillation
    if settings is None or settings.balance is None or distillation is None:
        return experiment
    weights = weights_above_zero(distillation.method)
    recorded = Path(settings.out) / FILE
    # A run that was killed before its first checkpoint may not have written this file.
    if settings.resume and (recorded.is_file() or RunDirectory(settings.out).checkpoint.is_file()):
        after = _recorded(settings, weights)
    else:
        balance = measure(settings, experiment, weights)
        console.print(balance.describe(), style="yellow", highlight=False)
        after = balance.after
        if write and is_writer():
            write_into(Path(settings.out), FILE, (json.dumps(asdict(balance), indent=2) + "\n").encode())
    fixed = replace(settings, balance=None, method_options=settings.method_options | after)
    method = pair(experiment.student, distillation.teacher, fixed, Console(quiet=True))
    return replace(experiment, distillation=replace(distillation, method=method), record=record_of(fixed))


def weights_above_zero(method: Method) -> dict[str, float]:
    """The weights of a method that are above zero, by the names of its options."""
    return {name: weight for name, weight in method.weights.items() if weight > 0}


def measure(settings: DistillSettings, experiment: Experiment, weights: dict[str, float]) -> Balance:
    """Measure the gradients of the terms over a few batches, without changing anything.

    Raises:
        InputError: there is nothing to balance.
    """
    assert settings.balance is not None
    if not weights:
        raise InputError("--balance has nothing to balance: every weight of the method is 0.")
    if experiment.distillation is not None and experiment.distillation.method.begins_near_zero:
        raise InputError(
            "--balance measures gradients through the adaptation layers, which initialisation published begins near "
            "zero: give --method.initialisation identity, or weights of your own."
        )
    with torch.random.fork_rng():
        pulls = _measured(experiment)
    together = median(pull.together for pull in pulls)
    if not 0 < together < float("inf"):
        raise InputError(
            f"--balance can't compare gradients: at the student's neck the terms pull {together:g} times as hard as "
            "the detector's own losses. Does the data have objects, and is any part of the detector trained?"
        )
    factor = settings.balance / together
    after = {name: float(f"{weight * factor:.{DIGITS}g}") for name, weight in weights.items()}
    terms = {name: median(pull.terms[name] for pull in pulls) for name in pulls[0].terms}
    return Balance(settings.balance, terms, together, weights, after)


def _measured(experiment: Experiment) -> list[GradientRatios]:
    settings, distillation = experiment.optimisation, experiment.distillation
    device = training_device(experiment.devices)
    assert distillation is not None
    student, method = deepcopy(experiment.student).to(device).train(), deepcopy(distillation.method).to(device)
    copied = replace(distillation, teacher=distillation.teacher.to(device), method=method)
    past_warm_up = Progress(step=1, steps=1, epoch=0, epochs=settings.number_of_epochs)
    pulls = []
    for number, batch in zip(range(BATCHES), experiment.loader(), strict=False):
        torch.manual_seed(settings.seed + number)
        output, terms = step_losses(student, student.prepare(*batch), past_warm_up, copied)
        pulls.append(measure_gradient_ratios(terms, output))
    return pulls


def _recorded(settings: DistillSettings, weights: dict[str, float]) -> dict[str, float]:
    path = Path(settings.out) / FILE
    try:
        begun = Balance(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{settings.out} can't be resumed with --balance: {path.name} can't be read.") from error
    if begun.asked != settings.balance or begun.before != weights:
        raise InputError(
            f"{settings.out} can't be resumed with another --balance: it was begun with {begun.asked:g} and the "
            f"weights {begun.before}, not with {settings.balance:g} and {weights}."
        )
    return begun.after
