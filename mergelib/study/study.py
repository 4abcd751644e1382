"""The object that notebooks work with: it reads results from the store, and computes what is
missing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from ..core import distributed, paths
from ..core.errors import ConfigError, check_name, shortened
from ..core.names import MULTI_TASK, REFERENCES
from ..core.spare import spare
from ..core.store import Artifact, Store
from ..core.types import Expert, Split, State, Task, state_digest
from ..encoders import Encoder, encoder_state
from ..encoders.features import pick_device
from ..foundations import Foundation
from ..merging import get_method
from ..profiles import OTHER_BASE, Profile, load_profile, variant_names, with_shortcuts
from ..protocols import get_preset
from ..tasks import load_task
from ..training.config import resolve_precision
from ..training.loop import seeded
from . import experts as of_experts
from . import features as of_features
from . import merges as of_merges
from . import scores as of_scores

SHOWN = """adopt base_state baselines bases correct device draws embedding encoder evidence expert
experts features head label lam lam_curve merged_state methods pool predictions profile scores task
tasks"""
"""What ``dir`` and completion show: the rest serves notebooks' tables and other rooms."""


def _check_tasks(tasks: Any, profile: Profile) -> None:
    """Raises ``ConfigError`` for anything but a dict of tasks under their own names, all of the
    modality and size that the profile's encoder reads."""
    modality, size = profile.tasks.modality, profile.encoder.image_size
    if not isinstance(tasks, dict) or not tasks:
        raise ConfigError(
            "tasks is a dict of at least one task, {'tickets': mergelib.task('tickets', ...)}, "
            f"not {shortened(type(tasks).__name__)}{' without any' * (tasks == {})}."
        )
    for name, task in tasks.items():
        where = f"tasks['{shortened(name)}']"
        if not isinstance(task, Task):
            raise ConfigError(
                f"{where} is {type(task).__name__}, not a Task; "
                "create it with mergelib.task or mergelib.image_task."
            )
        if name != task.name:
            raise ConfigError(f"{where} is the task '{task.name}'; the key must be its name.")
        if name in REFERENCES or "/" in name:
            raise ConfigError(
                f"'{shortened(name)}' cannot name a task; choose another name, without /."
            )
        if task.modality != modality:
            raise ConfigError(
                f"Task '{name}' classifies {task.modality}s, and the profile's encoder reads "
                f"{modality}s; choose another profile or variant."
            )
        if modality == "image" and task.train.inputs.shape[-1] != size:
            raise ConfigError(f"Task '{name}': the encoder reads {size} pixels; say size={size}.")


