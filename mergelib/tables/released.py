"""The effect of the released preprocessing on scores."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from ..core.errors import ConfigError
from ..encoders import ReleasedEncoder
from ..foundations import Foundation
from ..study import Study
from . import short_label


def effects(study: Study, encoders: tuple[str, ...] = ("f_t", "task_arithmetic")) -> pd.DataFrame:
    """Average accuracy (percent) under Current Eval with and without attention mask, with and
    without padding in the mean; the first row is the released code's way. Weights, heads and
    lambdas are the study's in every row. Raises ``ConfigError`` for other preprocessing."""
    if not isinstance(study.encoder, ReleasedEncoder):
        raise ConfigError(
            "The effect can be measured only on models that use the released preprocessing: set "
            "encoder.preprocessing to released."
        )
    merging = study.profile.merging
    fixed = {
        m: {"lam": lam}
        for m in encoders
        if m in study.methods and (lam := study.lam(m)) is not None
    }
    merging = merging.model_copy(
        update={
            "options": {
                m: merging.options.get(m, {}) | fixed.get(m, {}) for m in {*merging.options, *fixed}
            }
        }
    )
    rows = []
    for mask in (False, True):
        for padding in (True, False):
            encoder = replace(study.encoder, mask=mask, padding_in_mean=padding)
            other = study.given(
                Foundation(encoder, study.base_state),
                study.experts(),
                tasks=study.tasks,
                profile=study.profile.model_copy(update={"merging": merging}),
            )
            mean = other.scores(encoders, ["current"]).groupby("method").accuracy.mean()
            rows.append(
                {
                    "attention mask": "yes" if mask else "no",
                    "padding in the mean": "yes" if padding else "no",
                    **{short_label(e): mean[e] for e in encoders},
                }
            )
    return pd.DataFrame(rows)
