"""Files that the authors released: CSV files of texts, and checkpoints of encoders with heads."""

from __future__ import annotations

from pathlib import Path

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..core.errors import DataError, StateDictError, UnsafeFileError, first_five, shortened
from ..core.hub import fetch_file
from ..core.types import Expert, Head, Split, State, Task, not_finite
from .data import read_csv
from .local import LABEL_NAMES
from .rows import Form, as_split, numbered

ENCODER, HEAD = "bert.", "classifier.0."
FORM = Form(text_column=2, keep_empty=True, label_first=True)
UNREAD = (
    "embeddings.position_ids",
    "embeddings.token_type_ids",
    "pooler.dense.weight",
    "pooler.dense.bias",
)
"""What a checkpoint may contain in addition to this encoder: buffers of older transformers, and the
pooler."""


def released_checkpoint(task: str, folder: str) -> Path:
    """``checkpoints/<task>.pth`` in ``folder``, or, without a folder, from the hub.

    Raises ``DataError`` where it is missing, and what ``mergelib.core.hub.fetch_file`` raises.
    """
    return _file(f"checkpoints/{task}.pth", ("released_checkpoints", task), folder)


def _file(path: str, entry: tuple[str, str], folder: str) -> Path:
    if not folder:
        return fetch_file(*entry)
    target = Path(folder).expanduser() / path
    if not target.is_file():
        names = sorted(p.name for p in target.parent.iterdir()) if target.parent.is_dir() else []
        raise DataError(f"No {target}. Beside it: {first_five(names) if names else 'nothing'}.")
    return target


def released_splits(task: str, folder: str) -> tuple[tuple[str, ...], Split, Split]:
    """Label names, train and test split of a released task, from ``folder`` or, without one, from
    the hub.

    Labels are 1-based, the text is in column 2 (counted from 0), empty texts are kept. Classes are
    only numbers: the files number them by first appearance and contain no names. Raises
    ``DataError`` for a file that is missing or cannot be read and a label outside the task's range,
    and what ``mergelib.core.hub.fetch_file`` raises.
    """
    paths = [
        _file(f"{task}/{split}.csv", ("released_data", f"{task}/{split}"), folder)
        for split in ("train", "test")
    ]
    names = tuple(f"class {c + 1}" for c in range(len(LABEL_NAMES[task])))
    splits = []
    for path in paths:
        rows = read_csv(path, FORM)
        splits.append(as_split(rows.inputs, numbered(rows, names, task, first_label=1)))
    return names, *splits


def read_state(path: Path) -> dict[str, Tensor]:
    """A file of ``torch.save`` that holds a plain state dict.

    Nothing in it is run: raises ``UnsafeFileError`` for a pickle with more than tensors in it,
    ``StateDictError`` for a damaged file or another object.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise StateDictError(
            f"{path.name} is damaged ({shortened(str(error) or type(error).__name__)}); "
            "fetch it again."
        ) from error
    except Exception as error:  # raised by the unpickler, which refuses anything but tensors
        raise UnsafeFileError(
            f"{path.name} holds more than plain tensors, or is not a file of torch.save. It was "
            "not run. Fetch it again; if that does not help, it is not the published checkpoint."
        ) from error
    entries = state.items() if isinstance(state, dict) else ()
    if not entries or not all(isinstance(n, str) and isinstance(t, Tensor) for n, t in entries):
        raise StateDictError(
            f"{path.name} holds no state dict (names and tensors); the released checkpoints do."
        )
    return state


def load_checkpoint(path: Path, task: str, base: State, width: int, n_classes: int) -> Expert:
    """(theta_t, W_t ``[C, width]``, b_t ``[C]``) of a released checkpoint, float32: ``bert.`` and
    ``classifier.0.`` before the names.

    Every tensor of ``base`` must be there in its shape, and nothing else but ``UNREAD``. Raises
    what ``read_state`` raises, and ``StateDictError`` naming the first five keys that are missing,
    unexpected or of another shape, or not finite.
    """
    state = {n: t for n, t in read_state(path).items() if n.removeprefix(ENCODER) not in UNREAD}
    expected = {f"{ENCODER}{n}": tuple(t.shape) for n, t in base.items()} | {
        f"{HEAD}weight": (n_classes, width),
        f"{HEAD}bias": (n_classes,),
    }
    shaped = [
        f"{n} {list(state[n].shape)} instead of {list(shape)}"
        for n, shape in expected.items()
        if n in state and tuple(state[n].shape) != shape
    ]
    faults = {
        "missing": [n for n in expected if n not in state],
        "unexpected": [n for n in state if n not in expected],
        "other shapes": shaped,
        "no floating-point numbers": [
            n for n, t in state.items() if n in expected and not t.is_floating_point()
        ],
        "NaN or inf": not_finite(state),
    }
    if any(faults.values()):
        text = "; ".join(f"{kind}: {first_five(names)}" for kind, names in faults.items() if names)
        raise StateDictError(
            f"{path.name} is not a checkpoint of '{task}' ({n_classes} classes) "
            f"for this base model. {text}. Names must begin with {ENCODER} or {HEAD}; "
            "check the file, the task and the base model."
        )
    state = {n: t.float() for n, t in state.items()}
    return Expert(
        task,
        {n: state[f"{ENCODER}{n}"] for n in base},
        Head(state[f"{HEAD}weight"], state[f"{HEAD}bias"]),
        {"checkpoint": path.name},
    )


# ---- the order of labels ----


def label_order(predicted: Tensor, labels: Tensor, n_classes: int) -> tuple[int, ...]:
    """For each class of a classifier the class of the data that it stands for, both 0-based: the
    one-to-one assignment under which most of ``predicted [N]`` are right; the identity, unless
    another one is better."""
    confusion = torch.bincount(predicted.long() * n_classes + labels, minlength=n_classes**2)
    confusion = confusion.view(n_classes, n_classes).numpy()
    _, order = linear_sum_assignment(confusion, maximize=True)
    best = confusion[range(n_classes), order].sum()
    return tuple(range(n_classes)) if confusion.trace() == best else tuple(order.tolist())


def check_label_order(predicted: Tensor, labels: Tensor, task: Task, split: str) -> None:
    """Raises ``DataError``, printing the mapping, where classifier and data number their classes
    differently."""
    order = torch.tensor(label_order(predicted, labels, task.n_classes))
    moved = ", ".join(
        f"{i + 1} -> {c + 1} ({task.label_names[c]})"
        for i, c in enumerate(order.tolist())
        if i != c
    )
    if not moved:
        return
    as_is, mapped = (
        100 * float((classes == labels).float().mean())
        for classes in (predicted, order[predicted.long()])
    )
    raise DataError(
        f"Task '{task.name}': the checkpoint numbers its classes differently from the data. "
        f"Of {len(labels)} {split} rows the fine-tuned model gets {as_is:.1f} % right as numbered, "
        f"{mapped:.1f} % with its class -> the data's class: {moved}. Use the released CSV files, "
        f"or renumber the labels in yours. (If {mapped:.1f} % is poor, too, then checkpoint, "
        "preprocessing or texts do not belong together.)"
    )
