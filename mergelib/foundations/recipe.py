"""What f_b is, and what a recipe is that makes one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from ..core.hub import locked_revision
from ..core.store import Artifact
from ..core.types import Head, State, Task
from ..encoders import Encoder, load_base
from ..profiles import EncoderSettings, Profile


@dataclass(frozen=True)
class Foundation:
    """f_b: its encoder, its weights theta_b, and, where a text tower gives them, a frozen head per
    task."""

    encoder: Encoder
    state: State
    heads: Mapping[str, Head] | None = None


@dataclass(frozen=True)
class Recipe:
    """What makes the f_b of a profile and its tasks; one subclass per kind."""

    profile: Profile
    tasks: Sequence[Task]
    step: ClassVar[str]  # of the store
    desc: ClassVar[str]  # of the progress
    version: ClassVar[int] = 1
    corpus: ClassVar[str] = "miniature"  # the source of tasks that it is made for; "" for any

    @property
    def shape(self) -> EncoderSettings:
        return self.profile.encoder

    def key(self) -> dict[str, Any]:
        """What decides the weights beyond the training settings."""
        raise NotImplementedError

    def make(self, device: torch.device, scratch: Path) -> Artifact:
        """Pre-train f_b; ``scratch`` is a folder for checkpoints."""
        raise NotImplementedError

    def open(self, made: Artifact) -> Foundation:
        """f_b from what ``make`` stored."""
        raise NotImplementedError

    def load(self) -> Foundation:
        """f_b of ``encoder.base``, a hub id or folder; an id at the profile's commit, or at that
        which was fetched and verified. Raises what ``load_base`` raises."""
        base, length = self.shape.base, self.shape.max_length
        return Foundation(*load_base(base, length, self.shape.revision or locked_revision(base)))

    def training(self, device: torch.device, scratch: Path) -> dict[str, Any]:
        """``config``, ``device``, ``scratch`` and ``desc`` of ``training.loop.train``."""
        config = self.profile.train_config(self.shape.pretraining, device)
        return {"config": config, "device": device, "scratch": scratch, "desc": self.desc}
