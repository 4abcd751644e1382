"""Kill a program at random moments and run it again: ``python -m tests.faults.kill --times 50``.

``--quick-run 3`` kills whole runs of notebooks, with ``--only text report`` runs of these.

Each trial begins with an empty store. What the kill left is compared with what the next run leaves:
every artifact that was finished is the same file afterwards, results equal those of an undisturbed
run (all tables but the measured seconds of merging), and nothing temporary is left.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from mergelib.core.store import Store
from mergelib.core.types import state_digest

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
ROOT = Path(__file__).resolve().parents[2]


def python_path() -> str:
    """This project before what PYTHONPATH has."""
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def artifacts(store: Path) -> dict[str, tuple]:
    """Of every finished artifact: name, inode and time of change of its files."""
    looked_after = Store(store)
    assert looked_after.verify() == [], "a kill left a damaged artifact under an artifact's name"
    found = {}
    for row in looked_after.entries():
        folder = store / row["step"] / row["digest"]
        files = tuple(
            (p.name, p.stat().st_ino, p.stat().st_mtime_ns) for p in sorted(folder.iterdir())
        )
        found[f"{row['step']}/{row['digest']}"] = files
    return found


def tensors(store: Path) -> dict[str, str]:
    """Digest of the tensors of every artifact."""
    made = Store(store)
    return {
        f"{r['step']}/{r['digest']}": state_digest(made.peek(r["step"], r["key"]).tensors)
        for r in made.entries()
    }


def temporary(place: Path) -> list[str]:
    """Files and folders below ``place`` that no finished run leaves. The store's locks are no
    temporary files: they stay, empty, as names for the system's locks, until ``store prune``."""

    def is_temporary(inside: tuple[str, ...]) -> bool:
        return (
            (inside[0] == "temporary" and len(inside) == 2 and inside[1].startswith("mergelib"))
            or ".scratch" in inside[:-1]
            or any(
                part.startswith(".tmp") or part.endswith(".tmp") or ".partial-" in part
                for part in inside
            )
        )

    return sorted(
        str(p.relative_to(place))
        for p in place.rglob("*")
        if is_temporary(p.relative_to(place).parts)
    )


MEASURED = "ext01_merge_cost.csv"
"""Seconds and memory of the merges that were made: the one table that no two runs agree on."""


def csvs(output: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(output)): p.read_bytes()
        for p in sorted(output.rglob("*.csv"))
        if p.name != MEASURED
    }


def others(found: dict[str, bytes], expected: dict[str, bytes]) -> str:
    """Names of tables that are not the same, each with its first other line; empty where all
    are."""
    said = []
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            lines = [x.get(name, b"").splitlines(keepends=True) for x in (found, expected)]
            said.append(
                f"{name}: "
                + next(
                    (f"{a!r}, not {b!r}" for a, b in zip(*lines, strict=False) if a != b),
                    f"{len(lines[0])} lines, not {len(lines[1])}",
                )
            )
    return "; ".join(said)


class Undisturbed:
    """What a run that nobody kills leaves below ``place``, and how long it takes."""

    def __init__(self, start: Callable[[Path], int], place: Path):
        self.start = start
        begun = time.monotonic()
        status, used = os.wait4(start(place), 0)[1:]
        assert status == 0, (
            f"the undisturbed run failed: {(place / 'said.log').read_text()[-2000:]}"
        )
        self.seconds, self.cpu = time.monotonic() - begun, used.ru_utime + used.ru_stime
        self.csvs, self.tensors = csvs(place / "output"), tensors(place / "store")
        assert self.csvs and self.tensors and temporary(place) == []


