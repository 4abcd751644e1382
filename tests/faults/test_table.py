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
    _, _, times, _, command = row
    assert all(row) and re.match(r"[1-9]", times)
    words = shlex.split(command.strip("`"))
    files = [ROOT / word for word in words if word.endswith((".py", ".sh"))]
    files += [ROOT / f"{word.replace('.', '/')}.py" for word in words if word.startswith("tests.")]
    assert files and all(f.is_file() for f in files)
    if "-k" in words:
        text = "".join(f.read_text() for f in files if f.suffix == ".py")
        chosen = words[words.index("-k") + 1].split(" or ")
        assert all(re.search(rf"def test_\w*{word}", text) for word in chosen)
