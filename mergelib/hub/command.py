"""``python -m mergelib data list | fetch | check``: what comes from the hub, ahead of a run. Results on stdout, progress and errors on stderr."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import MergelibError, OfflineError

if TYPE_CHECKING:
    from .sources import Source


def register(commands: Any) -> None:
    """Add the subcommand to the parser of ``mergelib.cli``."""
    parser = commands.add_parser(
        "data",
        help="what comes from the Hugging Face hub: list, fetch ahead, check against the lock file",
        description="list: source, revision, size, sha256, licence, citation (unverified: nobody has looked), cached or not. "
        "fetch: download, verify, complete the lock file. check: cached files against the lock file, without network.",
    )
    parser.add_argument("action", choices=["list", "fetch", "check"])
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="data sets and repositories; all that the profile needs by default",
    )
    parser.add_argument(
        "--profile", default="paper", help="whose data and models; paper by default"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="NAME",
        help="what these notebooks or groups need: tab02, text, vision",
    )
    parser.set_defaults(function=command_data)


def command_data(args: argparse.Namespace) -> int:
    from ..runner import (
        hub_sources,
        select,
    )  # imports torch, which the other subcommands need not wait for
    from .sources import named

    sources = (
        hub_sources(args.profile, select(args.only))
        if args.only and not args.names
        else named(args.names, args.profile)
    )
    if not sources:
        print(f"Profile '{args.profile}' needs nothing from the hub.")
        return 0
    return {"list": _list, "fetch": _fetch, "check": _check}[args.action](sources)


def size(n: int | None) -> str:
    """Bytes for people; None: unverified."""
    if n is None:
        return "size unverified"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= scale:
            return f"{n / scale:.2f} {unit}"
    return f"{n} bytes"


def _list(sources: list[Source]) -> int:
    for source in sources:
        entry, locked = source.entry, source.locked()
        print(f"{source.name}: {'cached' if source.is_cached() else 'not cached'}")
        about = {
            "source": f"{entry.id} ({source.kind}), {entry.card or 'card unverified'}",
            "revision": locked.revision if locked else entry.revision or "unverified",
            "licence": entry.licence or "unverified",
            "citation": entry.citation or "unverified",
        }
        for what, value in about.items():
            print(f"  {what:<9} {value}")
        rows = source.rows()
        for row in rows:
            print(
                f"  {row.key}: {row.path}, {size(row.size)}, sha256 {row.sha256 or 'unverified'}, {'cached' if row.cached else 'not cached'}"
            )
        if not rows:
            what = (
                "tables that datasets reads"
                if source.is_data_set
                else "what transformers reads of a model"
                if source.is_base_model
                else ", ".join(entry.files)
            )
            print(f"  {what}: size unverified, sha256 unverified")
    return 0


def before_run(profile: str, sources: Sequence[Source]) -> None:
    """Fetch what a run needs and the caches lack, so that it downloads once and at its beginning. What cannot be fetched is said; the
    notebooks that need it will fail, others need not."""
    if lacking := [s for s in sources if not s.is_cached()]:
        print(f"Profile '{profile}' needs from the hub:", flush=True)
        _fetch(lacking)


def _fetch(sources: list[Source]) -> int:
    from pathlib import Path

    from huggingface_hub import constants

    from .files import check_room

    failed: dict[str, MergelibError] = {}
    missing = 0
    for source in sources:
        try:
            n, total, lacking = source.to_fetch()
        except OfflineError as error:
            if not source.is_cached():
                failed[source.name] = error
            print(
                f"{source.name}: {'cached' if source.is_cached() else 'not cached'}; the hub does not answer"
            )
        except MergelibError as error:
            failed[source.name] = error
            print(f"{source.name}: cannot be fetched")
        else:
            missing += lacking
            print(
                f"{source.name}: {n} files, {size(total)}, of which {size(lacking)} to be downloaded"
            )
    print(f"to be downloaded: {size(missing)}, into {constants.HF_HUB_CACHE}", flush=True)
    check_room("data fetch", missing, Path(constants.HF_HUB_CACHE))
    for source in sources:
        if source.name in failed:
            continue
        print(f"{source.name}: ...", file=sys.stderr, flush=True)
        try:
            print(f"{source.name}: verified, commit {source.fetch()}", flush=True)
        except MergelibError as error:
            failed[source.name] = error
        except KeyboardInterrupt:
            print(
                "\nInterrupted. Files that were complete are kept; run the same command to go on.",
                file=sys.stderr,
            )
            return 130
    for error in failed.values():
        print(f"mergelib: {error}", file=sys.stderr)
    if failed:
        print(f"Not fetched: {', '.join(failed)}", file=sys.stderr)
        return 1
    print("All is there: HF_HUB_OFFLINE=1 works from here on.")
    return 0


def _check(sources: list[Source]) -> int:
    bad = 0
    for source in sources:
        try:
            found = source.check()
        except MergelibError as error:
            found = {"": str(error)}
        wrong = {k: w for k, w in found.items() if w}
        bad += bool(wrong)
        print(
            f"{source.name}: {f'{len(found)} parts agree with the lock file' if not wrong else 'NOT as locked'}"
        )
        for key, why in wrong.items():
            print(f"  {key + ': ' if key else ''}{why}")
    if bad:
        print(
            "Connect and run `python -m mergelib data fetch` for what is missing or wrong.",
            file=sys.stderr,
        )
    return 1 if bad else 0
