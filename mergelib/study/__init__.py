"""One study: asks the store for what is there and computes what is missing."""

from ..core.names import BASE, FINE_TUNED, MULTI_TASK, RANDOM
from .scores import SCORE_COLUMNS
from .study import Study
