"""Controls on alignment that the paper lacks: what is recovered, what is rebuilt, what is learned by heart (`ext02`).

Every function returns rows (fit, condition, method, accuracy): five-task averages in percent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
import torch
from torch import Tensor

from .claims import NOT_REPRODUCED, REPRODUCED, judge, load_claims, overall
from .features import extract
from .ladder import RUNG_LABELS, accuracies, aligned
from .protocols import PRESETS, current_eval, fit_heads, ft_classifier
from .report import protocol_label, short_label
from .store import Artifact
from .study import BASE, FINE_TUNED, POOL_SEED, RANDOM, STEP_VERSIONS, Study

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


def map_label(rung: str) -> str:
    """How tables name the map of a rung, as distinct from the protocol "Orthogonal classifier"."""
    return f"{RUNG_LABELS[rung]} map"


def _average(
    study: Study, encoder: str, protocol: str, k: int | None = None, **where: str
) -> float:
    cells = [
        study.correct(encoder, t, protocol, k=k, **where).float().mean().item() for t in study.tasks
    ]
    return 100 * sum(cells) / len(cells)


def _ladder(study: Study, encoders: Sequence[str], rung: str, **how) -> dict[str, float]:
    # The random encoder is a batch of its own: the others are the batch that fig04 has fitted.
    found = {}
    for group in ([e for e in encoders if e != RANDOM], [e for e in encoders if e == RANDOM]):
        if group:
            cells = aligned(study, group, rung, **how)
            found |= {e: accuracies(study, cells, e).mean().item() for e in group}
    return found


def fitted_on(study: Study, encoders: Sequence[str], k: int) -> pd.DataFrame:
    """Each alignment fitted on training inputs and on the scored test inputs, beside no alignment at all."""
    rows = []
    for encoder in encoders:
        current = _average(study, encoder, "current")
        fits = {
            protocol_label(p): {
                where: _average(study, encoder, p, k, draw="uniform", fit_on=where)
                for where in ("train", "test")
            }
            for p in ("ft_classifier", "orthogonal_classifier", "surgery")
        }
        for fit, values in fits.items():
            name = f"{fit}, k = {k}"
            rows += [
                (name, "none", encoder, current),
                (name, "train", encoder, values["train"]),
                (name, "test", encoder, values["test"]),
            ]
    for rung in ("orthogonal", "affine"):
        by_split = {
            where: _ladder(study, encoders, rung, fit_on=where) for where in ("train", "test")
        }
        for encoder in encoders:
            rows += [
                (map_label(rung), "none", encoder, _average(study, encoder, "current")),
                *(
                    (map_label(rung), where, encoder, by_split[where][encoder])
                    for where in ("train", "test")
                ),
            ]
    return pd.DataFrame(rows, columns=COLUMNS)


def counts(study: Study, encoders: Sequence[str]) -> pd.DataFrame:
    """Closed-form maps from d/2, 2 d and all inputs, on training and on test inputs."""
    d = study.encoder.width
    largest = min(len(t.test) for t in study.tasks.values())
    rows = []
    for rung in ("orthogonal", "affine"):
        for n in sorted({min(d // 2, largest), min(2 * d, largest), largest}):
            for where in ("train", "test"):
                found = _ladder(study, encoders, rung, fit_on=where, fit="closed_form", n=n)
                rows += [
                    (f"{map_label(rung)}, closed form", f"{where}, n = {n}", e, a)
                    for e, a in found.items()
                ]
    return pd.DataFrame(rows, columns=COLUMNS)


def draws_and_modes(study: Study, methods: Sequence[str], k: int) -> pd.DataFrame:
    """FT-Classifier with stratified and uniform draws, and as the released code runs it (dropout on, batches of one)."""
    rows = []
    for method in methods:
        rows += [
            (
                "FT-Classifier Eval",
                f"{draw} draw",
                method,
                _average(study, method, "ft_classifier", k, draw=draw),
            )
            for draw in ("stratified", "uniform")
        ]
        released = [released_mode(study, method, t, k).float().mean().item() for t in study.tasks]
        rows.append(
            ("FT-Classifier Eval", "released mode", method, 100 * sum(released) / len(released))
        )
    return pd.DataFrame(rows, columns=COLUMNS)


def floors(study: Study, encoders: Sequence[str], k: int) -> pd.DataFrame:
    """Every protocol for every encoder, the un-merged and the untrained one included; maps fitted on training inputs."""
    rows = [
        ("protocol", protocol_label(p), e, _average(study, e, p, k))
        for e in encoders
        for p in ("current", "knn", "ft_classifier", "orthogonal_classifier", "surgery")
    ]
    for rung in ("orthogonal", "affine"):
        rows += [
            ("protocol", map_label(rung), e, a)
            for e, a in _ladder(study, encoders, rung, fit_on="train").items()
        ]
    return pd.DataFrame(rows, columns=COLUMNS)


def permuted_teacher(study: Study, encoders: Sequence[str], k: int) -> pd.DataFrame:
    """Ladder (from a random start) and FT-Classifier with the teacher's outputs shuffled between inputs."""
    rows = []
    for rung in ("linear", "orthogonal"):
        found = _ladder(study, encoders, rung, fit_on="train", permuted_teacher=True)
        rows += [("permuted teacher", map_label(rung), e, a) for e, a in found.items()]
    for encoder in encoders:
        cells = []
        for task, given in study.tasks.items():
            evidence = study.evidence(encoder, task)
            shuffled = torch.randperm(
                len(evidence.teacher_fit), generator=torch.Generator().manual_seed(POOL_SEED)
            )
            evidence = replace(evidence, teacher_fit=evidence.teacher_fit[shuffled], ks=(k,))
            predicted = current_eval(evidence.student_test, fit_heads(evidence)[0])
            cells.append((predicted.cpu() == given.test.labels).float().mean().item())
        rows.append(
            ("permuted teacher", "FT-Classifier Eval", encoder, 100 * sum(cells) / len(cells))
        )
        rows.append(
            (
                "permuted teacher",
                "no alignment (Current Eval)",
                encoder,
                _average(study, encoder, "current"),
            )
        )
    return pd.DataFrame(rows, columns=COLUMNS)


