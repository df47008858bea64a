"""Compares finished runs in the terminal and as a page."""

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from defeat.detector import load_detector
from defeat.evaluation.profile import profile_model
from defeat.report.html import write_report
from defeat.report.runs import RunSummary, read_run
from defeat.report.tables import print_comparison
from defeat.report.verdict import verdicts


def compare(
    runs: list[str], out: str = "report.html", threads: int = 1, console: Console | None = None
) -> list[RunSummary]:
    """Compare finished runs, print the table and the verdicts, and write a page.

    Args:
        runs: run directories.
        out: HTML file to write; it needs no other file.
        threads: CPU threads with which latency is measured.
        console: where to print; None for the terminal.

    Returns:
        The runs with their FLOPs and latency on this machine.

    Raises:
        InputError: one of the folders is not a finished run.
    """
    console = console or Console()
    summaries = [profiled(read_run(folder), threads) for folder in runs]
    judged = verdicts(summaries)  # once: each takes a bootstrap of the test images
    print_comparison(summaries, console, judged)
    path = write_report(summaries, out, judged)
    console.print(f"\nReport: {path}", highlight=False, soft_wrap=True)
    return summaries


def report_run(folder: Path, console: Console | None = None) -> None:
    """Write the report of one run into its folder; it includes the teacher where its run is available."""
    run = read_run(folder)
    runs = [run]
    if run.teacher and (Path(run.teacher) / "results.json").is_file():
        runs.insert(0, read_run(run.teacher))
    runs = [profiled(summary, threads=1) for summary in runs]
    console = console or Console()
    judged = verdicts(runs)
    print_comparison(runs, console, judged)
    path = write_report(runs, folder / "report.html", judged)
    console.print(f"\nReport: {path}", highlight=False, soft_wrap=True)


def profiled(run: RunSummary, threads: int) -> RunSummary:
    """Add FLOPs and latency to a run, measured on this machine, because latencies of two machines can't be compared.

    Both are those of `predict` on one image of the detector's input size, aspect ratio 4:3.
    """
    size = run.size or 800
    profile = profile_model(load_detector(run.folder), (size, size * 4 // 3), threads=threads)
    height, width = profile.size
    conditions = f"{width} x {height} pixels, {profile.device}, {threads} thread{'s' * (threads != 1)}, warmed up"
    return replace(run, gflops=profile.gflops, latency_ms=profile.latency_ms, measured=conditions)
