"""Where a run trains."""

import os

import torch

from defeat.engine.settings import TrainSettings


def training_device(settings: TrainSettings) -> torch.device:
    """Where a run trains, for what is computed before it begins: of several GPUs that of this process."""
    if settings.accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
