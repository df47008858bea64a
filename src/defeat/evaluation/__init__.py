"""Evaluation of detectors: average precision, error types, confidence intervals, cost."""
