"""The report: every number the text names was measured, languages say the same, and it needs nothing but itself."""

import json
import math
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from importlib.resources import files

import pytest

from ancestral.apps.report import LANGUAGES, forward, main, quality_advice
from ancestral.apps.report import html as page
from ancestral.apps.report.exact_subject import exact
from ancestral.apps.report.mathematics import mathml
from ancestral.apps.report.part import Number, Part
from ancestral.diffusion.processes.schedules import SCHEDULES
from ancestral.runs.report_links import PAGE
from conftest import run_command

DATA = re.compile(r'<data class="number" data-name="([^"]*)" value="([^"]*)"')
CALLS = re.compile(r"""\b(n|eq|figure|film|table|line)\(\s*["']([^"']+)["']""")
STEPS = re.compile(r"""\bstep\(\s*".*?",\s*(\[[^\]]*\])""", re.DOTALL)  # the code is words, the numbers are not


def source(language, name):
    return (files("ancestral.apps.report") / "text" / language / f"{name}.md").read_text("utf-8")


@pytest.mark.parametrize("name", main.SECTIONS)
def test_languages_show_the_same_things_in_the_same_order(name):
    shown = [CALLS.findall(source(one, name)) + STEPS.findall(source(one, name)) for one in LANGUAGES]
    assert shown[0] == shown[1]


def test_languages_have_the_same_words():
    def keys(node, path=()):
        if not isinstance(node, dict):
            return {path}
        return set().union(*(keys(value, (*path, key)) for key, value in node.items())) if node else set()

    first, second = (keys(page.words(one)) for one in LANGUAGES)
    assert first == second


PAPERS = ("https://arxiv.org/abs/", "https://doi.org/")
CITED = re.compile(r"""\bcite\(\s*["']([^"']+)["']""")


@pytest.mark.parametrize("name", main.SECTIONS)
def test_what_is_not_measured_links_its_paper(name):
    """Every section has a source, the same in all languages; and no link to a paper stands beside the list."""
    first, second = (source(one, name) for one in LANGUAGES)
    assert CITED.findall(first) == CITED.findall(second)
    assert set(CITED.findall(first)) <= set(page.SOURCES)
    assert "cite(" in first
    assert not any(address in text for text in (first, second) for address in PAPERS)


def test_every_source_is_used_and_is_a_paper():
    texts = [source("en", name) for name in main.SECTIONS]
    used = {found for text in texts for found in CITED.findall(text)}
    used |= {rule.source for rule in quality_advice.RULES if rule.source} | set(forward.SCHEDULE_SOURCES.values())
    assert used == set(page.SOURCES)
    assert set(forward.SCHEDULE_SOURCES) == set(SCHEDULES)
    titles, addresses = zip(*page.SOURCES.values(), strict=True)
    assert all(one.startswith(PAPERS) for one in addresses)
    assert len(set(titles)) == len(set(addresses)) == len(titles)


class Links(HTMLParser):
    """What a page would fetch, and its ids."""

    def __init__(self):
        super().__init__()
        self.fetched, self.ids, self.inner = [], [], []

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if tag == "a" and name == "href" and value.startswith((*PAPERS, PAGE)):
                continue  # read where it is followed, not fetched
            if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                self.fetched.append(value)
            if name == "id":
                self.ids.append(value)


@pytest.fixture(scope="module")
def toy():
    subject = exact(num_images=8, seed=0)
    return subject, {name: section.measure(subject) for name, section in main.SECTIONS.items()}


def drawn_nowhere(words):
    return '<svg data-wide="1"><use /></svg>'


