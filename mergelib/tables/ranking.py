"""All merging methods under all protocols: rows, ranks and statistics of ``ext01_method_zoo``."""

from __future__ import annotations

import warnings
from collections import Counter
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


def methods(study: Study) -> list[str]:
    """The profile's methods, and those that the notebook has registered."""
    own = [m.name for m in METHODS.values() if m.function.__module__ == "__main__"]
    return list(dict.fromkeys([*study.methods, *own]))


def of_kind(names: Sequence[str], gives: str = ONE) -> list[str]:
    """The methods that give one encoder, or one per task (``PER_TASK``): never ranked together."""
    return [m for m in names if get_method(m).gives == gives]


def scores(study: Study, encoders: Sequence[str]) -> pd.DataFrame:
    """Tidy scores of every encoder under the four protocols."""
    *few_shot, procrustes = PROTOCOL_DRAWS
    whole_pool = study.scores(encoders, [procrustes], draw="all")
    return stack([study.scores(encoders, few_shot), whole_pool])


def methods_table(study: Study, names: Sequence[str]) -> pd.DataFrame:
    """A row per method: what it needs and gives, lambda, whether at its grid's edge, merges."""
    rows = []
    for name in names:
        method, options = get_method(name), study.profile.merging.options.get(name, {})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the column shows it
            lams = list(study.lams(name).values())
        lams = lams if len(set(lams)) > 1 else lams[:1]
        edge = "yes" if at_edge(lams, study.lam_curve(name)) else ""
        rows.append(
            {
                "Method": method.label,
                "needs": ", ".join(method.needs) or "nothing",
                "gives": method.gives,
                "lambda": ", ".join(f"{lam:g}" for lam in lams),
                "at the grid's edge": edge,
                "other settings": ", ".join(f"{k} {v}" for k, v in options.items()),
                "merges": len(study.merges(name)),
            }
        )
    return pd.DataFrame(rows)


def cost_table(study: Study, names: Sequence[str], means: pd.DataFrame) -> pd.DataFrame:
    """The cost of one merge with a fixed lambda, and its score.

    Args:
        study: Where the merges were made.
        names: The methods, a row each.
        means: Average accuracies, a row per method, with a column ``ft_classifier``.

    Returns:
        Columns method, seconds, peak_mb, ft_classifier. Measured when the merge was made; missing
            for merges that were stored earlier.
    """
    costs = pd.DataFrame([study.merge_cost(m) for m in names], index=list(names))
    costs = costs.reindex(columns=["seconds", "peak_mb"]).astype(float)
    return costs.join(means.ft_classifier).rename_axis("method").reset_index()


# ---- ranks and what they are worth --------------------------------------------------------------


def means(rows: pd.DataFrame) -> pd.DataFrame:
    """Average accuracy in percent: a row per encoder and a column per protocol, by their names."""
    cells = averages(mean_and_std(rows)).pivot(index="method", columns="protocol", values="mean")
    cells = cells.loc[list(dict.fromkeys(rows.method)), list(PROTOCOL_DRAWS)]
    return cells.rename_axis(columns=None)


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


def clear_sign(difference: Tensor) -> int:
    """1 or -1 if the whole 95 % interval of ``[1 + B]`` lies on one side of 0, else 0."""
    low, high = interval(difference)
    return (low > 0) - (high < 0)


def what_became(before: int, after: int) -> str:
    """Of a pair's order under Current Eval, a ``clear_sign``, under the other protocol."""
    if before and after:
        return "same" if before == after else "reversed"
    if before:
        return "lost"
    return "gained" if after else "open"


def pair_table(samples: dict[str, Tensor], names: Sequence[str]) -> pd.DataFrame:
    """Each pair of methods, and whether its order under Current Eval holds under FT-Classifier.

    Args:
        samples: Protocol -> accuracies ``[M, 1 + B]``, as from ``resampled``.
        names: The M methods in the same order.

    Returns:
        Columns first, second, current and ft_classifier (first minus second, points), order:
        ``same``, ``reversed``, ``lost`` (clear only under Current Eval), ``gained`` (only under
        FT-Classifier), ``open`` (under neither).
    """
    rows = []
    for i, j in combinations(range(len(names)), 2):
        before, after = (samples[p][i] - samples[p][j] for p in ("current", "ft_classifier"))
        order = what_became(clear_sign(before), clear_sign(after))
        rows.append((names[i], names[j], float(before[0]), float(after[0]), order))
    return pd.DataFrame(rows, columns=["first", "second", "current", "ft_classifier", "order"])


def answer(means: pd.DataFrame, taus: pd.DataFrame, pairs: pd.DataFrame, fine_tuned: float) -> str:
    """One paragraph, computed from the numbers: does a better protocol change which method to
    use?

    Args:
        means: Average accuracies in percent, a row per method, a column per protocol.
        taus: As from ``tau_table``.
        pairs: As from ``pair_table``.
        fine_tuned: The fine-tuned models' average accuracy in percent.
    """
    first, last = means.current.idxmax(), means.ft_classifier.idxmax()
    spread = means.max() - means.min()
    counts = Counter(pairs.order)
    pair = protocol_label("current"), protocol_label("ft_classifier")
    tau = taus.set_index(["of", "and"]).loc[pair]
    head = f"**The same method wins.** {encoder_label(first)} is first under both protocols."
    if first != last:
        cost = means.ft_classifier[last] - means.ft_classifier[first]
        head = (
            f"**Another method wins.** Current Eval puts {encoder_label(first)} first, "
            f"FT-Classifier Eval {encoder_label(last)}; following Current Eval costs {cost:.1f} "
            "points under FT-Classifier Eval."
        )
    below = fine_tuned - means.ft_classifier[last]
    return (
        f"{head} Between the best and the worst of {len(means)} methods lie {spread.current:.1f} "
        f"points under Current Eval and {spread.ft_classifier:.1f} under FT-Classifier Eval; "
        f"the best is {below:.1f} points below the fine-tuned models. "
        f"Kendall's tau of the two rankings is {tau.tau:.2f} [{tau.low:.2f}, {tau.high:.2f}]. "
        f"Of {len(pairs)} pairs of methods {counts['same']} keep a clear order, "
        f"{counts['reversed']} turn around, {counts['lost']} are clear under Current Eval alone, "
        f"{counts['gained']} under FT-Classifier Eval alone, and {counts['open']} under neither."
    )
