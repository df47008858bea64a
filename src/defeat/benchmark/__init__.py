"""The matched comparison of distillation methods over several seeds."""

from defeat.benchmark.merge import merge
from defeat.benchmark.run import BenchRun, bench

__all__ = ["BenchRun", "bench", "merge"]
