"""Images with very many boxes are read."""

import pytest

from tests.bad_input.cases import boxes, table
from tests.bad_input.folders import coco, objects, planted, yolo

MANY = 50_000


@table(
    ("VOC", lambda folder: planted(folder, objects(*[(1 + k % 30, 1, 9 + k % 30, 9) for k in range(MANY)])),
     [1, 0, 10, 9]),
    ("COCO", lambda folder: coco(folder, lambda c: c.update(annotations=[
        {"id": k, "image_id": 9, "category_id": 7, "bbox": [k % 30, 0, 9, 9]} for k in range(MANY)])), [1, 0, 10, 9]),
    ("YOLO", lambda folder: yolo(folder, b"".join(b"0 %f .5 .2 .2\n" % (k % 30 / 40 + 0.1) for k in range(MANY))),
     [1, 8, 9, 12]),
)  # fmt: skip
def test_an_image_can_have_very_many_boxes(case, tmp_path):
    plant, expected = case
    found, report = boxes(plant(tmp_path))
    assert len(found[0]) == MANY
    assert found[0][31] == pytest.approx(expected)
    assert "49970 of" in report  # the same thirty boxes are repeated
