"""Why masked language modelling leaves a miniature BERT with worse features than a random start.

    python -m benchmarks.objective

One row a base of the profile `mini`: a random start, masked LM of 300 and of 1,500 steps on the
generated corpus, and the shipped one (distilled). Means over the tasks, of mean-pooled outputs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from benchmarks.frame import table
from mergelib.core.types import State, Task
from mergelib.encoders import Encoder, encoder_state
from mergelib.encoders.features import extract, pick_device
from mergelib.foundations import RECIPES
from mergelib.foundations.command import probe_accuracy, probe_rows
from mergelib.profiles import load_profile
from mergelib.study import Study

STEPS = (300, 1500)
DRAWN = 3  # directions of largest variance


def bases(study: Study) -> Iterator[tuple[str, Encoder, State]]:
    """Name, architecture and weights of each base."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(study.profile.seed)
        yield "random start", study.encoder, encoder_state(study.encoder.module())
    tasks = list(study.tasks.values())
    for steps in STEPS:
        changes = {"encoder.pretraining.teacher": "", "encoder.pretraining.steps": steps}
        profile = load_profile("mini", changes)
        recipe = RECIPES["bert"](profile, tasks)
        with tempfile.TemporaryDirectory() as scratch:
            made = recipe.make(pick_device("auto"), Path(scratch))
        opened = recipe.open(made)
        yield f"masked LM, {steps} steps", opened.encoder, opened.state
    yield "distilled", study.encoder, study.base_state


def spectrum(z: Tensor) -> Tensor:
    """Variances of features ``[N, d]`` along their principal directions, as shares."""
    variances = torch.linalg.svdvals(z - z.mean(0)).square()
    return variances / variances.sum()


def row(encoder: Encoder, state: State, task: Task) -> dict[str, float]:
    """What the features carry: of the classes, and of the length of a text, which says nothing."""
    fit, module = probe_rows(task), encoder.module(state)
    z, z_test = (extract(encoder, module, s.inputs) for s in (fit, task.test))
    axes = torch.linalg.svd(z - z.mean(0), full_matrices=False).Vh.T
    whole = spectrum(z)
    length, length_test = (
        [encoder.length(r) for r in encoder.prepare(s.inputs)] for s in (fit, task.test)
    )
    ridge = make_pipeline(StandardScaler(), RidgeCV())
    return {
        "classes": probe_accuracy(z, fit.labels, z_test, task.test.labels),
        "along the principal axes": probe_accuracy(
            z @ axes, fit.labels, z_test @ axes, task.test.labels
        ),
        "effective rank": float(1 / whole.square().sum()),
        f"variance in {DRAWN} directions": 100 * float(whole[:DRAWN].sum()),
        "length": 100 * ridge.fit(z.numpy(), length).score(z_test.numpy(), length_test),
    }


def main() -> None:
    study = Study("mini")
    rows = []
    for name, encoder, state in bases(study):
        means = pd.DataFrame([row(encoder, state, t) for t in study.tasks.values()]).mean()
        rows.append({"base": name, **means.round(1)})
    print(table("What a base's features carry, in percent", rows))


if __name__ == "__main__":
    main()
