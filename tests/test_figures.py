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
from mergelib.study import SCORE_COLUMNS

PDFS = sorted((committed() / "figures").glob("*/*.pdf"))
pdfs = pytest.mark.parametrize("path", PDFS, ids=lambda p: f"{p.parent.name}-{p.stem}")
VISIONS = {
    "full": None,
    "deuteranopia": "deuteranomaly",
    "protanopia": "protanomaly",
    "tritanopia": "tritanomaly",
}
APART = 10.0  # CAM02-UCS; about 1 can be noticed side by side


# ---- committed files -----------------------------------------------------------------------------


def test_there_are_figures():
    assert len(PDFS) >= 10


@pdfs
def test_fonts_are_embedded_as_truetype(path):
    found = 0
    for page in PdfReader(path).pages:
        fonts = page["/Resources"].get_object().get("/Font", {}).get_object()
        for font in (f.get_object() for f in fonts.values()):
            assert font["/Subtype"] != "/Type3", font
            inner = font["/DescendantFonts"][0].get_object() if "/DescendantFonts" in font else font
            assert "/FontFile2" in inner["/FontDescriptor"].get_object(), font
            found += 1
    assert found, "no text at all"


@pdfs
def test_widths_are_exact_and_the_png_is_the_same_page(path):
    box = PdfReader(path).pages[0].mediabox
    width, height = float(box.width) / 72, float(box.height) / 72
    assert min(abs(width - w) for w in style.WIDTHS) < 1e-3, width
    with Image.open(path.with_suffix(".png")) as png:
        assert png.width / png.height == pytest.approx(width / height, abs=0.01)


@pdfs
def test_alt_text_states_the_finding_and_travels_with_the_files(path):
    alt = json.loads(path.with_suffix(".json").read_text())["alt"]
    assert re.search(r"\d", alt) or path.stem == "fig03_protocols", (
        "a finding has a number"
    )  # Figure 3 is a drawing
    assert alt.endswith(".") and len(alt.split()) >= 6
    with Image.open(path.with_suffix(".png")) as png:
        assert png.info["Description"] == alt
    assert PdfReader(path).metadata.subject == alt


# ---- series that differ by more than colour ------------------------------------------------------


def seen(colour, vision):
    """A colour in CAM02-UCS as somebody with this vision sees it (Machado et al. 2009, whole
    severity)."""
    rgb = np.array(to_rgb(colour))
    if VISIONS[vision]:
        rgb = cspace_convert(
            rgb, {"name": "sRGB1+CVD", "cvd_type": VISIONS[vision], "severity": 100}, "sRGB1"
        ).clip(0, 1)
    return cspace_convert(rgb, "sRGB1", "CAM02-UCS")


def lightness(colour):
    return cspace_convert(np.array(to_rgb(colour)), "sRGB1", "CAM02-UCS")[0]


def look(handle):
    """(colour, everything that is not colour) of a legend entry."""
    artist = (
        handle[0] if isinstance(handle, tuple | list) else handle
    )  # an error bar container begins with its line
    artist = artist.patches[0] if hasattr(artist, "patches") else artist
    if hasattr(artist, "get_hatch"):
        return artist.get_facecolor()[:3], ("bar", artist.get_hatch())
    marker = artist.get_marker() if artist.get_marker() not in (None, "", " ") else "None"
    return artist.get_color(), (
        "line",
        marker,
        str(artist._dash_pattern),
        artist.get_markerfacecolor() == "white",
    )


def assert_distinguishable(pairs):
    for (name_a, (colour_a, shape_a)), (name_b, (colour_b, shape_b)) in itertools.combinations(
        pairs, 2
    ):
        if shape_a != shape_b:
            continue
        assert abs(lightness(colour_a) - lightness(colour_b)) > APART, (
            f"{name_a} and {name_b} are one grey"
        )
        for vision in VISIONS:
            assert np.linalg.norm(seen(colour_a, vision) - seen(colour_b, vision)) > APART, (
                f"{name_a}, {name_b}: {vision}"
            )


