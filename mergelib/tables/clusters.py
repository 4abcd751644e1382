"""How outputs cluster: the panels and numbers of Figures 1 and 8 to 10."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from ..core.names import FINE_TUNED
from ..core.types import percent
from ..study import Study
from ..study.clustering import label_purity, silhouette, source_purity
from .labels import short_label, task_label


def cluster_panels(
    study: Study, tasks: Sequence[str], methods: Sequence[str], n: int = 400
) -> tuple[dict[tuple[str, str], dict[str, Any]], pd.DataFrame]:
    """How the outputs of merges and experts cluster, measured on all test inputs of each task.

    Args:
        study: Where features come from.
        tasks: Tasks shown.
        methods: Merging methods shown.
        n: Number of test inputs in a panel's t-SNE map.

    Returns:
        Panels for ``figures.plot_clusters``, and the table of the numbers below them, measured in
            R^d: label
        purity (10-NN, leave-one-out) and silhouette of f_t and f_m, and the source purity of both.
    """
    panels, rows = {}, []
    for task in tasks:
        labels = study.task(task).test.labels
        z_t = study.features(FINE_TUNED, task)
        purity_t, silhouette_t = float(label_purity(z_t, labels).mean()), silhouette(z_t, labels)
        for method in methods:
            z_m = study.features(method, task)
            purity_m = float(label_purity(z_m, labels).mean())
            source = float(source_purity(z_t, z_m).mean())
            points, shown = study.embedding(method, task, n)
            accuracy = percent(study.correct(method, task, "current")[0])
            panels[task, method] = {
                "points": points.numpy(),
                "labels": shown.numpy(),
                "classes": study.task(task).n_classes,
                "accuracy": accuracy,
                "purity_t": purity_t,
                "purity_m": purity_m,
                "source": source,
            }
            rows.append(
                {
                    "task": task,
                    "method": method,
                    "Current Eval (%)": accuracy,
                    "label purity f_t": purity_t,
                    "label purity f_m": purity_m,
                    "silhouette f_t": silhouette_t,
                    "silhouette f_m": silhouette(z_m, labels),
                    "source purity": source,
                    "n": len(labels),
                }
            )
    return panels, pd.DataFrame(rows)


def alt_clusters(table: pd.DataFrame) -> str:
    """Alt text of a cluster figure, from the table of ``cluster_panels``."""
    said = [
        f"{task_label(r['task'])} with {short_label(r['method'])}, label purity "
        f"{r['label purity f_m']:.2f} (fine-tuned {r['label purity f_t']:.2f}), source purity "
        f"{r['source purity']:.2f}"
        for _, r in table.iterrows()
    ]
    shows = "t-SNE maps of fine-tuned and merged outputs together, coloured by class"
    return f"{shows}. {'; '.join(said)}."
