"""What a merge gives: one encoder, a head per task, and the ordinary folders they are saved in."""

from __future__ import annotations

import glob
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from .. import paths
from ..documents import MAX_NAME, check_folder_name, read_json, user_path
from ..errors import (
    ConfigError,
    StateDictError,
    StoreError,
    UnknownNameError,
    first_five,
    shortened,
)
from ..types import Head, not_finite
from . import card
from .parents import CLASSIFIERS, Parent, Weights, class_name, first_line, open_parent, quiet
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
            raise StateDictError(
                f"'{parent.name}' holds NaN or inf in {bad[0]}. Its training diverged or its file is damaged; make it again."
            )
        return cls(
            parent.name,
            config,
            {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()},
            parts.head,
        )

    @property
    def linear(self) -> Head:
        """(W_t ``[C, d]``, b_t ``[C]``), float32."""
        return Head(
            self.tensors[f"{self.module}.weight"].float(),
            self.tensors[f"{self.module}.bias"].float(),
        )

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.config.id2label[i] for i in range(self.config.num_labels))

    @property
    def is_image(self) -> bool:
        return class_name(self.config).endswith("ForImageClassification")

    def with_linear(self, head: Head, alignment: dict[str, Any]) -> TaskHead:
        """The same with another last layer ``W' [C, d]``, ``b' [C]``."""
        dtype = self.tensors[f"{self.module}.weight"].dtype
        changed = {
            f"{self.module}.weight": head.weight.detach().cpu().to(dtype).contiguous(),
            f"{self.module}.bias": head.bias.detach().cpu().to(dtype).contiguous(),
        }
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

        named = class_name(self.head.config)
        model_class = getattr(transformers, named, None)
        if model_class is None or not named.endswith(CLASSIFIERS):
            raise ConfigError(
                f"'{self.head.task}': '{shortened(named)}' is no classifier of transformers."
            )
        try:
            with quiet():
                model, info = model_class.from_pretrained(
                    None,
                    config=self.head.config,
                    state_dict={**self.encoder, **self.head.tensors},
                    output_loading_info=True,
                )
        except (
            Exception
        ) as error:  # sizes that contradict each other fail wherever the model first notices
            raise StateDictError(
                f"'{self.head.task}': its configuration and its weights make no {model_class.__name__} ({first_line(error)})."
            ) from error
        odd = sorted(info["missing_keys"]) + sorted(str(k) for k in info["mismatched_keys"])
        if odd:
            raise StateDictError(
                f"'{self.head.task}': no weights for {odd[:5]}; encoder and head do not make a whole {model_class.__name__}."
            )
        return model.eval()

    def save_pretrained(
        self,
        folder: str | os.PathLike,
        *,
        scores: pd.DataFrame | None = None,
        overwrite: bool = False,
    ) -> Path:
        """An ordinary transformers folder: weights, config, tokenizer or processor, model card.

        ``scores`` (of ``evaluate``) go into the card. Raises ``ConfigError`` for a folder that holds something, unless
        ``overwrite``. An interrupted write leaves nothing under this name.
        """
        with whole_folder(folder, overwrite) as out:
            self._write(out, scores)
        return Path(folder)

    def _write(self, out: Path, scores: pd.DataFrame | None) -> None:
        _save_weights({**self.encoder, **self.head.tensors}, out)
        _save_processor(self.processor, out)
        record = self.record | {"heads": {self.head.task: self.head.alignment}}
        (out / "README.md").write_text(
            card.single(record, self.head.task, self.head.labels, self.is_image, scores)
        )
        (out / RECORD).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        self.head.config.save_pretrained(out)  # last: without it nothing loads

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
        return (
            f"Merged({self.record.get('label')}, {n / 1e6:.1f} M shared parameters, heads: "
            f"{', '.join(t + (' (aligned)' if h.alignment else '') for t, h in self.heads.items())})"
        )

    def classifier(self, task: str) -> Classifier:
        """The merged encoder with one task's head. Raises ``UnknownNameError``."""
        if task not in self.heads:
            raise UnknownNameError("task", task, self.heads)
        return Classifier(self.encoder, self.heads[task], self.record, self.processor)

    def with_heads(self, *classifiers: Classifier) -> Merged:
        """The same encoder with these classifiers' heads instead of, or beside, the old ones."""
        return replace(self, heads=self.heads | {c.head.task: c.head for c in classifiers})

    def save_pretrained(
        self,
        folder: str | os.PathLike,
        *,
        scores: pd.DataFrame | None = None,
        single: bool = False,
        overwrite: bool = False,
    ) -> Path:
        """The encoder once, ``heads/<task>/`` for each task, ``load_merged.py`` that needs no mergelib, and a model card.

        ``single`` adds an ordinary folder per task under ``tasks/``. Raises ``ConfigError`` for a folder that holds something,
        unless ``overwrite``, and for a task that cannot name a folder. An interrupted write leaves nothing under this name.
        """
        for task in self.heads:
            check_folder_name(task)
        with whole_folder(folder, overwrite) as out:
            for task, head in self.heads.items():
                place = out / "heads" / task
                _save_tensors(head.tensors, place)
                head.config.save_pretrained(place)
                if single:
                    own = out / "tasks" / task
                    own.mkdir(parents=True)
                    self.classifier(task)._write(
                        own, None if scores is None else scores[scores.task == task]
                    )
            _save_weights(self.encoder, out)
            _save_processor(self.processor, out)
            shutil.copyfile(Path(__file__).with_name("standalone.py"), out / LOADER)
            record = self.record | {
                "modules": {t: h.module for t, h in self.heads.items()},
                "heads": {t: h.alignment for t, h in self.heads.items()},
            }
            labels = {t: h.labels for t, h in self.heads.items()}
            first = next(iter(self.heads.values()))
            (out / "README.md").write_text(card.several(record, labels, first.is_image, scores))
            (out / RECORD).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
            _encoder_config(first.config).save_pretrained(out)
        return Path(folder)


