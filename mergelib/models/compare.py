"""``compare``: merging methods, lambdas and heads on one's own models, chosen and reported apart.

What serves for one thing serves for no other: heads are re-aligned with unlabelled inputs,
lambda and method are chosen on validation rows (without labels: on held-out inputs, by agreement
with the experts), and test rows are read for what was chosen only. A cell is one merge on one
split; the store keeps its predictions, in which no label of a scored row takes part.
"""

from __future__ import annotations

import math
import os
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import chain, product
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..core import paths
from ..core.bootstrap import interval, resampled_means
from ..core.errors import ConfigError, DataError, StoreError, first_five, warn
from ..core.identity import code_identity, is_ours
from ..core.meter import Meter
from ..core.names import BASE, FINE_TUNED
from ..core.progress import progress
from ..core.store import Artifact, Store, file_sha256
from ..core.types import Head, Split, below, digest
from ..merging import METHODS, get_method
from ..merging.streaming import can_stream
from ..protocols import (
    FTPreset,
    ft_classifier,
    get_preset,
    knn_eval,
    stratified_order,
    uniform_order,
)
from ..tasks.data import labelled, unlabelled
from .heads import draw_inputs, expert_classifier, features, student_of
from .kinds import REGRESSION, kind_of
from .merged import Classifier, Merged
from .merging import merge, named_experts
from .parents import PROCESSOR_FILES, Parent, open_parent
from .plan import first_line
from .recipes import LAMS
from .tokens import unified

COMPARE_VERSION = 1
HEADS = ("current", "knn", "ft_classifier")
SAVED = ("current", "ft_classifier")
"""The protocols whose head a folder can hold; KNN Eval's anchors are no head."""
HELD_OUT, VALIDATION, TEST = "held-out", "validation", "test"
MEASURES = ["accuracy", "agreement", "kl"]
COSTS = ["seconds", "merge_seconds", "peak_mb"]


@dataclass(frozen=True)
class Rows:
    """One task's rows: ``fit`` inputs re-align the head, ``anchors [C * k]`` are KNN Eval's, and
    ``splits`` are scored; a split without labels has -1. ``identity``: of each split with what
    serves it."""

    fit: list[Any]
    anchors: list[Any]
    splits: dict[str, Split]
    identity: dict[str, str]


@dataclass(frozen=True)
class Comparison:
    """What ``compare`` found.

    ``rows``: a row per (method, lam, protocol, task, split) with accuracy, agreement with the
    expert (both in percent, of a multi-label head's C answers) and kl to it. ``table``: a row per
    (method, protocol), best first, with its lambda, the score by which that was ``chosen``, and on
    the rows to report on ``score`` and ``gain`` over the old head, means over tasks with 95 %
    intervals. ``best``: the chosen method, lam and protocol. ``failed``: method -> why.
    ``measures``: split -> accuracy or agreement, first the split to choose on, last the one to
    report on. ``k``: inputs per class that re-align.
    """

    rows: pd.DataFrame
    table: pd.DataFrame
    best: dict[str, Any]
    failed: dict[str, str]
    measures: dict[str, str]
    k: int

    def curve(self, method: str, protocol: str) -> pd.Series:
        """What a method's lambda was chosen by: lam -> mean over tasks."""
        split, measure = next(iter(self.measures.items()))
        rows = self.rows[self.rows.split == split]
        return rows.groupby(["method", "protocol", "lam"])[measure].mean()[method, protocol]


def rank_correlation(rows: pd.DataFrame) -> pd.DataFrame:
    """How well agreement with the experts orders merges by accuracy: Kendall's tau.

    Args:
        rows: As of ``Comparison``, of labelled inputs; one row per (method, lam, protocol) is a
            merge, averaged over tasks.

    Returns:
        Columns protocol, merges, agreement and kl (tau of minus KL); NaN for fewer than three.
    """
    known = rows[rows.protocol.isin(SAVED) & rows.accuracy.notna()]
    known = known[~known.method.isin((BASE, FINE_TUNED))]
    means = known.groupby(["protocol", "method", "lam"], dropna=False, sort=False)[MEASURES].mean()
    table = []
    for protocol, part in means.groupby(level="protocol", sort=False):
        tau = partial(part.accuracy.corr, method="kendall", min_periods=3)
        row = {"protocol": protocol, "merges": len(part), "agreement": tau(part.agreement)}
        table.append(row | {"kl": -tau(part.kl)})
    return pd.DataFrame(table, columns=["protocol", "merges", "agreement", "kl"])


