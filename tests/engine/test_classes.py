"""Runs and evaluations whose teacher or detector has other class names."""

import pytest
import torch
import yaml

from defeat.assembly.settings import read_class_map
from defeat.data import open_dataset
from defeat.errors import InputError
from defeat.inference import evaluate as inference
from defeat.inference.evaluate import evaluate
from defeat.types import Detections
from tests.distillation.made_up import info
from tests.engine.tiny_runs import CLASSES, lines, save_teacher, tiny_run, weights

pytestmark = pytest.mark.usefixtures("small_demo")
HEADS = {"positive_weight": 1.0, "negative_weight": 1.0}
GERMAN = ("kreuz", "scheibe", "ring", "quadrat", "stern", "dreieck")
NAMES = dict(zip(GERMAN, CLASSES, strict=True))


def written(path, content):
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_a_teacher_with_renamed_classes_gives_the_same_student(tmp_path):
    options = {"max_steps": 3, "method_options": HEADS}
    same = tiny_run(tmp_path / "same", teacher=save_teacher(tmp_path / "a"), **options).folder
    german = save_teacher(tmp_path / "b", classes=GERMAN)
    file = written(tmp_path / "names.yaml", NAMES)
    renamed = tiny_run(tmp_path / "renamed", teacher=german, class_map=file, **options).folder
    assert weights(renamed) == weights(same)
    # The names themselves are kept: a repeat does not need the file.
    config = yaml.safe_load((renamed / "config.yaml").read_text())
    assert config["class_map"] == NAMES | {"ring": "ring"}


def test_a_teacher_with_other_classes_may_still_be_used_for_feature_maps(tmp_path):
    foreign = save_teacher(tmp_path / "teacher", classes=("ship", "plane"))
    with pytest.raises(InputError, match="none of the student's classes"):
        tiny_run(tmp_path / "refused", teacher=foreign, allow_weak_teacher=False, max_steps=2)
    folder = tiny_run(tmp_path / "run", teacher=foreign, max_steps=2).folder
    assert all(line["train/neck_object"] > 0 for line in lines(folder) if "train/loss" in line)
    with pytest.raises(InputError, match="can't be compared"):
        tiny_run(tmp_path / "heads", teacher=foreign, method_options=HEADS)
    assert not (tmp_path / "heads").exists()


@pytest.mark.parametrize("content", ["[a, b]", "a: [b]", "a: {b: c}", "a: b: c", "1"])
def test_invalid_class_maps_are_refused_with_an_example(content, tmp_path):
    file = tmp_path / "names.yaml"
    file.write_text(content)
    with pytest.raises(InputError, match="motorcycle: motorbike"):
        read_class_map(str(file))
    with pytest.raises(InputError, match=r"nowhere\.yaml can't be read"):
        read_class_map(str(tmp_path / "nowhere.yaml"))


def test_a_class_map_may_be_given_on_the_command_line():
    assert read_class_map("{motorcycle: motorbike, person: ~}") == {"motorcycle": "motorbike", "person": None}


class Knowing(torch.nn.Module):
    """Detects all objects of the demo's images, with German class names and another order of classes."""

    def __init__(self):
        super().__init__()
        self.info = info({8: 1}, classes=("nichts", *GERMAN))
        self.scenes = open_dataset("demo", "val")

    def predict(self, images):
        result = []
        for image in images:
            target = next(target for scene, target in self.scenes if torch.equal(scene, image))
            result.append(Detections(target.boxes, torch.ones(len(target.labels)), target.labels + 1))
        return result


def test_a_detector_is_evaluated_on_the_classes_that_the_data_share(monkeypatch):
    monkeypatch.setattr(inference, "load", lambda _: Knowing())
    arguments = {"data": "demo", "split": "val", "workers": 0, "device": "cpu"}
    with pytest.raises(InputError, match="Unknown class 'nichts'"):
        evaluate("knowing", **arguments)
    names = "{kreuz: cross, scheibe: disc, stern: star}"  # a ring is a ring in both languages
    result = evaluate("knowing", class_map=names, **arguments)
    assert set(result.per_class) == {"cross", "disc", "ring", "star"}
    assert result.metrics["AP"] == pytest.approx(100)
    crossed = evaluate("knowing", class_map="{kreuz: disc, scheibe: cross, ring: ~}", **arguments)
    assert crossed.metrics["AP"] < 50
    with pytest.raises(InputError, match="has none of the classes of the data"):
        evaluate("knowing", class_map="{ring: ~}", **arguments)
