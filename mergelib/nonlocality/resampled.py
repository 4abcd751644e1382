"""Measured and resampled values for the claims about several foundations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..claims import Bootstrap, Verdict, judge
from ..core.bootstrap import counts
from ..core.names import FINE_TUNED
from .settings import LOCAL, PERMUTED, Nonlocality

COLLAPSE_RESAMPLES = 1000  # all channels of all sites are resampled with the inputs


class Resampled:
    """The quantities of a ``Nonlocality`` that claims use: measured and resampled, ``[1 + B]``."""

    def __init__(self, cells: Nonlocality):
        self.cells = cells
        self.bootstrap = Bootstrap(cells.study(LOCAL))

    def _accuracies(self, setting: str, method: str, repaired: str = PERMUTED) -> Tensor:
        """Per task ``[T, 1 + B]``, over test inputs that are the same for every cell."""
        correct, b = self.cells.correct, self.bootstrap
        return torch.stack(
            [
                b.cached(
                    (setting, method, repaired, t),
                    lambda t=t: b.average({t: correct(setting, method, repaired, t)}),
                )
                for t in self.cells.tasks
            ]
        )

    def accuracy(self, setting: str, method: str, repaired: str) -> Tensor:
        """Average over tasks, 0 to 1."""
        return self._accuracies(setting, method, repaired).mean(0)

    def normalised(self, setting: str, method: str, repaired: str) -> Tensor:
        """Mean over tasks of the merge's accuracy over the expert's."""
        return (
            self._accuracies(setting, method, repaired) / self._accuracies(setting, FINE_TUNED)
        ).mean(0)

    def gap_closed(self, setting: str, method: str, before: str, after: str) -> Tensor:
        """The share of the gap to the experts ``before`` that is closed ``after``."""
        expert = self.accuracy(setting, FINE_TUNED, PERMUTED)
        start = self.accuracy(setting, method, before)
        return (self.accuracy(setting, method, after) - start) / (expert - start)

    def variance(self, setting: str, method: str) -> Tensor:
        """Variance of the permuted merge over the expert's, mean over channels, sites and tasks.

        The unlabelled inputs that it is measured on are resampled, at most ``COLLAPSE_RESAMPLES``
        times.
        """
        n = min(self.bootstrap.n, COLLAPSE_RESAMPLES)

        def make() -> Tensor:
            generator = torch.Generator().manual_seed(0)
            total = torch.zeros(1 + n, dtype=torch.float64)
            for task in self.cells.tasks:
                size = len(self.cells.rows(task))
                weights = torch.cat([torch.ones(1, size), counts(n, size, generator)])
                total += self.cells.variance(setting, method, task, weights)
            return total / len(self.cells.tasks)

        return self.bootstrap.cached(("variance", setting, method), make)


def verdicts(cells: Mapping[str, Nonlocality], claims: Sequence[str]) -> list[Verdict]:
    """Verdicts on claims N-*, a row per part, whose names include what was merged: "images TA"."""
    resampled = {name: Resampled(c) for name, c in cells.items()}
    return [
        replace(v, part=f"{name} {v.part}")
        for claim in claims
        for name, c in cells.items()
        for v in judge(c.study(LOCAL), [claim], bootstrap=resampled[name])
    ]
