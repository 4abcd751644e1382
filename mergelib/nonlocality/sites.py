"""Where an encoder's activations are corrected, as plain data per architecture.

Names are those of the encoder's part ``transformer``, whose weights a state dict holds. The places
are those of the authors' ViT (Sharma et al., 2024, arXiv 2410.12766), and what corresponds to them
in a BERT, where a norm closes each half of a block, and in T5's encoder. Neither a block's first
norm (of the pre-norm architectures) nor the last norm, nor a head, is a site.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..core.errors import UnknownNameError

INPUT, OUTPUT = "input", "output"


@dataclass(frozen=True)
class Fold:
    """How y' = scale * y + shift goes into weights.

    Each ``(name, axis)`` of ``scaled`` is multiplied by the scale along that axis, and ``shifted``
    takes the shift. Before a linear layer the shift first goes ``through`` its matrix W
    ``[out, c]``, as W shift.
    """

    scaled: tuple[tuple[str, int], ...]
    shifted: tuple[str, int]
    through: str = ""


@dataclass(frozen=True)
class Site:
    """The activations ``[B, L, c]`` that enter or leave ``module``.

    ``block`` is 0 for the embeddings and counts from 1; ``kind`` says what it is there. Without
    ``fold`` a correction cannot become part of weights and is attached.
    """

    module: str
    side: str
    kind: str
    block: int
    fold: Fold | None = None

    @property
    def name(self) -> str:
        """Unique within an encoder, and the name of its tensors in a saved correction."""
        return f"{self.module}.{self.side}"


def _after(module: str) -> Fold:
    """Behind a norm or a linear layer with a bias: both compute rows that can be rescaled."""
    return Fold(((f"{module}.weight", 0), (f"{module}.bias", 0)), (f"{module}.bias", 0))


def _before(module: str) -> Fold:
    """Before a linear layer with a bias."""
    return Fold(((f"{module}.weight", 1),), (f"{module}.bias", 0), through=f"{module}.weight")


def bert_sites(config: Any) -> tuple[Site, ...]:
    """The sites of a BERT or RoBERTa, all of which fold: embeddings, and per block the attention's
    context before its output layer, the norm behind it, the hidden units before their activation,
    and the norm that closes the block."""
    sites = [Site("embeddings.LayerNorm", OUTPUT, "embeddings", 0, _after("embeddings.LayerNorm"))]
    for i in range(config.num_hidden_layers):
        at = f"encoder.layer.{i}"
        dense, norm = f"{at}.attention.output.dense", f"{at}.attention.output.LayerNorm"
        hidden, last = f"{at}.intermediate.dense", f"{at}.output.LayerNorm"
        sites += [
            Site(dense, INPUT, "attention", i + 1, _before(dense)),
            Site(norm, OUTPUT, "norm", i + 1, _after(norm)),
            Site(hidden, OUTPUT, "hidden", i + 1, _after(hidden)),
            Site(last, OUTPUT, "block", i + 1, _after(last)),
        ]
    return tuple(sites)


def t5_sites(config: Any) -> tuple[Site, ...]:
    """T5's encoder: token embeddings, and per block the attention's context, the second norm, the
    hidden units (of a gated layer both factors) and the residual stream behind the block. T5 has no
    biases, so only the embeddings fold."""
    embeddings = Fold((("shared.weight", 1),), ("shared.weight", 1))
    sites = [Site("encoder.embed_tokens", OUTPUT, "embeddings", 0, embeddings)]
    for i in range(config.num_layers):
        at = f"encoder.block.{i}.layer"
        hidden = ("wi_0", "wi_1") if config.is_gated_act else ("wi",)
        sites += [
            Site(f"{at}.0.SelfAttention.o", INPUT, "attention", i + 1),
            Site(f"{at}.1.layer_norm", OUTPUT, "norm", i + 1),
            *(Site(f"{at}.1.DenseReluDense.{h}", OUTPUT, "hidden", i + 1) for h in hidden),
            Site(f"{at}.1", OUTPUT, "block", i + 1),
        ]
    return tuple(sites)


def _vit_blocks(layers: str, n: int, attention: str, second_norm: str) -> list[Site]:
    sites = []
    for i in range(n):
        at = f"{layers}.{i}"
        out, norm, hidden = f"{at}.{attention}", f"{at}.{second_norm}", f"{at}.mlp.fc1"
        # The residual stream goes around a block's last layer: no weights see all of it.
        sites += [
            Site(out, INPUT, "attention", i + 1, _before(out)),
            Site(norm, OUTPUT, "norm", i + 1, _after(norm)),
            Site(hidden, OUTPUT, "hidden", i + 1, _after(hidden)),
            Site(at, OUTPUT, "block", i + 1),
        ]
    return sites


def clip_vision_sites(config: Any) -> tuple[Site, ...]:
    """CLIP's image tower: patch and position embeddings together, and per block the attention's
    context, the second norm, the hidden units, and the residual stream behind the block, which
    alone does not fold."""
    at = "vision_model.embeddings"
    positions = (f"{at}.position_embedding.weight", 1)
    embeddings = Fold(
        ((f"{at}.class_embedding", 0), (f"{at}.patch_embedding.weight", 0), positions), positions
    )
    return (
        Site(at, OUTPUT, "embeddings", 0, embeddings),
        *_vit_blocks(
            "vision_model.encoder.layers",
            config.num_hidden_layers,
            "self_attn.out_proj",
            "layer_norm2",
        ),
    )


def vit_sites(config: Any) -> tuple[Site, ...]:
    """A plain ViT; the places of ``clip_vision_sites``."""
    positions = ("embeddings.position_embeddings", 2)
    patches = "embeddings.patch_embeddings.projection"
    embeddings = Fold(
        (("embeddings.cls_token", 2), (f"{patches}.weight", 0), (f"{patches}.bias", 0), positions),
        positions,
    )
    return (
        Site("embeddings", OUTPUT, "embeddings", 0, embeddings),
        *_vit_blocks("layers", config.num_hidden_layers, "attention.o_proj", "layernorm_after"),
    )


ARCHITECTURES: dict[str, Callable[[Any], tuple[Site, ...]]] = {
    "bert": bert_sites,
    "roberta": bert_sites,
    "t5": t5_sites,
    "clip_vision_model": clip_vision_sites,
    "vit": vit_sites,
}
"""By the ``model_type`` of a transformers config."""


def sites_for(config: Any) -> tuple[Site, ...]:
    """The sites of an encoder, in the order in which a forward pass comes to them.

    Raises ``UnknownNameError`` for an architecture without sites.
    """
    if config.model_type not in ARCHITECTURES:
        raise UnknownNameError(
            "architecture with correction sites", config.model_type, ARCHITECTURES
        )
    return ARCHITECTURES[config.model_type](config)