def released_mode(study: Study, encoder: str, task: str, k: int) -> Tensor:
    """Which test inputs are right, bool ``[S, N]``, when FT-Classifier runs as the released code does: the merged
    encoder in training mode (dropout on) while the head is fitted, batches of one, five epochs; scored without dropout."""
    preset = PRESETS["released"]
    head, rows = study.head(encoder, task), study.draws(task, "stratified")[:, :, :k].flatten(1)
    pool = study.pool(task)
    key = {
        "version": STEP_VERSIONS["dropout"],
        "encoder": study.encoder.digest,
        "weights": study.weights_digest(encoder, task),
        "inputs": pool.inputs_digest,
        "rows": rows.tolist(),
        "epochs": preset.epochs,
        "seed": study.profile.seed,
        "device": study.device.type,
    }

    def make() -> Artifact:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(study.profile.seed)
            module = study.encoder.module(study.weights(encoder, task))
            passes = [
                extract(
                    study.encoder,
                    module,
                    pool.subset(seed_rows).inputs,
                    device=study.device,
                    dropout=True,
                )
                for _ in range(preset.epochs)
                for seed_rows in rows
            ]
        return Artifact({"features": torch.stack(passes).view(preset.epochs, *rows.shape, -1)})

    z = study.store.get("dropout", key, make).tensors["features"]
    teacher = study.expert(task).head.logits(study.features(FINE_TUNED, task, "pool"))[rows]
    heads = ft_classifier(z, teacher, head, preset)
    return current_eval(study.features(encoder, task), heads) == study.task(task).test.labels


def chance_check(permuted: pd.DataFrame, chance: float, tolerance: float = 3.0) -> pd.DataFrame:
    """Whether each ladder fit with a permuted teacher ends within ``tolerance`` points of chance."""
    ladder = permuted[permuted.condition.str.endswith("map")]
    return (
        ladder.assign(
            method=ladder.method.map(short_label),
            chance=round(chance, 1),
            accuracy=ladder.accuracy.round(1),
            passes=(ladder.accuracy - chance).abs() <= tolerance,
        )
        .drop(columns="fit")
        .reset_index(drop=True)
    )


