"""Corrections of a merged encoder's activations: TACT per task, REPAIR for all tasks at once, and the variance collapse they mend.

The road: ``sites_for(config)`` says where, ``measure`` what the expert's activations look like there, ``tact`` or ``repair`` fit a
``Correction``, and ``fold`` or ``attach`` puts it into weights or behind modules. All take a module whose part ``transformer`` is the
encoder, and batches that ``module(**batch)`` takes.
"""

from .correction import Attached, ChannelAffine, Correction, attach, fold
from .repair import repair, shared_target
from .sites import ARCHITECTURES, Fold, Site, sites_for
from .statistics import InputMoments, Statistics, input_moments, measure
from .tact import EPS, match_statistics, tact
from .variance import resampled_ratio, variance_ratio

__all__ = [
    "ARCHITECTURES",
    "EPS",
    "Attached",
    "ChannelAffine",
    "Correction",
    "Fold",
    "InputMoments",
    "Site",
    "Statistics",
    "attach",
    "fold",
    "input_moments",
    "match_statistics",
    "measure",
    "repair",
    "resampled_ratio",
    "shared_target",
    "sites_for",
    "tact",
    "variance_ratio",
]
