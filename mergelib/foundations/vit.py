"""Pre-train a small ViT without labels on the training images of all tasks: the f_b of real images.

Contrast of views (Chen et al., 2020, arXiv 2002.05709): two random crops of an image, in other
colours, must be nearer to each other than to the other images of the batch. Why this and not
reconstruction: features are read by their distances (KNN Eval, clusters) minutes after a random
start, and a contrast of views trains distances, whereas a masked autoencoder's features need long
training and then fine-tuning. Each view shows the transformer only a random part of its patches (as
Li et al., 2023, arXiv 2212.00794, do for CLIP): that halves the cost of a step, and is one more
difference between the views. No view is mirrored: digits and traffic signs have a left and a right.
Settings are judged by neighbours on validation data (`benchmarks.pretrained_vit`), never by a
merge.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ViTConfig

from ..core.errors import ConfigError
from ..core.store import Artifact
from ..encoders import ImageEncoder, encoder_state
from ..profiles import EncoderSettings
from ..training.config import TrainConfig
from ..training.loop import seeded, train
from .recipe import Foundation, Recipe

TEMPERATURE = 0.2
# The contrast is taken behind a projection that is thrown away afterwards, as in Chen et al.
PROJECTION = 128
KEEP = 0.5  # share of a view's patches that is encoded
CROP = 0.4  # smallest share of an image's area that a view shows
STRETCH = 0.25  # a crop's sides differ from a square's by a factor of up to e^0.25
JITTER = 0.4  # strength of the change of contrast, colour balance and brightness
GREY = 0.2  # share of views without colour


def vit_config(shape: EncoderSettings) -> Any:
    """A small ViT of a profile's shape: feed-forward 4 x width, no dropout, as ViT-B."""
    if shape.image_size % shape.patch_size or shape.width % shape.heads:
        raise ConfigError(
            f"encoder: patches of {shape.patch_size} must fill {shape.image_size} pixels, "
            f"and {shape.heads} heads must divide a width of {shape.width}."
        )
    return ViTConfig(
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.width,
        image_size=shape.image_size,
        patch_size=shape.patch_size,
    )


def random_views(pixels: Tensor) -> Tensor:
    """One random view per image: ``[B, 3, S, S] -> [B, 3, S, S]``, pixels around 0, from torch's
    own random state.

    Crop and resize, contrast and colour balance, brightness, and now and then no colour; drawn per
    image, computed per batch.
    """
    n, device = len(pixels), pixels.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, device=device)

    side, stretch = uniform(CROP, 1).sqrt(), uniform(-STRETCH, STRETCH).exp()
    place = torch.zeros(n, 2, 3, device=device)
    for axis, extent in enumerate((side * stretch, side / stretch)):
        extent = extent.clamp(max=1)
        place[:, axis, axis] = extent
        place[:, axis, 2] = uniform(-1, 1) * (1 - extent)
    grid = F.affine_grid(place, list(pixels.shape), align_corners=False)
    view = F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)
    view = view * (
        1 + JITTER * (uniform(-0.5, 0.5, 1, 1, 1) + uniform(-0.25, 0.25, 3, 1, 1))
    ) + JITTER * uniform(-1, 1, 1, 1, 1)
    return torch.where(uniform(0, 1, 1, 1, 1) < GREY, view.mean(1, keepdim=True), view)


def encode_part(vit: nn.Module, pixels: Tensor, keep: float) -> Tensor:
    """Features ``[B, d]`` of a random part of each image's patches: the mean over those kept, as
    ``ImageEncoder`` takes over all.

    ``vit`` is a ``ViTModel``. It offers no such argument (its masks replace patches and save
    nothing), so its parts are called one by one; with ``keep=1`` the result is the module's own.
    """
    tokens = vit.embeddings(pixels)
    patches = tokens.shape[1] - 1
    n_kept = max(1, round(patches * keep))
    rows = 1 + torch.rand(len(pixels), patches, device=pixels.device).argsort(1)[:, :n_kept]
    rows = torch.cat([torch.zeros_like(rows[:, :1]), rows], 1)  # the first token stays
    hidden = tokens.gather(1, rows[..., None].expand(-1, -1, tokens.shape[-1]))
    for layer in vit.layers:
        hidden = layer(hidden, None)
    return vit.layernorm(hidden)[:, 1:].mean(1)


def contrast(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Mean NT-Xent loss of B pairs, ``first`` and ``second`` ``[B, p]``: cross-entropy of picking
    each vector's partner among the 2B - 1 others by cosine / temperature. Source: Chen et al.,
    2020, eq. 1."""
    z = F.normalize(torch.cat([first, second]).float(), dim=-1)
    logits = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    partner = torch.arange(len(z), device=z.device).roll(len(first))
    return F.cross_entropy(logits, partner)


class ViewContrast(nn.Module):
    """``pixel_values [B, 3, S, S]`` to the contrast of two random views of each image.

    Views are drawn here, on the model's device and from torch's own random state, which a
    checkpoint holds: a resumed run draws what the whole one would have drawn.
    """

    def __init__(self, encoder: ImageEncoder):
        super().__init__()
        self.encoder = encoder.module()
        self.projection = nn.Sequential(
            nn.Linear(encoder.width, 2 * PROJECTION),
            nn.GELU(),
            nn.Linear(2 * PROJECTION, PROJECTION),
        )

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        views = torch.cat([random_views(pixel_values), random_views(pixel_values)])
        first, second = self.projection(encode_part(self.encoder.transformer, views, KEEP)).chunk(2)
        return {"loss": contrast(first, second, TEMPERATURE)}


def pretrain_vit(
    encoder: ImageEncoder,
    images: Tensor,
    config: TrainConfig,
    **options: Any,
) -> tuple[dict[str, Tensor], dict]:
    """theta_b (float32, CPU) and training info of ``encoder``, trained on uint8 ``images [N, 3, S,
    S]`` from a random start; ``options`` are those of ``train``.

    Raises ``DataError`` for images of another size.
    """
    rows = encoder.prepare(images)
    with seeded(config.seed):
        model = ViewContrast(encoder).train()
        info = train(
            model, range(len(rows)), lambda chosen: encoder.collate(rows[chosen]), config, **options
        )
    return encoder_state(model.encoder), info


class Vit(Recipe):
    """A ViT of the profile's own images."""

    step, desc, corpus = "pretrain_vit", "pre-train f_b (ViT)", ""

    @property
    def encoder(self) -> ImageEncoder:
        return ImageEncoder(vit_config(self.shape), "pre-trained here, without labels")

    def key(self) -> dict[str, Any]:
        # Images alone: a label that changes must not change f_b, and cannot.
        images = [t.train.inputs_digest for t in self.tasks]
        return {"images": images, "encoder": self.encoder.digest}

    def make(self, device: torch.device, scratch: Path) -> Artifact:
        images = torch.cat([t.train.inputs for t in self.tasks])
        state, info = pretrain_vit(self.encoder, images, **self.training(device, scratch))
        return Artifact(state, {"images": len(images), "training": info})

    def open(self, made: Artifact) -> Foundation:
        return Foundation(self.encoder, made.tensors)

    def load(self) -> Foundation:
        raise ConfigError(
            f"encoder.base '{self.shape.base}': a ViT is pre-trained here; "
            "leave the base model out."
        )
