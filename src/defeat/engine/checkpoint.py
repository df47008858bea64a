"""The run directory: what is in it, and how it is opened."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities import rank_zero_only

from defeat.engine.experiment import Record
from defeat.engine.lock import RunLock
from defeat.errors import InputError
from defeat.files import remove_leftovers, write_atomically, write_into


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
        self.abandoned = False  # whether a process that is gone left its lock

    @contextmanager
    def locked(self, notify: Callable[[str], None] = lambda _: None) -> Iterator[None]:
        """Keep other processes from writing into the folder.

        Args:
            notify: called with a sentence where a process was killed that held the folder.

        Raises:
            LockedError: another process holds it.
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
            # A run that is stopped before anything else is written has only its lock to show that it was begun.
            if isinstance(error, Exception) or self.config.exists():
                lock.release()
            raise
        lock.release()

    def open(self, record: Record) -> Path | None:
        """Make the folder, or go back to it.

        Args:
            record: of the run; one that is resumed must have the settings that it was begun with.

        Returns:
            The checkpoint to go on from, or None to begin at the first step.

        Raises:
            InputError: the folder holds another run, or nothing to resume, or can't be written.
        """
        if not is_writer():  # the first process of all has opened it
            return self.checkpoint if record.resume and self.checkpoint.is_file() else None
        text = yaml.safe_dump({"command": record.command, **record.values}, sort_keys=False)
        if record.resume:
            self._require_same(yaml.safe_load(text), record)  # as the file has it: lists for tuples
        else:
            self.require_free(record.resume)
        for folder in (self.folder, self.checkpoint.parent):
            remove_leftovers(folder)
        if record.resume and self.checkpoint.is_file():
            return self.checkpoint
        self.metrics.unlink(missing_ok=True)  # of a run that was killed before its first checkpoint
        write_into(self.folder, self.config.name, text.encode())
        try:
            self.checkpoint.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.checkpoint.parent} can't be written ({error.strerror}).") from error
        return None

    def require_free(self, resume: bool) -> None:
        """Refuse a folder with another run, unless it is resumed or another process of this run has opened it.

        Raises:
            InputError: the folder holds a run.
        """
        if is_writer() and not resume and (self.config.exists() or self.results.exists()):
            raise InputError(f"{self.folder} already holds a run; give another --out, or --resume to go on with it.")

    @property
    def begun(self) -> bool:
        """Whether the folder holds a run that can be resumed, from a checkpoint or from its first step."""
        # A model is written behind the first checkpoint: where it is alone, the checkpoint was removed.
        trained = self.results.exists() or (self.folder / "model.json").exists()
        return self.checkpoint.is_file() or (not trained and (self.config.exists() or self.abandoned))

    def _require_same(self, content: dict[str, Any], record: Record) -> None:
        """Refuse to resume what was not begun, or was begun with other settings."""
        if not self.begun:
            raise InputError(
                f"{self.folder} has no checkpoint to resume from ({self.checkpoint} is missing): leave out --resume to "
                "begin a run, in another --out if there is a run already."
            )
        if not self.checkpoint.is_file() and not self.config.exists():
            return  # killed before it had written its settings
        begun = self.read_config()
        if self.checkpoint.is_file():
            begun = {**record.earlier, **begun}  # a setting that was not there yet was at its default
        changed = [
            f"{name} was {begun[name]!r} and is {content[name]!r}"
            for name in content
            if name not in record.free and name in begun and begun[name] != content[name]
        ]
        if changed:
            raise InputError(f"{self.folder} can't be resumed with other settings: {'; '.join(changed)}.")

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
