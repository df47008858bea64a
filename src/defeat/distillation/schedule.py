"""How the weight of a distillation term changes during a run."""

from defeat.types import Progress


def warm_up(progress: Progress, fraction: float) -> float:
    """A factor that rises linearly from near 0 to 1 over the first part of a run.

    Args:
        progress: where the run stands.
        fraction: part of the run over which the factor rises, 0..1; 0 gives 1 from the start.

    Returns:
        `(step + 1) / (fraction * steps)`, at most 1.
    """
    return min(1.0, (progress.step + 1) / max(1.0, fraction * progress.steps))
