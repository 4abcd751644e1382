"""Which part of a classifier is the encoder, which part is the head.

``encoder``: the part that the base has, too; it is merged. ``head``: the last linear layer, (W_t,
b_t); its input is the feature. ``neck``: anything between them that fine-tuning created (RoBERTa's
dense layer, DistilBERT's pre_classifier, DeBERTa-v2's pooler; BERT's pooler only if the base has
none). It has no task vector, so it stays with its task.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from ..core.errors import ConfigError, StateDictError, first_five, shortened
from .parents import HEAD_NAMES, Parent
from .plan import function_of


@dataclass(frozen=True)
class Parts:
    """Names of tensors as the expert's file has them; ``head`` is the last linear layer's module,
    whose bias may be missing."""

    encoder: tuple[str, ...]
    neck: tuple[str, ...]
    head: str
    linear: tuple[str, ...]

    @property
    def own(self) -> tuple[str, ...]:
        """Neck and head, which stay with the task."""
        return (*self.neck, *self.linear)

    def describe(self) -> str:
        """A one-line summary."""
        roots = ", ".join(sorted({n.split(".")[0] for n in self.encoder}))
        neck = ", ".join(sorted({n.rpartition(".")[0] for n in self.neck}))
        return f"encoder: {len(self.encoder)} tensors under {roots}; head: {self.head}" + (
            f"; each task keeps its own {neck} (the base has none)" if neck else ""
        )


def _head(expert: Parent, outside: Sequence[str]) -> str:
    n_labels = expert.config.num_labels
    matrices = [
        n.removesuffix(".weight")
        for n in outside
        if n.endswith(".weight")
        and len(shape := expert.weights.shape(n)) == 2
        and shape[0] == n_labels
    ]
    if len(matrices) == 1:
        return matrices[0]
    head = next((h for h in HEAD_NAMES if h in matrices), "")
    if not head:
        raise ConfigError(
            f"'{expert.name}': which matrix of {n_labels} rows is its last linear layer? "
            f"Found {', '.join(matrices) or 'none'}; name it (head=, --head)."
        )
    return head


def find_parts(
    expert: Parent, base: Parent | None = None, *, encoder: Sequence[str] = (), head: str = ""
) -> Parts:
    """Encoder, neck and head of an expert.

    Args:
        expert: a classifier.
        base: the model that it was fine-tuned from; tensors that it lacks are not part of the
            encoder.
        encoder: patterns such as ``"bert.*"`` that override the architecture's default.
        head: a module's name that overrides it.

    Raises:
        ConfigError: the head cannot be determined, or an override matches nothing. StateDictError:
            the base lacks parts of the encoder, or the expert's files are incomplete.
    """
    prefix = expert.model_class.base_model_prefix + "."
    fills = expert.plan.fills
    in_model = {n for n, places in fills.items() if any(p.startswith(prefix) for p in places)}
    head = head or _head(expert, [n for n in fills if n not in in_model])
    if f"{head}.weight" not in fills:
        raise ConfigError(
            f"'{expert.name}' has no tensor {head}.weight; name another (head=, --head)."
        )
    linear = tuple(n for n in (f"{head}.weight", f"{head}.bias") if n in fills)
    rest = sorted(n for n in fills if n not in linear)
    if encoder:
        encoder = [encoder] if isinstance(encoder, str) else encoder
        inside = [n for n in rest if any(fnmatchcase(n, p) for p in encoder)]
    else:
        # CLIP's classifier stores its vision tower under another name than its prefix: then
        # everything but the head is the encoder.
        inside = [n for n in rest if n in in_model] or rest
    if not inside:
        raise ConfigError(
            f"'{expert.name}': no tensor matches encoder={list(encoder)}. "
            f"It has {first_five(rest)}."
        )
    if base is not None:
        begun = base.plan_as(expert.model_class, expert.config)
        known = expert.plan.names_in(begun)
        gaps = {*begun.gaps(prefix), *begun.mismatched}
        missing = [
            n
            for n in inside
            if n not in known
            and n not in expert.plan.buffers
            and (encoder or not known or gaps & {*fills[n]})
        ]
        if missing:
            raise StateDictError(
                f"The base '{base.name}' lacks {first_five(missing)} "
                f"of the expert '{expert.name}', or has other shapes. "
                "Give the model that the expert was fine-tuned from."
            )
        inside = [n for n in inside if n in known]
    return Parts(tuple(inside), tuple(n for n in rest if n not in set(inside)), head, linear)


def check_same_architecture(first: str, first_config: Any, other: str, other_config: Any) -> None:
    """Raises ``StateDictError`` naming what differs between two configurations, unless it is known
    not to affect what a trained model computes. A token id that only one of them states is no
    difference."""
    a, b = function_of(first_config), function_of(other_config)
    differ = sorted(
        key
        for key in a.keys() | b.keys()
        if a.get(key) != b.get(key)
        and not (key.endswith("_token_id") and None in (a.get(key), b.get(key)))
    )
    differ = ["model_type"] if "model_type" in differ else differ
    if differ:
        values = ", ".join(
            f"{key} {shortened(a.get(key))} and {shortened(b.get(key))}" for key in differ[:5]
        )
        remedy = "Only models fine-tuned from one base, with one configuration, can be merged."
        if differ == ["vocab_size"]:
            remedy = (
                "Rows of embeddings are matched by tokens where every model has its tokenizer and "
                "the base is given (base=, --base)."
            )
        raise StateDictError(
            f"'{first}' and '{other}' have different architectures: {values}. {remedy}"
        )


def differing_tokens(a: Any, b: Any) -> list[str]:
    """The tokens with another id in one of two tokenizers, or none there, sorted."""
    if a is b or not (hasattr(a, "get_vocab") and hasattr(b, "get_vocab")):
        return []
    return sorted({token for token, _ in a.get_vocab().items() ^ b.get_vocab().items()})


def vocabulary_differs(a: Any, b: Any) -> str:
    """How two tokenizers' ids differ, in words; empty if they agree."""
    tokens = differing_tokens(a, b)
    return f"{len(tokens)} tokens, for example {', '.join(map(repr, tokens[:3]))}" if tokens else ""


