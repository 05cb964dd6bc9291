"""The page of `ancestral serve` in a real browser: what is seen, clicked, painted and typed."""

import base64
import io
import re
import shlex
import shutil
import struct
import subprocess
import sys
import zlib
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ancestral.apps.report import story
from ancestral.apps.report.subject import of_run
from ancestral.runs.report_links import PAGE
from browser import chromium, open_page
from conftest import run_command

TABS = ("draw", "time", "inpaint", "morph", "compress", "nearest")


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


class Served:
    """`ancestral serve` on a run, as a process of its own."""

    def __init__(self, run):
        self.run, self.port, self.process = run, 0, None

    def start(self):
        command = [sys.executable, "-m", "ancestral", "serve", self.run, "--device", "cpu", "--port", self.port]
        self.process = subprocess.Popen(
            list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        said = []
        for line in self.process.stdout:
            said.append(line)
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/", line):
                self.port = int(found[1])
                return self
        self.stop()
        raise AssertionError("".join(said))

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/"


@pytest.fixture(scope="module")
def served_run(trained_run, browser, tmp_path_factory):
    """A copy of the run that is measured for the codec already, quickly; not made when there is no browser."""
    from ancestral.compression import calibration

    folder = tmp_path_factory.mktemp("page")
    run = Path(shutil.copytree(trained_run, folder / "digits"))
    Image.fromarray(picture()[1]).save(folder / "drawn.png")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("NODES", 12), ("IMAGES", 16), ("AT_THE_END", 32), ("HELD_OUT", 8)):
            patch.setattr(calibration, name, value)
        result = run_command("compress", run, folder / "drawn.png", "--out", folder / "drawn.anc", "--device", "cpu")
    assert result.exit_code == 0, result.output
    return run


@pytest.fixture(scope="module")
def server(served_run):
    served = Served(served_run).start()
    yield served
    served.stop()


@pytest.fixture
def opened(browser, server):
    with open_page(browser, server.url) as page:
        ready(page.page)
        yield page


@pytest.fixture
def page(opened):
    return opened.page


def ready(page):
    page.wait_for_selector("body[data-state=ready]")


def fill(page, panel, **fields):
    for name, value in fields.items():
        field = page.locator(f"#{panel} form [name={name}]")
        (field.select_option if field.evaluate("it => it.tagName") == "SELECT" else field.fill)(str(value))


def run(page, panel, state="done"):
    page.click(f"#{panel} .go")
    page.wait_for_selector(f"#{panel}[data-state={state}]")


def pixels(locator):
    """The bytes of pictures on the page, (N, H, W)."""
    return np.stack([decoded(uri) for uri in locator.evaluate_all("all => all.map(one => one.getAttribute('src'))")])


def decoded(uri):
    return np.asarray(Image.open(io.BytesIO(content(uri))))


def content(uri):
    return base64.b64decode(uri.partition(",")[2])


def picture(seed=0):
    """A file to upload: 8x8 grey values."""
    drawn = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(drawn).save(file, "PNG")
    return {"name": "drawn.png", "mimeType": "image/png", "buffer": file.getvalue()}, drawn


def upload(page, tool, seed=0, well=".well"):
    page.click(f"#tab-{tool}")
    file, drawn = picture(seed)
    page.set_input_files(f"#{tool} {well} input", file)
    page.wait_for_selector(f"#{tool} {well}[data-state=ready]")
    return drawn


def test_every_tool_fits_the_window_in_the_colours_asked_for(opened, page):
    papers = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        papers.append(page.evaluate("getComputedStyle(document.documentElement).backgroundColor"))
    for width in (360, 1280):
        page.set_viewport_size({"width": width, "height": 780})
        for tab in TABS:
            page.click(f"#tab-{tab}")
            assert page.is_visible(f"#{tab} .lead")
            assert opened.overflow() <= 0, (tab, width)
    light, dark = (sum(map(int, re.findall(r"\d+", paper))) for paper in papers)
    assert dark < 150 < 600 < light


