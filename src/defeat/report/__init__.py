"""Reads finished runs, compares them, and reports their accuracy and cost."""
