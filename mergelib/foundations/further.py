"""f_b of the variants ``masked_lm``: an existing BERT whose upper layers start anew, all of it then
trained by masked language modelling on unlabelled texts.

A sentence encoder was trained so that the mean over its tokens separates texts; masked language
modelling asks nothing of that mean. So the output of this base, like that of the paper's BERT, was
never trained for what a re-aligned classifier reads. Its lower layers come from the sentence
encoder and may keep some of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..core.errors import ConfigError
from ..core.store import Artifact
from ..core.types import Task, inputs_digest, state_digest
from ..profiles import Profile
from ..tasks import miniature_corpus
from . import bert
from .recipe import Foundation, Recipe, load_text

FURTHER_VERSION = 1


def begin(profile: Profile, tasks: Sequence[Task]) -> Foundation:
    """Where it starts: ``encoder.base``, else the shipped BERT of the recipe."""
    if profile.encoder.base:
        return load_text(profile, tasks)
    return bert.shipped_bert(profile.encoder.pretraining.start)


def corpus(profile: Profile, tasks: Sequence[Task]) -> list[str]:
    """Texts without labels: the miniature corpus, or the training texts of all tasks."""
    if profile.tasks.source == "miniature":
        return miniature_corpus(profile, tasks)
    return [text for task in tasks for text in task.train.inputs]


def kept(profile: Profile, base: Foundation) -> dict[str, torch.Tensor]:
    """The base's weights but those of its upper ``fresh_layers`` layers. Raises ``ConfigError`` for
    a base that is not a BERT or has fewer layers."""
    config, fresh = base.encoder.config, profile.encoder.pretraining.fresh_layers
    if config.model_type != "bert":
        raise ConfigError(
            "Masked language modelling (Table 3, Figure 4, Extension 3) goes on from a BERT; "
            f"{profile.encoder.base} is of type '{config.model_type}'. Give a BERT as --base."
        )
    if fresh > config.num_hidden_layers:
        raise ConfigError(
            f"encoder.pretraining.fresh_layers is {fresh}; the base has "
            f"{config.num_hidden_layers} layers. Set it to half of them."
        )
    upper = range(config.num_hidden_layers - fresh, config.num_hidden_layers)
    prefixes = tuple(f"encoder.layer.{i}." for i in upper)
    return {name: t for name, t in base.state.items() if not name.startswith(prefixes)}


def key(profile: Profile, tasks: Sequence[Task]) -> dict[str, Any]:
    """Everything that determines the weights beyond the training settings."""
    base, settings = begin(profile, tasks), profile.encoder.pretraining
    return {
        "encoder": base.encoder.digest,
        "base": state_digest(base.state),
        "corpus": inputs_digest(corpus(profile, tasks)),
        "mask_rate": settings.mask_rate,
        "fresh_layers": settings.fresh_layers,
    }


def make(profile: Profile, tasks: Sequence[Task], device: torch.device, scratch: Path) -> Artifact:
    base, settings = begin(profile, tasks), profile.encoder.pretraining
    state, info = bert.pretrain(
        base.encoder,
        corpus(profile, tasks),
        profile.train_config(settings, device),
        bert.MaskedLM,
        bert.masked_batch,
        settings.mask_rate,
        start=kept(profile, base),
        device=device,
        scratch=scratch,
        desc="masked LM",
    )
    return Artifact(state, {"training": info})


def reopen(profile: Profile, tasks: Sequence[Task], made: Artifact) -> Foundation:
    return Foundation(begin(profile, tasks).encoder, made.tensors)


RECIPE = Recipe("pretrain_further", FURTHER_VERSION, key, make, reopen, corpus="")
