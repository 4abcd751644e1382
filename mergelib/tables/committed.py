"""Did a run give the committed numbers? Compares tables and verdicts under ``figures/``.

A run rewrites them with what its machine computes. Committed is what git keeps in HEAD; without
git, what lay in the project before its first run, of which that run keeps a copy.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd

from ..core import paths
from ..core.manifest import Item
from ..merging import METHODS
from ..protocols import PROTOCOLS
from .labels import COLUMN_LABELS, ENCODER_LABELS, TASK_LABELS, protocol_label, short_label
from .scores import markdown

IDENTICAL, DIGITS, ROWS, MISSING = "identical", "other digits", "other rows", "in one of them only"
UNKNOWN, SETTINGS = "not published", "other settings"
AS_COMMITTED = "Numbers and verdicts are those published with this project, to the last digit."


def git(*arguments: str) -> bytes | None:
    """What git says about this project, also to another user than its owner; None where there is no
    git or no commit."""
    root = paths.root()
    if not (root / ".git").exists() or not shutil.which("git"):
        return None
    command = ["git", "--no-optional-locks", "-c", f"safe.directory={root}", "-C", str(root)]
    process = subprocess.run([*command, *arguments], capture_output=True)
    return process.stdout if process.returncode == 0 else None


def _copy() -> Path:
    return paths.output_root() / "build" / "committed"


def keep() -> None:
    """Before a run: where there is no git, copy the numbers that came with the project, once."""
    figures = paths.root() / "figures"
    if git("rev-parse", "HEAD") is None and figures.is_dir() and not _copy().exists():
        pictures = shutil.ignore_patterns("*.png", "*.pdf", "*.md")
        shutil.copytree(figures, _copy() / "figures", ignore=pictures)


def committed(place: str) -> str | None:
    """The committed text of a file, by its place in the project; None for an unknown one."""
    content = git("show", f"HEAD:{place}")
    return _text(_copy() / place) if content is None else content.decode()


def _here(place: str) -> str | None:
    """What the last run left there."""
    return _text(paths.output_root() / place)


def _text(path: Path) -> str | None:
    return path.read_text() if path.is_file() else None


def rewritten() -> int:
    """How many committed files under ``figures/`` git calls modified; 0 without git."""
    if paths.output_root().resolve() != paths.root().resolve():
        return 0
    status = git("status", "--porcelain", "--untracked-files=no", "--", "figures") or b""
    return len(status.splitlines())


# ---- comparing -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """One notebook's numbers, compared with the committed ones.

    ``tables`` says of every table that differs in what, ``points`` is the largest difference of an
    accuracy, ``verdicts`` claim -> (committed, here) of those that changed. ``why`` says why
    nothing was compared.
    """

    profile: str
    notebook: str
    tables: dict[str, str] = field(default_factory=dict)
    points: float = 0.0
    verdicts: dict[str, tuple[str, str]] = field(default_factory=dict)
    why: str = ""

    @property
    def said(self) -> str:
        """In two words."""
        if self.why or not self.tables:
            return self.why or IDENTICAL
        return f"{self.points:.2g} points" if self.points else DIGITS


def compare(profile: str, item: Item, changed: bool = False) -> Compared:
    """Compare what a notebook left with what is committed.

    Args:
        profile: Whose folder under ``figures/``.
        item: The notebook that ran.
        changed: Whether it ran with parameters of its own.
    """
    (now, new), (was, old) = (_left(profile, item, read) for read in (_here, committed))
    if was is None:
        return Compared(profile, item.id, why=UNKNOWN)
    if changed or any(now.get(x) != was.get(x) for x in ("profile", "overrides", "sources")):
        return Compared(profile, item.id, why=SETTINGS)
    differing = {
        Path(name).stem: difference(new.get(name), old.get(name))
        for name in sorted(new | old)
        if new.get(name) != old.get(name)
    }
    judged = now["claims"]
    return Compared(
        profile,
        item.id,
        {table: words for table, (_, words) in differing.items()},
        max((points for points, _ in differing.values()), default=0.0),
        {c: (v, judged[c]) for c, v in was["claims"].items() if judged.get(c, v) != v},
    )


def _left(
    profile: str, item: Item, read: Callable[[str], str | None]
) -> tuple[dict[str, Any] | None, dict[str, str | None]]:
    """A notebook's sidecar, if there is one, and its tables, its extra figures' among them, as
    ``read`` gives a file's text by its place."""
    folder = f"figures/{profile}"
    texts = [read(f"{folder}/{stem}.json") for stem in (item.id, *item.extra_figures)]
    sidecars = [text and json.loads(text) for text in texts]
    names = [name for sidecar in sidecars if sidecar for name in sidecar["data"]]
    return sidecars[0], {name: read(f"{folder}/{name}") for name in names}


