"""All merging methods under all protocols: the rows, ranks and statistics of ``ext01_method_zoo``."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import combinations

import pandas as pd
import torch
from torch import Tensor

from .claims import Bootstrap, interval
from .merging import METHODS, ONE, PER_TASK, get_method
from .report import TASK_LABELS, encoder_label, mean_and_std, stack, with_cells
from .study import Study, at_edge

PROTOCOL_FITS = {
    "current": "stratified",
    "knn": "stratified",
    "ft_classifier": "stratified",
    "orthogonal_procrustes": "all",
}
"""Protocol -> its draw: k shots per class, or every pooled training input for the orthogonal map."""
SHORT = {
    "current": "Current",
    "knn": "KNN",
    "ft_classifier": "FT-Classifier",
    "orthogonal_procrustes": "Orthogonal classifier",
}


def methods(study: Study) -> list[str]:
    """The profile's methods, and those that a notebook has registered itself."""
    own = [m.name for m in METHODS.values() if m.function.__module__ == "__main__"]
    return list(dict.fromkeys([*study.methods, *own]))


def of_kind(names: Sequence[str], gives: str = ONE) -> list[str]:
    """The methods that give one encoder, or one per task (``PER_TASK``): the two are never ranked together."""
    return [m for m in names if get_method(m).gives == gives]


def full_label(encoder: str) -> str:
    """A label that says what sets a row apart: one encoder per task, or inputs of the test set."""
    found = METHODS.get(encoder)
    marks = (
        []
        if found is None
        else ["per task"] * (found.gives == PER_TASK)
        + ["test inputs"] * ("test inputs" in found.needs)
    )
    return encoder_label(encoder) + (f" ({', '.join(marks)})" if marks else "")


def scores(study: Study, encoders: Sequence[str]) -> pd.DataFrame:
    """Tidy scores of every encoder under the four protocols."""
    shots = [p for p, draw in PROTOCOL_FITS.items() if draw != "all"]
    maps = [p for p, draw in PROTOCOL_FITS.items() if draw == "all"]
    return stack([study.scores(encoders, shots), study.scores(encoders, maps, draw="all")])


def wide(rows: pd.DataFrame, tasks: Sequence[str] = ()) -> pd.DataFrame:
    """A row per encoder, a column per protocol with the average, "71.8 ± 0.2"; with ``tasks`` a row per encoder and protocol, a
    column per task."""
    cells = with_cells(mean_and_std(rows))
    cells["Method"], cells["Protocol"] = cells.method.map(full_label), cells.protocol.map(SHORT)
    order = list(dict.fromkeys(cells.Method))
    if tasks:
        table = cells.pivot(index=["Method", "Protocol"], columns="task", values="cell")
        table = table.loc[[(m, p) for m in order for p in SHORT.values()], [*tasks, "average"]]
        return table.rename(columns={**TASK_LABELS, "average": "Average"}).rename_axis(columns=None)
    table = cells[cells.task == "average"].pivot(index="Method", columns="Protocol", values="cell")
    return table.reindex(index=order, columns=list(SHORT.values())).rename_axis(
        index="Method", columns=None
    )


def methods_table(study: Study, names: Sequence[str]) -> pd.DataFrame:
    """What each method needs and gives, the lambda chosen and whether it lies at its grid's edge, other settings, merges."""
    rows = []
    for name in names:
        found, options = get_method(name), study.profile.merging.options.get(name, {})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the column says it
            lams = study.lams(name)
        chosen = list(dict.fromkeys(lams.values()))
        rows.append(
            {
                "Method": found.label,
                "needs": ", ".join(found.needs) or "nothing",
                "gives": found.gives,
                "lambda": ", ".join(
                    f"{lam:g}" for lam in (lams.values() if len(chosen) > 1 else chosen)
                ),
                "at the grid's edge": "yes" if at_edge(chosen, study.lam_curve(name)) else "",
                "other settings": ", ".join(
                    f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in options.items()
                ),
                "merges": len(study.merges(name)),
            }
        )
    return pd.DataFrame(rows)


