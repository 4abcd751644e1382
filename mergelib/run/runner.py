"""Execute notebooks headless, through papermill, one process each; strict where papermill is
lenient."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
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
Parameters = dict[str, dict[str, Any]]
"""Notebook -> its parameters by name."""
TYPES = {"str": str, "int": int, "float": float, "bool": bool, "dict": dict, "list": list}


def select(only: Sequence[str]) -> list[Item]:
    """Notebooks named by id, by the beginning of an id (``tab02``), or by group; all by default.
    Raises ``UnknownNameError``."""
    names = {i: {i.id, i.id.split("_")[0], i.group} for i in manifest()}
    for name in only:
        if not any(name in known for known in names.values()):
            raise UnknownNameError(
                "notebook or group", name, {n for i in names for n in (i.id, i.group)}
            )
    return [i for i, known in names.items() if not only or known & {*only}]


def lacking(item: Item, profile: str) -> list[str]:
    """The variants and sections that a notebook needs and ``profile`` does not have."""
    if not item.needs:  # most notebooks: no need to read the profile
        return []
    # The dump leaves out absent sections.
    has = {*variant_names(profile), *load_profile(profile).model_dump()}
    return [need for need in item.needs if need not in has]


def variants_of(item: Item, profile: str) -> list[str]:
    """The variants of ``profile`` that a notebook uses; the profile itself, ``""``, is among them
    where the notebook uses no variant, or a section."""
    variants = [need for need in item.needs if need in variant_names(profile)]
    sections = Profile.model_fields.keys() & set(item.needs)
    return [""] * (not variants or bool(sections)) + variants


def chosen(args: Any) -> tuple[list[Item], list[str]]:
    """The notebooks that the options ask for, and a sentence on each that is left out.

    Without ``--only`` these are all that can run: with what ``profile`` has and, if the options
    name only one kind of local data, on that kind.
    """
    items = select(args.only)
    if args.only:
        return items, []
    reasons = {i.id: _why_left_out(i, args) for i in items}
    said = [f"{name} is left out: {reason}" for name, reason in reasons.items() if reason]
    return [i for i in items if not reasons[i.id]], said


def _why_left_out(item: Item, args: Any) -> str:
    profile = args.profile
    if lacks := lacking(item, profile):
        return f"it needs {', '.join(lacks)}, which profile '{profile}' does not have."
    if bool(args.text_dir) == bool(args.image_dir):
        return ""
    waits = "image" if args.text_dir else "text"
    tasks = [load_profile(profile, variant=v).tasks for v in ("", *variant_names(profile))]
    reads = any(t.source in ("local", "hub_sample") and t.modality == waits for t in tasks)
    if not reads or f"{waits}_dir" not in declared_parameters(item.path):
        return ""
    return (
        f"its {waits}s are not in your folder, and --{waits}-dir was not given; --only "
        f"{item.id.split('_')[0]} runs it on data from the hub."
    )


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


def parse_parameters(pairs: Sequence[str], items: Sequence[Item]) -> Parameters:
    """``name=value`` texts -> parameters per notebook id, typed as declared.

    A name goes to every selected notebook that declares it. Raises ``UnknownNameError`` for a name
    that none declares and ``ConfigError`` for a value of another type; papermill would only warn.
    """
    declared = {item.id: declared_parameters(item.path) for item in items}
    result: Parameters = {item.id: {} for item in items}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        if not separator:
            raise ConfigError(f"-p {shortened(pair)}: write it as name=value.")
        if pair.encode(errors="replace").decode() != pair:
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
        value = ast.literal_eval(text.capitalize() if expected is bool else text)
        json.dumps(value)  # it is passed to the notebook as JSON: no sets, no bytes
        if expected is float and type(value) is int:
            value = float(value)
    except Exception:  # literal_eval raises half a dozen kinds
        value = None
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
        self._started: list[subprocess.Popen] = []
        self._guard = threading.Lock()

    def run(self, items: Sequence[Item], parameters: Parameters) -> list[Result]:
        """Execute all; a failure does not stop the others. Ctrl-C stops the running ones and raises
        ``KeyboardInterrupt`` after they are gone."""
        folder = paths.make_folder(paths.build(self.profile) / "notebooks")
        done: dict[str, Result] = {}
        for last in (False, True):  # the report reads what the others wrote
            part = [i for i in items if (i.group == REPORT) == last]
            if self.jobs > 1:
                part = in_parallel(part, self.profile)
            with ThreadPoolExecutor(self.jobs) as pool:
                results = pool.map(
                    lambda item: self._run_one(item, parameters.get(item.id, {}), folder), part
                )
                try:
                    done |= {r.item.id: r for r in results}
                except BaseException:  # ``map`` has cancelled those that had not begun
                    self.stop()
                    raise
        return [done[i.id] for i in items]

    def stop(self) -> None:
        """End every running notebook and its kernel."""
        with self._guard:
            self.stopping.set()
        for number in (signal.SIGINT, signal.SIGKILL):
            running = [p for p in self._started if p.poll() is None]
            for process in running:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, number)
            deadline = time.monotonic() + 5.0
            while time.monotonic() < deadline and any(p.poll() is None for p in running):
                time.sleep(0.05)

    def _run_one(self, item: Item, parameters: dict[str, Any], folder: Path) -> Result:
        result, start, begun = Result(item), time.monotonic(), time.time()
        executed = folder / f"{item.id}.ipynb"
        executed.parent.mkdir(exist_ok=True)
        part = executed.with_name(f".tmp-{os.getpid()}-{executed.name}")
        values = {"profile": self.profile, **parameters}
        code = self._execute(item, str(part), json.dumps(values))
        if self.stopping.is_set():
            part.unlink(missing_ok=True)
            return result
        if code == NO_ROOM:
            raise StoreError(f"{item.id}: cannot write {executed}. {paths.REMEDY}")
        result.error = self._complaint(item, code, part, begun)
        if part.exists():
            part.replace(executed)
        result.ok, result.seconds = not result.error, time.monotonic() - start
        if result.ok and item.outputs:
            sidecar = paths.figures(self.profile) / f"{item.id}.json"
            result.claims = json.loads(sidecar.read_text())["claims"]
        ending = "done" if result.ok else "FAILED"
        self.echo(f"== {item.id}: {ending} in {result.seconds / 60:.1f} min")
        if result.error:
            self.echo(result.error)
        return result

    def _execute(self, item: Item, target: str, parameters: str) -> int:
        """One notebook in a child process, whose lines are told; returns its exit status."""
        threads = str(load_profile(self.profile).threads)
        environment = os.environ | {
            # One number of threads for every product, so that results do not depend on how many
            # notebooks run at a time.
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "PYTHONUNBUFFERED": "1",
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }
        with self._guard:
            if self.stopping.is_set():
                return 0
            self.echo(f"== {item.id} ({item.item}): started")
            process = subprocess.Popen(
                [sys.executable, "-m", "mergelib.run.execute", str(item.path), target, parameters],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env=environment,
                start_new_session=True,
            )
            self._started.append(process)
        for line in process.stdout:
            # The kernel's start-up message bypasses papermill on its way to the terminal.
            if line.strip() and "[IPKernelApp]" not in line and not self.stopping.is_set():
                self.echo(f"   {item.id.split('_')[0]} | {line.rstrip()[:160]}")
        return process.wait()

    def _complaint(self, item: Item, code: int, notebook: Path, begun: float) -> str:
        """What went wrong, or an empty text."""
        if code:
            memory = " (out of memory?)" if code in (-9, 137, 138) else ""
            return f"{item.id}: exit code {code}{memory}\n{failing_cell(notebook)}"
        folder = paths.figures(self.profile)
        files = [folder / name for name in item.outputs]
        missing = [f.name for f in files if not f.is_file() or f.stat().st_mtime < begun - 2]
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
    seconds = {r.item.id: round(r.seconds, 1) for r in results if r.ok}
    text = json.dumps({"cold": cold, "seconds": seconds}, indent=1)
    paths.write_whole(paths.build(profile) / "timings.json", text.encode())


def overrides_of(given: dict[str, Any]) -> dict[str, Any]:
    """The profile values that a notebook's parameters change."""
    places = (given.get(name, "") for name in ("text_dir", "base", "image_dir"))
    return with_shortcuts(given.get("overrides", {}), *places)


