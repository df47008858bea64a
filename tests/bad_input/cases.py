"""What a case of bad input is: a name, a way to plant it, and what has to come of it."""

import pytest

from defeat.data import open_dataset
from defeat.errors import InputError


def table(*rows):
    """Parametrise a test with rows whose first column is their name."""
    return pytest.mark.parametrize("case", [pytest.param(row[1:], id=row[0]) for row in rows])


def refusal(function, *arguments):
    """The one readable line with which bad input is refused."""
    with pytest.raises(InputError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert message.isprintable()
    assert message.endswith((".", "?"))
    assert len(message) < 1500
    return message


def boxes(folder, split="train", **options):
    """What a data set holds: its boxes image after image, and what it says about them."""
    dataset = open_dataset(folder, split, **options)
    return [dataset.target(index).boxes.tolist() for index in range(len(dataset))], dataset.report()
