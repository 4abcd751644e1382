"""Image encoders: CLIP's image tower and a plain ViT, with the interface of the text encoders."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from ..core.errors import ConfigError, DataError
from ..core.types import State, digest
from .text import architecture, load_state

HALF = (0.5, 0.5, 0.5)


class ImageFeatures(nn.Module):
    """``pixel_values [B, 3, S, S] -> [B, d]``: CLIP's normalised image embeddings, or a ViT's
    pooled last layer."""

    def __init__(self, transformer: nn.Module, pooling: str):
        super().__init__()
        self.transformer = transformer
        self.pooling = pooling

    def forward(self, pixel_values: Tensor) -> Tensor:
        output = self.transformer(pixel_values=pixel_values)
        if self.pooling == "clip":
            return F.normalize(output.image_embeds, dim=-1)
        hidden = output.last_hidden_state
        return hidden[:, 0] if self.pooling == "cls" else hidden[:, 1:].mean(1)


@dataclass(frozen=True)
class ImageEncoder:
    """An architecture with its preprocessing: everything about f_b, f_t and f_m that is not
    weights.

    ``config`` is a ``CLIPVisionConfig`` (features: normalised image embeddings) or a ``ViTConfig``
    (features: the last layer's patch tokens averaged, or with ``pooling="cls"`` its first token).
    ``mean`` and ``std`` are per channel, for pixels in 0..1. Raises ``ConfigError`` for any other
    architecture or pooling.
    """

    config: Any
    source: str = ""
    mean: tuple[float, float, float] = HALF
    std: tuple[float, float, float] = HALF
    pooling: str = ""

    def __post_init__(self) -> None:
        known = {"clip_vision_model": ("clip",), "vit": ("mean", "cls")}.get(self.config.model_type)
        if known is None:
            raise ConfigError(
                f"'{self.source}' is of type {self.config.model_type}; images are encoded by "
                "CLIP's vision model or a ViT."
            )
        if not self.pooling:
            object.__setattr__(self, "pooling", known[0])
        if self.pooling not in known:
            raise ConfigError(
                f"pooling '{self.pooling}' does not fit {self.config.model_type}; "
                f"choose from {', '.join(known)}."
            )

    @property
    def width(self) -> int:
        """d, the size of a feature."""
        return self.config.projection_dim if self.pooling == "clip" else self.config.hidden_size

    @property
    def size(self) -> int:
        """S: images are S x S pixels."""
        return self.config.image_size

    @cached_property
    def digest(self) -> str:
        """Identity of architecture, preprocessing and pooling; part of every key of the store."""
        return digest(
            architecture(self.config, "architectures"),
            json.dumps([self.mean, self.std]),
            self.pooling,
        )

    def module(self, state: State | None = None) -> ImageFeatures:
        """A module in evaluation mode; with ``state``, holding these weights.

        Raises ``StateDictError`` on other keys.
        """
        config = copy.deepcopy(self.config)
        config._attn_implementation = "sdpa"
        transformer = (
            transformers.CLIPVisionModelWithProjection(config)
            if self.pooling == "clip"
            else transformers.ViTModel(config, add_pooling_layer=False)
        )
        # Submodules follow the dtype in a published configuration; features are float32 in any
        # case.
        model = ImageFeatures(transformer, self.pooling).float().eval()
        if state is not None:
            load_state(model, state)
        return model

    def prepare(self, inputs: Tensor) -> Tensor:
        """The images ``uint8 [N, 3, S, S]``, unchanged; they are normalised per batch, which takes
        a quarter of the memory.

        Raises ``DataError`` for another dtype or shape.
        """
        if (
            not isinstance(inputs, Tensor)
            or inputs.dtype != torch.uint8
            or tuple(inputs.shape[1:]) != (3, self.size, self.size)
        ):
            actual = (
                f"{inputs.dtype} {list(inputs.shape)}"
                if isinstance(inputs, Tensor)
                else type(inputs).__name__
            )
            raise DataError(
                f"'{self.source}' encodes images as torch.uint8 [N, 3, {self.size}, {self.size}], "
                f"not {actual}; resize and convert them first."
            )
        return inputs

    def length(self, row: Tensor) -> int:
        """1 for every image: all have the same number of patches, so nothing is sorted."""
        return 1

    def collate(self, rows: Sequence[Tensor]) -> dict[str, Tensor]:
        """``pixel_values [B, 3, S, S]`` float32, normalised per channel."""
        pixels = torch.stack(list(rows))
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return {"pixel_values": (pixels.float() / 255 - mean) / std}
