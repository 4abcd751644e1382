"""What the claims mean: their groups, and a paragraph for each with the numbers of the runs.

The words stand in ``readings.yaml``, which says how they are filled in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict

from ..claims import Condition, K
from ..core.names import BASE, FINE_TUNED, RANDOM
from .labels import protocol_label, short_label
from .paper import published_table2, published_table3
from .scores import averages, with_average
from .verdicts import pretty

if TYPE_CHECKING:
    from .report import Run

READINGS_FILE = Path(__file__).parent / "readings.yaml"
RIGID = ("euclidean", "orthogonal")


class _Text(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Note(_Text):
    """A sentence about one profile, and when it holds there."""

    when: str
    say: str


class Reading(_Text):
    """What the report says about one claim."""

    claim: str
    here: str
    why: str
    paper: str = ""
    notes: tuple[Note, ...] = ()


class Group(_Text):
    """Claims that belong together, in the order in which they are read."""

    title: str
    text: str
    claims: tuple[Reading, ...]


class Readings(_Text):
    """``readings.yaml``: what symbols and names stand for, and the groups of claims."""

    symbols: dict[str, str]
    names: dict[str, str]
    groups: tuple[Group, ...]


@cache
def load_readings() -> Readings:
    """The words about every claim."""
    return Readings.model_validate(yaml.safe_load(READINGS_FILE.read_text("utf-8")))


def names_in(text: str) -> str:
    """What the names in ``text`` stand for, in one line: those that the tables of claims use."""
    said = [
        f"{name}: {meaning}"
        for name, meaning in load_readings().names.items()
        if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)
    ]
    return _line(said)


def symbols() -> str:
    """What the symbols stand for, in one line."""
    return _line([f"{name}: {meaning}" for name, meaning in load_readings().symbols.items()])


def _line(said: list[str]) -> str:
    return f"*{'; '.join(said)}.*" if said else ""


# ---- numbers -------------------------------------------------------------------------------------


class Numbers(dict):
    """Name -> number; ``most x|y`` and ``least x|y`` over the parts of a claim with a word x or
    y."""

    def __init__(self, parts: Mapping[str, float], others: Mapping[str, float] | None = None):
        super().__init__({**parts, **(others or {})})
        self.parts = parts

    def __missing__(self, name: str) -> float:
        kind, _, words = name.partition(" ")
        wanted = set(words.split("|"))
        found = [v for part, v in self.parts.items() if not words or wanted & _words(part)]
        if kind not in ("most", "least") or not found:
            raise KeyError(name)
        return max(found) if kind == "most" else min(found)


def _words(part: str) -> set[str]:
    return set(part.replace(",", "").split())


def _fill(text: str, numbers: Mapping[str, float]) -> str:
    """``text`` with its numbers, "83 %" for what Python writes as "83%"."""
    return re.sub(r"(?<=\d)%", " %", text.format_map(numbers))


def _holds(when: str, verdict: str, numbers: Mapping[str, float]) -> bool:
    name, *comparison = re.split(r" (<=|>=|<|>) ", when)
    try:
        number = numbers[name]
    except KeyError:
        return when == verdict
    return not comparison or Condition(op=comparison[0], value=comparison[1]).holds(number)


LOOKED_UP: dict[str, Callable[[Run], dict[str, float]]] = {}


def looked_up(*claims: str) -> Callable[[Callable], Callable]:
    """Register where further numbers about ``claims`` stand: a function of a run."""

    def register(function: Callable) -> Callable:
        LOOKED_UP.update(dict.fromkeys(claims, function))
        return function

    return register


def _table(run: Run, stem: str) -> pd.DataFrame | None:
    """A table that a notebook left, if it did."""
    path = run.folder / f"{stem}.csv"
    return pd.read_csv(path) if path.is_file() else None


@looked_up("P4.1-ladder", "P4.2-gap", "C4.1-base")
def rungs(run: Run) -> dict[str, float]:
    """Accuracy per encoder and rung, and what a closed form regains of the merges' rigid ones."""
    fits = [_table(run, f"fig04_transformations{end}") for end in ("", "_closed_form")]
    cells = [f.set_index(["method", "rung"]).accuracy for f in fits if f is not None]
    if not cells:
        return {}
    found = {f"{short_label(m)} {rung}": a for (m, rung), a in cells[0].items()}
    if len(cells) > 1:
        more = (cells[1] - cells[0]).drop(BASE, level="method", errors="ignore").dropna()
        found["closed form"] = max(more[more.index.isin(RIGID, level="rung")])
    return found


