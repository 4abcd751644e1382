"""The options of the commands, from flags, a YAML recipe, or mergekit's YAML.

One class per command lists its options, and the flags are generated from it: recipes and flags have
the same options.
"""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
)

from ..core import documents
from ..core.errors import ConfigError, check_name, shortened
from .mergekit import from_mergekit, problems

LAMS = (0.2, 0.4, 0.7, 1.0, 1.4)
"""The grid of lambda on one's own models."""


def _typed(value: Any) -> Any:
    """A number or truth value that stands in a text, else what is given."""
    if not isinstance(value, str) or ":" in value:  # YAML 1.1 would read 1:30 as 90
        return value
    try:
        found = documents.parse_yaml(value, "value")
    except ConfigError:
        return value
    return found if isinstance(found, bool | int | float) else value


Names = dict[str, str]
Value = Annotated[bool | int | float | str, BeforeValidator(_typed)]


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Recipe(Options):
    device: str = "auto"
    """auto, cpu, cuda or mps"""
    out: str = ""
    """folder to write"""
    overwrite: bool = False
    """replace what mergelib wrote there"""


class ReadingRecipe(Recipe):
    text_column: int | str | None = None
    """column of the text in tables: its name, or its number from 0"""
    max_length: NonNegativeInt = 0
    """cut texts to N tokens (default: the model's maximum)"""
    batch_size: PositiveInt = 64
    """inputs at a time"""


class ScoringRecipe(ReadingRecipe):
    preset: str = "default"
    """FT-Classifier's preset: default or released"""
    limit: NonNegativeInt = 0
    """score N rows only, drawn at random (fixed seed)"""
    first_label: int | None = Field(None, ge=0, le=1)
    """number of the first class in files (default: inferred)"""


class ExpertsRecipe(ScoringRecipe):
    base: str = ""
    """hub id or folder of the model that the experts were fine-tuned from"""
    experts: Names = Field(min_length=1)
    """task=MODEL, or MODEL: hub ids or folders"""
    encoder: list[str] = []
    """patterns for the encoder's tensors, for example 'bert.*' (default: those that the base
    has)"""
    head: str = ""
    """name of the last linear layer (default: from the architecture)"""
    seed: int = 0
    """of the draw of k inputs per class"""


class MergeRecipe(ExpertsRecipe):
    """Merge the encoders of fine-tuned classifiers into one; every task keeps its head."""

    method: str
    """its name: `python -m mergelib methods` lists all"""
    options: dict[str, Value] = {}
    """options of the method: lam=1.0 keep=0.2"""
    lam: float | Literal["auto"] | None = None
    """lambda: a number, or auto, which needs --validation or --inputs"""
    validation: Names = {}
    """task=FILE with labels, for --lam auto"""
    inputs: Names = {}
    """task=FILE of inputs, for --lam auto (unlabelled) and for methods that need more than
    weights"""
    k: NonNegativeInt = 0
    """of the inputs, a method gets k per class, and --lam auto re-aligns heads with them (default:
    all, and old heads)"""
    dtype: str = ""
    """float32, bfloat16 or float16 (default: the base's)"""
    single: bool = False
    """also write an ordinary folder per task"""


class AlignRecipe(ScoringRecipe):
    """Re-align every task's head to the merged encoder with a few unlabelled inputs."""

    merged: str
    """folder that `merge` wrote"""
    experts: Names
    """task=MODEL: the experts, whose outputs are the targets"""
    inputs: Names = Field(min_length=1)
    """task=FILE: .txt (a text per line), a table (its labels are ignored: .csv, .tsv, .jsonl,
    .parquet) or a folder of images"""
    k: PositiveInt | None = None
    """use k inputs per class on average, drawn without labels (default: all)"""
    seed: int = 0
    """of that draw"""
    protocol: str = "ft_classifier"
    """ft_classifier, orthogonal_classifier or orthogonal_procrustes"""
    data: Names = {}
    """task=FILE with labels: score before and after, and put it into the model card"""
    single: bool = False
    """also write an ordinary folder per task"""


