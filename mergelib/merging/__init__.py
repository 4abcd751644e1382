"""Merging methods: functions from a base and experts (state dicts) to one merged state dict.

A method is one decorated function::

    @method("my_method", label="Mine", short="Mine")
    def my_method(base, experts, *, lam=0.3):
        '''theta_m = ...'''

Only encoders are merged: heads stay with their task. A method whose signature has ``lam`` gets its
lambda chosen on validation data. Most are theta_b + lam * direction: then the function gives the
direction, ``@method(..., lam=0.3)`` adds the rest, and a scan over lambda computes the direction
once. One that declares ``needs`` takes a ``Context`` as its third argument; one that ``gives`` "one
per task" returns a list, an encoder per expert. One whose signature has ``seed`` is random. An
option's annotation may tell which values it takes (``options``). A user's method may modify what it
receives.
"""

from . import (
    adamerging,
    arithmetic,
    dropping,
    fisher,
    gradient_matching,
    grafting,
    karcher,
    lines,
    lm_cocktail,
    masks,
    model_stock,
    model_tailor,
    pcb,
    regmean,
    spectral,
    ties,
    wudi,
)
from .context import Context, TaskData
from .registry import METHODS, NEEDS, ONE, PER_TASK, Method, get_method, method
from .states import check_states

__all__ = [
    "METHODS",
    "NEEDS",
    "ONE",
    "PER_TASK",
    "Context",
    "Method",
    "TaskData",
    "adamerging",
    "arithmetic",
    "check_states",
    "dropping",
    "fisher",
    "get_method",
    "gradient_matching",
    "grafting",
    "karcher",
    "lines",
    "lm_cocktail",
    "masks",
    "method",
    "model_stock",
    "model_tailor",
    "pcb",
    "regmean",
    "spectral",
    "ties",
    "wudi",
]
