"""Every command of ``python -m mergelib`` with its flags; what a command does is imported when it
is called."""

from __future__ import annotations

import argparse
import sys
import warnings

from ..core.version import __version__
from ..models.recipes import COMMANDS, Parser, add_flags, build, read_yaml

STEPS = ("merge", "extract", "score")


def run_recipe(args: argparse.Namespace) -> int:
    """Run a command on models of one's own, with its flags and recipe file."""
    flags = {k: v for k, v in vars(args).items() if k not in ("recipe", "command", "function")}
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(
            f"mergelib: note: {message}", file=sys.stderr
        )
        file = getattr(args, "recipe", None)
        recipe = build(args.command, read_yaml(file) if file else {}, flags)
        from . import models  # after the refusals, which need not wait for torch

        getattr(models, f"run_{args.command}")(recipe)
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; ``function`` of what it returns is "module:function" in
    mergelib, or the function itself."""
    parser = Parser(
        prog="mergelib",
        description="python -m mergelib: run notebooks, manage the store and downloads from the "
        "hub, merge and re-align your own models.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, function: str, **options: str) -> argparse.ArgumentParser:
        subparser = commands.add_parser(name, **options)
        subparser.set_defaults(function=function)
        return subparser

    run = command("run", "run.command:command_run", help="execute notebooks (./run_all.sh)")
    run.add_argument(
        "--profile", default="mini", help="quick, mini (default), real, real_mpnet or paper"
    )
    _only(run, "notebooks or groups: tab02, fig05, text")
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
    _places(run)
    run.add_argument(
        "--text-column",
        type=int,
        metavar="N",
        help="column of the text in those files, counted from 0",
    )
    run.add_argument(
        "--publish",
        action="store_true",
        help="for maintainers: refresh the committed notebooks, the report and the README; "
        "after a cold run, the minutes",
    )
    run.add_argument(
        "--html",
        action="store_true",
        help="render the executed notebooks to a static site, run nothing",
    )

    store = command(
        "store", "run.command:command_store", help="list, verify or prune stored results"
    )
    store.add_argument(
        "action",
        choices=["ls", "verify", "prune"],
        help="list all; compare bytes with their hashes; remove what is damaged or out of date",
    )

    train = command(
        "train",
        "run.torchrun:command_train",
        help="pre-train or load f_b and fine-tune experts; "
        "under torchrun by several processes together",
    )
    _study(train)
    _one_study(train)
    _only(train, "tasks whose experts are made (all by default), multi_task, or f_b")

    jobs = command(
        "jobs",
        "run.jobs:command_jobs",
        help="list a profile's commands and their files, as JSON; cluster/Snakefile runs them",
    )
    _study(jobs)
    _only(jobs, "notebooks or groups, as for run")
    jobs.add_argument(
        "--every-method",
        action="store_true",
        help="also merge and score the methods that no notebook of the profile shows",
    )
    jobs.add_argument(
        "--out", default="", metavar="FILE", help="where to write them; the terminal by default"
    )

    compute = command(
        "compute",
        "run.jobs:command_compute",
        help="one job: a merge, an encoder's features, or the scores, into the store",
    )
    compute.add_argument("step", choices=STEPS, help="what to compute")
    _study(compute)
    _one_study(compute)
    compute.add_argument(
        "--encoder", default="", metavar="NAME", help="f_b, f_t, multi_task or a merging method"
    )
    compute.add_argument(
        "--every-method",
        action="store_true",
        help="take methods and grids from the profile's section every_method",
    )

    data = command(
        "data",
        "run.data:command_data",
        help="downloads from the Hugging Face hub: list, fetch ahead, check",
        description="list: source, revision, files, licence, citation (unverified: "
        "nobody has checked), cached or not. fetch: download, verify, complete the lock file. "
        "check: compare cached files with the hashes that the hub listed, without network.",
    )
    data.add_argument("action", choices=["list", "fetch", "check"], help="see above")
    data.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="data sets and repositories; all that the profile needs by default",
    )
    data.add_argument("--profile", default="paper", help="whose data and models; paper by default")
    _only(data, "what these notebooks or groups need: tab02, text, vision")

    doctor = command(
        "doctor",
        "run.doctor:command_doctor",
        help="versions, device, memory, disk, what is cached, "
        "which notebooks run here and how long",
    )
    doctor.add_argument("--profile", default="", help="one profile only; all by default")
    doctor.add_argument(
        "--online",
        action="store_true",
        help="also ask the hub: does it answer, and how much is to be downloaded",
    )

    for name, kind in COMMANDS.items():
        recipe = commands.add_parser(name, help=kind.__doc__, description=kind.__doc__)
        add_flags(recipe, kind)
        recipe.set_defaults(function=run_recipe)
    summary = "List the merging methods: formula, needs, options with defaults, paper."
    command("methods", "run.models:list_methods", help=summary, description=summary)
    summary = "List the evaluation protocols: what each learns from, draws, paper."
    command("protocols", "run.models:list_protocols", help=summary, description=summary)
    pretrain = command(
        "pretrain",
        "foundations.command:command",
        help="for maintainers: make the shipped f_b again",
    )
    pretrain.add_argument("names", nargs="*", metavar="NAME", help="mini_bert ...; default: all")
    pretrain.add_argument("--profile", default="mini", help="whose sizes; mini by default")
    pretrain.add_argument("--teacher", default="", metavar="FOLDER", help="all-MiniLM-L6-v2")
    return parser


def _only(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help=what)


def _places(parser: argparse.ArgumentParser) -> None:
    """The options that say where data and f_b are."""
    parser.add_argument(
        "--text-dir", default="", metavar="DIR", help="folder with <task>/{train,test}.csv[.gz]"
    )
    parser.add_argument(
        "--image-dir", default="", metavar="DIR", help="folder with <task>/{train,test}.parquet"
    )
    parser.add_argument(
        "--base", default="", metavar="MODEL", help="hub id or folder of a base model"
    )


def _study(parser: argparse.ArgumentParser) -> None:
    """The options that say which studies a command works on."""
    parser.add_argument(
        "--profile", default="mini", help="a file of mergelib/profiles; mini by default"
    )
    _places(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument(
        "--overrides",
        default="{}",
        metavar="JSON",
        help="dotted profile values, such as '{\"fine_tuning.steps\": 100}'",
    )


def _one_study(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--variant", default="", help="one of the profile's variants, such as t5_b")
    parser.add_argument(
        "--stamp",
        default="",
        metavar="FILE",
        help="leave a file that names the artifacts of the store",
    )
