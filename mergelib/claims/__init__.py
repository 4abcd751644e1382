"""Judge the claims of ``claims.yaml``: fixed thresholds, paired bootstrap, three verdicts.

A claim's metric is one function of a ``Bootstrap`` under ``@metric(claim)``. It returns values
``[1 + B]``: the measured value first, B resampled ones after it.
"""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import TypeAdapter
from torch import Tensor

from ..core.bootstrap import counts, interval
from ..core.errors import MissingShotsError, UnknownNameError
from ..core.names import BASE, FINE_TUNED
from ..merging import get_method
from ..protocols import get_protocol
from ..study import Study
from ..study.aligned import aligned
from ..study.clustering import label_purity, source_purity

CLAIMS_FILE = Path(__file__).parent / "claims.yaml"
REPRODUCED, NOT_REPRODUCED = "reproduced", "not reproduced"
UNDECIDED, NOT_JUDGED = "undecided", "not judged"
OPERATORS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


@dataclass(frozen=True)
class Condition:
    """A comparison with a number, such as ``>= 0.9``."""

    op: str
    value: float

    def holds(self, number: float) -> bool:
        """Whether ``number`` lies on the right side."""
        return OPERATORS[self.op](number, self.value)


@dataclass(frozen=True)
class Claim(Condition):
    """One entry of ``claims.yaml``: its wording, and the threshold that its metric must meet."""

    id: str
    source: str
    says: str
    metric: str
    threshold: str
    needs: str = ""
    precondition: Condition | None = None


@cache
def load_claims() -> dict[str, Claim]:
    """Claims by id."""
    entries = yaml.safe_load(CLAIMS_FILE.read_text("utf-8"))["claims"]
    return {c.id: c for c in TypeAdapter(list[Claim]).validate_python(entries)}


def claims_hash() -> str:
    """SHA-256 of the claims file, shown with every verdict."""
    return hashlib.sha256(CLAIMS_FILE.read_bytes()).hexdigest()


class Bootstrap:
    """Averages over tasks of test accuracy, measured and resampled.

    Test inputs are resampled within each task, and so are seeds.

    The same resampled inputs and seeds serve every encoder and protocol, so differences are paired.
    """

    def __init__(self, study: Study):
        self.study, self.n = study, study.profile.resamples
        generator = torch.Generator().manual_seed(0)
        seeds = len(study.profile.protocols.seeds)
        self._cache = {("seeds", seeds): counts(self.n, seeds, generator) / seeds}
        self._counts = {
            t: counts(self.n, len(task.test), generator) for t, task in study.tasks.items()
        }

    def average(self, per_task: dict[str, Tensor]) -> Tensor:
        """Mean over inputs, seeds and tasks ``[1 + B]`` of ``{task: values [S, N]}``."""
        total = torch.zeros(1 + self.n, dtype=torch.float64)
        for name, values in per_task.items():
            values = values.double()
            total[0] += values.mean()
            means = (self._counts[name] @ values.T.float()).double() / values.shape[1]
            total[1:] += (means * self._seed_weights(len(values))).sum(1)
        return total / len(per_task)

    def _seed_weights(self, n: int) -> Tensor:
        """The share that each of n seeds has in each resample: ``[B, n]``, rows sum to 1."""
        generator = torch.Generator().manual_seed(n)
        return self.cached(("seeds", n), lambda: counts(self.n, n, generator) / n)

    def accuracy(
        self,
        encoder: str,
        protocol: str,
        k: float | None = None,
        *,
        draw: str = "stratified",
        fit_on: str = "train",
    ) -> Tensor:
        """Average accuracy over tasks in points, ``[1 + B]``: measured, then resampled.

        Args:
            encoder: A merging method or reference encoder.
            protocol: Who classifies.
            k, draw, fit_on: Shots and how they are drawn, as of ``Study.correct``.
        """
        how = {"k": k, "draw": draw, "fit_on": fit_on}

        def make() -> Tensor:
            correct = self.study.correct
            return self.average({t: correct(encoder, t, protocol, **how) for t in self.study.tasks})

        return 100 * self.cached(("accuracy", encoder, protocol, *how.values()), make)

    def aligned(self, encoder: str, rung: str, *, fit_on: str = "test") -> Tensor:
        """Average accuracy in points after a rung of the ladder, over its starts, ``[1 + B]``."""

        def make() -> Tensor:
            cells = aligned(self.study, [encoder], rung, fit_on=fit_on)
            tasks = self.study.tasks.items()
            return self.average(
                {t: cells[encoder, t]["predicted"] == task.test.labels for t, task in tasks}
            )

        return 100 * self.cached(("aligned", encoder, rung, fit_on), make)

    def gain(
        self, encoder: str, protocol: str, k: float, *, over: str = "current", **how: str
    ) -> Tensor:
        """By how many points ``protocol`` at k shots beats another one, ``[1 + B]``."""
        below = self.accuracy(encoder, over, None if over == "current" else k)
        return self.accuracy(encoder, protocol, k, **how) - below

    def gap(self, encoder: str) -> Tensor:
        """The gap to the fine-tuned models under Current Eval, in points, ``[1 + B]``."""
        return self.accuracy(FINE_TUNED, "current") - self.accuracy(encoder, "current")

    def test_outputs(self, encoder: str) -> dict[str, Tensor]:
        """An encoder's test features ``[N, d]`` per task."""
        return {name: self.study.features(encoder, name) for name in self.study.tasks}

    def cached(self, key: Any, make: Callable[[], Tensor]) -> Tensor:
        """``make()``, computed once per key."""
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]


