"""Small data sets with one annotation file that a test chooses."""

from tests.data.folders import coco_content, voc_object, write_coco, write_image, write_voc, write_yolo

CAT = voc_object("cat", (1, 1, 9, 9))


def planted(folder, text):
    """A VOC folder with images a and b, where a has this annotation file."""
    write_voc(folder, {"train": {"a": "", "b": CAT}})
    (folder / "Annotations/a.xml").write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


def objects(*corners, extra=""):
    return f"<annotation>{''.join(voc_object('cat', box, extra) for box in corners)}</annotation>"


def coco(folder, change):
    """A COCO folder with two images and two boxes, both in the first, after a change of its content or text."""
    write_image(folder / "train2017/a.png")
    write_image(folder / "train2017/sub/b.png")
    content = coco_content()
    if callable(change):
        change(content)
        return write_coco(folder, content)
    write_coco(folder, content)
    (folder / "annotations/instances_train2017.json").write_bytes(change)
    return folder


def yolo(folder, labels=b"0 .5 .5 .5 .5", yaml="train: images/train\nnames: [cat, dog]\n"):
    """A YOLO folder with the images a and b, of which a has these labels."""
    write_yolo(folder, {"a": "", "b": "1 .5 .5 1 1"}, yaml)
    (folder / "labels/train/a.txt").write_bytes(labels)
    return folder
