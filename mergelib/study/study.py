"""The object that notebooks work with: it reads results from the store, and computes what is
missing."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from ..core import distributed, paths
from ..core.errors import ConfigError, DataError, MissingShotsError, UnknownNameError, shortened
from ..core.identity import code_identity, is_ours
from ..core.meter import Meter
from ..core.names import BASE, FINE_TUNED, MULTI_TASK, RANDOM, REFERENCES
from ..core.progress import progress
from ..core.spare import spare
from ..core.store import Artifact, Store
from ..core.types import (
    Expert,
    Head,
    Inputs,
    Split,
    State,
    Task,
    below,
    head_digest,
    inputs_digest,
    percent,
    state_digest,
)
from ..encoders import Encoder, encoder_state, load_state, released_encoder
from ..encoders.features import FEATURES_VERSION, extract_prepared, pick_device
from ..encoders.tangent import TangentEncoder
from ..foundations import RECIPES, Foundation, shipped
from ..merging import METHODS, PER_TASK, Context, Method, TaskData, get_method
from ..models.compare import COMPARE_VERSION
from ..profiles import Profile, load_profile, with_shortcuts
from ..protocols import (
    DRAWS,
    Evidence,
    current_eval,
    get_preset,
    get_protocol,
    stratified_order,
    uniform_order,
)
from ..tasks import load_task
from ..tasks.build import IMAGES_VERSION
from ..tasks.released import check_label_order, load_checkpoint, released_checkpoint
from ..training.config import resolve_precision
from ..training.experts import FINE_TUNE_VERSION, fine_tune
from ..training.loop import seeded
from .clustering import tsne

MERGE_VERSION = 2
LAM_VERSION = 2
PREDICT_VERSION = 4
TSNE_VERSION = 2
ALIGN_VERSION = 3
DROPOUT_VERSION = 1
MATCH_VERSION = 1
CORRECT_VERSION = 2
STATISTICS_VERSION = 1
VARIANCE_VERSION = 1
CLASSIFIER_VERSION = 1
STEP_VERSIONS = {
    **{r.step: r.version for r in RECIPES.values()},
    "fine_tune": FINE_TUNE_VERSION,
    "multi_task": FINE_TUNE_VERSION,
    "merge": MERGE_VERSION,
    "lam": LAM_VERSION,
    "features": FEATURES_VERSION,
    "predict": PREDICT_VERSION,
    "images": IMAGES_VERSION,
    "tsne": TSNE_VERSION,
    "align": ALIGN_VERSION,
    "dropout": DROPOUT_VERSION,
    "match": MATCH_VERSION,
    "correct": CORRECT_VERSION,
    "statistics": STATISTICS_VERSION,
    "variance": VARIANCE_VERSION,
    "classifier": CLASSIFIER_VERSION,
    "compare": COMPARE_VERSION,
}
"""The version of each step's meaning. Raise one when its results change; every artifact that it
made is then computed again."""

POOL_SEED = 7
REMEMBERED = 100_000  # inputs whose token ids a study keeps in memory
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


def _code(method: Method) -> list[str | None]:
    """The identity of a user's method; nothing for built-in methods, which the step's version
    covers."""
    functions = [f for f in (method.function, method.direction) if f is not None]
    return [None if is_ours(f) else code_identity(f) for f in functions]


def at_edge(lams: Iterable[float], curve: pd.DataFrame) -> list[float]:
    """Those of ``lams`` that lie at an end of a ``lam_curve``'s grid, sorted; none if the grid has
    a single value."""
    grid = set(curve.lam)
    return sorted({lam for lam in lams if lam in (min(grid), max(grid))}) if len(grid) > 1 else []


def check_tasks(tasks: Any, modality: str) -> None:
    """Raises ``ConfigError`` for anything but a dict of tasks under their own names, all of the
    profile's modality."""
    if not isinstance(tasks, dict) or not tasks:
        raise ConfigError(
            f"tasks is a dict of at least one task, {{'tickets': mergelib.task('tickets', "
            f"...)}}, not "
            f"{shortened(type(tasks).__name__)}{' without any' * (tasks == {})}."
        )
    for name, task in tasks.items():
        if not isinstance(task, Task):
            raise ConfigError(
                f"tasks['{shortened(name)}'] is {type(task).__name__}, not a Task; create it with "
                f"mergelib.task."
            )
        if name != task.name:
            raise ConfigError(
                f"tasks['{shortened(name)}'] is the task '{task.name}'; the key must be the "
                f"task's name."
            )
        if name in REFERENCES or "/" in name:
            raise ConfigError(
                f"'{shortened(name)}' cannot name a task; choose another name, without /."
            )
        if task.modality != modality:
            raise ConfigError(
                f"Task '{name}' classifies {task.modality}s, and the profile's encoder reads "
                f"{modality}s; choose another "
                "profile or variant."
            )


