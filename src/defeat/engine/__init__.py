"""Runs: train, distil and evaluate detectors."""
