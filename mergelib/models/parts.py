"""Which part of a classifier is the encoder, which part is the head.

``encoder``: what the base has too; it is merged. ``head``: the last linear layer, (W_t, b_t); a feature is its input.
``neck``: whatever lies between them and was made anew in fine-tuning (RoBERTa's dense layer, DistilBERT's pre_classifier,
DeBERTa-v2's pooler; BERT's pooler only where the base has none). It has no task vector, so it stays with its task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from ..errors import ConfigError, StateDictError, first_five
from .parents import Parent

# Where several matrices could be the last one, the first of these that exists is.
HEAD_NAMES = ("classifier.out_proj", "classifier", "score", "head")
# What decides an encoder's function beyond the shapes of its weights.
SAME = (
    "vocab_size",
    "hidden_size",
    "dim",
    "num_hidden_layers",
    "n_layers",
    "num_attention_heads",
    "n_heads",
    "intermediate_size",
    "hidden_dim",
    "hidden_act",
    "activation",
    "max_position_embeddings",
    "type_vocab_size",
    "position_embedding_type",
    "relative_attention",
    "pos_att_type",
    "position_buckets",
    "image_size",
    "patch_size",
    "num_channels",
)


@dataclass(frozen=True)
class Parts:
    """Names of tensors as the expert's file has them; ``head`` is the last linear layer's module."""

    encoder: tuple[str, ...]
    neck: tuple[str, ...]
    head: str

    @property
    def own(self) -> tuple[str, ...]:
        """What stays with the task: neck and head."""
        return (*self.neck, f"{self.head}.weight", f"{self.head}.bias")

    def describe(self) -> str:
        """One line for people."""

        def modules(names: Sequence[str]) -> str:
            return ", ".join(sorted({n.rpartition(".")[0] for n in names}))

        neck = (
            f"; with each task stays its own {modules(self.neck)} (the base has none)"
            if self.neck
            else ""
        )
        return f"encoder: {len(self.encoder)} tensors under {', '.join(sorted({n.split('.')[0] for n in self.encoder}))}; head: {self.head}{neck}"


def _head(expert: Parent, override: str) -> str:
    weights, n_labels = expert.weights, expert.config.num_labels
    prefix = expert.model_class.base_model_prefix + "."
    found = [
        n.removesuffix(".weight")
        for n in weights
        if n.endswith(".weight")
        and not n.startswith(prefix)
        and (s := weights.shape(n))
        and len(s) == 2
        and s[0] == n_labels
    ]
    head = override or (
        found[0] if len(found) == 1 else next((h for h in HEAD_NAMES if h in found), "")
    )
    if not head:
        raise ConfigError(
            f"'{expert.name}': which matrix of {n_labels} rows is its last linear layer? Found {', '.join(found) or 'none'}; "
            "name it with head=."
        )
    for name in (f"{head}.weight", f"{head}.bias"):
        if name not in weights:
            raise ConfigError(
                f"'{expert.name}' has no tensor {name}; the head must be a linear layer with a bias. Name another with head=."
            )
    return head


def base_names(names: Sequence[str], base: Parent) -> dict[str, str]:
    """Expert's name -> base's name, for the tensors that the base has too: files saved without a head lack its prefix."""

    def short(name: str) -> str:
        return name.partition(".")[2]

    candidates = [
        {n: n for n in names if n in base.weights},
        {n: short(n) for n in names if short(n) in base.weights},
    ]
    return max(candidates, key=len)


def find_parts(
    expert: Parent, base: Parent | None = None, *, encoder: Sequence[str] = (), head: str = ""
) -> Parts:
    """Encoder, neck and head of an expert. ``encoder`` (patterns such as ``"bert.*"``) and ``head`` (a module's name) override.

    Raises ``ConfigError`` where the head cannot be told or an override matches nothing, ``StateDictError`` where the base
    lacks parts of the encoder.
    """
    head = _head(expert, head)
    rest = sorted(n for n in expert.weights if n not in (f"{head}.weight", f"{head}.bias"))
    prefix = expert.model_class.base_model_prefix + "."
    if encoder:
        inside = [n for n in rest if any(fnmatchcase(n, p) for p in encoder)]
    else:
        # CLIP's classifier carries its vision tower under a name that is not its prefix: then all but the head is encoder.
        inside = [n for n in rest if n.startswith(prefix)] or rest
    if not inside:
        raise ConfigError(
            f"'{expert.name}': no tensor matches encoder={list(encoder)}. It has {first_five(rest)}."
        )
    if base is not None:
        known = base_names(inside, base)
        if encoder or not known:
            missing = [n for n in inside if n not in known]
        else:
            there = {_submodule(n, prefix) for n in known}
            missing = [n for n in inside if n not in known and _submodule(n, prefix) in there]
        if missing:
            raise StateDictError(
                f"The base '{base.name}' lacks {first_five(missing)} of the expert '{expert.name}'. Give the model that "
                "the expert was fine-tuned from."
            )
        inside = [n for n in inside if n in known]
    return Parts(tuple(inside), tuple(n for n in rest if n not in set(inside)), head)


def _submodule(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).split(".")[0]


def _core(config: Any) -> Any:
    return getattr(config, "vision_config", config)


def check_same_architecture(first: str, first_config: Any, other: str, other_config: Any) -> None:
    """Raises ``StateDictError`` naming what differs between two models: kind of model, vocabulary, width, depth, ..."""
    a, b = _core(first_config), _core(other_config)
    rows = (
        [("model_type", a.model_type, b.model_type)]
        if a.model_type != b.model_type
        else [
            (key, getattr(a, key, None), getattr(b, key, None))
            for key in SAME
            if getattr(a, key, None) != getattr(b, key, None)
        ]
    )
    if rows:
        said = ", ".join(f"{key} {x} and {y}" for key, x, y in rows[:5])
        raise StateDictError(
            f"'{first}' and '{other}' are of different architecture: {said}. Only models fine-tuned from one base can be "
            "merged."
        )


def check_same_vocabulary(first: Parent, other: Parent) -> None:
    """Raises ``StateDictError`` when both have a tokenizer and these number the tokens differently."""
    files = [p.folder / "tokenizer.json" for p in (first, other)]
    if all(f.is_file() for f in files) and files[0].read_bytes() == files[1].read_bytes():
        return
    a, b = first.processor(), other.processor()
    if not (hasattr(a, "get_vocab") and hasattr(b, "get_vocab")):
        return
    x, y = a.get_vocab(), b.get_vocab()
    if x != y:
        odd = sorted(t for t in x.keys() | y.keys() if x.get(t) != y.get(t))
        raise StateDictError(
            f"The tokenizers of '{first.name}' and '{other.name}' differ in {len(odd)} tokens, for example "
            f"{', '.join(map(repr, odd[:3]))}: the same row of the embedding means different words."
        )
