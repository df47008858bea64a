"""Fixtures that several packages' tests share."""

import pytest

from defeat.data import demo
from tests.bad_input.counting import (  # noqa: F401 (hooks, which xdist needs here)
    pytest_collection_finish,
    pytest_terminal_summary,
    pytest_testnodedown,
)


@pytest.fixture
def small_demo(monkeypatch):
    """The embedded data with a few scenes a split, so that an epoch takes four steps of two images."""
    for split, count in {"train": 8, "val": 4, "test": 4}.items():
        monkeypatch.setitem(demo.SPLITS, split, count)
