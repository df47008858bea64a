"""The workload of a step: pair of detectors, images, settings."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from defeat.assembly.settings import DistillSettings, TrainSettings
from defeat.data import DataSource
from defeat.data.loader import training_loader
from defeat.detector import Detector, DetectorSpec, build, make_options, save_model
from defeat.detector.options import with_usual_values
from defeat.distillation import DeFeat
from defeat.types import Target

Images = tuple[list[Tensor], list[Target]]
NECK_CHANNELS = {"student": 64, "teacher": 128}
# Options for small images, with fewer proposals; larger images use the defaults of the families.
SMALL: dict[str, dict[str, Any]] = {
    "faster_rcnn": {
        "anchor_sizes": [16, 32, 64, 128, 256],
        "rpn_pre_nms_top_n_train": 500,
        "rpn_post_nms_top_n_train": 300,
        "rpn_pre_nms_top_n_test": 500,
        "rpn_post_nms_top_n_test": 300,
        "box_batch_size_per_image": 64,
        "box_representation_size": 512,
    },
    "retinanet": {"anchor_sizes": [16, 32, 64, 128, 256], "head_norm": "gn"},
}

OPEN = DataSource.open  # runs in steppers have another one


@dataclass(frozen=True)
class Work:
    """A workload.

    Attributes:
        data: a data set, as for `--data`.
        family: family of both detectors.
        student: backbone of the student.
        teacher: backbone of the teacher.
        size: short side of the images, in pixels.
        batch: images per step.
        device: cpu or cuda.
        precision: 32-true or bf16-mixed.
    """

    data: str
    family: str = "faster_rcnn"
    student: str = "tf_efficientnet_lite0"
    teacher: str = "tf_efficientnet_lite2"
    size: int = 224
    batch: int = 8
    device: str = "cpu"
    precision: str = "32-true"

    @property
    def options(self) -> dict[str, Any]:
        """Options of the family."""
        return SMALL[self.family] if self.size < 400 else {}

    def detector(self, role: str) -> Detector:
        """The student or the teacher with fixed random weights; the teacher is frozen."""
        torch.manual_seed(0)
        spec = DetectorSpec(
            self.family,
            getattr(self, role),
            training_images(self.data).classes,
            self.size,
            round(self.size * 5 / 3),
            neck_channels=NECK_CHANNELS[role],
            options=self.options,
        )
        detector = build(spec, weights="none").to(self.device)
        return detector.train() if role == "student" else detector.eval().requires_grad_(False)

    def pair(self, options: dict[str, Any] | None = None) -> tuple[Detector, Detector, DeFeat]:
        """Student, teacher and DeFeat with the given options."""
        student, teacher = self.detector("student"), self.detector("teacher")
        return student, teacher, DeFeat(student.info, teacher.info, **(options or {})).to(self.device)

    def batches(self, kept: bool) -> Iterator[Images]:
        """Batches of a run with seed 0, epoch after epoch; kept images are decoded once, others in each epoch."""
        images: Any = training_images(self.data)
        loader = training_loader(images if kept else images.dataset, batch_size=self.batch, seed=0, workers=0)
        epoch = 0
        while True:
            loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
            yield from loader
            epoch += 1

    def decode(self, rounds: int) -> None:
        """Decode and keep the images of the first `rounds` batches."""
        for _ in zip(self.batches(True), range(rounds), strict=False):
            pass

    def settings(self, out: Path, teacher: Path | None = None, **more: Any) -> TrainSettings:
        """The workload as settings of a run that is longer than the measurement."""
        shared: dict[str, Any] = {
            "data": self.data,
            "out": str(out),
            "detector": self.family,
            "backbone": self.student,
            "neck_channels": NECK_CHANNELS["student"],
            "size": self.size,
            "batch_size": self.batch,
            "epochs": 100,
            "eval_every": 0,
            "weights": "none",
            "workers": 0,
            "lr": 1e-4,
            "accelerator": "cpu" if self.device == "cpu" else "gpu",
            "precision": self.precision,
            # All options, because missing ones would be fitted to the data.
            "detector_options": asdict(with_usual_values(make_options(self.family, self.options))),
        }
        if teacher is None:
            return TrainSettings(**shared)
        return DistillSettings(**shared, **more, teacher=str(teacher), allow_weak_teacher=True)

    def save_teacher(self, folder: Path) -> Path:
        """Save the teacher for a run."""
        folder.mkdir(parents=True)
        save_model(self.detector("teacher"), folder)
        return folder

    def to_dict(self) -> dict[str, Any]:
        """The workload for the result file."""
        return asdict(self) | {"data": Path(self.data).name}


class Kept(Dataset[tuple[Tensor, Target]]):
    """A data set that decodes each image once."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.cache: dict[int, tuple[Tensor, Target]] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dataset, name)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """The image and its target."""
        if index not in self.cache:
            self.cache[index] = self.dataset[index]
        return self.cache[index]


@cache
def training_images(data: str) -> Kept:
    """The training images, shared by all cases."""
    return Kept(OPEN(DataSource(data), "train"))
