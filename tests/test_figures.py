"""Figures: what is committed (fonts, width, alt text), and whether series stay apart in grey and
for colour-blind readers."""

import itertools
import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from colorspacious import cspace_convert
from committed import committed
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from PIL import Image
from pypdf import PdfReader

from mergelib import figures as drawn
from mergelib.figures import plots, style
from mergelib.figures.save import finding
from mergelib.nonlocality import REPAIR_LABELS, averages

PDFS = sorted((committed() / "figures").glob("*/*.pdf"))
pdfs = pytest.mark.parametrize("path", PDFS, ids=lambda p: f"{p.parent.name}-{p.stem}")
VISIONS = {
    "full": None,
    "deuteranopia": "deuteranomaly",
    "protanopia": "protanomaly",
    "tritanopia": "tritanomaly",
}
APART = 10.0  # CAM02-UCS; about 1 can be noticed side by side


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


# ---- committed files -----------------------------------------------------------------------------


def test_there_are_figures():
    assert len(PDFS) >= 10


@pdfs
def test_a_committed_figure_embeds_its_fonts_has_the_exact_width_and_carries_its_alt_text(path):
    pdf = PdfReader(path)
    (page,) = pdf.pages
    fonts = page["/Resources"].get_object().get("/Font", {}).get_object()
    for font in fonts.values():
        font = font.get_object()
        assert font["/Subtype"] != "/Type3", font
        inner = font["/DescendantFonts"][0].get_object() if "/DescendantFonts" in font else font
        assert "/FontFile2" in inner["/FontDescriptor"].get_object(), font
    assert fonts, "no text at all"
    width, height = float(page.mediabox.width) / 72, float(page.mediabox.height) / 72
    assert min(abs(width - w) for w in style.WIDTHS) < 1e-3, width
    alt = json.loads(path.with_suffix(".json").read_text())["alt"]
    # Figure 3 is a drawing; a finding has a number.
    assert re.search(r"\d", alt) or path.stem == "fig03_protocols"
    assert alt.endswith(".") and len(alt.split()) >= 6
    with Image.open(path.with_suffix(".png")) as png:
        assert png.width / png.height == pytest.approx(width / height, abs=0.01)
        assert png.info["Description"] == pdf.metadata.subject == alt


# ---- series that differ by more than colour ------------------------------------------------------


def seen(colour, vision="full"):
    """A colour in CAM02-UCS as somebody with this vision sees it (Machado et al. 2009, whole
    severity); first its lightness."""
    rgb = np.array(to_rgb(colour))
    if VISIONS[vision]:
        space = {"name": "sRGB1+CVD", "cvd_type": VISIONS[vision], "severity": 100}
        rgb = cspace_convert(rgb, space, "sRGB1").clip(0, 1)
    return cspace_convert(rgb, "sRGB1", "CAM02-UCS")


def distance(one, other, vision="full"):
    return np.linalg.norm(seen(one, vision) - seen(other, vision))


def look(handle):
    """(colour, everything that is not colour) of a legend entry."""
    # An error bar container begins with its line.
    artist = handle[0] if isinstance(handle, tuple | list) else handle
    artist = artist.patches[0] if hasattr(artist, "patches") else artist
    if hasattr(artist, "get_hatch"):
        return artist.get_facecolor()[:3], ("bar", artist.get_hatch())
    marker = artist.get_marker() if artist.get_marker() not in (None, "", " ") else "None"
    hollow = artist.get_markerfacecolor() == "white"
    return artist.get_color(), ("line", marker, str(artist._dash_pattern), hollow)


def assert_distinguishable(looks):
    for (a, (one, shape_a)), (b, (two, shape_b)) in itertools.combinations(looks.items(), 2):
        if shape_a == shape_b:
            assert abs(seen(one)[0] - seen(two)[0]) > APART, f"{a} and {b} are one grey"
            for vision in VISIONS:
                assert distance(one, two, vision) > APART, f"{a}, {b}: {vision}"


def test_the_check_can_fail():
    """Two dots of red and green with one lightness are one series to many readers."""
    red, green, square = ("#D55E00", "o"), ("#009E73", "o"), ("#009E73", "s")
    with pytest.raises(AssertionError, match="one grey"):
        assert_distinguishable({"a": red, "b": green})
    assert_distinguishable({"a": red, "b": square})


def read(name):
    """Committed rows of the profile that is published with everything."""
    rows = pd.read_csv(committed() / "figures" / "mini" / f"{name}.csv")
    return rows.astype({c: "Int64" for c in ("k", "seed") if c in rows})


def ladder():
    fits = [read(f"fig04_transformations{fit}") for fit in ("", "_closed_form")]
    return drawn.plot_ladder({"": (*fits, 70.0)}, read("fig04_transformations_r2"))


def controls():
    rows = read("ext02_honest_alignment")
    return drawn.plot_controls(rows.groupby("fit").filter(lambda r: {*r.condition} >= CONDITIONS))


def sizes():
    panels = dict(iter(read("fig06_t5").groupby("backbone")))
    return drawn.plot_sizes(panels, THREE, ["current", "knn", "ft_classifier"], k=5, chance=20.0)


