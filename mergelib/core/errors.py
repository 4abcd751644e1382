"""Every error that mergelib raises on purpose: each names the offender and the remedy."""

import sys
import warnings
from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches
from reprlib import Repr
from typing import Any

WRAPPERS = ("contextlib", "functools", "torch.utils._contextlib")  # between us and our caller
_BRIEF = Repr()
_BRIEF.maxlevel, _BRIEF.maxstring, _BRIEF.maxother = 3, 80, 80


def shortened(value: object, width: int = 80) -> str:
    """A value for a message, cut to ``width`` characters: values from a document may be long, or
    expand to far more than its text."""
    try:
        text = value if isinstance(value, str) else _BRIEF.repr(value)
    except ValueError:  # Python refuses to print integers with thousands of digits
        text = f"a {type(value).__name__} too long to print"
    return text if len(text) <= width else f"{text[: width - 3]}..."


def first_five(names: Sequence[str]) -> str:
    """Names for a message: "a, b, c, d, e and 3 more"."""
    return ", ".join(map(shortened, names[:5])) + (
        f" and {len(names) - 5} more" if len(names) > 5 else ""
    )


def warn(message: str, kind: type[Warning] = UserWarning) -> None:
    """Warn at the line that called mergelib, however deep inside it the reason was found."""
    frame, names = sys._getframe(1), []
    while frame:
        names.append(frame.f_globals.get("__name__", ""))
        frame = frame.f_back
    caller = 1 + max(i for i, name in enumerate(names) if name.partition(".")[0] == "mergelib")
    while names[caller:] and names[caller] in WRAPPERS:
        caller += 1
    warnings.warn(message, kind, stacklevel=caller + 2)


class MergelibError(Exception):
    """Base class: ``except MergelibError`` catches everything that the library raises on
    purpose."""


class UnknownNameError(MergelibError, ValueError):
    """A profile, method, protocol, task, notebook or parameter that does not exist."""

    def __init__(self, what: str, name: object, known: Iterable[str]):
        self.name, self.known = shortened(name), sorted(map(str, known))
        close = get_close_matches(self.name.lower(), self.known, n=1, cutoff=0.0)
        hint = f" Nearest: '{close[0]}'." if close else ""
        super().__init__(
            f"Unknown {what} '{self.name}'.{hint} Known: {', '.join(self.known) or 'none'}."
        )


def check_name(what: str, name: object, known: Collection[Any]) -> None:
    """Raises ``UnknownNameError`` if ``known`` has no such name."""
    if name not in known:
        raise UnknownNameError(what, name, known)


class MissingShotsError(UnknownNameError):
    """A number of shots that the profile's ``protocols.ks`` lacks, or a share of the test set that
    its ``protocols.shares`` lack."""

    def __init__(self, k: object, known: Iterable[float], *, share: bool = False):
        names = ("share in percent", "shares") if share else ("number of shots", "ks")
        super().__init__("{} (protocols.{})".format(*names), k, map(str, known))


class ConfigError(MergelibError, ValueError):
    """A profile value or parameter of the wrong type or outside its range."""


class DataError(MergelibError, ValueError):
    """Data that cannot be used: an unreadable row, a label out of range, a class without
    samples."""


class StateDictError(MergelibError, ValueError):
    """Weights that do not fit together: different keys, shapes or dtypes, or values that are not
    finite."""


class UnsafeFileError(MergelibError, ValueError):
    """A file that could only be read by running code from it, or that reaches outside its
    folder."""


class OfflineError(MergelibError, ConnectionError):
    """Something must come from the hub, and the hub cannot be reached."""


class DeviceMemoryError(MergelibError, RuntimeError):
    """A device has too little memory, and a smaller batch does not help or would change the
    result."""


class StoreError(MergelibError, OSError):
    """The artifact store, or a file of results, cannot be read or written."""
