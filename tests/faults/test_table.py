"""The table of faults names commands that exist."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINES = [
    line for line in (ROOT / "tests" / "README.md").read_text().splitlines() if line.startswith("|")
]
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in LINES[2:]]


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_every_fault_has_a_count_an_outcome_and_a_command_that_exists(row):
    fault, injected, times, outcome, command = row
    assert (
        fault and injected and outcome and int(re.match(r"[\d,]+", times)[0].replace(",", "")) > 0
    )
    words = shlex.split(re.fullmatch(r"`(.+)`", command)[1])
    files = [ROOT / w for w in words if w.endswith((".py", ".sh"))] + [
        ROOT / f"{w.replace('.', '/')}.py" for w in words if w.startswith("tests.")
    ]
    assert files and all(f.is_file() for f in files)
    if "-k" in words:
        chosen = re.findall(r"\w+", words[words.index("-k") + 1].replace(" or ", " "))
        text = "".join(f.read_text() for f in files if f.suffix == ".py")
        assert all(re.search(rf"def test_\w*{word}", text) for word in chosen)
