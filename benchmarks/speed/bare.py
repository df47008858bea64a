"""Steps without a training loop: of this package, of torchvision, and with the arithmetic of the published code."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead

from benchmarks.speed.work import Images, Work, training_images
from defeat.detector import Detector
from defeat.detector.frozen import frozen
from defeat.distillation.regions import object_regions
from defeat.engine.experiment import Distillation
from defeat.engine.step import step_losses, total_loss
from defeat.engine.teacher_cache import TeacherCache
from defeat.types import Progress

Step = Callable[[], None]
PROGRESS = Progress(500, 1000)


def optimizer_of(*modules: nn.Module) -> torch.optim.Optimizer:
    """SGD over all trainable parameters."""
    parameters = [weight for module in modules for weight in module.parameters() if weight.requires_grad]
    return torch.optim.SGD(parameters, lr=1e-4, momentum=0.9, weight_decay=1e-4)


def learn(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Backward pass and update."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def autocast(work: Work) -> torch.autocast:
    """Autocast with the precision of the workload."""
    return torch.autocast(torch.device(work.device).type, torch.bfloat16, enabled=work.precision == "bf16-mixed")


def student_step(work: Work, kept: bool = True) -> Step:
    """A training step of the baseline."""
    student, batches = work.detector("student"), work.batches(kept)
    optimizer = optimizer_of(student)

    def step() -> None:
        batch = student.prepare(*next(batches))
        with autocast(work):
            losses = student.forward_train(batch).losses
        learn(optimizer, total_loss(losses))

    return step


def teacher_step(work: Work, whole: bool = False, freeze: bool = False, dtype: torch.dtype | None = None) -> Step:
    """The teacher's forward pass on prepared images, up to the neck or including the head.

    Args:
        work: the workload.
        whole: whether to include the head.
        freeze: whether to fold the normalisation, as in a run.
        dtype: precision of the feature maps of a frozen teacher.
    """
    student, teacher, method = work.pair()
    teacher = frozen(teacher, dtype) if freeze else teacher
    batches, reads = prepared(work, student), None if whole else method.needs

    def step() -> None:
        with autocast(work):
            teacher.forward_teacher(teacher.adopt(next(batches)), reads)

    return step


def teacher_bytes(work: Work) -> tuple[int, int]:
    """Bytes of the teacher's weights, and of the feature maps of its neck for the largest of four batches."""
    student, teacher, method = work.pair()
    weights = sum(tensor.numel() * tensor.element_size() for tensor in teacher.state_dict().values())
    few = [batch for batch, _ in zip(prepared(work, student), range(4), strict=False)]
    necks = [teacher.forward_teacher(teacher.adopt(batch), method.needs).neck for batch in few]
    return weights, max(sum(level.numel() * level.element_size() for level in neck.values()) for neck in necks)


