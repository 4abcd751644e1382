"""Judge the claims of ``claims.yaml``: thresholds fixed beforehand, paired bootstrap intervals, three verdicts.

A claim's metric is one function ``Bootstrap -> {part: values}`` and one entry in ``METRICS``; ``values [1 + B]`` hold the
measured value first and B resampled ones after it.
"""

from __future__ import annotations

import hashlib
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from .clusters import label_purity, source_purity
from .documents import parse_yaml, read_text
from .errors import ConfigError, MissingShotsError, UnknownNameError, shortened
from .ladder import aligned
from .merging import get_method
from .protocols import get_protocol
from .study import BASE, FINE_TUNED, Study

CLAIMS_FILE = Path(__file__).parent / "claims.yaml"
REPRODUCED, NOT_REPRODUCED, UNDECIDED, NOT_JUDGED = (
    "reproduced",
    "not reproduced",
    "undecided",
    "not judged",
)
OPERATORS: dict[str, Callable] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


@cache
def load_claims(path: Path = CLAIMS_FILE) -> dict[str, dict[str, str]]:
    """Claims by id, as given in the file. Raises ``ConfigError`` for a file or claim that cannot be read."""
    return read_claims(read_text(path, path.name), path.name)


class Claim(BaseModel):
    """One entry of ``claims.yaml``; ``threshold`` and ``needs`` end in a comparison with a number."""

    model_config = ConfigDict(extra="forbid")
    id: str
    source: str
    says: str
    metric: str
    threshold: str
    needs: str | None = None


def read_claims(text: str, where: str = CLAIMS_FILE.name) -> dict[str, dict[str, str]]:
    """The same from a text."""
    raw = parse_yaml(text, where)
    if not isinstance(raw, dict) or not isinstance(raw.get("claims"), list):
        raise ConfigError(f"{where}: a mapping with a list 'claims' is needed.")
    found: dict[str, dict[str, str]] = {}
    for i, entry in enumerate(raw["claims"]):
        try:
            claim = Claim.model_validate(entry).model_dump(exclude_none=True)
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            who = shortened(
                entry.get("id", f"claim {i}") if isinstance(entry, dict) else f"claim {i}"
            )
            raise ConfigError(
                f"{where}, {who}: {shortened('.'.join(map(str, first['loc'])) or 'entry')}: {first['msg']}."
            ) from error
        if claim["id"] in found:
            raise ConfigError(f"{where}: two claims are called '{shortened(claim['id'])}'.")
        for key in ("threshold", "needs"):
            if key in claim:
                parse_condition(claim[key])
        found[claim["id"]] = claim
    return found


