"""The documentation as a site: built without a warning, links lead somewhere, it is searched, and it asks nobody else."""

from __future__ import annotations

import functools
import http.server
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("material", reason="needs MkDocs: pip install -e '.[docs]'")

ROOT = Path(__file__).parents[2]


class Page(HTMLParser):
    """What a page leads to, what a browser loads for it, and what can be led to in it."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loads, self.ids = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given[key] for key in ("id", "name") if given.get(key)}
        urls = [given[key] for key in ("href", "src", "srcset") if given.get(key)]
        self.links += urls
        if tag != "a" and given.get("rel") != "canonical":
            self.loads += urls


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-W", "ignore", "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


def test_every_page_of_the_repository_is_a_page_of_the_site(site, pages):
    names = [path.relative_to(ROOT) for path in (ROOT / "docs").glob("*.md")]
    assert len(names) > 8
    for name in names:
        assert site / name.with_suffix("") / "index.html" in pages
    assert "Hears a siren" in (site / "index.html").read_text(encoding="utf-8")
    assert (site / "detector/schemas/event.json").read_bytes() == (ROOT / "detector/schemas/event.json").read_bytes()


def test_every_link_of_the_site_leads_somewhere(site, pages):
    wrong = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (site / parts.path.lstrip("/") if parts.path.startswith("/") else path.parent / unquote(parts.path)).resolve()
            target = target / "index.html" if target.is_dir() else target if parts.path else path
            ids = pages[target].ids if target in pages else set()
            if not target.exists() or (parts.fragment and parts.fragment not in ids):
                wrong.append(f"{path.relative_to(site)}: {link}")
    assert wrong == []
    assert sum(len(page.links) for page in pages.values()) > 1000


def test_no_page_loads_anything_of_another_computer(pages):
    loaded = {url for page in pages.values() for url in page.loads}
    assert len(loaded) > 5
    assert [url for url in loaded if urlsplit(url).netloc] == []


def test_a_reader_finds_a_page_by_searching_and_the_browser_asks_nobody_else(site):
    pytest.importorskip("playwright", reason="needs a package: pip install -e '.[test]'")
    from playwright.sync_api import sync_playwright

    browser_path = shutil.which("chromium") or shutil.which("chromium-browser")
    if not browser_path:
        pytest.skip("needs a browser: apt install chromium")
    handler = functools.partial(Quiet, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    own = f"http://127.0.0.1:{server.server_port}/"
    complaints = []
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
            page = browser.new_page()
            page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: complaints.append(f"{error}"))
            page.on("request", lambda request: request.url.startswith((own, "data:", "blob:")) or complaints.append(request.url))
            page.goto(own)
            page.click("input.md-search__input")
            page.wait_for_selector(".md-search-result__meta:has-text('Type to start searching')")
            page.keyboard.type("digital silence muted")
            page.click(".md-search-result__link[href*='/docs/TROUBLESHOOTING/']")  # as soon as it is found
            page.wait_for_url("**/docs/TROUBLESHOOTING/**")
            page.wait_for_selector("h1:has-text('When something is wrong')")
            browser.close()
    finally:
        server.shutdown()
        server.server_close()
    assert complaints == []


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass
