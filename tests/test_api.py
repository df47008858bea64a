"""`import defeat`: words or objects, in a script, in a loop of one's own, in a notebook's thread."""

import runpy
import threading
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image

import defeat
import defeat.methods
from defeat.data import open_dataset
from defeat.data.images import rgb_tensor
from defeat.data.objects import ObjectDataset
from defeat.engine.step import total_loss
from defeat.errors import InputError
from tests.detector.tiny import tiny_detector
from tests.engine.tiny_runs import CLASSES, results, save_teacher, settings, tiny_run, weights

EXAMPLE = Path(__file__).parents[1] / "examples" / "own_objects.py"
NAMES = ["bright", "dark"]


@pytest.fixture(scope="module")
def example():
    return runpy.run_path(str(EXAMPLE))


def words(out, **changes):
    given = settings(out, **changes).to_dict()
    return given | {"resume": False}


def test_what_there_is_can_be_seen():
    assert {"train", "distill", "Detector", "methods", "__version__"} <= set(dir(defeat))
    assert defeat.__version__[0].isdigit()
    assert defeat.methods.DeFeat.__name__ == "DeFeat"
    for name in dir(defeat):
        assert getattr(defeat, name) is not None
    assert "Passes over the training split" in defeat.train.__doc__
    assert "Run directory of the teacher" in defeat.distill.__doc__
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = defeat.trian


def test_the_example_distils_objects_of_its_own(example, tmp_path):
    run = example["main"](tmp_path)
    assert run.finished
    assert run.metrics["AP"] is not None
    written = results(run.folder)
    assert written["images"] == 4
    assert written["classes"] == NAMES
    assert (written["family"], written["backbone"], written["size"]) == ("retinanet", "test_resnet", 64)
    assert written["teacher_fingerprint"] == results(tmp_path / "teacher")["fingerprint"]
    assert "train/finest" in (run.folder / "metrics.jsonl").read_text()


def test_objects_train_what_their_words_train(tmp_path):
    teacher = save_teacher(tmp_path / "teacher")
    by_words = tiny_run(tmp_path / "words", teacher=teacher, max_steps=3)
    given = words(tmp_path / "objects", teacher=teacher, max_steps=3)
    data = {"data": open_dataset("demo", "train"), "eval_data": open_dataset("demo", "val")}
    method = defeat.methods.DeFeat
    by_objects = defeat.distill(**given | data | {"teacher": defeat.load(teacher), "method": method})
    assert weights(by_objects.folder) == weights(by_words.folder)
    assert results(by_objects.folder)["metrics"] == results(by_words.folder)["metrics"]


def test_a_run_without_evaluation_has_no_figures(example, tmp_path):
    student = tiny_detector("retinanet", classes=NAMES)
    given = {"data": example["Squares"](6, 0), "classes": NAMES, "student": student, "workers": 0, "epochs": 1}
    run = defeat.train(**given, out=str(tmp_path / "run"))
    assert run.finished
    assert run.metrics == {}
    assert run.evaluation is None
    assert results(run.folder)["split"] is None
    assert defeat.load(run.folder).info.classes == tuple(NAMES)


def test_a_method_works_in_a_loop_of_ones_own():
    student, teacher = (tiny_detector("retinanet", seed=seed, classes=CLASSES).train() for seed in (1, 2))
    method = defeat.methods.DeFeat(student.info, teacher.info)
    optimizer = torch.optim.SGD([*student.parameters(), *method.parameters()], lr=0.01)
    data = open_dataset("demo", "train", student.info.classes)
    before = next(student.backbone.parameters()).clone()
    images, targets = zip(*[data[index] for index in range(2)], strict=True)
    batch = student.prepare(images, targets)
    output = student.forward_train(batch)
    learned = teacher.forward_teacher(teacher.adopt(batch))
    losses = output.losses | method(output, learned, batch.targets, defeat.Progress(5, 10, 0, 1))
    assert "neck_object" in losses
    total_loss(losses).backward()
    optimizer.step()
    assert not torch.equal(before, next(student.backbone.parameters()))


def test_a_run_works_in_a_thread(tmp_path):
    done = []
    thread = threading.Thread(target=lambda: done.append(defeat.train(**words(tmp_path / "run", max_steps=2))))
    thread.start()
    thread.join(120)
    assert done
    assert done[0].finished


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"epoch": 3}, "Unknown argument 'epoch'. Did you mean 'epochs'"),
        ({"data": 3}, "data is a int: give a path, a DetectionDataset"),
        ({"data": [(torch.zeros(3, 8, 8), {})]}, "does not name its classes"),
        ({"eval_data": "demo"}, "split of a folder is named by eval_split"),
        ({"student": tiny_detector("retinanet", classes=("cat",))}, "no class|class 'cat'"),
        ({"data": ()}, "does not name its classes"),
    ],
)
def test_what_is_no_argument_is_said_in_a_sentence(arguments, says, tmp_path):
    with pytest.raises(InputError, match=says):
        defeat.train(**words(tmp_path / "run") | arguments)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_method_for_another_pair_is_refused(tmp_path):
    other = tiny_detector("retinanet", neck_channels=8)
    method = defeat.methods.DeFeat(other.info, other.info)
    given = words(tmp_path / "run", teacher=save_teacher(tmp_path / "teacher")) | {"method": method}
    with pytest.raises(InputError, match="method was built for other detectors"):
        defeat.distill(**given)
    with pytest.raises(InputError, match="The argument teacher is missing"):
        defeat.distill(**words(tmp_path / "run"))


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ([], "must be a dict with 'boxes' and 'labels', not a list"),
        ({"boxes": torch.zeros(1, 4), "labels": torch.tensor([0, 1])}, "1 boxes, but 2 labels"),
        ({"boxes": [[0, 0, 4, 4]], "labels": [2]}, r"label 2 is not in 0..1: labels count from 0"),
        ({"boxes": [[0, 0, 4, 4]], "labels": [0.5]}, r"label 0.5 is not in 0..1"),
        ({"boxes": [[0, 0, float("nan"), 4]], "labels": [0]}, "NaN or infinite"),
    ],
)
def test_annotations_that_are_not_of_the_form_are_refused(target, says):
    with pytest.raises(InputError, match=rf"list\[0\].*{says}"):
        ObjectDataset([(torch.zeros(3, 8, 8), target)], NAMES)


