"""The pipeline that the authors released: how it reads texts, its checkpoints and CSV files, and what its preprocessing does to a score.

From the paper's code (github.com/fskong/FT-Classifier-for-Model-Merging), restated: word pieces without special tokens, cut to L - 3; a [SEP]
in the middle and one at the end; padded to L = 256 positions, all of which are attended to and averaged, padding included.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .encoders import TextEncoder, architecture
from .errors import ConfigError, DataError, StateDictError, UnsafeFileError, first_five, shortened
from .tasks.local import LABEL_NAMES, read_csv
from .types import Expert, Head, Inputs, Split, State, Task, digest, not_finite

if TYPE_CHECKING:
    from .study import Study

ENCODER, HEAD = "bert.", "classifier.0."
TEXT_COLUMN = 2
UNREAD = (
    "embeddings.position_ids",
    "embeddings.token_type_ids",
    "pooler.dense.weight",
    "pooler.dense.bias",
)
"""What a checkpoint may hold of BERT beyond this encoder: buffers of older transformers, and the pooler, which a mean leaves unused."""


# ---- preprocessing ------------------------------------------------------------------------------------------------------


class ReleasedPooling(nn.Module):
    """A transformer and the mean of its outputs: ``input_ids, attention_mask [B, L] -> [B, d]``. Without ``mask`` every position is
    attended to; with ``padding_in_mean`` every position is averaged."""

    def __init__(self, transformer: nn.Module, *, mask: bool, padding_in_mean: bool):
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
class ReleasedEncoder(TextEncoder):
    """An ``Encoder`` that reads texts as the released code does; ``mask`` and ``padding_in_mean`` undo its two oddities."""

    mask: bool = False
    padding_in_mean: bool = True

    @cached_property
    def digest(self) -> str:
        """Identity of architecture, tokenizer, length, preprocessing and pooling."""
        how = f"released, mask {self.mask}, padding in mean {self.padding_in_mean}"
        return digest(
            architecture(self.config),
            self.tokenizer.backend_tokenizer.to_str(),
            str(self.max_length),
            how,
        )

    def module(self, state: State | None = None) -> ReleasedPooling:
        """See ``TextEncoder.module``."""
        return ReleasedPooling(
            super().module(state).transformer, mask=self.mask, padding_in_mean=self.padding_in_mean
        ).eval()

    def prepare(self, inputs: Inputs) -> list[list[int]]:
        """[CLS] first half [SEP] second half [SEP] per input, not padded; of an odd number of pieces the second half has one more."""
        if not inputs:
            return []
        self.digest  # noqa: B018  taken now: a tokenizer remembers how it was last called, and is part of it
        # "[SEP]" in a text is text here: an input has the separators that it gets below. (The slow tokenizer of the time took one that stood
        # between blanks for a separator.)
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
        """``input_ids, attention_mask [B, L]``, padded to all positions, or to the longest where padding changes nothing."""
        batch = super().collate(ids)
        if self.mask and not self.padding_in_mean:
            return batch
        more = self.max_length - batch["input_ids"].shape[1]
        return {
            "input_ids": F.pad(batch["input_ids"], (0, more), value=self.tokenizer.pad_token_id),
            "attention_mask": F.pad(batch["attention_mask"], (0, more)),
        }


def released_encoder(encoder: TextEncoder) -> ReleasedEncoder:
    """The same architecture and tokenizer behind the released preprocessing. Raises ``ConfigError`` for a tokenizer that is not BERT's."""
    lacking = [
        t for t in ("cls_token", "sep_token", "pad_token") if getattr(encoder.tokenizer, t) is None
    ]
    if lacking:
        raise ConfigError(
            f"The tokenizer of '{encoder.source}' has no {', '.join(lacking)}; the released preprocessing needs a BERT."
        )
    return ReleasedEncoder(encoder.config, encoder.tokenizer, encoder.max_length, encoder.source)


# ---- files --------------------------------------------------------------------------------------------------------------


