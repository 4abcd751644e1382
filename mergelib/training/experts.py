"""Fine-tune f_b on tasks: one expert per task (f_t, W_t), or one encoder with T heads (multi-task
learning)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import StateDictError
from ..core.types import Head, State, Task, not_finite
from ..encoders import Encoder, encoder_state
from .loop import TrainConfig, seeded, train

FINE_TUNE_VERSION = 1


class EncoderWithHeads(nn.Module):
    """An encoder and one linear head per task; the loss is the mean cross-entropy of the batch.
    With ``frozen``, the heads are not trained."""

    def __init__(
        self,
        encoder: nn.Module,
        width: int,
        n_classes: Sequence[int],
        frozen: Sequence[Head] | None = None,
    ):
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleList(nn.Linear(width, c) for c in n_classes)
        for layer, head in zip(self.heads, frozen, strict=True) if frozen else ():
            layer.load_state_dict({"weight": head.weight, "bias": head.bias})
            layer.requires_grad_(False)

    def forward(self, batch: dict[str, Tensor], labels: Tensor, task: Tensor) -> dict[str, Tensor]:
        features = self.encoder(**batch)
        losses = [
            F.cross_entropy(head(features[task == t]).float(), labels[task == t], reduction="sum")
            for t, head in enumerate(self.heads)
            if (task == t).any()
        ]
        return {"loss": torch.stack(losses).sum() / len(labels)}


def train_rows(encoder: Encoder, tasks: Sequence[Task]) -> list[tuple[Any, int, int]]:
    """Prepared training rows of one or several tasks; (row, label, task index) each."""
    return [
        (row, int(y), t)
        for t, task in enumerate(tasks)
        for row, y in zip(encoder.prepare(task.train.inputs), task.train.labels, strict=True)
    ]


def linear_probe(z: Tensor, labels: Tensor) -> Head:
    """The head of a logistic regression on standardised features.

    Args:
        z: Features ``[N, d]``.
        labels: ``[N]``, 0..C-1, each of them at least once.

    Returns:
        ``W [C, d]`` and ``b [C]`` for features as they are.
    """
    from sklearn.linear_model import LogisticRegression  # a second, which every notebook would pay
    from sklearn.preprocessing import StandardScaler

    scaler, rows = StandardScaler(), z.double().numpy()
    model = LogisticRegression(max_iter=2000)
    model.fit(scaler.fit_transform(rows), labels.numpy())
    weight = torch.from_numpy(model.coef_ / scaler.scale_)
    bias = torch.from_numpy(model.intercept_) - weight @ torch.from_numpy(scaler.mean_)
    if len(weight) == 1:  # of two classes only the difference is fitted
        weight, bias = (torch.cat([torch.zeros_like(t), t]) for t in (weight, bias))
    return Head(weight.float(), bias.float())


def fine_tune(
    encoder: Encoder,
    base: State,
    tasks: Sequence[Task],
    config: TrainConfig,
    *,
    device: torch.device,
    scratch: Path,
    desc: str,
    heads: Sequence[Head] | None = None,
) -> tuple[dict[str, Tensor], list[Head], dict]:
    """Train encoder and heads from ``base`` on the tasks' training splits.

    One task gives an expert (theta_t, W_t); several give multi-task learning, with rows of all
    tasks shuffled together.

    Args:
        encoder: Architecture and preprocessing.
        base: theta_b, where the encoder starts.
        tasks: The T tasks.
        config: Steps, batch and rate.
        device, scratch, desc: As of ``train``.
        heads: One per task, kept unchanged; by default new ones are trained.

    Returns:
        The encoder's state (float32, CPU), a head per task (``W_t [C, d]``, ``b_t [C]``) and
        training info.

    Raises:
        StateDictError: Training diverged.
    """
    # A private random state: training must not depend on what this process ran before.
    with seeded(config.seed):
        model = EncoderWithHeads(
            encoder.module(base), encoder.width, [t.n_classes for t in tasks], heads
        )
        model.train()

        def collate(rows: list) -> dict[str, Tensor]:
            inputs, labels, task = zip(*rows, strict=True)
            return {
                "batch": encoder.collate(inputs),
                "labels": torch.tensor(labels),
                "task": torch.tensor(task),
            }

        info = train(
            model,
            train_rows(encoder, tasks),
            collate,
            config,
            device=device,
            scratch=scratch,
            desc=desc,
            optional_parts=len(tasks) > 1,
        )
    state = encoder_state(model.encoder)
    names = not_finite(state)
    if names:
        raise StateDictError(
            f"Fine-tuning on {', '.join(t.name for t in tasks)} diverged: "
            f"NaN or inf in {names[:5]}. Lower fine_tuning.lr."
        )
    trained = [
        Head(h.weight.detach().cpu().clone(), h.bias.detach().cpu().clone()) for h in model.heads
    ]
    return state, trained, info
