"""Checkpoints on disk: the files that transformers reads, tensor by tensor; unsafe ones are
refused."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..core.documents import read_json, user_path
from ..core.errors import (
    ConfigError,
    OfflineError,
    StateDictError,
    UnsafeFileError,
    first_five,
    shortened,
    warn,
)
from ..merging.states import FLOATS
from .plan import Layout, Plan, first_line, plan, quiet

# Mapped pages count as the process's memory until the file is closed, so it is reopened after this
# many bytes.
REOPEN_AFTER = 16 << 20
MAX_LABELS = 100_000  # transformers creates a name for each label that a configuration announces
ADAPTER = "adapter_config.json"
CLASSIFIERS = ("ForSequenceClassification", "ForImageClassification")
# If several matrices could be the last layer, the first of these that exists is taken.
HEAD_NAMES = ("classifier.out_proj", "classifier", "score", "head")
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # in the order of from_pretrained
INDEX = ".index.json"  # of shards, behind these names
OTHER_WEIGHTS = {".safetensors", ".bin", ".h5", ".msgpack", ".gguf", ".pt", ".pth", ".ckpt"}
SENTENCEPIECE_FILES = ("spm.model", "sentencepiece.bpe.model", "spiece.model")
PROCESSOR_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    *SENTENCEPIECE_FILES,
    "preprocessor_config.json",
)


def class_name(config: Any) -> str:
    """The first of a configuration's ``architectures``, which in a file may have any type."""
    named = config.architectures
    return str(named[0]) if isinstance(named, list) and named else "none"


def _weight_files(folder: Path) -> list[str]:
    """The weights, or indices of shards, that ``from_pretrained`` would look for, in its order."""
    names = [f"{name}{end}" for name in WEIGHT_FILES for end in ("", INDEX)]
    return [name for name in names if (folder / name).is_file()]


