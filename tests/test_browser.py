"""JupyterLab in headless Chromium: Run All leaves no error, a slider moves its plot. Opt-in:
``./run_all.sh test -m browser``.

Needs Debian's ``chromium`` and ``chromium-driver`` (or the same from elsewhere on PATH) and the
extra ``browser`` (selenium). Screenshots go to ``build/browser/``.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from committed import committed
from faults.kill import python_path

ROOT = Path(__file__).resolve().parent.parent
SHOTS = ROOT / "build" / "browser"
PATIENCE = float(
    os.environ.get("MERGELIB_BROWSER_PATIENCE", "900")
)  # seconds for one notebook on quick; a busy machine needs them
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--window-size=1400,1000"
).split()
CSS = "css selector"  # selenium's By.CSS_SELECTOR
COPIED = ("00_start_here", "fig02_knn_eval")

pytestmark = pytest.mark.browser


def wait_for(what, ready, seconds):
    """The first true value of ``ready()``; fails with ``what`` after ``seconds``. The page may
    redraw what was just found."""
    from selenium.common.exceptions import (
        ElementClickInterceptedException,
        ElementNotInteractableException,
        StaleElementReferenceException,
    )

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(
            ElementClickInterceptedException,
            ElementNotInteractableException,
            StaleElementReferenceException,
        ):
            found = ready()
            if found:
                return found
        time.sleep(0.5)
    pytest.fail(f"after {seconds:.0f} s: {what}")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Copies of notebooks, without outputs and set to quick: JupyterLab saves by itself, and must
    not save over the committed ones."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "notebooks").mkdir()
    shutil.copytree(committed() / "figures" / "mini", folder / "figures" / "mini")
    for name in COPIED:
        notebook = nbformat.read(committed() / "notebooks" / f"{name}.ipynb", as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
            if cell.id == "parameters":
                cell.source, n = re.subn(r'"mini"', '"quick"', cell.source, count=1)
                cell.source, m = re.subn(
                    r"overrides: dict = {}", 'overrides: dict = {"threads": 1}', cell.source
                )
                assert n == m == 1
        nbformat.write(notebook, folder / "notebooks" / f"{name}.ipynb")
    return folder


@pytest.fixture(scope="module")
def lab(project, tmp_path_factory):
    """JupyterLab as ``./run_all.sh lab`` starts it, its token as it makes it; gives the URL of a
    notebook."""
    own = tmp_path_factory.mktemp("jupyter")
    env = os.environ | {
        "JUPYTER_RUNTIME_DIR": str(own / "runtime"),
        "JUPYTER_CONFIG_DIR": str(own / "config"),
        "JUPYTER_PREFER_ENV_PATH": "1",
        "JUPYTERLAB_SETTINGS_DIR": str(own / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(own / "workspaces"),
        "PYTHONPATH": python_path(),
    }
    # A test's own backend setting would replace the notebook's inline one.
    env.pop("MPLBACKEND", None)
    root = [] if os.getuid() else ["--allow-root"]
    with (own / "log").open("w") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={project}"),
                *"--LabApp.default_url=/lab/tree/notebooks --no-browser --port=0".split(),
                *root,
            ],
            env=env,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=project,
        )
    try:

        def started():
            assert process.poll() is None, (own / "log").read_text()[-3000:]
            return next(iter((own / "runtime").glob("jpserver-*.json")), None)

        info = json.loads(
            wait_for(f"JupyterLab has not started; see {own / 'log'}", started, 120).read_text()
        )
        assert info["token"], "JupyterLab's default is a token"
        yield lambda name: f"{info['url']}lab/tree/notebooks/{name}.ipynb?token={info['token']}"
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    browser, driver = (
        next(filter(None, map(shutil.which, names)), None)
        for names in (("chromium", "chromium-browser", "google-chrome"), ("chromedriver",))
    )
    assert browser and driver, (
        "install Debian's chromium and chromium-driver, or put Chromium and chromedriver on PATH"
    )
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    started = webdriver.Chrome(options=options, service=Service(driver))
    started.set_page_load_timeout(180)
    yield started
    started.quit()


def run_all(chromium, url, name, project):
    """Open, Run > Run All Cells, wait, save; returns the saved notebook."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    SHOTS.mkdir(parents=True, exist_ok=True)
    chromium.get(url)

    def visible(selector, text=""):
        for found in chromium.find_elements(CSS, selector):
            if found.is_displayed() and (not text or text in found.text):
                return found

    def click(selector, text=""):
        found = visible(selector, text)
        if found:
            found.click()
        return found

    def answer_dialog():
        # A kernel that starts slowly makes JupyterLab ask which one to take.
        click(".jp-Dialog .jp-mod-accept")
        return not visible(".jp-Dialog")

    wait_for("the notebook is not shown", lambda: visible(".jp-Notebook .jp-CodeCell"), 180)
    idle = '.jp-NotebookPanel .jp-Notebook-ExecutionIndicator[data-status="idle"]'
    wait_for("the kernel is not idle", lambda: visible(idle), 180)
    chromium.save_screenshot(str(SHOTS / f"{name}_opened.png"))
    wait_for("a dialog stays open", answer_dialog, 60)
    wait_for("no Run menu", lambda: click(".lm-MenuBar-item", "Run"), 60)
    wait_for("no Run All Cells", lambda: click('.lm-Menu-item[data-command="runmenu:run-all"]'), 60)

    def saved():
        answer_dialog()
        ActionChains(chromium).key_down(Keys.CONTROL).send_keys("s").key_up(Keys.CONTROL).perform()
        notebook = nbformat.read(project / "notebooks" / f"{name}.ipynb", as_version=4)
        cells = [c for c in notebook.cells if c.cell_type == "code"]
        failed = [o for c in cells for o in c.outputs if o.output_type == "error"]
        if failed:
            chromium.save_screenshot(str(SHOTS / f"{name}_error.png"))
        assert not failed, "\n".join(failed[0].traceback)
        time.sleep(4)
        chromium.save_screenshot(str(SHOTS / f"{name}_running.png"))
        if all(c.execution_count for c in cells) and visible(idle):
            return cells

    cells = wait_for(f"{name} has not finished", saved, PATIENCE)
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    # The lab is rooted where pictures beside the notebooks' folder can be seen.
    pictures = shown(chromium, ".jp-MarkdownCell img")
    assert pictures and all(
        chromium.execute_script("return arguments[0].naturalWidth > 300", p) for p in pictures
    )
    assert not shown(chromium, '.jp-OutputArea [data-mime-type="application/vnd.jupyter.error"]')
    return cells


