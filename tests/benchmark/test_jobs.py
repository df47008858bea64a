"""Cells trained in parallel are equal to cells trained one after the other."""

import json
from io import StringIO

import pytest
from rich.console import Console

from defeat.benchmark import bench
from defeat.benchmark.jobs import _steps_done
from defeat.benchmark.matrix import BASELINE, NONE, Matrix
from defeat.errors import InputError
from tests.benchmark.benches import options, outcome
from tests.engine.tiny_runs import weights

CELLS = ("none-seed0", "none-seed1", "fgfi-seed0", "fgfi-seed1")


@pytest.mark.slow
def test_two_processes_train_the_same_students_as_one(tmp_path, folder, teacher_of_folder):
    given = {"methods": "fgfi", "data": str(folder), "max_steps": 2}
    sequential = outcome(tmp_path / "one", teacher_of_folder, **given)
    output = StringIO()
    settings = options(tmp_path / "two", teacher_of_folder, data=str(folder), max_steps=2)
    parallel = bench(methods="fgfi", seeds=2, jobs=2, console=Console(file=output, width=200), **settings)
    assert parallel.exit_code == sequential.exit_code == 0
    assert [weights(tmp_path / "two" / cell) for cell in CELLS] == [weights(tmp_path / "one" / cell) for cell in CELLS]
    assert all(f"{cell}: AP" in output.getvalue() for cell in CELLS)
    logs = "".join((tmp_path / "two" / f"job-{job}.log").read_text() for job in (1, 2))
    assert all(f"{cell}: AP" in logs for cell in CELLS)


@pytest.mark.slow
def test_a_cell_that_fails_in_a_process_is_named_and_the_others_are_trained(tmp_path, folder, teacher_of_folder):
    (tmp_path / "m" / "none-seed1").mkdir(parents=True)
    (tmp_path / "m" / "none-seed1" / "results.json").mkdir()  # can't be written
    output = StringIO()
    settings = options(tmp_path / "m", teacher_of_folder, data=str(folder), max_steps=1)
    run = bench(methods="none", seeds=2, jobs=2, console=Console(file=output, width=400), **settings)
    assert run.unfinished == ("none-seed1",)
    assert run.exit_code == 2
    assert "none-seed1 failed" in output.getvalue()


def test_invalid_numbers_of_processes_are_refused(tmp_path, folder, teacher_of_folder):
    settings = options(tmp_path / "m", teacher_of_folder, data=str(folder))
    with pytest.raises(InputError, match="--jobs must be from 1 to 64, not 0"):
        bench(jobs=0, **settings)
    with pytest.raises(InputError, match="leave out --devices"):
        bench(jobs=2, **settings | {"devices": 2})


def test_the_progress_of_a_cell_ignores_an_incomplete_last_line_of_its_log(tmp_path, teacher):
    settings = options(tmp_path / "m", teacher, data="demo")
    shared = {name: value for name, value in settings.items() if name != "out"}
    matrix = Matrix(tmp_path / "m", shared, {NONE: BASELINE}, 1)
    (cell,) = matrix.cells()
    assert _steps_done(matrix, cell, {"none": 8}) == 0
    log = matrix.directory(cell).metrics
    log.parent.mkdir(parents=True)
    log.write_text(json.dumps({"step": 3}) + "\n" + '{"step": ')
    assert _steps_done(matrix, cell, {"none": 8}) == 4
