"""What a profile reads from the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.errors import check_name
from ..core.hub.repository import Repository, base_model, registry
from . import load_profile, variant_names


def needed(
    profile: str, overrides: dict[str, Any] | None = None, variants: Sequence[str] | None = None
) -> list[Repository]:
    """Return all that a profile reads from the hub.

    Args:
        profile: Its name.
        overrides: As :func:`mergelib.profiles.load_profile` takes them.
        variants: These alone ("" is the profile as it is); by default all of them.

    Raises:
        MergelibError: As ``load_profile`` does.
    """
    known, entries = registry(), {}
    for variant in ("", *variant_names(profile)) if variants is None else variants:
        loaded = load_profile(profile, overrides, variant)
        tasks = loaded.tasks
        names = list(tasks.names) if tasks.source in ("hub", "hub_sample") else []
        if not loaded.released_dir:
            if loaded.experts == "released":
                names.append("released_checkpoints")
            if tasks.source == "released":
                names.append("released_data")
        rows = {"sample": tasks.sample}
        entries |= {name: known[name].model_copy(update=rows) for name in names if name in known}
        encoder = loaded.encoder
        if encoder.base and not Path(encoder.base).expanduser().exists():
            kind = "clip" if encoder.kind == "clip" else "transformers"
            model = base_model(encoder.base, encoder.revision, kind)
            entries[model.name] = model
    return list(entries.values())


def named(names: Sequence[str], profile: str) -> list[Repository]:
    """Return the repositories of these names, or all that ``profile`` needs when there are none.

    Raises:
        UnknownNameError: Neither the registry nor the profile has a name.
    """
    own = {repository.name: repository for repository in needed(profile)}
    known = registry() | own
    for name in names:
        check_name("data set or repository of the hub", name, known)
    return [known[name] for name in dict.fromkeys(names)] or list(own.values())
