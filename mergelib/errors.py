"""Every error that mergelib raises on purpose: each names the offender and the remedy."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


def first_five(names: Sequence[str]) -> str:
    """Names for a message: "a, b, c, d, e and 3 more"."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


class MergelibError(Exception):
    """Base class, so that ``except MergelibError`` catches whatever the library refuses on purpose."""


class UnknownNameError(MergelibError, ValueError):
    """A profile, method, protocol, task, notebook or parameter that does not exist."""

    def __init__(self, what: str, name: object, known: Iterable[str]):
        self.name, self.known = str(name), sorted(known)
        close = get_close_matches(self.name.lower(), self.known, n=1, cutoff=0.0)
        hint = f" Nearest: '{close[0]}'." if close else ""
        super().__init__(f"Unknown {what} '{name}'.{hint} Known: {', '.join(self.known) or 'none'}.")


class MissingShotsError(UnknownNameError):
    """A number of shots that is not among the profile's ``protocols.ks``."""

    def __init__(self, k: object, ks: Iterable[int]):
        super().__init__("number of shots (protocols.ks)", k, map(str, ks))


class ConfigError(MergelibError, ValueError):
    """A profile value or parameter of the wrong type or outside its range."""


class DataError(MergelibError, ValueError):
    """Data that cannot be used as given: an unreadable row, a label outside range, a class without samples."""


class StateDictError(MergelibError, ValueError):
    """Weights that do not fit together: other keys, shapes or dtypes, or values that are not finite."""


class UnsafeFileError(MergelibError, ValueError):
    """A file that could only be read by running code from it, or that reaches outside its folder."""


class OfflineError(MergelibError, ConnectionError):
    """Something has to come from the hub and the hub cannot be reached."""


class StoreError(MergelibError, OSError):
    """The artifact store cannot be read or written."""
