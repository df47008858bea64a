"""The run directory: what is in it, and how it is opened."""

import json
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities import rank_zero_only

from defeat.detector.files import write_atomically, write_into
from defeat.engine.settings import TrainSettings, defaults
from defeat.errors import InputError


def is_writer() -> bool:
    """Whether this process is the one of all that writes files."""
    return not getattr(rank_zero_only, "rank", 0)


class RunDirectory:
    """The unit of work, and the only thing that commands pass to each other.

    Attributes:
        folder: where everything is.
        config: `config.yaml`, all that is needed to repeat the run.
        checkpoint: `checkpoints/last.ckpt`, to resume.
        metrics: `metrics.jsonl`, a line a logged step or evaluation.
        detections: `detections.safetensors`, what the trained detector found in the evaluation split, and the truth.
        results: `results.json`, the final figures and where they come from.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.config = self.folder / "config.yaml"
        self.checkpoint = self.folder / "checkpoints" / "last.ckpt"
        self.metrics = self.folder / "metrics.jsonl"
        self.detections = self.folder / "detections.safetensors"
        self.results = self.folder / "results.json"

    def open(self, command: str, settings: TrainSettings) -> Path | None:
        """Make the folder, or go back to it.

        Args:
            command: `train` or `distill`.
            settings: settings of the run; with `resume` they must be those it was begun with.

        Returns:
            The checkpoint to go on from, or None.

        Raises:
            InputError: the folder holds another run, or nothing to resume, or can't be written.
        """
        if not is_writer():  # the first process of all has opened it
            return self.checkpoint if settings.resume else None
        text = yaml.safe_dump({"command": command, **settings.to_dict()}, sort_keys=False)
        if settings.resume:
            return self._reopen(yaml.safe_load(text))  # as the file has it: lists for tuples
        self.require_free(settings)
        write_into(self.folder, self.config.name, text.encode())
        self.checkpoint.parent.mkdir(exist_ok=True)
        return None

    def require_free(self, settings: TrainSettings) -> None:
        """Refuse a folder with another run, unless it is resumed or another process of this run has opened it.

        Raises:
            InputError: the folder holds a run.
        """
        if is_writer() and not settings.resume and (self.config.exists() or self.results.exists()):
            raise InputError(f"{self.folder} already holds a run; give another --out, or --resume to go on with it.")

    def _reopen(self, content: dict[str, Any]) -> Path:
        if not self.checkpoint.is_file():
            raise InputError(f"{self.folder} has no checkpoint to resume from ({self.checkpoint} is missing).")
        begun = self.read_config()
        # Where and how often things are written or shown does not change the training.
        free = {"out", "workers", "log_every", "cache_teacher", "cache_limit"}
        begun = defaults() | begun  # a setting that was not there yet was at its default
        changed = [
            f"{name} was {begun.get(name)!r} and is {content[name]!r}"
            for name in content
            if name not in free and begun.get(name) != content[name]
        ]
        if changed:
            raise InputError(f"{self.folder} can't be resumed with other settings: {'; '.join(changed)}.")
        return self.checkpoint

    def read_config(self) -> dict[str, Any]:
        """Settings of the run.

        Raises:
            InputError: there are none, or they are not valid.
        """
        try:
            content = yaml.safe_load(self.config.read_text())
        except OSError as error:
            raise InputError(f"{self.folder} is not a run directory: {self.config.name} can't be read.") from error
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise InputError(f"{self.config} is not valid YAML.") from error
        if not isinstance(content, dict):
            raise InputError(f"{self.config} does not hold the settings of a run.")
        return content

    def evaluated_split(self) -> str | None:
        """The split that a finished run was evaluated on, or the one that its settings name; None without either."""
        try:
            split = json.loads(self.results.read_text()).get("split")
        except (OSError, ValueError, AttributeError):
            split = None
        return split or self.read_config().get("eval_split")

    def write_results(self, results: dict[str, Any]) -> None:
        """Write the final figures."""
        write_atomically(self.results, (json.dumps(results, indent=2) + "\n").encode())
