"""Sources of f_b: pre-trained here (one module per kind of encoder), or loaded from a folder or the
hub."""

from ..profiles import Profile
from . import bert, clip, further, t5, vit
from .recipe import Foundation, Recipe, load_text

RECIPES: dict[str, Recipe] = {
    "bert": bert.RECIPE,
    "t5": t5.RECIPE,
    "clip": clip.RECIPE,
    "vit": vit.RECIPE,
}
"""By ``profile.encoder.kind``."""


def recipe_of(profile: Profile) -> Recipe:
    """What makes a profile's f_b."""
    encoder = profile.encoder
    return further.RECIPE if encoder.goes_on else RECIPES[encoder.kind]


__all__ = [
    "RECIPES",
    "Foundation",
    "Recipe",
    "bert",
    "clip",
    "further",
    "load_text",
    "recipe_of",
    "t5",
    "vit",
]