def check_before(profile: str, items: Sequence[Item], parameters: Parameters) -> None:
    """Refuse what would fail later: a profile that does not fit a notebook's overrides, or missing
    data."""
    refuse_lacking(profile, items)
    for item in items:
        values = parameters[item.id]
        for variant in variants_of(item, profile):
            loaded = load_profile(profile, overrides_of(values), variant)
            if "k" in values and values["k"] not in loaded.protocols.ks:
                raise MissingShotsError(values["k"], loaded.protocols.ks)
            for method in (*loaded.merging.methods, *loaded.merging.options):
                get_method(method).try_options(loaded.merging.options.get(method, {}))
            if loaded.tasks.source == "local":
                _find_local(item, loaded)


def _find_local(item: Item, profile: Profile) -> None:
    """Raises ``MergelibError`` if a file that the notebook reads is missing."""
    place, find, layout = LOCAL[profile.tasks.modality]
    if place not in declared_parameters(item.path):
        return  # the report does not read the data
    folder = getattr(profile.tasks, place)
    if not folder:
        raise ConfigError(
            f"Profile '{profile.name}' reads local files for {item.id}: "
            f"give --{place.replace('_', '-')} FOLDER with {layout}, "
            "or choose other notebooks with --only."
        )
    for name, split in product(profile.tasks.names, ("train", "test")):
        find(user_path(folder) / name, split)


def hub_repositories(
    profile: str, items: Sequence[Item], parameters: Parameters | None = None
) -> list[Repository]:
    """What these notebooks read from the hub in ``profile``, with ``parameters`` by notebook, as in
    the runner."""
    found: dict[str, Repository] = {}
    for item in items:
        if declared_parameters(item.path).keys() & PLACES:  # others read the others' results
            overrides = overrides_of((parameters or {}).get(item.id, {}))
            read = needed(profile, overrides, variants_of(item, profile))
            found |= {repository.name: repository for repository in read}
    return list(found.values())
