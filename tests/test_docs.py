"""What the documents say is so: their code runs, their tables name what exists, the standalone script is right."""

import importlib.util
import math
import pkgutil
import re
import unicodedata
from pathlib import Path

import pytest
import torch

from ancestral.apps.cli.examples import FIRST
from ancestral.apps.cli.main import EXIT_CODES
from ancestral.diffusion.processes import schedules
from ancestral.diffusion.processes.normal import standard_normal_like

ROOT = Path(__file__).parent.parent


PAGES = [
    page for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if "```python" in page.read_text()
]
PAGES.remove(ROOT / "docs/how-to/hub.md")  # needs the hub


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_on_the_page_runs(page, monkeypatch, tmp_path):
    from ancestral.data import load
    from ancestral.diffusion.denoisers import targets
    from ancestral.diffusion.objectives import losses as objective
    from ancestral.diffusion.samplers import grids, solvers, transitions
    from ancestral.evaluation import features

    tables = (schedules.SCHEDULES, targets.TARGETS, transitions.VARIANCES, grids.GRIDS, objective.OBJECTIVES)
    tables += (load.BUILT_IN, features.NETWORKS, features.TRAINED, solvers.SOLVERS)
    before = [dict(table) for table in tables]
    torch.manual_seed(0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    namespace = {}
    try:
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
            exec(block, namespace)
    finally:
        for table, entries in zip(tables, before, strict=True):
            table.clear()
            table.update(entries)


def test_each_page_is_in_exactly_one_group():
    yaml = pytest.importorskip("yaml")
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    (start, *groups) = (next(iter(group.items())) for group in config["nav"])
    assert start == ("Start", "index.md")
    listed = [page for _, pages in groups for one in pages for page in one.values()]
    folders = {name.lower().replace(" ", "-"): pages for name, pages in groups}
    assert list(folders) == ["tutorials", "how-to", "explanation", "reference"]
    for folder, pages in folders.items():
        assert all(page.startswith(f"{folder}/") for one in pages for page in one.values())
    there = [page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")]
    assert sorted(listed) == sorted(set(there) - {"index.md"})


TEXTS = [
    *(page for page in ROOT.glob("*.md")),
    *(page for folder in ("docs", "benchmarks", "decisions") for page in sorted((ROOT / folder).rglob("*.md"))),
]


def without_code(text):
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE))


