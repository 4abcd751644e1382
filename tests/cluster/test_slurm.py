"""cluster/Snakefile on a real Slurm of this machine. Opt-in: ``./run_all.sh test -m cluster
tests/cluster``; minutes.

Like ``tests.faults.kill``, but what dies is a machine: everything that its node daemon runs goes at
once, and Slurm gives the job back to the queue.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from tiny import python

from mergelib.core.store import Store
from tests.faults.kill import ROOT, artifacts, csvs, python_path, temporary

from .slurm_here import Slurm, missing, wait_for

PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
SNAKEMAKE = shutil.which("snakemake", path=PATH)
ONLY = ("fig02", "tab03", "report")
SMALL = {
    "tasks.names": ["ag", "yelp"],
    "merging.methods": ["ties"],
    "threads": 1,
    "tasks.n_test": 60,
}
RULES = ("pretrain", "fine_tune", "merge", "extract", "score", "notebook", "report")

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(SNAKEMAKE is None, reason='no snakemake: pip install -e ".[cluster]"'),
]


def environment(place, **more):
    return (
        os.environ
        | {
            "PYTHONPATH": python_path(),
            "PATH": PATH,
            "JUPYTER_PREFER_ENV_PATH": "1",
            "MERGELIB_STORE": str(place / "store"),
            "MERGELIB_OUTPUT": str(place),
        }
        | more
    )


def mergelib(place, *words):
    python("-m", "mergelib", *words, env=environment(place), cwd=place, timeout=3600)


def list_jobs(place, *words):
    out = str(place / "jobs.json")
    mergelib(place, "jobs", "--profile", "quick", "--out", out, "--only", *words)


def snakemake(place, profile, *words, env):
    """Snakemake over ``jobs.json``, everything below ``place``; what it says goes to said.log."""
    command = [
        SNAKEMAKE,
        "--snakefile",
        str(ROOT / "cluster" / "Snakefile"),
        "--workflow-profile",
        str(ROOT / "cluster" / "profile" / profile),
        "--config",
        f"jobs={place}/jobs.json",
        f"output={place}",
        "gpus=0",
        f"python={sys.executable}",
        *words,
        "--set-resources",
        *(f"{rule}:mem_mb=2000" for rule in RULES),
        "--set-threads",
        *(f"{rule}=1" for rule in RULES),
    ]
    with (place / "said.log").open("ab") as said:
        return subprocess.Popen(
            command,
            cwd=place,
            env=env,
            stdout=said,
            stderr=said,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )


def stamps(place, rule="*"):
    return sorted(place.glob(f"stamps/*/{rule}/*.json"))


def check_whole(place):
    """Every job left its file; every stamp names artifacts that are there; nothing half-made lies
    about."""
    jobs = json.loads((place / "jobs.json").read_text())
    assert all((place / u["output"]).is_file() for u in jobs)
    store = Store(place / "store")
    assert store.verify() == [] and temporary(place / "store") == []
    for stamp in stamps(place):
        named = json.loads(stamp.read_text())["artifacts"]
        assert named and all((store.root / name / "meta.json").is_file() for name in named)


@pytest.mark.skipif(missing() != "", reason=missing())
def test_a_study_goes_through_slurm_while_its_node_dies(tmp_path):
    local, place = tmp_path / "local", tmp_path / "slurm"
    local.mkdir()
    place.mkdir()
    mergelib(local, "run", "--profile", "quick", "--only", *ONLY)
    list_jobs(place, *ONLY)
    with Slurm() as slurm:
        words = (
            "--slurm-status-command squeue --slurm-init-seconds-before-status-checks 5 "
            "--slurm-no-account"
        ).split()
        driver = snakemake(place, "slurm", *words, env=environment(place, **slurm.environment))
        try:

            def at_work():
                assert driver.poll() is None, (place / "said.log").read_text()[-4000:]
                return slurm.running_jobs(3, 6) if len(stamps(place, "fine_tune")) >= 2 else []

            wait_for("two experts, and a job that has just begun", lambda: bool(at_work()), 900)
            (job,) = slurm.running_jobs()
            slurm.kill_node()
            finished = artifacts(place / "store")
            assert len(finished) >= 3 and len(stamps(place)) >= 3
            wait_for(
                "the controller misses the node", lambda: slurm.node_state().startswith("down"), 120
            )
            slurm.start_node()
            assert driver.wait(1500) == 0, (place / "said.log").read_text()[-4000:]
            submitted = re.findall(
                r"submitted with SLURM jobid (\d+)", (place / "said.log").read_text()
            )
            assert (
                len(submitted)
                == len(set(submitted))
                == len(json.loads((place / "jobs.json").read_text()))
            ), "each of our jobs is one of Slurm's"
            assert {j for j in submitted if slurm.restarts(j)} == {job}, (
                "only what the dead node ran was run again"
            )
        finally:
            if driver.poll() is None:
                os.killpg(driver.pid, signal.SIGKILL)
                driver.wait()
    check_whole(place)
    now = artifacts(place / "store")
    assert all(now[name] == files for name, files in finished.items()), (
        "finished artifacts were made again"
    )
    assert csvs(place / "figures") == csvs(local / "figures") != {}
    print(
        f"job {job} requeued; {len(submitted)} jobs, {len(finished)} artifacts kept; "
        f"{len(csvs(place / 'figures'))} CSVs equal"
    )


def test_a_killed_driver_is_unlocked_and_goes_on(tmp_path):
    place, env = tmp_path, environment(tmp_path)
    run = partial(snakemake, place, "local", "--cores", "1", env=env)
    list_jobs(place, "tab03", "report", "--overrides", json.dumps(SMALL))
    driver = run()
    wait_for(
        "two experts",
        lambda: len(stamps(place, "fine_tune")) >= 2 or driver.poll() is not None,
        300,
    )
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    finished, stamped = artifacts(place / "store"), {p: p.stat().st_mtime_ns for p in stamps(place)}
    del stamped[max(stamped, key=stamped.get)]  # Snakemake may not have seen the end of the newest
    assert finished and stamped and not (place / "figures").exists()
    assert run().wait(120) != 0, "Snakemake notices the other's lock"
    assert run("--unlock").wait(120) == 0
    assert run().wait(600) == 0, (place / "said.log").read_text()[-3000:]
    check_whole(place)
    now = artifacts(place / "store")
    assert all(now[name] == files for name, files in finished.items())
    assert all(p.stat().st_mtime_ns == then for p, then in stamped.items())
    again = run()
    assert again.wait(120) == 0 and "Nothing to be done" in (place / "said.log").read_text()
