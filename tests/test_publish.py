"""Published comparisons contain no paths of the machine, and a table."""

import json

from rich.console import Console

from benchmarks.accuracy.publish import RESULTS, table, without_folders
from defeat.benchmark import bench
from defeat.report.variants import baseline_of
from tests.engine.tiny_runs import save_teacher, settings, shared_settings


def test_a_published_comparison_names_no_folder_and_has_a_table(small_demo, tmp_path):
    folder = tmp_path / "m"
    given = shared_settings(settings(folder, teacher=save_teacher(tmp_path / "teacher"), max_steps=1))
    given["cache_teacher"] = str(tmp_path / "maps")
    bench(methods="defeat", seeds=1, console=Console(quiet=True), **given)
    published = without_folders(json.loads((folder / "bench.json").read_text()))
    assert str(tmp_path) not in json.dumps(published["settings"])
    lines = table(published).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:5]] == ["teacher", "none", "defeat"]
    assert lines[0].count("|") == lines[4].count("|")


def test_stored_results_with_the_key_of_version_0_1_have_a_table():
    content = json.loads((RESULTS / "bccd.json").read_text())
    content["alone"] = baseline_of(content)
    content.pop("baseline", None)
    assert [line.split("|")[1].strip() for line in table(content).splitlines()[2:4]] == ["teacher", "none"]
