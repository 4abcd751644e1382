"""The result of a merge: one encoder, a head per task, and the folders they are saved in."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import transformers
from huggingface_hub import save_torch_state_dict
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from ..core.documents import check_folder_name, read_json, user_path
from ..core.errors import ConfigError, StateDictError, check_name, first_five, shortened
from ..core.spare import spare
from ..core.types import Head, not_finite
from ..merging import PER_TASK
from .card import write_card
from .folders import RECORD, whole_folder, write_record
from .parents import CLASSIFIERS, Parent, Weights, class_name, open_parent
from .parts import Parts
from .plan import first_line, quiet
from .push import Pushed

LOADER = "load_merged.py"


def cast(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors with their floating-point numbers in ``dtype``."""
    return {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}


def dtype_of(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """That of the first tensor of floating-point numbers."""
    return next((t.dtype for t in tensors.values() if t.is_floating_point()), torch.float32)


@dataclass(frozen=True)
class TaskHead:
    """What belongs to one task: its configuration (labels), last linear layer, and neck."""

    task: str
    config: Any
    tensors: dict[str, Tensor]
    module: str
    alignment: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, parent: Parent, parts: Parts, dtype: torch.dtype) -> TaskHead:
        """The head that an expert was fine-tuned with."""
        config = copy.deepcopy(parent.config)
        config.architectures, config.dtype = [parent.model_class.__name__], dtype
        if getattr(config, "pad_token_id", None) is None:  # such as of an adapter on GPT-2
            config.pad_token_id = getattr(parent.processor, "pad_token_id", None)
        tensors = {n: parent.weights.tensor(n).clone() for n in parts.own}
        if bad := not_finite(tensors):
            raise StateDictError(
                f"'{parent.name}' holds NaN or inf in {bad[0]}. Its training diverged or its file "
                "is damaged; create it again."
            )
        return cls(parent.name, config, cast(tensors, dtype), parts.head)

    def __repr__(self) -> str:
        return f"TaskHead('{self.task}', {len(self.labels)} classes: {first_five(self.labels)})"

    @property
    def has_bias(self) -> bool:
        return f"{self.module}.bias" in self.tensors

    @property
    def linear(self) -> Head:
        """(W_t ``[C, d]``, b_t ``[C]``), float32; a layer without a bias has b_t = 0."""
        weight = self.tensors[f"{self.module}.weight"].float()
        bias = self.tensors.get(f"{self.module}.bias", torch.zeros(len(weight)))
        return Head(weight, bias.float())

    @property
    def neck(self) -> dict[str, Tensor]:
        """Everything of the task below its last layer."""
        return {n: t for n, t in self.tensors.items() if not n.startswith(f"{self.module}.")}

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.config.id2label[i] for i in range(self.config.num_labels))

    @property
    def is_image(self) -> bool:
        return class_name(self.config).endswith("ForImageClassification")

    def with_linear(self, head: Head, alignment: dict[str, Any]) -> TaskHead:
        """The same head with another last layer ``W' [C, d]``, ``b' [C]``. Raises ``ConfigError``
        if the architecture has no bias to hold a b' other than 0."""
        tensors = {f"{self.module}.weight": head.weight, f"{self.module}.bias": head.bias}
        if not self.has_bias and tensors.pop(f"{self.module}.bias").any():
            raise ConfigError(
                f"'{self.task}': the last layer of a {class_name(self.config)} has no bias, so it "
                "cannot hold a head with one; fit one without (fit_bias=False)."
            )
        dtype = self.tensors[f"{self.module}.weight"].dtype
        tensors = {n: t.detach().cpu().to(dtype).contiguous() for n, t in tensors.items()}
        return replace(self, tensors=self.tensors | tensors, alignment=alignment)


