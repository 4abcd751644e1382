"""What the keys of all stored steps share."""

from ..encoders.features import FEATURES_VERSION
from ..foundations import RECIPES
from ..models.compare import COMPARE_VERSION
from ..tasks.build import IMAGES_VERSION
from ..training.experts import FINE_TUNE_VERSION

STEP_VERSIONS = {
    **{recipe.step: recipe.version for recipe in RECIPES.values()},
    "fine_tune": FINE_TUNE_VERSION,
    "multi_task": FINE_TUNE_VERSION,
    "merge": 2,
    "lam": 2,
    "features": FEATURES_VERSION,
    "predict": 4,
    "images": IMAGES_VERSION,
    "tsne": 2,
    "align": 3,
    "dropout": 1,
    "match": 1,
    "correct": 2,
    "statistics": 1,
    "variance": 3,
    "classifier": 1,
    "compare": COMPARE_VERSION,
}
"""The version of each step's meaning. Raise one when its results change; every artifact that it
made is then computed again."""

POOL_SEED = 7
