"""The launch scripts of a comparison: each cell once, then the report, with the options that were given."""

import os
import runpy
import stat
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

LAUNCH = Path(__file__).parents[1] / "recipes" / "launch"
OPTIONS = ["--data", "a folder", "--teacher", "t", "--backbone", "resnet18", "--out", "o"]


def words_of(command):
    """What the scripts of bash gave to `defeat`, a call a line, words separated by tabs."""
    return [line.split("\t") for line in command.read_text().splitlines()]


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """A folder of commands in front of all others: `defeat` notes its words, `srun` runs what it is given."""
    folder, noted = tmp_path / "bin", tmp_path / "noted"
    folder.mkdir()
    noted.touch()
    join = 'words=$(printf \'%s\\t\' "$@"); echo "${words%?}"'
    for name, text in (("defeat", f'{join} >> "{noted}"'), ("srun", 'exec "$@"')):
        path = folder / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return noted


def test_a_slurm_job_trains_the_cell_of_its_number(commands, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")
    subprocess.run(["bash", LAUNCH / "bench_slurm.sh"], check=True)
    (words,) = words_of(commands)
    assert words[0] == "bench"
    assert words[-2:] == ["--cells", "7"]
    array = next(line for line in (LAUNCH / "bench_slurm.sh").read_text().splitlines() if "--array" in line)
    methods, seeds = words[words.index("--methods") + 1].split(","), int(words[words.index("--seeds") + 1])
    assert array.endswith(f"=1-{len(methods) * seeds}")


def test_one_gpu_trains_every_cell_and_reports_at_the_end(commands):
    subprocess.run(["bash", LAUNCH / "bench_one_gpu.sh", "3", "2", *OPTIONS], check=True)
    *cells, last = words_of(commands)
    assert sorted(cells) == [["bench", *OPTIONS, "--cells", str(number)] for number in (1, 2, 3)]
    assert last == ["bench", *OPTIONS]


class Remote:
    """A task as Ray has it, run at once."""

    def __init__(self, function):
        self.remote = function


@pytest.mark.parametrize("code", [0, 2])
def test_ray_trains_every_cell_and_its_exit_code_is_that_of_the_report(code, monkeypatch):
    calls = []
    ray = ModuleType("ray")
    ray.remote = lambda **options: Remote
    ray.get = list
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr("defeat.cli.main", lambda words: calls.append(words) or (0 if "--cells" in words else code))
    monkeypatch.setattr(sys, "argv", ["bench_ray.py", "2", *OPTIONS])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(LAUNCH / "bench_ray.py"), run_name="__main__")
    assert end.value.code == code
    assert calls == [["bench", *OPTIONS, *more] for more in (["--cells", "1"], ["--cells", "2"], [])]


def test_a_cell_that_is_not_finished_fails_its_task(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(remote=lambda **options: Remote, get=list))
    monkeypatch.setattr("defeat.cli.main", lambda words: 2)
    script = runpy.run_path(str(LAUNCH / "bench_ray.py"))
    with pytest.raises(RuntimeError, match="Cell 3 was not finished"):
        script["train_cell"].remote(3, OPTIONS)
