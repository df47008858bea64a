"""Sums over all processes of a training, so that several devices compute what one device with the whole batch would.

A data-parallel training averages gradients over its processes. A mean over a region or a group must therefore divide
each process's sum by the average count of all, not by its own. Without several processes nothing here does anything.
"""

import torch
import torch.distributed
from torch import Tensor
from torch.distributed.nn.functional import all_reduce


def processes() -> int:
    """How many processes train together."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if distributed else 1


def added(values: Tensor) -> Tensor:
    """Sum over all processes, in each of them; gradients flow through it to all."""
    if processes() == 1:
        return values
    total: Tensor = all_reduce(values)
    return total


def average_count(count: Tensor) -> Tensor:
    """Elements that a process has on average, where all together count as one at least; without gradient."""
    together = processes()
    return added(count.detach()).clamp(min=1) / together if together > 1 else count.detach().clamp(min=1)
