"""What f_b is, and what a recipe is that makes one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..core.hub import locked_revision
from ..core.store import Artifact
from ..core.types import Head, State, Task
from ..encoders import Encoder, load_base
from ..profiles import Profile


@dataclass(frozen=True)
class Foundation:
    """f_b: its encoder, its weights theta_b, and, where a text tower gives them, a frozen head per
    task."""

    encoder: Encoder
    state: State
    heads: Mapping[str, Head] | None = None


def load_text(profile: Profile, tasks: Sequence[Task]) -> Foundation:
    """f_b of ``profile.encoder.base``, a hub id or folder; an id at the profile's commit, or at
    that which was fetched and verified. Raises what ``load_base`` raises."""
    settings = profile.encoder
    return Foundation(
        *load_base(
            settings.base, settings.max_length, settings.revision or locked_revision(settings.base)
        )
    )


@dataclass(frozen=True)
class Recipe:
    """One kind of f_b.

    ``key`` names what decides the weights beyond the training settings; ``make`` pre-trains
    (profile, tasks, device, scratch folder); ``open`` rebuilds the foundation from what ``make``
    stored; ``load`` reads published weights.
    """

    step: str  # of the store
    version: int
    key: Callable[[Profile, Sequence[Task]], dict[str, Any]]
    make: Callable[[Profile, Sequence[Task], torch.device, Path], Artifact]
    open: Callable[[Profile, Sequence[Task], Artifact], Foundation]
    load: Callable[[Profile, Sequence[Task]], Foundation] = load_text
    corpus: str = "miniature"  # the source of tasks whose corpus it is pre-trained on; "" for any