class Study:
    """Tasks, f_b, experts, merges, features and scores of one profile, each computed at most once.

    Methods go by their registered name; ``"f_b"``, ``"f_t"``, ``"multi_task"`` and ``"random"``
    (f_b's architecture, untrained) name the reference encoders. A random method's merges are named
    by it and a seed, ``"della#2"``; its plain name means all of them in scores, and the first
    elsewhere.

    Args:
        profile: quick, mini, real, real_mpnet or paper: sizes and sources.
        overrides: dotted profile values such as ``{"fine_tuning.steps": 100}``.
        text_dir, base, image_dir: short for ``tasks.text_dir``, ``encoder.base`` and
            ``tasks.image_dir``.
        device: auto, cpu, cuda or mps.
        store: where results are kept; default: the machine's.
        tasks: your own tasks by name, instead of the profile's.
        variant: one of the profile's variants, that is other encoders or other tasks.
        every_method: whether to take methods, grids and options from the profile's section
            ``every_method``.

    Raises:
        UnknownNameError, ConfigError: before anything runs.

    Example:
        >>> study = mergelib.Study("quick", overrides={"tasks.names": ["ag", "yelp"]})
        >>> scores = study.scores(["weight_averaging"], ["current", "ft_classifier"])
        >>> scores.groupby("protocol").accuracy.mean().index.tolist()
        ['current', 'ft_classifier']
        >>> study.features("weight_averaging", "ag").shape  # N test inputs, d
        torch.Size([120, 32])
    """

    def __init__(
        self,
        profile: str = "mini",
        *,
        overrides: dict[str, Any] | None = None,
        text_dir: str = "",
        base: str = "",
        device: str = "auto",
        store: Store | str | Path | None = None,
        tasks: dict[str, Task] | None = None,
        variant: str = "",
        every_method: bool = False,
        image_dir: str = "",
    ):
        self.overrides = with_shortcuts(overrides or {}, text_dir, base, image_dir)
        loaded = load_profile(profile, self.overrides, variant)
        self.profile: Profile = (
            loaded.of_every_method()
            if every_method
            else loaded.model_copy(update={"every_method": None, "non_local": None})
        )
        self.variant, self.device = variant, pick_device(device)
        self.precision = resolve_precision(self.profile.encoder.precision, self.device)
        store = store if isinstance(store, Store) else Store(store or paths.store_root())
        self.store = distributed.shared(store)
        get_preset(self.profile.protocols.ft_preset)
        settings = self.profile.merging
        for method in (*self.methods, *settings.options):
            get_method(method).try_options(settings.options.get(method, {}))
        for method in settings.grids:
            if not get_method(method).has_lam:
                raise ConfigError(f"grids: {get_method(method).label} has no lambda; take it out.")
        if tasks is not None:
            _check_tasks(tasks, self.profile)
            self.tasks = dict(tasks)
        self._read: dict[tuple[str, str], Sequence[Any]] = {}
        self._start({})

    def _start(self, known: dict[str, Expert]) -> None:
        """These experts are known, and nothing is merged."""
        self._experts = known
        self._merge_infos: dict[tuple, dict[str, Any]] = {}
        self._last_merge: dict[tuple, Artifact] = {}
        self._adopted: dict[tuple[str, str], tuple[str, Callable[[], nn.Module]]] = {}
        self._warned: set[str] = set()
        self._pools: dict[str, Split] = {}
        self._scratch: nn.Module | None = None

    def __repr__(self) -> str:
        p = self.profile
        return (
            f"Study(profile='{p.name}', base model: {p.backbone}, "
            f"tasks: {', '.join(p.tasks.names)}, methods: {', '.join(self.methods)}, "
            f"device: {self.device.type})"
        )

    def __dir__(self) -> list[str]:
        return SHOWN.split()

    def given(
        self,
        foundation: Foundation,
        experts: Sequence[Expert],
        *,
        tasks: dict[str, Task],
        profile: Profile,
    ) -> Study:
        """A study on this store with existing f_b and experts, one per task in the tasks' order,
        instead of trained ones; everything else works as usual.

        Args:
            foundation: The encoder and theta_b.
            experts: f_t and head of each task.
            tasks: Name -> task.
            profile: What is merged, and on how many inputs of ``tasks``.

        Raises:
            ConfigError: The experts are not the tasks'.
        """
        if [e.task for e in experts] != list(tasks):
            raise ConfigError(
                f"Experts for {', '.join(e.task for e in experts)} were given, the tasks are "
                f"{', '.join(tasks)}; give one each, in order."
            )
        study = copy.copy(self)
        for cached in ("_base_digest", "_multi_task", "_random"):
            study.__dict__.pop(cached, None)
        study.profile, study.tasks = profile, tasks
        study._foundation = replace(foundation, state=spare(foundation.state))
        study._start({e.task: spare(of_experts.with_digest(e)) for e in experts})
        return study

    def bases(self) -> dict[str, Study]:
        """This study and, where its profile has a variant ``masked_lm`` and f_b is a BERT, the same
        with that f_b, by the base model's name."""
        studies = {self.profile.backbone: self}
        has_variant = not self.variant and OTHER_BASE in variant_names(self.profile.name)
        if has_variant and self.encoder.config.model_type == "bert":
            other = Study(
                self.profile.name,
                overrides=self.overrides,
                device=self.device.type,
                store=self.store,
                tasks=self.tasks,
                variant=OTHER_BASE,
            )
            studies[other.profile.backbone] = other
        return studies

    # ---- tasks, f_b and experts ------------------------------------------------------------------

    @property
    def methods(self) -> tuple[str, ...]:
        """The profile's merging methods."""
        return self.profile.merging.methods

    @staticmethod
    def label(method: str) -> str:
        """A merging method's name in tables."""
        return get_method(method).label

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """The profile's tasks by name."""
        return {
            name: load_task(name, self.profile, self.store) for name in self.profile.tasks.names
        }

    def task(self, name: str) -> Task:
        """One of the profile's tasks. Raises ``UnknownNameError``."""
        check_name("task", name, self.tasks)
        return self.tasks[name]

    @cached_property
    def _foundation(self) -> Foundation:
        return of_experts.foundation(self)

    @cached_property
    def _base_digest(self) -> str:
        return state_digest(self._foundation.state)

    @cached_property
    def _multi_task(self) -> Artifact:
        of_experts.check_multi_task(self)
        return of_experts.trained(self, MULTI_TASK)

    @cached_property
    def _random(self) -> tuple[State, str]:
        with seeded(self.profile.seed):
            state = encoder_state(self.encoder.module())
        return state, state_digest(state)

    @property
    def encoder(self) -> Encoder:
        """Architecture and preprocessing, shared by f_b, every f_t and every f_m."""
        return self._foundation.encoder

    @property
    def base_state(self) -> State:
        """theta_b; like all weights from a study, a copy that you may modify."""
        return spare(self._foundation.state)

    @property
    def baselines(self) -> tuple[str, ...]:
        """Encoders that are trained in addition to the experts: multi-task learning, or none where
        the profile leaves it to the paper."""
        return (MULTI_TASK,) if self.profile.multi_task == "trained" else ()

    # ---- what the modules of this room define: functions of a study ------------------------------

    train = of_experts.train
    expert = of_experts.expert
    experts = of_experts.experts
    head = of_experts.head

    lam_curve = of_merges.lam_curve
    lams = of_merges.lams
    lam = of_merges.lam
    merges = of_merges.merges
    merged_state = of_merges.merged_state
    merge_cost = of_merges.merge_cost
    weights = of_merges.weights
    weights_digest = of_merges.weights_digest
    module = of_merges.module
    _loaded = of_merges.loaded
    adopt = of_merges.adopt

    split = of_features.split
    pool = of_features.pool
    features = of_features.features
    embedding = of_features.embedding

    draws = of_scores.draws
    share_counts = of_scores.share_counts
    evidence = of_scores.evidence
    predictions = of_scores.predictions
    correct = of_scores.correct
    scores = of_scores.scores
