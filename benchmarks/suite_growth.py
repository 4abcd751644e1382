"""``python -m benchmarks --suite growth``: seconds and peak memory against one size at a time,
log-log, with fitted slopes.

Merging grows with tasks and parameters, KNN Eval with test rows and with anchors, FT-Classifier
(fixed steps) and the closed-form affine map with fitting rows. Each is linear in the size that
varies. The picture goes to ``benchmarks/growth.png``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.frame import Table, peak, table, timed
from benchmarks.suite_merge import random_states
from mergelib.core.types import Head
from mergelib.merging import get_method
from mergelib.protocols import FTPreset, ft_classifier, knn_eval
from mergelib.protocols.alignment import fit_closed_form

MERGES = {"weight_averaging": {}, "task_arithmetic": {}, "ties": {}}
LIMIT = 1.1  # of a slope where the work is linear
FITTED = 3  # the slope is that of the largest sizes: small ones measure what a call costs at least
SHARE = 0.7  # of the free memory that a measurement may need
SIZES = {
    "tasks": (2, 5, 10, 20),
    "parameters": (1_000_000, 4_000_000, 16_000_000, 64_000_000, 200_000_000, 400_000_000),
    "rows": (1_000, 10_000, 100_000, 1_000_000),
    "shots": (5, 20, 80, 320),
    "fit rows": (1_000, 4_000, 16_000, 64_000),
}
D, CLASSES = 64, 4
PICTURE = Path(__file__).with_name("growth.png")


@dataclass(frozen=True)
class Point:
    """One size: seconds and bytes, the result included, the inputs not."""

    what: str
    against: str
    size: int
    seconds: float
    peak: int


Task = tuple[str, str, int, Callable[[], Any], int]
"""What is measured, against which size, the size, the call, and the bytes that inputs and call
need."""


def merges(against: str, sizes: Sequence[int], tasks: int, parameters: int) -> Iterator[Task]:
    """Three methods for each number of tasks or of parameters."""
    for size in sizes:
        n_tasks, n = (size, parameters) if against == "tasks" else (tasks, size)
        need = 4 * n * (n_tasks + 3)
        if need > SHARE * available():
            yield "", against, size, lambda: None, need
            continue
        width = 1000
        base, experts = random_states(
            {f"w{i}": (min(n, 16_000_000) // width, width) for i in range(max(1, n // 16_000_000))},
            n_tasks,
        )
        for method in MERGES:
            # Bound now: the loop's next turn must find these tensors free.
            yield (
                get_method(method).label,
                against,
                size,
                lambda m=method, b=base, e=experts: get_method(m)(b, e),
                need,
            )
        del base, experts


def protocols(sizes: dict[str, Sequence[int]]) -> Iterator[Task]:
    """KNN Eval against rows and shots, FT-Classifier and the affine map against fitting rows."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    for n in sizes["rows"]:
        z, anchors = noise(n, D), noise(1, CLASSES, 5, D)
        yield (
            "KNN Eval",
            "rows",
            n,
            lambda z=z, a=anchors: knn_eval(z, a, [1, 5]),
            4 * n * (D + 8 * CLASSES * 5),
        )
    for k in sizes["shots"]:
        z, anchors = noise(10_000, D), noise(1, CLASSES, k, D)
        yield (
            "KNN Eval",
            "shots",
            k,
            lambda z=z, a=anchors, k=k: knn_eval(z, a, [1, k]),
            4 * 10_000 * (D + 8 * CLASSES * k),
        )
    head = Head(noise(CLASSES, D), noise(CLASSES))
    for n in sizes["fit rows"]:
        z, teacher = noise(1, n, D), noise(1, n, CLASSES)
        yield (
            "FT-Classifier, 20 steps",
            "fit rows",
            n,
            lambda z=z, t=teacher: ft_classifier(z, t, head, FTPreset(lr=1e-3, epochs=20)),
            4 * n * (2 * D + 20 * CLASSES),
        )
    for n in sizes["fit rows"]:
        x = noise(1, n, D)
        y = x + noise(1, n, D)
        yield (
            "Affine map",
            "fit rows",
            n,
            lambda x=x, y=y: fit_closed_form(x, y, "affine"),
            4 * n * 20 * D,
        )


def available() -> int:
    """Bytes that can be had without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Of the least-squares line through the logarithms; NaN for fewer than two points or for a
    value of 0."""
    if len(sizes) < 2 or min(values) <= 0:
        return math.nan
    x, y = (torch.tensor(v, dtype=torch.float64).log() for v in (sizes, values))
    x = x - x.mean()
    return float((x * y).sum() / (x * x).sum())


