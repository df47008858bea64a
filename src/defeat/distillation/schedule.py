"""Schedules of the weight of distillation during a run."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from defeat.errors import InputError, unknown_name
from defeat.types import Progress

DECAYS = ("constant", "linear", "cosine", "up_down")


class Schedule:
    """A factor for all terms of a method: a rise over the first steps, and a decay over the epochs.

    With e epochs done of E, as in the published code: `constant` 1; `linear` 1 - e/E; `cosine` (1 + cos(pi e/E)) / 2;
    `up_down` rises from 1 to 2 over the first quarter, then falls to 0.

    Args:
        decay: one of `constant`, `linear`, `cosine`, `up_down`.
        warmup: fraction of the run over which the factor rises linearly from near 0, 0..1; 0 for none.

    Raises:
        InputError: the decay is unknown, or the warm-up is not in 0..1.
    """

    def __init__(self, decay: str = "constant", warmup: float = 0.0) -> None:
        if decay not in DECAYS:
            raise unknown_name("decay", decay, DECAYS)
        if not 0 <= warmup <= 1:
            raise InputError(f"warmup must be between 0 and 1, not {warmup}.")
        self.decay, self.warmup = decay, warmup

    def __call__(self, progress: Progress) -> float:
        """The factor, 0..1 (`up_down`: 0..2)."""
        return warmup_factor(progress, self.warmup) * decay_factor(progress, self.decay)

    def scaled(self, losses: dict[str, Tensor], progress: Progress) -> dict[str, Tensor]:
        """The losses, multiplied by the factor."""
        factor = self(progress)
        return {name: loss * factor for name, loss in losses.items()}


def split_schedule(options: Mapping[str, Any]) -> tuple[Schedule, dict[str, Any]]:
    """Split the options of a method into its schedule, from `decay` and `warmup`, and the others."""
    others = dict(options)
    return Schedule(others.pop("decay"), others.pop("warmup")), others


def warmup_factor(progress: Progress, fraction: float) -> float:
    """A factor that rises linearly from near 0 to 1 over the first part of a run.

    Args:
        progress: current step and epoch of the run.
        fraction: fraction of the run over which the factor rises, 0..1; 0 gives 1 from the start.

    Returns:
        `(step + 1) / (fraction * steps)`, at most 1.
    """
    return min(1.0, (progress.step + 1) / max(1.0, fraction * progress.steps))


def decay_factor(progress: Progress, decay: str) -> float:
    """The factor of a decay (see `Schedule`) at the current epoch."""
    epoch, epochs = min(progress.epoch, progress.epochs), progress.epochs
    done = epoch / epochs
    if decay == "linear":
        return 1 - done
    if decay == "cosine":
        return 0.5 * math.cos(math.pi * done) + 0.5
    if decay == "up_down":
        top = max(1, epochs // 4)
        return 1 + epoch / top if epoch <= top else 2 - 2 * (epoch - top) / (epochs - top)
    return 1.0