PAPER_METHODS = ("weight_averaging", "task_arithmetic", "ties")
NON_LOCAL_METHODS = ("task_arithmetic", "ties", "tall_masks")
JUDGED_RUNGS = ("affine", "linear", "invertible", "euclidean", "orthogonal")
K = 5  # the shots that claims.yaml writes as (5)
SHARE = 2.5  # percent of the test set
Parts = dict[str, Tensor]
METRICS: dict[str, Callable[[Any], Parts]] = {}
NEEDS: dict[str, Callable[[Any], Parts]] = {}


def metric(
    *claims: str, each: Sequence[str] = (), of: dict[str, Callable[[Any], Parts]] = METRICS
) -> Callable[[Callable], Callable]:
    """Register a function as the metric of ``claims``.

    Args:
        claims: Their ids in ``claims.yaml``.
        each: Methods to judge, each a part of the claim; without them the metric returns the parts
            itself.
        of: The registry: ``METRICS``, or ``NEEDS`` for a claim's preconditions.
    """

    def register(function: Callable) -> Callable:
        def parts(b: Any) -> Parts:
            return {_short(m): function(b, m) for m in each} if each else function(b)

        of.update(dict.fromkeys(claims, parts))
        return function

    return register


def _short(method: str) -> str:
    return get_method(method).short


GAINS: dict[str, dict[str, Any]] = {
    "P3.2-knn": {"protocol": "knn", "k": K},
    "P5-one-shot": {"protocol": "ft_classifier", "k": 1},
    "P5-over-knn": {"protocol": "ft_classifier", "k": K, "over": "knn"},
    "C5-uniform": {"protocol": "ft_classifier", "k": K, "draw": "uniform"},
    "S0-orthogonal-classifier": {"protocol": "orthogonal_classifier", "k": K},
    "PA.2-share": {"protocol": "ft_classifier", "k": SHARE, "draw": "share", "fit_on": "test"},
}
"""Claim -> the protocol whose accuracy minus that of Current Eval, or of ``over``, it is about."""
for claim, gain in GAINS.items():
    metric(claim, each=PAPER_METHODS)(lambda b, m, gain=gain: b.gain(m, **gain))


@metric("P6.3-t5", each=PAPER_METHODS)
def gain_over_both(b: Bootstrap, m: str) -> Tensor:
    """min(FT(5) - Current, FT(5) - KNN(5))."""
    return torch.minimum(b.gain(m, "ft_classifier", K), b.gain(m, "ft_classifier", K, over="knn"))


@metric("PA.2-share", each=PAPER_METHODS, of=NEEDS)
def inputs_per_class(b: Bootstrap, m: str) -> Tensor:
    """Inputs per class at that share, for the task with the fewest."""
    tasks, drawn = b.study.tasks.items(), b.study.share_counts
    return torch.tensor([min(drawn(t).get(SHARE, 0) / task.n_classes for t, task in tasks)])


@metric("P5-gap-closed", each=PAPER_METHODS)
def gap_closed(b: Bootstrap, m: str) -> Tensor:
    """(FT(5) - Current) / (fine-tuned - Current)."""
    return b.gain(m, "ft_classifier", K) / b.gap(m)


