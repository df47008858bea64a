"""Runs whose teacher only gives boxes: they are learned as pseudo-labels of images without annotations."""

import json
from io import StringIO

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import defeat
from defeat.assembly.assemble import assemble
from defeat.assembly.box_teachers import for_box_teacher
from defeat.assembly.objects import Objects
from defeat.assembly.plan import make_plan
from defeat.assembly.run import run
from defeat.cli import main
from defeat.data import open_dataset
from defeat.data.augmentations import training_augmentation
from defeat.data.loader import TrainingView
from defeat.distillation.methods.none import NoDistillation
from defeat.engine.module import DetectionModule
from defeat.errors import InputError
from defeat.report.html import recipe_card
from defeat.report.plan import print_plan
from defeat.report.runs import read_run
from defeat.report.verdict import roles, verdicts
from defeat.types import Detections
from tests.data.folders import coco_content
from tests.detector.test_onnx_boxes import save
from tests.detector.tiny import BACKBONE, tiny_options
from tests.engine.test_resume import stop_after
from tests.engine.tiny_runs import CLASSES, lines, results, save_teacher, settings, tiny_run, weights

pytestmark = pytest.mark.usefixtures("small_demo")
QUIET = Console(quiet=True)
IMAGES = 6
ANY_SCORE = {"least_score": 0.0, "unconfirmed": "keep"}


@pytest.fixture
def scenes():
    return open_dataset("demo", "test")


@pytest.fixture
def folder(tmp_path, scenes):
    """Scenes without their annotations."""
    path = tmp_path / "images"
    path.mkdir()
    for number in range(IMAGES):
        image = scenes[number % len(scenes)][0].clone()
        image[:, :4, :4] = 40 * number
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path / f"{number}.png")
    return path


