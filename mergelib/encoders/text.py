"""Text encoders, and what all encoders share."""

from __future__ import annotations

import copy
import inspect
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
import transformers
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoTokenizer

from ..core.errors import ConfigError, OfflineError, StateDictError, shortened
from ..core.types import Inputs, State, digest, place


class Encoder(Protocol):
    """Everything about f_b, f_t and f_m that is not weights: an architecture and how inputs become
    batches.

    ``width`` is d; ``digest`` the identity of architecture and preprocessing, part of every key of
    the store.
    """

    config: Any
    source: str

    @property
    def width(self) -> int: ...

    @property
    def digest(self) -> str: ...

    def module(self, state: State | None = None) -> nn.Module:
        """A module in evaluation mode, ``forward(**batch) -> [B, d]``, with the weights ``state``
        if given; its submodule ``transformer`` is what gets merged. Raises ``StateDictError`` on
        other keys."""

    def prepare(self, inputs: Inputs) -> Sequence[Any]:
        """One row per input, for ``collate``."""

    def length(self, row: Any) -> int:
        """The length of a row; rows of similar length are batched together."""

    def collate(self, rows: Sequence[Any]) -> dict[str, Tensor]:
        """Rows as a batch for the module."""


def architecture(config: Any, *also: str) -> str:
    """A transformers config as canonical JSON, without fields that change no feature: versions,
    folders, dtypes, and those in ``also``."""
    without = {"transformers_version", "_name_or_path", "dtype", "torch_dtype", *also}
    fields = {name: value for name, value in config.to_dict().items() if name not in without}
    return json.dumps(fields, sort_keys=True, default=str)


class PooledEncoder(nn.Module):
    """A transformer followed by the mean over real tokens: ``input_ids, attention_mask [B, L] ->
    [B, d]``.

    Without ``mask`` every position is attended to; with ``padding_in_mean`` every position is
    averaged.
    """

    def __init__(self, transformer: nn.Module, *, mask: bool = True, padding_in_mean: bool = False):
        super().__init__()
        self.transformer, self.mask, self.padding_in_mean = transformer, mask, padding_in_mean

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.transformer(
            input_ids=input_ids, attention_mask=attention_mask if self.mask else None
        ).last_hidden_state
        if self.padding_in_mean:
            return hidden.mean(1)
        real = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * real).sum(1) / real.sum(1)