def difference(here: str | None, there: str | None) -> tuple[float, str]:
    """How two versions of a CSV differ.

    Returns:
        The largest difference of an accuracy, in points, and, in words, that or what else differs.
    """
    if here is None or there is None:
        return 0.0, MISSING
    new, old = (pd.read_csv(StringIO(text), dtype=str) for text in (here, there))
    names = [c for c in old if c in COLUMN_LABELS]
    if list(new) != list(old) or not new[names].equals(old[names]):
        return 0.0, ROWS
    accuracies = [c for c in old if _is_accuracy(c)]
    # Of "70.6 ± 0.7" the mean counts.
    new, old = (
        f[accuracies].apply(lambda c: c.str.split().str[0].astype(float)) for f in (new, old)
    )
    scale = old.abs().max().le(1).map({True: 100, False: 1})  # shares become percent
    largest = ((new - old).abs() * scale).max().max()
    return (float(largest), f"{largest:.2g} points") if largest > 0 else (0.0, DIGITS)


def _is_accuracy(column: str) -> bool:
    """Whether a column holds accuracies: tidy ones, or under the name of whoever has them."""
    names = {"accuracy", "expert", "mean", *PROTOCOLS, *map(protocol_label, PROTOCOLS)}
    names |= {*TASK_LABELS.values(), *map(short_label, (*METHODS, *ENCODER_LABELS))}
    return column in names or column.endswith("(%)")


# ---- saying so -----------------------------------------------------------------------------------


def summary(compared: Sequence[Compared]) -> str:
    """How a run's numbers and the committed ones compare."""
    if compared and not any(c.why or c.tables or c.verdicts for c in compared):
        return AS_COMMITTED
    parts = []
    if pairs := [c for c in compared if not c.why]:
        same = sum(not c.tables for c in pairs)
        parts.append(f"Published numbers to the last digit in {same} of {len(pairs)} notebooks")
        worst = max(pairs, key=lambda c: c.points)
        if worst.points:
            parts[0] += f"; an accuracy differs by {worst.points:.2g} points at most"
            parts[0] += f" ({worst.notebook})"
        verdicts = [v for c in pairs for v in c.verdicts.items()]
        changed = dict.fromkeys(f"{claim} is {now}, not {was}" for claim, (was, now) in verdicts)
        parts.append("; ".join(changed) or "Every claim has the published verdict")
    skipped = Counter(f"{c.profile}, {c.why}" for c in compared if c.why)
    if skipped or not pairs:
        counts = "; ".join(f"{n} of {why}" for why, n in skipped.items())
        parts.append(f"Not compared: {counts or 'no notebook left numbers'}")
    return ". ".join(parts) + "."


def compared_markdown(compared: Sequence[Compared]) -> str:
    """The summary and, where tables differ, a table of them."""
    rows = [(c.profile, c.notebook, *pair) for c in compared for pair in c.tables.items()]
    table = markdown(pd.DataFrame(rows, columns=["profile", "notebook", "table", "difference"]))
    return f"{summary(compared)}\n\n{table}" if rows else summary(compared)


def compared_text(compared: Sequence[Compared]) -> str:
    """The same for a terminal."""
    lines = [f"  {table}: {words}" for c in compared for table, words in c.tables.items()]
    return "\n".join([summary(compared), *lines])
