"""Writes TorchScript files."""

from pathlib import Path

import torch

from defeat.detector.exported.description import KEY
from defeat.exporting.graph import ExportGraph, tracing


def write(graph: ExportGraph, example: torch.Tensor, path: Path) -> None:
    """Trace a graph, and write it with its description.

    Args:
        graph: what to export.
        example: an input (1, 3, H, W) with objects that the detector finds, so that no branch of it is empty.
        path: file to write.
    """
    with tracing():
        graph.eval()(example)  # tensors that a detector keeps for a size become constants
        traced = torch.jit.trace(graph, (example,), check_trace=False)
    traced.save(str(path), _extra_files={KEY: graph.description.text()})
