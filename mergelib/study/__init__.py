"""One study: asks the store for what is there and computes what is missing."""

from ..core.names import BASE, FINE_TUNED, MULTI_TASK, RANDOM
from ..core.types import percent
from .scores import SCORE_COLUMNS
from .study import Study

__all__ = ["BASE", "FINE_TUNED", "MULTI_TASK", "RANDOM", "SCORE_COLUMNS", "Study", "percent"]
