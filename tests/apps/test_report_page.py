"""The report of the exact shapes: numbers in both languages, code that is named, the page in a real browser."""

import re
from importlib import import_module
from pathlib import Path

import pytest

from ancestral.apps.report import LANGUAGES, main
from ancestral.apps.report.exact_subject import exact
from browser import chromium, open_page

SECTIONS = ("story", "forward", "reverse", "network", "bound", "spread", "onestep", "connections", "quality", "models")
CODE = re.compile(r"<code>([a-z_0-9]+)\.([A-Za-z_.0-9]+)</code>")
FOLLOWS = re.compile(r"\{\{ follows\(.*\) \}\}")
VALUES = re.compile(r'<data class="number"(?: data-name="([^"]*)")? value="([^"]*)" title="([^"]*)"')


@pytest.fixture(scope="session")
def reports(tmp_path_factory):
    """In both languages: as the command without a run makes them, measured once."""
    folder, subject = tmp_path_factory.mktemp("reports"), exact(num_images=256, seed=0)
    parts = main.measured(subject)
    made = {language: folder / f"{language}.html" for language in LANGUAGES}
    for language, path in made.items():
        path.write_text(main.written(subject, parts, language, 1.0), "utf-8")
    return made


def values(path):
    """Every number but those of the clock: (name, how to get it again, value)."""
    found = VALUES.findall(path.read_text("utf-8"))
    return [(name, again, float(value)) for name, value, again in found if name not in ("per_second", "slow")]


def test_code_that_is_named_exists():
    """As `module.name`, where the module is one file of the package."""
    package = Path(main.__file__).parents[2]
    texts = [path.read_text("utf-8") for path in package.glob("apps/report/text/*/*.md")]
    named = {found for text in texts for found in CODE.findall(text)}
    calls = [call for text in texts for call in FOLLOWS.findall(text)]
    named |= {tuple(name.split(".", 1)) for call in calls for name in re.findall(r', "([\w.]+)"', call)}
    assert len(named) > 10
    for module, name in named:
        paths = [path for path in package.rglob(f"{module}.py") if "apps" not in path.parts]
        loaded = [
            import_module(".".join(("ancestral", *path.relative_to(package).with_suffix("").parts))) for path in paths
        ]
        assert any(_has(one, name) for one in loaded), f"{module}.{name}"


def _has(thing, name):
    for part in name.split("."):
        if not hasattr(thing, part):
            return False
        thing = getattr(thing, part)
    return True


def test_languages_have_the_same_numbers(reports):
    assert len(values(reports["en"])) > 300
    assert values(reports["en"]) == values(reports["zh-TW"])


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.mark.parametrize(
    ("language", "width", "scheme"),
    [("en", 1280, "light"), ("en", 360, "dark"), ("zh-TW", 360, "light"), ("zh-TW", 1280, "dark")],
)
def test_everything_is_there_and_fits(reports, browser, language, width, scheme):
    with open_page(browser, reports[language].as_uri(), width, 800, color_scheme=scheme) as opened:
        page = opened.page
        assert [one.get_attribute("id") for one in page.query_selector_all("main > section")] == list(SECTIONS)
        assert opened.overflow() <= 0
        sizes = page.evaluate(
            """() => Promise.all([...document.querySelectorAll("figure image, figure img")].map(one => {
                const image = new Image(); image.src = one.href?.baseVal || one.src;
                return image.decode().then(() => image.naturalWidth, () => 0);
            }))"""
        )
        assert len(sizes) > 10
        assert all(sizes)
        boxes = "selector => [...document.querySelectorAll(selector)].map(one => one.getBoundingClientRect().height)"
        for selector, least in (("figure > .scroll > svg", 20), (".equation math", 10)):
            heights = page.evaluate(boxes, selector)
            assert len(heights) > 15
            assert min(heights) > least, selector
        said = page.evaluate("[...document.querySelectorAll('figure svg[role=img]')].map(one => one.ariaLabel)")
        assert all(len(one) > 5 for one in said)
        lightness = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
        assert (lightness > 128) == (scheme == "light")


