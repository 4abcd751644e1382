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
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from ..core.bootstrap import counts, interval
from ..core.documents import parse_yaml, read_text
from ..core.errors import ConfigError, MissingShotsError, UnknownNameError, shortened
from ..core.names import BASE, FINE_TUNED
from ..merging import get_method
from ..protocols import get_protocol
from ..study import Study
from ..study.aligned import aligned
from ..study.clustering import label_purity, source_purity

CLAIMS_FILE = Path(__file__).parent / "claims.yaml"
REPRODUCED, NOT_REPRODUCED, UNDECIDED, NOT_JUDGED = (
    "reproduced",
    "not reproduced",
    "undecided",
    "not judged",
)
OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


class Condition(BaseModel):
    """A comparison with a number, such as ``>= 0.9``."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    op: Literal[">=", "<=", ">", "<"]
    value: float = Field(allow_inf_nan=False)

    def holds(self, number: float) -> bool:
        """Whether ``number`` lies on the right side."""
        return OPERATORS[self.op](number, self.value)


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
def load_claims(path: Path = CLAIMS_FILE) -> dict[str, Claim]:
    """Claims by id. Raises ``ConfigError`` for a file or claim that cannot be read."""
    return read_claims(read_text(path, path.name), path.name)


def read_claims(text: str, where: str = CLAIMS_FILE.name) -> dict[str, Claim]:
    """Claims by id, from the text of such a file."""
    raw = parse_yaml(text, where)
    if not isinstance(raw, dict) or not isinstance(raw.get("claims"), list):
        raise ConfigError(f"{where}: a mapping with a list 'claims' is needed.")
    claims: dict[str, Claim] = {}
    for i, entry in enumerate(raw["claims"]):
        try:
            claim = Claim.model_validate(entry)
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            name = entry.get("id", f"claim {i}") if isinstance(entry, dict) else f"claim {i}"
            place = shortened(".".join(map(str, first["loc"])) or "entry")
            raise ConfigError(f"{where}, {shortened(name)}: {place}: {first['msg']}.") from error
        if claim.id in claims:
            raise ConfigError(f"{where}: two claims are called '{shortened(claim.id)}'.")
        claims[claim.id] = claim
    return claims


def claims_hash(path: Path = CLAIMS_FILE) -> str:
    """SHA-256 of the claims file, shown with every verdict."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Bootstrap:
    """Averages over tasks of test accuracy, measured and resampled.

    Test inputs are resampled within each task, and so are seeds.

    The same resampled inputs and seeds serve every encoder and protocol, so differences are paired.
    """

    def __init__(self, study: Study, *, seed: int = 0):
        self.study, self.n = study, study.profile.resamples
        generator = torch.Generator().manual_seed(seed)
        n_seeds = len(study.profile.protocols.seeds)
        self._cache: dict[Any, Tensor] = {
            ("seed weights", n_seeds): counts(self.n, n_seeds, generator) / n_seeds
        }
        self._counts = {}
        for name, task in study.tasks.items():
            self._counts[name] = counts(self.n, len(task.test), generator)

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
        """How often each of n seeds is drawn in each resample: ``[B, n]``, rows sum to 1."""
        return self.cached(
            ("seed weights", n),
            lambda: counts(self.n, n, torch.Generator().manual_seed(n)) / n,
        )

    def accuracy(
        self,
        encoder: str,
        protocol: str,
        k: float | None = None,
        *,
        draw: str = "stratified",
        fit_on: str = "train",
    ) -> Tensor:
        """Average accuracy over tasks in points, ``[1 + B]``."""
        how = {"k": k, "draw": draw, "fit_on": fit_on}

        def make() -> Tensor:
            tasks = self.study.tasks
            return 100 * self.average(
                {t: self.study.correct(encoder, t, protocol, **how) for t in tasks}
            )

        return self.cached(("accuracy", encoder, protocol, *how.values()), make)

    def aligned(self, encoder: str, rung: str, *, fit_on: str = "test") -> Tensor:
        """Average accuracy in points after a rung of the ladder, over its starts, ``[1 + B]``."""
        return self.cached(
            ("aligned", encoder, rung, fit_on), lambda: self._aligned(encoder, rung, fit_on)
        )

    def _aligned(self, encoder: str, rung: str, fit_on: str) -> Tensor:
        cells = aligned(self.study, [encoder], rung, fit_on=fit_on)
        correct = {
            t: cell["predicted"] == self.study.task(t).test.labels for (_, t), cell in cells.items()
        }
        return 100 * self.average(correct)

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


@metric("P3.2-knn", each=PAPER_METHODS)
def knn_gain(b: Bootstrap, m: str) -> Tensor:
    """KNN(5) - Current."""
    return b.gain(m, "knn", K)


@metric("P5-one-shot", each=PAPER_METHODS)
def one_shot_gain(b: Bootstrap, m: str) -> Tensor:
    """FT(1) - Current."""
    return b.gain(m, "ft_classifier", 1)


@metric("P5-over-knn", each=PAPER_METHODS)
def gain_over_knn(b: Bootstrap, m: str) -> Tensor:
    """FT(5) - KNN(5)."""
    return b.gain(m, "ft_classifier", K, over="knn")


