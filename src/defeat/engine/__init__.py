"""Training runs: steps, checkpoints, evaluation, and the run directory."""
