"""What a head predicts."""

from __future__ import annotations

from typing import Any

from ..core.errors import ConfigError


def check_single(config: Any, task: str, what: str = "Eq. 8") -> None:
    """Raises ``ConfigError`` unless a head with this configuration predicts one class of several,
    whose distributions ``what`` compares."""
    if config.problem_type in ("regression", "multi_label_classification") or config.num_labels < 2:
        raise ConfigError(
            f"'{task}' is not a single-label classifier ({config.problem_type}, "
            f"{config.num_labels} outputs); {what} compares distributions over classes."
        )
