"""A profile as single commands: what they are, that they make what notebooks ask for, and what
Snakemake's side says about them."""

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
from mergelib.run import cli, jobs
from mergelib.run.jobs import Job
from mergelib.run.parser import build_parser

CLUSTER = paths.root() / "cluster"
ALONE = {"multi_task": "paper only"}


def asked(profile, only=(), **options):
    """The options of ``jobs``."""
    args = build_parser().parse_args(["jobs", "--profile", profile])
    vars(args).update(only=only, **options)
    return args


def by_output(made):
    return {u.output: u for u in made}


def test_units_of_a_profile_stand_in_order_and_are_commands_that_exist():
    made, seen = jobs.listed(asked("quick")), set()
    for job in made:
        assert set(job.needs) <= seen and job.output not in seen and job.rule in jobs.RULES
        seen.add(job.output)
        assert cli.build_parser().parse_args(job.command).profile == "quick"
        assert ("--stamp" in job.command) == (job.rule not in ("notebook", "report"))

    def of(rule):
        return [u for u in made if u.rule == rule]

    report = by_output(made)["figures/quick/99_report.json"]
    assert set(report.needs) == {u.output for u in of("notebook")}
    variants = ("", "-every_method", "-t5_a", "-t5_b", "-vision_a", "-vision_b")
    assert {u.study for u in of("score")} == {f"quick{v}" for v in variants}
    trained = {u.study for rule in ("pretrain", "fine_tune") for u in of(rule)}
    assert "quick-every_method" not in trained, "its experts are the profile's"
    assert len(of("fine_tune")) == 6 + 2 * 5 + 2 * 8, "multi-task learning is Table 2's alone"


def test_units_carry_what_they_were_asked_for():
    overrides = json.dumps({"tasks.names": ["ag", "yelp"], "merging.methods": ["ties"]})
    made = jobs.listed(asked("quick", ("tab03", "report"), device="cpu", overrides=overrides))
    assert {u.name for u in made if u.rule == "fine_tune"} == {"ag", "yelp", "multi_task"}
    for job in made:
        words, is_report = shlex.join(job.command), job.rule == "report"  # it declares none
        assert is_report or "cpu" in words
        assert ("--overrides" in words or "overrides=" in words) is not is_report
    released = {u.rule for u in jobs.listed(asked("paper", ("tab02",)))}
    assert "fine_tune" not in released and {"pretrain", "merge", "extract", "score"} < released
    with pytest.raises(UnknownNameError, match="notebook"):
        jobs.listed(asked("quick", ("tab99",)))
    with pytest.raises(ConfigError, match="needs t5_a"):
        jobs.listed(asked("real", ("fig06",)))


def test_identity_changes_with_the_profile_and_a_notebooks_code_alone(tmp_path):
    one, other = (
        jobs.listed(asked("quick", ("tab03",), overrides=text))[0].identity
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
        return jobs._identity(asked("quick"), notebook=notebook)

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
    (study, n), store = computed, tmp_path / "store"
    monkeypatch.setenv("MERGELIB_STORE", str(store))
    monkeypatch.chdir(tmp_path)
    words = ["--profile", "quick", "--device", "cpu", "--overrides", json.dumps(study.overrides)]
    extract = ["compute", "extract", "--encoder", "ties", *words, "--stamp"]
    train = ["train", "--only", "ag", *words, "--stamp"]
    for command, step, made in ((extract, "features/", 2 * 2), (train, "fine_tune/", 1)):
        stamp = tmp_path / "stamps" / "a" / f"{command[0]}.json"
        assert cli.main([*command, str(stamp.relative_to(tmp_path))]) == 0
        named = json.loads(stamp.read_text())["artifacts"]
        assert all((store / artifact).is_dir() for artifact in named)
        assert sum(artifact.startswith(step) for artifact in named) == made
    assert len(Store(store).entries()) == n
    out = tmp_path / "some" / "jobs.json"
    assert cli.main(["jobs", "--profile", "quick", "--only", "tab03", "--out", str(out)]) == 0
    made = [asdict(job) for job in jobs.listed(asked("quick", ("tab03",)))]
    assert json.loads(out.read_text()) == json.loads(json.dumps(made))
    again = ["jobs", "--profile", "quick", "--out"]
    assert cli.main([*again, str(out)]) == 0, "what it wrote itself is replaced"
    for theirs in ("my notes", "[\n]", out.read_text() + "\n", '{\n "artifacts": []\n}\n'):
        out.write_text(theirs)
        for command in (again, extract, train):
            assert cli.main([*command, str(out)]) == 2 and out.read_text() == theirs
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
    say = f"echo $CUDA_VISIBLE_DEVICES %s >> {tmp_path}/log"
    job = f"{say % 'begins'}; sleep 0.3; {say % 'ends'}"
    environment = os.environ | {"MERGELIB_SLOTS": str(tmp_path / "slots")}

    def start(gpus, *command):
        slot = ["bash", str(CLUSTER / "gpu_slot.sh"), gpus, *command]
        return subprocess.Popen(slot, env=environment)

    started = time.monotonic()
    jobs = [start("2", "bash", "-c", job) for _ in range(4)]
    assert [j.wait(60) for j in jobs] == [0] * 4 and time.monotonic() - started > 0.6
    busy, uses = set(), []
    for gpu, what in map(str.split, (tmp_path / "log").read_text().splitlines()):
        assert (gpu in busy) is (what == "ends"), "two jobs had one GPU"
        busy ^= {gpu}
        uses.append(gpu)
    assert set(uses) == {"0", "1"} and len(uses) == 8
    assert start("1", "false").wait(60) == 1


# ---- a plan on paper -----------------------------------------------------------------------------


def unit_of(output, *needs):
    return Job("score", output, "s", output, needs, (), "")


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
    made = by_output(jobs.listed(asked("paper", ("fig06",))))
    profile = load_profile("paper", variant="t5_a")
    twice = load_profile("paper", {"fine_tuning.steps": 2 * profile.fine_tuning.steps}, "t5_a")
    expert = made["stamps/paper-t5_a/fine_tune/ag.json"]
    assert plan.cost(expert, twice, rates).seconds == pytest.approx(
        2 * plan.cost(expert, profile, rates).seconds, rel=1e-3
    )
    with pytest.raises(ConfigError, match="shape of a/b is not known"):
        plan.shape_of(load_profile("mini", {"encoder.base": "a/b"}))
