"""The card of a model whose every name is hostile has the structure of one whose names are harmless."""

import json
import re
from dataclasses import replace

import pytest
import yaml
from markdown_it import MarkdownIt

from ancestral.runs import checkpoint
from ancestral.runs.hub import model_card
from ancestral.runs.measurements import Measured
from ancestral.runtime.text import shown

pytest.importorskip("huggingface_hub")
NAMES = (
    *("![x](http://a/b.png)", "[x](javascript:alert(1))", "[x][y]", "[x]: http://a", "![x][y]", "[^1]", "[^1]: x"),
    *("# x", "###### x", "x\n===", "x\n---", "===", "---", "***", "___", "\n# x", "\n\n# x\n\n", "\r# x", "\r\n> x"),
    *("- x", "* x", "+ x", "1. x", "1) x", "\n- x", "\n1. x", "- [ ] x", "> x", "\n> x", "    x", "\n\n    x", "\tx"),
    *("| x | y |", "x|y", "\\|", "\\\\|", "|---|---|", "\n|a|b|\n|---|---|\n|c|d|\n", "`|`", "x\\", "\\", "\\`", "x  "),
    *("```", "```sh\nx\n```", "~~~", "\n```\nx", "`", "``", "` `", "`x`", "``x`", "x`", "`x", " `x` ", " ", "  x"),
    *("*x*", "**x**", "_x_", "__x__", "~~x~~", "***x", "x*y*z", "_", "*", "<b>x</b>", "<img src=x onerror=alert(1)>"),
    *("<script>alert(1)</script>", "</code>", "</td></tr></table>", "<!-- x", "-->", "<?x?>", "<![CDATA[x]]>", "<x"),
    *("<http://a.b>", "<a@b.c>", "http://a.b/c", "https://a.b", "www.a.b", "WWW.a.b", "a@b.c", "mailto:a@b.c", "@x"),
    *("&lt;b&gt;", "&#60;b&#62;", "&amp;", "&", "&#124;", "&nbsp;", ":smile:", "$x$", "$$x$$", "#1", "{{ x }}", "{x}"),
    *("---\nlicense: mit\n---", "\n---\n", "...", "&a x", "*a", "!!python/object:x", "!x", "? x", "x: y", "x #y", "%x"),
    *(
        "null",
        "true",
        "1e3",
        "2026-11-28",
        "[x]",
        "{x: y}",
        "'",
        '"',
        "a'b\"c",
        "@",
        "~",
        "<<",
        "x\n  y: z",
        "\0",
        "\x02",
    ),
    *(
        "\x1b[31m",
        "\x7f",
        "\x85# x",
        "\u2028# x",
        "\u2029# x",
        "\u202egnp",
        "\u2066x\u2069",
        "\u200b",
        "\ufeff",
        "\udc80",
    ),
)


def made(saved, name):
    """A card with this name at every place of it that comes from elsewhere."""
    measurement = {
        **dict.fromkeys(("images", "terms", "solver", "eta", "guidance", "guide", "searched"), name),
        **{"network": {"network": name}, "few": [name], "metrics": {name: {"test": {"value": 1.5}}}},
        **{"kid": {name: {"value": 2.5, "standard_error": 0.5}}},
    }
    config, facts = saved.config, replace(saved.facts, class_names=(name, f"{name}{name}", f"x{name}x"))
    config = replace(config, source=name, model=replace(config.model, labels=True))
    found = Measured(f"metrics-{name}", json.loads(json.dumps(measurement)))
    origin = {"name": name, "digest": "0123456789abcdef", "images": 7, "source": name}
    saved = replace(saved, config=config, facts=facts, state={**saved.state, "origin": origin})
    return model_card.card(f"somebody/{name}", saved, [found], name)


def parsed(card):
    """The front matter, and the text's tokens but for those of code blocks, which hold no name but the model's."""
    head, text = re.fullmatch(r"---\n(.*?)\n---\n\n(.*)", card, re.DOTALL).groups()
    tokens = MarkdownIt("gfm-like", {"html": True, "linkify": False}).parse(text)
    flat = [part for token in tokens for part in (token, *(token.children or ()))]
    return yaml.safe_load(head), flat


def structure(tokens):
    """Kinds in order; text beside text is one text."""
    kinds = [
        ("text",) if token.type in ("text", "text_special") else (token.type, token.tag, token.level)
        for token in tokens
    ]
    return [kind for i, kind in enumerate(kinds) if not (kind == ("text",) and i and kinds[i - 1] == kind)]


def written(tokens):
    return "".join(token.content for token in tokens if token.type in ("text", "text_special", "code_inline"))


@pytest.fixture(scope="module")
def saved(trained_run):
    return checkpoint.open_run(trained_run)[0]


def test_a_harmless_card_shows_its_names(saved):
    head, tokens = parsed(made(saved, "x_1, 2.5 (y)"))
    assert head["license"] == "x_1, 2.5 (y)"
    assert written(tokens).count("x_1, 2.5 (y)") > 10
    assert "&#" not in made(saved, "x_1, 2.5 (y)")


@pytest.mark.parametrize("name", NAMES)
def test_no_name_changes_the_structure(saved, name):
    plain_head, plain = parsed(made(saved, "plain"))
    card = made(saved, name)
    head, tokens = parsed(card)
    assert structure(tokens) == structure(plain)
    assert head.keys() == plain_head.keys()
    assert (head["license"], head["metrics"]) == (shown(name), sorted({shown(name.partition(": ")[0]), "kid"}))
    assert all(line.isprintable() for line in card.split("\n"))
    assert shown(name).strip() in written(tokens)
    prose = re.sub(r"```.*?\n```\n", "", card.split("\n---\n\n", 1)[1], count=2, flags=re.DOTALL)
    prose = re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", prose)
    assert not re.search(r"(?i)https?://|www\.|\w@\w|:smile:|\$|<", prose)  # what the hub makes links and more of


@pytest.mark.parametrize("name", ["x\n# y", 'x"\nimport os\n"'])
def test_the_name_on_the_hub_stays_in_its_lines_of_code(saved, name):
    def lines(name):
        return [token.content.count("\n") for token in parsed(made(saved, name))[1] if token.type == "fence"]

    assert lines(name) == lines("plain")
