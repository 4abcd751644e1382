"""The book: what it is made from, and, in headless Chromium, that it reads well on a phone and on a
desk."""

import base64
import doctest
import importlib.util
import io
import os
import re
import shutil
import tempfile
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import torch
from committed import committed

import mergelib
from mergelib import lesson, merging, models, protocols, tasks
from mergelib.core import paths
from mergelib.run import book, runner
from mergelib.run.cli import build_parser

PUBLIC = [name for name in mergelib.__all__ if name != "__version__"]
needs_book = pytest.mark.skipif(
    importlib.util.find_spec("myst_nb") is None, reason="the extra 'book' is not installed"
)


def test_links_out_of_the_book_become_text():
    files = {Path("notebooks/a.ipynb"), Path("figures/mini/a.png"), Path("docs/b.md")}
    text = (
        "[A](a.ipynb) [B](../docs/b.md#c) [L](../LICENSE) [W](https://arxiv.org) "
        "![P](../figures/mini/a.png) [H](#here)"
    )
    kept = book.keep_links(text, Path("notebooks/x.ipynb"), files)
    assert (
        kept == "[A](a.ipynb) [B](../docs/b.md#c) L [W](https://arxiv.org) "
        "![P](../figures/mini/a.png) [H](#here)"
    )


def test_the_first_page_has_a_card_per_notebook_and_an_order_for_the_rest():
    items = list(runner.manifest())
    others = {"Solutions": ["notebooks/solutions/s"], "For teachers": ["docs/teaching"]}
    page = book.index_page(items, others, {Path("figures/REPORT.md")})
    cards, order = page.split("```{toctree}", 1)
    assert all(cards.count(f"(notebooks/{i.id}.ipynb)") == 2 for i in items)  # none is in no group
    places = [*(f"notebooks/{i.id}" for i in items), "figures/REPORT"]
    places += [place for listed in others.values() for place in listed]
    assert sorted(line for line in order.splitlines() if "/" in line) == sorted(places)
    pages = ('href="slides.html"', 'href="plane.html"')
    for link in ("(gallery.md)", "(api/index.rst)", 'action="search.html"', *pages):
        assert link in page


def drew(source, **metadata):
    """A cell that drew a picture."""
    data = {"image/png": "aGk="}
    picture = nbformat.v4.new_output("display_data", data=data, metadata={"image/png": metadata})
    return nbformat.v4.new_code_cell(source, outputs=[picture])


def test_pictures_get_the_saved_figures_alt_text(tmp_path, monkeypatch):
    monkeypatch.setenv("MERGELIB_OUTPUT", str(tmp_path))
    (tmp_path / "figures" / "mini").mkdir(parents=True)
    (tmp_path / "figures" / "mini" / "x.json").write_text('{"alt": "What it says."}')
    save = nbformat.v4.new_code_cell("plots.save_figure(fig)")
    stills = drew("sliders()", alt="First still.\nSecond still.")
    cells = [drew("plot()"), drew("fig"), save, drew("plot()"), stills]
    notebook = nbformat.v4.new_notebook(cells=cells)
    book.name_pictures(notebook, "mini", "x")
    alts = [c.metadata.get("mystnb", {}).get("image", {}).get("alt") for c in notebook.cells]
    generic = "Plot drawn by the code above it"
    assert alts == [generic, "What it says.", None, generic, "First still. Second still."]


def test_the_lesson_gets_sliders_above_its_stills():
    """Those of the committed lesson, whatever else it shows; no other cell changes."""
    lesson = nbformat.read(committed() / "notebooks" / f"{book.LESSON}.ipynb", as_version=4)
    before = {c.id: len(c.get("outputs", [])) for c in lesson.cells}
    book.add_sliders(lesson)
    grown = [c for c in lesson.cells if len(c.get("outputs", [])) > before[c.id]]
    assert [c.id for c in grown] == list(book.SLIDERS)
    assert all('src="../plane.html' in c.outputs[0].data["text/html"] for c in grown)
    assert all("lesson.explore(" in c.source for c in grown)


