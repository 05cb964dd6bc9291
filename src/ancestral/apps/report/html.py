"""Parts and one language's text put together: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from ancestral.apps.report.mathematics import equation, inline
from ancestral.apps.report.part import Number, Part, Text, Words
from ancestral.runs.report_links import PAGE
from ancestral.runtime.text import shown
from ancestral.sampling.round_trip import HOLD

_HERE = files("ancestral.apps.report")
_CHINESE_LINES = re.compile(
    r"(?<=[。，、；：！？）])\n(?=[\u4e00-\u9fff「（\x02$])"
)  # a new line would show as a space
SOURCES: Mapping[str, tuple[str, str]] = tomllib.loads((_HERE / "sources.toml").read_text("utf-8"))
_FORMULA = re.compile(r"\$[^$]+\$")
_SLOT = re.compile(r"(<p>)?\x02(\d+)\x03(?(1)</p>|)")


def words(language: str) -> Words:
    """The words of a language."""
    return tomllib.loads((_HERE / "text" / language / "words.toml").read_text("utf-8"))


def render(parts: Mapping[str, Part], language: str, about: Mapping[str, Any]) -> str:
    """The report.

    Args:
        parts: of the sections, in order.
        language: of `report.LANGUAGES`.
        about: what the page says of itself: title, facts, how it was made, and the command that writes its numbers.
    """
    vocabulary = words(language)
    made = [_Section(name, parts, language, vocabulary, about["numbers"]) for name in parts]
    sections = [one.html() for one in made]
    cited = set().union(*(one.cited for one in made))
    sources = [source for name, source in SOURCES.items() if name in cited]
    headings = [(name, vocabulary["sections"][name]) for name in parts]
    template = _environment(autoescape=True).from_string((_HERE / "page.html.j2").read_text("utf-8"))
    font = base64.b64encode((_HERE / "fonts" / "report-math.woff").read_bytes()).decode()
    style = (_HERE / "page.css").read_text("utf-8").replace("FONT", f"data:font/woff;base64,{font}")
    body = zip(headings, sections, strict=True)
    return template.render(
        language=language, words=vocabulary["page"], style=Markup(style), body=list(body), sources=sources, about=about
    )


def _environment(**settings: Any) -> Environment:
    return Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, **settings)


def _word(text: str) -> str:
    """As HTML, on one line; no control character is left, of which two mark the slots."""
    return escape(shown(text))


def _typed(text: str) -> str:
    """A command or a name, which breaks into lines between its words."""
    words = [_word(word) for word in text.split(" ")]
    spans = words if len(words) == 1 else [f'<span class="word">{word}</span>' for word in words]
    return f"<code>{' '.join(spans)}</code>"


def _heading(text: str) -> str:
    """Of a column; a formula alone has its letters beside it, for screen readers."""
    if not text:
        return "<td></td>"
    aloud = f'<span class="aloud">{_word(text.strip("$"))}</span>' if _FORMULA.fullmatch(text) else ""
    return f'<th scope="col">{inline(text)}{aloud}</th>'


class _Section:
    """One section's text, filled in: Jinja first, then mathematics, then Markdown; markup waits in slots until then."""

    def __init__(self, name: str, parts: Mapping[str, Part], language: str, vocabulary: Words, numbers: str) -> None:
        self.name, self.part, self.parts, self.words = name, parts[name], parts, vocabulary
        self.all_numbers = numbers  # the command that writes them
        self.source = (_HERE / "text" / language / f"{name}.md").read_text("utf-8")
        self.slots: list[str] = []
        self.cited: set[str] = set()
        self.used: dict[str, dict[str, list[str]]] = {}  # by how to get them again, then by name: the numbers shown

    def html(self) -> str:
        environment = _environment(finalize=self.shows)
        tools: dict[str, Callable[..., Any]] = {
            "n": self.number,
            "plain": self.plain,
            "eq": lambda name: self.keep(equation(name)),
            "figure": self.figure,
            "table": self.table,
            "line": self.line,
            "step": self.step,
            "code": self.code,
            "lines": self.lines,
            "film": self.film,
            "section": self.section,
            "cite": self.cite,
            "page": lambda: self.keep(f'<a href="{PAGE}">{PAGE}</a>'),
            "asks": self.asks,
            "answer": self.answer,
            "follows": self.follows,
        }
        text = environment.from_string(self.source).render(
            facts=self.part.facts, parts=self.parts, words=self.words, **tools
        )
        text = _CHINESE_LINES.sub("", text)
        html = MarkdownIt("commonmark", {"html": True}).enable("table").render(inline(text))
        # Tables of the text itself are scrolled on a phone as those of numbers are.
        html = html.replace("<table>", '<div class="scroll" tabindex="0"><table class="prose">')
        html = html.replace("</table>", "</table></div>").replace("<pre>", '<pre tabindex="0">')
        while _SLOT.search(html):
            html = _SLOT.sub(lambda found: self.slots[int(found[2])], html)
        return html + self.again()

    def keep(self, html: str) -> Text:
        """A mark in the text for markup that Markdown must not see."""
        self.slots.append(html)
        return Text(f"\x02{len(self.slots) - 1}\x03")

    def shows(self, value: object) -> str:
        """What `{{ value }}` puts into the text: names of files and folders are words, whatever is in them."""
        if isinstance(value, int):  # Markdown must see the numbers of a list
            return str(value)
        return value if isinstance(value, Text) else self.keep(_word(str(value)))

    def code(self, text: str) -> Text:
        """A command or a name as it is typed."""
        return self.keep(_typed(text))

    def lines(self, program: str) -> Text:
        """Lines of a program, for a block of code."""
        return self.keep("\n".join(map(_word, program.splitlines())))

    def find(self, name: str) -> Number:
        """A number of this section, or SECTION.NAME of another."""
        section, _, own = name.rpartition(".")
        numbers = (self.parts[section] if section else self.part).numbers
        if own not in numbers:
            raise KeyError(f"{self.name}: the text names the number '{name}', which was not measured")
        return numbers[own]

    def shown(self, number: Number) -> str:
        unit = self.words["units"][number.unit] if number.unit else ""
        if number.value == 1 and number.error is None:
            unit = self.words["one"].get(number.unit, unit)
        return f"{number}{' ' if unit else ''}{unit}"

    def number(self, name: str) -> Text:
        """The number as people read it, with its unit; programs find all its digits in `value`."""
        return self.keep(self.data(self.find(name), name, name))

    def data(self, number: Number, name: str, listed: str) -> str:
        value, again = escape(self.shown(number)), _word(number.again)
        self.used.setdefault(number.again, {}).setdefault(listed, []).append(value)
        attributes = f'data-name="{escape(name)}" value="{number.value!r}" title="{again}"'
        return f'<data class="number" {attributes}>{value}</data>'

    def plain(self, name: str) -> str:
        """The number without markup, for alternative texts."""
        return self.shown(self.find(name))

    def figure(self, name: str, alt: str, caption: str = "") -> Text:
        """A figure; what is wider than a phone is scrolled there, and what is small stays so on a desktop."""
        drawing = self.part.figures[name](self.words)
        found = re.search(r'data-wide="([\d.]+)"', drawing)
        wide = f' style="min-width:{float(found[1]):.0f}px;max-width:{1.4 * float(found[1]):.0f}px"' if found else ""
        drawing = drawing.replace("<svg", f'<svg role="img" aria-label="{escape(alt)}"{wide}', 1)
        text = f"<figcaption>{inline(caption)}</figcaption>" if caption else ""
        kind = "wide" if found else "plot"
        drawing = f'<div class="scroll" tabindex="0">{drawing}</div>'
        return self.keep(f'<figure class="{kind}" data-figure="{name}">{drawing}{text}</figure>')

    def film(self, name: str, alt: str, caption: str) -> Text:
        """Frames that a window steps along, by styles alone: they can be held, and stand still where asked."""
        strip = self.part.figures[name](self.words)
        found = re.search(r'data-wide="([\d.]+)"', strip)
        assert found is not None
        wide, frames = float(found[1]), strip.count("<use ")
        sizes = f"--frames:{frames};--frame:{wide / frames:g}px;--hold:{HOLD[0] - 1}"
        strip = strip.replace("<svg", f'<svg role="img" aria-label="{escape(alt)}" class="strip"', 1)
        hold = f'<label><input type="checkbox"> {escape(self.words["page"]["hold"])}</label>'
        return self.keep(
            f'<figure class="film" data-figure="{name}" style="{sizes}"><div class="window" tabindex="0">{strip}</div>'
            f"{hold}<figcaption>{inline(caption)}</figcaption></figure>"
        )

    def section(self, name: str) -> Text:
        """A link to another section, by its number."""
        text = self.words["page"]["section"].format(number=[*self.parts].index(name) + 1)
        return self.keep(f'<a href="#{name}">{escape(text)}</a>')

    def cite(self, name: str) -> Text:
        """A link to a source, by its title."""
        self.cited.add(name)
        title, address = SOURCES[name]
        return self.keep(f'<cite><a href="{escape(address)}">{escape(title)}</a></cite>')

    def asks(self, question: str) -> Text:
        """What a section answers."""
        return self.keep(f'<p class="question">{inline(question)}</p>')

    def answer(self, anchor: str, question: str, text: str) -> Text:
        """A question that is often asked, and its answer, where they can be linked to."""
        return self.keep(f'<div class="answer" id="{anchor}"><strong>{inline(question)}</strong> {inline(text)}</div>')

    def follows(self, text: str, *code: str) -> Text:
        """What a section leads to, and where its code is."""
        vocabulary, names = self.words["page"], ", ".join(f"<code>{_word(one)}</code>" for one in code)
        made = f'<p class="where">{escape(vocabulary["code"])} {names}</p>' if code else ""
        return self.keep(
            f'<p class="follows"><strong>{escape(vocabulary["follows"])}</strong> {inline(text)}</p>{made}'
        )

    def table(self, name: str, headings: Sequence[str]) -> Text:
        """Rows of words and numbers."""
        rows = [
            "".join(f"<td>{self.cell(value, name, f'[{i}][{j}]')}</td>" for j, value in enumerate(row))
            for i, row in enumerate(self.part.tables[name])
        ]
        head = "".join(map(_heading, headings))
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return self.keep(
            f'<div class="scroll" tabindex="0"><table data-table="{name}">'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )

    def cell(self, value: Number | str, table: str, place: str) -> str:
        if isinstance(value, Text):
            return inline(value)
        if isinstance(value, str):
            name = self.words["names"].get(value)
            return _word(value) if name is None else inline(_word(name))
        return self.data(value, table + place, f"{table}[…]")

    def line(self, equation_name: str, number_name: str | None, why: str) -> Text:
        """One line of a derivation: the formula, its value in this model, and why it follows."""
        value = self.number(number_name) if number_name else ""
        return self.row(equation(equation_name), value, why)

    def step(self, code: str, number_names: Sequence[str], why: str) -> Text:
        """One line of pseudo-code (LaTeX between $ signs allowed), the numbers that it made, and the function."""
        values = " ".join(self.number(name) for name in number_names)
        return self.row(inline(code), values, why)

    def row(self, formula: str, values: str, why: str) -> Text:
        return self.keep(
            f'<div class="line"><div class="formula">{formula}</div>'
            f'<div class="value">{values}</div><div class="why">{inline(why)}</div></div>'
        )

    def again(self) -> str:
        """How to get the numbers of this section again."""
        if not self.used:
            return ""
        rows = "".join(
            f"<dt>{_typed(how)}</dt><dd>{'; '.join(map(self.listed, named.items()))}</dd>"
            for how, named in self.used.items()
        )
        vocabulary = self.words["page"]
        every = escape(vocabulary["numbers"]).format(command=_typed(self.all_numbers))
        title = escape(vocabulary["again"])
        return f'<details class="again"><summary>{title}</summary><p>{every}</p><dl>{rows}</dl></details>'

    def listed(self, named: tuple[str, list[str]]) -> str:
        """One name with the numbers that are shown under it: of a table, all of its cells."""
        return f"<code>{escape(named[0])}</code> {', '.join(dict.fromkeys(named[1]))}"
