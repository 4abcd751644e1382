"""``python -m mergelib pretrain``: make the shipped foundations again. For maintainers; readers
need no teacher."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..core.errors import check_name
from ..core.store import Store
from ..core.types import Split, State, Task, percent
from ..encoders import Encoder
from ..encoders.features import extract, pick_device
from ..profiles import Profile, load_profile, variant_names
from ..tasks import load_task
from ..training.experts import linear_probe
from . import recipe_of, shipped

PROBE_SHOTS = 100  # training inputs per class


def planned(profile_name: str) -> dict[str, Profile]:
    """Every foundation of a profile: name -> the profile whose recipe makes it.

    The names are the profile's and the variant's; ``ext03_nonlocal`` needs two more foundations for
    the text encoder and for the ViT: one trained longer, and one from another start.
    """
    profiles = {}
    for variant in ("", *variant_names(profile_name)):
        profile = load_profile(profile_name, variant=variant)
        if profile.encoder.pretraining is None or profile.encoder.base:
            continue
        name = f"{profile_name}_{variant or 'bert'}"
        profiles[name] = profile
        if profile.non_local and variant in ("", "vit"):
            longer, other = profile.non_local.semi_local_steps, profile.non_local.non_local_seed
            for suffix, key, value in (("longer", "steps", longer), ("other", "seed", other)):
                overrides = {f"encoder.pretraining.{key}": value}
                profiles[f"{name}_{suffix}"] = load_profile(profile_name, overrides, variant)
    return profiles


def probe_rows(task: Task) -> Split:
    """The first 100 training inputs per class."""
    labels = task.train.labels
    rows = [(labels == c).nonzero()[:PROBE_SHOTS, 0] for c in range(task.n_classes)]
    return task.train.subset(torch.cat(rows))


def probe_accuracy(z: Tensor, labels: Tensor, z_test: Tensor, test_labels: Tensor) -> float:
    """Accuracy on ``z_test``, in percent, of a ``linear_probe`` fitted to ``z``."""
    return percent(linear_probe(z, labels).logits(z_test).argmax(-1) == test_labels)


def probe(encoder: Encoder, state: State, tasks: Mapping[str, Task]) -> dict[str, float]:
    """How well an encoder's features separate each task's classes: test accuracy of a linear probe.

    Args:
        encoder: Architecture and preprocessing.
        state: The encoder's weights.
        tasks: Whose ``probe_rows`` fit a ``linear_probe``.

    Returns:
        Percent right per task.
    """
    module, accuracy = encoder.module(state), {}
    for name, task in tasks.items():
        fit = probe_rows(task)
        z, z_test = (extract(encoder, module, split.inputs) for split in (fit, task.test))
        accuracy[name] = probe_accuracy(z, fit.labels, z_test, task.test.labels)
    return accuracy


def pretrain(name: str, profile: Profile, teacher: str = "") -> Path:
    """Make one foundation by its profile's recipe and ship it.

    Args:
        name: Of the file.
        profile: Whose recipe it is.
        teacher: Folder with the recipe's teacher, which is a hub id, for machines without the hub.

    Returns:
        The file.
    """
    device, started = pick_device("auto"), time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(Path(scratch) / "store")
        tasks = {n: load_task(n, profile, store) for n in profile.tasks.names}
        raw = profile.model_dump()
        if teacher and profile.encoder.pretraining.teacher:
            raw["encoder"]["pretraining"]["teacher"] = teacher
        making = Profile.model_validate(raw)
        artifact = recipe_of(making, list(tasks.values())).make(device, Path(scratch))
    minutes = (time.monotonic() - started) / 60
    opened = recipe_of(profile, list(tasks.values())).open(artifact)
    probed = probe(opened.encoder, opened.state, tasks)
    measured = {
        "torch": torch.__version__,
        "device": device.type,
        "minutes": round(minutes, 1),
        "probe": {n: round(a, 1) for n, a in probed.items()},
        "probe_mean": round(sum(probed.values()) / len(probed), 1),
    }
    return shipped.write(name, profile, artifact, measured)


def command(args: argparse.Namespace) -> int:
    plan = planned(args.profile)
    names: Sequence[str] = args.names or list(plan)
    for name in names:
        check_name("foundation", name, plan)
    for name in names:
        path = pretrain(name, plan[name], args.teacher)
        known = shipped.sidecar(name)
        print(
            f"{path.name}: {path.stat().st_size / 1e6:.2f} MB, "
            f"probe {known['probe_mean']}, {known['minutes']} min",
            flush=True,
        )
    return 0
