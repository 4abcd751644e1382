"""Execute notebooks headless, through papermill, one process each; strict where papermill is
lenient."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from papermill import inspect_notebook

from ..core import paths
from ..core.documents import user_path
from ..core.errors import ConfigError, MissingShotsError, StoreError, UnknownNameError, shortened
from ..core.hub import Repository
from ..core.manifest import NO_ROOM, SOLUTIONS, Item, manifest
from ..merging import get_method
from ..profiles import Profile, load_profile, profile_names, variant_names, with_shortcuts
from ..profiles.downloads import needed
from ..tasks.local import find_csv
from ..tasks.parquet import LAYOUT, find_parquet

REPORT = "report"
PLACES = ("text_dir", "image_dir", "base")  # parameters that say where data lie
LOCAL = {
    "text": ("text_dir", find_csv, "<task>/{train,test}.csv[.gz]"),
    "image": ("image_dir", find_parquet, LAYOUT.partition("/")[2]),
}
"""Modality -> the parameter that names the folder, how a task's file is found there, the layout."""
TYPES = {"str": str, "int": int, "float": float, "bool": bool, "dict": dict, "list": list}


def select(only: Sequence[str]) -> list[Item]:
    """Notebooks named by id, by the beginning of an id (``tab02``), or by group. Raises
    ``UnknownNameError``."""
    if not only:
        return list(manifest())
    chosen = []
    for name in only:
        matches = [i for i in manifest() if name in (i.id, i.id.split("_")[0], i.group)]
        if not matches:
            known = {known for i in manifest() for known in (i.id, i.group)}
            raise UnknownNameError("notebook or group", name, known)
        chosen += matches
    return [i for i in manifest() if i in chosen]


def lacking(item: Item, profile: str) -> list[str]:
    """The variants and sections that a notebook needs and ``profile`` does not have."""
    if not item.needs:  # most notebooks: no need to read the profile
        return []
    has = {
        *variant_names(profile),
        *load_profile(profile).model_dump(),
    }  # the dump leaves out absent sections
    return [need for need in item.needs if need not in has]


def variants_of(item: Item, profile: str) -> list[str]:
    """The variants of ``profile`` that a notebook uses; the profile itself, ``""``, is among them
    where the notebook uses no variant, or a section."""
    variants = [need for need in item.needs if need in variant_names(profile)]
    sections = Profile.model_fields.keys() & set(item.needs)
    return [""] * (not variants or bool(sections)) + variants


def why_left_out(item: Item, profile: str, *, text_dir: str, image_dir: str) -> str:
    """Why a run of all notebooks leaves ``item`` out, or an empty text: because of what ``profile``
    lacks or, if the run names only one kind of local data, because the other kind's folder is
    missing."""
    if lacks := lacking(item, profile):
        return f"it needs {', '.join(lacks)}, which profile '{profile}' does not have."
    if bool(text_dir) == bool(image_dir):
        return ""
    waits = "image" if text_dir else "text"
    tasks = [load_profile(profile, variant=v).tasks for v in ("", *variant_names(profile))]
    reads = any(t.source in ("local", "hub_sample") and t.modality == waits for t in tasks)
    if reads and f"{waits}_dir" in declared_parameters(item.path):
        return (
            f"its {waits}s are not in your folder, and --{waits}-dir was not given; --only "
            f"{item.id.split('_')[0]} runs it on data from the hub."
        )
    return ""


def refuse_lacking(profile: str, items: Sequence[Item]) -> None:
    """Raises ``ConfigError`` for notebooks that ``profile`` cannot run, naming those that can."""
    for item in items:
        if lacks := lacking(item, profile):
            able = [i.id.split("_")[0] for i in manifest() if not lacking(i, profile)]
            profiles = [p for p in profile_names() if not lacking(item, p)]
            raise ConfigError(
                f"{item.id} needs {', '.join(lacks)}, which profile '{profile}' does not have; "
                f"it runs in {', '.join(profiles)}. With this profile go: --only {' '.join(able)}."
            )


def solutions(items: Sequence[Item]) -> list[Item]:
    """The notebooks that solve the exercises of ``items``, where there are any."""
    solved = [Item(f"{SOLUTIONS}/{i.id}", "Solutions", i.title, SOLUTIONS) for i in items]
    return [s for s in solved if s.path.is_file()]


