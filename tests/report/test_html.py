"""The report as one HTML file."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest

from defeat.report.html import render, write_report
from defeat.report.runs import read_run
from tests.report.made_up_runs import write_run, write_story

VOID = {"meta", "br", "img"}
SCRIPT = files("defeat.report").joinpath("templates", "page.js").read_text()


class _Balance(HTMLParser):
    """Fails when an element is closed that was not the last one opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _check(page: str) -> set[str]:
    balance = _Balance()
    balance.feed(page)
    balance.close()
    assert balance.open == []
    return balance.tags


def test_the_report_contains_gain_cost_and_origin(tmp_path: Path) -> None:
    runs = [read_run(folder) for folder in write_story(tmp_path)]
    path = write_report(runs, tmp_path / "new" / "report.html")
    page = path.read_text(encoding="utf-8")
    tags = _check(page)
    assert {"svg", "table", "style"} <= tags
    for expected in (
        "Did distillation help?",
        "+4.0 AP points",
        "40 %",
        "4.0x",
        "4.8x",
        "One seed each",
        "loss_classifier",
    ):
        assert expected in page
    for expected in ("f00d", "abc123", "torch 2.11", "some CPU", "--config"):
        assert expected in page
    assert page.index("resnet101") < page.index("distilled (defeat)")


def test_the_report_needs_no_other_file(tmp_path: Path) -> None:
    page = render([read_run(folder) for folder in write_story(tmp_path)])
    assert not re.search(r"https?:|<link|<img|src=\"|@import|url\(|fetch\(", page)
    assert 'name="viewport"' in page
    assert "prefers-color-scheme: dark" in page


def test_a_browser_runs_the_script_of_the_page_and_no_other(tmp_path: Path) -> None:
    page = render([read_run(folder) for folder in write_story(tmp_path)])
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert script == SCRIPT
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    assert "default-src 'none'" in page
    assert not re.search(r" on\w+=", page.replace(script, ""))  # no handlers as attributes


def test_everything_from_a_run_is_escaped(tmp_path: Path) -> None:
    attack = "<script>alert('\"&')</script>"
    keys = ("name", "family", "backbone", "method", "teacher", "data", "split", "data_fingerprint", "commit")
    changes = dict.fromkeys(keys, attack)
    log = [{"step": 1, "epoch": 1, f"train/loss{attack}": 1.0, "val/AP": 2.0}]
    folder = write_run(
        tmp_path / "run",
        30.0,
        **changes,
        command="distill",
        per_class={attack: {"AP": 1.0}},
        versions={attack: attack},
        machine={attack: attack},
        log=log,
    )
    page = render([read_run(folder)])
    assert page.count("<script") == 1
    assert "<script" not in page.replace(f"<script>{SCRIPT}</script>", "")
    _check(page)
    assert page.count("&lt;script&gt;") > 10


def test_a_run_that_recorded_nothing_is_shown(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 30.0)
    (folder / "results.json").write_text("{}")
    (folder / "metrics.jsonl").write_text("")
    page = render([read_run(folder)])
    assert "svg" not in _check(page)
    assert "n/a" in page
    assert "Trained detectors" in page


def test_a_report_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one run"):
        write_report([], tmp_path / "report.html")
