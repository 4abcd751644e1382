"""Converts mergekit's YAML to our recipes, for the methods that both have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..core.errors import ConfigError, UnknownNameError, shortened, warn

PARAMETERS = {
    "linear": {"weight", "normalize"},
    "task_arithmetic": {"weight", "lambda", "normalize", "int8_mask"},
    "ties": {"weight", "density", "lambda", "normalize", "int8_mask"},
}


class Parameters(BaseModel):
    """Those of a method, with mergekit's defaults."""

    model_config = ConfigDict(strict=True)
    weight: float = 1.0
    density: float = 1.0
    scale: float = Field(1.0, alias="lambda")
    normalize: bool
    int8_mask: bool = False


class Model(BaseModel):
    model: str
    parameters: dict[str, Any] | None = None


class Configuration(BaseModel):
    """What is read of mergekit's format; ``name`` and ``tokenizer_source`` change nothing."""

    model_config = ConfigDict(extra="forbid")
    merge_method: str
    models: list[Model]
    base_model: str | None = None
    parameters: dict[str, Any] | None = None
    dtype: Any = None
    out_dtype: Any = None
    tokenizer_source: Any = None
    name: Any = None
    out: Any = None
    device: Any = None


def from_mergekit(content: Mapping[str, Any]) -> dict[str, Any]:
    """A mergekit configuration as ours: linear, task_arithmetic, ties.

    Differences in meaning are said in a ``UserWarning``. Raises ``UnknownNameError`` for another
    method and ``ConfigError`` for what has no counterpart here (slices, gradients, filters,
    unequal weights).
    """
    name = content["merge_method"]
    if not isinstance(name, str) or name not in PARAMETERS:
        raise UnknownNameError("mergekit method that mergelib knows too", name, PARAMETERS)
    given = _read(Configuration, content)
    experts = [m for m in given.models if m.model != given.base_model]
    if not experts:
        raise _refusal("no model besides the base.")
    defaults = {"normalize": name != "task_arithmetic"} | (given.parameters or {})
    shared, *each = (
        _parameters(name, defaults | own) for own in ({}, *(m.parameters or {} for m in experts))
    )
    weight, keep = (_same(each, option) for option in ("weight", "density"))
    normalize, scale, n = shared.normalize, shared.scale, len(experts)
    notes = [
        "only the encoder is merged, every task keeps its own head (mergekit merges all tensors)"
    ]
    options: dict[str, Any] = {}
    if name == "linear":
        if not normalize and abs(weight * n - 1) > 1e-6:
            raise _refusal(
                "linear without normalize and with weights that do not sum to 1 "
                "scales the model, which is not supported."
            )
        if n < len(given.models):
            raise _refusal("linear includes the base, too; here only experts are averaged.")
    elif name == "task_arithmetic":
        options = {"lam": scale * (1 / n if normalize else weight)}
    else:
        options = {
            "keep": keep,
            "lam": scale * (1 if normalize else weight),
            "combine": "mean" if normalize else "sum",
        }
        notes += [
            "the kept fraction is that of the whole encoder at once "
            "(mergekit trims each tensor by itself)",
            "a column that sums to exactly 0 takes the network's overall sign (mergekit: plus)",
        ]
    if given.dtype:
        notes.append("merging is done in float32 and rounded once (mergekit merges in `dtype`)")
    if given.tokenizer_source:
        notes.append("tokenizer_source is ignored: the parents must have the same vocabulary")
    if shared.int8_mask:
        notes.append("int8_mask is ignored")
    warn(f"mergekit recipe, {name}: {'; '.join(notes)}.")
    recipe = {
        "experts": [m.model for m in experts],
        "method": "weight_averaging" if name == "linear" else name,
        "options": options,
        "base": given.base_model,
        "dtype": given.out_dtype or given.dtype,
        "out": given.out,
        "device": given.device,
    }
    return {key: value for key, value in recipe.items() if value}


def problems(error: ValidationError) -> str:
    """The first of what pydantic found, for one of our messages."""
    return "; ".join(
        f"{shortened('.'.join(map(str, e['loc'])))}: {shortened(e['msg'], 200)}"
        for e in error.errors(include_input=False)[:3]
    )


def _refusal(text: str) -> ConfigError:
    return ConfigError(f"mergekit recipe: {text}")


def _read(kind: type[BaseModel], content: Mapping[str, Any]) -> Any:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise _refusal(
            f"{problems(error)}. Whole models are merged, by single numbers: slices, and gradients "
            "and filters by layer, have no counterpart here."
        ) from error


def _parameters(method: str, given: dict[str, Any]) -> Parameters:
    for name in given:
        if name not in PARAMETERS[method]:
            what = f"parameter of mergekit's {method} with a counterpart here"
            raise UnknownNameError(what, name, PARAMETERS[method])
    return _read(Parameters, given)


def _same(each: list[Parameters], name: str) -> float:
    values = [getattr(parameters, name) for parameters in each]
    if len({*values}) > 1:
        raise _refusal(f"'{name}' differs: {values}; mergelib gives every expert the same.")
    return values[0]
