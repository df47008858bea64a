"""Distil with your own objects: a data set, a student, a teacher and a method.

    python examples/own_objects.py RUNS

It trains for a few steps on random images, to show the interfaces.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

import defeat

CLASSES = ["bright", "dark"]


class Squares(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """A bright or a dark square on a grey image, in the format of torchvision's detectors."""

    def __init__(self, images: int, seed: int) -> None:
        self.images, self.seed = images, seed

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The image (3, 64, 64), float in 0..1, and its one box."""
        if index >= self.images:
            raise IndexError(index)
        draw = torch.Generator().manual_seed(1000 * self.seed + index)
        x, y = torch.randint(0, 40, (2,), generator=draw).tolist()
        label = int(torch.randint(0, 2, (1,), generator=draw))
        image = 0.5 + 0.05 * torch.randn(3, 64, 64, generator=draw)
        image[:, y : y + 24, x : x + 24] = 0.1 if label else 0.9
        boxes = torch.tensor([[x, y, x + 24, y + 24]], dtype=torch.float32)
        return image.clamp(0, 1), {"boxes": boxes, "labels": torch.tensor([label])}


class FinestLevel(defeat.Method):
    """Imitation of the teacher's finest feature map of the neck: mean squared error times a weight."""

    paper = "none"
    reads = ("neck",)

    def __init__(self, student: defeat.DetectorInfo, teacher: defeat.DetectorInfo, *, map_weight: float = 1.0) -> None:
        super().__init__(student, teacher)
        self.map_weight, self.stride = map_weight, min(student.neck)
        self.adapt = torch.nn.Conv2d(student.neck[self.stride], teacher.neck[self.stride], 1)

    def terms(
        self,
        student: defeat.DetectorOutput,
        teacher: defeat.DetectorOutput,
        targets: Sequence[defeat.Target],
        progress: defeat.Progress,
    ) -> dict[str, Tensor]:
        """Compute `finest`."""
        difference = self.adapt(student.neck[self.stride].float()) - teacher.neck[self.stride].float()
        return {"finest": self.map_weight * difference.square().mean()}


def main(folder: Path) -> defeat.RunResult:
    """Train a teacher and a student, and detect with the student."""
    training, test = Squares(16, seed=0), Squares(4, seed=1)

    def small_detector() -> defeat.Detector:
        return defeat.build("retinanet", "none", backbone="test_resnet", classes=CLASSES, size=64, neck_channels=16)

    defeat.train(
        data=training,
        eval_data=test,
        classes=CLASSES,
        student=small_detector(),
        out=str(folder / "teacher"),
        epochs=1,
        workers=0,
    )
    student = small_detector()
    run = defeat.distill(
        data=training,
        eval_data=test,
        classes=CLASSES,
        student=student,
        teacher=defeat.load(folder / "teacher"),
        method=lambda student, teacher: FinestLevel(student, teacher, map_weight=2.0),
        allow_weak_teacher=True,  # after one epoch
        out=str(folder / "student"),
        epochs=1,
        log_every=1,
        workers=0,
    )
    image, _ = test[0]
    detections = defeat.load(run.folder).predict(image)[0]
    print(f"AP {run.metrics['AP']}, {len(detections.scores)} detections in an image")
    return run


if __name__ == "__main__":
    main(Path(sys.argv[1]))
