"""Runs that learn from images without annotations as well."""

from collections import Counter

import pytest
import torch
from PIL import Image
from rich.console import Console

from defeat.assembly import unlabelled
from defeat.assembly.plan import make_plan
from defeat.data import open_dataset
from defeat.data.sampling import AspectRatioBatchSampler
from defeat.data.unlabelled import UnlabelledImages, taught_dataset
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
    """Untrained teachers are certain of nothing; what little they see counts here."""
    monkeypatch.setattr(unlabelled, "REGION_SCORE", 0.06)


def test_a_folder_is_read_with_the_folders_in_it(folder):
    found = UnlabelledImages(folder)
    assert [path.name for path in found.paths] == ["0.png", "1.png", "2.png", "3.png", "4.png", "5.png"]
    assert found[5][:, 0, 0].tolist() == [200, 200, 200]
    with pytest.raises(InputError, match="--unlabelled takes a folder"):
        UnlabelledImages(folder / "nowhere")
    (folder / "none").mkdir()
    with pytest.raises(InputError, match="holds no image"):
        UnlabelledImages(folder / "none")


def test_detections_become_targets_of_which_only_certain_ones_are_learned(folder):
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    some = Detections(
        torch.tensor([[1.0, 2.0, 30.0, 40.0], [5.0, 5.0, 9.0, 9.0]]), torch.tensor([0.9, 0.4]), torch.tensor([2, 0])
    )
    found = taught_dataset(UnlabelledImages(folder), ("a", "b", "c"), [nothing, some], certain=0.8)
    assert len(found) == 2
    image, target = found[1]
    assert image.shape == (3, *target.size)
    assert not target.annotated
    assert target.labels.tolist() == [2, 0]
    assert target.difficult.tolist() == [False, True]
    assert target.trainable().labels.tolist() == [2]
    assert len(found[0][1].labels) == 0
    without = taught_dataset(UnlabelledImages(folder), ("a", "b", "c"), [some], certain=None)
    assert without[0][1].difficult.tolist() == [True, True]


def sampler(**options):
    # Four wide and three tall images; five wide and one tall without annotations, numbered from 7 on.
    sizes, others = [(4, 6)] * 4 + [(6, 4)] * 3, [(4, 6)] * 5 + [(6, 4)]
    given = {"batch_size": 2, "seed": 3, "others": others, "others_per_batch": 2}
    return AspectRatioBatchSampler(sizes, **given | options)


def test_each_batch_gets_others_of_its_kind():
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


def test_others_follow_from_seed_epoch_and_place_alone():
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
def test_a_run_sees_images_without_annotations_in_every_batch(family, pseudo, folder, seeing, tmp_path, monkeypatch):
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
    alone = tiny_run(tmp_path / "alone", family, teacher, max_steps=3).folder
    assert weights(run) != weights(alone)


def test_a_ratio_of_zero_leaves_the_run_as_it_was(folder, tmp_path):
    teacher = save_teacher(tmp_path / "teacher")
    run = tiny_run(tmp_path / "run", teacher=teacher, unlabelled=str(folder), unlabelled_ratio=0.0, max_steps=2)
    assert weights(run.folder) == weights(tiny_run(tmp_path / "alone", teacher=teacher, max_steps=2).folder)


def test_the_teacher_looks_once_and_a_resumed_run_goes_on(folder, seeing, tmp_path, monkeypatch):
    teacher = save_teacher(tmp_path / "teacher", "faster_rcnn")
    options = {"family": "faster_rcnn", "teacher": teacher, "unlabelled": str(folder), "epochs": 2}
    whole = tiny_run(tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        tiny_run(tmp_path / "stopped", **options)
    looked = []
    detect = unlabelled._detect
    monkeypatch.setattr(unlabelled, "_detect", lambda *arguments: looked.append(1) or detect(*arguments))
    resumed = tiny_run(tmp_path / "stopped", resume=True, **options)
    assert weights(resumed.folder) == weights(whole.folder)
    assert looked == []
    # Another image in the folder, and it looks again: these are other images to learn from.
    (folder / "more" / "5.png").rename(folder / "more" / "6.png")
    with pytest.raises(InputError, match="can't be resumed with other training images"):
        tiny_run(tmp_path / "stopped", resume=True, **options)
    assert looked == [1]


def test_a_plan_looks_at_some_of_the_images_and_writes_nothing_of_them(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("defeat.assembly.plan.UNLABELLED", 2)
    given = settings(tmp_path / "run", "retinanet", save_teacher(tmp_path / "teacher"), unlabelled=str(folder))
    made = make_plan(given, Console(quiet=True))
    assert (made.data[2].split, made.data[2].images) == ("unlabelled (the teacher looked at 2 of 6)", 6)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["plan.json"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"pseudo_labels": 0.5}, "--pseudo-labels needs images without annotations"),
        ({"unlabelled": "x", "pseudo_labels": 1.5}, "--pseudo-labels must be a score above 0"),
        ({"unlabelled": "x", "unlabelled_ratio": -1.0}, "--unlabelled-ratio must be 0 or more"),
    ],
)
def test_settings_that_cannot_work_are_refused(change, says, tmp_path):
    with pytest.raises(InputError, match=says):
        settings(tmp_path, teacher=tmp_path, **change)
