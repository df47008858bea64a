"""Settings of the detector and its initial weights."""

from typing import Any, Literal

from defeat.detector.description import LARGEST_SIDE, LEAST_WIDTH, default_max_size
from defeat.detector.normalisation import Norm
from defeat.errors import InputError
from defeat.settings import AUTO, Checked, Role, at_least, setting, settings_part


@settings_part
class DetectorSettings(Checked):
    """Detector."""

    detector: str = setting(default="faster_rcnn", compared=False)
    """Family of the detector: faster_rcnn, fcos, gfl, retinanet, ssdlite, with libreyolo yolo9 and yolox, or with
    transformers rt_detr, rt_detr_v2, d_fine, deimv2, lw_detr or rf_detr."""
    backbone: str = setting(default="resnet50", compared=False)
    """Name of the backbone: resnet18 to resnet152, resnet50_caffe to resnet152_caffe (with the stride in the 1 x 1
    convolution), or any convolutional network of timm; mobilenet_v3_large for ssdlite, yolo9_t, yolo9_s, yolo9_m or
    yolo9_c for yolo9, and yolox_n, yolox_t, yolox_s, yolox_m, yolox_l or yolox_x for yolox, which have no others; for
    lw_detr and rf_detr vit_CHANNELSxLAYERS, such as vit_192x10."""
    size: int = setting(default=800, compared=False)
    """Short side of an image after resizing, in pixels; ssdlite and detectors of transformers stretch images to a
    square of this side."""
    max_size: int | None = setting(default=None)
    """Upper limit of the long side in pixels; by default 5/3 of the short side."""
    norm: Norm = setting(default="bn")
    """Normalisation of the backbone: bn, syncbn, bn_eval (pretrained statistics, trained weights), frozen (as
    pretrained) or gn."""
    neck_channels: int | Literal["auto"] = setting(default=AUTO, usual=256)
    """Channels of the feature pyramid; auto for those of the teacher, or without a teacher 256 for --size 512 or more,
    128 for 256 or more, and 64 below."""
    frozen_stages: int = setting(default=0)
    """Number of stages of the backbone that are not trained: 0 none, 1 the stem, 5 all."""
    weights: str = setting(default="auto")
    """Initial weights of the backbone: auto (an installed package, else a download), none, or a file; or a run
    directory, to start from its trained detector, or a detector of transformers or LibreYOLO as for --teacher."""
    student_from: str | None = setting(default=None, role=Role.SOURCE)
    """A trained detector whose architecture and weights the detector to train starts with, such as the teacher itself
    (all that --teacher takes but for those that only give boxes); mostly together with --width."""
    width: float = setting(default=1.0, compared=False)
    """Share of the channels of the backbone to keep, 0.1..1, with the largest weights: with 0.5, half of them are
    removed before training. Needs `pip install "defeat-detection[slim]"`."""
    detector_options: dict[str, Any] = setting(factory=dict, hidden=True)
    """Options of the family that differ from its defaults; auto options are derived from size and objects of the
    training split."""

    def check(self) -> None:
        """Refuse invalid values."""
        at_least("neck_channels", self.number("neck_channels"), 1, 8192)
        for name in ("size", "max_size"):
            at_least(name, getattr(self, name), 32, LARGEST_SIDE)
        at_least("frozen_stages", self.frozen_stages, 0)
        at_least("width", self.width, LEAST_WIDTH, 1)
        if self.student_from is not None and self.weights != "auto":
            raise InputError("--student-from gives the initial weights: leave out --weights.")

    @property
    def long_side(self) -> int:
        """Upper limit of an image's long side in pixels."""
        return self.max_size or default_max_size(self.size)