def only_added(a: Any, b: Any) -> bool:
    """Whether two tokenizers differ, and only in tokens that were added to one of them."""
    tokens = differing_tokens(a, b)
    return bool(tokens) and {*tokens} <= {*a.get_added_vocab(), *b.get_added_vocab()}


def check_rows(parent: Parent, tokenizer: Any) -> None:
    """Raises ``StateDictError`` if the tokenizer has ids beyond the parent's embedding."""
    rows = getattr(parent.config, "vocab_size", None)
    if not isinstance(rows, int) or not hasattr(tokenizer, "get_vocab"):
        return
    # Special tokens that a tokenizer class adds by itself are harmless until a text contains one.
    special = {*tokenizer.all_special_ids}
    highest = max((i for i in tokenizer.get_vocab().values() if i not in special), default=-1)
    if highest >= rows:
        raise StateDictError(
            f"The tokenizer of '{parent.name}' numbers tokens up to {highest}, its embedding "
            f"has {rows} rows. Remove the tokens that were added, or resize the embedding "
            "(model.resize_token_embeddings) and fine-tune again."
        )


def processors_of(parents: Sequence[Parent]) -> list[Any]:
    """Each parent's tokenizer or image processor, the same object if two behave alike.

    Raises ``StateDictError`` if two number tokens differently, or if one has ids beyond its model's
    embedding.
    """
    known: dict[str, Any] = {}
    processors = [known.setdefault(_meaning(p), p.processor) for p in parents]
    first = next((i for i, p in enumerate(processors) if p is not None), 0)
    for parent, processor in zip(parents, processors, strict=True):
        if differ := vocabulary_differs(processors[first], processor):
            raise StateDictError(
                f"The tokenizers of '{parents[first].name}' and '{parent.name}' differ in {differ}"
                ": the same row of the embedding stands for different words."
            )
        check_rows(parent, processor)
    return processors


def _meaning(parent: Parent) -> str:
    """What a processor does as text, equal for two that give the same ids or pixels."""
    processor, rules = parent.processor, None
    settings = getattr(processor, "init_kwargs", {})
    if hasattr(processor, "to_dict"):  # of images
        settings = processor.to_dict()
    elif getattr(processor, "backend_tokenizer", None) is not None:
        # State that every call resets is left out.
        rules = json.loads(processor.backend_tokenizer.to_str()) | {"truncation": 0, "padding": 0}
    elif hasattr(processor, "get_vocab"):  # a slow tokenizer is defined by its files
        files = [parent.folder / name for name in processor.vocab_files_names.values()]
        rules = [f.read_bytes() for f in files if f.is_file()]
    settings = {
        name: value
        for name, value in settings.items()
        if name not in ("name_or_path", "_commit_hash", "is_local") and not name.endswith("_file")
    }
    return json.dumps([type(processor).__name__, settings, rules], default=str)
