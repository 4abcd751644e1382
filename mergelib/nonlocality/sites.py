"""Where an encoder's activations are corrected, from ``architectures.yaml``.

Names are those of the encoder's part ``transformer``, whose weights a state dict holds. The places
are those of the authors' ViT (Sharma et al., 2024, arXiv 2410.12766), and their counterparts in a
BERT, where a norm closes each half of a block, and in T5's encoder. Neither a block's first norm
(of the pre-norm architectures) nor the last norm, nor a head, is a site.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .architectures import described, of_block

INPUT, OUTPUT = "input", "output"


@dataclass(frozen=True)
class Fold:
    """How y' = scale * y + shift is folded into weights.

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

    ``block`` is 0 for the embeddings and counts from 1; ``kind`` names the place in the block.
    Without ``fold``, a correction cannot be folded into weights and is attached.
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


def _fold(how: str | dict[str, Any] | None, module: str) -> Fold | None:
    """The fold that the file names at a module."""
    weight, bias = f"{module}.weight", f"{module}.bias"
    if isinstance(how, dict):
        return Fold(tuple(map(tuple, how["scaled"])), tuple(how["shifted"]))
    if how == "after":  # a norm or a linear layer with a bias: both compute rows to be rescaled
        return Fold(((weight, 0), (bias, 0)), (bias, 0))
    if how == "before":  # a linear layer with a bias
        return Fold(((weight, 1),), (bias, 0), through=weight)
    return None


def sites_for(config: Any) -> tuple[Site, ...]:
    """The sites of an encoder, in the order of a forward pass.

    Raises ``UnknownNameError`` for an architecture without sites.
    """
    layout = described(config, "correction sites")
    first, n_blocks = layout["sites"]["first"], getattr(config, layout["sizes"]["blocks"])
    sites = [Site(first["module"], OUTPUT, "embeddings", 0, _fold(first["fold"], first["module"]))]
    for i in range(n_blocks):
        for text in of_block(layout["sites"]["block"], config, i):
            module, side, kind, fold = (*text.split(), None)[:4]
            sites.append(Site(module, side, kind, i + 1, _fold(fold, module)))
    return tuple(sites)