def cost_table(study: Study, names: Sequence[str], rows: pd.DataFrame) -> pd.DataFrame:
    """Seconds and peak megabytes of one merge with its lambda given, and what it scored: columns method, seconds, peak_mb,
    ft_classifier. Measured when the merge was made; missing for merges stored before."""
    means = averages(rows)
    return pd.DataFrame(
        [
            {
                "method": m,
                **{"seconds": None, "peak_mb": None, **study.merge_cost(m)},
                "ft_classifier": means.loc[m, "ft_classifier"],
            }
            for m in names
        ]
    ).astype({"seconds": float, "peak_mb": float})


# ---- ranks and what they are worth --------------------------------------------------------------------------------------


def averages(rows: pd.DataFrame) -> pd.DataFrame:
    """Average accuracy in percent, a row per encoder (by name), a column per protocol."""
    cells = mean_and_std(rows)
    return (
        cells[cells.task == "average"]
        .pivot(index="method", columns="protocol", values="mean")
        .loc[list(dict.fromkeys(rows.method)), list(PROTOCOL_FITS)]
        .rename_axis(columns=None)
    )


def ranks(means: pd.DataFrame) -> pd.DataFrame:
    """Rank per protocol, 1 the best; equal averages share a mean rank."""
    return means.rank(ascending=False)


def gaps(means: pd.DataFrame, fine_tuned: float) -> pd.DataFrame:
    """Points that are missing to the fine-tuned models."""
    return fine_tuned - means


def resampled(study: Study, names: Sequence[str]) -> dict[str, Tensor]:
    """Average accuracies ``[M, 1 + B]`` per protocol, in the order of ``names``; column 0 is measured, the others resampled over
    test inputs and seeds, the same for all."""
    bootstrap, k = Bootstrap(study), study.profile.protocols.ks[-1]
    return {
        p: torch.stack([bootstrap.accuracy(m, p, k, draw=draw) for m in names])
        for p, draw in PROTOCOL_FITS.items()
    }


def kendall_tau(a: Tensor, b: Tensor) -> Tensor:
    """Kendall's tau-b of the rankings in each column of ``a, b [M, R]``: ``[R]``, NaN where one of them has no order."""
    rows, columns = torch.triu_indices(len(a), len(a), 1)
    sign_a, sign_b = (a[rows] - a[columns]).sign(), (b[rows] - b[columns]).sign()
    return (sign_a * sign_b).sum(0) / (sign_a.abs().sum(0) * sign_b.abs().sum(0)).sqrt()


def tau_table(samples: dict[str, Tensor]) -> pd.DataFrame:
    """Kendall's tau between the protocols' rankings with 95 % intervals: columns of, and, tau, low, high."""
    rows = []
    for p, q in combinations(samples, 2):
        tau = kendall_tau(samples[p], samples[q])
        low, high = interval(tau)
        rows.append(
            {"of": SHORT[p], "and": SHORT[q], "tau": float(tau[0]), "low": low, "high": high}
        )
    return pd.DataFrame(rows)


def order(difference: Tensor) -> int:
    """1 or -1 when the whole 95 % interval of ``[1 + B]`` lies on one side of 0, else 0."""
    low, high = interval(difference)
    return (low > 0) - (high < 0)


def pair_table(
    samples: dict[str, Tensor], names: Sequence[str], *, to: str = "ft_classifier"
) -> pd.DataFrame:
    """Each pair of methods with its difference under Current Eval and under ``to`` (first minus second, points) and what became
    of its order: ``same``, ``reversed``, ``lost`` (clear only under Current), ``gained`` (only under ``to``), ``open``."""
    rows = []
    for i, j in combinations(range(len(names)), 2):
        now, then = (samples[p][i] - samples[p][j] for p in ("current", to))
        a, b = order(now), order(then)
        change = (
            "open"
            if not a and not b
            else "lost"
            if not b
            else "gained"
            if not a
            else "same"
            if a == b
            else "reversed"
        )
        rows.append(
            {
                "first": names[i],
                "second": names[j],
                "current": float(now[0]),
                to: float(then[0]),
                "order": change,
            }
        )
    return pd.DataFrame(rows)


