"""`--on-bad-data`: all problems of a data set are listed, or the same broken images are skipped every time."""

import io
import os

import pytest
from PIL import Image

from defeat.cli import main
from defeat.data import open_dataset
from defeat.data.problems import Problems
from defeat.data.unlabelled import UnlabelledImages
from defeat.errors import InputError
from tests.bad_input.cases import boxes, refusal
from tests.data.folders import voc_object, write_coco, write_image, write_voc, write_yolo
from tests.engine.tiny_runs import results, save_teacher, tiny_run

CAT = voc_object("cat", (1, 1, 20, 10))
BOX = [[0, 0, 20, 10]]


def write(kind, folder, count=4):
    """A data set of `count` images of 40 x 20 pixels, each with a cat in its upper left quarter."""
    names = [f"{number:02d}" for number in range(count)]
    if kind == "voc":
        return write_voc(folder, {"train": dict.fromkeys(names, CAT)}, 40, 20)
    if kind == "yolo":
        return write_yolo(folder, dict.fromkeys(names, "0 .25 .25 .5 .5"), "train: images/train\nnames: [cat]\n")
    for name in names:
        write_image(folder / f"train/{name}.png", 40, 20)
    content = {
        "images": [{"id": int(name), "file_name": f"{name}.png"} for name in names],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"image_id": int(name), "category_id": 1, "bbox": [0, 0, 20, 10]} for name in names],
    }
    return write_coco(folder, content, "annotations/train.json")


FOLDERS = {"voc": "JPEGImages", "yolo": "images/train", "coco": "train"}


def image(kind, folder, number):
    return folder / FOLDERS[kind] / f"{number:02d}.png"


def text_for_pixels(kind, folder, number):
    image(kind, folder, number).write_text("This is no image.")


def pixels_cut_off(kind, folder, number):
    buffer = io.BytesIO()
    Image.effect_noise((40, 20), 80).save(buffer, "PNG")
    image(kind, folder, number).write_bytes(buffer.getvalue()[:300])


def missing(kind, folder, number):
    if kind == "yolo":
        (folder / "list.txt").write_text("".join(f"images/train/{index:02d}.png\n" for index in range(4)))
        (folder / "data.yaml").write_text("train: list.txt\nnames: [cat]\n")
    image(kind, folder, number).unlink()


def box_without_a_number(kind, folder, number):
    if kind == "voc":
        (folder / f"Annotations/{number:02d}.xml").write_text(
            f"<annotation>{CAT}{voc_object('cat', (1, 'nan', 9, 9))}</annotation>"
        )
    elif kind == "yolo":
        (folder / f"labels/train/{number:02d}.txt").write_text("0 .25 .25 .5 .5\n0 .5 nan .5 .5\n")
    else:
        path = folder / "annotations/train.json"
        path.write_text(
            path.read_text().replace(
                '"annotations": [',
                f'"annotations": [{{"image_id": {number}, "category_id": 1, "bbox": [1, NaN, 2, 2]}}, ',
            )
        )


FORMATS = ("voc", "coco", "yolo")
FAULTS = [text_for_pixels, pixels_cut_off, missing, box_without_a_number]
every_format = pytest.mark.parametrize("kind", FORMATS)


@every_format
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__.replace("_", " "))
def test_a_broken_image_is_skipped(fault, kind, tmp_path):
    folder = write(kind, tmp_path / "data")
    fault(kind, folder, 1)
    loaded, report = boxes(folder, on_bad_data="skip")
    assert loaded == [BOX] * 3
    assert report.startswith("1 of 4 images skipped (first problem: ")
    assert "\n" not in report
    first, second = (open_dataset(folder, "train", on_bad_data="skip") for _ in range(2))
    assert first.fingerprint() == second.fingerprint()
    assert [sample.name.rpartition("/")[2] for sample in first.samples] == ["00.png", "02.png", "03.png"]
    assert all(first[index][0].shape == (3, 20, 40) for index in range(3))
    if fault is pixels_cut_off:  # which are not decoded before they are needed
        dataset = open_dataset(folder, "train")
        assert len(dataset) == 4
        assert "01.png cannot be read as an image" in refusal(dataset.__getitem__, 1)
    else:
        assert refusal(open_dataset, folder, "train")  # one sentence for one problem