def method_names(methods: str | Sequence[str]) -> list[str]:
    """``all``, ``fast`` (those that merge piece by piece, in little memory) or names as names.

    Raises ``UnknownNameError``.
    """
    entries = [methods] if isinstance(methods, str) else methods
    groups = {"all": METHODS, "fast": (n for n, m in METHODS.items() if can_stream(m))}
    names = dict.fromkeys(name for entry in entries for name in groups.get(entry, [entry]))
    return [get_method(name).name for name in names]


def compare(
    experts: Any,
    base: Any = None,
    inputs: Mapping[str, Any] | None = None,
    validation: Mapping[str, Any] | None = None,
    test: Mapping[str, Any] | None = None,
    *,
    methods: str | Sequence[str] = "fast",
    lams: Sequence[float] = LAMS,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    k: int = 5,
    seed: int = 0,
    preset: str = "default",
    limit: int = 0,
    encoder: Sequence[str] = (),
    head: str = "",
    text_column: str | int | None = None,
    first_label: int | None = None,
    device: str = "auto",
    batch_size: int = 64,
    max_length: int = 0,
    store: Store | None = None,
    show_progress: bool = False,
) -> Comparison:
    """Merge by every method and lambda, re-align, and score beside the experts and the base.

    With ``validation``, lambda and method are chosen by accuracy on it; without, by agreement with
    the experts on those ``inputs`` that no head is aligned with. Every finished cell is kept in the
    store, so an interrupted call continues. A method that fails is reported, and the rest goes on.
    A method with a streaming form needs the memory of the base and two models. Methods that need
    inputs get those that re-align heads; those that need labels are not compared.

    Args:
        experts: as of ``merge``.
        base: as of ``merge``; without it only methods that need none are run.
        inputs: task -> unlabelled inputs, for all tasks; k per class re-align heads.
        validation: task -> labelled rows to choose on, from which KNN Eval's anchors are taken.
        test: task -> labelled rows to report on; default: those that were chosen on.
        methods: ``fast``, ``all``, or names.
        lams: the grid of lambda.
        options: method -> its other options.
        k: inputs per class for each head, drawn without labels; 0 compares old heads only.
        seed: of that draw.
        preset: one of FT-Classifier's.
        limit: rows per task and split at most, drawn at random; 0 takes all.
        encoder, head: as of ``merge``.
        text_column, first_label: of files, as on the command line.
        device, batch_size, max_length: as of ``features``.
        store: default: the machine's.
        show_progress: whether to show a bar.

    Raises:
        ConfigError, DataError, UnknownNameError: before any model computes; ``ConfigError`` also if
            every method fails.

    Example:
        >>> try:  # everything is checked before any model computes
        ...     mergelib.compare({"news": "m"}, inputs={"news": ["a text"]}, methods="tie")
        ... except Exception as error:
        ...     print(type(error).__name__)
        UnknownNameError
    """
    names, models = method_names(methods), named_experts(experts)
    root = None if base is None else open_parent(base, "base")
    if root:
        *models, root = unified(models, root)
    parents = {p.name: p for p in models}
    lams = [float(lam) for lam in dict.fromkeys(lams)]
    needed = {"inputs": inputs or {}} if k or not validation else {}
    labels = {name: rows for name, rows in ((TEST, test), (VALIDATION, validation)) if rows}
    for key, rows in (needed | labels).items():
        if rows.keys() != parents.keys():
            raise ConfigError(
                f"{key}: given for {first_five(sorted(rows)) or 'no task'}, but the experts are "
                f"{first_five(sorted(parents))}; give every task's."
            )
    rows = {}
    for task, parent in parents.items():  # all files, before any model computes
        form = {"is_image": parent.is_image, "text_column": text_column}
        settings = form | {"first_label": first_label, "limit": limit}
        problem = kind_of(parent.config).name
        if problem == REGRESSION:
            raise ConfigError(f"'{task}' predicts numbers; compare is for heads that classify.")
        splits = {
            name: labelled(given[task], parent.labels, task, problem=problem, **settings)
            for name, given in labels.items()
        }
        pool = unlabelled(inputs[task], **form) if needed else []
        rows[task] = _rows(task, parent, pool, splits, k, seed, limit)
    cells = Cells(
        parents,
        root,
        rows,
        get_preset(preset),
        {"encoder": list(encoder), "head": head},
        options or {},
        {"device": device, "batch_size": batch_size, "max_length": max_length},
        store or Store(paths.store_root()),
    )
    return _compared(cells, names, lams, show_progress, k)


