"""``python -m benchmarks.pretrained_vit --image-dir DIR``: what the pre-training of real images'
f_b is worth.

Validation accuracy of f_b and of the same architecture with random weights, without any
fine-tuning: KNN Eval with k anchors a class (mean over the profile's seeds) and the label of the
nearest row of the pool. ``--experts`` adds the fine-tuned accuracy. Settings of the pre-training
are chosen by these columns; no test input and no merge is touched.
"""

from __future__ import annotations

import argparse
import json
import time

import pandas as pd
import torch

from mergelib import Study
from mergelib.core.names import BASE, FINE_TUNED, RANDOM
from mergelib.protocols import current_eval
from mergelib.protocols.knn import knn_eval


def neighbours(study: Study, encoder: str, task: str, k: int) -> dict[str, float]:
    """Percent right on validation: KNN Eval with k shots, and the single nearest neighbour in the
    whole pool."""
    anchors, labels = study.features(encoder, task, "pool"), study.pool(task).labels
    z, truth = study.features(encoder, task, "validation"), study.task(task).validation.labels
    few = knn_eval(z, anchors[study.draws(task, "stratified", ks=[k])], [k])[0]
    nearest = labels[torch.cdist(z, anchors, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)]
    return {
        f"KNN {k}": 100 * float((few == truth).float().mean()),
        "nearest": 100 * float((nearest == truth).float().mean()),
    }


def table(study: Study, k: int, experts: bool) -> pd.DataFrame:
    """A row per task and their mean, columns by encoder."""
    rows = {}
    for task in study.tasks.values():
        row = {
            f"{encoder} {name}": value
            for encoder in (RANDOM, BASE)
            for name, value in neighbours(study, encoder, task.name, k).items()
        }
        if experts:
            right = (
                current_eval(
                    study.features(FINE_TUNED, task.name, "validation"),
                    study.expert(task.name).head,
                )
                == task.validation.labels
            )
            row["f_t"] = 100 * float(right.float().mean())
        rows[task.name] = {
            "C": task.n_classes,
            "train": len(task.train),
            "validation": len(task.validation),
            **row,
        }
    frame = pd.DataFrame(rows).T
    mean = frame.mean()
    mean[["C", "train", "validation"]] = float("nan")
    return pd.concat([frame, mean.to_frame("mean").T]).round(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image-dir", required=True)
    parser.add_argument("--variants", nargs="+", default=["vision_a", "vision_b"])
    parser.add_argument(
        "--overrides",
        type=json.loads,
        default={},
        help='such as {"encoder.pretraining.steps": 100}',
    )
    parser.add_argument("-k", type=int, default=5)
    parser.add_argument("--experts", action="store_true")
    args = parser.parse_args()
    for variant in args.variants:
        study = Study("real", variant=variant, image_dir=args.image_dir, overrides=args.overrides)
        images, start = sum(len(t.train) for t in study.tasks.values()), time.perf_counter()
        study.base_state  # noqa: B018  (computed once, and timed)
        print(
            f"\n{variant}: {study.profile.backbone}, {images} images without labels, "
            f"{(time.perf_counter() - start) / 60:.1f} minutes "
            "(near 0 where the store had it)"
        )
        print(table(study, args.k, args.experts).to_string(na_rep=""))


if __name__ == "__main__":
    main()
