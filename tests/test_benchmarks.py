"""The frame of the benchmarks on small sizes: what it measures is what happened; every suite gives
tables."""

import json
import math
import time

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import suite_growth, suite_merge
from benchmarks.frame import (
    Times,
    interleaved,
    peak,
    table,
    timed,
)

TINY = {"words": (50, 8), "matrix": (8, 8), "bias": (8,)}


def test_seconds_are_wall_seconds_of_the_call_alone():
    turns = []
    found = interleaved(
        {"a": lambda: turns.append("a"), "b": lambda: (turns.append("b"), time.sleep(0.02))},
        n=3,
        warmup=1,
    )
    assert turns == ["a", "b"] * 4
    assert found["b"].n == 3 and found["b"].spread[0] >= 0.02 > found["a"].median
    assert timed(lambda: None, n=1, warmup=0).n == 1
    assert str(Times.of([3.0, 1.0, 200.0])) == "3.00 (1.00–200)"


def test_peak_is_what_a_call_adds():
    """Temporaries and result count, what was there does not, and the call happens in another
    process."""
    x = torch.zeros(8_000_000)  # 32 MB

    def twice():
        x.mul_(1)
        return (x + 1) + (x + 2)  # two of them and their sum

    assert 95e6 < peak(twice) < 130e6
    assert peak(lambda: None) < 3e6
    kept = []
    peak(lambda: kept.append(1))
    assert not kept
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        peak(lambda: 1 / 0)


def test_the_command_prints_and_keeps_a_suite(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(
        suite_merge,
        "run",
        lambda peers: [table("T", [{"seconds": Times(1.0, (1.0, 1.0), 1), "peers": peers}])],
    )
    command.main(["--suite", "merge", "--peers", "--out", str(tmp_path / "out.json")])
    assert "| 1.00 (1.00–1.00) | True |" in capsys.readouterr().out
    kept = json.loads((tmp_path / "out.json").read_text())
    assert (
        kept["tables"][0]["rows"][0]["seconds"]["median"] == 1.0
        and torch.__version__ in kept["machine"]
    )
    with pytest.raises(SystemExit):
        command.main(["--suite", "nothing"])


def test_the_merge_suite_runs_small():
    found = suite_merge.run(peers=False, shapes=TINY, n=1, disk=False)
    assert [r["method"] for r in found[0].rows] == ["Weight Averaging", "Task Arithmetic", "Ties"]
    assert [r["method"] for r in found[1].rows] == ["Task Arithmetic", "Ties"]


def test_slopes_are_those_of_powers():
    assert suite_growth.slope([1, 10, 100], [3.0, 30.0, 300.0]) == pytest.approx(1)
    assert suite_growth.slope([1, 2, 4], [1.0, 4.0, 16.0]) == pytest.approx(2)
    assert math.isnan(suite_growth.slope([1, 2], [0.0, 1.0]))