def declared_parameters(notebook: Path) -> dict[str, tuple[str, Any]]:
    """Name -> (type, default) from a notebook's parameters cell, as papermill reads it."""
    declared = {}
    for name, p in inspect_notebook(str(notebook)).items():
        try:
            declared[name] = p["inferred_type_name"].split("[")[0], ast.literal_eval(p["default"])
        except Exception as error:  # literal_eval raises half a dozen kinds
            raise ConfigError(
                f"{notebook.name}, parameters cell: the default of {name} is "
                f"{shortened(p['default'])}; write a plain value."
            ) from error
    return declared


def given_places(args: Any) -> dict[str, str]:
    """``PLACES`` as the options say: notebooks and jobs run elsewhere, so paths are made absolute;
    a hub id stays."""
    places = {name: getattr(args, name) for name in PLACES}
    for name, value in places.items():
        if value and ((path := user_path(value)).exists() or name != "base"):
            places[name] = str(path.resolve())
    return places


def parse_parameters(pairs: Sequence[str], items: Sequence[Item]) -> dict[str, dict[str, Any]]:
    """``name=value`` texts -> parameters per notebook id, typed as declared.

    A name goes to every selected notebook that declares it. Raises ``UnknownNameError`` for a name
    that none declares and ``ConfigError`` for a value of another type; papermill would only warn.
    """
    declared = {item.id: declared_parameters(item.path) for item in items}
    result: dict[str, dict[str, Any]] = {item.id: {} for item in items}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        if not separator:
            raise ConfigError(f"-p {shortened(pair)}: write it as name=value.")
        if not pair.isascii() and pair.encode(errors="replace").decode() != pair:
            raise ConfigError(f"-p {shortened(name)}: its value is not UTF-8 text.")
        if name == "profile":
            raise ConfigError("-p profile=...: choose the profile with --profile.")
        takers = [i for i, known in declared.items() if name in known]
        if not takers:
            raise UnknownNameError(
                "parameter", name, {n for known in declared.values() for n in known}
            )
        for notebook in takers:
            if name in result[notebook]:
                raise ConfigError(f"-p {shortened(name)} is given twice; give it once.")
            result[notebook][name] = parse_value(name, text, declared[notebook][name][0])
    return result


def parse_value(name: str, text: str, type_name: str) -> Any:
    """``text`` as a value of the declared type. Raises ``ConfigError`` naming what was expected."""
    expected = TYPES.get(type_name, str)
    if expected is str:
        return text
    try:
        value = (
            {"true": True, "false": False}[text.lower()]
            if expected is bool
            else ast.literal_eval(text)
        )
        json.dumps(value)  # it is passed to the notebook as JSON: no sets, no bytes
    except Exception:  # literal_eval raises half a dozen kinds
        value = None
    if expected is float and type(value) is int:
        value = float(value)
    if type(value) is not expected:
        raise ConfigError(
            f"-p {name}={shortened(text)}: {name} is declared as {type_name}; give such a value."
        )
    return value


