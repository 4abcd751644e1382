"""Controls on alignment that the paper lacks (``ext02``): is information recovered, rebuilt or
memorised?

Every control gives rows (fit, condition, method, accuracy): averages over tasks in percent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import pandas as pd
import torch

from ..claims import (
    NOT_REPRODUCED,
    REPRODUCED,
    Verdict,
    deciding,
    judge,
    load_claims,
    overall,
)
from ..core.names import BASE, RANDOM
from ..protocols import current_eval, fit_heads
from ..study import Study
from ..study.aligned import accuracies, aligned, released_mode
from ..study.versions import POOL_SEED
from .labels import RUNG_LABELS, protocol_label, short_label
from .scores import alt as alt_text
from .scores import average_of, mean_and_std

COLUMNS = ["fit", "condition", "method", "accuracy"]
ALIGNMENT_CLAIMS = (
    "P3.1-bias",
    "P3.1-clusters",
    "P3.2-knn",
    "P4.1-ladder",
    "C4.1-held-out",
    "C4.1-base",
    "P4.2-gap",
    "P5-one-shot",
    "P5-over-knn",
    "P5-gap-closed",
    "C5-uniform",
    "S0-orthogonal-classifier",
    "P6.4-base",
    "P6.4-no-gain",
    "P6.5-surgery",
)
CONTROLS = {
    "P4.1-ladder": ("C4.1-held-out", "C4.1-base"),
    "P4.2-gap": ("C4.1-base",),
    "P5-one-shot": ("C5-uniform",),
    "S0-orthogonal-classifier": ("C4.1-base",),
}
"""Paper claim -> the controls that it needs to mean what it says."""
RUNGS = ("orthogonal", "affine")
HEADINGS = ("What stands", "What needs a condition", "What does not hold", "Open")


def map_label(rung: str) -> str:
    """The name of a rung's map in tables, unlike that of the protocol "Orthogonal classifier"."""
    return f"{RUNG_LABELS[rung]} map"


def _scores(
    study: Study, encoders: Sequence[str], protocols: Sequence[str], k: int, **where: str
) -> dict[tuple[str, str], float]:
    """(encoder, protocol) -> average accuracy at k shots."""
    summary = mean_and_std(study.scores(encoders, protocols, **where))
    draw = where.get("draw", "stratified")
    return {(e, p): average_of(summary, e, p, k, draw) for e in encoders for p in protocols}


def _ladder(study: Study, encoders: Sequence[str], rung: str, **how) -> dict[str, float]:
    """Encoder -> average accuracy after an alignment of the ladder."""
    cells = aligned(study, encoders, rung, **how)
    return {e: accuracies(study, cells, e).mean().item() for e in encoders}


def _mean_percent(correct: Sequence[torch.Tensor]) -> float:
    return 100 * sum(c.float().mean().item() for c in correct) / len(correct)


def fitted_on(study: Study, encoders: Sequence[str], k: int) -> pd.DataFrame:
    """No alignment, and each alignment fitted on training inputs and on scored test inputs."""
    few = ("ft_classifier", "orthogonal_classifier", "surgery")
    splits = ("train", "test")
    none = {e: a for (e, _), a in _scores(study, encoders, ["current"], k).items()}
    rows = []
    for e, p in product(encoders, few):
        fit = f"{protocol_label(p)}, k = {k}"
        rows += [(fit, "none", e, none[e]), *((fit, s, e, _few(study, e, p, k, s)) for s in splits)]
    for rung in RUNGS:
        fits, fit = {s: _ladder(study, encoders, rung, fit_on=s) for s in splits}, map_label(rung)
        for e in encoders:
            rows += [(fit, "none", e, none[e]), *((fit, s, e, fits[s][e]) for s in splits)]
    return pd.DataFrame(rows, columns=COLUMNS)


def _few(study: Study, encoder: str, protocol: str, k: int, fit_on: str) -> float:
    # A single k: a test split may be too small for the largest.
    how = {"k": k, "draw": "uniform", "fit_on": fit_on}
    return _mean_percent([study.correct(encoder, t, protocol, **how) for t in study.tasks])


