"""CLIP's two sides: a model opened from a folder, and W_t from prompted class names.

A CLIP feature is the L2-normalised image embedding; W_t holds the class names' text embeddings
times the logit scale, with zero bias (Radford et al., 2021), so that ``head.logits(features)`` are
CLIP's ``logits_per_image``.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import AutoTokenizer

from ..core.errors import ConfigError, StateDictError
from ..core.types import Head, State
from ..encoders import ImageEncoder
from ..models.parents import Parent, open_parent, quiet

# Named as transformers calls it, so that a hub folder's tower and projection drop in unchanged.
TOWER, PROJECTION = "vision_model.", "visual_projection.weight"
BUFFERS = ("embeddings.position_ids",)  # written into files by old versions, computed since
PROMPT_BATCH = 256

Tokenize = Callable[[Sequence[str]], Mapping[str, Tensor]]


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


@torch.inference_mode()
def text_embeddings(clip: nn.Module, tokenize: Tokenize, texts: Sequence[str]) -> Tensor:
    """L2-normalised text embeddings ``[N, d]`` (float32, CPU) of N texts; ``clip`` is a
    ``CLIPModel``."""
    clip.eval()
    device = clip.logit_scale.device
    embeddings = []
    for start in range(0, len(texts), PROMPT_BATCH):
        batch = {
            k: v.to(device) for k, v in tokenize(list(texts[start : start + PROMPT_BATCH])).items()
        }
        pooled = clip.text_model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).pooler_output
        embeddings.append(F.normalize(clip.text_projection(pooled).float(), dim=-1).cpu())
    return torch.cat(embeddings)


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
    embedded = text_embeddings(clip, tokenize, texts).view(len(class_names), len(templates), -1)
    weight = F.normalize(embedded.mean(1), dim=-1) * float(clip.logit_scale.detach().exp())
    return Head(weight, torch.zeros(len(class_names)))


# ---- real CLIP models ----


@dataclass(frozen=True)
class ClipParts:
    """A CLIP: encoder, theta_b (tower and projection) and what the heads need."""

    encoder: ImageEncoder
    state: dict[str, Tensor]
    model: nn.Module
    tokenize: Tokenize

    @classmethod
    def of(cls, model: nn.Module, encoder: ImageEncoder, tokenize: Tokenize) -> ClipParts:
        """The parts of a ``CLIPModel``; its weights are copied."""
        state = {
            n: t.detach().clone()
            for n, t in model.state_dict().items()
            if n.startswith(TOWER) or n == PROJECTION
        }
        return cls(encoder, state, model, tokenize)

    def head(self, class_names: Sequence[str], templates: Sequence[str]) -> Head:
        """W_t of these class names; see ``zero_shot_head``."""
        return zero_shot_head(self.model, self.tokenize, class_names, templates)


def check_names(found: Sequence[str], wanted: Sequence[str], what: str) -> None:
    """Raises ``StateDictError`` that lists every missing and unexpected name."""
    missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing or extra:
        raise StateDictError(
            f"{what}: missing {missing or 'none'}, unexpected {extra or 'none'}. "
            "Give the whole folder of a CLIP of the same architecture."
        )


def _read(parent: Parent, names: Mapping[str, str], wanted: State) -> dict[str, Tensor]:
    """Tensors of ``parent`` (``names``: wanted name -> name in the file) as float32, checked
    against ``wanted`` by name and shape."""
    check_names(list(names), list(wanted), f"'{parent.name}'")
    mismatched = [
        f"{n} {list(parent.weights.shape(raw))}, wanted {list(wanted[n].shape)}"
        for n, raw in names.items()
        if parent.weights.shape(raw) != tuple(wanted[n].shape)
    ]
    if mismatched:
        raise StateDictError(
            f"'{parent.name}' is of another size: {'; '.join(mismatched)}. "
            "Give a model of the same architecture."
        )
    return {n: parent.weights.tensor(raw).to(torch.float32).clone() for n, raw in names.items()}


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
    if parent.config.model_type != "clip":
        raise ConfigError(
            f"'{parent.name}' is a {parent.config.model_type}, no CLIP with a text side; "
            "its heads could not be made."
        )
    with quiet():
        model = transformers.CLIPModel(parent.config).float().eval()
    names = {n: n for n in parent.weights if not n.endswith(BUFFERS)}
    model.load_state_dict(_read(parent, names, model.state_dict()))
    encoder = _encoder(parent, parent.config.vision_config, parent.config.projection_dim)
    return ClipParts.of(model.requires_grad_(False), encoder, _tokenizer(parent))


def _encoder(parent: Parent, vision_config: Any, projection_dim: int) -> ImageEncoder:
    path = parent.folder / "preprocessor_config.json"
    if not path.is_file():
        raise ConfigError(
            f"'{parent.name}' has no preprocessor_config.json, so mean and std of its pixels are "
            "unknown; copy the whole folder."
        )
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        mean, std = (tuple(float(x) for x in settings[key]) for key in ("image_mean", "image_std"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"'{parent.name}': preprocessor_config.json names no image_mean "
            f"and image_std ({error!r})."
        ) from error
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ConfigError(
            f"'{parent.name}': image_mean and image_std need three values each, "
            f"std above 0; given {mean} and {std}."
        )
    config = copy.deepcopy(vision_config)
    # The projection belongs to the whole model; a tower's own config may hold another number and
    # then means nothing.
    config.projection_dim = projection_dim
    return ImageEncoder(config, parent.source, mean, std)


def _tokenizer(parent: Parent) -> Tokenize:
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(parent.folder), trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(
            f"'{parent.name}': its tokenizer cannot be loaded "
            f"({str(error).splitlines()[0][:200]}); copy the whole folder."
        ) from error
    return as_batches(tokenizer, parent.config.text_config.max_position_embeddings)