def wide(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per (fit, condition), a column per encoder, one decimal."""
    order = list(dict.fromkeys(zip(rows.fit, rows.condition, strict=True)))
    table = rows.pivot(index=["fit", "condition"], columns="method", values="accuracy").loc[
        order, list(dict.fromkeys(rows.method))
    ]
    return table.round(1).rename(columns=short_label).rename_axis(columns=None)


def alt(fitted: pd.DataFrame) -> str:
    """Alt text of the figure, from the numbers themselves."""
    at = fitted.set_index(["fit", "condition", "method"]).accuracy
    orthogonal = map_label("orthogonal")
    said = [
        f"{short_label(e)} {at[orthogonal, 'none', e]:.1f}, {at[orthogonal, 'train', e]:.1f} and {at[orthogonal, 'test', e]:.1f}"
        for e in dict.fromkeys(fitted.method)
    ]
    return (
        "Average accuracy without alignment, fitted on training inputs and fitted on the scored test inputs, one panel per fit "
        f"and one line per encoder. For the orthogonal map in percent: {'; '.join(said)}."
    )


def what_stands(study: Study, fitted: pd.DataFrame, permuted: pd.DataFrame, chance: float) -> str:
    """Markdown: claims sorted by verdict and by the verdicts of their controls, each with the number that decides it."""
    verdicts = judge(study, ALIGNMENT_CLAIMS)
    by_claim = overall(verdicts)
    given = load_claims()

    def group(claim: str) -> str:
        if by_claim[claim] != REPRODUCED:
            return "Open" if by_claim[claim] != NOT_REPRODUCED else "What does not hold"
        failed = [c for c in CONTROLS.get(claim, ()) if by_claim[c] != REPRODUCED]
        return "What needs a condition" if failed else "What stands"

    lines = []
    for title in ("What stands", "What needs a condition", "What does not hold", "Open"):
        claims = [c for c in by_claim if group(c) == title]
        lines += [f"### {title}", ""] + ["- none"] * (not claims)
        for claim in claims:
            parts = [v for v in verdicts if v.claim == claim and v.here is not None]
            if not parts:
                lines.append(f"- `{claim}`, {given[claim]['says']}: not measured with these ks.")
                continue
            # The part that decides: the one furthest on the wrong side.
            worst = (min if ">" in given[claim]["threshold"] else max)(parts, key=lambda v: v.here)
            failing = [v.part for v in parts if v.verdict != REPRODUCED]
            only = (
                f" Not for: {', '.join(failing)}."
                if 0 < len(failing) < len(parts) and study.profile.judged
                else ""
            )
            note = f" ({worst.note})" if worst.note else ""
            controls = [f"its control `{c}` is {by_claim[c]}" for c in CONTROLS.get(claim, ())]
            lines.append(
                f"- `{claim}`, {given[claim]['says']}: {by_claim[claim]}; worst value {worst.here:.2f} for {worst.part} "
                f"(interval {worst.low:.2f} to {worst.high:.2f}, asked {worst.threshold}){note}.{only}"
                + (f" Note that {' and '.join(controls)}." if controls else "")
            )
        lines.append("")
    at = fitted.set_index(["fit", "condition", "method"]).accuracy
    ft = next(f for f in at.index.get_level_values(0) if f.startswith("FT-Classifier"))
    merges = [m for m in dict.fromkeys(fitted.method) if m not in (BASE, RANDOM)]
    lines += ["### What the controls add", ""]
    for fit in (ft, map_label("orthogonal"), map_label("affine")):
        leak = [at[fit, "test", m] - at[fit, "train", m] for m in merges]
        what = "k C of the scored inputs" if fit == ft else "all scored inputs"
        lines.append(
            f"- **{fit}.** Fitting on {what} instead of training inputs changes the merges by {min(leak):+.1f} to "
            f"{max(leak):+.1f} points. Fitted on training inputs it lifts the merges by "
            f"{min(at[fit, 'train', m] - at[fit, 'none', m] for m in merges):+.1f} to "
            f"{max(at[fit, 'train', m] - at[fit, 'none', m] for m in merges):+.1f} points, the base model by "
            f"{at[fit, 'train', BASE] - at[fit, 'none', BASE]:+.1f} and an untrained encoder by "
            f"{at[fit, 'train', RANDOM] - at[fit, 'none', RANDOM]:+.1f}."
        )
    check = chance_check(permuted, chance)
    lines.append(
        f"- **Permuted teacher.** {int(check.passes.sum())} of {len(check)} ladder fits end within 3 points of chance "
        f"({chance:.1f} %)."
    )
    return "\n".join(lines)
