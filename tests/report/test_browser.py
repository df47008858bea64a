"""The pages in a real browser: no errors, no broken pictures, nothing wider than the window of a desktop or a phone."""

import re
import subprocess
from importlib.resources import files

import pytest
from rich.console import Console

from defeat.benchmark import bench
from defeat.report.compare import compare
from tests.browsing import PROBE, in_frame, probed
from tests.engine.tiny_runs import save_teacher, settings, shared_settings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_demo")]
# Uses the page as a reader does, and reports what it sees.
USE = """<script>
addEventListener("load", () => {
  const seen = {};
  const table = document.querySelector("table.sortable");
  const column = () => [...table.tBodies[0].rows].map((row) => row.cells[1].innerText);
  const head = table.tHead.rows[0].cells[1];
  for (const order of ["descending", "ascending"]) {
    head.querySelector("button").click();
    seen[order] = [head.getAttribute("aria-sort"), ...column()];
  }
  const section = document.querySelector(".filterable"), kind = section.querySelector("[name=kind]");
  const strips = [...section.querySelectorAll(".strip")];
  seen.errors = strips.map((strip) => JSON.parse(strip.dataset.errors).map((error) => error[0]));
  kind.value = "missed";
  kind.dispatchEvent(new Event("change", { bubbles: true }));
  seen.missed = strips.map((strip) => strip.offsetParent !== null);
  seen.count = section.querySelector("output").textContent;
  const dialog = document.querySelector("dialog"), first = document.querySelector(".panels button");
  first.click();
  const shown = () => dialog.querySelector("img").alt;
  seen.enlarged = [dialog.open, shown()];
  dialog.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
  seen.enlarged.push(shown());
  dialog.querySelector("button").click();
  seen.enlarged.push(dialog.open);
  seen.copy = document.querySelectorAll("button.copy").length - document.querySelectorAll("pre").length;
  parent.postMessage(seen, "*");
});
</script>"""
AXE = """<script>
addEventListener("load", async () => {
  const rules = { runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"] };
  const found = (await axe.run(document.querySelector("main"), rules)).violations;
  const violations = found.map((one) => [one.id, ...one.nodes.slice(0, 3).map((node) => node.html.slice(0, 200))]);
  parent.postMessage({ dark: matchMedia("(prefers-color-scheme: dark)").matches, violations }, "*");
});
</script>"""


@pytest.fixture
def folder(tmp_path):
    teacher = save_teacher(tmp_path / "teacher", "faster_rcnn")
    given = shared_settings(settings(tmp_path / "m", "faster_rcnn", teacher=teacher, epochs=2, lr=0.05, eval_every=1))
    assert bench(methods="imitation,defeat", seeds=2, console=Console(quiet=True), **given).result is not None
    return tmp_path / "m"


@pytest.fixture
def page(folder, tmp_path):
    """The page of a teacher's two students."""
    cells = [folder / name for name in ("none-seed0", "defeat-seed0")]
    compare([str(cell) for cell in cells], str(tmp_path / "compare.html"), console=Console(quiet=True))
    return tmp_path / "compare.html"


def rendered(browser, page, width, scratch, probe=PROBE, dark=False):
    """What a script reports of a page in a frame of this width, and what the browser logged."""
    without_policy = re.sub(r'<meta http-equiv="Content-Security-Policy".*?>', "", page.read_text())
    (scratch / "page.html").write_text(probed(without_policy, probe))
    (seen,), logged = in_frame(browser, scratch, ["page.html"], width, dark)
    return seen, logged


def test_pages_fit_the_width_of_a_phone_and_of_a_desktop(browser, folder, page, tmp_path):
    named = tmp_path / "named.html"  # with a folder name wider than a phone
    text = (folder / "report.html").read_text()
    named.write_text(text.replace("demo, split", "my_dataset_of_industrial_surface_defects_2024_final_v2, split"))
    assert named.read_text() != text
    for one in (folder / "report.html", page, named):
        for width in (390, 1280):
            seen, logged = rendered(browser, one, width, tmp_path)
            assert seen["width"] == width
            assert seen["needed"] == width, (one.name, seen["wide"])
            assert seen["wide"] == []
            assert seen["images"] > 0
            assert (seen["broken"], seen["errors"] + logged, seen["links"]) == (0, [], [])


def test_tables_are_sorted_errors_filtered_and_pictures_enlarged(browser, page, tmp_path):
    seen, logged = rendered(browser, page, 1280, tmp_path, USE)
    assert logged == []
    for order in ("descending", "ascending"):
        assert seen[order][0] == order
        figures = [float(text) for text in seen[order][1:]]
        assert figures == sorted(figures, reverse=order == "descending")
    assert len(seen["errors"]) > 1
    assert seen["missed"] == ["missed" in kinds for kinds in seen["errors"]]
    assert seen["count"] == f"{sum(seen['missed'])} of {len(seen['errors'])} images"
    opened, first, second, still_open = seen["enlarged"]
    assert (opened, still_open) == (True, False)
    assert first.startswith("annotated, ")
    assert second.startswith("baseline, ")
    assert seen["copy"] == 0


def test_the_script_runs_under_the_policy_of_the_page_and_another_does_not(browser, page, tmp_path):
    changed = tmp_path / "changed.html"
    changed.write_text(page.read_text().replace("</main>", "</main><script>document.title = 'other'</script>"))
    for one in (page, changed):
        done = subprocess.run(
            [
                browser,
                "--headless=new",
                "--no-sandbox",
                f"--user-data-dir={tmp_path / 'p'}",
                "--dump-dom",
                f"file://{one}",
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert '<button type="button" class="sort">' in done.stdout
        assert "<title>other" not in done.stdout


def axe_probe():
    return f"<script>{files('axe_core_python').joinpath('axe.min.js').read_text()}</script>{AXE}"


@pytest.mark.parametrize("dark", [False, True])
def test_pages_are_accessible(browser, folder, page, tmp_path, dark):
    for one in (folder / "report.html", page):
        opened = tmp_path / "opened.html"  # collapsed parts are not checked
        opened.write_text(one.read_text().replace("<details", "<details open"))
        seen, _ = rendered(browser, opened, 1280, tmp_path, axe_probe(), dark)
        assert seen == {"dark": dark, "violations": []}


def test_the_probe_detects_errors(browser, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text(
        "<html><head></head><body><main><p style='width: 2000px; color: #ccc; background: #fff'>wide</p>"
        "<img src='data:image/png;base64,AAAA'>"
        "<img src='https://example.invalid/x.png'><script>nothing.here()</script></main></body></html>"
    )
    seen, logged = rendered(browser, page, 390, tmp_path)
    assert seen["needed"] > 390
    assert seen["broken"] == 2
    assert seen["links"] == ["https://example.invalid/x.png"]
    assert seen["errors"]
    assert logged
    (seen, _) = rendered(browser, page, 390, tmp_path, axe_probe())
    assert {"color-contrast", "image-alt"} <= {violation[0] for violation in seen["violations"]}
