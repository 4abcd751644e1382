"""The book: what it is made from, and, in headless Chromium, that it reads well on a phone and on a
desk."""

from __future__ import annotations

import base64
import importlib.util
import os
import re
import shutil
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from committed import committed

from mergelib import lesson
from mergelib.core import paths
from mergelib.run import book, runner
from mergelib.run.book import plane, slides

needs_book = pytest.mark.skipif(
    importlib.util.find_spec("myst_nb") is None, reason="the extra 'book' is not installed"
)


def test_links_out_of_the_book_become_text():
    files = {Path("notebooks/a.ipynb"), Path("figures/mini/a.png"), Path("docs/b.md")}
    text = "[A](a.ipynb) [B](../docs/b.md#c) [L](../LICENSE) [W](https://arxiv.org) ![P](../figures/mini/a.png) [H](#here)"
    kept = book.keep_links(text, Path("notebooks/x.ipynb"), files)
    assert (
        kept == "[A](a.ipynb) [B](../docs/b.md#c) L [W](https://arxiv.org) "
        "![P](../figures/mini/a.png) [H](#here)"
    )


def test_the_first_page_has_a_card_per_notebook_and_an_order_for_the_rest():
    items = list(runner.manifest())
    files = {Path(f"notebooks/{i.id}.ipynb") for i in items}
    page = book.index_page(
        items, [Path("notebooks/solutions/s.ipynb")], [Path("docs/teaching.md")], files
    )
    for item in items:
        assert f"(notebooks/{item.id}.ipynb)" in page and f"\nnotebooks/{item.id}\n" in page
    assert "\nnotebooks/solutions/s\n" in page and "\ndocs/teaching\n" in page


def test_pictures_get_the_saved_figures_alt_text(tmp_path, monkeypatch):
    monkeypatch.setenv("MERGELIB_OUTPUT", str(tmp_path))
    (tmp_path / "figures" / "mini").mkdir(parents=True)
    (tmp_path / "figures" / "mini" / "x.json").write_text('{"alt": "What it says."}')
    picture = nbformat.v4.new_output("display_data", data={"image/png": "aGk="})
    cells = [
        nbformat.v4.new_code_cell("plot()", outputs=[picture]),
        nbformat.v4.new_code_cell("fig", outputs=[picture]),
        nbformat.v4.new_code_cell("plots.save_figure(fig)"),
        nbformat.v4.new_code_cell("plot()", outputs=[picture]),
    ]
    stills = nbformat.v4.new_output(
        "display_data",
        data={"image/png": "aGk="},
        metadata={"image/png": {"alt": "First still.\nSecond still."}},
    )
    cells.append(nbformat.v4.new_code_cell("sliders()", outputs=[stills]))
    notebook = nbformat.v4.new_notebook(cells=cells)
    book.name_pictures(notebook, "mini", "x")
    alts = [c.metadata.get("mystnb", {}).get("image", {}).get("alt") for c in notebook.cells]
    assert alts == [
        "Plot drawn by the code above it",
        "What it says.",
        None,
        "Plot drawn by the code above it",
        "First still. Second still.",
    ]


def test_the_lesson_gets_sliders_above_its_stills():
    """Those of the committed lesson, whatever else it shows; no other cell changes."""
    lesson = nbformat.read(committed() / "notebooks" / f"{book.LESSON}.ipynb", as_version=4)
    before = {c.id: len(c.get("outputs", [])) for c in lesson.cells}
    book.add_sliders(lesson)
    grown = [c for c in lesson.cells if len(c.get("outputs", [])) > before[c.id]]
    assert [c.id for c in grown] == list(book.SLIDERS)
    assert all('src="../plane.html' in c.outputs[0].data["text/html"] for c in grown)
    assert all("lesson.explore(" in c.source for c in grown)


def test_slides_show_every_figure_once_and_load_nothing(tmp_path, monkeypatch):
    """The run's own figures where it drew them, else the committed ones; words are escaped."""
    monkeypatch.setenv("MERGELIB_OUTPUT", str(tmp_path))
    own = tmp_path / "figures" / "quick"
    own.mkdir(parents=True)
    (own / "tab02_main.png").write_bytes(b"mine")
    (own / "tab02_main.json").write_text('{"alt": "1 < 2"}')
    page = slides.page("quick")
    stems = [s for i in runner.manifest() for s in (i.id, *i.extra_figures)]
    sources = re.findall(r'src="([^"]+)"', page)
    assert len(sources) == len(stems) == page.count("<section>")
    assert all(s.startswith("data:image/png;base64,") for s in sources)
    assert sources[stems.index("tab02_main")].endswith(base64.b64encode(b"mine").decode())
    assert "<p>1 &lt; 2</p>" in page and "://" not in page


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The book of the committed notebooks, built once; its folder and Sphinx's warnings."""
    out, root = tmp_path_factory.mktemp("out"), committed()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MERGELIB_OUTPUT", str(out))
        patch.setattr(paths, "root", lambda: root)
        shutil.copytree(root / "figures", out / "figures")
        index, warnings = book.build_book("mini")
    return index.parent, warnings


