"""Runs that also train on images without annotations."""

from collections import Counter

import pytest
import torch
from PIL import Image
from rich.console import Console

from defeat.assembly import unlabelled
from defeat.assembly.plan import make_plan
from defeat.data import open_dataset
from defeat.data.sampling import AspectRatioBatchSampler
from defeat.data.unlabelled import UnlabelledImages, pseudo_labelled_dataset
from defeat.engine.module import DetectionModule
from defeat.errors import InputError
from defeat.types import Detections
from tests.engine.test_resume import stop_after
from tests.engine.tiny_runs import lines, save_teacher, settings, tiny_run, weights

pytestmark = pytest.mark.usefixtures("small_demo")


@pytest.fixture
def folder(tmp_path):
    """Six scenes without their annotations, one of them in a folder of its own."""
    scenes = open_dataset("demo", "test")
    path = tmp_path / "images"
    (path / "more").mkdir(parents=True)
    for number in range(6):
        image = scenes[number % len(scenes)][0].clone()
        image[:, :4, :4] = 40 * number
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path / ("more" if number == 5 else "") / f"{number}.png")
    return path


@pytest.fixture
def seeing(monkeypatch):
    """Lower the score threshold for untrained teachers."""
    monkeypatch.setattr(unlabelled, "REGION_SCORE", 0.06)


def test_a_folder_is_read_with_the_folders_in_it(folder):
    result = UnlabelledImages(folder)
    assert [path.name for path in result.paths] == ["0.png", "1.png", "2.png", "3.png", "4.png", "5.png"]
    assert result[5][:, 0, 0].tolist() == [200, 200, 200]
    with pytest.raises(InputError, match="--unlabelled expects a folder"):
        UnlabelledImages(folder / "nowhere")
    (folder / "none").mkdir()
    with pytest.raises(InputError, match="contains no image"):
        UnlabelledImages(folder / "none")


def test_only_certain_detections_become_trainable_targets(folder):
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    some = Detections(
        torch.tensor([[1.0, 2.0, 30.0, 40.0], [5.0, 5.0, 9.0, 9.0]]), torch.tensor([0.9, 0.4]), torch.tensor([2, 0])
    )
    result = pseudo_labelled_dataset(UnlabelledImages(folder), ("a", "b", "c"), [nothing, some], min_score=0.8)
    assert len(result) == 2
    image, target = result[1]
    assert image.shape == (3, *target.size)
    assert not target.annotated
    assert target.labels.tolist() == [2, 0]
    assert target.difficult.tolist() == [False, True]
    assert target.trainable().labels.tolist() == [2]
    assert len(result[0][1].labels) == 0
    without = pseudo_labelled_dataset(UnlabelledImages(folder), ("a", "b", "c"), [some], min_score=None)
    assert without[0][1].difficult.tolist() == [True, True]


def sampler(**options):
    # Four wide and three tall images; five wide and one tall without annotations, numbered from 7 on.
    sizes, others = [(4, 6)] * 4 + [(6, 4)] * 3, [(4, 6)] * 5 + [(6, 4)]
    given = {"batch_size": 2, "seed": 3, "others": others, "others_per_batch": 2}
    return AspectRatioBatchSampler(sizes, **given | options)


def test_each_batch_gets_unlabelled_images_of_its_aspect_ratio():
    batches = list(sampler())
    assert len(batches) == 4
    for batch in batches:
        own, others = [index for index, _ in batch[:2]], [index for index, _ in batch[2:]]
        assert all(index < 7 for index in own)
        # Of the tall ones there is only one.
        assert others == [12] if own[0] >= 4 else (len(set(others)) == 2 and set(others) <= set(range(7, 12)))
    wide = Counter(index for batch in batches for index, _ in batch[2:] if index != 12)
    assert set(wide.values()) == {1}
    assert [batch[:2] for batch in batches] == list(sampler(others=(), others_per_batch=2))


