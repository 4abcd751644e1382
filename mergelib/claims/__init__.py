"""Judge the claims of ``claims.yaml``: fixed thresholds, paired bootstrap, three verdicts.

``METRICS`` says how each claim is measured: values ``[1 + B]`` for each of its parts, the measured
value first, B resampled ones after it.
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
from pydantic import TypeAdapter
from torch import Tensor

from ..core.bootstrap import counts, interval
from ..core.documents import own_yaml
from ..core.errors import MissingShotsError, check_name
from ..core.names import BASE, FINE_TUNED
from ..merging import get_method
from ..protocols import get_protocol
from ..study import Study
from ..study.aligned import aligned
from ..study.clustering import label_purity, source_purity

CLAIMS_FILE = Path(__file__).with_name("claims.yaml")
REPRODUCED, NOT_REPRODUCED = "reproduced", "not reproduced"
UNDECIDED, NOT_JUDGED = "undecided", "not judged"
FAILING_FIRST = (NOT_REPRODUCED, UNDECIDED, REPRODUCED, NOT_JUDGED)
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
    entries = own_yaml(__file__, CLAIMS_FILE.name)["claims"]
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

    def cached(self, key: Any, make: Callable[[], Tensor]) -> Tensor:
        """``make()``, computed once per key."""
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]

    def over_tasks(self, key: Any, values: Callable[[str], Tensor]) -> Tensor:
        """``average`` of ``values(task)``, computed once per key."""
        return self.cached(key, lambda: self.average({t: values(t) for t in self.study.tasks}))

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
        return 100 * self.over_tasks(
            ("accuracy", encoder, protocol, *how.values()),
            lambda task: self.study.correct(encoder, task, protocol, **how),
        )

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

    def label_purity(self, encoder: str) -> Tensor:
        """10-NN label purity of an encoder's test outputs, ``[1 + B]``."""

        def purity(task: str) -> Tensor:
            outputs = self.study.features(encoder, task)
            return label_purity(outputs, self.study.task(task).test.labels)[None]

        return self.over_tasks(("label purity", encoder), purity)

    def source_purity(self, encoder: str) -> Tensor:
        """Share of the test outputs, an encoder's and the experts', whose nearest other-input
        neighbour comes from the same of both, ``[1 + B]``."""

        def purity(task: str) -> Tensor:
            outputs = (self.study.features(e, task) for e in (FINE_TUNED, encoder))
            return source_purity(*outputs)[None]

        return self.over_tasks(("source purity", encoder), purity)


# ---- what each claim measures, in the words of claims.yaml ---------------------------------------

WA, TA, TIES = "weight_averaging", "task_arithmetic", "ties"
NON_LOCAL_METHODS = (TA, TIES, "tall_masks")
RUNGS = ("affine", "linear", "invertible", "euclidean", "orthogonal")
FT = "ft_classifier"
K = 5  # the shots that claims.yaml writes as (5)
SHARE = 2.5  # percent of the test set
SHOTS = {"current": None, "knn": K, FT: K}
Metric = Callable[[Any], dict[str, Tensor]]
"""A ``Bootstrap``, or of claims N-* a ``nonlocality.Resampled`` -> values of the claim's parts."""


def each(
    value: Callable[..., Tensor],
    methods: Sequence[str] = (WA, TA, TIES),
    by: Mapping[str, Any] | None = None,
) -> Metric:
    """A metric with a part per method, or per method and entry of ``by``.

    Args:
        value: Gives the values of a bootstrap, a method and, if there are any, an entry.
        methods: Those judged.
        by: Name of a part -> entry.
    """

    def parts(b: Any) -> dict[str, Tensor]:
        short = {m: get_method(m).short for m in methods}
        if by is None:
            return {name: value(b, m) for m, name in short.items()}
        cells = product(methods, by.items())
        return {f"{short[m]}, {name}": value(b, m, entry) for m, (name, entry) in cells}

    return parts


def each_non_local(value: Callable[..., Tensor]) -> Metric:
    """A metric with a part per method whose non-local merges are judged."""
    return each(value, NON_LOCAL_METHODS)


def purity_kept(b: Bootstrap, m: str) -> Tensor:
    """A ratio of averages, as every ratio here."""
    return b.label_purity(m) / b.label_purity(FINE_TUNED)


