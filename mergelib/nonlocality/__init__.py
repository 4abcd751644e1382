"""Merging experts of several foundations: what distance costs, and what repairs give back.

``spec``, ``architectures``, ``permute`` and ``matching`` are permutation symmetries, and which
units of two networks are the same; ``sites``, ``statistics``, ``correction`` and ``tact`` measure
and correct a merged encoder's activations; ``settings`` makes studies of all that, ``resampled``
judges claims, ``tables`` shows it.
"""

from .resampled import Resampled, verdicts
from .settings import REPAIR_LABELS, SETTINGS, Nonlocality
from .statistics import EPS
from .tables import (
    alt,
    alt_samples,
    alt_variance,
    answer,
    averages,
    beside_published,
    lams_table,
    matching_table,
    numbers_stored,
    samples_needed,
    samples_table,
    wide,
)

__all__ = [
    "EPS",
    "REPAIR_LABELS",
    "SETTINGS",
    "Nonlocality",
    "Resampled",
    "alt",
    "alt_samples",
    "alt_variance",
    "answer",
    "averages",
    "beside_published",
    "lams_table",
    "matching_table",
    "numbers_stored",
    "samples_needed",
    "samples_table",
    "verdicts",
    "wide",
]