class Record(BaseModel):
    """``mergelib.json`` of a folder with heads: what ``card`` and ``load_merged`` rely on."""

    model_config = ConfigDict(extra="allow")
    modules: dict[str, str] = Field(min_length=1)
    heads: dict[str, dict[str, str | int]]
    experts: dict[str, str] = {}
    base: str | None = None
    options: dict[str, Any] = {}
    method: str = ""

    @model_validator(mode="after")
    def _whole(self):
        for task, said in self.heads.items():
            if said and not (
                isinstance(said.get("n"), int)
                and isinstance(said.get("classes"), int)
                and said["classes"] > 0
                and {"protocol", "preset"} <= said.keys()
            ):
                raise ValueError(f"heads.{task}: what a re-alignment was made with is incomplete")
        return self


def load_merged(folder: str | os.PathLike) -> Merged:
    """A folder written by ``Merged.save_pretrained``. Raises ``ConfigError`` for another folder."""
    if isinstance(folder, Merged):
        return folder
    path = user_path(folder)
    try:
        record = Record.model_validate(read_json(path / RECORD, RECORD)).model_dump(
            exclude_unset=True
        )
        modules, alignments = record.pop("modules"), record.pop("heads")
    except (ConfigError, ValidationError) as error:
        raise ConfigError(
            f"'{folder}' is no folder that `mergelib merge` wrote: {RECORD} with heads is missing or damaged ({first_line(error)})."
        ) from error
    parent = open_parent(path)
    heads = {}
    for task, module in modules.items():
        own = Parent(task, task, path / "heads" / check_folder_name(task))
        tensors = Weights(own.folder, "head.safetensors")
        lacking = [n for n in (f"{module}.weight", f"{module}.bias") if n not in tensors]
        if lacking:
            raise StateDictError(
                f"'{folder}', heads/{task}: no {first_five(lacking)} in head.safetensors. Write the folder again with `mergelib merge`."
            )
        heads[task] = TaskHead(
            task,
            own.config,
            {n: tensors.tensor(n).clone() for n in tensors},
            module,
            alignments.get(task, {}),
        )
    return Merged(
        {n: parent.weights.tensor(n).clone() for n in parent.weights},
        heads,
        record,
        parent.processor(),
    )


def _encoder_config(config: Any) -> Any:
    """The shared encoder's configuration: an expert's, without its labels."""
    from transformers import AutoModel

    plain = type(config).from_dict(
        {
            k: v
            for k, v in config.to_dict().items()
            if k not in ("id2label", "label2id", "num_labels", "problem_type")
        }
    )
    plain.architectures = [AutoModel._model_mapping[type(config)].__name__]
    return plain


def _save_weights(state: Mapping[str, Tensor], out: Path) -> None:
    """``model.safetensors``, in shards with an index where it is larger than 5 GB."""
    from huggingface_hub import save_torch_state_dict

    save_torch_state_dict(dict(state), out, max_shard_size=SHARD)


def _save_tensors(tensors: Mapping[str, Tensor], folder: Path) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    save_file(
        {n: t.contiguous() for n, t in tensors.items()},
        folder / "head.safetensors",
        metadata={"format": "pt"},
    )


def _save_processor(processor: Any, out: Path) -> None:
    if processor is not None:
        with quiet():
            processor.save_pretrained(out)


def free_folder(folder: str | os.PathLike, overwrite: bool = False) -> Path:
    """``folder`` as an absolute path. Raises ``ConfigError`` when it exists and holds something, unless ``overwrite``."""
    target = user_path(folder).absolute()
    if len(target.name.encode()) > 2 * MAX_NAME:  # a temporary name is longer
        raise ConfigError(
            f"'{shortened(target.name)}' is too long a name for a folder; take a shorter one."
        )
    if target.is_file() or (target.is_dir() and any(target.iterdir()) and not overwrite):
        raise ConfigError(
            f"'{folder}' exists and is not empty; choose another folder, or overwrite it (overwrite=True, --overwrite)."
        )
    return target


@contextmanager
def whole_folder(folder: str | os.PathLike, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside ``folder`` that takes its name when the block ends, and vanishes when it fails.

    Raises ``ConfigError`` when ``folder`` exists and holds something, unless ``overwrite``, and ``StoreError`` where the disk refuses.
    """
    target = free_folder(folder, overwrite)
    paths.make_folder(target.parent)
    prefix = f".{target.name}.partial-"
    for left in target.parent.glob(glob.escape(prefix) + "*"):
        with suppress(FileNotFoundError), paths.held(left, wait=False) as nobodys:
            if nobodys:  # a killed process left it
                shutil.rmtree(left, ignore_errors=True)
    scratch = None
    try:
        scratch = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
        with paths.held(scratch):
            out = scratch / "new"
            out.mkdir()
            yield out
            if target.exists():
                target.replace(scratch / "old")
            out.replace(target)
    except (
        Exception
    ) as error:  # tokenizers and safetensors report a full disk by errors of their own
        if not paths.refused_by_disk(error):
            raise
        raise StoreError(
            f"Cannot write {target}: {error}. Free space, or choose a folder that you can write to."
        ) from error
    finally:
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)
