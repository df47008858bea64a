"""Finds the folders that several checkouts share: real data, reference values."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def shared_folder(variable: str, default: str) -> Path:
    """The folder named by the environment variable, else `default` relative to the root of the repository.

    A missing folder skips the test; on a build server (`CI=true`) it fails it, so that a test is never lost unseen.
    """
    folder = Path(os.environ.get(variable) or REPOSITORY / default).resolve()
    if not folder.is_dir():
        reason = f"no folder {folder}; set {variable} to where it is"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder
