"""Cells of feature maps as places of predictions: their centres, and the object that each belongs to."""

import torch
from torch import Tensor

from defeat.types import Target


def cell_centres(shape: tuple[int, int], device: torch.device) -> Tensor:
    """Centres x y of the cells of a level, row by row, relative to the image: (H * W, 2)."""
    rows, columns = ((torch.arange(count, device=device) + 0.5) / count for count in shape)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack((x.flatten(), y.flatten()), dim=1)


def cell_labels(target: Target, centres: Tensor, strides: Tensor, background: int) -> Tensor:
    """Label of the object at each cell: the smallest box around its centre, or a box centred in the cell.

    Args:
        target: objects of an image.
        centres: (N, 2) x y in pixels.
        strides: (N,) side of each cell in pixels.
        background: label of the other cells.

    Returns:
        (N,) int64.
    """
    if not len(target.boxes):
        return torch.full((len(centres),), background, device=centres.device)
    boxes = target.boxes
    around = ((centres[:, None] > boxes[:, :2]) & (centres[:, None] < boxes[:, 2:])).all(dim=2)  # (N, G)
    offsets = (centres[:, None] - (boxes[:, :2] + boxes[:, 2:]) / 2).abs().amax(dim=2)  # (N, G)
    around |= offsets <= strides[:, None] / 2
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)  # (G,)
    smallest = torch.where(around, areas, float("inf")).argmin(dim=1)
    return torch.where(around.any(dim=1), target.labels[smallest], background)
