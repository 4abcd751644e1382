"""What the commands merge, align and evaluate can be told: by flags, by a YAML recipe, or by mergekit's YAML.

One class per command is the single list of options: the flags are made from it, so a recipe knows every flag and no other.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .. import documents
from ..errors import ConfigError, UnknownNameError, shortened

Names = dict[str, str]
Value = bool | int | float | str


class Recipe(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    device: str = Field("auto", description="auto, cpu, cuda or mps")
    out: str = Field("", description="folder to write")
    overwrite: bool = Field(False, description="replace a folder that exists")


class MergeRecipe(Recipe):
    """Merge the encoders of fine-tuned classifiers into one; every task keeps its head."""

    method: str = Field(description="weight_averaging, task_arithmetic, ties, ...")
    base: str = Field(
        "", description="hub id or folder of the model that the experts were fine-tuned from"
    )
    experts: Names = Field(description="task=MODEL, or MODEL: hub ids or folders")
    options: dict[str, Value] = Field({}, description="options of the method: lam=1.0 keep=0.2")
    encoder: list[str] = Field(
        [],
        description="patterns of what is encoder, for example 'bert.*' (default: told by the base)",
    )
    head: str = Field(
        "", description="name of the last linear layer (default: told by the architecture)"
    )
    dtype: str = Field("", description="float32, bfloat16 or float16 (default: the base's)")
    single: bool = Field(False, description="also write an ordinary folder per task")


class AlignRecipe(Recipe):
    """Re-align every task's head to the merged encoder with a few unlabelled inputs."""

    merged: str = Field(description="folder that `merge` wrote")
    experts: Names = Field(description="task=MODEL: the experts, whose outputs are the targets")
    inputs: Names = Field(
        description="task=FILE: .txt (a text per line), .csv[.gz] (labels are not looked at) or a folder of images"
    )
    k: int = Field(
        0, ge=0, description="draw k inputs per class, without looking at classes (default: all)"
    )
    seed: int = Field(0, description="of that draw")
    protocol: str = Field(
        "ft_classifier", description="ft_classifier, orthogonal_classifier or orthogonal_procrustes"
    )
    preset: str = Field("default", description="FT-Classifier's preset: default or released")
    data: Names = Field(
        {},
        description="task=FILE with labels: score before and after, and put it into the model card",
    )
    limit: int = Field(0, ge=0, description="score N rows only, drawn at random (fixed seed)")
    text_column: int | None = Field(
        None, ge=0, description="column of the text in CSV files, counted from 0"
    )
    max_length: int = Field(
        0, ge=0, description="cut texts to N tokens (default: what the model takes)"
    )
    batch_size: int = Field(64, ge=1, description="inputs at a time")
    single: bool = Field(False, description="also write an ordinary folder per task")


class EvaluateRecipe(Recipe):
    """Accuracy of a model, a merged folder or an aligned folder."""

    model: str = Field(
        description="hub id or folder: a classifier, or what `merge` or `align` wrote"
    )
    data: Names = Field(
        description="task=FILE with labels: .csv[.gz] or a folder with one folder of images per label"
    )
    protocols: list[str] = Field(["current"], description="current, knn, ft_classifier, ...")
    experts: Names = Field({}, description="task=MODEL, for protocols that learn from the expert")
    fit: Names = Field(
        {}, description="task=FILE that few-shot protocols draw from (default: the scored rows)"
    )
    k: int = Field(5, ge=1, description="shots per class")
    seeds: list[int] = Field([0, 1, 2, 3, 4], description="of the draws")
    draw: str = Field("stratified", description="stratified or uniform")
    preset: str = Field("default", description="FT-Classifier's preset: default or released")
    limit: int = Field(0, ge=0, description="score N rows only, drawn at random (fixed seed)")
    text_column: int | None = Field(
        None, ge=0, description="column of the text in CSV files, counted from 0"
    )
    max_length: int = Field(
        0, ge=0, description="cut texts to N tokens (default: what the model takes)"
    )
    batch_size: int = Field(64, ge=1, description="inputs at a time")


COMMANDS: dict[str, type[Recipe]] = {
    "merge": MergeRecipe,
    "align": AlignRecipe,
    "evaluate": EvaluateRecipe,
}
R = TypeVar("R", bound=Recipe)


