"""Data and teachers of tiny comparisons."""

import pytest

from tests.data.folders import voc_object, write_voc
from tests.engine.tiny_runs import save_teacher


@pytest.fixture
def teacher(tmp_path):
    return save_teacher(tmp_path / "teacher")


@pytest.fixture
def folder(tmp_path):
    """Images in a folder, because a patched demo data set does not exist in other processes."""
    splits = {
        split: {f"{split}{number}": voc_object(("cat", "dog")[number % 2], (2, 3, 30, 20)) for number in range(count)}
        for split, count in {"train": 8, "test": 2}.items()
    }
    return write_voc(tmp_path / "data", splits)


@pytest.fixture
def teacher_of_folder(tmp_path):
    """A teacher of the classes in `folder`."""
    return save_teacher(tmp_path / "teacher", classes=("cat", "dog"))
