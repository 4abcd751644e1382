"""Your own models: merge Hugging Face classifiers, re-align their heads, save, evaluate.

``parents`` reads checkpoints tensor by tensor, ``plan`` determines which tensors transformers would
load, ``parts`` separates encoder and head, ``merging`` merges, ``merged`` holds the result,
``folders`` writes folders, ``push`` uploads them, ``heads`` computes features, fits heads and
predicts, ``compare`` tries several methods, ``recipes`` and ``mergekit`` read what ``mergelib.run``
is asked for. The merging functions are those of ``mergelib.merging``, the fits those of
``mergelib.protocols``.
"""

from importlib import import_module
from typing import Any

WHERE = {
    "merge": "merging",
    "Merged": "merged",
    "Classifier": "merged",
    "load_merged": "merged",
    "align_classifier": "heads",
    "evaluate": "heads",
    "Comparison": "compare",
    "features": "heads",
    "predict": "heads",
    "push_folder": "push",
    "find_parts": "parts",
    "Parts": "parts",
}
__all__ = sorted(WHERE)


def __getattr__(name: str) -> Any:
    # Lazy, so that the command line can refuse bad input without waiting for torch.
    if name in WHERE:
        return getattr(import_module(f".{WHERE[name]}", __name__), name)
    raise AttributeError(f"module 'mergelib.models' has no attribute '{name}'")
