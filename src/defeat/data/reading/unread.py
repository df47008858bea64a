"""Say what a folder contains that is not a data set of a known format, and how to convert it."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from defeat.data.files import ends_of_file, is_image, walk
from defeat.data.reading.pairs import RECOGNISED_BY

_ENDS = 1 << 14  # bytes of a file that are looked into
_MOST_FILES = 100_000  # files of a folder that are looked at
_MOST_SUFFIXES = 8  # suffixes in a message


@dataclass(frozen=True)
class _Kind:
    """A kind of annotations that is not read.

    Attributes:
        name: what it is called.
        advice: how to get a format that is read.
        suffixes: suffixes of its files.
        patterns: all are in a file of the kind; none where the suffix alone says it.
    """

    name: str
    advice: str
    suffixes: tuple[str, ...]
    patterns: tuple[str, ...] = ()

    def recognises(self, suffix: str, content: bytes) -> bool:
        """Whether a file is of this kind, by its suffix, its beginning and its end."""
        return suffix in self.suffixes and all(re.search(pattern.encode(), content, re.I) for pattern in self.patterns)


_FIFTYONE = "convert it to COCO with FiftyOne (fiftyone convert)"
_ROBOFLOW = "upload it to Roboflow and export it as COCO or YOLO"
_DATASETS = "load it with the package datasets and write its boxes as COCO"
_KINDS = (
    _Kind(
        "an export of Label Studio",
        "export the project from Label Studio as COCO or YOLO",
        (".json",),
        (r'"original_width"', r'"(?:rectangle|polygon|brush)labels"'),
    ),
    _Kind("a Create ML file", _ROBOFLOW, (".json",), (r'"annotations?"', r'"coordinates"', r'"image(?:filename)?"')),
    _Kind(
        "a Supervisely file",
        "export the project from Supervisely as COCO or YOLO",
        (".json",),
        (r'"classTitle"|"projectType"|"exterior"',),
    ),
    _Kind("a BDD100K file", _FIFTYONE, (".json",), (r'"box2d"',)),
    _Kind("an export of Labelbox", _ROBOFLOW, (".ndjson", ".json"), (r'"data_row"',)),
    _Kind("a manifest of SageMaker Ground Truth", _ROBOFLOW, (".manifest", ".jsonl"), (r'"source-ref"',)),
    _Kind("a metadata file of Hugging Face", _DATASETS, (".jsonl", ".csv"), (r"\bfile_name\b", r"\bbbox\b")),
    _Kind("a Parquet or Arrow file", _DATASETS, (".parquet", ".arrow")),
    _Kind("a TFRecord file", _FIFTYONE, (".tfrecord", ".tfrecords", ".record")),
    _Kind("an Open Images CSV file", _FIFTYONE, (".csv",), (r"^\W*ImageID\b", r"\bXMin\b")),
    _Kind("a TensorFlow CSV file", _ROBOFLOW, (".csv",), (r"\bfile_?name\b", r"\bx_?min\b", r"\by_?max\b")),
    _Kind("a RetinaNet CSV file", _ROBOFLOW, (".csv",), (r"^[^,\n]+\.\w+(?:,\d+(?:\.\d+)?){4},[^,\n]+\s",)),
    _Kind("a CSV file of boxes", _ROBOFLOW, (".csv",), (r"\bx_?(?:min|1)\b|\bbbox\b",)),
    _Kind("a KITTI file", _FIFTYONE, (".txt",), (r"^[A-Za-z_]+(?: -?\d+(?:\.\d+)?){14}",)),
)
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")


def explain(path: Path, looked_for: Sequence[str]) -> str:
    """Why a path is not a data set of a known format, in a sentence.

    Args:
        path: an existing file or folder.
        looked_for: what each format looks like.
    """
    start = f"{path} is not a data set of a known format"
    files = [path] if path.is_file() else list(islice(walk(path), _MOST_FILES))
    for file, kind in _kinds_in(files):
        name = "it" if file == path else file.relative_to(path).as_posix()
        return f"{start}: {name} looks like {kind.name}, which is not read; {kind.advice}."
    archive = next((file for file in files if file.suffix.lower() in _ARCHIVES), None)
    if archive is not None and not any(map(is_image, files)):
        return f"{start}: {archive} is an archive; extract it, and give the folder."
    *others, last = looked_for
    return f"{start}: it {_content(path, files)}; looked for {', '.join(others)} and {last}."


def _kinds_in(files: Sequence[Path]) -> Iterator[tuple[Path, _Kind]]:
    """Files of a kind that is not read; looks into a few files of each suffix."""
    opened: Counter[str] = Counter()
    for file in files:
        suffix = file.suffix.lower()
        kinds = [kind for kind in _KINDS if suffix in kind.suffixes]
        opened[suffix] += 1
        if kinds and opened[suffix] <= RECOGNISED_BY:
            content = ends_of_file(file, _ENDS)
            yield from ((file, kind) for kind in kinds if kind.recognises(suffix, content))


def _content(path: Path, files: Sequence[Path]) -> str:
    """What a path contains, by suffix."""
    if path.is_file():
        return "is a single file"
    if not files:
        return "contains no files"
    counts = Counter(file.suffix.lower() for file in files)
    listed = [f"{count} {suffix[:20] or 'without a suffix'}" for suffix, count in counts.most_common(_MOST_SUFFIXES)]
    images = "only images, without annotations" if all(map(is_image, files)) else "these files"
    return f"contains {images} ({', '.join(listed)})"