def claims_hash(path: Path = CLAIMS_FILE) -> str:
    """SHA-256 of the claims file, shown with every verdict."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def parse_condition(text: str) -> tuple[Callable, float]:
    """The comparison and the number at the end of a threshold such as ">= 0.90" or "... >= 3"; one between two sides in words,
    "... >= number of classes", compares their ratio with 1."""
    text = re.sub(r"(>=|<=|>|<)\s*number of classes\s*$", r"\1 1", text)
    found = re.search(r"(>=|<=|>|<)\s*(-?\d+(?:\.\d+)?)\s*$", text)
    if not found:
        raise ConfigError(
            f"claims.yaml: no comparison with a number at the end of '{shortened(text)}'."
        )
    return OPERATORS[found[1]], float(found[2])


class Bootstrap:
    """Averages over tasks of test accuracy, measured and resampled: test inputs within each task, and seeds.

    The same resampled inputs and seeds serve every encoder and protocol, so differences are paired.
    """

    def __init__(self, study: Study, *, seed: int = 0):
        self.study, self.n = study, study.profile.resamples
        generator = torch.Generator().manual_seed(seed)
        n_seeds = len(study.profile.protocols.seeds)
        self._cache: dict[Any, Tensor] = {
            ("seed weights", n_seeds): self._resampled_seeds(n_seeds, generator)
        }
        self._counts = {}
        for name, task in study.tasks.items():
            n = len(task.test)
            picked = torch.randint(n, (self.n, n), generator=generator)
            self._counts[name] = torch.zeros(self.n, n).scatter_add_(
                1, picked, torch.ones(self.n, n)
            )

    def average(self, per_task: dict[str, Tensor]) -> Tensor:
        """``{task: values [S, N]}``, S seeds or random starts or 1 -> their mean over inputs, seeds and tasks, ``[1 + B]``."""
        total = torch.zeros(1 + self.n, dtype=torch.float64)
        for name, values in per_task.items():
            values = values.double()
            total[0] += values.mean()
            means = (self._counts[name] @ values.T.float()).double() / values.shape[1]
            total[1:] += (means * self._seed_weights(len(values))).sum(1)
        return total / len(per_task)

    def _seed_weights(self, n: int) -> Tensor:
        """How often each of n seeds is drawn in each resample, ``[B, n]``, in rows that sum to 1."""
        return self.cached(
            ("seed weights", n), lambda: self._resampled_seeds(n, torch.Generator().manual_seed(n))
        )

    def _resampled_seeds(self, n: int, generator: torch.Generator) -> Tensor:
        picked = torch.randint(n, (self.n, n), generator=generator)
        return torch.zeros(self.n, n).scatter_add_(1, picked, torch.ones(self.n, n)) / n

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
        return self.cached(
            ("accuracy", encoder, protocol, k, draw, fit_on),
            lambda: (
                100
                * self.average(
                    {
                        t: self.study.correct(encoder, t, protocol, k=k, draw=draw, fit_on=fit_on)
                        for t in self.study.tasks
                    }
                )
            ),
        )

    def aligned(self, encoder: str, rung: str, *, fit_on: str = "test", fit: str = "l1") -> Tensor:
        """Average accuracy in points after an alignment of the ladder, over its random starts, ``[1 + B]``."""
        # The whole batch that the figure shows is fitted together, whichever cell is asked for first.
        encoders = [*PAPER_METHODS, BASE]
        return self.cached(
            ("aligned", encoder, rung, fit_on, fit),
            lambda: (
                100
                * self.average(
                    {
                        task: cell["predicted"] == self.study.task(task).test.labels
                        for (e, task), cell in aligned(
                            self.study, encoders, rung, fit_on=fit_on, fit=fit
                        ).items()
                        if e == encoder
                    }
                )
            ),
        )

    def test_outputs(self, encoder: str) -> dict[str, Tensor]:
        """An encoder's test features ``[N, d]`` per task."""
        return {name: self.study.features(encoder, name) for name in self.study.tasks}

    def cached(self, key: Any, make: Callable[[], Tensor]) -> Tensor:
        """``make()``, computed once per key."""
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]


PAPER_METHODS = ("weight_averaging", "task_arithmetic", "ties")
Parts = dict[str, Tensor]
METRICS: dict[str, Callable[[Bootstrap], Parts]] = {}
NEEDS: dict[str, Callable[[Bootstrap], Parts]] = {}


def each_method(function: Callable[[Bootstrap, str], Tensor]) -> Callable[[Bootstrap], Parts]:
    """A metric given per method, as one over WA, TA and Ties."""
    return lambda b: {get_method(m).short: function(b, m) for m in PAPER_METHODS}


K = 5  # the shots that claims.yaml names where it says (5)

METRICS["P3.2-knn"] = each_method(lambda b, m: b.accuracy(m, "knn", K) - b.accuracy(m, "current"))
METRICS["P5-one-shot"] = each_method(
    lambda b, m: b.accuracy(m, "ft_classifier", 1) - b.accuracy(m, "current")
)
METRICS["P5-over-knn"] = each_method(
    lambda b, m: b.accuracy(m, "ft_classifier", K) - b.accuracy(m, "knn", K)
)
METRICS["P6.3-t5"] = each_method(
    lambda b, m: (
        b.accuracy(m, "ft_classifier", K)
        - torch.maximum(b.accuracy(m, "current"), b.accuracy(m, "knn", K))
    )
)
METRICS["C5-uniform"] = each_method(
    lambda b, m: b.accuracy(m, "ft_classifier", K, draw="uniform") - b.accuracy(m, "current")
)


def _gap(b: Bootstrap, m: str) -> Tensor:
    return b.accuracy(FINE_TUNED, "current") - b.accuracy(m, "current")


METRICS["P5-gap-closed"] = each_method(
    lambda b, m: (b.accuracy(m, "ft_classifier", K) - b.accuracy(m, "current")) / _gap(b, m)
)
NEEDS["P5-gap-closed"] = each_method(_gap)


def _label_purity(b: Bootstrap, encoder: str) -> Tensor:
    return b.cached(
        ("label purity", encoder),
        lambda: b.average(
            {
                t: label_purity(z, b.study.task(t).test.labels)[None]
                for t, z in b.test_outputs(encoder).items()
            }
        ),
    )


