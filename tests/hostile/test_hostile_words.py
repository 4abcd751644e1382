"""Words that people write: recipes, overrides, notebook parameters, claims, names."""

import json
import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from tiny import write_notebook

from mergelib.core import documents
from mergelib.core.errors import ConfigError, MergelibError
from mergelib.models import recipes
from mergelib.profiles import Profile, load_profile
from mergelib.run import runner

from .support import typed

# recipes warn; Python itself warns of "\d" and "1is"
pytestmark = pytest.mark.filterwarnings("ignore")

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**20)
    | st.floats()
    | st.text(max_size=12)
    | st.binary(max_size=6)
    | st.dates()
    | st.sampled_from(
        [
            "ties",
            "../up",
            "/etc",
            "~nobody-here/x",
            "a\0b",
            "x" * 5000,
            "\ud800",
            "",
            " ",
            "1e999",
            "ag=b",
        ]
    )
)
values = st.recursive(
    scalars,
    lambda x: (
        st.lists(x, max_size=4)
        | st.dictionaries(st.text(max_size=8) | st.integers(0, 9), x, max_size=4)
    ),
    max_leaves=10,
)
# Pieces of YAML, among them tags whose constructors fail in ways of their own, numbers to base 60
# and a date that does not exist.
WRITTEN = r"""
method: ties
base: b
experts: {a: x, b: y}
options: {lam: 1}
merge_method: linear
models: [{model: a}]
merge:
seed: 9e9
single: maybe
? [a, b] : c
!!bool x
!!int ''
!!float ''
!!timestamp x
!!binary x
!!set {a}
!!python/object/apply:os.getcwd []
&a
*a
<<: *a
: {
}
[
]
'
"
#
|
>
%YAML 1.1
---
- ...
?
2026-02-30
é
""".splitlines()
NUMBERS = ["1" * 5000, "k: 0x" + "F" * 5000, "1" + ":00" * 250 + ".5"]
PIECES = [*WRITTEN, *NUMBERS, "\n", "  ", "\t", "\0", "\ufeff"]
yamls = st.lists(st.sampled_from(PIECES) | st.text(max_size=6), max_size=14).map(
    "".join
) | values.map(lambda v: _dumped(v))


def _dumped(value):
    try:
        return yaml.safe_dump(value)
    except Exception:  # sizes and characters that PyYAML itself cannot write
        return repr(value)


# ---- recipes -------------------------------------------------------------------------------------


@given(yamls, st.sampled_from(sorted(recipes.COMMANDS)))
@example("options: {lam: !!bool x}", "merge")
@example("a: 1" + ":00" * 250 + ".5", "merge")
@example("&a [*a, *a]", "merge")
@example("merge_method: &a [*a]", "merge")
@example("[" * 5000, "align")
@example("k: " + "9" * 5000, "evaluate")
def test_any_text_as_a_recipe(text, command):
    found = typed(lambda: recipes.build(command, recipes.parse_yaml(text)))
    assert isinstance(found, recipes.Recipe | MergelibError)


names = st.sampled_from(
    sorted(
        {n for kind in recipes.COMMANDS.values() for n in kind.model_fields}
        | {"merge_method", "models", "base_model", "parameters"}
    )
)


@given(
    st.sampled_from(sorted(recipes.COMMANDS)),
    st.dictionaries(names | st.text(max_size=6), values, max_size=6),
    st.dictionaries(names, values, max_size=3),
)
def test_any_mapping_as_a_recipe_and_any_flags(command, given_, flags):
    found = typed(lambda: recipes.build(command, given_, flags))
    if isinstance(found, recipes.Recipe):
        assert all(isinstance(v, str) for v in getattr(found, "experts", {}).values())


# ---- profiles and overrides ----------------------------------------------------------------------


def dotted(model=Profile, prefix=""):
    """Every key that an override can have, sections included."""
    found = []
    for name, field in model.model_fields.items():
        found.append(prefix + name)
        if hasattr(field.annotation, "model_fields"):
            found += dotted(field.annotation, f"{prefix}{name}.")
    return found


keys = st.sampled_from(sorted(dotted())) | st.text(max_size=8) | st.integers(0, 3)


@given(st.dictionaries(keys, values, max_size=4))
@example({"seed": 10**30})
@example({"fine_tuning.lr": float("inf")})
@example({"tasks.names": ["x" * 5000], "tasks.source": "local"})
@example({"tasks.names": ["../up"], "tasks.source": "local"})
def test_any_overrides(overrides):
    found = typed(lambda: load_profile("quick", overrides))
    if isinstance(found, Profile):
        assert all(
            not set(n) & set("/\\.\0") and len(n.encode()) <= documents.MAX_NAME
            for n in found.tasks.names
        )
        assert all(
            0 < rate < float("inf")
            for rate in (
                found.fine_tuning.lr,
                found.encoder.pretraining.lr if found.encoder.pretraining else 1.0,
            )
        )


# ---- notebook parameters -------------------------------------------------------------------------

SIGNS = r"""{ } [ ] ( ) , : ' " 1 - + e9 0x nan None True b'' {1} ... 1j \ é # * {[]:1} f'{x}'"""
LITERALS = [*SIGNS.split(), "lambda: 0", "__import__('os')", "\n", "\0", "\udc80"]


@given(
    st.lists(st.sampled_from(LITERALS) | st.text(max_size=4), max_size=10).map("".join)
    | values.map(repr),
    st.sampled_from([*runner.TYPES, "None"]),
)
@example("[" * 5000, "list")
@example("-" * 50_000 + "1", "int")
@example("{[]: 1}", "dict")
@example("{'a': {1, 2}}", "dict")
@example("[b'x']", "list")
@example("9" * 5000, "int")
def test_any_text_as_a_notebooks_parameter(text, kind):
    found = typed(lambda: runner.parse_value("p", text, kind), "p")
    if not isinstance(found, MergelibError):
        assert type(found) is runner.TYPES.get(kind, str)
        json.dumps(found)  # how it travels to the notebook


def test_a_parameters_cell_that_computes_is_refused(tmp_path):
    write_notebook(tmp_path / "mine.ipynb", parameters="k: int = 2 + len('x')")
    with pytest.raises(ConfigError, match=r"mine\.ipynb.*default of k"):
        runner.declared_parameters(tmp_path / "mine.ipynb")


# ---- names and paths -----------------------------------------------------------------------------

odd_names = (
    st.text(max_size=12)
    | st.text(alphabet="./\\:~ \0ab", max_size=6)
    | st.sampled_from(["..", "x" * 300, "é" * 60, "/etc", "C:x", "a\nb", "\u202e", "\ud800"])
)


@given(odd_names)
def test_a_name_that_is_taken_is_a_folder_right_below(name):
    found = typed(lambda: documents.check_folder_name(name))
    if found is name:
        with tempfile.TemporaryDirectory() as root:
            place = Path(root) / name
            place.mkdir()
            assert [p.name for p in Path(root).iterdir()] == [
                name
            ] and place.resolve().parent == Path(root).resolve()


@given(odd_names | st.sampled_from(["~", "~nobody-here/x", "x/" * 3000]))
def test_any_path(text):
    found = typed(lambda: documents.user_path(text))
    assert isinstance(found, MergelibError | Path)
    if isinstance(found, Path):
        found.is_dir()  # asks the file system without an error
