"""The cache computes each view of an image once; maps from disk and new maps are equal."""

import os
import shutil
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

from defeat.assembly import run as engine
from defeat.assembly.settings import bytes_of
from defeat.data import DemoDataset, open_dataset
from defeat.data.dataset import SplitBuilder
from defeat.detector import Detector
from defeat.detector.taps import TappedTeacher
from defeat.distillation import build_method
from defeat.engine import teacher_cache
from defeat.engine.teacher_cache import TeacherCache, cache_size
from defeat.errors import InputError
from defeat.types import Progress
from tests.detector.tiny import FAMILIES_IN_RUNS as FAMILIES
from tests.detector.tiny import images, target, tiny_detector
from tests.engine.tiny_runs import lines, save_teacher, settings, tensors, tiny_run, weights

every_family = pytest.mark.parametrize("family", FAMILIES)
HEADS = {"positive_weight": 1.0, "negative_weight": 1.0}
LATE = Progress(5, 10)
BOXES = [[4.0, 4.0, 30.0, 30.0]]


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def pair(family: str) -> tuple[Detector, Detector]:
    return tiny_detector(family).train(), tiny_detector(family, seed=7, neck_channels=24).eval()


def targets(*sizes: tuple[int, int], view: int = 0):
    return [replace(target(BOXES, [0], size), image_id=number, view=view) for number, size in enumerate(sizes)]


def names(count: int) -> dict[tuple[bool, int], str]:
    return {(True, number): f"image-{number}" for number in range(count)}


@every_family
def test_maps_are_those_of_each_single_image_in_half_precision(family, tmp_path):
    student, teacher = pair(family)
    sizes = ((48, 64), (64, 96), (40, 64))
    batch = student.prepare(images(*sizes), targets(*sizes))
    cache = TeacherCache(tmp_path, ["backbone", "neck"], names(3))
    result = cache.output(teacher, batch, {"neck", "backbone"})
    assert len(files(tmp_path)) == 3
    for row, (image, image_target) in enumerate(zip(images(*sizes), targets(*sizes), strict=True)):
        single = teacher.forward_teacher(teacher.adopt(student.prepare([image], [image_target])))
        for part in ("neck", "backbone"):
            expected = getattr(single, part)
            assert getattr(result, part).keys() == expected.keys()
            for stride, level in expected.items():
                height, width = level.shape[-2:]
                kept = getattr(result, part)[stride][row]
                assert torch.allclose(kept[:, :height, :width], level[0], rtol=2e-3, atol=2e-3)
                assert not kept[:, height:].any()
                assert not kept[:, :, width:].any()
                assert torch.equal(kept, kept.half().float())


@every_family
def test_the_shape_of_the_maps_is_that_of_the_batch(family, tmp_path):
    student, teacher = pair(family)
    sizes = ((48, 64), (64, 90))
    batch = student.prepare(images(*sizes), targets(*sizes))
    expected = teacher.forward_teacher(teacher.adopt(batch))
    result = TeacherCache(tmp_path, ["neck"], names(2)).output(teacher, batch, {"neck"})
    assert {stride: level.shape for stride, level in result.neck.items()} == {
        stride: level.shape for stride, level in expected.neck.items()
    }
    assert all(torch.equal(result.valid[stride], expected.valid[stride]) for stride in result.neck)


@every_family
def test_maps_on_disk_are_not_computed_again(family, tmp_path, monkeypatch):
    student, teacher = pair(family)
    sizes = ((48, 64), (64, 96))
    batch = student.prepare(images(*sizes), targets(*sizes))
    first = TeacherCache(tmp_path, ["neck"], names(2)).output(teacher, batch, {"neck"})
    monkeypatch.setattr(type(teacher), "forward_maps", None)  # a call would raise TypeError
    second = TeacherCache(tmp_path, ["neck"], names(2)).output(teacher, batch, {"neck"})
    assert all(torch.equal(level, second.neck[stride]) for stride, level in first.neck.items())
    mirrored = student.prepare(images(*sizes), targets(*sizes, view=1))
    cache = TeacherCache(tmp_path, ["neck"], names(2))
    with pytest.raises(TypeError):  # another view of the same images is not there
        cache.output(teacher, mirrored, {"neck"})


@every_family
def test_a_head_is_computed_from_stored_maps(family, tmp_path):
    student, teacher = pair(family)
    batch = student.prepare(images((64, 64), (64, 64)), targets((64, 64), (64, 64)))
    method = build_method("defeat", student.info, teacher.info, HEADS)
    result = TeacherCache(tmp_path, ["neck"], names(2)).output(teacher, batch, method.needs)
    expected = teacher.forward_teacher(teacher.adopt(batch))
    losses = method(student.forward_train(batch), result, batch.targets, LATE)
    assert {"head_positive", "head_negative"} <= losses.keys()
    if expected.dense is not None:
        assert torch.allclose(result.dense.logits, expected.dense.logits, atol=2e-2)
    else:  # its own proposals may change where two are nearly equal
        assert torch.allclose(result.score_proposals(expected.proposals.boxes), expected.proposals.logits, atol=2e-2)


