"""Folders of several machines are merged into one comparison."""

import json

import pytest
import yaml
from rich.console import Console

from defeat.benchmark import merge
from defeat.errors import InputError
from tests.benchmark.benches import figures, run_bench

pytestmark = pytest.mark.usefixtures("small_demo")


def edited(path, **changes):
    """Change some keys of a YAML or JSON file."""
    path.write_text(json.dumps(yaml.safe_load(path.read_text()) | changes))


@pytest.mark.slow
def test_merged_parts_equal_the_whole_comparison(tmp_path, teacher):
    run_bench(tmp_path / "whole", teacher)
    assert run_bench(tmp_path / "one", teacher, cells="1,2") is not None
    assert run_bench(tmp_path / "two", teacher, cells="3-4") is not None
    assert figures(tmp_path / "one")["missing"] == ["none-seed1", "defeat-seed1"]
    merge([str(tmp_path / "one"), str(tmp_path / "two")], str(tmp_path / "joined"), Console(quiet=True))
    assert figures(tmp_path / "joined") == figures(tmp_path / "whole")
    assert not (tmp_path / "joined" / "none-seed0" / "checkpoints").exists()


@pytest.mark.slow
def test_each_cell_records_its_machine_and_commit_also_after_merging(tmp_path, teacher):
    run_bench(tmp_path / "m", teacher, seeds=1)
    path = tmp_path / "m" / "defeat-seed0" / "results.json"
    results = json.loads(path.read_text()) | {"machine": {"cpu": "another"}, "commit": "abc"}
    path.write_text(json.dumps(results))
    merge([str(tmp_path / "m")], str(tmp_path / "joined"), Console(quiet=True))
    content = json.loads((tmp_path / "joined" / "bench.json").read_text())
    assert list(content["cells"]) == ["none-seed0", "defeat-seed0"]
    cell = content["cells"]["defeat-seed0"]
    assert (cell["method"], cell["seed"], cell["machine"], cell["commit"]) == ("defeat", 0, {"cpu": "another"}, "abc")
    assert (cell["AP"], cell["wall_seconds"]) == (results["metrics"]["AP"], results["wall_seconds"])
    assert cell["versions"] == results["versions"]


@pytest.mark.slow
def test_paths_of_data_and_teacher_may_differ_between_machines(tmp_path, teacher):
    for name, cells in (("one", "1,2"), ("two", "3,4")):
        run_bench(tmp_path / name, teacher, cells=cells, max_steps=1)
    plan = tmp_path / "two" / "bench.yaml"
    settings = yaml.safe_load(plan.read_text())["settings"]
    edited(plan, settings=settings | {"data": "/scratch/demo", "teacher": "/scratch/teacher", "accelerator": "gpu"})
    parts = [str(tmp_path / "one"), str(tmp_path / "two")]
    assert merge(parts, str(tmp_path / "joined"), Console(quiet=True)).missing == ()
    edited(plan, settings=settings | {"lr": 0.5})
    with pytest.raises(InputError, match=r"two contains a comparison with other settings: lr was 0.5 and is 0.01"):
        merge(parts, str(tmp_path / "again"), Console(quiet=True))
    assert not (tmp_path / "again").exists()


@pytest.mark.slow
def test_comparisons_with_different_teachers_are_not_merged(tmp_path, teacher):
    for name in ("one", "two"):
        run_bench(tmp_path / name, teacher, seeds=1, max_steps=1)
    edited(tmp_path / "two" / "teacher.json", fingerprint="another")
    parts = [str(tmp_path / "one"), str(tmp_path / "two")]
    with pytest.raises(InputError, match=r"one and .*two belong to teachers with different weights"):
        merge(parts, str(tmp_path / "joined"), Console(quiet=True))
    edited(tmp_path / "one" / "defeat-seed0" / "results.json", teacher_fingerprint="another")
    with pytest.raises(InputError, match=r"joined and .*joined/defeat-seed0 belong to teachers with different weights"):
        merge(parts[:1], str(tmp_path / "joined"), Console(quiet=True))
    (tmp_path / "one" / "teacher.json").unlink()
    with pytest.raises(InputError, match=r"teacher.json is missing: repeat `defeat bench`"):
        merge(parts[:1], str(tmp_path / "third"), Console(quiet=True))


def test_a_folder_without_a_comparison_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"contains no comparison: bench.yaml"):
        merge([str(tmp_path)], str(tmp_path / "out"), Console(quiet=True))
