"""What a merge gives: one encoder, a head per task, and the ordinary folders they are saved in."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ..errors import ConfigError, StateDictError, UnknownNameError
from ..types import Head, not_finite
from . import card
from .parents import Parent, Weights, open_parent, quiet
from .parts import Parts

RECORD = "mergelib.json"
LOADER = "load_merged.py"
SHARD = "5GB"


@dataclass(frozen=True)
class TaskHead:
    """What belongs to one task: its configuration (labels), the last linear layer, and the neck before it."""

    task: str
    config: Any
    tensors: dict[str, Tensor]
    module: str
    alignment: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, parent: Parent, parts: Parts, dtype: torch.dtype) -> TaskHead:
        """The head that an expert was fine-tuned with."""
        config = parent.config
        config.architectures, config.dtype = [parent.model_class.__name__], dtype
        tensors = {n: parent.weights.tensor(n).clone() for n in parts.own}
        bad = not_finite(tensors)
        if bad:
            raise StateDictError(f"'{parent.name}' holds NaN or inf in {bad[0]}. Its training diverged or its file is damaged; make it again.")
        return cls(parent.name, config, {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}, parts.head)

    @property
    def linear(self) -> Head:
        """(W_t ``[C, d]``, b_t ``[C]``), float32."""
        return Head(self.tensors[f"{self.module}.weight"].float(), self.tensors[f"{self.module}.bias"].float())

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.config.id2label[i] for i in range(self.config.num_labels))

    @property
    def is_image(self) -> bool:
        return self.config.architectures[0].endswith("ForImageClassification")

    def with_linear(self, head: Head, alignment: dict[str, Any]) -> TaskHead:
        """The same with another last layer ``W' [C, d]``, ``b' [C]``."""
        dtype = self.tensors[f"{self.module}.weight"].dtype
        changed = {f"{self.module}.weight": head.weight.detach().cpu().to(dtype).contiguous(),
                   f"{self.module}.bias": head.bias.detach().cpu().to(dtype).contiguous()}
        return replace(self, tensors=self.tensors | changed, alignment=alignment)


@dataclass(frozen=True)
class Classifier:
    """One task's classifier: encoder weights (names as in the file) and head; ``model`` is the transformers model."""

    encoder: Mapping[str, Tensor]
    head: TaskHead
    record: dict[str, Any] = field(default_factory=dict)
    processor: Any = None

    @cached_property
    def model(self) -> Any:
        """An ordinary transformers classifier in evaluation mode. Raises ``StateDictError`` when tensors are missing."""
        import transformers

        model_class = getattr(transformers, self.head.config.architectures[0])
        with quiet():
            model, info = model_class.from_pretrained(None, config=self.head.config, state_dict={**self.encoder, **self.head.tensors},
                                                      output_loading_info=True)
        odd = sorted(info["missing_keys"]) + sorted(str(k) for k in info["mismatched_keys"])
        if odd:
            raise StateDictError(f"'{self.head.task}': no weights for {odd[:5]}; encoder and head do not make a whole {model_class.__name__}.")
        return model.eval()

    def save_pretrained(self, folder: str | os.PathLike, *, scores: pd.DataFrame | None = None, overwrite: bool = False) -> Path:
        """An ordinary transformers folder: weights, config, tokenizer or processor, model card.

        ``scores`` (of ``evaluate``) go into the card. Raises ``ConfigError`` for a folder that holds something, unless
        ``overwrite``. An interrupted write leaves nothing under this name.
        """
        with whole_folder(folder, overwrite) as out:
            _save_weights({**self.encoder, **self.head.tensors}, out)
            _save_processor(self.processor, out)
            record = self.record | {"heads": {self.head.task: self.head.alignment}}
            (out / "README.md").write_text(card.single(record, self.head.task, self.head.labels, self.is_image, scores))
            (out / RECORD).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
            self.head.config.save_pretrained(out)  # last: without it nothing loads
        return Path(folder)

    @property
    def is_image(self) -> bool:
        return self.head.is_image