def test_a_drawing_falls_to_zero_and_is_what_its_command_writes(page, command, tmp_path):
    page.evaluate(
        """() => {
          window.seen = [];
          const film = document.querySelector("#draw .film");
          const note = () => film.dataset.t && window.seen.push([Number(film.dataset.step), Number(film.dataset.t)]);
          new MutationObserver(note).observe(film, { attributes: true, attributeFilter: ["data-t"] });
        }"""
    )
    fill(page, "draw", seed=5, images=3, steps=30)
    run(page, "draw")
    steps, times = zip(*page.evaluate("window.seen"), strict=True)
    assert times[-1] == 0
    assert steps[-1] == 30
    assert np.all(np.diff(times) < 0)
    assert np.all(np.diff(steps) > 0)
    again = shlex.split(page.inner_text("#draw code"))
    assert again[0] == "ancestral"
    assert command(*again[1:], "--out", tmp_path).exit_code == 0
    written = np.stack([np.asarray(Image.open(tmp_path / f"{number:06d}.png")) for number in range(3)])
    for grid in ("The states", "The predictions"):
        assert np.array_equal(pixels(page.locator(f"#draw [aria-label='{grid}'] img")), written)
    digest = page.get_attribute("#draw", "data-sha256")
    assert digest == sha256(written.tobytes()).hexdigest()


def test_a_link_restores_the_settings_and_the_slider_goes_through_the_steps(browser, server):
    with open_page(browser, f"{server.url}#draw?seed=7&images=2&steps=6&solver=heun") as opened:
        page = opened.page
        ready(page)
        assert page.input_value("#draw [name=seed]") == "7"
        assert page.input_value("#draw [name=solver]") == "heun"
        fill(page, "draw", solver="ddim", eta=0.5)
        run(page, "draw")
        assert page.evaluate("location.hash") == "#draw?seed=7&images=2&steps=6&solver=ddim&eta=0.5"
        final = pixels(page.locator("#draw .film img"))
        film = page.locator("#draw .film")
        page.focus("#draw .film input")
        page.keyboard.press("ArrowLeft")
        assert film.get_attribute("data-t") != "0"
        assert not np.array_equal(pixels(page.locator("#draw .film img")), final)
        page.keyboard.press("ArrowRight")
        assert film.get_attribute("data-t") == "0"
        assert np.array_equal(pixels(page.locator("#draw .film img")), final)


def test_a_second_window_waits_its_turn_until_the_first_cancels(browser, server, page):
    fill(page, "draw", images=64, steps=1000)
    run(page, "draw", "running")
    with open_page(browser, server.url) as other:
        ready(other.page)
        fill(other.page, "draw", images=2, steps=3)
        run(other.page, "draw", "queued")
        other.page.get_by_text("Waiting: place 1 in the queue").wait_for()
        page.focus("#draw .stop")
        page.keyboard.press("Enter")
        page.wait_for_selector("#draw[data-state=cancelled]")
        assert page.evaluate("document.activeElement.className") == "go"  # focus is not lost with the button
        other.page.wait_for_selector("#draw[data-state=done]")


def axe_of(page):
    """What axe-core finds on the page as it is."""
    reason = "needs axe: pip install axe-playwright-python"
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason=reason)
    found = axe.Axe().run(page).response["violations"]
    return [(one["id"], one["nodes"][0]["html"]) for one in found]


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_axe_finds_nothing_on_any_tool(browser, server, width, scheme):
    with open_page(browser, server.url, width, 800, color_scheme=scheme) as opened:
        page = opened.page
        ready(page)
        page.wait_for_selector("#draw .first[data-state=ready]")
        found = {tab: (page.click(f"#tab-{tab}"), axe_of(page))[1] for tab in TABS}
        page.click("#tour-start")
        found["tour"] = axe_of(page)
        page.keyboard.press("Escape")
        fill(page, "draw", images=2, steps=2)
        run(page, "draw")
        page.click("#draw [aria-label='Prediction of image 1']")
        page.wait_for_selector("dialog[open][data-state=ready]")
        found["close-up"] = axe_of(page)
        assert found == {name: [] for name in found}


