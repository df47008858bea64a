"""FGFI: fine-grained feature imitation near objects (Wang et al., CVPR 2019, arXiv 1906.03609)."""

from functools import partial
from typing import Unpack

from defeat.distillation.base import checked_weights
from defeat.distillation.imitation import MapOptions, NeckMethod
from defeat.distillation.regions import near_object_regions
from defeat.errors import InputError
from defeat.types import DetectorInfo


class FGFI(NeckMethod):
    """The student imitates the teacher's neck near objects, where anchors overlap an object almost as well as the best.

    The squared difference between the teacher's map and the adapted student's, summed over the region, divided by twice
    the number of its elements in the batch, averaged over the levels (equation 3 of the paper).

    Args:
        student: description of the student.
        teacher: description of the teacher.
        object_weight: weight of the region.
        phi: threshold of the region: anchors whose IoU is greater than phi times the best anchor's, 0..1.
        options: options of all methods that imitate feature maps, see `MapOptions`.

    Raises:
        InputError: an option is not valid, or the two necks share no stride.
    """

    paper = "Wang et al., CVPR 2019, arXiv 1906.03609"

    def __init__(
        self,
        student: DetectorInfo,
        teacher: DetectorInfo,
        *,
        object_weight: float = 32.0,
        phi: float = 0.5,
        **options: Unpack[MapOptions],
    ) -> None:
        weights = checked_weights(object_weight=object_weight)
        if not 0 <= phi <= 1:
            raise InputError(f"phi must be between 0 and 1, not {phi}.")
        super().__init__(
            student,
            teacher,
            partial(near_object_regions, phi=phi),
            object_weight,
            **options,
        )
        self.weights = weights
