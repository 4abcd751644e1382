"""The report on a comparison of merges: one picture, and pages that a person can send on."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path

import jinja2
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from ..core.names import FINE_TUNED
from ..core.version import __version__
from ..models.compare import HEADS, Comparison, rank_correlation
from ..tables import encoder_label, markdown, protocol_label, short_label
from .plots import BOUND, dots, head, of_protocols
from .save import finding
from .style import PAGE, use_style

HERE = Path(__file__).parent
PROXY = HERE / "proxy.json"
"""Profile -> ``rank_correlation`` of its merges; ``python -m benchmarks.proxy`` writes it."""


def plot_comparison(comparison: Comparison) -> Figure:
    """A row per merge and the base, best first, a dot per head; the line is the experts."""
    table, best = comparison.table.assign(accuracy=comparison.table.score), comparison.best
    experts = (table.method == FINE_TUNED) & (table.protocol == "current")
    bound = table[experts].score.item()
    merges = table[table.method != FINE_TUNED]
    methods = merges.method.unique()
    fig, ax = plt.subplots(figsize=(PAGE, 1.4 + 0.3 * len(methods)))
    ax.axvline(bound, **BOUND)
    shown = [p for p in HEADS if p in set(merges.protocol)]
    dots(ax, merges, "method", methods, of_protocols(shown))
    ax.set(xlabel=f"mean {list(comparison.measures.values())[-1]} (%)", xlim=(0, 101))
    scores = table[table.method == best["method"]].set_index("protocol").score
    label, (old, new) = short_label(best["method"]), scores[["current", best["protocol"]]].round()
    heads = "old" if best["protocol"] == "current" else "re-aligned"
    title = f"{label} with its {heads} heads is the best merge: {new:.0f} %"
    if new != old:
        title = f"Re-aligned heads take {label} from {old:.0f} to {new:.0f} %"
    head(fig, f"{title}, experts: {bound:.0f} %")
    return fig


def report_table(comparison: Comparison) -> pd.DataFrame:
    """The comparison in print: a row per model and protocol, best first."""
    table, measure = comparison.table, list(comparison.measures.values())[-1]
    texts = table.map(lambda x: "" if pd.isna(x) else x if isinstance(x, str) else f"{x:.1f}")
    score, gain = (
        texts[n] + " [" + texts[f"{n}_low"] + ", " + texts[f"{n}_high"] + "]"
        for n in ("score", "gain")
    )
    return pd.DataFrame(
        {
            "model": table.method.map(encoder_label),
            "protocol": table.protocol.map(protocol_label),
            "lambda": ["" if pd.isna(lam) else f"{lam:g}" for lam in table.lam],
            "chosen by": texts.chosen,
            f"{measure} (%)": score,
            "gain": gain.where(table.protocol != "current", ""),
            "merge (s)": texts.merge_seconds,
            "tensors (MB)": texts.peak_mb,
            "all (s)": texts.seconds,
        }
    )


def write_comparison(comparison: Comparison, folder: Path, commands: Sequence[str]) -> str:
    """``report.html``, which needs no other file, ``report.md``, ``comparison.png`` and the numbers
    as CSV; returns the report's Markdown."""
    use_style()
    fig, table = plot_comparison(comparison), report_table(comparison)
    fig.savefig(folder / "comparison.png")
    plt.close(fig)
    for name, frame in (("summary", comparison.table), ("rows", comparison.rows)):
        frame.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g", lineterminator="\n")
    studies = json.loads(PROXY.read_text())
    correlations = rank_correlation(comparison.rows).dropna().to_dict("records")
    keys = zip(comparison.table.method, comparison.table.protocol, strict=True)
    room = jinja2.Environment(loader=jinja2.FileSystemLoader(HERE), trim_blocks=True)
    text = room.get_template("comparison.txt.jinja").render(
        comparison=comparison,
        splits=list(comparison.measures),
        rows=dict(zip(keys, table.to_dict("records"), strict=True)),
        worth={"here": correlations} | {f"in our study {n}": r for n, r in studies.items()},
        label=protocol_label,
        version=__version__,
    )
    room.autoescape = True
    for ending in ("html", "md"):
        page = room.get_template(f"comparison.{ending}.jinja").render(
            title=finding(fig),
            paragraphs=text.strip().split("\n\n"),
            commands=commands,
            image=base64.b64encode((folder / "comparison.png").read_bytes()).decode(),
            table=table.to_html(index=False, border=0),
            lines=markdown(table),
        )
        (folder / f"report.{ending}").write_text(page, encoding="utf-8")
    return page