@every_format
@pytest.mark.parametrize(("broken", "listed"), [(2, 2), (10, 10), (12, 10)])
def test_the_first_ten_of_all_problems_are_listed(broken, listed, kind, tmp_path):
    folder = write(kind, tmp_path / "data", broken + 1)
    for number in range(broken):
        (text_for_pixels if number % 2 and kind != "coco" else box_without_a_number)(kind, folder, number)
    with pytest.raises(InputError) as caught:
        open_dataset(folder, "train")
    heading, *lines, advice = str(caught.value).split("\n")
    assert f" has {broken} problems" in heading
    assert ("; the first 10:" in heading) == (broken > 10)
    assert len(lines) == listed
    assert all("a number is NaN" in line or "cannot be read as an image" in line for line in lines)
    assert "--on-bad-data skip" in advice
    loaded, report = boxes(folder, on_bad_data="skip")
    assert loaded == [BOX]
    assert f"{broken} of {broken + 1} images skipped" in report


@every_format
def test_a_data_set_with_only_broken_images_is_refused(kind, tmp_path):
    folder = write(kind, tmp_path / "data", 3)
    for number in range(3):
        box_without_a_number(kind, folder, number)
    with pytest.raises(InputError, match=r"has no usable image: 3 problems:(?s:.*)NaN"):
        open_dataset(folder, "train", on_bad_data="skip")


@every_format
def test_the_heading_of_a_list_of_problems_escapes_what_cannot_be_printed(kind, tmp_path):
    folder = write(kind, tmp_path / "\x1b[2J\u2028", 3)
    for number in range(2):
        box_without_a_number(kind, folder, number)
    with pytest.raises(InputError) as caught:
        open_dataset(folder, "train")
    heading, *problems = str(caught.value).split("\n")
    assert r"/\x1b[2J\u2028" in heading
    assert len(problems) == 3  # and the advice
    assert all(line.isprintable() for line in (heading, *problems))


def test_annotations_of_no_image_are_counted(tmp_path):
    folder = write("coco", tmp_path / "data")
    path = folder / "annotations/train.json"
    path.write_text(path.read_text().replace('"image_id": 3', '"image_id": 99'))
    assert boxes(folder, on_bad_data="skip") == (
        [BOX, BOX, BOX, []],
        "1 annotations dropped (their image is not in the file)",
    )


def test_both_images_with_the_same_id_are_skipped(tmp_path):
    """It is unknown to which of the two a box belongs."""
    folder = write("coco", tmp_path / "data")
    path = folder / "annotations/train.json"
    path.write_text(
        path.read_text().replace('"id": 3, "file', '"id": 2, "file').replace('"image_id": 3', '"image_id": 2')
    )
    loaded, report = boxes(folder, on_bad_data="skip")
    assert loaded == [BOX, BOX]
    assert "this id is used twice" in report


def test_an_image_that_is_listed_twice_is_read_once(tmp_path):
    folder = write("voc", tmp_path / "data")
    (folder / "ImageSets/Main/train.txt").write_text("00\n01\n00\n")
    loaded, report = boxes(folder, on_bad_data="skip")
    assert loaded == [BOX, BOX]
    assert "lists the image '00' twice" in report


def test_a_broken_file_of_another_split_does_not_affect_skipping(tmp_path):
    folder = write_voc(tmp_path, {"train": {"00": CAT, "01": CAT}, "test": {"02": CAT}}, 40, 20)
    box_without_a_number("voc", folder, 2)
    assert boxes(folder, on_bad_data="skip") == ([BOX, BOX], None)
    assert "02.xml" in refusal(open_dataset, folder, "train")  # it may contain a class that all splits need


