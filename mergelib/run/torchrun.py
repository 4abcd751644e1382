"""``python -m mergelib train``: the expensive part alone, for machines that run no notebooks; under
torchrun, by several processes."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time

from ..core import distributed
from ..core.errors import UnknownNameError
from ..core.names import BASE, MULTI_TASK
from ..study.experts import has_base
from .options import asked_study, parse_overrides, stamp_place, study_options, write_stamp


def command_train(args: argparse.Namespace) -> int:
    """Run the subcommand and return its exit status."""
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
    distributed.check_batch(study.profile.fine_tuning.batch_size)
    if code := distributed.from_first(
        _pretrain_alone(args) if together and first and not has_base(study) else 0
    ):
        return code
    # The first process downloads; the others find the files in the client's cache.
    for turn in (True, False):
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
    command = [
        sys.executable,
        "-m",
        "mergelib",
        "train",
        *study_options(args, args.variant),
        "--only",
        "f_b",
    ]
    handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return subprocess.run(
            command, env=distributed.child_environment(), stdout=subprocess.DEVNULL, check=False
        ).returncode
    finally:
        signal.signal(signal.SIGTERM, handler)
