"""``python -m benchmarks --suite protocols``: the fits behind the features, all at once as the
library makes them, beside one at a time.

Features are random, sizes are Table 2's: three methods, five tasks, five seeds, six numbers of
shots. The loop beside is a plain training loop of torch, one fit after the other on the same rows
with the same steps, batches and optimizer. It is timed for the first method and seed alone, whose
fits have the shapes of all others, and multiplied. Both must give the same fits.

*Products alone* are the matrix products of the batched fits, at their shapes, and nothing else:
whatever else a fit does comes on top, so that the loop's time over theirs is the most that the
ratio could be with these products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.frame import Table, Times, interleaved, table
from mergelib.core.types import Head
from mergelib.protocols import PRESETS, Evidence, FTPreset, fit_heads
from mergelib.protocols.alignment import AffineMap, fit_l1, get_rung
from mergelib.protocols.ft_classifier import nested_blocks
from mergelib.protocols.orthogonal import nested_orthogonal, orthogonal_classifier
from mergelib.protocols.surgery import start, surgery

CLASSES = {"ag": 4, "yelp": 5, "amazon": 5, "yahoo": 10, "dbpedia": 14}
KS, SEEDS, METHODS, POOL = (
    (1, 2, 5, 10, 20, 50),
    5,
    3,
    100,
)  # shots, draws, merges, pool rows per class
STARTS, ENCODERS = 3, 4  # of the ladder: three merges and f_b
LADDER_STEPS, LADDER_BATCH = 500, 256  # what the ladder's fits take by default


def evidence(
    n_classes: int,
    width: int,
    preset: FTPreset,
    *,
    ks: Sequence[int] = KS,
    seeds: int = SEEDS,
    seed: int = 0,
) -> Evidence:
    """Random features of a pool of ``POOL`` rows a class; f_m's are f_t's with noise, and rows of a
    class have a common part."""
    g = torch.Generator().manual_seed(seed)
    centres, n = torch.randn(n_classes, width, generator=g), POOL * n_classes
    teacher = centres.repeat_interleave(POOL, 0) + torch.randn(n, width, generator=g)
    student = teacher + torch.randn(n, width, generator=g)
    head = Head(centres * 8 / width, torch.zeros(n_classes))
    draws = torch.stack(
        [
            torch.stack(
                [c * POOL + torch.randperm(POOL, generator=g)[: max(ks)] for c in range(n_classes)]
            )
            for _ in range(seeds)
        ]
    )
    return Evidence(student[:8], head, student, teacher, draws, tuple(ks), preset)


def in_double(seen: Evidence) -> Evidence:
    """In float64 two ways of one fit agree; in float32 Adam magnifies the rounding of gradients
    near 0."""
    head = Head(seen.head.weight.double(), seen.head.bias.double())
    return replace(
        seen,
        head=head,
        student_fit=seen.student_fit.double(),
        teacher_fit=seen.teacher_fit.double(),
    )


def one_head(seen: Evidence, k: int, seed: int) -> Head:
    """A plain training loop for one head: ``nn.Linear``, ``torch.optim.Adam``, ``kl_div``."""
    rows, preset = seen.rows(k)[seed], seen.preset
    features, teacher = seen.student_fit[rows], seen.head.logits(seen.teacher_fit[rows]).softmax(-1)
    linear = nn.Linear(features.shape[1], len(seen.head.weight), dtype=features.dtype)
    linear.load_state_dict({"weight": seen.head.weight, "bias": seen.head.bias})
    adam = torch.optim.Adam(linear.parameters(), lr=preset.lr)
    orders, size = torch.Generator().manual_seed(0), preset.batch_size
    for _ in range(preset.epochs):
        order = (
            [slice(None)]
            if size is None
            else torch.randperm(len(rows), generator=orders).split(size)
        )
        for batch in order:
            loss = nn.functional.kl_div(
                linear(features[batch]).log_softmax(-1), teacher[batch], reduction="batchmean"
            )
            adam.zero_grad()
            loss.backward()
            adam.step()
    return Head(linear.weight.detach(), linear.bias.detach())


def one_map(x: Tensor, y: Tensor, rung: str, seed: int) -> AffineMap:
    """A map of the ladder alone. The library's loop: its one-by-one form is what a notebook would
    write."""
    return fit_l1(x[None], y[None], rung, seed=seed, steps=LADDER_STEPS, batch_size=LADDER_BATCH)


def one_surgery(features: Tensor, teacher: Tensor, steps: int) -> Tensor:
    """A plain training loop of one Surgery module; the corrected features."""
    module = start(1, features.shape[-1])
    down, up = nn.Parameter(module.down[0]), nn.Parameter(module.up[0])
    adam = torch.optim.Adam([down, up], lr=1e-3)
    for _ in range(steps):
        loss = nn.functional.l1_loss(features - (features @ down.T).relu() @ up.T, teacher)
        adam.zero_grad()
        loss.backward()
        adam.step()
    return (features - (features @ down.T).relu() @ up.T).detach()


def scaled(times: Times, factor: float) -> Times:
    """Of a sample, what ``factor`` such samples would take."""
    return Times(times.median * factor, tuple(factor * t for t in times.spread), times.n)


Product = tuple[int, int, int, int, int]
"""``steps`` products ``[B, M, K] @ [B, K, N]``."""


def multiplied(products: Sequence[Product]) -> Callable[[], None]:
    """What takes these products, on random numbers."""
    pairs = [
        (steps, torch.randn(b, m, k), torch.randn(b, n, k).mT) for steps, b, m, k, n in products
    ]

    def call() -> None:
        for steps, left, right in pairs:
            for _ in range(steps):
                left @ right

    return call


def row(
    what: str,
    fits: int,
    sample: int,
    batched: Callable[[], object],
    single: Callable[[], object],
    products: Sequence[Product],
    apart: float,
    n: int,
) -> dict:
    """One line: ``single`` makes ``sample`` of the ``fits`` that ``batched`` makes, by
    ``products``."""
    calls = {"batched": batched, "single": single} | (
        {"products": multiplied(products)} if products else {}
    )
    found = interleaved(calls, n=n, warmup=1 if n > 1 else 0)
    alone = scaled(found["single"], fits / sample)
    line = {
        "what": what,
        "fits": fits,
        "batched s": str(found["batched"]),
        "one at a time s": str(alone),
        "sampled fits": sample,
        "n": n,
        "ratio": alone.median / found["batched"].median,
        "difference": f"{apart:.0e}",
    }
    return line | (
        {
            "products alone s": str(found["products"]),
            "ratio at most": alone.median / found["products"].median,
        }
        if products
        else {}
    )


def kl_products(seen: Evidence) -> list[Product]:
    """Of FT-Classifier's fits in full batches: every block's logits and gradient."""
    n_seeds, n_classes, steps = len(seen.draws), len(seen.head.weight), seen.preset.epochs
    teacher = torch.zeros(*seen.draws.shape, n_classes)
    shapes = [
        (len(part) * n_classes, *features.shape[1:])
        for features, part, _ in nested_blocks(
            seen.student_fit[seen.draws], teacher, sorted(seen.ks, reverse=True)
        )
    ]
    return [
        product
        for m, n, d in shapes
        for product in ((steps, n_seeds, m, d, n), (steps, n_seeds, m, n, d))
    ]


def heads(
    width: int,
    preset: str,
    n: int,
    classes: Sequence[int] = tuple(CLASSES.values()),
    methods: int = METHODS,
    ks: Sequence[int] = KS,
) -> dict:
    """All few-shot heads of Table 2 from cached features."""
    seen = [
        [evidence(c, width, PRESETS[preset], ks=ks, seed=m) for c in classes]
        for m in range(methods)
    ]

    def batched() -> list:
        return [fit_heads(e) for method in seen for e in method]

    def single() -> list:
        return [[one_head(e, k, 0) for k in ks] for e in seen[0]]

    for many, alone in zip(
        fit_heads(in_double(seen[0][0])),
        [one_head(in_double(seen[0][0]), k, 0) for k in ks],
        strict=True,
    ):
        torch.testing.assert_close(many.weight[0], alone.weight, atol=1e-7, rtol=1e-5)
        torch.testing.assert_close(many.bias[0], alone.bias, atol=1e-7, rtol=1e-5)
    apart = max(
        float((many.logits(e.student_fit)[0] - alone.logits(e.student_fit)).abs().mean())
        for e in seen[0]
        for many, alone in zip(fit_heads(e), [one_head(e, k, 0) for k in ks], strict=True)
    )
    said = (
        "full batches"
        if PRESETS[preset].batch_size is None
        else f"batches of {PRESETS[preset].batch_size}"
    )
    fits, sample = methods * len(classes) * SEEDS * len(ks), len(classes) * len(ks)
    return row(
        f"FT-Classifier, d = {width}, preset {preset} ({said})",
        fits,
        sample,
        batched,
        single,
        [product for method in seen for e in method for product in kl_products(e)]
        if PRESETS[preset].batch_size is None
        else [],
        apart,
        n,
    )


def ladder(
    width: int, rung: str, rows: int, n: int, tasks: int = len(CLASSES), sample: int = 3
) -> dict:
    """All maps of a rung as Figure 4 fits them: encoders x tasks x random starts in one batch."""
    g = torch.Generator().manual_seed(1)
    y = torch.randn(ENCODERS * tasks, rows, width, generator=g)
    x = y + torch.randn(y.shape, generator=g)
    seeds = list(range(STARTS)) * len(x)
    x, y = x.repeat_interleave(STARTS, 0), y.repeat_interleave(STARTS, 0)
    batched = partial(fit_l1, x, y, rung, seed=seeds, steps=LADDER_STEPS, batch_size=LADDER_BATCH)

    def single() -> list[AffineMap]:
        return [one_map(x[i], y[i], rung, seeds[i]) for i in range(sample)]

    many = batched().apply(x)
    apart = max(
        float((many[i] - alone.apply(x[i])).abs().mean()) for i, alone in enumerate(single())
    )
    constraint = get_rung(rung).constraint
    size, steps = min(LADDER_BATCH, rows), LADDER_STEPS
    products = (
        []
        if constraint == "diagonal"
        else [(steps, len(x), size, width, width), (steps, len(x), width, size, width)]
    )
    products += [(steps, len(x), width, width, width)] * 2 if constraint == "orthogonal" else []
    return row(
        f"ladder, {rung}, d = {width}, {rows} rows",
        len(x),
        sample,
        batched,
        single,
        products,
        apart,
        n,
    )


def surgeries(width: int, n_classes: int, n: int, ks: Sequence[int] = KS) -> dict:
    """Surgery's modules of one method and task: all seeds of a number of shots in one batch."""
    seen = evidence(n_classes, width, PRESETS["default"], ks=ks)
    steps = seen.preset.epochs
    inputs = [(seen.student_fit[rows], seen.teacher_fit[rows]) for rows in map(seen.rows, seen.ks)]

    def batched() -> list[Tensor]:
        return [surgery(x, y, steps=steps).apply(x) for x, y in inputs]

    def single() -> list[Tensor]:
        return [one_surgery(x[0], y[0], steps) for x, y in inputs]

    apart = max(
        float((many[0] - alone).abs().mean())
        for many, alone in zip(batched(), single(), strict=True)
    )
    rank = start(1, width).down.shape[1]
    products = [
        product
        for size in (x.shape[1] for x, _ in inputs)
        for product in [
            (steps, SEEDS, size, width, rank),
            (steps, SEEDS, size, rank, width),
            (steps, SEEDS, size, width, rank),
            *[(steps, SEEDS, width, size, rank)] * 2,
        ]
    ]
    return row(
        f"Surgery, d = {width}, one method, C = {n_classes}",
        SEEDS * len(ks),
        len(ks),
        batched,
        single,
        products,
        apart,
        n,
    )


