"""``python -m mergelib run`` and ``store``: notebooks, and the results that they leave."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence

from ..core import paths
from ..core.errors import ConfigError
from ..core.manifest import Item
from ..core.store import Store
from ..profiles import load_profile
from ..study.versions import STEP_VERSIONS
from ..tables import committed
from . import publish, runner
from .book import build_book
from .data import before_run
from .parser import build_parser


def command_run(args: argparse.Namespace) -> int:
    """Run the subcommand and return its exit status."""
    profile = load_profile(args.profile)
    at_a_time = runner.default_jobs(profile) if args.jobs is None else args.jobs
    if at_a_time < 1:
        raise SystemExit("mergelib: --jobs must be at least 1.")
    items, left_out = runner.chosen(args)
    for line in left_out:
        print(line)
    if args.list:
        for item in items:
            _list(item, args.profile)
        return 0
    if args.html:
        page, warnings = build_book(args.profile, build_parser())
        print("\n".join([*warnings, f"The book: {page}"]))
        return 0
    if args.publish and args.parameters:
        raise ConfigError("--publish takes a profile without changes; leave -p out.")
    parameters = _parameters(args, items)
    runner.check_before(args.profile, items, parameters)
    before_run(args.profile, runner.hub_repositories(args.profile, items, parameters))
    cold = not any(p.is_file() for p in paths.store_root().rglob("*"))
    committed.keep()
    running = runner.Runner(args.profile, jobs=at_a_time, echo=lambda line: print(line, flush=True))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    started = time.monotonic()
    results = running.run(items, parameters)
    seconds = time.monotonic() - started
    runner.write_timings(args.profile, results, cold=cold)
    ran = [r.item for r in results if r.ok and r.item.outputs]
    changed = [name for name, values in parameters.items() if values.keys() - runner.PLACES]
    compared = [committed.compare(args.profile, item, item.id in changed) for item in ran]
    print("\n" + runner.closing_table(results, seconds, compared))
    print(f"\n{committed.compared_text(compared)}")
    if (n := committed.rewritten()) and not args.publish:
        print(
            f"{n} files under figures/ now hold what this machine made; `git checkout figures` "
            "brings the published ones back."
        )
    print(
        f"\nFigures: {paths.figures(args.profile)}\nExecuted notebooks: "
        f"{paths.build(args.profile) / 'notebooks'}"
    )
    failed = [r.item.id for r in results if not r.ok]
    if failed:
        print(f"\nFailed: {', '.join(failed)}", file=sys.stderr)
        return 1
    if args.publish:
        publish.publish(args.profile, items)
    return 0


def _list(item: Item, profile: str) -> None:
    declared = runner.declared_parameters(item.path).items()
    duration = f", {item.minutes[profile]:g} min" if profile in item.minutes else ""
    print(f"{item.id:<24} {item.item:<10} group {item.group:<8} {item.title}{duration}")
    print(f"{'':<24} -p {', '.join(f'{name}: {kind}' for name, (kind, _) in declared)}")


def _parameters(args: argparse.Namespace, items: Sequence[Item]) -> runner.Parameters:
    """The parameters of each notebook, from ``-p`` and the flags that stand for one."""
    places = [f"{name}={value}" for name, value in runner.given_places(args).items() if value]
    parameters = runner.parse_parameters([*args.parameters, *places], items)
    if args.text_column is not None:
        for given in parameters.values():
            column = {"tasks.text_column": args.text_column}
            given["overrides"] = given.get("overrides", {}) | column
    return parameters


def command_store(args: argparse.Namespace) -> int:
    """Run the subcommand and return its exit status."""
    store = Store(paths.store_root())
    if args.action == "prune":
        removed = store.prune(STEP_VERSIONS)
        print(f"removed {len(removed)} files and folders from {store.root}")
        return 0
    rows = store.entries()
    if args.action == "verify":
        damaged = store.verify()
        for path in damaged:
            print(f"damaged: {path} (it is computed again when next asked for; prune removes it)")
        print(f"{len(rows)} artifacts checked, {len(damaged)} damaged")
        return 1 if damaged else 0
    for row in rows:
        flag = "" if row["ok"] else "DAMAGED"
        print(f"{row['step']:<12} {row['digest'][:12]}  {row['bytes'] / 1e6:9.2f} MB  {flag}")
    print(f"{len(rows)} artifacts, {sum(r['bytes'] for r in rows) / 1e6:.1f} MB in {store.root}")
    return 0
