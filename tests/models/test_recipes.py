"""Recipes and the command line."""

from __future__ import annotations

import argparse
import json

import pytest
import yaml
from conftest import TASKS, texts
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from mergelib.core.errors import ConfigError, MergelibError, UnknownNameError
from mergelib.models.recipes import COMMANDS, add_flags, build, parse_yaml
from mergelib.run import cli

MERGE = "method: ties\nbase: b\nexperts: {ag: x, yelp: y}\noptions: {lam: 1.0, keep: 0.2}\n"


def test_flags_and_recipe_say_the_same_and_flags_win():
    parser = argparse.ArgumentParser()
    add_flags(parser, COMMANDS["merge"])
    flags = vars(
        parser.parse_args(
            "--method ties --base b --experts ag=x yelp=y --options lam=1.0 keep=0.2".split()
        )
    )
    flags.pop("recipe")
    assert build("merge", {}, flags) == build("merge", parse_yaml(MERGE))
    changed = build("merge", parse_yaml(MERGE), {"options": ["lam=0.5"]})
    assert changed.options == {"lam": 0.5, "keep": 0.2}
    assert build("merge", {"merge": parse_yaml(MERGE), "align": {}}) == build(
        "merge", parse_yaml(MERGE)
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_a_recipe_is_a_flag(command):
    parser = argparse.ArgumentParser()
    add_flags(parser, COMMANDS[command])
    assert {a.dest for a in parser._actions} == {*COMMANDS[command].model_fields, "help", "recipe"}


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"methd": "ties"}, UnknownNameError, "Nearest: 'method'"),
        ({"experts": 3}, ConfigError, "experts"),
        ({"experts": [1]}, ConfigError, "list of texts"),
        ({"options": {"lam": [1]}}, ConfigError, "options"),
        ({"experts": ["a/x", "b/x"]}, ConfigError, "two are called 'x'"),
        ({"single": "perhaps"}, ConfigError, "single"),
    ],
)
def test_a_wrong_recipe_names_the_offender(change, error, said):
    with pytest.raises(error, match=said):
        build("merge", parse_yaml(MERGE) | change)


@given(st.text(alphabet=st.sampled_from("ab:-{}[]'\"\n #&*!|>%@`0.9,?~\t"), max_size=60))
def test_broken_yaml_is_refused_in_words(text):
    try:
        build("merge", parse_yaml(text))
    except MergelibError as error:
        assert str(error)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)
names = [
    *COMMANDS["merge"].model_fields,
    "merge_method",
    "models",
    "base_model",
    "parameters",
    "merge",
    "slices",
]


@given(
    st.dictionaries(
        st.sampled_from(names),
        values | st.sampled_from(["ties", "linear", "task_arithmetic"]),
        max_size=6,
    )
)
def test_any_yaml_gives_a_recipe_or_a_typed_error(found):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            built = build("merge", parse_yaml(yaml.safe_dump(found)))
        except MergelibError as error:
            assert str(error)
        else:
            assert built.method and isinstance(built.experts, dict)


def mergekit(**changes):
    return {
        "merge_method": "ties",
        "base_model": "b",
        "models": [
            {"model": "b"},
            {"model": "x/a", "parameters": {"weight": 0.5, "density": 0.3}},
            {"model": "x/c", "parameters": {"weight": 0.5, "density": 0.3}},
        ],
    } | changes


def plain(weight):
    return [{"model": m, "parameters": {"weight": weight}} for m in ("x/a", "x/c")]


