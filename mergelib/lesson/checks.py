"""Checks of exercises. Those of the lesson recognise common mistakes by the answer that they lead
to, and name them; two simple ones serve the core notebooks."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss

from ..core.names import FINE_TUNED
from ..core.types import Head, percent
from ..protocols import current_eval, kl_to_teacher
from ..tables import average_of
from .toy import CLASSES, TURN_B, Toy, turned_by

WIDTH = 110


@dataclass(frozen=True)
class Feedback:
    """A check's verdict on an answer. ``right`` is None while there is no answer."""

    right: bool | None
    says: str

    def __repr__(self) -> str:
        head = {True: "Right.", False: "Not yet.", None: "Open."}[self.right]
        return textwrap.fill(f"{head} {self.says}", WIDTH)


OPEN = Feedback(None, "Put your answer in place of None and run the cell again.")


def wrong(says: str) -> Feedback:
    """A wrong answer, and what about it."""
    return Feedback(False, says)


def check_number(
    answer: Any,
    right: float,
    *,
    within: float,
    unit: str,
    slips: Mapping[float, str] | None = None,
    well: str = "",
) -> Feedback:
    """Feedback on a number that was computed here or in a notebook.

    Args:
        answer: What the reader gives; None while there is no answer.
        right: What was computed.
        within: How far off an answer may be.
        unit: What the number counts, for the words.
        slips: Values that a known mistake leads to -> what to say; the first match is used.
        well: What to say of the right answer; by default the number itself.
    """
    if answer is None:
        return OPEN
    if isinstance(answer, Tensor) and answer.numel() == 1:
        answer = answer.item()
    if isinstance(answer, bool) or not isinstance(answer, Real):
        return wrong(f"That is {type(answer).__name__}; give one number, in {unit}.")
    if not math.isfinite(answer):
        return wrong(
            f"{answer} is not a finite number: you may have divided by zero "
            "or used a value that was never set."
        )
    if abs(answer - right) <= within:
        return Feedback(True, well or f"{right:.4g} {unit}. The solutions say why.")
    for value, message in (slips or {}).items():
        # A tolerance meant for degrees is too wide for radians.
        if abs(answer - value) <= min(within, 0.01 + 0.05 * abs(value)):
            return wrong(message)
    side = "large" if answer > right else "small"
    return wrong(
        f"{float(answer):g} {unit} is too {side}, and this check does not recognise the mistake."
    )


def check_choice(answer: Any, right: str, choices: Sequence[str]) -> Feedback:
    """Feedback on one of several ``choices``; ``right`` is the one that was computed."""
    if answer is None:
        return OPEN
    if answer not in choices:
        return wrong(f"Choose one of {', '.join(choices)}.")
    if answer != right:
        return wrong(f"It is not {answer}. What would have to be true for that?")
    return Feedback(True, f"{right}. The solutions say why.")


def check_turn(toy: Toy, lam: float, answer: float | None, task: str = "A") -> Feedback:
    """Exercise 1: by how many degrees is f_m's output for ``task`` turned against f_t's,
    counter-clockwise positive?"""
    theta_m, theta_t = toy.merge(lam)["theta"], toy.expert(task).state["theta"]
    # Columns of theta are the outputs of the unit vectors.
    right = turned_by(theta_m.T, theta_t.T)
    head, merged = (turned_by(theta.T, torch.eye(2)) for theta in (theta_t, theta_m))
    between = toy.angle - TURN_B
    return check_number(
        answer,
        right,
        slips={
            -right: (
                "The size is right, the direction is not: that is how far f_t is turned against "
                "f_m. Counter-clockwise counts as positive."
            ),
            head: (
                f"That is the angle of the old classifier: f_{task}, "
                f"and W_{task} with it, stand there, seen from f_b. You turned the features, "
                "not W: subtract it from the angle of f_m."
            ),
            merged: (
                f"That is f_m seen from f_b. W_{task} does not stand at f_b; "
                f"it stands where f_{task} does."
            ),
            -between: (
                "That is the whole angle between the two experts. "
                "With lambda 1/2 the merge lies half-way between them."
            ),
            between: (
                "That is the whole angle between the two experts, and in the other direction. "
                "With lambda 1/2 the merge lies half-way."
            ),
            math.radians(right): "That looks like radians; the sliders are in degrees.",
            0.0: (
                "The clouds have moved in the picture: "
                "no turn would leave every one of them on its own marker."
            ),
        },
        within=2.5,
        unit="degrees",
        well=f"f_m's outputs are turned by {right:.0f} degrees, "
        f"and W_{task} has not moved with them.",
    )


