"""``python -m mergelib doctor``: can this machine run the notebooks, which of them, and about how
long? Every problem comes with its remedy."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch
from huggingface_hub import constants
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from ..core import paths
from ..core.errors import DataError, MergelibError, OfflineError
from ..core.hub import cached_files, lock_path
from ..profiles import load_profile, profile_names
from ..profiles.downloads import needed
from .data import volume
from .runner import hub_repositories, lacking, manifest, usable_cores

FOR_GPU = "paper"  # the profile whose encoders have 10^8 parameters, on full-size data
# free bytes below which a run may well end early; the store of a whole mini run is a tenth of this
LITTLE = 1e9


@dataclass(frozen=True)
class Finding:
    """The result of one check. A problem makes the exit status 1; a remedy alone is a note."""

    topic: str
    text: str
    remedy: str = ""
    problem: bool = False

    def __str__(self) -> str:
        mark = "!" if self.problem else "?" if self.remedy else " "
        return ". ".join(filter(None, (f"{mark} {self.topic:<12} {self.text}", self.remedy)))


def command_doctor(args: argparse.Namespace) -> int:
    """Run the subcommand and return its exit status."""
    profiles = [args.profile] if args.profile else profile_names()
    for name in profiles:
        load_profile(name)
    items = [
        *versions(paths.root()),
        *machine(profiles),
        *folders(profiles),
        *hub(profiles, online=args.online),
        *(Finding(name, notebooks(name)) for name in profiles),
    ]
    problems = [f.topic for f in items if f.problem]
    plural = "s" * (len(problems) != 1)
    print(*items, f"\n{len(problems)} problem{plural}: {', '.join(problems) or 'none'}", sep="\n")
    return 1 if problems else 0


def differing(pins: Sequence[str]) -> list[str]:
    """The pins such as "torch==2.13.0" that this environment violates, as "torch 2.12.0 instead of
    2.13.0". A local part of a version, such as torch's "+cpu", is not compared."""
    texts = []
    for pin in map(Requirement, pins):
        try:
            installed = version(pin.name)
        except PackageNotFoundError:
            installed = "missing"
        if installed == "missing" or installed not in pin.specifier:
            texts.append(f"{pin.name} {installed} instead of {str(pin.specifier).strip('=')}")
    return texts


def versions(root: Path) -> Iterator[Finding]:
    """Python and packages against ``pyproject.toml`` in ``root``."""
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    python, specs = platform.python_version(), project["requires-python"]
    old = python not in SpecifierSet(specs)
    text = f"{python}, {specs} is needed"
    yield Finding("Python", text, "Install a newer one" * old, problem=old)
    unmet = differing(project["dependencies"])
    remedy = "Use ./run_all.sh, which makes .venv, or `pip install -e .`" * bool(unmet)
    text = f"differ from their pins: {', '.join(unmet)}" if unmet else "as pinned"
    yield Finding("packages", text, remedy, problem=bool(unmet))
    for name, extra in project.get("optional-dependencies", {}).items():
        if 0 < len(unmet := differing(extra)) < len(extra):  # else whole, or not installed
            text = f"differ from their pins: {', '.join(unmet)}"
            yield Finding(f"extra {name}", text, f'`pip install -e ".[{name}]"`')


def machine(profiles: Sequence[str]) -> Iterator[Finding]:
    """Device, memory, threads."""
    memory = psutil.virtual_memory()
    text = f"{memory.total / 1e9:.1f} GB, {memory.available / 1e9:.1f} GB available"
    yield Finding("memory", text)
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        yield Finding("device", f"cuda:{i}, {gpu.name}, {gpu.total_memory / 1e9:.1f} GB")
    if torch.backends.mps.is_available():
        yield Finding("device", "mps (Apple silicon), which uses the memory above")
    elif not torch.cuda.is_available():
        text = f"CPU ({platform.machine()}), no GPU that torch {torch.__version__} can use"
        heavy = f"Profile {FOR_GPU} is meant for a GPU"
        yield Finding("device", text, heavy if FOR_GPU in profiles else "")
    threads = max(load_profile(p).threads for p in profiles)
    slow = f"Training takes {threads} threads, as it is part of the result; it is only slower"
    text = f"{usable_cores()} usable cores of {os.cpu_count()}"
    yield Finding("threads", text, slow if threads > usable_cores() else "")


