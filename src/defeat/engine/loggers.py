"""Where else a run's figures go, beside `metrics.jsonl`: Lightning's own loggers."""

import os
from importlib.util import find_spec
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from defeat.engine.settings import LoggerName, TrainSettings
from defeat.errors import InputError

PROJECT = "defeat"  # of wandb and mlflow, unless their own environment variables name another
OPTIONAL = {"wandb": "wandb", "mlflow": "mlflow"}  # logger -> package


def require_loggers(settings: TrainSettings) -> None:
    """Refuse a logger whose package is missing, before anything is read or written.

    Raises:
        InputError: naming the command that installs it.
    """
    for name in settings.loggers:
        if (package := OPTIONAL.get(name)) is not None and find_spec(package) is None:
            raise InputError(f"--logger {name} needs a package that is not installed: pip install {package}.")


def build_loggers(settings: TrainSettings) -> list[Logger]:
    """The loggers that the settings ask for; a resumed run gets a further file, or a further run of a service."""
    return [_build(name, settings) for name in settings.loggers]


def _build(name: LoggerName, settings: TrainSettings) -> Logger:
    folder = Path(settings.out)
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
    service.log_hyperparams(settings.to_dict())
    return service
