"""All merging methods under all protocols: rows, ranks and statistics of ``ext01_method_zoo``."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import combinations

import pandas as pd
import torch
from torch import Tensor

from ..claims import Bootstrap, interval
from ..merging import METHODS, ONE, get_method
from ..study import Study
from ..study.merges import at_edge
from .labels import encoder_label, protocol_label
from .scores import averages, mean_and_std, stack

PROTOCOL_DRAWS = {
    "current": "stratified",
    "knn": "stratified",
    "ft_classifier": "stratified",
    "orthogonal_procrustes": "all",
}
"""Protocol -> its draw: k shots per class, or every pooled training input for the map."""
ORDERS = {
    (1, 1): "same",
    (1, -1): "reversed",
    (1, 0): "lost",
    (0, 1): "gained",
    (0, 0): "open",
}
"""(order under Current Eval, order under the other protocol: 1, -1 or 0 if unclear) -> its name."""


def methods(study: Study) -> list[str]:
    """The profile's methods, and those that the notebook has registered."""
    own = [m.name for m in METHODS.values() if m.function.__module__ == "__main__"]
    return list(dict.fromkeys([*study.methods, *own]))


def of_kind(names: Sequence[str], gives: str = ONE) -> list[str]:
    """The methods that give one encoder, or one per task (``PER_TASK``): never ranked together."""
    return [m for m in names if get_method(m).gives == gives]


def scores(study: Study, encoders: Sequence[str]) -> pd.DataFrame:
    """Tidy scores of every encoder under the four protocols."""
    shots = [p for p, draw in PROTOCOL_DRAWS.items() if draw != "all"]
    maps = [p for p, draw in PROTOCOL_DRAWS.items() if draw == "all"]
    return stack([study.scores(encoders, shots), study.scores(encoders, maps, draw="all")])


def methods_table(study: Study, names: Sequence[str]) -> pd.DataFrame:
    """A row per method: what it needs and gives, lambda, whether at its grid's edge, merges."""
    rows = []
    for name in names:
        method, options = get_method(name), study.profile.merging.options.get(name, {})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the column shows it
            lams = list(study.lams(name).values())
        lams = lams if len(set(lams)) > 1 else lams[:1]
        said = {k: f"{v:g}" if isinstance(v, float) else v for k, v in options.items()}
        rows.append(
            {
                "Method": method.label,
                "needs": ", ".join(method.needs) or "nothing",
                "gives": method.gives,
                "lambda": ", ".join(f"{lam:g}" for lam in lams),
                "at the grid's edge": "yes" if at_edge(lams, study.lam_curve(name)) else "",
                "other settings": ", ".join(f"{k} {v}" for k, v in said.items()),
                "merges": len(study.merges(name)),
            }
        )
    return pd.DataFrame(rows)


def cost_table(study: Study, names: Sequence[str], means: pd.DataFrame) -> pd.DataFrame:
    """The cost of one merge with a fixed lambda, and its score.

    Returns:
        Columns method, seconds, peak_mb, ft_classifier. Measured when the merge was made; missing
            for merges that were stored earlier.
    """
    rows = [{"seconds": None, "peak_mb": None, **study.merge_cost(m)} for m in names]
    frame = pd.DataFrame(rows).astype({"seconds": float, "peak_mb": float})
    frame.insert(0, "method", list(names))
    return frame.assign(ft_classifier=means.ft_classifier.loc[list(names)].to_numpy())


# ---- ranks and what they are worth --------------------------------------------------------------


def means(rows: pd.DataFrame) -> pd.DataFrame:
    """Average accuracy in percent: a row per encoder and a column per protocol, by their names."""
    cells = averages(mean_and_std(rows)).pivot(index="method", columns="protocol", values="mean")
    cells = cells.loc[list(dict.fromkeys(rows.method)), list(PROTOCOL_DRAWS)]
    return cells.rename_axis(columns=None)


def ranks(means: pd.DataFrame) -> pd.DataFrame:
    """Rank per protocol, 1 the best; equal averages share a mean rank."""
    return means.rank(ascending=False)


def resampled(study: Study, names: Sequence[str]) -> dict[str, Tensor]:
    """Average accuracies ``[M, 1 + B]`` per protocol, in the order of ``names``.

    Column 0 is measured, the others are resampled over test inputs and seeds, the same for all.
    """
    bootstrap, k = Bootstrap(study), study.profile.protocols.ks[-1]
    return {
        p: torch.stack([bootstrap.accuracy(m, p, k, draw=draw) for m in names])
        for p, draw in PROTOCOL_DRAWS.items()
    }


def kendall_tau(a: Tensor, b: Tensor) -> Tensor:
    """Kendall's tau-b of the rankings in each column of ``a, b [M, R]``: ``[R]``.

    NaN if one of them has no order.
    """
    rows, columns = torch.triu_indices(len(a), len(a), 1)
    sign_a, sign_b = (a[rows] - a[columns]).sign(), (b[rows] - b[columns]).sign()
    return (sign_a * sign_b).sum(0) / (sign_a.abs().sum(0) * sign_b.abs().sum(0)).sqrt()


