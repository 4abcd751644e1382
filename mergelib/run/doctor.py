"""``python -m mergelib doctor``: can this machine run the notebooks, which of them, and about how
long? Every problem comes with its remedy."""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from ..core import paths
from ..core.errors import DataError, MergelibError, OfflineError
from ..core.hub import cached_files, lock_path
from ..core.hub.download import plan
from ..profiles import load_profile, profile_names, variant_names
from ..profiles.downloads import needed
from .data import size
from .runner import hub_repositories, lacking, manifest

FOR_GPU = ("paper",)  # profiles whose encoders have 10^8 or more parameters, on full-size data
MARKS = {"ok": " ", "note": "?", "problem": "!"}
# free bytes below which a run may well end early; the store of a whole mini run is a tenth of this
LITTLE = 1e9


@dataclass(frozen=True)
class Finding:
    """The result of one check. A problem makes the exit status 1; a note does not."""

    topic: str
    text: str
    level: Literal["ok", "note", "problem"] = "ok"
    remedy: str = ""


def register(commands: Any) -> None:
    """Add the subcommand to the parser of ``mergelib.run.cli``."""
    parser = commands.add_parser(
        "doctor",
        help="versions, device, memory, disk, what is cached, which notebooks run here and how "
        "long",
    )
    parser.add_argument("--profile", default="", help="one profile only; all by default")
    parser.add_argument(
        "--online",
        action="store_true",
        help="also ask the hub: does it answer, and how much is to be downloaded",
    )
    parser.set_defaults(function=command_doctor)


def command_doctor(args: argparse.Namespace) -> int:
    found = versions(paths.root())
    tables: list[str] = []
    try:
        profiles = [args.profile] if args.profile else profile_names()
        for name in profiles:
            load_profile(name)
        found += [
            *machine(profiles),
            *folders(profiles),
            *hub_findings(profiles, online=args.online),
        ]
        tables = notebooks(profiles)
    except ImportError as error:  # missing packages were reported already
        found.append(
            Finding(
                "the rest", f"cannot be checked: {error}", "problem", "Install the packages first"
            )
        )
    for f in found:
        print(f"{MARKS[f.level]} {f.topic:<12} {f.text}{f'. {f.remedy}' if f.remedy else ''}")
    print("\n".join(["", *tables]))
    problems = [f.topic for f in found if f.level == "problem"]
    print(
        f"\n{len(problems)} "
        f"problem{'s' * (len(problems) != 1)}{': ' if problems else ''}{', '.join(problems)}"
    )
    return 1 if problems else 0


# ---- versions ------------------------------------------------------------------------------------


def differing(pins: Sequence[str]) -> list[str]:
    """The pins such as "torch==2.13.0" that this environment violates, as "torch 2.12.0 instead of
    2.13.0". A local part of a version, such as torch's "+cpu", is not compared."""
    found = []
    for pin in pins:
        name, _, wanted = pin.partition("==")
        try:
            here = version(re.sub(r"\[.*", "", name)).split("+")[0]
        except PackageNotFoundError:
            here = "missing"
        if here != wanted:
            found.append(f"{name} {here} instead of {wanted}")
    return found


