"""Distillation methods: each is one file, and one line in `defeat.distillation`."""