def test_the_check_can_fail():
    """Two dots of red and green with one lightness are one series to many readers."""
    with pytest.raises(AssertionError, match="one grey"):
        assert_distinguishable([("a", ("#D55E00", "o")), ("b", ("#009E73", "o"))])
    assert_distinguishable([("a", ("#D55E00", "o")), ("b", ("#009E73", "s"))])


def grid(**levels):
    """A row for every combination."""
    return pd.DataFrame(itertools.product(*levels.values()), columns=list(levels))


def scores():
    """Tidy rows of every encoder and protocol with a style."""
    encoders, protocols = list(style.METHOD_STYLE), list(style.PROTOCOL_STYLE)
    fitted = [p for p in protocols if p != "current"]
    rows = pd.concat(
        [
            grid(method=encoders, protocol=["current"]),
            grid(method=encoders, protocol=fitted, k=(1, 5), seed=(0, 1)),
        ]
    )
    rows["accuracy"] = (
        10.0
        + rows.method.map(encoders.index)
        + rows.protocol.map(protocols.index)
        + rows.seed.fillna(0)
    )
    rows = rows.assign(backbone="b", task="ag", draw="stratified", fit_on="train", n=10)
    return rows[SCORE_COLUMNS].astype({"k": "Int64", "seed": "Int64"})


def figures():
    methods = [m for m in style.METHOD_STYLE if m != "multi_task"]
    protocols, repairs = list(style.PROTOCOL_STYLE), list(style.REPAIR_STYLE)
    three = ["weight_averaging", "task_arithmetic", "ties"]
    accuracies = grid(method=[*three, "f_b"], rung=["identity", "affine"]).assign(
        accuracy=50.0, std=1.0
    )
    steps = ["translation", "rotation", "scaling", "general"]
    r2 = grid(method=three, step=steps).assign(increment=0.2)
    curves = grid(method=three, lam=(0.1, 0.2)).assign(task="ag", accuracy=lambda c: c.lam)
    controls = grid(
        fit=["one fit", "another"], condition=["none", "train", "test"], method=methods
    ).assign(accuracy=50.0)
    means = grid(setting=["local", "non-local"], method=three, repair=repairs).assign(
        accuracy=50.0, expert=80.0
    )
    stages = ["local", "semi-local, permuted", "non-local, raw", "non-local, permuted"]
    places = pd.DataFrame(
        {"place": range(3), "kind": ["embeddings", "hidden", "block"], "block": [0, 1, 1]}
    )
    variance = grid(method=three, stage=stages).assign(ratio=0.5).merge(places, how="cross")
    samples = grid(repair=repairs[3:], inputs=(4.0, 8.0), accuracy=(50.0, 51.0))
    labels, shown = {r: r for r in repairs}, ["current", "knn", "ft_classifier"]
    sizes = {"(a) small": scores(), "(b) large": scores()}
    return {
        "non-locality": lambda: drawn.plot_non_locality(means, labels),
        "variance": lambda: drawn.plot_variance(variance),
        "samples": lambda: drawn.plot_samples(samples, labels, start=40.0, experts=80.0),
        "shots": lambda: drawn.plot_shots(scores(), three, protocols, fine_tuned=70.0),
        "protocols": lambda: drawn.plot_protocols(scores(), three, ["ag"], k=5),
        "lam": lambda: drawn.plot_lam(curves, dict.fromkeys(three, 0.2)),
        "ladder": lambda: drawn.plot_ladder({"": (accuracies, accuracies, 70.0)}, r2),
        "controls": lambda: drawn.plot_controls(controls),
        "sizes": lambda: drawn.plot_sizes(sizes, three, shown, k=5, chance=20.0),
    }


