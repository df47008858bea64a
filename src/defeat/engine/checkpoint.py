"""The run directory: its files, and how it is opened and locked."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities import rank_zero_only

from defeat.engine.experiment import Record
from defeat.engine.lock import RunLock
from defeat.engine.optimisation import LENGTH
from defeat.errors import InputError
from defeat.files import remove_leftovers, write_atomically, write_into


def is_writer() -> bool:
    """Whether this process writes files: the first of several processes."""
    return not getattr(rank_zero_only, "rank", 0)


class RunDirectory:
    """The directory of a run, the only thing that commands pass to each other.

    Attributes:
        folder: the directory.
        config: `config.yaml`, all settings, enough to repeat the run.
        checkpoint: `checkpoints/last.ckpt`, to resume.
        metrics: `metrics.jsonl`, one line per logged step and per evaluation.
        detections: `detections.safetensors`, detections and ground truth of the evaluation split.
        results: `results.json`, the final metrics and their provenance.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.config = self.folder / "config.yaml"
        self.checkpoint = self.folder / "checkpoints" / "last.ckpt"
        self.metrics = self.folder / "metrics.jsonl"
        self.detections = self.folder / "detections.safetensors"
        self.results = self.folder / "results.json"
        self.abandoned = False  # whether a process that ended left its lock

    @contextmanager
    def locked(self, notify: Callable[[str], None] = lambda _: None) -> Iterator[None]:
        """Keep other processes from writing into the folder.

        Args:
            notify: called with a message if a process that held the lock was killed.

        Raises:
            LockedError: another process holds the lock.
            InputError: the folder can't be written.
        """
        if not is_writer():
            yield
            return
        lock = RunLock(self.folder)
        self.abandoned = lock.take(notify)
        try:
            yield
        except BaseException as error:
            # If a run is stopped before anything else is written, only its lock shows that it was started.
            if isinstance(error, Exception) or self.config.exists():
                lock.release()
            raise
        lock.release()

    def open(self, record: Record) -> Path | None:
        """Create the directory, or open it to resume the run.

        Args:
            record: record of the run; a resumed run must have the settings that it was started with, but for those in
                `LENGTH`, which need the checkpoint to be judged (see `engine/length.py`).

        Returns:
            The checkpoint to resume from, or None to start at the first step.

        Raises:
            InputError: the directory contains another run, or nothing to resume, or can't be written.
        """
        if not is_writer():  # the first process has opened it
            return self.checkpoint if record.resume and self.checkpoint.is_file() else None
        content = {"command": record.command, **record.values}
        if record.resume:
            self._require_same_settings(as_in_file(content), record)
        else:
            self.require_free(record.resume)
        for folder in (self.folder, self.checkpoint.parent):
            remove_leftovers(folder)
        if record.resume and self.checkpoint.is_file():
            return self.checkpoint
        self.metrics.unlink(missing_ok=True)  # of a run that was killed before its first checkpoint
        self.write_config(content)
        try:
            self.checkpoint.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.checkpoint.parent} can't be written ({error.strerror}).") from error
        return None

    def require_free(self, resume: bool) -> None:
        """Refuse a directory with another run, unless it is resumed or another process of this run has opened it.

        Raises:
            InputError: the directory contains a run.
        """
        if is_writer() and not resume and (self.config.exists() or self.results.exists()):
            raise InputError(f"{self.folder} already contains a run; give another --out, or --resume to continue it.")

    @property
    def resumable(self) -> bool:
        """Whether the directory contains a run that can be resumed, from a checkpoint or from its first step."""
        # A model is written after the first checkpoint: if there is only a model, the checkpoint was removed.
        trained = self.results.exists() or (self.folder / "model.json").exists()
        return self.checkpoint.is_file() or (not trained and (self.config.exists() or self.abandoned))

    def _require_same_settings(self, content: dict[str, Any], record: Record) -> None:
        """Refuse to resume a run that does not exist, or was started with other settings."""
        if not self.resumable:
            raise InputError(
                f"{self.folder} has no checkpoint to resume from ({self.checkpoint} is missing): leave out --resume to "
                "start a run, in another --out if there is a run already."
            )
        if not self.checkpoint.is_file() and not self.config.exists():
            return  # killed before it had written its settings
        self.require_same(content, record)

    def require_same(self, content: Mapping[str, Any], record: Record) -> None:
        """Refuse settings other than those in `config.yaml`.

        Args:
            content: the settings.
            record: says which of them may differ.

        Raises:
            InputError: naming those that differ.
        """
        before, content = self.read_config(), as_in_file(content)
        if self.checkpoint.is_file():
            before, content = dict(record.recorded(before)), dict(record.recorded(content))
        checked = content.keys() - record.free - set(LENGTH)
        changed = list(_changes(before, {name: value for name, value in content.items() if name in checked}))
        if changed:
            raise InputError(f"{self.folder} can't be resumed with other settings: {'; '.join(changed)}.")

    def write_config(self, content: Mapping[str, Any]) -> None:
        """Write the settings of the run."""
        write_into(self.folder, self.config.name, yaml.safe_dump(dict(content), sort_keys=False).encode())

    def read_config(self) -> dict[str, Any]:
        """Settings of the run.

        Raises:
            InputError: the file is missing or not valid.
        """
        try:
            content = yaml.safe_load(self.config.read_text())
        except OSError as error:
            raise InputError(f"{self.folder} is not a run directory: {self.config.name} can't be read.") from error
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise InputError(f"{self.config} is not valid YAML.") from error
        if not isinstance(content, dict):
            raise InputError(f"{self.config} does not contain the settings of a run.")
        return content

    def evaluated_split(self) -> str | None:
        """The evaluation split of a finished run, or else that of its settings; None without either."""
        try:
            split = json.loads(self.results.read_text()).get("split")
        except (OSError, ValueError, AttributeError):
            split = None
        return split or self.read_config().get("eval_split")

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file into the folder; of several processes only the first one writes."""
        if is_writer():
            write_into(self.folder, name, (json.dumps(content, indent=2) + "\n").encode())

    def write_results(self, results: dict[str, Any]) -> None:
        """Write the final results."""
        write_atomically(self.results, (json.dumps(results, indent=2) + "\n").encode())


def as_in_file(content: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a file has them: lists instead of tuples."""
    values: dict[str, Any] = yaml.safe_load(yaml.safe_dump(dict(content)))
    return values


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], group: str = "") -> Iterator[str]:
    """Descriptions of the settings that differ, including nested ones."""
    for name in dict.fromkeys([*now, *before]) if group else [name for name in now if name in before]:
        was, value = before.get(name), now.get(name)
        if isinstance(was, dict) and isinstance(value, dict):
            yield from _changes(was, value, f"{group}{name}.")
        elif was != value:
            yield f"{group}{name} was {was!r} and is {value!r}"
