"""mergelib: how good is a merged encoder? Task -> f_b -> experts -> merge -> features -> protocol -> scores."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Study", "method", "protocol", "task"]

if TYPE_CHECKING:
    from .merging import method
    from .protocols import protocol
    from .study import Study
    from .tasks import task


def __getattr__(name: str) -> Any:
    # Lazy, so that the runner's checks need not wait for torch.
    if name == "Study":
        from .study import Study

        return Study
    if name == "method":
        from .merging import method

        return method
    if name == "protocol":
        from .protocols import protocol

        return protocol
    if name == "task":
        from .tasks import task

        return task
    raise AttributeError(f"module 'mergelib' has no attribute '{name}'")
