"""`import defeat`: settings or objects, in a script, in a custom training loop, in a thread of a notebook."""

import inspect
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


def arguments(out, **changes):
    given = settings(out, **changes).to_dict()
    return given | {"resume": False}


def test_public_names_and_documentation_are_available():
    assert {"train", "distill", "Detector", "methods", "__version__"} <= set(dir(defeat))
    assert defeat.__version__[0].isdigit()
    assert defeat.methods.DeFeat.__name__ == "DeFeat"
    for name in dir(defeat):
        assert getattr(defeat, name) is not None
    assert "Number of passes over the training split" in defeat.train.__doc__
    assert "Run directory of the teacher" in defeat.distill.__doc__
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = defeat.trian


def test_no_public_name_disappears_or_is_added_unnoticed():
    listed = (Path(__file__).parent / "public_names.txt").read_text().split()
    there = [f"defeat.{name}" for name in dir(defeat)] + [f"defeat.methods.{name}" for name in defeat.methods.__all__]
    assert there == listed, "see public_names.txt; a name that goes is deprecated for a version first"


def test_the_example_distils_its_own_objects(example, tmp_path):
    run = example["main"](tmp_path)
    assert run.finished
    assert run.metrics["AP"] is not None
    written = results(run.folder)
    assert written["images"] == 4
    assert written["classes"] == NAMES
    assert (written["family"], written["backbone"], written["size"]) == ("retinanet", "test_resnet", 64)
    assert written["teacher_fingerprint"] == results(tmp_path / "teacher")["fingerprint"]
    assert "train/finest" in (run.folder / "metrics.jsonl").read_text()


def test_objects_and_settings_train_the_same_student(tmp_path):
    teacher = save_teacher(tmp_path / "teacher")
    by_settings = tiny_run(tmp_path / "settings", teacher=teacher, max_steps=3)
    given = arguments(tmp_path / "objects", teacher=teacher, max_steps=3)
    data = {"data": open_dataset("demo", "train"), "eval_data": open_dataset("demo", "val")}
    method = defeat.methods.DeFeat
    by_objects = defeat.distill(**given | data | {"teacher": defeat.load(teacher), "method": method})
    assert weights(by_objects.folder) == weights(by_settings.folder)
    assert results(by_objects.folder)["metrics"] == results(by_settings.folder)["metrics"]


def test_a_run_without_evaluation_has_no_metrics(example, tmp_path):
    student = tiny_detector("retinanet", classes=NAMES)
    given = {"data": example["Squares"](6, 0), "classes": NAMES, "student": student, "workers": 0, "epochs": 1}
    run = defeat.train(**given, out=str(tmp_path / "run"))
    assert run.finished
    assert run.metrics == {}
    assert run.evaluation is None
    assert results(run.folder)["split"] is None
    assert defeat.load(run.folder).info.classes == tuple(NAMES)


def test_a_method_works_in_a_custom_training_loop():
    student, teacher = (tiny_detector("retinanet", seed=seed, classes=CLASSES).train() for seed in (1, 2))
    method = defeat.methods.DeFeat(student.info, teacher.info)
    optimizer = torch.optim.SGD([*student.parameters(), *method.parameters()], lr=0.01)
    data = open_dataset("demo", "train", student.info.classes)
    before = next(student.backbone.parameters()).clone()
    images, targets = zip(*[data[index] for index in range(2)], strict=True)
    batch = student.prepare(images, targets)
    output = student.forward_train(batch)
    target = teacher.forward_teacher(teacher.adopt(batch))
    losses = output.losses | method(output, target, batch.targets, defeat.Progress(5, 10, 0, 1))
    assert "neck_object" in losses
    total_loss(losses).backward()
    optimizer.step()
    assert not torch.equal(before, next(student.backbone.parameters()))


def test_a_run_works_in_a_thread(tmp_path):
    done = []
    thread = threading.Thread(target=lambda: done.append(defeat.train(**arguments(tmp_path / "run", max_steps=2))))
    thread.start()
    thread.join(120)
    assert done
    assert done[0].finished


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch": 3}, "Unknown argument 'epoch'. Did you mean 'epochs'"),
        ({"data": 3}, "data is a int: give a path, a DetectionDataset"),
        ({"data": [(torch.zeros(3, 8, 8), {})]}, "does not name its classes"),
        ({"eval_data": "demo"}, "split of a folder is named by eval_split"),
        ({"student": tiny_detector("retinanet", classes=("cat",))}, "no class|class 'cat'"),
        ({"data": ()}, "does not name its classes"),
    ],
)
def test_an_invalid_argument_is_refused(changes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        defeat.train(**arguments(tmp_path / "run") | changes)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_bench_has_a_typed_signature_without_the_settings_of_a_cell():
    parameters = inspect.signature(defeat.bench).parameters
    assert {"data", "teacher", "out", "methods", "seeds", "jobs", "lr"} <= parameters.keys()
    assert not {"seed", "method", "resume", "expected"} & parameters.keys()
    assert parameters["seeds"].annotation is int
    assert all(f"    {name}: " in defeat.bench.__doc__ for name in parameters)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch": 3}, "Unknown argument 'epoch'. Did you mean 'epochs'"),
        ({"method": "fgfi"}, "Unknown argument 'method'. Did you mean 'methods'"),
        ({"teacher": tiny_detector("retinanet")}, "teacher must be a path or a name, not a RetinaNet"),
        ({"methods": [defeat.methods.DeFeat]}, r"methods is a text of names with commas.*METHODS\['mine'\] = Mine"),
    ],
)
def test_an_invalid_argument_of_bench_is_refused(changes, message, tmp_path):
    given = {"data": "demo", "teacher": "teacher", "out": str(tmp_path / "comparison")}
    with pytest.raises(InputError, match=message):
        defeat.bench(**given | changes)
    with pytest.raises(InputError, match="The argument teacher is missing"):
        defeat.bench(data="demo", out=str(tmp_path / "comparison"))
    assert not (tmp_path / "comparison").exists()


