"""Checkpoints as they lie on disk: found, refused where unsafe, read tensor by tensor."""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..documents import read_json, user_path
from ..errors import ConfigError, OfflineError, StateDictError, UnsafeFileError, shortened

# Mapped pages count as memory of the process until the file is closed, so it is opened anew after this many bytes.
REOPEN_AFTER = 16 << 20
FLOATS, WHOLE = (
    ("F64", "F32", "F16", "BF16"),
    ("I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"),
)  # as safetensors writes them
MAX_LABELS = 100_000  # transformers makes a name for each that a configuration announces
CLASSIFIERS = ("ForSequenceClassification", "ForImageClassification")
PROCESSOR_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "spm.model",
    "sentencepiece.bpe.model",
    "spiece.model",
    "preprocessor_config.json",
)


def class_name(config: Any) -> str:
    """The first of a configuration's ``architectures``, which a file may give any type; "none" where there is none."""
    named = config.architectures
    return str(named[0]) if isinstance(named, list) and named else "none"


@contextmanager
def quiet() -> Iterator[None]:
    """transformers without its loading bars and reports: what matters of them is checked and raised here."""
    from transformers.utils import logging as hf

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
    """What an error says first, for a message of ours."""
    return shortened((str(error).strip() or type(error).__name__).splitlines()[0], 200)


def modern_name(name: str) -> str:
    """Names of checkpoints from before 2019 as transformers calls them now."""
    return re.sub(
        r"LayerNorm\.(gamma|beta)$",
        lambda m: "LayerNorm." + {"gamma": "weight", "beta": "bias"}[m[1]],
        name,
    )


