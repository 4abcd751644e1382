"""The symmetries of the encoders here, from ``architectures.yaml``: BERT-like, T5's encoder, CLIP's
image tower, ViT.

Per block: the units of the feed-forward layer, the heads, and inside every head the rows of query
and key ("qk", together) and those of value (with the output's columns, "vo", on their own). For the
whole network: the residual stream. Tensor names are those of the encoder's state
(``encoder_state``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ..core.documents import own_yaml
from ..core.errors import check_name
from .spec import FIXED, Group, PermutationSpec

RESIDUAL = "residual"
DATA = own_yaml(__file__, "architectures.yaml")


def described(config: Any, what: str) -> dict[str, Any]:
    """What the file says of a configuration's architecture. Raises ``UnknownNameError``."""
    check_name(f"architecture with {what}", config.model_type, DATA)
    return DATA[config.model_type]


def of_block(texts: Iterable[str], config: Any, i: int) -> Iterator[str]:
    """Texts of the file about block ``i``; those of a gated layer come twice."""
    hidden = ("wi_0", "wi_1") if getattr(config, "is_gated_act", False) else ("wi",)
    for text in texts:
        yield from dict.fromkeys(text.format(i=i, wi=wi) for wi in hidden)


def spec_for(config: Any) -> PermutationSpec:
    """The spec of an encoder's configuration. Raises ``UnknownNameError`` if there is none."""
    layout = described(config, "known permutations")
    sizes = {key: getattr(config, name) for key, name in layout["sizes"].items()}
    width, n_heads = sizes["width"], sizes["heads"]
    rows = n_heads * sizes.get("head", width // n_heads)
    groups, lines = {RESIDUAL: Group(width)}, list(layout["tensors"]["first"])
    for i in range(sizes["blocks"]):
        heads = layout.get("heads", f"heads.{i}")
        groups.setdefault(heads, Group(n_heads))
        groups |= {f"qk.{i}": Group(rows, heads), f"vo.{i}": Group(rows, heads)}
        groups[f"ffn.{i}"] = Group(sizes["ffn"])
        lines += of_block(layout["tensors"]["block"], config, i)
    axes = {}
    for name, *listed in map(str.split, [*lines, *layout["tensors"]["last"]]):
        axes[name] = tuple(FIXED if group == "-" else group for group in listed)
    if not getattr(config, "qkv_bias", True):
        axes = {n: g for n, g in axes.items() if len(g) > 1 or not g[0].startswith(("qk", "vo"))}
    feature = layout.get("features", RESIDUAL)
    return PermutationSpec(config.model_type, groups, axes, sizes.get("features", width), feature)
