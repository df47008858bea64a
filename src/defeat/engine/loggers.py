"""Loggers of Lightning that a run writes to in addition to `metrics.jsonl`."""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from defeat.errors import InputError
from defeat.settings import Checked, Role, at_least, setting, settings_part

PROJECT = "defeat"  # default project of wandb and mlflow; their own environment variables override it
OPTIONAL = {"wandb": "wandb", "mlflow": "mlflow"}  # logger -> package
LoggerName = Literal["tensorboard", "csv", "wandb", "mlflow"]


@settings_part
class LoggingSettings(Checked):
    """Logs and checkpoints."""

    log_every: int = setting(default=10, role=Role.OUTPUT)
    """Number of steps between logged losses."""
    logger: LoggerName | list[LoggerName] = setting(default="tensorboard", role=Role.OUTPUT)
    """Loggers in addition to metrics.jsonl: tensorboard, csv, wandb or mlflow, or a list such as [tensorboard,csv]."""
    checkpoint_every: int = setting(default=1000, role=Role.OUTPUT)
    """Number of steps between checkpoints, in addition to those before and after each evaluation and at the end of each
    epoch; 0 for only these."""

    def check(self) -> None:
        """Refuse invalid values."""
        at_least("log_every", self.log_every, 1)
        at_least("checkpoint_every", self.checkpoint_every, 0)

    @property
    def loggers(self) -> list[LoggerName]:
        """Names in `logger`, without duplicates."""
        return [self.logger] if isinstance(self.logger, str) else list(dict.fromkeys(self.logger))


def require_loggers(settings: LoggingSettings) -> None:
    """Refuse a logger whose package is missing, before anything is read or written.

    Raises:
        InputError: naming the command that installs it.
    """
    for name in settings.loggers:
        if (package := OPTIONAL.get(name)) is not None and find_spec(package) is None:
            raise InputError(f"--logger {name} needs a package that is not installed: pip install {package}.")


def build_loggers(settings: LoggingSettings, folder: Path, values: Mapping[str, Any]) -> list[Logger]:
    """Build the loggers of the settings; a resumed run gets another file, or another run of a service.

    Args:
        settings: the settings with the names of the loggers.
        folder: the run directory.
        values: the run's settings, as shown by services.
    """
    return [_build(name, folder, values) for name in settings.loggers]


def _build(name: LoggerName, folder: Path, values: Mapping[str, Any]) -> Logger:
    if name == "tensorboard":
        return TensorBoardLogger(folder, name="", version="tensorboard")
    if name == "csv":
        return CSVLogger(folder, name="csv")  # with a version per resumed part, or it would overwrite its file
    if name == "wandb":
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        service: Logger = WandbLogger(name=folder.name, save_dir=folder, project=project)
    else:
        # An SQLite file unless a server is set: mlflow deprecates its format of folders.
        server = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{(folder / 'mlflow.db').resolve()}")
        service = MLFlowLogger(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT), folder.name, server)
    service.log_hyperparams(dict(values))
    return service