def test_unlabelled_images_depend_only_on_seed_epoch_and_batch():
    first = sampler()
    again = list(first)
    assert list(first) == again
    first.set_epoch(1)
    second = list(first)
    assert [batch[2:] for batch in second] != [[(index, 1) for index, _ in batch[2:]] for batch in again]
    first.start_batch = 2
    assert list(first) == second[2:]
    ranks = [list(sampler(rank=rank, world_size=2)) for rank in (0, 1)]
    assert [batch for pair in zip(*ranks, strict=True) for batch in pair] == again


@pytest.mark.slow
@pytest.mark.parametrize("family", ["faster_rcnn", "retinanet"])
@pytest.mark.parametrize("pseudo", [None, 0.1])
def test_every_batch_contains_images_without_annotations(family, pseudo, folder, seeing, tmp_path, monkeypatch):
    teacher = save_teacher(tmp_path / "teacher", family)
    seen = []
    original = DetectionModule.training_step

    def watched(self, batch, index):
        seen.append([target.annotated for target in batch[1]])
        return original(self, batch, index)

    monkeypatch.setattr(DetectionModule, "training_step", watched)
    options = {"unlabelled": str(folder), "unlabelled_ratio": 1.5, "pseudo_labels": pseudo, "max_steps": 3}
    run = tiny_run(tmp_path / "run", family, teacher, **options).folder
    assert seen == [[True, True, False, False, False]] * 3
    assert all(line["train/neck_object"] > 0 for line in lines(run) if "train/loss" in line)
    baseline = tiny_run(tmp_path / "baseline", family, teacher, max_steps=3).folder
    assert weights(run) != weights(baseline)


def test_a_ratio_of_zero_changes_nothing(folder, tmp_path):
    teacher = save_teacher(tmp_path / "teacher")
    run = tiny_run(tmp_path / "run", teacher=teacher, unlabelled=str(folder), unlabelled_ratio=0.0, max_steps=2)
    assert weights(run.folder) == weights(tiny_run(tmp_path / "alone", teacher=teacher, max_steps=2).folder)


@pytest.mark.slow
def test_the_teacher_detects_once_and_a_resumed_run_does_not_repeat_it(folder, seeing, tmp_path, monkeypatch):
    teacher = save_teacher(tmp_path / "teacher", "faster_rcnn")
    options = {"family": "faster_rcnn", "teacher": teacher, "unlabelled": str(folder), "epochs": 2}
    whole = tiny_run(tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        tiny_run(tmp_path / "stopped", **options)
    looks = []
    detect = unlabelled._detect
    monkeypatch.setattr(unlabelled, "_detect", lambda *arguments: looks.append(1) or detect(*arguments))
    resumed = tiny_run(tmp_path / "stopped", resume=True, **options)
    assert weights(resumed.folder) == weights(whole.folder)
    assert looks == []
    # Another image in the folder, and it looks again: these are other images to learn from.
    (folder / "more" / "5.png").rename(folder / "more" / "6.png")
    with pytest.raises(InputError, match="can't be resumed with other training images"):
        tiny_run(tmp_path / "stopped", resume=True, **options)
    assert looks == [1]


def test_a_plan_uses_some_of_the_images_and_writes_only_the_plan(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("defeat.assembly.plan.UNLABELLED", 2)
    given = settings(tmp_path / "run", "retinanet", save_teacher(tmp_path / "teacher"), unlabelled=str(folder))
    made = make_plan(given, Console(quiet=True))
    assert (made.data[2].split, made.data[2].images) == ("unlabelled (the teacher was run on 2 of 6)", 6)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["plan.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pseudo_labels": 0.5}, "--pseudo-labels needs images without annotations"),
        ({"unlabelled": "x", "pseudo_labels": 1.5}, "--pseudo-labels must be a score above 0"),
        ({"unlabelled": "x", "unlabelled_ratio": -1.0}, "--unlabelled-ratio must be 0 or more"),
    ],
)
def test_settings_that_cannot_work_are_refused(change, message, tmp_path):
    with pytest.raises(InputError, match=message):
        settings(tmp_path, teacher=tmp_path, **change)
