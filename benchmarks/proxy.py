"""``python -m benchmarks.proxy``: how well agreement with the experts, which needs no label, orders
merges by accuracy; Kendall's tau over all methods of a profile that give one encoder.

``--stored`` leaves out what the store does not hold. Agreement is measured on pooled training
inputs that no head is aligned with, accuracy on test rows, as ``mergelib.compare`` does it without
labels. Each method has one lambda here, which validation labels chose; ``compare`` orders lambdas,
too. Prints the table, and writes it to ``mergelib/figures/proxy.json``, which the report of
``compare`` quotes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

import pandas as pd

from mergelib import tables
from mergelib.core import paths
from mergelib.core.store import Artifact, Store
from mergelib.core.types import Head, percent
from mergelib.figures.comparison import PROXY
from mergelib.models.compare import rank_correlation
from mergelib.protocols import fit_heads, kl_to_teacher
from mergelib.study import Study
from mergelib.tables import ranking

K = 5


class Stored(Store):
    """A store that computes nothing. Raises ``LookupError``."""

    def get(self, step: str, key: Mapping[str, Any], make: Any) -> Artifact:
        found = self.peek(step, key)
        if found is None:
            raise LookupError(step)
        return found


def rows_of(study: Study, method: str, task: str) -> list[dict[str, Any]]:
    """The old and a re-aligned head of one merge, as of ``Comparison.rows``."""
    evidence = study.evidence(method, task, draw="uniform", ks=(K,))
    fitted, scored = fit_heads(evidence)[0], [True] * len(evidence.student_fit)
    for row in evidence.rows(K)[0].tolist():
        scored[row] = False
    heads = {"current": evidence.head, "ft_classifier": Head(fitted.weight[0], fitted.bias[0])}
    labels = study.task(task).test.labels
    teacher = evidence.head.logits(evidence.teacher_fit[scored])
    found = []
    for protocol, head in heads.items():
        logits = head.logits(evidence.student_fit[scored])
        right = head.logits(evidence.student_test).argmax(-1).cpu() == labels
        found.append(
            {
                "method": method,
                "lam": study.lam(method),
                "protocol": protocol,
                "task": task,
                "accuracy": percent(right),
                "agreement": percent(logits.argmax(-1) == teacher.argmax(-1)),
                "kl": float(kl_to_teacher(logits, teacher).mean()),
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("profile", "mini"), ("text-dir", ""), ("base", "")):
        parser.add_argument(f"--{name}", default=default)
    parser.add_argument("--stored", action="store_true")
    args = parser.parse_args()
    store = (Stored if args.stored else Store)(paths.store_root())
    study = Study(
        args.profile, text_dir=args.text_dir, base=args.base, every_method=True, store=store
    )
    rows: list[dict[str, Any]] = []
    for method in ranking.of_kind(study.methods):
        try:
            rows += [row for task in study.tasks for row in rows_of(study, method, task)]
        except LookupError:
            print(f"not stored: {method}")
    found = rank_correlation(pd.DataFrame(rows))
    print(tables.markdown(found.round(2)))
    known = json.loads(PROXY.read_text()) | {args.profile: found.round(4).to_dict("records")}
    PROXY.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