def ladder_loss(fit_on: str) -> Metric:
    """What each rung loses against the fine-tuned models."""

    def loss(b: Bootstrap, m: str, rung: str) -> Tensor:
        return b.accuracy(FINE_TUNED, "current") - b.aligned(m, rung, fit_on=fit_on)

    return each(loss, by=dict(zip(RUNGS, RUNGS, strict=True)))


def apart(wa: Tensor, ta: Tensor) -> dict[str, Tensor]:
    """How far WA and TA are apart."""
    return {"WA, TA": (wa - ta).abs()}


def over_base(b: Bootstrap, m: str, protocol: str) -> Tensor:
    """By how many points a merge beats f_b."""
    return b.accuracy(m, protocol, SHOTS[protocol]) - b.accuracy(BASE, protocol, SHOTS[protocol])


def inputs_per_class(b: Bootstrap, m: str) -> Tensor:
    """Inputs per class at the judged share, for the task with the fewest."""
    tasks, drawn = b.study.tasks.items(), b.study.share_counts
    return torch.tensor([min(drawn(t).get(SHARE, 0) / task.n_classes for t, task in tasks)])


METRICS: dict[str, Metric] = {
    "P3.1-bias": each(lambda b, m: b.source_purity(m)),
    "P3.1-clusters": each(purity_kept),
    "P3.2-knn": each(lambda b, m: b.gain(m, "knn", K)),
    "P4.1-ladder": ladder_loss("test"),
    "C4.1-held-out": ladder_loss("train"),
    "C4.1-base": lambda b: {
        BASE: (b.aligned(BASE, "orthogonal") - b.accuracy(BASE, "current")) / b.gap(BASE)
    },
    "P4.2-gap": lambda b: apart(b.aligned(WA, "orthogonal"), b.aligned(TA, "orthogonal")),
    "P5-one-shot": each(lambda b, m: b.gain(m, FT, 1)),
    "P5-over-knn": each(lambda b, m: b.gain(m, FT, K, over="knn")),
    "P5-gap-closed": each(lambda b, m: b.gain(m, FT, K) / b.gap(m)),
    "C5-uniform": each(lambda b, m: b.gain(m, FT, K, draw="uniform")),
    "S0-orthogonal-classifier": each(lambda b, m: b.gain(m, "orthogonal_classifier", K)),
    "P6.3-t5": each(lambda b, m: torch.minimum(b.gain(m, FT, K), b.gain(m, FT, K, over="knn"))),
    "P6.4-base": each(over_base, by={get_protocol(p).label: p for p in SHOTS}),
    "P6.4-no-gain": lambda b: {BASE: b.gain(BASE, FT, K)},
    "P6.5-surgery": each(
        lambda b, m, k: b.gain(m, FT, k, over="surgery"), by={f"k = {k}": k for k in (1, 2, 5)}
    ),
    "PA.2-clusters": each(purity_kept),
    "PA.2-share": each(lambda b, m: b.gain(m, FT, SHARE, draw="share", fit_on="test")),
    "N-local": each(lambda b, m: b.normalised("local", m, "raw"), [TA]),
    "N-fails": each_non_local(lambda b, m: b.normalised("non-local", m, "raw")),
    "N-permutation": each_non_local(lambda b, m: b.gap_closed("non-local", m, "raw", "permuted")),
    "N-collapse": each_non_local(lambda b, m: b.variance("non-local", m) - b.variance("local", m)),
    "N-tact": each_non_local(lambda b, m: b.gap_closed("non-local", m, "permuted", "tact")),
}
NEEDS: dict[str, Metric] = {
    "P4.2-gap": lambda b: apart(b.accuracy(WA, "current"), b.accuracy(TA, "current")),
    "P5-gap-closed": each(lambda b, m: b.gap(m)),
    "PA.2-share": each(inputs_per_class),
}
"""The same of a claim's precondition."""


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
        UnknownNameError: A claim is not in the file.
    """
    for claim in claims:
        check_name("claim", claim, METRICS)
    bootstrap, by_id = bootstrap or Bootstrap(study), load_claims()
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
        if needs and not claim.precondition.holds(need := float(needs[part][0])):
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
    """A claim's verdict from those of its parts: it holds if all hold, and fails if any fails; with
    a part that is not judged it is not judged."""
    return min(verdicts, key=(NOT_JUDGED, *FAILING_FIRST).index)


def overall(verdicts: Sequence[Verdict]) -> dict[str, str]:
    """One verdict per claim."""
    return {
        claim: overall_of_parts(v.verdict for v in verdicts if v.claim == claim)
        for claim in dict.fromkeys(v.claim for v in verdicts)
    }