@dataclass(frozen=True)
class Merged:
    """One merged encoder with T heads. ``experts``: the parents where they are at hand (not after loading from a folder)."""

    encoder: dict[str, Tensor]
    heads: dict[str, TaskHead]
    record: dict[str, Any]
    processor: Any = None
    experts: dict[str, Parent] = field(default_factory=dict)

    def __repr__(self) -> str:
        n = sum(t.numel() for t in self.encoder.values())
        return (f"Merged({self.record.get('label')}, {n / 1e6:.1f} M shared parameters, heads: "
                f"{', '.join(t + (' (aligned)' if h.alignment else '') for t, h in self.heads.items())})")

    def classifier(self, task: str) -> Classifier:
        """The merged encoder with one task's head. Raises ``UnknownNameError``."""
        if task not in self.heads:
            raise UnknownNameError("task", task, self.heads)
        return Classifier(self.encoder, self.heads[task], self.record, self.processor)

    def with_heads(self, *classifiers: Classifier) -> Merged:
        """The same encoder with these classifiers' heads instead of, or beside, the old ones."""
        return replace(self, heads=self.heads | {c.head.task: c.head for c in classifiers})

    def save_pretrained(self, folder: str | os.PathLike, *, scores: pd.DataFrame | None = None, single: bool = False,
                        overwrite: bool = False) -> Path:
        """The encoder once, ``heads/<task>/`` for each task, ``load_merged.py`` that needs no mergelib, and a model card.

        ``single`` adds an ordinary folder per task under ``tasks/``. Raises ``ConfigError`` for a folder that holds something,
        unless ``overwrite``. An interrupted write leaves nothing under this name.
        """
        with whole_folder(folder, overwrite) as out:
            for task, head in self.heads.items():
                place = out / "heads" / task
                _save_tensors(head.tensors, place)
                head.config.save_pretrained(place)
                if single:
                    self.classifier(task).save_pretrained(out / "tasks" / task, scores=None if scores is None else scores[scores.task == task])
            _save_weights(self.encoder, out)
            _save_processor(self.processor, out)
            shutil.copyfile(Path(__file__).with_name("standalone.py"), out / LOADER)
            record = self.record | {"modules": {t: h.module for t, h in self.heads.items()},
                                    "heads": {t: h.alignment for t, h in self.heads.items()}}
            labels = {t: h.labels for t, h in self.heads.items()}
            first = next(iter(self.heads.values()))
            (out / "README.md").write_text(card.several(record, labels, first.is_image, scores))
            (out / RECORD).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
            _encoder_config(first.config).save_pretrained(out)
        return Path(folder)


def load_merged(folder: str | os.PathLike) -> Merged:
    """A folder written by ``Merged.save_pretrained``. Raises ``ConfigError`` for another folder."""
    if isinstance(folder, Merged):
        return folder
    path = Path(folder).expanduser()
    try:
        record = json.loads((path / RECORD).read_text())
        modules = record.pop("modules")
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"'{folder}' is no folder that `mergelib merge` wrote: {RECORD} with heads is missing or damaged.") from error
    parent = open_parent(path)
    heads = {}
    for task, module in modules.items():
        own = Parent(task, task, path / "heads" / task)
        tensors = Weights(own.folder, "head.safetensors")
        heads[task] = TaskHead(task, own.config, {n: tensors.tensor(n).clone() for n in tensors}, module, record["heads"].get(task, {}))
    record.pop("heads")
    return Merged({n: parent.weights.tensor(n).clone() for n in parent.weights}, heads, record, parent.processor())


def _encoder_config(config: Any) -> Any:
    """The shared encoder's configuration: an expert's, without its labels."""
    from transformers import AutoModel

    plain = type(config).from_dict({k: v for k, v in config.to_dict().items() if k not in ("id2label", "label2id", "num_labels", "problem_type")})
    plain.architectures = [AutoModel._model_mapping[type(config)].__name__]
    return plain


def _save_weights(state: Mapping[str, Tensor], out: Path) -> None:
    """``model.safetensors``, in shards with an index where it is larger than 5 GB."""
    from huggingface_hub import save_torch_state_dict

    save_torch_state_dict(dict(state), out, max_shard_size=SHARD)


def _save_tensors(tensors: Mapping[str, Tensor], folder: Path) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "head.safetensors", metadata={"format": "pt"})


def _save_processor(processor: Any, out: Path) -> None:
    if processor is not None:
        with quiet():
            processor.save_pretrained(out)


def free_folder(folder: str | os.PathLike, overwrite: bool = False) -> Path:
    """``folder`` as an absolute path. Raises ``ConfigError`` when it exists and holds something, unless ``overwrite``."""
    target = Path(folder).expanduser().absolute()
    if target.is_file() or (target.is_dir() and any(target.iterdir()) and not overwrite):
        raise ConfigError(f"'{folder}' exists and is not empty; choose another folder, or overwrite it (overwrite=True, --overwrite).")
    return target


@contextmanager
def whole_folder(folder: str | os.PathLike, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside ``folder`` that takes its name when the block ends, and vanishes when it fails.

    Raises ``ConfigError`` when ``folder`` exists and holds something, unless ``overwrite``.
    """
    target = free_folder(folder, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    try:
        out = scratch / "new"
        out.mkdir()
        yield out
        if target.exists():
            target.replace(scratch / "old")
        out.replace(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
