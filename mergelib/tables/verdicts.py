"""Verdicts on claims as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import pandas as pd

from ..claims import (
    NOT_JUDGED,
    NOT_REPRODUCED,
    REPRODUCED,
    UNDECIDED,
    Verdict,
    load_claims,
    overall_of_parts,
)

NOT_RUN = "not run"
ORDER = (NOT_REPRODUCED, UNDECIDED, REPRODUCED, NOT_JUDGED, NOT_RUN)  # failing first


def pretty(threshold: str) -> str:
    """A readable threshold: ">= 0.90" becomes "≥ 0.90"."""
    return threshold.replace(">=", "≥").replace("<=", "≤")


def verdict_frame(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """A row per part of a claim, with the fields of ``Verdict`` and the claim's wording."""
    fields = list(Verdict.__dataclass_fields__)
    frame = pd.DataFrame([asdict(v) for v in verdicts], columns=fields)
    return frame.assign(says=[load_claims()[c].says for c in frame.claim])


def failing_first(rows: pd.DataFrame) -> pd.DataFrame:
    """``rows`` by the verdict on their whole claim, failing claims first."""
    rank = {
        claim: ORDER.index(overall_of_parts(parts.verdict))
        for claim, parts in rows.groupby("claim", sort=False)
    }
    return rows.sort_values("claim", key=lambda c: c.map(rank), kind="stable", ignore_index=True)


def verdict_table(verdicts: Sequence[Verdict] | pd.DataFrame) -> pd.DataFrame:
    """Verdicts as texts, failing claims first.

    Args:
        verdicts: As from ``claims.judge``, or rows as from ``report.verdict_rows``, whose profiles
            then stay apart.

    Returns:
        Columns (profile,) claim, says, for, here, 95 % interval, threshold, verdict (, notebook).
    """
    rows = verdicts if isinstance(verdicts, pd.DataFrame) else verdict_frame(verdicts)
    parts = [rows] if "profile" not in rows else [r for _, r in rows.groupby("profile", sort=False)]
    rows = pd.concat([failing_first(part) for part in parts or [rows]], ignore_index=True)
    here, low, high = (
        rows[c].astype(float).map("{:.2f}".format).astype(str).where(rows.here.notna(), "")
        for c in ("here", "low", "high")
    )
    table = {
        "claim": rows.claim,
        "says": rows.says,
        "for": rows.part,
        "here": here,
        "95 % interval": (low + " .. " + high).where(rows.here.notna(), ""),
        "threshold": rows.threshold.map(pretty),
        "verdict": rows.verdict + rows.note.map(lambda note: f" ({note})" if note else ""),
    }
    first = {"profile": rows.profile} if "profile" in rows else {}
    last = {"notebook": rows.notebook} if "notebook" in rows else {}
    return pd.DataFrame(first | table | last)
