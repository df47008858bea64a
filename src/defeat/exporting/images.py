"""The images on which an exported file is calibrated and compared."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track
from torch import Tensor

from defeat.data import DataSource, DetectionDataset
from defeat.data.source import EVALUATION_SPLITS
from defeat.detector.teacher import Predictor
from defeat.engine.checkpoint import RunDirectory
from defeat.errors import InputError
from defeat.evaluation.evaluator import EvaluationResult, Evaluator


@dataclass(frozen=True)
class ExportImages:
    """A data set, and the split for the comparison.

    Attributes:
        source: the data set.
        split: name of the split.
        dataset: the split.
        console: where to show progress; None for nowhere.
    """

    source: DataSource
    split: str
    dataset: DetectionDataset
    console: Console | None = None

    @classmethod
    def of(
        cls,
        run: str | Path,
        classes: tuple[str, ...],
        data: str | None,
        split: str | None,
        console: Console | None = None,
    ) -> "ExportImages":
        """Open the given data, by default those on which the run was trained and evaluated.

        Args:
            run: what is exported.
            classes: of the detector.
            data: folder of a data set.
            split: for the comparison; by default that of the run, of other data val, else test.
            console: where to show progress; None for nowhere.

        Raises:
            InputError: the data is not given, not valid or empty, or lacks a class.
        """
        directory = RunDirectory(run) if (Path(run) / "config.yaml").is_file() else None
        settings = directory.read_config() if directory is not None else {}
        if data is None and settings.get("data") is None:
            raise InputError("Give images to compare the detections on with --data, or --verify none.")
        own = data is None or data == settings.get("data")
        source = DataSource.of(settings) if own else DataSource(str(data))
        if split is None and own and directory is not None:
            split = directory.evaluated_split()
        if split is None:
            names = source.split_names()
            split = next((name for name in EVALUATION_SPLITS if name in names), names[0])
        dataset = source.open(split, classes, console)
        if not len(dataset):
            raise InputError(f"The split {split!r} of {source.data} has no images.")
        return cls(source, split, dataset, console)

    def sample(self, count: int) -> list[Tensor]:
        """At most `count` images (3, H, W) uint8 at equal distances over the split."""
        return _spread(self.dataset, count)

    def training(self, count: int) -> list[Tensor]:
        """As `sample`, of the training split."""
        return _spread(self.source.open("train", self.dataset.classes), count)

    def evaluate(self, detector: Predictor, title: str) -> EvaluationResult:
        """Metrics of a detector on the whole split.

        Args:
            detector: the detector.
            title: of the progress bar.
        """
        evaluator = Evaluator(self.dataset.classes)
        indices = range(len(self.dataset))
        for index in track(indices, title, console=self.console, disable=self.console is None, transient=True):
            image, target = self.dataset[index]
            evaluator.update([detector.predict([image])[0].cpu()], [target])
        return evaluator.compute()

    def ap(self, detector: Predictor, title: str) -> float:
        """AP of a detector on the whole split, in percent; 0 if it is undefined."""
        return self.evaluate(detector, title).metrics["AP"] or 0.0


def _spread(dataset: DetectionDataset, count: int) -> list[Tensor]:
    step = max(1, len(dataset) // count)
    return [dataset[index][0] for index in range(0, len(dataset), step)[:count]]
