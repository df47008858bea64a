"""Cells that are trained beside each other are those that are trained one after the other."""

import json
from io import StringIO

import pytest
from rich.console import Console

from defeat.benchmark import bench
from defeat.benchmark.jobs import _steps_done
from defeat.benchmark.matrix import ALONE, NONE, Matrix
from defeat.errors import InputError
from tests.benchmark.benches import options, outcome
from tests.data.folders import voc_object, write_voc
from tests.engine.tiny_runs import save_teacher, weights

CELLS = ("none-seed0", "none-seed1", "fgfi-seed0", "fgfi-seed1")


@pytest.fixture
def data(tmp_path):
    """Images in a folder: what is drawn for a test is not there in other processes."""
    splits = {
        split: {f"{split}{number}": voc_object(("cat", "dog")[number % 2], (2, 3, 30, 20)) for number in range(count)}
        for split, count in {"train": 8, "test": 2}.items()
    }
    return write_voc(tmp_path / "data", splits)


@pytest.fixture
def teacher(tmp_path):
    return save_teacher(tmp_path / "teacher", classes=("cat", "dog"))


@pytest.mark.slow
def test_two_processes_train_the_same_students_as_one(tmp_path, data, teacher):
    given = {"methods": "fgfi", "data": str(data), "max_steps": 2}
    alone = outcome(tmp_path / "one", teacher, **given)
    said = StringIO()
    words = options(tmp_path / "two", teacher, data=str(data), max_steps=2)
    beside = bench(methods="fgfi", seeds=2, jobs=2, console=Console(file=said, width=200), **words)
    assert beside.exit_code == alone.exit_code == 0
    assert [weights(tmp_path / "two" / cell) for cell in CELLS] == [weights(tmp_path / "one" / cell) for cell in CELLS]
    assert all(f"{cell}: AP" in said.getvalue() for cell in CELLS)
    logs = "".join((tmp_path / "two" / f"job-{job}.log").read_text() for job in (1, 2))
    assert all(f"{cell}: AP" in logs for cell in CELLS)


@pytest.mark.slow
def test_a_cell_that_fails_in_a_process_is_named_and_the_others_go_on(tmp_path, data, teacher):
    (tmp_path / "m" / "none-seed1").mkdir(parents=True)
    (tmp_path / "m" / "none-seed1" / "results.json").mkdir()  # can't be written
    said = StringIO()
    words = options(tmp_path / "m", teacher, data=str(data), max_steps=1)
    run = bench(methods="none", seeds=2, jobs=2, console=Console(file=said, width=400), **words)
    assert run.unfinished == ("none-seed1",)
    assert run.exit_code == 2
    assert "none-seed1 failed" in said.getvalue()


def test_numbers_of_processes_that_can_not_work_are_refused(tmp_path, data, teacher):
    words = options(tmp_path / "m", teacher, data=str(data))
    with pytest.raises(InputError, match="--jobs must be from 1 to 64, not 0"):
        bench(jobs=0, **words)
    with pytest.raises(InputError, match="leave out --devices"):
        bench(jobs=2, **words | {"devices": 2})


def test_the_progress_of_a_cell_follows_its_log_whatever_its_last_line_is(tmp_path, teacher):
    words = options(tmp_path / "m", teacher, data="demo")
    shared = {name: value for name, value in words.items() if name != "out"}
    matrix = Matrix(tmp_path / "m", shared, {NONE: ALONE}, 1)
    (cell,) = matrix.cells()
    assert _steps_done(matrix, cell, {"none": 8}) == 0
    log = matrix.directory(cell).metrics
    log.parent.mkdir(parents=True)
    log.write_text(json.dumps({"step": 3}) + "\n" + '{"step": ')
    assert _steps_done(matrix, cell, {"none": 8}) == 4
