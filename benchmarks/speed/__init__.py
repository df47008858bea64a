"""How fast training and distillation are, against their limit and against other ways to do the same."""