def test_an_object_becomes_a_data_set_with_the_right_numbers():
    image = torch.linspace(0, 1, 3 * 8 * 6).reshape(3, 8, 6)
    target = {"boxes": [[1, 2, 5, 7], [0, 0, 9, 9]], "labels": [1, 0], "iscrowd": [0, 1]}
    data = ObjectDataset([(image, target), (np.zeros((4, 5, 3), np.uint8), {"boxes": [], "labels": []})], NAMES)
    pixels, found = data[0]
    assert torch.equal(pixels, (image * 255).round().to(torch.uint8))
    assert found.boxes.tolist() == [[1, 2, 5, 7], [0, 0, 6, 8]]  # clipped to the image
    assert found.labels.tolist() == [1, 0]
    assert found.crowd.tolist() == [False, True]
    assert data.sizes == [(8, 6), (4, 5)]
    assert len(data[1][1].boxes) == 0
    with pytest.raises(InputError, match="leave it out for a data set that is an object"):
        data.identity(0)


def test_an_image_may_have_any_of_the_usual_forms(tmp_path):
    pixels = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    array = pixels.permute(1, 2, 0).numpy()
    picture = Image.fromarray(array)
    picture.save(tmp_path / "picture.png")
    forms = [tmp_path / "picture.png", str(tmp_path / "picture.png"), picture, array, pixels]
    for form in forms:
        assert torch.equal(rgb_tensor(form), pixels)
    assert torch.allclose(rgb_tensor(pixels / 255) * 255, pixels.float(), atol=1e-4)
    detector = tiny_detector("retinanet")
    (single,), several = detector.predict(picture), detector.predict(forms)
    assert len(several) == len(forms)
    assert all(torch.equal(one.boxes, single.boxes) for one in several)


@pytest.mark.parametrize(
    "image",
    [3, np.zeros((3, 8, 8), np.uint8), torch.zeros(8, 8, 3), torch.full((3, 8, 8), 200.0), torch.zeros(1, 8, 8)],
)
def test_what_is_no_image_is_said_in_a_sentence(image):
    with pytest.raises(InputError, match=r"is not an image: give a path, a PIL image, an array \(H, W, 3\)"):
        tiny_detector("retinanet").predict([image])


class Handwritten(torch.nn.Module):
    """Two maps of a network that knows nothing of this package."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 4, 1), torch.nn.ReLU(inplace=True))
        self.deep = torch.nn.Conv2d(8, 16, 3, 2, 1)
        self.deeper = torch.nn.Conv2d(16, 16, 3, 2, 1)

    def forward(self, images):
        return self.deeper(self.deep(self.stem(images)).relu_()).mean(dim=(2, 3))


def tapped_teacher(name):
    torch.manual_seed(0)
    models = torchvision.models.detection
    if name == "fcos":
        fcos = models.fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=7)
        taps = {8: "fpn[0]", 16: "fpn[1]"}
        return defeat.TappedTeacher(fcos.backbone, taps, classes=CLASSES, predict=fcos, first_label=1)
    if name == "ssdlite":
        lite = models.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
        return defeat.TappedTeacher(lite.backbone, {16: "features.0", 32: "features.1"})
    if name == "timm":
        body = timm.create_model("test_resnet", pretrained=False, features_only=True)
        return defeat.TappedTeacher(body, {8: "[2]", 16: "[3]"})
    return defeat.TappedTeacher(Handwritten(), {8: "deep", 16: "deeper"})


@pytest.mark.parametrize("name", ["fcos", "ssdlite", "timm", "handwritten"])
def test_any_network_teaches_through_taps(name, tmp_path):
    teacher = tapped_teacher(name)
    given = words(tmp_path / "run", max_steps=2, weights="none")
    run = defeat.distill(**given | {"teacher": teacher, "allow_weak_teacher": True})
    assert run.finished
    line = (run.folder / "metrics.jsonl").read_text().splitlines()[0]
    assert '"train/neck_object"' in line
    assert results(run.folder)["teacher"] == "<defeat.detector.taps.TappedTeacher>"
    assert results(run.folder)["inherited"]["parts"] == []
    with pytest.raises(InputError, match="a network of another kind"):
        defeat.distill(
            **words(tmp_path / "other") | {"teacher": teacher, "inherit": "neck", "allow_weak_teacher": True}
        )


def test_no_class_is_taken_from_nowhere():
    assert open_dataset("demo", "train").classes == CLASSES
