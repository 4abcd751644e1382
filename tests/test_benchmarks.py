"""The frame of the benchmarks on small sizes: what it measures is what happened; every suite gives
tables."""

from __future__ import annotations

import json
import math
import time

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import suite_growth, suite_merge
from benchmarks.frame import (
    Times,
    copy_bandwidth,
    interleaved,
    machine,
    matmul_rate,
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

    def twice() -> torch.Tensor:
        x.mul_(1)
        return (x + 1) + (x + 2)  # two of them and their sum

    assert 95e6 < peak(twice) < 130e6
    assert peak(lambda: None) < 3e6
    kept = []
    peak(lambda: kept.append(1))
    assert not kept
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        peak(lambda: 1 / 0)


def test_rates_and_the_machine_are_named():
    assert copy_bandwidth(size=1 << 20) > 1e6 and matmul_rate(size=64) > 1e6
    assert torch.__version__ in machine()


def test_tables_keep_columns_in_order():
    made = table("T", [{"a": 1, "b": 0.5}, {"c": Times(1.0, (0.5, 2.0), 3)}], "said")
    assert made.splitlines()[2:6] == [
        "| a | b | c |",
        "| --- | --- | --- |",
        "| 1 | 0.500 |  |",
        "|  |  | 1.00 (0.500–2.00) |",
    ]
    assert made.rows[0] == {"a": 1, "b": 0.5} and made.note == "said"


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


def test_merge_and_growth_suites_run_small(tmp_path):
    found = suite_merge.run(peers=False, shapes=TINY, n=1, disk=False)
    assert [r["method"] for r in found[0].rows] == ["Weight Averaging", "Task Arithmetic", "Ties"]
    assert [r["method"] for r in found[1].rows] == ["Task Arithmetic", "Ties"]
    sizes = {
        "tasks": (2, 3),
        "parameters": (1000, 2000),
        "rows": (100, 200),
        "shots": (2, 4),
        "fit rows": (100, 200),
    }
    slopes, points = suite_growth.run(
        peers=False, sizes=sizes, n=1, picture=tmp_path / "growth.png"
    )
    assert len(points.rows) == 2 * 3 + 2 * 3 + 4 * 2 and "nothing." in slopes.note
    assert (tmp_path / "growth.png").stat().st_size > 1000


def test_slopes_are_those_of_powers():
    assert suite_growth.slope([1, 10, 100], [3.0, 30.0, 300.0]) == pytest.approx(1)
    assert suite_growth.slope([1, 2, 4], [1.0, 4.0, 16.0]) == pytest.approx(2)
    assert math.isnan(suite_growth.slope([1, 2], [0.0, 1.0]))
