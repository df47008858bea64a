"""Detecting on images and videos: what is found, drawn, written, and skipped."""

import json
from fractions import Fraction
from itertools import islice

import pytest
import torch
from PIL import Image

from defeat.cli import main
from defeat.detector import Detector
from defeat.errors import InputError
from defeat.inference.predict import beside_each_other, find_images, predict
from defeat.inference.videos import VideoWriter, read_frames
from defeat.types import Detections
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


def test_a_folder_is_drawn_with_its_sub_folders_and_no_picture_takes_the_place_of_another(run, photos, tmp_path):
    found = predict(run, photos, tmp_path / "out", threshold=0.0)
    names = {path.relative_to(tmp_path / "out").as_posix() for path in found.pictures}
    assert names == {"a.jpg", "a.png.jpg", "more/b.jpg"}
    assert (found.images, found.skipped) == (3, [])
    assert found.seconds > 0
    records = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert {record["file_name"] for record in records} <= {"a.jpg", "a.png", "more/b.jpg"}
    for record in records:
        assert {"image_id", "category_id", "bbox", "score"} <= record.keys()


@pytest.mark.parametrize(
    ("pattern", "names"), [("*.jpg", ["a.jpg"]), ("**/*.jpg", ["a.jpg", "more/b.jpg"]), ("m*/*", ["more/b.jpg"])]
)
def test_a_pattern_finds_what_it_says(pattern, names, photos):
    root, found = find_images(str(photos / pattern))
    assert root == photos
    assert [path.relative_to(photos).as_posix() for path in found] == names


@pytest.mark.parametrize(
    ("source", "says"), [("*.gif", "No file fits"), ("nothing.jpg", "does not exist"), ("empty", "holds no image")]
)
def test_nothing_to_look_at_is_one_sentence(source, says, photos):
    (photos / "empty").mkdir()
    with pytest.raises(InputError, match=says):
        find_images(str(photos / source))


