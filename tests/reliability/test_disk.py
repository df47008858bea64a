"""A full disk, a folder that can't be written, removed data: one message, and the last checkpoint stays intact."""

import os
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from defeat.detector import load
from defeat.engine import checkpoint_file
from defeat.engine.module import DetectionModule
from defeat.errors import InputError
from tests.data.folders import voc_object, write_voc
from tests.engine.tiny_runs import lines, save_teacher, tiny_run, weights
from tests.reliability.children import forked

pytestmark = pytest.mark.usefixtures("small_demo")


def at_step(step: int, happens: Callable[[], object]) -> None:
    """Call a function at the start of a step, in this process from now on."""
    original = DetectionModule.training_step

    def training_step(self, *arguments):
        if self.global_step == step:
            happens()
        return original(self, *arguments)

    DetectionModule.training_step = training_step


def refused(out: Path, step: int, happens: Callable[[], object], **settings) -> str:
    """The message with which a run ends, in another process, after a function was called at a step."""

    def job() -> str:
        at_step(step, happens)
        with pytest.raises(InputError) as caught:
            tiny_run(out, **settings)
        return str(caught.value)

    sentence = forked(job).value
    assert "\n" not in sentence
    return sentence


def require_resumable(out: Path, whole: Path, steps: Collection[int] = (4,), **settings) -> None:
    """Check that a run that ended early can be resumed, with the result of an undisturbed one."""
    assert torch.load(out / "checkpoints/last.ckpt", weights_only=True)["global_step"] in steps
    assert load(out).info.classes
    assert not (out / ".lock").exists()
    assert tiny_run(out, resume=True, **settings).finished
    assert weights(out) == weights(whole)
    assert lines(out) == lines(whole)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 16 MB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    arguments = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(arguments, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root can mount a small disk; the next test limits the size of files instead")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_ends_a_run_with_the_required_space(small_disk, tmp_path):
    tiny_run(tmp_path / "whole", epochs=2)
    out, filler = small_disk / "run", small_disk / "filler"

    def fill() -> None:
        with filler.open("wb") as file:
            file.write(bytes(shutil.disk_usage(small_disk).free - 200_000))  # the log still fits

    sentence = refused(out, 6, fill, epochs=2)
    result = re.search(
        r"last\.ckpt can't be written \(No space left on device\): it needs ([\d,]+) bytes, ([\d,]+)", sentence
    )
    assert result, sentence
    needed, free = (int(text.replace(",", "")) for text in result.groups())
    assert needed == pytest.approx((out / "checkpoints/last.ckpt").stat().st_size, rel=0.01)
    assert free < 200_000
    filler.unlink()
    require_resumable(out, tmp_path / "whole", epochs=2)


@pytest.mark.slow
def test_a_disk_without_space_for_a_log_line_ends_a_run(small_disk, tmp_path):
    tiny_run(tmp_path / "whole", epochs=2)
    out, filler = small_disk / "run", small_disk / "filler"

    def fill() -> None:
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))

    sentence = refused(out, 6, fill, epochs=2)
    assert re.search(rf"{out}.* can't be written \(No space left on device\)", sentence)
    filler.unlink()
    require_resumable(out, tmp_path / "whole", epochs=2)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"eval_every": 1, "keep": "best", "ema": 0.9}], ids=["last", "best"])
def test_a_limit_of_file_sizes_ends_a_run(settings, tmp_path):
    """The write itself fails, although there is space on the disk."""
    settings = {"epochs": 2} | settings
    tiny_run(tmp_path / "whole", **settings)
    out = tmp_path / "run"
    sentence = refused(out, 6, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)), **settings)
    assert re.search(
        rf"{out}/checkpoints/last\.ckpt can't be written \(File too large\): it needs [\d,]+ bytes", sentence
    )
    assert [path.name for path in out.rglob(".*")] == []
    require_resumable(out, tmp_path / "whole", **settings)


@pytest.mark.slow
def test_a_removed_folder_is_reported(tmp_path):
    tiny_run(tmp_path / "whole", epochs=2)
    out = tmp_path / "run"
    sentence = refused(out, 6, lambda: (out / "checkpoints").rename(tmp_path / "elsewhere"), epochs=2)
    assert f"{out}/checkpoints/last.ckpt can't be written (No such file or directory)" in sentence
    (tmp_path / "elsewhere").rename(out / "checkpoints")
    require_resumable(out, tmp_path / "whole", epochs=2)


