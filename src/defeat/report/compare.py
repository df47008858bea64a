"""Compares finished runs in the terminal and as a page."""

from dataclasses import replace
from pathlib import Path
from statistics import median

from rich.console import Console

from defeat.detector import load_detector
from defeat.detector.exported import is_exported, load_exported
from defeat.errors import InputError
from defeat.evaluation.profile import latencies, limited_threads, noise, profile_model
from defeat.report.html import write_report
from defeat.report.runs import RunSummary, read_export, read_run
from defeat.report.tables import print_comparison
from defeat.report.verdict import verdicts


def compare(
    runs: list[str], out: str = "report.html", threads: int = 1, console: Console | None = None
) -> list[RunSummary]:
    """Compare finished runs, print the table and the verdicts, and write a page.

    Args:
        runs: run directories, and files of `defeat export`.
        out: HTML file to write; it needs no other file.
        threads: CPU threads with which latency is measured.
        console: where to print; None for the terminal.

    Returns:
        The runs with their FLOPs and latency on this machine.

    Raises:
        InputError: one of the folders is not a finished run, or an exported file has no report.
    """
    console = console or Console()
    if all(map(is_exported, runs)):
        raise InputError("Give at least one run directory to compare the exported files with.")
    summaries = [profiled(read_run(source), threads) for source in runs if not is_exported(source)]
    exported = [profiled_export(read_export(source), threads) for source in runs if is_exported(source)]
    judged = verdicts(summaries)  # once: each takes a bootstrap of the test images
    print_comparison(summaries, console, judged, exported)
    path = write_report(summaries, out, judged, exported)
    console.print(f"\nReport: {path}", highlight=False, soft_wrap=True)
    return summaries + exported


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
    profile = profile_model(load_detector(run.folder), _profiled_size(run), threads=threads)
    conditions = _conditions(profile.size, profile.device, threads)
    return replace(run, gflops=profile.gflops, latency_ms=profile.latency_ms, measured=conditions)


def profiled_export(run: RunSummary, threads: int) -> RunSummary:
    """Add the latency of an exported file, measured like that of a run."""
    size = _profiled_size(run)
    image = noise(size)
    with limited_threads(threads):
        seconds = latencies(load_exported(run.folder), [image], image.device)
    return replace(run, latency_ms=1000 * median(seconds), measured=_conditions(size, "cpu", threads))


def _profiled_size(run: RunSummary) -> tuple[int, int]:
    size = run.size or 800
    return size, size * 4 // 3


def _conditions(size: tuple[int, int], device: str, threads: int) -> str:
    return f"{size[1]} x {size[0]} pixels, {device}, {threads} thread{'s' * (threads != 1)}, warmed up"
