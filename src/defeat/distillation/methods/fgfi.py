"""FGFI: fine-grained feature imitation near objects (Wang et al., CVPR 2019, arXiv 1906.03609)."""

from functools import partial

from defeat.distillation.base import check_weights
from defeat.distillation.imitation import NeckMethod
from defeat.distillation.regions import near_object_regions
from defeat.errors import InputError
from defeat.types import DetectorInfo


class FGFI(NeckMethod):
    """The student imitates the teacher's neck near objects: where anchors overlap an object nearly as well as the best.

    The squared difference between the teacher's map and the adapted student's, summed over the region, over twice the
    number of its elements in the batch, averaged over the levels (equation 3 of the paper).

    Args:
        student: what is known about the student.
        teacher: what is known about the teacher.
        object_weight: weight of the region.
        phi: how near: the region holds anchors whose IoU is greater than phi times the best one's, 0..1.
        scale: what makes the term independent of the magnitude of features: standardise (both sides), teacher (the
            teacher's side alone) or none (published).
        initialisation: of the adaptation layers: default or published (near zero).
        adaptation_kernel: side of the kernels of the adaptation layers, in cells: 3 (published) or 1, which costs less.
        missing_levels: what becomes of levels whose stride the teacher lacks: leave_out, or nearest (the level of the
            teacher with the nearest stride, resized).
        warmup: part of the run over which the term rises linearly from zero, 0..1.
        decay: how the term changes over the epochs: constant, linear, cosine or up_down.

    Raises:
        InputError: an option is not valid, or the two necks share no stride.
    """

    paper = "Wang et al., CVPR 2019, arXiv 1906.03609"

    def __init__(
        self,
        student: DetectorInfo,
        teacher: DetectorInfo,
        *,
        object_weight: float = 16.0,
        phi: float = 0.5,
        scale: str = "standardise",
        initialisation: str = "default",
        adaptation_kernel: int = 3,
        missing_levels: str = "leave_out",
        warmup: float = 0.05,
        decay: str = "constant",
    ) -> None:
        check_weights(object_weight=object_weight)
        if not 0 <= phi <= 1:
            raise InputError(f"phi must be between 0 and 1, not {phi}.")
        super().__init__(
            student,
            teacher,
            partial(near_object_regions, phi=phi),
            object_weight,
            scale=scale,
            initialisation=initialisation,
            adaptation_kernel=adaptation_kernel,
            missing_levels=missing_levels,
            warmup=warmup,
            decay=decay,
        )