def test_gallery_and_slides_show_every_figure_once_with_its_finding(tmp_path, monkeypatch):
    """The run's own figures where it drew them, else the committed ones; words are escaped."""
    items, root = runner.manifest(), committed()
    monkeypatch.setattr(paths, "root", lambda: root)
    monkeypatch.setenv("MERGELIB_OUTPUT", str(tmp_path))
    own = tmp_path / "figures" / "quick" / "tab02_main.json"
    own.parent.mkdir(parents=True)
    own.with_suffix(".png").write_bytes(b"mine")
    own.write_text('{"alt": "1 < 2 [percent].", "title": "FT-Classifier gains\\n10 points"}')
    stems = [stem for i in items for stem in (i.id, *i.extra_figures)]
    page, slides = book.gallery.page("quick"), book.gallery.slides("quick")
    for item in items:
        for stem in (item.id, *item.extra_figures):
            file = f"figures/{'quick' if stem == own.stem else 'mini'}/{stem}"
            assert page.count(f"]({file}.png)](notebooks/{item.id}.ipynb)") == 1
            assert f"<{file}.png>" in page and f"<{file}.pdf>" in page
    assert "**FT-Classifier gains 10 points**" in page and "![1 \\< 2 \\[percent\\].]" in page
    sources = re.findall(r'src="([^"]+)"', slides)
    assert len(sources) == len(stems) == slides.count("<section>")
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert sources[stems.index(own.stem)].endswith(base64.b64encode(b"mine").decode())
    assert "<p>1 &lt; 2 [percent].</p>" in slides and "://" not in slides


# ---- the API reference ---------------------------------------------------------------------------


def test_the_reference_explains_every_public_name():
    pages = book.api.pages(build_parser())
    explained = re.findall(r"auto(?:class|function|exception):: (\S+)", "\n".join(pages.values()))
    assert len(explained) == len(set(explained))
    assert {f"mergelib.{n}" for n in PUBLIC} <= set(explained)
    found = {getattr(import_module(n.rpartition(".")[0]), n.rpartition(".")[2]) for n in explained}
    for module in (merging, protocols, tasks, models):
        named = {getattr(module, n) for n in module.__all__ if callable(getattr(module, n))}
        assert named <= found, named - found
    for name in merging.METHODS:
        assert f".. py:function:: {name}(base, experts" in pages["api/methods"]
    for name, member in vars(mergelib.Study).items():
        if not name.startswith("_"):
            assert member.__doc__, f"Study.{name} has no docstring"
            assert f"   ~mergelib.Study.{name}\n" in pages["api/index"]


def test_the_reference_explains_every_command_and_flag():
    page = book.api.pages(build_parser())["api/command_line"]
    for command in ("run", "store", "train", "merge", "align", "evaluate", "data", "doctor"):
        assert f"\n{command}\n{'-' * len(command)}\n" in page
    assert "``--only NAME ...``\n   notebooks or groups" in page
    assert not re.search(r"^``.*``\n *\n", page, re.M), "a flag without a word of help"


def test_the_examples_run(monkeypatch, tmp_path):
    """Each public name's, in the order in which the reference shows them."""
    assert sorted(book.api.EXAMPLES) == PUBLIC
    for known, name in ((merging.METHODS, "largest"), (protocols.PROTOCOLS, "no_bias")):
        monkeypatch.setitem(known, name, None)  # what an example registers is taken back
    monkeypatch.setenv("MERGELIB_STORE", str(tmp_path))
    names, said = {"mergelib": mergelib, "torch": torch}, io.StringIO()
    for name in book.api.EXAMPLES:
        text = getattr(mergelib, name).__doc__
        example = doctest.DocTestParser().get_doctest(text, names, name, None, None)
        lines = sum(e.source.count("\n") for e in example.examples)
        assert 3 <= lines <= 7, f"{name}: an example of about five lines, not {lines}"
        doctest.DocTestRunner().run(example, out=said.write, clear_globs=False)
        names = example.globs
    assert not said.getvalue(), said.getvalue()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The book of the committed notebooks, built once; its folder and Sphinx's warnings."""
    out, root = tmp_path_factory.mktemp("out"), committed()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MERGELIB_OUTPUT", str(out))
        patch.setattr(paths, "root", lambda: root)
        shutil.copytree(root / "figures", out / "figures")
        index, warnings = book.build_book("mini", build_parser())
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
def test_the_reference_reads_docstrings_as_they_are_meant(site):
    for page in (site[0] / "api").glob("*.html"):
        text = page.read_text()
        # Napoleon takes what stands before a colon for a type.
        assert "Return type<" not in text and "<dt>Type" not in text, page.name
        assert "&lt;factory&gt;" not in text and "~collections" not in text, page.name
    for name in PUBLIC:
        assert any(
            f'id="mergelib.{name}"' in (site[0] / "api" / f"{p}.html").read_text()
            for p in ("study", "functions")
        )


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

