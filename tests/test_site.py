"""The documentation as a site: every link leads somewhere, and every page is shown without errors, on a phone, too."""

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.browsing import PROBE, in_frame, probed

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    if os.environ.get("CI") != "true":
        pytest.importorskip("material", reason="make .venv/dev")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


class Links(HTMLParser):
    """Addresses and anchors of a page."""

    def __init__(self, path):
        super().__init__()
        self.addresses, self.anchors = [], {""}
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}
        self.addresses += [given[name] for name in ("href", "src") if given.get(name) is not None]


def test_every_link_within_the_site_leads_to_a_page_and_an_anchor(site):
    pages = {path: Links(path) for path in site.rglob("*.html")}
    assert len(pages) > 20
    broken, followed = [], 0
    for path, links in pages.items():
        if path.name == "404.html":  # its links are relative to the root of a server
            continue
        for address in links.addresses:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            followed += 1
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file() or (target in pages and unquote(parts.fragment) not in pages[target].anchors):
                broken.append((path.relative_to(site).as_posix(), address))
    assert followed > 1000
    assert broken == []


@pytest.mark.parametrize(("width", "dark"), [(390, False), (1280, True)])
def test_every_page_fits_and_has_no_errors(browser, site, width, dark):
    names = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    pages = sorted(names - {"404.html", "frame.html"})
    for page in pages:
        text = (site / page).read_text()
        if PROBE not in text:
            (site / page).write_text(probed(text))
    seen, logged = in_frame(browser, site, pages, width, dark)
    for page, of_page in zip(pages, seen, strict=True):
        assert of_page["width"] == width
        assert of_page["needed"] == width, (page, of_page["wide"])
        assert (of_page["broken"], of_page["errors"]) == (0, []), page
    assert logged == []
