"""Did it help? The matched comparison of methods over several seeds."""

from defeat.benchmark.run import BenchRun, bench, merge

__all__ = ["BenchRun", "bench", "merge"]
