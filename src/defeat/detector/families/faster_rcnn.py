"""Faster R-CNN with a feature pyramid (Ren et al., NeurIPS 2015; Lin et al., CVPR 2017), from torchvision's parts.

torchvision counts classes from 1, and 0 is the background. That numbering is used only in this file: elsewhere, labels
are 0..K-1 and the background is the last column.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from defeat.detector.backbone import Backbone, build_backbone
from defeat.detector.base import (
    Detector,
    DetectorSpec,
    describe_anchors,
    info_of,
    output_of,
    torchvision_targets,
)
from defeat.detector.composed import converted_backbone, converted_spec
from defeat.detector.options import automatic, bounded, fitted_to_data, require_valid, with_usual_values
from defeat.detector.published import (
    AlignedPooling,
    LimitedBoxCoder,
    ProposalNetwork,
    build_anchors,
    initialise_convolutions,
    initialise_pyramid,
    initialise_second_stage,
    second_stage_loss,
)
from defeat.detector.selection import Raw, Selection
from defeat.detector.statistics import ObjectStatistics, fit_sides
from defeat.types import Batch, Detections, DetectorOutput, Maps, Proposals

POOLED = 7  # height and width of a pooled box
STRIDES = (4, 8, 16, 32, 64)
FULL_SIZE = 800  # input size in pixels of torchvision's defaults


@dataclass(frozen=True)
class FasterRCNNOptions:
    """Options of the family; the defaults are those of torchvision and its checkpoints.

    `auto` options are derived from size and objects of the training data; without data, they are those of torchvision.
    """

    strides: ClassVar[tuple[int, ...]] = STRIDES

    anchor_sizes: tuple[int, ...] | Literal["auto"] = fitted_to_data(
        (32, 64, 128, 256, 512), "anchors {} px", from_teacher=True, same_size=True
    )
    """Side of the anchors in pixels of the resized image, one per level from stride 4 to 64."""
    rpn_pre_nms_top_n_train: int | Literal["auto"] = fitted_to_data(2000)
    """Proposals per level before non-maximum suppression, in training."""
    rpn_post_nms_top_n_train: int | Literal["auto"] = fitted_to_data(2000, "{} proposals")
    """Proposals per image after non-maximum suppression, in training."""
    rpn_pre_nms_top_n_test: int | Literal["auto"] = fitted_to_data(1000)
    """Proposals per level before non-maximum suppression, in prediction."""
    rpn_post_nms_top_n_test: int | Literal["auto"] = fitted_to_data(1000, "{} in prediction")
    """Proposals per image after non-maximum suppression, in prediction."""
    rpn_batch_size_per_image: int = bounded(256, 1)
    """Sampled anchors per image in the RPN's loss."""
    box_batch_size_per_image: int | Literal["auto"] = fitted_to_data(512, "{} of them sampled")
    """Sampled proposals per image in the loss of the second stage."""
    box_positive_fraction: float = bounded(0.25, 0.0, 1.0)
    """Maximum fraction of positives among the sampled proposals."""
    box_representation_size: int | Literal["auto"] = fitted_to_data(1024, "second stage {} wide", from_teacher=True)
    """Width of the two hidden layers of the second stage."""
    box_score_thresh: float = bounded(0.05, 0.0, 1.0)
    """Detections with a lower score are dropped."""
    box_nms_thresh: float = bounded(0.5, 0.0, 1.0)
    """IoU threshold of non-maximum suppression."""
    box_detections_per_img: int = bounded(100, 1)
    """Maximum number of detections per image."""
    box_loss: Literal["smooth_l1", "l1"] = "smooth_l1"
    """Box loss of both stages: smooth_l1 (torchvision) or l1 (published configurations)."""
    round_anchors: bool = True
    """Whether the corners of anchors are rounded to whole pixels (published: false)."""
    exact_strides: bool = False
    """Whether anchors are at a distance of exactly the stride, instead of image over feature map (MMDetection and
    Detectron2: true)."""
    limited_shrinking: bool = False
    """Whether predicted boxes shrink at most to 16/1000 of their anchor or proposal (MMDetection: true)."""
    smallest_proposal: float = bounded(1e-3, 1e-9, 1000.0)
    """Proposals with a side of less than this many pixels are dropped (MMDetection and Detectron2: 1e-9)."""
    antialias: bool = True
    """Whether images are antialiased when they are shrunk (torchvision and MMDetection: false)."""
    aligned_pooling: bool = False
    """Whether RoIAlign is aligned, without a shift of half a pixel (published: true)."""
    sampling_ratio: int = bounded(2, 0)
    """Sampling points of RoIAlign per cell in each direction; 0 for adaptive (published)."""
    initialisation: Literal["he", "torchvision", "published"] = "he"
    """Initialisation: that of torchvision, with the convolution of the RPN after He et al. (ICCV 2015), which makes it
    learn much faster (he); that of torchvision, with a deviation of 0.01 (torchvision); or the same, with pyramid and
    second stage as published (published)."""

    def __post_init__(self) -> None:
        """Refuse invalid options."""
        require_valid(self)

    def fitted(self, statistics: ObjectStatistics, neck_channels: int) -> "FasterRCNNOptions":
        """Replace `auto` by values derived from the data; at 800 pixels those of torchvision, except anchors.

        Numbers of proposals are proportional to the short side; crowded images get more, up to those of torchvision.
        `neck_channels` has no effect.
        """
        share = min(1.0, statistics.size / FULL_SIZE)
        objects = statistics.objects_per_image(0.9)
        in_training, in_prediction = _scaled(2000, share, 16 * objects), _scaled(1000, share, 8 * objects)
        numbers = {
            "rpn_pre_nms_top_n_train": in_training,
            "rpn_post_nms_top_n_train": in_training,
            "rpn_pre_nms_top_n_test": in_prediction,
            "rpn_post_nms_top_n_test": in_prediction,
            "box_batch_size_per_image": _scaled(512, share, 8 * objects),
            "box_representation_size": 1024 if statistics.size >= 512 else 512,
        }
        names = automatic(self)
        fitted: dict[str, Any] = {name: value for name, value in numbers.items() if name in names}
        if "anchor_sizes" in names:
            fitted["anchor_sizes"] = fit_sides(statistics, STRIDES)
        return replace(self, **fitted)


