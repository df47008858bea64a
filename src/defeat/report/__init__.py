"""Reads finished runs, compares them, and shows what they are worth and what they cost."""
