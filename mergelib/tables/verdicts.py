"""Verdicts on claims as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import pandas as pd

from ..claims import FAILING_FIRST, Verdict, load_claims, overall_of_parts
from .readings import asks

NOT_RUN = "not run"
ORDER = (*FAILING_FIRST, NOT_RUN)
NUMBERS = ("here", "low", "high")


def verdict_frame(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """A row per part of a claim, with the fields of ``Verdict`` and the claim's wording."""
    return with_words(pd.DataFrame(verdicts, columns=[f.name for f in fields(Verdict)]))


def with_words(rows: pd.DataFrame) -> pd.DataFrame:
    """``rows`` with the wording of their claims, and numbers as numbers."""
    says = {claim.id: claim.says for claim in load_claims().values()}
    return rows.assign(says=rows.claim.map(says)).astype(dict.fromkeys(NUMBERS, float))


def failing_first(rows: pd.DataFrame) -> pd.DataFrame:
    """``rows`` by the verdict on their whole claim, failing claims first."""
    worst = rows.verdict.map(ORDER.index).groupby(rows.claim).transform("min")
    ranked = rows.assign(worst=worst, first=rows.groupby("claim", sort=False).ngroup())
    return ranked.sort_values(["worst", "first"], ignore_index=True)[list(rows)]


def deciding(parts: pd.DataFrame) -> pd.Series:
    """The row that decides a claim: of those with its verdict, the one nearest to failing."""
    same = parts[parts.verdict == overall_of_parts(parts.verdict)]
    is_above = load_claims()[parts.claim.iloc[0]].op.startswith(">")
    return same.sort_values("here", ascending=is_above, kind="stable").iloc[0]


def verdict_table(verdicts: Sequence[Verdict] | pd.DataFrame) -> pd.DataFrame:
    """Verdicts as texts, failing claims first.

    Args:
        verdicts: As from ``claims.judge``, or rows as from ``report.verdict_rows``, whose profiles
            then stay apart.

    Returns:
        Columns (profile,) claim, says, for, here, 95 % interval, threshold, verdict (, notebook).
    """
    rows = verdicts if isinstance(verdicts, pd.DataFrame) else verdict_frame(verdicts)
    parts = rows.groupby("profile", sort=False) if "profile" in rows else [("", rows)]
    rows = pd.concat([rows[:0], *(failing_first(part) for _, part in parts)], ignore_index=True)
    texts, is_known = rows[list(NUMBERS)].map("{:.2f}".format).astype(str), rows.here.notna()
    table = rows.assign(
        here=texts.here.where(is_known, ""),
        interval=(texts.low + " .. " + texts.high).where(is_known, ""),
        threshold=asks(rows),
        verdict=rows.verdict + rows.note.map(lambda note: f" ({note})" if note else ""),
    )
    names = {"part": "for", "interval": "95 % interval"}
    order = ["profile", "claim", "says", "part", "here", "interval", "threshold", "verdict"]
    shown = [c for c in (*order, "notebook") if c in table]
    return table[shown].rename(columns=names)
