"""Recipes and the command line."""

import json
import shlex

import pytest
import torch
import yaml
from conftest import COLOURS, TASKS, pictures, texts
from safetensors.torch import load_file

from mergelib.core.errors import ConfigError, MergelibError, UnknownNameError
from mergelib.models.recipes import COMMANDS, Parser, add_flags, build, parse_yaml
from mergelib.run import cli

MERGE = "method: ties\nbase: b\nexperts: {ag: x, yelp: y}\noptions: {lam: 1.0, keep: 0.2}\n"


def test_flags_and_recipe_say_the_same_and_flags_win():
    parser = Parser()
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
    parser = Parser()
    add_flags(parser, COMMANDS[command])
    assert {a.dest for a in parser._actions} == {*COMMANDS[command].model_fields, "help", "recipe"}


@pytest.mark.parametrize(
    "change, error, said",
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
    "recipe, method, options",
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
    "recipe, said",
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


def run(capsys, line):
    """What a command line that succeeds says on standard output."""
    assert cli.main(shlex.split(line)) == 0
    return capsys.readouterr().out


def named(files):
    return " ".join(f"{task}={file}" for task, file in files.items())


def test_from_folders_to_scores_on_the_command_line(family, files, tmp_path, capsys):
    found, out, aligned = family("bert"), tmp_path / "out", tmp_path / "aligned"
    experts = {t: str(found[t]) for t in TASKS}
    tables, pools = ({t: files[t][i] for t in TASKS} for i in (0, 1))
    merge = {"method": "ties", "base": str(found["base"]), "experts": experts}
    recipe = {"merge": merge | {"options": {"keep": 0.3}}, "align": {"k": 5, "single": True}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    written = f"--recipe {tmp_path / 'recipe.yaml'}"
    said = run(capsys, f"merge {written} --out {out} --options lam=1.0 keep=0.2 --dtype float32")
    assert "Ties of 2 experts: ag (4 classes), yelp (5 classes)" in said
    assert "encoder: 39 tensors under bert; head: classifier" in said
    assert json.loads((out / "mergelib.json").read_text())["options"] == {"lam": 1.0, "keep": 0.2}

    said = run(
        capsys,
        f"align {written} --merged {out} --experts {named(experts)} --out {aligned}"
        f" --inputs {named(pools)} --data {named(tables)}",
    )
    assert "merged, old head" in said and "merged, re-aligned head" in said and "expert" in said
    rows = {line.split()[0]: line.split() for line in said.splitlines() if "ft_classifier" in line}
    assert rows["ag"][1:3] == ["4", "20"] and rows["yelp"][1:3] == ["5", "25"]
    card = (aligned / "README.md").read_text()
    assert "merged, re-aligned head" in card

    said = run(
        capsys,
        f"evaluate --model {aligned} --data ag={tables['ag']} --experts ag={experts['ag']}"
        f" --protocols current knn ft_classifier -k 2 --seeds 0 1 --out {tmp_path / 'rows.csv'}",
    )
    cells = [line.split() for line in said.splitlines() if line.startswith("ag ")]
    accuracy = {row[2]: row[3] for row in cells}
    assert accuracy.keys() == {"current", "knn", "ft_classifier"}
    assert (tmp_path / "rows.csv").read_text().count("\n") == 1 + 1 + 2 + 2
    # The same number by the single-task folder, and in the card.
    said = run(capsys, f"evaluate --model {aligned / 'tasks' / 'ag'} --data ag={tables['ag']}")
    assert f" {accuracy['current']}" in said and f"| {accuracy['current']} | " in card


def test_mergekits_recipe_on_the_command_line(family, tmp_path, capsys):
    models = [{"model": str(family("bert")[t]), "parameters": {"weight": 1.0}} for t in TASKS]
    recipe = {"merge_method": "linear", "models": models, "dtype": "bfloat16"}
    (tmp_path / "mergekit.yaml").write_text(yaml.safe_dump(recipe))
    command = f"merge --recipe {tmp_path / 'mergekit.yaml'} --out {tmp_path / 'out'}"
    assert cli.main(shlex.split(command)) == 0
    assert "note: mergekit recipe, linear" in capsys.readouterr().err
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert {t.dtype for t in merged.values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    "line, said",
    [
        ("merge --method ties --experts a=x", "give --out"),
        ("merge", "method: Field required"),
        ("merge --recipe nowhere.yaml", "cannot be read"),
        ("evaluate --model /nowhere --data ag=x", "no folder"),
        ("align --merged /nowhere --experts a=x --inputs b=y --out new", "was not written by"),
        ("merge --method tis --base b --experts a=/nowhere --out new", "Nearest: 'ties'"),
    ],
)
def test_refusals_of_the_command_line(line, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(line.split()) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_folders_of_images_on_the_command_line(family, tmp_path, capsys):
    found, out = family("vit"), tmp_path / "out"
    for task in COLOURS:
        for i, (image, y) in enumerate(zip(*pictures(task, 12, 3), strict=True)):
            place = tmp_path / task / COLOURS[task][y]
            place.mkdir(parents=True, exist_ok=True)
            image.save(place / f"{i}.png")
    experts, data = (
        named({t: root / t for t in COLOURS}) for root in (found["base"].parent, tmp_path)
    )
    run(
        capsys,
        f"merge --method task_arithmetic --base {found['base']} --experts {experts} --out {out}",
    )
    said = run(
        capsys,
        f"align --merged {out} --experts {experts} --inputs {data} --data {data}"
        f" --out {tmp_path / 'aligned'}",
    )
    assert "merged, re-aligned head" in said