def shown(chromium, selector):
    """Elements of the notebook in front; the ones opened before stay in the page, hidden."""

    return chromium.find_elements(CSS, f".jp-NotebookPanel:not(.lm-mod-hidden) {selector}")


def shoot(chromium, name, element=None):
    if element is not None:
        for _ in range(2):  # cells above get their height when they come into view
            chromium.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
            time.sleep(1)
    chromium.save_screenshot(str(SHOTS / f"{name}.png"))


def test_the_lesson_runs_and_its_sliders_move_the_plot(chromium, lab, project):
    from selenium.webdriver.common.keys import Keys

    run_all(chromium, lab("00_start_here"), "00_start_here", project)
    boxes = [
        box
        for box in shown(chromium, ".jp-OutputArea .widget-vbox")
        if box.find_elements(CSS, ".noUi-handle")
    ]
    assert len(boxes) == 3
    for n, box in enumerate(boxes):
        shoot(chromium, f"lesson_{n}_before", box)
        for handle, key in zip(
            box.find_elements(CSS, ".noUi-handle"),
            (Keys.ARROW_LEFT, Keys.ARROW_RIGHT),
            strict=True,
        ):

            def picture(box=box):
                return box.find_element(CSS, "img").get_attribute("src")

            before, value = picture(), handle.get_attribute("aria-valuenow")
            handle.send_keys(key, key)
            wait_for(
                "the slider did not move",
                lambda h=handle, v=value: h.get_attribute("aria-valuenow") != v,
                30,
            )
            wait_for("the plot did not follow the slider", lambda b=before: picture() != b, 60)
        shoot(chromium, f"lesson_{n}_after", box)
        image = box.find_element(CSS, "img")
        assert chromium.execute_script(
            "return arguments[0].complete && arguments[0].naturalWidth > 300", image
        )
        assert "degrees" in image.get_attribute("alt")


def test_a_figure_notebook_runs(chromium, lab, project):
    run_all(chromium, lab("fig02_knn_eval"), "fig02_knn_eval", project)
    drawn = [
        e
        for e in shown(chromium, ".jp-OutputArea-output img")
        if e.get_attribute("src").startswith("data:image/png")
    ]
    assert drawn and chromium.execute_script("return arguments[0].naturalWidth", drawn[0]) > 300
    shoot(chromium, "fig02_knn_eval", drawn[0])