def add_flags(parser: argparse.ArgumentParser, kind: type[Recipe]) -> None:
    """One flag per field; what is not given stays out of the namespace, so that a recipe's value counts."""
    for name, info in kind.model_fields.items():
        flag, options = (
            "-k" if name == "k" else "--" + name.replace("_", "-"),
            {"help": info.description, "default": argparse.SUPPRESS},
        )
        if info.annotation is bool:
            options["action"] = "store_true"
        elif info.annotation in (Names, dict[str, Value], list[str], list[int]):
            options |= {
                "nargs": "+",
                "metavar": "name=value"
                if info.annotation in (Names, dict[str, Value])
                else name.upper(),
            }
        else:
            options["metavar"] = name.upper()
        parser.add_argument(flag, dest=name, **options)
    parser.add_argument(
        "--recipe",
        metavar="FILE",
        help="YAML with the same names (flags win); merge also reads mergekit's form",
    )


def pairs(texts: list[str], what: str) -> Names:
    """``name=value`` texts as a dict; a value alone is named after its last part. Raises ``ConfigError`` for a name given twice."""
    found: Names = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator:
            name, value = Path(text.partition("@")[0]).name, text
        if not name or not value:
            raise ConfigError(f"{what}: '{shortened(text)}' is not name=value.")
        if name in found:
            raise ConfigError(
                f"{what}: two are called '{shortened(name)}'; name them: {what}: other={shortened(value)}."
            )
        found[name] = value
    return found


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML mapping. Raises ``ConfigError`` with the line of what cannot be read."""
    return parse_yaml(documents.read_text(path, f"recipe {shortened(str(path), 200)}"), str(path))


def parse_yaml(text: str, where: str = "recipe") -> dict[str, Any]:
    """The same from a text."""
    found = documents.parse_yaml(text, where)
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise ConfigError(f"{where}: a recipe is a mapping such as 'method: ties'.")
    return found


def build(command: str, given: Mapping[str, Any], flags: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe from a YAML mapping (or its section named after the command), overridden by flags.

    Raises ``ConfigError`` for a wrong value and ``UnknownNameError`` for an option that does not exist.
    """
    kind = COMMANDS[command]
    section = given.get(command)
    given = section if isinstance(section, dict) else given
    if command == "merge" and "merge_method" in given:
        given = from_mergekit(given)
    values = {**given, **(flags or {})}
    for name in values:
        if name not in kind.model_fields:
            raise UnknownNameError(f"option of {command}", name, kind.model_fields)
    for name, info in kind.model_fields.items():
        value = values.get(name)
        if info.annotation in (Names, dict[str, Value]) and isinstance(value, list):
            if not all(isinstance(v, str) for v in value):
                raise ConfigError(f"{name}: a list of texts, or a mapping from name to value.")
            values[name] = pairs(value, name)
        if info.annotation == dict[str, Value] and isinstance(values.get(name), dict):
            values[name] = {
                k: _typed(v) if isinstance(v, str) else v for k, v in values[name].items()
            }
    try:
        return kind(**values)
    except ValidationError as error:
        said = "; ".join(
            f"{shortened('.'.join(map(str, e['loc'])))}: {shortened(e['msg'], 200)}"
            for e in error.errors(include_input=False)[:3]
        )
        raise ConfigError(f"{command}: {said}.") from error


def _typed(text: str) -> Value:
    try:
        value = documents.parse_yaml(text, "value")
    except ConfigError:
        return text
    return value if isinstance(value, bool | int | float) else text


# ---- mergekit ---------------------------------------------------------------------------------------------------------

KNOWN_PARAMETERS = {
    "linear": {"weight", "normalize"},
    "task_arithmetic": {"weight", "lambda", "normalize", "int8_mask"},
    "ties": {"weight", "density", "lambda", "normalize", "int8_mask"},
}


