"""A checkpoint that somebody else wrote can't run code."""

import pickle
from pathlib import Path

import pytest
import torch

from defeat.errors import InputError
from tests.engine.tiny_runs import tiny_run


class Planted:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    folder, mark = tiny_run(tmp_path / "run", max_steps=1).folder, tmp_path / "mark"
    torch.save(
        {"epoch": 0, "global_step": 1, "state_dict": {}, "more": Planted(mark)}, folder / "checkpoints/last.ckpt"
    )
    with pytest.raises((InputError, pickle.UnpicklingError)):
        tiny_run(tmp_path / "run", max_steps=1, resume=True)
    assert not mark.exists()
