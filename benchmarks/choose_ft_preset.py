"""``python -m benchmarks.choose_ft_preset``: how the preset ``default`` of FT-Classifier was
chosen.

Validation accuracy of one task (AG News) under one merge (Task Arithmetic) of the profile `mini`,
mean over seeds and over every k, for a grid of learning rates and full-batch steps, beside the
authors' released settings. The grid is flat at its upper end; a cell inside the plateau was taken
once (0.1 points below the best one, at half its steps) and serves every task, method, f_b and
profile. No test input is touched.

``--variant vision_a --task mnist`` prints the same for a task of another variant, with rates a
hundred times as large where its preset is ``clip``: that one was not chosen by this table, but is
``default`` for rows that are unit vectors times 100.
"""

from __future__ import annotations

import argparse
import itertools

import torch

from mergelib import Study
from mergelib.protocols import PRESETS, FTPreset, current_eval, ft_classifier

METHOD = "task_arithmetic"


def validation_accuracy(study: Study, task: str, preset: FTPreset) -> float:
    """Percent, mean over the profile's seeds and ks."""
    seen = study.evidence(METHOD, task)
    z, labels = study.features(METHOD, task, "validation"), study.task(task).validation.labels
    teacher = seen.head.logits(seen.teacher_fit)
    hits = []
    for k in seen.ks:
        rows = seen.rows(k)
        heads = ft_classifier(seen.student_fit[rows], teacher[rows], seen.head, preset)
        hits.append((current_eval(z, heads) == labels).float().mean())
    return 100 * float(torch.stack(hits).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="")
    parser.add_argument("--task", default="ag")
    args = parser.parse_args()
    study = Study("mini", variant=args.variant)
    unit = 100 if study.profile.protocols.ft_preset == "clip" else 1
    candidates = {
        f"lr {unit * lr:g}, {epochs} full-batch steps": FTPreset(unit * lr, epochs)
        for lr, epochs in itertools.product((3e-4, 1e-3, 3e-3, 1e-2), (50, 100, 200, 400))
    }
    candidates["released (lr 5e-4, 5 epochs of single samples)"] = PRESETS["released"]
    for name, preset in candidates.items():
        print(f"{name:<48} {validation_accuracy(study, args.task, preset):5.1f}")


if __name__ == "__main__":
    main()
