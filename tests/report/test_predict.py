"""Detecting on images and videos: what is found, drawn, written, and skipped."""

import json
from fractions import Fraction

import pytest
import torch
from PIL import Image

from defeat.cli import main
from defeat.errors import InputError
from defeat.report.predict import beside_each_other, find_images, predict
from defeat.report.videos import VideoWriter, read_frames
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
