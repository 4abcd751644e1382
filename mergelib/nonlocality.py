"""Merging experts of several foundations: what distance costs, and what permutation, REPAIR, TACT and FT-Classifier give back (``ext03``).

Foundation A is the profile's f_b. Foundation B is the same model pre-trained much longer (semi-local) or from another start (non-local).
Every second task is fine-tuned from B, the others from A; in the local setting all are from A. The procedure is that of Sharma et al.,
2024 (arXiv 2410.12766): B's units are matched with A's by the weights of the two foundations alone; the permutation is applied to B, to
the experts from B and to their heads; task vectors start at the common base (A + B) / 2. From there on it is an ordinary study.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from .claims import Bootstrap, Verdict, judge
from .corrections import (
    Correction,
    InputMoments,
    Site,
    Statistics,
    attach,
    fold,
    input_moments,
    measure,
    repair,
    resampled_ratio,
    sites_for,
    tact,
    variance_ratio,
)
from .errors import ConfigError, UnknownNameError
from .merging.arithmetic import weight_averaging
from .permutation import apply, permute_head, spec_for, weight_matching
from .pretraining import Foundation
from .profiles import NonLocalSettings, load_profile
from .progress import progress
from .store import Artifact, Store
from .study import FINE_TUNED, STEP_VERSIONS, Study
from .tables import encoder_label, mean_std_cell, published, short_label
from .types import Expert, State, Task, digest, inputs_digest, percent, state_digest

LOCAL, SEMI_LOCAL, NON_LOCAL = SETTINGS = ("local", "semi-local", "non-local")
RAW, PERMUTED, REPAIR, TACT, FT, TACT_FT, TACT_LAST = (
    "raw",
    "permuted",
    "repair",
    "tact",
    "ft_classifier",
    "tact_ft_classifier",
    "tact_last",
)
REPAIRS = (RAW, PERMUTED, REPAIR, TACT, FT, TACT_FT)
REPAIR_LABELS = {
    RAW: "raw",
    PERMUTED: "permuted",
    REPAIR: "REPAIR",
    TACT: "TACT",
    FT: "FT-Classifier",
    TACT_FT: "TACT + FT-Classifier",
    TACT_LAST: "TACT, last layer only",
}
"""Everything behind "permuted" is done to the permuted merge. Locally nothing needs to be permuted, and raw and permuted are one."""
ONE_BATCH = 2048  # inputs that are measured in one forward pass; more take several, and TACT then a pass per site
COLLAPSE_RESAMPLES = 1000  # of the inputs that variance is measured on; all channels of all sites are resampled with them


class Nonlocality:
    """One study per setting, all on one store, and every merge and repair of them by name.

    ``profile`` needs a section ``non_local``, ``overrides`` and ``variant`` are a ``Study``'s. Raises ``ConfigError`` for a profile without that section, or
    with a base model that was pre-trained elsewhere: it has no second foundation.
    """

    def __init__(
        self,
        profile: str = "mini",
        *,
        overrides: dict[str, Any] | None = None,
        device: str = "auto",
        store: Store | None = None,
        variant: str = "",
    ):
        self._make = functools.partial(Study, profile, device=device, store=store, variant=variant)
        self._overrides = dict(overrides or {})
        loaded = load_profile(profile, copy.deepcopy(self._overrides), variant)
        self.profile = loaded.of_non_local()
        self.first = self._foundation({})
        if loaded.encoder.base or loaded.encoder.pretraining is None:
            raise ConfigError(
                "Several foundations are pre-trained here; take a profile without a base model (encoder.base)."
            )
        self._studies: dict[tuple[str, bool], Study] = {}
        self._measured: dict[tuple[str, ...], Statistics] = {}
        self._names: dict[tuple[str, str, str], str] = {}

    def _foundation(self, pretraining: dict[str, Any]) -> Study:
        # A copy, because overrides are laid over a dict that they may hold themselves.
        return self._make(
            overrides=copy.deepcopy(self._overrides)
            | {f"encoder.pretraining.{k}": v for k, v in pretraining.items()}
        )

    @property
    def settings(self) -> NonLocalSettings:
        return self.profile.non_local

    @property
    def methods(self) -> tuple[str, ...]:
        return self.profile.merging.methods

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """The profile's tasks with the first rows of validation and test alone."""
        own = self.settings
        return {
            n: replace(
                t,
                validation=t.validation.subset(range(min(own.n_validation, len(t.validation)))),
                test=t.test.subset(range(min(own.n_test, len(t.test)))),
            )
            for n, t in self.first.tasks.items()
        }

    @property
    def from_b(self) -> tuple[str, ...]:
        """The tasks whose experts come from foundation B, except locally: every second."""
        return tuple(self.tasks)[1::2]

    @cached_property
    def _others(self) -> dict[str, Study]:
        return {
            SEMI_LOCAL: self._foundation({"steps": self.settings.semi_local_steps}),
            NON_LOCAL: self._foundation({"seed": self.settings.non_local_seed}),
        }

    def second(self, setting: str) -> Study:
        """The study of foundation B, whose experts it fine-tunes; locally that of A. Raises ``UnknownNameError``."""
        if setting not in SETTINGS:
            raise UnknownNameError("setting", setting, SETTINGS)
        return self.first if setting == LOCAL else self._others[setting]

    def permutation(self, setting: str) -> dict[str, Tensor]:
        """What brings B's units into the order of A's, by the weights of the foundations; see ``mergelib.permutation``."""
        a, b = self.first, self.second(setting)
        if a.encoder.digest != b.encoder.digest:
            raise ConfigError(
                "The two foundations differ in architecture or vocabulary; only equal ones can be matched."
            )
        key = {
            "version": STEP_VERSIONS["match"],
            "encoder": a.encoder.digest,
            "a": a.weights_digest("f_b", ""),
            "b": b.weights_digest("f_b", ""),
            "seed": self.profile.seed,
        }

        def make() -> Artifact:
            matching = weight_matching(
                spec_for(a.encoder.config),
                a.base_state,
                b.base_state,
                seed=self.profile.seed,
                progress=functools.partial(progress, desc=f"match {setting}"),
            )
            return Artifact(
                dict(matching.permutations),
                {"objective": list(matching.objective), "converged": matching.converged},
            )

        return self.first.store.get("match", key, make).tensors

    def study(self, setting: str, *, permuted: bool = True) -> Study:
        """The setting as a study: the common base as f_b, an expert and a head per task. Locally ``permuted`` makes no difference."""
        at = setting, permuted or setting == LOCAL
        if at not in self._studies:
            self._studies[at] = self._made(*at)
        return self._studies[at]

    def _made(self, setting: str, permuted: bool) -> Study:
        a, b = self.first, self.second(setting)
        if setting == LOCAL:
            return a.given(
                Foundation(a.encoder, a.base_state),
                a.experts(),
                tasks=self.tasks,
                profile=self.profile,
            )
        base, experts = b.base_state, {t: b.expert(t) for t in self.from_b}
        if permuted:
            spec, found = spec_for(a.encoder.config), self.permutation(setting)
            base = apply(spec, found, base)
            experts = {
                t: Expert(t, apply(spec, found, e.state), permute_head(e.head, spec, found), e.info)
                for t, e in experts.items()
            }
        common = weight_averaging(a.base_state, [a.base_state, base])
        return a.given(
            Foundation(a.encoder, common),
            [experts.get(t) or a.expert(t) for t in self.tasks],
            tasks=self.tasks,
            profile=self.profile,
        )

    # ---- corrections ----------------------------------------------------------------------------------------------------

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        return sites_for(self.first.encoder.config)

    @cached_property
    def _device(self) -> torch.device:
        """Where statistics are taken: in float64, which MPS does not have."""
        return torch.device("cpu") if self.first.device.type == "mps" else self.first.device

    def rows(self, task: str, k: int | None = None, seed: int = 0) -> Tensor:
        """Rows of the task's pool that a fit sees: all of it, or k * C of them as FT-Classifier draws them (uniformly, no labels)."""
        study = self.study(LOCAL)
        if k is None:
            return torch.arange(len(study.pool(task)))
        return study.draws(task, "uniform")[
            self.profile.protocols.seeds.index(seed), :, :k
        ].flatten()

    def batches(self, given: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """The given rows of each task's pool, one task after the other, as batches on the device of the fits."""
        encoder, prepared = self.first.encoder, []
        for task, rows in given.items():
            prepared += list(encoder.prepare(self.study(LOCAL).pool(task).subset(rows).inputs))
        return [
            {n: t.to(self._device) for n, t in encoder.collate(prepared[i : i + ONE_BATCH]).items()}
            for i in range(0, len(prepared), ONE_BATCH)
        ]

    def _module(self, study: Study, encoder: str, task: str) -> nn.Module:
        return study.module(encoder, task).to(self._device).requires_grad_(False)

    def _statistics(
        self, study: Study, encoder: str, task: str, given: Mapping[str, Tensor]
    ) -> Statistics:
        key = (
            study.weights_digest(encoder, task),
            *(str(x) for t, rows in given.items() for x in (t, rows.tolist())),
        )
        if key not in self._measured:
            self._measured[key] = measure(
                self._module(study, encoder, task), self.sites, self.batches(given)
            )
        return self._measured[key]

    def statistics(
        self, setting: str, encoder: str, task: str, *, permuted: bool = True
    ) -> Statistics:
        """Mean and deviation per site and channel of an encoder of a setting, on the task's pool."""
        return self._statistics(
            self.study(setting, permuted=permuted), encoder, task, {task: self.rows(task)}
        )

    def correction(
        self, setting: str, method: str, task: str, kind: str, k: int | None = None, seed: int = 0
    ) -> Correction:
        """TACT's correction of a permuted merge for a task (``kind`` TACT or TACT_LAST), from its own pool, or REPAIR's, from the pools of all."""
        study = self.study(setting)
        over = list(self.tasks) if kind == REPAIR else [task]
        given = {t: self.rows(t, k, seed) for t in over}
        key = {
            "version": STEP_VERSIONS["correct"],
            "kind": kind,
            "encoder": study.encoder.digest,
            "merged": study.weights_digest(method, task),
            "experts": [study.weights_digest(FINE_TUNED, t) for t in over],
            "device": self._device.type,
            "inputs": [
                inputs_digest(study.pool(t).subset(rows).inputs) for t, rows in given.items()
            ],
        }

        def make() -> Artifact:
            merged, batches = self._module(study, method, task), self.batches(given)
            if kind == REPAIR:
                found = repair(
                    merged,
                    self.sites,
                    batches,
                    [self._statistics(study, FINE_TUNED, t, given) for t in over],
                )
            else:
                found = tact(
                    merged,
                    self.sites,
                    batches,
                    self._statistics(study, FINE_TUNED, task, given),
                    last_layer_only=kind == TACT_LAST,
                )
            return Artifact(found.tensors())

        return Correction.of(study.store.get("correct", key, make).tensors)

    def corrected(
        self, setting: str, method: str, kind: str, k: int | None = None, seed: int = 0
    ) -> str:
        """The name under which the setting's study scores a corrected merge."""
        study, name = self.study(setting), f"{method} {kind}" + (f" k={k} seed={seed}" if k else "")
        for task in self.tasks:
            found = self.correction(setting, method, task, kind, k, seed)
            identity = digest(
                "corrected",
                str(STEP_VERSIONS["correct"]),
                study.weights_digest(method, task),
                state_digest(found.tensors()),
            )

            def make(task: str = task, found: Correction = found) -> nn.Module:
                state, rest = fold(found, self.sites, study.weights(method, task))
                module = study.encoder.module(state)
                if len(rest):
                    attach(module, self.sites, rest)
                return module

            study.adopt(name, task, identity, make)
        return name

    # ---- scores -----------------------------------------------------------------------------------------------------------

    def correct(self, setting: str, method: str, repaired: str, task: str) -> Tensor:
        """Which test inputs are right, bool ``[1, N]``, after a repair from the whole pool. Raises ``UnknownNameError``."""
        if repaired not in REPAIR_LABELS:
            raise UnknownNameError("repair", repaired, REPAIR_LABELS)
        study = self.study(setting, permuted=repaired != RAW)
        kind = TACT if repaired == TACT_FT else repaired
        encoder = (
            self._corrected(setting, method, kind) if kind in (REPAIR, TACT, TACT_LAST) else method
        )
        if repaired in (FT, TACT_FT):
            return study.correct(encoder, task, "ft_classifier", draw="all")
        return study.correct(encoder, task, "current")

    def _corrected(self, setting: str, method: str, kind: str) -> str:
        """``corrected``, the corrections read once."""
        if (setting, method, kind) not in self._names:
            self._names[setting, method, kind] = self.corrected(setting, method, kind)
        return self._names[setting, method, kind]

    def expert(self, setting: str, task: str) -> Tensor:
        """Which test inputs the expert has right, ``[1, N]``."""
        return self.study(setting).correct(FINE_TUNED, task, "current")

    def scores(
        self, repairs: Sequence[str] = REPAIRS, settings: Sequence[str] = SETTINGS
    ) -> pd.DataFrame:
        """A row per setting, method, repair and task: accuracy of the merge and of the task's expert, in percent."""
        cells = [
            (s, m, r, t)
            for s in settings
            for m in self.methods
            for r in repairs
            for t in self.tasks
        ]
        return pd.DataFrame(
            [
                {
                    "setting": s,
                    "method": m,
                    "repair": r,
                    "task": t,
                    "accuracy": percent(self.correct(s, m, r, t)[0]),
                    "expert": percent(self.expert(s, t)[0]),
                }
                for s, m, r, t in progress(cells, desc="merges and repairs")
            ]
        )

    def samples(self, method: str, setting: str = NON_LOCAL) -> pd.DataFrame:
        """A row per k, seed and repair (TACT, FT-Classifier, both) from k * C unlabelled inputs per task: average accuracy in percent."""
        study, rows = self.study(setting), []
        for k in progress(self.profile.protocols.ks, desc="unlabelled inputs"):
            for s, seed in enumerate(self.profile.protocols.seeds):
                name = self.corrected(setting, method, TACT, k, seed)
                for repaired, encoder in ((TACT, name), (FT, method), (TACT_FT, name)):
                    right = [
                        study.correct(encoder, t, "current")[0]
                        if repaired == TACT
                        else study.predictions(
                            encoder, t, "ft_classifier", draw="uniform", ks=(k,)
                        )[0, s]
                        == task.test.labels
                        for t, task in self.tasks.items()
                    ]
                    rows.append(
                        {
                            "method": method,
                            "repair": repaired,
                            "k": k,
                            "seed": seed,
                            "inputs": self._inputs(k),
                            "accuracy": sum(map(percent, right)) / len(right),
                        }
                    )
        return pd.DataFrame(rows)

    def _inputs(self, k: int) -> float:
        """Unlabelled inputs per task at k, averaged over tasks."""
        return sum(k * t.n_classes for t in self.tasks.values()) / len(self.tasks)

    # ---- variance -----------------------------------------------------------------------------------------------------------

    def variances(
        self,
        method: str,
        stages: Sequence[tuple[str, bool]] = (
            (LOCAL, True),
            (SEMI_LOCAL, True),
            (NON_LOCAL, False),
            (NON_LOCAL, True),
        ),
    ) -> pd.DataFrame:
        """A row per stage (setting, permuted or not) and site: variance of the merge over the expert's, averaged over channels and tasks."""
        rows = []
        for setting, permuted in stages:
            ratios = [
                variance_ratio(
                    *(
                        self.statistics(setting, e, t, permuted=permuted)
                        for e in (method, FINE_TUNED)
                    )
                )
                for t in self.tasks
            ]
            stage = setting if setting == LOCAL else f"{setting}, {PERMUTED if permuted else RAW}"
            rows += [
                {
                    "method": method,
                    "stage": stage,
                    "site": s.name,
                    "kind": s.kind,
                    "block": s.block,
                    "place": i,
                    "ratio": sum(r[s.name] for r in ratios) / len(ratios),
                }
                for i, s in enumerate(self.sites)
            ]
        return pd.DataFrame(rows)

    def moments(self, setting: str, encoder: str, task: str) -> InputMoments:
        """Moments per input of the task's pool, of an encoder of the permuted setting."""
        return input_moments(
            self._module(self.study(setting), encoder, task),
            self.sites,
            self.batches({task: self.rows(task)}),
        )


class Resampled:
    """What the claims ask of a ``Nonlocality``: values measured and resampled, ``[1 + B]``, over test inputs, the same for every cell."""

    def __init__(self, cells: Nonlocality):
        self.cells = cells
        self.bootstrap = Bootstrap(cells.study(LOCAL))

    def _per_task(self, what: tuple[str, ...], task: str, right: Any) -> Tensor:
        return self.bootstrap.cached((*what, task), lambda: self.bootstrap.average({task: right()}))

    def _accuracy(self, setting: str, method: str, repaired: str, task: str) -> Tensor:
        return self._per_task(
            (setting, method, repaired),
            task,
            lambda: self.cells.correct(setting, method, repaired, task),
        )

    def _expert(self, setting: str, task: str) -> Tensor:
        return self._per_task((setting, FINE_TUNED), task, lambda: self.cells.expert(setting, task))

    def accuracy(self, setting: str, method: str, repaired: str) -> Tensor:
        """Average over tasks, 0 to 1."""
        return torch.stack(
            [self._accuracy(setting, method, repaired, t) for t in self.cells.tasks]
        ).mean(0)

    def normalised(self, setting: str, method: str, repaired: str) -> Tensor:
        """Mean over tasks of the merge's accuracy over the expert's."""
        return torch.stack(
            [
                self._accuracy(setting, method, repaired, t) / self._expert(setting, t)
                for t in self.cells.tasks
            ]
        ).mean(0)

    def gap_closed(self, setting: str, method: str, before: str, after: str) -> Tensor:
        """The part of what is missing to the experts ``before`` that is there ``after``, of averages over tasks."""
        expert = torch.stack([self._expert(setting, t) for t in self.cells.tasks]).mean(0)
        start = self.accuracy(setting, method, before)
        return (self.accuracy(setting, method, after) - start) / (expert - start)

    def variance(self, setting: str, method: str) -> Tensor:
        """Variance of the (permuted) merge over the expert's, mean over channels, sites and tasks, with ``COLLAPSE_RESAMPLES`` resamples, or
        fewer where the profile has fewer, of the unlabelled inputs it is measured on."""
        n = min(self.bootstrap.n, COLLAPSE_RESAMPLES)

        def make() -> Tensor:
            generator, total = (
                torch.Generator().manual_seed(0),
                torch.zeros(1 + n, dtype=torch.float64),
            )
            for task in self.cells.tasks:
                merged, expert = (
                    self.cells.moments(setting, e, task) for e in (method, FINE_TUNED)
                )
                size = len(expert.tokens)
                picked = torch.randint(size, (n, size), generator=generator)
                weights = torch.cat(
                    [
                        torch.ones(1, size),
                        torch.zeros(n, size).scatter_add_(1, picked, torch.ones(n, size)),
                    ]
                )
                total += resampled_ratio(merged, expert, weights.to(expert.tokens.device)).cpu()
            return total / len(self.cells.tasks)

        return self.bootstrap.cached(("variance", setting, method), make)


def verdicts(cells: Mapping[str, Nonlocality], claims: Sequence[str]) -> list[Verdict]:
    """Verdicts on claims N-*, claim by claim a row per part, which is named by what was merged too: "images TA". See ``claims.judge``."""
    resampled = {name: Resampled(c) for name, c in cells.items()}
    return [
        replace(v, part=f"{name} {v.part}")
        for claim in claims
        for name, c in cells.items()
        for v in judge(c.study(LOCAL), [claim], bootstrap=resampled[name])
    ]


# ---- tables and what they say -------------------------------------------------------------------------------------------------


def averages(scores: pd.DataFrame) -> pd.DataFrame:
    """``Nonlocality.scores`` averaged over tasks: columns setting, method, repair, accuracy, expert, normalised (the mean over tasks of merge
    over expert)."""
    rows = scores.assign(normalised=scores.accuracy / scores.expert)
    return (
        rows.groupby(["setting", "method", "repair"], sort=False)[
            ["accuracy", "expert", "normalised"]
        ]
        .mean()
        .reset_index()
    )


def wide(means: pd.DataFrame) -> pd.DataFrame:
    """``averages`` for the eye: a row per setting and method, a column per repair and the experts, percent."""
    table = means.pivot(index=["setting", "method"], columns="repair", values="accuracy")
    order, repairs = (
        list(dict.fromkeys(zip(means.setting, means.method, strict=True))),
        list(dict.fromkeys(means.repair)),
    )
    table = table.loc[order, repairs].assign(
        experts=means.groupby(["setting", "method"]).expert.first()
    )
    return (
        table.rename(index=encoder_label, level="method")
        .rename(columns=REPAIR_LABELS)
        .rename_axis(index=["Setting", "Method"], columns=None)
    )


def lams_table(cells: Nonlocality) -> pd.DataFrame:
    """The lambda that validation data chose, a row per setting, raw and permuted, and a column per method; several where each task has its
    own (a mask's threshold)."""
    rows = []
    for setting, permuted in (
        (LOCAL, True),
        (SEMI_LOCAL, False),
        (SEMI_LOCAL, True),
        (NON_LOCAL, False),
        (NON_LOCAL, True),
    ):
        study = cells.study(setting, permuted=permuted)
        stage = setting if setting == LOCAL else f"{setting}, {PERMUTED if permuted else RAW}"
        chosen = {m: list(dict.fromkeys(study.lams(m).values())) for m in cells.methods}
        rows.append(
            {"setting": stage}
            | {
                short_label(m): ", ".join(f"{lam:g}" for lam in lams)
                for m, lams in chosen.items()
                if lams
            }
        )
    return pd.DataFrame(rows)


def matching_table(cells: Nonlocality) -> pd.DataFrame:
    """A row per setting: the share of B's units that the matching moves, percent, and the cosine of all weights of A and B before and
    after it."""
    rows = []
    for setting in (SEMI_LOCAL, NON_LOCAL):
        a, b, found = (
            cells.first.base_state,
            cells.second(setting).base_state,
            cells.permutation(setting),
        )
        moved = sum(int((p != torch.arange(len(p))).sum()) for p in found.values()) / sum(
            map(len, found.values())
        )
        after = apply(spec_for(cells.first.encoder.config), found, b)
        rows.append(
            {
                "setting": setting,
                "units moved (%)": 100 * moved,
                "cosine before": _cosine(a, b),
                "cosine after": _cosine(a, after),
            }
        )
    return pd.DataFrame(rows)


def _cosine(a: State, b: State) -> float:
    x, y = (
        torch.cat([s[n].double().flatten() for n in sorted(a) if s[n].is_floating_point()])
        for s in (a, b)
    )
    return float(x @ y / (x.norm() * y.norm()))


def samples_table(frame: pd.DataFrame) -> pd.DataFrame:
    """``Nonlocality.samples`` for the eye: a row per repair, a column per k with the inputs per task, cells "71.8 ± 0.2" over draws."""
    cells = (
        frame.groupby(["repair", "k", "inputs"], sort=False)
        .accuracy.agg(["mean", "std"])
        .reset_index()
    )
    cells["cell"] = [mean_std_cell(m, s) for m, s in zip(cells["mean"], cells["std"], strict=True)]
    cells["at"] = [f"k = {k} ({n:.0f})" for k, n in zip(cells.k, cells.inputs, strict=True)]
    table = cells.pivot(index="repair", columns="at", values="cell").loc[
        list(dict.fromkeys(cells.repair)), list(dict.fromkeys(cells["at"]))
    ]
    return table.rename(index=REPAIR_LABELS).rename_axis(index=None, columns=None)


def samples_needed(frame: pd.DataFrame, within: float = 1.0) -> pd.Series:
    """Per repair, the fewest unlabelled inputs per task whose average is no more than ``within`` points below the repair's own best."""
    means = frame.groupby(["repair", "inputs"], sort=False).accuracy.mean().reset_index()
    close = means[means.accuracy >= means.groupby("repair").accuracy.transform("max") - within]
    return (
        close.groupby("repair", sort=False)
        .inputs.min()
        .rename(index=REPAIR_LABELS)
        .rename_axis(None)
    )


def beside_published(means: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """What the authors' notebooks print for other networks and tasks, and our TALL-masks, the nearest of our methods (what was merged ->
    ``averages``)."""
    rows = [dict(row) for row in published()["non_local"]]
    for name, setting in [(n, s) for n in means for s in (NON_LOCAL, LOCAL)]:
        frame = means[name]
        mine = frame[(frame.setting == setting) & (frame.method == "tall_masks")].set_index(
            "repair"
        )
        rows.append(
            {
                "network": f"here, {name}",
                "method": encoder_label("tall_masks"),
                "setting": setting,
                "expert": mine.expert.iloc[0],
                "merged": mine.accuracy[PERMUTED],
                "repair": mine.accuracy[REPAIR],
                "tact": mine.accuracy[TACT],
            }
        )
    table = pd.DataFrame(rows).rename(
        columns={"repair": REPAIR_LABELS[REPAIR], "tact": REPAIR_LABELS[TACT]}
    )
    return table.astype(object).where(table.notna(), "")


def numbers_stored(cells: Nonlocality) -> pd.DataFrame:
    """What each repair stores for all tasks beside one merged encoder, in numbers; folded TACT is an encoder per task instead."""
    widths = sum(
        len(m)
        for m in cells.correction(
            LOCAL, cells.methods[0], next(iter(cells.tasks)), TACT
        ).scale.values()
    )
    heads = sum(t.n_classes * (cells.first.encoder.width + 1) for t in cells.tasks.values())
    return pd.DataFrame(
        [
            {
                "repair": REPAIR_LABELS[TACT],
                "numbers": 2 * widths * len(cells.tasks),
                "in place of": "nothing",
            },
            {"repair": REPAIR_LABELS[REPAIR], "numbers": 2 * widths, "in place of": "nothing"},
            {"repair": REPAIR_LABELS[FT], "numbers": heads, "in place of": "the old heads"},
        ]
    )


def answer(means: Mapping[str, pd.DataFrame]) -> str:
    """Markdown, written by the numbers (what was merged -> ``averages``): does an aligned classifier or an activation correction give back
    more, and do they add up?"""
    lines = []
    for name, setting in [
        (n, s) for n, frame in means.items() for s in dict.fromkeys(frame.setting)
    ]:
        mine = means[name][means[name].setting == setting]
        table = mine.pivot(index="method", columns="repair", values="accuracy")
        gain = {r: table[r] - table[PERMUTED] for r in (REPAIR, TACT, FT, TACT_FT)}
        first = int((table[FT] > table[TACT]).sum())
        add = int((table[TACT_FT] > table[[TACT, FT]].max(axis=1)).sum())
        said = ", ".join(
            f"{REPAIR_LABELS[r]} {gain[r].mean():+.1f} ({gain[r].min():+.1f} to {gain[r].max():+.1f})"
            for r in gain
        )
        lines.append(
            f"- **{name.capitalize()}, {setting}.** Points gained over the permuted merge, mean over {len(table)} methods and range: {said}. "
            f"FT-Classifier is above TACT for {first} of {len(table)} methods; together they are above either alone for {add}."
        )
    return "\n".join(lines)


def alt(means: pd.DataFrame, of: str = "texts") -> str:
    """Alt text of the figure, from the numbers themselves; ``of`` says what is classified."""
    said = []
    for method, mine in means.groupby("method", sort=False):
        local, far = (
            mine[mine.setting == s].set_index("repair").accuracy for s in (LOCAL, NON_LOCAL)
        )
        said.append(
            f"{short_label(method)} local {local[RAW]:.1f}, non-local {far[RAW]:.1f}, permuted {far[PERMUTED]:.1f}, REPAIR {far[REPAIR]:.1f}, TACT {far[TACT]:.1f}, "
            f"FT-Classifier {far[FT]:.1f}, both {far[TACT_FT]:.1f}"
        )
    return (
        f"Average accuracy in percent on {of} of local, semi-local and non-local merges, raw and after each repair, a panel per method: "
        f"{'; '.join(said)}; experts {means.expert.mean():.1f}."
    )


def alt_variance(frame: pd.DataFrame) -> str:
    """Alt text of the variance profile, from the numbers themselves."""
    mean = frame.groupby(["method", "stage"], sort=False).ratio.mean()
    said = [f"{short_label(m)}, {stage} {ratio:.2f}" for (m, stage), ratio in mean.items()]
    return f"Activation variance of merges over the experts' from the embeddings to the last block. Mean over sites: {'; '.join(said)}."


def alt_samples(frame: pd.DataFrame) -> str:
    """Alt text of the figure over unlabelled inputs, from the numbers themselves."""
    mean = frame.groupby(["repair", "inputs"], sort=False).accuracy.mean()
    ends = [(r, rows.droplevel(0)) for r, rows in mean.groupby(level=0, sort=False)]
    said = [
        f"{REPAIR_LABELS[r]} from {v.iloc[0]:.1f} with {v.index[0]:.0f} inputs per task to {v.iloc[-1]:.1f} with {v.index[-1]:.0f}"
        for r, v in ends
    ]
    return f"Average accuracy in percent of non-local {short_label(frame.method.iloc[0])} against unlabelled inputs: {'; '.join(said)}."
