"""What is kept of a comparison: nothing of the machine's folders, and the table of its page."""

import json

from rich.console import Console

from benchmarks.accuracy.publish import table, without_folders
from defeat.benchmark import bench
from tests.engine.tiny_runs import save_teacher, settings, shared_settings


def test_a_kept_comparison_names_no_folder_and_has_its_table(small_demo, tmp_path):
    folder = tmp_path / "m"
    given = shared_settings(settings(folder, teacher=save_teacher(tmp_path / "teacher"), max_steps=1))
    given["cache_teacher"] = str(tmp_path / "maps")
    bench(methods="defeat", seeds=1, console=Console(quiet=True), **given)
    kept = without_folders(json.loads((folder / "bench.json").read_text()))
    assert str(tmp_path) not in json.dumps(kept["settings"])
    lines = table(kept).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:5]] == ["teacher", "none", "defeat"]
    assert lines[0].count("|") == lines[4].count("|")