@dataclass(frozen=True)
class TextEncoder:
    """An ``Encoder`` of texts: an architecture with its tokenizer.

    ``max_length`` in tokens, special ones included; longer inputs are cut.
    """

    config: Any
    tokenizer: Any
    max_length: int
    source: str = ""
    reading = "mean-real-tokens"  # of the digest: how token ids become a feature

    @property
    def width(self) -> int:
        """d, the size of a feature."""
        return self.config.hidden_size

    @cached_property
    def digest(self) -> str:
        """Identity of architecture, tokenizer, length and pooling; part of the store's keys."""
        tokenizer = self.tokenizer.backend_tokenizer.to_str()
        return digest(architecture(self.config), tokenizer, str(self.max_length), self.reading)

    def module(self, state: State | None = None) -> PooledEncoder:
        """A module in evaluation mode; with ``state``, holding these weights.

        Raises ``StateDictError`` on other keys.
        """
        # A config may name the dtype that its file was saved in.
        options: dict[str, Any] = {"dtype": torch.float32}
        auto = encoder_class(self.config)
        built = auto._model_mapping[type(self.config)]
        if "add_pooling_layer" in inspect.signature(built).parameters:
            options["add_pooling_layer"] = False  # mean pooling leaves the pooler unused
        # T5's encoder modifies the config that it is built from, which is part of this encoder's
        # identity.
        model = PooledEncoder(auto.from_config(copy.deepcopy(self.config), **options)).eval()
        if state is not None:
            load_state(model, state)
        return model

    def prepare(self, inputs: Sequence[str], **options: Any) -> list[list[int]]:
        """Token ids per input, cut to ``max_length``, not padded; ``options`` are the
        tokenizer's."""
        if not inputs:
            return []
        # Computed now, because the tokenizer's state, which is part of the digest, changes with
        # every call.
        self.digest  # noqa: B018
        return self.tokenizer(
            list(inputs),
            truncation=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            **{"max_length": self.max_length, **options},
        )["input_ids"]

    def length(self, row: Sequence[int]) -> int:
        """In tokens."""
        return len(row)

    def collate(self, ids: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """``input_ids, attention_mask [B, L]``, padded to the longest."""
        rows = [torch.as_tensor(i, dtype=torch.long) for i in ids]
        pad_id = self.tokenizer.pad_token_id
        return {
            "input_ids": pad_sequence(rows, batch_first=True, padding_value=pad_id),
            "attention_mask": pad_sequence([torch.ones_like(r) for r in rows], batch_first=True),
        }


def encoder_class(config: Any) -> Any:
    """The auto class that builds a text encoder from ``config``; for an encoder-decoder such as T5,
    only its encoder."""
    encoders = transformers.AutoModelForTextEncoding
    return encoders if type(config) in encoders._model_mapping else transformers.AutoModel


def shared_names(module: nn.Module) -> dict[str, str]:
    """Tied tensors (sharing storage): later name -> first name, in the order of the state dict."""
    first: dict[tuple, str] = {}
    tensors = {name: t for name, t in module.state_dict().items() if t.numel()}
    owner = {name: first.setdefault(place(t), name) for name, t in tensors.items()}
    return {name: target for name, target in owner.items() if target != name}


def load_state(model: nn.Module, state: State) -> None:
    """Copy encoder weights into ``model.transformer``; every key must match, except that the first
    of tied tensors is enough. Raises ``StateDictError`` with the first five that do not."""
    missing, extra = model.transformer.load_state_dict(dict(state), strict=False)
    tied = shared_names(model.transformer)
    missing = [n for n in missing if tied.get(n) not in state]
    if missing or extra:
        raise StateDictError(
            f"These weights do not belong to this encoder: missing {list(missing)[:5]}, unexpected "
            f"{list(extra)[:5]}. Check the architecture and the key prefix."
        )


def encoder_state(model: nn.Module) -> dict[str, Tensor]:
    """The encoder's weights as a detached float32 state dict on the CPU; tied tensors appear only
    under their first name, so that each counts once when states are merged or stored."""
    tied = shared_names(model.transformer)
    state = model.transformer.state_dict()
    return {n: t.detach().cpu().clone() for n, t in state.items() if n not in tied}


def load_base(
    base: str, max_length: int, revision: str | None = None
) -> tuple[TextEncoder, dict[str, Tensor]]:
    """f_b from a hub id or a local folder: any BERT-like encoder, or T5's, with a tokenizer.

    Weights must be safetensors.

    Args:
        base: The hub id or the folder.
        max_length: Tokens, special ones included, after which texts are cut.
        revision: The hub id's commit, branch or tag; None is its main branch.

    Returns:
        The encoder and theta_b, float32.

    Raises:
        OfflineError: A hub id is neither cached nor reachable.
        ConfigError: A folder without a model.
        StateDictError: Weights of the encoder are missing (all are listed), or tied weights differ.
    """
    options = {"revision": revision, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(base, **options)
        tokenizer = AutoTokenizer.from_pretrained(base, use_fast=True, **options)
        model, loading = encoder_class(config).from_pretrained(
            base, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **options
        )
    # For a damaged folder: whatever transformers, tokenizers or safetensors trip over first.
    except Exception as error:
        if os.path.exists(base) or base.startswith((".", "/", "~")):
            raise ConfigError(
                f"'{base}' is not a folder with a model (config.json, tokenizer, "
                f"model.safetensors): {shortened(str(error), 300)}"
            ) from error
        if not isinstance(error, OSError | ValueError):
            raise
        raise OfflineError(
            f"'{base}' is not on this machine and could not be downloaded from the hub. Connect "
            f"once, or give --base a local folder. ({error})"
        ) from error
    encoder = TextEncoder(config, tokenizer, max_length, source=base)
    module, state = encoder.module(), model.state_dict()
    names, tied = encoder_state(module).keys(), shared_names(module.transformer)
    # Transformers initialises missing weights at random.
    lacking = (names - state.keys()) | (names & set(loading["missing_keys"]))
    if lacking:
        raise StateDictError(
            f"'{base}' lacks {', '.join(sorted(lacking))}; it is not a complete encoder."
        )
    # Transformers leaves them untied, with a warning.
    untied = [later for later, first in tied.items() if not torch.equal(state[later], state[first])]
    if untied:
        raise StateDictError(
            f"'{base}': {', '.join(untied)} differs from {tied[untied[0]]}, to which it should be "
            "tied; a merge would have to drop one. Save the model again with tied weights."
        )
    return encoder, {k: state[k].detach().clone() for k in names}
