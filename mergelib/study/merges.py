"""Merges: lambda chosen on validation data, then the merged weights; and every encoder by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import nn

from ..core.errors import ConfigError, warn
from ..core.identity import code_identity, is_ours
from ..core.meter import Meter
from ..core.names import BASE, FINE_TUNED, MULTI_TASK, RANDOM, REFERENCES
from ..core.progress import progress
from ..core.spare import spare
from ..core.store import Artifact
from ..core.types import State, below, head_digest, state_digest
from ..encoders import load_state
from ..merging import METHODS, PER_TASK, Context, Method, TaskData, get_method
from ..protocols import current_eval
from . import experts, features
from .versions import STEP_VERSIONS

if TYPE_CHECKING:
    from .study import Study


def at_edge(lams: Iterable[float], curve: pd.DataFrame) -> list[float]:
    """Those of ``lams`` that lie at an end of a ``lam_curve``'s grid, sorted; none if the grid has
    a single value."""
    grid = set(curve.lam)
    return sorted({lam for lam in lams if lam in (min(grid), max(grid))}) if len(grid) > 1 else []


def merges(study: Study, encoder: str) -> tuple[str, ...]:
    """The encoders that a name refers to: ``merge_seeds`` merges for a random method whose seed
    the profile leaves open, else one."""
    seeds, method = study.profile.merging.merge_seeds, METHODS.get(encoder)
    if seeds == 1 or not (method and method.is_random) or "seed" in _options(study, encoder):
        return (encoder,)
    return tuple(f"{encoder}#{seed}" for seed in range(seeds))


def _options(study: Study, method: str) -> dict[str, Any]:
    return dict(study.profile.merging.options.get(method, {}))


def _code(method: Method) -> list[str | None]:
    """The identity of a user's method; nothing for built-in methods, which the step's version
    covers."""
    functions = [f for f in (method.function, method.direction) if f is not None]
    return [None if is_ours(f) else code_identity(f) for f in functions]


# ---- what a method sees --------------------------------------------------------------------------


def float64_device(study: Study) -> torch.device:
    """The device for methods that need data and for statistics of activations: MPS lacks float64,
    which RegMean, Model Tailor and these need."""
    return torch.device("cpu") if study.device.type == "mps" else study.device


def _split(method: Method) -> str:
    return "test" if "test inputs" in method.needs else "pool"


def _key(study: Study, method: Method, options: dict[str, Any]) -> dict[str, Any]:
    fine_tuned = experts.own_experts(study)
    key = {
        "method": method.name,
        "code": _code(method),
        "options": options,
        "base": study.weights_digest(BASE, ""),
        "experts": [[e.task, e.info["state_digest"]] for e in fine_tuned],
    }
    if method.needs:
        rows = [study.split(t, _split(method)) for t in study.tasks]
        key["data"] = {
            "encoder": study.encoder.digest,
            "device": float64_device(study).type,
            "heads": [head_digest(e.head) for e in fine_tuned],
            "inputs": [r.digest if "labels" in method.needs else r.inputs_digest for r in rows],
        }
    return key


def arguments(study: Study, method: Method) -> tuple:
    """The method's arguments: base and experts, and a ``Context`` if it needs data."""
    fine_tuned = experts.own_experts(study)
    states = [study._foundation.state, *(e.state for e in fine_tuned)]
    if not method.needs:
        return states[0], states[1:]
    device = float64_device(study)
    base, *states = [{n: t.to(device) for n, t in state.items()} for state in states]
    module = study.encoder.module(study._foundation.state).to(device).requires_grad_(False)
    data = []
    for expert in fine_tuned:
        rows = study.split(expert.task, _split(method))
        labels = rows.labels.to(device) if "labels" in method.needs else None
        data.append(TaskData(study.encoder.prepare(rows.inputs), expert.head.to(device), labels))
    context = Context(
        module,
        module.transformer,
        lambda rows: {k: v.to(device) for k, v in study.encoder.collate(rows).items()},
        tuple(data),
    )
    return base, states, context


# ---- lambda --------------------------------------------------------------------------------------


def lam_curve(study: Study, method: str) -> pd.DataFrame:
    """Validation accuracy under Current Eval per lambda and task: columns method, lam, task,
    accuracy.

    Computed once per method; lambda is then frozen for all protocols. Empty for a method
    without lambda.
    """
    is_scanned = get_method(method).has_lam and "lam" not in _options(study, method)
    curve = lam_scan(study, method).info["curve"] if is_scanned else []
    return pd.DataFrame(curve, columns=["method", "lam", "task", "accuracy"])


