"""Did a run give the committed numbers? Compares tables and verdicts under ``figures/``.

A run rewrites them with what its machine computes. Committed is what git keeps in HEAD; without
git, what lay in the project before its first run, of which that run keeps a copy.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import zipfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from ..claims import overall_of_parts
from ..core import paths
from ..core.manifest import Item
from ..merging import METHODS
from ..protocols import PROTOCOLS
from .labels import ENCODER_LABELS, TASK_LABELS, protocol_label, short_label
from .scores import markdown

Files = Mapping[str, str]
"""Place in the project -> text, of every CSV and sidecar under ``figures/``."""
IDENTICAL, DIGITS, NEW, MISSING = "identical", "other digits", "new", "missing here"
UNKNOWN, SETTINGS = "not published", "other settings"
AS_COMMITTED = "Numbers and verdicts are those published with this project, to the last digit."
NOTHING = (
    "Whether these are the published numbers cannot be told: there is no git here, and no run has "
    "kept a copy of them."
)
NUMBERED = ("k", "share", "seed", "lam")  # numbers that name a row
MEASURED = ("order", "verdict", "note")  # texts that do not


def git(*arguments: str) -> bytes | None:
    """What git says about this project, also to another user than its owner; None where there is no
    git or no commit."""
    root = paths.root()
    if not (root / ".git").exists() or not shutil.which("git"):
        return None
    command = ["git", "--no-optional-locks", "-c", f"safe.directory={root}", "-C", str(root)]
    done = subprocess.run([*command, *arguments], capture_output=True)
    return done.stdout if done.returncode == 0 else None


def _copy() -> Path:
    return paths.output_root() / "build" / "committed.zip"


def _archive() -> bytes | None:
    places = (":(glob)figures/**/*.csv", ":(glob)figures/**/*.json")
    return git("archive", "--format=zip", "HEAD", "--", *places)


def keep() -> None:
    """Before a run: where no git knows the committed numbers, copy them, once."""
    if _copy().is_file() or _archive() is not None:
        return
    folder, content = paths.root() / "figures", io.BytesIO()
    found = [p for p in sorted(folder.glob("*/*")) if p.suffix in (".csv", ".json")]
    if not found:
        return
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in found:
            archive.write(path, path.relative_to(paths.root()).as_posix())
    paths.make_folder(_copy().parent)
    paths.write_whole(_copy(), content.getvalue())


def committed_files() -> Files | None:
    """The committed numbers; None where nothing knows them."""
    archive = _archive()
    if archive is None and _copy().is_file():
        archive = _copy().read_bytes()
    if archive is None:
        return None
    with zipfile.ZipFile(io.BytesIO(archive)) as files:
        names = [n for n in files.namelist() if not n.endswith("/")]
        return {name: files.read(name).decode() for name in names}


def rewritten() -> int:
    """How many committed files under ``figures/`` git calls modified; 0 without git."""
    if paths.output_root().resolve() != paths.root().resolve():
        return 0
    said = git("status", "--porcelain", "--untracked-files=no", "--", "figures") or b""
    return len(said.splitlines())


# ---- comparing -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """One notebook's numbers, compared with the committed ones.

    ``tables`` says of every table that differs in what, ``points`` is the largest difference of an
    accuracy, ``verdicts`` claim -> (committed, here) of those that changed, and ``parts`` the
    number of parts of claims whose verdict changed. ``why`` says why nothing was compared.
    """

    profile: str
    notebook: str
    tables: dict[str, str] = field(default_factory=dict)
    points: float = 0.0
    verdicts: dict[str, tuple[str, str]] = field(default_factory=dict)
    parts: int = 0
    why: str = ""

    @property
    def said(self) -> str:
        """In two words."""
        if self.why or not self.tables:
            return self.why or IDENTICAL
        return f"{self.points:.2g} points" if self.points else DIGITS


def compare(
    profile: str, items: Sequence[Item], committed: Files, changed: Collection[str] = ()
) -> list[Compared]:
    """Compare what notebooks left with what is committed.

    Args:
        profile: Whose folder under ``figures/``.
        items: The notebooks that ran.
        committed: As from ``committed_files``.
        changed: Ids of notebooks that ran with parameters of their own.
    """
    return [_compare(profile, item, committed, item.id in changed) for item in items]


def _compare(profile: str, item: Item, committed: Files, changed: bool) -> Compared:
    place, folder = f"figures/{profile}", paths.figures(profile)
    if f"{place}/{item.id}.json" not in committed:
        return Compared(profile, item.id, why=UNKNOWN)
    here, there = (
        json.loads(text)
        for text in ((folder / f"{item.id}.json").read_text(), committed[f"{place}/{item.id}.json"])
    )
    if changed or any(here.get(x) != there.get(x) for x in ("profile", "overrides", "sources")):
        return Compared(profile, item.id, why=SETTINGS)
    tables, largest = {}, 0.0
    names = {"here": set(here["data"]), "committed": set(there["data"])}
    for stem in item.extra_figures:
        names["here"] |= set(json.loads((folder / f"{stem}.json").read_text())["data"])
        names["committed"] |= set(
            json.loads(committed.get(f"{place}/{stem}.json", '{"data": []}'))["data"]
        )
    for name in sorted(names["here"] | names["committed"]):
        new, old = folder / name, committed.get(f"{place}/{name}")
        if name not in names["here"] or not new.is_file():
            tables[name] = MISSING
        elif old is None:
            tables[name] = NEW
        elif (text := new.read_text()) != old:
            points, tables[name] = difference(text, old)
            largest = max(largest, points)
    before, now = (_verdicts(sidecar) for sidecar in (there, here))
    claims = {c: tuple(_overall(v, c) for v in (before, now)) for c, _ in {**before, **now}}
    return Compared(
        profile,
        item.id,
        {Path(name).stem: said for name, said in tables.items()},
        largest,
        {claim: pair for claim, pair in claims.items() if len(set(pair)) > 1},
        sum(before.get(part) != now.get(part) for part in {**before, **now}),
    )


def _verdicts(sidecar: Mapping) -> dict[tuple[str, str], str]:
    return {(v["claim"], v["part"]): v["verdict"] for v in sidecar["verdicts"]}


def _overall(verdicts: Mapping[tuple[str, str], str], claim: str) -> str:
    parts = [v for (c, _), v in verdicts.items() if c == claim]
    return overall_of_parts(parts) if parts else "not judged here"


def difference(here: str, committed: str) -> tuple[float, str]:
    """How two versions of a CSV differ.

    Returns:
        The largest difference of an accuracy, in points, over the rows that both have; and, in
        words, that and what else differs.
    """
    try:
        texts = {"dtype": str, "keep_default_na": False}  # as written: 5 and 5.0 are two names
        new, old = (pd.read_csv(io.StringIO(text), **texts) for text in (here, committed))
    except (pd.errors.EmptyDataError, pd.errors.ParserError):
        return 0.0, "no table"
    if list(new) != list(old):
        return 0.0, "other columns"
    accuracies = [c for c in old if _is_accuracy(c)]
    names = [c for c in old if c in NUMBERED or (_is_text(old[c]) and c not in MEASURED)]
    names = [c for c in names if c not in accuracies]
    new, old = (_by_name(frame, names, accuracies) for frame in (new, old))
    both = old.index.intersection(new.index)
    scale = old.abs().max().le(1).map({True: 100, False: 1})  # shares become percent
    apart = ((new.loc[both] - old.loc[both]).abs() * scale).max().max() if accuracies else 0.0
    points = 0.0 if pd.isna(apart) else float(apart)
    empty = int((new.loc[both].isna() != old.loc[both].isna()).sum().sum())
    said = [f"{points:.2g} points"] if points else []
    said += [f"cells empty in one: {empty}"] if empty else []
    said += [f"rows added: {n}"] if (n := len(new) - len(both)) else []
    said += [f"rows missing: {n}"] if (n := len(old) - len(both)) else []
    return points, ", ".join(said) or DIGITS


def _is_accuracy(column: str) -> bool:
    """Whether a column holds accuracies: tidy ones, or under the name of whoever has them."""
    names = {"accuracy", "expert", "mean", *PROTOCOLS, *map(protocol_label, PROTOCOLS)}
    names |= {*TASK_LABELS.values(), *map(short_label, (*METHODS, *ENCODER_LABELS))}
    return column in names or column.endswith("(%)")


def _is_text(column: pd.Series) -> bool:
    """Whether a column of texts holds more than numbers."""
    return bool(pd.to_numeric(column[column != ""], errors="coerce").isna().any())


def _by_name(frame: pd.DataFrame, names: list[str], accuracies: list[str]) -> pd.DataFrame:
    """The accuracies as numbers, "70.6 ± 0.7" among them, under the names of their rows."""
    keys = frame[names]
    keys = keys.assign(copy=keys.groupby(names).cumcount() if names else range(len(keys)))
    numbers = frame[accuracies].apply(
        lambda c: pd.to_numeric(c.str.split(" ").str[0], errors="coerce")
    )
    return numbers.set_index(pd.MultiIndex.from_frame(keys))


# ---- saying so -----------------------------------------------------------------------------------


def summary(compared: Sequence[Compared] | None) -> str:
    """How a run's numbers and the committed ones compare; None where nothing knows these."""
    if not compared:
        return NOTHING if compared is None else "No notebook left numbers to compare."
    known = [c for c in compared if not c.why]
    if known and len(known) == len(compared) and not any(c.tables or c.parts for c in known):
        return AS_COMMITTED
    said = []
    if known:
        same = sum(not c.tables for c in known)
        said.append(f"Published numbers to the last digit in {same} of {len(known)} notebooks")
        worst = max(known, key=lambda c: c.points)
        if worst.points:
            said[0] += f"; an accuracy differs by {worst.points:.2g} points at most"
            said[0] += f" ({worst.notebook})"
        verdicts = (v for c in known for v in c.verdicts.items())
        changed = dict.fromkeys(f"{claim} is {now}, not {was}" for claim, (was, now) in verdicts)
        said.append("; ".join(changed) or "Every claim has the published verdict")
        parts = sum(c.parts for c in known)
        said += [f"Parts of claims with another verdict: {parts}"] if parts else []
    skipped = Counter(f"{c.profile}, {c.why}" for c in compared if c.why)
    if skipped:
        said.append(f"Not compared: {'; '.join(f'{n} of {why}' for why, n in skipped.items())}")
    return ". ".join(said) + "."


def differences(compared: Sequence[Compared] | None) -> pd.DataFrame:
    """A row per table that differs: profile, notebook, table, difference."""
    rows = [(c.profile, c.notebook, t, d) for c in compared or [] for t, d in c.tables.items()]
    return pd.DataFrame(rows, columns=["profile", "notebook", "table", "difference"])


def compared_markdown(compared: Sequence[Compared] | None) -> str:
    """The summary and, where tables differ, a table of them."""
    rows = differences(compared)
    return "\n".join([summary(compared), *(["", *markdown(rows)] if len(rows) else [])])


def compared_text(compared: Sequence[Compared] | None) -> str:
    """The same for a terminal."""
    rows = differences(compared)
    lines = [f"  {row.table}: {row.difference}" for row in rows.itertuples()]
    return "\n".join([summary(compared), *lines])
