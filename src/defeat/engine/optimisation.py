"""What takes the steps of a run: the optimiser, its parameter groups, and the schedule of the learning rate."""

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
LEAST_SGD_LR = 0.01  # AdamW diverges with what SGD needs


@settings_part
class OptimisationSettings(Checked):
    """Optimisation."""

    epochs: int = setting(default=12, compared=False)
    """Passes over the training split."""
    max_steps: int | None = setting(default=None, compared=False)
    """Stop after so many optimiser steps, however many epochs that is."""
    batch_size: int = setting(default=8)
    """Images per step on each device."""
    optimizer: Literal["sgd", "adamw"] = setting(default="sgd")
    """Optimiser: sgd or adamw."""
    lr: float | Literal["auto"] = setting(default=AUTO, usual=0.01)
    """Learning rate after warm-up; auto for 0.01 (sgd, in proportion to the images per step) or 0.0002 (adamw, in
    proportion to their square root) with 8 images per step on all devices together."""
    backbone_lr_factor: float = setting(default=1.0)
    """Learning rate of the backbone's body, as a part of that of everything else, above 0, at most 1."""
    momentum: float = setting(default=0.9)
    """Momentum of SGD, 0..1; AdamW has its usual 0.9 and 0.999."""
    weight_decay: float = setting(default=1e-4)
    """Weight decay; 0.0001 is usual for SGD, 0.0001 to 0.05 for AdamW."""
    norm_decay: bool = setting(default=True)
    """Whether weight decay of SGD also applies to normalisation layers and biases; that of AdamW never does."""
    schedule: Literal["step", "cosine"] = setting(default="step")
    """How the learning rate falls after warm-up: step, by --lr-milestones, or cosine, to zero at the end."""
    lr_milestones: list[float] = setting(factory=lambda: list(MILESTONES))
    """With --schedule step, parts of the run, 0..1, after each of which the learning rate falls to a tenth."""
    warmup_steps: int | None = setting(default=None)
    """Steps over which the learning rate rises; by default a twentieth of the run, 500 at most."""
    ema: float | None = setting(default=None)
    """Evaluate and save an exponential moving average of the student's weights, of which a step leaves this part,
    such as 0.9998 (less in the first steps); 0 for none."""
    grad_clip: float = setting(default=35.0)
    """Upper limit of the norm of all gradients together; 0 for none."""
    seed: int = setting(default=0, role=Role.CELL, compared=False)
    """Seed of everything that is random."""

    def check(self) -> None:
        """Refuse values that can't work."""
        for name in ("epochs", "batch_size"):
            at_least(name, getattr(self, name), 1)
        for name in ("weight_decay", "grad_clip", "warmup_steps"):
            at_least(name, getattr(self, name), 0)
        at_least("seed", self.seed, 0, 2**63 - 1)
        at_least("max_steps", self.max_steps, 1)
        if not 0 <= self.momentum <= 1:
            raise InputError(f"{option('momentum')} must be between 0 and 1, not {self.momentum}.")
        if not all(0 <= part <= 1 for part in self.lr_milestones):
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
                f"--lr {self.lr} is for SGD, AdamW would diverge with it: give about --lr 0.0001 for 8 images a step."
            )
        if not 0 < self.backbone_lr_factor <= 1:
            raise InputError(
                f"--backbone-lr-factor must be above 0, at most 1, not {self.backbone_lr_factor}; --frozen-stages 5 "
                "keeps the whole body as it is."
            )
        if self.schedule == "cosine":
            self.require_no_milestones("--schedule cosine")

    def require_no_milestones(self, flag: str) -> None:
        """Refuse milestones beside what lowers the learning rate itself.

        Raises:
            InputError: there are milestones other than the default ones.
        """
        if self.lr_milestones and tuple(self.lr_milestones) != MILESTONES:
            raise InputError(
                f"--lr-milestones have no use with {flag}, which lowers the learning rate itself: leave them "
                "out, or give --lr-milestones=[] where a recipe has them."
            )

    def steps(self, epoch_steps: int) -> int:
        """Optimiser steps of a whole run, given those of an epoch."""
        steps = self.epochs * epoch_steps
        return steps if self.max_steps is None else min(steps, self.max_steps)