def lam_scan(study: Study, name: str) -> Artifact:
    """The method's curve over its grid, as the store keeps it."""
    method, options = get_method(name), _options(study, name)
    lams = study.profile.merging.grids.get(name, study.profile.merging.lams)
    heads = [e.head for e in experts.own_experts(study)]
    key = {
        "version": STEP_VERSIONS["lam"],
        "merge_version": STEP_VERSIONS["merge"],
        **_key(study, method, options),
        "lams": list(lams),
        "encoder": study.encoder.digest,
        "validation": {n: t.validation.digest for n, t in study.tasks.items()},
        "heads": [head_digest(head) for head in heads],
        **features.precision_key(study),
    }

    def make() -> Artifact:
        curve, per_task = [], method.gives == PER_TASK
        module = study.encoder.module()
        base, states, *context = arguments(study, method)
        scan = zip(lams, method.scan(base, states, lams, *context, **options), strict=True)
        for lam, merged in progress(scan, desc=f"lambda {name}", total=len(lams)):
            for i, (task, rows) in enumerate(study.tasks.items()):
                if per_task or i == 0:
                    load_state(module, merged[i] if per_task else merged)
                z = features.extracted(study, module, rows.validation.inputs)
                right = current_eval(z, heads[i]) == rows.validation.labels
                accuracy = right.float().mean().item()
                curve.append({"method": name, "lam": lam, "task": task, "accuracy": accuracy})
        return Artifact(
            {"accuracy": torch.tensor([r["accuracy"] for r in curve])}, {"curve": curve}
        )

    return study.store.get("lam", key, make)


def lams(study: Study, method: str) -> dict[str, float]:
    """The method's lambda per task: the best Current Eval on validation data, the smallest one
    in a tie; empty without lambda.

    A method that gives one encoder has one lambda, the best on the mean over tasks; one that
    gives an encoder per task may have several. Warns, once, if a best value lies at an edge of
    the grid.
    """
    fixed = _options(study, method).get("lam")
    if fixed is not None:
        return dict.fromkeys(study.tasks, fixed)
    curve = study.lam_curve(method)
    if curve.empty:
        return {}
    curves = dict.fromkeys(study.tasks, curve)
    if get_method(method).gives == PER_TASK:
        curves = dict(iter(curve.groupby("task", sort=False)))
    best = {t: float(c.groupby("lam").accuracy.mean().idxmax()) for t, c in curves.items()}
    edge = at_edge(best.values(), curve)
    if edge and method not in study._warned:
        study._warned.add(method)
        own = method in study.profile.merging.grids
        warn(
            f"{get_method(method).label}: the best lambda, {edge[0]}, lies on the edge of the "
            f"grid {sorted(set(curve.lam))}; widen merging.{f'grids.{method}' if own else 'lams'}."
        )
    return best


def lam(study: Study, method: str) -> float | None:
    """The one lambda of a method that gives one encoder, see ``lams``; ``None`` without lambda."""
    return next(iter(study.lams(method).values()), None)


# ---- merged weights ------------------------------------------------------------------------------


def _made_by(encoder: str) -> tuple:
    # What the method computes, not only its name: a notebook cell may have registered another one.
    method = get_method(encoder.partition("#")[0])
    return encoder, method.gives, method.needs, *_code(method)


def info(study: Study, encoder: str) -> dict[str, Any]:
    """A merge's lambda, digests and cost, which stay in memory."""
    return study._merge_infos.get(_made_by(encoder)) or merge(study, encoder).info


def merge(study: Study, encoder: str) -> Artifact:
    """A merge with its weights. Only the last one requested stays in memory; the others stay in the
    store, since all of them together are large."""
    key = _made_by(encoder)
    if key not in study._last_merge:
        study._last_merge = {key: _merge(study, encoder)}
        study._merge_infos[key] = study._last_merge[key].info
    return study._last_merge[key]


