"""What the claims mean: their groups, and a paragraph for each with the numbers of the runs.

The words stand in ``readings.yaml``, which says how they are filled in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..claims import Condition, K
from ..core.documents import own_yaml
from ..core.names import BASE, FINE_TUNED, RANDOM
from .labels import protocol_label, short_label
from .paper import published_averages
from .scores import averages, with_average

if TYPE_CHECKING:
    from .report import Run

RIGID = ("euclidean", "orthogonal")
Reading = dict[str, Any]
"""The words about one claim."""


@cache
def load_readings() -> dict[str, Any]:
    """``readings.yaml``: what symbols and names stand for, and the groups of claims."""
    return own_yaml(__file__, "readings.yaml")


def readings() -> dict[str, Reading]:
    """The words about every claim, by its id."""
    return {r["claim"]: r for group in load_readings()["groups"] for r in group["claims"]}


def pretty(words: str) -> str:
    """Readable signs: ">= 0.90" becomes "≥ 0.90"."""
    return words.replace(">=", "≥").replace("<=", "≤")


def asks(rows: pd.DataFrame) -> pd.Series:
    """The thresholds of rows with columns claim and threshold, with their units: "> 0 points"."""
    units = {claim: reading["unit"] for claim, reading in readings().items()}
    return rows.threshold.map(pretty) + " " + rows.claim.map(units)


def names_in(text: str) -> str:
    """What the names in ``text`` stand for, in one line: those that the tables of claims use."""
    names = load_readings()["names"].items()
    return _line({n: m for n, m in names if re.search(rf"(?<!\w){re.escape(n)}(?!\w)", text)})


def symbols() -> str:
    """What the symbols stand for, in one line."""
    return _line(load_readings()["symbols"])


def _line(meanings: Mapping[str, str]) -> str:
    text = "; ".join(f"{name}: {meaning}" for name, meaning in meanings.items())
    return f"*{text}.*" if text else ""


# ---- numbers -------------------------------------------------------------------------------------


class Numbers(dict):
    """Name -> number; ``most x|y`` and ``least x|y`` over the parts of a claim with a word x or
    y."""

    def __init__(self, parts: Mapping[str, float], others: Mapping[str, float]):
        super().__init__({**parts, **others})
        self.parts = parts

    def __missing__(self, name: str) -> float:
        kind, _, words = name.partition(" ")
        pattern = rf"\b({words})\b" if words else ""
        values = [v for part, v in self.parts.items() if re.search(pattern, part)]
        if kind not in ("most", "least") or not values:
            raise KeyError(name)
        return max(values) if kind == "most" else min(values)


def _fill(text: str, numbers: Mapping[str, float]) -> str:
    """``text`` with its numbers, "83 %" for what Python writes as "83%"."""
    return re.sub(r"(?<=\d)%", " %", text.format_map(numbers))


def _holds(when: str, verdict: str, numbers: Mapping[str, float]) -> bool:
    name, *comparison = re.split(r" (<=|>=|<|>) ", when)
    try:
        number = numbers[name]
    except KeyError:
        return when == verdict
    return not comparison or Condition(comparison[0], float(comparison[1])).holds(number)


def _table(run: Run, stem: str) -> pd.DataFrame:
    """A table that a notebook left."""
    return pd.read_csv(run.folder / f"{stem}.csv")


def rungs(run: Run) -> dict[str, float]:
    """Accuracy per encoder and rung, and what a closed form regains of the merges' rigid ones."""
    paper, closed = (
        _table(run, f"fig04_transformations{end}").set_index(["method", "rung"]).accuracy
        for end in ("", "_closed_form")
    )
    regained = (closed - paper).drop(BASE, level="method", errors="ignore")
    rigid = regained.index.isin(RIGID, level="rung")
    accuracies = {f"{short_label(m)} {rung}": a for (m, rung), a in paper.items()}
    return accuracies | {"closed form": regained[rigid].max()}


def at_one_percent(run: Run) -> dict[str, float]:
    """FT-Classifier with 1 % of the test set minus Current Eval, over merges and encoders."""
    scores = _table(run, "fig11_vision_protocols")
    if 1 not in set(scores.share):
        return {}
    rows = averages(with_average(scores))
    rows = rows[rows.share.isna() | ((rows.share == 1) & (rows.fit_on == "test"))]
    mean = rows.pivot_table("accuracy", ["backbone", "method"], "protocol")
    gains = (mean.ft_classifier - mean.current).dropna()
    return {
        "least at 1 %": gains.min(),
        "most at 1 %": gains.max(),
        "below at 1 %": (gains < 0).sum(),
        "cases at 1 %": len(gains),
    }


