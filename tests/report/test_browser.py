"""The pages in a real browser: no errors, no broken pictures, nothing wider than the window of a desktop or a phone."""

import json
import os
import re
import shutil
import subprocess

import pytest
from rich.console import Console

from defeat.benchmark import bench
from defeat.report.compare import compare
from tests.engine.tiny_runs import save_teacher, settings, shared_settings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_demo")]
# Reports the rendered page to the surrounding window.
PROBE = """<script>
const errors = [];
addEventListener("error", (event) => errors.push(String(event.message)));
addEventListener("load", () => parent.postMessage({
  width: innerWidth,
  needed: document.documentElement.scrollWidth,
  wide: [...document.querySelectorAll("main *")]
    .filter((item) => item.getBoundingClientRect().right > innerWidth + 1 && !item.closest(".scroll, pre, svg"))
    .map((item) => item.tagName + "." + item.className),
  images: document.images.length,
  broken: [...document.images].filter((image) => !image.complete || !image.naturalWidth).length,
  links: [...document.querySelectorAll("[src], [href]")]
    .map((element) => element.getAttribute("src") || element.getAttribute("href"))
    .filter((address) => !address.startsWith("data:") && !address.startsWith("#")),
  errors,
}, "*"));
</script>"""
FRAME = """<!doctype html><title></title><script>
addEventListener("message", (event) => { document.title = JSON.stringify(event.data); });
</script><iframe src="page.html" style="width: WIDTHpx; height: 900px; border: 0"></iframe>"""


@pytest.fixture(scope="session")
def browser():
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None and os.environ.get("CI") != "true":
        pytest.skip("no Chromium on this machine")
    assert path, "CI needs Chromium"
    return path


@pytest.fixture
def folder(tmp_path):
    teacher = save_teacher(tmp_path / "teacher", "faster_rcnn")
    given = shared_settings(settings(tmp_path / "m", "faster_rcnn", teacher=teacher, epochs=2, lr=0.05, eval_every=1))
    assert bench(methods="imitation,defeat", seeds=2, console=Console(quiet=True), **given).result is not None
    return tmp_path / "m"


def rendered(browser, page, width, scratch):
    """Measurements of a page in a frame of this width."""
    text = page.read_text().replace(' loading="lazy"', "")
    (scratch / "page.html").write_text(text.replace("</head>", PROBE + "</head>"))
    (scratch / "frame.html").write_text(FRAME.replace("WIDTH", str(width)))
    command = [
        browser,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--window-size=1400,1000",
    ]
    command += ["--virtual-time-budget=10000", "--enable-logging=stderr"]
    command += [f"--user-data-dir={scratch / 'profile'}"]
    done = subprocess.run(
        [*command, "--dump-dom", f"file://{scratch / 'frame.html'}"], capture_output=True, text=True, timeout=120
    )
    title = re.search("<title>(.*?)</title>", done.stdout)
    assert title is not None, done.stderr[-2000:]
    seen = json.loads(title[1].replace("&quot;", '"').replace("&amp;", "&").replace("&gt;", ">"))
    seen["errors"] += [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return seen


def test_pages_fit_the_width_of_a_phone_and_of_a_desktop(browser, folder, tmp_path):
    cells = [folder / name for name in ("none-seed0", "defeat-seed0")]
    compare([str(cell) for cell in cells], str(tmp_path / "compare.html"), console=Console(quiet=True))
    named = tmp_path / "named.html"  # with a folder name wider than a phone
    text = (folder / "report.html").read_text()
    named.write_text(text.replace("demo, split", "my_dataset_of_industrial_surface_defects_2024_final_v2, split"))
    assert named.read_text() != text
    for page in (folder / "report.html", tmp_path / "compare.html", named):
        for width in (390, 1280):
            seen = rendered(browser, page, width, tmp_path)
            assert seen["width"] == width
            assert seen["needed"] == width, (page.name, seen["wide"])
            assert seen["wide"] == []
            assert seen["images"] > 0
            assert (seen["broken"], seen["errors"], seen["links"]) == (0, [], [])


def test_the_probe_detects_errors(browser, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text(
        "<html><head></head><body><main><p style='width: 2000px'>wide</p><img src='data:image/png;base64,AAAA'>"
        "<img src='https://example.invalid/x.png'><script>nothing.here()</script></main></body></html>"
    )
    seen = rendered(browser, page, 390, tmp_path)
    assert seen["needed"] > 390
    assert seen["broken"] == 2
    assert seen["links"] == ["https://example.invalid/x.png"]
    assert seen["errors"]
