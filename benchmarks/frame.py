"""What every suite measures with: the machine, seconds, peak memory, and the rates that bound them.

Imports torch and the standard library only, so that a GPU machine without the rest of the
environment can run it.
"""

from __future__ import annotations

import ctypes
import gc
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

Call = Callable[[], Any]


@dataclass(frozen=True)
class Times:
    """Wall seconds of one call: ``spread`` is (lowest, highest) of ``n`` runs."""

    median: float
    spread: tuple[float, float]
    n: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Times:
        return cls(statistics.median(seconds), (min(seconds), max(seconds)), len(seconds))

    def __str__(self) -> str:
        return f"{_digits(self.median)} ({_digits(self.spread[0])}–{_digits(self.spread[1])})"


class Table(str):
    """A table as Markdown that keeps its rows (column -> value)."""

    title: str
    rows: list[dict[str, Any]]
    note: str


def table(title: str, rows: Sequence[Mapping[str, Any]], note: str = "") -> Table:
    """Columns in the order in which rows first name them; a missing cell is empty, floats have
    three digits."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [
        columns,
        ["---"] * len(columns),
        *([_cell(row.get(column, "")) for column in columns] for row in rows),
    ]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    made = Table(f"### {title}\n\n{text}\n" + (f"\n{note}\n" if note else ""))
    made.title, made.rows, made.note = title, [dict(row) for row in rows], note
    return made


def _digits(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def _cell(value: Any) -> str:
    return _digits(value) if isinstance(value, float) else str(value)


def machine() -> str:
    """One line: processor, cores that this process may use, memory, versions, threads, load, and
    the GPU if there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    said = [
        f"{_cpu()}, {cores} cores, "
        f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        f"Python {sys.version.split()[0]}",
        f"torch {torch.__version__}, {torch.get_num_threads()} threads",
    ]
    try:
        said.append(f"transformers {version('transformers')}")
    except PackageNotFoundError:
        pass
    said.append(f"load {os.getloadavg()[0]:.1f}")
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        said.append(f"{found.name}, {found.total_memory / 2**30:.0f} GiB")
    return "; ".join(said)


def _cpu() -> str:
    try:
        facts = dict(
            map(str.strip, line.split(":", 1))
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if ":" in line
        )
    except OSError:
        return "unknown processor"
    best = next(
        (name for name in ("avx512f", "avx2") if name in facts.get("flags", "").split()), "no AVX2"
    )
    return f"{facts.get('model name', 'unknown processor')} ({best})"


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _seconds(call: Call) -> float:
    _finish()
    start = time.perf_counter()
    result = call()  # freed after the clock has stopped
    _finish()
    seconds = time.perf_counter() - start
    del result
    return seconds


def timed(call: Call, n: int = 5, warmup: int = 1) -> Times:
    """Wall seconds of ``call``, a GPU's queue included."""
    return interleaved({"": call}, n, warmup)[""]


def interleaved(calls: Mapping[str, Call], n: int = 5, warmup: int = 1) -> dict[str, Times]:
    """The same for several calls in turn, A B A B: what disturbs the machine disturbs all of them,
    and ratios hold."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warmup + n):
        for name, call in calls.items():
            gc.collect()
            spent = _seconds(call)
            if turn >= warmup:
                seconds[name].append(spent)
    return {name: Times.of(each) for name, each in seconds.items()}


def peak(call: Call) -> int:
    """Bytes that ``call`` had at once beyond what was there before it, its result included.

    On a machine with a GPU: the most that CUDA's allocator held. Else resident memory (Linux) of a
    forked process, on one thread: a fork does not inherit the pool of threads. What the call reads
    is shared with this process and counts on neither side.
    """
    gc.collect()
    if torch.cuda.is_available():
        _finish()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        _finish()
        return torch.cuda.max_memory_allocated() - before
    source, sink = os.pipe()
    child = os.fork()
    if not child:
        try:
            torch.set_num_threads(1)
            os.write(sink, str(_resident_growth(call)).encode())
        except BaseException as error:
            os.write(sink, f"{type(error).__name__}: {error}".encode()[:4000])
        finally:
            os._exit(0)
    os.close(sink)
    with os.fdopen(source) as answer:
        said = answer.read()
    os.waitpid(child, 0)
    if not said.isdigit():
        raise RuntimeError(
            f"The measured call failed: "
            f"{said or 'its process was killed, most likely for lack of memory'}."
        )
    return int(said)


def _resident_growth(call: Call) -> int:
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(
            0
        )  # freed memory that the call would take again without growing
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        before = memory("VmRSS")
        call()
        return max(0, memory("VmHWM") - before)
    except OSError:
        return _sampled_growth(call)


def _sampled_growth(call: Call) -> int:
    before = memory("VmRSS")
    with watched("VmRSS") as highest:
        call()
    return max(0, highest[0] - before)


@contextmanager
def watched(field: str = "RssAnon", interval: float = 0.01) -> Iterator[list[int]]:
    """The most bytes of ``memory(field)`` while the block ran, as a list of one."""
    highest, done = [memory(field)], threading.Event()

    def watch() -> None:
        while not done.wait(interval):
            highest[0] = max(highest[0], memory(field))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield highest
    finally:
        done.set()
        watcher.join()
        highest[0] = max(highest[0], memory(field))


def memory(field: str) -> int:
    """Bytes of this process from Linux' own account: VmRSS (resident now), RssAnon (of it, what no
    file backs), VmHWM (the most that was resident)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0


def copy_bandwidth(device: torch.device | str = "cpu", size: int = 2**28) -> float:
    """Bytes per second of copying ``size`` bytes, each counted twice: read and written."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    return 2 * size / timed(lambda: target.copy_(source), n=7, warmup=2).median


def matmul_rate(
    device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, size: int | None = None
) -> float:
    """Floating-point operations per second of a product of two square matrices, 2 size^3
    operations."""
    size = size or (8192 if torch.device(device).type == "cuda" else 1536)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / timed(lambda: a @ b, n=7, warmup=2).median
