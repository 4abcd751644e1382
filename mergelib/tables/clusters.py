"""How outputs cluster: the panels and numbers of Figures 1 and 8 to 10."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from torch import Tensor

from ..core.names import FINE_TUNED
from ..core.types import percent
from ..study import Study
from ..study.clustering import label_purity, silhouette, source_purity


def cluster_panels(
    study: Study, tasks: Sequence[str], methods: Sequence[str], n: int = 400
) -> tuple[dict[tuple[str, str], tuple[Tensor, Tensor, int]], pd.DataFrame]:
    """How the outputs of merges and experts cluster, measured on all test inputs of each task.

    Args:
        study: Where features come from.
        tasks: Tasks shown.
        methods: Merging methods shown.
        n: Number of test inputs in a panel's t-SNE map.

    Returns:
        Per (task, method) the map's points ``[2, n, 2]`` of f_t and f_m, their labels ``[n]`` and
            the number of classes; and the table of the numbers below them, measured in R^d: label
            purity (10-NN, leave-one-out) and silhouette of f_t and f_m, and the source purity of
            both.
    """
    panels, rows = {}, []
    for task in tasks:
        labels, z_t = study.task(task).test.labels, study.features(FINE_TUNED, task)
        purity, width = float(label_purity(z_t, labels).mean()), silhouette(z_t, labels)
        for method in methods:
            z_m = study.features(method, task)
            panels[task, method] = (*study.embedding(method, task, n), study.task(task).n_classes)
            rows.append(
                {
                    "task": task,
                    "method": method,
                    "Current Eval (%)": percent(study.correct(method, task, "current")[0]),
                    "label purity f_t": purity,
                    "label purity f_m": float(label_purity(z_m, labels).mean()),
                    "silhouette f_t": width,
                    "silhouette f_m": silhouette(z_m, labels),
                    "source purity": float(source_purity(z_t, z_m).mean()),
                    "n": len(labels),
                }
            )
    return panels, pd.DataFrame(rows)
