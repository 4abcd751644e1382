"""How transformers would load a set of tensors, found by asking transformers itself, without
reading any.

``from_pretrained`` gets a constant of the right shape for each tensor, which takes no memory; where
the constants end up shows what goes where, whatever names, prefixes and ties a file has.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging as hf

from ..core.documents import own_yaml
from ..core.errors import StateDictError, shortened

FIRST = 1 << 20  # of the constants: above any value that an initialisation produces
HARMLESS = {*own_yaml(__file__, "harmless.yaml")}
"""Fields of a configuration that do not affect the function of a trained model; dropout rates and
scales of initial weights belong here, too."""
IN_TRAINING = re.compile(
    ".*(?<!token_)(dropout|pdrop|layerdrop|drop_rate|drop_path_rate)(_prob|_rate|_p)?"
    "|.*init(ializer)?_(range|factor|cutoff_factor|std|xavier_std|values?)"
)  # but ESM's token_dropout, which scales embeddings at all times
Layout = tuple[tuple[str, tuple[int, ...], bool], ...]
_PLANS: dict[tuple, Plan] = {}  # the latest


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars and reports: what matters in them is raised here."""
    verbosity, bars = hf.get_verbosity(), hf.is_progress_bar_enabled()
    hf.set_verbosity(logging.CRITICAL)
    hf.disable_progress_bar()
    try:
        yield
    finally:
        hf.set_verbosity(verbosity)
        if bars:
            hf.enable_progress_bar()


def first_line(error: BaseException) -> str:
    """An error's first line, for one of our messages."""
    return shortened((str(error).strip() or type(error).__name__).splitlines()[0], 200)


def function_of(config: Any) -> dict[str, Any]:
    """The parts of a configuration that may change what the model computes, as plain values."""
    core = getattr(config, "vision_config", config)
    return {
        key: value
        for key, value in json.loads(json.dumps(core.to_dict(), default=str)).items()
        if not key.startswith("_")
        and key not in HARMLESS
        and not IN_TRAINING.fullmatch(key)
        # transformers 4 wrote it into every BERT-like configuration, transformers 5 has no other
        and (key, value) != ("position_embedding_type", "absolute")
    }


@dataclass(frozen=True)
class Plan:
    """Which tensors of a file go where in a model.

    ``fills``: name in the file -> names in the model, for loaded tensors. ``missing``: the model's
    names that nothing fills; ``mismatched``: those with another shape in the file. ``unused``: the
    file's names that the model lacks; ``foreign``: those of them in a layer with weights.
    ``buffers``: the file's names of tensors that are not trained. ``tied``: pairs of names in the
    file that the model ties if their values are equal. ``converted``: whether tensors are split,
    joined or transposed on loading.
    """

    fills: dict[str, tuple[str, ...]]
    missing: tuple[str, ...]
    mismatched: tuple[str, ...]
    unused: tuple[str, ...]
    foreign: tuple[str, ...]
    buffers: frozenset[str]
    tied: tuple[tuple[str, str], ...]
    converted: bool

    def with_ties(self, equal: Callable[[str, str], bool]) -> Plan:
        """Treat names of one tied tensor as one: the others are left out if ``equal`` says so."""
        fills = dict(self.fills)
        for name, source in self.tied:
            if name in fills and source in fills and equal(name, source):
                fills[source] = (*fills[source], *fills.pop(name))
        return replace(self, fills={n: tuple(sorted(f)) for n, f in fills.items()})

    def gaps(self, prefix: str) -> list[str]:
        """The model's names that are missing although other parts of their module are present."""

        def module(place: str) -> str:
            return place.removeprefix(prefix).split(".")[0]

        filled = {place for places in self.fills.values() for place in places}
        if not any(place.startswith(prefix) for place in filled):
            prefix = ""  # CLIP's towers
        modules = {module(place) for place in filled}
        return [p for p in self.missing if p.startswith(prefix) and module(p) in modules]

    def names_in(self, other: Plan) -> dict[str, str]:
        """This file's name -> another file's name for the same tensors of the model.

        Raises ``StateDictError`` if the two files may store them in different arrangements.
        """
        by_places = {places: name for name, places in other.fills.items()}
        names = {
            name: name if other.fills.get(name) == places else by_places[places]
            for name, places in self.fills.items()
            if places in by_places
        }
        renamed = next((n for n, m in names.items() if n != m), None)
        if renamed and (self.converted or other.converted):
            raise StateDictError(
                f"{shortened(renamed)} and {shortened(names[renamed])} are the same weights, "
                "stored in different arrangements. Load both models with one version "
                "of transformers and save them again."
            )
        return names


