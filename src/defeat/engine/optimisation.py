"""What takes the steps of a run: the optimiser, its parameter groups, and the schedule of the learning rate."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from defeat.detector import Detector
from defeat.distillation import Method
from defeat.engine.settings import TrainSettings


def build_optimizer(student: Detector, method: Method | None, settings: TrainSettings) -> Optimizer:
    """The optimiser of a run, over all trained weights of the student and the method's adaptation layers.

    Args:
        student: the detector to train.
        method: whose adaptation layers are trained beside it; None without a teacher.
        settings: the run's settings.
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


def build_schedule(optimizer: Optimizer, settings: TrainSettings, steps: int, falls: Callable[[], int]) -> LambdaLR:
    """The learning rate of each step, as the settings ask for.

    Args:
        optimizer: whose learning rates are set, each in proportion to its first value.
        settings: the run's settings.
        steps: steps of the whole run.
        falls: how often the rate has fallen to a tenth because AP did not improve.
    """
    warmup = min(500, steps // 20) if settings.warmup_steps is None else settings.warmup_steps
    if settings.schedule == "cosine":
        return LambdaLR(optimizer, cosine(steps, warmup))
    if settings.patience is None:
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
