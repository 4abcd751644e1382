"""Texts as the authors' released code reads them, reimplemented
(github.com/fskong/FT-Classifier-for-Model-Merging).

Word pieces without special tokens are cut to L - 3; a [SEP] is put in the middle and one at the
end; all are padded to L = 256 positions, and all positions, padding included, are attended to and
averaged.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ..core.errors import ConfigError
from ..core.types import Inputs, State
from .text import PooledEncoder, TextEncoder


@dataclass(frozen=True)
class ReleasedEncoder(TextEncoder):
    """An ``Encoder`` that reads texts as the released code does; ``mask`` and ``padding_in_mean``
    undo its two oddities."""

    mask: bool = False
    padding_in_mean: bool = True

    @property
    def reading(self) -> str:
        """See ``TextEncoder.reading``."""
        return f"released, mask {self.mask}, padding in mean {self.padding_in_mean}"

    def module(self, state: State | None = None) -> PooledEncoder:
        """See ``TextEncoder.module``."""
        return PooledEncoder(
            super().module(state).transformer, mask=self.mask, padding_in_mean=self.padding_in_mean
        ).eval()

    def prepare(self, inputs: Inputs) -> list[list[int]]:
        """[CLS] first half [SEP] second half [SEP] per input, not padded; of an odd number of
        pieces the second half has one more."""
        # "[SEP]" in a text is text here: an input has the separators that it gets below. (The slow
        # tokenizer that the authors used treated one between spaces as a separator.)
        options = {"add_special_tokens": False, "split_special_tokens": True}
        pieces = super().prepare(inputs, max_length=self.max_length - 3, **options)
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