class Weights:
    """The tensors of one folder by name, none of them in memory until asked for: one file or shards.

    Safetensors where there is one. A ``pytorch_model.bin`` is read with ``weights_only=True``: one that would have to run code
    raises ``UnsafeFileError`` and runs nothing. Raises ``ConfigError`` for a folder without weights or with a missing shard.
    """

    def __init__(self, folder: Path, file: str = ""):
        self.folder = folder
        self._open: dict[str, Any] = {}
        self._read: dict[str, int] = {}
        self._pickled: dict[str, Tensor] = {}
        files = [file] if file else self._files()
        if files is None:
            self._pickled = {modern_name(k): v for k, v in self._load_pickled().items()}
            self._where = dict.fromkeys(self._pickled, ("", ""))
            return
        self._where = {}
        for file in files:
            if not (folder / file).is_file():
                raise ConfigError(
                    f"'{folder.name}' lacks {file}, which its index names; copy the whole folder."
                )
            self._where |= {modern_name(raw): (file, raw) for raw in self._handle(file).keys()}

    def _files(self) -> list[str] | None:
        index = self.folder / "model.safetensors.index.json"
        if index.is_file():
            try:
                named = set(json.loads(index.read_text())["weight_map"].values())
                if not all(isinstance(f, str) for f in named):
                    raise TypeError("a file's name is no text")
            except (
                OSError,
                ValueError,
                KeyError,
                AttributeError,
                TypeError,
                RecursionError,
            ) as error:
                raise ConfigError(
                    f"'{self.folder.name}': {index.name} is damaged ({error})."
                ) from error
            for file in named:
                if Path(file).name != file or file == ".." or "\\" in file:
                    raise UnsafeFileError(
                        f"'{self.folder.name}': {index.name} points outside its folder, to '{shortened(file)}'. Fetch the model again."
                    )
                user_path(self.folder / file)
            return sorted(named)
        return ["model.safetensors"] if (self.folder / "model.safetensors").is_file() else None

    def _load_pickled(self) -> dict[str, Tensor]:
        found = sorted(self.folder.glob("pytorch_model*.bin"))
        if not found:
            adapter = (
                " It holds an adapter: merge that into its base model first."
                if (self.folder / "adapter_config.json").exists()
                else ""
            )
            raise ConfigError(f"'{self.folder.name}' has no model.safetensors.{adapter}")
        state: dict[str, Tensor] = {}
        for path in found:
            try:
                state |= torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:  # torch raises many kinds, the unpickler's own among them
                raise UnsafeFileError(
                    f"'{self.folder.name}': {path.name} is a pickle with more than plain tensors in it, or is damaged. "
                    "It was not run. Convert it to safetensors where you trust it."
                ) from error
        if not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
            raise StateDictError(f"'{self.folder.name}': its .bin file is no plain state dict.")
        odd = next((k for k, v in state.items() if not _is_plain(v)), None)
        if odd is not None:
            raise StateDictError(
                f"'{self.folder.name}': tensor {shortened(odd)} of its .bin file is sparse, quantised, without data or larger than "
                "its data. Save the model again as safetensors."
            )
        return state

    def _handle(self, file: str) -> Any:
        from safetensors import SafetensorError, safe_open

        if file not in self._open or self._read[file] > REOPEN_AFTER:
            try:
                self._open[file] = safe_open(str(self.folder / file), "pt")
            except (SafetensorError, OSError, MemoryError) as error:
                raise ConfigError(
                    f"'{self.folder.name}': {shortened(file)} is damaged or no safetensors file ({shortened(str(error), 200)})."
                ) from error
            self._read[file] = 0
        return self._open[file]

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __contains__(self, name: object) -> bool:
        return name in self._where

    def shape(self, name: str) -> tuple[int, ...]:
        file, raw = self._where[name]
        return (
            tuple(self._handle(file).get_slice(raw).get_shape())
            if file
            else tuple(self._pickled[name].shape)
        )

    @cached_property
    def dtypes(self) -> dict[str, str]:
        """Name -> dtype as safetensors writes it (F32, BF16, I64, ...). Raises ``StateDictError`` for one that is neither in ``FLOATS``
        nor in ``WHOLE``, such as F8: nothing here would merge it."""
        plain = {
            torch.float32: "F32",
            torch.bfloat16: "BF16",
            torch.float16: "F16",
            torch.float64: "F64",
            torch.int64: "I64",
            torch.int32: "I32",
            torch.int16: "I16",
            torch.int8: "I8",
            torch.uint8: "U8",
            torch.bool: "BOOL",
        }
        found = {
            n: self._handle(f).get_slice(r).get_dtype()
            if f
            else plain.get(self._pickled[n].dtype, str(self._pickled[n].dtype))
            for n, (f, r) in self._where.items()
        }
        odd = next((n for n, kind in found.items() if kind not in (*FLOATS, *WHOLE)), None)
        if odd is not None:
            raise StateDictError(
                f"'{self.folder.name}': {shortened(odd)} is stored as {found[odd]}, which cannot be merged; convert the model to "
                "float32, bfloat16 or float16."
            )
        return found

    def is_float(self, name: str) -> bool:
        return self.dtypes[name] in FLOATS

    def tensor(self, name: str, start: int | None = None, stop: int | None = None) -> Tensor:
        """A tensor, or its rows ``start:stop``, in its own dtype."""
        file, raw = self._where[name]
        if not file:
            return self._pickled[name][start:stop] if start is not None else self._pickled[name]
        handle = self._handle(file)
        found = handle.get_tensor(raw) if start is None else handle.get_slice(raw)[start:stop]
        self._read[file] += found.numel() * found.element_size()
        return found


def _is_plain(t: Tensor) -> bool:
    """A dense tensor on the CPU whose storage holds all of it: an expanded one can announce any size."""
    return (
        t.layout is torch.strided
        and t.device.type == "cpu"
        and not t.is_quantized
        and t.numel() * t.element_size() <= t.untyped_storage().nbytes()
    )