def build_optimizer(student: Detector, method: Method | None, settings: OptimisationSettings) -> Optimizer:
    """The optimiser of a run, over all trained weights of the student and the method's adaptation layers.

    Args:
        student: the detector to train.
        method: whose adaptation layers are trained beside it; None without a teacher.
        settings: which, and how fast.
    """
    trained = nn.ModuleList([part for part in (student, method) if part is not None])
    decays = settings.norm_decay and settings.optimizer == "sgd"
    body = student.body_parameters() if settings.backbone_lr_factor != 1 else ()
    rate = settings.number("lr")
    groups = parameter_groups(trained, settings.weight_decay, decays, body, rate * settings.backbone_lr_factor)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate)
    return torch.optim.SGD(groups, lr=rate, momentum=settings.momentum)


def parameter_groups(
    module: nn.Module,
    weight_decay: float,
    norm_decay: bool,
    body: Iterable[nn.Parameter] = (),
    body_lr: float = 0.0,
) -> list[dict[str, Any]]:
    """Trained parameters for an optimiser; those with the run's own learning rate come first.

    Args:
        module: whose parameters; those without gradient are left out.
        weight_decay: weight decay.
        norm_decay: whether it also applies to normalisation layers and biases, which else have groups of their own.
        body: parameters with a learning rate of their own.
        body_lr: that learning rate.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    slower = {id(parameter) for parameter in body}
    groups = _by_decay([one for one in trained if id(one) not in slower], weight_decay, norm_decay)
    own = _by_decay([one for one in trained if id(one) in slower], weight_decay, norm_decay)
    return groups + [group | {"lr": body_lr} for group in own if group["params"]]


def _by_decay(parameters: list[nn.Parameter], weight_decay: float, norm_decay: bool) -> list[dict[str, Any]]:
    if norm_decay:
        return [{"params": parameters, "weight_decay": weight_decay}]
    decaying = [parameter for parameter in parameters if parameter.ndim > 1]
    others = [parameter for parameter in parameters if parameter.ndim <= 1]
    return [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def build_schedule(
    optimizer: Optimizer, settings: OptimisationSettings, steps: int, falls: Callable[[], int] | None = None
) -> LambdaLR:
    """The learning rate of each step, as the settings ask for.

    Args:
        optimizer: whose learning rates are set, each in proportion to its first value.
        settings: how.
        steps: steps of the whole run.
        falls: how often the rate has fallen to a tenth because AP did not improve; None where that decides nothing.
    """
    warmup = min(500, steps // 20) if settings.warmup_steps is None else settings.warmup_steps
    if settings.schedule == "cosine":
        return LambdaLR(optimizer, cosine(steps, warmup))
    if falls is None:
        return LambdaLR(optimizer, learning_rate(steps, warmup, settings.lr_milestones))
    rising = learning_rate(steps, warmup, [])
    return LambdaLR(optimizer, lambda step: 0.1 ** falls() * rising(step))


def learning_rate(steps: int, warmup: int, milestones: Sequence[float] = (8 / 12, 11 / 12)) -> Callable[[int], float]:
    """The factor of the learning rate at each step.

    Args:
        steps: steps of the whole run.
        warmup: steps over which the factor rises linearly to 1.
        milestones: parts of the run, after each of which the factor falls to a tenth.
    """

    def factor(step: int) -> float:
        decay = 0.1 ** sum(step >= steps * part for part in milestones)
        return decay * min(1.0, (step + 1) / max(1, warmup))

    return factor


def cosine(steps: int, warmup: int) -> Callable[[int], float]:
    """The factor of the learning rate at each step: after warm-up half a cosine from 1 down to 0 at the end.

    That is SGDR (Loshchilov and Hutter, ICLR 2017, equation 5) without restarts.

    Args:
        steps: steps of the whole run.
        warmup: steps over which the factor rises linearly to 1.
    """

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, steps - warmup))
        return 0.5 * (1 + math.cos(math.pi * done))

    return factor