@needs_book
@pytest.mark.slow
def test_it_builds_without_warnings_and_holds_every_notebook(site):
    folder, warnings = site
    assert not warnings
    for item in runner.manifest():
        assert (folder / "notebooks" / f"{item.id}.html").is_file()


@needs_book
@pytest.mark.slow
def test_it_loads_nothing_from_elsewhere(site):
    for page in site[0].rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|img|link|iframe)\b[^>]*?(?:src|href)=\"([^\"]+)\"", page.read_text()
        )
        assert loaded or page.stem == "plane", "all but the page that is sent on has a style"
        assert not [u for u in loaded if re.match(r"(?:https?:)?//", u)], page.name


# ---- in the browser: ./run_all.sh test -m browser ------------------------------------------------


@pytest.fixture
def browser(request):
    """Chromium at the width that the test asks for."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    with tempfile.TemporaryDirectory() as home:
        for flag in (
            "headless=new",
            "no-sandbox",
            "disable-gpu",
            "disable-quic",
            "no-first-run",
            "disable-background-networking",
            "disable-component-update",
            "disable-sync",
            "disable-dev-shm-usage",
            f"user-data-dir={home}",
        ):
            options.add_argument(f"--{flag}")
        driver = webdriver.Chrome(
            options=options, service=webdriver.ChromeService(shutil.which("chromedriver"))
        )
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {
                "width": request.param,
                "height": 900,
                "deviceScaleFactor": 1,
                "mobile": request.param < 600,
            },
        )
        # Not offline in name only: whatever is not a local file fails.
        driver.execute_cdp_cmd("Network.enable", {})
        driver.execute_cdp_cmd("Network.setBlockedURLs", {"urls": ["http://*", "https://*"]})
        yield driver
        driver.quit()


def settled(driver):
    """Wait until pictures are decoded and formulas set."""
    driver.set_script_timeout(60)
    driver.execute_async_script("""
        const done = arguments[0];
        document.querySelectorAll("img").forEach(i => i.loading = "eager");
        const maths = window.MathJax && MathJax.startup && MathJax.startup.promise || Promise.resolve();
        Promise.all([maths, ...[...document.images].map(i => i.decode().catch(() => 0))]).then(() => done());""")


def shoot(driver, name):
    """A screenshot, where somebody asked for them."""
    if folder := os.environ.get("MERGELIB_SCREENSHOTS"):
        picture = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})[
            "data"
        ]
        (Path(folder) / f"{name}.png").write_bytes(base64.b64decode(picture))


@needs_book
@pytest.mark.browser
@pytest.mark.parametrize("browser", [390, 1280], indirect=True, ids=["phone", "desk"])
def test_every_page_fits_shows_its_pictures_and_leads_on(site, browser):
    folder, _ = site
    for page in sorted(p for p in folder.rglob("*.html") if "_static" not in p.parts):
        name = page.relative_to(folder).as_posix()
        browser.get(page.as_uri())
        settled(browser)
        width, room = browser.execute_script(
            "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        )
        assert width <= room, f"{name} scrolls sideways: {width} > {room}"
        broken = browser.execute_script(
            "return [...document.images].filter(i => !(i.complete && i.naturalWidth)).map(i => "
            "i.src)"
        )
        assert not broken, f"{name}: {broken}"
        silent = browser.execute_script(
            "return [...document.querySelectorAll('.content img')].filter(i => "
            "i.alt.trim().split(/\\s+/).length < 2).map(i => i.src)"
        )
        assert not silent, f"{name}, no alt text: {silent}"
        assert not browser.execute_script(
            "return document.querySelectorAll('mjx-merror, .problematic').length"
        ), name
        formulas, drawn = browser.execute_script(
            "return [document.querySelectorAll('.math').length, document.querySelectorAll('.math "
            "mjx-container').length]"
        )
        assert drawn >= formulas, f"{name}: {formulas} formulas, {drawn} drawn"
        for href in browser.execute_script(
            "return [...document.querySelectorAll('a[href]')].map(a => a.href)"
        ):
            link = urlsplit(href)
            if link.scheme == "file":
                target = Path(unquote(link.path))
                assert target.is_file(), f"{name} links to {href}"
                if link.fragment and target.suffix == ".html":
                    assert f'id="{unquote(link.fragment)}"' in target.read_text(), (
                        f"{name}: no {link.fragment} in {target.name}"
                    )
        shoot(browser, f"book-{room}-{page.stem}")


@needs_book
@pytest.mark.browser
@pytest.mark.parametrize("browser", [1280], indirect=True, ids=["desk"])
def test_search_works_from_the_folder(site, browser):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get((site[0] / "search.html").as_uri() + "?q=surgery")
    WebDriverWait(browser, 30).until(
        lambda d: d.find_elements(By.CSS_SELECTOR, "#search-results li a")
    )
    assert any(
        "fig07_surgery" in a.get_attribute("href")
        for a in browser.find_elements(By.CSS_SELECTOR, "#search-results li a")
    )


# ---- the plane that readers turn -----------------------------------------------------------------

WHOLE = """const all = root => [...root.querySelectorAll('*')].flatMap(
    e => [e, ...(e.shadowRoot ? all(e.shadowRoot) : [])]);