def test_a_folder_that_cannot_be_created_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=re.escape(f"{tmp_path}/file/run can't be written (Not a directory)")):
        tiny_run(tmp_path / "file/run")


@pytest.mark.slow
def test_a_cache_on_a_full_disk_does_not_end_the_run(small_disk, tmp_path):
    teacher = save_teacher(tmp_path / "teacher")
    whole = tiny_run(tmp_path / "whole", teacher=teacher, cache_teacher=str(tmp_path / "cache")).folder
    cache = small_disk / "cache"

    def job() -> bool:
        at_step(1, lambda: (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free)))
        return tiny_run(tmp_path / "run", teacher=teacher, cache_teacher=str(cache)).finished

    assert forked(job).value
    assert weights(tmp_path / "run") == weights(whole)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_removed_data_is_reported_and_the_run_is_resumed_when_it_is_restored(workers, tmp_path):
    objects = voc_object("cat", [4, 5, 24, 25]) + voc_object("dog", [10, 8, 36, 28])
    splits = {"train": {f"t{number}": objects for number in range(8)}, "val": {"v0": objects, "v1": objects}}
    data = write_voc(tmp_path / "data", splits)
    settings = {"data": str(data), "epochs": 3, "workers": workers}
    tiny_run(tmp_path / "whole", **settings)
    out = tmp_path / "run"
    sentence = refused(out, 5, lambda: (data / "JPEGImages").rename(tmp_path / "away"), **settings)
    assert re.search(rf"{data}/JPEGImages/t\d\.png does not exist", sentence)
    (tmp_path / "away").rename(data / "JPEGImages")
    steps = (4, 8) if workers else (4,)  # a worker reads ahead
    require_resumable(out, tmp_path / "whole", steps, **settings)


def test_resuming_with_changed_data_is_refused(tmp_path):
    objects = voc_object("cat", [4, 5, 24, 25])
    data = write_voc(
        tmp_path / "data", {"train": {f"t{number}": objects for number in range(4)}, "val": {"v": objects}}
    )
    tiny_run(tmp_path / "run", data=str(data), max_steps=1)
    before = weights(tmp_path / "run")
    write_voc(data, {"train": {f"t{number}": objects for number in range(5)}})
    with pytest.raises(InputError, match=r"can't be resumed with other training images \(were \w+, are \w+\)"):
        tiny_run(tmp_path / "run", data=str(data), max_steps=1, resume=True)
    assert weights(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda content: content["defeat"].update(format=99),
            r"another version of this program \(format 99, this one reads 1\)",
        ),
        (lambda content: content["defeat"].update(processes=2), r"other processes \(were 2, are 1\)"),
        (lambda content: content["state_dict"].popitem(), "1 of its tensors are not those of this detector"),
    ],
    ids=["format", "processes", "layers"],
)
def test_a_checkpoint_that_does_not_fit_is_refused(change, message, tmp_path):
    path = tiny_run(tmp_path / "run", max_steps=1).folder / "checkpoints/last.ckpt"
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    with pytest.raises(InputError, match=message):
        tiny_run(tmp_path / "run", max_steps=1, resume=True)


def test_a_checkpoint_from_before_the_number_of_the_format_is_read(tmp_path):
    path = tiny_run(tmp_path / "run", max_steps=1).folder / "checkpoints/last.ckpt"
    content = torch.load(path, weights_only=True)
    for name in (checkpoint_file.METADATA, "first_steps", "watches", "log_bytes", "evaluated_step", "selection"):
        del content[name]
    torch.save(content, path)
    before = weights(tmp_path / "run")
    assert tiny_run(tmp_path / "run", max_steps=1, resume=True).finished
    assert weights(tmp_path / "run") == before


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half a checkpoint", b"\x80\x04."])
def test_a_damaged_checkpoint_is_named(content, tmp_path):
    path = tiny_run(tmp_path / "run", max_steps=1).folder / "checkpoints/last.ckpt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"{path} can't be resumed from: it is damaged") as caught:
        tiny_run(tmp_path / "run", max_steps=1, resume=True)
    assert "\n" not in str(caught.value)
