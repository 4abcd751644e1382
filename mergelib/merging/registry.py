"""The registry of merging methods: what a method is, and how it is called."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..core.errors import ConfigError, StateDictError, check_name, shortened
from ..core.identity import check_call, is_ours, refuse_built_in
from ..core.names import REFERENCES
from ..core.spare import call
from ..core.types import State
from .context import Context
from .options import demand
from .states import Experts, Tensors, add_scaled, check_like, check_states, detached, untied

NEEDS = ("inputs", "test inputs", "labels", "gradients")
ONE, PER_TASK = "one encoder", "one per task"
RETURN = "Return the base's names, shapes and dtypes."


@dataclass(frozen=True)
class Method:
    """A registered merging method.

    ``needs``: data beyond weights, from ``NEEDS``; ``gives``: ``ONE`` or ``PER_TASK``; ``paper``:
    its number on arXiv.
    """

    name: str
    label: str
    short: str
    function: Callable[..., Any]
    direction: Callable[..., Tensors] | None = None
    needs: tuple[str, ...] = ()
    gives: str = ONE
    paper: str = ""

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.function).parameters

    @property
    def has_lam(self) -> bool:
        return "lam" in self.parameters

    @property
    def is_random(self) -> bool:
        return "seed" in self.parameters

    @property
    def options(self) -> tuple[str, ...]:
        return tuple(
            name
            for name, p in self.parameters.items()
            if p.kind is p.KEYWORD_ONLY or p.default is not p.empty
        )

    @property
    def about(self) -> str:
        """The first sentence of the function's docstring, which is usually a formula."""
        first = (self.function.__doc__ or "").strip().partition("\n\n")[0]
        return " ".join(first.replace("``", "").split()).partition(". ")[0].rstrip(".")

    def __call__(
        self, base: State, experts: Experts, context: Context | None = None, **options: Any
    ) -> Any:
        """Check the weights, then merge them: a state dict, or a list of them, one per expert.

        Raises ``StateDictError`` for weights that do not fit together and for a result that does
        not match the base, ``UnknownNameError`` for an unknown option and ``ConfigError`` for
        missing data that the method needs.
        """
        inputs = self._given(base, experts, context, options)
        return self._checked(inputs, self._computed(self.function, inputs, options))

    def scan(
        self,
        base: State,
        experts: Experts,
        lams: Sequence[float],
        context: Context | None = None,
        **options: Any,
    ) -> Iterator[Any]:
        """Yield the merge for each lambda in turn; a method's direction, if it has one, is computed
        once."""
        inputs = self._given(base, experts, context, options)
        for lam in lams:
            self.check_options({"lam": lam})
        if self.direction is None:
            for lam in lams:
                merged = self._computed(self.function, inputs, options | {"lam": lam})
                yield self._checked(inputs, merged)
            return
        direction = self._computed(self.direction, inputs, options)
        subject = f"The direction that method '{self.name}' returned"
        check_like(subject, direction, inputs[0], RETURN, is_direction=True)
        for lam in lams:
            yield self._checked(inputs, add_scaled(inputs[0], direction, lam))

    def _given(
        self,
        base: State,
        experts: Experts,
        context: Context | None,
        options: dict[str, Any],
    ) -> tuple[Any, ...]:
        """The function's arguments, checked."""
        self.check_options(options)
        check_states(base, experts)
        inputs = detached(untied(base, experts)), [detached(e) for e in experts]
        if not self.needs:
            return inputs
        if context is None:
            raise ConfigError(
                f"Method '{self.name}' needs {' and '.join(self.needs)}; "
                "give a Context as the third argument."
            )
        context.check(self.name, self.needs, len(experts))
        return (*inputs, context)

    def _computed(
        self, function: Callable[..., Any], given: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        try:
            return call(function, *given, **options)
        except torch.linalg.LinAlgError as error:  # task vectors whose products overflow float32
            raise StateDictError(
                f"Method '{self.name}': these weights are too large or too similar for a "
                f"decomposition ({shortened(str(error))})."
            ) from error
        except Exception as error:
            if not is_ours(function):
                error.add_note(f"(in merging method '{self.name}')")
            raise

    def _checked(self, given: tuple[Any, ...], merged: Any) -> Any:
        """The result, detached. Raises ``StateDictError`` if it does not match the base."""
        base, experts = given[:2]
        if self.gives == ONE:
            check_like(f"What method '{self.name}' returned", merged, base, RETURN)
            return detached(merged)
        if not isinstance(merged, list | tuple) or len(merged) != len(experts):
            raise StateDictError(
                f"Method '{self.name}' must return {len(experts)} state dicts, one per expert."
            )
        for t, state in enumerate(merged):
            check_like(f"What method '{self.name}' returned for task {t}", state, base, RETURN)
        return [detached(state) for state in merged]

    def try_options(self, options: dict[str, Any]) -> None:
        """Check the options by ``check_options`` and, for built-in methods that need only weights,
        by merging a few numbers: a value out of range is refused before anything is trained."""
        self.check_options(options)
        if not self.needs and is_ours(self.function):
            matrix = torch.arange(4.0).view(2, 2)
            self({"w": matrix}, [{"w": matrix + 1}, {"w": matrix.T}], **options)

    def check_options(self, options: dict[str, Any]) -> None:
        """Raises ``UnknownNameError`` for an unknown option, ``ConfigError`` for a value that the
        option does not take (``options.demand``)."""
        for name, value in options.items():
            check_name(f"option of method '{self.name}'", name, self.options)
            if wanted := demand(self.parameters[name], value):
                raise ConfigError(
                    f"Method '{self.name}': {name} {wanted}, not {shortened(repr(value))}."
                )


def scaled(direction: Callable[..., Tensors], lam: float) -> Callable[..., Tensors]:
    """theta_b + lam * direction, with the direction's own options."""

    @functools.wraps(direction)
    def merged(base: State, experts: Experts, *context: Context, lam=lam, **options: Any):
        return add_scaled(base, call(direction, base, experts, *context, **options), lam)

    scale = inspect.Parameter("lam", inspect.Parameter.KEYWORD_ONLY, default=lam)
    signature = inspect.signature(direction)
    if "lam" in signature.parameters:
        raise ConfigError("A function that takes lam scales by itself: leave lam= out of @method.")
    parameters = sorted([scale, *signature.parameters.values()], key=lambda p: p.kind)
    merged.__signature__ = signature.replace(parameters=parameters)
    merged.__doc__ = f"theta_m = theta_b + lam * tau_m; tau_m: {direction.__doc__ or 'its own.'}"
    return merged


METHODS: dict[str, Method] = {}


def method(
    name: str,
    *,
    label: str,
    short: str,
    lam: float | None = None,
    direction: Callable[..., Tensors] | None = None,
    needs: tuple[str, ...] = (),
    gives: str = ONE,
    paper: str = "",
    replace: bool = False,
) -> Callable[[Callable], Callable]:
    """Register the decorated function as merging method ``name``; every table and figure then
    accepts its name. You may register your own name again.

    Args:
        name, label, short: What settings, tables and figures call it.
        lam: Default lambda of a function that gives a direction: the method is theta_b + lam *
            direction.
        direction: The direction of a method that adds it to theta_b itself.
        needs: Data beyond weights, out of ``NEEDS``.
        gives: ``ONE`` or ``PER_TASK``.
        paper: Its number on arXiv.
        replace: Whether the name of one of mergelib's own methods may be taken.

    Raises:
        ConfigError: For a ``needs`` or ``gives`` that does not exist, a name that stands for
            another encoder, or, unless ``replace``, the name of a built-in method.

    Example:
        >>> @mergelib.method("largest", label="Largest", short="Largest")
        ... def largest(base, experts):
        ...     return {n: torch.stack([e[n] for e in experts]).amax(0) for n in base}
        >>> base, *experts = [{"w": torch.full((2,), x)} for x in (0.0, 1.0, 2.0, 9.0)]
        >>> mergelib.merging.get_method("largest")(base, experts)["w"]
        tensor([9., 9.])
    """
    if not isinstance(name, str) or not name or {"#", "/"} & {*name} or name in REFERENCES:
        raise ConfigError(
            f"{shortened(repr(name))} cannot name a merging method: use a text without # and /, "
            f"other than {', '.join(REFERENCES)}."
        )
    if not set(needs) <= set(NEEDS):
        raise ConfigError(
            f"Method '{name}': needs must be a tuple of names from {NEEDS}, not {needs!r}."
        )
    if {"test inputs", "labels"} <= set(needs):
        raise ConfigError(
            f"Method '{name}': labels of test inputs score the merge, so no method may use them."
        )
    if gives not in (ONE, PER_TASK):
        raise ConfigError(f"Method '{name}': gives must be '{ONE}' or '{PER_TASK}', not '{gives}'.")

    def register(function: Callable) -> Callable:
        refuse_built_in("merging method", name, METHODS.get(name), function, replace)
        check_call("method", name, function, "base", "experts", *["context"] * bool(needs))
        parts = (function, direction) if lam is None else (scaled(function, lam), function)
        METHODS[name] = Method(name, label, short, *parts, tuple(needs), gives, paper)
        return function

    return register


def get_method(name: str) -> Method:
    """The registered method. Raises ``UnknownNameError``, which suggests the nearest name."""
    check_name("merging method", name, METHODS)
    return METHODS[name]
