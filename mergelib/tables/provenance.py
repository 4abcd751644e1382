"""The settings behind a notebook's numbers."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
import transformers
from pandas.io.formats.style import Styler

from ..core.version import __version__
from ..study import Study
from .labels import short_label
from .scores import show

PRIVATE = ("tasks.text_dir", "tasks.image_dir", "encoder.base", "released_dir")
"""Overrides with paths of this machine, which stay private."""


def versions() -> str:
    """The versions behind a notebook's numbers, in one line."""
    return (
        f"mergelib {__version__}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, Python {platform.python_version()}"
    )


def public_overrides(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides without paths of this machine."""
    return {k: v for k, v in overrides.items() if k not in PRIVATE}


def provenance(study: Study, methods: Sequence[str] | None = None) -> Styler:
    """The settings behind a notebook's numbers: profile, device, versions, seeds, lambda of
    ``methods``."""
    p = study.profile
    lams = {short_label(m): study.lam(m) for m in methods or study.methods}
    checked = "released checkpoints, their classes' order checked on validation rows"
    rows = {
        "profile": p.name,
        "base model": p.backbone,
        "overrides": public_overrides(study.overrides) or "none",
        "note": p.note,
        "device": study.device.type,
        "training": f"{p.train_config(p.fine_tuning, study.device).precision}, {p.threads} threads",
        "experts": checked if p.experts == "released" else "",
        "preprocessing": p.encoder.preprocessing.replace("default", ""),
        "seeds of the draws": ", ".join(map(str, p.protocols.seeds)),
        "FT-Classifier preset": p.protocols.ft_preset,
        "lambda": ", ".join(f"{m} {lam}" for m, lam in lams.items() if lam is not None),
        "bootstrap": f"{p.resamples} resamples, paired over test inputs and seeds",
        "versions": versions(),
    }
    shown = {k: v for k, v in rows.items() if v or k == "lambda"}
    return show(pd.DataFrame({"what": shown.keys(), "value": shown.values()}))
