"""How good is a merged encoder? Task -> f_b -> experts -> merge -> features -> protocol -> scores.

    Study               a profile's tasks, experts, merges and scores; what is computed is kept
    task, image_task    a task from your own texts or images, rows or files, for Study(tasks=...)
    method, protocol    decorators that add your own merging method or evaluation protocol
    merge               fine-tuned classifiers to one encoder with a head per task
    align_classifier    a head re-aligned to the merged encoder with a few unlabelled inputs
    compare             methods, lambdas and heads on your own models, chosen and reported apart
    evaluate            accuracies of a classifier under protocols, with 95 % intervals

``python -m mergelib --help`` lists the commands.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .core.version import __version__

__all__ = [
    "Study",
    "__version__",
    "align_classifier",
    "compare",
    "evaluate",
    "image_task",
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
    from .tasks import image_task, task

WHERE = {
    "Study": "study",
    "method": "merging",
    "protocol": "protocols",
    "task": "tasks",
    "image_task": "tasks",
    "merge": "models.merging",
    "align_classifier": "models.heads",
    "evaluate": "models.heads",
    "compare": "models.compare",
}


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    # Lazy, so that the runner's checks need not wait for torch.
    if name in WHERE:
        return getattr(import_module(f".{WHERE[name]}", __name__), name)
    raise AttributeError(f"module 'mergelib' has no attribute '{name}'")
