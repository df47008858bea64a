"""COCO data sets of two images with both boxes in the first, and changes of their content."""

from tests.data.folders import coco_content, write_coco, write_image

FIRST_BOXES = [[2, 3, 12, 23], [0.5, 1, 4.5, 6.5]]
BY_END = "images found by the end of their file_name (as it is, it names no file of the data set)"


def write_images(folder):
    write_image(folder / "a.png")
    write_image(folder / "sub/b.png")


def content_with(change):
    content = coco_content()
    change(content)
    return content


def renamed(first, second="sub/b.png"):
    """Content with these names of the images."""

    def change(content):
        content["images"][0]["file_name"], content["images"][1]["file_name"] = first, second

    return content_with(change)


def standard(folder, content):
    """A folder with the split train, of the images a.png and sub/b.png."""
    write_images(folder / "train2017")
    return write_coco(folder, content)


def names(dataset):
    return [sample.name for sample in dataset.samples]
