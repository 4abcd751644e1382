"""Two processes of torchrun against one: equal losses and weights, a killed run that resumes, one
artifact, nothing left behind.

Run as a script this file is what torchrun starts.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from faults.kill import python_path
from tiny import TINY
from torch.testing import assert_close

from mergelib import Study
from mergelib.core import distributed, paths
from mergelib.core.errors import ConfigError
from mergelib.core.store import Store
from mergelib.foundations import bert
from mergelib.profiles import load_profile
from mergelib.run import cli, options
from mergelib.training import experts
from mergelib.training import loop as training

OVERRIDES = TINY | {
    "fine_tuning.steps": 6,
    "fine_tuning.save_every": 2,  # a batch of 32: the sixth step lies in the second epoch
}
ONE_ROW_EACH = {
    "fine_tuning.batch_size": 2,
    "fine_tuning.steps": 3,
}  # with two heads, one is without rows in each process
TRAIN = "train --profile quick --only ag --device cpu --overrides".split()
TRAIN.append(json.dumps(OVERRIDES))


def study_of(store, **overrides):
    return Study("quick", overrides=OVERRIDES | overrides, store=Store(store), device="cpu")


def without_dropout(config):
    def made(*args, **sizes):
        found = config(*args, **sizes)
        found.hidden_dropout_prob = found.attention_probs_dropout_prob = 0.0
        return found

    return made


def worker(mode, other_store):
    """One of two processes. ``killed``: the second dies in its fifth step. ``whole``: resumes, then
    trains other things in another store."""
    bert.bert_config = without_dropout(bert.bert_config)
    seen = []
    train_rows = experts.train_rows

    class Counted(list):
        def __getitem__(self, i):
            seen.append(i)
            if mode == "killed" and distributed.rank() == 1 and len(seen) > 5 * 16:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__getitem__(i)

    experts.train_rows = lambda *given: Counted(train_rows(*given))
    leave, distributed.leave = distributed.leave, lambda: None  # the group is needed once more
    assert cli.main(TRAIN) == 0
    resumed = len(seen)
    study = study_of(other_store, processes=2)
    study.train("ag")
    fresh = len(seen) - resumed
    study.train("ag")
    assert len(seen) == resumed + fresh, "what the store has is not trained again"
    study_of(other_store, processes=2, **ONE_ROW_EACH).train("multi_task")
    if distributed.rank() == 0:
        print(json.dumps({"resumed": resumed, "fresh": fresh}))
    distributed.wait_for_all()
    leave()


def start(mode, store, other_store):
    environment = os.environ | {
        "MERGELIB_STORE": str(store),
        "PYTHONPATH": python_path(),
    }
    launcher = "-m torch.distributed.run --standalone --nproc-per-node 2".split()
    command = [sys.executable, *launcher, __file__, mode, str(other_store)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Stores of a killed and resumed run and of an undisturbed one, and what the second launch
    said."""
    store, other = (tmp_path_factory.mktemp(name) for name in ("killed", "undisturbed"))
    killed = start("killed", store, other)
    assert killed.returncode != 0 and "SIGKILL" in killed.stderr, killed.stderr
    assert len(list((store / "pretrain").iterdir())) == 1, (
        "f_b was made before torchrun's processes began"
    )
    assert not (store / "fine_tune").exists() or not list((store / "fine_tune").iterdir())
    (left,) = (store / ".scratch").iterdir()
    assert len(training.checkpoints(left)) == 2
    shutil.copytree(store / "pretrain", other / "pretrain")
    whole = start("whole", store, other)
    assert whole.returncode == 0, whole.stderr
    return store, other, json.loads(whole.stdout.splitlines()[-1]), whole


@pytest.fixture
def no_dropout(monkeypatch):
    monkeypatch.setattr(bert, "bert_config", without_dropout(bert.bert_config))


@pytest.fixture
def one(two, no_dropout, tmp_path):
    """A store for the same by one process."""
    shutil.copytree(two[0] / "pretrain", tmp_path / "pretrain")
    return tmp_path


