"""Recipes and the command line."""

import json
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from conftest import COLOURS, TASKS, pictures, texts
from safetensors.torch import load_file

from mergelib.core.errors import ConfigError, MergelibError
from mergelib.models.recipes import COMMANDS, as_command, build, pairs
from mergelib.run import cli, runner

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
def test_every_option_of_a_recipe_is_a_flag(command, capsys):
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    said = capsys.readouterr().out
    for name in COMMANDS[command].model_fields:
        assert f" -{'' if name == 'k' else '-'}{name.replace('_', '-')}" in said


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


@pytest.mark.parametrize(
    "line, recipe, said",
    [
        ("merge", MERGE | {"methd": "ties"}, "Nearest: 'method'"),
        ("merge", MERGE | {"experts": 3}, "experts"),
        ("merge", MERGE | {"experts": [1]}, "list of texts"),
        ("merge", MERGE | {"options": {"lam": [1]}}, "options"),
        ("merge", MERGE | {"experts": ["a/x", "b/x"]}, "two are called 'x'"),
        ("merge", MERGE | {"single": "perhaps"}, "single"),
        ("merge", {"method": "ties", "merge": MERGE}, "'method' stands outside"),
        ("merge --options lam=1 --options lam=2", MERGE, "two are called 'lam'"),
        ("evaluate --model m --data a=f --seeds 0 0", {}, "seeds: .*twice"),
        ("evaluate --model m --data a=f -k 0", {}, "k: .*greater than 0"),
        ("evaluate --model m", {"data": {}}, "data: .*at least 1"),
        ("evaluate --model m --data a=f", {"protocols": []}, "protocols: .*at least 1"),
        ("evaluate --model m --data a=f", {"seeds": []}, "seeds: .*at least 1"),
        ("align --merged m --experts a=b --inputs a=f -k -1", {}, "k: .*greater than 0"),
    ],
)
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


def mergekit(method="ties", parameters=None, **own):
    """Two models with parameters of their own, as mergekit writes them."""
    models = [{"model": f"x/{name}", "parameters": own} for name in "ac"]
    return {"merge_method": method, "models": models, "parameters": parameters}


@pytest.mark.parametrize(
    "recipe, options",
    [
        (mergekit(density=0.3, weight=0.5), {"keep": 0.3, "lam": 1.0, "combine": "mean"}),
        (
            mergekit("ties", {"normalize": False, "lambda": 2.0}, density=0.3, weight=0.5),
            {"keep": 0.3, "lam": 1.0, "combine": "sum"},
        ),
        (mergekit("task_arithmetic", weight=0.4), {"lam": 0.4}),
        (mergekit("task_arithmetic", {"normalize": True}, weight=0.4), {"lam": 0.5}),
    ],
)
def test_mergekits_form_is_read_and_differences_are_said(recipe, options):
    recipe |= {"base_model": "b", "models": [{"model": "b"}, *recipe["models"]]}
    with pytest.warns(UserWarning, match="only the encoder is merged"):
        found = build("merge", recipe)
    assert found.options == options and found.method == recipe["merge_method"]
    assert found.experts == {"a": "x/a", "c": "x/c"} and found.base == "b"


@pytest.mark.parametrize(
    "recipe, said",
    [
        (mergekit("slerp"), "slerp"),
        (mergekit() | {"slices": []}, "slices"),
        (mergekit() | {"models": "x"}, "models"),
        (mergekit() | {"models": [{"model": "b"}], "base_model": "b"}, "besides the base"),
        (mergekit(weight=[0, 1]), "weight: .*gradients"),
        (mergekit(weight=True), "weight: .*number"),
        (mergekit("ties", {"epsilon": 1}), "epsilon"),
        (mergekit("linear", density=0.5), "density"),
        (mergekit("linear", {"normalize": False}), "do not sum to 1"),
    ],
)
def test_what_mergekit_has_and_we_do_not_is_refused(recipe, said):
    with pytest.raises(MergelibError, match=said):
        build("merge", recipe)
    recipe = mergekit()
    recipe["models"][0]["parameters"] = {"weight": 2}
    with pytest.raises(ConfigError, match=r"'weight' differs: \[2.0, 1.0\]"):
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
    experts = named({task: found[task] for task in COLOURS})
    data = named({task: tmp_path / task for task in COLOURS})
    base = f"--method task_arithmetic --base {found['base']}"
    run(capsys, f"merge {base} --experts {experts} --out {out}")
    aligned = f"--inputs {data} --data {data} --out {tmp_path / 'aligned'}"
    said = run(capsys, f"align --merged {out} --experts {experts} {aligned}")
    assert "merged, re-aligned head" in said
