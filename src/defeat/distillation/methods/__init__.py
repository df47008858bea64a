"""Distillation methods, one per file; `defeat.distillation.METHODS` lists them."""