def folders(profiles: Sequence[str]) -> Iterator[Finding]:
    """Whether the folders that a run needs can be written, and how much is free there."""
    places = {
        "store": (paths.store_root(), "Set MERGELIB_STORE to another folder"),
        "output": (paths.output_root(), "Set MERGELIB_OUTPUT to another folder"),
    }
    try:
        fetched = all(cached_files(s) for p in profiles for s in needed(p))
    except DataError:  # from a broken lock file, which ``hub`` reports
        fetched = False
    if not fetched:  # cached files are only read
        places["hub cache"] = (Path(constants.HF_HUB_CACHE), "Set HF_HOME to another folder")
        places["lock file"] = (
            lock_path().parent,
            "Set MERGELIB_HUB_LOCK to a file in another folder",
        )
    for topic, (folder, remedy) in places.items():
        near = paths.existing(folder)
        try:  # what matters is whether bytes arrive, not what permissions say
            with tempfile.TemporaryFile(dir=near) as f:
                f.write(bytes(65536))
                f.flush()
        except OSError as error:
            text = f"{folder} cannot be written ({near}: {error.strerror or error})"
            yield Finding(topic, text, remedy, problem=True)
            continue
        free = shutil.disk_usage(near).free
        tight = f"This is little: free some space. {remedy}" if free < LITTLE else ""
        yield Finding(topic, f"{folder}, {free / 1e9:.1f} GB free", tight)


def hub(profiles: Sequence[str], *, online: bool) -> Iterator[Finding]:
    """What the profiles need from the hub and whether it is cached; with ``online``, also whether
    the hub has it."""
    for profile in profiles:
        sources = needed(profile)
        try:
            waits = [s.name for s in sources if not cached_files(s)]
        except MergelibError as error:
            yield Finding("hub", str(error), problem=True)
            continue
        remedy = (
            f"`python -m mergelib data fetch --profile {profile}` gets {', '.join(waits)}, with a "
            "network and without HF_HUB_OFFLINE"
        )
        if sources:
            text = f"{profile} needs {len(sources)} things from the hub, {{}} cached"
            yield Finding("hub", text.format(len(sources) - len(waits)), remedy if waits else "")
        for source in sources if online else ():
            try:
                yield Finding("online", f"{source.name}: {volume(source)[0]}")
            except MergelibError as error:
                yield Finding("online", f"{source.name}: not found", str(error))
                if isinstance(error, OfflineError):
                    break  # the next one would wait just as long


def notebooks(profile: str) -> str:
    """How many notebooks run in a profile and how long, and what the others lack."""
    waits = {s.name for s in needed(profile) if not cached_files(s)}
    reasons: dict[str, list[str]] = {}
    runnable = []
    for item in manifest():
        if lacks := lacking(item, profile):
            reasons.setdefault(f"without {', '.join(lacks)}", []).append(item.id)
        elif (
            waits
            and constants.is_offline_mode()
            and any(s.name in waits for s in hub_repositories(profile, [item]))
        ):
            reasons.setdefault("not cached, and offline mode is on", []).append(item.id)
        else:
            runnable.append(item)
    timed = [i.minutes[profile] for i in runnable if profile in i.minutes]
    minutes = f"{sum(timed):.0f} min for the {len(timed)} measured" if timed else "not measured"
    lines = [f"{len(runnable)} of {len(manifest())} notebooks, {minutes} on two cores"]
    lines += [f"{reason}: {', '.join(names)}" for reason, names in reasons.items()]
    return "\n               ".join(lines)
