"""Where an export is written, and what is left of it after an error."""

import errno
import os
import shutil
from io import StringIO

import pytest
from rich.console import Console

from defeat.data import open_dataset
from defeat.data.export import export_dataset
from defeat.errors import InputError
from tests.data.exported import drawn


def test_links_share_the_file_and_fall_back_to_copies(tmp_path, monkeypatch):
    original = drawn(tmp_path / "in", {"a": [((1, 2, 9, 9), "cat")]})
    export_dataset({"train": original}, tmp_path / "linked", "coco", links=True)
    assert (tmp_path / "linked/train/a.png").samefile(tmp_path / "in/a.png")
    export_dataset({"train": original}, tmp_path / "copied", "coco")
    assert not (tmp_path / "copied/train/a.png").samefile(tmp_path / "in/a.png")

    def refuse(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    export_dataset({"train": original}, tmp_path / "fallback", "coco", links=True)
    assert (tmp_path / "fallback/train/a.png").read_bytes() == (tmp_path / "in/a.png").read_bytes()


def test_only_a_new_or_empty_folder_is_written(tmp_path, monkeypatch):
    original = drawn(tmp_path / "in", {"a": [((1, 2, 9, 9), "cat")]})
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    for folder in ("full", "full/file"):
        with pytest.raises(InputError, match=r"is not an empty folder: name a new one\.$"):
            export_dataset({"train": original}, tmp_path / folder, "coco")
    with pytest.raises(InputError, match="can't be written"):
        export_dataset({"train": original}, tmp_path / "full/file/below", "coco")
    (tmp_path / "empty").mkdir()
    export_dataset({"train": original}, tmp_path / "empty", "coco")
    export_dataset({"train": original}, tmp_path / "deep/er", "coco")
    assert len(open_dataset(tmp_path / "empty", "train")) == len(open_dataset(tmp_path / "deep/er", "train")) == 1
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(InputError, match="name a new folder in it"):
        export_dataset({"train": original}, ".", "coco")


def test_nothing_is_left_after_an_error(tmp_path, monkeypatch):
    original = drawn(tmp_path / "in", {"a": [((1, 2, 9, 9), "cat")], "b": []})
    before = sorted(tmp_path.iterdir())

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", full)
        with pytest.raises(InputError, match=r"can't be written \(No space left on device\): it needs [\d,]+ bytes"):
            export_dataset({"train": original}, tmp_path / "out", "coco")
    (tmp_path / "in/b.png").unlink()
    with pytest.raises(InputError, match=r"b\.png does not exist"):
        export_dataset({"train": original}, tmp_path / "out", "coco")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["", "a/b", ".x", "..", "a\n", " a"])
def test_names_of_splits_must_be_file_names(tmp_path, name):
    original = drawn(tmp_path / "in", {"a": [((1, 2, 9, 9), "cat")]})
    with pytest.raises(InputError, match="must be a valid name of a file"):
        export_dataset({name: original}, tmp_path / "out", "coco")


def test_an_unknown_layout_and_no_images_are_refused(tmp_path):
    original = drawn(tmp_path / "in", {"a": []})
    with pytest.raises(InputError, match=r"Unknown layout 'cocoo'\. Did you mean 'coco'"):
        export_dataset({"train": original}, tmp_path / "out", "cocoo")
    with pytest.raises(InputError, match="no split"):
        export_dataset({}, tmp_path / "out", "coco")
    with pytest.raises(InputError, match="contains no image"):
        export_dataset({"train": original.subset([], "train")}, tmp_path / "out", "coco")


def test_progress_is_shown_for_each_split(tmp_path):
    text = StringIO()
    console = Console(file=text, force_terminal=True, width=80)
    original = drawn(tmp_path / "in", {"a": [((1, 2, 9, 9), "cat")]})
    export_dataset({"a[b]": original}, tmp_path / "out", "coco", console=console)
    assert "Writing a[b]" in text.getvalue()
