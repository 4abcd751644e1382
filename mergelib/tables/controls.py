"""Controls on alignment that the paper lacks (``ext02``): is information recovered, rebuilt or
memorised?

Every control gives rows (fit, condition, method, accuracy): averages over tasks in percent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

import pandas as pd
from torch import Tensor

from ..claims import NOT_REPRODUCED, REPRODUCED, judge, load_claims, overall
from ..core.names import BASE, RANDOM
from ..core.types import percent, shuffled
from ..protocols import current_eval, fit_heads
from ..study import Study
from ..study.aligned import accuracies, aligned, released_mode
from ..study.versions import POOL_SEED
from .labels import RUNG_LABELS, protocol_label
from .scores import stack
from .verdicts import deciding, verdict_frame

CONTROLS = {
    "P4.1-ladder": ("C4.1-held-out", "C4.1-base"),
    "P4.2-gap": ("C4.1-base",),
    "P5-one-shot": ("C5-uniform",),
    "S0-orthogonal-classifier": ("C4.1-base",),
}
"""Paper claim -> the controls that it needs to mean what it says."""
FEW = ("ft_classifier", "orthogonal_classifier", "surgery")
RUNGS = ("orthogonal", "affine")
SPLITS = ("train", "test")
HEADINGS = ("What stands", "What needs a condition", "What does not hold", "Open")
Accuracies = dict[str, float]
"""Encoder -> average accuracy over tasks, percent."""


def map_label(rung: str) -> str:
    """The name of a rung's map in tables, unlike that of the protocol "Orthogonal classifier"."""
    return f"{RUNG_LABELS[rung]} map"


def _rows(
    found: Mapping[str, Mapping[str, Accuracies]], *, by_encoder: bool = False
) -> pd.DataFrame:
    """Rows of fit -> condition -> accuracies, in this order or encoder by encoder."""
    cells = [
        (fit, condition, encoder, accuracy)
        for fit, conditions in found.items()
        for condition, averages in conditions.items()
        for encoder, accuracy in averages.items()
    ]
    rows = pd.DataFrame(cells, columns=["fit", "condition", "method", "accuracy"])
    if not by_encoder:
        return rows
    return stack(rows[rows.method == e] for e in rows.method.unique())


def _averages(
    study: Study, encoders: Sequence[str], right: Callable[[str, str], Tensor]
) -> Accuracies:
    """Average accuracies from which test inputs are ``right(encoder, task) [S, N]``."""
    return {e: fmean(percent(right(e, t).flatten()) for t in study.tasks) for e in encoders}


def _behind(
    study: Study, encoders: Sequence[str], protocol: str, k: int | None = None, **where: str
) -> Accuracies:
    """Accuracies under a protocol, at k shots."""
    return _averages(study, encoders, lambda e, t: study.correct(e, t, protocol, k=k, **where))


def _ladder(study: Study, encoders: Sequence[str], rung: str, **how) -> Accuracies:
    """Accuracies after an alignment of the ladder."""
    cells = aligned(study, encoders, rung, **how)
    return {e: accuracies(study, cells, e).mean().item() for e in encoders}


def fitted_on(study: Study, encoders: Sequence[str], k: int) -> pd.DataFrame:
    """No alignment, and each alignment fitted on training inputs and on scored test inputs."""
    none = {"none": _behind(study, encoders, "current")}
    few_shot, maps = {}, []
    for p in FEW:
        fits = {s: _behind(study, encoders, p, k, draw="uniform", fit_on=s) for s in SPLITS}
        few_shot[f"{protocol_label(p)}, k = {k}"] = none | fits
    for rung in RUNGS:
        fits = {s: _ladder(study, encoders, rung, fit_on=s) for s in SPLITS}
        maps.append({map_label(rung): none | fits})
    return stack(_rows(found, by_encoder=True) for found in (few_shot, *maps))