def _scaled(full: int, share: float, least: float) -> int:
    """A fraction of a number, at least `least` and at most the number, in steps of 16."""
    return min(full, -(-int(max(full * share, least)) // 16) * 16)


class FasterRCNN(Detector):
    """A two-stage detector: a region proposal network, and a head that classifies each proposal by softmax."""

    def __init__(
        self, core: TorchvisionFasterRCNN, backbone: Backbone, spec: DetectorSpec, options: FasterRCNNOptions
    ) -> None:
        """Create it from the parts of a torchvision model.

        Args:
            core: model whose `rpn` and `roi_heads` are used.
            backbone: body and pyramid.
            spec: description of the detector.
            options: options of the family.
        """
        super().__init__()
        self.backbone = backbone
        self.rpn = ProposalNetwork.of(core.rpn, options.box_loss)
        self.rpn.min_size = options.smallest_proposal
        self.roi_heads = core.roi_heads
        if options.limited_shrinking:
            for part in (self.rpn, self.roi_heads):
                part.box_coder = LimitedBoxCoder(part.box_coder.weights)
        self.antialias = options.antialias
        self.box_loss = options.box_loss
        self.selection = Selection(options.box_score_thresh, options.box_detections_per_img, options.box_nms_thresh)
        for head in (self.rpn.head, self.roi_heads.box_predictor):
            head.register_forward_hook(_in_float32)
        self.spec = spec
        self.info = info_of(
            spec,
            backbone,
            activation="softmax",
            background="last",
            offers=frozenset({"proposals"}),
            anchors=describe_anchors(backbone.neck_channels, self.rpn.anchor_generator),
        )

    def forward_train(self, batch: Batch, negative_weight: float = 1.0) -> DetectorOutput:
        """Compute the losses `objectness`, `rpn_box`, `classification` and `box`, and the fields that methods read."""
        assert self.training, "forward_train needs the training mode"
        self.rpn.negative_weight = negative_weight
        self.rpn.annotated = [target.annotated for target in batch.targets]
        maps = self.forward_maps(batch)
        targets = torchvision_targets(batch.training_targets, first_label=1)
        features = _by_name(maps.neck)
        boxes, rpn_losses = self.rpn(ImageList(batch.images, batch.sizes), features, targets)
        boxes, _, labels, regression_targets = self.roi_heads.select_training_samples(boxes, targets)
        if not all(self.rpn.annotated):
            boxes, labels, regression_targets = _without_ignored(batch, boxes, labels, regression_targets)
        logits, deltas = self._classify(features, boxes, batch.sizes)
        classification, box = second_stage_loss(
            logits, deltas, labels, regression_targets, self.box_loss, negative_weight
        )
        losses = {
            "objectness": rpn_losses["loss_objectness"],
            "rpn_box": rpn_losses["loss_rpn_box_reg"],
            "classification": classification,
            "box": box,
        }
        return self._output(batch, losses, maps, boxes, torch.cat(labels), logits, deltas)

    def teach(self, batch: Batch, maps: Maps) -> DetectorOutput:
        """Return the feature maps, and proposals sampled as in training."""
        features = _by_name(maps.neck)
        boxes, _ = self.rpn(ImageList(batch.images, batch.sizes), features)
        targets = torchvision_targets(batch.targets, first_label=1)
        boxes, _, labels, _ = self.roi_heads.select_training_samples(boxes, targets)
        logits, deltas = self._classify(features, boxes, batch.sizes)
        return self._output(batch, {}, maps, boxes, torch.cat(labels), logits, deltas)

    def raw(self, images: Tensor, sizes: list[tuple[int, int]], maps: Maps | None = None) -> Raw:
        """Proposals of all images, with the output of the second stage, background first, and the image of each."""
        features = _by_name((maps or Maps(*self.backbone(images))).neck)
        proposals, _ = self.rpn(ImageList(images, sizes), features)
        logits, deltas = self._classify(features, proposals, sizes)
        rows = torch.cat([torch.full_like(boxes[:, 0], index) for index, boxes in enumerate(proposals)])
        return {"proposals": torch.cat(proposals), "image": rows, "logits": logits, "deltas": deltas}

    def decode(self, raw: Raw, sizes: list[tuple[int, int]]) -> list[Detections]:
        """Select the detections, in pixels of the batch."""
        proposals = [raw["proposals"][raw["image"] == index] for index in range(len(sizes))]
        selected = self.roi_heads.postprocess_detections(raw["logits"], raw["deltas"], proposals, sizes)
        return [Detections(boxes, scores, labels - 1) for boxes, scores, labels in zip(*selected, strict=True)]

    def class_rows(self) -> dict[str, Tensor]:
        """The two last layers of the second stage have one row, or four for boxes, per class and background."""
        classes = len(self.info.classes)
        rows = torch.tensor([classes, *range(classes)])
        layers = {"cls_score": rows, "bbox_pred": rows.repeat_interleave(4)}
        return {
            f"roi_heads.box_predictor.{layer}.{kind}": labels
            for layer, labels in layers.items()
            for kind in ("weight", "bias")
        }

    def _classify(
        self, features: dict[str, Tensor], boxes: list[Tensor], sizes: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        pooled = self.roi_heads.box_roi_pool(features, boxes, sizes)  # (R, C, 7, 7)
        logits, deltas = self.roi_heads.box_predictor(self.roi_heads.box_head(pooled))
        return logits, deltas  # (R, 1+K), (R, 4*(1+K))

    def _output(
        self,
        batch: Batch,
        losses: dict[str, Tensor],
        maps: Maps,
        boxes: list[Tensor],
        labels: Tensor,
        logits: Tensor,
        deltas: Tensor,
    ) -> DetectorOutput:
        classes = len(self.info.classes)
        with_gradient = torch.is_grad_enabled()

        def score(given_boxes: list[Tensor]) -> Tensor:
            # Methods compute in float32 without autocast, but the feature maps may have been computed under it.
            features = {name: level.float() for name, level in _by_name(maps.neck).items()}
            with torch.set_grad_enabled(with_gradient):
                return _background_last(self._classify(features, given_boxes, batch.sizes)[0])

        offsets, proposals = deltas.unflatten(1, (classes + 1, 4))[:, 1:], torch.cat(boxes)

        def decode(index: Tensor, label: Tensor) -> Tensor:
            decoded: Tensor = self.roi_heads.box_coder.decode_single(offsets[index, label], proposals[index])
            return decoded

        return output_of(
            batch,
            maps,
            losses,
            proposals=Proposals(
                boxes=boxes,
                labels=torch.where(labels > 0, labels - 1, batch.classes),
                logits=_background_last(logits),
                deltas=offsets,
                decode=decode,
            ),
            score_proposals=score,
        )


def _without_ignored(
    batch: Batch, boxes: list[Tensor], labels: list[Tensor], targets: list[Tensor]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Remove the negative proposals of unannotated images."""
    masks = [label >= 0 if target.annotated else label > 0 for label, target in zip(labels, batch.targets, strict=True)]
    parts = [[tensor[mask] for tensor, mask in zip(part, masks, strict=True)] for part in (boxes, labels, targets)]
    return parts[0], parts[1], parts[2]


def _in_float32(module: nn.Module, inputs: Any, outputs: Any) -> Any:
    """Convert to float32 also under autocast: half precision would move decoded boxes by pixels."""
    if isinstance(outputs, Tensor):
        return outputs.float()
    return [_in_float32(module, inputs, output) for output in outputs]


def _by_name(neck: dict[int, Tensor]) -> dict[str, Tensor]:
    """Names of torchvision's RoI pooling: "0" to "3", and "4" for the coarsest level, which it does not use."""
    return {str(index): level for index, level in enumerate(neck.values())}


def _background_last(logits: Tensor) -> Tensor:
    return logits.roll(-1, dims=1)


def build(spec: DetectorSpec, weights: str) -> FasterRCNN:
    """Build a detector from its description; `weights` are those of the backbone (see `find_weights`)."""
    options: Any = with_usual_values(FasterRCNNOptions(**spec.options))
    strides = STRIDES[:-1]
    backbone = build_backbone(
        spec.backbone,
        strides=strides,
        weights=weights,
        norm=spec.norm,
        neck_channels=spec.neck_channels,
        frozen_stages=spec.frozen_stages,
        extra_blocks=lambda last, neck: LastLevelMaxPool(),
        extra_strides=STRIDES[-1:],
    )
    width, classes = options.box_representation_size, len(spec.classes) + 1
    core = TorchvisionFasterRCNN(
        _Channels(spec.neck_channels),
        rpn_anchor_generator=build_anchors(
            tuple((size,) for size in options.anchor_sizes), STRIDES, options.round_anchors, options.exact_strides
        ),
        rpn_pre_nms_top_n_train=options.rpn_pre_nms_top_n_train,
        rpn_post_nms_top_n_train=options.rpn_post_nms_top_n_train,
        rpn_pre_nms_top_n_test=options.rpn_pre_nms_top_n_test,
        rpn_post_nms_top_n_test=options.rpn_post_nms_top_n_test,
        rpn_batch_size_per_image=options.rpn_batch_size_per_image,
        box_batch_size_per_image=options.box_batch_size_per_image,
        box_positive_fraction=options.box_positive_fraction,
        box_score_thresh=options.box_score_thresh,
        box_nms_thresh=options.box_nms_thresh,
        box_detections_per_img=options.box_detections_per_img,
        box_roi_pool=MultiScaleRoIAlign([str(level) for level in range(len(strides))], POOLED, options.sampling_ratio),
        box_head=TwoMLPHead(spec.neck_channels * POOLED**2, width),
        box_predictor=FastRCNNPredictor(width, classes),
    )
    if options.aligned_pooling:
        core.roi_heads.box_roi_pool = AlignedPooling(strides, POOLED, options.sampling_ratio)
    if options.initialisation == "he":
        initialise_convolutions(core.rpn.head.conv)
    elif options.initialisation == "published":
        initialise_pyramid(backbone.fpn)
        initialise_second_stage(core.roi_heads.box_head, core.roi_heads.box_predictor)
    return FasterRCNN(core, backbone, spec, options)


class _Channels(nn.Module):
    """Placeholder for torchvision's backbone, of which only the number of channels is read."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels


def from_torchvision(core: TorchvisionFasterRCNN, classes: tuple[str, ...], name: str) -> FasterRCNN:
    """Convert a torchvision model with its weights."""
    backbone = converted_backbone(core, STRIDES)
    spec = converted_spec(core, "faster_rcnn", name, classes)
    return FasterRCNN(core, backbone, spec, with_usual_values(FasterRCNNOptions(antialias=False)))
