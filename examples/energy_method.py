"""A distillation method of your own: the student's maps get the energy of the teacher's.

    python examples/energy_method.py RUNS

It trains for a few steps on drawn scenes, with the teacher of the demo.
"""

# --8<-- [start:method]
from collections.abc import Sequence
from typing import Unpack

from torch import Tensor

import defeat
from defeat.methods import LevelMethod, LevelOptions, MapPair, region_mean


class Energy(LevelMethod):
    """The mean square over the channels of each cell follows the teacher's; squared difference, averaged over cells."""

    paper = "none; an example"

    def __init__(
        self,
        student: defeat.DetectorInfo,
        teacher: defeat.DetectorInfo,
        *,
        energy_weight: float = 1.0,
        **options: Unpack[LevelOptions],
    ) -> None:
        super().__init__(student, teacher, {"energy_weight": energy_weight}, **options)

    def level_losses(self, maps: MapPair, targets: Sequence[defeat.Target]) -> dict[str, Tensor]:
        """Compute `energy` of a level."""
        student, teacher = (level.square().mean(dim=1) for level in (maps.student, maps.teacher))  # (B, H, W)
        return {"energy": 2 * region_mean((student - teacher).square(), maps.valid, channels=1)}


# --8<-- [end:method]


def main(runs: str, teacher: str) -> defeat.RunResult:
    """Distil a small student with the method."""
    # --8<-- [start:use]
    return defeat.distill(
        data="demo",
        teacher=teacher,
        method=lambda student, known: Energy(student, known, energy_weight=0.001),
        backbone="test_resnet",
        weights="none",
        size=96,
        max_steps=10,
        out=f"{runs}/energy",
    )
    # --8<-- [end:use]


if __name__ == "__main__":
    import sys
    from importlib.resources import files

    main(sys.argv[1], str(files("defeat") / "demo_teacher"))
