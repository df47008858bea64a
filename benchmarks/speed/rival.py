"""The same pair distilled by torchdistill: hooks on the feature maps of the necks, and the mean squared error.

It is measured where the package is installed: `pip install torchdistill`, in a separate environment.
"""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed.bare import Step, torchvision_batch, torchvision_model
from benchmarks.speed.work import Work


def installed() -> bool:
    """Whether torchdistill is installed."""
    return find_spec("torchdistill") is not None


class Taps(nn.Module):
    """A module per feature map of a neck, for hooks."""

    def __init__(self, backbone: nn.Module, taps: list[nn.Module]) -> None:
        super().__init__()
        self.backbone, self.taps, self.out_channels = backbone, nn.ModuleList(taps), backbone.out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Feature maps by name; they also pass through the taps, whose outputs only hooks read."""
        maps: dict[str, Tensor] = self.backbone(images)
        for tap, level in zip(self.taps, maps.values(), strict=True):
            tap(level)
        return maps


def rival_step(work: Work, kept: bool = True) -> Step:
    """A training step with torchdistill's distillation box and torchvision detectors."""
    from torchdistill.core.distillation import get_distillation_box

    student, teacher = torchvision_model(work).train(), torchvision_model(work, "teacher").eval()
    widths = student.backbone.out_channels, teacher.backbone.out_channels
    levels = len(student.backbone.backbone.neck_channels)
    student.backbone = Taps(student.backbone, [nn.Conv2d(*widths, 3, padding=1) for _ in range(levels)])
    teacher.backbone = Taps(teacher.backbone, [nn.Identity() for _ in range(levels)])
    device = torch.device(work.device)
    box = get_distillation_box(
        teacher.to(device), student.to(device), {}, configuration(levels), device, None, distributed=False, lr_factor=1
    )
    box.pre_epoch_process()
    batches = work.batches(kept)

    def step() -> None:
        images, targets = torchvision_batch(next(batches), work.device)
        box.post_forward_process(box.forward_process(images, targets))

    return step


def configuration(levels: int) -> dict[str, Any]:
    """Configuration that torchdistill otherwise reads from a YAML file."""
    paths = [f"backbone.taps.{level}" for level in range(levels)]
    terms = {
        path: {
            "criterion": {"key": "MSELoss", "kwargs": {"reduction": "mean"}},
            "criterion_wrapper": {
                "key": "SimpleLossWrapper",
                "kwargs": {
                    "input": {"is_from_teacher": False, "module_path": path, "io": "output"},
                    "target": {"is_from_teacher": True, "module_path": path, "io": "output"},
                },
            },
            "weight": 1.0,
        }
        for path in paths
    }
    hooks = {"forward_hook": {"input": [], "output": paths}}
    return {
        "num_epochs": 1,
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False} | hooks,
        "student": {"forward_proc": "forward_batch_target"} | hooks,
        "optimizer": {"key": "SGD", "kwargs": {"lr": 1e-4, "momentum": 0.9, "weight_decay": 1e-4}},
        "criterion": {
            "key": "WeightedSumLoss",
            "func2extract_model_loss": "extract_model_loss_dict",
            "kwargs": {"model_term": {"weight": 1.0}, "sub_terms": terms},
        },
    }