def undrawn(parts):
    """Without what takes most of the time of a page."""
    return {name: replace(part, figures=dict.fromkeys(part.figures, drawn_nowhere)) for name, part in parts.items()}


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_needs_nothing_else_and_says_everything(toy, language):
    subject, parts = toy
    if language != "en":  # that every word is there, another test says
        parts = undrawn(parts)
    html = main.written(subject, parts, language, 1.0)
    links = Links()
    links.feed(html)
    assert all(one.startswith(("#", "data:")) for one in links.fetched)
    assert len(links.ids) == len(set(links.ids))
    assert {one[1:] for one in links.fetched if one.startswith("#")} <= set(links.ids)
    assert html.count(f'href="{PAGE}"') == 1
    assert "\x02" not in html
    hidden = r'alttext="[^"]*"|<pre\b.*?</pre>|<style>.*?</style>|<span class="aloud">.*?</span>|<!--.*?-->'
    drawn = re.sub(hidden, "", html, flags=re.DOTALL)  # what screen readers say and what matplotlib notes is not drawn
    # No formula, no emphasis and no character stands there as its source.
    assert re.findall(r".{0,40}(?:\$|\*\*|\\[a-zA-Z|]).{0,40}", drawn) == []
    assert min(one.count("\n") for one in re.findall(r"<pre\b.*?</pre>", html, flags=re.DOTALL)) > 3
    assert "@import" not in html
    assert "url(http" not in html
    for name, part in parts.items():
        text = source(language, name)
        for kind, stock in (("figure", part.figures), ("table", part.tables)):
            named = {"film": "figure"}
            assert {called for one, called in CALLS.findall(text) if named.get(one, one) == kind} == set(stock), name


def test_names_are_words_whatever_is_in_them(toy):
    """Files and folders are called as people like: in a page their names are neither markup nor formulas."""
    name = "a`b $x$ $y$ {{ n }} **c** | <script>alert(1)</script> \"'> [d](e)"
    parts = dict(toy[1])
    for section, fields in (("onestep", ("name", "code")), ("connections", ("run", "source"))):
        facts = parts[section].facts | dict.fromkeys(fields, name)
        parts = {section: replace(parts[section], facts=facts)} | {key: parts[key] for key in parts if key != section}
    html = page.render(undrawn(parts), "en", {"title": name, "facts": name, "made": name, "numbers": name})
    assert "<script" not in html
    words = re.sub(r'<span class="word">(.*?)</span>', r"\1", html)  # of commands, which break between them
    assert unescape(words).count(name) == 10 + len(parts)


def test_every_number_of_the_page_is_in_the_json_by_its_name(toy):
    subject, parts = toy
    found = json.loads(main.numbers(subject, parts, "en", 1.0))
    html = main.written(subject, undrawn(parts), "en", 1.0)
    for section, body in zip(parts, html.split("<section id=")[1:], strict=True):
        shown = DATA.findall(body)
        assert len(shown) > 4
        for name, value in shown:
            where, _, own = name.rpartition(".")
            made = found[where or section]
            cell = re.fullmatch(r"(.+)\[(\d+)\]\[(\d+)\]", own)
            one = made["tables"][cell[1]][int(cell[2])][int(cell[3])] if cell else made["numbers"][own]
            assert float(value) == float(one["value"]), name


def test_an_error_that_nobody_knows_is_no_number_in_the_json():
    one = Part(
        numbers={"one": Number(1.0, "", "made up", math.nan)}, tables={"rows": [["a", Number(math.inf, "", "")]]}
    )
    found = json.loads(main.numbers(None, {"forward": one}, "en", 1.0))["forward"]
    assert found["numbers"]["one"] == {"value": 1.0, "standard_error": "nan", "unit": "", "again": "made up"}
    assert found["tables"]["rows"][0][1]["value"] == "inf"


def test_a_report_is_of_a_kind_that_is_known(tmp_path):
    found = run_command("explain", "--out", tmp_path / "report.pdf")
    assert found.exit_code == 2
    assert ".html" in found.output
    assert ".json" in found.output


def test_a_report_that_cannot_be_written_is_not_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(main, "exact", lambda *given: pytest.fail("measured"))
    folder = tmp_path / "report.html"
    folder.mkdir()
    found = run_command("explain", "--out", folder)
    assert found.exit_code == 2
    assert "cannot be written" in found.output
    assert len(found.output.strip().splitlines()) == 1


def test_formulas_are_mathml_with_their_source_beside_them():
    made = mathml(r'a < "b"')
    assert made.startswith('<math alttext="a &lt; &quot;b&quot;"')
