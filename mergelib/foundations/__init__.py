"""Sources of f_b: pre-trained here (one module per kind of encoder), or loaded from a folder or the
hub."""

from collections.abc import Sequence

from ..core.types import Task
from ..profiles import Profile
from . import bert, clip, further, t5, vit
from .recipe import Foundation, Recipe

RECIPES: dict[str, type[Recipe]] = {
    "bert": bert.Bert,
    "t5": t5.T5,
    "clip": clip.Clip,
    "vit": vit.Vit,
    "further": further.Further,
}
"""By ``profile.encoder.kind``, or ``further``."""


def recipe_of(profile: Profile, tasks: Sequence[Task]) -> Recipe:
    """What makes a profile's f_b."""
    kind = "further" if profile.encoder.goes_on else profile.encoder.kind
    return RECIPES[kind](profile, tasks)


__all__ = ["RECIPES", "Foundation", "Recipe", "bert", "clip", "recipe_of", "t5", "vit"]
