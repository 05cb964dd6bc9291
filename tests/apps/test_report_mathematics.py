"""Formulas as a browser draws them: nothing scrolls, brackets grow, limits stand clear, the font has all letters."""

import io
import re
from html import unescape
from importlib.resources import files

import pytest
from fontTools.ttLib import TTFont

from ancestral.apps.report import html
from ancestral.apps.report.mathematics import EQUATIONS, equation, mathml
from browser import chromium, open_page

HERE = files("ancestral.apps.report")
ITALIC = {0x41 + i: 0x1D434 + i for i in range(26)} | {0x61 + i: 0x1D44E + i for i in range(26)}
# What stands above letters is drawn as lines, spaces are not drawn at all.
UNDRAWN = {0x203E, 0x2061, 0x2062}


def characters():
    for _, latex in EQUATIONS.values():
        yield mathml(latex.replace("%%", " "))
    for text in HERE.joinpath("text").iterdir():
        for path in text.iterdir():
            source = path.read_text("utf-8").replace("\\\\", "\\")
            yield from map(mathml, re.findall(r"(?<!\\)\$([^$\n]+)\$", source))


def test_the_font_has_every_letter_of_every_formula():
    made = " ".join(re.sub(r'alttext="[^"]*"|<mtext>.*?</mtext>|<[^>]*>', "", one) for one in characters())
    used = {ord(letter) for letter in unescape(made)} - UNDRAWN
    font = TTFont(io.BytesIO(HERE.joinpath("fonts", "report-math.woff").read_bytes()))
    there = set(font.getBestCmap() or ())
    assert "MATH" in font
    assert {hex(one) for one in used if ITALIC.get(one, one) not in there and one not in there} == set()


def test_relations_signs_and_bars_are_operators():
    def elements(latex):
        return re.findall(r"<(m[ion])([^>]*)>([^<]+)<", unescape(mathml(latex)))

    assert ("mo", "", "\N{TILDE OPERATOR}") in elements(r"x \sim q")
    assert [one[2] for one in elements(r"\bigg\| a \bigg\|^2")] == ["‖", "a", "‖", "2"]
    signs = {form for kind, form, text in elements(r"[-1] (-a) x = -y, -z") if text == "−"}
    assert signs == {' form="prefix"'}
    assert ("mo", "", "−") in elements("a - b")
    second = equation("elbo_split").split("<math")[2]
    assert re.match(r'[^>]*><mrow><mo form="infix">', second)


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def formulas(tmp_path_factory):
    """A page with every displayed equation."""
    page = html.render({}, "en", dict.fromkeys(("title", "facts", "made", "numbers"), ""))
    path = tmp_path_factory.mktemp("formulas") / "formulas.html"
    path.write_text(page.replace('<main id="main">', '<main id="main">' + "".join(map(equation, EQUATIONS))), "utf-8")
    return path.as_uri()


TALL = """() => [...document.querySelectorAll("mo[stretchy=true]")].map(one => {
  const height = (element) => element.getBoundingClientRect().height;
  const within = [...one.parentElement.querySelectorAll(":scope > mfrac")].map(height);
  return [one.textContent, height(one), Math.max(0, ...within)];
})"""
LIMITS = """() => [...document.querySelectorAll("munder, munderover")].map(one => {
  const [sign, below] = [...one.children].map(child => child.getBoundingClientRect());
  return below.top - sign.bottom;
})"""


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("own_font", [True, False])
def test_no_equation_scrolls_and_brackets_grow(browser, formulas, width, own_font):
    """On a phone and on a desk; and by the system's font alone, where the page's own does not come."""
    with open_page(browser, formulas, width, 900) as opened:
        page = opened.page
        if own_font:
            assert page.evaluate("[...document.fonts].map(one => one.status)") == ["loaded"]
        else:
            page.add_style_tag(content="math { font-family: math !important; }")
        sizes = page.evaluate(
            """() => [...document.querySelectorAll(".equation")].map(one =>
                 [one.dataset.equation, one.scrollWidth - one.clientWidth, one.scrollHeight - one.clientHeight])"""
        )
        assert len(sizes) == len(EQUATIONS)
        assert [one for one in sizes if (own_font or width > 1000) and one[1] > 0] == []
        assert [one for one in sizes if one[2] > 0] == []
        if not own_font:
            return
        brackets = [one for one in page.evaluate(TALL) if one[2]]
        assert len(brackets) > 5
        assert [one for one in brackets if one[1] < 0.95 * one[2]] == []
        limits = page.evaluate(LIMITS)
        assert len(limits) > 5
        assert min(limits) > -1  # below the sign, not on it