def test_the_first_film_is_that_of_the_report(page, served_run):
    page.wait_for_selector("#draw .first[data-state=ready]")
    shown = page.evaluate(
        "fetch('api/film', {method: 'POST', headers: {'Content-Type': 'application/json'}, body: '{}'})"
        ".then((answer) => answer.json())"
    )["frames"]
    subject = of_run(served_run, None, 256, 0, "cpu", None)
    strip = story.part(subject).figures["film"]({})
    names = re.findall(r"[qp←→ ]+t = \d+", re.sub(r"<[^>]*>", "\n", strip))
    arrows = {"q": "q →", "p": "← p"}
    assert [f"{arrows[one['way']]}   t = {one['t']}" for one in shown] == [one.strip() for one in names]
    sheet = decoded(re.search(r'href="(data:[^"]*)"', strip)[1])
    frames = np.stack(np.split(sheet, len(shown), axis=1))
    assert np.array_equal(np.stack([decoded(one["image"]) for one in shown]), frames)
    page.click("#draw .first .play")  # it rolls until it is held
    page.focus("#draw .first input")
    page.keyboard.press("Home")
    assert np.array_equal(pixels(page.locator("#draw .first img"))[0], frames[0])
    page.keyboard.press("End")
    assert page.get_attribute("#draw .first", "data-t") == "0"
    fill(page, "draw", images=1, steps=2)
    run(page, "draw")
    assert not page.is_visible("#draw .first")


def test_the_tour_leads_through_the_tools_by_keyboard(page):
    start = "#tour-start"
    assert "new" in page.get_attribute(start, "class")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "tour-start"
    page.keyboard.press("Enter")
    seen = []
    for stop in range(1, 8):
        page.get_by_text(f"{stop} of 7", exact=True).wait_for()
        seen.append(page.evaluate("document.body.dataset.tool"))
        assert page.evaluate("document.activeElement.id") == "tour-title"  # it is read aloud
        if stop == 7:
            assert page.inner_text("#tour code").startswith("ancestral explain ")
        page.focus("#tour [data-tour=next]")
        page.keyboard.press("Enter")
    assert seen == [*TABS, "draw"]
    assert not page.is_visible("#tour")
    assert page.evaluate("document.activeElement.id") == "tour-start"
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    assert not page.is_visible("#tour")
    page.reload()
    ready(page)
    assert "new" not in page.get_attribute(start, "class")


def test_a_page_that_is_loaded_again_goes_on_with_its_job(page):
    fill(page, "draw", seed=3, images=64, steps=1000)
    run(page, "draw", "running")
    page.reload()
    page.wait_for_selector("#draw[data-state=running]")
    assert page.input_value("#draw [name=images]") == "64"
    page.click("#draw .stop")
    page.wait_for_selector("#draw[data-state=cancelled]")
    fill(page, "draw", seed=3, images=2, steps=4)
    run(page, "draw")
    drawn = pixels(page.locator("#draw [aria-label='The predictions'] img"))
    page.reload()
    page.wait_for_selector("#draw[data-state=done]")
    assert np.array_equal(pixels(page.locator("#draw [aria-label='The predictions'] img")), drawn)
    assert "--seed 3" in page.inner_text("#draw code")


def test_a_form_says_what_is_drawn_after_a_reload_and_a_link(page):
    fill(page, "draw", seed=3, images=1, steps=4)
    page.select_option("#draw [name=solver]", "ddim")
    page.fill("#draw [name=eta]", "0.5")
    run(page, "draw")
    assert "--eta 0.5" in page.inner_text("#draw code")
    page.goto(page.url.partition("#")[0])
    page.wait_for_selector("#draw[data-state=done]")
    assert page.is_visible("#draw [name=eta]")
    run(page, "draw")
    assert "--eta 0.5" in page.inner_text("#draw code")
    page.evaluate("location.hash = '#draw?seed=5&images=1&steps=4'")
    page.wait_for_function("document.querySelector('#draw [name=seed]').value === '5'")
    assert page.input_value("#draw [name=solver]") == ""
    run(page, "draw")
    assert "--eta" not in page.inner_text("#draw code")