def test_a_broken_file_is_named_and_skipped_and_the_exit_code_says_so(run, photos, tmp_path, capsys):
    (photos / "broken.jpg").write_bytes(b"no image at all")
    assert main(["predict", str(run), str(photos), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert "3 pictures and detections.json" in said.out
    assert "images a second" in said.out
    assert "skipped" in said.err
    assert "broken.jpg" in said.err
    assert (tmp_path / "out" / "more" / "b.jpg").is_file()


def test_where_nothing_can_be_read_nothing_is_called_done(run, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image at all")
    with pytest.raises(InputError, match=r"No image could be read.*broken.jpg"):
        predict(run, tmp_path / "broken.jpg", tmp_path / "out")


def test_two_detectors_stand_beside_each_other(run, photos, tmp_path):
    other = save_teacher(tmp_path / "other", "faster_rcnn")
    (drawn,) = predict(run, photos / "a.png", tmp_path / "out", compare=str(other)).pictures
    assert Image.open(drawn).size == (80 + 4 + 80, 60)
    left, right = torch.zeros(3, 5, 6, dtype=torch.uint8), torch.full((3, 5, 6), 9, dtype=torch.uint8)
    both = beside_each_other([left, right])
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


def test_frames_come_back_as_they_were_written(video):
    frames = list(read_frames(video))
    assert [rate for _, rate in frames] == [10, 10, 10]
    for (frame, _), shade in zip(frames, (30, 120, 210), strict=True):
        assert frame.shape == (3, 48, 64)  # the odd column is cut off
        assert abs(frame.float().mean().item() - shade) < 6


def test_a_video_is_drawn_frame_by_frame(run, video, tmp_path):
    found = predict(run, video.parent, tmp_path / "out", threshold=0.0)
    assert found.images == 3
    assert [path.name for path in found.pictures] == ["one.mp4"]
    assert len(list(read_frames(found.pictures[0]))) == 3
    records = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert {record["frame"] for record in records} <= {0, 1, 2}


def test_a_broken_video_is_skipped(run, photos, tmp_path):
    (photos / "broken.mp4").write_bytes(b"no video at all")
    (sentence,) = predict(run, photos, tmp_path / "out").skipped
    assert "broken.mp4 can't be read as a video" in sentence


def test_videos_of_one_name_are_both_drawn(run, video, tmp_path):
    (video.parent / "one.avi").write_bytes(video.read_bytes())
    found = predict(run, video.parent, tmp_path / "out")
    assert [path.name for path in found.pictures] == ["one.mp4", "one.mp4.mp4"]  # one.avi comes first
    assert all(path.is_file() for path in found.pictures)
    assert (found.images, found.skipped) == (6, [])


def test_a_video_that_breaks_off_is_named(run, tmp_path, monkeypatch):
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
    assert cut.skipped == [f"{path} breaks off: 12 of its 20 frames could be read."]


def test_a_video_that_was_taken_upright_is_seen_upright(tmp_path):
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
    place = content.index(b"tkhd") + 4 + 40
    one = (1 << 16).to_bytes(4, "big")
    minus = (-(1 << 16)).to_bytes(4, "big", signed=True)
    zero, w = bytes(4), (1 << 30).to_bytes(4, "big")
    assert bytes(content[place : place + 36]) == one + zero * 3 + one + zero * 3 + w
    content[place : place + 36] = zero + one + zero + minus + zero * 2 + (32 << 16).to_bytes(4, "big") + zero + w
    turned.write_bytes(content)
    with av.open(str(turned)) as container:
        assert next(container.decode(video=0)).rotation == -90
    ((found, _),) = read_frames(turned)
    assert found.shape == (3, 64, 32)
    assert found[:, :12].float().mean() > 150 > 60 > found[:, 24:].float().mean()


def test_what_is_below_the_folder_of_results_is_not_looked_at(run, photos):
    for _ in range(2):
        found = predict(run, photos, photos / "out")
        assert found.images == 3
    assert predict(run, str(photos / "**" / "*"), photos / "out").images == 3
    assert not (photos / "out" / "out").exists()


def test_several_images_and_folders_are_taken_as_a_shell_gives_them(run, photos, tmp_path, capsys):
    words = ["predict", str(run), str(photos / "a.png"), str(photos / "more"), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert "2 pictures" in capsys.readouterr().out
    assert (tmp_path / "out" / "a.jpg").is_file()
    assert (tmp_path / "out" / "more" / "b.jpg").is_file()


def test_a_file_in_the_way_of_a_folder_skips_what_would_go_there(run, photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "more").write_text("not a folder")
    found = predict(run, photos, tmp_path / "out")
    assert len(found.pictures) == 2
    (sentence,) = found.skipped
    assert "more can't be made a folder" in sentence


@pytest.fixture
def coco(run, tmp_path):
    """An annotation file with numbers of its own for the classes of the run, and for two of three images."""
    names = json.loads((run / "model.json").read_text())["classes"]
    content = {
        "images": [{"id": 70, "file_name": "sub/a.png"}, {"id": 50, "file_name": "more/b.jpg"}],
        "categories": [{"id": 90 - 7 * place, "name": name} for place, name in enumerate(names)],
        "annotations": [],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    return path, content


def test_results_have_the_numbers_of_an_annotation_file(run, photos, coco, tmp_path, monkeypatch):
    path, content = coco
    boxes = torch.tensor([[1.0, 2.0, 30.0, 40.0], [5.0, 5.0, 20.0, 20.0]])
    two = Detections(boxes, torch.tensor([0.9, 0.4]), torch.tensor([0, 3]))
    monkeypatch.setattr(Detector, "predict", lambda self, images: [two for _ in images])
    found = predict(run, photos, tmp_path / "out", annotations=str(path))
    (sentence,) = found.skipped
    assert sentence == f"a.jpg is not among the images of {path}."
    records = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert {(one["file_name"], one["image_id"]) for one in records} == {("a.png", 70), ("more/b.jpg", 50)}
    numbers = {one["name"]: one["id"] for one in content["categories"]}
    assert all(one["category_id"] == numbers[one["category_name"]] for one in records)
    assert [(one["bbox"], one["score"]) for one in records[:2]] == [([1, 2, 29, 38], 0.9), ([5, 5, 15, 15], 0.4)]
    # As the usual tool reads it.
    truth = pytest.importorskip("pycocotools.coco").COCO(str(path))
    assert len(truth.loadRes(str(tmp_path / "out" / "detections.json")).anns) == len(records)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda content: content["categories"].pop(), "has no category"),
        (lambda content: content.pop("images"), "is not a COCO annotation file"),
        (lambda content: content["images"].append(3), "is not a COCO annotation file"),
    ],
)
def test_an_annotation_file_that_does_not_fit_is_refused(change, says, run, photos, coco, tmp_path):
    path, content = coco
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=says):
        predict(run, photos, tmp_path / "out", annotations=str(path))
    with pytest.raises(InputError, match="can't be read"):
        predict(run, photos, tmp_path / "out", annotations=str(tmp_path / "nothing.json"))
