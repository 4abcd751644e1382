"""What the commands that work on a study share: its options, and the stamp that they leave."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..core.documents import parse_json
from ..core.errors import ConfigError, shortened
from ..core.store import Store
from ..models.folders import free_file, write_file
from ..profiles import with_shortcuts
from ..study import Study


def study_options(given: Any, variant: str) -> list[str]:
    """``given`` (parsed options, or similar) as command-line arguments again, without defaults."""
    flags = {
        "--profile": given.profile,
        "--variant": variant,
        "--text-dir": given.text_dir,
        "--image-dir": given.image_dir,
        "--base": given.base,
        "--device": given.device.removeprefix("auto"),
        "--overrides": given.overrides.removeprefix("{}"),
    }
    return [part for flag, value in flags.items() if value for part in (flag, value)]


def given_overrides(given: Any) -> dict[str, Any]:
    """The profile values that the options change."""
    return with_shortcuts(
        parse_overrides(given.overrides), given.text_dir, given.base, given.image_dir
    )


def parse_overrides(text: str) -> dict[str, Any]:
    """A JSON object of dotted profile values. Raises ``ConfigError`` for anything else."""
    example = "write an object such as '{\"fine_tuning.steps\": 100}'"
    overrides = parse_json(text, f"--overrides {shortened(text)} ({example})")
    if not isinstance(overrides, dict):
        raise ConfigError(
            f"--overrides {shortened(text)}: this must be an object "
            f"of dotted profile values; {example}."
        )
    return overrides


def asked_study(args: argparse.Namespace, **changed: Any) -> Study:
    """The study that the options ask for; ``changed`` are options of ``Study``."""
    names = ("variant", "text_dir", "image_dir", "base", "device")
    options = {name: getattr(args, name) for name in names}
    return Study(args.profile, **options | {"overrides": parse_overrides(args.overrides)} | changed)


def write_stamp(path: str, store: Store) -> None:
    """Write to a file which artifacts of the store this process requested, in order; without a
    path, do nothing."""
    if target := stamp_place(path):
        text = json.dumps({"artifacts": list(store.asked)}, indent=1)
        write_file(target, f"{text}\n")


def stamp_place(path: str) -> Path | None:
    """The path of a stamp. Raises ``ConfigError`` if something else is there."""
    return free_file(path, True) if path else None