def released_checkpoint(task: str, folder: str) -> Path:
    """``checkpoints/<task>.pth`` in ``folder``, or, without a folder, from the hub. Raises ``DataError`` where it is missing, and what
    ``mergelib.hub.fetch_file`` raises."""
    return _file(f"checkpoints/{task}.pth", f"released_checkpoints/{task}", folder)


def _file(path: str, entry: str, folder: str) -> Path:
    if not folder:
        from .hub import fetch_file

        return fetch_file(entry)
    found = Path(folder).expanduser() / path
    if not found.is_file():
        there = sorted(p.name for p in found.parent.iterdir()) if found.parent.is_dir() else []
        raise DataError(f"No {found}. Beside it: {first_five(there) if there else 'nothing'}.")
    return found


def released_splits(task: str, folder: str) -> tuple[tuple[str, ...], Split, Split]:
    """Label names, train and test split of a released task, from ``folder`` or, without one, from the hub.

    Labels are 1-based, the text stands in column 2 (counted from 0), empty texts are kept. Classes are numbers here: the files number them by
    first appearance and carry no names. Raises ``DataError`` for a file that is missing or cannot be read and a label outside the task's
    range, and what ``mergelib.hub.fetch_file`` raises.
    """
    paths = {
        split: _file(f"{task}/{split}.csv", f"released_data/{task}/{split}", folder)
        for split in ("train", "test")
    }
    splits = {
        split: read_csv(path, text_column=TEXT_COLUMN, keep_empty=True)
        for split, path in paths.items()
    }
    n_classes = len(LABEL_NAMES[task])
    for split, rows in splits.items():
        if (highest := 1 + int(rows.labels.max())) > n_classes:
            raise DataError(
                f"{paths[split]}: label {highest}, but '{task}' has {n_classes} classes. Labels run from 1 to {n_classes}."
            )
    return tuple(f"class {c + 1}" for c in range(n_classes)), splits["train"], splits["test"]