@metric("P5-gap-closed", each=PAPER_METHODS, of=NEEDS)
def gap(b: Bootstrap, m: str) -> Tensor:
    """fine-tuned - Current."""
    return b.gap(m)


@metric("P3.1-bias", each=PAPER_METHODS)
def bias(b: Bootstrap, m: str) -> Tensor:
    """Share of points whose nearest other-input neighbour comes from the same encoder."""
    experts = b.test_outputs(FINE_TUNED)
    return b.average({t: source_purity(experts[t], z)[None] for t, z in b.test_outputs(m).items()})


def _label_purity(b: Bootstrap, encoder: str) -> Tensor:
    def make() -> Tensor:
        outputs, task = b.test_outputs(encoder), b.study.task
        return b.average(
            {t: label_purity(z, task(t).test.labels)[None] for t, z in outputs.items()}
        )

    return b.cached(("label purity", encoder), make)


@metric("P3.1-clusters", "PA.2-clusters", each=PAPER_METHODS)
def purity_kept(b: Bootstrap, m: str) -> Tensor:
    """10-NN label purity of f_m over that of f_t: a ratio of averages, as every ratio here."""
    return _label_purity(b, m) / _label_purity(b, FINE_TUNED)


def _ladder_loss(b: Bootstrap, fit_on: str) -> Parts:
    """fine-tuned - aligned, fitted on test or on training inputs, per method and rung."""
    top, cells = b.accuracy(FINE_TUNED, "current"), product(PAPER_METHODS, JUDGED_RUNGS)
    return {f"{_short(m)}, {rung}": top - b.aligned(m, rung, fit_on=fit_on) for m, rung in cells}


metric("P4.1-ladder")(lambda b: _ladder_loss(b, "test"))
metric("C4.1-held-out")(lambda b: _ladder_loss(b, "train"))


@metric("C4.1-base")
def base_rescued(b: Bootstrap) -> Parts:
    """(aligned(f_b) - Current(f_b)) / (fine-tuned - Current(f_b))."""
    return {"f_b": (b.aligned(BASE, "orthogonal") - b.accuracy(BASE, "current")) / b.gap(BASE)}


@metric("P4.2-gap")
def methods_apart(b: Bootstrap) -> Parts:
    """abs(aligned(WA) - aligned(TA))."""
    wa, ta = (b.aligned(m, "orthogonal") for m in PAPER_METHODS[:2])
    return {"WA, TA": (wa - ta).abs()}


@metric("P4.2-gap", of=NEEDS)
def methods_apart_before(b: Bootstrap) -> Parts:
    """abs(Current(WA) - Current(TA))."""
    wa, ta = (b.accuracy(m, "current") for m in PAPER_METHODS[:2])
    return {"WA, TA": (wa - ta).abs()}


@metric("P6.5-surgery")
def gain_over_surgery(b: Bootstrap) -> Parts:
    """FT(k) - Surgery(k), same samples."""
    cells = product(PAPER_METHODS, (1, 2, 5))
    return {
        f"{_short(m)}, k = {k}": b.gain(m, "ft_classifier", k, over="surgery") for m, k in cells
    }


@metric("P6.4-base")
def gain_over_base(b: Bootstrap) -> Parts:
    """protocol(f_m) - protocol(f_b)."""
    shots = {"current": None, "knn": K, "ft_classifier": K}
    return {
        f"{_short(m)}, {get_protocol(p).label}": b.accuracy(m, p, k) - b.accuracy(BASE, p, k)
        for m in PAPER_METHODS
        for p, k in shots.items()
    }


@metric("P6.4-no-gain")
def base_gain(b: Bootstrap) -> Parts:
    """FT(5)(f_b) - Current(f_b)."""
    return {"f_b": b.gain(BASE, "ft_classifier", K)}


# Claims about merges from several foundations; b is a ``nonlocality.Resampled``.


@metric("N-local", each=("task_arithmetic",))
def local_kept(b: Any, m: str) -> Tensor:
    """accuracy(merge) / accuracy(expert), local."""
    return b.normalised("local", m, "raw")


@metric("N-fails", each=NON_LOCAL_METHODS)
def non_local_kept(b: Any, m: str) -> Tensor:
    """The same, non-local."""
    return b.normalised("non-local", m, "raw")


