"""Evaluation protocols: pure functions on features.

None of them sees an encoder, a file or a figure, and, where it is fitted on training inputs, none
sees a label of a scored input. (Fitted on scored inputs, KNN Eval knows its anchors' classes, as in
the paper's Figure 11.) A protocol is one
function ``Evidence -> predictions [K, S, N]`` and one line in ``PROTOCOLS``, or, in a notebook::

    @protocol("mine", label="My Eval", few_shot=False)
    def mine(evidence):
        return (evidence.student_test @ evidence.head.weight.T).argmax(-1)[None, None]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import ConfigError, check_name, shortened
from ..core.identity import check_call, is_ours, refuse_built_in
from ..core.spare import call
from ..core.types import Head
from .current import current_eval
from .draws import stratified_order, uniform_order
from .ft_classifier import PRESETS, FTPreset, ft_classifier, get_preset, kl_to_teacher, nested_fits
from .knn import knn_eval, knn_of_share
from .orthogonal import nested_orthogonal, orthogonal_classifier, procrustes_head
from .surgery import surgery

DRAWS = ("stratified", "uniform", "share", "all")


@dataclass(frozen=True)
class Evidence:
    """What a protocol may look at, for one encoder f_m and one task. No labels of scored inputs.

    ``student_test [N, d]``: f_m on the test inputs. ``student_fit``, ``teacher_fit [P, d]``: f_m
    and f_t on the inputs that may be used for fitting. ``head``: (W_t, b_t). ``draws [S, C,
    k_max]``: rows of the fit inputs, for seed s and k the rows ``draws[s, :, :k]``; a stratified
    draw has the rows of class c in row c, a uniform draw has them in random order. A share is one
    row ``[S, 1, n_max]``; ``ks`` are then the numbers of inputs, and ``classes [S, n_max]`` are the
    classes of KNN Eval's anchors, which no other protocol uses.
    """

    student_test: Tensor
    head: Head
    student_fit: Tensor | None = None
    teacher_fit: Tensor | None = None
    draws: Tensor | None = None
    ks: tuple[int, ...] = ()
    preset: FTPreset = PRESETS["default"]
    classes: Tensor | None = None

    def rows(self, k: int) -> Tensor:
        """Rows of the fit inputs ``[S, C * k]`` for k shots."""
        return self.draws[:, :, :k].flatten(1)


@dataclass(frozen=True)
class Protocol:
    """A registered protocol.

    ``few_shot`` ones are run for every k and seed; ``draws`` says which draws make sense;
    ``paper`` is its number on arXiv.
    """

    name: str
    label: str
    function: Callable[[Evidence], Tensor]
    few_shot: bool = True
    draws: tuple[str, ...] = DRAWS
    paper: str = "2412.13526"

    def __call__(self, evidence: Evidence, *, where: str = "") -> Tensor:
        """Predicted classes of one encoder's test inputs. A user's protocol receives a copy of the
        evidence, which it may modify.

        Args:
            evidence: What the protocol may look at.
            where: What is scored, for messages: "ties on task 'ag'".

        Returns:
            ``[K, S, N]`` int64, each in 0..C-1.

        Raises:
            ConfigError: The function returns something else.
        """
        try:
            result = call(self.function, evidence)
        except Exception as error:
            if not is_ours(self.function):
                error.add_note(f"(in protocol '{self.name}'{where and f', {where}'})")
            raise
        k, s = (len(evidence.ks), len(evidence.draws)) if self.few_shot else (1, 1)
        shape, n_classes = [k, s, len(evidence.student_test)], evidence.head.weight.shape[-2]
        form = ""
        try:
            predicted = torch.as_tensor(result).detach()
            form = f"{predicted.dtype} {list(predicted.shape)}: ".removeprefix("torch.")
            is_right = not (predicted.is_floating_point() or predicted.dtype is torch.bool)
            is_right = is_right and list(predicted.shape) == shape
            if is_right and ((predicted >= 0) & (predicted < n_classes)).all():
                return predicted.long()
        except (TypeError, ValueError, RuntimeError, OverflowError):
            pass  # no tensor can be made or compared
        raise ConfigError(
            f"Protocol '{self.name}'{where and f' ({where})'} returned {form}{shortened(result)}; "
            f"return integer class numbers in 0..{n_classes - 1}, {shape} ([K, S, N]), as a "
            "tensor, a numpy array or nested lists. For logits, take argmax(-1)."
        )


def _current(evidence: Evidence) -> Tensor:
    return current_eval(evidence.student_test, evidence.head)[None, None]


def _knn(evidence: Evidence) -> Tensor:
    if evidence.classes is not None:
        anchors = evidence.student_fit[evidence.draws[:, 0]]
        return knn_of_share(
            evidence.student_test, anchors, evidence.classes, len(evidence.head.weight), evidence.ks
        )
    return knn_eval(evidence.student_test, evidence.student_fit[evidence.draws], evidence.ks)


def fit_heads(evidence: Evidence) -> list[Head]:
    """FT-Classifier's heads, one batched ``Head`` (``[S, C, d]``) per k."""
    teacher = evidence.head.logits(evidence.teacher_fit)  # f_t's own features through its own head
    return nested_fits(
        evidence.student_fit[evidence.draws],
        teacher[evidence.draws],
        evidence.head,
        evidence.preset,
        evidence.ks,
    )