class EvaluateRecipe(ScoringRecipe):
    """Score a model, a merged folder or an aligned folder."""

    model: str
    """hub id or folder: a classifier, or a folder that `merge` or `align` wrote"""
    data: Names = Field(min_length=1)
    """task=FILE with labels: .csv, .tsv, .jsonl, .parquet, or a folder with one folder of images
    per class"""
    protocols: list[str] = Field(["current"], min_length=1)
    """their names: `python -m mergelib protocols` lists all"""
    experts: Names = {}
    """task=MODEL, for protocols that learn from the expert"""
    fit: Names = {}
    """task=FILE that few-shot protocols draw from (default: the scored rows)"""
    k: PositiveInt = 5
    """shots per class"""
    seeds: list[int] = Field([0, 1, 2, 3, 4], min_length=1)
    """of the draws"""
    draw: str = "stratified"
    """stratified or uniform"""


class CompareRecipe(ExpertsRecipe):
    """Compare merging methods, lambdas and heads on your own models, and write a report."""

    inputs: Names = {}
    """task=FILE: unlabelled inputs; k per class re-align, the others score"""
    validation: Names = {}
    """task=FILE with labels: choose on them, not on agreement with the experts"""
    test: Names = {}
    """task=FILE with labels: report on them"""
    methods: list[str] = Field(["fast"], min_length=1)
    """fast, all or names"""
    lams: list[float] = Field(list(LAMS), min_length=1)
    """the grid of lambda"""
    k: NonNegativeInt = 5
    """inputs per class to re-align with; 0: old heads only"""


class PredictRecipe(ReadingRecipe):
    """Predict the classes of new texts or images, with all heads of a model or some."""

    out: str = ""
    """file to write, .csv or .jsonl (default: CSV on stdout)"""
    model: str
    """hub id or folder: a classifier, or a folder that `merge` or `align` wrote"""
    inputs: str
    """FILE: .txt (a text per line), a table (.csv, .tsv, .jsonl, .parquet) or a folder of images"""
    tasks: list[str] = []
    """heads to ask (default: all)"""
    top: PositiveInt = 1
    """how many classes of each input, best first"""


class PushRecipe(Options):
    """Upload a folder that `merge` or `align` wrote to the hub."""

    model: str
    """the folder; its README.md is the model card"""
    to: str
    """hub id: user/name"""
    private: bool = False
    """make a new repository private"""
    overwrite: bool = False
    """add a commit to a repository that holds files"""


COMMANDS: dict[str, type[Options]] = {
    "merge": MergeRecipe,
    "align": AlignRecipe,
    "evaluate": EvaluateRecipe,
    "compare": CompareRecipe,
    "predict": PredictRecipe,
    "push": PushRecipe,
}


