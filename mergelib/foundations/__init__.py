"""Sources of f_b: pre-trained here (one module per kind of encoder), or loaded from a folder or the
hub."""

from . import bert, clip, t5, vit
from .recipe import Foundation, Recipe, load_text

RECIPES: dict[str, Recipe] = {
    "bert": bert.RECIPE,
    "t5": t5.RECIPE,
    "clip": clip.RECIPE,
    "vit": vit.RECIPE,
}
"""By ``profile.encoder.kind``."""

__all__ = ["RECIPES", "Foundation", "Recipe", "bert", "clip", "load_text", "t5", "vit"]