def _headline(means: pd.DataFrame, taus: pd.DataFrame) -> tuple[dict[str, str], pd.Series]:
    """The best method under Current and FT-Classifier Eval, and the row of their tau."""
    best = {p: means[p].idxmax() for p in ("current", "ft_classifier")}
    return best, taus[
        (taus["of"] == SHORT["current"]) & (taus["and"] == SHORT["ft_classifier"])
    ].iloc[0]


def answer(means: pd.DataFrame, taus: pd.DataFrame, pairs: pd.DataFrame, fine_tuned: float) -> str:
    """One paragraph, written by the numbers: does a better protocol change which method to use?"""
    best, tau = _headline(means, taus)
    spread = {p: means[p].max() - means[p].min() for p in best}
    counts = pairs.order.value_counts().reindex(
        ["same", "reversed", "lost", "gained", "open"], fill_value=0
    )
    name = {p: encoder_label(m) for p, m in best.items()}
    same = best["current"] == best["ft_classifier"]
    head = (
        f"**The same method wins.** {name['current']} is first under Current Eval and under FT-Classifier Eval."
        if same
        else f"**Another method wins.** Current Eval puts {name['current']} first, FT-Classifier Eval {name['ft_classifier']}; whoever follows "
        f"Current Eval gives away {means['ft_classifier'].max() - means.loc[best['current'], 'ft_classifier']:.1f} points under FT-Classifier Eval."
    )
    return (
        f"{head} Between the best and the worst of {len(means)} methods lie {spread['current']:.1f} points under Current Eval and "
        f"{spread['ft_classifier']:.1f} under FT-Classifier Eval; the best is {fine_tuned - means['ft_classifier'].max():.1f} points below the "
        f"fine-tuned models. Kendall's tau of the two rankings is {tau.tau:.2f} [{tau.low:.2f}, {tau.high:.2f}]. Of {len(pairs)} pairs of "
        f"methods {counts.same} keep a clear order, {counts.reversed} turn around, {counts.lost} are clear under Current Eval alone, "
        f"{counts.gained} under FT-Classifier Eval alone, and {counts.open} under neither."
    )


def alt(means: pd.DataFrame, taus: pd.DataFrame, fine_tuned: float) -> str:
    """Alt text of the figure, from the numbers themselves."""
    best, tau = _headline(means, taus)
    return (
        f"Ranks of {len(means)} merging methods from Current Eval to FT-Classifier Eval, and each one's gap to the fine-tuned models "
        f"({fine_tuned:.1f} %) under four protocols. First under Current Eval: {encoder_label(best['current'])}, {means['current'].max():.1f} %; "
        f"first under FT-Classifier Eval: {encoder_label(best['ft_classifier'])}, {means['ft_classifier'].max():.1f} %. Kendall's tau {tau.tau:.2f}."
    )


def alt_cost(costs: pd.DataFrame) -> str:
    """Alt text of the cost figure, from the numbers themselves."""
    known = costs.dropna(subset=["seconds"])
    one = costs[costs.method.isin(of_kind(costs.method))]
    best = one.loc[one.ft_classifier.idxmax()]
    if known.empty:
        return f"Seconds of one merge against average FT-Classifier accuracy; no merge was timed; {len(costs)} methods."
    slow, quick = known.loc[known.seconds.idxmax()], known.loc[known.seconds.idxmin()]
    return (
        f"Seconds of one merge against average accuracy under FT-Classifier Eval, {len(known)} methods. Quickest {encoder_label(quick.method)}, slowest "
        f"{encoder_label(slow.method)}; of those that give one encoder most accurate {encoder_label(best.method)}, {best.ft_classifier:.1f} %."
    )
