"""The table of cases stays as long as it was promised to be, whichever tests are chosen for a run."""

import importlib
import math

import pytest

LEAST = {"annotations": 120, "images": 50, "on_bad_data": 25, "checkpoints": 120, "settings": 400}


def cases_of(module):
    """How many cases the parametrised tests of a module make."""
    marks = [getattr(value, "pytestmark", []) for name, value in vars(module).items() if name.startswith("test_")]
    counts = [[len(mark.args[1]) for mark in one if mark.name == "parametrize"] for one in marks]
    return sum(math.prod(one) for one in counts if one)


@pytest.mark.parametrize("part", LEAST)
def test_there_are_as_many_cases_as_promised(part):
    assert cases_of(importlib.import_module(f"tests.bad_input.test_{part}")) >= LEAST[part]