def _merge(study: Study, encoder: str) -> Artifact:
    name, _, seed = encoder.partition("#")
    method, options, lams = get_method(name), _options(study, name), study.lams(name)
    if method.is_random:
        options.setdefault("seed", int(seed or 0))
    options.pop("lam", None)  # one of the options is the result of ``lams``
    distinct = sorted(set(lams.values()))
    chosen = lams if len(distinct) > 1 else (distinct[0] if distinct else None)
    settings = options | ({} if chosen is None else {"lam": chosen})
    key = {"version": STEP_VERSIONS["merge"], **_key(study, method, settings)}

    def make() -> Artifact:
        args = arguments(study, method)
        details, states = {"lam": chosen}, {}
        # Measuring slows every operation, so of several seeds' merges only the first is measured.
        with Meter() if encoder == study.merges(name)[0] else nullcontext() as meter:
            for lam in progress(distinct or [None], desc=f"merge {encoder}"):
                merged = method(*args, **options, **({} if lam is None else {"lam": lam}))
                if method.gives == PER_TASK:  # with several lambdas, each serves its own tasks
                    states |= {
                        t: state
                        for t, state in zip(study.tasks, merged, strict=True)
                        if lam is None or lams[t] == lam
                    }
        if meter:
            meter.cost["seconds"] /= max(1, len(distinct))
            details["cost"] = meter.cost
        if method.gives == PER_TASK:
            digests = {t: state_digest(state) for t, state in states.items()}
            tensors = {f"{t}/{n}": v.cpu() for t, s in states.items() for n, v in s.items()}
            return Artifact(tensors, details | {"state_digests": digests})
        state = {n: v.cpu() for n, v in merged.items()}
        return Artifact(state, details | {"state_digest": state_digest(state)})

    return study.store.get("merge", key, make)


def merged_state(study: Study, method: str, task: str | None = None) -> State:
    """theta_m of a method, with its lambda chosen on validation data; ``task`` for a method that
    gives one per task."""
    return study.weights(method, task or next(iter(study.tasks)))


def merge_cost(study: Study, method: str) -> dict[str, float]:
    """Wall seconds and peak megabytes of tensors of the method's (first) merge on this machine;
    empty for a merge that was stored before costs were recorded."""
    return info(study, study.merges(method)[0]).get("cost", {})


# ---- every encoder by name -----------------------------------------------------------------------


def identified(study: Study, encoder: str, task: str) -> tuple[str, Callable[[], State]]:
    """The digest of an encoder's weights for a task, and a function that reads them; nobody may
    modify what it returns."""
    if encoder == BASE:
        return study._base_digest, lambda: study._foundation.state
    if encoder == FINE_TUNED:
        expert = experts.own_expert(study, task)
        return expert.info["state_digest"], lambda: expert.state
    if encoder == MULTI_TASK:
        training = study._multi_task
        return training.info["state_digest"], lambda: below(training.tensors, "encoder.")
    if encoder == RANDOM:
        state, digest = study._random
        return digest, lambda: state
    details = info(study, encoder)
    if "state_digests" in details:
        digest = details["state_digests"][task]
        return digest, lambda: below(merge(study, encoder).tensors, f"{task}/")
    return details["state_digest"], lambda: merge(study, encoder).tensors


def weights(study: Study, encoder: str, task: str) -> State:
    """An encoder's weights for a task. f_t depends on the task, and so do merges that give one per
    task."""
    return spare(identified(study, encoder, task)[1]())


def weights_digest(study: Study, encoder: str, task: str) -> str:
    """Identity of an encoder's weights for a task, without reading them again."""
    return (study._adopted.get((encoder, task)) or identified(study, encoder, task))[0]


def module(study: Study, encoder: str, task: str) -> nn.Module:
    """An encoder as a module for a task, in evaluation mode."""
    if adopted := study._adopted.get((encoder, task)):
        return adopted[1]()
    return study.encoder.module(identified(study, encoder, task)[1]())


def loaded(study: Study, encoder: str, task: str) -> nn.Module:
    """``module``, in memory that the next call may overwrite: to build a module takes as long as
    dozens of features."""
    if (encoder, task) in study._adopted:
        return module(study, encoder, task)
    if study._scratch is None:
        study._scratch = study.encoder.module()
    load_state(study._scratch, identified(study, encoder, task)[1]())
    return study._scratch


def adopt(
    study: Study, encoder: str, task: str, identity: str, make: Callable[[], nn.Module]
) -> None:
    """Register an encoder made elsewhere, to be scored on a task under the name ``encoder``.
    ``make()`` returns its module; ``identity`` identifies it in the store and must contain
    everything that determines its features. Raises ``ConfigError`` if the name is taken."""
    if encoder in REFERENCES or encoder in METHODS:
        raise ConfigError(f"'{encoder}' already names an encoder; choose another name.")
    study._adopted[encoder, task] = identity, make
