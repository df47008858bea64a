"""Fixtures shared by the tests of several packages."""

import pytest

from defeat.data import demo
from tests.bad_input.counting import (  # noqa: F401 (xdist needs these hooks here)
    pytest_collection_finish,
    pytest_terminal_summary,
    pytest_testnodedown,
)


@pytest.fixture
def small_demo(monkeypatch):
    """The demo data with a few scenes per split: an epoch takes four steps of two images."""
    for split, count in {"train": 8, "val": 4, "test": 4}.items():
        monkeypatch.setitem(demo.SPLITS, split, count)
