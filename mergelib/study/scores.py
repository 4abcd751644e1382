"""Right of the features: draws, protocols and scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor

from ..core.errors import (
    ConfigError,
    DataError,
    MissingShotsError,
    UnknownNameError,
    check_name,
)
from ..core.identity import code_identity, is_ours
from ..core.names import FINE_TUNED, MULTI_TASK, REFERENCES
from ..core.store import Artifact
from ..core.types import head_digest, percent, state_digest
from ..merging import get_method
from ..protocols import (
    DRAWS,
    Evidence,
    get_preset,
    get_protocol,
    uniform_order,
)
from ..protocols.draws import shots_order
from . import experts
from .features import precision_key
from .versions import STEP_VERSIONS

if TYPE_CHECKING:
    from .study import Study

SCORE_COLUMNS = [
    "backbone",
    "task",
    "method",
    "protocol",
    "k",
    "draw",
    "fit_on",
    "seed",
    "accuracy",
    "n",
]


def fit_split(fit_on: str) -> str:
    """The split that draws for ``fit_on`` come from; "train" means the pool."""
    if fit_on not in ("train", "test"):
        raise UnknownNameError("fit_on", fit_on, ("train", "test"))
    return "pool" if fit_on == "train" else "test"


def share_counts(study: Study, task: str) -> dict[float, int]:
    """How many inputs the profile's shares (percent of the test set) are for a task; at least
    one."""
    n, shares = len(study.task(task).test), study.profile.protocols.shares
    return {share: max(1, int(share / 100 * n + 0.5)) for share in shares}


def _ks(study: Study, task: str, draw: str, fit_on: str) -> tuple[int, ...]:
    if draw == "share":
        return tuple(study.share_counts(task).values())
    if draw == "all":
        return (len(study.split(task, fit_split(fit_on))),)
    return study.profile.protocols.ks


def draws(
    study: Study, task: str, draw: str, fit_on: str = "train", ks: Sequence[int] | None = None
) -> Tensor:
    """Rows ``[S, C, k_max]`` of the fit inputs per seed (see ``Evidence``); the same for every
    method and protocol.

    Args:
        study: Whose tasks and seeds they are.
        task: A task's name.
        draw: ``stratified`` (k rows per class), ``uniform`` (k * C rows, whatever their classes),
            ``all`` (every fit input once, ``[1, 1, P]``) or ``share`` (``[S, 1, n_max]``, of which
            the first n rows are a share of the test set's size).
        fit_on: ``train`` draws from the pool of training rows, ``test`` from the test inputs.
        ks: Numbers of shots, of which the largest counts; the profile's by default.

    Raises:
        UnknownNameError: ``draw`` or ``fit_on`` has none of these values.
    """
    check_name("draw", draw, DRAWS)
    split = study.split(task, fit_split(fit_on))
    n, n_classes = len(split), study.task(task).n_classes
    if draw == "all":
        return torch.arange(n)[None, None]
    k = max(ks or _ks(study, task, draw, fit_on))

    def order(seed: int) -> Tensor:
        if draw == "share":
            return uniform_order(n, k, seed)[None]
        return shots_order(split.labels, n_classes, k, seed, draw)

    return torch.stack([order(seed) for seed in study.profile.protocols.seeds])


@dataclass(frozen=True)
class Fit:
    """What a few-shot protocol may fit on: ``rows [S, C, k_max]`` of a split, for each k of ``ks``;
    ``classes`` of a share's rows for KNN Eval's anchors only."""

    split: str
    ks: tuple[int, ...]
    rows: Tensor
    classes: Tensor | None


def fit_of(
    study: Study,
    encoder: str,
    task: str,
    protocol: str,
    draw: str,
    fit_on: str,
    ks: Sequence[int] | None = None,
) -> Fit | None:
    """What a cell of scores is fitted on, ``None`` without shots; what cannot be scored is refused
    before anything is trained. Raises ``UnknownNameError``, ``ConfigError`` and ``DataError``."""
    entry = get_protocol(protocol)
    study.task(task)
    name, mark, seed = encoder.partition("#")
    if encoder == MULTI_TASK:
        experts.check_multi_task(study)
    elif encoder not in REFERENCES and (encoder, task) not in study._adopted:
        if mark and not (get_method(name).is_random and seed.isdecimal()):
            raise ConfigError(
                f"'{encoder}': # must be followed by a seed, "
                "an integer, and go with a random method."
            )
        get_method(name)
    if not entry.few_shot:
        return None
    if draw not in entry.draws:
        raise ConfigError(
            f"{entry.label} does not take the draw {draw}; use {' or '.join(entry.draws)}."
        )
    if encoder == MULTI_TASK and protocol != "knn":
        raise ConfigError(
            f"{entry.label} aligns an expert's head; multi-task learning has its own heads."
        )
    split = fit_split(fit_on)
    ks = tuple(ks or _ks(study, task, draw, fit_on))
    try:
        rows = study.draws(task, draw, fit_on, ks)
    except DataError as error:
        raise DataError(
            f"Task '{task}', the {split} of {len(study.split(task, split))} rows: {error} "
            "(protocols.ks, tasks.pool_per_class)"
        ) from error
    classes = None
    if draw == "share" and protocol == "knn" and is_ours(entry.function):
        classes = study.split(task, split).labels[rows[:, 0]]
    return Fit(split, ks, rows, classes)


def evidence(
    study: Study,
    encoder: str,
    task: str,
    protocol: str = "ft_classifier",
    *,
    draw: str = "stratified",
    fit_on: str = "train",
    ks: Sequence[int] | None = None,
) -> Evidence:
    """The protocol's evidence, on the study's device.

    Args:
        study: Where features, heads and draws come from.
        encoder: A merging method or reference encoder; ``dare#1`` is a random method's merge of
            seed 1.
        task: A task's name.
        protocol: Who will see it; there is nothing to fit for a protocol without shots.
        draw, fit_on, ks: Which inputs may be used for fitting, as of ``draws``.

    Raises:
        ConfigError: The protocol does not take the draw, or it would fit multi-task learning's
            heads: no expert can teach them, because they are not the expert's.
    """
    fit = fit_of(study, encoder, task, protocol, draw, fit_on, ks)
    device, head = study.device, study.head(encoder, task).to(study.device)
    z = study.features(encoder, task).to(device)
    if fit is None:
        return Evidence(z, head)
    return Evidence(
        z,
        head,
        study.features(encoder, task, fit.split).to(device),
        study.features(FINE_TUNED, task, fit.split).to(device),
        fit.rows.to(device),
        fit.ks,
        get_preset(study.profile.protocols.ft_preset),
        fit.classes if fit.classes is None else fit.classes.to(device),
    )


def predictions(
    study: Study,
    encoder: str,
    task: str,
    protocol: str,
    *,
    draw: str = "stratified",
    fit_on: str = "train",
    ks: Sequence[int] | None = None,
) -> Tensor:
    """Predicted classes ``[K, S, N]`` of the test inputs; K and S are 1 for a protocol without
    shots.

    Args:
        study: Whose store keeps them.
        encoder, task, protocol: What is scored, as of ``evidence``.
        draw, fit_on: Which inputs it is fitted on, as of ``draws``.
        ks: The K numbers of shots; the profile's by default.
    """
    function = get_protocol(protocol).function
    fit = fit_of(study, encoder, task, protocol, draw, fit_on, ks)
    key = {
        "version": STEP_VERSIONS["predict"],
        "protocol": protocol,
        "encoder": study.encoder.digest,
        "weights": study.weights_digest(encoder, task),
        "test": study.task(task).test.inputs_digest,
        "head": head_digest(study.head(encoder, task)),
        **precision_key(study),
    }
    if not is_ours(function):  # a user's protocol: its body is its version
        key["code"] = code_identity(function)
    if fit is not None:
        if fit.classes is not None:
            key["classes"] = state_digest({"classes": fit.classes})
        key |= {
            "draws": state_digest({"rows": fit.rows}),
            "fit": study.split(task, fit.split).inputs_digest,
            "teacher": study.weights_digest(FINE_TUNED, task),
            "ks": list(fit.ks),
            "preset": get_preset(study.profile.protocols.ft_preset).__dict__,
        }

    def make() -> Artifact:
        seen = study.evidence(encoder, task, protocol, draw=draw, fit_on=fit_on, ks=ks)
        predicted = get_protocol(protocol)(seen, where=f"{encoder} on task '{task}'")
        small = study.task(task).n_classes <= torch.iinfo(torch.int16).max
        return Artifact({"predicted": predicted.to("cpu", torch.int16 if small else torch.int32)})

    return study.store.get("predict", key, make).tensors["predicted"]


def correct(
    study: Study,
    encoder: str,
    task: str,
    protocol: str,
    *,
    k: float | None = None,
    draw: str = "stratified",
    fit_on: str = "train",
) -> Tensor:
    """Which test inputs are classified correctly: bool ``[S, N]`` for one k (S = 1 and no k for
    a protocol without shots).

    For a random method, draw s is scored with merge s mod M; without shots there is a row per
    merge.

    Args:
        study: Whose tasks and seeds they are.
        encoder: A merging method or reference encoder.
        task: A task's name.
        protocol: Who classifies.
        k: Shots per class, one of the profile's; for ``draw="share"`` the share in percent of the
            test set, also one of the profile's.
        draw, fit_on: Which inputs a protocol with shots is fitted on, as of ``draws``.

    Raises:
        MissingShotsError: The profile does not have this k.
    """
    settings = study.profile.protocols
    ks = settings.shares if draw == "share" else settings.ks
    if not get_protocol(protocol).few_shot or draw == "all":
        ks = (k,)
    elif k not in ks:
        raise MissingShotsError(k, ks, share=draw == "share")
    elif fit_on == "test" and draw != "share":
        ks = (k,)  # a test split may be too small for the largest k
    return correct_at(study, encoder, task, protocol, ks, draw=draw, fit_on=fit_on)[ks.index(k)]


def correct_at(
    study: Study,
    encoder: str,
    task: str,
    protocol: str,
    ks: Sequence[float | None],
    *,
    draw: str,
    fit_on: str,
) -> Tensor:
    """``correct`` of all ``ks``, of shares all that the profile has: bool ``[K, S, N]``."""
    shots = get_protocol(protocol).few_shot and draw != "all"
    ks = ks if shots and draw != "share" else None
    parts = [
        study.predictions(m, task, protocol, draw=draw, fit_on=fit_on, ks=ks)
        for m in study.merges(encoder)
    ]
    if shots:
        predicted = torch.stack([parts[s % len(parts)][:, s] for s in range(parts[0].shape[1])], 1)
    else:
        predicted = torch.cat(parts, 1)
    return predicted == study.task(task).test.labels


def scores(
    study: Study,
    encoders: Sequence[str],
    protocols: Sequence[str],
    *,
    draw: str = "stratified",
    fit_on: str = "train",
) -> pd.DataFrame:
    """Tidy accuracies (percent): a row per (backbone, task, method, protocol, k, draw, fit_on,
    seed), with n.

    k, draw, fit_on and seed are missing for a protocol without shots; for a random method with
    several merges, each merge has a row, and seed is the merge's. Every table and figure reads
    these rows; shares of the test set have other rows, see ``unlabelled.scores``.

    Args:
        study: Whose tasks, shots and seeds they are.
        encoders: Names of merging methods and reference encoders.
        protocols: Names of protocols.
        draw, fit_on: Which inputs protocols with shots are fitted on, as of ``draws``.

    Raises:
        ConfigError: ``draw`` is ``share``, or a name stands where a list of names belongs.
    """
    if draw == "share":
        raise ConfigError("Shares are not shots: use mergelib.tables.unlabelled.scores.")
    for names in (encoders, protocols):
        if isinstance(names, str):
            raise ConfigError(f"scores takes lists of names, such as ['{names}'].")
    for task, protocol, encoder in product(study.tasks, protocols, encoders):
        fit_of(study, encoder, task, protocol, draw, fit_on)
    settings, rows = study.profile.protocols, []
    for encoder, task, protocol in product(encoders, study.tasks.values(), protocols):
        few_shot = get_protocol(protocol).few_shot
        ks = settings.ks if few_shot and draw != "all" else (None,)
        # A test split may be too small for the largest k.
        parts = [(k,) for k in ks] if fit_on == "test" else [ks]
        is_right = torch.cat(
            [
                correct_at(study, encoder, task.name, protocol, part, draw=draw, fit_on=fit_on)
                for part in parts
            ]
        )
        for k, right in zip(ks, is_right, strict=True):
            seeds = settings.seeds
            if not k:  # of a random method the merges'
                seeds = range(len(right)) if len(right) > 1 else (None,)
            row = {
                "backbone": study.profile.backbone,
                "task": task.name,
                "method": encoder,
                "protocol": protocol,
                "n": len(task.test),
            }
            if few_shot:
                shots = k or _ks(study, task.name, draw, fit_on)[0] // task.n_classes
                row |= {"k": shots, "draw": draw, "fit_on": fit_on}
            rows += [
                row | {"seed": seed, "accuracy": percent(r)}
                for seed, r in zip(seeds, right, strict=True)
            ]
    frame = pd.DataFrame(rows).reindex(columns=SCORE_COLUMNS)
    return frame.astype({"k": "Int64", "seed": "Int64"})
