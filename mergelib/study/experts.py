"""f_b, the experts fine-tuned from it, and multi-task learning: read from the store, or trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..core import distributed
from ..core.errors import ConfigError
from ..core.names import BASE, FINE_TUNED, MULTI_TASK
from ..core.spare import spare
from ..core.store import Artifact
from ..core.types import Expert, Head, Task, below, head_digest, state_digest
from ..encoders import released_encoder
from ..encoders.features import extract
from ..encoders.tangent import TangentEncoder
from ..foundations import Foundation, Recipe, recipe_of, shipped
from ..tasks.released import check_label_order, load_checkpoint, released_checkpoint
from ..training.experts import fine_tune, linear_probe
from ..training.loop import pinned_threads
from .versions import STEP_VERSIONS

if TYPE_CHECKING:
    from .study import Study


def training_key(study: Study, step: str, settings: Any) -> dict[str, Any]:
    """What the key of a training with ``settings`` holds in addition to model and data: training is
    the one place where device, threads and library decide the bytes."""
    config = study.profile.train_config(settings, study.device)
    # whole batches leave no trace: keys are older than this setting
    numbers = {n: v for n, v in config.__dict__.items() if (n, v) != ("pieces", 1)}
    return {
        "version": STEP_VERSIONS[step],
        "torch": torch.__version__,
        "device": study.device.type,
        "train": {**numbers, "save_every": None},
    }


# ---- f_b -----------------------------------------------------------------------------------------


def _recipe(study: Study) -> Recipe:
    return recipe_of(study.profile, list(study.tasks.values()))


def _base_key(study: Study, recipe: Recipe) -> dict[str, Any]:
    settings = study.profile.encoder.pretraining
    if settings is None or recipe.corpus not in ("", study.profile.tasks.source):
        raise ConfigError(
            f"Profile '{study.profile.name}' has no base model: "
            "give --base with a hub id or folder."
        )
    return training_key(study, recipe.step, settings) | recipe.key()


def has_base(study: Study) -> bool:
    """Whether f_b is available without pre-training: in the store, or as a hub id or folder."""
    settings = study.profile.encoder
    if (settings.base and not settings.goes_on) or shipped.find(study.profile):
        return True
    recipe = _recipe(study)
    return study.store.peek(recipe.step, _base_key(study, recipe)) is not None


def foundation(study: Study) -> Foundation:
    """f_b of the profile: published, shipped, stored, or else pre-trained."""
    settings, recipe = study.profile.encoder, _recipe(study)
    if settings.base and not settings.goes_on:
        base = recipe.load()
    elif name := shipped.find(study.profile):
        base = recipe.open(shipped.read(name))
    else:
        key = _base_key(study, recipe)

        def make() -> Artifact:
            # the shares of a masked or contrastive batch do not add up to the batch's gradient
            if distributed.world_size() > 1:
                raise ConfigError(
                    "f_b is pre-trained by one process: "
                    f"run `{_train_command(study, [BASE])}` first, without torchrun."
                )
            return recipe.make(study.device, study.store.scratch(recipe.step, key))

        base = recipe.open(study.store.get(recipe.step, key, make))
    if settings.preprocessing == "released":
        # for miniature encoders, too: pre-trained as usual, then read differently
        base = replace(base, encoder=released_encoder(base.encoder))
    if settings.tangent:
        base = replace(base, encoder=TangentEncoder(base.encoder, base.state))
    return base


# ---- experts -------------------------------------------------------------------------------------


def _training(study: Study, name: str) -> tuple[str, list[str], dict[str, Any]]:
    """The step, the tasks and the key of the training of a task's expert or of ``MULTI_TASK``."""
    step = "multi_task" if name == MULTI_TASK else "fine_tune"
    names = list(study.tasks) if name == MULTI_TASK else [name]
    tasks, heads = [study.task(n) for n in names], study._foundation.heads
    key = training_key(study, step, study.profile.fine_tuning) | {
        "base": study.weights_digest(BASE, ""),
        "encoder": study.encoder.digest,
        "steps_factor": len(names),
        "train_rows": [[t.name, t.n_classes, t.train.digest] for t in tasks],
    }
    if study.profile.fine_tuning.head == "fitted":
        key |= {
            "head": "fitted",
            "features": STEP_VERSIONS["features"],
            "sklearn": version("scikit-learn"),
        }
    elif heads:
        key["heads"] = [head_digest(heads[n]) for n in names]
    if study.profile.processes > 1:  # their number changes rounding and dropout
        key["processes"] = study.profile.processes
    return step, names, key