def finish(pid: int) -> int:
    """The exit status of a child, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def cpu_seconds(pid: int) -> float:
    """CPU time of a process: a moment in it is the same place in the program, however busy the
    machine is."""
    return time.clock_gettime((~pid << 3) | 2)  # Linux: the clock of all threads of a process


def wait_until(pid: int, moment: float, clock: Callable[[int], float]) -> None:
    """Return when ``clock(pid)`` has come to ``moment``, or the child is over."""
    while (
        not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) and clock(pid) < moment
    ):
        time.sleep(0.003)


def kill_once(
    reference: Undisturbed, place: Path, number: signal.Signals, moment: float, by_cpu: bool
) -> dict | float:
    """Start, kill after ``moment`` seconds, run again, compare. Where the run was over before the
    kill: how many it took."""
    pid, begun = reference.start(place), time.monotonic()
    wait_until(pid, moment, cpu_seconds if by_cpu else lambda _: time.monotonic() - begun)
    os.kill(pid, number)  # nobody has waited for it: the id is still its own
    sent = time.monotonic()
    if finish(pid) == 0:
        assert time.monotonic() - sent < 1, f"{number.name} at {moment:.2f} s was ignored"
        return moment if by_cpu else sent - begun
    finished = artifacts(place / "store")
    left = temporary(place)
    again = finish(reference.start(place))
    assert again == 0, f"the run after {number.name} at {moment:.2f} s failed with {again}"
    now = artifacts(place / "store")
    made_again = [name for name, files in finished.items() if now.get(name) != files]
    assert not made_again, (
        f"finished artifacts were made again after {number.name} at {moment:.2f} s: {made_again}"
    )
    different = others(csvs(place / "output"), reference.csvs)
    assert not different, f"other CSVs after {number.name} at {moment:.2f} s: {different}"
    assert tensors(place / "store") == reference.tensors, (
        f"other tensors after {number.name} at {moment:.2f} s"
    )
    assert temporary(place) == [], (
        f"after {number.name} at {moment:.2f} s there are left {temporary(place)}"
    )
    return {
        "signal": number.name,
        "moment": moment,
        "finished": len(finished),
        "of": len(now),
        "left by the kill": len(left),
    }


def kill_often(
    start: Callable[[Path], int],
    times: int,
    *,
    seed: int,
    say: Callable[[str], None] = lambda line: None,
    by_cpu: bool = True,
) -> list[dict]:
    """``times`` kills of a run that ``start(place)`` begins (it returns a process id), the signals
    in turn, at seeded random moments: of CPU time, or of wall time for a run whose work other
    processes do."""
    draw, trials = random.Random(seed), []
    with tempfile.TemporaryDirectory(prefix="kill-") as root:
        reference = Undisturbed(start, Path(root) / "undisturbed")
        say(
            f"undisturbed: {reference.seconds:.1f} s, of its own CPU time {reference.cpu:.1f} s, "
            f"{len(reference.tensors)} artifacts, {len(reference.csvs)} CSVs"
        )
        until = reference.cpu if by_cpu else reference.seconds
        while len(trials) < times:
            place = Path(root) / "trial"
            number = SIGNALS[len(trials) % len(SIGNALS)]
            done = kill_once(reference, place, number, draw.random() * until, by_cpu)
            if isinstance(done, float):
                until = min(until, done)  # a run of now takes less than the undisturbed one did
            else:
                trials.append(done)
                say(
                    f"{len(trials):3}  {done['signal']:<8} at {done['moment']:6.2f} s: "
                    f"{done['finished']:3} of {done['of']} artifacts finished and kept, "
                    f"{done['left by the kill']} temporary files or folders taken away by the "
                    f"next run"
                )
            shutil.rmtree(place, ignore_errors=True)
    return trials


# ---- what is killed ------------------------------------------------------------------------------


def forked(work: Callable[[], None], log: Path) -> int:
    """``work`` in a forked child, which has this process's imports already; returns its process id.
    What it says goes to ``log``."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        # hypothesis leaves one in a session of tests, and a KeyboardInterrupt inside it is
        # swallowed
        gc.callbacks.clear()
        # tqdm's own lock is shared with forked children, and one that is killed never gives it back
        tqdm.set_lock(threading.RLock())
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        quiet = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        work()
        code = 0
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def start_program(place: Path, overrides: dict | None = None) -> int:
    """``program.run`` below ``place``."""
    from . import program

    place.mkdir(parents=True, exist_ok=True)
    return forked(
        lambda: program.run(place / "store", place / "output", overrides), place / "said.log"
    )


def start_quick_run(place: Path, only: Sequence[str] = ()) -> int:
    """A ``mergelib run --profile quick``, of all notebooks by default, with folders of its own
    below ``place``."""
    (place / "temporary").mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        "MERGELIB_STORE": str(place / "store"),
        "MERGELIB_OUTPUT": str(place / "output"),
        "TMPDIR": str(place / "temporary"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": python_path(),
    }
    with (place / "said.log").open("ab") as said:
        # A shell's background job starts with SIGINT ignored, and so would this one.
        starter = (
            "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
            "from mergelib.run.cli import main; sys.exit(main(sys.argv[1:]))"
        )
        return subprocess.Popen(
            [
                sys.executable,
                "-c",
                starter,
                "run",
                "--profile",
                "quick",
                *(["--only", *only] if only else []),
            ],
            cwd=ROOT,
            env=environment,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ).pid


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--times", type=int, default=0, metavar="N", help="kill the program N times"
    )
    parser.add_argument(
        "--quick-run",
        type=int,
        default=0,
        metavar="N",
        help="kill a whole run of profile quick N times (many minutes)",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="NAME",
        help="notebooks or groups of those runs; all by default",
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    import transformers  # noqa: F401

    def start_run(place: Path) -> int:
        return start_quick_run(place, arguments.only)

    run = f"run of profile quick{', ' * bool(arguments.only)}{' '.join(arguments.only)}"
    for times, start, what in (
        (arguments.times, start_program, "program"),
        (arguments.quick_run, start_run, run),
    ):
        if times:
            trials = kill_often(
                start,
                times,
                seed=arguments.seed,
                say=lambda line: print(line, flush=True),
                by_cpu=start is start_program,
            )
            print(
                f"{len(trials)} kills of the {what} ("
                f"{', '.join(f'{n} {s}' for s, n in Counter(t['signal'] for t in trials).items())}"
                f"): all completed, same CSVs, {sum(t['finished'] for t in trials)} finished "
                "artifacts kept, 0 made again, nothing temporary left."
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
