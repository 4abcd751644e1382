"""A program as a user writes it, over store and study: pre-trains, fine-tunes, merges, scores,
writes CSVs. Some seconds from an empty store."""

from __future__ import annotations

import warnings
from pathlib import Path

from mergelib import Study
from mergelib.core import paths
from mergelib.core.store import Store

OVERRIDES = {
    "tasks.names": ["ag", "yelp"],
    "tasks.n_train": 320,
    "tasks.n_validation": 40,
    "tasks.n_test": 60,
    "tasks.pool_per_class": 12,
    "threads": 1,
    "merging.methods": ["weight_averaging", "task_arithmetic", "ties"],
    "fine_tuning.steps": 60,
    "fine_tuning.batch_size": 16,
    "fine_tuning.save_every": 7,
    "encoder.pretraining": {"documents": 200, "steps": 40, "batch_size": 16, "lr": 2.0e-3},
}


def run(store: Path, output: Path, overrides: dict | None = None) -> None:
    """The whole program: scores and the curve of lambda, of two tasks and three merges, into
    ``output``."""
    changed = OVERRIDES | (overrides or {})
    study = Study("quick", overrides=changed, store=Store(store), device="cpu")
    with warnings.catch_warnings():
        # Little is trained here.
        warnings.filterwarnings("ignore", message=".*lies on the edge of the grid.*")
        protocols = ["current", "knn", "ft_classifier"]
        frames = {"scores": study.scores(["f_b", "f_t", *study.methods], protocols)}
        frames |= {f"lam_{m}": study.lam_curve(m) for m in study.methods}
    paths.make_folder(output)
    for name, frame in frames.items():
        if not frame.empty:
            text = frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")
            paths.write_whole(output / f"{name}.csv", text.encode())
