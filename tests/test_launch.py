"""Launch scripts of a comparison: each cell is trained once, then the report is made, with the given options."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[1] / "recipes" / "launch"
OPTIONS = ["--data", "a folder", "--teacher", "t", "--backbone", "resnet18", "--out", "o"]


def recorded_calls(log):
    """Arguments of each call of `defeat` by a bash script: one call per line, separated by tabs."""
    return [line.split("\t") for line in log.read_text().splitlines()]


@pytest.fixture
def call_log(tmp_path, monkeypatch):
    """Log of calls to a fake `defeat` that comes first in PATH, next to an `srun` that runs its arguments."""
    folder, log = tmp_path / "bin", tmp_path / "calls"
    folder.mkdir()
    log.touch()
    join = 'arguments=$(printf \'%s\\t\' "$@"); echo "${arguments%?}"'
    for name, text in (("defeat", f'{join} >> "{log}"'), ("srun", 'exec "$@"')):
        path = folder / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return log


def test_a_slurm_job_trains_the_cell_with_its_task_id(call_log, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")
    subprocess.run(["bash", LAUNCH / "bench_slurm.sh"], check=True)
    (arguments,) = recorded_calls(call_log)
    assert arguments[0] == "bench"
    assert arguments[-2:] == ["--cells", "7"]
    array = next(line for line in (LAUNCH / "bench_slurm.sh").read_text().splitlines() if "--array" in line)
    methods = arguments[arguments.index("--methods") + 1].split(",")
    seeds = int(arguments[arguments.index("--seeds") + 1])
    assert array.endswith(f"=1-{len(methods) * seeds}")


def test_one_gpu_trains_every_cell_and_reports_at_the_end(call_log):
    subprocess.run(["bash", LAUNCH / "bench_one_gpu.sh", "3", "2", *OPTIONS], check=True)
    *cells, last = recorded_calls(call_log)
    assert sorted(cells) == [["bench", *OPTIONS, "--cells", str(number)] for number in (1, 2, 3)]
    assert last == ["bench", *OPTIONS]
