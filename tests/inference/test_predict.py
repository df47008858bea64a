"""Prediction on images and videos: detections, pictures, and skipped files."""

import json
from fractions import Fraction
from itertools import islice

import pytest
import torch
from PIL import Image

from defeat.cli import main
from defeat.detector import Detector, load
from defeat.errors import InputError
from defeat.evaluation.detections import save_detections
from defeat.evaluation.evaluator import Evaluator
from defeat.inference import predict as predict_module
from defeat.inference.drawing import draw_detections
from defeat.inference.predict import best_thresholds, find_images, ignored_files, predict, side_by_side
from defeat.inference.videos import VideoWriter, read_frames
from defeat.types import Detections, Target
from tests.engine.tiny_runs import save_teacher


@pytest.fixture
def run(tmp_path):
    return save_teacher(tmp_path / "run")


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name in ("a.png", "a.jpg", "more/b.jpg"):
        Image.new("RGB", (80, 60), "green").save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "clips" / "one.mp4"
    path.parent.mkdir()
    writer = VideoWriter(path, Fraction(10), (48, 65))
    for shade in (30, 120, 210):
        writer.add(torch.full((3, 48, 65), shade, dtype=torch.uint8))
    writer.close()
    return path


def test_sub_folders_are_included_and_no_picture_overwrites_another(run, photos, tmp_path):
    result = predict(run, photos, tmp_path / "out", threshold=0.0)
    names = {path.relative_to(tmp_path / "out").as_posix() for path in result.pictures}
    assert names == {"a.jpg", "a.png.jpg", "more/b.jpg"}
    assert (result.images, result.skipped) == (3, [])
    assert result.seconds > 0
    records = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert {record["file_name"] for record in records} <= {"a.jpg", "a.png", "more/b.jpg"}
    for record in records:
        assert {"image_id", "category_id", "bbox", "score"} <= record.keys()


@pytest.mark.parametrize(
    ("pattern", "names"), [("*.jpg", ["a.jpg"]), ("**/*.jpg", ["a.jpg", "more/b.jpg"]), ("m*/*", ["more/b.jpg"])]
)
def test_a_pattern_selects_files(pattern, names, photos):
    root, paths = find_images(str(photos / pattern))
    assert root == photos
    assert [path.relative_to(photos).as_posix() for path in paths] == names


@pytest.mark.parametrize(
    ("source", "message"),
    [("*.gif", "No file matches"), ("nothing.jpg", "does not exist"), ("empty", "contains no image")],
)
def test_a_source_without_images_is_refused(source, message, photos):
    (photos / "empty").mkdir()
    with pytest.raises(InputError, match=message):
        find_images(str(photos / source))


def test_a_broken_file_is_named_and_skipped_and_the_exit_code_says_so(run, photos, tmp_path, capsys):
    (photos / "broken.jpg").write_bytes(b"no image at all")
    assert main(["predict", str(run), str(photos), "--out", str(tmp_path / "out")]) == 2
    output = capsys.readouterr()
    assert "3 pictures and detections.json" in output.out
    assert "images per second" in output.out
    assert "skipped" in output.err
    assert "broken.jpg" in output.err
    assert (tmp_path / "out" / "more" / "b.jpg").is_file()


def test_an_image_above_the_limit_of_pixels_is_skipped(run, photos, tmp_path):
    arguments = ["predict", str(run), str(photos), "--out", str(tmp_path / "out"), "--max-pixels"]
    assert main([*arguments, str(80 * 60)]) == 0
    assert main([*arguments, "4799"]) == 2
    with pytest.raises(InputError, match=r"No image could be read\..*give a larger --max-pixels"):
        predict(run, photos, tmp_path / "out", max_pixels=1)
    assert load(run).predict(str(photos / "a.png"), max_pixels=80 * 60)
    with pytest.raises(InputError, match="larger --max-pixels"):
        load(run).predict(str(photos / "a.png"), max_pixels=1)