def _predictions(evidence: Evidence, heads: list[Head]) -> Tensor:
    return torch.stack([current_eval(evidence.student_test, head) for head in heads])


def _ft_classifier(evidence: Evidence) -> Tensor:
    return _predictions(evidence, fit_heads(evidence))


def _orthogonal_classifier(evidence: Evidence) -> Tensor:
    draws = evidence.draws
    heads = nested_orthogonal(
        evidence.student_fit[draws],
        evidence.teacher_fit[draws],
        evidence.head,
        evidence.preset,
        evidence.ks,
    )
    return _predictions(evidence, heads)


def _orthogonal_procrustes(evidence: Evidence) -> Tensor:
    student, teacher, head = evidence.student_fit, evidence.teacher_fit, evidence.head
    rows = map(evidence.rows, evidence.ks)
    return _predictions(evidence, [procrustes_head(student[r], teacher[r], head) for r in rows])


def _surgery(evidence: Evidence) -> Tensor:
    # As many steps as FT-Classifier takes, but always full batches, whatever the preset's batch
    # size.
    predictions = []
    for rows in map(evidence.rows, evidence.ks):
        steps = evidence.preset.steps(rows.shape[1])
        module = surgery(evidence.student_fit[rows], evidence.teacher_fit[rows], steps=steps)
        predictions.append(current_eval(module.apply(evidence.student_test), evidence.head))
    return torch.stack(predictions)


PROTOCOLS = {
    p.name: p
    for p in (
        Protocol("current", "Current Eval", _current, few_shot=False, draws=("stratified",)),
        Protocol("knn", "KNN Eval", _knn, draws=("stratified", "share")),
        Protocol("ft_classifier", "FT-Classifier Eval", _ft_classifier),
        Protocol("orthogonal_classifier", "Orthogonal classifier", _orthogonal_classifier),
        Protocol(
            "orthogonal_procrustes", "Orthogonal classifier (Procrustes)", _orthogonal_procrustes
        ),
        Protocol("surgery", "Surgery", _surgery, paper="2402.02705"),
    )
}


def protocol(
    name: str,
    *,
    label: str,
    few_shot: bool = True,
    draws: tuple[str, ...] = DRAWS,
    replace: bool = False,
) -> Callable[[Callable], Callable]:
    """Register the decorated function as protocol ``name``; its name then works like that of any
    other protocol.

    It takes an ``Evidence`` and returns predicted classes ``[K, S, N]``, integers in a tensor, an
    array or nested lists: for each number of shots in ``evidence.ks``, each seed and each test
    input; ``[1, 1, N]`` when it is not ``few_shot``. You may register your own name again.

    Args:
        name, label: What code and tables call it.
        few_shot: Whether it fits something to inputs that are drawn.
        draws: How they may be drawn, out of ``DRAWS``.
        replace: Whether the name of a built-in protocol may be taken.

    Raises:
        ConfigError: A draw does not exist, or, unless ``replace``, the name is that of a built-in
            protocol.

    Example:
        >>> @mergelib.protocol("no_bias", label="Without bias", few_shot=False)
        ... def no_bias(evidence):
        ...     logits = evidence.student_test @ evidence.head.weight.T
        ...     return logits.argmax(-1)[None, None]
        >>> head = mergelib.core.types.Head(torch.eye(2), torch.tensor([9.0, 0.0]))
        >>> evidence = mergelib.protocols.Evidence(torch.eye(2), head)
        >>> mergelib.protocols.get_protocol("no_bias")(evidence)
        tensor([[[0, 1]]])
    """
    if not draws or set(draws) - set(DRAWS):
        raise ConfigError(f"Protocol '{name}': draws must be among {DRAWS}, not {draws}.")

    def register(function: Callable) -> Callable:
        refuse_built_in("protocol", name, PROTOCOLS.get(name), function, replace)
        check_call("protocol", name, function, "evidence")
        PROTOCOLS[name] = Protocol(name, label, function, few_shot, tuple(draws), paper="")
        return function

    return register


def get_protocol(name: str) -> Protocol:
    """The registered protocol. Raises ``UnknownNameError``, which suggests the nearest name."""
    check_name("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]


__all__ = [
    "PRESETS",
    "PROTOCOLS",
    "Evidence",
    "FTPreset",
    "Protocol",
    "current_eval",
    "fit_heads",
    "ft_classifier",
    "get_preset",
    "get_protocol",
    "kl_to_teacher",
    "knn_eval",
    "knn_of_share",
    "nested_fits",
    "orthogonal_classifier",
    "procrustes_head",
    "protocol",
    "stratified_order",
    "surgery",
    "uniform_order",
]