def read_state(path: Path) -> dict[str, Tensor]:
    """A file of ``torch.save`` that holds a plain state dict. Nothing in it is run: raises ``UnsafeFileError`` for a pickle with more
    than tensors in it, ``StateDictError`` for a damaged file or another object."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise StateDictError(
            f"{path.name} is damaged ({shortened(str(error) or type(error).__name__)}); fetch it again."
        ) from error
    except Exception as error:  # the unpickler's own, which refuses whatever is no tensor
        raise UnsafeFileError(
            f"{path.name} holds more than plain tensors, or is no file of torch.save. It was not run. Fetch it again; if it "
            "stays so, it is not the published checkpoint."
        ) from error
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    ):
        raise StateDictError(
            f"{path.name} holds no state dict (names and tensors); the released checkpoints do."
        )
    return state


def load_checkpoint(path: Path, task: str, base: State, width: int, n_classes: int) -> Expert:
    """(theta_t, W_t ``[C, width]``, b_t ``[C]``) of a released checkpoint, float32: ``bert.`` and ``classifier.0.`` before the names.

    Every tensor of ``base`` must be there in its shape, and nothing else but ``UNREAD``. Raises what ``read_state`` raises, and
    ``StateDictError`` naming the first five keys that are missing, unexpected or of another shape, or not finite.
    """
    state = {n: t for n, t in read_state(path).items() if n.removeprefix(ENCODER) not in UNREAD}
    wanted = {f"{ENCODER}{n}": tuple(t.shape) for n, t in base.items()} | {
        f"{HEAD}weight": (n_classes, width),
        f"{HEAD}bias": (n_classes,),
    }
    shaped = [
        f"{n} {list(state[n].shape)} instead of {list(shape)}"
        for n, shape in wanted.items()
        if n in state and tuple(state[n].shape) != shape
    ]
    odd = {
        "missing": [n for n in wanted if n not in state],
        "unexpected": [n for n in state if n not in wanted],
        "other shapes": shaped,
        "no floating-point numbers": [
            n for n, t in state.items() if n in wanted and not t.is_floating_point()
        ],
        "NaN or inf": not_finite(state),
    }
    if any(odd.values()):
        said = "; ".join(f"{what}: {first_five(names)}" for what, names in odd.items() if names)
        raise StateDictError(
            f"{path.name} is no checkpoint of '{task}' ({n_classes} classes) for this base model. {said}. Names must begin "
            f"with {ENCODER} or {HEAD}; check the file, the task and the base model."
        )
    state = {n: t.float() for n, t in state.items()}
    return Expert(
        task,
        {n: state[f"{ENCODER}{n}"] for n in base},
        Head(state[f"{HEAD}weight"], state[f"{HEAD}bias"]),
        {"checkpoint": path.name},
    )


# ---- the order of labels ------------------------------------------------------------------------------------------------


def label_order(predicted: Tensor, labels: Tensor, n_classes: int) -> tuple[int, ...]:
    """For each class of a classifier the class of the data that it stands for, both 0-based: of all one-to-one assignments the one under
    which most of ``predicted [N]`` are right, the identity where none is better."""
    from scipy.optimize import linear_sum_assignment

    confusion = (
        torch.bincount(predicted.long() * n_classes + labels, minlength=n_classes**2)
        .view(n_classes, n_classes)
        .numpy()
    )
    _, order = linear_sum_assignment(confusion, maximize=True)
    best = confusion[range(n_classes), order].sum()
    return tuple(range(n_classes)) if confusion.trace() == best else tuple(int(c) for c in order)


def check_label_order(predicted: Tensor, labels: Tensor, task: Task, split: str) -> None:
    """Raises ``DataError``, printing the mapping, where classifier and data number their classes differently."""
    order = label_order(predicted, labels, task.n_classes)
    if order == tuple(range(task.n_classes)):
        return
    as_is, mapped = (
        100 * float((torch.tensor(o)[predicted.long()] == labels).float().mean())
        for o in (range(task.n_classes), order)
    )
    moved = ", ".join(
        f"{i + 1} -> {c + 1} ({task.label_names[c]})" for i, c in enumerate(order) if i != c
    )
    raise DataError(
        f"Task '{task.name}': the checkpoint numbers classes otherwise than the data. Of {len(labels)} {split} rows the fine-tuned model "
        f"gets {as_is:.1f} % right as numbered, {mapped:.1f} % with its class -> the data's class: {moved}. Take the released CSV files, or "
        f"renumber the labels of yours. (If {mapped:.1f} % is poor, too, then checkpoint, preprocessing or texts do not belong together.)"
    )


# ---- what the preprocessing does ----------------------------------------------------------------------------------------


def effects(study: Study, encoders: tuple[str, ...] = ("f_t", "task_arithmetic")) -> pd.DataFrame:
    """Average accuracy (percent) under Current Eval with and without attention mask, with and without padding in the mean; the first
    row is the released way. Weights, heads and lambdas are the study's in every row. Raises ``ConfigError`` for other preprocessing."""
    from .pretraining import Foundation
    from .tables import short_label

    if not isinstance(study.encoder, ReleasedEncoder):
        raise ConfigError(
            "The effects of the released preprocessing are those on models that use it: set encoder.preprocessing to released."
        )
    merging = study.profile.merging
    fixed = {
        m: {"lam": lam}
        for m in encoders
        if m in study.methods and (lam := study.lam(m)) is not None
    }
    merging = merging.model_copy(
        update={
            "options": {
                m: merging.options.get(m, {}) | fixed.get(m, {}) for m in {*merging.options, *fixed}
            }
        }
    )
    rows = []
    for mask in (False, True):
        for padding in (True, False):
            encoder = replace(study.encoder, mask=mask, padding_in_mean=padding)
            other = study.given(
                Foundation(encoder, study.base_state),
                study.experts(),
                tasks=study.tasks,
                profile=study.profile.model_copy(update={"merging": merging}),
            )
            mean = other.scores(encoders, ["current"]).groupby("method").accuracy.mean()
            rows.append(
                {
                    "attention mask": "yes" if mask else "no",
                    "padding in the mean": "yes" if padding else "no",
                    **{short_label(e): mean[e] for e in encoders},
                }
            )
    return pd.DataFrame(rows)
