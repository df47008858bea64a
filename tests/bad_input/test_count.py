"""The number of cases of bad input does not fall below its minimum."""

import importlib
import math

import pytest

LEAST = {"voc_files": 40, "coco_files": 80, "yolo_files": 60}
LEAST |= {"images": 50, "on_bad_data": 25, "checkpoints": 120, "settings": 400}


def cases_of(module):
    """Number of cases of the parametrised tests of a module."""
    marks = [getattr(value, "pytestmark", []) for name, value in vars(module).items() if name.startswith("test_")]
    lengths = [[len(mark.args[1]) for mark in of_test if mark.name == "parametrize"] for of_test in marks]
    return sum(math.prod(of_test) for of_test in lengths if of_test)


@pytest.mark.parametrize("part", LEAST)
def test_there_are_enough_cases(part):
    assert cases_of(importlib.import_module(f"tests.bad_input.test_{part}")) >= LEAST[part]