@metric("P6.3-t5", each=PAPER_METHODS)
def gain_over_both(b: Bootstrap, m: str) -> Tensor:
    """min(FT(5) - Current, FT(5) - KNN(5))."""
    return torch.minimum(b.gain(m, "ft_classifier", K), b.gain(m, "ft_classifier", K, over="knn"))


@metric("C5-uniform", each=PAPER_METHODS)
def uniform_gain(b: Bootstrap, m: str) -> Tensor:
    """FT(5) with uniform draws - Current."""
    return b.gain(m, "ft_classifier", K, draw="uniform")


@metric("S0-orthogonal-classifier", each=PAPER_METHODS)
def orthogonal_gain(b: Bootstrap, m: str) -> Tensor:
    """Orthogonal classifier(5) - Current."""
    return b.gain(m, "orthogonal_classifier", K)


@metric("PA.2-share", each=PAPER_METHODS)
def share_gain(b: Bootstrap, m: str) -> Tensor:
    """FT(2.5 % of the test set) - Current."""
    return b.gain(m, "ft_classifier", SHARE, draw="share", fit_on="test")


@metric("PA.2-share", each=PAPER_METHODS, of=NEEDS)
def inputs_per_class(b: Bootstrap, m: str) -> Tensor:
    """Inputs per class at that share, for the task with the fewest."""
    ratios = [
        b.study.share_counts(t.name).get(SHARE, 0) / t.n_classes for t in b.study.tasks.values()
    ]
    return torch.tensor([min(ratios)])


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
        labels = {t: task.test.labels for t, task in b.study.tasks.items()}
        outputs = b.test_outputs(encoder)
        return b.average({t: label_purity(z, labels[t])[None] for t, z in outputs.items()})

    return b.cached(("label purity", encoder), make)


@metric("P3.1-clusters", "PA.2-clusters", each=PAPER_METHODS)
def purity_kept(b: Bootstrap, m: str) -> Tensor:
    """10-NN label purity of f_m over that of f_t: a ratio of averages, as every ratio here."""
    return _label_purity(b, m) / _label_purity(b, FINE_TUNED)


def _ladder_loss(b: Bootstrap, fit_on: str) -> Parts:
    """fine-tuned - aligned, per method and rung."""
    fine_tuned = b.accuracy(FINE_TUNED, "current")
    return {
        f"{_short(m)}, {rung}": fine_tuned - b.aligned(m, rung, fit_on=fit_on)
        for m in PAPER_METHODS
        for rung in JUDGED_RUNGS
    }


@metric("P4.1-ladder")
def ladder_loss(b: Bootstrap) -> Parts:
    """fine-tuned - aligned, fitted on the test inputs."""
    return _ladder_loss(b, "test")


@metric("C4.1-held-out")
def held_out_ladder_loss(b: Bootstrap) -> Parts:
    """fine-tuned - aligned, fitted on training inputs."""
    return _ladder_loss(b, "train")


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
    return {
        f"{_short(m)}, k = {k}": b.gain(m, "ft_classifier", k, over="surgery")
        for m in PAPER_METHODS
        for k in (1, 2, 5)
    }


@metric("P6.4-base")
def gain_over_base(b: Bootstrap) -> Parts:
    """protocol(f_m) - protocol(f_b)."""
    return {
        f"{_short(m)}, {get_protocol(p).label}": b.accuracy(m, p, k) - b.accuracy(BASE, p, k)
        for m in PAPER_METHODS
        for p, k in (("current", None), ("knn", K), ("ft_classifier", K))
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

    Raises:
        UnknownNameError: A claim is not in the file or has no metric.
    """
    known = load_claims()
    for claim in claims:
        if claim not in known or claim not in METRICS:
            raise UnknownNameError("claim", claim, known.keys() & METRICS.keys())
    bootstrap = bootstrap or Bootstrap(study)
    verdicts = [v for claim in claims for v in _judge_claim(known[claim], bootstrap)]
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
        if part in needs and not claim.precondition.holds(found := float(needs[part][0])):
            verdict, note = UNDECIDED, f"precondition fails: {claim.needs} (here {found:.1f})"
        here = float(values[0])
        verdicts.append(Verdict(claim.id, part, here, low, high, claim.threshold, verdict, note))
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
    found = set(verdicts)
    return next(v for v in (NOT_JUDGED, NOT_REPRODUCED, UNDECIDED, REPRODUCED) if v in found)


def overall(verdicts: Sequence[Verdict]) -> dict[str, str]:
    """One verdict per claim."""
    return {
        claim: overall_of_parts(v.verdict for v in verdicts if v.claim == claim)
        for claim in dict.fromkeys(v.claim for v in verdicts)
    }


def deciding(parts: Sequence[Verdict]) -> Verdict:
    """The part that decides a claim: of those with its verdict, the one nearest to failing."""
    verdict = overall_of_parts(p.verdict for p in parts)
    same = [p for p in parts if p.verdict == verdict]
    measured = [p for p in same if p.here is not None]
    if not measured:
        return same[0]
    worst = min if load_claims()[same[0].claim].op.startswith(">") else max
    return worst(measured, key=lambda p: p.here)