@metric("N-permutation", each=NON_LOCAL_METHODS)
def closed_by_permutation(b: Any, m: str) -> Tensor:
    """(permuted - raw) / (expert - raw), non-local."""
    return b.gap_closed("non-local", m, "raw", "permuted")


@metric("N-collapse", each=NON_LOCAL_METHODS)
def variance_lost(b: Any, m: str) -> Tensor:
    """Variance of merged over expert, non-local minus local."""
    return b.variance("non-local", m) - b.variance("local", m)


@metric("N-tact", each=NON_LOCAL_METHODS)
def closed_by_tact(b: Any, m: str) -> Tensor:
    """(TACT - permuted) / (expert - permuted), non-local."""
    return b.gap_closed("non-local", m, "permuted", "tact")


@dataclass(frozen=True)
class Verdict:
    """One part (mostly: one method) of one claim.

    ``here`` and ``low .. high`` are the value and its 95 % interval, ``None`` if the profile's ks
    lack the claim's k; ``threshold`` is the claim's.
    """

    claim: str
    part: str
    here: float | None
    low: float | None
    high: float | None
    threshold: str
    verdict: str
    note: str = ""


def verdict_of(low: float, high: float, claim: Condition) -> str:
    """(Not) reproduced if the whole interval lies on one side of the threshold, else undecided."""
    sides = {claim.holds(low), claim.holds(high)}
    if len(sides) == 2 or not math.isfinite(low + high):
        return UNDECIDED
    return REPRODUCED if sides == {True} else NOT_REPRODUCED


def judge(
    study: Study, claims: Sequence[str], *, bootstrap: Bootstrap | None = None
) -> list[Verdict]:
    """Verdicts on these claims, a row per part.

    Args:
        study: Whose scores are judged.
        claims: Ids in the claims file.
        bootstrap: One of this study, to use its resampled numbers again; a new one by default.

    Raises:
        UnknownNameError: A claim is not in the file or has no metric.
    """
    by_id = load_claims()
    for claim in claims:
        if claim not in by_id or claim not in METRICS:
            raise UnknownNameError("claim", claim, by_id.keys() & METRICS.keys())
    bootstrap = bootstrap or Bootstrap(study)
    verdicts = [v for claim in claims for v in _judge_claim(by_id[claim], bootstrap)]
    if study.profile.judged:
        return verdicts
    return [replace(v, verdict=NOT_JUDGED) for v in verdicts]


def _judge_claim(claim: Claim, bootstrap: Bootstrap) -> list[Verdict]:
    try:
        needs = NEEDS[claim.id](bootstrap) if claim.precondition else {}
        measured = METRICS[claim.id](bootstrap)
    except MissingShotsError as error:
        # The claim names its k; other ks leave it open rather than failing the notebook.
        unknown = (None, None, None, claim.threshold, UNDECIDED, str(error))
        return [Verdict(claim.id, "all", *unknown)]
    verdicts = []
    for part, values in measured.items():
        low, high = interval(values.float())
        verdict, note = verdict_of(low, high, claim), ""
        if part in needs and not claim.precondition.holds(need := float(needs[part][0])):
            verdict, note = UNDECIDED, f"precondition fails: {claim.needs} (here {need:.1f})"
        value = float(values[0])
        verdicts.append(Verdict(claim.id, part, value, low, high, claim.threshold, verdict, note))
    return verdicts


def judge_each(studies: Mapping[str, Study], claims: Sequence[str]) -> list[Verdict]:
    """``judge`` for several studies, such as both sizes of an encoder; parts are named like "(a)
    WA"."""
    return [
        replace(v, part=f"{name} {v.part}")
        for name, study in studies.items()
        for v in judge(study, claims)
    ]


def overall_of_parts(verdicts: Iterable[str]) -> str:
    """A claim's verdict from those of its parts: it holds if all hold, and fails if any fails."""
    distinct = set(verdicts)
    return next(v for v in (NOT_JUDGED, NOT_REPRODUCED, UNDECIDED, REPRODUCED) if v in distinct)


def overall(verdicts: Sequence[Verdict]) -> dict[str, str]:
    """One verdict per claim."""
    return {
        claim: overall_of_parts(v.verdict for v in verdicts if v.claim == claim)
        for claim in dict.fromkeys(v.claim for v in verdicts)
    }
