"""What a head predicts, and what follows from it: the loss of its re-alignment, its predictions,
its scores. The names are those of transformers' ``problem_type``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.bootstrap import resampled_inputs
from ..core.errors import ConfigError
from ..protocols import kl_to_teacher
from ..tasks.rows import MULTI, REGRESSION, SINGLE

METRICS = {  # columns of scores and their headings
    "accuracy": "accuracy (%)",
    "micro_f1": "micro F1 (%)",
    "macro_f1": "macro F1 (%)",
    "pearson": "Pearson's r",
    "mse": "MSE",
}


@dataclass(frozen=True)
class Kind:
    """``loss``: student's and teacher's logits ``[..., C]`` to ``[...]``; ``outputs``: logits to
    what a person reads, ``[..., C]``; ``predict``: logits ``[N, C]`` to what ``tasks.rows.targets``
    gives as labels. ``scores``: predictions, labels and how often each input counts ``[B, N]`` to
    ``[B]`` by names in ``METRICS``; None: accuracy under every protocol."""

    name: str
    loss: Callable[[Tensor, Tensor], Tensor]
    outputs: Callable[[Tensor], Tensor]
    predict: Callable[[Tensor], Tensor]
    scores: Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]] | None = None

    def measured(self, predicted: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Each score, then of resampled inputs: ``[1 + B]``, as of ``core.bootstrap``."""
        counts = [torch.ones(1, len(labels)), *resampled_inputs(len(labels))]
        parts = [self.scores(predicted.double(), labels.double(), c.double()) for c in counts]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def kl_of_sigmoids(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(teacher || student) ``[...]`` of C independent yes-or-no answers, summed over them."""
    yes_and_no = (student_logits, teacher_logits), (-student_logits, -teacher_logits)
    return sum(
        teacher.sigmoid() * (F.logsigmoid(teacher) - F.logsigmoid(student))
        for student, teacher in yes_and_no
    ).sum(-1)


def squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference ``[...]`` over the outputs ``[..., C]``."""
    return (student - teacher).square().mean(-1)


def _f1(predicted: Tensor, labels: Tensor, counts: Tensor) -> dict[str, Tensor]:
    """F1 over all answers, and its mean over classes; 0 for a class that is nowhere."""
    overlap, total = counts @ (predicted * labels), counts @ (predicted + labels)
    micro, macro = overlap.sum(-1) / total.sum(-1), (overlap / total).nan_to_num().mean(-1)
    return {"micro_f1": 200 * micro.nan_to_num(), "macro_f1": 200 * macro}


def _agreement(predicted: Tensor, labels: Tensor, counts: Tensor) -> dict[str, Tensor]:
    """Pearson's r, its mean over several outputs (NaN for a constant), and the mean squared
    error."""
    weights = counts / counts.sum(-1, keepdim=True)
    a, b = (x - x.mean(0) for x in (predicted, labels))

    def covariance(x: Tensor, y: Tensor) -> Tensor:
        return weights @ (x * y) - (weights @ x) * (weights @ y)

    r = covariance(a, b) / (covariance(a, a) * covariance(b, b)).sqrt()
    return {"pearson": r.mean(-1), "mse": weights @ squared_error(predicted, labels)}


KINDS = {
    kind.name: kind
    for kind in (
        Kind(SINGLE, kl_to_teacher, lambda x: x.softmax(-1), lambda x: x.argmax(-1)),
        Kind(MULTI, kl_of_sigmoids, torch.sigmoid, lambda x: (x > 0).float(), _f1),
        Kind(REGRESSION, squared_error, lambda x: x, lambda x: x, _agreement),
    )
}


def kind_of(config: Any) -> Kind:
    """The kind of a head with this configuration; without a ``problem_type``, as in transformers,
    one output is a number and several are classes."""
    kind = KINDS.get(config.problem_type, KINDS[SINGLE])
    return KINDS[REGRESSION] if kind.name == SINGLE and config.num_labels == 1 else kind


def check_single(config: Any, task: str, what: str) -> None:
    """Raises ``ConfigError`` unless the head predicts one class of several, for which ``what``
    is made."""
    kind = kind_of(config)
    if kind.name != SINGLE:
        raise ConfigError(
            f"'{task}' is not a single-label classifier ({kind.name}, {config.num_labels} "
            f"outputs), which {what} is for."
        )


def score_table(scores: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Heading and rows, one per (task, model, protocol), of what ``evaluate`` gave: means, with the
    standard deviation over draws, and the 95 % interval of the first score."""
    metrics = [name for name in METRICS if name in scores]
    heading = ["task", "model", "protocol", *(METRICS[m] for m in metrics), "95 % interval", "n"]
    rows = []
    for (*cells, n), group in scores.groupby(["task", "method", "protocol", "n"], sort=False):
        known = [m for m in metrics if group[m].notna().any()]
        digits = 1 if "%" in METRICS[known[0]] else 3
        for values in (group[m] for m in metrics):
            text = f"{values.mean():.{digits}f}"
            if len(values) > 1:
                text += f" ± {values.std():.{digits}f} ({len(values)} draws)"
            cells.append(text if values.name in known else "")
        low, high = (f"{group[name].iloc[0]:.{digits}f}" for name in ("low", "high"))
        rows.append([*cells, f"{low} to {high}", str(n)])
    return heading, rows