def versions(root: Path) -> list[Finding]:
    """Python and packages against ``pyproject.toml`` in ``root``."""
    file = root / "pyproject.toml"
    if not file.is_file():
        return [
            Finding(
                "packages",
                f"there is no {file}, which contains the pins",
                "problem",
                "Run from a checkout of the project",
            )
        ]
    project = tomllib.loads(file.read_text("utf-8"))["project"]
    least = tuple(map(int, re.findall(r"\d+", project["requires-python"])))
    said = f"{platform.python_version()}, {project['requires-python']} is needed"
    old = sys.version_info[: len(least)] < least
    findings = [
        Finding(
            "Python",
            said,
            "problem" if old else "ok",
            "Install a newer one; ./run_all.sh finds it" if old else "",
        )
    ]
    pins = project["dependencies"]
    if wrong := differing(pins):
        findings.append(
            Finding(
                "packages",
                f"{len(wrong)} of {len(pins)} differ from their pins: {', '.join(wrong)}",
                "problem",
                "Use ./run_all.sh, which makes .venv, or `pip install -e .`",
            )
        )
    else:
        findings.append(Finding("packages", f"{len(pins)} as pinned"))
    extras = {
        name: differing(pins) for name, pins in project.get("optional-dependencies", {}).items()
    }
    missing = [
        n for n, wrong in extras.items() if wrong and all(" missing instead" in w for w in wrong)
    ]
    for name, wrong in extras.items():
        if wrong and name not in missing:
            findings.append(
                Finding(
                    f"extra {name}",
                    f"differ from their pins: {', '.join(wrong)}",
                    "note",
                    f'`pip install -e ".[{name}]"`',
                )
            )
    whole = [n for n, wrong in extras.items() if not wrong]
    findings.append(
        Finding(
            "extras",
            f"as pinned: {', '.join(whole) or 'none'}; not installed: "
            f"{', '.join(missing) or 'none'}",
        )
    )
    return findings


# ---- machine -------------------------------------------------------------------------------------


def machine(profiles: Sequence[str]) -> list[Finding]:
    """Device, memory, threads."""
    import psutil
    import torch

    memory = psutil.virtual_memory()
    findings = [
        Finding("memory", f"{memory.total / 1e9:.1f} GB, {memory.available / 1e9:.1f} GB available")
    ]
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(i)
            findings.append(
                Finding("device", f"cuda:{i}, {about.name}, {about.total_memory / 1e9:.1f} GB")
            )
    elif torch.backends.mps.is_available():
        findings.append(Finding("device", "mps (Apple silicon), which uses the memory above"))
    else:
        heavy = [p for p in profiles if p in FOR_GPU]
        findings.append(
            Finding(
                "device",
                f"CPU ({platform.processor() or platform.machine()}), no GPU that torch "
                f"{torch.__version__} can use",
                "note" if heavy else "ok",
                f"Profile {', '.join(heavy)} is meant for a GPU" if heavy else "",
            )
        )
    usable = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    wanted = {p: load_profile(p).threads for p in profiles}
    short = {p: n for p, n in wanted.items() if n > usable}
    said = f"{usable} usable cores of {os.cpu_count()}, torch takes {torch.get_num_threads()}"
    findings.append(
        Finding(
            "threads",
            said,
            "note" if short else "ok",
            f"Training takes {max(short.values())} in {', '.join(short)}, as it is part of "
            "the result; it is only slower"
            if short
            else "",
        )
    )
    return findings


# ---- folders -------------------------------------------------------------------------------------