@dataclass(frozen=True)
class Classifier(Pushed):
    """One task's classifier: encoder weights (names as in the file) and head.

    ``inputs`` are the folders that it was read from, which no output may replace.
    """

    encoder: Mapping[str, Tensor]
    head: TaskHead
    record: dict[str, Any] = field(default_factory=dict)
    processor: Any = None
    inputs: tuple[Path, ...] = ()

    def __repr__(self) -> str:
        n = sum(t.numel() for t in self.encoder.values())
        return f"Classifier({n / 1e6:.1f} M parameters in the encoder, {self.head})"

    @cached_property
    def model(self) -> Any:
        """An ordinary transformers classifier in evaluation mode, which may be trained further; its
        weights are its own.

        Raises ``StateDictError`` if tensors are missing or would not be loaded.
        """
        named = class_name(self.head.config)
        model_class = getattr(transformers, named, None)
        if model_class is None or not named.endswith(CLASSIFIERS):
            raise ConfigError(
                f"'{self.head.task}': '{shortened(named)}' is not a classifier of transformers."
            )
        try:
            with quiet():
                model, info = model_class.from_pretrained(
                    None,
                    config=self.head.config,
                    state_dict=spare({**self.encoder, **self.head.tensors}),
                    output_loading_info=True,
                )
        except Exception as error:  # raised wherever the model first notices contradictory sizes
            raise StateDictError(
                f"'{self.head.task}': its configuration and its weights make no "
                f"{model_class.__name__} ({first_line(error)})."
            ) from error
        faults = ("missing_keys", "unexpected_keys", "mismatched_keys")
        if gaps := sorted(str(key) for fault in faults for key in info[fault]):
            raise StateDictError(
                f"'{self.head.task}': no weights, or no place, for {first_five(gaps)}; encoder and "
                f"head do not make a complete {model_class.__name__}."
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

        Args:
            folder: a new or empty folder. An interrupted write leaves nothing under this name.
            scores: rows of ``evaluate`` for the card.
            overwrite: whether mergelib's own files may be replaced.

            Raises: ConfigError: the folder holds something else, or is or contains an input.
        """
        with whole_folder(folder, overwrite, self.inputs) as out:
            self._write(out, scores)
        return Path(folder)

    def _write(self, out: Path, scores: pd.DataFrame | None) -> None:
        save_torch_state_dict({**self.encoder, **self.head.tensors}, out)
        _save_processor(self.processor, out)
        task, labels = self.head.task, self.head.labels
        record = self.record | {"heads": {task: self.head.alignment}}
        write_card(out, record, {task: labels}, self.is_image, scores, task)
        write_record(out, record)
        self.head.config.save_pretrained(out)  # last: nothing loads without it

    @property
    def is_image(self) -> bool:
        return self.head.is_image

    @property
    def heads(self) -> dict[str, TaskHead]:
        """The one head, as of ``Merged``."""
        return {self.head.task: self.head}

    def reading_by(self, processor: Any) -> Classifier:
        """The same, which reads inputs by this tokenizer or image processor."""
        return self if processor is self.processor else replace(self, processor=processor)

    def classifier(self, task: str = "") -> Classifier:
        """The same, under another name if there is one."""
        if task in ("", self.head.task):
            return self
        return replace(self, head=replace(self.head, task=task))


@dataclass(frozen=True)
class Merged(Pushed):
    """One merged encoder with T heads.

    ``encoder`` is empty if the method gives one per task: then they are among the heads' tensors.
    ``processors`` has each task's tokenizer or image processor, the same object if tasks share it;
    ``experts`` holds the parents, unless the model was loaded from a folder, and ``inputs`` the
    folders that were read, which no output may replace.
    """

    encoder: dict[str, Tensor]
    heads: dict[str, TaskHead]
    record: dict[str, Any]
    processors: dict[str, Any] = field(default_factory=dict)
    experts: dict[str, Parent] = field(default_factory=dict)
    inputs: tuple[Path, ...] = ()

    def __repr__(self) -> str:
        n = sum(t.numel() for t in self.encoder.values())
        heads = ", ".join(t + " (aligned)" * bool(h.alignment) for t, h in self.heads.items())
        label = self.record.get("label")
        return f"Merged({label}, {n / 1e6:.1f} M shared parameters, heads: {heads})"

    @property
    def processor(self) -> Any:
        """The tokenizer or image processor that all tasks share, ``None`` if they differ."""
        first, *others = map(self.processors.get, self.heads)
        return first if all(other is first for other in others) else None

    def encoder_of(self, task: str) -> dict[str, Tensor]:
        """The encoder that ``task`` uses, the shared one or its own (with its neck)."""
        return self.encoder or self.classifier(task).head.neck

    def classifier(self, task: str = "") -> Classifier:
        """The merged encoder with one task's head. Raises ``UnknownNameError``, and ``ConfigError``
        for several heads and no ``task``."""
        if not task and len(self.heads) > 1:
            raise ConfigError(
                f"The model has several heads: give task=, one of {', '.join(self.heads)}."
            )
        task = task or next(iter(self.heads))
        check_name("task", task, self.heads)
        processor = self.processors.get(task)
        return Classifier(self.encoder, self.heads[task], self.record, processor, self.inputs)

    def with_heads(self, *classifiers: Classifier) -> Merged:
        """The same encoder with these classifiers' heads instead of, or in addition to, the old
        ones."""
        heads = [c.head for c in classifiers]
        if not self.encoder:
            heads = [replace(c.head, tensors={**c.encoder, **c.head.tensors}) for c in classifiers]
        return replace(
            self,
            heads=self.heads | {h.task: h for h in heads},
            processors=self.processors | {c.head.task: c.processor for c in classifiers},
        )

    def save_pretrained(
        self,
        folder: str | os.PathLike,
        *,
        scores: pd.DataFrame | None = None,
        single: bool = False,
        overwrite: bool = False,
    ) -> Path:
        """The encoder once, ``heads/<task>/`` for each task, a loader and a model card.

        Args:
            folder: a new or empty folder. An interrupted write leaves nothing under this name.
            scores: rows of ``evaluate`` for the card.
            single: also an ordinary folder per task under ``tasks/``.
            overwrite: whether what mergelib wrote may be replaced.

        Raises:
            ConfigError: the folder holds something else, or is or holds an input; a task's name
                cannot name a folder.
        """
        for task in self.heads:
            check_folder_name(task)
        shared = self.processor
        with whole_folder(folder, overwrite, self.inputs) as out:
            for task, head in self.heads.items():
                place = out / "heads" / task
                place.mkdir(parents=True)
                tensors = {n: t.contiguous() for n, t in head.tensors.items()}
                save_file(tensors, place / "head.safetensors", metadata={"format": "pt"})
                if shared is None:
                    _save_processor(self.processors.get(task), place)
                head.config.save_pretrained(place)
                if single:
                    alone = out / "tasks" / task
                    alone.mkdir(parents=True)
                    self.classifier(task)._write(
                        alone, None if scores is None else scores[scores.task == task]
                    )
            if self.encoder:
                save_torch_state_dict(dict(self.encoder), out)
            _save_processor(shared, out)
            shutil.copyfile(Path(__file__).with_name("standalone.py"), out / LOADER)
            record = self.record | {
                "modules": {t: h.module for t, h in self.heads.items()},
                "heads": {t: h.alignment for t, h in self.heads.items()},
            }
            labels = {t: h.labels for t, h in self.heads.items()}
            write_card(out, record, labels, head.is_image, scores)
            write_record(out, record)
            first = next(iter(self.heads.values()))
            _encoder_config(first.config).save_pretrained(out)
        return Path(folder)


class Alignment(BaseModel):
    """What a head was re-aligned with."""

    model_config = ConfigDict(extra="allow", strict=True)
    protocol: str
    preset: str
    n: int
    classes: int = Field(gt=0)


class Record(BaseModel):
    """``mergelib.json`` of a folder with heads: checked for what ``card`` and ``load_merged`` rely
    on."""

    model_config = ConfigDict(extra="allow")
    modules: dict[str, str] = Field(min_length=1)
    heads: dict[str, Alignment | Annotated[dict, Field(max_length=0)]]
    experts: dict[str, str] = {}
    base: str | None = None
    options: dict[str, Any] = {}
    method: str = ""


def load_merged(folder: str | os.PathLike) -> Merged:
    """A folder written by ``Merged.save_pretrained``. Raises ``ConfigError`` for another folder."""
    path = user_path(folder)
    try:
        record = Record.model_validate(read_json(path / RECORD, RECORD)).model_dump(
            exclude_unset=True
        )
        modules, alignments = record.pop("modules"), record.pop("heads")
        record.pop("files", None)
    except (ConfigError, ValidationError) as error:
        raise ConfigError(
            f"'{folder}' was not written by `mergelib merge`: {RECORD} with heads is missing "
            f"or damaged ({first_line(error)})."
        ) from error
    parent = open_parent(path)
    heads, processors, shared = {}, {}, parent.processor
    for task, module in modules.items():
        place = Parent(task, task, path / "heads" / check_folder_name(task))
        tensors = Weights(place.folder, "head.safetensors").state()
        if f"{module}.weight" not in tensors:
            raise StateDictError(
                f"'{folder}', heads/{task}: no {shortened(module)}.weight in head.safetensors. "
                "Write the folder again with `mergelib merge`."
            )
        heads[task] = TaskHead(task, place.config, tensors, module, alignments.get(task, {}))
        processors[task] = place.processor or shared
    encoder = {} if record.get("gives") == PER_TASK else parent.weights.state()
    return Merged(encoder, heads, record, processors, inputs=(path,))


def _encoder_config(config: Any) -> Any:
    """The shared encoder's configuration: an expert's, without its labels."""
    plain = type(config).from_dict(
        {
            k: v
            for k, v in config.to_dict().items()
            if k not in ("id2label", "label2id", "num_labels", "problem_type")
        }
    )
    # Funnel's are two, the whole one first.
    kinds = transformers.AutoModel._model_mapping[type(config)]
    plain.architectures = [(kinds[0] if isinstance(kinds, tuple) else kinds).__name__]
    return plain


def _save_processor(processor: Any, out: Path) -> None:
    if processor is not None:
        with quiet():
            processor.save_pretrained(out)