def record(number, box, label, score):
    x1, y1, x2, y2 = box
    about = {"image_id": 100 + number, "category_id": 10 * (label + 1)}
    return about | {"bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}


@pytest.fixture
def boxes(tmp_path, scenes):
    """The annotations of the scenes as a results file of another tool, and a file with its images and categories."""
    records = []
    for number in range(IMAGES):
        target = scenes.target(number % len(scenes))
        for index, (box, label) in enumerate(zip(target.boxes.tolist(), target.labels.tolist(), strict=True)):
            records.append(record(number, box, label, 0.9 - 0.01 * index))
        records.append(record(number, [1, 1, 9, 9], 0, 0.1))
    height, width = scenes.sizes[0]
    images = [
        {"id": 100 + number, "file_name": f"elsewhere/{number}.png", "height": height, "width": width}
        for number in range(IMAGES)
    ]
    categories = [{"id": 10 * (label + 1), "name": name} for label, name in enumerate(CLASSES)]
    (tmp_path / "results.json").write_text(json.dumps(records))
    (tmp_path / "about.json").write_text(json.dumps({"images": images, "categories": categories}))
    return {"teacher": f"boxes:{tmp_path / 'results.json'}", "teacher_description": str(tmp_path / "about.json")}


def everything(images):
    """A box over the whole of each image."""
    size = torch.tensor([images[0].shape[-1], images[0].shape[-2]] * 2)
    box = (torch.tensor([[0.1, 0.1, 0.9, 0.9]]) * size).tolist()
    return [{"boxes": box, "scores": [0.75], "labels": [2]} for _ in images]


FUNCTION = defeat.BoxFunction(everything, CLASSES)


def distil(out, teacher=FUNCTION, **changes):
    given = settings(out, teacher="-").to_dict()
    return defeat.distill(**given | {"teacher": teacher} | changes)


def printed(function, *arguments, **options):
    output = StringIO()
    result = function(*arguments, console=Console(file=output, width=400), **options)
    return result, output.getvalue()


def test_a_function_labels_images_without_annotations(folder, tmp_path, monkeypatch):
    seen = []
    original = DetectionModule.training_step

    def watched(self, batch, index):
        seen.extend((target.labels.tolist(), target.difficult.tolist()) for target in batch[1] if not target.annotated)
        return original(self, batch, index)

    monkeypatch.setattr(DetectionModule, "training_step", watched)
    finished = distil(tmp_path / "run", unlabelled=str(folder), max_steps=2).folder
    assert seen == [([2], [False])] * 4
    recorded = results(finished)
    assert recorded["teacher"] == "<tests.engine.test_box_teachers.everything>"
    assert recorded["teacher_kind"] == "boxes only: Python function"
    assert recorded["method"] == "none"
    assert recorded["inherited"] == {"parts": [], "parameters": 0}
    summary = read_run(finished)
    assert "boxes only: Python function" in recipe_card(summary)
    assert {"train/loss"} <= set(lines(finished)[0])
    baseline = tiny_run(tmp_path / "baseline", max_steps=2).folder
    assert roles([summary, read_run(baseline)]) == ["distilled (pseudo-labels)", "baseline"]
    assert verdicts([summary, read_run(baseline)])[0].baseline is not None
    assert weights(finished) != weights(baseline)


def test_the_method_is_left_out_with_a_note_and_pseudo_labels_get_a_threshold(folder, boxes, tmp_path):
    given = settings(tmp_path / "run", teacher=boxes["teacher"], unlabelled=str(folder), **without_teacher(boxes))
    assembly, text = printed(lambda console: assemble(given, console))
    assert (assembly.settings.method, assembly.settings.method_options) == ("none", {})
    assert assembly.settings.pseudo_labels == 0.5
    assert isinstance(assembly.experiment.distillation.method, NoDistillation)
    assert text.count("The teacher only gives boxes: the method defeat, which reads more than boxes, is left out.") == 1
    assert text.count("--pseudo-labels is not given: boxes with a score of 0.5 or more are learned.") == 1
    assert "M parameters" not in text  # nothing is known about its size
    strict = from_file(tmp_path / "run", boxes, folder, allow_weak_teacher=False)
    assembly, text = printed(lambda console: assemble(strict, console))
    assert "The teacher has no detections of the training images: whether it detects anything" in text
    assert assembly.lessons.teacher_ap50 is None
    # With settings that fit, nothing is left out.
    exact = settings(tmp_path / "run", teacher="-", method="none", unlabelled=str(folder), pseudo_labels=0.3)
    assert for_box_teacher(exact) == (exact, ())


def without_teacher(boxes):
    return {"teacher_description": boxes["teacher_description"]}


def from_file(out, boxes, folder, **changes):
    return settings(
        out, teacher=boxes["teacher"], unlabelled=str(folder), **without_teacher(boxes) | {"max_steps": 2} | changes
    )


@pytest.mark.parametrize("augment", ["flip", "flip,scale_jitter", "strong"])
def test_boxes_of_a_results_file_follow_augmentation_as_annotations_do(augment, boxes, folder, scenes, tmp_path):
    given = from_file(tmp_path / "run", boxes, folder, augment=augment)
    unlabelled = assemble(given, QUIET).experiment.distillation.unlabelled
    assert len(unlabelled) == IMAGES
    augmentation = training_augmentation(augment, flip=0.5, size=64)
    views, changed = TrainingView(unlabelled, augmentation, seed=0), 0
    for number in range(IMAGES):
        image = unlabelled[number][0]
        annotated = scenes.target(number % len(scenes))
        for epoch in range(4):
            # The same draws as for the view, applied to the annotations.
            pair = [(image, annotated)] * (number + 1)
            expected_image, expected = TrainingView(pair, augmentation, seed=0)[number, epoch]
            found_image, found = views[number, epoch]
            assert torch.equal(found_image, expected_image)
            found = found.select(~found.difficult)
            assert torch.equal(found.boxes, expected.boxes)
            assert torch.equal(found.labels, expected.labels)
            assert (found.view, found.scale, found.size) == (expected.view, expected.scale, expected.size)
            changed += found.size != annotated.size or found.view == 1
    assert changed > 0


@pytest.mark.slow
def test_a_run_with_a_results_file_resumes_bit_for_bit_and_notices_another_file(boxes, folder, tmp_path, monkeypatch):
    options = {"max_steps": None, "epochs": 2}
    whole = run(from_file(tmp_path / "whole", boxes, folder, **options), QUIET)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        run(from_file(tmp_path / "stopped", boxes, folder, **options), QUIET)
    resumed = run(from_file(tmp_path / "stopped", boxes, folder, resume=True, **options), QUIET)
    assert resumed.finished
    assert weights(resumed.folder) == weights(whole.folder)
    recorded = results(whole.folder)
    assert recorded["teacher_kind"] == "boxes only: results file"
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        run(from_file(tmp_path / "other", boxes, folder, **options), QUIET)
    path = tmp_path / "results.json"
    content = json.loads(path.read_text())
    content[0]["bbox"][0] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="can't be resumed with other training images"):
        run(from_file(tmp_path / "other", boxes, folder, resume=True, **options), QUIET)


