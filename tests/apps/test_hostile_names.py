"""Names that would be scripts, markup, styles or formulas are text on the report and the served page, in a browser."""

import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from test_page import Served

from ancestral.apps.report import html
from ancestral.apps.report.part import Part
from ancestral.apps.report.plots import sheet
from ancestral.runtime.text import quoted, shown
from browser import chromium, open_page
from conftest import TINY, run_command

SCRIPT = "<script>ran=1<img src=x onerror=ran=1>"
NAMES = (  # of files and folders: without slashes
    *("<img src=x onerror=ran=1>", "]]><svg onload=ran=1>", "<!--", "<\u2215style><iframe src=x>", "--><b>x"),
    *("' onload='ran=1", '" onmouseover="ran=1', "javascript:ran=1", "[x](javascript:ran=1)", "x{}*{display:none}"),
    *("$\\frac{$", "$x$", "\u202egnp\u2066", "\x1b[31m", "\x022\x03", "a\nb", "[red]x[red]", "{{7*7}}", "{0}"),
    "&lt;b&gt;",
)
RUN = "\x020\x03 <img src=x onerror=ran=1> $\\frac{$ \u202e'\"[red]\n<!--"
CONTROLS = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
MADE = "img[src=x], iframe, b, a[href^=javascript], [onload], [onerror], [onmouseover], main script, svg script"


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def run(browser, tmp_path_factory):
    """A run with classes, all of whose names are hostile; not made when there is no browser."""
    folder = tmp_path_factory.mktemp("hostile")
    data = folder / "</style>" / "</script><script>ran=1<" / "script>\u202e$\\frac{$"
    for part, number in (("train", 3), ("test", 2)):
        for i, name in enumerate(NAMES):
            (data / part / name).mkdir(parents=True)
            for j in range(number):
                pixels = np.random.default_rng((i, j)).integers(0, 256, (8, 8), np.uint8)
                Image.fromarray(pixels).save(data / part / name / f"{j}{SCRIPT}{name}.png")
    labels = ("--set", "model.labels=true", "--set", "model.condition_dropout=0.2", "--set", "diffusion.T=20")
    made = run_command("train", data, "--preset", "tiny", "--steps", 4, *TINY, *labels, "--out", folder / RUN)
    assert made.exit_code == 0, made.output
    return folder / RUN


def nothing_was_made(page):
    assert page.evaluate("window.ran") is None
    assert page.locator(MADE).count() == 0


def quiet(opened):
    """A dialog would be an error of the page."""
    opened.page.on("dialog", lambda dialog: (opened.complaints.append(dialog.message), dialog.dismiss()))
    return opened.page


def test_the_report(browser, run):
    """`explain` ends, which it did not when a name was the mark of a slot."""
    out = run.parent / "report.html"
    command = [sys.executable, "-m", "ancestral", "explain", run, "--out", out, "--num-images", "4", "--device", "cpu"]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    with open_page(browser, out.as_uri()) as opened:
        page = quiet(opened)
        nothing_was_made(page)
        assert page.title().endswith(shown(RUN))
        assert page.locator("h1 .subject").text_content() == shown(RUN)
        text = page.locator("body").text_content()
        assert not CONTROLS.search(text)
        assert "</script><script>ran=1<" in page.locator(".facts").text_content()
        assert SCRIPT in page.locator("#onestep").text_content()


def test_the_served_page(browser, run):
    served = Served(run).start()
    try:
        with open_page(browser, served.url) as opened:
            page = quiet(opened)
            page.wait_for_selector("body[data-state=ready]")
            options = page.locator("#draw [name=label] option").all_text_contents()
            assert sorted(options[1:]) == sorted(map(shown, NAMES))
            assert page.locator("#model").text_content().startswith(shown(RUN))
            assert page.title().startswith(shown(RUN))
            for name in NAMES:
                page.select_option("#draw [name=label]", index=1 + options[1:].index(shown(name)))
            page.fill("#draw [name=images]", "1")
            page.fill("#draw [name=steps]", "2")
            page.click("#draw .go")
            page.wait_for_selector("#draw[data-state=done]")
            again = page.locator("#draw .command code").text_content()
            assert again.isprintable()
            assert quoted(str(run)) in again
            nothing_was_made(page)
    finally:
        served.stop()


def test_drawings(browser, tmp_path):
    """Sheets and tables of the report with each name at every place."""
    known = np.zeros((1, len(NAMES), 2, 2, 1), np.uint8)
    section = html._Section("models", {"models": Part()}, "en", html.words("en"), "")
    cells = "".join(f"<td>{section.cell(name, 'a table', '')}</td>" for name in NAMES)
    drawn = sheet(known, NAMES, NAMES[:1])
    page_of = tmp_path / "drawn.html"
    head = "<!doctype html><meta charset=utf-8><link rel=icon href='data:,'>"
    page_of.write_text(f"{head}{drawn}<table><tr>{cells}</table>", "utf-8")
    with open_page(browser, page_of.as_uri()) as opened:
        page = quiet(opened)
        nothing_was_made(page)
        assert page.locator("td").all_text_contents() == list(map(shown, NAMES))
        text = page.locator("svg").first.text_content()
        for name in NAMES:
            assert shown(name) in text


@pytest.mark.parametrize("name", ["half\udc80/train/class", "data/train/half\udc80"])
def test_what_no_run_could_keep_is_refused_before_one_is_made(tmp_path, name):
    for part in (name, name.replace("train", "test")):
        (tmp_path / part).mkdir(parents=True)
        for j in range(3):
            Image.fromarray(np.full((8, 8), j, np.uint8)).save(tmp_path / part / f"{j}.png")
    data, run = tmp_path / name.partition("/")[0], tmp_path / "run"
    result = run_command("train", data, "--preset", "tiny", "--steps", 1, *TINY, "--out", run)
    assert result.exit_code == 2
    assert "half\\udc80" in result.output
    assert "is not UTF-8" in result.output
    assert not run.exists()


def test_a_shell_reads_a_quoted_name_as_it_is():
    for name in (*NAMES, RUN, "it's\\n\t\udc80", "\x85\u2028é"):
        assert quoted(name).isprintable()
        said = subprocess.run(["bash", "-c", f"printf %s {quoted(name)}"], capture_output=True, check=True, timeout=20)
        assert said.stdout == name.encode("utf-8", "surrogateescape")
    assert quoted("a b") == shlex.quote("a b")
