"""f_b of the variants ``masked_lm``: an existing BERT whose upper layers start anew, all of it then
trained by masked language modelling on unlabelled texts.

A sentence encoder was trained so that the mean over its tokens separates texts; masked language
modelling asks nothing of that mean. So the output of this base, like that of the paper's BERT, was
never trained for what a re-aligned classifier reads. Its lower layers come from the sentence
encoder and may keep some of it.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..core.errors import ConfigError
from ..core.store import Artifact
from ..core.types import inputs_digest, state_digest
from ..tasks import miniature_corpus
from .bert import MaskedLM, pretrain, shipped_bert
from .recipe import Foundation, Recipe


class Further(Recipe):
    """Masked language modelling that goes on from ``encoder.base``, or else from a shipped BERT."""

    step, desc, corpus = "pretrain_further", "masked LM", ""

    @cached_property
    def base(self) -> Foundation:
        """Where it starts: ``encoder.base``, else the shipped BERT of the recipe."""
        return self.load() if self.shape.base else shipped_bert(self.shape.pretraining.start)

    def texts(self) -> list[str]:
        """Texts without labels: the miniature corpus, or the training texts of all tasks."""
        if self.profile.tasks.source == "miniature":
            return miniature_corpus(self.profile, self.tasks)
        return [text for task in self.tasks for text in task.train.inputs]

    def kept(self, base: Foundation) -> dict[str, torch.Tensor]:
        """The base's weights but those of its upper ``fresh_layers`` layers. Raises ``ConfigError``
        for a base that is not a BERT or has fewer layers."""
        config, fresh = base.encoder.config, self.shape.pretraining.fresh_layers
        if config.model_type != "bert":
            raise ConfigError(
                "Masked language modelling (Table 3, Figure 4, Extension 3) goes on from a BERT; "
                f"{self.shape.base} is of type '{config.model_type}'. Give a BERT as --base."
            )
        if fresh > config.num_hidden_layers:
            raise ConfigError(
                f"encoder.pretraining.fresh_layers is {fresh}; the base has "
                f"{config.num_hidden_layers} layers. Set it to half of them."
            )
        upper = range(config.num_hidden_layers - fresh, config.num_hidden_layers)
        prefixes = tuple(f"encoder.layer.{i}." for i in upper)
        return {name: t for name, t in base.state.items() if not name.startswith(prefixes)}

    def key(self) -> dict[str, Any]:
        base, settings = self.base, self.shape.pretraining
        return {
            "encoder": base.encoder.digest,
            "base": state_digest(base.state),
            "corpus": inputs_digest(self.texts()),
            "mask_rate": settings.mask_rate,
            "fresh_layers": settings.fresh_layers,
        }

    def make(self, device: torch.device, scratch: Path) -> Artifact:
        base, rate = self.base, self.shape.pretraining.mask_rate
        state, info = pretrain(
            base.encoder,
            self.texts(),
            MaskedLM,
            rate,
            start=self.kept(base),
            **self.training(device, scratch),
        )
        return Artifact(state, {"training": info})

    def open(self, made: Artifact) -> Foundation:
        return Foundation(self.base.encoder, made.tensors)