def paragraphs(text):
    """Prose alone: each paragraph and item of a list, without code, tables, headings and comments."""
    prose = re.sub(r"<!--.*?-->|^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)
    block = []
    for line in [*prose.splitlines(), ""]:
        other = not line.strip() or line.startswith(("|", "#")) or (line.startswith("    ") and not block)
        if block and (other or re.match(r" *(?:[-*]|\d+\.) ", line)):
            yield " ".join(block)
            block = []
        if not other:
            block.append(line.strip())


def test_what_counts_as_a_paragraph():
    text = "# no\n\none\ntwo\n- three\n  four\n- five\n\n```sh\nno\n```\n| no |\n\n    no = code\n\n1. six"
    assert list(paragraphs(text)) == ["one two", "- three four", "- five", "1. six"]


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_no_paragraph_is_longer_than_90_words(page):
    assert [block for block in paragraphs(page.read_text()) if len(block.split()) > 90] == []


def slug(heading):
    words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    ascii_ = unicodedata.normalize("NFKD", words).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", ascii_).strip().lower())


def anchors(page):
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", prose, re.MULTILINE)}


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if target.startswith("https://"):
            continue
        path, _, part = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert not part or part in anchors(there), target


PERSONS = {  # what somebody wants: the words looked for, the page and part that answer it, and what stands there
    "fine-tune on 500 photos": ("fine-tune", "docs/tutorials/fine-tune.md", "", "ancestral train photos/"),
    "get FID of my samples": ("FID", "docs/how-to/metrics.md", "", "ancestral metrics samples/ DATA"),
    "draw on a GPU box from a script": ("GPU box", "docs/how-to/hub.md", "draw-elsewhere-from-a-script", "draw.py"),
    "add a sampler": ("sampler", "docs/how-to/extending.md", "", 'SOLVERS["half-noise"]'),
}


def local(text):
    """The text with its links as they are here: those of a source distribution's README are absolute."""
    return re.sub(r"https://[^)\s]+/(?:blob|raw)/[^/)\s]+/", "", text)


def offered(page, words):
    """Where the links lead that stand in a line, or under a heading, with these words: (page, part of it)."""
    heading = ""
    for line in local(page.read_text()).splitlines():
        heading = line if line.startswith("#") else heading
        if words.lower() in line.lower() or words.lower() in heading.lower():
            for target in re.findall(r"\]\(([^)\s]+)\)", line):
                if not target.startswith("https://"):
                    path, _, part = target.partition("#")
                    yield (page.parent / path).resolve() if path else page, part


@pytest.mark.parametrize("start", ["README.md", "docs/index.md"])
@pytest.mark.parametrize("person", PERSONS)
def test_who_wants_something_is_there_in_two_clicks(person, start):
    words, page, part, said = PERSONS[person]
    once = set(offered(ROOT / start, words))
    assert once, words
    twice = once | {link for there, _ in once if there.suffix == ".md" for link in offered(there, words)}
    assert (ROOT / page, part) in twice
    sections = re.split("^## ", (ROOT / page).read_text(), flags=re.MULTILINE)
    assert any(said in one for one in sections if not part or slug(one.partition("\n")[0]) == part)


def test_the_reference_is_what_the_code_says():
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts/reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, write in module.PAGES.items():
        if name == "http.md":
            pytest.importorskip("fastapi")
        assert (ROOT / "docs/reference" / name).read_text() == write(), "run scripts/reference.py"


def test_the_first_tutorial_takes_the_steps_of_the_quickstart():
    page = (ROOT / "docs/tutorials/first-model.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    shown = [line for block in blocks for line in block.splitlines() if line.startswith("ancestral ")]
    script = (ROOT / "scripts/quickstart").read_text().replace('"$run"', "runs/mnist").replace('"${2:-5m}"', "5m")
    assert shown == re.findall(r"^\.venv/bin/(ancestral .*)$", script, re.MULTILINE)
    assert f"```text\n{FIRST}```" in page


def test_a_tutorial_is_filled_with_what_its_commands_say():
    spec = importlib.util.spec_from_file_location("tutorial", ROOT / "scripts/tutorial.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    lines = [f"{n}%, {n},000 of 9,000 images, loss 1" for n in range(8)] + [
        "9%, saving, 0:02 left",
        "9%, saving, 0:01 left",
    ]
    said = {"ancestral a": "\n".join(lines) + "\n", "ancestral b": "x" * 112 + "\n" + "y" * 111 + "\n"}
    page = "```sh\n. activate\nancestral a\nancestral b\n```\nis\n```text\nold\n```\n```sh\nancestral c\n```\nend\n"
    kept = [lines[2], lines[4], lines[6], lines[8], "", "x" * 108 + "...", "y" * 111]
    assert module.filled(page, said.__getitem__) == page.replace("old", "\n".join(kept))


def test_the_hundred_lines_are_those_of_the_file():
    page = (ROOT / "docs/tutorials/hundred-lines.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    file = (ROOT / "examples/standalone.py").read_text()
    parts = [part for block in blocks for part in block.strip().split("\n\n\n")]
    assert len(parts) >= 8
    assert all(part.strip() in file for part in parts)


def test_the_readme_is_one_screen():
    text = local((ROOT / "README.md").read_text())
    assert len(text.split()) <= 600
    assert all(len(line) <= 80 for line in text.splitlines() if not line.startswith(("|", "!")))


def rows():
    for line in (ROOT / "docs/reference/paper.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and "Function" not in cells:
            yield cells[0], cells[-2].strip("`"), cells[-1].strip("`")


def file_of_tests(name):
    """The one file of tests of this name."""
    (found,) = (ROOT / "tests").rglob(name)
    return found


def test_the_papers_table_names_what_exists():
    seen = list(rows())
    assert len(seen) > 30
    for what, function, test in seen:
        if function == "not yet":
            assert not test
            continue
        pkgutil.resolve_name(f"ancestral.{function}")
        file, name = test.split("::")
        assert f"def {name}(" in file_of_tests(file).read_text(), what


def test_every_promise_has_its_test():
    text = (ROOT / "docs/reference/reliability.md").read_text()
    promises = re.findall(r"`(test_\w+\.py)::(\w+)`", text)
    assert len(promises) > 12
    for file, name in promises:
        assert f"def {name}(" in file_of_tests(file).read_text(), name


def test_exit_codes_are_those_of_the_help():
    text = (ROOT / "docs/reference/reliability.md").read_text().partition("## Exit codes")[2].partition("\n## ")[0]
    listed = {int(code) for cell in re.findall(r"^\| ([\d, ]+) \|", text, re.MULTILINE) for code in cell.split(",")}
    assert listed == {int(code) for code in re.findall(r"\b\d+\b", EXIT_CODES)}


def test_every_equation_is_in_the_table():
    text = " ".join(what for what, *_ in rows())
    numbers = {int(n) for group in re.findall(r"Eqs?\. ([\d, ]+)", text) for n in re.findall(r"\d+", group)}
    assert numbers == set(range(1, 17))
    assert {int(n) for group in re.findall(r"Algorithms? ([\d, ]+)", text) for n in re.findall(r"\d+", group)} == {
        1,
        2,
        3,
        4,
    }


@pytest.fixture(scope="module")
def standalone():
    pytest.importorskip("sklearn")
    spec = importlib.util.spec_from_file_location("standalone", ROOT / "examples/standalone.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_standalone_script_imports_nothing_of_ours_and_agrees(standalone):
    assert "ancestral" not in (ROOT / "examples/standalone.py").read_text()
    ours = schedules.cosine(standalone.T)
    ab = standalone.alpha_bars()
    assert torch.allclose(ab, ours.log_alpha_bar.exp(), atol=1e-12)
    x0, x_t = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0)).double()
    t = torch.tensor([2, 7, 50, 150, 200])
    mean, variance, beta = standalone.posterior(ab, x_t, x0, t)
    q = ours.posterior(x_t, x0, t, t - 1)
    assert torch.allclose(mean.double(), q.mean, atol=1e-5)
    assert torch.allclose(variance.double(), q.var, rtol=1e-5)
    assert torch.allclose(beta[:, 0].double(), ours.beta[t - 1], rtol=1e-5)


def test_the_standalone_script_learns(standalone, capsys):
    losses, (prior, rate, decoder), images = standalone.main(steps=300)
    assert sum(losses[-30:]) < 0.4 * sum(losses[:10]) * 3
    x0 = torch.tensor(standalone.load_digits().data[-200:] / 8 - 1)
    ours = schedules.cosine(standalone.T).marginal(x0, standalone.T).kl(standard_normal_like(x0)).sum(1).mean()
    assert prior == pytest.approx(float(ours) / 64 / math.log(2), rel=1e-6)
    assert 0 < rate + decoder < math.log2(17) * 1.5
    assert images.shape == (8, 8, 8)
    assert "bits/dim" in capsys.readouterr().out
