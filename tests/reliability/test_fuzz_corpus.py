"""Every input of the fuzzing corpus is read, or refused with a message."""

import pytest

from fuzz.contract import CORPUS, run
from fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_is_read_or_refused(name, tmp_path):
    target, inputs = TARGETS[name], sorted((CORPUS / name).iterdir())
    target.prepare(tmp_path)
    accepted = [run(target, tmp_path, path.read_bytes()) for path in inputs]
    # A corpus that is always refused, or never, tests half of the code.
    assert 0 < sum(accepted) < len(inputs)