@pytest.mark.slow
def test_the_command_line_takes_a_results_file_and_writes_a_report(boxes, folder, tmp_path, capsys):
    arguments = f"distill --data demo --backbone {BACKBONE} --weights none --size 64 --max-steps 2".split()
    arguments += ["--neck-channels", "16", "--accelerator", "cpu", "--batch-size", "2", "--workers", "0"]
    arguments += ["--teacher", boxes["teacher"], "--teacher-description", boxes["teacher_description"]]
    out = tmp_path / "run"
    assert main([*arguments, "--unlabelled", str(folder), "--out", str(out)]) == 0, capsys.readouterr().err
    assert "boxes only: results file" in (out / "report.html").read_text()
    assert results(out)["method"] == "none"


def test_an_onnx_file_is_a_teacher(folder, tmp_path):
    box = np.array([[[8, 8, 56, 56]]], dtype=np.float32)
    outputs = {"boxes": box, "scores": np.array([[0.75]], np.float32), "labels": np.array([[2]])}
    path = save(tmp_path / "model.onnx", outputs, (1, 3, 64, 64))
    (tmp_path / "model.yaml").write_text(f"classes: [{', '.join(CLASSES)}]\n")
    given = {"teacher": f"onnx:{path}", "teacher_description": str(tmp_path / "model.yaml"), "unlabelled": str(folder)}
    assembly = assemble(settings(tmp_path / "run", **given), QUIET)
    assert assembly.lessons.kind == "boxes only: ONNX file"
    unlabelled = assembly.experiment.distillation.unlabelled
    height, width = unlabelled.sizes[0]
    (found,) = unlabelled.target(0).boxes.tolist()
    assert found == pytest.approx([width / 8, height / 8, width * 7 / 8, height * 7 / 8])
    assert run(settings(tmp_path / "run", max_steps=1, **given), QUIET).finished


OWN = """
import torch

class Own:
    classes = ("disc", "cross")

    def predict(self, images):
        return [{"boxes": [[8, 8, 56, 56]], "labels": [0]} for _ in images]

def teacher():
    return Own()

def network():
    return torch.nn.Linear(2, 2)
"""


def test_an_object_of_user_code_is_a_teacher_on_the_command_line(folder, tmp_path):
    (tmp_path / "own_boxes.py").write_text(OWN)
    given = settings(tmp_path / "run", teacher=f"{tmp_path}/own_boxes.py:teacher", unlabelled=str(folder))
    assembly = assemble(given, QUIET)
    assert assembly.lessons.kind == "boxes only: Python object"
    unlabelled = assembly.experiment.distillation.unlabelled
    assert unlabelled.target(0).labels.tolist() == [CLASSES.index("disc")]
    other = settings(tmp_path / "run", teacher=f"{tmp_path}/own_boxes.py:network", unlabelled=str(folder))
    with pytest.raises(InputError, match="returns a Linear: name the feature maps of a network with --teacher-taps"):
        assemble(other, QUIET)


@pytest.mark.slow
def test_a_resumed_run_does_not_ask_the_teacher_again(folder, tmp_path, monkeypatch):
    calls = []
    counting = defeat.BoxFunction(lambda images: calls.append(1) or everything(images), CLASSES)
    options = {"unlabelled": str(folder), "epochs": 2}
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        distil(tmp_path / "run", counting, **options)
    assert len(calls) == IMAGES
    assert distil(tmp_path / "run", counting, resume=True, **options).finished
    assert len(calls) == IMAGES


