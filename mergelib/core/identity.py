"""The meaning of a user's function, as part of a key: a changed function must never find an old
result."""

from __future__ import annotations

import dis
import functools
import inspect
import secrets
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor

from .errors import ConfigError, shortened
from .types import digest, state_digest

PROCESS = secrets.token_hex(
    16
)  # marks values without a stable identity: other processes never find their results
PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...))


def is_ours(function: Any) -> bool:
    """Whether mergelib defines ``function``, regardless of the name that a wrapper gives itself."""
    homes = []
    while function is not None:
        homes.append(getattr(function, "__globals__", {}).get("__name__", "").partition(".")[0])
        function = getattr(function, "__wrapped__", None)
    return homes[-1] == "mergelib" and {*homes} <= {"mergelib", "torch"}


def refuse_built_in(kind: str, name: str, known: Any, function: Any, replace: bool) -> None:
    """Raises ``ConfigError`` for an invalid name, and if ``function`` would take the name of a
    built-in one."""
    if not isinstance(name, str) or not name.strip():
        raise ConfigError(f"{shortened(repr(name))} cannot name a {kind}: use a text.")
    ours = known is not None and is_ours(known.function)
    if ours and not (replace or (is_ours(function) and _same(function, known.function))):
        raise ConfigError(
            f"'{name}' is a built-in {kind}; choose another name, or register with replace=True."
        )


def check_call(kind: str, name: str, function: Any, *given: str) -> None:
    """Raises ``ConfigError`` for a function that cannot be called with its future arguments, which
    include ``lam`` and ``seed`` if it has them."""
    try:
        signature = inspect.signature(function)
        signature.bind(*given, **{n: n for n in ("lam", "seed") if n in signature.parameters})
    except TypeError as error:
        raise ConfigError(
            f"{kind.capitalize()} '{name}' is called with ({', '.join(given)}), which its "
            f"function does not accept: {error}. Give further options default values."
        ) from error
    except ValueError:  # a built-in one without a signature
        pass


def _same(a: Any, b: Any) -> bool:
    """Whether two functions are the same, possibly from a module that was reloaded."""
    return (a.__module__, a.__qualname__) == (b.__module__, b.__qualname__)


def code_identity(function: Any) -> str:
    """Identity of what ``function`` computes: its compiled body (so comments, docstrings and places
    do not count, and no source file is needed), its defaults, and the values and functions outside
    installed packages that it refers to.

    A value that cannot be serialised, such as an open file, makes the identity valid in this
    process only.
    """
    return digest(repr(_meaning(function, {})))


def _meaning(x: Any, seen: dict[int, tuple[int, Any]]) -> Any:
    if isinstance(x, PLAIN):
        return type(x).__name__, repr(x)
    if id(x) in seen:
        return "again", seen[id(x)][0]
    seen[id(x)] = len(seen), x  # kept alive, so that no other value gets its id

    def of(value: Any) -> Any:
        return _meaning(value, seen)

    if isinstance(x, list | tuple):
        return type(x).__name__, [of(v) for v in x]
    if isinstance(x, set | frozenset):
        return "set", sorted(repr(_meaning(v, {})) for v in x)
    if isinstance(x, dict):
        return "dict", [(of(k), of(v)) for k, v in x.items()]
    if isinstance(x, Tensor):
        return "tensor", state_digest({"": x})
    if isinstance(x, CodeType):
        names = x.co_varnames[: x.co_argcount + x.co_kwonlyargcount]
        return [*names, x.co_flags], [(i.opname, of(i.argval)) for i in dis.get_instructions(x)]
    if isinstance(x, functools.partial):
        return "partial", of(x.func), of(x.args), of(x.keywords)
    if isinstance(x, MethodType):
        return "method", of(x.__func__), of(x.__self__)
    if isinstance(x, ModuleType):
        return "module", x.__name__
    if isinstance(x, FunctionType) and not _installed(x.__globals__.get("__name__")):
        cells = [c.cell_contents for c in x.__closure__ or () if _filled(c)]
        return of(x.__code__), of(x.__defaults__), of(x.__kwdefaults__), of(cells), _outside(x, of)
    if isinstance(x, type) and not _installed(x.__module__):
        members = {n: v for n, v in vars(x).items() if isinstance(v, (FunctionType, *PLAIN))}
        return "class", x.__qualname__, [of(b) for b in x.__bases__], of(members)
    if isinstance(x, type) or inspect.isroutine(x):
        return "name", getattr(x, "__module__", None), x.__qualname__
    if not _installed(type(x).__module__) and hasattr(x, "__dict__"):
        return of(type(x)), of(vars(x))
    if is_dataclass(x):
        return of(type(x)), [(f.name, of(getattr(x, f.name, None))) for f in fields(x)]
    try:
        state = of(x.__reduce_ex__(4))  # its parts, as for copying
    except Exception:  # an object's own code may raise anything
        state = f"{PROCESS} {id(x)}"
    return of(type(x)), state


def _outside(function: FunctionType, of: Any) -> list[Any]:
    """The outside values that a function's body refers to; for the user's own modules, the members
    that it names."""
    values, todo = [], [function.__code__]
    while todo:
        code = todo.pop()
        todo += [c for c in code.co_consts if isinstance(c, CodeType)]
        for name in code.co_names:
            value = function.__globals__.get(name)
            if isinstance(value, ModuleType) and not _installed(value.__name__):
                members = [(n, of(vars(value)[n])) for n in code.co_names if n in vars(value)]
                values.append((name, members))
            elif name in function.__globals__:
                values.append((name, of(value)))
    return values


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:  # a name that is only assigned later
        return False
    return True


def _installed(module: str | None) -> bool:
    """Whether a module belongs to Python, to mergelib or to an installed package, whose versions
    are pinned."""
    top = (module or "").partition(".")[0]
    if top == "__main__":
        return False
    if top in {*sys.stdlib_module_names, "builtins", "mergelib"}:
        return True
    file = getattr(sys.modules.get(top), "__file__", None)
    return bool(file) and bool({"site-packages", "dist-packages"} & {*Path(file).parts})
