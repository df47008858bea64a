"""Folders shared by several checkouts: real data sets and reference values."""

import os
from pathlib import Path
from typing import NoReturn

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def shared_folder(variable: str, default: str) -> Path:
    """Return the folder named by an environment variable, else `default` relative to the root of the repository.

    A missing folder skips the test. On CI (`CI=true`) the test fails instead, so that it is never skipped silently.
    """
    folder = Path(os.environ.get(variable) or REPOSITORY / default).resolve()
    if not folder.is_dir():
        _missing(f"no folder {folder}; set {variable} to its path")
    return folder


def shared_model(name: str) -> Path:
    """Return a model file in the folder `models` beside that of the shared data sets; as `shared_folder` if missing."""
    data = shared_folder("DEFEAT_DATA", "../shared/data")
    path = data.parent / "models" / name
    if not path.is_file():
        _missing(f"no file {path}")
    return path


def _missing(reason: str) -> NoReturn:
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(reason)
    pytest.skip(reason)