@every_family
def test_maps_of_a_teacher_of_another_size_are_stored_at_its_size(family, tmp_path):
    student, teacher = tiny_detector(family).train(), tiny_detector(family, seed=7, size=96, max_size=144).eval()
    batch = student.prepare(images((48, 64), (64, 80)), targets((48, 64), (64, 80)))
    expected = teacher.forward_teacher(teacher.adopt(batch))
    result = TeacherCache(tmp_path, ["neck"], names(2)).output(teacher, batch, {"neck"})
    assert result.scale == expected.scale == pytest.approx(1.5)
    assert all(result.neck[stride].shape == level.shape for stride, level in expected.neck.items())


def test_a_damaged_file_is_computed_again(tmp_path):
    student, teacher = pair("retinanet")
    batch = student.prepare(images((64, 64)), targets((64, 64)))
    cache = TeacherCache(tmp_path, ["neck"], names(1))
    first = cache.output(teacher, batch, {"neck"})
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    for damaged in (b"", whole[:100], whole[:-7], b"no safetensors"):
        path.write_bytes(damaged)
        result = cache.output(teacher, batch, {"neck"})
        assert torch.equal(result.neck[8], first.neck[8])
        assert path.read_bytes() == whole


def test_values_beyond_half_precision_are_stored_in_float32(tmp_path):
    student, teacher = pair("retinanet")
    with torch.no_grad():
        for layer in teacher.backbone.fpn.layer_blocks.parameters():
            layer.mul_(1e7)
    batch = student.prepare(images((64, 64)), targets((64, 64)))
    result = TeacherCache(tmp_path, ["neck"], names(1)).output(teacher, batch, {"neck"})
    assert result.neck[8].isfinite().all()
    assert result.neck[8].abs().max() > 65504


