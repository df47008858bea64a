"""No distillation: a student that only inherits weights of its teacher."""

from collections.abc import Sequence

from torch import Tensor

from defeat.distillation.base import Method
from defeat.types import DetectorOutput, Progress, Target


class NoDistillation(Method):
    """No loss: the student gets only the weights inherited with `--inherit`.

    The reference that shows how much distillation adds to a student that inherits.
    """

    paper = "reference: inherited weights only"
    reads = ()

    def terms(
        self, student: DetectorOutput, teacher: DetectorOutput, targets: Sequence[Target], progress: Progress
    ) -> dict[str, Tensor]:
        """Return no losses."""
        return {}
