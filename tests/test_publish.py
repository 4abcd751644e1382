"""What ``--publish`` writes: notebooks without this machine, minutes, the README's tables."""

import nbformat
import pytest
import yaml
from tiny import write_notebook

from mergelib.core import paths
from mergelib.core.errors import ConfigError
from mergelib.run import publish, runner


def test_normalise_keeps_results_and_drops_the_rest():
    notebook = nbformat.v4.new_notebook(
        metadata={"widgets": {"x": 1}, "papermill": {"duration": 3}},
        cells=[
            nbformat.v4.new_code_cell(
                "x = 1",
                id="parameters",
                metadata={"tags": ["parameters"], "papermill": {"duration": 1}},
            ),
            nbformat.v4.new_code_cell(
                "x = 2", id="injected", metadata={"tags": ["injected-parameters"]}
            ),
            nbformat.v4.new_code_cell(
                "x",
                id="show",
                execution_count=9,
                outputs=[
                    nbformat.v4.new_output("stream", name="stderr", text="noise"),
                    nbformat.v4.new_output(
                        "display_data",
                        data={publish.WIDGET: {"model_id": "x"}, "text/plain": "Loading: 0%"},
                    ),
                    nbformat.v4.new_output(
                        "execute_result", data={"text/plain": "1"}, execution_count=9
                    ),
                ],
            ),
        ],
    )
    clean = publish.normalise(notebook)
    assert [c.id for c in clean.cells] == ["parameters", "show"]
    assert [c.execution_count for c in clean.cells] == [1, 2]
    assert [o.output_type for o in clean.cells[1].outputs] == ["execute_result"] and clean.cells[
        1
    ].outputs[0].execution_count == 2
    assert "papermill" not in str(clean.metadata) and "widgets" not in clean.metadata
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
    (tmp_path / "build" / profile / "timings.json").write_text("{}")
    ran, written = [], []
    monkeypatch.setattr(
        publish, "run_again", lambda _, items, **given: ran.extend(i.id for i in items)
    )
    monkeypatch.setattr(
        publish, "publish_notebooks", lambda _, items: written.extend(i.id for i in items)
    )
    monkeypatch.setattr(publish, "record_minutes", lambda *_: None)
    monkeypatch.setattr(publish, "refresh_readme", lambda: None)
    publish.publish(
        profile, [i for name in ("fig02", "00_start_here") for i in runner.select([name])]
    )
    assert written == refreshed and ran == [
        i for i in refreshed if i in ("solutions/00_start_here", "99_report")
    ]


@pytest.mark.slow
def test_a_solution_runs_like_any_notebook_and_leaves_no_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    monkeypatch.setenv("MERGELIB_OUTPUT", str(tmp_path / "out"))
    (solution,) = runner.solutions(
        [write_solution(tmp_path, "2 * profile"), runner.Item("two", "Figure 2", "Another", "text")]
    )
    publish.run_again("mini", [solution])
    publish.publish_notebooks("mini", [solution])
    shown = nbformat.read(tmp_path / "notebooks" / "solutions" / "one.ipynb", as_version=4)
    assert [c.execution_count for c in shown.cells] == [1, 2] and shown.cells[1].outputs[0].data[
        "text/plain"
    ] == "'minimini'"
    assert not (tmp_path / "out" / "figures").exists()
    write_solution(tmp_path, "1 / 0")
    with pytest.raises(
        ConfigError, match=r"solutions/one failed for mini:(.|\n)*ZeroDivisionError"
    ):
        publish.run_again("mini", [solution])


def write_solution(root, source):
    """Solutions to notebook ``one``; returns that notebook's item."""
    write_notebook(root / "notebooks" / "solutions" / "one.ipynb", source)
    return runner.Item("one", "Figure 1", "A title", "text")


MANIFEST = """# A comment that stays.
- id: one
  item: One
  minutes: {mini: 9.9, real: 2.5}
- id: two
  item: Two
"""


def test_minutes_come_from_cold_runs_only(tmp_path):
    file = tmp_path / "manifest.yaml"
    file.write_text(MANIFEST)
    publish.record_minutes("mini", {"cold": False, "seconds": {"one": 60.0}}, file)
    assert file.read_text() == MANIFEST
    publish.record_minutes("mini", {"cold": True, "seconds": {"two": 90.0}}, file)
    # All minutes of a profile are of one run; another profile's stay.
    assert [e.get("minutes") for e in yaml.safe_load(file.read_text())] == [
        {"real": 2.5},
        {"mini": 1.5},
    ]
    assert file.read_text().startswith("# A comment that stays.\n- id: one\n")
    once = file.read_text()
    publish.record_minutes("mini", {"cold": True, "seconds": {"two": 90.0}}, file)
    assert file.read_text() == once


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
    import base64
    import io

    import numpy as np
    from PIL import Image

    def png(side):
        ramp = np.arange(side, dtype=np.float64)[:, None] * 200 / side + np.random.default_rng(
            0
        ).uniform(0, 50, (side, side))
        file = io.BytesIO()
        Image.fromarray(np.stack([ramp, ramp.T, ramp], 2).astype(np.uint8)).save(file, "png")
        return base64.b64encode(file.getvalue()).decode()

    small, large = png(64), png(700)
    assert publish.in_256_colours(small) == small
    kept = publish.in_256_colours(large)
    assert len(kept) < len(large) / 2 and publish.in_256_colours(large) == kept
    before, after = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(p))).convert("RGB"), dtype=float)
        for p in (large, kept)
    )
    assert before.shape == after.shape and np.abs(before - after).mean() < 12
