"""Weights of a method that calibrate themselves: `--balance`."""

import json
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import torch
from rich.console import Console

from defeat.distillation import method_defaults
from defeat.engine.assembly import Parts, pair
from defeat.engine.checkpoint import RunDirectory, is_writer
from defeat.engine.datamodule import run_loader
from defeat.engine.devices import training_device
from defeat.engine.gradients import Pulls, measure_pulls
from defeat.engine.settings import DistillSettings
from defeat.engine.step import step_losses
from defeat.errors import InputError
from defeat.files import write_into
from defeat.types import Progress

BATCHES = 8
DIGITS = 3  # so that a file holds readable numbers, the same in every process
FILE = "balance.json"


@dataclass(frozen=True)
class Balance:
    """What was measured, and what follows from it.

    Attributes:
        asked: the gradient of all terms over that of the detector's own losses that was asked for.
        pulls: the same ratio of each term with the weights before, median over some batches.
        together: the same of all terms together.
        before: weights of the method by the names of its options.
        after: the weights that make the ratio what was asked for.
    """

    asked: float
    pulls: dict[str, float]
    together: float
    before: dict[str, float]
    after: dict[str, float]

    def describe(self) -> str:
        """A sentence for the terminal."""
        changes = [f"{name} {weight:g} -> {self.after[name]:g}" for name, weight in self.before.items()]
        return (
            f"The terms pull {self.together:.3g} times as hard on the student's neck as the detector's own losses; for "
            f"{self.asked:g} times: {', '.join(changes)}."
        )


def balanced(
    settings: DistillSettings, parts: Parts, console: Console, write: bool = True
) -> tuple[DistillSettings, Parts]:
    """Give a run the weights that `settings.balance` asks for; a resumed run gets those that it began with.

    Args:
        settings: of the run.
        parts: what it is made of, with a frozen teacher; neither weights nor random numbers of the run change.
        console: where to say what was measured.
        write: whether to keep what was measured in the run's folder.

    Returns:
        Settings with fixed weights and without `balance`, and the parts with a method of these weights.

    Raises:
        InputError: the method has no weight, or no gradient that could be balanced, or the run that is resumed was
            balanced otherwise.
    """
    if settings.balance is None:
        return settings, parts
    weights = method_weights(settings)
    recorded = Path(settings.out) / FILE
    # A run that was killed before its first checkpoint may not have come as far as this file.
    if settings.resume and (recorded.is_file() or RunDirectory(settings.out).checkpoint.is_file()):
        after = _recorded(settings, weights)
    else:
        found = measure(settings, parts, weights)
        console.print(found.describe(), style="yellow", highlight=False)
        after = found.after
        if write and is_writer():
            write_into(Path(settings.out), FILE, (json.dumps(asdict(found), indent=2) + "\n").encode())
    fixed = replace(settings, balance=None, method_options=settings.method_options | after)
    assert parts.teacher is not None
    return fixed, replace(parts, method=pair(parts.student, parts.teacher, fixed, Console(quiet=True)))


def method_weights(settings: DistillSettings) -> dict[str, float]:
    """The weights above zero of the method that the settings choose, by the names of its options."""
    options = method_defaults(settings.method) | settings.method_options
    return {name: value for name, value in options.items() if name.endswith("_weight") and value > 0}


def measure(settings: DistillSettings, parts: Parts, weights: dict[str, float]) -> Balance:
    """Measure how hard the terms pull over a few batches, without changing anything.

    Raises:
        InputError: there is nothing to balance.
    """
    assert settings.balance is not None
    if not weights:
        raise InputError("--balance has nothing to balance: every weight of the method is 0.")
    if settings.method_options.get("initialisation") == "published":
        raise InputError(
            "--balance measures gradients through the adaptation layers, which initialisation published begins near "
            "zero: give --method.initialisation default, or weights of your own."
        )
    with torch.random.fork_rng():
        pulls = _measured(settings, parts)
    together = median(one.together for one in pulls)
    if not 0 < together < float("inf"):
        raise InputError(
            f"--balance can't compare gradients: at the student's neck the terms pull {together:g} times as hard as "
            "the detector's own losses. Are there objects in the data, and is anything of the detector trained?"
        )
    factor = settings.balance / together
    after = {name: float(f"{weight * factor:.{DIGITS}g}") for name, weight in weights.items()}
    terms = {name: median(one.terms[name] for one in pulls) for name in pulls[0].terms}
    return Balance(settings.balance, terms, together, weights, after)


def _measured(settings: DistillSettings, parts: Parts) -> list[Pulls]:
    device = training_device(settings)
    student, method = deepcopy(parts.student).to(device).train(), deepcopy(parts.method)
    assert parts.teacher is not None
    assert method is not None
    method.to(device)
    teacher = parts.teacher.to(device)
    loader = run_loader(settings, parts.training, parts.unlabelled)
    past_warm_up = Progress(step=1, steps=1, epoch=0, epochs=settings.epochs)
    pulls = []
    for number, batch in zip(range(BATCHES), loader, strict=False):
        torch.manual_seed(settings.seed + number)
        output, terms = step_losses(student, student.prepare(*batch), past_warm_up, method, teacher)
        pulls.append(measure_pulls(terms, output))
    return pulls


def _recorded(settings: DistillSettings, weights: dict[str, float]) -> dict[str, float]:
    path = Path(settings.out) / FILE
    try:
        found = Balance(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{settings.out} can't be resumed with --balance: {path.name} can't be read.") from error
    if found.asked != settings.balance or found.before != weights:
        raise InputError(
            f"{settings.out} can't be resumed with another --balance: it was begun with {found.asked:g} and the "
            f"weights {found.before}, and is to go on with {settings.balance:g} and {weights}."
        )
    return found.after
