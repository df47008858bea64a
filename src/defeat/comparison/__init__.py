"""Did it help? The matched comparison of methods over several seeds."""

from defeat.comparison.run import bench, merge

__all__ = ["bench", "merge"]
