"""Experts whose tokenizers got tokens of their own: one tokenizer and embedding for all."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..core.errors import first_five, warn
from .parents import Parent
from .parts import check_rows, only_added


def unified(experts: Sequence[Parent], base: Parent, processor: Any = None) -> list[Parent]:
    """The experts, then the base, with the base's tokens and those that experts added, if sizes of
    vocabularies or added tokens differ. ``processor`` stands for the tokenizers of all.

    A row that an expert lacks is the base's; one that the base lacks, too, is the mean of the
    experts that have it. Models whose tokens differ otherwise come back as they are: merging says
    what differs. A tokenizer gets the tokens that it lacks; if their numbers then are others, the
    base's takes its place, with a warning.

    Raises ``StateDictError`` if a tokenizer has ids beyond its model's embedding.
    """
    everyone = [*experts, base]
    tokenizers = [processor or p.processor for p in everyone]
    if not all(hasattr(t, "get_vocab") for t in tokenizers):
        return everyone
    sizes = {getattr(p.config, "vocab_size", None) for p in everyone}
    if len(sizes) == 1 and not any(only_added(t, tokenizers[-1]) for t in tokenizers):
        return everyone
    for parent, tokenizer in zip(everyone, tokenizers, strict=True):
        check_rows(parent, tokenizer)
    union, new = copy.deepcopy(tokenizers[-1]), []
    for tokenizer in tokenizers[:-1]:
        lacking = _extend(union, tokenizer)
        if not {*lacking} <= tokenizer.get_added_vocab().keys():
            return everyone
        new += lacking
    names = [_embedding(p, experts[0].model_class) for p in everyone]
    if None in names:
        return everyone
    ids, kept = union.get_vocab(), copy.deepcopy(tokenizers)
    for i, own in enumerate(kept):
        _extend(own, union)
        if own.get_vocab() != ids:
            kept[i] = union
    if replaced := [p.name for p, t in zip(experts, kept, strict=False) if t is union]:
        added = f" with {first_five(new)}, which experts added" if new else ""
        warn(
            f"Vocabularies differ: {first_five(replaced)} get the tokenizer of "
            f"'{base.name}'{added}."
        )
    tables = []  # of each model: rows in the union, and what stands there
    for parent, name, tokenizer in zip(everyone, names, tokenizers, strict=True):
        rows = parent.weights.tensor(name)
        index = {ids[t]: i for t, i in tokenizer.get_vocab().items() if i < len(rows) and t in ids}
        tables.append((torch.tensor([*index]), rows[torch.tensor([*index.values()])]))
    common = torch.zeros(max(ids.values()) + 1, tables[-1][1].shape[1])
    n_holders = torch.zeros(len(common), 1)
    for at, rows in tables[:-1]:
        common.index_add_(0, at, rows.float())
        n_holders[at] += 1
    common /= n_holders.clamp(min=1)
    at, rows = tables[-1]
    common[at] = rows.float()
    return [
        _written(p, name, common.index_copy(0, at, rows.float()), own, tokenizer)
        for p, name, own, tokenizer, (at, rows) in zip(
            everyone, names, tokenizers, kept, tables, strict=True
        )
    ]


def _extend(tokenizer: Any, lender: Any) -> list[str]:
    """Add, and return, the tokens that a tokenizer lacks and ``lender`` has, in the lender's order;
    special ones keep their role if it has none."""
    ids, added = lender.get_vocab(), lender.added_tokens_decoder
    lacking = sorted(ids.keys() - tokenizer.get_vocab().keys(), key=ids.__getitem__)
    tokenizer.add_tokens([added.get(ids[token], token) for token in lacking])
    for name, token in lender.special_tokens_map.items():
        if isinstance(token, str) and getattr(tokenizer, name, None) is None:
            setattr(tokenizer, name, token)
    return lacking


def _embedding(parent: Parent, model_class: Any) -> str | None:
    """The name of the embedding in the parent's files; None where its rows are not as announced."""
    with torch.device("meta"):
        model = model_class(parent.config)
    weight = model.get_input_embeddings().weight
    place = next(name for name, p in model.named_parameters() if p is weight)
    fills = parent.plan_as(model_class, parent.config).fills
    return next((name for name, places in fills.items() if place in places), None)


def _written(parent: Parent, name: str, rows: Tensor, own: Any, tokenizer: Any) -> Parent:
    """The parent with another embedding and tokenizer, in a temporary folder."""
    scratch = tempfile.TemporaryDirectory(prefix="mergelib-tokens-")
    state = parent.weights.state()
    old, rows = state[name], rows.to(state[name].dtype)
    tied = [n for n, t in state.items() if t.shape == old.shape and torch.equal(t, old)]
    state |= {n: rows.clone() for n in tied}
    save_file(state, Path(scratch.name) / "model.safetensors", {"format": "pt"})
    config, ids = copy.deepcopy(parent.config), tokenizer.get_vocab()
    config.vocab_size = len(rows)
    for key, value in config.to_dict().items():
        if key.endswith("_token_id") and isinstance(value, int) and value >= 0:
            setattr(config, key, ids.get(own.convert_ids_to_tokens(value), value))
    config.save_pretrained(scratch.name)
    tokenizer.save_pretrained(scratch.name)
    return Parent(parent.name, parent.source, Path(scratch.name), scratch)
