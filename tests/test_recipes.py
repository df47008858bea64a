"""Every recipe is parsed and built."""

from pathlib import Path

import pytest

from defeat.cli import command_parser, run_settings
from defeat.engine.run import build_student

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda path: path.relative_to(RECIPES).as_posix())
def test_recipe_is_parsed_and_built(path):
    given = ["--config", str(path), "--data", "demo", "--out", "never-written", "--backbone", "resnet18"]
    settings = run_settings(command_parser("train"), [*given, "--weights", "none"], "train")
    detector = build_student(settings, ("one", "two"))
    assert detector.info.family == settings.detector
    assert detector.info.size == settings.size


def test_a_flag_wins_over_the_recipe():
    path = RECIPES / "small" / "retinanet.yaml"
    given = ["--config", str(path), "--data", "demo", "--out", "never-written", "--size", "96"]
    assert run_settings(command_parser("train"), given, "train").size == 96
    assert run_settings(command_parser("train"), given, "train").epochs == 12