def _rows(
    task: str,
    parent: Parent,
    pool: Sequence[Any],
    splits: Mapping[str, Split],
    k: int,
    seed: int,
    limit: int,
) -> Rows:
    """Every row once: what a head is aligned with is not scored, a test row chooses nothing."""
    n_classes, known = len(parent.labels), partial(_content, is_image=parent.is_image)
    fit = draw_inputs(pool, n_classes, k, seed, task) if k else []
    seen, subsets, anchors = {*map(known, fit)}, {}, []
    if VALIDATION not in splits:
        splits = {**splits, HELD_OUT: Split(tuple(pool), torch.full((len(pool),), -1))}
    for name, split in splits.items():
        contents = [*map(known, split.inputs)]
        rows = [i for i, content in enumerate(contents) if content not in seen]
        seen.update(contents)
        if name != HELD_OUT and len(rows) < len(split):
            warn(
                f"'{task}': {len(split) - len(rows)} of {len(split)} {name} rows also serve for "
                "alignment or test; they are left out."
            )
        if not rows:
            raise DataError(
                f"'{task}' has no {name} rows beside the {len(fit)} inputs that re-align its head; "
                "give more, or a smaller k."
            )
        order = uniform_order(len(rows), min(limit or len(rows), len(rows)), seed)
        subsets[name] = split.subset(torch.tensor(rows)[order])
    validation = subsets.get(VALIDATION)
    single_label = validation and validation.labels.ndim == 1
    if single_label and k and validation.labels.bincount(minlength=n_classes).min() >= 2 * k:
        drawn = stratified_order(validation.labels, n_classes, k, seed).flatten().tolist()
        anchors = [validation.inputs[i] for i in drawn]
        subsets[VALIDATION] = validation.subset(sorted({*range(len(validation))} - {*drawn}))
    groups = {n: map(digest, map(known, [*fit, *anchors, *s.inputs])) for n, s in subsets.items()}
    sizes = f"{len(fit)} {len(anchors)}"
    return Rows(fit, anchors, subsets, {n: digest(sizes, *group) for n, group in groups.items()})


def _content(x: Any, is_image: bool) -> str:
    """The identity of an input: a text, a pair's both, or what an image shows."""
    if not is_image:
        return "\0".join(x) if isinstance(x, tuple) else x
    return file_sha256(x) if isinstance(x, str | os.PathLike) else digest(np.asarray(x).tobytes())