def measured(tasks: Iterator[Task], n: int) -> tuple[list[Point], list[str]]:
    """All points, and what did not fit into memory."""
    points, left_out = [], []
    for what, against, size, call, need in tasks:
        if not what or need > SHARE * available():
            left_out.append(f"{what or 'merging'} with {size:,} {against}: {need / 1e9:.0f} GB")
            continue
        points.append(Point(what, against, size, timed(call, n, warmup=1).median, peak(call)))
    return points, left_out


def draw(points: Sequence[Point], path: Path) -> None:
    """Seconds above, peak below, one column per size that varies."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import (
        EngFormatter,
        FixedLocator,
        LogFormatterMathtext,
        NullFormatter,
        NullLocator,
    )

    columns = list(dict.fromkeys(p.against for p in points))
    kinds = list(dict.fromkeys(p.what for p in points))
    markers = dict(zip(kinds, "osD^vP*X", strict=False))
    figure, axes = plt.subplots(
        2,
        len(columns),
        figsize=(2.6 * len(columns), 4.8),
        sharex="col",
        sharey="row",
        layout="constrained",
    )
    lines = {}
    for column, against in zip(axes.T, columns, strict=True):
        for i, what in enumerate(kinds):
            mine = [p for p in points if (p.what, p.against) == (what, against)]
            for axis, values in zip(
                column, ([p.seconds for p in mine], [p.peak / 1e6 for p in mine]), strict=True
            ):
                if mine:
                    lines[what] = axis.loglog(
                        [p.size for p in mine], values, marker=markers[what], color=f"C{i}"
                    )[0]
                axis.grid(alpha=0.3)
                axis.yaxis.set_major_formatter(LogFormatterMathtext())
                axis.yaxis.set_minor_formatter(NullFormatter())
        sizes = sorted({p.size for p in points if p.against == against})
        column[1].xaxis.set_major_locator(FixedLocator(sizes if len(sizes) < 6 else sizes[::2]))
        column[1].xaxis.set_minor_locator(NullLocator())
        column[1].xaxis.set_major_formatter(EngFormatter(sep=""))
        column[1].set_xlabel(against)
    axes[0, 0].set_ylabel("seconds")
    axes[1, 0].set_ylabel("peak (MB)")
    figure.legend(
        lines.values(), lines, loc="outside upper center", ncols=len(lines), frameon=False
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


def tables(points: Sequence[Point], left_out: Sequence[str], n: int) -> list[Table]:
    """Slopes, then the points."""
    rows = []
    for what, against in dict.fromkeys((p.what, p.against) for p in points):
        mine = [p for p in points if (p.what, p.against) == (what, against)]
        last = mine[-FITTED:]
        found = {
            kind: slope([p.size for p in last], [getattr(p, kind) for p in last])
            for kind in ("seconds", "peak")
        }
        rows.append(
            {
                "what": what,
                "against": against,
                "sizes": ", ".join(f"{p.size:,}" for p in mine),
                "slope of seconds": f"{found['seconds']:.2f}",
                "slope of peak": f"{found['peak']:.2f}",
                f"at most {LIMIT}": "yes"
                if max(v for v in found.values() if v == v) <= LIMIT
                else "no",
            }
        )
    note = (
        f"Slopes of log seconds and log bytes through the {FITTED} largest sizes; nan where the "
        f"peak is below what a process shows. "
        f"All rows are linear in the size named; KNN Eval is bilinear, in rows times anchors. "
        f"Left out for lack of memory: {'; '.join(left_out) or 'nothing'}."
    )
    every = [
        {
            "what": p.what,
            "against": p.against,
            "size": f"{p.size:,}",
            "seconds": p.seconds,
            "peak, MB": p.peak / 1e6,
        }
        for p in points
    ]
    return [
        table("Growth", rows, note),
        table("Growth, every point", every, f"Median of {n} runs."),
    ]


def run(
    peers: bool,
    *,
    sizes: dict[str, Sequence[int]] = SIZES,
    n: int = 3,
    picture: Path | None = PICTURE,
) -> list[Table]:
    """The suite; there are no peers to it. 4 M parameters where tasks vary, 2 tasks where
    parameters do."""
    points, left_out = [], []
    for tasks in (
        merges("tasks", sizes["tasks"], 0, min(4_000_000, max(sizes["parameters"]))),
        merges("parameters", sizes["parameters"], 2, 0),
        protocols(sizes),
    ):
        more, without = measured(tasks, n)
        points, left_out = points + more, left_out + without
    if picture:
        draw(points, picture)
    return tables(points, left_out, n)