def test_images_whose_decoder_is_missing_are_skipped_with_one_sentence(run, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("defeat.data.images._registered_heif", lambda: False)
    for name in ("x.heic", "y.heif"):
        (photos / name).write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (sentence,) = predict(run, photos, tmp_path / "out").skipped
    assert sentence == f'2 images in HEIF need `pip install "defeat-detection[heif]"`, such as {photos / "x.heic"}.'


def test_predict_fails_if_no_image_can_be_read(run, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image at all")
    with pytest.raises(InputError, match=r"No image could be read.*broken.jpg"):
        predict(run, tmp_path / "broken.jpg", tmp_path / "out")


def test_two_detectors_are_drawn_side_by_side(run, photos, tmp_path):
    other = save_teacher(tmp_path / "other", "faster_rcnn")
    (drawn,) = predict(run, photos / "a.png", tmp_path / "out", compare=str(other)).pictures
    assert Image.open(drawn).size == (80 + 4 + 80, 60)
    left, right = torch.zeros(3, 5, 6, dtype=torch.uint8), torch.full((3, 5, 6), 9, dtype=torch.uint8)
    both = side_by_side([left, right])
    assert both[:, :, :6].max() == 0
    assert (both[:, :, 6:10] == 255).all()
    assert (both[:, :, 10:] == 9).all()


def test_the_images_are_never_overwritten(run, photos):
    with pytest.raises(InputError, match="would be overwritten"):
        predict(run, photos, photos)


@pytest.mark.parametrize("threshold", [-0.1, 1.5])
def test_a_threshold_outside_of_scores_is_refused(threshold, run, photos, tmp_path):
    with pytest.raises(InputError, match="--threshold"):
        predict(run, photos, tmp_path / "out", threshold=threshold)


def test_written_frames_are_read_back(video):
    frames = list(read_frames(video))
    assert [rate for _, rate in frames] == [10, 10, 10]
    for (frame, _), shade in zip(frames, (30, 120, 210), strict=True):
        assert frame.shape == (3, 48, 64)  # the odd column is cropped
        assert abs(frame.float().mean().item() - shade) < 6


def test_a_video_is_drawn_frame_by_frame(run, video, tmp_path):
    result = predict(run, video.parent, tmp_path / "out", threshold=0.0)
    assert result.images == 3
    assert [path.name for path in result.pictures] == ["one.mp4"]
    assert len(list(read_frames(result.pictures[0]))) == 3
    records = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert {record["frame"] for record in records} <= {0, 1, 2}


def test_a_broken_video_is_skipped(run, photos, tmp_path):
    (photos / "broken.mp4").write_bytes(b"no video at all")
    (sentence,) = predict(run, photos, tmp_path / "out").skipped
    assert "broken.mp4 can't be read as a video" in sentence


def test_videos_of_one_name_are_both_drawn(run, video, tmp_path):
    (video.parent / "one.avi").write_bytes(video.read_bytes())
    result = predict(run, video.parent, tmp_path / "out")
    assert [path.name for path in result.pictures] == ["one.mp4", "one.mp4.mp4"]  # one.avi comes first
    assert all(path.is_file() for path in result.pictures)
    assert (result.images, result.skipped) == (6, [])


def test_a_truncated_video_is_named(run, tmp_path, monkeypatch):
    path = tmp_path / "clips" / "long.mp4"
    path.parent.mkdir()
    writer = VideoWriter(path, Fraction(10), (48, 64))
    for shade in range(20):
        writer.add(torch.full((3, 48, 64), shade, dtype=torch.uint8))
    writer.close()
    whole = predict(run, path, tmp_path / "whole")
    assert (whole.images, whole.skipped) == (20, [])
    monkeypatch.setattr("defeat.inference.predict.read_frames", lambda path: islice(read_frames(path), 12))
    cut = predict(run, path, tmp_path / "cut")
    assert cut.skipped == [f"{path} is truncated: 12 of its 20 frames could be read."]


def test_portrait_videos_are_read_upright(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "lying.mp4"
    frame = torch.zeros(3, 32, 64, dtype=torch.uint8)
    frame[:, :, :16] = 200  # bright at the left, which is at the top once it is turned clockwise
    writer = VideoWriter(path, Fraction(10), (32, 64))
    writer.add(frame)
    writer.close()
    turned = tmp_path / "turned.mp4"
    content = bytearray(path.read_bytes())
    # The matrix of the track header: a, b, u, c, d, v, x, y, w; as phones write it for a quarter turn clockwise.
    start = content.index(b"tkhd") + 4 + 40
    one = (1 << 16).to_bytes(4, "big")
    minus = (-(1 << 16)).to_bytes(4, "big", signed=True)
    zero, w = bytes(4), (1 << 30).to_bytes(4, "big")
    assert bytes(content[start : start + 36]) == one + zero * 3 + one + zero * 3 + w
    content[start : start + 36] = zero + one + zero + minus + zero * 2 + (32 << 16).to_bytes(4, "big") + zero + w
    turned.write_bytes(content)
    with av.open(str(turned)) as container:
        assert next(container.decode(video=0)).rotation == -90
    ((upright, _),) = read_frames(turned)
    assert upright.shape == (3, 64, 32)
    assert upright[:, :12].float().mean() > 150 > 60 > upright[:, 24:].float().mean()


def test_the_folder_of_results_is_skipped(run, photos):
    for _ in range(2):
        result = predict(run, photos, photos / "out")
        assert result.images == 3
    assert predict(run, str(photos / "**" / "*"), photos / "out").images == 3
    assert not (photos / "out" / "out").exists()


def test_several_images_and_folders_are_accepted(run, photos, tmp_path, capsys):
    words = ["predict", str(run), str(photos / "a.png"), str(photos / "more"), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert "2 pictures" in capsys.readouterr().out
    assert (tmp_path / "out" / "a.jpg").is_file()
    assert (tmp_path / "out" / "more" / "b.jpg").is_file()


def test_an_image_whose_folder_cannot_be_created_is_skipped(run, photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "more").write_text("not a folder")
    result = predict(run, photos, tmp_path / "out")
    assert len(result.pictures) == 2
    (sentence,) = result.skipped
    assert "more can't be created" in sentence


@pytest.fixture
def coco(run, tmp_path):
    """An annotation file with other ids for the classes of the run and for two of three images."""
    names = json.loads((run / "model.json").read_text())["classes"]
    content = {
        "images": [{"id": 70, "file_name": "sub/a.png"}, {"id": 50, "file_name": "more/b.jpg"}],
        "categories": [{"id": 90 - 7 * index, "name": name} for index, name in enumerate(names)],
        "annotations": [],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    return path, content


def test_results_have_the_ids_of_an_annotation_file(run, photos, coco, tmp_path, monkeypatch):
    path, content = coco
    boxes = torch.tensor([[1.0, 2.0, 30.0, 40.0], [5.0, 5.0, 20.0, 20.0]])
    two = Detections(boxes, torch.tensor([0.9, 0.4]), torch.tensor([0, 3]))
    monkeypatch.setattr(Detector, "predict", lambda self, images: [two for _ in images])
    result = predict(run, photos, tmp_path / "out", annotations=str(path))
    (sentence,) = result.skipped
    assert sentence == f"a.jpg is not among the images of {path}."
    records = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert {(record["file_name"], record["image_id"]) for record in records} == {("a.png", 70), ("more/b.jpg", 50)}
    ids = {category["name"]: category["id"] for category in content["categories"]}
    assert all(record["category_id"] == ids[record["category_name"]] for record in records)
    boxes = [(record["bbox"], record["score"]) for record in records[:2]]
    assert boxes == [
        ([1, 2, 29, 38], 0.9),
        ([5, 5, 15, 15], 0.4),
    ]
    # pycocotools reads the file.
    ground_truth = pytest.importorskip("pycocotools.coco").COCO(str(path))
    assert len(ground_truth.loadRes(str(tmp_path / "out" / "detections.json")).anns) == len(records)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["categories"].pop(), "has no category"),
        (lambda content: content.pop("images"), "is not a COCO annotation file"),
        (lambda content: content["images"].append(3), "is not a COCO annotation file"),
    ],
)
def test_an_annotation_file_that_does_not_match_is_refused(change, message, run, photos, coco, tmp_path):
    path, content = coco
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        predict(run, photos, tmp_path / "out", annotations=str(path))
    with pytest.raises(InputError, match="can't be read"):
        predict(run, photos, tmp_path / "out", annotations=str(tmp_path / "nothing.json"))


def test_ignored_files_are_counted_by_suffix(tmp_path):
    names = ("a.jpg", "notes.txt", "sub/b.txt", "sub/c.json", ".DS_Store", "._a.jpg", "out/detections.json", "README")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert ignored_files([tmp_path], tmp_path / "out") == {".txt": 2, ".json": 1, "without suffix": 1}
    assert ignored_files([tmp_path / "notes.txt", tmp_path / "*.jpg"], tmp_path / "out") == {}


def trained(folder):
    """A run directory with detections of the classes `cross` and `disc`: correct from a score of 0.7 and 0.2."""
    run = save_teacher(folder)
    (run / "config.yaml").write_text("seed: 0\n")
    evaluator = Evaluator(load(run).info.classes)
    box, flags = torch.tensor([[10.0, 10.0, 60.0, 60.0]]), torch.tensor([False])
    for number, (score, label, correct) in enumerate([(0.8, 0, True), (0.6, 0, False), (0.3, 1, True)]):
        labels = torch.tensor([label])
        target = Target(box, labels, flags, flags, number, (100, 100))
        evaluator.update([Detections(box if correct else box + 30, torch.tensor([score]), labels)], [target])
    save_detections(run / "detections.safetensors", evaluator)
    return run


def test_the_best_threshold_of_each_class_is_read_from_the_run(photos, tmp_path, monkeypatch):
    run = trained(tmp_path / "trained")
    expected = torch.tensor([0.7, 0.15, 0.5, 0.5, 0.5, 0.5])
    torch.testing.assert_close(best_thresholds(run, 6), expected)
    used = []
    monkeypatch.setattr(predict_module, "draw_detections", lambda image, *rest: used.append(rest[-1]) or image)
    predict(run, photos, tmp_path / "out", threshold="auto", compare=str(run))
    assert len(used) == 6
    assert all(torch.equal(threshold, best_thresholds(run, 6)) for threshold in used)
    assert main(["predict", str(run), str(photos), "--out", str(tmp_path / "again"), "--threshold", "auto"]) == 0


def test_thresholds_of_classes_are_drawn():
    boxes = torch.tensor([[2.0, 2.0, 20.0, 20.0], [30.0, 30.0, 50.0, 50.0]])
    detections = Detections(boxes, torch.tensor([0.6, 0.6]), torch.tensor([0, 1]))
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    drawn = draw_detections(image, detections, ("a", "b"), torch.tensor([0.5, 0.7]))
    assert not torch.equal(drawn, draw_detections(image, detections, ("a", "b"), 0.5))
    first = Detections(boxes[:1], torch.tensor([0.6]), torch.tensor([0]))
    assert torch.equal(drawn, draw_detections(image, first, ("a", "b"), 0.5))


def test_best_thresholds_need_a_run_that_was_evaluated(run, photos, tmp_path):
    with pytest.raises(InputError, match="needs a run directory"):
        predict(run, photos, tmp_path / "out", threshold="auto")
    (run / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(InputError, match=r"detections\.safetensors is missing"):
        predict(run, photos, tmp_path / "out", threshold="auto")
