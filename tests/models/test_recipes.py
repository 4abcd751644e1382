"""Recipes and the command line."""

import json
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml
from conftest import COLOURS, TASKS, pictures, texts
from safetensors.torch import load_file

from mergelib.core.errors import ConfigError, MergelibError
from mergelib.models.recipes import COMMANDS, Parser, add_flags, as_command, build, pairs
from mergelib.run import cli, runner
from mergelib.run.parser import LISTED

CASES = yaml.safe_load(Path(__file__).with_name("recipes.yaml").read_text())
FLAGS = "merge --base b --experts ag=x yelp=y --method ties --options lam=1.0 keep=0.2"
MERGE = {
    "method": "ties",
    "base": "b",
    "experts": {"ag": "x", "yelp": "y"},
    "options": {"lam": 1.0, "keep": 0.2},
}


def told(line, recipe=()):
    """The recipe that a command line makes, of a recipe's entries or alone."""
    given = vars(cli.build_parser().parse_args(line.split()))
    options = COMMANDS[given["command"]].model_fields
    flags = {name: value for name, value in given.items() if name in options}
    return build(given["command"], dict(recipe), flags)


# ---- recipes and flags ---------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_a_recipe_is_a_flag(command):
    parser = Parser()
    add_flags(parser, COMMANDS[command])
    assert {a.dest for a in parser._actions} == {*COMMANDS[command].model_fields, "help", "recipe"}


def test_every_command_has_its_function():
    for about in LISTED["commands"].values():
        if place := about.get("does"):
            module, _, name = place.partition(":")
            assert callable(getattr(import_module(f"mergelib.{module}"), name))


def test_flags_and_recipe_say_the_same_and_flags_win():
    recipe = build("merge", MERGE)
    repeated = FLAGS.replace(" yelp", " --experts yelp").replace(" keep", " --options keep")
    for line in (FLAGS, repeated, f"{FLAGS} --base b"):
        assert told(line) == recipe
    assert told("merge", {"merge": MERGE, "align": {}}) == recipe
    assert as_command(recipe) == f"python -m mergelib {FLAGS}"
    changed = told("merge --options keep=3e-1 --experts c=z", MERGE)
    assert changed.options == {"lam": 1.0, "keep": 0.3}
    assert changed.experts == {"ag": "x", "yelp": "y", "c": "z"}


@pytest.mark.parametrize("line, recipe, said", CASES["wrong"])
def test_a_wrong_recipe_names_the_offender(line, recipe, said):
    with pytest.raises(MergelibError, match=said):
        told(line, recipe)


def test_flags_of_every_command_add_up_or_contradict(capsys):
    found = cli.build_parser().parse_args(["run", "--only", "tab02", "--only", "fig05"])
    assert found.only == ["tab02", "fig05"]
    for line in (
        "merge --method ties --method weight_averaging",
        "train --device cpu --device cuda",
        "data list --profile mini --profile real",
    ):
        with pytest.raises(SystemExit):
            told(line)
        assert "is given twice" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="-p base is given twice"):
        runner.parse_parameters(["base=a", "base=b"], runner.select(["tab02"]))


def test_an_existing_path_is_a_path_whatever_it_is_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("lr=0.1/x", "lr=1", "a=b", "b"):
        Path(name).mkdir(parents=True)
    named = {"x": "lr=0.1/x", "lr=1": "lr=1", "q": "b", tmp_path.name: "."}
    assert pairs(["lr=0.1/x", "lr=1", "q=b", "."], "experts") == named
    assert pairs(["lam=1"], "options") == {"lam": "1"}
    with pytest.raises(ConfigError, match="names the path 'b'"):
        pairs(["a=b"], "experts")


# ---- mergekit ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES["mergekit's"])
def test_mergekits_form_is_read_and_differences_are_said(case):
    with pytest.warns(UserWarning, match="only the encoder is merged"):
        found = build("merge", case["recipe"])
    assert [found.method, found.options] == case["means"]
    assert found.experts == {"a": "x/a", "c": "x/c"}
    assert found.base == case["recipe"].get("base_model", "")


@pytest.mark.parametrize("recipe, said", CASES["mergekit's alone"])
def test_what_mergekit_has_and_we_do_not_is_refused(recipe, said):
    with pytest.raises(MergelibError, match=said):
        build("merge", recipe)


# ---- the command line ----------------------------------------------------------------------------


def run(capsys, line):
    """What a command line that succeeds says."""
    assert cli.main(shlex.split(line)) == 0
    said = capsys.readouterr()
    return said.out + said.err


def named(files):
    return " ".join(f"{task}={file}" for task, file in files.items())


def test_from_folders_to_scores_on_the_command_line(family, tmp_path, capsys):
    found, out, aligned = family("bert"), tmp_path / "out", tmp_path / "aligned"
    experts = {t: str(found[t]) for t in TASKS}
    tables, pools = ({t: tmp_path / f"{t}.{end}" for t in TASKS} for end in ("csv", "txt"))
    for task in TASKS:
        rows = zip(*texts(task, 40, 8), strict=True)
        tables[task].write_text("".join(f"{y + 1},{json.dumps(t)}\n" for t, y in rows))
        pools[task].write_text("\n".join(texts(task, 60, 9)[0]))
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
    models = [{"model": str(family("bert")[t])} for t in TASKS]
    recipe = {"merge_method": "linear", "models": models, "dtype": "bfloat16"}
    file, out = tmp_path / "mergekit.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump(recipe))
    assert "note: mergekit recipe, linear" in run(capsys, f"merge --recipe {file} --out {out}")
    assert json.loads((out / "mergelib.json").read_text())["method"] == "weight_averaging"
    merged = load_file(out / "model.safetensors")
    assert {t.dtype for t in merged.values()} == {torch.bfloat16}


@pytest.mark.parametrize("line, said", CASES["refused by the command line"])
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
    experts = named({task: found[task] for task in COLOURS})
    data = named({task: tmp_path / task for task in COLOURS})
    base = f"--method task_arithmetic --base {found['base']}"
    run(capsys, f"merge {base} --experts {experts} --out {out}")
    aligned = f"--inputs {data} --data {data} --out {tmp_path / 'aligned'}"
    said = run(capsys, f"align --merged {out} --experts {experts} {aligned}")
    assert "merged, re-aligned head" in said
