"""Pages in headless Chromium."""

import html
import json
import os
import re
import shutil
import subprocess

import pytest

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
  broken: [...document.images]
    .filter((image) => image.hasAttribute("src") && !(image.complete && image.naturalWidth)).length,
  links: [...document.querySelectorAll("[src], [href]")]
    .map((element) => element.getAttribute("src") || element.getAttribute("href"))
    .filter((address) => !address.startsWith("data:") && !address.startsWith("#")),
  errors,
}, "*"));
</script>"""
# Shows pages one after the other, and collects what each of them reports.
FRAME = """<!doctype html><title></title><iframe style="width: WIDTHpx; height: 900px; border: 0"></iframe><script>
const pages = PAGES, seen = [];
const next = () => { document.querySelector("iframe").src = pages[seen.length]; };
addEventListener("message", (event) => {
  seen.push(event.data);
  if (seen.length < pages.length) next();
  document.title = JSON.stringify(seen);
});
next();
</script>"""


@pytest.fixture(scope="session")
def browser():
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None and os.environ.get("CI") != "true":
        pytest.skip("no Chromium on this machine")
    assert path, "CI needs Chromium"
    return path


def probed(text, probe=PROBE):
    """A page with a script that reports it; pictures are loaded although nobody scrolls."""
    return text.replace(' loading="lazy"', "").replace("</head>", probe + "</head>", 1)


def in_frame(browser, folder, pages, width, dark=False):
    """What each of some pages of a folder posts to a frame of this width, and what the browser logged.

    A message of another script than the probe of a page would be counted as that of a page.
    """
    (folder / "frame.html").write_text(FRAME.replace("WIDTH", str(width)).replace("PAGES", json.dumps(pages)))
    command = [
        browser,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--window-size=1400,1000",
    ]
    command += [f"--virtual-time-budget={10000 * len(pages)}", "--enable-logging=stderr"]
    command += ["--blink-settings=preferredColorScheme=0"] if dark else []
    command += [f"--user-data-dir={folder / 'profile'}", "--dump-dom", f"file://{folder / 'frame.html'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    title = re.search("<title>(.*?)</title>", done.stdout)
    assert title is not None, done.stderr[-2000:]
    seen = json.loads(html.unescape(title[1]))
    assert len(seen) == len(pages), done.stderr[-2000:]
    return seen, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