def flat(tensors):
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def test_two_processes_are_one_up_to_rounding(two, one):
    _, other, said, _ = two
    alone, together = study_of(one).expert("ag"), study_of(other, processes=2).expert("ag")
    assert together.info["training"] == pytest.approx(alone.info["training"], abs=2e-4)
    assert_close(flat(together.state), flat(alone.state), atol=1e-4, rtol=0)
    assert_close(together.head.weight, alone.head.weight, atol=1e-4, rtol=0)
    moved = (flat(alone.state) - flat(study_of(one).base_state)).abs().max()
    assert moved > 10 * 1e-4, "the tolerance is far below what training changes"
    assert said["fresh"] < 6 * 32 / 2 + 32, "each process looks at its half of the rows"


def test_a_head_without_rows_in_one_process_is_no_trouble(two, one):
    _, other, _, _ = two
    alone, together = (
        study_of(store, **ONE_ROW_EACH, **more).weights("multi_task", "ag")
        for store, more in ((one, {}), (other, {"processes": 2}))
    )
    assert_close(flat(together), flat(alone), atol=1e-4, rtol=0)


def test_a_killed_run_resumes_to_the_same_bytes(two, no_dropout):
    store, other, said, _ = two
    assert said["resumed"] < said["fresh"]
    resumed, undisturbed = (study_of(place, processes=2).expert("ag") for place in (store, other))
    assert resumed.info["state_digest"] == undisturbed.info["state_digest"] and torch.equal(
        resumed.head.weight, undisturbed.head.weight
    )


def test_the_store_holds_one_artifact_and_no_scratch(two):
    store, other, _, whole = two
    for place, n in ((store, 2), (other, 3)):
        assert len(Store(place).entries()) == n and not Store(place).verify()
        assert not list((place / ".scratch").glob("*")) and not list(place.glob("*/.tmp-*"))
    made = [line for line in whole.stdout.splitlines() if line.startswith("f_t ag")]
    assert len(made) == 1 and Path(made[0].split(", ")[1]).is_dir(), (
        "the first process alone prints"
    )


def test_one_process_does_not_pass_for_two(two, no_dropout):
    with pytest.raises(
        ConfigError,
        match=r"torchrun --nproc-per-node 2 -m mergelib train --profile quick --only yelp",
    ):
        study_of(two[0], processes=2).expert("yelp")


# ---- without torchrun ----------------------------------------------------------------------------


def test_one_process_uses_the_store_and_the_keys_as_ever(tmp_path, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    store = Store(tmp_path)
    assert distributed.shared(store) is store and (
        distributed.world_size(),
        distributed.rank(),
    ) == (1, 0)
    assert distributed.from_first("x") == "x"
    assert "processes" not in study_of(tmp_path).profile.model_dump()


def train_32_rows(scratch, device="cpu"):
    training.train(
        torch.nn.Linear(1, 1),
        [],
        list,
        training.TrainConfig(1, 32, 1e-3),
        device=torch.device(device),
        scratch=scratch,
        desc="x",
    )


def test_a_batch_that_cannot_be_shared_evenly_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(
        ConfigError, match=r"32 rows .* 3 processes: start torchrun with .* fine_tuning\.batch_size"
    ):
        train_32_rows(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "64")
    with pytest.raises(ConfigError, match="64 processes"):
        distributed.check_batch(32)


def test_a_device_without_collectives_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="'mps' together"):
        train_32_rows(tmp_path, "mps")


def test_who_works_alone_knows_nothing_of_the_others(monkeypatch):
    for name, value in (("WORLD_SIZE", "4"), ("RANK", "2")):
        monkeypatch.setenv(name, value)
    for _ in range(2):
        assert (distributed.world_size(), distributed.rank()) == (4, 2)
        with pytest.raises(KeyError), distributed.alone():
            assert (distributed.world_size(), distributed.rank()) == (1, 0)
            raise KeyError


@pytest.mark.parametrize("text", ["{", "[1]", "fine_tuning.steps=3"])
def test_overrides_that_are_no_object_are_refused(text):
    with pytest.raises(ConfigError, match="--overrides"):
        options.parse_overrides(text)


def test_the_commands_in_the_text_are_known():
    text = (paths.root() / "docs" / "training.md").read_text()
    commands = re.findall(r"-m mergelib (train .*?)(?:\s+#.*)?$", text, flags=re.M)
    assert len(commands) >= 4
    for command in commands:
        args = cli.build_parser().parse_args(shlex.split(command))
        known = load_profile(args.profile, variant=args.variant).tasks.names
        assert set(args.only) <= {*known, "multi_task", "f_b"}


if __name__ == "__main__":
    worker(*sys.argv[1:])
