"""One study: asks the store for what is there and computes what is missing."""

from .scores import SCORE_COLUMNS
from .study import Study