def test_the_contents_lead_to_the_sections_by_keyboard(reports, browser):
    with open_page(browser, reports["en"].as_uri()) as opened:
        page = opened.page
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.locator("nav a", has_text="reverse").first.focus()
        page.keyboard.press("Enter")
        page.wait_for_selector("#reverse:target")
        again = page.locator("#reverse details.again")
        again.locator("summary").focus()
        page.keyboard.press("Enter")
        assert again.locator("code").first.is_visible()


@pytest.mark.parametrize(("language", "width", "scheme"), [("en", 1280, "light"), ("zh-TW", 390, "dark")])
def test_axe_finds_nothing(reports, browser, language, width, scheme):
    """With everything open that is folded."""
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="needs axe: pip install axe-playwright-python"
    )
    with open_page(browser, reports[language].as_uri(), width, 900, color_scheme=scheme) as opened:
        opened.page.check("#everything")
        found = axe.Axe().run(opened.page).response["violations"]
        assert [(one["id"], one["nodes"][0]["html"]) for one in found] == []


QUESTIONS = {  # and where notes would have the answer: the equation or the heading that raises the question
    "what-the-network-sees": ["#reverse [data-equation=reverse_mean]"],
    "why-eps": ["#reverse [data-equation=x_t_of_eps]", "#reverse [data-equation=x0_of_eps]"],
    "where-w-t": ["#spread [data-equation=error_of_eps]", "#spread [data-equation=simple]"],
    "why-not-L-T": ["#bound [data-equation=elbo_names]"],
    "next": ["#quality-title", "#next + h3 + p"],  # the verdict, and what to try next
}
LAPTOP = (1366, 768)


@pytest.mark.parametrize("language", LANGUAGES)
def test_five_questions_are_answered_where_notes_would_have_it(reports, browser, language):
    """On one screen of a laptop with it, from the top of the one to the end of the other; and nothing is folded."""
    with open_page(browser, reports[language].as_uri(), *LAPTOP) as opened:
        page = opened.page
        for anchor, places in QUESTIONS.items():
            assert page.locator(f"#story a[href='#{anchor}']").count() == 1
            assert page.is_visible(f"#{anchor}")
            answer = page.locator(f"#{anchor}").bounding_box()
            for place in places:
                both = (answer, page.locator(place).bounding_box())
                top, end = min(one["y"] for one in both), max(one["y"] + one["height"] for one in both)
                assert end - top <= LAPTOP[1], (anchor, place)


def test_the_film_moves_is_held_and_is_still_where_that_is_asked_for(reports, browser):
    strip, state = (
        "figure.film .strip",
        "one => [getComputedStyle(one).animationName, getComputedStyle(one).animationPlayState]",
    )
    with open_page(browser, reports["en"].as_uri()) as opened:
        assert opened.page.locator(strip).evaluate(state) == ["film", "running"]
        opened.page.locator("figure.film input").focus()
        opened.page.keyboard.press("Space")
        assert opened.page.locator(strip).evaluate(state) == ["film", "paused"]
    with open_page(browser, reports["en"].as_uri(), reduced_motion="reduce") as opened:
        assert opened.page.locator(strip).evaluate(state)[0] == "none"
    assert "<script" not in reports["en"].read_text("utf-8")


MAIN_LINE = 15  # pages of paper


def pages(page):
    return len(re.findall(rb"/Type\s*/Page\b", page.pdf(format="A4", print_background=False)))


def test_it_prints(reports, browser):
    with open_page(browser, reports["en"].as_uri()) as opened:
        page = opened.page
        printed = page.pdf(format="A4", print_background=False)
        assert printed.startswith(b"%PDF-")
        assert pages(page) <= MAIN_LINE
        page.check("#everything")
        assert pages(page) > 2 * MAIN_LINE
        page.emulate_media(media="print")
        assert page.locator("details.again dl").first.is_visible()