def from_mergekit(given: Mapping[str, Any]) -> dict[str, Any]:
    """A mergekit configuration as ours, for the methods that both know: linear, task_arithmetic, ties.

    Differences in meaning are said in a ``UserWarning``. Raises ``UnknownNameError`` for another method and ``ConfigError`` for
    what has no counterpart here (slices, gradients, filters, unequal weights).
    """
    name = given["merge_method"]
    if not isinstance(name, str) or name not in KNOWN_PARAMETERS:
        raise UnknownNameError("mergekit method that mergelib knows too", name, KNOWN_PARAMETERS)
    odd = set(given) - {
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
    if odd:
        raise ConfigError(
            f"mergekit recipe: '{shortened(sorted(odd)[0])}' has no counterpart here; whole models are merged."
        )
    models, base = given.get("models"), given.get("base_model")
    if not isinstance(models, list) or not all(
        isinstance(m, dict) and isinstance(m.get("model"), str) for m in models
    ):
        raise ConfigError("mergekit recipe: 'models' is a list of entries with 'model: ID'.")
    if base is not None and not isinstance(base, str):
        raise ConfigError("mergekit recipe: 'base_model' is an id or a folder.")
    experts = [m for m in models if m["model"] != base]
    if not experts:
        raise ConfigError("mergekit recipe: no model besides the base.")
    shared = _parameters(given.get("parameters"), name, "parameters")
    own = [_parameters(m.get("parameters"), name, m["model"]) for m in experts]
    weights = [_number(p.get("weight", shared.get("weight", 1.0)), "weight") for p in own]
    if len(set(weights)) > 1:
        raise ConfigError(
            f"mergekit recipe: weights {weights} differ; mergelib gives every expert the same."
        )
    normalize = shared.get("normalize", name in ("linear", "ties"))
    if not isinstance(normalize, bool):
        raise ConfigError("mergekit recipe: 'normalize' is true or false.")
    scale, weight, n = _number(shared.get("lambda", 1.0), "lambda"), weights[0], len(experts)
    said = [
        "only the encoder is merged, every task keeps its own head (mergekit merges all tensors)"
    ]
    result: dict[str, Any] = {
        "experts": [m["model"] for m in experts],
        **{k: given[k] for k in ("out", "device") if k in given},
    }
    if name == "linear":
        if not normalize and abs(weight * n - 1) > 1e-6:
            raise ConfigError(
                "mergekit recipe: linear without normalize and with weights that do not sum to 1 scales the model; not done here."
            )
        if len(experts) < len(models):
            raise ConfigError(
                "mergekit recipe: linear over the base as well; here only experts are averaged."
            )
        result |= {"method": "weight_averaging"}
    elif name == "task_arithmetic":
        result |= {
            "method": "task_arithmetic",
            "options": {"lam": scale * (1 / n if normalize else weight)},
        }
    else:
        densities = {_number(p.get("density", shared.get("density", 1.0)), "density") for p in own}
        if len(densities) > 1:
            raise ConfigError(
                f"mergekit recipe: densities {sorted(densities)} differ; mergelib trims every expert alike."
            )
        result |= {
            "method": "ties",
            "options": {
                "keep": densities.pop(),
                "lam": scale * (1 if normalize else weight),
                "combine": "mean" if normalize else "sum",
            },
        }
        said.append(
            "the kept fraction is that of the whole encoder at once (mergekit trims each tensor by itself)"
        )
        said.append(
            "a column that sums to exactly 0 takes the network's overall sign (mergekit: plus)"
        )
    if base is not None:
        result["base"] = base
    dtype = given.get("out_dtype") or given.get("dtype")
    if dtype is not None:
        result["dtype"] = dtype
    if "dtype" in given:
        said.append("merging is done in float32 and rounded once (mergekit merges in `dtype`)")
    if "tokenizer_source" in given:
        said.append("tokenizer_source is not looked at: the parents must have one vocabulary")
    if shared.get("int8_mask"):
        said.append("int8_mask is not looked at")
    warnings.warn(f"mergekit recipe, {name}: {'; '.join(said)}.", UserWarning, stacklevel=3)
    return result


def _parameters(given: Any, method: str, where: str) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise ConfigError(f"mergekit recipe, {where}: parameters are a mapping.")
    for name in given:
        if name not in KNOWN_PARAMETERS[method]:
            raise UnknownNameError(
                f"parameter of mergekit's {method} with a counterpart here",
                name,
                KNOWN_PARAMETERS[method],
            )
    return given


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(
            f"mergekit recipe: '{name}' is one number here; gradients and filters by layer have no counterpart."
        )
    return float(value)
