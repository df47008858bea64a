"""Detector families: each is one file, and one line in `defeat.detector`."""
