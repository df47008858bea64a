"""No distillation at all: a student that only begins with weights of its teacher."""

from collections.abc import Sequence

from torch import Tensor

from defeat.distillation.base import Method
from defeat.types import DetectorOutput, Progress, Target


class NoDistillation(Method):
    """Gives no loss: what `--inherit` took over from the teacher is all of its help.

    The baseline that shows what distillation adds to a student that inherits.
    """

    paper = "baseline: inherited weights alone"
    reads = ()

    def terms(
        self, student: DetectorOutput, teacher: DetectorOutput, targets: Sequence[Target], progress: Progress
    ) -> dict[str, Tensor]:
        """Compute nothing."""
        return {}
