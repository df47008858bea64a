"""Optimiser, parameter groups, and learning rate schedule."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from defeat.detector import Detector
from defeat.distillation import Method
from defeat.errors import InputError
from defeat.settings import AUTO, Checked, Role, at_least, option, setting, settings_part

MILESTONES = (8 / 12, 11 / 12)
COSINES = ("cosine", "flat_cosine")  # schedules that end with a learning rate of zero
# Settings that a resumed run may change if its steps so far stay the same, see `engine/length.py`.
LENGTH = ("epochs", "max_steps", "warmup_steps")
MANY_STEPS = 500  # from which a cosine is better for a student with a teacher, see docs/accuracy.md, "Schedules"
LEAST_SGD_LR = 0.01  # learning rates of SGD, with which AdamW diverges


@settings_part
class OptimisationSettings(Checked):
    """Optimisation."""

    epochs: int | Literal["auto"] = setting(default=AUTO, usual=12, compared=False)
    """Number of passes over the training split; auto for 12, or as many as give 300 optimiser steps, at most 100;
    with --patience five times as many, with --max-steps as many as these steps need."""
    max_steps: int | None = setting(default=None, compared=False)
    """Maximum number of optimiser steps; the run ends there even within an epoch."""
    batch_size: int = setting(default=8)
    """Images per batch on each device."""
    accumulate: int = setting(default=1)
    """Batches per optimiser step, whose gradients are averaged, for more images in a step than fit into memory. Batch
    normalisation and the losses see one batch at a time."""
    optimizer: Literal["auto", "sgd", "adamw"] = setting(default=AUTO, usual="sgd")
    """Optimiser: sgd or adamw; auto for the one with which the detector was published, adamw for those of transformers
    and sgd for others."""
    lr: float | Literal["auto"] = setting(default=AUTO, usual=0.01)
    """Learning rate after warm-up; auto for 0.01 (sgd, in proportion to the images per step) or 0.0002 (adamw, in
    proportion to their square root) with 8 images per step on all devices together."""
    backbone_lr_factor: float = setting(default=1.0)
    """Factor of the learning rate of the backbone's body, above 0, at most 1."""
    momentum: float = setting(default=0.9)
    """Momentum of SGD, 0..1; AdamW uses betas 0.9 and 0.999."""
    weight_decay: float = setting(default=1e-4)
    """Weight decay; 0.0001 is usual for SGD, 0.0001 to 0.05 for AdamW."""
    norm_decay: bool = setting(default=True)
    """Whether weight decay of SGD also applies to normalisation layers and biases; that of AdamW never does."""
    schedule: Literal["auto", "flat_cosine", "cosine", "step"] = setting(default=AUTO, usual="step")
    """Learning rate schedule after warm-up: cosine, to zero over the whole run; flat_cosine, constant for the first
    half of the run, then to zero along a cosine; step, by --lr-milestones; auto for step with --lr-milestones or
    --patience, else cosine with a teacher and 500 steps or more, flat_cosine without or for fewer."""
    lr_milestones: list[float] = setting(factory=lambda: list(MILESTONES))
    """With --schedule step, fractions of the run, 0..1, after which the learning rate drops to a tenth."""
    warmup_steps: int | None = setting(default=None)
    """Number of steps over which the learning rate rises; by default a twentieth of the run, 500 at most."""
    ema: float | None = setting(default=None)
    """Evaluate and save an exponential moving average of the student's weights with this decay per step, such as 0.9998
    (lower in the first steps); 0 for none."""
    quantise: Literal["none", "int8"] = setting(default="none")
    """Train for a student that is exported with --precision int8: its weights and activations are rounded like those of
    8-bit integers in every step. Start from a trained student (--weights RUN); a few epochs are enough."""
    grad_clip: float = setting(default=35.0)
    """Maximum norm of the gradient, to which it is clipped; 0 for no clipping."""
    seed: int = setting(default=0, role=Role.CELL, compared=False)
    """Seed of all random numbers."""

    def check(self) -> None:
        """Refuse invalid values."""
        for name in ("batch_size", "accumulate"):
            at_least(name, getattr(self, name), 1)
        at_least("epochs", self.number_of_epochs, 1)
        for name in ("weight_decay", "grad_clip", "warmup_steps"):
            at_least(name, getattr(self, name), 0)
        at_least("seed", self.seed, 0, 2**63 - 1)
        at_least("max_steps", self.max_steps, 1)
        if not 0 <= self.momentum <= 1:
            raise InputError(f"{option('momentum')} must be between 0 and 1, not {self.momentum}.")
        if not all(0 <= milestone <= 1 for milestone in self.lr_milestones):
            raise InputError(f"--lr-milestones must be between 0 and 1, not {self.lr_milestones}.")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise InputError(f"--ema must be 0 or more and below 1, such as 0.9998, not {self.ema}.")
        object.__setattr__(self, "ema", self.ema or None)
        self._check_rates()

    def _check_rates(self) -> None:
        if not 0 < self.number("lr") < float("inf"):
            raise InputError(f"--lr must be above 0, not {self.lr}.")
        if self.optimizer == "adamw" and self.lr != AUTO and self.number("lr") >= LEAST_SGD_LR:
            raise InputError(
                f"--lr {self.lr} is for SGD, AdamW would diverge: give about --lr 0.0001 for 8 images per step."
            )
        if not 0 < self.backbone_lr_factor <= 1:
            raise InputError(
                f"--backbone-lr-factor must be above 0, at most 1, not {self.backbone_lr_factor}; --frozen-stages 5 "
                "freezes the whole body."
            )
        if self.schedule in COSINES:
            self.require_no_milestones(f"--schedule {self.schedule}")

    def require_no_milestones(self, flag: str) -> None:
        """Refuse milestones together with another option that lowers the learning rate.

        Raises:
            InputError: there are milestones other than the default ones.
        """
        if self.lr_milestones and tuple(self.lr_milestones) != MILESTONES:
            raise InputError(
                f"--lr-milestones have no effect with {flag}, which lowers the learning rate itself: leave them "
                "out, or give --lr-milestones=[] to override those of a recipe."
            )

    @property
    def number_of_epochs(self) -> int:
        """Passes over the training split, 12 for `auto`."""
        return int(self.number("epochs"))

    def epoch_steps(self, batches: int) -> int:
        """Optimiser steps per epoch, given its batches; the last step of an epoch may have fewer batches."""
        return -(-batches // self.accumulate)

    def steps(self, epoch_steps: int) -> int:
        """Optimiser steps of a whole run, given those per epoch."""
        steps = self.number_of_epochs * epoch_steps
        return steps if self.max_steps is None else min(steps, self.max_steps)


def build_optimizer(student: Detector, method: Method | None, settings: OptimisationSettings) -> Optimizer:
    """Build the optimiser of all trained weights of the student and of the method's adaptation layers.

    Args:
        student: the detector to train.
        method: the method whose adaptation layers are trained; None without a teacher.
        settings: optimiser and learning rates.
    """
    trained = nn.ModuleList([part for part in (student, method) if part is not None])
    decays = settings.norm_decay and settings.optimizer != "adamw"
    body = student.body_parameters() if settings.backbone_lr_factor != 1 else ()
    lr = settings.number("lr")
    groups = parameter_groups(trained, settings.weight_decay, decays, body, lr * settings.backbone_lr_factor)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=lr)
    return torch.optim.SGD(groups, lr=lr, momentum=settings.momentum)


