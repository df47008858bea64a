"""Publishes the student of a run on the Hugging Face hub, with a model card made from what the run recorded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from defeat.detector.hub import ADVICE, DESCRIPTION, WEIGHTS
from defeat.detector.model_files import read_description
from defeat.detector.transformers_models import HUB_PREFIX
from defeat.errors import InputError, first_line
from defeat.evaluation.bootstrap import SAMPLES
from defeat.files import WriteError, write_atomically
from defeat.report.gains import Bootstrap
from defeat.report.runs import RunSummary, read_run
from defeat.report.tables import decimal
from defeat.report.verdict import verdicts

CARD = "README.md"
MOST_CLASSES = 100  # that a card lists


def push(
    run: str,
    repository: str,
    baseline: str | None = None,
    licence: str = "",
    data_licence: str = "",
    files: list[str] | None = None,
    private: bool = False,
    card: str | None = None,
    console: Console | None = None,
) -> str:
    """Publish the student of a run on the Hugging Face hub.

    The repository gets the weights, their description and a model card with AP, its 95 % interval, data, method and
    teacher. Settings and logs, which name folders of this machine, are not published. `hf:ORG/NAME` is then a detector:
    for `--teacher`, for `defeat predict`, and for `defeat.load`.

    Args:
        run: run directory of the student.
        repository: name of the repository, ORG/NAME; it is created if it does not exist.
        baseline: run directory of the same student trained without a teacher: the card states the gain.
        licence: licence of the weights, as an identifier of the hub, such as apache-2.0.
        data_licence: licence of the training data, in words, such as CC BY 4.0.
        files: more files to publish, such as those of `defeat export`.
        private: whether a new repository is private.
        card: file to write the model card to, without sending anything.
        console: console for progress; None for the terminal.

    Returns:
        Address of the repository, or path of the card.

    Raises:
        InputError: the run is not finished, the name is not valid, a file does not exist, or the hub refuses or can't
            be reached.
    """
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise InputError(f"{repository} is not the name of a repository: give ORG/NAME.")
    more = [Path(name) for name in files or []]
    for path in more:
        if not path.is_file():
            raise InputError(f"{path} is not a file.")
    summary = read_run(run)
    text = model_card(summary, repository, None if baseline is None else read_run(baseline), licence, data_licence)
    console = console or Console()
    if card is not None:
        try:
            write_atomically(Path(card), text.encode())
        except WriteError as error:
            raise InputError(f"--card {error}") from error
        console.print(f"Model card: {card}", highlight=False, soft_wrap=True)
        return card
    address = _send(summary, repository, text, more, private)
    console.print(f"Published: {address}\nUse it as {HUB_PREFIX}{repository}.", highlight=False, soft_wrap=True)
    return address


def model_card(
    run: RunSummary, repository: str, baseline: RunSummary | None = None, licence: str = "", data_licence: str = ""
) -> str:
    """Write the model card of a run.

    Args:
        run: the run.
        repository: name of the repository.
        baseline: the same student trained without a teacher.
        licence: licence of the weights, an identifier of the hub.
        data_licence: licence of the training data, in words.

    Returns:
        Markdown with a YAML head.
    """
    classes = list(run.per_class)
    listed = ", ".join(classes[:MOST_CLASSES]) + (" .." if len(classes) > MOST_CLASSES else "")
    data = Path(run.data).name or "unknown data"
    taught = [] if run.command != "distill" else [f"- Teacher: {_teacher(run)}, method `{run.method}`"]
    gains = [] if baseline is None else _gain(run, baseline)
    lines = [
        *_head(run, repository, data, licence),
        f"# {repository.split('/')[1]}",
        "",
        f"An object detector trained with DeFeat: `{run.family}` on `{run.backbone}`, {_millions(run.parameters)} "
        f"parameters, images of {run.size} pixels.",
        "",
        f"- Classes: {listed}",
        f"- Training data: {data}" + (f" ({data_licence})" if data_licence else ", licence not stated"),
        *taught,
        f"- Training: {run.epochs} epochs, seed {run.seed}",
        "",
        "## Accuracy",
        "",
        f"On the split `{run.split}` of {data}, {run.images} images:",
        "",
        *_table(run),
        "",
        *([run.warning, ""] if run.warning else []),
        *gains,
        "## Use",
        "",
        "```python",
        "import defeat",
        "",
        f'detector = defeat.load("{HUB_PREFIX}{repository}")',
        'detections = detector.predict("photo.jpg")',
        "```",
        "",
    ]
    return "\n".join(lines)


def _head(run: RunSummary, repository: str, data: str, licence: str) -> list[str]:
    """The YAML head, which the hub reads."""
    metric = run.metrics.get("AP")
    head: dict[str, Any] = {
        "library_name": "defeat",
        "pipeline_tag": "object-detection",
        "tags": ["object-detection", *(["knowledge-distillation"] if run.command == "distill" else [])],
    }
    if licence:
        head["license"] = licence
    if metric is not None:
        result = {
            "task": {"type": "object-detection"},
            "dataset": {"type": data, "name": data, "split": run.split},
            "metrics": [{"type": "mean_average_precision", "name": "AP", "value": round(metric, 1)}],
        }
        head["model-index"] = [{"name": repository.split("/")[1], "results": [result]}]
    return ["---", *yaml.safe_dump(head, sort_keys=False).splitlines(), "---", ""]


def _teacher(run: RunSummary) -> str:
    """The teacher in words, without its folder on this machine."""
    name = run.teacher or ""
    if ":" in name and not Path(name).exists():
        return f"`{name}`"
    try:
        description = read_description(Path(name))
        return f"`{description['family']}` on `{description['backbone']}`"
    except (InputError, KeyError):  # it was moved, or is no detector of this program
        return run.teacher_kind or "a detector"


def _table(run: RunSummary) -> list[str]:
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    rows = ["| | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    rows.append("| all classes | " + " | ".join(decimal(run.metrics.get(name)) for name in names) + " |")
    known = run.metrics.get("AP") is not None
    if known and (interval := Bootstrap(run, SAMPLES).accuracy(run)) is not None:
        rows += ["", f"95 % interval of AP over the images: {interval.low:.1f} to {interval.high:.1f}."]
    return rows


def _gain(run: RunSummary, baseline: RunSummary) -> list[str]:
    """The gain over the baseline in words, as in a report."""
    if run.command != "distill":
        raise InputError(f"{run.folder} was trained without a teacher: leave out --baseline.")
    (verdict,) = verdicts([baseline, run])
    if verdict.gain is None:
        raise InputError(verdict.sentence)
    text = verdict.sentence.replace(f"{run.name}: ", "Distillation: ", 1)
    return [f"{text} {verdict.caution}".strip(), ""]


def _millions(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 1e6:.1f} M"


def _send(run: RunSummary, repository: str, card: str, more: Sequence[Path], private: bool) -> str:
    """Create the repository and commit the files; returns its address."""
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    sent = [*(run.folder / name for name in (DESCRIPTION, WEIGHTS)), *more]
    operations = [CommitOperationAdd(path_in_repo=path.name, path_or_fileobj=path) for path in sent]
    operations.append(CommitOperationAdd(path_in_repo=CARD, path_or_fileobj=card.encode()))
    api = HfApi()
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.create_commit(repository, operations, commit_message=f"Detector with AP {decimal(run.metrics.get('AP'))}")
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:
        raise InputError(f"{repository} can't be published: {first_line(error)}. {ADVICE}") from error
    return str(address)
