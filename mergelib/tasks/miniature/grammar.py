"""The grammar of the miniature text world (``text.yaml``, which documents itself) and its
probabilities."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

from ...core.documents import own_yaml
from ..local import LABEL_NAMES

WORLD_VERSION = 1  # raised by any change to what is generated

# A phrase at place r of its list (from 0) is used in proportion to 1 / (r + COMMON_OFFSET).
COMMON_OFFSET = 0.5


@cache
def read() -> dict[str, dict[str, Any]]:
    """Return the grammar of every task, as written in ``text.yaml``."""
    return own_yaml(__file__, "text.yaml")


def split(listing: str) -> list[str]:
    """Return the items of a list of ``text.yaml``."""
    return [item.strip() for item in listing.split(",")]


def group_odds(task: str, label: int) -> dict[str, float]:
    """Return P(cue group | class) of one class."""
    grammar = read()[task]
    if spread := grammar.get("spread"):
        weights = [math.exp(-((level - label) ** 2) / (2 * spread**2)) for level in range(5)]
        # Rounded, so that the last bits of a platform's exp() cannot change the world.
        return {
            level: round(weight / sum(weights), 4)
            for level, weight in zip(grammar["cues"], weights, strict=True)
        }
    topic = LABEL_NAMES[task][label]
    own, related, general = grammar["odds"]
    neighbours = grammar["related"][topic]
    shares = {other: related / len(neighbours) for other in neighbours}
    return {topic: own, "general": general, **shares}


def phrase_odds(count: int) -> list[float]:
    """Return P(phrase | group) along a group's list: earlier phrases are more frequent."""
    weights = [1 / (rank + COMMON_OFFSET) for rank in range(count)]
    return [weight / sum(weights) for weight in weights]
