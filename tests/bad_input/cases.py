"""Helpers for cases of bad input: a name, the input, and the expected result."""

import pytest

from defeat.data import open_dataset
from defeat.errors import InputError


def table(*rows):
    """Parametrise a test with rows whose first column is the name."""
    return pytest.mark.parametrize("case", [pytest.param(row[1:], id=row[0]) for row in rows])


def refusal(function, *arguments):
    """The message with which bad input is refused, one readable line."""
    with pytest.raises(InputError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert message.isprintable()
    assert message.endswith((".", "?"))
    assert len(message) < 1500
    return message


def boxes(folder, split="train", **options):
    """Boxes of each image of a data set, and its report."""
    dataset = open_dataset(folder, split, **options)
    return [dataset.target(index).boxes.tolist() for index in range(len(dataset))], dataset.report()