CSS = "css selector"  # selenium's By.CSS_SELECTOR
phone_and_desk = pytest.mark.parametrize(
    "browser", [390, 1280], indirect=True, ids=["phone", "desk"]
)


@pytest.fixture
def browser(request):
    """Chromium at the width that the test asks for."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    with tempfile.TemporaryDirectory() as home:
        for flag in (
            "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-sync "
            "disable-background-networking disable-component-update disable-dev-shm-usage "
            f"user-data-dir={home}"
        ).split():
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
        const maths = window.MathJax && MathJax.startup && MathJax.startup.promise \
|| Promise.resolve();
        Promise.all([maths, ...[...document.images].map(i => i.decode().catch(() => 0))])\
.then(() => done());""")


def shoot(driver, name):
    """A screenshot, where somebody asked for them."""
    if folder := os.environ.get("MERGELIB_SCREENSHOTS"):
        picture = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})[
            "data"
        ]
        (Path(folder) / f"{name}.png").write_bytes(base64.b64decode(picture))


@needs_book
@pytest.mark.browser
@phone_and_desk
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
@phone_and_desk
@pytest.mark.parametrize(
    "words, place",
    [("surgery", "notebooks/fig07_surgery.html"), ("align_classifier", "api/functions.html")],
)
def test_search_works_from_the_first_page(site, browser, words, place):
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get((site[0] / "index.html").as_uri())
    browser.find_element(CSS, "input.search").send_keys(f"{words}\n")
    found = WebDriverWait(browser, 30).until(
        lambda d: [
            a
            for a in d.find_elements(CSS, "#search-results li a")
            if place in a.get_attribute("href")
        ]
    )
    width, room = browser.execute_script(
        "return [document.documentElement.scrollWidth, innerWidth]"
    )
    assert width <= room
    shoot(browser, f"book-search-{words}-{room}")
    found[0].click()
    assert place in browser.current_url


@needs_book
@pytest.mark.browser
@phone_and_desk
def test_gallery_and_reference_lead_to_what_they_show(site, browser):

    browser.get((site[0] / "gallery.html").as_uri())
    cards = browser.find_elements(CSS, ".gallery .card")
    assert len(cards) == sum(1 + len(i.extra_figures) for i in runner.manifest())
    for card in cards:
        picture, *_, png, pdf = card.find_elements(CSS, "a")
        assert "/notebooks/" in picture.get_attribute("href")
        assert [Path(a.get_attribute("href")).suffix for a in (png, pdf)] == [".png", ".pdf"]
    browser.get((site[0] / "api" / "index.html").as_uri())
    link = browser.find_element(CSS, 'a[href="functions.html#mergelib.merge"]')
    browser.get(link.get_attribute("href"))
    example = browser.find_element(CSS, "dl:has(> dt[id='mergelib.merge']) .highlight")
    assert "mergelib.merge(" in example.text


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
    plane = pytest.importorskip("mergelib.run.book.plane", exc_type=ImportError)
    (tmp_path / "plane.html").write_text(plane.page())
    browser.get((tmp_path / "plane.html").as_uri())
    turn_the_plane(browser)
    shoot(browser, "plane-390")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    assert not browser.execute_script("return performance.getEntriesByType('resource').length")
    merged = plane.SCRIPT.read_text() + (
        "const found = merge(...arguments);"
        "return [found.right_old, found.right_fitted]"
        ".map(r => 100 * r.filter(Boolean).length / r.length)"
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
@phone_and_desk
def test_the_lessons_sliders_work_in_the_book(site, browser):
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get((site[0] / "notebooks" / f"{book.LESSON}.html").as_uri())
    settled(browser)
    frames = browser.find_elements(CSS, "iframe.plane")
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
