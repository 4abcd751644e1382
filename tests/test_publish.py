"""What ``--publish`` writes: notebooks without this machine, minutes, the README's tables."""

import base64
import io

import nbformat
import numpy as np
import pytest
import yaml
from PIL import Image
from tiny import write_notebook

from mergelib.core import paths
from mergelib.core.errors import ConfigError
from mergelib.run import publish, runner


def test_normalise_keeps_results_and_drops_the_rest():
    code, output = nbformat.v4.new_code_cell, nbformat.v4.new_output
    widget = {publish.WIDGET: {"model_id": "x"}, "text/plain": "Loading: 0%"}
    shown = [
        output("stream", name="stderr", text="noise"),
        output("display_data", data=widget),
        output("execute_result", data={"text/plain": "<x at 0x7f>"}, execution_count=9),
    ]
    timed = {"tags": ["parameters"], "papermill": {"duration": 1}}
    cells = [
        code("x = 1", id="parameters", metadata=timed),
        code("x = 2", id="injected", metadata={"tags": ["injected-parameters"]}),
        code("x", id="show", execution_count=9, outputs=shown),
    ]
    metadata = {"widgets": {"x": 1}, "papermill": {"duration": 3}}
    clean = publish.normalise(nbformat.v4.new_notebook(metadata=metadata, cells=cells))
    kept = output("execute_result", data={"text/plain": "<x>"}, execution_count=2)
    assert clean.cells == [
        code("x = 1", id="parameters", metadata={"tags": ["parameters"]}, execution_count=1),
        code("x", id="show", execution_count=2, outputs=[kept]),
    ]
    assert clean.metadata.keys() == {"kernelspec", "language_info"}
    assert publish.normalise(clean) == clean


@pytest.mark.parametrize(
    "profile, refreshed",
    [
        ("mini", ["fig02_knn_eval", "00_start_here", "solutions/00_start_here", "99_report"]),
        ("real", ["99_report"]),
    ],
)
def test_solutions_are_refreshed_with_their_notebook(profile, refreshed, tmp_path, monkeypatch):
    """By the profile whose outputs are committed, and only where their notebook was run."""
    monkeypatch.setenv("MERGELIB_OUTPUT", str(tmp_path))
    (tmp_path / "build" / profile).mkdir(parents=True)
    (tmp_path / "build" / profile / "timings.json").write_text('{"cold": false}')
    ran, written = [], []
    for name, seen in (("run_again", ran), ("publish_notebooks", written)):
        note = lambda _, items, seen=seen, **given: seen.extend(i.id for i in items)  # noqa: E731
        monkeypatch.setattr(publish, name, note)
    monkeypatch.setattr(publish, "refresh_readme", lambda: None)
    publish.publish(profile, [runner.select([name])[0] for name in ("fig02", "00_start_here")])
    again = ("solutions/00_start_here", "99_report")
    assert written == refreshed and ran == [i for i in refreshed if i in again]


@pytest.mark.slow
def test_a_solution_runs_like_any_notebook_and_leaves_no_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    monkeypatch.setenv("MERGELIB_OUTPUT", str(tmp_path / "out"))
    file = tmp_path / "notebooks" / "solutions" / "one.ipynb"
    items = [runner.Item(i, "Figure", "A title", "text") for i in ("one", "two")]
    write_notebook(file, "2 * profile")
    (solution,) = runner.solutions(items)
    publish.run_again("mini", [solution])
    publish.publish_notebooks("mini", [solution])
    cells = nbformat.read(file, as_version=4).cells
    assert [c.execution_count for c in cells] == [1, 2]
    assert cells[1].outputs[0].data["text/plain"] == "'minimini'"
    assert not (tmp_path / "out" / "figures").exists()
    write_notebook(file, "1 / 0")
    says = r"solutions/one failed for mini:(.|\n)*ZeroDivisionError"
    with pytest.raises(ConfigError, match=says):
        publish.run_again("mini", [solution])


def test_minutes_come_from_cold_runs_only(tmp_path):
    """All minutes of a profile are of one run; another profile's stay."""
    file = tmp_path / "minutes.yaml"
    file.write_text("mini: {one: 9.9}\nreal: {one: 2.5}\n")
    before = file.read_text()
    publish.record_minutes("mini", {"cold": False, "seconds": {"one": 60.0}}, file)
    assert file.read_text() == before
    publish.record_minutes("mini", {"cold": True, "seconds": {"two": 90.0}}, file)
    assert yaml.safe_load(file.read_text()) == {"mini": {"two": 1.5}, "real": {"one": 2.5}}


def test_the_table_of_notebooks_shows_pictures_and_measured_minutes_only(tmp_path):
    (tmp_path / "mini").mkdir()
    (tmp_path / "mini" / "one.png").write_bytes(b"x")
    items = [
        runner.Item("one", "Figure 1", "A title", "text", minutes={"mini": 1.5}),
        runner.Item("two", "Figure 2", "Another", "text"),
    ]
    lines = publish.notebooks_markdown(items, tmp_path).splitlines()
    assert 'src="figures/mini/one.png"' in lines[2] and "| 1.5 |" in lines[2]
    assert "<img" not in lines[3] and lines[3].endswith("| – |")
    unmeasured = publish.notebooks_markdown(items[1:], tmp_path)
    assert "minutes" not in unmeasured


def test_a_readme_without_marks_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "readme_parts", lambda: {"results": "x"})
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    (tmp_path / "README.md").write_text("# mine")
    with pytest.raises(ConfigError, match="lost its marks of 'results'"):
        publish.refresh_readme()
    assert (tmp_path / "README.md").read_text() == "# mine"


def test_large_pictures_are_kept_in_256_colours_and_small_ones_as_they_are():
    def png(side):
        noise = np.random.default_rng(0).uniform(0, 50, (side, side))
        ramp = np.arange(side)[:, None] * 200 / side + noise
        file = io.BytesIO()
        Image.fromarray(np.stack([ramp, ramp.T, ramp], 2).astype(np.uint8)).save(file, "png")
        return base64.b64encode(file.getvalue()).decode()

    def pixels(picture):
        image = Image.open(io.BytesIO(base64.b64decode(picture)))
        return np.asarray(image.convert("RGB"), dtype=float)

    small, large = png(64), png(700)
    assert publish.in_256_colours(small) == small
    kept = publish.in_256_colours(large)
    assert len(kept) < len(large) / 2 and publish.in_256_colours(large) == kept
    assert np.abs(pixels(large) - pixels(kept)).mean() < 12
