"""TADF: imitation under a Gaussian around each object (Sun et al., 2020, arXiv 2006.13108)."""

from defeat.distillation.base import check_weights
from defeat.distillation.imitation import NeckMethod
from defeat.distillation.regions import gaussian_regions
from defeat.types import DetectorInfo


class TADF(NeckMethod):
    """The student imitates the teacher's neck on objects, most at their centres, and less and less during the run.

    The squared difference between the teacher's map and the adapted student's, weighted by a Gaussian over each box,
    over twice the sum of the weights in the batch, averaged over the levels. The paper's adaptive imitation of classes
    and boxes is not part of it.

    Args:
        student: what is known about the student.
        teacher: what is known about the teacher.
        object_weight: weight of the region.
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

    paper = "Sun et al., 2020, arXiv 2006.13108"

    def __init__(
        self,
        student: DetectorInfo,
        teacher: DetectorInfo,
        *,
        object_weight: float = 16.0,
        scale: str = "standardise",
        initialisation: str = "default",
        adaptation_kernel: int = 3,
        missing_levels: str = "leave_out",
        warmup: float = 0.05,
        decay: str = "linear",
    ) -> None:
        check_weights(object_weight=object_weight)
        super().__init__(
            student,
            teacher,
            gaussian_regions,
            object_weight,
            scale=scale,
            initialisation=initialisation,
            adaptation_kernel=adaptation_kernel,
            missing_levels=missing_levels,
            warmup=warmup,
            decay=decay,
        )
