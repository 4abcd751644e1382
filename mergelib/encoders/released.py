"""Texts as the authors' released code reads them, reimplemented
(github.com/fskong/FT-Classifier-for-Model-Merging).

Word pieces without special tokens are cut to L - 3; a [SEP] is put in the middle and one at the
end; all are padded to L = 256 positions, and all positions, padding included, are attended to and
averaged.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch.nn.functional as F
from torch import Tensor

from ..core.errors import ConfigError
from ..core.types import Inputs, State, digest
from .text import PooledEncoder, TextEncoder, architecture


@dataclass(frozen=True)
class ReleasedEncoder(TextEncoder):
    """An ``Encoder`` that reads texts as the released code does; ``mask`` and ``padding_in_mean``
    undo its two oddities."""

    mask: bool = False
    padding_in_mean: bool = True

    @cached_property
    def digest(self) -> str:
        """Identity of architecture, tokenizer, length, preprocessing and pooling."""
        text = f"released, mask {self.mask}, padding in mean {self.padding_in_mean}"
        return digest(
            architecture(self.config),
            self.tokenizer.backend_tokenizer.to_str(),
            str(self.max_length),
            text,
        )

    def module(self, state: State | None = None) -> PooledEncoder:
        """See ``TextEncoder.module``."""
        return PooledEncoder(
            super().module(state).transformer, mask=self.mask, padding_in_mean=self.padding_in_mean
        ).eval()

    def prepare(self, inputs: Inputs) -> list[list[int]]:
        """[CLS] first half [SEP] second half [SEP] per input, not padded; of an odd number of
        pieces the second half has one more."""
        if not inputs:
            return []
        # Computed now, because the tokenizer's state, which is part of the digest, changes with
        # every call.
        self.digest  # noqa: B018
        # "[SEP]" in a text is text here: an input has the separators that it gets below. (The slow
        # tokenizer that the authors used treated one between spaces as a separator.)
        pieces = self.tokenizer(
            list(inputs),
            add_special_tokens=False,
            split_special_tokens=True,
            truncation=True,
            max_length=self.max_length - 3,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
        first, stop = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        return [[first, *ids[: len(ids) // 2], stop, *ids[len(ids) // 2 :], stop] for ids in pieces]

    def collate(self, ids: list[list[int]]) -> dict[str, Tensor]:
        """``input_ids, attention_mask [B, L]``, padded to all positions, or to the longest input if
        padding changes nothing."""
        batch = super().collate(ids)
        if self.mask and not self.padding_in_mean:
            return batch
        padding = self.max_length - batch["input_ids"].shape[1]
        return {
            "input_ids": F.pad(batch["input_ids"], (0, padding), value=self.tokenizer.pad_token_id),
            "attention_mask": F.pad(batch["attention_mask"], (0, padding)),
        }


def released_encoder(encoder: TextEncoder) -> ReleasedEncoder:
    """The same architecture and tokenizer behind the released preprocessing.

    Raises ``ConfigError`` for a tokenizer that is not BERT's.
    """
    lacking = [
        t for t in ("cls_token", "sep_token", "pad_token") if getattr(encoder.tokenizer, t) is None
    ]
    if lacking:
        raise ConfigError(
            f"The tokenizer of '{encoder.source}' has no {', '.join(lacking)}; the released "
            "preprocessing needs a BERT."
        )
    return ReleasedEncoder(encoder.config, encoder.tokenizer, encoder.max_length, encoder.source)
