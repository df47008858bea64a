"""Did it help? Finished runs side by side, in the terminal and as a page."""

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from defeat.detector import load
from defeat.evaluation.profile import profile_model
from defeat.report.html import write_report
from defeat.report.runs import RunSummary, read_run
from defeat.report.tables import print_comparison
from defeat.report.verdict import verdicts


def compare(
    runs: list[str], out: str = "report.html", threads: int = 1, console: Console | None = None
) -> list[RunSummary]:
    """Compare finished runs, print the table and the verdict, and write a page.

    Args:
        runs: run directories.
        out: the page to write: one self-contained file.
        threads: threads of the processor that the measured detectors may use.
        console: where to print; None for the terminal.

    Raises:
        InputError: one of the folders is not a finished run.
    """
    console = console or Console()
    found = [profiled(read_run(folder), threads) for folder in runs]
    judged = verdicts(found)  # once: each looks at two thousand samples of the test images
    print_comparison(found, console, judged)
    path = write_report(found, out, judged)
    console.print(f"\nReport: {path}", highlight=False, soft_wrap=True)
    return found


def report_run(folder: Path, console: Console | None = None) -> None:
    """Write the report of one run into its folder, beside that of its teacher if it has one that is at hand."""
    run = read_run(folder)
    runs = [run]
    if run.teacher and (Path(run.teacher) / "results.json").is_file():
        runs.insert(0, read_run(run.teacher))
    runs = [profiled(one, threads=1) for one in runs]
    console = console or Console()
    judged = verdicts(runs)
    print_comparison(runs, console, judged)
    path = write_report(runs, folder / "report.html", judged)
    console.print(f"\nReport: {path}", highlight=False, soft_wrap=True)


def profiled(run: RunSummary, threads: int) -> RunSummary:
    """The run with its cost, measured here and now: figures of several runs are comparable only from one machine.

    FLOPs and latency are those of `predict` on one image of the size that the detector works at, side ratio 4:3.
    """
    size = run.size or 800
    profile = profile_model(load(run.folder), (size, size * 4 // 3), threads=threads)
    height, width = profile.size
    words = f"{width} x {height} pixels, {profile.device}, {threads} thread{'s' * (threads != 1)}, warmed up"
    return replace(run, gflops=profile.gflops, latency_ms=profile.latency_ms, measured=words)
