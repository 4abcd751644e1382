"""The names of tasks, encoders, protocols and rungs in tables and figures; see ``labels.yaml``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ..core.documents import own_yaml
from ..core.identity import is_ours
from ..merging import METHODS, PER_TASK, Method
from ..protocols import PROTOCOLS, Protocol
from ..protocols.alignment import TABLE_1

_WORDS = own_yaml(__file__, "labels.yaml")
TASK_LABELS, ENCODER_LABELS, HEADINGS = _WORDS["tasks"], _WORDS["encoders"], _WORDS["headings"]
RUNG_LABELS = {
    "identity": "Identity (Current)",
    **{name: rung.label for name, rung in TABLE_1.items()},
}


def task_label(task: str) -> str:
    """A task's printed name; unknown ones are unchanged."""
    return TASK_LABELS.get(task, task)


def _told_apart(found: Method | Protocol, part: str, known: Mapping[str, Any]) -> str:
    """A user's label, with its name added if another label is the same."""
    label = getattr(found, part)
    twins = sum(getattr(other, part) == label for other in known.values())
    return label if twins < 2 or is_ours(found.function) else f"{label} ({found.name})"


def encoder_label(encoder: str) -> str:
    """A merging method or reference encoder in tables: its label, with marks.

    Marks show merges that give one encoder per task, and those that saw inputs of the test set.
    """
    if encoder not in METHODS:
        return ENCODER_LABELS.get(encoder, (encoder,))[0]
    method = METHODS[encoder]
    marks = ["per task"] * (method.gives == PER_TASK)
    marks += ["test inputs"] * ("test inputs" in method.needs)
    label = _told_apart(method, "label", METHODS)
    return label + (f" ({', '.join(marks)})" if marks else "")


def short_label(encoder: str) -> str:
    """The same in figures: WA, TA, Ties, ..."""
    if encoder in METHODS:
        return _told_apart(METHODS[encoder], "short", METHODS)
    return ENCODER_LABELS.get(encoder, (encoder, encoder))[1]


def protocol_label(protocol: str) -> str:
    """A registered protocol in print, "KNN Eval"."""
    return _told_apart(PROTOCOLS[protocol], "label", PROTOCOLS)


COLUMN_LABELS = {
    "method": encoder_label,
    "protocol": protocol_label,
    "task": task_label,
    "rung": RUNG_LABELS.get,
    "k": lambda k: f"k = {k}",
    "share": lambda share: f"{share:g} %",
}
"""Column of a tidy frame -> how its values are printed."""


def labelled(frame: pd.DataFrame) -> pd.DataFrame:
    """``frame`` with the printed names of tasks, methods (short) and protocols."""
    names = COLUMN_LABELS | {"method": short_label}
    columns = [c for c in ("task", "method", "protocol", "rung") if c in frame]
    return frame.assign(**{c: frame[c].map(names[c]) for c in columns}).reset_index(drop=True)


def printed(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """These columns of a tidy frame as a table prints them, under their headings."""
    return pd.DataFrame({HEADINGS[c]: frame[c].map(COLUMN_LABELS[c]) for c in columns})