return all(document).filter(e => e.matches(arguments[0]));"""
SAYS = "return Bokeh.documents[0].get_model_by_name('says').text"


def turn_the_plane(browser):
    """Move lambda's slider by its keys, then re-align: figure and numbers follow."""
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    wait = WebDriverWait(browser, 60)
    wait.until(lambda d: "re-aligned: ?" in d.execute_script(SAYS))
    _, lam = browser.execute_script(WHOLE, ".noUi-handle")
    *_, realign = browser.execute_script(WHOLE, "button")
    canvas = browser.execute_script(WHOLE, "canvas")[0]
    drawn = browser.execute_script("return arguments[0].toDataURL()", canvas)
    assert "classifier: <b>40" in browser.execute_script(SAYS)
    lam.send_keys(*[Keys.ARROW_LEFT] * 6)
    wait.until(lambda d: "classifier: <b>6" in d.execute_script(SAYS))
    wait.until(lambda d: d.execute_script("return arguments[0].toDataURL()", canvas) != drawn)
    realign.click()
    wait.until(lambda d: "re-aligned: <b>98" in d.execute_script(SAYS))


@needs_book
@pytest.mark.browser
@pytest.mark.parametrize("browser", [390], indirect=True, ids=["phone"])
def test_the_plane_turns_on_a_phone_by_the_numbers_of_the_lesson(browser, tmp_path):
    (tmp_path / "plane.html").write_text(plane.page())
    browser.get((tmp_path / "plane.html").as_uri())
    turn_the_plane(browser)
    shoot(browser, "plane-390")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    assert not browser.execute_script("return performance.getEntriesByType('resource').length")
    merged = plane.SCRIPT.read_text() + (
        "const found = merge(...arguments);"
        "return [found.right_old, found.right_fitted].map(r => 100 * r.filter(Boolean).length / r.length)"
    )
    for mirrored in (False, True):
        for angle, lam in ((80, 0.5), (35, 0.8), (140, 0.5), (80, 0.4)):
            table = lesson.score_toy(lesson.make_toy(angle, mirrored), lam, plane.K)
            for row in table.to_dict("records"):
                old, new = browser.execute_script(
                    merged, plane.world(), angle, lam, mirrored, row["task"]
                )
                assert old == pytest.approx(row["Current Eval"], abs=0.6)
                # The library takes other steps to the same place.
                assert new == pytest.approx(row["FT-Classifier Eval"], abs=6)


@needs_book
@pytest.mark.browser
@pytest.mark.parametrize("browser", [390, 1280], indirect=True, ids=["phone", "desk"])
def test_the_lessons_sliders_work_in_the_book(site, browser):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get((site[0] / "notebooks" / f"{book.LESSON}.html").as_uri())
    settled(browser)
    frames = browser.find_elements(By.CSS_SELECTOR, "iframe.plane")
    assert len(frames) == len(book.SLIDERS)
    for frame in frames:
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", frame)
        browser.switch_to.frame(frame)
        if frame == frames[0]:
            turn_the_plane(browser)
        else:  # the mirror image, re-aligned as far as that goes
            WebDriverWait(browser, 60).until(lambda d: "re-aligned: <b>5" in d.execute_script(SAYS))
        height, room = browser.execute_script(
            "return [document.documentElement.scrollHeight, innerHeight]"
        )
        assert height <= room, "the frame scrolls inside itself"
        browser.switch_to.default_content()
    shoot(browser, f"book-sliders-{browser.execute_script('return innerWidth')}")