def layout_of(state: Mapping[str, Tensor]) -> Layout:
    """The layout of tensors in memory."""
    return tuple((n, tuple(t.shape), t.is_floating_point()) for n, t in state.items())


def plan(model_class: Any, config: Any, layout: Layout) -> Plan:
    """How ``model_class`` would load tensors of this layout.

    Args:
        model_class: a model of transformers.
        config: its configuration.
        layout: name, shape and whether it holds floating-point numbers, of every tensor.

    Raises:
        StateDictError: the configuration does not make such a model, or makes one far larger than
            the tensors.
    """
    layers = getattr(config, "num_hidden_layers", 0)
    if isinstance(layers, int) and layers > len(layout):
        raise StateDictError(
            f"The configuration announces {layers} layers, "
            f"but there are only {len(layout)} tensors."
        )
    own = dict.fromkeys(("id2label", "label2id", "_name_or_path"))  # experts differ in these alone
    whole = json.dumps(config.to_dict() | own, default=str)
    key = model_class, whole, config.num_labels, layout
    if key not in _PLANS:
        if len(_PLANS) == 16:
            _PLANS.pop(next(iter(_PLANS)))
        _PLANS[key] = _plan(model_class, config, layout)
    return _PLANS[key]


def _plan(model_class: Any, config: Any, layout: Layout) -> Plan:
    constants = {
        name: torch.tensor(FIRST + i, dtype=torch.float32 if floats else torch.int64).expand(shape)
        for i, (name, shape, floats) in enumerate(layout)
    }
    try:
        with torch.random.fork_rng(devices=[]), quiet():
            with torch.device("meta"):
                size = sum(p.numel() for p in model_class(config).parameters())
            if size > (1 << 26) + 2 * sum(t.numel() for t in constants.values()):
                raise ValueError(f"it has {size} weights, far more than the files hold")
            model, info = model_class.from_pretrained(
                None,
                config=config,
                state_dict=constants,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                dtype=torch.float32,
            )
    except Exception as error:  # raised wherever transformers first uses an invalid value
        raise StateDictError(
            f"The configuration and the weights make no {model_class.__name__} "
            f"({first_line(error)})."
        ) from error
    fills: dict[str, list[str]] = {}
    for place, tensor in model.state_dict().items():
        for i in _constants(tensor, len(layout)):
            fills.setdefault(layout[i][0], []).append(place)
    source_of = {place: name for name, places in fills.items() for place in places}
    ties = model.get_expanded_tied_weights_keys(all_submodels=True).items()
    tied = {(source_of.get(a, ""), source_of.get(b, "")) for a, b in ties}
    unused = sorted(info["unexpected_keys"])
    weights = [n for n, _ in model.named_parameters() if n.endswith(".weight")]
    layers = tuple(n.removesuffix("weight") for n in weights)
    return Plan(
        {name: tuple(sorted(places)) for name, places in fills.items()},
        tuple(sorted(info["missing_keys"])),
        tuple(sorted(place for place, *_ in info["mismatched_keys"])),
        tuple(unused),
        tuple(n for n in unused if n.startswith(layers)),
        frozenset(source_of[n] for n, _ in model.named_buffers() if n in source_of),
        tuple(sorted((a, b) for a, b in tied if a and b and a != b)),
        any(hasattr(c, "operations") for c in getattr(model, "_weight_conversions", [])),
    )


def _constants(tensor: Tensor, n: int) -> list[int]:
    """Which of the n constants a loaded tensor consists of."""
    if not tensor.numel():
        return []
    flat = tensor[(0,) * tensor.ndim][None] if not any(tensor.stride()) else tensor.unique()
    return [int(v) - FIRST for v in flat.tolist() if v == v and FIRST <= v < FIRST + n]
