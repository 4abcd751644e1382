"""The lesson's sliders without a kernel: one page with Bokeh inside, which a phone opens offline.

The toy is computed in the reader's browser, by ``static/plane.js``; Python supplies inputs and
constants. ``plane.html`` is self-contained; ``plane.html#0,2`` opens with the first and the third
button pressed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bokeh.document import Document
from bokeh.embed import file_html
from bokeh.events import DocumentReady
from bokeh.layouts import column
from bokeh.models import CheckboxButtonGroup, ColumnDataSource, CustomJS, Div, Range1d, Slider
from bokeh.plotting import figure
from bokeh.resources import INLINE

from ...lesson.toy import CLASSES, SPREAD, TURN_B, centres, make_toy
from ...lesson.view import CLASS_STYLE, LIMIT, NEW, OLD

SCRIPT = Path(__file__).parent / "static" / "plane.js"
K = 5  # shots
MARKERS = {"o": "circle", "s": "square", "^": "triangle", "D": "diamond"}  # matplotlib -> Bokeh
TEMPLATE = """{% block preamble %}
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body { max-width: 460px; margin: 0.5rem auto; font-family: sans-serif; }</style>
{% endblock %}"""


def world() -> dict[str, Any]:
    """Inputs and constants of the toy, as JSON: everything that no slider changes."""
    toy = make_toy()
    tasks = {}
    for task, n_classes in CLASSES.items():
        rows = toy.evidence(toy.base, task, K).rows(K)[0]
        tasks[task] = {
            "centres": centres(n_classes).tolist(),
            "points": toy.points[task, "test"].tolist(),
            "labels": toy.labels(task).tolist(),
            "few": toy.points[task, "pool"][rows].tolist(),
        }
    looks = [(hue, MARKERS[marker]) for hue, marker in CLASS_STYLE]
    return {"turn_b": TURN_B, "spread": SPREAD, "limit": LIMIT, "looks": looks, "tasks": tasks}


def page() -> str:
    """The complete page: HTML with data, program and library."""
    wide = {"sizing_mode": "stretch_width"}
    angle = Slider(
        start=0, end=140, step=5, value=80, title="A's turn (degrees)", name="angle", **wide
    )
    lam = Slider(start=0, end=1, step=0.05, value=0.5, title="lambda", name="lam", **wide)
    buttons = CheckboxButtonGroup(
        labels=["B mirrors", "show task B", "re-align"], active=[], **wide
    )
    says = Div(name="says", styles={"font-size": "1.1rem"}, **wide)
    span = Range1d(-1.05 * LIMIT, 1.05 * LIMIT)
    # No tools: a finger on the picture scrolls the page.
    plane = figure(
        x_range=span,
        y_range=Range1d(span.start, span.end),
        tools="",
        toolbar_location=None,
        aspect_ratio=1,
        sizing_mode="scale_width",
    )
    plane.axis.visible = plane.grid.visible = False
    plane.outline_line_color = None
    sources = {
        "old_lines": ColumnDataSource({"x": [], "y": []}),
        "new_lines": ColumnDataSource({"x": [], "y": []}),
        "clouds": ColumnDataSource({c: [] for c in ("x", "y", "marker", "edge", "face")}),
        "vectors": ColumnDataSource({c: [] for c in ("x", "y", "marker", "face")}),
    }
    for name, style, dash in (("old_lines", OLD, "dashed"), ("new_lines", NEW, "solid")):
        plane.line(source=sources[name], line_color=style["color"], line_dash=dash, line_width=2)
    for name, size, edge in (("clouds", 6, "edge"), ("vectors", 15, "black")):
        plane.scatter(
            source=sources[name], marker="marker", size=size, line_color=edge, fill_color="face"
        )
    models = {"angle": angle, "lam": lam, "buttons": buttons, "says": says, **sources}
    call = f"\nshow({{world, {', '.join(models)}}});"
    draw = CustomJS(args={"world": world(), **models}, code=SCRIPT.read_text() + call)
    for control, changed in ((angle, "value"), (lam, "value"), (buttons, "active")):
        control.js_on_change(changed, draw)
    hint = Div(
        text="Hollow: classified wrongly. Large: where the class vectors point. Dashed: the old "
        f"classifier; solid: re-aligned with {K} unlabelled inputs per class.",
        **wide,
    )
    document = Document()
    document.add_root(column(angle, lam, buttons, says, plane, hint, **wide))
    pressed = "buttons.active = location.hash.slice(1).split(',').filter(Boolean).map(Number)"
    document.js_on_event(DocumentReady, CustomJS(args={"buttons": buttons}, code=pressed), draw)
    return file_html(document, INLINE, "Turn the plane", template=TEMPLATE)