class Weights:
    """The tensors of one folder by their names in the file, none in memory until asked for.

    The files are those that ``from_pretrained`` reads: ``model.safetensors``, else the shards of
    its index, else ``pytorch_model.bin``, else its shards; ``file`` names another one. A pickle
    is read with ``weights_only=True``: one that would have to run code raises ``UnsafeFileError``
    and runs nothing. Raises ``ConfigError`` for a folder without weights or with a missing shard.
    """

    def __init__(self, folder: Path, file: str = ""):
        self.folder = folder
        self._open: dict[str, Any] = {}  # file -> what safetensors opened, or a pickle's tensors
        self._read: dict[str, int] = {}
        self._where: dict[str, str] = {}
        self.files = [file] if file else self._files()
        for name in self.files:
            if not (folder / name).is_file():
                raise ConfigError(
                    f"'{folder.name}' lacks {name}, which its index names; "
                    "copy the complete folder."
                )
            self._where |= dict.fromkeys(self._handle(name).keys(), name)

    def _files(self) -> list[str]:
        found = _weight_files(self.folder)
        if not found:
            names = sorted(p.name for p in self.folder.glob("*") if p.suffix in OTHER_WEIGHTS)
            raise ConfigError(
                f"'{self.folder.name}' has no {' or '.join(WEIGHT_FILES)}, nor an index of shards"
                + (f"; {first_five(names)} is not what transformers loads." if names else ".")
            )
        first = found[0]
        if first.endswith(INDEX):
            return self._shards(self.folder / first)
        if first + INDEX in found:
            warn(
                f"'{self.folder.name}' holds {first} and {first}{INDEX}; the first is read, "
                "as transformers does. Remove the outdated one."
            )
        return [first]

    def _shards(self, index: Path) -> list[str]:
        try:
            files = set(json.loads(index.read_text())["weight_map"].values())
            if not all(isinstance(f, str) for f in files):
                raise TypeError("a file's name is not a text")
        except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as e:
            raise ConfigError(f"'{self.folder.name}': {index.name} is damaged ({e}).") from e
        for file in files:
            if Path(file).name != file or file == ".." or "\\" in file:
                raise UnsafeFileError(
                    f"'{self.folder.name}': {index.name} points outside its folder, to "
                    f"'{shortened(file)}'. Fetch the model again."
                )
            user_path(self.folder / file)
        return sorted(files)

    def _handle(self, file: str) -> Any:
        if file not in self._open or self._read[file] > REOPEN_AFTER:
            read = _safetensors if file.endswith(".safetensors") else _pickled
            self._open[file], self._read[file] = read(self.folder / file), 0
        return self._open[file]

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def state(self) -> dict[str, Tensor]:
        """All tensors, in memory of their own."""
        return {name: self.tensor(name).clone() for name in self}

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._view(name).shape)

    @cached_property
    def dtypes(self) -> dict[str, torch.dtype]:
        """Raises ``StateDictError`` for a dtype that cannot be merged, such as an 8-bit float."""
        dtypes = {name: self._view(name).dtype for name in self}
        for name, dtype in dtypes.items():
            if dtype not in FLOATS and (dtype.is_floating_point or dtype.is_complex):
                raise self._refused(name, dtype)
        return dtypes

    def is_float(self, name: str) -> bool:
        return self.dtypes[name].is_floating_point

    @cached_property
    def layout(self) -> Layout:
        """For every tensor: name, shape, and whether it is floating-point."""
        return tuple((name, self.shape(name), self.is_float(name)) for name in self)

    def tensor(self, name: str, start: int | None = None, stop: int | None = None) -> Tensor:
        """A tensor, or its rows ``start:stop``, in its own dtype."""
        tensor, file = self._view(name), self._where[name]
        tensor = tensor if start is None else tensor[start:stop]
        if file.endswith(".safetensors"):
            self._read[file] += tensor.numel() * tensor.element_size()
        return tensor

    def _view(self, name: str) -> Tensor:
        """A tensor as a view of its file, of which nothing is read until its values are asked
        for."""
        opened = self._handle(self._where[name])
        try:
            return opened[name] if isinstance(opened, dict) else opened.get_tensor(name)
        except SafetensorError as error:
            raise self._refused(name, error) from error

    def _refused(self, name: str, stored: Any) -> StateDictError:
        return StateDictError(
            f"'{self.folder.name}': {shortened(name)} is stored as {stored}, which cannot be "
            "merged; convert the model to float32, bfloat16 or float16."
        )


def _safetensors(path: Path) -> Any:
    try:
        return safe_open(str(path), "pt")
    except (SafetensorError, OSError, MemoryError) as error:
        raise ConfigError(
            f"'{path.parent.name}': {shortened(path.name)} is damaged or not a safetensors file "
            f"({shortened(str(error), 200)})."
        ) from error