def _source_purity(b: Bootstrap, method: str) -> Tensor:
    experts = b.test_outputs(FINE_TUNED)
    return b.average(
        {t: source_purity(experts[t], z)[None] for t, z in b.test_outputs(method).items()}
    )


METRICS["P3.1-bias"] = each_method(_source_purity)
# A ratio of averages over tasks, like every other ratio here.
METRICS["P3.1-clusters"] = each_method(
    lambda b, m: _label_purity(b, m) / _label_purity(b, FINE_TUNED)
)
METRICS["PA.2-clusters"] = METRICS["P3.1-clusters"]  # of a study whose tasks are images
SHARE = 2.5  # percent of the test set
METRICS["PA.2-share"] = each_method(
    lambda b, m: (
        b.accuracy(m, "ft_classifier", SHARE, draw="share", fit_on="test")
        - b.accuracy(m, "current")
    )
)
NEEDS["PA.2-share"] = each_method(
    lambda b, m: torch.tensor(
        [
            min(
                b.study.share_counts(t.name).get(SHARE, 0) / t.n_classes
                for t in b.study.tasks.values()
            )
        ]
    )
)
JUDGED_RUNGS = ("affine", "linear", "invertible", "euclidean", "orthogonal")


def _ladder_loss(fit_on: str) -> Callable[[Bootstrap], Parts]:
    return lambda b: {
        f"{get_method(m).short}, {rung}": b.accuracy(FINE_TUNED, "current")
        - b.aligned(m, rung, fit_on=fit_on)
        for m in PAPER_METHODS
        for rung in JUDGED_RUNGS
    }


METRICS["P4.1-ladder"] = _ladder_loss("test")
METRICS["C4.1-held-out"] = _ladder_loss("train")
METRICS["C4.1-base"] = lambda b: {
    "f_b": (b.aligned(BASE, "orthogonal") - b.accuracy(BASE, "current")) / _gap(b, BASE)
}
METRICS["P4.2-gap"] = lambda b: {
    "WA, TA": (
        b.aligned("weight_averaging", "orthogonal") - b.aligned("task_arithmetic", "orthogonal")
    ).abs()
}
NEEDS["P4.2-gap"] = lambda b: {
    "WA, TA": (
        b.accuracy("weight_averaging", "current") - b.accuracy("task_arithmetic", "current")
    ).abs()
}
METRICS["S0-orthogonal-classifier"] = each_method(
    lambda b, m: b.accuracy(m, "orthogonal_classifier", K) - b.accuracy(m, "current")
)
METRICS["P6.5-surgery"] = lambda b: {
    f"{get_method(m).short}, k = {k}": b.accuracy(m, "ft_classifier", k)
    - b.accuracy(m, "surgery", k)
    for m in PAPER_METHODS
    for k in (1, 2, 5)
}
METRICS["P6.4-base"] = lambda b: {
    f"{get_method(m).short}, {get_protocol(p).label}": b.accuracy(m, p, k) - b.accuracy(BASE, p, k)
    for m in PAPER_METHODS
    for p, k in (("current", None), ("knn", K), ("ft_classifier", K))
}
METRICS["P6.4-no-gain"] = lambda b: {
    "f_b": b.accuracy(BASE, "ft_classifier", K) - b.accuracy(BASE, "current")
}

# Claims on merges of several foundations, of a ``nonlocality.Resampled``, which knows settings and repairs.
NON_LOCAL_METHODS = ("task_arithmetic", "ties", "tall_masks")


def each_non_local(function: Callable[[Any, str], Tensor]) -> Callable[[Any], Parts]:
    """A metric given per method, as one over TA, Ties and TALL-masks."""
    return lambda b: {get_method(m).short: function(b, m) for m in NON_LOCAL_METHODS}


METRICS["N-local"] = lambda b: {
    get_method("task_arithmetic").short: b.normalised("local", "task_arithmetic", "raw")
}
METRICS["N-fails"] = each_non_local(lambda b, m: b.normalised("non-local", m, "raw"))
METRICS["N-permutation"] = each_non_local(
    lambda b, m: b.gap_closed("non-local", m, "raw", "permuted")
)
METRICS["N-collapse"] = each_non_local(
    lambda b, m: b.variance("non-local", m) - b.variance("local", m)
)
METRICS["N-tact"] = each_non_local(lambda b, m: b.gap_closed("non-local", m, "permuted", "tact"))


@dataclass(frozen=True)
class Verdict:
    """One part (mostly: one method) of one claim. ``here`` and ``low .. high``: the value and its 95 % interval,
    ``None`` where the profile's ks lack the claim's k."""

    claim: str
    part: str
    here: float | None
    low: float | None
    high: float | None
    threshold: str
    verdict: str
    note: str = ""