def test_the_page_links_the_report_and_the_report_the_page(browser, server, served_run):
    report = served_run / "report.html"
    with open_page(browser, server.url) as opened:
        ready(opened.page)
        assert not opened.page.is_visible("#report")
    link, script = f'<a href="{PAGE}">{PAGE}</a>', "<script>document.title = 'ran'</script>"
    text = f"<!doctype html><title>report</title><style>a {{ color: rgb(1, 2, 3) }}</style>{link}{script}"
    report.write_text(text, "utf-8")
    try:
        with open_page(browser, server.url) as opened:
            page = opened.page
            ready(page)
            page.click("#report")
            page.wait_for_url(f"{server.url}report")
            assert page.title() == "report"  # it is a file of the run, perhaps from elsewhere: nothing in it runs
            assert page.locator("a").evaluate("it => getComputedStyle(it).color") == "rgb(1, 2, 3)"
            page.get_by_role("link", name=PAGE).click()
            ready(page)
            assert page.url == server.url
            opened.forgive()  # the policy says what it has kept from running
    finally:
        report.unlink()


def test_drawing_by_keyboard_alone(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "tour-start"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "tab-draw"
    page.keyboard.press("ArrowRight")
    assert page.is_visible("#time")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Tab")
    page.keyboard.press("Control+A")
    page.keyboard.type("11")
    for value in (None, "4", "5"):  # past the dice to the images and the steps
        page.keyboard.press("Tab")
        if value:
            page.keyboard.press("Control+A")
            page.keyboard.type(value)
    page.keyboard.press("Enter")
    page.wait_for_selector("#draw[data-state=done]")
    page.wait_for_selector("#draw .film[data-state=done]")
    names = []
    while len(names) < 12 and "State of image 1" not in names:
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.getAttribute('aria-label')"))
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "State of image 4"
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open][data-state=ready]")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog:not([open])", state="attached")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "State of image 4"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Prediction of image 1"


def test_time_adds_noise_by_the_schedule(page):
    drawn = upload(page, "time")

    def numbers():
        found = page.locator("#time dd").evaluate_all("all => all.map(one => [one.dataset.of, one.textContent])")
        return {name: float(text.replace("−", "-").replace("∞", "inf")) for name, text in found}

    slider = page.locator("#time [name=t]")
    slider.focus()
    for key, t in (("End", 1000), ("ArrowLeft", 999), ("Home", 0), ("ArrowRight", 1)):
        page.keyboard.press(key)
        page.wait_for_selector(f"#time[data-state=ready][data-t='{t}']")
        shown = numbers()
        assert shown["t"] == t
        assert shown["signal"] ** 2 + shown["noise"] ** 2 == pytest.approx(1, abs=3e-4)
        if t == 0:
            assert shown["log_snr"] == np.inf
            assert np.array_equal(pixels(page.locator("#time [data-of=x_t]"))[0], drawn)
        if t == 999:
            assert abs(pixels(page.locator("#time [data-of=x_t]"))[0].astype(int) - drawn).mean() > 20
    assert np.array_equal(pixels(page.locator("#time [data-of=image]"))[0], drawn)
    slider.fill("300")
    page.wait_for_selector("#time[data-state=ready][data-t='300']")
    shown = numbers()
    assert shown["log_snr"] == pytest.approx(2 * np.log(shown["signal"] / shown["noise"]), abs=0.01)


