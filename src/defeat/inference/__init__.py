"""Applies a trained detector: evaluation on a split, prediction on images and videos."""