def test_the_limit_is_observed_and_the_rest_is_computed(tmp_path):
    student, teacher = pair("retinanet")
    batch = student.prepare(images((64, 64), (64, 64)), targets((64, 64), (64, 64)))
    TeacherCache(tmp_path / "one", ["neck"], names(2)).output(teacher, batch, {"neck"})
    each = files(tmp_path / "one")[0].stat().st_size
    cache = TeacherCache(tmp_path / "two", ["neck"], names(2), limit=each + each // 2)
    cache.output(teacher, batch, {"neck"})
    assert len(files(tmp_path / "two")) == 1
    # Existing files count.
    again = TeacherCache(tmp_path / "two", ["neck"], names(2), limit=each + each // 2)
    assert again.left < each


def test_a_full_disk_stops_writing_but_not_the_run(tmp_path, monkeypatch):
    def no_space(path, content):
        raise OSError(28, "No space left on device")

    student, teacher = pair("retinanet")
    batch = student.prepare(images((64, 64), (64, 64)), targets((64, 64), (64, 64)))
    messages: list[str] = []
    cache = TeacherCache(tmp_path, ["neck"], names(2), notify=messages.append)
    monkeypatch.setattr(teacher_cache, "write_atomically", no_space)
    cache.output(teacher, batch, {"neck"})
    cache.output(teacher, batch, {"neck"})
    assert len(messages) == 1
    assert "No space left on device" in messages[0]
    assert not files(tmp_path)


@every_family
def test_the_estimated_size_is_that_of_the_files(family, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("defeat.data.demo", fromlist=["SPLITS"]).SPLITS, "train", 4)
    teacher = tiny_detector(family, seed=7).eval()
    dataset = open_dataset("demo", "train")
    student = tiny_detector(family).train()
    result = cache_size(student, teacher, ["neck"], [dataset], views=1)
    assert result.views == 4
    batch = student.prepare(*zip(*(dataset[index] for index in range(4)), strict=True))
    TeacherCache(tmp_path, ["neck"], names(4)).output(teacher, batch, {"neck"})
    data = sum(
        sum(level.numel() * level.element_size() for level in load_file(path).values()) for path in files(tmp_path)
    )
    assert data == result.bytes


@pytest.mark.parametrize("size", [None, 48])
def test_the_estimated_size_of_a_tapped_teacher_is_that_of_the_files(size, tmp_path):
    """Scenes of 128 pixels, which the student resizes to 64."""
    teacher = TappedTeacher(nn.Conv2d(3, 5, 4, stride=4), {4: ""}, size=size, size_divisor=16).eval()
    dataset, student = DemoDataset("train", training=2), tiny_detector("retinanet").train()
    result = cache_size(student, teacher, ["neck"], [dataset], views=1)
    batch = student.prepare(*zip(*(dataset[index] for index in range(2)), strict=True))
    TeacherCache(tmp_path, ["neck"], names(2)).output(teacher, batch, {"neck"})
    side = (size or 64) // 4
    assert result.bytes == 2 * 5 * side * side * 2
    assert result.bytes == sum(
        level.numel() * level.element_size() for path in files(tmp_path) for level in load_file(path).values()
    )


@pytest.mark.slow
@every_family
@pytest.mark.usefixtures("small_demo")
def test_a_run_with_a_cache_repeats_itself_and_resumes(family, tmp_path):
    teacher = save_teacher(tmp_path / "teacher", family)
    given = {"epochs": 3, "cache_teacher": str(tmp_path / "cache"), "method_options": HEADS}
    whole = tiny_run(tmp_path / "whole", family, teacher, **given)
    count = len(files(tmp_path / "cache"))
    assert count > 0
    again = tiny_run(tmp_path / "again", family, teacher, **given)
    assert weights(again.folder) == weights(whole.folder)
    assert len(files(tmp_path / "cache")) == count
    # It stays close to the run without a cache.
    without = tiny_run(tmp_path / "without", family, teacher, **{**given, "cache_teacher": None})
    first, other = lines(whole.folder)[0], lines(without.folder)[0]
    assert first["train/neck_background"] == pytest.approx(other["train/neck_background"], rel=0.05)
    assert tensors(without.folder).keys() == tensors(whole.folder).keys()


@pytest.mark.slow
@pytest.mark.usefixtures("small_demo")
def test_another_teacher_or_size_has_its_own_files(tmp_path):
    given = {"max_steps": 1, "flip": 0.0, "cache_teacher": str(tmp_path / "cache")}
    changes = {}, {"size": 96, "max_size": 128}, {"precision": "bf16-mixed"}, {"distill_precision": "bf16"}
    for number, change in enumerate(changes):
        teacher = save_teacher(tmp_path / f"teacher{number}", "retinanet")
        tiny_run(tmp_path / f"run{number}", "retinanet", teacher, **given, **change)
        assert len(list((tmp_path / "cache").iterdir())) == number + 1
    other = save_teacher(tmp_path / "other", "retinanet", neck_channels=32)
    tiny_run(tmp_path / "run", "retinanet", other, **given)
    assert len(list((tmp_path / "cache").iterdir())) == 5
    # The same teacher from another folder is the same teacher.
    shutil.copytree(other, tmp_path / "copy")
    tiny_run(tmp_path / "same", "retinanet", tmp_path / "copy", **given)
    assert len(list((tmp_path / "cache").iterdir())) == 5


@pytest.mark.usefixtures("small_demo")
def test_the_run_reports_the_size_of_the_cache_and_removes_incomplete_files(tmp_path):
    teacher = save_teacher(tmp_path / "teacher")
    given = {"max_steps": 1, "cache_teacher": str(tmp_path / "cache")}
    tiny_run(tmp_path / "one", teacher=teacher, **given)
    (folder,) = (tmp_path / "cache").iterdir()
    index = files(folder)[0].parent
    old, new = index / ".a-0.safetensors.1", index / ".b-0.safetensors.2"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    console = Console(record=True, file=StringIO(), width=300)
    engine.run(settings(tmp_path / "two", teacher=teacher, **given, cache_limit="1kB"), console)
    text = console.export_text()
    assert "cache of the teacher: " in text
    assert "--cache-limit has room for fewer" in text
    assert not old.exists()
    assert new.exists()  # it may belong to a running process


def test_a_cache_that_can_not_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("no folder")
    given = {"max_steps": 1, "cache_teacher": str(tmp_path / "file")}
    with pytest.raises(InputError, match=r"--cache-teacher .*file can't be written"):
        tiny_run(tmp_path / "run", teacher=save_teacher(tmp_path / "teacher"), **given)


@pytest.mark.parametrize(
    ("text", "count"), [("20GB", 20_000_000_000), ("1.5 tb", 1_500_000_000_000), ("4096", 4096), ("500MB", 500_000_000)]
)
def test_sizes_are_parsed(text, count):
    assert bytes_of(text, "cache_limit") == count


@pytest.mark.parametrize("text", ["", "much", "-1GB", "20GiB", "GB"])
def test_invalid_sizes_are_refused(text, tmp_path):
    with pytest.raises(InputError, match="--cache-limit"):
        settings(tmp_path, teacher=tmp_path, cache_teacher="cache", cache_limit=text)


def test_a_limit_needs_a_cache(tmp_path):
    with pytest.raises(InputError, match="give --cache-teacher"):
        settings(tmp_path, teacher=tmp_path, cache_limit="20GB")


def test_images_that_change_get_another_name(tmp_path):
    def identities() -> list[str]:
        builder = SplitBuilder(["cat"])
        for name in ("a.png", "b.png"):
            builder.add(tmp_path / name, name, (64, 64), [])
        dataset = builder.finish("data", "train", tmp_path)
        return [dataset.identity(index) for index in range(2)]

    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"pixels")
    before = identities()
    assert len(set(before)) == 2
    assert identities() == before
    (tmp_path / "b.png").write_bytes(b"other pixels")
    assert identities()[0] == before[0]
    assert identities()[1] != before[1]
    (tmp_path / "a.png").unlink()
    with pytest.raises(InputError, match=r"a\.png can't be read"):
        identities()


def test_drawn_scenes_have_unique_names():
    dataset, other = open_dataset("demo", "train"), open_dataset("demo", "val")
    assert len({dataset.identity(0), dataset.identity(1), other.identity(0)}) == 3
