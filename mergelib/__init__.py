"""mergelib: how good is a merged encoder? Task -> f_b -> experts -> merge -> features -> protocol -> scores."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Study", "align_classifier", "evaluate", "merge", "method"]

if TYPE_CHECKING:
    from .merging import method
    from .models.heads import align_classifier, evaluate
    from .models.merging import merge
    from .study import Study


def __getattr__(name: str) -> Any:
    # Lazy, so that the runner's checks need not wait for torch.
    if name == "Study":
        from .study import Study

        return Study
    if name == "method":
        from .merging import method

        return method
    if name in ("merge", "align_classifier", "evaluate"):
        from . import models

        return getattr(models, name)
    raise AttributeError(f"module 'mergelib' has no attribute '{name}'")
