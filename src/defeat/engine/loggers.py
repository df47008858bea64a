"""Where else a run's figures go, beside `metrics.jsonl`: Lightning's own loggers."""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from defeat.errors import InputError
from defeat.settings import Checked, Role, at_least, setting, settings_part

PROJECT = "defeat"  # of wandb and mlflow, unless their own environment variables name another
OPTIONAL = {"wandb": "wandb", "mlflow": "mlflow"}  # logger -> package
LoggerName = Literal["tensorboard", "csv", "wandb", "mlflow"]


@settings_part
class LoggingSettings(Checked):
    """Logs and checkpoints."""

    log_every: int = setting(default=10, role=Role.OUTPUT)
    """Write losses every so many steps."""
    logger: LoggerName | list[LoggerName] = setting(default="tensorboard", role=Role.OUTPUT)
    """Where to write losses and figures beside metrics.jsonl: tensorboard, csv, wandb or mlflow, or a list of them
    such as [tensorboard,csv]."""
    checkpoint_every: int = setting(default=1000, role=Role.OUTPUT)
    """Write a checkpoint every so many steps, beside those before and after each evaluation and at the end of each
    epoch; 0 for these alone."""

    def check(self) -> None:
        """Refuse values that can't work."""
        at_least("log_every", self.log_every, 1)
        at_least("checkpoint_every", self.checkpoint_every, 0)

    @property
    def loggers(self) -> list[LoggerName]:
        """Names in `logger`, each once."""
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
    """The loggers that the settings ask for; a resumed run gets a further file, or a further run of a service.

    Args:
        settings: which.
        folder: the run directory.
        values: what services show as the run's settings.
    """
    return [_build(name, folder, values) for name in settings.loggers]


def _build(name: LoggerName, folder: Path, values: Mapping[str, Any]) -> Logger:
    if name == "tensorboard":
        return TensorBoardLogger(folder, name="", version="tensorboard")
    if name == "csv":
        return CSVLogger(folder, name="csv")  # it would overwrite a file of an earlier part, so each has its version
    if name == "wandb":
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        service: Logger = WandbLogger(name=folder.name, save_dir=folder, project=project)
    else:
        # A file of SQLite, unless a server is named: mlflow gives up its own format of folders.
        server = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{(folder / 'mlflow.db').resolve()}")
        service = MLFlowLogger(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT), folder.name, server)
    service.log_hyperparams(dict(values))
    return service