class Parser(argparse.ArgumentParser):
    """In every command, repeated flags add up or are refused."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.register("action", None, AddUp)


class AddUp(argparse.Action):
    """A flag's values add up, also if it is repeated; for a flag with a single value, two different
    values are an error."""

    def __call__(self, parser, namespace, values, option_string=None):
        previous = getattr(namespace, self.dest, None)
        previous = None if previous == self.default else previous
        if isinstance(values, list):
            values = [*(previous or []), *values]
        elif previous not in (None, values):
            parser.error(f"{option_string} is given twice: {previous} and {values}.")
        setattr(namespace, self.dest, values)


def add_flags(parser: Parser, kind: type[Options]) -> None:
    """One flag per field; a flag that is not given stays out of the namespace, so that the recipe's
    value counts."""
    for name, info in kind.model_fields.items():
        options: dict[str, Any] = {"help": info.description, "default": argparse.SUPPRESS}
        if info.annotation is bool:
            options["action"] = "store_true"
        else:
            options["metavar"] = "name=value" if _holds(kind, name, dict) else name.upper()
        if _holds(kind, name, dict, list):
            options["nargs"] = "+"
        parser.add_argument(_flag(name), dest=name, **options)
    parser.add_argument(
        "--recipe",
        metavar="FILE",
        help="YAML with the same names (flags win); merge also reads mergekit's format",
    )


def _flag(name: str) -> str:
    return "-k" if name == "k" else "--" + name.replace("_", "-")


def _holds(kind: type[Options], name: str, *forms: type) -> bool:
    """Whether an option is a mapping (``dict``) or a list."""
    return name in kind.model_fields and get_origin(kind.model_fields[name].annotation) in forms


def pairs(texts: list[Any], what: str) -> Names:
    """``name=value`` texts as a dict; a path without a name is named after its last part.

    Raises ``ConfigError`` for a repeated name, and for a text that can be read in two ways.
    """
    named: Names = {}
    for text in texts:
        if not isinstance(text, str):
            raise ConfigError(f"{what} must be a list of texts, or a mapping from name to value.")
        name, separator, value = text.partition("=")
        if what != "options" and (not separator or "/" in name or _exists(text)):
            if separator and "/" not in name and _exists(value):
                raise ConfigError(
                    f"{what}: '{shortened(text)}' is itself a path, but also names the path "
                    f"'{shortened(value)}'; write './{shortened(text)}' for the first."
                )
            path = text if _exists(text) else text.partition("@")[0]
            name, value = Path(os.path.abspath(path)).name, text  # also for "."
        if not name or not value:
            raise ConfigError(f"{what}: '{shortened(text)}' is not name=value.")
        if name in named:
            raise ConfigError(
                f"{what}: two are called '{shortened(name)}'"
                + ("." if what == "options" else f"; name them: other={shortened(value)}.")
            )
        named[name] = value
    return named


def _exists(path: str) -> bool:
    try:
        return documents.user_path(path).exists()
    except (ConfigError, OSError):
        return False


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping from a file. Raises ``ConfigError`` with the line that cannot be read."""
    return parse_yaml(documents.read_text(path, f"recipe {shortened(str(path), 200)}"), str(path))


def parse_yaml(text: str, where: str = "recipe") -> dict[str, Any]:
    """The same, from a text."""
    content = documents.parse_yaml(text, where)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(f"{where}: a recipe is a mapping such as 'method: ties'.")
    return content


def build(
    command: str, content: Mapping[str, Any], flags: Mapping[str, Any] | None = None
) -> Options:
    """A recipe from a YAML mapping, or its section named after the command, and flags.

    A flag overrides the recipe's value; if both are mappings (options, experts, ...), it overrides
    name by name and the recipe's other entries stay.

    Raises ``ConfigError`` for an invalid value and ``UnknownNameError`` for an unknown option.
    """
    kind = COMMANDS[command]
    section = content.get(command)
    if isinstance(section, dict):
        stray = next((key for key in content if key not in COMMANDS), None)
        if stray is not None:
            raise ConfigError(
                f"recipe: '{shortened(stray)}' stands outside the section '{command}'; move it "
                "into the section, or use no sections."
            )
        content = section
    if command == "merge" and "merge_method" in content:
        content = from_mergekit(content)
    values: dict[str, Any] = {}
    for name, value in (*content.items(), *(flags or {}).items()):
        check_name(f"option of {command}", name, kind.model_fields)
        if isinstance(value, list):
            if _holds(kind, name, dict):
                value = pairs(value, name)
            elif len({repr(v) for v in value}) < len(value):
                raise ConfigError(f"{name}: {shortened(value)} contains a name twice.")
        before = values.get(name)
        both = isinstance(before, dict) and isinstance(value, dict)
        values[name] = before | value if both else value
    try:
        return kind(**values)
    except ValidationError as error:
        raise ConfigError(f"{command}: {problems(error)}.") from error


def as_command(recipe: Options) -> str:
    """The command line that gives this recipe, without what is the default anyway."""
    command = next(name for name, kind in COMMANDS.items() if type(recipe) is kind)
    words = ["python", "-m", "mergelib", command]
    for name, value in recipe.model_dump(exclude_defaults=True).items():
        if isinstance(value, dict):
            value = [f"{k}={v}" for k, v in value.items()]
        values = value if isinstance(value, list) else [] if value is True else [value]
        words += [_flag(name), *map(str, values)]
    return shlex.join(words)