def orthogonal(width: int, n_classes: int, n: int, ks: Sequence[int] = KS) -> dict:
    """The orthogonal classifier's heads of one method and task. One at a time: the library's single
    fit."""
    seen = evidence(n_classes, width, PRESETS["default"], ks=ks)
    inputs = [
        (seen.student_fit[rows[:1]], seen.teacher_fit[rows[:1]]) for rows in map(seen.rows, seen.ks)
    ]

    def batched() -> list[Head]:
        return nested_orthogonal(
            seen.student_fit[seen.draws],
            seen.teacher_fit[seen.draws],
            seen.head,
            seen.preset,
            seen.ks,
        )

    def single() -> list[Head]:
        return [orthogonal_classifier(x, y, seen.head, seen.preset) for x, y in inputs]

    apart = max(
        float((many.logits(seen.student_fit)[0] - alone.logits(seen.student_fit)[0]).abs().mean())
        for many, alone in zip(batched(), single(), strict=True)
    )
    return row(
        f"orthogonal classifier, d = {width}, one method, C = {n_classes}",
        SEEDS * len(ks),
        len(ks),
        batched,
        single,
        kl_products(seen),
        apart,
        n,
    )


def run(peers: bool = False) -> list[Table]:
    """``peers`` changes nothing: no public implementation fits these heads."""
    rows = [
        heads(128, "default", 3),
        heads(384, "default", 3),
        heads(768, "default", 3),
        heads(768, "released", 1),
        *(ladder(128, rung, 1000, 1) for rung in ("affine", "orthogonal", "scaling")),
        orthogonal(128, 5, 3),
        orthogonal(384, 5, 3),
        surgeries(128, 5, 3),
        surgeries(384, 5, 3),
    ]
    note = (
        "One at a time: measured on the sampled fits, multiplied by fits / sampled fits. "
        "Difference: mean absolute one of a fit's logits, or of its "
        "mapped rows, for the worst sampled fit in float32, where Adam and the signs of an L1 "
        "gradient magnify rounding; in float64 heads were compared to 1e-7."
    )
    return [table("Fits behind the features, all at once and one at a time", rows, note)]