@pytest.mark.parametrize(
    ("recipe", "method", "options"),
    [
        (mergekit(), "ties", {"keep": 0.3, "lam": 1.0, "combine": "mean"}),
        (
            mergekit(parameters={"normalize": False, "lambda": 2.0}),
            "ties",
            {"keep": 0.3, "lam": 1.0, "combine": "sum"},
        ),
        (
            mergekit(merge_method="task_arithmetic", models=plain(0.4)),
            "task_arithmetic",
            {"lam": 0.4},
        ),
        (
            mergekit(
                merge_method="task_arithmetic", models=plain(0.4), parameters={"normalize": True}
            ),
            "task_arithmetic",
            {"lam": 0.5},
        ),
        (mergekit(merge_method="linear", models=plain(3), base_model=None), "weight_averaging", {}),
    ],
)
def test_mergekits_form_is_read_and_differences_are_said(recipe, method, options):
    with pytest.warns(UserWarning, match="only the encoder is merged"):
        found = build("merge", recipe)
    assert (
        found.method == method
        and found.options == options
        and found.experts == {"a": "x/a", "c": "x/c"}
    )


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (mergekit(merge_method="slerp"), "slerp"),
        (mergekit(slices=[]), "slices"),
        (mergekit(models="x"), "models"),
        (
            mergekit(
                models=[
                    {"model": "x", "parameters": {"weight": 1}},
                    {"model": "y", "parameters": {"weight": 2}},
                ]
            ),
            "differ",
        ),
        (mergekit(models=[{"model": "x", "parameters": {"weight": [0, 1]}}]), "gradients"),
        (mergekit(parameters={"epsilon": 1}), "epsilon"),
        (
            mergekit(merge_method="linear", models=plain(1.0), parameters={"normalize": False}),
            "do not sum to 1",
        ),
    ],
)
def test_what_mergekit_has_and_we_do_not_is_refused(recipe, said):
    with pytest.raises(MergelibError, match=said):
        build("merge", recipe)


@pytest.fixture
def files(family, tmp_path):
    """Labelled CSVs and unlabelled texts of the two tasks."""
    found = {}
    for task in TASKS:
        rows = list(zip(*texts(task, 40, 8), strict=True))
        (tmp_path / f"{task}.csv").write_text(
            "".join(f'{y + 1},"{t.replace(chr(34), chr(39))}"\n' for t, y in rows)
        )
        (tmp_path / f"{task}.txt").write_text("\n".join(texts(task, 60, 9)[0]))
        found[task] = (str(tmp_path / f"{task}.csv"), str(tmp_path / f"{task}.txt"))
    return found


