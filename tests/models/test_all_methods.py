"""Every merging method on models of one's own: those that need inputs, labels or gradients, and
those that give an encoder per task."""

from __future__ import annotations

from mergelib.merging import METHODS
from mergelib.run import cli


def test_the_command_line_lists_methods_and_protocols(capsys):
    assert cli.main(["methods"]) == cli.main(["protocols"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n{name}: " in f"\n{said}" for name in METHODS)
    assert "needs weights and inputs, gives one encoder\n    options: off_diagonal=0.9" in said
    assert "arXiv 2306.01708" in said and "learns from k labelled inputs per class" in said
    assert "``" not in said
