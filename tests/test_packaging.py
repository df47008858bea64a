"""The wheel runs without the repository, and the source distribution can be tested."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.data.folders import voc_object, write_voc

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The source distribution, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT], check=True, capture_output=True
    )
    return folder


@pytest.fixture
def installed(built, tmp_path):
    """The unpacked wheel, next to an empty folder."""
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")  # noqa: S202 (built just now)
    (tmp_path / "empty").mkdir()
    return tmp_path / "site", tmp_path / "empty"


def run(installed, *arguments):
    site, empty = installed
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-P", *arguments], cwd=empty, env=environment, capture_output=True, text=True, timeout=300
    )


def test_the_wheel_trains_and_predicts_without_the_repository(installed):
    where = run(installed, "-c", "import defeat; print(defeat.__file__)")
    assert where.stdout.startswith(str(installed[0]))
    cat = voc_object("cat", (2, 3, 30, 20))
    splits = {"train": {"a": cat}, "test": {"b": cat}}
    small = ["--data", str(write_voc(installed[1] / "data", splits)), "--size", "64", "--workers", "0"]
    backbone = ["--backbone", "test_resnet", "--weights", "none"]
    for arguments in (["recipes"], ["train", *small, *backbone, "--max-steps", "1", "--out", "r"]):
        result = run(installed, "-m", "defeat.cli", *arguments)
        assert result.returncode == 0, result.stderr
    refused = run(
        installed, "-m", "defeat.cli", "train", "--config", "small/retinanet", *small, "--epochs", "0", "--out", "x"
    )
    assert "--epochs must be 1 or more" in refused.stderr  # the recipe was read
    assert (installed[1] / "r" / "report.html").is_file()
    teacher = installed[0] / "defeat" / "demo_teacher"
    loaded = run(installed, "-c", f"import defeat; print(defeat.load({str(teacher)!r}).info.family)")
    assert loaded.stdout.strip() == "faster_rcnn", loaded.stderr


def test_the_wheel_has_what_the_package_reads(installed):
    package = installed[0] / "defeat"
    assert (package / "py.typed").is_file()
    assert (package / "options.json").is_file()
    assert len(list((package / "recipes").rglob("*.yaml"))) == len(list((ROOT / "recipes").rglob("*.yaml")))
    for path in (ROOT / "src" / "defeat").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert (package / path.relative_to(ROOT / "src" / "defeat")).is_file(), path


def test_the_source_distribution_can_be_tested_and_documented(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"Makefile", "pyproject.toml", "LICENSE", "CHANGELOG.md", "mkdocs.yml", "docs/index.md"} <= names
    assert {"tests/conftest.py", "benchmarks/measure.py", "recipes/README.md", "examples/distil.ipynb"} <= names
    tracked = subprocess.run(["git", "ls-files", "src", "tests"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(tracked.stdout.splitlines()) <= names


def test_the_lock_file_has_every_dependency_of_the_demo():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["weights"]]
    locked = dict(re.findall(r"^([a-z0-9-]+)==([^ ]+)", (ROOT / "demo.lock").read_text(), re.MULTILINE))
    for requirement in map(Requirement, needed):
        assert requirement.specifier.contains(locked[requirement.name]), f"{requirement}: run make lock"
