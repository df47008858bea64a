"""Fixtures shared by the tests of several packages."""

import pytest

from defeat.data import demo
from tests.bad_input.counting import (  # noqa: F401 (xdist needs these hooks here)
    pytest_collection_finish,
    pytest_terminal_summary,
    pytest_testnodedown,
)
from tests.browsing import browser  # noqa: F401 (a fixture)

PAINTED = {}
paint = demo.DemoDataset._image


def painted_once(self, index):
    """A scene, which depends only on its identity; painting it takes longer than a step of training."""
    key = self.identity(index)
    if key not in PAINTED:
        PAINTED[key] = paint(self, index)
    return PAINTED[key].clone()


@pytest.fixture
def small_demo(monkeypatch):
    """The demo data with a few scenes per split: an epoch takes four steps of two images."""
    for split, count in {"train": 8, "val": 4, "test": 4}.items():
        monkeypatch.setitem(demo.SPLITS, split, count)
    monkeypatch.setattr(demo.DemoDataset, "_image", painted_once)