def unmerged(run: Run) -> dict[str, float]:
    """FT-Classifier on f_b and on an encoder that was never trained."""
    control = _table(run, "ext02_honest_alignment")
    fit = f"{protocol_label('ft_classifier')}, k = {K}"
    rows = control[(control.fit == fit) & (control.condition == "train")]
    names = {RANDOM: "random", BASE: "f_b uniform"}
    return rows[rows.method.isin(names)].set_index("method").accuracy.rename(names).to_dict()


def kept_locally(run: Run) -> dict[str, float]:
    """What Task Arithmetic keeps of the experts' accuracy where all share one base, and how alike
    the blocks of two bases are after matching."""
    matching = _table(run, "ext03_nonlocal_matching").query("setting == 'non-local'")
    verdicts = run.sidecars["ext03_nonlocal"]["verdicts"]
    kept = {v["part"].split()[0]: v["here"] for v in verdicts if v["claim"] == "N-local"}
    alike = matching.set_index("of")["blocks after"]
    return {f"local {name}": value for name, value in kept.items()} | {
        f"alike {name}": cosine for name, cosine in alike.items()
    }


def base_gains(run: Run) -> list[str]:
    """What re-aligning gives f_b and the merges, a sentence per base model of Table 3."""
    means = _table(run, "tab03_base_model_bases").set_index(["Protocol", "base"])
    gains = means.loc[protocol_label("ft_classifier")] - means.loc[protocol_label("current")]
    f_b, text = short_label(BASE), load_readings()["bases"]["gain"]
    merges = gains.drop(columns=f_b)
    numbers = {"f_b": gains[f_b], "least": merges.min(axis=1), "most": merges.max(axis=1)}
    return [
        _fill(text, {"base": f"`{run.profile}`, {base}", **row})
        for base, row in pd.DataFrame(numbers).iterrows()
    ]


LOOKED_UP = (
    dict.fromkeys(("P4.1-ladder", "P4.2-gap", "C4.1-base"), rungs)
    | {"PA.2-share": at_one_percent, "P6.4-no-gain": unmerged}
    | dict.fromkeys(("N-fails", "N-permutation", "N-tact"), kept_locally)
)
"""Claim -> where further numbers about it stand."""


def in_the_paper(claim: str) -> Numbers:
    """The same differences from the paper's printed averages, for claims about its tables."""
    mean = published_averages().pivot(index="method", columns="protocol", values="mean")
    mean = mean.rename(index=short_label)
    gain = mean.ft_classifier - mean.current
    differences = {
        "P3.2-knn": mean.knn - mean.current,
        "P5-over-knn": mean.ft_classifier - mean.knn,
        "P5-gap-closed": gain / (mean.current[short_label(FINE_TUNED)] - mean.current),
        "P6.4-no-gain": gain,
    }
    return Numbers(differences[claim], {})


# ---- words ---------------------------------------------------------------------------------------


def seen(reading: Reading, run: Run, parts: pd.DataFrame, verdict: str) -> str:
    """What one profile shows about a claim.

    Args:
        reading: The words.
        run: The profile's run.
        parts: Its rows of ``report.verdict_rows`` for this claim.
        verdict: On the whole claim.
    """
    others = {}
    with suppress(FileNotFoundError):  # of a notebook that did not run
        others = LOOKED_UP.get(reading["claim"], lambda _: {})(run)
    numbers = Numbers(parts.set_index("part").here.dropna(), others)
    notes = pretty("; ".join(dict.fromkeys(filter(None, parts.note))))
    needs = re.sub(r"precondition fails: (.*) \((here .*)\)", r"it needs \1, \2", notes)
    text = f"`{run.profile}`, **{verdict}**" + f", since {needs}" * bool(needs)
    try:
        text += f": {_fill(reading['here'], numbers)}"
    except KeyError:  # a part that this profile did not measure
        pass
    notes = [n["say"] for n in reading.get("notes", ()) if _holds(n["when"], verdict, numbers)]
    return " ".join([f"{text}.", *(_fill(note, numbers) for note in notes)])


def paragraph(
    reading: Reading, runs: Mapping[str, Run], rows: pd.DataFrame, verdicts: Mapping[str, str]
) -> str:
    """What the paper says about a claim, what the profiles show, and why.

    Args:
        reading: The words.
        runs: By profile.
        rows: Those of ``report.verdict_rows`` for this claim.
        verdicts: Profile -> verdict on the claim; profiles without parts are left out.
    """
    claim, says, notebook = rows[["claim", "says", "notebook"]].iloc[0]
    sentences = [f"`{claim}`, **{says}** ([{notebook}](../notebooks/{notebook}.ipynb))."]
    if "paper" in reading:
        sentences.append(f"In the paper {_fill(reading['paper'], in_the_paper(claim))}.")
    for profile, parts in rows.groupby("profile", sort=False):
        sentences.append(seen(reading, runs[profile], parts, verdicts[profile]))
    return " ".join([*sentences, "Why:", reading["why"]])
