"""Figure 3: nothing overlaps, nothing is clipped, grey print works, and drawing and table say the
same."""

from itertools import combinations

import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from mergelib.figures import schematic, style
from mergelib.protocols import PROTOCOLS


@pytest.fixture(scope="module", params=[style.STYLE_FILE, "default"], ids=["project", "default"])
def fig(request):
    """The laid-out figure, with and without the project's style."""
    with plt.style.context(request.param):
        made = schematic.draw_protocols()
        made.canvas.draw()
        yield made
        plt.close(made)


def inside(inner, outer):
    return (Bbox.union([inner, outer]).extents == outer.extents).all()


def extents(artists):
    return [a.get_window_extent() for a in artists]


def overlapping(found, slack=0.0):
    return [
        p for p in combinations([b.padded(-slack) for b in found], 2) if p[0].fully_overlaps(p[1])
    ]


def patches(ax, kind):
    return [p for p in ax.patches if isinstance(p, kind)]


def shown(texts):
    return [t for t in texts if t.get_text() and t.get_visible()]


def luminance(colour):
    return sum(w * c for w, c in zip((0.299, 0.587, 0.114), to_rgb(colour), strict=True))


def test_boxes_and_arrows_are_those_of_the_table_and_arrows_are_long_enough_to_be_seen(fig):
    for ax, panel in zip(fig.axes, schematic.PANELS, strict=True):
        assert len(patches(ax, FancyBboxPatch)) == len(schematic.placed(panel))
        arrows = extents(patches(ax, FancyArrowPatch))
        assert len(arrows) == len(schematic.arrows(panel))
        assert min(max(arrow.size) for arrow in arrows) / fig.dpi > 0.1


def test_all_is_within_the_figure_and_nothing_collides(fig):
    written = shown(fig.findobj(Text))
    assert min(t.get_fontsize() for t in written) >= 8.5
    assert fig.get_size_inches()[0] == style.PAGE
    assert all(inside(b, fig.bbox) for b in extents(written))
    texts = [t for ax in fig.axes for t in shown(ax.texts)] + fig.legends[0].get_texts()
    assert not overlapping(extents(texts), slack=0.25)
    for ax in fig.axes:
        boxes = extents(patches(ax, FancyBboxPatch))
        assert not overlapping(boxes) and all(inside(b, fig.bbox) for b in boxes)
        for text in shown(ax.texts):
            here = text.get_window_extent()
            touched = [b for b in boxes if b.fully_overlaps(here)]
            assert len(touched) <= 1 and all(inside(here, b) for b in touched), text.get_text()


def test_readable_in_grey(fig):
    faces = {kind: set() for kind in schematic.KINDS}
    for ax, panel in zip(fig.axes, schematic.PANELS, strict=True):
        drawn = patches(ax, FancyBboxPatch)
        for patch, (name, *_) in zip(drawn, schematic.placed(panel).values(), strict=True):
            faces[schematic.BOXES[name][0]].add(luminance(patch.get_facecolor()))
    assert min(faces["frozen"]) - max(faces["trained"]) >= 0.3
    for kind in schematic.KINDS.values():
        assert abs(luminance(kind["ink"]) - luminance(kind["paint"]["facecolor"])) >= 0.5


def test_the_table_has_the_five_protocols_and_agrees_with_the_drawing():
    table = schematic.protocol_table()
    names = ["Current Eval", "KNN Eval", "Aligned f_m", "FT-Classifier Eval", "Surgery"]
    assert list(table.protocol) == names
    assert table.map(lambda cell: cell != "" and "$" not in cell).all(axis=None)
    for panel, row in zip(schematic.PANELS, table.to_dict("records"), strict=True):
        names = [name for name, *_ in schematic.placed(panel).values()]
        kinds, _, notes = zip(*(schematic.BOXES[name] for name in names), strict=True)
        assert ("trained" in kinds) == (row["trained"] != "nothing")
        assert ("f_t" in names) == row["needs f_t to fit"].startswith("yes")
        assert ("labelled inputs" in notes) == (row["uses labels"] == "yes")
        assert "style" not in panel or PROTOCOLS[panel["style"]].label == row["protocol"]