@looked_up("PA.2-share")
def at_one_percent(run: Run) -> dict[str, float]:
    """FT-Classifier with 1 % of the test set minus Current Eval, over merges and encoders."""
    scores = _table(run, "fig11_vision_protocols")
    if scores is None:
        return {}
    scores = averages(with_average(scores))
    by = ["backbone", "method"]
    current = scores[scores.protocol == "current"].set_index(by).accuracy
    few = scores[(scores.protocol == "ft_classifier") & (scores.fit_on == "test")]
    gains = few[few.share == 1].groupby(by).accuracy.mean() - current
    gains = gains.dropna()
    if gains.empty:
        return {}
    return {
        "least at 1 %": gains.min(),
        "most at 1 %": gains.max(),
        "below at 1 %": (gains < 0).sum(),
        "cases at 1 %": len(gains),
    }


@looked_up("P6.4-no-gain")
def unmerged(run: Run) -> dict[str, float]:
    """FT-Classifier on f_b and on an encoder that was never trained."""
    control = _table(run, "ext02_honest_alignment")
    if control is None:
        return {}
    fit = f"{protocol_label('ft_classifier')}, k = {K}"
    rows = control[(control.fit == fit) & (control.condition == "train")]
    found = rows.set_index("method").accuracy
    names = {RANDOM: "random", BASE: "f_b uniform"}
    return {names[m]: found[m] for m in names if m in found}


@looked_up("N-fails", "N-permutation", "N-tact")
def kept_locally(run: Run) -> dict[str, float]:
    """What Task Arithmetic keeps of the experts' accuracy where all share one base."""
    verdicts = (run.sidecars.get("ext03_nonlocal") or {}).get("verdicts", [])
    kept = {v["part"]: v["here"] for v in verdicts if v["claim"] == "N-local"}
    return {f"local {part.split()[0]}": here for part, here in kept.items()}


def in_the_paper(claim: str) -> Numbers:
    """The same differences from the paper's printed averages, for claims about its tables."""
    table2, table3 = averages(published_table2()), published_table3()
    mean = pd.concat([table2, table3]).drop_duplicates(["method", "protocol"])
    mean = mean.set_index(["method", "protocol"])["mean"]
    found = {}
    for m in (BASE, "weight_averaging", "task_arithmetic", "ties"):
        current, knn, ft = (mean[m, p] for p in ("current", "knn", "ft_classifier"))
        found[short_label(m)] = {
            "P3.2-knn": knn - current,
            "P5-over-knn": ft - knn,
            "P5-gap-closed": (ft - current) / (mean[FINE_TUNED, "current"] - current),
            "P6.4-no-gain": ft - current,
        }.get(claim)
    return Numbers({m: v for m, v in found.items() if v is not None})


# ---- words ---------------------------------------------------------------------------------------


def seen(reading: Reading, run: Run, parts: pd.DataFrame, verdict: str) -> str:
    """What one profile shows about a claim.

    Args:
        reading: The words.
        run: The profile's run.
        parts: Its rows of ``report.verdict_rows`` for this claim.
        verdict: On the whole claim.
    """
    measured = parts.dropna(subset=["here"]).set_index("part").here.to_dict()
    look = LOOKED_UP.get(reading.claim, lambda _: {})
    numbers = Numbers(measured, look(run))
    notes = dict.fromkeys(pretty(note) for note in parts.note if note)
    needs = re.sub(r"precondition fails: (.*) \((here .*)\)", r"it needs \1, \2", "; ".join(notes))
    reason = f", since {needs}" if needs else ""
    try:
        said = f": {_fill(reading.here, numbers)}"
    except KeyError:  # a part that this profile did not measure
        said = ""
    more = [_fill(n.say, numbers) for n in reading.notes if _holds(n.when, verdict, numbers)]
    return " ".join([f"`{run.profile}`, **{verdict}**{reason}{said}.", *more])


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
    notebook = rows.notebook.iloc[0]
    link = f"[{notebook}](../notebooks/{notebook}.ipynb)"
    said = [f"`{reading.claim}`, **{rows.says.iloc[0]}** ({link})."]
    if reading.paper:
        said.append(f"In the paper {_fill(reading.paper, in_the_paper(reading.claim))}.")
    for profile, parts in rows.groupby("profile", sort=False):
        said.append(seen(reading, runs[profile], parts, verdicts[profile]))
    return " ".join([*said, "Why:", reading.why])
