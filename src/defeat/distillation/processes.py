"""Sums over all processes of a training, so that several devices compute what one device with the whole batch would.

A data-parallel training averages gradients over its processes. A mean over a region or a group must therefore divide
each process's sum by the average count of all processes, not by its own. In a single process nothing changes.
"""

import torch
import torch.distributed
from torch import Tensor
from torch.distributed.nn.functional import all_reduce


def process_count() -> int:
    """Number of processes that train together."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if distributed else 1


def sum_over_processes(values: Tensor) -> Tensor:
    """Sum over all processes, returned in each of them; gradients flow back to all."""
    if process_count() == 1:
        return values
    total: Tensor = all_reduce(values)
    return total


def average_count(count: Tensor) -> Tensor:
    """Average number of elements per process, where the total counts as at least one; without gradient."""
    processes = process_count()
    total = sum_over_processes(count.detach()).clamp(min=1)
    return total / processes if processes > 1 else total