def test_the_plan_says_what_kind_of_teacher_it_is(boxes, folder, tmp_path):
    made = make_plan(from_file(tmp_path / "run", boxes, folder), QUIET)
    assert made.teacher_kind == "boxes only: results file"
    assert (made.method, made.levels, made.weights, made.pulls) == ("none", [], {}, {})
    assert made.inherited == ["Nothing is inherited: the teacher only gives boxes."]
    assert made.teacher_ap50 is None
    output = StringIO()
    print_plan(made, Console(file=output, width=200))
    text = output.getvalue()
    for words in ("teacher gives boxes only: results file", "teacher: boxes ", "method: none", "6 of 6 shared"):
        assert words in text, words
    assert "is left out" in text
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["teacher_kind"] == made.teacher_kind
    detector = make_plan(settings(tmp_path / "more", teacher=save_teacher(tmp_path / "teacher")), QUIET)
    assert detector.teacher_kind == "detector"


def test_a_function_is_checked_on_the_data(folder, tmp_path):
    given = settings(tmp_path / "run", unlabelled=str(folder), teacher="-").to_dict()
    given |= {"teacher": FUNCTION, "allow_weak_teacher": False}
    with pytest.raises(InputError, match="The teacher detects next to nothing on the data"):
        defeat.distill(**given)
    by_pixels = {image.sum().item(): target for image, target in open_dataset("demo", "train")}

    class Knowing:
        classes = ("Kreuz", *CLASSES[1:], "house")

        def predict(self, images):
            targets = [by_pixels.get(image.sum().item()) for image in images]
            return [everything(images)[0] if target is None else known(target) for target in targets]

    def known(target):
        return Detections(target.boxes, torch.ones(len(target.labels)), target.labels)

    made = defeat.plan(**given | {"teacher": Knowing(), "class_map": {"Kreuz": "cross"}})
    assert made.teacher_ap50 == pytest.approx(100)
    assert made.classes["cross"] == ["Kreuz"]
    assert "The student does not know the teacher's house." in made.notes


def test_a_results_file_is_checked_on_the_training_images_that_it_has(tmp_path, folder):
    pictures = tmp_path / "data"
    (pictures / "train").mkdir(parents=True)
    content = coco_content()
    for image in content["images"]:
        size = (image["width"], image["height"])
        Image.new("RGB", size).save(pictures / "train" / image["file_name"].rpartition("/")[2])
        image["file_name"] = image["file_name"].rpartition("/")[2]
    (pictures / "annotations").mkdir()
    (pictures / "annotations" / "instances_train.json").write_text(json.dumps(content))
    records = [
        {"file_name": image["file_name"], "category_id": record["category_id"], "bbox": record["bbox"], "score": 0.9}
        for image in content["images"]
        for record in content["annotations"]
        if record["image_id"] == image["id"]
    ]
    records.append({**records[0], "file_name": "3.png"})
    path = tmp_path / "results.json"
    path.write_text(json.dumps(records))
    given = settings(
        tmp_path / "run",
        teacher=f"boxes:{path}",
        data=str(pictures),
        eval_split="train",
        unlabelled=str(folder),
        allow_weak_teacher=False,
    )
    assembly, text = printed(lambda console: assemble(given, console))
    assert assembly.lessons.teacher_ap50 == pytest.approx(100)
    assert "The names of the categories in" in text
    assert "the teacher has no detections of 5 of 6 images, such as 0.png" in text
    assert assembly.experiment.distillation.unlabelled.table.boxes.shape == (1, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unlabelled": None}, "learned as pseudo-labels of images without annotations: name a folder of such"),
        (
            {"unlabelled": None, "method": "detr"},
            "not of --method detr: name a folder of such images with --unlabelled",
        ),
        ({"unlabelled_ratio": 0.0}, "name a folder of such images with --unlabelled"),
        ({"cache_teacher": "cache"}, "--cache-teacher keeps feature maps, and this teacher only gives boxes"),
        ({"inherit": "neck"}, "--inherit neck is not possible: the teacher only gives boxes"),
        ({"balance": 1.0}, "--balance has nothing to balance"),
        ({"pseudo_labels": 0.95}, r"no box with a score of --pseudo-labels 0.95 .* \(the best has a score of 0.90\)"),
        ({"teacher": "boxes:nowhere.json"}, "nowhere.json cannot be read"),
        ({"teacher": "onnx:nowhere.onnx", "teacher_description": None}, "needs --teacher-description, a YAML file"),
        ({"teacher": "nowhere"}, "--teacher-description belongs to --teacher boxes:FILE or onnx:FILE"),
        ({"class_map": {"Cross": "cross"}}, "Unknown class of the teacher 'Cross'"),
    ],
)
def test_what_cannot_work_is_refused(changes, message, boxes, folder, tmp_path):
    given = {"teacher": boxes["teacher"], "unlabelled": str(folder), **without_teacher(boxes)} | changes
    with pytest.raises(InputError, match=message):
        run(settings(tmp_path / "run", **given), QUIET)


