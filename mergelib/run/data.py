"""``python -m mergelib data list | fetch | check``: downloads from the hub, ahead of a run.

Results go to stdout, progress and errors to stderr.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants

from ..core.errors import MergelibError, OfflineError
from ..core.hub.download import cached_files, check, check_room, fetch, plan
from ..core.hub.lock import locked
from ..core.hub.repository import Repository
from ..profiles.downloads import named
from .runner import hub_repositories, select

UNSURE = "unverified"  # nobody has looked


def command_data(args: argparse.Namespace) -> int:
    """Run the subcommand and return its exit status."""
    if args.only and not args.names:
        repositories = hub_repositories(args.profile, select(args.only))
    else:
        repositories = named(args.names, args.profile)
    if not repositories:
        print(f"Profile '{args.profile}' needs nothing from the hub.")
        return 0
    return {"list": _list, "fetch": _fetch, "check": _check}[args.action](repositories)


def before_run(profile: str, repositories: Sequence[Repository]) -> None:
    """Fetch what a run needs and the caches lack, so that it downloads once, at its beginning.

    What cannot be fetched is reported; the notebooks that need it will fail, the others run.

    Raises:
        OfflineError: Nothing at all is there.
    """
    if lacking := [r for r in repositories if not cached_files(r)]:
        print(f"Profile '{profile}' needs from the hub:", flush=True)
        if _fetch(lacking) and not any(map(cached_files, repositories)):
            raise OfflineError(
                f"Nothing that profile '{profile}' needs from the hub is on this machine. Connect "
                "once (HF_HUB_OFFLINE unset) and run this again, or `python -m mergelib data "
                f"fetch --profile {profile}`. Local files are given with --text-dir FOLDER, "
                "--image-dir FOLDER and --base FOLDER."
            )


def size(n: int) -> str:
    """Return a readable number of bytes."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= scale:
            return f"{n / scale:.2f} {unit}"
    return f"{n} bytes"


def volume(repository: Repository) -> tuple[str, int]:
    """Return what the hub has of a repository, in words, and the bytes that are not cached.

    Raises:
        MergelibError: As :func:`mergelib.core.hub.fetch` does.
    """
    n, total, missing = plan(repository)
    return f"{n} files, {size(total)}, of which {size(missing)} to be downloaded", missing


def _list(repositories: Sequence[Repository]) -> int:
    for r in repositories:
        files = cached_files(r)
        print(f"{r.name}: {'cached' if files else 'not cached'}")
        names = r.files if isinstance(r.files, str) else ", ".join(r.files)
        for label, value in (
            ("source", f"{r.id} ({r.kind}), {r.card}"),
            ("revision", locked(r) or r.revision),
            ("files", names),
            ("licence", r.licence),
            ("citation", r.citation),
        ):
            print(f"  {label:<9} {value or UNSURE}")
        if r.sample:
            volume = size(sum(path.stat().st_size for path in files.values()))
            rows = "{:,} rows of train, {:,} of test".format(*r.sample)
            print(f"  sample    {rows}, in {len(files)} files with {volume}")
            continue
        for name, path in files.items():
            print(f"  {name}: {size(path.stat().st_size)}, hash {path.resolve().name}")
    return 0


def _fetch(repositories: Sequence[Repository]) -> int:
    failed: dict[str, MergelibError] = {}
    missing = 0
    for repository in repositories:
        try:
            text, lacking = volume(repository)
        except MergelibError as error:
            if isinstance(error, OfflineError) and cached_files(repository):
                print(f"{repository.name}: cached; the hub does not answer")
                continue
            failed[repository.name] = error
            print(f"{repository.name}: cannot be fetched")
        else:
            missing += lacking
            print(f"{repository.name}: {text}; licence {repository.licence or UNSURE}")
    print(f"to be downloaded: {size(missing)}, into {constants.HF_HUB_CACHE}", flush=True)
    check_room(missing, Path(constants.HF_HUB_CACHE))
    for repository in (r for r in repositories if r.name not in failed):
        print(f"{repository.name}: ...", file=sys.stderr, flush=True)
        try:
            fetch(repository)
            print(f"{repository.name}: verified, commit {locked(repository)}", flush=True)
        except MergelibError as error:
            failed[repository.name] = error
    if failed:
        said = [f"mergelib: {error}" for error in failed.values()]
        print(*said, f"Not fetched: {', '.join(failed)}", sep="\n", file=sys.stderr)
        return 1
    print("Everything is cached: HF_HUB_OFFLINE=1 works from now on.")
    return 0


def _check(repositories: Sequence[Repository]) -> int:
    n_wrong = 0
    for repository in repositories:
        try:
            files = check(repository)
        except MergelibError as error:
            files = {"": str(error)}
        faults = {name: reason for name, reason in files.items() if reason}
        n_wrong += bool(faults)
        print(f"{repository.name}: {'NOT as fetched' if faults else f'{len(files)} files agree'}")
        for name, reason in faults.items():
            print(f"  {name + ': ' if name else ''}{reason}")
    if n_wrong:
        print(
            "Connect and run `python -m mergelib data fetch` for what is missing or wrong.",
            file=sys.stderr,
        )
    return 1 if n_wrong else 0
