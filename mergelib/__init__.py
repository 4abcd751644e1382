"""mergelib: how good is a merged encoder? Task -> f_b -> experts -> merge -> features -> protocol
-> scores."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .core.version import __version__

__all__ = [
    "Study",
    "__version__",
    "align_classifier",
    "compare",
    "evaluate",
    "merge",
    "method",
    "protocol",
    "task",
]

if TYPE_CHECKING:
    from .merging import method
    from .models.compare import compare
    from .models.heads import align_classifier, evaluate
    from .models.merging import merge
    from .protocols import protocol
    from .study import Study
    from .tasks import task

WHERE = {
    "Study": "study",
    "method": "merging",
    "protocol": "protocols",
    "task": "tasks",
    "merge": "models.merging",
    "align_classifier": "models.heads",
    "evaluate": "models.heads",
    "compare": "models.compare",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that the runner's checks need not wait for torch.
    if name in WHERE:
        return getattr(import_module(f".{WHERE[name]}", __name__), name)
    raise AttributeError(f"module 'mergelib' has no attribute '{name}'")
