"""Figures as files: PDF, PNG, the numbers as CSV, and a JSON sidecar with settings and versions."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..claims import Verdict, claims_hash, overall
from ..core import paths
from ..core.errors import ConfigError
from ..core.version import __version__
from ..study import Study
from ..tables import public_overrides


def save_figure(
    fig: Figure,
    stem: str,
    *,
    alt: str,
    study: Study | Mapping[str, Study],
    data: Mapping[str, pd.DataFrame],
    verdicts: Sequence[Verdict] = (),
    other_bases: Mapping[str, Sequence[Verdict]] | None = None,
) -> str:
    """Write ``figures/<profile>/<stem>.{pdf,png,json}`` and the numbers behind it as CSV.

    Args:
        fig: What is drawn.
        stem: The files' name.
        alt: A sentence that says what the figure shows; the finding is added.
        study: Whose settings go into the sidecar. If there are several (panel -> study), the first
            one's are used, and all are listed under ``panels``.
        data: Suffix -> frame: ``""`` gives ``<stem>.csv``, ``"lam"`` gives ``<stem>_lam.csv``.
        verdicts: On the claims that the notebook judges.
        other_bases: The same claims with another f_b: base model -> verdicts.

    Returns:
        The PNG's path in the project.

    Raises:
        ConfigError: The alt text is not a sentence.
    """
    panels = study if isinstance(study, Mapping) else {}
    study = next(iter(panels.values()), study)
    sidecar = {
        "profile": _settings(study),
        # Paths of data and weights on this machine stay private.
        "overrides": public_overrides(study.overrides),
        "sources": {name: task.source for name, task in study.tasks.items()},
        "device": study.device.type,
        "claims": overall(verdicts),
        "verdicts": [asdict(v) for v in verdicts],
    }
    if panels:
        sidecar["panels"] = {panel: _settings(s) for panel, s in panels.items()}
    if other_bases:
        sidecar["other_bases"] = {b: [asdict(v) for v in vs] for b, vs in other_bases.items()}
    sentence = finding(fig)
    alt = f"{alt} {sentence}." if sentence else alt
    return save_files(fig, stem, study.profile.name, alt=alt, data=data, sidecar=sidecar)


def _settings(study: Study) -> dict[str, Any]:
    """A study's profile for a sidecar, without paths of this machine."""
    private = {"released_dir": True, "tasks": {"image_dir"}}
    settings = study.profile.model_dump(mode="json", exclude=private)
    settings["tasks"]["text_dir"] = ""
    settings["encoder"]["base"] = Path(study.profile.encoder.base).name
    return settings


def save_files(
    fig: Figure,
    stem: str,
    profile: str,
    *,
    alt: str,
    data: Mapping[str, pd.DataFrame],
    sidecar: Mapping[str, Any],
) -> str:
    """``save_figure`` for a figure without a ``Study``.

    Args:
        fig: What is drawn.
        stem: The files' name.
        profile: Whose folder under ``figures/``.
        alt: A sentence that states the finding.
        data: Suffix -> frame, as of ``save_figure``.
        sidecar: What goes into the JSON besides alt text, versions and the claims file's hash.

    Returns:
        The PNG's path in the project.

    Raises:
        ConfigError: The alt text is not a sentence.
    """
    if len(alt.split()) < 6 or not alt.rstrip().endswith("."):
        raise ConfigError(
            f"{stem}: alt text must be a sentence that states the finding, not {alt!r}."
        )
    folder = paths.make_folder(paths.figures(profile))
    files = {}
    for suffix, frame in data.items():
        files[f"{stem}{'_' + suffix if suffix else ''}.csv"] = frame.to_csv(
            index=not isinstance(frame.index, pd.RangeIndex),
            float_format="%.6g",
            lineterminator="\n",
        )
    sidecar = {
        "alt": alt.strip(),
        "title": finding(fig),
        "mergelib": __version__,
        "versions": {m.__name__: m.__version__ for m in (matplotlib, np, pd)},
        "claims_file": claims_hash(),
        "data": sorted(files),
        **sidecar,
    }
    files[f"{stem}.json"] = json.dumps(sidecar, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    contents = {name: text.encode() for name, text in files.items()}
    for ending, metadata in (
        ("pdf", {"CreationDate": None, "Title": stem, "Subject": alt}),
        ("png", {"Description": alt, "Software": None}),
    ):
        buffer = io.BytesIO()
        fig.savefig(buffer, format=ending, metadata=metadata)
        contents[f"{stem}.{ending}"] = buffer.getvalue()
    for name, content in contents.items():
        paths.write_whole(folder / name, content)
    return (folder / f"{stem}.png").relative_to(paths.output_root()).as_posix()


def finding(fig: Figure) -> str:
    """The title over a figure's legend, or over the figure, in one line; empty without one."""
    titles = [legend.get_title().get_text() for legend in fig.legends]
    return " ".join(next(filter(None, [*titles, fig.get_suptitle()]), "").split())
