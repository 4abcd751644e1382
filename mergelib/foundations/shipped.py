"""f_b as in real projects: an existing file, not something that the reader trains first.

``mergelib/foundations`` holds one safetensors file (float16) for each f_b of the profiles `mini`
and `quick`, and a JSON sidecar with its recipe, vocabulary, sha256 and measurements. A profile
finds its file by the recipe. With any other recipe f_b is pre-trained here, in the way that
``python -m mergelib pretrain`` makes the files.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors.torch import load, save_file

from ..core.errors import StoreError, UnknownNameError
from ..core.paths import write_whole
from ..core.store import Artifact
from ..profiles import Profile
from ..tasks.miniature import WORLD_VERSION
from ..tasks.miniature.images import CAPTIONS_VERSION, IMAGE_WORLD_VERSION

FOLDER = Path(__file__).parent
TEACHERS = {
    "sentence-transformers/all-MiniLM-L6-v2": {
        "teacher": "all-MiniLM-L6-v2, Apache-2.0; none of its weights is in the file"
    }
}
WORLDS = {"clip": CAPTIONS_VERSION, "vit": IMAGE_WORLD_VERSION}  # what f_b is pre-trained on
SHAPE = ("kind", "max_length", "layers", "width", "heads", "image_size", "patch_size", "projection")


def recipe_of(profile: Profile) -> dict[str, Any]:
    """Everything that determines f_b, up to the machine's rounding: its shape, pre-training, seed
    and corpus, and the world's version."""
    encoder = profile.encoder
    return {
        "source": profile.tasks.source,
        "world": WORLDS.get(encoder.kind, WORLD_VERSION),
        "seed": profile.seed,
        "shape": {n: getattr(encoder, n) for n in SHAPE},
        "pretraining": encoder.pretraining and encoder.pretraining.model_dump(mode="json"),
    }


def names() -> list[str]:
    """The shipped foundations."""
    return sorted(p.stem for p in FOLDER.glob("*.json"))


def sidecar(name: str) -> dict[str, Any]:
    """A shipped foundation's recipe, vocabulary and measurements. Raises ``UnknownNameError``."""
    file = FOLDER / f"{name}.json"
    if not file.is_file():
        raise UnknownNameError("foundation", name, names())
    return json.loads(file.read_text(encoding="utf-8"))


def find(profile: Profile) -> str | None:
    """The name of the shipped foundation with this profile's recipe, if there is one."""
    recipe = recipe_of(profile)
    return next((n for n in names() if sidecar(n)["recipe"] == recipe), None)


def read(name: str) -> Artifact:
    """A shipped foundation as the recipe's ``make`` returned it, in float32.

    Args:
        name: Of a file in ``mergelib/foundations``.

    Returns:
        Its tensors, and its vocabulary and training info.

    Raises:
        UnknownNameError: There is no such file.
        StoreError: The file is not the one that its sidecar describes.
    """
    known = sidecar(name)
    content = (FOLDER / f"{name}.safetensors").read_bytes()
    if hashlib.sha256(content).hexdigest() != known["sha256"]:
        raise StoreError(
            f"mergelib/foundations/{name}.safetensors is damaged: its sha256 differs "
            "from the sidecar's. Restore it with `git checkout mergelib/foundations`."
        )
    return Artifact({n: t.float() for n, t in load(content).items()}, known["info"])


def write(name: str, profile: Profile, made: Artifact, measured: dict[str, Any]) -> Path:
    """Ship a recipe's result: tensors in float16, with a sidecar.

    Args:
        name: Of the file.
        profile: Whose recipe made it.
        made: The recipe's artifact.
        measured: Further entries of the sidecar, such as the probe's accuracy.

    Returns:
        The file.
    """
    path = FOLDER / f"{name}.safetensors"
    half = {n: t.half() if t.is_floating_point() else t for n, t in made.tensors.items()}
    save_file({n: t.contiguous() for n, t in half.items()}, path)
    sidecar = {
        "recipe": recipe_of(profile),
        **TEACHERS.get(profile.encoder.pretraining.teacher, {}),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        **measured,
        "info": made.info,
    }
    write_whole(path.with_suffix(".json"), (json.dumps(sidecar, indent=1) + "\n").encode())
    return path
