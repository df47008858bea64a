"""Loggers in addition to metrics.jsonl."""

import csv

import pytest

from defeat.engine import loggers
from defeat.errors import InputError
from tests.engine.test_resume import stop_after
from tests.engine.tiny_runs import lines, settings, tiny_run, weights


def rows(folder, part):
    with (folder / "csv" / f"version_{part}" / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("small_demo")
def test_a_csv_file_has_the_content_of_the_log(tmp_path):
    folder = tiny_run(tmp_path / "run", logger="csv", eval_every=1).folder
    expected = [line for line in lines(folder) if "train/loss" in line]
    result = [row for row in rows(folder, 0) if row["train/loss"]]
    assert [int(row["step"]) for row in result] == [line["step"] for line in expected] == [0, 1, 2, 3]
    for row, line in zip(result, expected, strict=True):
        assert float(row["train/loss"]) == pytest.approx(line["train/loss"], rel=1e-6)
    assert [row["val/AP"] != "" for row in rows(folder, 0)].count(True) == 1
    assert not (folder / "tensorboard").exists()


@pytest.mark.usefixtures("small_demo")
def test_a_resumed_run_may_have_other_loggers_and_overwrites_none(tmp_path, monkeypatch):
    whole = tiny_run(tmp_path / "whole", epochs=2, logger=[]).folder
    assert sorted(path.name for path in whole.iterdir() if path.is_dir()) == ["checkpoints"]
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        tiny_run(tmp_path / "run", epochs=2, logger="csv")
    before = rows(tmp_path / "run", 0)
    folder = tiny_run(tmp_path / "run", epochs=2, logger=["tensorboard", "csv", "csv"], resume=True).folder
    assert rows(folder, 0) == before
    steps = [int(row["step"]) for part in (0, 1) for row in rows(folder, part) if row["train/loss"]]
    assert steps[-1] == 7
    assert (folder / "tensorboard").exists()
    assert weights(folder) == weights(whole)


@pytest.mark.usefixtures("small_demo")
@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named_with_its_command_before_anything_is_written(name, tmp_path, monkeypatch):
    monkeypatch.setattr(loggers, "find_spec", lambda _: None)
    with pytest.raises(InputError) as caught:
        tiny_run(tmp_path / "run", logger=["csv", name])
    assert str(caught.value) == f"--logger {name} needs a package that is not installed: pip install {name}."
    assert not (tmp_path / "run").exists()


def test_one_logger_needs_no_list(tmp_path):
    assert settings(tmp_path, logger="csv").loggers == ["csv"]
    assert settings(tmp_path).loggers == ["tensorboard"]
    assert settings(tmp_path, logger=["csv", "csv"]).loggers == ["csv"]
