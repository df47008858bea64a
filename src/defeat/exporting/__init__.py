"""Exports trained detectors to files of other runtimes, and proves that they detect the same."""

from defeat.exporting.run import ExportReport, export

__all__ = ["ExportReport", "export"]