@dataclass
class Result:
    """The outcome of one notebook."""

    item: Item
    ok: bool = False
    seconds: float = 0.0
    error: str = ""
    claims: dict[str, str] = field(default_factory=dict)


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_jobs(profile: Profile) -> int:
    """Notebooks at a time: one per ``threads`` cores, at most 4 (a kernel takes about 1 GB)."""
    return max(1, min(4, usable_cores() // profile.threads))


def in_parallel(items: Sequence[Item], profile: str) -> list[Item]:
    """The order in which several jobs begin: the lesson, beside it the longest with the same
    experts, which the two then train together, then the longest first."""
    order = sorted(items, key=lambda i: (i.group != "lesson", -i.minutes.get(profile, 0.0)))
    variants = {*variant_names(profile)}
    same = [i for i in order[1:] if variants.isdisjoint(i.needs)]
    return order[:1] + same[:1] + [i for i in order[1:] if i not in same[:1]]


class Runner:
    """Runs notebooks of one profile; ``jobs`` at a time, each papermill in a process group of its
    own."""

    def __init__(self, profile: str, *, jobs: int = 1, echo=print):
        self.profile, self.jobs, self.echo = profile, jobs, echo
        self.stopping = threading.Event()
        self._running: set[subprocess.Popen] = set()
        self._guard = threading.Lock()

    def run(self, items: Sequence[Item], parameters: dict[str, dict[str, Any]]) -> list[Result]:
        """Execute all; a failure does not stop the others. Ctrl-C stops the running ones and raises
        ``KeyboardInterrupt`` after they are gone."""
        folder = paths.make_folder(paths.build(self.profile) / "notebooks")
        done: dict[str, Result] = {}
        for last in (False, True):  # the report reads what the others wrote
            part = [i for i in items if (i.group == REPORT) == last]
            if self.jobs > 1:
                part = in_parallel(part, self.profile)
            with ThreadPoolExecutor(self.jobs) as pool:
                futures = [
                    pool.submit(self._run_one, item, parameters.get(item.id, {}), folder)
                    for item in part
                ]
                try:
                    done |= {i.id: f.result() for i, f in zip(part, futures, strict=True)}
                except BaseException:
                    self.stop()
                    for f in futures:
                        f.cancel()
                    raise
        return [done[i.id] for i in items]

    def stop(self) -> None:
        """End every running notebook and its kernel."""
        self.stopping.set()
        with self._guard:
            running = list(self._running)
        for signal_number, grace in ((signal.SIGINT, 5.0), (signal.SIGKILL, 5.0)):
            for process in running:
                if process.poll() is None:
                    with suppress(ProcessLookupError, PermissionError):
                        os.killpg(process.pid, signal_number)
            deadline = time.monotonic() + grace
            while time.monotonic() < deadline and any(p.poll() is None for p in running):
                time.sleep(0.05)

    def _run_one(self, item: Item, parameters: dict[str, Any], folder: Path) -> Result:
        result = Result(item)
        if self.stopping.is_set():
            return result
        start = time.monotonic()
        self.echo(f"== {item.id} ({item.item}): started")
        with tempfile.TemporaryDirectory(prefix="mergelib-") as scratch:
            out, values = Path(scratch) / "out.ipynb", Path(scratch) / "parameters.json"
            values.write_text(json.dumps({"profile": self.profile, **parameters}))
            command = [
                sys.executable,
                "-m",
                "mergelib.run.execute",
                str(item.path),
                str(out),
                str(values),
            ]
            threads = str(load_profile(self.profile).threads)
            env = os.environ | {
                # One number of threads for every product, so that results do not depend on how many
                # notebooks run at a time.
                **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), threads),
                "PYTHONUNBUFFERED": "1",
                "MPLBACKEND": "module://matplotlib_inline.backend_inline",
                "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            }
            with self._guard:
                if self.stopping.is_set():
                    return result
                process = subprocess.Popen(
                    command,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                    env=env,
                    start_new_session=True,
                )
                self._running.add(process)
            self._relay(item, process)
            code = process.wait()
            with self._guard:
                self._running.discard(process)
            result.seconds = time.monotonic() - start
            if self.stopping.is_set():
                return result
            if code == NO_ROOM:
                raise StoreError(
                    f"{item.id}: its outputs cannot be written to {scratch}. Free space there, "
                    "or set TMPDIR to a folder that you can write to."
                )
            if out.exists():
                executed = folder / f"{item.id}.ipynb"
                executed.parent.mkdir(exist_ok=True)
                paths.write_whole(executed, out.read_bytes())
            result.error = self._complaint(item, code, out, start_wall=time.time() - result.seconds)
        result.ok = not result.error
        if result.ok and item.outputs:
            result.claims = json.loads(
                (paths.figures(self.profile) / f"{item.id}.json").read_text()
            )["claims"]
        self.echo(
            f"== {item.id}: {'done' if result.ok else 'FAILED'} in {result.seconds / 60:.1f} min"
        )
        if result.error:
            self.echo(result.error)
        return result

    def _relay(self, item: Item, process: subprocess.Popen) -> None:
        for line in process.stdout:
            # The kernel's start-up message bypasses papermill on its way to the terminal.
            if line.strip() and "[IPKernelApp]" not in line and not self.stopping.is_set():
                self.echo(f"   {item.id.split('_')[0]} | {line.rstrip()[:160]}")

    def _complaint(self, item: Item, code: int, out: Path, *, start_wall: float) -> str:
        """What went wrong, or an empty text."""
        if code:
            memory = " (out of memory?)" if code in (-9, 137, 138) else ""
            return f"{item.id}: exit code {code}{memory}\n{failing_cell(out)}"
        folder = paths.figures(self.profile)
        missing = [
            name
            for name in item.outputs
            if not (folder / name).is_file() or (folder / name).stat().st_mtime < start_wall - 2
        ]
        text = f"{item.id}: it ran, but did not write {', '.join(missing)} to {folder}."
        return text if missing else ""


def failing_cell(notebook: Path) -> str:
    """Source and traceback of the first cell with an error in an executed notebook."""
    if not notebook.exists():
        return "No output notebook was written."
    for cell in json.loads(notebook.read_text())["cells"]:
        for output in cell.get("outputs", []):
            if output.get("output_type") == "error":
                return "".join(cell["source"]) + "\n" + "\n".join(output["traceback"])
    return "No cell failed; the kernel may have died."


def closing_table(results: Sequence[Result], seconds: float, compared: Sequence[Any]) -> str:
    """notebook | minutes | numbers | verdicts, as text; at the end the ``seconds`` from start to
    end. ``compared`` says how numbers and verdicts differ from the committed ones."""
    width = max(len(r.item.id) for r in results)
    by_notebook = {c.notebook: c for c in compared}
    lines = [f"{'notebook':<{width}}  minutes  {'numbers':<14}  verdicts"]
    for r in results:
        c = by_notebook.get(r.item.id)
        was = {
            claim: f" (published: {old})" for claim, (old, _) in (c.verdicts if c else {}).items()
        }
        verdicts = "; ".join(f"{claim}: {v}{was.get(claim, '')}" for claim, v in r.claims.items())
        verdicts = verdicts or ("no claims" if r.ok else "FAILED")
        numbers = c.said if c else ""
        lines.append(f"{r.item.id:<{width}}  {r.seconds / 60:7.1f}  {numbers:<14}  {verdicts}")
    lines.append(f"{'sum':<{width}}  {sum(r.seconds for r in results) / 60:7.1f}")
    lines.append(f"{'from start to end':<{width}}  {seconds / 60:7.1f}")
    return "\n".join(lines)


def write_timings(profile: str, results: Sequence[Result], *, cold: bool) -> None:
    """Seconds per notebook, in a separate file: they are never compared. ``cold``: the store was
    empty."""
    text = json.dumps(
        {"cold": cold, "seconds": {r.item.id: round(r.seconds, 1) for r in results if r.ok}},
        indent=1,
    )
    paths.write_whole(paths.build(profile) / "timings.json", text.encode())


def overrides_of(given: dict[str, Any]) -> dict[str, Any]:
    """The profile values that a notebook's parameters change."""
    places = (given.get(name, "") for name in ("text_dir", "base", "image_dir"))
    return with_shortcuts(given.get("overrides", {}), *places)


def check_before(
    profile: str, items: Sequence[Item], parameters: dict[str, dict[str, Any]]
) -> None:
    """Refuse what would fail later: a profile that does not fit a notebook's overrides, or missing
    data."""
    refuse_lacking(profile, items)
    for item in items:
        values, declared = parameters[item.id], declared_parameters(item.path)
        overrides = overrides_of(values)
        for variant in variants_of(item, profile):
            loaded = load_profile(profile, overrides, variant)
            if "k" in values and values["k"] not in loaded.protocols.ks:
                raise MissingShotsError(values["k"], loaded.protocols.ks)
            for method in (*loaded.merging.methods, *loaded.merging.options):
                get_method(method).try_options(loaded.merging.options.get(method, {}))
            place, find, layout = LOCAL[loaded.tasks.modality]
            # the report does not read the data
            if loaded.tasks.source != "local" or place not in declared:
                continue
            if not (folder := getattr(loaded.tasks, place)):
                raise ConfigError(
                    f"Profile '{profile}' reads local files for {item.id}: "
                    f"give --{place.replace('_', '-')} FOLDER with {layout}, "
                    "or choose other notebooks with --only."
                )
            for name, split in product(loaded.tasks.names, ("train", "test")):
                find(user_path(folder) / name, split)


def hub_repositories(
    profile: str, items: Sequence[Item], parameters: dict[str, dict[str, Any]] | None = None
) -> list[Repository]:
    """What these notebooks read from the hub in ``profile``, with ``parameters`` by notebook, as in
    the runner."""
    repositories: dict[str, Repository] = {}
    for item in items:
        values = (parameters or {}).get(item.id, {})
        if not declared_parameters(item.path).keys() & PLACES:
            continue  # it reads the others' results
        overrides = overrides_of(values)
        repositories |= {s.name: s for s in needed(profile, overrides, variants_of(item, profile))}
    return list(repositories.values())