def trained(study: Study, name: str) -> Artifact:
    """The training of a task's expert or of ``MULTI_TASK``: its weights, heads and digest."""
    step, names, key = _training(study, name)

    def make() -> Artifact:
        if distributed.world_size() != study.profile.processes:
            raise ConfigError(
                f"f_t of {'+'.join(names)} is not in the store, and processes is "
                f"{study.profile.processes}, but {distributed.world_size()} would train. Make it "
                f"with `{_train_command(study, [name])}` and the same overrides, or set processes "
                "to the number of those that train."
            )
        heads = study._foundation.heads
        if study.profile.fine_tuning.head == "fitted":
            heads = {n: _fitted_head(study, study.task(n)) for n in names}
        state, heads, info = fine_tune(
            study.encoder,
            study._foundation.state,
            [study.task(n) for n in names],
            study.profile.train_config(
                study.profile.fine_tuning, study.device, steps_factor=len(names)
            ),
            device=study.device,
            heads=heads and [heads[n] for n in names],
            scratch=study.store.scratch(step, key),
            desc=f"fine-tune {'+'.join(names)}",
        )
        tensors = {f"encoder.{k}": v for k, v in state.items()}
        for n, head in zip(names, heads, strict=True):
            tensors |= {f"head.{n}.weight": head.weight, f"head.{n}.bias": head.bias}
        return Artifact(tensors, {"state_digest": state_digest(state), "training": info})

    return study.store.get(step, key, make)


def _fitted_head(study: Study, task: Task) -> Head:
    """A linear probe of f_b on the task's training inputs, as in Kumar et al., 2022 (arXiv
    2202.10054), who go on to train it with the encoder."""
    module = study.encoder.module(study._foundation.state).to(study.device)
    with pinned_threads(study.profile.threads):
        z = extract(study.encoder, module, task.train.inputs, device=study.device)
        return linear_probe(z, task.train.labels)


def _train_command(study: Study, only: Sequence[str]) -> str:
    n = study.profile.processes
    launcher = f"torchrun --nproc-per-node {n}" if n > 1 and BASE not in only else "python"
    variant = f" --variant {study.variant}" if study.variant else ""
    return (
        f"{launcher} -m mergelib train --profile {study.profile.name}{variant} "
        f"--only {' '.join(only)}"
    )


def train(study: Study, name: str) -> Path:
    """Fine-tune a task's expert, or ``"multi_task"``, unless the store has it; returns its
    folder there, without keeping weights in memory. Under torchrun every process must call it,
    in the same order."""
    if study.profile.experts == "released" and name != MULTI_TASK:
        raise ConfigError(
            f"f_t of {name} is a released checkpoint; there is nothing to train. "
            "Set experts to trained to fine-tune it here."
        )
    trained(study, name)
    step, _, key = _training(study, name)
    return study.store.folder(step, key)


def own_expert(study: Study, task: str) -> Expert:
    """The expert that the study keeps, which nobody may modify."""
    if task not in study._experts:
        if study.profile.experts == "released":
            _take_released(study, study.task(task))
        else:
            study._experts[task] = unpack(trained(study, task), task)
    return study._experts[task]


def own_experts(study: Study) -> list[Expert]:
    """``own_expert`` of each task. What another process is training comes last, so that two
    notebooks at a time share the work instead of waiting for each other."""
    missing = [t for t in study.tasks if t not in study._experts]
    # Under torchrun, all processes train the same expert together.
    alone = study.profile.experts == "trained" and distributed.world_size() == 1
    while alone and missing:
        free = (t for t in missing if not study.store.being_made(*_training(study, t)[::2]))
        own_expert(study, chosen := next(free, missing[0]))
        missing.remove(chosen)
    return [own_expert(study, t) for t in study.tasks]


def expert(study: Study, task: str) -> Expert:
    """f_t and (W_t, b_t), fine-tuned from f_b on the task's training split, or a released
    checkpoint if the profile says so."""
    return spare(own_expert(study, task))


def experts(study: Study) -> list[Expert]:
    """One expert per task, in the profile's order."""
    return spare(own_experts(study))


def head(study: Study, encoder: str, task: str) -> Head:
    """The head an encoder is scored with: the expert's, except that multi-task learning has its own
    heads."""
    if encoder == MULTI_TASK:
        return spare(unpack(study._multi_task, task).head)
    return spare(own_expert(study, task).head)


def unpack(made: Artifact, task: str) -> Expert:
    """The encoder of a training and one task's head."""
    head = Head(made.tensors[f"head.{task}.weight"], made.tensors[f"head.{task}.bias"])
    return Expert(task, below(made.tensors, "encoder."), head, made.info)


def with_digest(expert: Expert) -> Expert:
    """An expert from elsewhere with the digest of its weights, as keys need it."""
    return replace(expert, info=expert.info | {"state_digest": state_digest(expert.state)})


def _take_released(study: Study, task: Task) -> None:
    """A released checkpoint as the task's expert. Raises ``DataError`` if it numbers its classes
    differently from the data."""
    path = released_checkpoint(task.name, study.profile.released_dir)
    checkpoint = with_digest(
        load_checkpoint(
            path, task.name, study._foundation.state, study.encoder.width, task.n_classes
        )
    )
    study._experts[task.name] = checkpoint
    try:
        logits = checkpoint.head.logits(study.features(FINE_TUNED, task.name, "validation"))
        check_label_order(logits.argmax(-1), task.validation.labels, task, "validation")
    except BaseException:
        del study._experts[task.name]
        raise


def check_multi_task(study: Study) -> None:
    """Raises ``ConfigError`` where the profile leaves multi-task learning to the paper."""
    if not study.baselines:
        raise ConfigError(
            "Multi-task learning is 'paper only' in this profile: no checkpoint of it was "
            "published. Set multi_task to trained."
        )