def _pickled(path: Path) -> dict[str, Tensor]:
    where = f"'{path.parent.name}': {path.name}"
    try:
        # Mapped, so that many checkpoints can be open; files of the oldest format cannot be.
        mapped = zipfile.is_zipfile(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises many kinds, the unpickler's own among them
        raise UnsafeFileError(
            f"{where} is a pickle that holds more than plain tensors, or is damaged. It was not "
            "run. Convert it to safetensors on a machine where you trust it."
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
    ):
        raise StateDictError(f"{where} is not a plain state dict.")
    for name, tensor in state.items():
        if not _is_plain(tensor):
            raise StateDictError(
                f"{where}: tensor {shortened(name)} is sparse, quantised, without data or larger "
                "than its data. Save the model again as safetensors."
            )
    return state


def _is_plain(t: Tensor) -> bool:
    """Whether this is a dense CPU tensor with all its data in memory: an expanded tensor can claim
    any size."""
    return (
        t.layout is torch.strided
        and t.device.type == "cpu"
        and not t.is_quantized
        and t.numel() * t.element_size() <= t.untyped_storage().nbytes()
    )


@dataclass
class Parent:
    """One model to merge, or the base.

    ``name`` is for people and folders, ``source`` for the card, ``folder`` to read; ``scratch``
    keeps the temporary folder of a model that was given loaded.
    """

    name: str
    source: str
    folder: Path
    scratch: Any = field(default=None, repr=False)

    @cached_property
    def config(self) -> Any:
        """Raises ``ConfigError`` for a folder whose configuration is missing or unknown to
        transformers itself, or whose weights are quantised."""
        content = read_json(
            self.folder / "config.json", f"'{self.name}' has no configuration: config.json"
        )
        announced = content.get("num_labels", 0)
        if not isinstance(announced, int) or not 0 <= announced <= MAX_LABELS:
            raise ConfigError(
                f"'{self.name}': config.json announces {shortened(announced)} labels; at most "
                f"{MAX_LABELS} are allowed."
            )
        if content.get("quantization_config"):
            raise ConfigError(
                f"'{self.name}' is quantised (config.json: quantization_config): quantised codes "
                "cannot be averaged. Give the model in float32, float16 or bfloat16 "
                "(transformers: model.dequantize().save_pretrained(FOLDER))."
            )
        if content.get("transformers_weights"):
            raise ConfigError(
                f"'{self.name}': config.json names a weights file of its own "
                "(transformers_weights). Rename that file to model.safetensors and remove the key."
            )
        try:
            with quiet():
                config = transformers.AutoConfig.from_pretrained(
                    str(self.folder), trust_remote_code=False
                )
                if not all(
                    isinstance(config.id2label.get(i), str | int | float)
                    for i in range(config.num_labels)
                ):
                    raise ValueError("id2label does not name the classes 0, 1, 2, ...")
                return config
        except Exception as error:  # fails wherever transformers first uses an invalid value
            raise ConfigError(
                f"'{self.name}' has no configuration that transformers can read without running "
                f"the model's own code ({first_line(error)})."
            ) from error

    @cached_property
    def weights(self) -> Weights:
        return Weights(self.folder)

    @cached_property
    def model_class(self) -> Any:
        """Its transformers class. Raises ``ConfigError`` unless it classifies texts or images."""
        named = class_name(self.config)
        if not named.endswith(CLASSIFIERS) or not hasattr(transformers, named):
            raise ConfigError(
                f"'{self.name}' is a {shortened(named)}, not a ...ForSequenceClassification or "
                "...ForImageClassification. Experts are fine-tuned classifiers; a model without "
                "a head can only serve as the base."
            )
        return getattr(transformers, named)

    @cached_property
    def plan(self) -> Plan:
        """Which tensors of the files ``from_pretrained`` loads, and where they go.

        Raises ``StateDictError`` naming the files where they make no whole model: tensors that
        are missing (transformers would fill them with random numbers), of other shapes, whole
        numbers where the model has weights, or parts of a quantised or adapted layer.
        """
        loaded = self.plan_as(self.model_class, self.config)
        files, kind = first_five(self.weights.files), self.model_class.__name__
        for verb, places in (
            ("lacks", loaded.missing),
            ("has other shapes for", loaded.mismatched),
        ):
            if places:
                raise StateDictError(
                    f"'{self.name}': {files} {verb} {first_five(places)} of a {kind} with its "
                    "configuration. Copy the complete folder, or save the model again."
                )
        if loaded.foreign:
            raise StateDictError(
                f"'{self.name}': {files} holds {first_five(loaded.foreign)}, which layers of a "
                f"{kind} do not use: is this a quantised model, or an adapter that is not merged? "
                "Save the plain model (dequantize(), merge_and_unload())."
            )
        if loaded.unused:
            warn(
                f"'{self.name}': {files} holds {first_five(loaded.unused)}, which a {kind} does "
                "not load; it is ignored, as in transformers."
            )
        return loaded

    def plan_as(self, model_class: Any, config: Any) -> Plan:
        """The same for another class and configuration: how a base is loaded at the start of
        fine-tuning."""
        loaded = plan(model_class, config, self.weights.layout)
        codes = [
            n for n in loaded.fills if n not in loaded.buffers and not self.weights.is_float(n)
        ]
        if codes:
            raise StateDictError(
                f"'{self.name}': {first_five(codes)} of {first_five(self.weights.files)} is "
                "stored as integers, but the model has weights there: a quantised model. Save it "
                "in float32, float16 or bfloat16."
            )
        return loaded.with_ties(lambda a, b: torch.equal(*map(self.weights.tensor, (a, b))))

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names, in the order of the head's rows."""
        return tuple(self.config.id2label[i] for i in range(self.config.num_labels))

    @property
    def is_image(self) -> bool:
        return self.model_class.__name__.endswith("ForImageClassification")

    @cached_property
    def processor(self) -> Any:
        """Tokenizer or image processor, ``None`` when the folder has none. A tokenizer without a
        padding token gets that of the configuration, which tells a decoder's last token."""
        files = [name for name in PROCESSOR_FILES if (self.folder / name).is_file()]
        if not files:
            return None
        # CLIP's folders have both.
        image = "preprocessor_config.json" in files and (
            "tokenizer_config.json" not in files
            or class_name(self.config).endswith("ForImageClassification")
        )
        reader = transformers.AutoImageProcessor if image else transformers.AutoTokenizer
        padding = getattr(self.config, "pad_token_id", None)
        try:
            with quiet():
                processor = reader.from_pretrained(str(self.folder), trust_remote_code=False)
            has_none = getattr(processor, "pad_token", "") is None
            if has_none and isinstance(padding, int) and padding >= 0:  # -1 in some old files
                processor.pad_token = processor.convert_ids_to_tokens(padding)
            return processor
        except Exception as error:  # the tokenizers library's parser raises a bare Exception
            remedy = "Copy the folder again."
            pieces = [name for name in files if name in SENTENCEPIECE_FILES]
            if pieces and "tokenizer.json" not in files:
                remedy = (
                    f"There is {pieces[0]} without tokenizer.json, which takes "
                    "`pip install sentencepiece protobuf`."
                )
            raise ConfigError(
                f"'{self.name}': its tokenizer or image processor cannot be loaded "
                f"({first_line(error)}). {remedy}"
            ) from error


def _with_adapter(parent: Parent) -> Parent:
    """The parent; if its folder holds an adapter that peft wrote, the adapter and the head saved
    with it in the model that ``adapter_config.json`` names.

    Raises:
        ConfigError: peft is not installed or refuses, or the folder holds a whole model, too.
        StateDictError: neither the adapter nor its base has a trained head.
    """
    folder, name = parent.folder, parent.name
    if not (folder / ADAPTER).is_file():
        return parent
    if _weight_files(folder):
        raise ConfigError(
            f"'{name}' holds a whole model and an adapter ({ADAPTER}); which is meant? Remove one."
        )
    try:
        from peft import PeftModel  # the extra lora
    except ImportError as error:
        raise ConfigError(
            f"'{name}' is an adapter ({ADAPTER}), which peft merges into its base: pip install "
            "'mergelib[lora]'. Or merge it yourself, and give that folder "
            "(model.merge_and_unload().save_pretrained(FOLDER))."
        ) from error
    adapter = read_json(folder / ADAPTER, ADAPTER)
    base_name, revision = adapter.get("base_model_name_or_path"), adapter.get("revision")
    base = open_parent(f"{base_name}@{revision}" if revision else base_name, f"base of {name}")
    weights = Weights(folder, "adapter_model.safetensors")
    saved = {n.removeprefix("base_model.model."): n for n in weights}
    config = (parent if (folder / "config.json").is_file() else base).config
    for module in HEAD_NAMES:
        if f"{module}.weight" in saved:
            config.num_labels = len(weights.tensor(saved[f"{module}.weight"]))
    text, image = (
        transformers.AutoModelForSequenceClassification,
        transformers.AutoModelForImageClassification,
    )
    kind = text if type(config) in text._model_mapping else image
    try:
        with quiet(), warnings.catch_warnings():
            # peft still asks transformers for a name that is going to be removed.
            warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
            model, info = kind._model_mapping[type(config)].from_pretrained(
                None,
                config=config,
                state_dict={n: base.weights.tensor(n) for n in base.weights},
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
            unset = {*info["missing_keys"], *(k[0] for k in info["mismatched_keys"])}
            gaps = sorted(unset - saved.keys())
            if gaps:
                raise StateDictError(
                    f"'{name}' is an adapter without {first_five(gaps)}, which '{base.source}' "
                    "lacks, too. Save the head with the adapter (modules_to_save)."
                )
            merged = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, StateDictError):
            raise
        raise ConfigError(
            f"'{name}' is an adapter that peft cannot merge "
            f"into '{base.source}' ({first_line(error)})."
        ) from error
    merged = replace(open_parent(merged, name), source=parent.source)
    lender = folder if any((folder / n).is_file() for n in PROCESSOR_FILES) else base.folder
    for file in lender.iterdir():
        if file.suffix in (".json", ".txt", ".model") and not file.name.startswith(
            ("config.", "adapter_", "model.", "pytorch_model.")
        ):
            shutil.copyfile(file, merged.folder / file.name)
    return merged


def _download(source: str) -> Path:
    name, _, revision = source.partition("@")
    patterns = ["*.json", "*.txt", "*.model", "*.safetensors"]
    download = partial(snapshot_download, name, revision=revision or None)
    try:
        folder = Path(download(allow_patterns=patterns))
        # Only safetensors that transformers would read count, not an adapter or a variant.
        if not any(name.startswith("model.safetensors") for name in _weight_files(folder)):
            folder = Path(download(allow_patterns=[*patterns, "pytorch_model*.bin"]))
        return folder
    except HFValidationError as error:
        raise ConfigError(
            f"'{shortened(source)}' is neither a folder on this machine nor a hub id."
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise OfflineError(
            f"'{source}' is not a folder on this machine and could not be downloaded from the "
            f"hub. Check the name, or connect once. ({first_line(error)})"
        ) from error


def open_parent(source: Any, name: str = "") -> Parent:
    """A parent from a hub id (``id`` or ``id@revision``), a folder, or a loaded transformers model.

    An adapter that peft wrote stands for its base with the adapter merged in.

    Args:
        source: one of these; a ``Parent`` is returned as it is.
        name: what messages and results call it; default: the last part of the id, folder or model's
            own name.

    Raises:
        ConfigError: anything else.
        OfflineError: an id that cannot be downloaded.
    """
    if isinstance(source, Parent):
        return source
    if hasattr(source, "save_pretrained") and hasattr(source, "state_dict"):
        scratch = tempfile.TemporaryDirectory(prefix="mergelib-model-")
        try:
            with quiet():
                source.save_pretrained(scratch.name)
        except OSError:
            raise
        except Exception as error:  # weights that are quantised, or offloaded
            raise ConfigError(
                f"'{name or type(source).__name__}' cannot be saved ({first_line(error)}); a "
                "model that is quantised or without data cannot be merged."
            ) from error
        title = Path(str(getattr(source.config, "_name_or_path", ""))).name
        return Parent(
            name or title or "model", title or "a loaded model", Path(scratch.name), scratch
        )
    if not isinstance(source, str | os.PathLike):
        raise ConfigError(
            "A model must be a hub id, a folder or a loaded transformers model, "
            f"not {type(source).__name__}."
        )
    if not str(source).strip():
        raise ConfigError("A model's name is empty; give a hub id or a folder.")
    path = user_path(source)
    if path.is_dir():
        path = path.resolve()
        return _with_adapter(Parent(name or path.name, path.name, path))
    if path.exists():
        raise ConfigError(
            f"'{path.name}' is a file; give the folder that holds config.json and the weights."
        )
    if str(source).startswith((".", "/", "~")) or str(source).count("/") > 1:
        raise ConfigError(f"There is no folder '{source}'.")
    folder, hub_id = _download(str(source)), str(source).partition("@")[0]
    # A snapshot's folder is named after its commit.
    named = name or hub_id.rsplit("/")[-1]
    return _with_adapter(Parent(named, f"{hub_id}@{folder.name}", folder))
