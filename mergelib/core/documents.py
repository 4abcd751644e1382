"""Untrusted YAML, JSON, names and paths, read within limits."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from .errors import ConfigError, shortened

MAX_BYTES = 4 << 20  # per document; the longest in this project has 15 kB
# per document with its aliases expanded: nine lines of YAML can stand for a billion values
MAX_NODES = 100_000
# bytes; file systems allow 255, and temporary names are longer than the final name
MAX_NAME = 100


def read_text(path: str | os.PathLike, what: str) -> str:
    """The text of a UTF-8 file of at most ``MAX_BYTES``. Raises ``ConfigError`` with a message that
    begins with ``what``."""
    try:
        with user_path(path).open("rb") as f:  # not stat: a pipe has no size, and a device no end
            raw = f.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise ConfigError(
                f"{what}: the file has more than {MAX_BYTES >> 20} MB; give the right one."
            )
        return raw.decode("utf-8")
    except (OSError, ValueError) as error:  # ValueError: bytes that are not UTF-8, NUL in a name
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"{what}: cannot be read as UTF-8 text ({shortened(str(error))})."
        ) from error


def own_yaml(file: str, name: str) -> Any:
    """The content of the package's own YAML file ``name`` beside its module ``file``; libyaml, if
    available, reads it 20 times faster."""
    text = Path(file).with_name(name).read_text("utf-8")
    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text).get_single_data()


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, but 1e-1 is a number, as everywhere else."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    [*"-+.0123456789"],
)


def parse_yaml(text: str, where: str) -> Any:
    """Parse a YAML document safely. Raises ``ConfigError``, with a message that begins with
    ``where``, for invalid YAML, more than ``MAX_BYTES``, or aliases that expand to more than
    ``MAX_NODES`` values."""
    try:
        if len(text) > MAX_BYTES:
            raise ValueError(f"the text has more than {MAX_BYTES >> 20} MB")
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _values(node, {}) > MAX_NODES:
            raise ValueError(
                f"its aliases (*name) expand to more than {MAX_NODES:,} values, "
                "or to themselves; write the values out"
            )
        return loader.construct_document(node)
    except Exception as error:  # PyYAML's constructors raise half a dozen kinds
        message = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{where}: invalid YAML ({shortened(message, 200)}).") from error


def _values(node: yaml.Node, known: dict[int, float]) -> float:
    """The number of values below a node with all aliases expanded; infinite for a node that
    contains itself. Raises ``ValueError`` for a key that occurs twice in a mapping, of which PyYAML
    would silently take the last."""
    if id(node) not in known:
        known[id(node)] = float("inf")
        children = [] if isinstance(node, yaml.ScalarNode) else node.value
        if isinstance(node, yaml.MappingNode):
            keys = [str(key.value) for key, _ in node.value if key.value != "<<"]
            for key in set(keys):
                if keys.count(key) > 1:
                    raise ValueError(f"'{shortened(key)}' is given twice")
            children = [part for pair in node.value for part in pair]
        known[id(node)] = 1.0 + sum(_values(child, known) for child in children)
    return known[id(node)]


def parse_json(text: str, where: str) -> Any:
    """Parse a JSON document. Raises ``ConfigError`` with a message that begins with ``where``."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: invalid JSON ({shortened(str(error))}).") from error


def read_json(path: str | os.PathLike, where: str) -> Mapping[str, Any]:
    """Read a JSON object from a file. Raises ``ConfigError`` with a message that begins with
    ``where``."""
    document = parse_json(read_text(path, where), where)
    if not isinstance(document, dict):
        raise ConfigError(f"{where}: this must be a JSON object, not {type(document).__name__}.")
    return document


def user_path(path: str | os.PathLike) -> Path:
    """A user's path with ``~`` expanded. Raises ``ConfigError`` for a path that no file system
    accepts, or an unknown user's home."""
    try:
        raw = os.fspath(path)
        if "\0" in raw:
            raise ConfigError(f"'{shortened(raw)}' contains a NUL character, which no path may.")
        expanded = Path(raw).expanduser()
        os.lstat(expanded)
    except RuntimeError as error:
        raise ConfigError(
            f"'{shortened(raw)}': there is no such user ({error}); write the full path."
        ) from error
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass  # whoever opens it will report it
    except (
        OSError,
        ValueError,
    ) as error:  # too long, or characters that the file system has no bytes for
        raise ConfigError(
            f"'{shortened(raw)}' is not a valid path on this machine "
            f"({shortened(str(error.args[-1]))})."
        ) from error
    return expanded


def check_folder_name(name: str) -> str:
    """``name``, checked for use as a folder's name. Raises ``ConfigError`` if it could lead outside
    the folder or if a file system would refuse it."""
    if (
        not isinstance(name, str)
        or not name
        or name != name.strip()
        or any(c in name for c in "/\\:")
        or name.startswith(".")
        or not name.isprintable()
        or len(name.encode()) > MAX_NAME
    ):
        raise ConfigError(
            f"'{shortened(name)}' cannot name a task: it becomes a folder's name. Use up to "
            f"{MAX_NAME} letters, digits, - and _."
        )
    return name
