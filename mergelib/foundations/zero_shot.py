"""CLIP's two sides: a model opened from a folder, and W_t from prompted class names.

A CLIP feature is the L2-normalised image embedding; W_t holds the class names' text embeddings
times the logit scale, with zero bias (Radford et al., 2021), so that ``head.logits(features)`` are
CLIP's ``logits_per_image``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers import BatchEncoding

from ..core.documents import read_json
from ..core.errors import ConfigError, StateDictError
from ..core.types import Head, State
from ..encoders import ImageEncoder
from ..models.parents import Parent, open_parent, quiet

# Named as transformers calls it, so that a hub folder's tower and projection drop in unchanged.
TOWER, PROJECTION = "vision_model.", "visual_projection.weight"
BUFFERS = ("embeddings.position_ids",)  # written into files by old versions, computed since
PROMPT_BATCH = 256

Tokenize = Callable[[Sequence[str]], BatchEncoding]


def as_batches(tokenizer: Any, max_length: int) -> Tokenize:
    """Texts -> ``input_ids, attention_mask [B, L]``, padded to the longest and cut to
    ``max_length`` tokens."""
    return lambda texts: tokenizer(
        list(texts),
        padding=True,
        truncation=True,
        max_length=max_length,
        return_tensors="pt",
        return_token_type_ids=False,
    )


@torch.no_grad()
def zero_shot_head(
    clip: nn.Module, tokenize: Tokenize, class_names: Sequence[str], templates: Sequence[str]
) -> Head:
    """W_t ``[C, d]`` of C class names, zero bias: CLIP's zero-shot classifier.

    Per class every template is filled in and embedded, normalised, averaged and normalised again;
    all is multiplied by exp(logit_scale), which is 100 in OpenAI's models. Source: Radford et al.,
    2021, section 3.1.4, and their notebook on prompt ensembles.

    Args:
        clip: A ``CLIPModel``.
        tokenize: Texts -> ``input_ids, attention_mask [B, L]``, see ``as_batches``.
        class_names: C names, in the order of the labels.
        templates: Prompts with the place ``{}`` of a class name.

    Raises:
        ConfigError: No template, or one that does not have the place ``{}`` once.
    """
    for template in templates:
        if template.count("{}") != 1:
            raise ConfigError(
                f"The prompt template {template!r} needs the place {{}} of the class name once."
            )
    if not templates:
        raise ConfigError("At least one prompt template is needed, such as 'a photo of a {}.'.")
    texts = [template.replace("{}", name) for name in class_names for template in templates]
    clip.eval()
    embeddings = []
    for start in range(0, len(texts), PROMPT_BATCH):
        batch = tokenize(texts[start : start + PROMPT_BATCH]).to(clip.logit_scale.device)
        projected = clip.text_projection(clip.text_model(**batch).pooler_output)
        embeddings.append(F.normalize(projected.float(), dim=-1).cpu())
    embedded = torch.cat(embeddings).view(len(class_names), len(templates), -1)
    weight = F.normalize(embedded.mean(1), dim=-1) * float(clip.logit_scale.exp())
    return Head(weight, torch.zeros(len(class_names)))


# ---- real CLIP models ----


@dataclass(frozen=True)
class ClipParts:
    """A CLIP: its image encoder, the ``CLIPModel`` and how texts become batches."""

    encoder: ImageEncoder
    model: nn.Module
    tokenize: Tokenize

    @cached_property
    def state(self) -> State:
        """theta_b: a copy of tower and projection."""
        return {
            n: t.detach().clone()
            for n, t in self.model.state_dict().items()
            if n.startswith(TOWER) or n == PROJECTION
        }

    def head(self, class_names: Sequence[str], templates: Sequence[str]) -> Head:
        """W_t of these class names; see ``zero_shot_head``."""
        return zero_shot_head(self.model, self.tokenize, class_names, templates)


def load_clip(source: str | Parent) -> ClipParts:
    """A CLIP from a hub id (``id`` or ``id@revision``) or a folder in the hub's layout, or as a
    parent: config, tokenizer, weights, preprocessing.

    Weights are read as tensors only (safetensors, or a ``.bin`` under ``weights_only=True``); no
    code of a folder runs. Mean and std come from ``preprocessor_config.json``; resizing to S x S is
    left to whoever reads the images. Raises ``StateDictError`` listing every missing and unexpected
    name, ``ConfigError`` for a folder without a complete CLIP, ``OfflineError`` for an id that
    cannot be had.
    """
    parent = open_parent(source)
    config, weights = parent.config, parent.weights
    if config.model_type != "clip":
        raise ConfigError(
            f"'{parent.name}' is a {config.model_type}, no CLIP with a text side; "
            "its heads could not be made."
        )
    with quiet():
        model = transformers.CLIPModel(config).float().eval()
    tensors = {n: weights.tensor(n).float() for n in weights if not n.endswith(BUFFERS)}
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:  # it lists every name and shape that does not fit
        raise StateDictError(
            f"'{parent.name}': {error} Give the whole folder of a CLIP of the same architecture."
        ) from error
    if not hasattr(parent.processor, "pad_token"):
        raise ConfigError(f"'{parent.name}' has no tokenizer; copy the whole folder.")
    tokenize = as_batches(parent.processor, config.text_config.max_position_embeddings)
    return ClipParts(_image_encoder(parent), model.requires_grad_(False), tokenize)


def _image_encoder(parent: Parent) -> ImageEncoder:
    file = "preprocessor_config.json"
    if not (parent.folder / file).is_file():
        raise ConfigError(
            f"'{parent.name}' has no {file}, so mean and std of its pixels are "
            "unknown; copy the whole folder."
        )
    settings = read_json(parent.folder / file, f"'{parent.name}': {file}")
    try:
        mean, std = (tuple(map(float, settings[key])) for key in ("image_mean", "image_std"))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"'{parent.name}': {file} names no image_mean and image_std ({error!r})."
        ) from error
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ConfigError(
            f"'{parent.name}': image_mean and image_std need three values each, "
            f"std above 0; given {mean} and {std}."
        )
    config = copy.deepcopy(parent.config.vision_config)
    # The projection belongs to the whole model; a tower's own config may hold another number and
    # then means nothing.
    config.projection_dim = parent.config.projection_dim
    return ImageEncoder(config, parent.source, mean, std)
