"""The values that an option of a merging method takes: told by its default and its annotation."""

import inspect
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Annotated, Any, Literal, get_args, get_origin

NUMBER = (Real, "a finite number")
KINDS = {int: NUMBER, float: NUMBER, str: (str, "a word"), tuple: (list | tuple, "a list")}
LARGEST = 2.0**63  # beyond it, torch accepts no integer and float32 overflows in products


@dataclass(frozen=True)
class Range:
    """An interval: "(0, 1]" is without 0 and with 1."""

    text: str

    def __contains__(self, value: float) -> bool:
        low, high = map(float, self.text[1:-1].split(","))
        ends = [low] * self.text.startswith("[") + [high] * self.text.endswith("]")
        return low < value < high or value in ends


AtLeastOne = Annotated[int, Range("[1, inf)")]
AtLeastZero = Annotated[int, Range("[0, inf)")]
Positive = Annotated[float, Range("(0, inf)")]
Share = Annotated[float, Range("[0, 1]")]
ShareAboveZero = Annotated[float, Range("(0, 1]")]
ShareBelowOne = Annotated[float, Range("[0, 1)")]
BelowHalf = Annotated[float, Range("[0, 0.5)")]


def demand(option: inspect.Parameter, value: Any) -> str:
    """What the option asks for that ``value`` is not, as the rest of a sentence; "" for a value
    that it takes.

    It asks for a value of its default's kind (no word for a number, no NaN), and for what its
    annotation says: ``int``, a ``Literal``, or ``Annotated`` with a ``Range``.
    """
    annotation = option.annotation
    kind, expected = KINDS.get(type(option.default), (object, ""))
    if annotation in (int, "int") or getattr(annotation, "__origin__", None) is int:
        kind, expected = Integral, "a whole number"
    if not isinstance(value, kind) or (
        kind in (Real, Integral) and (isinstance(value, bool) or not abs(value) < LARGEST)
    ):
        return f"is {expected}"
    if get_origin(annotation) is Literal and value not in get_args(annotation):
        return f"is one of {get_args(annotation)}"
    for limits in getattr(annotation, "__metadata__", ()):
        if isinstance(limits, Range) and value not in limits:
            return f"must lie in {limits.text}"
    return ""