def test_a_broken_annotation_file_of_all_images_is_never_skipped(tmp_path):
    folder = write("coco", tmp_path / "data")
    (folder / "annotations/train.json").write_text("{")
    assert "not well-formed JSON" in refusal(open_dataset, folder, "train", None, "skip")


@pytest.mark.parametrize("word", ["stop!", "", "SKIP", None])
def test_other_values_are_refused(word, tmp_path):
    with pytest.raises(InputError, match="--on-bad-data must be stop or skip, not"):
        open_dataset(write("voc", tmp_path), "train", on_bad_data=word)


def test_broken_unannotated_images_are_skipped(tmp_path):
    folder = write("yolo", tmp_path / "data") / "images"
    text_for_pixels("yolo", folder.parent, 0)
    pixels_cut_off("yolo", folder.parent, 1)
    images = UnlabelledImages(folder, Problems("skip"))
    assert [path.name for path in images.paths] == ["02.png", "03.png"]
    (phrase,) = images.problems
    assert phrase.startswith("2 of 4 images skipped (first problem: ")
    assert "00.png" in refusal(UnlabelledImages, folder)


def test_the_command_line_prints_one_line_per_problem(tmp_path, capsys):
    folder = write("yolo", tmp_path / "data")
    for number in range(3):
        text_for_pixels("yolo", folder, number)
    run = save_teacher(tmp_path / "run", classes=("cat",))
    arguments = ["evaluate", str(run), "--data", str(folder), "--split", "train", "--workers", "0", "--device", "cpu"]
    assert main(arguments) == 2
    heading, *lines, advice = capsys.readouterr().err.splitlines()
    assert heading.startswith("defeat: ")
    assert len(lines) == 3
    assert "--on-bad-data skip" in advice
    assert main([*arguments, "--on-bad-data", "skip"]) == 0
    printed = capsys.readouterr()
    assert "3 of 4 images skipped" in " ".join(printed.err.split())
    assert "1 image" in printed.out


def test_an_unusual_name_is_printed_verbatim(tmp_path, capsys):
    """It is not interpreted as markup, and not split into lines."""
    folder = write("yolo", tmp_path / "data")
    name = "a[b]c[end]\n" + os.fsdecode(b"\xff") + ".png"
    (folder / "images/train" / name).write_text("This is no image.")
    (folder / "images/train/[").mkdir()
    (folder / "images/train/[/b].png").write_text("This is no image.")
    run = save_teacher(tmp_path / "run", classes=("cat",))
    arguments = ["evaluate", str(run), "--data", str(folder), "--split", "train", "--workers", "0", "--device", "cpu"]
    assert main([*arguments, "--on-bad-data", "skip"]) == 0
    printed = "".join(capsys.readouterr().err.split())
    assert "2of6imagesskipped" in printed
    assert "[/b].png" in printed
    assert main(arguments) == 2
    assert r"a[b]c[end]\n\udcff.png" in capsys.readouterr().err


def test_two_runs_use_the_same_images(tmp_path):
    folder = write("voc", tmp_path / "data", 6)
    (folder / "ImageSets/Main/val.txt").write_text("04\n05\n")
    (folder / "ImageSets/Main/train.txt").write_text("00\n01\n02\n03\n")
    pixels_cut_off("voc", folder, 1)
    pixels_cut_off("voc", folder, 5)
    runs = [
        tiny_run(tmp_path / name, data=str(folder), on_bad_data="skip", max_steps=1, seed=seed)
        for seed, name in enumerate(("first", "second"))
    ]
    first, second = (results(run.folder) for run in runs)
    assert first["data_fingerprint"] == second["data_fingerprint"]
    assert (first["images"], first["on_bad_data"]) == (1, "skip")
    with pytest.raises(InputError, match="cannot be read as an image"):
        tiny_run(tmp_path / "third", data=str(folder))
