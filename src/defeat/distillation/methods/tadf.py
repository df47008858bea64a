"""TADF: imitation under a Gaussian around each object (Sun et al., 2020, arXiv 2006.13108)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

from defeat.distillation.base import checked_weights
from defeat.distillation.imitation import MAP_DEFAULTS, MapOptions, NeckMethod
from defeat.distillation.regions import gaussian_regions
from defeat.types import DetectorInfo


class TADF(NeckMethod):
    """The student imitates the teacher's neck on objects, most at their centres, with a decaying weight.

    The squared difference between the teacher's map and the adapted student's, weighted by a Gaussian over each box,
    divided by twice the sum of the weights in the batch, averaged over the levels. The paper's adaptive imitation of
    classes and boxes is not implemented.

    Args:
        student: description of the student.
        teacher: description of the teacher.
        object_weight: weight of the region.
        options: options of all methods that imitate feature maps, see `MapOptions`.

    Raises:
        InputError: an option is not valid, or the two necks share no stride.
    """

    paper = "Sun et al., 2020, arXiv 2006.13108"
    shared: ClassVar[Mapping[str, Any]] = {**MAP_DEFAULTS, "decay": "linear"}

    def __init__(
        self,
        student: DetectorInfo,
        teacher: DetectorInfo,
        *,
        object_weight: float = 32.0,
        **options: Unpack[MapOptions],
    ) -> None:
        weights = checked_weights(object_weight=object_weight)
        super().__init__(
            student,
            teacher,
            gaussian_regions,
            object_weight,
            **options,
        )
        self.weights = weights