def test_inpainting_keeps_what_is_not_painted(page):
    drawn = upload(page, "inpaint")
    canvas, mask = page.locator("#inpaint canvas"), page.locator("#inpaint .mask")
    page.click("#inpaint .go")
    page.wait_for_selector("#inpaint[data-state=failed]")
    assert "Paint over" in page.inner_text("#inpaint .settings .status")
    canvas.focus()
    for key in (
        "-",
        "-",
        "-",
        *["ArrowLeft"] * 8,
        *["ArrowUp"] * 8,
        "ArrowRight",
        "ArrowDown",
        "Space",
        "Shift+ArrowRight",
    ):
        page.keyboard.press(key)
    assert mask.get_attribute("data-painted") == "2"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.name") == "size"  # the mask keeps nobody in
    box = canvas.bounding_box()
    at = lambda column, row: (box["x"] + (column + 0.5) * box["width"] / 8, box["y"] + (row + 0.5) * box["height"] / 8)  # noqa: E731
    page.mouse.move(*at(4, 3))
    page.mouse.down()
    page.mouse.move(*at(4, 6))
    page.mouse.up()
    painted = canvas.evaluate(
        "it => [...it.getContext('2d').getImageData(0, 0, 8, 8).data].filter((_, i) => i % 4 == 3)"
    )
    expected = np.zeros((8, 8), bool)
    expected[1, 1:3] = expected[3:7, 4] = True
    assert np.array_equal(np.reshape(painted, (8, 8)) > 0, expected)
    page.click("#inpaint [data-do=invert]")
    assert mask.get_attribute("data-painted") == "58"
    page.click("#inpaint [data-do=undo]")
    fill(page, "inpaint", images=3, steps=5)
    run(page, "inpaint", "failed")
    assert page.inner_text("#inpaint .settings .status") == "Steps: a whole number from 6 to 1000"
    fill(page, "inpaint", steps=6)
    run(page, "inpaint")
    variants = pixels(page.locator("#inpaint [aria-label='The predictions'] img"))
    assert variants.shape == (3, 8, 8)
    assert np.array_equal(variants[:, ~expected], np.broadcast_to(drawn[~expected], (3, 58)))
    assert np.any(variants[0] != variants[1])
    mask = decoded(page.get_attribute("#inpaint a[download='mask.png']", "href"))
    assert np.array_equal(mask[:, :, 0], 255 * expected)


def test_a_morph_has_a_frame_for_every_step_of_the_slider(page):
    upload(page, "morph", 1, "[data-name=a]")
    upload(page, "morph", 2, "[data-name=b]")
    fill(page, "morph", frames=4, steps=10)
    run(page, "morph")
    strip = pixels(page.locator("#morph .strip img"))
    assert strip.shape == (4, 8, 8)
    page.focus("#morph .reel input")
    for key, frame in (("End", 3), ("ArrowLeft", 2), ("Home", 0)):
        page.keyboard.press(key)
        page.wait_for_selector(f"#morph[data-frame='{frame}']")
        assert np.array_equal(pixels(page.locator("#morph .big img"))[0], strip[frame])
    page.click("#morph .play")
    page.wait_for_selector("#morph[data-frame='3']")
    page.click("#morph .play")
    assert page.inner_text("#morph .play") == "Play"


def test_compression_ends_with_the_exact_picture(page, command, served_run, tmp_path):
    drawn = upload(page, "compress")
    fill(page, "compress", profile="quick")
    run(page, "compress")
    file = content(page.get_attribute("#compress a[download]", "href"))
    assert page.inner_text("#compress [data-of=file]") == f"{len(file):,} bytes"
    (tmp_path / "picture.anc").write_bytes(file)
    result = command("decompress", served_run, tmp_path / "picture.anc", "--out", tmp_path / "back.png")
    assert result.exit_code == 0, result.output
    assert np.array_equal(np.asarray(Image.open(tmp_path / "back.png")), drawn)
    slider, psnr = page.locator("#compress .stage input"), page.locator("#compress .numbers [data-of=psnr]")
    slider.focus()
    page.keyboard.press("End")
    assert psnr.inner_text() == "exact"
    assert np.array_equal(pixels(page.locator("#compress [data-of=prefix]"))[0], drawn)
    sizes = [int(page.get_attribute("#compress", "data-bytes"))]
    assert sizes[0] == len(file)
    while slider.input_value() != "0":
        page.keyboard.press("ArrowLeft")
        sizes.append(int(page.get_attribute("#compress", "data-bytes")))
        mse = np.square(pixels(page.locator("#compress [data-of=prefix]"))[0].astype(float) - drawn).mean()
        assert float(psnr.inner_text().split()[0]) == pytest.approx(10 * np.log10(255**2 / mse), abs=0.06)
    assert np.all(np.diff(sizes) <= 0)
    assert sizes[-1] < sizes[0]


