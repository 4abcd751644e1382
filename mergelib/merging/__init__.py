"""Merging methods: functions from a base and experts (state dicts) to one merged state dict.

A method is one decorated function::

    @method("my_method", label="Mine", short="Mine")
    def my_method(base, experts, *, lam=0.3):
        '''theta_m = ...'''

Only encoders come here: heads stay with their task. A method whose signature has ``lam`` gets its lambda chosen on
validation data; give ``direction`` as well when theta_m = theta_b + lam * direction, and a scan over lambda computes the
direction once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import UnknownNameError
from ..types import State
from .states import add_scaled, check_states

MergedState = dict[str, Tensor]


@dataclass(frozen=True)
class Method:
    """A registered merging method. ``needs``: data beyond weights; ``gives``: one encoder, or one per task."""

    name: str
    label: str
    short: str
    function: Callable[..., MergedState]
    direction: Callable[..., MergedState] | None = None
    needs: str = "nothing"
    gives: str = "one encoder"

    @property
    def has_lam(self) -> bool:
        return "lam" in inspect.signature(self.function).parameters

    @property
    def options(self) -> tuple[str, ...]:
        return tuple(p.name for p in inspect.signature(self.function).parameters.values() if p.kind is p.KEYWORD_ONLY)

    def __call__(self, base: State, experts: Sequence[State], **options: Any) -> MergedState:
        """Check the weights, then merge them. Raises ``StateDictError`` for weights that do not fit together and
        ``UnknownNameError`` for an option that the method does not have."""
        self.check_options(options)
        check_states(base, experts)
        return self.function(base, experts, **options)

    def scan(self, base: State, experts: Sequence[State], lams: Sequence[float], **options: Any) -> Iterator[MergedState]:
        """The merged state for each lambda in turn; the direction, where the method has one, is computed once."""
        self.check_options(options)
        check_states(base, experts)
        if self.direction is None:
            yield from (self.function(base, experts, lam=lam, **options) for lam in lams)
        else:
            direction = self.direction(base, experts, **options)
            yield from (add_scaled(base, direction, lam) for lam in lams)

    def check_options(self, options: dict[str, Any]) -> None:
        """Raises ``UnknownNameError`` for an option that the method does not have."""
        for name in options:
            if name not in self.options:
                raise UnknownNameError(f"option of method '{self.name}'", name, self.options)


METHODS: dict[str, Method] = {}


def method(name: str, *, label: str, short: str, direction: Callable[..., MergedState] | None = None,
           needs: str = "nothing", gives: str = "one encoder") -> Callable[[Callable], Callable]:
    """Register the decorated function as merging method ``name``; it then takes part in every table and figure that
    is given its name."""

    def register(function: Callable) -> Callable:
        METHODS[name] = Method(name, label, short, function, direction, needs, gives)
        return function

    return register


def get_method(name: str) -> Method:
    """The registered method. Raises ``UnknownNameError`` naming the nearest one."""
    if name not in METHODS:
        raise UnknownNameError("merging method", name, METHODS)
    return METHODS[name]


from . import arithmetic, ties  # noqa: E402  (registers the methods)

__all__ = ["METHODS", "Method", "arithmetic", "check_states", "get_method", "method", "ties"]
