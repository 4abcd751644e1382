"""Two tasks in the plane, and encoders that only turn it: the paper's argument, small enough to
draw.

An encoder is one 2 x 2 matrix theta and f(x) = theta x, so weights can be drawn, too. The turning
is built in by hand; the miniature BERT shows whether a real encoder behaves like that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import ConfigError, check_name
from ..core.types import Expert, Head, State, percent
from ..merging import get_method
from ..protocols import Evidence, FTPreset, stratified_order
from ..protocols.alignment import fit_closed_form

CLASSES = {"A": 4, "B": 3}
TURN_B = -20.0  # degrees by which fine-tuning on task B turns the plane; a slider sets task A's
# The radius of the circle of class centres, and the standard deviation of inputs around a centre.
RADIUS, SPREAD = 2.0, 0.55
SIZES = {"test": 60, "pool": 25}  # inputs per class: scored, and to draw from
SEED = 0
# A head with 2 numbers per class must move each of them much further than one with 128.
FIT = FTPreset(lr=0.3, epochs=60)


def turn(degrees: float) -> Tensor:
    """Rotation matrix ``[2, 2]``, counter-clockwise: it takes a column x to the turned column; rows
    turn as ``x @ turn(a).T``."""
    a = math.radians(degrees)
    return torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])


def turned_by(student: Tensor, teacher: Tensor) -> float:
    """Degrees in (-180, 180] by which ``student [N, 2]`` is turned against ``teacher [N, 2]``, from
    the best-fitting rotation.

    Raises ``DataError`` for points that are not pairs.
    """
    A = fit_closed_form(teacher[None], student[None], "orthogonal").A[0]
    return math.degrees(math.atan2(float(A[1, 0] - A[0, 1]), float(A[0, 0] + A[1, 1])))


@dataclass(frozen=True)
class Toy:
    """f_b, an expert per task, and the tasks' inputs ``[N, 2]`` in two splits, ``test`` and
    ``pool``; ``mirrored`` says whether f_B also mirrors the plane."""

    angle: float
    mirrored: bool
    base: State
    experts: dict[str, Expert]
    points: dict[tuple[str, str], Tensor]

    def expert(self, task: str) -> Expert:
        """f_t and (W_t, b_t). Raises ``UnknownNameError``."""
        check_name("toy task", task, self.experts)
        return self.experts[task]

    def merge(self, lam: float) -> State:
        """theta_m of Task Arithmetic (Eq. 2), by the library's own function."""
        states = [expert.state for expert in self.experts.values()]
        return get_method("task_arithmetic")(self.base, states, lam=lam)

    def features(self, encoder: State, task: str, split: str = "test") -> Tensor:
        """Z ``[N, 2]``, the rows theta x."""
        return self.points[task, split] @ encoder["theta"].mT

    def labels(self, task: str, split: str = "test") -> Tensor:
        """Classes ``[N]``."""
        return torch.arange(CLASSES[task]).repeat_interleave(SIZES[split])

    def ceiling(self, encoder: State, task: str) -> float:
        """Test accuracy in percent that no classifier on these features can be expected to beat.

        It is the Bayes classifier's: the features keep the part of x outside theta's null space,
        and the class whose centre is nearest in that part is the most probable. An invertible theta
        loses nothing, so its ceiling is f_t's accuracy.
        """
        theta = encoder["theta"]
        projector = torch.linalg.pinv(theta, rtol=1e-4) @ theta
        x, middle = self.points[task, "test"] @ projector.mT, centres(CLASSES[task]) @ projector.mT
        return percent(torch.cdist(x, middle).argmin(-1) == self.labels(task))

    def evidence(self, encoder: State, task: str, k: int) -> Evidence:
        """What a protocol may see of an encoder and a task, with one stratified draw of k inputs
        per class."""
        expert = self.expert(task)
        student, teacher = (self.features(e, task, "pool") for e in (encoder, expert.state))
        draws = stratified_order(self.labels(task, "pool"), CLASSES[task], k, SEED)[None]
        tested = self.features(encoder, task)
        return Evidence(tested, expert.head, student, teacher, draws, (k,), FIT)


def centres(n_classes: int) -> Tensor:
    """Class centres ``[C, 2]``, evenly on the circle of ``RADIUS``, the first at (RADIUS, 0)."""
    directions = 2 * torch.pi * torch.arange(n_classes) / n_classes
    return RADIUS * torch.stack([directions.cos(), directions.sin()], dim=-1)


def make_toy(angle: float = 80.0, mirrored: bool = False) -> Toy:
    """The toy in which fine-tuning on task A turned the plane by ``angle`` degrees, and on task B
    by ``TURN_B``, after mirroring it (y to -y) if ``mirrored``.

    Half-way between a turn and a mirror image lies a map of rank 1, whatever the angles:
    e^ia z + e^ib conj(z) = 2 e^i(a+b)/2 Re(e^i(a-b)/2 z). Every input then lands on one line.

    f_b is the identity. W_t points at the turned class centres and has the length that makes
    softmax(W_t z) the exact posterior, so nothing is trained. Inputs are the same for every angle.
    Raises ``ConfigError`` for an angle that is not finite.
    """
    if not math.isfinite(angle):
        raise ConfigError(f"angle = {angle}: give degrees, for example 80.")
    generator = torch.Generator().manual_seed(SEED)
    toy = Toy(angle, mirrored, {"theta": torch.eye(2)}, {}, {})
    for task, degrees in (("A", angle), ("B", TURN_B)):
        middle = centres(CLASSES[task])
        for split in SIZES:
            around = middle[toy.labels(task, split)]
            noise = torch.randn(around.shape, generator=generator)
            toy.points[task, split] = around + SPREAD * noise
        mirror = torch.tensor([1.0, -1.0 if mirrored and task == "B" else 1.0])
        theta = turn(degrees) * mirror
        head = Head(middle @ theta.mT / SPREAD**2, torch.zeros(len(middle)))
        toy.experts[task] = Expert(task, {"theta": theta}, head)
    return toy
