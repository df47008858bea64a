"""Runs with augmentations: repeated, resumed, refused with a cache, and with equal images for teacher and student."""

import pytest
import torch
import yaml
from rich.console import Console

from defeat.assembly.assemble import assemble
from defeat.cli import main
from defeat.data.transforms import HorizontalFlip
from defeat.errors import InputError
from tests.data.folders import write_image
from tests.detector.tiny import FAMILIES_IN_RUNS as FAMILIES
from tests.engine.test_resume import stop_after
from tests.engine.tiny_runs import save_teacher, settings, tiny_run, weights

pytestmark = pytest.mark.usefixtures("small_demo")
EVERYTHING = "strong,multi_scale"


def test_the_default_is_the_flip(tmp_path):
    assert settings(tmp_path).augment == "flip"
    assert settings(tmp_path).augmentation == HorizontalFlip(0.5)
    assert settings(tmp_path, flip=0.2).augmentation == HorizontalFlip(0.2)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_sees_the_same_images(workers, tmp_path, monkeypatch):
    teacher = save_teacher(tmp_path / "teacher")
    options = {"epochs": 2, "augment": EVERYTHING, "workers": workers}
    whole = tiny_run(tmp_path / "whole", teacher=teacher, **options)
    with monkeypatch.context() as patch:
        stop_after(patch, 6)  # in the middle of the second epoch
        assert not tiny_run(tmp_path / "stopped", teacher=teacher, **options).finished
    resumed = tiny_run(tmp_path / "stopped", teacher=teacher, resume=True, **options)
    assert weights(resumed.folder) == weights(whole.folder)
    plain = tiny_run(tmp_path / "plain", teacher=teacher, **options | {"augment": "flip"})
    assert weights(plain.folder) != weights(whole.folder)


def test_a_run_from_before_the_setting_resumes_and_others_are_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        folder = tiny_run(tmp_path / "run").folder
    config = yaml.safe_load((folder / "config.yaml").read_text())
    del config["augment"]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(InputError, match="augment was 'flip' and is 'strong'"):
        tiny_run(tmp_path / "run", resume=True, augment="strong")
    resumed = tiny_run(tmp_path / "run", resume=True)
    assert weights(resumed.folder) == weights(tiny_run(tmp_path / "whole").folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_teacher_and_student_see_the_very_same_pixels(family, tmp_path):
    given = settings(tmp_path / "run", family, save_teacher(tmp_path / "teacher", family), augment=EVERYTHING)
    experiment = assemble(given, Console(quiet=True)).experiment
    scales = set()
    for images, targets in experiment.loader():
        batch = experiment.student.prepare(images, targets)
        adopted = experiment.distillation.teacher.adopt(batch)
        assert adopted is batch
        assert adopted.scale == 1
        scales |= {target.scale for target in targets}
    assert len(scales) > 4


def test_a_teacher_of_another_size_teaches_with_every_augmentation(tmp_path):
    teacher = save_teacher(tmp_path / "teacher", size=96, max_size=160)
    assert tiny_run(tmp_path / "run", teacher=teacher, augment=EVERYTHING, max_steps=2).finished


def test_a_cache_refuses_augmentations_that_never_repeat_a_view(tmp_path):
    for augment, parts in {"standard": "scale_jitter, photometric", "flip,multi_scale": "multi_scale"}.items():
        with pytest.raises(InputError) as caught:
            settings(tmp_path / "run", teacher=tmp_path, augment=augment, cache_teacher=str(tmp_path / "cache"))
        sentence = str(caught.value)
        assert f"--augment {augment}, which never" in sentence
        assert f"({parts})" in sentence
        assert "give --augment flip, or no --cache-teacher" in sentence
    settings(tmp_path / "run", teacher=tmp_path, augment="none", cache_teacher=str(tmp_path / "cache"))


def test_augment_none_equals_a_flip_probability_of_zero(tmp_path):
    none = tiny_run(tmp_path / "none", augment="none", max_steps=2)
    unflipped = tiny_run(tmp_path / "unflipped", flip=0.0, max_steps=2)
    assert weights(none.folder) == weights(unflipped.folder)
    content = yaml.safe_load((none.folder / "config.yaml").read_text())
    assert content["augment"] == "none"


def test_images_without_annotations_are_augmented_alike(tmp_path):
    (tmp_path / "more").mkdir()
    for number in range(4):
        write_image(tmp_path / "more" / f"{number}.png", 90, 70)
    given = settings(
        tmp_path / "run",
        teacher=save_teacher(tmp_path / "teacher"),
        augment="flip,large_scale_jitter",
        unlabelled=str(tmp_path / "more"),
    )
    experiment = assemble(given, Console(quiet=True)).experiment
    assert experiment.distillation.unlabelled is not None
    drawn = [
        (target.size, target.scale) for _, targets in experiment.loader() for target in targets if not target.annotated
    ]
    assert len(drawn) == 8  # two in each of four batches: each image twice, as this epoch shows it
    assert len({*drawn}) == 4


def test_the_command_line_names_the_nearest(tmp_path, capsys):
    arguments = ["train", "--data", "demo", "--out", str(tmp_path / "run"), "--augment", "flip,iou-crop"]
    assert main(arguments) == 2
    assert "Unknown augmentation 'iou-crop'. Did you mean 'iou_crop'?" in capsys.readouterr().err


def test_the_size_of_a_batch_is_within_the_range_of_multi_scale(tmp_path):
    given = settings(tmp_path / "run", augment="multi_scale", size=64, max_size=96)
    experiment = assemble(given, Console(quiet=True)).experiment
    heights = []
    for epoch in range(4):
        loader = experiment.loader()
        loader.batch_sampler.set_epoch(epoch)
        for images, targets in loader:
            batch = experiment.student.prepare(images, targets)
            heights += [min(size) for size in batch.sizes]
            assert torch.tensor(batch.sizes).max() <= 96
    assert min(heights) < 60 < 68 < max(heights) <= 77