def test_a_training_image_is_nearest_to_itself(page):
    upload(page, "nearest")
    fill(page, "nearest", count=3)
    run(page, "nearest")
    known = page.get_attribute("#nearest .neighbours img", "src")
    file = {"name": "known.png", "mimeType": "image/png", "buffer": content(known)}
    page.set_input_files("#nearest .well input", file)
    page.wait_for_selector("#nearest .well[data-state=ready]")
    run(page, "nearest")
    found = page.locator("#nearest .neighbours figure")
    assert found.count() == 3
    assert np.array_equal(decoded(found.locator("img").first.get_attribute("src")), decoded(known))
    assert float(found.locator("figcaption > span").first.inner_text()) == 0


def test_a_picture_goes_from_one_tool_to_the_others(page):
    fill(page, "draw", images=2, steps=2)
    run(page, "draw")
    page.click("#draw [aria-label='Prediction of image 2']")
    uri = page.get_attribute("dialog .closeup > img", "src")
    page.wait_for_selector("dialog[data-state=ready]")
    assert content(page.get_attribute("dialog a[download]", "href")) == content(uri)
    page.click("dialog [data-use=time]")
    page.wait_for_selector("#time[data-state=ready]")
    for picture in ("#time [data-of=image]", "#inpaint .easel img", "#compress .frame img", "#nearest .frame img"):
        assert np.array_equal(decoded(page.get_attribute(picture, "src")), decoded(uri))


def test_a_picture_of_many_pixels_is_made_smaller_before_it_is_sent(page):
    file = io.BytesIO()
    Image.new("L", (5000, 5000), 200).save(file, "PNG")
    page.click("#tab-time")
    page.set_input_files("#time .well input", {"name": "a.png", "mimeType": "image/png", "buffer": file.getvalue()})
    page.wait_for_selector("#time .well[data-state=ready]")


