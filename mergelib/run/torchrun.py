"""``python -m mergelib train``: the expensive part alone, for machines that run no notebooks; under
torchrun, by several processes."""

from __future__ import annotations

import argparse
import time

from ..core import distributed
from ..core.errors import UnknownNameError
from ..core.names import BASE, MULTI_TASK
from ..study.experts import has_base
from .options import asked_study, parse_overrides, stamp_place, write_stamp


def command_train(args: argparse.Namespace) -> int:
    """Run the subcommand and return its exit status."""
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
    distributed.wait_for_all()  # a group exists from now on, whose members wait for long
    if together and first and not has_base(study):
        with distributed.alone():  # its numbers are those of one process
            _ = asked_study(args).encoder
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
    distributed.leave()
    return 0
