"""``python -m mergelib train``: the expensive part alone, for machines that run no notebooks; under
torchrun, by several processes."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ..core.documents import parse_json
from ..core.errors import ConfigError, UnknownNameError, shortened
from ..core.names import BASE, MULTI_TASK
from ..models.folders import free_file, write_file
from ..profiles import with_shortcuts


def register(commands: Any) -> None:
    """Add the subcommand to the parser of ``mergelib.run.cli``."""
    parser = commands.add_parser(
        "train",
        help="pre-train or load f_b and fine-tune experts; under torchrun by several processes "
        "together",
    )
    add_study_options(parser)
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="NAME",
        help="tasks whose experts are made (all by default), multi_task, or f_b",
    )
    parser.set_defaults(function=command_train)


def add_places(parser: argparse.ArgumentParser) -> None:
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


def add_study_options(parser: argparse.ArgumentParser, *, one: bool = True) -> None:
    """The options that say which study a command works on; ``one`` alone, not all of a profile."""
    parser.add_argument(
        "--profile", default="mini", help="a file of mergelib/profiles; mini by default"
    )
    if one:
        parser.add_argument(
            "--variant", default="", help="one of the profile's variants, such as t5_b"
        )
        parser.add_argument(
            "--stamp",
            default="",
            metavar="FILE",
            help="leave a file that names the artifacts of the store",
        )
    add_places(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument(
        "--overrides",
        default="{}",
        metavar="JSON",
        help="dotted profile values, such as '{\"fine_tuning.steps\": 100}'",
    )


def study_options(given: Any, variant: str) -> list[str]:
    """``given`` (parsed options, or similar) as command-line arguments again, without defaults."""
    flags = {
        "--profile": given.profile,
        "--variant": variant,
        "--text-dir": given.text_dir,
        "--image-dir": given.image_dir,
        "--base": given.base,
        "--device": given.device.removeprefix("auto"),
        "--overrides": given.overrides.removeprefix("{}"),
    }
    return [part for flag, value in flags.items() if value for part in (flag, value)]


def given_overrides(given: Any) -> dict[str, Any]:
    """The profile values that the options change."""
    return with_shortcuts(
        parse_overrides(given.overrides), given.text_dir, given.base, given.image_dir
    )


def asked_study(args: argparse.Namespace, **changed: Any) -> Any:
    """The study that the options ask for; ``changed`` are options of ``Study``."""
    from ..study import Study

    names = ("variant", "text_dir", "image_dir", "base", "device")
    asked = {name: getattr(args, name) for name in names}
    return Study(args.profile, **asked | {"overrides": parse_overrides(args.overrides)} | changed)


def write_stamp(path: str, store: Any) -> None:
    """Write to a file which artifacts of the store this process requested, in order; without a
    path, do nothing."""
    if target := stamp_place(path):
        text = json.dumps({"artifacts": list(store.asked)}, indent=1)
        write_file(target, f"{text}\n")


def stamp_place(path: str) -> Path | None:
    """The path of a stamp. Raises ``ConfigError`` if something else is there."""
    return free_file(path, True) if path else None


def parse_overrides(text: str) -> dict[str, Any]:
    """A JSON object of dotted profile values. Raises ``ConfigError`` for anything else."""
    example = "write an object such as '{\"fine_tuning.steps\": 100}'"
    overrides = parse_json(text, f"--overrides {shortened(text)} ({example})")
    if not isinstance(overrides, dict):
        raise ConfigError(
            f"--overrides {shortened(text)}: this must be an object of dotted profile values; "
            f"{example}."
        )
    return overrides


def command_train(args: argparse.Namespace) -> int:
    from ..core import distributed  # imports torch, which other subcommands should not wait for

    try:
        code = _train(args)
        distributed.leave()
        return code
    except KeyboardInterrupt:
        print(
            "\nInterrupted. Finished experts and, where save_every is set, checkpoints are kept; "
            "run the same command to continue.",
            file=sys.stderr,
        )
        return 130


def _train(args: argparse.Namespace) -> int:
    from ..core import distributed

    stamp_place(args.stamp)  # refused before any work
    together, first = distributed.world_size() > 1, distributed.rank() == 0
    overrides = parse_overrides(args.overrides)
    if together:
        overrides.setdefault("processes", distributed.world_size())
    study = asked_study(args, overrides=overrides)
    names = args.only or list(study.profile.tasks.names)
    for name in names:
        if name not in (known := (*study.profile.tasks.names, MULTI_TASK, BASE)):
            raise UnknownNameError("expert", name, known)
    distributed.share_of_batch(study.profile.fine_tuning.batch_size)
    if code := distributed.from_first(
        _pretrain_alone(args) if together and first and not study.has_base() else 0
    ):
        return code
    for turn in (
        True,
        False,
    ):  # the first process downloads; the others find the files in the client's cache
        if first is turn:
            _ = study.tasks, study.profile.encoder.base and study.encoder
        distributed.wait_for_all()
    _ = study.encoder

    def say(line: str) -> None:
        if first:
            print(line, flush=True)

    source = study.profile.encoder.base
    say(f"f_b: {study.profile.backbone}, {f'from {source}' if source else 'pre-trained here'}")
    for name in (n for n in names if n != BASE):
        start = time.monotonic()
        folder = study.train(name)
        say(f"f_t {name}: there after {time.monotonic() - start:.1f} s, {folder}")
    if first:
        write_stamp(args.stamp, study.store)
    return 0


def _pretrain_alone(args: argparse.Namespace) -> int:
    """Make f_b in the store, in a child process without torchrun's variables; returns its exit
    status. SIGTERM ends the child, too."""
    from ..core import distributed

    command = [
        sys.executable,
        "-m",
        "mergelib",
        "train",
        *study_options(args, args.variant),
        "--only",
        "f_b",
    ]
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return subprocess.run(
            command, env=distributed.child_environment(), stdout=subprocess.DEVNULL, check=False
        ).returncode
    finally:
        signal.signal(signal.SIGTERM, before)
