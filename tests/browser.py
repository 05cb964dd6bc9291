"""A real browser on a page, and everything that it complains about; for pages that are served and for files."""

import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
HERE = {"127.0.0.1", "localhost", "::1", None}  # None: of data: and file: addresses
REPORTED = """addEventListener("securitypolicyviolation", (event) =>
  console.error(`policy: ${event.effectiveDirective} ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`))"""


@contextmanager
def chromium():
    """The browser, without a window; skips when there is none."""
    reason = "needs a browser: pip install playwright, and a chromium on PATH (apt-get install chromium)"
    playwright = pytest.importorskip("playwright.sync_api", reason=reason)
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(reason)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=OPTIONS)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Opened:
    """A page, and what went wrong on it."""

    page: Any
    complaints: list[str] = field(default_factory=list)  # errors and warnings of the console, of scripts, of the policy
    failed: list[str] = field(default_factory=list)  # requests without an answer
    outside: list[str] = field(default_factory=list)  # requests to another machine

    def watch(self) -> None:
        """Listen from now on."""
        self.page.on("console", lambda said: said.type in ("error", "warning") and self.complaints.append(said.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("requestfailed", self._failed)
        self.page.on("request", lambda asked: _away(asked.url) and self.outside.append(asked.url))

    def _failed(self, asked) -> None:
        if "ERR_ABORTED" not in asked.failure:  # a stream that the page itself has closed
            self.failed.append(f"{asked.url}: {asked.failure}")

    def forgive(self) -> None:
        """Forget what a test made go wrong on purpose."""
        self.complaints.clear()
        self.failed.clear()

    def overflow(self) -> int:
        """Pixels that the page is wider than its window."""
        return self.page.evaluate("document.documentElement.scrollWidth - innerWidth")


def _away(url: str) -> bool:
    return urlsplit(url).hostname not in HERE


@contextmanager
def open_page(browser, url, width=1280, height=900, **context):
    """A fresh window on this address; when it is closed, nothing may have gone wrong that was not forgiven.

    Args:
        browser: of `chromium`.
        url: http: or file:.
        width: of the window, in CSS pixels.
        height: of the window.
        context: more options of the browser's context: color_scheme="dark", reduced_motion="reduce", ...
    """
    window = browser.new_context(viewport={"width": width, "height": height}, **context)
    try:
        window.add_init_script(REPORTED)
        opened = Opened(window.new_page())
        opened.page.set_default_timeout(60_000)  # milliseconds, for a machine that does much else
        opened.watch()
        opened.page.goto(url)
        yield opened
        assert (opened.complaints, opened.failed, opened.outside) == ([], [], [])
    finally:
        window.close()