def test_a_picture_that_no_browser_can_shrink_is_refused_in_words_before_it_is_decoded(page):
    """Its header says so; there is nothing behind it."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    file = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    page.click("#tab-time")
    page.set_input_files("#time .well input", {"name": "huge.png", "mimeType": "image/png", "buffer": file})
    page.wait_for_selector("#time .well[data-state=failed]")
    said = page.inner_text("#time .well .status")
    assert said.startswith("huge.png: 30000 × 30000 pixels")
    assert "save it with at most 12000 a side" in said


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("JPEG", {}), ("WEBP", {}), ("WEBP", {"lossless": True})])
def test_the_size_of_a_picture_is_in_its_header(page, kind, options):
    file = io.BytesIO()
    Image.new("RGB", (37, 21), 200).save(file, kind, **options)
    code = base64.b64encode(file.getvalue()).decode()
    found = page.evaluate(
        """async (code) => (await import("./static/dom.js")).dimensions(
        new Blob([Uint8Array.from(atob(code), (one) => one.charCodeAt(0))]))""",
        code,
    )
    assert found == [37, 21]


def test_mistakes_are_one_line_beside_what_was_pressed(opened, page):
    fill(page, "draw", steps=0)
    run(page, "draw", "failed")
    assert page.inner_text("#draw .status") == "Steps: a whole number from 1 to 1000"
    assert page.evaluate("document.activeElement.name") == "steps"
    page.click("#tab-time")
    damaged = {"name": "not.png", "mimeType": "image/png", "buffer": b"no picture"}
    page.set_input_files("#time .well input", damaged)
    page.wait_for_selector("#time .well[data-state=failed]")
    said = page.inner_text("#time .well .status")
    assert "image" in said
    assert "\n" not in said
    opened.forgive()  # the browser reports the refusal in its console


def test_cancelling_before_the_stream_or_even_the_answer_is_there(page):
    """Neither may leave the page waiting or say that something failed, nor the job running."""
    held = []
    fill(page, "draw", images=1, steps=1000)
    for path in ("**/api/jobs/*/events", "**/api/draw"):
        page.route(path, lambda route: held.append(route))
        with page.expect_request(path):
            page.click("#draw .go")
        with page.expect_response(lambda answer: answer.request.method == "DELETE") as deleted:
            page.click("#draw .stop")
            if path == "**/api/draw":
                held[-1].continue_()
        page.wait_for_selector("#draw[data-state=cancelled]")
        assert page.inner_text("#draw .status") == "Cancelled"
        assert deleted.value.status == 204
        page.unroute(path)


def test_what_is_near_belongs_to_the_picture_that_is_open(page):
    held = []
    fill(page, "draw", images=2, steps=2)
    run(page, "draw")
    page.route("**/api/nearest", lambda route: held.append(route), times=1)
    with page.expect_request("**/api/nearest"):
        page.click("#draw [aria-label='Prediction of image 1']")
    page.keyboard.press("Escape")
    page.click("#draw [aria-label='Prediction of image 2']")
    page.wait_for_selector("dialog[open][data-state=ready]")
    shown = pixels(page.locator("dialog .neighbours img"))
    assert len(shown) == 8
    late = [{"image": page.get_attribute("#draw .film img", "src"), "index": 1, "distance": 0.0}]
    with page.expect_event("requestfinished"):
        held[0].fulfill(json={"neighbours": late, "metric": "too late"})
    assert page.evaluate("new Promise((done) => setTimeout(() => done(true)))")
    assert np.array_equal(pixels(page.locator("dialog .neighbours img")), shown)
    assert "too late" not in page.inner_text("dialog .status")


def test_a_full_queue_is_waited_for_and_a_missing_feature_says_why(browser, server):
    with open_page(browser, "about:blank") as opened:
        page = opened.page
        page.route("**/api/model", lambda route: route.fulfill(json=another(route.fetch().json())))
        full = {"status": 429, "headers": {"Retry-After": "1"}, "json": {"detail": "full"}}
        page.route("**/api/draw", lambda route: route.fulfill(**full), times=1)
        page.goto(server.url)
        ready(page)
        fill(page, "draw", images=1, steps=2)
        page.click("#draw .go")
        page.get_by_text("The queue is full; asking again in 1 s").wait_for()
        page.wait_for_selector("#draw[data-state=done]")
        page.click("#tab-inpaint")
        assert page.inner_text("#inpaint .notice") == "inpaint: not with this model"
        assert page.locator("#inpaint button").count() == 0
        upload(page, "time")
        for tool in ("draw", "morph", "time"):
            page.click(f"#tab-{tool}")
            named = page.locator(f"#{tool} [name=label] option").all_inner_texts()
            assert named[-2:] == MARKUP, "a name is text, whatever it looks like"
        with page.expect_request("**/api/noise") as asked:
            page.select_option("#time [name=label]", MARKUP[1])
        assert asked.value.post_data_json["label"] == MARKUP[1]
        page.wait_for_selector("#time[data-state=failed]")  # this server's model has no classes
        opened.forgive()  # the answers 429 and 422


MARKUP = ["<b>one</b>", "<img src=x onerror=alert(1)>"]


def another(model):
    """A model that cannot inpaint and has classes."""
    features = {**model["features"], "inpaint": "inpaint: not with this model"}
    return {**model, "features": features, "classes": MARKUP}


def test_a_server_that_is_gone_is_missed_and_found_again(opened, page, server):
    fill(page, "draw", images=9, steps=1000)
    run(page, "draw", "running")
    server.stop()
    try:
        page.get_by_text("Is ancestral serve still running?").wait_for()
    finally:
        server.start()
    page.wait_for_selector("body[data-server=there]")
    page.wait_for_selector("#draw[data-state=failed]")
    assert "run it again" in page.inner_text("#draw .status")
    fill(page, "draw", images=1, steps=2)
    run(page, "draw")
    opened.forgive()  # requests to nobody