def tau_table(samples: dict[str, Tensor]) -> pd.DataFrame:
    """Kendall's tau of each pair of protocols' rankings: columns of, and, tau, low, high (95 %)."""
    rows = []
    for p, q in combinations(samples, 2):
        tau = kendall_tau(samples[p], samples[q])
        rows.append((protocol_label(p), protocol_label(q), float(tau[0]), *interval(tau)))
    return pd.DataFrame(rows, columns=["of", "and", "tau", "low", "high"])


def order(difference: Tensor) -> int:
    """1 or -1 if the whole 95 % interval of ``[1 + B]`` lies on one side of 0, else 0."""
    low, high = interval(difference)
    return (low > 0) - (high < 0)


def pair_table(
    samples: dict[str, Tensor], names: Sequence[str], *, to: str = "ft_classifier"
) -> pd.DataFrame:
    """Each pair of methods, and whether its order under Current Eval holds under ``to``.

    Returns:
        Columns first, second, current and ``to`` (first minus second, points), order: ``same``,
        ``reversed``, ``lost`` (clear only under Current Eval), ``gained`` (only under ``to``),
        ``open`` (under neither).
    """
    rows = []
    for i, j in combinations(range(len(names)), 2):
        now, then = (samples[p][i] - samples[p][j] for p in ("current", to))
        a, b = order(now), order(then)
        change = ORDERS[abs(a), a * b if a else abs(b)]
        rows.append((names[i], names[j], float(now[0]), float(then[0]), change))
    return pd.DataFrame(rows, columns=["first", "second", "current", to, "order"])


def _headline(means: pd.DataFrame, taus: pd.DataFrame) -> tuple[dict[str, str], pd.Series]:
    """The best method under Current and FT-Classifier Eval, and the row of their tau."""
    names = ("current", "ft_classifier")
    of, then = map(protocol_label, names)
    tau = taus[(taus["of"] == of) & (taus["and"] == then)].iloc[0]
    return {p: means[p].idxmax() for p in names}, tau


def answer(means: pd.DataFrame, taus: pd.DataFrame, pairs: pd.DataFrame, fine_tuned: float) -> str:
    """One paragraph, computed from the numbers: does a better protocol change which method to
    use?"""
    best, tau = _headline(means, taus)
    current, ft = (encoder_label(m) for m in best.values())
    spread = {p: means[p].max() - means[p].min() for p in best}
    counts = pairs.order.value_counts().reindex(ORDERS.values(), fill_value=0)
    top = means["ft_classifier"].max()
    head = f"**The same method wins.** {current} is first under Current and FT-Classifier Eval."
    if best["current"] != best["ft_classifier"]:
        head = (
            f"**Another method wins.** Current Eval puts {current} first, FT-Classifier Eval {ft}; "
            f"following Current Eval costs "
            f"{top - means.loc[best['current'], 'ft_classifier']:.1f} points under FT-Classifier "
            "Eval."
        )
    return (
        f"{head} Between the best and the worst of {len(means)} methods lie "
        f"{spread['current']:.1f} points under Current Eval and {spread['ft_classifier']:.1f} "
        f"under FT-Classifier Eval; the best is {fine_tuned - top:.1f} points below the fine-tuned "
        f"models. Kendall's tau of the two rankings is {tau.tau:.2f} [{tau.low:.2f}, "
        f"{tau.high:.2f}]. Of {len(pairs)} pairs of methods {counts.same} keep a clear order, "
        f"{counts.reversed} turn around, {counts.lost} are clear under Current Eval alone, "
        f"{counts.gained} under FT-Classifier Eval alone, and {counts.open} under neither."
    )


def alt(means: pd.DataFrame, taus: pd.DataFrame, fine_tuned: float) -> str:
    """Alt text of the figure, from the numbers themselves."""
    best, tau = _headline(means, taus)
    firsts = "; ".join(
        f"first under {protocol_label(p)}: {encoder_label(m)}, {means[p].max():.1f} %"
        for p, m in best.items()
    )
    return (
        f"Ranks of {len(means)} merging methods from Current Eval to FT-Classifier Eval, and each "
        f"one's accuracy under four protocols beside the fine-tuned models ({fine_tuned:.1f} %). "
        f"{firsts.capitalize()}. Kendall's tau {tau.tau:.2f}."
    )


def alt_cost(costs: pd.DataFrame) -> str:
    """Alt text of the cost figure, from the numbers themselves."""
    timed = costs.dropna(subset=["seconds"])
    shows = "Seconds of one merge against average FT-Classifier accuracy"
    if timed.empty:
        return f"{shows}; no merge was timed; {len(costs)} methods."
    one = costs[costs.method.isin(of_kind(costs.method))]
    best = one.loc[one.ft_classifier.idxmax()]
    quick, slow = (timed.method[i] for i in (timed.seconds.idxmin(), timed.seconds.idxmax()))
    return (
        f"{shows}, {len(timed)} methods. Quickest {encoder_label(quick)}, slowest "
        f"{encoder_label(slow)}; of those that give one encoder most accurate "
        f"{encoder_label(best.method)}, {best.ft_classifier:.1f} %."
    )