@dataclass
class Parent:
    """One model to merge, or the base: ``name`` for people and folders, ``source`` for the card, ``folder`` to read."""

    name: str
    source: str
    folder: Path
    scratch: Any = field(
        default=None, repr=False
    )  # keeps the temporary folder of a model that came loaded

    @cached_property
    def config(self) -> Any:
        """Raises ``ConfigError`` for a folder without a configuration that transformers itself knows."""
        from transformers import AutoConfig

        given = read_json(
            self.folder / "config.json", f"'{self.name}' has no configuration: config.json"
        )
        announced = given.get("num_labels", 0)
        if not isinstance(announced, int) or not 0 <= announced <= MAX_LABELS:
            raise ConfigError(
                f"'{self.name}': config.json announces {shortened(announced)} labels; a number up to {MAX_LABELS} is taken."
            )
        try:
            with quiet():
                found = AutoConfig.from_pretrained(str(self.folder), trust_remote_code=False)
                if not all(
                    isinstance(found.id2label.get(i), str | int | float)
                    for i in range(found.num_labels)
                ):
                    raise ValueError("id2label does not name the classes 0, 1, 2, ...")
                return found
        except Exception as error:  # a damaged configuration fails wherever transformers first uses the wrong value
            raise ConfigError(
                f"'{self.name}' has no configuration that transformers knows without running the model's own code "
                f"({first_line(error)})."
            ) from error

    @cached_property
    def weights(self) -> Weights:
        return Weights(self.folder)

    @cached_property
    def model_class(self) -> Any:
        """Its transformers class. Raises ``ConfigError`` unless that is a classifier for texts or images."""
        import transformers

        named = class_name(self.config)
        if not named.endswith(CLASSIFIERS) or not hasattr(transformers, named):
            raise ConfigError(
                f"'{self.name}' is a {shortened(named)}, no ...ForSequenceClassification or ...ForImageClassification. Experts are "
                "fine-tuned classifiers; a model without a head can only be the base."
            )
        return getattr(transformers, named)

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names in the head's order."""
        return tuple(self.config.id2label[i] for i in range(self.config.num_labels))

    @property
    def is_image(self) -> bool:
        return self.model_class.__name__.endswith("ForImageClassification")

    def processor(self) -> Any:
        """Tokenizer or image processor, ``None`` when the folder has none."""
        if not any((self.folder / name).is_file() for name in PROCESSOR_FILES):
            return None
        from transformers import AutoImageProcessor, AutoTokenizer

        image = (self.folder / "preprocessor_config.json").is_file() and not (
            self.folder / "tokenizer_config.json"
        ).is_file()
        try:
            with quiet():
                return (AutoImageProcessor if image else AutoTokenizer).from_pretrained(
                    str(self.folder), trust_remote_code=False
                )
        except Exception as error:  # the tokenizers' parser raises a bare Exception
            raise ConfigError(
                f"'{self.name}': its tokenizer or image processor cannot be loaded ({first_line(error)}). Copy the folder again."
            ) from error


def _download(source: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, revision = source.partition("@")
    patterns = ["*.json", "*.txt", "*.model", "*.safetensors"]
    try:
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
        if not any(folder.glob("*.safetensors")):
            folder = Path(
                snapshot_download(
                    name,
                    revision=revision or None,
                    allow_patterns=[*patterns, "pytorch_model*.bin"],
                )
            )
        return folder
    except HFValidationError as error:
        raise ConfigError(
            f"'{shortened(source)}' is neither a folder on this machine nor a hub id."
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise OfflineError(
            f"'{source}' is no folder on this machine, and the hub did not deliver it. Check the name, or connect once. "
            f"({first_line(error)})"
        ) from error


def open_parent(source: Any, name: str = "") -> Parent:
    """A parent from a hub id (``id`` or ``id@revision``), a folder, or a loaded transformers model.

    Raises ``ConfigError`` for something else, ``OfflineError`` for an id that cannot be had.
    """
    if isinstance(source, Parent):
        return source
    if hasattr(source, "save_pretrained") and hasattr(source, "state_dict"):
        scratch = tempfile.TemporaryDirectory(prefix="mergelib-model-")
        with quiet():
            source.save_pretrained(scratch.name)
        said = Path(str(getattr(source.config, "_name_or_path", ""))).name
        return Parent(
            name or said or "model", said or "a loaded model", Path(scratch.name), scratch
        )
    if not isinstance(source, str | os.PathLike):
        raise ConfigError(
            f"A model is a hub id, a folder or a loaded transformers model, not {type(source).__name__}."
        )
    if not str(source).strip():
        raise ConfigError("A model's name is empty; give a hub id or a folder.")
    path = user_path(source)
    if path.is_dir():
        path = path.resolve()
        return Parent(name or path.name, path.name, path)
    if path.exists():
        raise ConfigError(
            f"'{path.name}' is a file; give the folder that holds config.json and the weights."
        )
    if str(source).startswith((".", "/", "~")) or str(source).count("/") > 1:
        raise ConfigError(f"There is no folder '{source}'.")
    return Parent(
        name or str(source).partition("@")[0].rsplit("/")[-1], str(source), _download(str(source))
    )
