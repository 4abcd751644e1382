"""A profile as single commands: what they are, that they make what notebooks ask for, and what
Snakemake's side says about them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import time
from dataclasses import asdict

import pytest

from benchmarks import plan
from mergelib.core import paths
from mergelib.core.errors import ConfigError, UnknownNameError
from mergelib.core.store import Store
from mergelib.profiles import load_profile
from mergelib.run import cli, jobs, torchrun
from mergelib.run.jobs import Unit, Wanted

CLUSTER = paths.root() / "cluster"
ALONE = {"multi_task": "paper only"}


def by_output(made):
    return {u.output: u for u in made}


def test_units_of_a_profile_stand_in_order_and_are_commands_that_exist():
    made = jobs.units(Wanted("quick"))
    seen = set()
    for unit in made:
        assert set(unit.needs) <= seen and unit.output not in seen and unit.rule in jobs.RULES
        seen.add(unit.output)
        args = cli.build_parser().parse_args(unit.command)
        assert args.profile == "quick" and (
            "--stamp" in unit.command or unit.rule in ("notebook", "report")
        )
    report = by_output(made)["figures/quick/99_report.json"]
    assert set(report.needs) == {u.output for u in made if u.rule == "notebook"}
    assert {u.study for u in made if u.rule == "score"} == {
        "quick",
        "quick-zoo",
        *(f"quick-{v}" for v in ("t5_a", "t5_b", "vision_a", "vision_b")),
    }
    assert not [
        u for u in made if u.study == "quick-zoo" and u.rule in ("pretrain", "fine_tune")
    ], "the zoo's experts are the profile's"
    assert sum(u.rule == "fine_tune" for u in made) == 6 + 2 * 5 + 2 * 8, (
        "multi-task learning is Table 2's alone"
    )


def test_units_carry_what_they_were_asked_for():
    overrides = {"tasks.names": ["ag", "yelp"], "merging.methods": ["ties"]}
    made = jobs.units(
        Wanted("quick", ("tab03", "report"), device="cpu", overrides=json.dumps(overrides))
    )
    assert {u.name for u in made if u.rule == "fine_tune"} == {"ag", "yelp", "multi_task"}
    for unit in made:
        words = shlex.join(unit.command)
        assert unit.rule == "report" or "cpu" in words
        assert ("--overrides" in words or "overrides=" in words) is (unit.rule != "report"), (
            "the report declares none"
        )
    released = jobs.units(Wanted("paper", ("tab02",)))
    assert {u.rule for u in released} == {"pretrain", "merge", "extract", "score", "notebook"}, (
        "released experts are not trained"
    )
    with pytest.raises(UnknownNameError, match="notebook"):
        jobs.units(Wanted("quick", ("tab99",)))
    with pytest.raises(ConfigError, match="needs t5_a"):
        jobs.units(Wanted("real", ("fig06",)))


def test_identity_changes_with_the_profile_and_a_notebooks_code_alone(tmp_path):
    one, other = (
        jobs.units(Wanted("quick", ("tab03",), overrides=text))[0].identity
        for text in ("{}", '{"fine_tuning.steps": 3}')
    )
    assert one != other
    notebook = tmp_path / "n.ipynb"

    def identity(code, output):
        cells = [
            {"cell_type": "code", "source": [code], "outputs": output},
            {"cell_type": "markdown", "source": [str(output)]},
        ]
        notebook.write_text(json.dumps({"cells": cells}))
        return jobs._identity(Wanted("quick"), notebook=notebook)

    assert identity("1 + 1", []) == identity("1 + 1", ["2"]) != identity("1 + 2", ["2"])


@pytest.fixture
def computed(study, make_study, tmp_path):
    """A study on a copy of a finished store, and how many artifacts that has."""
    shutil.copytree(study.store.root, tmp_path / "store")
    again = make_study(tmp_path / "store", overrides=ALONE)
    return again, len(again.store.entries())


def test_units_make_what_tables_begin_with_and_nothing_else(computed):
    study, n = computed
    for method in study.methods:
        jobs.compute(study, "merge", method)
    for encoder in ("f_b", "f_t", *study.methods):
        jobs.compute(study, "extract", encoder)
    jobs.compute(study, "score")
    assert len(study.store.entries()) == n, (
        "something was computed that the scores of a study do not need"
    )
    steps = {name.partition("/")[0] for name in study.store.asked}
    assert {"features", "predict", "merge"} <= steps
    with pytest.raises(UnknownNameError, match="multi_task"):
        jobs.compute(study, "extract", "multi_task")
    with pytest.raises(ConfigError, match="f_b is not a merge"):
        jobs.compute(study, "merge", "f_b")


def test_a_command_leaves_a_stamp_that_names_its_artifacts(computed, tmp_path, monkeypatch, capsys):
    study, n = computed
    monkeypatch.setenv("MERGELIB_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    words = ["--profile", "quick", "--device", "cpu", "--overrides", json.dumps(study.overrides)]
    assert (
        cli.main(
            ["compute", "extract", "--encoder", "ties", *words, "--stamp", "stamps/a/ties.json"]
        )
        == 0
    )
    assert cli.main(["train", "--only", "ag", *words, "--stamp", "stamps/a/ag.json"]) == 0
    named = {
        name: json.loads((tmp_path / "stamps" / "a" / f"{name}.json").read_text())["artifacts"]
        for name in ("ties", "ag")
    }
    assert all(
        (tmp_path / "store" / artifact).is_dir() for found in named.values() for artifact in found
    )
    assert (
        sum(a.startswith("features/") for a in named["ties"]) == 2 * 2
        and sum(a.startswith("fine_tune/") for a in named["ag"]) == 1
    )
    assert len(Store(tmp_path / "store").entries()) == n
    out = tmp_path / "some" / "jobs.json"
    assert cli.main(["units", "--profile", "quick", "--only", "tab03", "--out", str(out)]) == 0
    made = [asdict(unit) for unit in jobs.units(Wanted("quick", ("tab03",)))]
    assert json.loads(out.read_text()) == json.loads(json.dumps(made))
    units = ["units", "--profile", "quick", "--out", str(out)]
    assert cli.main(units) == 0, "what it wrote itself is replaced"
    for theirs in ("my notes", "[\n]", out.read_text() + "\n", '{\n "artifacts": []\n}\n'):
        out.write_text(theirs)
        for command in (
            units,
            ["compute", "extract", "--encoder", "ties", *words, "--stamp", str(out)],
            ["train", "--only", "ag", *words, "--stamp", str(out)],
        ):
            assert cli.main(command) == 2 and out.read_text() == theirs
            assert "no longer, what mergelib wrote" in capsys.readouterr().err


# ---- Snakemake's side, without Snakemake ---------------------------------------------------------


def test_every_rule_has_its_resources():
    text = (CLUSTER / "Snakefile").read_text()
    rules = dict(re.findall(r"^rule (\w+):\n((?:    .*\n)+)", text, flags=re.M))
    assert set(rules) == {"all", *jobs.RULES}
    for name in jobs.RULES:
        assert re.search(
            r"resources: gpu=\w+, mem_mb=grows\([\d_]+\), runtime=grows\(\d+\)", rules[name]
        ), name
    assert "import mergelib" not in text and "notebook:" not in text.replace("rule notebook:", "")


def test_jobs_of_one_machine_take_turns_on_its_gpus(tmp_path):
    job = f"echo $CUDA_VISIBLE_DEVICES begins >> {tmp_path}/log; sleep 0.3; echo $CUDA_VISIBLE_DEVICES ends >> {tmp_path}/log"
    environment = os.environ | {"MERGELIB_SLOTS": str(tmp_path / "slots")}
    started = time.monotonic()
    jobs = [
        subprocess.Popen(
            ["bash", str(CLUSTER / "gpu_slot.sh"), "2", "bash", "-c", job], env=environment
        )
        for _ in range(4)
    ]
    assert [j.wait(60) for j in jobs] == [0] * 4 and time.monotonic() - started > 0.6
    busy, uses = set(), []
    for gpu, what in map(str.split, (tmp_path / "log").read_text().splitlines()):
        assert (gpu in busy) is (what == "ends"), "two jobs had one GPU"
        busy ^= {gpu}
        uses.append(gpu)
    assert set(uses) == {"0", "1"} and len(uses) == 8
    assert (
        subprocess.run(
            ["bash", str(CLUSTER / "gpu_slot.sh"), "1", "false"], env=environment, check=False
        ).returncode
        == 1
    )


# ---- a plan on paper -----------------------------------------------------------------------------


def unit_of(output, *needs):
    return Unit("score", output, "s", output, needs, (), "")


def test_a_plan_is_no_shorter_than_its_chain_nor_than_its_share():
    made = [
        unit_of("a"),
        *(unit_of(f"b{i}", "a") for i in range(6)),
        unit_of("c", *(f"b{i}" for i in range(6))),
    ]
    seconds = {u.output: 2.0 if u.output.startswith("b") else 1.0 for u in made}
    assert plan.makespan(made, seconds, 1) == sum(seconds.values()) == 14
    assert plan.makespan(made, seconds, 3) == 1 + 2 * 2 + 1
    assert (
        plan.makespan(made, seconds, 100)
        == 4
        == sum(seconds[o] for o in plan.longest_paths(made, seconds)["c"])
    )


def test_costs_follow_the_profile():
    assert plan.SHAPES["bert-base-uncased"].parameters == pytest.approx(
        109e6, rel=0.01
    )  # benchmarks/RESULTS.md: 109 M
    rates = plan.Rates(start_s=0, merge_s=0, score_s=0, disk_gb_s=1e9)
    made = by_output(jobs.units(Wanted("paper", ("fig06",))))
    profile = load_profile("paper", variant="t5_a")
    twice = load_profile("paper", {"fine_tuning.steps": 2 * profile.fine_tuning.steps}, "t5_a")
    expert = made["stamps/paper-t5_a/fine_tune/ag.json"]
    assert plan.cost(expert, twice, rates).seconds == pytest.approx(
        2 * plan.cost(expert, profile, rates).seconds, rel=1e-3
    )
    with pytest.raises(ConfigError, match="shape of a/b is not known"):
        plan.shape_of(load_profile("mini", {"encoder.base": "a/b"}))


def test_the_guides_commands_are_known():
    text = (paths.root() / "docs" / "training.md").read_text()
    words = [
        shlex.split(line.partition("#")[0].replace("\\\n", " "))[3:]
        for line in text.splitlines()
        if line.startswith("python -m mergelib")
    ]
    assert len(words) >= 3
    for command in words:
        cli.build_parser().parse_args(command)
    torchrun.parse_overrides('{"zoo.k": 5}')
