"""Merging experts of several foundations: settings, permutation, corrections (``ext03``).

Foundation A is the profile's f_b. Foundation B is the same model, pre-trained for another number of
steps (semi-local) or from another random start (non-local). Where A comes from elsewhere, B goes on
from it as the variant ``masked_lm`` does: half of its layers (semi-local) or all of them, with
another seed (non-local), start anew. Every second task is fine-tuned from B, the others from A; in
the local setting all are from A. The procedure is that of Sharma et al., 2024 (arXiv 2410.12766):
B's units are matched with A's by the weights of the two foundations alone; the permutation is
applied to B, to the experts from B and to their heads; task vectors start at the common base
(A + B) / 2. The rest is an ordinary study.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from ..core.errors import ConfigError, check_name
from ..core.names import BASE, FINE_TUNED
from ..core.progress import progress
from ..core.store import Artifact
from ..core.types import Expert, Split, State, Task, digest, inputs_digest, percent, state_digest
from ..foundations import Foundation
from ..foundations.further import Further
from ..merging.arithmetic import weight_averaging
from ..profiles import OTHER_BASE, NonLocalSettings, load_profile, variant_names
from ..study import Study
from ..study.merges import float64_device
from ..study.versions import STEP_VERSIONS
from .architectures import spec_for
from .correction import Correction, attach, fold
from .matching import weight_matching
from .sites import Site, sites_for
from .statistics import Statistics, input_moments, measure, resampled_ratio, variance_ratio
from .tact import match_statistics, mean_statistics

LOCAL, SEMI_LOCAL, NON_LOCAL = SETTINGS = ("local", "semi-local", "non-local")
RAW, PERMUTED, REPAIR, TACT = ("raw", "permuted", "repair", "tact")
FT, TACT_FT, TACT_LAST = ("ft_classifier", "tact_ft_classifier", "tact_last")
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
"""All entries after "permuted" apply to the permuted merge. In the local setting, raw and permuted
are the same."""
STAGES = {
    LOCAL: (LOCAL, True),
    **{
        f"{setting}, {PERMUTED if permuted else RAW}": (setting, permuted)
        for setting in (SEMI_LOCAL, NON_LOCAL)
        for permuted in (False, True)
    },
}
"""Table label -> setting, and whether B is permuted."""
FOLLOWED = tuple(s for s in STAGES if s != f"{SEMI_LOCAL}, {RAW}")
ONE_BATCH = 2048  # inputs per forward pass; with more than one batch, TACT needs a pass per site


class Nonlocality:
    """One study per setting, all on one store, with every merge and repair by name.

    Args:
        profile: One with a section ``non_local``.
        options: Of a ``Study``: overrides, device, store, variant, text_dir, base and image_dir.

    Raises:
        ConfigError: The profile lacks that section, or its base model was pre-trained elsewhere and
            cannot go on, so that there is no second foundation.
    """

    def __init__(self, profile: str = "mini", **options: Any):
        self._make = partial(Study, profile, **options)
        self.first = first = self._make()
        self.profile = load_profile(profile, first.overrides, first.variant).of_non_local()
        encoder, variants = self.profile.encoder, variant_names(profile)
        self._goes_on = bool(encoder.base) and not first.variant and OTHER_BASE in variants
        if self._goes_on:  # refuses other architectures before any training
            further = Further(self._others[NON_LOCAL].profile, ())
            further.kept(Foundation(first.encoder, first.base_state))
        elif encoder.base or encoder.pretraining is None:
            raise ConfigError(
                "No second foundation can be made: leave encoder.base out, or give a BERT to a "
                f"profile with a variant {OTHER_BASE}."
            )
        self._studies: dict[tuple[str, bool], Study] = {}

    @cached_property
    def _others(self) -> dict[str, Study]:
        steps, seed = self.settings.semi_local_steps, self.settings.non_local_seed
        changes, options = {SEMI_LOCAL: {"steps": steps}, NON_LOCAL: {"seed": seed}}, {}
        if self._goes_on:
            layers, options = self.first.encoder.config.num_hidden_layers, {"variant": OTHER_BASE}
            changes[SEMI_LOCAL] |= {"fresh_layers": layers // 2}
            changes[NON_LOCAL] |= {"steps": steps, "fresh_layers": layers}
        studies = {}
        for setting, change in changes.items():
            dotted = {f"encoder.pretraining.{name}": value for name, value in change.items()}
            overrides = self.first.overrides | dotted
            studies[setting] = self._make(**options | {"overrides": overrides})
        return studies

    @property
    def settings(self) -> NonLocalSettings:
        return self.profile.non_local

    @property
    def methods(self) -> tuple[str, ...]:
        return self.profile.merging.methods

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """The profile's tasks with only the first rows of validation and test."""

        def first(split: Split, n: int) -> Split:
            return split.subset(range(min(n, len(split))))

        n_validation, n_test = self.settings.n_validation, self.settings.n_test
        return {
            n: replace(t, validation=first(t.validation, n_validation), test=first(t.test, n_test))
            for n, t in self.first.tasks.items()
        }

    @property
    def from_b(self) -> tuple[str, ...]:
        """The tasks whose experts come from foundation B (every second one), except in the local
        setting."""
        return tuple(self.tasks)[1::2]

    def second(self, setting: str) -> Study:
        """The study of foundation B; in the local setting, that of A. Raises
        ``UnknownNameError``."""
        check_name("setting", setting, SETTINGS)
        return self.first if setting == LOCAL else self._others[setting]

    def permutation(self, setting: str) -> dict[str, Tensor]:
        """The permutations that bring B's units into the order of A's, from the foundations'
        weights alone."""
        a, b, seed = self.first, self.second(setting), self.profile.seed
        key = {
            "version": STEP_VERSIONS["match"],
            "encoder": a.encoder.digest,
            "a": a.weights_digest(BASE, ""),
            "b": b.weights_digest(BASE, ""),
            "seed": seed,
        }

        def make() -> Artifact:
            matching = weight_matching(
                spec_for(a.encoder.config),
                a.base_state,
                b.base_state,
                seed=seed,
                progress=partial(progress, desc=f"match {setting}"),
            )
            info = {"objective": list(matching.objective), "converged": matching.converged}
            return Artifact(matching.permutations, info)

        return a.store.get("match", key, make).tensors

    def study(self, setting: str, *, permuted: bool = True) -> Study:
        """The setting as a study: the common base as f_b, an expert and a head per task."""
        key = setting, permuted or setting == LOCAL
        if key not in self._studies:
            a, b = self.first, self.second(setting)
            from_b = () if setting == LOCAL else self.from_b
            experts = {t: (b if t in from_b else a).expert(t) for t in self.tasks}
            common, base = a.base_state, b.base_state
            if setting != LOCAL:
                if permuted:
                    spec, order = spec_for(a.encoder.config), self.permutation(setting)
                    base = spec.apply(order, base)
                    for t in from_b:
                        state = spec.apply(order, experts[t].state)
                        head = spec.permute_head(experts[t].head, order)
                        experts[t] = Expert(t, state, head, experts[t].info)
                common = weight_averaging(a.base_state, [a.base_state, base])
            self._studies[key] = a.given(
                Foundation(a.encoder, common),
                list(experts.values()),
                tasks=self.tasks,
                profile=self.profile,
            )
        return self._studies[key]

    # ---- corrections ----

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        return sites_for(self.first.encoder.config)

    @property
    def _device(self) -> torch.device:
        return float64_device(self.first)

    def rows(self, task: str, k: int | None = None, seed: int = 0) -> Tensor:
        """Rows of the task's pool that a fit uses: all, or k * C drawn uniformly, without
        labels."""
        study = self.study(LOCAL)
        if k is None:
            return torch.arange(len(study.pool(task)))
        place = self.profile.protocols.seeds.index(seed)
        return study.draws(task, "uniform")[place, :, :k].flatten()

    def batches(self, rows: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Rows of each task's pool, task after task, as batches on the device of the fits."""
        encoder, prepared = self.first.encoder, []
        for task, chosen in rows.items():
            prepared += list(encoder.prepare(self.study(LOCAL).pool(task).subset(chosen).inputs))
        return [
            {n: t.to(self._device) for n, t in encoder.collate(prepared[i : i + ONE_BATCH]).items()}
            for i in range(0, len(prepared), ONE_BATCH)
        ]

    def _module(self, study: Study, encoder: str, task: str) -> nn.Module:
        return study.module(encoder, task).to(self._device).requires_grad_(False)

    def _stored(
        self,
        step: str,
        study: Study,
        rows: Mapping[str, Tensor],
        make: Callable[[], State],
        **key: Any,
    ) -> State:
        """What ``make`` computes from these rows of each task's pool, by the store."""
        pool = self.study(LOCAL).pool
        key |= {
            "version": STEP_VERSIONS[step],
            "encoder": study.encoder.digest,
            "inputs": [inputs_digest(pool(t).subset(chosen).inputs) for t, chosen in rows.items()],
            "device": self._device.type,
        }
        return study.store.get(step, key, lambda: Artifact(make())).tensors

    def _statistics(
        self, study: Study, encoder: str, task: str, rows: Mapping[str, Tensor]
    ) -> Statistics:
        def make() -> State:
            module = self._module(study, encoder, task)
            return measure(module, self.sites, self.batches(rows)).tensors()

        weights = study.weights_digest(encoder, task)
        return Statistics.of(self._stored("statistics", study, rows, make, weights=weights))

    def statistics(
        self, setting: str, encoder: str, task: str, *, permuted: bool = True
    ) -> Statistics:
        """Statistics of an encoder of a setting on the task's pool."""
        study = self.study(setting, permuted=permuted)
        return self._statistics(study, encoder, task, {task: self.rows(task)})

    def correction(
        self, setting: str, method: str, task: str, kind: str, k: int | None = None, seed: int = 0
    ) -> Correction:
        """A permuted merge's correction for a task.

        Args:
            setting: One of ``SETTINGS``.
            method: A merging method.
            task: A task's name.
            kind: TACT or TACT_LAST, from the task's own pool, or REPAIR, from the pools of all.
            k: Unlabelled inputs per class, drawn uniformly; ``None`` for the whole pool.
            seed: Of that draw, one of the profile's.
        """
        study, over = self.study(setting), list(self.tasks) if kind == REPAIR else [task]
        rows = {t: self.rows(t, k, seed) for t in over}

        def make() -> State:
            module, batches = self._module(study, method, task), self.batches(rows)
            target = mean_statistics([self._statistics(study, FINE_TUNED, t, rows) for t in over])
            sites = self.sites[-1:] if kind == TACT_LAST else self.sites
            return match_statistics(module, sites, batches, target).tensors()

        key = {
            "kind": kind,
            "merged": study.weights_digest(method, task),
            "experts": [study.weights_digest(FINE_TUNED, t) for t in over],
        }
        return Correction.of(self._stored("correct", study, rows, make, **key))

    def corrected(
        self, setting: str, method: str, task: str, kind: str, k: int | None = None, seed: int = 0
    ) -> str:
        """The name under which the setting's study scores a corrected merge on a task; arguments
        are those of ``correction``."""
        study, name = self.study(setting), f"{method} {kind}" + (f" k={k} seed={seed}" if k else "")
        correction = self.correction(setting, method, task, kind, k, seed)

        def make() -> nn.Module:
            state, rest = fold(correction, self.sites, study.weights(method, task))
            module = study.encoder.module(state)
            if rest.scale:
                attach(module, self.sites, rest)
            return module

        identity = digest(
            "corrected",
            str(STEP_VERSIONS["correct"]),
            study.weights_digest(method, task),
            state_digest(correction.tensors()),
        )
        study.adopt(name, task, identity, make)
        return name

    # ---- scores ----

    def correct(self, setting: str, method: str, repaired: str, task: str) -> Tensor:
        """Which test inputs are classified correctly, bool ``[1, N]``, after a repair fitted on the
        whole pool.

        Args:
            setting: One of ``SETTINGS``.
            method: A merging method; ``f_t`` for the experts.
            repaired: A key of ``REPAIR_LABELS``; for all but ``raw``, units are permuted first.
            task: A task's name.

        Raises:
            UnknownNameError: There is no such repair.
        """
        check_name("repair", repaired, REPAIR_LABELS)
        study, encoder = self.study(setting, permuted=repaired != RAW), method
        kind = TACT if repaired == TACT_FT else repaired
        if kind in (REPAIR, TACT, TACT_LAST):
            encoder = self.corrected(setting, method, task, kind)
        protocol = "ft_classifier" if repaired in (FT, TACT_FT) else "current"
        return study.correct(encoder, task, protocol, draw="all")

    def scores(
        self, repairs: Sequence[str] = REPAIRS, settings: Sequence[str] = SETTINGS
    ) -> pd.DataFrame:
        """A row per setting, method, repair and task: accuracy of merge and expert, percent."""
        cells = list(itertools.product(settings, self.methods, repairs, self.tasks))
        rows = []
        for s, m, r, t in progress(cells, desc="merges and repairs"):
            accuracies = (self.correct(s, *of, t)[0] for of in ((m, r), (FINE_TUNED, PERMUTED)))
            rows.append((s, m, r, t, *map(percent, accuracies)))
        columns = ["setting", "method", "repair", "task", "accuracy", "expert"]
        return pd.DataFrame(rows, columns=columns)

    def samples(self, method: str) -> pd.DataFrame:
        """A row per k, seed and repair (TACT, FT-Classifier, both) of a non-local merge: average
        accuracy, percent.

        Repairs are fitted to k * C unlabelled inputs per task.
        """
        study, protocols, rows = self.study(NON_LOCAL), self.profile.protocols, []
        n_classes = sum(t.n_classes for t in self.tasks.values())

        def accuracy(repaired: str, k: int, s: int, task: str) -> float:
            encoder = method
            if repaired != FT:
                encoder = self.corrected(NON_LOCAL, method, task, TACT, k, protocols.seeds[s])
            if repaired == TACT:
                return percent(study.correct(encoder, task, "current")[0])
            predicted = study.predictions(encoder, task, "ft_classifier", draw="uniform", ks=(k,))
            return percent(predicted[0, s] == self.tasks[task].test.labels)

        for k in progress(protocols.ks, desc="unlabelled inputs"):
            for s, seed in enumerate(protocols.seeds):
                for repaired in (TACT, FT, TACT_FT):
                    each = [accuracy(repaired, k, s, t) for t in self.tasks]
                    inputs = k * n_classes / len(self.tasks)
                    rows.append((method, repaired, k, seed, inputs, sum(each) / len(each)))
        return pd.DataFrame(rows, columns=["method", "repair", "k", "seed", "inputs", "accuracy"])

    # ---- variance ----

    def variances(self, method: str, stages: Sequence[str] = FOLLOWED) -> pd.DataFrame:
        """A row per stage (of ``STAGES``) and site: variance of the merge over the expert's.

        Averaged over channels and tasks.
        """
        rows = []
        for stage in stages:
            setting, permuted = STAGES[stage]
            at = partial(self.statistics, setting, permuted=permuted)
            ratios = [variance_ratio(at(method, t), at(FINE_TUNED, t)) for t in self.tasks]
            for i, s in enumerate(self.sites):
                ratio = sum(r[s.name] for r in ratios) / len(ratios)
                rows.append((method, stage, s.name, s.kind, s.block, i, ratio))
        columns = ["method", "stage", "site", "kind", "block", "place", "ratio"]
        return pd.DataFrame(rows, columns=columns)

    def variance(self, setting: str, method: str, task: str, weights: Tensor) -> Tensor:
        """Variance of the permuted merge over the expert's, mean over channels and sites.

        Args:
            setting: Which foundations.
            method: The merge.
            task: Its pool is measured on.
            weights: How often each input of the pool counts, ``[B, P]``.

        Returns:
            ``[B]`` float64.
        """
        study, rows = self.study(setting), {task: self.rows(task)}

        def make() -> State:
            batches = self.batches(rows)
            moments = (
                input_moments(self._module(study, e, task), self.sites, batches)
                for e in (method, FINE_TUNED)
            )
            return {"ratio": resampled_ratio(*moments, weights.to(self._device))}

        key = {
            "merged": study.weights_digest(method, task),
            "expert": study.weights_digest(FINE_TUNED, task),
            "weights": state_digest({"weights": weights}),
        }
        return self._stored("variance", study, rows, make, **key)["ratio"]
