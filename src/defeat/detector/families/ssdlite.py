"""SSDlite on MobileNetV3-Large (Howard et al., ICCV 2019; Sandler et al., CVPR 2018), from torchvision's parts.

Images are stretched to a square. There is no feature pyramid: the heads read two feature maps of the backbone, of
strides 16 and 32, and four extra levels. Methods find these six as the neck, and the first two also as the backbone.

torchvision counts classes from 1, and 0 is the background. That numbering is used only in this file: elsewhere, labels
are 0..K-1 and the background is the last column.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import MobileNet_V3_Large_Weights, mobilenet_v3_large
from torchvision.models.detection import ssd, ssdlite
from torchvision.models.detection._utils import BoxCoder, SSDMatcher
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from defeat.detector.backbone import Backbone, no_download
from defeat.detector.base import Detector, DetectorSpec, anchors_per_level, decoding, info_of, output_of
from defeat.detector.composed import converted_spec
from defeat.detector.normalisation import BatchNorm, apply_norm
from defeat.detector.options import bounded, require_valid
from defeat.detector.selection import Raw, Selection
from defeat.detector.statistics import ObjectStatistics
from defeat.detector.weights import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    find_weights,
    fit_state_dict,
    read_state_dict,
)
from defeat.errors import InputError
from defeat.types import Batch, DensePredictions, Detections, DetectorOutput, Maps, Target

BACKBONE = "mobilenet_v3_large"
CHECKPOINT = "torchvision:ssdlite320_mobilenet_v3_large"  # name of the backbone of a converted model
STRIDES = (16, 32, 64, 128, 256, 512)
USUAL_NECK = 256  # the default of --neck-channels, which has no effect
C4 = 13  # block of the backbone after whose first layer, the expansion, the map of stride 16 is read
# The last layer of each stage of the backbone, from the stem to stride 32.
STAGES = ("0.1", "0.3", "0.6", "0.12", "1")
RATIOS = (2, 3)  # width over height of default boxes, besides 1, and their inverses
DIVISOR = 32  # of the side of images
FULL_TAIL = 960  # channels of the last layer of the backbone, halved by the option `reduced_tail`
NEGATIVES = 3  # background boxes in the classification loss for each positive one
NORM: dict[str, Any] = {"eps": 0.001, "momentum": 0.03}  # of batch normalisation, as published
BACKGROUND = -1  # index of a default box without object

DEFAULT_BOXES = "default_boxes"  # of the raw outputs


@dataclass(frozen=True)
class SSDliteOptions:
    """Options of the family; the defaults are those of torchvision."""

    strides: ClassVar[tuple[int, ...]] = STRIDES
    pyramid: ClassVar[bool] = False

    smallest_box: float = bounded(0.2, 0.01, 1.0)
    """Side of the default boxes of the finest level, as a fraction of the side of the image."""
    largest_box: float = bounded(0.95, 0.01, 1.0)
    """Side of the default boxes of the coarsest level, as a fraction of the side of the image."""
    reduced_tail: bool = False
    """Whether the last stage of the backbone has half the channels (torchvision's checkpoint: true). Weights of the
    backbone that were trained on ImageNet fit false only."""
    iou_thresh: float = bounded(0.5, 0.01, 1.0)
    """Default boxes with at least this IoU with an object are positive, and the best one of each object."""
    score_thresh: float = bounded(0.001, 0.0, 1.0)
    """Detections with a lower score are dropped."""
    nms_thresh: float = bounded(0.55, 0.0, 1.0)
    """IoU threshold of non-maximum suppression."""
    detections_per_img: int = bounded(300, 1)
    """Maximum number of detections per image."""
    topk_candidates: int = bounded(300, 1)
    """Maximum number of candidates per class before non-maximum suppression."""

    def __post_init__(self) -> None:
        """Refuse invalid options."""
        require_valid(self)
        if self.smallest_box > self.largest_box:
            raise InputError(
                f"--detector.smallest-box must be at most --detector.largest-box ({self.largest_box}), not "
                f"{self.smallest_box}."
            )

    def fitted(self, statistics: ObjectStatistics, neck_channels: int) -> "SSDliteOptions":
        """No option is derived from the data."""
        return self


class SSDliteBackbone(Backbone):
    """Two maps of MobileNetV3 and four extra levels, with torchvision's names `features` and `extra`.

    Args:
        extractor: torchvision's.
        mean: mean of R, G, B of the pretraining, for values in 0..1.
        std: standard deviation of R, G, B.
    """

    def __init__(
        self, extractor: ssdlite.SSDLiteFeatureExtractorMobileNet, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        nn.Module.__init__(self)
        self.features, self.extra = extractor.features, extractor.extra
        widths = [self.features[0][-1][0].out_channels, self.features[1][-1][0].out_channels]
        widths += [block[-1][0].out_channels for block in self.extra]
        self.neck_channels = dict(zip(STRIDES, widths, strict=True))
        self.body_channels = dict(zip(STRIDES[:2], widths[:2], strict=True))
        self.mean, self.std = tuple(mean), tuple(std)
        self._frozen_norms = []

    @property
    def body(self) -> nn.Module:  # type: ignore[override] # a module with another name
        """The backbone itself."""
        body: nn.Module = self.features
        return body

    @property
    def fpn(self) -> nn.Module:  # type: ignore[override]
        """The extra levels."""
        extra: nn.Module = self.extra
        return extra

    def forward(self, images: Tensor) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Feature maps of backbone and heads by stride, for (B, 3, H, W) normalised images."""
        maps = [self.features[0](images)]
        maps.append(self.features[1](maps[0]))
        on_cpu = images.device.type == "cpu"  # see `UpperLevels` about bfloat16
        with torch.autocast("cpu", enabled=False) if on_cpu else nullcontext():
            level = maps[1].float() if on_cpu else maps[1]
            for block in self.extra:
                level = block(level)
                maps.append(level)
        return dict(zip(STRIDES[:2], maps[:2], strict=True)), dict(zip(STRIDES, maps, strict=True))


class SSDlite(Detector):
    """A one-stage detector for phones: a softmax over classes and background at every default box."""

    # torchvision's selection of detections; it reads attributes that the constructor sets.
    _select = ssd.SSD.postprocess_detections

    def __init__(
        self, backbone: SSDliteBackbone, head: ssdlite.SSDLiteHead, spec: DetectorSpec, options: SSDliteOptions
    ) -> None:
        """Create it from its parts.

        Args:
            backbone: feature maps of six levels.
            head: classification and box regression of each level.
            spec: description of the detector.
            options: options of the family.
        """
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.anchor_generator = _default_boxes(options)
        self.proposal_matcher = SSDMatcher(options.iou_thresh)
        self.box_coder = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))
        self.score_thresh, self.nms_thresh = options.score_thresh, options.nms_thresh
        self.detections_per_img, self.topk_candidates = options.detections_per_img, options.topk_candidates
        self.selection = replace(Selection.of(options), topk_candidates=None)  # its limit is per class, not per level
        self.spec = spec
        self.info = info_of(
            spec,
            backbone,
            max_size=spec.size,
            size_divisor=DIVISOR,
            activation="softmax",
            background="last",
            offers=frozenset({"dense"}),
            anchors=f"{list(STRIDES)} {self.anchor_generator}",
            square=True,
        )

    def forward_train(self, batch: Batch, negative_weight: float = 1.0) -> DetectorOutput:
        """Compute the losses `classification` and `box`, and the fields that methods read."""
        assert self.training, "forward_train needs the training mode"
        maps = self.forward_maps(batch)
        head, boxes = self._predictions(ImageList(batch.images, batch.sizes), maps)
        matched = self._match(batch.targets, boxes)
        of_loss = matched
        if not all(target.annotated for target in batch.targets):
            of_loss = self._match(batch.training_targets, boxes)
        losses = self._losses(batch.training_targets, head, boxes, of_loss, negative_weight)
        return self._output(batch, losses, maps, head, boxes, matched)

    def teach(self, batch: Batch, maps: Maps) -> DetectorOutput:
        """Return the feature maps and the predictions at every default box."""
        head, boxes = self._predictions(ImageList(batch.images, batch.sizes), maps)
        targets = batch.targets or [Target.empty(0, size) for size in batch.sizes]
        return self._output(batch, {}, maps, head, boxes, self._match(targets, boxes))

    def raw(self, images: Tensor, sizes: list[tuple[int, int]], maps: Maps | None = None) -> Raw:
        """Output of the head, background first, and the default boxes (N, 4)."""
        head, boxes = self._predictions(ImageList(images, sizes), maps or Maps(*self.backbone(images)))
        return {**head, DEFAULT_BOXES: boxes}

    def decode(self, raw: Raw, sizes: list[tuple[int, int]]) -> list[Detections]:
        """Select the detections, in pixels of the batch."""
        outputs = self._select(raw, [raw[DEFAULT_BOXES]] * len(sizes), sizes)
        return [Detections(output["boxes"], output["scores"], output["labels"] - 1) for output in outputs]

    def candidates(self, raw: Raw) -> tuple[Tensor, Tensor]:
        """Boxes and scores at all default boxes."""
        deltas = raw["bbox_regression"]
        boxes = self.box_coder.decode_single(deltas.flatten(0, 1), raw[DEFAULT_BOXES].expand_as(deltas).flatten(0, 1))
        return boxes.view_as(deltas), raw["cls_logits"].softmax(dim=-1)[..., 1:]

    def part_of(self, name: str) -> str:
        """The extra levels are the neck."""
        return "neck" if name.startswith("backbone.extra.") else super().part_of(name)

    def class_rows(self) -> dict[str, Tensor]:
        """The last layer of each level has one row per default box of a cell and class; the background is first."""
        classes = len(self.info.classes)
        rows = torch.tensor([classes, *range(classes)])
        return {
            f"head.classification_head.module_list.{level}.1.{kind}": rows.repeat(count)
            for level, count in enumerate(self.anchor_generator.num_anchors_per_location())
            for kind in ("weight", "bias")
        }

    def _predictions(self, images: ImageList, maps: Maps) -> tuple[dict[str, Tensor], Tensor]:
        """Output of the head, background first, and the default boxes (N, 4), which all images share."""
        levels = list(maps.neck.values())
        # Convert to float32 also under autocast: half precision would move decoded boxes by pixels.
        head = {name: output.float() for name, output in self.head(levels).items()}  # (B, N, 1+K) and (B, N, 4)
        boxes = self.anchor_generator(images, [level.float() for level in levels])
        return head, boxes[0]

    def _match(self, targets: Sequence[Target], boxes: Tensor) -> Tensor:
        """(B, N) index of the object matched to each default box, -1 for background."""
        matched = torch.full((len(targets), len(boxes)), BACKGROUND, device=boxes.device)
        for row, target in zip(matched, targets, strict=True):
            if len(target.boxes):
                row[:] = self.proposal_matcher(box_iou(target.boxes, boxes))
        return matched

    def _losses(
        self,
        targets: Sequence[Target],
        head: dict[str, Tensor],
        boxes: Tensor,
        matched: Tensor,
        negative_weight: float,
    ) -> dict[str, Tensor]:
        """Losses over the number of positive boxes of the batch; the hardest background boxes of each image count.

        Other than in torchvision, an image without objects has as many as one with a single positive box, so that it
        teaches what is background. The background of unannotated images is ignored.
        """
        labels = _labels(targets, matched, BACKGROUND) + 1  # (B, N), background 0
        costs = F.cross_entropy(head["cls_logits"].flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
        positive = matched >= 0
        count = positive.sum().clamp(min=1)
        annotated = torch.tensor([target.annotated for target in targets], device=labels.device)
        allowed = NEGATIVES * positive.sum(dim=1).clamp(min=1) * annotated  # (B,)
        rank = torch.where(positive, -1.0, costs.detach()).argsort(dim=1, descending=True).argsort(dim=1)
        negative = ~positive & (rank < allowed[:, None])
        weights = positive + negative_weight * negative
        box = []
        for target, deltas, index in zip(targets, head["bbox_regression"], matched, strict=True):
            chosen = index >= 0
            expected = self.box_coder.encode_single(target.boxes[index[chosen]], boxes[chosen])
            box.append(F.smooth_l1_loss(deltas[chosen], expected, reduction="sum"))
        return {"classification": (costs * weights).sum() / count, "box": torch.stack(box).sum() / count}

    def _output(
        self,
        batch: Batch,
        losses: dict[str, Tensor],
        maps: Maps,
        head: dict[str, Tensor],
        boxes: Tensor,
        matched: Tensor,
    ) -> DetectorOutput:
        targets = batch.targets or [Target.empty(0, size) for size in batch.sizes]
        counts = anchors_per_level(maps.neck, self.anchor_generator)
        anchors = boxes.expand(len(matched), -1, -1)
        deltas = head["bbox_regression"]
        strides = torch.tensor(STRIDES, device=boxes.device)
        return output_of(
            batch,
            maps,
            losses,
            dense=DensePredictions(
                logits=head["cls_logits"].roll(-1, dims=2),  # background last
                decode=decoding(self.box_coder.decode_single, deltas, boxes),
                labels=_labels(targets, matched, batch.classes),
                strides=strides.repeat_interleave(torch.tensor(counts, device=boxes.device)),
                anchors=anchors,
                deltas=deltas,
            ),
        )


def _labels(targets: Sequence[Target], matched: Tensor, background: int) -> Tensor:
    """(B, N) label of each default box."""
    labels = [
        torch.cat((target.labels, target.labels.new_tensor([background])))[index]  # -1 is the last
        for target, index in zip(targets, matched, strict=True)
    ]
    return torch.stack(labels)


def _default_boxes(options: SSDliteOptions) -> DefaultBoxGenerator:
    ratios = [list(RATIOS) for _ in STRIDES]
    return DefaultBoxGenerator(ratios, min_ratio=options.smallest_box, max_ratio=options.largest_box)


def build(spec: DetectorSpec, weights: str) -> SSDlite:
    """Build a detector from its description.

    Args:
        spec: with the only backbone of the family, and the default number of neck channels.
        weights: of the backbone: `none`, a file with a state dict of torchvision's network, or `auto`, a download.

    Raises:
        InputError: another backbone, size or number of neck channels, or weights that do not match.
    """
    if spec.backbone not in (BACKBONE, CHECKPOINT):
        raise InputError(f"--detector ssdlite has one backbone: give --backbone {BACKBONE}, not {spec.backbone!r}.")
    if spec.neck_channels != USUAL_NECK:
        raise InputError(
            f"--neck-channels {spec.neck_channels}: ssdlite has no feature pyramid, its widths are fixed; leave the "
            "option out."
        )
    if spec.size % DIVISOR:
        raise InputError(f"--size of ssdlite must be a multiple of {DIVISOR}, not {spec.size}.")
    options = SSDliteOptions(**spec.options)
    source = find_weights(BACKBONE, weights)
    norm = partial(BatchNorm, **NORM)
    pretrained = MobileNet_V3_Large_Weights.DEFAULT if source.kind == "download" else None
    try:
        network = mobilenet_v3_large(weights=pretrained, norm_layer=norm, reduced_tail=options.reduced_tail)
    except (OSError, RuntimeError) as error:
        raise no_download(BACKBONE, error) from error
    if source.path is not None:
        fit_state_dict(network, read_state_dict(source.path), source.path, ("classifier",))
    if source.kind == "none":
        ssdlite._normal_init(network)
    extractor = ssdlite.SSDLiteFeatureExtractorMobileNet(network.features, C4, norm)
    pretraining = (IMAGENET_MEAN, IMAGENET_STD) if source.kind != "none" else ((0.5,) * 3, (0.5,) * 3)
    backbone = SSDliteBackbone(extractor, *pretraining)
    counts = _default_boxes(options).num_anchors_per_location()
    head = ssdlite.SSDLiteHead(list(backbone.neck_channels.values()), counts, len(spec.classes) + 1, norm)
    if spec.norm == "frozen":
        _keep_scale([backbone.extra, head, *([backbone.features] if source.kind == "none" else [])])
    backbone.features, backbone.extra = apply_norm(backbone.features, spec.norm), apply_norm(backbone.extra, spec.norm)
    if spec.norm == "bn_eval":
        backbone.freeze_statistics(backbone.features.modules())
    backbone.freeze_stages(spec.frozen_stages, STAGES, BACKBONE)
    return SSDlite(backbone, apply_norm(head, spec.norm), spec, options)


def _keep_scale(parts: Sequence[nn.Module]) -> None:
    """Initialise new layers whose normalisation is frozen: with the published deviation of 0.03, features vanish."""
    for part in parts:
        for layer in part.modules():
            if isinstance(layer, nn.Conv2d) and layer.bias is None:  # followed by normalisation
                nn.init.kaiming_normal_(layer.weight)


def from_torchvision(core: ssd.SSD, classes: tuple[str, ...], name: str) -> SSDlite:
    """Convert a torchvision model with its weights."""
    reduced = core.backbone.features[1][-1][0].out_channels < FULL_TAIL
    spec = converted_spec(core, "ssdlite", name, classes, {"reduced_tail": reduced})
    detector = build(spec, "none")
    detector.load_state_dict(core.state_dict())
    detector.antialias = False
    return detector