def distilled_step(
    work: Work,
    kept: bool = True,
    cache: TeacherCache | None = None,
    options: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> Step:
    """A training step with DeFeat, by default only its neck losses, in the precision of the workload."""
    student, teacher, method = work.pair(options)
    teacher = frozen(teacher, dtype)
    method.adapt_in(dtype)
    batches, optimizer = work.batches(kept), optimizer_of(student, method)

    def step() -> None:
        batch = student.prepare(*next(batches))
        with autocast(work):
            output, terms = step_losses(student, batch, PROGRESS, Distillation(teacher, method), cache)
        learn(optimizer, total_loss(output.losses | terms))

    return step


def head_step(work: Work, kept: bool = True) -> Step:
    """The distilled step with classification losses in addition to the neck losses."""
    return distilled_step(work, kept, options={"positive_weight": 0.5, "negative_weight": 0.5})


def kept_maps_step(work: Work, folder: Path, rounds: int, kept: bool = True, dtype: torch.dtype | None = None) -> Step:
    """The distilled step with the teacher's feature maps of the first `rounds` batches read from disk."""
    student, teacher, method = work.pair()
    teacher = frozen(teacher, dtype)
    count = len(training_images(work.data))
    cache = TeacherCache(folder, ["neck"], {(True, image): f"image-{image}" for image in range(count)})
    for images, _ in zip(work.batches(True), range(rounds), strict=False):
        cache.output(teacher, student.prepare(*images), method.needs)
    return distilled_step(work, kept, cache, dtype=dtype)


def published_arithmetic_step(work: Work, kept: bool = True) -> Step:
    """The same distillation, computed as in the published code.

    The teacher runs in training mode with autograd; masks are repeated over the channels; objects and background are
    multiplied, squared and summed separately.
    """
    student, teacher, _ = work.pair()
    batches = work.batches(kept)
    adapt = nn.ModuleList(
        nn.Conv2d(channels, teacher.info.neck[stride], 3, padding=1) for stride, channels in student.info.neck.items()
    ).to(work.device)
    optimizer = optimizer_of(student, adapt)
    as_in_training(teacher)

    def step() -> None:
        batch = student.prepare(*next(batches))
        with autocast(work):
            output = student.forward_train(batch)
            targets = teacher.forward_train(batch).neck
            shapes = {stride: tuple(level.shape[-2:]) for stride, level in targets.items()}
            regions = object_regions([target.boxes for target in batch.targets], shapes)
            terms = [
                region_by_region(layer(output.neck[stride]), targets[stride], regions[stride])
                for layer, stride in zip(adapt, output.neck, strict=True)
            ]
        learn(optimizer, total_loss(output.losses | {"neck": torch.stack(terms).mean()}))

    return step


def region_by_region(student: Tensor, teacher: Tensor, region: Tensor) -> Tensor:
    """Losses of both regions of a level, with the mask repeated over the channels."""
    mask = region[:, None].float().repeat(1, student.shape[1], 1, 1)
    objects = ((student * mask - teacher * mask) ** 2).sum() / (2 * mask.sum()).clamp(min=1)
    others = 1 - mask
    background = ((student * others - teacher * others) ** 2).sum() / (2 * others.sum()).clamp(min=1)
    return 4 * objects + 16 * background


def as_in_training(teacher: Detector) -> None:
    """Put the teacher into training mode with autograd, but keep its normalisation statistics."""
    teacher.train().requires_grad_(True)
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def prepared(work: Work, student: Detector) -> Iterator[Any]:
    """Iterate over four prepared batches without end."""
    batches = [student.prepare(*images) for images, _ in zip(work.batches(True), range(4), strict=False)]
    while True:
        yield from batches


def torchvision_step(work: Work, kept: bool = True) -> Step:
    """The same layers as a torchvision detector, in the loop of its reference scripts."""
    model = torchvision_model(work).to(work.device).train()
    batches, optimizer = work.batches(kept), optimizer_of(model)

    def step() -> None:
        images, targets = torchvision_batch(next(batches), work.device)
        with autocast(work):
            losses = model(images, targets)
        learn(optimizer, total_loss(losses))

    return step


def torchvision_batch(batch: Images, device: str) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Images and targets in the format of torchvision's detectors."""
    images, targets = batch
    trainable = [target.trainable().to(device) for target in targets]
    return (
        [image.to(device).float() / 255 for image in images],
        [{"boxes": target.boxes, "labels": target.labels + 1} for target in trainable],
    )


class NamedMaps(nn.Module):
    """A backbone with feature pyramid in the format of torchvision's detectors."""

    def __init__(self, backbone: nn.Module, channels: int) -> None:
        super().__init__()
        self.backbone, self.out_channels = backbone, channels

    def forward(self, images: Tensor) -> "OrderedDict[str, Tensor]":
        """Feature maps of the neck by name."""
        neck = self.backbone(images)[1]
        return OrderedDict((str(index), level) for index, level in enumerate(neck.values()))


def torchvision_model(work: Work, role: str = "student") -> nn.Module:
    """The student's or the teacher's layers as a torchvision detector."""
    detector = work.detector(role)
    backbone = NamedMaps(detector.backbone, detector.spec.neck_channels)
    info, options = detector.info, dict(work.options)
    shared: dict[str, Any] = {
        "min_size": info.size,
        "max_size": info.max_size,
        "image_mean": list(info.mean),
        "image_std": list(info.std),
        "num_classes": len(info.classes) + 1,
    }
    sizes = options.pop("anchor_sizes", (32, 64, 128, 256, 512))
    if work.family == "retinanet":
        octaves = tuple(tuple(int(size * 2 ** (part / 3)) for part in range(3)) for size in sizes)
        anchors = AnchorGenerator(octaves, ((0.5, 1.0, 2.0),) * len(octaves))
        norm = partial(nn.GroupNorm, 32) if options.get("head_norm") == "gn" else None
        head = RetinaNetHead(backbone.out_channels, 9, shared["num_classes"], norm_layer=norm)
        return RetinaNet(backbone, anchor_generator=anchors, head=head, **shared)
    anchors = AnchorGenerator(tuple((size,) for size in sizes), ((0.5, 1.0, 2.0),) * len(sizes))
    width = options.pop("box_representation_size", 1024)
    model = FasterRCNN(backbone, rpn_anchor_generator=anchors, **shared, **options)
    model.roi_heads.box_head = type(model.roi_heads.box_head)(backbone.out_channels * 49, width)
    model.roi_heads.box_predictor = type(model.roi_heads.box_predictor)(width, shared["num_classes"])
    return model