def parameter_groups(
    module: nn.Module,
    weight_decay: float,
    norm_decay: bool,
    body: Iterable[nn.Parameter] = (),
    body_lr: float = 0.0,
) -> list[dict[str, Any]]:
    """Parameter groups of an optimiser; groups with the default learning rate come first.

    Args:
        module: the module to train; parameters without gradient are left out.
        weight_decay: weight decay.
        norm_decay: whether weight decay applies to normalisation layers and biases; if not, they get separate groups.
        body: parameters with another learning rate.
        body_lr: the learning rate of `body`.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    body_ids = {id(parameter) for parameter in body}
    groups = _by_decay([parameter for parameter in trained if id(parameter) not in body_ids], weight_decay, norm_decay)
    of_body = _by_decay([parameter for parameter in trained if id(parameter) in body_ids], weight_decay, norm_decay)
    return groups + [group | {"lr": body_lr} for group in of_body if group["params"]]


def _by_decay(parameters: list[nn.Parameter], weight_decay: float, norm_decay: bool) -> list[dict[str, Any]]:
    if norm_decay:
        return [{"params": parameters, "weight_decay": weight_decay}]
    decaying = [parameter for parameter in parameters if parameter.ndim > 1]
    others = [parameter for parameter in parameters if parameter.ndim <= 1]
    return [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def build_schedule(
    optimizer: Optimizer,
    settings: OptimisationSettings,
    steps: int,
    falls: Callable[[], int] | None = None,
    taught: bool = False,
) -> LambdaLR:
    """Build the learning rate schedule.

    Args:
        optimizer: the optimiser, whose initial learning rates are multiplied by the factor of the schedule.
        settings: kind of schedule, milestones and warm-up.
        steps: steps of the whole run.
        falls: number of drops of the learning rate so far, if they depend on AP (see `Patience`); None if not.
        taught: whether the run has a teacher.
    """
    factor = rate_factor(settings, steps, patient=falls is not None, taught=taught)
    if falls is None:
        return LambdaLR(optimizer, factor)
    return LambdaLR(optimizer, lambda step: 0.1 ** falls() * factor(step))


def rate_factor(
    settings: OptimisationSettings, steps: int, patient: bool = False, taught: bool = False
) -> Callable[[int], float]:
    """Factor of the learning rate, as a function of the step.

    Args:
        settings: kind of schedule, milestones and warm-up.
        steps: steps of the whole run.
        patient: whether AP lowers the learning rate (see `Patience`), which is not part of this factor.
        taught: whether the run has a teacher.
    """
    warmup = warmup_of(settings, steps)
    schedule = chosen_schedule(settings, steps, patient, taught)
    if schedule in COSINES:
        return cosine_factor(steps, warmup, steps // 2 if schedule == "flat_cosine" else 0)
    return step_factor(steps, warmup, [] if patient else settings.lr_milestones)


def warmup_of(settings: OptimisationSettings, steps: int) -> int:
    """Steps of the warm-up of a run of so many steps."""
    return min(500, steps // 20) if settings.warmup_steps is None else settings.warmup_steps


def chosen_schedule(settings: OptimisationSettings, steps: int, by_accuracy: bool = False, taught: bool = False) -> str:
    """The schedule of these settings, also where it is `auto`.

    Args:
        settings: kind of schedule and milestones.
        steps: steps of the whole run.
        by_accuracy: whether the learning rate drops where AP does not rise (`--patience`).
        taught: whether the run has a teacher.
    """
    if settings.schedule != AUTO:
        return settings.schedule
    if by_accuracy or tuple(settings.lr_milestones) != MILESTONES:
        return "step"
    return automatic_cosine(steps, taught)


def automatic_cosine(steps: int, taught: bool) -> str:
    """The cosine that suits a run (docs/accuracy.md, "Schedules"): each student gets the one with which it is better.

    A student whose head is new needs many steps at a high rate, and so does one with few steps. One that follows a
    teacher's maps comes closer to them at a low rate.

    Args:
        steps: steps of the whole run.
        taught: whether the run has a teacher.
    """
    return "cosine" if taught and steps >= MANY_STEPS else "flat_cosine"


def step_factor(steps: int, warmup: int, milestones: Sequence[float] = (8 / 12, 11 / 12)) -> Callable[[int], float]:
    """Factor of the learning rate, as a function of the step, with drops to a tenth.

    Args:
        steps: steps of the whole run.
        warmup: steps over which the factor rises linearly to 1.
        milestones: fractions of the run after which the factor drops to a tenth.
    """

    def factor(step: int) -> float:
        decay = 0.1 ** sum(step >= steps * milestone for milestone in milestones)
        return decay * min(1.0, (step + 1) / max(1, warmup))

    return factor


def cosine_factor(steps: int, warmup: int, flat: int = 0) -> Callable[[int], float]:
    """Factor of the learning rate, as a function of the step: after warm-up, half a cosine from 1 to 0 at the end.

    This is SGDR (Loshchilov and Hutter, ICLR 2017, equation 5) without restarts; with a constant part before, as RTMDet
    (Lyu et al., arXiv 2212.07784) trains.

    Args:
        steps: steps of the whole run.
        warmup: steps over which the factor rises linearly to 1.
        flat: step at which the cosine begins, if that is after the warm-up.
    """
    start = max(warmup, flat)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = min(1.0, max(0, step - start) / max(1, steps - start))
        return 0.5 * (1 + math.cos(math.pi * done))

    return factor
