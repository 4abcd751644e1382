"""Converts mergekit's YAML to our recipes, for the methods that both have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.errors import ConfigError, UnknownNameError, shortened, warn

PARAMETERS = {
    "linear": {"weight", "normalize"},
    "task_arithmetic": {"weight", "lambda", "normalize", "int8_mask"},
    "ties": {"weight", "density", "lambda", "normalize", "int8_mask"},
}
KEYS = {
    "merge_method",
    "base_model",
    "models",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "name",
    "out",
    "device",
}


def from_mergekit(content: Mapping[str, Any]) -> dict[str, Any]:
    """A mergekit configuration as ours: linear, task_arithmetic, ties.

    Differences in meaning are said in a ``UserWarning``. Raises ``UnknownNameError`` for another
    method and ``ConfigError`` for what has no counterpart here (slices, gradients, filters,
    unequal weights).
    """
    name = content["merge_method"]
    if not isinstance(name, str) or name not in PARAMETERS:
        raise UnknownNameError("mergekit method that mergelib knows too", name, PARAMETERS)
    if keys := sorted(content.keys() - KEYS):
        raise _refusal(f"'{shortened(keys[0])}' has no counterpart here; whole models are merged.")
    models, base = content.get("models"), content.get("base_model")
    if not isinstance(models, list) or not all(
        isinstance(m, dict) and isinstance(m.get("model"), str) for m in models
    ):
        raise _refusal("'models' is a list of entries with 'model: ID'.")
    if base is not None and not isinstance(base, str):
        raise _refusal("'base_model' is an id or a folder.")
    experts = [m for m in models if m["model"] != base]
    if not experts:
        raise _refusal("no model besides the base.")
    shared = _parameters(content.get("parameters"), name, "parameters")
    each = [shared | _parameters(m.get("parameters"), name, m["model"]) for m in experts]
    weight = _same(each, "weight", "mergelib gives every expert the same")
    normalize = shared.get("normalize", name in ("linear", "ties"))
    if not isinstance(normalize, bool):
        raise _refusal("'normalize' is true or false.")
    scale, n = _number(shared.get("lambda", 1.0), "lambda"), len(experts)
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
        if len(experts) < len(models):
            raise _refusal("linear includes the base, too; here only experts are averaged.")
    elif name == "task_arithmetic":
        options = {"lam": scale * (1 / n if normalize else weight)}
    else:
        options = {
            "keep": _same(each, "density", "mergelib trims every expert alike"),
            "lam": scale * (1 if normalize else weight),
            "combine": "mean" if normalize else "sum",
        }
        notes += [
            "the kept fraction is that of the whole encoder at once "
            "(mergekit trims each tensor by itself)",
            "a column that sums to exactly 0 takes the network's overall sign (mergekit: plus)",
        ]
    recipe = {
        "experts": [m["model"] for m in experts],
        **{k: content[k] for k in ("out", "device") if k in content},
        "method": "weight_averaging" if name == "linear" else name,
    }
    dtype = content.get("out_dtype") or content.get("dtype")
    recipe |= {k: v for k, v in (("options", options), ("base", base), ("dtype", dtype)) if v}
    if "dtype" in content:
        notes.append("merging is done in float32 and rounded once (mergekit merges in `dtype`)")
    if "tokenizer_source" in content:
        notes.append("tokenizer_source is ignored: the parents must have the same vocabulary")
    if shared.get("int8_mask"):
        notes.append("int8_mask is ignored")
    warn(f"mergekit recipe, {name}: {'; '.join(notes)}.")
    return recipe


def _refusal(text: str) -> ConfigError:
    return ConfigError(f"mergekit recipe: {text}")


def _parameters(content: Any, method: str, where: str) -> dict[str, Any]:
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"mergekit recipe, {shortened(where)}: parameters must be a mapping.")
    for name in content:
        if name not in PARAMETERS[method]:
            raise UnknownNameError(
                f"parameter of mergekit's {method} with a counterpart here",
                name,
                PARAMETERS[method],
            )
    return content


def _same(each: list[dict[str, Any]], name: str, why: str) -> float:
    values = [_number(p.get(name, 1.0), name) for p in each]
    if len(set(values)) > 1:
        raise _refusal(f"'{name}' differs: {values}; {why}.")
    return values[0]


def _number(value: Any, name: str) -> float:
    if isinstance(value, list | dict):
        raise _refusal(
            f"'{name}' must be a single number; "
            "gradients and filters by layer have no counterpart here."
        )
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _refusal(f"'{name}' must be a number, not {shortened(repr(value))}.")
    return float(value)