def counts(study: Study, encoders: Sequence[str]) -> pd.DataFrame:
    """Closed-form maps from d/2, 2 d and all inputs, on training and on test inputs."""
    d = study.encoder.width
    largest = min(len(t.test) for t in study.tasks.values())
    rows = []
    for rung in RUNGS:
        for n in sorted({min(d // 2, largest), min(2 * d, largest), largest}):
            for s in ("train", "test"):
                found = _ladder(study, encoders, rung, fit_on=s, fit="closed_form", n=n)
                fit, condition = f"{map_label(rung)}, closed form", f"{s}, n = {n}"
                rows += [(fit, condition, e, a) for e, a in found.items()]
    return pd.DataFrame(rows, columns=COLUMNS)


def draws_and_modes(study: Study, methods: Sequence[str], k: int) -> pd.DataFrame:
    """FT-Classifier with stratified draws, with uniform draws, and as in the released code.

    The released code keeps dropout on while it fits, and uses batches of one.
    """
    name = "ft_classifier"
    drawn = {
        draw: _scores(study, methods, [name], k, draw=draw) for draw in ("stratified", "uniform")
    }
    rows = []
    for m in methods:
        rows += [(f"{draw} draw", m, found[m, name]) for draw, found in drawn.items()]
        released = [released_mode(study, m, t, k) for t in study.tasks]
        rows.append(("released mode", m, _mean_percent(released)))
    rows = [(protocol_label(name), *row) for row in rows]
    return pd.DataFrame(rows, columns=COLUMNS)


def floors(study: Study, encoders: Sequence[str], k: int) -> pd.DataFrame:
    """Every protocol for every encoder, including the un-merged and the untrained one.

    Maps are fitted on training inputs.
    """
    protocols = ("current", "knn", "ft_classifier", "orthogonal_classifier", "surgery")
    found = _scores(study, encoders, protocols, k)
    rows = [("protocol", protocol_label(p), e, accuracy) for (e, p), accuracy in found.items()]
    for rung in RUNGS:
        fits = _ladder(study, encoders, rung, fit_on="train")
        rows += [("protocol", map_label(rung), e, accuracy) for e, accuracy in fits.items()]
    return pd.DataFrame(rows, columns=COLUMNS)


def permuted_teacher(study: Study, encoders: Sequence[str], k: int) -> pd.DataFrame:
    """The ladder (from a random start) and FT-Classifier, fitted to shuffled teacher outputs."""
    rows = []
    for rung in ("linear", "orthogonal"):
        found = _ladder(study, encoders, rung, fit_on="train", permuted_teacher=True)
        rows += [(map_label(rung), e, accuracy) for e, accuracy in found.items()]
    current = _scores(study, encoders, ["current"], k)
    for encoder in encoders:
        correct = []
        for name, task in study.tasks.items():
            evidence = study.evidence(encoder, name)
            generator = torch.Generator().manual_seed(POOL_SEED)
            shuffled = torch.randperm(len(evidence.teacher_fit), generator=generator)
            evidence = replace(evidence, teacher_fit=evidence.teacher_fit[shuffled], ks=(k,))
            predicted = current_eval(evidence.student_test, fit_heads(evidence)[0])
            correct.append(predicted.cpu() == task.test.labels)
        rows.append((protocol_label("ft_classifier"), encoder, _mean_percent(correct)))
        rows.append(("no alignment (Current Eval)", encoder, current[encoder, "current"]))
    return pd.DataFrame([("permuted teacher", *row) for row in rows], columns=COLUMNS)


def chance_check(permuted: pd.DataFrame, chance: float, tolerance: float = 3.0) -> pd.DataFrame:
    """Whether each ladder fit to a permuted teacher ends within ``tolerance`` points of chance."""
    ladder = permuted[permuted.condition.str.endswith("map")].reset_index(drop=True)
    return ladder.drop(columns="fit").assign(
        method=ladder.method.map(short_label),
        chance=round(chance, 1),
        accuracy=ladder.accuracy.round(1),
        passes=(ladder.accuracy - chance).abs() <= tolerance,
    )


def alt(fitted: pd.DataFrame) -> str:
    """Alt text of the figure, from the rows of ``fitted_on``."""
    at = fitted.set_index(["fit", "condition", "method"]).accuracy[map_label("orthogonal")]
    values = {
        short_label(e): [at[s, e] for s in ("none", "train", "test")]
        for e in dict.fromkeys(fitted.method)
    }
    return alt_text(
        "Average accuracy without alignment, fitted on training inputs and fitted on the scored "
        "test inputs, a row per fit and a dot per encoder; for the orthogonal map",
        values,
    )


def what_stands(study: Study, fitted: pd.DataFrame, permuted: pd.DataFrame, chance: float) -> str:
    """Markdown: claims by verdict and by the verdicts of their controls, with deciding numbers."""
    verdicts = judge(study, ALIGNMENT_CLAIMS)
    by_claim = overall(verdicts)
    groups: dict[str, list[str]] = {title: [] for title in HEADINGS}
    for claim, verdict in by_claim.items():
        shaky = any(by_claim[c] != REPRODUCED for c in CONTROLS.get(claim, ()))
        title = HEADINGS[shaky] if verdict == REPRODUCED else "Open"
        groups[HEADINGS[2] if verdict == NOT_REPRODUCED else title].append(claim)
    lines = []
    for title, claims in groups.items():
        parts = {c: [v for v in verdicts if v.claim == c and v.here is not None] for c in claims}
        said = [_claim_line(c, parts[c], by_claim, study.profile.judged) for c in claims]
        lines += [f"### {title}", "", *(said or ["- none"]), ""]
    lines += ["### What the controls add", "", *_leaks(fitted)]
    check = chance_check(permuted, chance)
    lines.append(
        f"- **Permuted teacher.** {int(check.passes.sum())} of {len(check)} ladder fits end within "
        f"3 points of chance ({chance:.1f} %)."
    )
    return "\n".join(lines)


def _claim_line(claim: str, parts: list[Verdict], by_claim: dict[str, str], judged: bool) -> str:
    """One claim: its verdict, the part nearest to failing, and the verdicts of its controls."""
    says = load_claims()[claim].says
    if not parts:
        return f"- `{claim}`, {says}: not measured with these ks."
    worst = deciding(parts)
    failing = [v.part for v in parts if v.verdict != REPRODUCED]
    note = f" ({worst.note})" if worst.note else ""
    line = (
        f"- `{claim}`, {says}: {by_claim[claim]}; worst value {worst.here:.2f} for {worst.part} "
        f"(interval {worst.low:.2f} to {worst.high:.2f}, asked {worst.threshold}){note}."
    )
    if 0 < len(failing) < len(parts) and judged:
        line += f" Not for: {', '.join(failing)}."
    controls = [f"its control `{c}` is {by_claim[c]}" for c in CONTROLS.get(claim, ())]
    return line + (f" Note that {' and '.join(controls)}." if controls else "")


def _leaks(fitted: pd.DataFrame) -> list[str]:
    """Per fit, the gain of scored inputs over training inputs, and the fit's gain for each
    encoder."""
    at = fitted.pivot(index=["fit", "method"], columns="condition", values="accuracy")
    merges = [m for m in dict.fromkeys(fitted.method) if m not in (BASE, RANDOM)]
    few = next(f for f in fitted.fit if f.startswith("FT-Classifier"))
    lines = []
    for fit in (few, *map(map_label, RUNGS)):
        leak = (at.test - at.train)[fit][merges]
        lift = (at.train - at.none)[fit]
        what = "k C of the scored inputs" if fit == few else "all scored inputs"
        lines.append(
            f"- **{fit}.** Fitting on {what} instead of training inputs changes the merges by "
            f"{leak.min():+.1f} to {leak.max():+.1f} points. Fitted on training inputs it lifts "
            f"the merges by {lift[merges].min():+.1f} to {lift[merges].max():+.1f} points, the "
            f"base model by {lift[BASE]:+.1f} and an untrained encoder by {lift[RANDOM]:+.1f}."
        )
    return lines
