"""k unlabelled inputs per class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.errors import DataError
from ..protocols import uniform_order


def draw_inputs(inputs: Sequence[Any], n_classes: int, k: int, seed: int, task: str) -> list[Any]:
    """k per class on average of a task's inputs, without labels. Raises ``DataError`` for too
    few."""
    try:
        rows = uniform_order(len(inputs), k * n_classes, seed)
    except DataError as error:
        raise DataError(f"'{task}': {error}") from error
    return [inputs[i] for i in rows.tolist()]
