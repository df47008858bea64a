"""Drawn scenes: the embedded data set."""