def counts(study: Study, encoders: Sequence[str]) -> pd.DataFrame:
    """Closed-form maps from d/2, 2 d and all inputs, on training and on test inputs."""
    d = study.encoder.width
    largest = min(len(t.test) for t in study.tasks.values())
    return _rows(
        {
            f"{map_label(rung)}, closed form": {
                f"{split}, n = {n}": _ladder(
                    study, encoders, rung, fit="closed_form", fit_on=split, n=n
                )
                for n in sorted({min(n, largest) for n in (d // 2, 2 * d, largest)})
                for split in SPLITS
            }
            for rung in RUNGS
        }
    )


def draws_and_modes(study: Study, methods: Sequence[str], k: int) -> pd.DataFrame:
    """FT-Classifier with stratified draws, with uniform draws, and as in the released code.

    The released code keeps dropout on while it fits, and uses batches of one.
    """
    name = "ft_classifier"
    conditions = {
        f"{draw} draw": _behind(study, methods, name, k, draw=draw)
        for draw in ("stratified", "uniform")
    }
    released = _averages(study, methods, lambda m, t: released_mode(study, m, t, k))
    found = {protocol_label(name): conditions | {"released mode": released}}
    return _rows(found, by_encoder=True)


def floors(study: Study, encoders: Sequence[str], k: int) -> pd.DataFrame:
    """Every protocol for every encoder, including the un-merged and the untrained one.

    Maps are fitted on training inputs.
    """
    shots = {"current": None, "knn": k} | dict.fromkeys(FEW, k)
    protocols = {protocol_label(p): _behind(study, encoders, p, n) for p, n in shots.items()}
    maps = {map_label(r): _ladder(study, encoders, r, fit_on="train") for r in RUNGS}
    return stack([_rows({"protocol": protocols}, by_encoder=True), _rows({"protocol": maps})])


def permuted_teacher(study: Study, encoders: Sequence[str], k: int) -> pd.DataFrame:
    """The ladder (from a random start) and FT-Classifier, fitted to shuffled teacher outputs."""

    def right(encoder: str, task: str) -> Tensor:
        evidence = study.evidence(encoder, task)
        order = shuffled(len(evidence.teacher_fit), POOL_SEED)
        evidence = replace(evidence, teacher_fit=evidence.teacher_fit[order], ks=(k,))
        predicted = current_eval(evidence.student_test, fit_heads(evidence)[0]).cpu()
        return predicted == study.task(task).test.labels

    maps = {
        map_label(r): _ladder(study, encoders, r, fit_on="train", permuted_teacher=True)
        for r in ("linear", "orthogonal")
    }
    results = {
        protocol_label("ft_classifier"): _averages(study, encoders, right),
        "no alignment (Current Eval)": _behind(study, encoders, "current"),
    }
    name = "permuted teacher"
    return stack([_rows({name: maps}), _rows({name: results}, by_encoder=True)])


def chance_check(permuted: pd.DataFrame, chance: float) -> pd.DataFrame:
    """Whether each ladder fit to a permuted teacher ends within 3 points of chance."""
    ladder = permuted[permuted.condition.str.endswith("map")]
    return ladder.assign(passes=(ladder.accuracy - chance).abs() <= 3)


def what_stands(study: Study, fitted: pd.DataFrame, permuted: pd.DataFrame, chance: float) -> str:
    """Markdown: claims by verdict and by the verdicts of their controls, with deciding numbers."""
    text_claims = [c for c in load_claims() if not c.startswith(("P6.3", "PA", "N-"))]
    verdicts = judge(study, text_claims)
    whole = overall(verdicts)
    groups = {title: [] for title in HEADINGS}
    for claim, parts in verdict_frame(verdicts).groupby("claim", sort=False):
        controls = {c: whole[c] for c in CONTROLS.get(claim, ())}
        shaky = any(verdict != REPRODUCED for verdict in controls.values())
        titles = {REPRODUCED: HEADINGS[shaky], NOT_REPRODUCED: HEADINGS[2]}
        part = deciding(parts)
        line = f"- `{claim}`, {part.says}: {whole[claim]}"
        if pd.notna(part.here):
            line += (
                f"; decided by {part.part}, {part.here:.2f} (interval {part.low:.2f} to "
                f"{part.high:.2f}, asked {part.threshold})"
            )
        line += f", {part.note}." if part.note else "."
        note = " and ".join(f"its control `{c}` is {verdict}" for c, verdict in controls.items())
        groups[titles.get(whole[claim], HEADINGS[3])].append(
            line + f" Note that {note}." * bool(note)
        )
    lines = []
    for title, claims in groups.items():
        lines += [f"### {title}", "", *(claims or ["- none"]), ""]
    lines += ["### What the controls add", "", *_leaks(fitted)]
    check = chance_check(permuted, chance).passes
    lines.append(
        f"- **Permuted teacher.** {check.sum()} of {len(check)} ladder fits end within 3 points "
        f"of chance ({chance:.1f} %)."
    )
    return "\n".join(lines)


def _leaks(fitted: pd.DataFrame) -> list[str]:
    """Per fit, the gain of scored inputs over training inputs, and the fit's gain for each
    encoder."""
    cells = fitted.pivot(index=["fit", "method"], columns="condition", values="accuracy")
    leaks, lifts = cells.test - cells.train, cells.train - cells.none
    lines = []
    for fit in (fitted.fit[0], *map(map_label, RUNGS)):
        leak, lift = (gains[fit].drop([BASE, RANDOM]) for gains in (leaks, lifts))
        lines.append(
            f"- **{fit}.** Fitting on scored inputs instead of training inputs changes the merges "
            f"by {leak.min():+.1f} to {leak.max():+.1f} points. Fitted on training inputs it lifts "
            f"the merges by {lift.min():+.1f} to {lift.max():+.1f} points, the base model by "
            f"{lifts[fit, BASE]:+.1f} and an untrained encoder by {lifts[fit, RANDOM]:+.1f}."
        )
    return lines
