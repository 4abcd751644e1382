"""Merging experts of several foundations: how much distance costs, and how much repairs recover.

``spec``, ``architectures`` and ``matching`` handle permutation symmetries and match
the units of two networks; ``sites``, ``statistics``, ``correction`` and ``tact`` measure and
correct a merged encoder's activations; ``settings`` builds studies from these, ``resampled`` judges
claims, ``tables`` shows them.
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
    lams_table,
    matching_table,
    numbers_stored,
    samples_needed,
    samples_table,
    wide,
    with_published,
)
