"""What a client process of ``loopback_hub`` is asked for beyond the library's own functions, in
plain values."""

from __future__ import annotations

import warnings
from typing import Any


def scores(
    variant: str, overrides: dict[str, Any], encoders: list[str], protocols: list[str]
) -> list[dict[str, Any]]:
    """A row per score of ``Study("paper", variant=variant)``; an absent value is None."""
    import torch

    from mergelib import Study

    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a tiny study may well put lambda on the edge
        frame = Study("paper", variant=variant, overrides=overrides, device="cpu").scores(
            encoders, protocols
        )
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def begin(profile: str, overrides: dict[str, Any]) -> None:
    """What a run of ``profile`` with ``overrides`` fetches before its first notebook."""
    from mergelib.profiles.downloads import needed
    from mergelib.run.data import before_run

    before_run(profile, needed(profile, overrides))


def fetched(name: str) -> dict[str, Any]:
    """The files of a repository of the registry."""
    from mergelib.core.hub import fetch, registry

    return fetch(registry()[name])


def task(profile: str, name: str, overrides: dict[str, Any], variant: str = "") -> dict[str, Any]:
    """A task of ``profile``: its source, classes and splits."""
    from mergelib.profiles import load_profile
    from mergelib.tasks import load_task

    task = load_task(name, load_profile(profile, overrides, variant))
    splits = {"train": task.train, "validation": task.validation, "test": task.test}
    return {"source": task.source, "names": task.label_names} | {
        split: {
            "inputs": rows.inputs if task.modality == "text" else len(rows.inputs),
            "labels": rows.labels.tolist(),
        }
        for split, rows in splits.items()
    }
