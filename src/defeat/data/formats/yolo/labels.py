"""Label files of YOLO: a line per object, `class cx cy width height` relative to the size of the image.

A sixth column is a confidence, as predictions have it. A line with more columns is a polygon, `class x1 y1 x2 y2 ...`;
its extent is the box.
"""

from collections.abc import Mapping
from pathlib import Path

from defeat.data.dataset import Annotation, finite
from defeat.data.files import read_lines
from defeat.errors import InputError

_BEGINNING = 4096  # bytes that are looked into, to recognise a file
_BOX, _CONFIDENCE, _POLYGON = 5, 6, 7  # numbers of columns; of a polygon, the least


class LabelReader:
    """Reads the label files of a split.

    Args:
        names: the classes by their index.

    Attributes:
        confidences: number of boxes whose line has a confidence.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        self.confidences = 0
        self._names = names

    def read(self, file: Path, size: tuple[int, int]) -> list[Annotation]:
        """Read a file.

        Args:
            file: the label file.
            size: height and width of its image, in pixels.

        Raises:
            InputError: a line is invalid.
        """
        annotations, confidences = [], 0
        for number, line in enumerate(read_lines(file), 1):
            if columns := line.split():
                annotations.append(_read_line(columns, self._names, size, f"{file}, line {number}"))
                confidences += len(columns) == _CONFIDENCE
        self.confidences += confidences
        return annotations

    def notes(self) -> list[str]:
        """A phrase for each kind of repair so far."""
        if not self.confidences:
            return []
        return [f"a sixth column (confidence) ignored in {self.confidences} lines"]


def is_label_file(file: Path) -> bool:
    """Whether the first line of a file is a label, judged by the beginning of the file."""
    try:
        with file.open("rb") as stream:
            beginning = stream.read(_BEGINNING)
    except OSError:
        return False
    text = beginning.decode("utf-8-sig", "replace").strip()
    columns = text.partition("\n")[0].split()
    if len(beginning) == _BEGINNING and "\n" not in text:
        columns = columns[:-1]  # which may be cut off
    try:
        values = [float(column) for column in columns]
    except ValueError:
        return False
    return len(values) >= _BOX and values[0] >= 0 and values[0].is_integer()


def _read_line(columns: list[str], names: Mapping[int, str], size: tuple[int, int], where: str) -> Annotation:
    try:
        values = [float(column) for column in columns]
    except ValueError as error:
        raise InputError(f"{where}: {error}.") from error
    if len(values) not in (_BOX, _CONFIDENCE) and (len(values) < _POLYGON or len(values) % 2 == 0):
        raise InputError(
            f"{where} has {len(values)} columns; expected a class and 'cx cy width height', or three or more points."
        )
    finite(values, where)
    if len(values) == _CONFIDENCE and not 0 <= values[-1] <= 1:
        # Such as the angle of an oriented box.
        raise InputError(
            f"{where} has 6 columns, of which the last, {columns[-1]}, is not a confidence from 0 to 1; expected a "
            "class and 'cx cy width height'."
        )
    index = int(values[0])
    if index != values[0] or index not in names:
        raise InputError(f"{where}: unknown class {columns[0]}; indices range from {min(names)} to {max(names)}.")
    height, width = size
    x1, y1, x2, y2 = _corners(values[1:])
    return Annotation((x1 * width, y1 * height, x2 * width, y2 * height), names[index])


def _corners(values: list[float]) -> tuple[float, float, float, float]:
    """Corners of a box, or of the extent of a polygon."""
    if len(values) >= _POLYGON - 1:
        xs, ys = values[::2], values[1::2]
        return min(xs), min(ys), max(xs), max(ys)
    cx, cy, w, h = values[:4]
    return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