THREE = ["weight_averaging", "task_arithmetic", "ties"]
SHOWN = ["current", "ft_classifier", "orthogonal_classifier"]
CONDITIONS = {"none", "train", "test"}
FIGURES = {
    "lam": lambda: drawn.plot_lam(read("tab02_main_lam"), dict.fromkeys(THREE, 0.3)),
    "ladder": ladder,
    "controls": controls,
    "non-locality": lambda: drawn.plot_non_locality(averages(read("ext03_images")), REPAIR_LABELS),
    "variance": lambda: drawn.plot_variance(read("ext03_variance")),
    "samples": lambda: drawn.plot_samples(
        read("ext03_samples"), REPAIR_LABELS, start=40.0, experts=80.0
    ),
    "sizes": sizes,
    "shots": lambda: drawn.plot_shots(read("fig05_ft_classifier"), THREE, SHOWN, fine_tuned=70.0),
    "protocols": lambda: drawn.plot_protocols(read("tab02_main_scores"), THREE, ["ag"], k=5),
}


@pytest.mark.parametrize("name", FIGURES)
def test_series_stay_apart_text_is_large_enough_and_a_title_states_the_numbers(name):
    """In grey and for colour-blind readers, too."""
    with plt.style.context(style.STYLE_FILE):
        fig = FIGURES[name]()
    for ax in fig.axes:
        handles, labels = ax.get_legend_handles_labels()
        assert_distinguishable(dict(zip(labels, map(look, handles), strict=True)))
    fig.canvas.draw()
    shown = [t for t in fig.findobj(Text) if t.get_text() and t.get_visible()]
    assert min(t.get_fontsize() for t in shown) >= 8.5
    bold = [" ".join(t.get_text().split()) for t in shown if t.get_fontweight() == "bold"]
    title = finding(fig)  # what the sidecar and with it the gallery says
    assert name == "lam" or (re.search(r"\d", title) and title in bold), bold


@pytest.mark.parametrize("classes, coloured", [(4, 4), (10, 10), (25, 10)])
def test_of_many_classes_ten_have_a_colour_and_the_merge_is_the_stronger(classes, coloured):
    points = np.random.default_rng(0).normal(size=(2, 4 * classes, 2))
    panels = {("ag", "ties"): (points, np.arange(4 * classes) % classes, classes)}
    row = {"task": "ag", "method": "ties", "source purity": 1.0, "Current Eval (%)": 50.0}
    table = pd.DataFrame([row | {"label purity f_t": 0.8, "label purity f_m": 0.6}])
    fig = drawn.plot_clusters(panels, table)
    seen_t, seen_m = (
        {tuple(c[:3]) for c in dots.get_facecolors()} for dots in fig.axes[0].collections[:2]
    )
    hues_t, hues_m = ({c for c in found if np.ptp(c) > 0} for found in (seen_t, seen_m))
    assert hues_m == {to_rgb(c) for c in style.CLASS_COLOURS[:coloured]}
    assert len(hues_t) == coloured
    assert len(seen_t - hues_t) == len(seen_m - hues_m) == (classes > coloured)
    assert min(map(sum, hues_t)) > min(map(sum, hues_m))
    assert "75 %" in fig.legends[0].get_title().get_text().replace("\N{NO-BREAK SPACE}", " ")
    assert not fig.axes[0].axison


def test_names_of_lines_do_not_overlap():
    """Four lines that end together are named one above the other, in their order."""
    fig, ax = plt.subplots(figsize=(4, 2.6))
    ax.set_ylim(0, 100)
    for y in (70.0, 70.2, 70.1, 71.0):
        ax.axhline(y, label=f"line at {y}")
    plots.name_lines(ax)
    fig.canvas.draw()
    boxes = [Text.get_window_extent(t) for t in ax.texts]  # without its leader
    assert [t.get_text()[8:] for t in ax.texts] == ["70.0", "70.1", "70.2", "71.0"]
    assert all(a.y1 <= b.y0 for a, b in itertools.pairwise(boxes))


def test_a_colour_means_one_thing():
    """Within a palette colours and markers differ. No method is drawn in a protocol's colour, nor
    any of them in a class's or in a repair's but FT-Classifier."""
    repairs = dict(style.REPAIR_STYLE)
    assert repairs.pop("ft_classifier") == style.PROTOCOL_STYLE["ft_classifier"]
    classes = {c: {"color": c, "marker": c} for c in style.CLASS_COLOURS}
    palettes = [style.METHOD_STYLE, style.PROTOCOL_STYLE, style.REPAIR_STYLE, classes]
    for palette in palettes[:3]:
        assert len({look["marker"] for look in palette.values()}) == len(palette)
        for one, two in itertools.combinations(palette.values(), 2):
            assert distance(one["color"], two["color"]) > APART, (one, two)
    for palette, other in itertools.combinations([*palettes[:2], repairs, classes], 2):
        for one, two in itertools.product(palette.values(), other.values()):
            assert distance(one["color"], two["color"]) > 8, (one, two)


def test_styles_of_ones_own_stay_apart(monkeypatch):
    monkeypatch.setattr(style, "METHOD_STYLE", dict(style.METHOD_STYLE))
    monkeypatch.setattr(style, "PROTOCOL_STYLE", dict(style.PROTOCOL_STYLE))
    markers = [style.method_style(f"mine {i}")["marker"] for i in range(3)]
    assert len({*markers, *(s["marker"] for s in list(style.METHOD_STYLE.values())[:7])}) == 10
    own = [style.protocol_style(f"mine {i}") for i in range(3)]
    assert own[0]["marker"] not in {s["marker"] for s in list(style.PROTOCOL_STYLE.values())[:6]}
    assert own[0] is style.protocol_style("mine 0")