def interval(values: Tensor) -> tuple[float, float]:
    """The 95 % interval of resampled values: of ``values [1 + B]`` without the first, which was measured."""
    low, high = (float(torch.quantile(values[1:], q)) for q in (0.025, 0.975))
    return low, high


def judge_values(values: Tensor, threshold: str) -> tuple[float, float, float, str]:
    """Value, 95 % interval and verdict of ``values [1 + B]``: the whole interval on the claim's side is ``reproduced``,
    the whole interval on the other side ``not reproduced``, anything else (NaN too) ``undecided``."""
    compare, limit = parse_condition(threshold)
    low, high = interval(values.float())
    sides = {bool(compare(low, limit)), bool(compare(high, limit))}
    verdict = (
        UNDECIDED
        if len(sides) == 2 or not math.isfinite(low + high)
        else REPRODUCED
        if sides == {True}
        else NOT_REPRODUCED
    )
    return float(values[0]), low, high, verdict


def judge(
    study: Study, claims: Sequence[str], *, bootstrap: Bootstrap | None = None
) -> list[Verdict]:
    """Verdicts on the given claims, a row per part. Raises ``UnknownNameError`` for a claim without a metric."""
    known = load_claims()
    for claim in claims:
        if claim not in known or claim not in METRICS:
            raise UnknownNameError("claim", claim, known.keys() & METRICS.keys())
    bootstrap = bootstrap or Bootstrap(study)
    verdicts = []
    for claim in claims:
        given = known[claim]
        try:
            needs, measured = (
                NEEDS[claim](bootstrap) if "needs" in given else {},
                METRICS[claim](bootstrap),
            )
        except MissingShotsError as error:
            # The claim names its k; another choice of ks leaves it open rather than failing the notebook.
            verdict = UNDECIDED if study.profile.judged else NOT_JUDGED
            verdicts.append(
                Verdict(claim, "all", None, None, None, given["threshold"], verdict, str(error))
            )
            continue
        for part, values in measured.items():
            here, low, high, verdict = judge_values(values, given["threshold"])
            note = ""
            if part in needs:
                compare, limit = parse_condition(given["needs"])
                if not compare(float(needs[part][0]), limit):
                    verdict, note = (
                        UNDECIDED,
                        f"precondition fails: {given['needs']} (here {float(needs[part][0]):.1f})",
                    )
            if not study.profile.judged:
                verdict = NOT_JUDGED
            verdicts.append(
                Verdict(claim, part, here, low, high, given["threshold"], verdict, note)
            )
    return verdicts


def judge_each(studies: Mapping[str, Study], claims: Sequence[str]) -> list[Verdict]:
    """``judge`` for claims about several studies, such as both sizes of an encoder: each part is named by its study too, "(a) WA"."""
    return [
        replace(v, part=f"{name} {v.part}")
        for name, study in studies.items()
        for v in judge(study, claims)
    ]


def overall_of_parts(verdicts: Iterable[str]) -> str:
    """A claim's verdict from its parts': it holds if it holds for every part, and fails if it fails for any."""
    found = set(verdicts)
    return next(v for v in (NOT_JUDGED, NOT_REPRODUCED, UNDECIDED, REPRODUCED) if v in found)


def overall(verdicts: Sequence[Verdict]) -> dict[str, str]:
    """One verdict per claim."""
    return {
        claim: overall_of_parts(v.verdict for v in verdicts if v.claim == claim)
        for claim in dict.fromkeys(v.claim for v in verdicts)
    }


def verdict_table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """Verdicts as a frame: claim, part, here, 95 % interval, threshold, verdict; failing claims first."""
    order = {NOT_REPRODUCED: 0, UNDECIDED: 1, NOT_JUDGED: 2, REPRODUCED: 3}
    verdicts = sorted(
        verdicts, key=lambda v: order[overall([w for w in verdicts if w.claim == v.claim])[v.claim]]
    )
    return pd.DataFrame(
        [
            {
                "claim": v.claim,
                "says": load_claims()[v.claim]["says"],
                "for": v.part,
                "here": "" if v.here is None else f"{v.here:.2f}",
                "95 % interval": "" if v.here is None else f"{v.low:.2f} .. {v.high:.2f}",
                "threshold": v.threshold,
                "verdict": v.verdict + (f" ({v.note})" if v.note else ""),
            }
            for v in verdicts
        ]
    )