def test_a_method_given_as_an_object_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match="only gives boxes, which no method reads: leave out the method"):
        distil(tmp_path / "run", unlabelled=str(folder), method=defeat.methods.DeFeat)


def test_a_teacher_without_a_class_of_the_student_is_refused(folder, tmp_path):
    stranger = defeat.BoxFunction(everything, ("ship", "plane", "car"))
    with pytest.raises(InputError, match="none of a class of the student"):
        distil(tmp_path / "run", stranger, unlabelled=str(folder))
    given = settings(tmp_path / "run", unlabelled=str(folder), teacher="-").to_dict() | {"teacher": stranger}
    with pytest.raises(InputError, match="none of the student's classes") as caught:
        defeat.distill(**given | {"allow_weak_teacher": False})
    assert "feature maps" not in str(caught.value)


def test_images_of_another_folder_are_refused(boxes, folder, tmp_path):
    for path in list(folder.iterdir()):
        path.rename(folder / f"other-{path.name}")
    with pytest.raises(InputError, match=r"no detections of any image in .*, such as other-0.png"):
        run(from_file(tmp_path / "run", boxes, folder), QUIET)


@pytest.mark.parametrize("teacher", ["boxes:results.json", "onnx:model.onnx", "own.py:teacher"])
def test_bench_refuses_a_teacher_that_only_gives_boxes(teacher, capsys):
    arguments = ["bench", "--data", "demo", "--teacher", teacher, "--out", "never-written", "--plan"]
    assert main(arguments) == 2
    assert "bench compares methods, and a teacher that only gives boxes has none" in capsys.readouterr().err


@pytest.mark.parametrize("family", ["retinanet", pytest.param("faster_rcnn", marks=pytest.mark.slow)])
def test_the_method_boxes_learns_from_a_function_without_other_images(family, tmp_path):
    taught = []

    def detect(images):
        taught.append(len(images))
        return [{"boxes": torch.tensor([[4.0, 4.0, 30.0, 30.0]]), "labels": torch.tensor([0])} for _ in images]

    function = defeat.BoxFunction(detect, classes=["disc"])
    given = {"method": "boxes", "max_steps": 2, "method_options": {"unconfirmed": "keep"}}
    options = settings(tmp_path / "run", family, tmp_path / "unused", **given)
    result = run(options, Console(quiet=True), Objects(teacher=function))
    terms = [line for line in lines(result.folder) if "train/head_box" in line]
    assert len(terms) == 2
    assert all(line["train/head_class"] > 0 for line in terms)
    assert sum(taught[-2:]) == 4  # two images in each step
    assert results(result.folder)["teacher_kind"] == "boxes only: Python function"


def test_the_method_boxes_needs_a_teacher_that_detects(tmp_path):
    teacher = save_teacher(tmp_path / "teacher", options=tiny_options("retinanet", score_thresh=0.0))
    (tmp_path / "boxes.json").write_text(
        json.dumps([{"file_name": "a.png", "category_name": "disc", "bbox": [1, 2, 3, 4], "score": 0.5}])
    )
    with pytest.raises(InputError, match="name a folder of such images with --unlabelled"):
        tiny_run(tmp_path / "run", teacher=f"boxes:{tmp_path / 'boxes.json'}", method="boxes")
    given = {"method": "boxes", "max_steps": 1, "method_options": ANY_SCORE}
    assert tiny_run(tmp_path / "of_detector", teacher=teacher, **given).finished
