"""Images and their names are stored in arrays, and read back as they were."""

import pickle
from multiprocessing.reduction import ForkingPickler

import pytest
import torch

from defeat.data.tables import Sample, SampleTable, Strings

TEXTS = ["folder/a.png", "folder/\u00e4\u732b\U0001f600.png", "folder/", "folder/\udce9.png", "folder/a.png"]


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1], [], ["", ""], ["a", "", "\ud800b"], ["\u00e4a", "\u00e4b"]])
def test_texts_are_read_back(texts):
    strings = Strings.of(texts)
    assert list(strings) == texts
    assert [strings[index] for index in range(len(texts))] == texts
    assert strings[1:] == texts[1:]
    assert len(strings) == len(texts)
    with pytest.raises(IndexError):
        strings[len(texts)]


def test_common_beginning_is_stored_once():
    assert Strings.of(TEXTS).beginning == "folder/"
    assert list(Strings.of(["a", "b"], beginning="x/")) == ["x/a", "x/b"]


def test_chosen_texts_keep_their_order():
    assert list(Strings.of(TEXTS).take([3, 1, 1])) == [TEXTS[3], TEXTS[1], TEXTS[1]]
    assert list(Strings.of(TEXTS).take([])) == []


def samples(count):
    return [
        Sample(f"/data/{i}.png", f"{i}.png", 2**62 + i, (i + 1, 2 * i + 1), i % 2 == 0, 3 * i, 3 * i + i % 3)
        for i in range(count)
    ]


@pytest.mark.parametrize("count", [0, 1, 5, (1 << 14) + 3])
def test_samples_are_read_back(count):
    listed = samples(count)
    table = SampleTable.of(listed)
    assert len(table) == count
    assert list(table) == listed
    assert [table[index] for index in range(0, count, 1000)] == listed[::1000]
    if count:
        assert table[-1] == listed[-1]
    assert table[1:3] == listed[1:3]


def test_chosen_samples_number_their_boxes_anew():
    table = SampleTable.of(samples(6)).take([5, 1, 3])
    assert [sample.name for sample in table] == ["5.png", "1.png", "3.png"]
    assert [(sample.first, sample.last) for sample in table] == [(0, 2), (2, 3), (3, 3)]


def test_pickled_samples_are_the_same():
    table = pickle.loads(pickle.dumps(SampleTable.of(samples(4))))  # noqa: S301
    assert list(table) == samples(4)


def test_worker_processes_that_are_not_forked_get_the_arrays_in_shared_memory():
    table = SampleTable.of(samples(20_000))
    assert len(ForkingPickler.dumps(table)) < 10_000  # handles of shared memory instead of the arrays
    assert table.sizes.is_shared()
    assert table.names.data.is_shared()
    assert torch.equal(table.rows[:, 1] - table.rows[:, 0], table.box_counts())