def nearest(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def unwritable(folder: Path) -> str:
    """Why ``folder`` cannot be written, or created and written; an empty text if it can."""
    near = nearest(folder)
    if not near.is_dir():
        return f"{near} is a file"
    try:
        with tempfile.TemporaryFile(dir=near) as f:
            f.write(bytes(65536))
            f.flush()
    except OSError as error:
        return f"{near}: {error.strerror or error}"
    return ""


def folders(profiles: Sequence[str]) -> list[Finding]:
    """Whether the folders that a run needs can be written, and how much is free there."""
    from huggingface_hub import constants

    wanted = {
        "store": (paths.store_root(), "Set MERGELIB_STORE to another folder"),
        "output": (paths.output_root(), "Set MERGELIB_OUTPUT to another folder"),
    }
    sources = {s.name: s for p in profiles for s in needed(p)}
    try:
        fetched = all(cached_files(s) for s in sources.values())
    except DataError:  # from a broken lock file, which ``hub_findings`` reports
        fetched = False
    if not fetched:  # cached files are only read
        wanted["hub cache"] = (Path(constants.HF_HUB_CACHE), "Set HF_HOME to another folder")
        wanted["lock file"] = (
            lock_path().parent,
            "Set MERGELIB_HUB_LOCK to a file in another folder",
        )
    findings = []
    for topic, (folder, remedy) in wanted.items():
        if why := unwritable(folder):
            findings.append(
                Finding(topic, f"{folder} cannot be written ({why})", "problem", remedy)
            )
            continue
        free = shutil.disk_usage(nearest(folder)).free
        tight = free < LITTLE
        findings.append(
            Finding(
                topic,
                f"{folder}, {free / 1e9:.1f} GB free",
                "note" if tight else "ok",
                f"This is little: free some space. {remedy}" if tight else "",
            )
        )
    return findings


# ---- hub -----------------------------------------------------------------------------------------


def hub_findings(profiles: Sequence[str], *, online: bool = False) -> list[Finding]:
    """What the profiles need from the hub and whether it is cached; with ``online``, also whether
    the hub has it."""
    from huggingface_hub import constants, get_token

    findings = []
    for profile in profiles:
        try:
            sources = needed(profile)
            lacking = [s.name for s in sources if not cached_files(s)]
        except MergelibError as error:
            findings.append(Finding("hub", str(error), "problem"))
            continue
        if not sources:
            continue
        said = (
            f"{profile} needs {len(sources)} things from the hub, "
            f"{len(sources) - len(lacking)} cached"
        )
        remedy = (
            f"`python -m mergelib data fetch --profile {profile}` gets {', '.join(lacking)}"
            if lacking
            else ""
        )
        if lacking and constants.is_offline_mode():
            remedy += ", with a network and without HF_HUB_OFFLINE"
        findings.append(Finding("hub", said, "note" if lacking else "ok", remedy))
        for source in sources if online else ():
            try:
                n, total, missing = plan(source)
                findings.append(
                    Finding(
                        "online",
                        f"{source.name}: {n} files, {size(total)}, of which {size(missing)} to "
                        "be downloaded",
                    )
                )
            except OfflineError as error:
                findings.append(Finding("online", str(error), "note"))
                break  # the next one would wait just as long
            except MergelibError as error:
                findings.append(Finding("online", str(error), "note"))
    if findings:
        findings.append(
            Finding(
                "hub token", "set" if get_token() else "none, which is fine for public repositories"
            )
        )
    return findings


# ---- notebooks -----------------------------------------------------------------------------------


def notebooks(profiles: Sequence[str]) -> list[str]:
    """Measured minutes by notebook and profile, and what each profile still needs, as lines."""
    import pandas as pd
    from huggingface_hub import constants

    items = manifest()
    cells: dict[str, dict[str, str]] = {}
    below = []
    for profile in profiles:
        waits = [s.name for s in needed(profile) if not cached_files(s)]
        offline = constants.is_offline_mode()
        local = {
            t.modality
            for v in ("", *variant_names(profile))
            if (t := load_profile(profile, variant=v).tasks).source == "local"
        }
        cells[profile], cannot = {}, {}
        for item in items:
            stuck = (
                waits
                and offline
                and any(s.name in waits for s in hub_repositories(profile, [item]))
            )
            why = (
                f"without {', '.join(short)}"
                if (short := lacking(item, profile))
                else "not cached, and offline mode is on"
                if stuck
                else ""
            )
            if why:
                cannot.setdefault(why, []).append(item.id.split("_")[0])
            cells[profile][item.id] = (
                "no" if why else f"{item.minutes[profile]:g}" if profile in item.minutes else "?"
            )
        able = [i for i in items if cells[profile][i.id] != "no"]
        timed = [i.minutes[profile] for i in able if profile in i.minutes]
        line = f"{profile}: {len(able)} of {len(items)} notebooks" + (
            f", {sum(timed):.0f} min for the {len(timed)} measured" if timed else ", not measured"
        )
        if local:
            flags = {"text": "--text-dir DIR", "image": "--image-dir DIR"}
            line += f"; give {' and '.join(flags[m] for m in sorted(local, reverse=True))}"
        if waits and not offline:
            line += f"; first downloads {', '.join(waits)}"
        below += [line, *(f"  {why}: {', '.join(names)}" for why, names in cannot.items())]
    return [
        pd.DataFrame(cells).rename_axis(columns="notebook").to_string(),
        "Minutes from an empty store on two cores (mergelib/core/manifest.yaml); ?: not measured.",
        "",
        *below,
    ]
