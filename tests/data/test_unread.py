"""What is not a data set of a known format: a sentence says what it is."""

import json
import os

import pytest

from defeat.data import open_dataset
from defeat.errors import InputError
from tests.data.folders import write_image

STUDIO = [{"id": 1, "annotations": [{"result": [{
    "original_width": 40, "original_height": 30, "value": {"x": 1, "rectanglelabels": ["cat"]}, "from_name": "label",
}]}], "data": {"image": "/data/upload/a.jpg"}}]  # fmt: skip
CREATE_ML = [{"image": "a.jpg", "annotations": [{"label": "cat", "coordinates": {"x": 1, "y": 2, "width": 3}}]}]
SUPERVISELY = {"size": {}, "objects": [{"classTitle": "cat", "points": {"exterior": [[1, 2], [3, 4]], "interior": []}}]}
KITTI = "Pedestrian 0.00 0 -0.20 712.40 143.00 810.73 307.92 1.89 0.48 1.20 1.84 1.47 8.41 0.01\n"
BDD = [{"name": "a.jpg", "labels": [{"category": "car", "box2d": {"x1": 1}}]}]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("project-1.json", json.dumps(STUDIO), "an export of Label Studio, .* from Label Studio as COCO or YOLO"),
        ("_annotations.createml.json", json.dumps(CREATE_ML), "a Create ML file, .*Roboflow"),
        ("ds/ann/a.jpg.json", json.dumps(SUPERVISELY), "a Supervisely file"),
        ("bdd.json", json.dumps(BDD), "a BDD100K file, .*FiftyOne"),
        ("labels/a.txt", KITTI, "a KITTI file, .*FiftyOne"),
        ("train.tfrecord", "\0\1", "a TFRecord file, .*FiftyOne"),
        (
            "train.csv",
            "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,4,3,cat,1,1,2,2\n",
            "a TensorFlow CSV file",
        ),
        ("boxes.csv", "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax\n", "an Open Images CSV file"),
        ("retina.csv", "images/a.jpg,1,2,3,4,cat\n", "a RetinaNet CSV file"),
        ("wheat.csv", "image_id,width,height,bbox\n", "a CSV file of boxes"),
        ("out.manifest", '{"source-ref": "s3://x/a.jpg"}', "a manifest of SageMaker"),
        ("metadata.jsonl", '{"file_name": "a.jpg", "objects": {"bbox": [[1]]}}', "a metadata file of Hugging Face"),
        ("data/train.parquet", "PAR1", "a Parquet or Arrow file"),
    ],
)
def test_a_known_kind_is_named_with_a_way_to_convert_it(tmp_path, name, content, expected):
    write_image(tmp_path / "images/a.png")
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=f"not a data set of a known format: {name} looks like {expected}"):
        open_dataset(tmp_path, "train")


@pytest.mark.parametrize("name", ["a.json", "a.csv"])
def test_a_pipe_is_not_opened(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match="not a data set of a known format"):
        open_dataset(tmp_path, "train")


def test_an_archive_is_to_be_extracted(tmp_path):
    (tmp_path / "export.zip").write_bytes(b"PK")
    for path in (tmp_path, tmp_path / "export.zip"):
        with pytest.raises(InputError, match=r"export\.zip is an archive; extract it"):
            open_dataset(path, "train")


def test_images_alone_are_named(tmp_path):
    write_image(tmp_path / "a.png")
    write_image(tmp_path / "b.png")
    with pytest.raises(InputError, match=r"it contains only images, without annotations \(2 \.png\); looked for a VOC"):
        open_dataset(tmp_path, "train")


def test_files_are_counted_by_suffix(tmp_path):
    write_image(tmp_path / "a.png")
    for name in ("a.xyz", "b.xyz", "README", "._c.xyz"):
        (tmp_path / name).write_text("nothing")
    with pytest.raises(InputError, match=r"contains these files \(2 \.xyz, 1 without a suffix, 1 \.png\).*CVAT"):
        open_dataset(tmp_path, "train")


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="it contains no files; looked for"):
        open_dataset(tmp_path, "train")