def test_from_folders_to_scores_on_the_command_line(family, files, tmp_path, capsys):
    found, out, aligned = family("bert"), tmp_path / "out", tmp_path / "aligned"
    named = [f"{t}={found[t]}" for t in TASKS]
    (tmp_path / "recipe.yaml").write_text(
        yaml.safe_dump(
            {
                "merge": {
                    "method": "ties",
                    "base": str(found["base"]),
                    "experts": {t: str(found[t]) for t in TASKS},
                    "options": {"keep": 0.3},
                },
                "align": {"k": 5, "single": True},
            }
        )
    )
    recipe = ["--recipe", str(tmp_path / "recipe.yaml")]
    assert (
        cli.main(
            [
                "merge",
                *recipe,
                "--out",
                str(out),
                "--options",
                "lam=1.0",
                "keep=0.2",
                "--dtype",
                "float32",
            ]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert (
        "Ties of 2 experts: ag (4 classes), yelp (5 classes)" in said
        and "encoder: 39 tensors under bert; head: classifier" in said
    )
    assert json.loads((out / "mergelib.json").read_text())["options"] == {"lam": 1.0, "keep": 0.2}

    assert (
        cli.main(
            [
                "align",
                *recipe,
                "--merged",
                str(out),
                "--experts",
                *named,
                "--out",
                str(aligned),
                "--inputs",
                *(f"{t}={files[t][1]}" for t in TASKS),
                "--data",
                *(f"{t}={files[t][0]}" for t in TASKS),
            ]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert "merged, old head" in said and "merged, re-aligned head" in said and "expert" in said
    rows = {line.split()[0]: line.split() for line in said.splitlines() if "ft_classifier" in line}
    assert rows["ag"][1:3] == ["4", "20"] and rows["yelp"][1:3] == ["5", "25"]
    assert "merged, re-aligned head" in (aligned / "README.md").read_text()

    assert (
        cli.main(
            [
                "evaluate",
                "--model",
                str(aligned),
                "--data",
                f"ag={files['ag'][0]}",
                "--protocols",
                "current",
                "knn",
                "ft_classifier",
                "--experts",
                named[0],
                "-k",
                "2",
                "--seeds",
                "0",
                "1",
                "--out",
                str(tmp_path / "rows.csv"),
            ]
        )
        == 0
    )
    said = capsys.readouterr().out
    accuracy = {
        line.split()[2]: line.split()[3] for line in said.splitlines() if line.startswith("ag ")
    }
    assert (
        accuracy.keys() == {"current", "knn", "ft_classifier"}
        and (tmp_path / "rows.csv").read_text().count("\n") == 1 + 1 + 2 + 2
    )
    # The same number by the single-task folder, and in the card.
    assert (
        cli.main(
            ["evaluate", "--model", str(aligned / "tasks" / "ag"), "--data", f"ag={files['ag'][0]}"]
        )
        == 0
    )
    assert (
        f" {accuracy['current']}" in capsys.readouterr().out
        and f"| {accuracy['current']} | 40 |" in (aligned / "README.md").read_text()
    )


def test_mergekits_recipe_on_the_command_line(family, tmp_path, capsys):
    found = family("bert")
    recipe = {
        "merge_method": "linear",
        "models": [{"model": str(found[t]), "parameters": {"weight": 1.0}} for t in TASKS],
        "dtype": "bfloat16",
    }
    (tmp_path / "mergekit.yaml").write_text(yaml.safe_dump(recipe))
    assert (
        cli.main(
            ["merge", "--recipe", str(tmp_path / "mergekit.yaml"), "--out", str(tmp_path / "out")]
        )
        == 0
    )
    assert "note: mergekit recipe, linear" in capsys.readouterr().err
    assert {str(t.dtype) for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {
        "torch.bfloat16"
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["merge", "--method", "ties", "--experts", "a=x"], "give --out"),
        (["merge"], "method: Field required"),
        (["merge", "--recipe", "nowhere.yaml"], "cannot be read"),
        (["evaluate", "--model", "/nowhere", "--data", "ag=x"], "no folder"),
        (
            [
                "align",
                "--merged",
                "/nowhere",
                "--experts",
                "a=x",
                "--inputs",
                "b=y",
                "--out",
                "new",
            ],
            "was not written by",
        ),
        (
            ["merge", "--method", "tis", "--base", "b", "--experts", "a=/nowhere", "--out", "new"],
            "Nearest: 'ties'",
        ),
    ],
)
def test_refusals_of_the_command_line(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_data_files_that_hold_nothing_are_refused(tmp_path):
    from mergelib.models.data import read_inputs
    from mergelib.tasks.data import rows_of

    (tmp_path / "empty.txt").write_text("\n\n")
    for call in (
        lambda: read_inputs(tmp_path / "empty.txt", False),
        lambda: read_inputs(tmp_path, True),
        lambda: rows_of(tmp_path / "empty.txt"),
        lambda: read_inputs(tmp_path / "no.csv", False),
    ):
        with pytest.raises(MergelibError, match=r"holds no|no file|no inputs"):
            call()


def test_folders_of_images_on_the_command_line(family, tmp_path, capsys):
    from conftest import COLOURS, pictures

    found = family("vit")
    for task in COLOURS:
        for i, (image, y) in enumerate(zip(*pictures(task, 12, 3), strict=True)):
            place = tmp_path / task / COLOURS[task][y]
            place.mkdir(parents=True, exist_ok=True)
            image.save(place / f"{i}.png")
    named, files = (
        [f"{t}={where(t)}" for t in COLOURS]
        for where in (lambda t: found[t], lambda t: tmp_path / t)
    )
    assert (
        cli.main(
            [
                "merge",
                "--method",
                "task_arithmetic",
                "--base",
                str(found["base"]),
                "--experts",
                *named,
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 0
    )
    assert (
        cli.main(
            [
                "align",
                "--merged",
                str(tmp_path / "out"),
                "--experts",
                *named,
                "--inputs",
                *files,
                "--data",
                *files,
                "--out",
                str(tmp_path / "aligned"),
            ]
        )
        == 0
    )
    assert "merged, re-aligned head" in capsys.readouterr().out
