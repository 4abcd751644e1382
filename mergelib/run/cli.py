"""``python -m mergelib``: run notebooks, manage the store and downloads from the hub, merge and
re-align your own models."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

from ..core import paths
from ..core.documents import user_path
from ..core.errors import ConfigError, MergelibError
from ..core.version import __version__
from ..models.command import register as register_models
from ..models.recipes import AddUp
from ..profiles import load_profile
from . import jobs, runner, torchrun
from .data import before_run as data_before_run
from .data import register as register_data
from .doctor import register as register_doctor


class Parser(argparse.ArgumentParser):
    """In every command, repeated flags add up or are refused."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.register("action", None, AddUp)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="mergelib", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)

    run = commands.add_parser("run", help="execute notebooks (what ./run_all.sh does)")
    run.add_argument("--profile", default="mini", help="quick, mini (default), real or paper")
    run.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="NAME",
        help="notebooks or groups: tab02, fig05, text",
    )
    run.add_argument(
        "--list", action="store_true", help="list notebooks and their parameters, run nothing"
    )
    run.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="notebooks at a time (default: as many as fit the cores, 4 at most)",
    )
    run.add_argument(
        "-p",
        dest="parameters",
        action="append",
        default=[],
        metavar="name=value",
        help="set a notebook parameter",
    )
    torchrun.add_places(run)
    run.add_argument(
        "--text-column",
        type=int,
        default=None,
        metavar="N",
        help="column of the text in those files, counted from 0",
    )
    run.add_argument(
        "--publish",
        action="store_true",
        help="for maintainers: refresh the committed notebooks, the report and the README; after "
        "a cold run, the minutes",
    )
    run.add_argument(
        "--html",
        action="store_true",
        help="render the executed notebooks to a static site, run nothing",
    )
    run.set_defaults(function=command_run)

    store = commands.add_parser("store", help="list, verify or prune stored results")
    store.add_argument(
        "action",
        choices=["ls", "verify", "prune"],
        help="list all; compare bytes with their hashes; remove what is damaged or out of date",
    )
    store.set_defaults(function=command_store)
    torchrun.register(commands)
    jobs.register(commands)
    register_data(commands)
    register_doctor(commands)
    register_models(commands, write_comparison)
    pretrain = commands.add_parser("pretrain", help="for maintainers: make the shipped f_b again")
    pretrain.add_argument("names", nargs="*", metavar="NAME", help="mini_bert ...; default: all")
    pretrain.add_argument("--profile", default="mini", help="whose sizes; mini by default")
    pretrain.add_argument("--teacher", default="", metavar="FOLDER", help="all-MiniLM-L6-v2")
    pretrain.set_defaults(function=command_pretrain)
    return parser


def command_run(args: argparse.Namespace) -> int:
    from ..tables import committed

    profile = load_profile(args.profile)
    at_a_time = runner.default_jobs(profile) if args.jobs is None else args.jobs
    items = runner.select(args.only)
    if not args.only:  # all that go
        reasons = {
            i.id: runner.why_left_out(
                i, args.profile, text_dir=args.text_dir, image_dir=args.image_dir
            )
            for i in items
        }
        for name, reason in reasons.items():
            if reason:
                print(f"{name} is left out: {reason}")
        items = [i for i in items if not reasons[i.id]]
    if at_a_time < 1:
        raise SystemExit("mergelib: --jobs must be at least 1.")
    if args.list:
        for item in items:
            parameters = ", ".join(
                f"{n}: {t}" for n, (t, _) in runner.declared_parameters(item.path).items()
            )
            took = f", {item.minutes[args.profile]:g} min" if args.profile in item.minutes else ""
            print(
                f"{item.id:<24} {item.item:<10} group {item.group:<8} "
                f"{item.title}{took}\n{'':<24} -p {parameters}"
            )
        return 0
    if args.html:
        from .book import build_book

        page, warnings = build_book(args.profile, build_parser())
        print("\n".join([*warnings, f"The book: {page}"]))
        return 0
    pairs = list(args.parameters)
    for name in ("text_dir", "image_dir", "base"):
        if value := getattr(args, name):
            # Notebooks run in their own folder, so a relative path must be resolved here.
            given = user_path(value)
            pairs.append(f"{name}={given.resolve() if given.exists() or name != 'base' else value}")
    if args.publish and args.parameters:
        raise ConfigError("--publish takes a profile without changes; leave -p out.")
    parameters = runner.parse_parameters(pairs, items)
    if args.text_column is not None:
        for given in parameters.values():
            given["overrides"] = given.get("overrides", {}) | {
                "tasks.text_column": args.text_column
            }
    runner.check_before(args.profile, items, parameters)
    data_before_run(args.profile, runner.hub_repositories(args.profile, items, parameters))
    cold = not any(p.is_file() for p in paths.store_root().rglob("*"))
    committed.keep()
    running = runner.Runner(args.profile, jobs=at_a_time, echo=lambda line: print(line, flush=True))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    started = time.monotonic()
    try:
        results = running.run(items, parameters)
    except KeyboardInterrupt:
        print(
            "\nInterrupted. Finished artifacts are kept; run the same command to continue.",
            file=sys.stderr,
        )
        return 130
    took = time.monotonic() - started
    runner.write_timings(args.profile, results, cold=cold)
    known, compared = committed.committed_files(), None
    if known is not None:
        ran = [r.item for r in results if r.ok and r.item.outputs]
        own = [name for name, given in parameters.items() if given.keys() - runner.PLACES]
        compared = committed.compare(args.profile, ran, known, own)
    print("\n" + runner.closing_table(results, took, compared or ()))
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
        from . import publish

        publish.publish(args.profile, items)
    return 0


def write_comparison(*args: Any) -> str:
    from ..figures.comparison import write_comparison as write

    return write(*args)


def command_pretrain(args: argparse.Namespace) -> int:
    from ..foundations.command import command

    return command(args)


def command_store(args: argparse.Namespace) -> int:
    from ..core.store import Store
    from ..study.study import STEP_VERSIONS

    store = Store(paths.store_root())
    if args.action == "ls":
        rows = store.entries()
        for row in rows:
            print(
                f"{row['step']:<12} {row['digest'][:12]}  {row['bytes'] / 1e6:9.2f} MB  "
                f"{'' if row['ok'] else 'DAMAGED'}"
            )
        print(
            f"{len(rows)} artifacts, {sum(r['bytes'] for r in rows) / 1e6:.1f} MB in {store.root}"
        )
        return 0
    if args.action == "verify":
        damaged = store.verify()
        for path in damaged:
            print(f"damaged: {path} (it is computed again when next asked for; prune removes it)")
        print(f"{len(store.entries())} artifacts checked, {len(damaged)} damaged")
        return 1 if damaged else 0
    removed = store.prune(STEP_VERSIONS)
    print(f"removed {len(removed)} files and folders from {store.root}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        code = args.function(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader has closed the pipe, as in `data list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except MergelibError as error:
        print(f"mergelib: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if not paths.refused_by_disk(error):
            raise
        print(
            f"mergelib: {error}. Free space, or choose folders that you can write to "
            "(MERGELIB_STORE, MERGELIB_OUTPUT, TMPDIR).",
            file=sys.stderr,
        )
        return 2
