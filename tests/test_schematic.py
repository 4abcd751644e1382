"""Figure 3: nothing overlaps, nothing is clipped, grey print works, and drawing and table say the
same."""

from itertools import combinations

import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.text import Text

from mergelib.figures import schematic, style
from mergelib.protocols import PROTOCOLS


@pytest.fixture(scope="module", params=["project", "default"])
def drawn(request):
    """The laid-out figure and its renderer, with and without the project's style."""
    with plt.style.context(style.STYLE_FILE if request.param == "project" else "default"):
        fig = schematic.draw_protocols()
        fig.canvas.draw()
        yield fig, fig.canvas.get_renderer()
        plt.close(fig)


def overlap(a, b, slack=0.0):
    return min(a.x1, b.x1) - max(a.x0, b.x0) > slack and min(a.y1, b.y1) - max(a.y0, b.y0) > slack


def inside(inner, outer):
    return (
        outer.x0 <= inner.x0
        and inner.x1 <= outer.x1
        and outer.y0 <= inner.y0
        and inner.y1 <= outer.y1
    )


def extents(artists, renderer):
    return [a.get_window_extent(renderer) for a in artists]


def boxes(ax):
    return [p for p in ax.patches if isinstance(p, FancyBboxPatch)]


def texts(ax):
    return [t for t in ax.texts if t.get_text()]


def luminance(colour):
    return sum(w * c for w, c in zip((0.299, 0.587, 0.114), to_rgb(colour), strict=True))


def test_arrows_are_those_of_the_table(drawn):
    """As boxes are, which the test of their shades goes through."""
    fig, _ = drawn
    for ax, panel in zip(fig.axes, schematic.PANELS, strict=True):
        assert sum(isinstance(p, FancyArrowPatch) for p in ax.patches) == len(
            schematic.arrows(panel)
        )


def test_boxes_do_not_overlap_and_lie_within_the_figure(drawn):
    fig, renderer = drawn
    for ax in fig.axes:
        found = extents(boxes(ax), renderer)
        assert not any(overlap(a, b) for a, b in combinations(found, 2))
        assert all(inside(b, fig.bbox) for b in found)


def test_every_text_is_within_the_figure_and_collides_with_nothing(drawn):
    fig, renderer = drawn
    shown = [t for t in fig.findobj(Text) if t.get_text() and t.get_visible()]
    assert all(inside(b, fig.bbox) for b in extents(shown, renderer))
    every = extents(
        [t for ax in fig.axes for t in texts(ax)] + fig.legends[0].get_texts(), renderer
    )
    assert not any(overlap(a, b, slack=0.5) for a, b in combinations(every, 2))
    for ax in fig.axes:
        found = extents(boxes(ax), renderer)
        for text in texts(ax):
            here = text.get_window_extent(renderer)
            touched = [b for b in found if overlap(here, b)]
            assert len(touched) <= 1 and all(inside(here, b) for b in touched), text.get_text()


def test_arrows_are_long_enough_to_be_seen(drawn):
    fig, renderer = drawn
    for ax in fig.axes:
        for arrow in (p for p in ax.patches if isinstance(p, FancyArrowPatch)):
            extent = arrow.get_window_extent(renderer)
            assert max(extent.width, extent.height) / fig.dpi > 0.1


def test_readable_in_grey(drawn):
    fig, _ = drawn
    faces = {kind: set() for kind in schematic.KINDS}
    for ax, panel in zip(fig.axes, schematic.PANELS, strict=True):
        for patch, (name, *_) in zip(boxes(ax), schematic.placed(panel).values(), strict=True):
            faces[schematic.BOXES[name][0]].add(luminance(patch.get_facecolor()))
    assert min(faces["frozen"]) - max(faces["trained"]) >= 0.3
    for kind in schematic.KINDS.values():
        assert abs(luminance(kind["ink"]) - luminance(kind["face"])) >= 0.5


def test_text_is_of_a_readable_size(drawn):
    fig, _ = drawn
    assert fig.get_size_inches()[0] == style.PAGE
    assert (
        min(t.get_fontsize() for t in fig.findobj(Text) if t.get_text() and t.get_visible()) >= 8.5
    )


def test_the_table_has_the_five_protocols_and_agrees_with_the_drawing():
    table = schematic.protocol_table()
    assert list(table.protocol) == [
        "Current Eval",
        "KNN Eval",
        "Aligned f_m",
        "FT-Classifier Eval",
        "Surgery",
    ]
    assert not table.isna().any().any() and not (table == "").any().any()
    assert not table.astype(str).map(lambda cell: "$" in cell).any().any()
    for panel, row in zip(schematic.PANELS, table.to_dict("records"), strict=True):
        names = [name for name, *_ in schematic.placed(panel).values()]
        kinds, _, notes = zip(*(schematic.BOXES[name] for name in names), strict=True)
        assert ("trained" in kinds) == (row["trained"] != "nothing")
        assert ("f_t" in names) == row["needs f_t to fit"].startswith("yes")
        assert ("labelled inputs" in notes) == (row["uses labels"] == "yes")
        assert "style" not in panel or PROTOCOLS[panel["style"]].label == row["protocol"]