def check_breaking_turn(answer: float | None) -> Feedback:
    """Exercise 2: at which turn (degrees, positive) does Current Eval get half of the inputs of
    task A wrong?"""
    n_classes, other = CLASSES.values()
    right = 180 / n_classes
    return check_number(
        answer,
        right,
        slips={
            360 / n_classes: (
                f"That is the distance from one of {n_classes} classes to the next. "
                "Turned so far, every cloud sits on its neighbour's marker: all are wrong. "
                "Half of a cloud is across the line when its centre is on the line."
            ),
            180 / other: f"That is for {other} classes. How many does task A have?",
            360 / other: (
                f"That is the distance between {other} classes. How many does task A have, "
                "and where is the line between two?"
            ),
            2 * right + TURN_B: (
                "That is where the slider stands then. The question is about the turn of f_m "
                "against f_t, which is half the angle between the experts."
            ),
            -right: "The size is right, but give a positive number: both directions break alike.",
            math.radians(right): "That looks like radians; give degrees.",
            180.0: (
                "At 180 degrees every cloud is opposite to its marker. It breaks much earlier: "
                "think of the line between two classes."
            ),
            50.0: "50 is the accuracy there, not the turn.",
        },
        within=1.5,
        unit="degrees",
        well=f"The line between two classes lies {right:.0f} degrees from each. The more "
        "classes, the less turn it takes.",
    )


def check_head(toy: Toy, lam: float, answer: Any) -> Feedback:
    """Exercise 3: a W' ``[C, 2]``, made without training, that classifies f_m's outputs as W_A did
    f_A's."""
    expert = toy.expert("A")
    weight = expert.head.weight
    wanted = list(weight.shape)
    if answer is None:
        return OPEN
    if isinstance(answer, Head):
        answer = answer.weight
    if not isinstance(answer, Tensor):
        return wrong(f"That is {type(answer).__name__}; give W' as a tensor of shape {wanted}.")
    z, z_t = (toy.features(state, "A") for state in (toy.merge(lam), expert.state))
    shape = list(answer.shape)
    if shape != wanted:
        known = {
            z.shape: "Those are features, one row per input. You turned the features; here the "
            "features stay as f_m gives them, and W turns.",
            weight.T.shape: f"The shape {shape} is W' transposed; its rows are the classes: "
            f"{wanted}.",
            (2, 2): "A 2 x 2 matrix turns things; apply it to the rows of W.",
        }
        other = f"Shape {shape}; W' has a row per class and a column per feature: {wanted}."
        return wrong(known.get(answer.shape, other))
    answer = answer.detach().to(weight.dtype)
    if not answer.isfinite().all():
        return wrong("W' holds values that are not finite.")
    decisions = current_eval(z_t, expert.head)

    def agreement(W: Tensor) -> float:
        return percent(current_eval(z, Head(W, expert.head.bias)) == decisions)

    agree = agreement(answer)
    if agree >= 99:
        return Feedback(
            True,
            f"W' classifies f_m's outputs as W_A did f_A's ({agree:.0f} % "
            "equal), from a turn alone. No label, no training.",
        )
    delta, angle = turned_by(z, z_t), turned_by(answer, weight)
    if torch.allclose(answer, weight, atol=1e-4):
        return wrong(
            "That is W_A itself: Current Eval. "
            f"The features are turned against it by {delta:.0f} degrees."
        )
    if abs(angle + delta) <= 2.5:
        return wrong(
            f"You turned W against the features: it stands at {angle:.0f} degrees, the features at "
            f"{delta:.0f}, so they are twice as far apart as before. Rows turn as x @ turn(a).T."
        )
    if any(agreement(answer.roll(shift, 0)) >= 99 for shift in range(1, len(weight))):
        return wrong(
            "The directions are right, but the rows are in another order: row c belongs to class c."
        )
    return wrong(
        f"Your W' is W turned by {angle:.0f} degrees and the features are turned by {delta:.0f}; "
        f"{agree:.0f} % of the decisions are f_A's."
    )


