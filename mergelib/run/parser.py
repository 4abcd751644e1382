"""Every command of ``python -m mergelib`` with its flags, as ``commands.yaml`` lists them; what a
command does is imported when it is called."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Mapping
from typing import Any

from ..core.documents import own_yaml
from ..core.version import __version__
from ..models.recipes import COMMANDS, Parser, add_flags, build, read_yaml

LISTED = own_yaml(__file__, "commands.yaml")
STEPS = tuple(LISTED["commands"]["compute"]["flags"]["step"]["choices"])


def run_recipe(args: argparse.Namespace) -> int:
    """Run a command on models of one's own, with its flags and recipe file."""
    flags = {k: v for k, v in vars(args).items() if k not in ("recipe", "command", "function")}
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(
            f"mergelib: note: {message}", file=sys.stderr
        )
        content = read_yaml(args.recipe) if args.recipe else {}
        recipe = build(args.command, content, flags)
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
    for name, about in LISTED["commands"].items():
        if kind := COMMANDS.get(name):
            command = commands.add_parser(name, help=kind.__doc__, description=kind.__doc__)
            add_flags(command, kind)
        else:
            texts = {text: about[text] for text in ("help", "description") if text in about}
            command = commands.add_parser(name, **texts)
            command.register("type", "int", int)
            _add(command, about.get("flags", {}))
        command.set_defaults(function=about.get("does", run_recipe))
    return parser


def _add(parser: argparse.ArgumentParser, flags: Mapping[str, Any]) -> None:
    """Flags as ``commands.yaml`` describes them."""
    for name, options in flags.items():
        if options:
            parser.add_argument(name, **options)
        else:
            _add(parser, LISTED["groups"][name])