@pytest.mark.parametrize("name", figures())
def test_every_pair_of_series_stays_apart_in_grey_and_for_colour_blind_readers(name):
    fig = figures()[name]()
    for ax in fig.axes:
        handles, labels = ax.get_legend_handles_labels()
        assert_distinguishable(
            [
                (label, look(handle))
                for label, handle in dict(zip(labels, handles, strict=True)).items()
            ]
        )
    plt.close(fig)


@pytest.mark.parametrize("name", figures())
def test_text_is_large_enough_and_a_title_states_the_numbers(name):
    with plt.style.context(style.STYLE_FILE):
        fig = figures()[name]()
    fig.canvas.draw()
    shown = [t for t in fig.findobj(Text) if t.get_text() and t.get_visible()]
    assert min(t.get_fontsize() for t in shown) >= 8.5
    bold = [" ".join(t.get_text().split()) for t in shown if t.get_fontweight() == "bold"]
    title = finding(fig)  # what the sidecar and with it the gallery says
    assert name == "lam" or (re.search(r"\d", title) and title in bold), bold
    plt.close(fig)


def cluster_panel(classes):
    points = np.random.default_rng(0).normal(size=(2, 4 * classes, 2))
    numbers = {"Current Eval (%)": 50.0, "label purity f_t": 0.8, "label purity f_m": 0.6}
    table = pd.DataFrame([{"task": "ag", "method": "ties", "source purity": 1.0} | numbers])
    return {("ag", "ties"): (points, np.arange(4 * classes) % classes, classes)}, table


@pytest.mark.parametrize("classes, coloured", [(4, 4), (10, 10), (25, 10)])
def test_of_many_classes_ten_have_a_colour_and_the_merge_is_the_stronger(classes, coloured):
    fig = drawn.plot_clusters(*cluster_panel(classes))
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
    plt.close(fig)


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
    plt.close(fig)


@pytest.mark.parametrize(
    "styles",
    [style.METHOD_STYLE, style.PROTOCOL_STYLE, style.REPAIR_STYLE],
    ids=["methods", "protocols", "repairs"],
)
def test_registered_styles_differ_in_marker_and_colour(styles):
    for (a, one), (b, two) in itertools.combinations(styles.items(), 2):
        assert one["marker"] != two["marker"], (a, b)
        assert np.linalg.norm(seen(one["color"], "full") - seen(two["color"], "full")) > APART, (
            a,
            b,
        )


def test_a_colour_means_one_thing():
    """No method is drawn in a protocol's colour, nor any of them in a class's or in a repair's
    but FT-Classifier."""
    palettes = {"method": style.METHOD_STYLE, "protocol": style.PROTOCOL_STYLE}
    palettes["repair"] = {k: v for k, v in style.REPAIR_STYLE.items() if k != "ft_classifier"}
    palettes["class"] = {c: {"color": c} for c in style.CLASS_COLOURS}
    looks = [(kind, n, s["color"]) for kind, p in palettes.items() for n, s in p.items()]
    for (kind, a, one), (other, b, two) in itertools.combinations(looks, 2):
        if kind != other:
            assert np.linalg.norm(seen(one, "full") - seen(two, "full")) > 8, (a, b)


def test_styles_of_ones_own_stay_apart(monkeypatch):
    monkeypatch.setattr(style, "METHOD_STYLE", dict(style.METHOD_STYLE))
    monkeypatch.setattr(style, "PROTOCOL_STYLE", dict(style.PROTOCOL_STYLE))
    markers = [style.method_style(f"mine {i}")["marker"] for i in range(3)]
    assert len({*markers, *(s["marker"] for s in list(style.METHOD_STYLE.values())[:7])}) == 10
    own = [style.protocol_style(f"mine {i}") for i in range(3)]
    assert own[0]["marker"] not in {s["marker"] for s in list(style.PROTOCOL_STYLE.values())[:6]}
    assert own[0] is style.protocol_style("mine 0")