@pytest.mark.usefixtures("small_demo")
def test_a_class_of_a_method_gets_its_options_and_its_run_has_a_page(tmp_path):
    class Mine(defeat.methods.DeFeat):
        """A method that is not known by its name."""

    teacher = save_teacher(tmp_path / "teacher")
    given = {"teacher": teacher, "max_steps": 2, "eval_split": "val", "method_options": {"object_weight": 0.5}}
    named = defeat.distill(**arguments(tmp_path / "named", **given))
    own = arguments(tmp_path / "own", **given) | {"method": Mine}
    run = defeat.distill(**own)
    assert weights(run.folder) == weights(named.folder)
    defeat.compare(runs=[str(run.folder)], out=str(tmp_path / "report.html"))
    assert "Error types" in (tmp_path / "report.html").read_text()
    own["out"] = str(tmp_path / "other")
    with pytest.raises(InputError, match=r"can't be built with these method_options .*'objct_weight'"):
        defeat.distill(**own | {"method_options": {"objct_weight": 1.0}})
    student = tiny_detector("retinanet")
    with pytest.raises(InputError, match="this Method has its options"):
        defeat.distill(**own | {"method": defeat.methods.DeFeat(student.info, student.info)})


def test_a_method_for_another_pair_is_refused(tmp_path):
    other = tiny_detector("retinanet", neck_channels=8)
    method = defeat.methods.DeFeat(other.info, other.info)
    given = arguments(tmp_path / "run", teacher=save_teacher(tmp_path / "teacher")) | {"method": method}
    with pytest.raises(InputError, match="method was built for other detectors"):
        defeat.distill(**given)
    with pytest.raises(InputError, match="The argument teacher is missing"):
        defeat.distill(**arguments(tmp_path / "run"))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ([], "must be a dict with 'boxes' and 'labels', not a list"),
        ({"boxes": torch.zeros(1, 4), "labels": torch.tensor([0, 1])}, "1 boxes, but 2 labels"),
        ({"boxes": [[0, 0, 4, 4]], "labels": [2]}, r"label 2 is not in 0..1: labels count from 0"),
        ({"boxes": [[0, 0, 4, 4]], "labels": [0.5]}, r"label 0.5 is not in 0..1"),
        ({"boxes": [[0, 0, float("nan"), 4]], "labels": [0]}, "NaN or infinite"),
    ],
)
def test_invalid_annotations_are_refused(target, message):
    with pytest.raises(InputError, match=rf"list\[0\].*{message}"):
        ObjectDataset([(torch.zeros(3, 8, 8), target)], NAMES)


def test_a_list_becomes_a_data_set():
    image = torch.linspace(0, 1, 3 * 8 * 6).reshape(3, 8, 6)
    target = {"boxes": [[1, 2, 5, 7], [0, 0, 9, 9]], "labels": [1, 0], "iscrowd": [0, 1]}
    data = ObjectDataset([(image, target), (np.zeros((4, 5, 3), np.uint8), {"boxes": [], "labels": []})], NAMES)
    pixels, annotations = data[0]
    assert torch.equal(pixels, (image * 255).round().to(torch.uint8))
    assert annotations.boxes.tolist() == [[1, 2, 5, 7], [0, 0, 6, 8]]  # clipped to the image
    assert annotations.labels.tolist() == [1, 0]
    assert annotations.crowd.tolist() == [False, True]
    assert data.sizes == [(8, 6), (4, 5)]
    assert len(data[1][1].boxes) == 0
    with pytest.raises(InputError, match="data set that is a Python object"):
        data.identity(0)


def test_an_image_may_be_a_path_a_picture_an_array_or_a_tensor(tmp_path):
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
    assert all(torch.equal(detections.boxes, single.boxes) for detections in several)


@pytest.mark.parametrize(
    "image",
    [3, np.zeros((3, 8, 8), np.uint8), torch.zeros(8, 8, 3), torch.full((3, 8, 8), 200.0), torch.zeros(1, 8, 8)],
)
def test_an_invalid_image_is_refused(image):
    with pytest.raises(InputError, match=r"is not an image: give a path, a PIL image, an array \(H, W, 3\)"):
        tiny_detector("retinanet").predict([image])


class Handwritten(torch.nn.Module):
    """A network without any reference to this package."""

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


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("fcos", "ssdlite", "timm")]


@pytest.mark.parametrize("name", [*SLOW, "handwritten"])
def test_any_network_can_be_a_teacher_through_taps(name, tmp_path):
    teacher = tapped_teacher(name)
    given = arguments(tmp_path / "run", max_steps=2, weights="none")
    run = defeat.distill(**given | {"teacher": teacher, "allow_weak_teacher": True})
    assert run.finished
    line = (run.folder / "metrics.jsonl").read_text().splitlines()[0]
    assert '"train/neck_object"' in line
    assert results(run.folder)["teacher"] == "<defeat.detector.taps.TappedTeacher>"
    assert results(run.folder)["inherited"]["parts"] == []
    with pytest.raises(InputError, match="not a detector of this library"):
        defeat.distill(
            **arguments(tmp_path / "other") | {"teacher": teacher, "inherit": "neck", "allow_weak_teacher": True}
        )


def test_the_demo_data_set_has_its_classes():
    assert open_dataset("demo", "train").classes == CLASSES
