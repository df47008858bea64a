"""Fixtures that several packages' tests share."""

import pytest

from defeat.data import demo


@pytest.fixture
def small_demo(monkeypatch):
    """The embedded data with a few scenes a split, so that an epoch takes four steps of two images."""
    for split, count in {"train": 8, "val": 4, "test": 4}.items():
        monkeypatch.setitem(demo.SPLITS, split, count)