class Study:
    """Tasks, f_b, experts, merges, features and scores of one profile, each computed at most once.

    Methods go by their registered name; ``"f_b"``, ``"f_t"``, ``"multi_task"`` and ``"random"``
    (f_b's architecture, untrained) name the reference encoders. A random method's merges are named
    by it and a seed, ``"della#2"``; its plain name means all of them in scores, and the first
    elsewhere.

    Args:
        profile: quick, mini, real or paper: sizes and sources.
        overrides: dotted profile values such as ``{"fine_tuning.steps": 100}``.
        text_dir, base, image_dir: short for ``tasks.text_dir``, ``encoder.base`` and
            ``tasks.image_dir``.
        device: auto, cpu, cuda or mps.
        store: where results are kept; default: the machine's.
        tasks: your own tasks by name, instead of the profile's.
        variant: one of the profile's variants, that is other encoders or other tasks.
        zoo: whether to take methods, grids and options from the profile's section ``zoo``.

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
        zoo: bool = False,
        image_dir: str = "",
    ):
        self.overrides = with_shortcuts(overrides or {}, text_dir, base, image_dir)
        loaded = load_profile(profile, self.overrides, variant)
        self.profile: Profile = (
            loaded.of_zoo() if zoo else loaded.model_copy(update={"zoo": None, "non_local": None})
        )
        self.variant, self.device = variant, pick_device(device)
        self._read: dict[tuple[str, str], Sequence[Any]] = {}
        self.precision = resolve_precision(self.profile.encoder.precision, self.device)
        store = store if isinstance(store, Store) else Store(store or paths.store_root())
        self.store = distributed.shared(store)
        get_preset(self.profile.protocols.ft_preset)
        for method in self.methods:
            get_method(method)
        for method, options in self.profile.merging.options.items():
            get_method(method).try_options(options)
        for method in self.profile.merging.grids:
            if not get_method(method).has_lam:
                raise ConfigError(f"grids: {get_method(method).label} has no lambda; take it out.")
        if tasks is not None:
            check_tasks(tasks, self.profile.tasks.modality)
            self.tasks = dict(tasks)
        self._forget()

    def _forget(self) -> None:
        """Nothing is merged, and no encoder from elsewhere is known."""
        self._merge_infos: dict[tuple[str, ...], dict[str, Any]] = {}
        self._last_merge: tuple[tuple[str, ...], Artifact] | None = None
        self._adopted: dict[tuple[str, str], tuple[str, Callable[[], nn.Module]]] = {}
        self._warned: set[str] = set()

    def given(
        self,
        foundation: Foundation,
        experts: Sequence[Expert],
        *,
        tasks: dict[str, Task],
        profile: Profile,
    ) -> Study:
        """A study on this store with existing f_b and experts, one per task in the tasks' order,
        instead of trained ones; everything else works as usual. ``profile`` says what it merges and
        on how many inputs of ``tasks``. Raises ``ConfigError`` for experts that are not the
        tasks'."""
        if [e.task for e in experts] != list(tasks):
            raise ConfigError(
                f"Experts for {', '.join(e.task for e in experts)} were given, the tasks are "
                f"{', '.join(tasks)}; give one each, in order."
            )
        study = copy.copy(self)
        for cached in ("_base_digest", "_multi_task", "_random"):
            study.__dict__.pop(cached, None)
        study._forget()
        study.profile, study.tasks = profile, tasks
        study._foundation = replace(foundation, state=spare(foundation.state))
        study._experts = {
            e.task: spare(replace(e, info=e.info | {"state_digest": state_digest(e.state)}))
            for e in experts
        }
        return study

    def adopt(self, encoder: str, task: str, identity: str, make: Callable[[], nn.Module]) -> None:
        """Register an encoder made elsewhere, to be scored on a task under the name ``encoder``.
        ``make()`` returns its module; ``identity`` identifies it in the store and must contain
        everything that determines its features. Raises ``ConfigError`` if the name is taken."""
        if encoder in (BASE, FINE_TUNED, MULTI_TASK, RANDOM) or encoder in METHODS:
            raise ConfigError(f"'{encoder}' already names an encoder; choose another name.")
        self._adopted[encoder, task] = identity, make

    def __repr__(self) -> str:
        p = self.profile
        return (
            f"Study(profile='{p.name}', base model: {p.backbone}, tasks: "
            f"{', '.join(p.tasks.names)}, "
            f"methods: {', '.join(self.methods)}, device: {self.device.type})"
        )

    @staticmethod
    def label(method: str) -> str:
        """A merging method's name in tables."""
        return get_method(method).label

    # ---- left of the features: tasks and encoders ------------------------------------------------

    @property
    def methods(self) -> tuple[str, ...]:
        """The profile's merging methods."""
        return self.profile.merging.methods

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """The profile's tasks by name."""
        return {
            name: load_task(name, self.profile, self.store) for name in self.profile.tasks.names
        }

    def task(self, name: str) -> Task:
        """One of the profile's tasks. Raises ``UnknownNameError``."""
        if name not in self.tasks:
            raise UnknownNameError("task", name, self.tasks)
        return self.tasks[name]

    @property
    def precision_key(self) -> dict[str, str]:
        """What the key of features holds in addition to the encoder's weights; nothing for
        float32."""
        return {} if self.precision == "float32" else {"dtype": self.precision}

    def _base_key(self) -> dict[str, Any]:
        settings, tasks = self.profile.encoder, list(self.tasks.values())
        recipe = RECIPES[settings.kind]
        if settings.pretraining is None or recipe.corpus not in ("", self.profile.tasks.source):
            raise ConfigError(
                f"Profile '{self.profile.name}' has no base model: give --base with a hub id or "
                f"folder."
            )
        return self.training_key(recipe.step, settings.pretraining) | recipe.key(
            self.profile, tasks
        )

    def has_base(self) -> bool:
        """Whether f_b is available without pre-training: in the store, or as a hub id or folder."""
        settings = self.profile.encoder
        return (
            bool(settings.base)
            or shipped.find(self.profile) is not None
            or self.store.peek(RECIPES[settings.kind].step, self._base_key()) is not None
        )

    @cached_property
    def _foundation(self) -> Foundation:
        found = self._loaded_or_made()
        if (
            self.profile.encoder.preprocessing == "released"
        ):  # for miniature encoders, too: pre-trained as usual, then read differently
            found = replace(found, encoder=released_encoder(found.encoder))
        if self.profile.encoder.tangent:
            found = replace(found, encoder=TangentEncoder(found.encoder, found.state))
        return found

    def _loaded_or_made(self) -> Foundation:
        settings, tasks = self.profile.encoder, list(self.tasks.values())
        recipe = RECIPES[settings.kind]
        if settings.base:
            return recipe.load(self.profile, tasks)
        if name := shipped.find(self.profile):
            return recipe.open(self.profile, tasks, shipped.read(name))
        key = self._base_key()

        def make() -> Artifact:
            if (
                distributed.world_size() > 1
                # the shares of a masked or contrastive batch do not add up to the batch's gradient
            ):
                raise ConfigError(
                    f"f_b is pre-trained by one process: run `{self._train_command([BASE])}` "
                    f"first, without torchrun."
                )
            return recipe.make(
                self.profile, tasks, self.device, self.store.scratch(recipe.step, key)
            )

        return recipe.open(self.profile, tasks, self.store.get(recipe.step, key, make))

    @property
    def encoder(self) -> Encoder:
        """Architecture and preprocessing, shared by f_b, every f_t and every f_m."""
        return self._foundation.encoder

    @property
    def base_state(self) -> State:
        """theta_b; like all weights from a study, a copy that you may modify."""
        return spare(self._foundation.state)

    @cached_property
    def _base_digest(self) -> str:
        return state_digest(self._foundation.state)

    def training_key(self, step: str, settings: Any) -> dict[str, Any]:
        """What the key of a training with ``settings`` holds in addition to model and data:
        training is the one place where device, threads and library decide the bytes."""
        return {
            "version": STEP_VERSIONS[step],
            "torch": torch.__version__,
            "device": self.device.type,
            "train": {
                **self.profile.train_config(settings, self.device).__dict__,
                "save_every": None,
            },
        }

    def _fine_tuned_key(
        self, step: str, names: Sequence[str], steps_factor: int = 1
    ) -> dict[str, Any]:
        tasks = [self.task(n) for n in names]
        key = self.training_key(step, self.profile.fine_tuning) | {
            "base": self._base_digest,
            "encoder": self.encoder.digest,
            "steps_factor": steps_factor,
            "train_rows": [[t.name, t.n_classes, t.train.digest] for t in tasks],
        }
        if self._foundation.heads:
            key["heads"] = [head_digest(self._foundation.heads[n]) for n in names]
        if (
            self.profile.processes > 1
            # identical settings give bit-identical results; the number of processes changes
            # rounding and dropout
        ):
            key["processes"] = self.profile.processes
        return key

    def _fine_tuned(self, step: str, names: Sequence[str], *, steps_factor: int = 1) -> Artifact:
        key = self._fine_tuned_key(step, names, steps_factor)
        frozen = self._foundation.heads and [self._foundation.heads[n] for n in names]

        def make() -> Artifact:
            if distributed.world_size() != self.profile.processes:
                raise ConfigError(
                    f"f_t of {'+'.join(names)} is not in the store, and processes is "
                    f"{self.profile.processes}, but "
                    f"{distributed.world_size()} would train. Make it with "
                    f"`{self._train_command([MULTI_TASK] if len(names) > 1 else names)}` and the "
                    f"same overrides, "
                    "or set processes to the number of those that train."
                )
            config = self.profile.train_config(
                self.profile.fine_tuning, self.device, steps_factor=steps_factor
            )
            state, heads, info = fine_tune(
                self.encoder,
                self._foundation.state,
                [self.task(n) for n in names],
                config,
                device=self.device,
                heads=frozen,
                scratch=self.store.scratch(step, key),
                desc=f"fine-tune {'+'.join(names)}",
            )
            tensors = {f"encoder.{k}": v for k, v in state.items()}
            for name, head in zip(names, heads, strict=True):
                tensors |= {f"head.{name}.weight": head.weight, f"head.{name}.bias": head.bias}
            return Artifact(tensors, {"state_digest": state_digest(state), "training": info})

        return self.store.get(step, key, make)

    def _train_command(self, only: Sequence[str]) -> str:
        n = self.profile.processes
        launcher = f"torchrun --nproc-per-node {n}" if n > 1 and BASE not in only else "python"
        variant = f" --variant {self.variant}" if self.variant else ""
        return (
            f"{launcher} -m mergelib train --profile {self.profile.name}{variant} "
            f"--only {' '.join(only)}"
        )

    def train(self, name: str) -> Path:
        """Fine-tune a task's expert, or ``"multi_task"``, unless the store has it; returns its
        folder there, without keeping weights in memory. Under torchrun every process must call it,
        in the same order."""
        if self.profile.experts == "released" and name != MULTI_TASK:
            raise ConfigError(
                f"f_t of {name} is a released checkpoint; there is nothing to train. Set experts "
                f"to trained to fine-tune it here."
            )
        step, names, factor = (
            ("multi_task", list(self.tasks), len(self.tasks))
            if name == MULTI_TASK
            else ("fine_tune", [name], 1)
        )
        self._fine_tuned(step, names, steps_factor=factor)
        return self.store.folder(step, self._fine_tuned_key(step, names, factor))

    @staticmethod
    def _unpack(made: Artifact, name: str) -> Expert:
        state = below(made.tensors, "encoder.")
        head = Head(made.tensors[f"head.{name}.weight"], made.tensors[f"head.{name}.bias"])
        return Expert(name, state, head, made.info)

    def expert(self, task: str) -> Expert:
        """f_t and (W_t, b_t), fine-tuned from f_b on the task's training split, or a released
        checkpoint if the profile says so."""
        return spare(self._expert(task))

    def _expert(self, task: str) -> Expert:
        if task not in self._experts:
            if self.profile.experts == "released":
                self._take_released(self.task(task))
            else:
                self._experts[task] = self._unpack(self._fine_tuned("fine_tune", [task]), task)
        return self._experts[task]

    def _take_released(self, task: Task) -> None:
        """A released checkpoint as the task's expert. Raises ``DataError`` if it numbers its
        classes differently from the data."""
        path = released_checkpoint(task.name, self.profile.released_dir)
        expert = load_checkpoint(
            path, task.name, self._foundation.state, self.encoder.width, task.n_classes
        )
        self._experts[task.name] = replace(
            expert, info=expert.info | {"state_digest": state_digest(expert.state)}
        )
        try:
            predicted = expert.head.logits(
                self.features(FINE_TUNED, task.name, "validation")
            ).argmax(-1)
            check_label_order(predicted, task.validation.labels, task, "validation")
        except DataError:
            del self._experts[task.name]
            raise

    @cached_property
    def _experts(self) -> dict[str, Expert]:
        return {}

    def experts(self) -> list[Expert]:
        """One expert per task, in the profile's order."""
        return [self.expert(name) for name in self.tasks]

    def _all_experts(self) -> list[Expert]:
        return [self._expert(name) for name in self.tasks]

    @property
    def baselines(self) -> tuple[str, ...]:
        """Encoders that are trained in addition to the experts: multi-task learning, or none where
        the profile leaves it to the paper."""
        return (MULTI_TASK,) if self.profile.multi_task == "trained" else ()

    def _check_multi_task(self) -> None:
        if not self.baselines:
            raise ConfigError(
                "Multi-task learning is 'paper only' in this profile: no checkpoint of it was "
                "published. Set multi_task to "
                "trained."
            )

    @cached_property
    def _multi_task(self) -> Artifact:
        self._check_multi_task()
        return self._fine_tuned("multi_task", list(self.tasks), steps_factor=len(self.tasks))

    def head(self, encoder: str, task: str) -> Head:
        """The head an encoder is scored with: the expert's, except that multi-task learning has its
        own heads."""
        if encoder == MULTI_TASK:
            return spare(self._unpack(self._multi_task, task).head)
        return spare(self._expert(task).head)

    def _method_options(self, method: str) -> dict[str, Any]:
        return dict(self.profile.merging.options.get(method, {}))

    def merges(self, encoder: str) -> tuple[str, ...]:
        """The encoders that a name refers to: ``merge_seeds`` merges for a random method whose seed
        the profile leaves open, else one."""
        seeds = self.profile.merging.merge_seeds
        found = METHODS.get(encoder)
        if (
            found is None
            or not found.is_random
            or "seed" in self._method_options(encoder)
            or seeds == 1
        ):
            return (encoder,)
        return tuple(f"{encoder}#{seed}" for seed in range(seeds))

    def _merge_key(self, method: Method, options: dict[str, Any]) -> dict[str, Any]:
        experts = self._all_experts()
        key = {
            "method": method.name,
            "code": _code(method),
            "options": options,
            "base": self._base_digest,
            "experts": [[e.task, e.info["state_digest"]] for e in experts],
        }
        if method.needs:
            split = self._data_split(method)
            key["data"] = {
                "encoder": self.encoder.digest,
                "device": self._merge_device.type,
                "heads": [head_digest(e.head) for e in experts],
                "inputs": [
                    (rows.digest if "labels" in method.needs else rows.inputs_digest)
                    for rows in (self.split(t, split) for t in self.tasks)
                ],
            }
        return key

    @property
    def _merge_device(self) -> torch.device:
        """The device for methods that need data; MPS lacks float64, which RegMean and Model Tailor
        need."""
        return torch.device("cpu") if self.device.type == "mps" else self.device

    @staticmethod
    def _data_split(method: Method) -> str:
        return "test" if "test inputs" in method.needs else "pool"

    def _merge_inputs(self, method: Method) -> tuple:
        """The method's arguments: base and experts, and a ``Context`` if it needs data."""
        base, experts = self._foundation.state, [e.state for e in self._all_experts()]
        if not method.needs:
            return base, experts
        to = self._merge_device
        base, *experts = [{n: t.to(to) for n, t in state.items()} for state in (base, *experts)]
        module = self.encoder.module(self._foundation.state).to(to).requires_grad_(False)
        data = []
        for name in self.tasks:
            rows = self.split(name, self._data_split(method))
            labels = rows.labels.to(to) if "labels" in method.needs else None
            data.append(
                TaskData(self.encoder.prepare(rows.inputs), self._expert(name).head.to(to), labels)
            )
        context = Context(
            module,
            module.transformer,
            lambda rows: {k: v.to(to) for k, v in self.encoder.collate(rows).items()},
            tuple(data),
        )
        return base, experts, context

    def lam_curve(self, method: str) -> pd.DataFrame:
        """Validation accuracy under Current Eval per lambda and task: columns method, lam, task,
        accuracy.

        Computed once per method; lambda is then frozen for all protocols. Empty for a method
        without lambda.
        """
        found, curve = get_method(method), []
        if found.has_lam and "lam" not in self._method_options(method):
            curve = self._lam_artifact(found).info["curve"]
        return pd.DataFrame(curve, columns=["method", "lam", "task", "accuracy"])

    def _lam_artifact(self, method: Method) -> Artifact:
        options = self._method_options(method.name)
        lams = self.profile.merging.grids.get(method.name, self.profile.merging.lams)
        key = {
            "version": STEP_VERSIONS["lam"],
            "merge_version": STEP_VERSIONS["merge"],
            **self._merge_key(method, options),
            "lams": list(lams),
            "encoder": self.encoder.digest,
            "validation": {n: t.validation.digest for n, t in self.tasks.items()},
            "heads": [head_digest(e.head) for e in self._all_experts()],
            **self.precision_key,
        }

        def make() -> Artifact:
            rows = []
            module = self.encoder.module()
            base, experts, *context = self._merge_inputs(method)
            scan = zip(lams, method.scan(base, experts, lams, *context, **options), strict=True)
            for lam, merged in progress(scan, desc=f"lambda {method.name}", total=len(lams)):
                for t, (name, task) in enumerate(self.tasks.items()):
                    if method.gives == PER_TASK or t == 0:
                        load_state(module, merged[t] if method.gives == PER_TASK else merged)
                    z = extract_prepared(
                        self.encoder,
                        module,
                        self._prepared(task.validation.inputs),
                        device=self.device,
                        batch_size=self.profile.encoder.batch_size,
                        precision=self.precision,
                    )
                    predicted = current_eval(z, self._expert(name).head)
                    accuracy = (predicted == task.validation.labels).float().mean().item()
                    rows.append(
                        {"method": method.name, "lam": lam, "task": name, "accuracy": accuracy}
                    )
            return Artifact(
                {"accuracy": torch.tensor([r["accuracy"] for r in rows])}, {"curve": rows}
            )

        return self.store.get("lam", key, make)

    def lams(self, method: str) -> dict[str, float]:
        """The method's lambda per task: the best Current Eval on validation data, the smallest one
        in a tie; empty without lambda.

        A method that gives one encoder has one lambda, the best on the mean over tasks; one that
        gives an encoder per task may have several. Warns, once, if a best value lies at an edge of
        the grid.
        """
        fixed = self._method_options(method).get("lam")
        if fixed is not None:
            return dict.fromkeys(self.tasks, fixed)
        curve = self.lam_curve(method)
        if curve.empty:
            return {}
        if get_method(method).gives == PER_TASK:
            best = {
                t: float(rows.groupby("lam").accuracy.mean().idxmax())
                for t, rows in curve.groupby("task", sort=False)
            }
        else:
            best = dict.fromkeys(self.tasks, float(curve.groupby("lam").accuracy.mean().idxmax()))
        edge = at_edge(best.values(), curve)
        if edge and method not in self._warned:
            self._warned.add(method)
            own = method in self.profile.merging.grids
            warnings.warn(
                f"{get_method(method).label}: the best lambda, {edge[0]}, lies on the edge of the "
                f"grid {sorted(set(curve.lam))}; widen "
                f"merging.{f'grids.{method}' if own else 'lams'}.",
                UserWarning,
                stacklevel=3,
            )
        return best

    def lam(self, method: str) -> float | None:
        """The one lambda of a method that gives one encoder, see ``lams``; ``None`` without
        lambda."""
        return next(iter(self.lams(method).values()), None)

    def merged_state(self, method: str, task: str | None = None) -> State:
        """theta_m of a method, with its lambda chosen on validation data; ``task`` for a method
        that gives one per task."""
        return self.weights(method, task or next(iter(self.tasks)))

    def merge_cost(self, method: str) -> dict[str, float]:
        """Wall seconds and peak megabytes of tensors of the method's (first) merge on this machine;
        empty for a merge that was stored before costs were recorded."""
        return self._merge_info(self.merges(method)[0]).get("cost", {})

    @staticmethod
    def _made_by(encoder: str) -> tuple[str, ...]:
        # Keyed by what the method computes, not by its name: a notebook cell may have registered
        # another function under it.
        method = get_method(encoder.partition("#")[0])
        return encoder, method.gives, *method.needs, *map(str, _code(method))

    def _merge_info(self, encoder: str) -> dict[str, Any]:
        """What stays in memory for every merge: its lambda, digests and cost."""
        made_by = self._made_by(encoder)
        if made_by not in self._merge_infos:
            self._merge_infos[made_by] = self._merge(encoder).info
        return self._merge_infos[made_by]

    def _merge(self, encoder: str) -> Artifact:
        """A merge with its weights. Only the last one requested is kept in memory; the others stay
        in the store, since a zoo of them is large."""
        made_by = self._made_by(encoder)
        if self._last_merge is None or self._last_merge[0] != made_by:
            self._last_merge = made_by, self._merged(encoder)
        return self._last_merge[1]

    def _merged(self, encoder: str) -> Artifact:
        name, _, seed = encoder.partition("#")
        method, options, lams = get_method(name), self._method_options(name), self.lams(name)
        if method.is_random:
            options.setdefault("seed", int(seed or 0))
        options.pop("lam", None)  # one of the options is the result of ``lams``
        different = sorted(set(lams.values()))
        chosen = lams if len(different) > 1 else (different[0] if different else None)
        key = {
            "version": STEP_VERSIONS["merge"],
            **self._merge_key(method, options | ({} if chosen is None else {"lam": chosen})),
        }

        def make() -> Artifact:
            inputs = self._merge_inputs(method)
            states: dict[str, State] = {}
            # Measuring slows every operation, so of several seeds' merges only the first is
            # measured.
            with Meter() if encoder == self.merges(name)[0] else nullcontext() as meter:
                for lam in progress(different or [None], desc=f"merge {encoder}"):
                    merged = method(*inputs, **options, **({} if lam is None else {"lam": lam}))
                    if method.gives == PER_TASK:  # with several lambdas, each serves its own tasks
                        states |= {
                            t: merged[i]
                            for i, t in enumerate(self.tasks)
                            if lam is None or lams[t] == lam
                        }
            info = {"lam": chosen}
            if meter:
                meter.cost["seconds"] /= max(1, len(different))
                info["cost"] = meter.cost
            if method.gives == PER_TASK:
                return Artifact(
                    {f"{t}/{n}": v.cpu() for t, state in states.items() for n, v in state.items()},
                    info
                    | {"state_digests": {t: state_digest(state) for t, state in states.items()}},
                )
            state = {n: v.cpu() for n, v in merged.items()}
            return Artifact(state, info | {"state_digest": state_digest(state)})

        return self.store.get("merge", key, make)

    def weights(self, encoder: str, task: str) -> State:
        """An encoder's weights for a task. f_t depends on the task, and so do merges that give one
        per task."""
        return spare(self._identified(encoder, task)[1]())

    def weights_digest(self, encoder: str, task: str) -> str:
        """Identity of an encoder's weights for a task, without reading them again."""
        adopted = self._adopted.get((encoder, task))
        return adopted[0] if adopted else self._identified(encoder, task)[0]

    def module(self, encoder: str, task: str) -> nn.Module:
        """An encoder as a module for a task, in evaluation mode."""
        adopted = self._adopted.get((encoder, task))
        if adopted:
            return adopted[1]()
        return self.encoder.module(self._identified(encoder, task)[1]())

    def _identified(self, encoder: str, task: str) -> tuple[str, Callable[[], State]]:
        """The digest of an encoder's weights for a task, and a function that loads them."""
        if encoder == BASE:
            return self._base_digest, lambda: self._foundation.state
        if encoder == FINE_TUNED:
            expert = self._expert(task)
            return expert.info["state_digest"], lambda: expert.state
        if encoder == MULTI_TASK:
            return self._multi_task.info[
                "state_digest"
            ], lambda: self._unpack(self._multi_task, task).state
        if encoder == RANDOM:
            state, known = self._random
            return known, lambda: state
        info = self._merge_info(encoder)
        if "state_digests" in info:
            return info["state_digests"][task], lambda: below(
                self._merge(encoder).tensors, f"{task}/"
            )
        return info["state_digest"], lambda: self._merge(encoder).tensors

    @cached_property
    def _random(self) -> tuple[State, str]:
        with seeded(self.profile.seed):
            state = encoder_state(self.encoder.module())
        return state, state_digest(state)

    # ---- the features: the narrow point of the road ----------------------------------------------

    def pool(self, task: str) -> Split:
        """The training rows few-shot draws come from: a seeded random subset of ``pool_per_class``
        * C rows."""
        found = self.task(task)
        n = min(len(found.train), self.profile.tasks.pool_per_class * found.n_classes)
        return found.train.subset(
            torch.randperm(len(found.train), generator=torch.Generator().manual_seed(POOL_SEED))[:n]
        )

    def split(self, task: str, split: str) -> Split:
        """``train``, ``validation``, ``test``, ``pool``, or ``fit`` (as many training rows as there
        are test rows)."""
        known = ("train", "validation", "test", "pool", "fit")
        if split not in known:
            raise UnknownNameError("split", split, known)
        if split == "fit":
            found = self.task(task)
            order = torch.randperm(
                len(found.train), generator=torch.Generator().manual_seed(POOL_SEED + 1)
            )
            return found.train.subset(order[: len(found.test)])
        return self.pool(task) if split == "pool" else getattr(self.task(task), split)

    def _prepared(self, inputs: Inputs) -> Sequence[Any]:
        """``encoder.prepare(inputs)``; the last texts are cached, because every encoder of the
        study reads the same ones."""
        if self.profile.tasks.modality != "text":
            return self.encoder.prepare(inputs)
        key = self.encoder.digest, inputs_digest(inputs)
        if key not in self._read:
            self._read[key] = self.encoder.prepare(inputs)
            while sum(map(len, self._read.values())) > REMEMBERED and len(self._read) > 1:
                self._read.pop(next(iter(self._read)))
        return self._read[key]

    def features(self, encoder: str, task: str, split: str = "test") -> Tensor:
        """Z ``[N, d]``: an encoder's features of a task's split, float32 (computed in
        ``encoder.precision``), in the split's order; computed once."""
        inputs = self.split(task, split).inputs
        key = {
            "version": STEP_VERSIONS["features"],
            "encoder": self.encoder.digest,
            "weights": self.weights_digest(encoder, task),
            "inputs": inputs_digest(inputs),
            "dtype": self.precision,
        }

        def make() -> Artifact:
            z = extract_prepared(
                self.encoder,
                self.module(encoder, task),
                self._prepared(inputs),
                device=self.device,
                batch_size=self.profile.encoder.batch_size,
                desc=f"features {encoder} {task} {split}",
                precision=self.precision,
            )
            return Artifact({"features": z})

        return self.store.get("features", key, make).tensors["features"]

    def embedding(self, method: str, task: str, n: int = 400) -> tuple[Tensor, Tensor]:
        """t-SNE of the first n test inputs' f_t and f_m outputs together: points ``[2, n, 2]``
        (f_t, f_m), labels ``[n]``."""
        n = min(n, len(self.task(task).test))
        both = torch.cat([self.features(encoder, task)[:n] for encoder in (FINE_TUNED, method)])
        key = {"version": STEP_VERSIONS["tsne"], "features": state_digest({"z": both})}
        made = self.store.get("tsne", key, lambda: Artifact({"points": tsne(both)}))
        return made.tensors["points"].view(2, n, 2), self.task(task).test.labels[:n]

    # ---- right of the features: draws, protocols, scores -----------------------------------------

    def draws(
        self, task: str, draw: str, fit_on: str = "train", ks: Sequence[int] | None = None
    ) -> Tensor:
        """Rows ``[S, C, k_max]`` of the fit inputs per seed (see ``Evidence``); the same for every
        method and protocol.

        ``draw`` is "stratified", "uniform", "all": every fit input once, ``[1, 1, P]``, or "share":
        ``[S, 1, n_max]``, of which the first n rows are a share of the test set's size. ``ks``
        defaults to the profile's.
        """
        if draw not in DRAWS:
            raise UnknownNameError("draw", draw, DRAWS)
        split = self.split(task, self.fit_split(fit_on))
        if draw == "all":
            return torch.arange(len(split))[None, None]
        n_classes, k_max = self.task(task).n_classes, max(ks or self._ks(task, draw, fit_on))
        if draw == "share":
            return torch.stack(
                [
                    uniform_order(len(split), k_max, seed)[None]
                    for seed in self.profile.protocols.seeds
                ]
            )
        # Uniform rows are laid out so that [:, :k] holds the first k * C of the permutation: nested
        # in k, too.
        orders = [
            stratified_order(split.labels, n_classes, k_max, seed)
            if draw == "stratified"
            else uniform_order(len(split), k_max * n_classes, seed).view(k_max, n_classes).T
            for seed in self.profile.protocols.seeds
        ]
        return torch.stack(orders)

    def _shots(
        self,
        encoder: str,
        task: str,
        protocol: str,
        draw: str,
        fit_on: str,
        ks: Sequence[int] | None = None,
    ) -> tuple[tuple[int, ...], Tensor | None]:
        """The numbers of shots and the draws ``[S, C, k_max]`` of a cell of scores, none without
        shots; what cannot be scored is refused before anything is trained. Raises
        ``UnknownNameError``, ``ConfigError`` and ``DataError``."""
        found = get_protocol(protocol)
        self.task(task)
        name, mark, seed = encoder.partition("#")
        if encoder == MULTI_TASK:
            self._check_multi_task()
        elif encoder not in REFERENCES and (encoder, task) not in self._adopted:
            if mark and not (get_method(name).is_random and seed.isdecimal()):
                raise ConfigError(
                    f"'{encoder}': # must be followed by a seed, an integer, and go with a random "
                    f"method."
                )
            get_method(name)
        if not found.few_shot:
            return (), None
        if draw not in found.draws:
            raise ConfigError(
                f"{found.label} does not take the draw {draw}; use {' or '.join(found.draws)}."
            )
        if encoder == MULTI_TASK and protocol != "knn":
            raise ConfigError(
                f"{found.label} aligns an expert's head; multi-task learning has its own heads."
            )
        ks = tuple(ks or self._ks(task, draw, fit_on))
        try:
            return ks, self.draws(task, draw, fit_on, ks)
        except DataError as error:
            where = self.fit_split(fit_on)
            raise DataError(
                f"Task '{task}', the {where} of {len(self.split(task, where))} rows: {error} "
                f"(protocols.ks, "
                "tasks.pool_per_class)"
            ) from error

    @staticmethod
    def fit_split(fit_on: str) -> str:
        """The split that draws for ``fit_on`` come from; "train" means the pool."""
        if fit_on not in ("train", "test"):
            raise UnknownNameError("fit_on", fit_on, ("train", "test"))
        return "pool" if fit_on == "train" else "test"

    def predictions(
        self,
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

        The key holds the inputs' identity and no label of a scored input, and neither does
        ``Evidence``.
        """
        found = get_protocol(protocol)
        ks, draws = self._shots(encoder, task, protocol, draw, fit_on, ks)
        n_classes = self.task(task).n_classes
        key: dict[str, Any] = {
            "version": STEP_VERSIONS["predict"],
            "protocol": protocol,
            "encoder": self.encoder.digest,
            "weights": self.weights_digest(encoder, task),
            "test": self.task(task).test.inputs_digest,
            "head": head_digest(self.head(encoder, task)),
            **self.precision_key,
        }
        if not is_ours(found.function):  # a user's protocol: its body is its version
            key["code"] = code_identity(found.function)
        if draws is not None:
            classes = self._share_classes(protocol, task, draw, fit_on, draws)
            key |= {} if classes is None else {"classes": state_digest({"classes": classes})}
            key |= {
                "draws": state_digest({"rows": draws}),
                "fit": self.split(task, self.fit_split(fit_on)).inputs_digest,
                "teacher": self._expert(task).info["state_digest"],
                "ks": list(ks),
                "preset": get_preset(self.profile.protocols.ft_preset).__dict__,
            }

        def make() -> Artifact:
            seen = self.evidence(encoder, task, protocol, draw=draw, fit_on=fit_on, ks=ks)
            predicted = found(seen, where=f"{encoder} on task '{task}'")
            small = n_classes <= torch.iinfo(torch.int16).max
            return Artifact(
                {"predicted": predicted.to("cpu", torch.int16 if small else torch.int32)}
            )

        return self.store.get("predict", key, make).tensors["predicted"]

    def evidence(
        self,
        encoder: str,
        task: str,
        protocol: str = "ft_classifier",
        *,
        draw: str = "stratified",
        fit_on: str = "train",
        ks: Sequence[int] | None = None,
    ) -> Evidence:
        """The protocol's evidence, on the study's device. Raises ``ConfigError`` for a fit of
        multi-task learning's heads: no expert can teach them, because they are not the expert's."""
        ks, draws = self._shots(encoder, task, protocol, draw, fit_on, ks)
        to, head = self.device, self.head(encoder, task).to(self.device)
        z = self.features(encoder, task, "test").to(to)
        if draws is None:
            return Evidence(z, head)
        split = self.fit_split(fit_on)
        classes = self._share_classes(protocol, task, draw, fit_on, draws)
        return Evidence(
            z,
            head,
            self.features(encoder, task, split).to(to),
            self.features(FINE_TUNED, task, split).to(to),
            draws.to(to),
            ks,
            get_preset(self.profile.protocols.ft_preset),
            classes if classes is None else classes.to(to),
        )

    def _share_classes(
        self, protocol: str, task: str, draw: str, fit_on: str, draws: Tensor
    ) -> Tensor | None:
        # The classes of a share's rows [S, n_max], for KNN Eval's anchors only.
        if draw != "share" or protocol != "knn" or not is_ours(get_protocol(protocol).function):
            return None
        return self.split(task, self.fit_split(fit_on)).labels[draws[:, 0]]

    def share_counts(self, task: str) -> dict[float, int]:
        """How many inputs the profile's shares (percent of the test set) are for a task; at least
        one."""
        return {
            share: max(1, int(share / 100 * len(self.task(task).test) + 0.5))
            for share in self.profile.protocols.shares
        }

    def _ks(self, task: str, draw: str, fit_on: str) -> tuple[int, ...]:
        if draw == "share":
            return tuple(self.share_counts(task).values())
        return (
            (len(self.split(task, self.fit_split(fit_on))),)
            if draw == "all"
            else self.profile.protocols.ks
        )

    def correct(
        self,
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
        merge. For ``draw="share"`` ``k`` is the share in percent of the test set.
        """
        ks = self.profile.protocols.shares if draw == "share" else self.profile.protocols.ks
        shots = get_protocol(protocol).few_shot and draw != "all"
        if shots and k not in ks:
            raise MissingShotsError(k, ks)
        merges = self.merges(encoder)
        if len(merges) > 1:
            rows = [self.correct(m, task, protocol, k=k, draw=draw, fit_on=fit_on) for m in merges]
            return (
                torch.stack([rows[s % len(rows)][s] for s in range(len(rows[0]))])
                if shots
                else torch.cat(rows)
            )
        if shots and fit_on == "test" and draw != "share":
            ks = (k,)  # a test split may be too small for the largest k
        predicted = self.predictions(
            encoder,
            task,
            protocol,
            draw=draw,
            fit_on=fit_on,
            ks=ks if shots and draw != "share" else None,
        )
        index = ks.index(k) if shots else 0
        return predicted[index] == self.task(task).test.labels

    def scores(
        self,
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
        these rows; shares of the test set have other rows, see ``unlabelled.scores``. Raises
        ``ConfigError`` for such a draw.
        """
        if draw == "share":
            raise ConfigError("Shares are not shots: use mergelib.tables.unlabelled.scores.")
        for names in (encoders, protocols):
            if isinstance(names, str):
                raise ConfigError(f"scores takes lists of names, such as ['{names}'].")
        for task, name, encoder in product(self.tasks, protocols, encoders):
            self._shots(encoder, task, name, draw, fit_on)
        rows = []
        for encoder, task, name in product(encoders, self.tasks.values(), protocols):
            few_shot = get_protocol(name).few_shot
            for k in self.profile.protocols.ks if few_shot and draw != "all" else (None,):
                right = self.correct(encoder, task.name, name, k=k, draw=draw, fit_on=fit_on)
                seeds = self.profile.protocols.seeds
                if not k:  # of a random method the merges'
                    seeds = range(len(right)) if len(right) > 1 else (None,)
                # All columns but the accuracy describe the row.
                row = {
                    "backbone": self.profile.backbone,
                    "task": task.name,
                    "method": encoder,
                    "protocol": name,
                    "n": len(task.test),
                }
                if few_shot:
                    shots = k or self._ks(task.name, draw, fit_on)[0] // task.n_classes
                    row |= {"k": shots, "draw": draw, "fit_on": fit_on}
                rows += [
                    row | {"seed": seed, "accuracy": percent(r)}
                    for seed, r in zip(seeds, right, strict=True)
                ]
        frame = pd.DataFrame(rows).reindex(columns=SCORE_COLUMNS)
        return frame.astype({"k": "Int64", "seed": "Int64"})
