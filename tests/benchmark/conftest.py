"""The teacher of tiny comparisons."""

import pytest

from tests.engine.tiny_runs import save_teacher


@pytest.fixture
def teacher(tmp_path):
    return save_teacher(tmp_path / "teacher")