def check_loss(student_logits: Tensor, teacher_logits: Tensor, answer: Any) -> Feedback:
    """Exercise 4: the loss of Eq. 8 from logits ``[n, C]``, mean over the inputs of
    KL(teacher || student)."""
    student, teacher = student_logits.double(), teacher_logits.double()
    losses, n_classes = kl_to_teacher(student, teacher), student.shape[-1]
    right = losses.mean().item()
    if isinstance(answer, Tensor) and answer.numel() == len(losses) > 1:
        return wrong("One value per input; Eq. 8 takes their mean.")
    return check_number(
        answer,
        right,
        slips={
            losses.sum().item(): "That is the sum over the inputs; Eq. 8 takes the mean.",
            right / n_classes: (
                f"You also took the mean over the {n_classes} classes. KL is a sum over classes "
                "and a mean over inputs (torch's kl_div needs reduction='batchmean')."
            ),
            kl_to_teacher(teacher, student).mean().item(): (
                "That is KL(student || teacher). "
                "The teacher's probabilities do the weighting: KL(teacher || student)."
            ),
            -right: "Only the sign is wrong: log teacher minus log student.",
            cross_entropy(student, teacher.softmax(-1)).item(): (
                "That is the cross-entropy: the teacher's own entropy is still in it. Its "
                "gradient is the same, its value is not zero when the two agree."
            ),
            cross_entropy(student, teacher.argmax(-1)).item(): (
                "You used the teacher's decision as a label. FT-Classifier uses its whole "
                "softmax, doubts included."
            ),
            right / math.log(2): "That is in bits; use the natural logarithm.",
            mse_loss(student, teacher).item(): (
                "That is the squared distance of the logits; take the softmax first, then KL."
            ),
            0.0: (
                "Zero would mean that student and teacher agree. Do both logits come from the "
                "same features? The student's come from f_m's."
            ),
        },
        within=max(1e-4, 5e-4 * abs(right)),
        unit="nats",
        well="Minimise this over W' and b', starting at W_t and b_t, and you have FT-Classifier.",
    )


def check_prediction(summary: pd.DataFrame, method: str, k: int, answer: float | None) -> Feedback:
    """Exercise 5: predict from its Current Eval which average FT-Classifier reaches for another
    merge, in percent. ``summary`` comes from ``tables.mean_and_std``, at k shots."""
    top, old = average_of(summary, FINE_TUNED), average_of(summary, method)
    right = average_of(summary, method, "ft_classifier", k)
    slips = {
        old: "That is Current Eval: you predict that nothing comes back, because the features "
        "are destroyed. The toy and Task Arithmetic say otherwise.",
        top: "That is the fine-tuned models' average: you predict that everything comes back, "
        "as in the plane. Task Arithmetic lost more than its alignment.",
    }
    well = (
        f"{right:.1f}, where Current Eval says {old:.1f} and the fine-tuned models {top:.1f}. "
        "What came back was misaligned; "
        "a linear classifier cannot recover the rest from so few inputs."
    )
    return check_number(answer, right, within=3.0, unit="percent", slips=slips, well=well)


def all_right(feedback: Sequence[Feedback]) -> bool:
    """Return whether every answer is right."""
    return all(f.right for f in feedback)