@dataclass(frozen=True)
class Cells:
    """The merges of one comparison: each is computed once on each split, and kept."""

    parents: dict[str, Parent]
    base: Parent | None
    rows: dict[str, Rows]
    preset: FTPreset
    parts: dict[str, Any]
    given: Mapping[str, Mapping[str, Any]]
    reading: dict[str, Any]
    store: Store

    @cached_property
    def _key(self) -> dict[str, Any]:
        everyone = self.parents | ({BASE: self.base} if self.base else {})
        return self.parts | {
            "version": COMPARE_VERSION,
            "parents": {name: _identity(parent) for name, parent in everyone.items()},
            "preset": asdict(self.preset),
            "max_length": self.reading["max_length"],
        }

    def get(self, model: str, lam: float | None, split: str) -> Artifact:
        """Predictions ``<task>/<protocol>`` ``[N]`` of a split, ``.../kl`` to the expert, and of
        the experts also ``<task>/logits``."""
        method = METHODS.get(model)
        functions = filter(None, (method.function, method.direction) if method else ())
        options = {**self.given.get(model, {}), **({} if lam is None else {"lam": lam})}
        key = self._key | {
            "model": model,
            "code": [code_identity(f) for f in functions if not is_ours(f)],
            "options": options,
            "rows": {task: rows.identity[split] for task, rows in self.rows.items()},
        }
        return self.store.get("compare", key, lambda: self._made(model, options, split))

    def _merged(self, model: str, options: dict[str, Any]) -> Merged:
        """What re-aligns heads is also what a method may see."""
        method, inputs = METHODS[model], {task: rows.fit for task, rows in self.rows.items()}
        if method.needs and ("labels" in method.needs or not all(inputs.values())):
            raise ConfigError(
                f"{method.label} needs {' and '.join(method.needs)}; "
                "a comparison has k unlabelled inputs per class for it."
            )
        reading = {name: self.reading[name] for name in ("device", "max_length")}
        given = {"base": self.base, "experts": self.parents} | self.parts | reading | options
        return merge(model, inputs=inputs if method.needs else None, **given)

    def _made(self, model: str, options: dict[str, Any], split: str) -> Artifact:
        start, info, tensors = time.perf_counter(), {}, {}
        teacher = {} if model == FINE_TUNED else self.get(FINE_TUNED, None, split).tensors
        if model in METHODS:
            with Meter() as meter:
                merged = self._merged(model, options)
            info = {"merge_seconds": meter.cost["seconds"], "peak_mb": meter.cost["peak_mb"]}
        for task, rows in self.rows.items():
            if model in METHODS:
                classifier = merged.classifier(task)
            else:
                classifier = expert_classifier(self.parents[task], name=task, **self.parts)
            if model == BASE:
                classifier = student_of(self.base, classifier, task)
            outputs = self._outputs(classifier, rows, split, below(teacher, f"{task}/"))
            tensors |= {f"{task}/{name}": value for name, value in outputs.items()}
        return Artifact(tensors, info | {"seconds": time.perf_counter() - start})

    def _outputs(
        self, classifier: Classifier, rows: Rows, split: str, teacher: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """One task's predictions under every protocol; no label of a scored row is at hand."""
        groups = (rows.fit, rows.anchors, rows.splits[split].inputs)
        z = features(classifier, [*chain(*groups)], **self.reading)
        z_fit, z_anchors, z = z.split([*map(len, groups)])
        head, kind = classifier.head.linear, kind_of(classifier.head.config)
        heads, outputs = {"current": head}, {}
        if not teacher:
            outputs = teacher = {"fit": head.logits(z_fit), "logits": head.logits(z)}
        elif rows.fit:
            options = {"loss": kind.loss, "fit_bias": classifier.head.has_bias}
            fitted = ft_classifier(z_fit[None], teacher["fit"][None], head, self.preset, **options)
            heads["ft_classifier"] = Head(fitted.weight[0], fitted.bias[0])
        for protocol, linear in heads.items():
            logits = linear.logits(z)
            kl = kind.loss(logits, teacher["logits"])
            outputs = outputs | {protocol: kind.predict(logits), f"{protocol}/kl": kl}
        if rows.anchors:
            anchors = z_anchors.view(1, len(head.bias), -1, z.shape[1])
            outputs["knn"] = knn_eval(z, anchors, (anchors.shape[2],))[0, 0]
        return outputs

    def measured(self, model: str, lam: float | None, split: str) -> list[dict[str, Any]]:
        """Rows of a ``Comparison``; in ``values``, of each measure that of each input ``[N]``, NaN
        where it is unknown."""
        outputs, experts = (self.get(*m, split).tensors for m in ((model, lam), (FINE_TUNED, None)))
        found = []
        for protocol, (task, rows) in product(HEADS, self.rows.items()):
            if not all(f"{t}/{protocol}" in outputs for t in self.rows):
                continue
            predicted, labels = outputs[f"{task}/{protocol}"], rows.splits[split].labels
            unknown = torch.full(labels.shape[:1], math.nan)
            values = {
                "accuracy": unknown if split == HELD_OUT else _same(predicted, labels),
                "agreement": _same(predicted, experts[f"{task}/current"]),
                "kl": outputs.get(f"{task}/{protocol}/kl", unknown),
            }
            row = {"method": model, "lam": lam, "protocol": protocol, "task": task, "split": split}
            means = {name: float(v.mean()) for name, v in values.items()}
            found.append(row | means | {"n": len(unknown), "values": values})
        return found


def _same(predicted: Tensor, wanted: Tensor) -> Tensor:
    """Percent ``[N]`` of each row's answers, of several where a head has several, that agree."""
    return 100.0 * (predicted == wanted).float().view(len(wanted), -1).mean(1)


def _identity(parent: Parent) -> str:
    """Of a model's weights, configuration and the way it reads inputs, wherever its folder is."""
    files = [parent.folder / f for f in ("config.json", *PROCESSOR_FILES, *parent.weights.files)]
    return digest(*(f"{f.name} {file_sha256(f)}" for f in files if f.is_file()))


def _compared(
    cells: Cells, names: Sequence[str], lams: Sequence[float], show: bool, k: int
) -> Comparison:
    """Choose on one split, then report on the other."""
    splits = next(iter(cells.rows.values())).splits
    choice = VALIDATION if VALIDATION in splits else HELD_OUT
    report = TEST if TEST in splits else choice
    measures = {s: MEASURES[s == HELD_OUT] for s in (choice, report)}
    rows = cells.measured(FINE_TUNED, None, choice)
    grid = [(BASE, None)] if cells.base else []
    grid += [(n, lam) for n in names for lam in (lams if get_method(n).has_lam else [None])]
    failed = {}
    for model, lam in progress(grid, desc="compare" * show):
        try:
            if model not in failed:
                rows += cells.measured(model, lam, choice)
        except StoreError:
            raise
        except Exception as error:  # a user's method may raise anything
            failed[model] = f"{type(error).__name__}: {first_line(error)}"
    rows = [row for row in rows if row["method"] not in failed]
    if not any(row["method"] in METHODS for row in rows):
        raise ConfigError("No method worked. " + " ".join(f"{n}: {e}" for n, e in failed.items()))
    # Of equal scores the one nearer to the experts, then the smaller lambda.
    keys, order = ["method", "protocol", "lam"], [measures[choice], "kl", "lam"]
    means = _frame(rows).groupby(keys, dropna=False, sort=False)[order[:2]].mean().reset_index()
    means = means.sort_values(order, ascending=[False, True, True]).drop_duplicates(keys[:2])
    means["lam"] = means.lam.astype(object).where(means.lam.notna(), None)
    if report != choice:
        chosen = list(dict.fromkeys(zip(means.method, means.lam, strict=True)))
        for cell in progress(chosen, desc=report * show):
            rows += cells.measured(*cell, report)
    reported = defaultdict(list)  # of a cell, each task's values
    for row in rows:
        if row["split"] == report:
            cell = row["method"], row["protocol"], row["lam"]
            reported[cell].append(row["values"][measures[report]])
    scores = {}
    for row in means.itertuples():
        values = reported[row.method, row.protocol, row.lam]
        samples = [resampled_means(v[None], seed=i) for i, v in enumerate(values)]
        scores[row.method, row.protocol] = torch.stack(samples).mean(0)
    n_rows = sum(len(task.splits[report]) for task in cells.rows.values())
    table = []
    for row in means.itertuples():
        score = scores[row.method, row.protocol]
        line = {n: getattr(row, n) for n in keys} | {"chosen": getattr(row, measures[choice])}
        for name, sample in (("score", score), ("gain", score - scores[row.method, "current"])):
            low, high = interval(sample)
            line |= {name: float(sample[0]), f"{name}_low": low, f"{name}_high": high}
        info = cells.get(row.method, row.lam, choice).info
        table.append(line | {"n": n_rows} | {name: info.get(name) for name in COSTS})
    best = next(r for r in table if r["method"] in METHODS and r["protocol"] in SAVED)
    best = {name: best[name] for name in keys}
    return Comparison(_frame(rows), pd.DataFrame(table), best, failed, measures, k)


def _frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """As of ``Comparison``."""
    return pd.DataFrame(rows).drop(columns="values").astype({"lam": float})
