"""LiNeS, layer-increasing network scaling: Wang et al., 2024 (arXiv 2410.17146)."""

import re
from collections.abc import Sequence

from ..core.errors import check_name
from ..core.types import State
from .arithmetic import task_vector_sum
from .registry import METHODS, method
from .states import Experts, Tensors, add_scaled, flatten


def blocks(names: Sequence[str]) -> dict[str, int]:
    """Name -> number of its block, the first whole part of it that is a number; names without one
    (embeddings, last norms) are left out."""
    matches = {n: re.search(r"\.(\d+)\.", f".{n}.") for n in names}
    return {n: int(match[1]) for n, match in matches.items() if match}


@method("lines", label="LiNeS", short="LiNeS", paper="2410.17146")
def lines(
    base: State, experts: Experts, *, lam: float = 0.3, of: str = "task_arithmetic"
) -> Tensors:
    """theta_m = theta_b + (alpha + lam * (l - 1) / (L - 1)) tau_m in block l of L; alpha tau_m in
    tensors of no block.

    tau_m is the direction of method ``of``, alpha = ``|sum_t tau_t|_1 / (T |tau_m|_1)``: shallow
    blocks, which all tasks share, stay as near to the base as in Weight Averaging, and deep ones
    move further.
    """
    allowed = [n for n, m in METHODS.items() if m.direction and not m.needs and not m.is_random]
    check_name("LiNeS: direction 'of'", of, allowed)
    direction = METHODS[of].direction(base, experts)
    names = list(direction)
    of_sum, of_merge = (
        flatten(s, names).norm(p=1) for s in (task_vector_sum(base, experts), direction)
    )
    alpha = float(of_sum / of_merge) / len(experts) if of_merge > 0 else 0.0
    number = blocks(names)
    last = max(number.values(), default=0)
    scaled = {
        n: t * (alpha + lam * (number[n] / last if last and n in number else 0.0))
        for n, t in direction.items()
    }
    return add_scaled(base, scaled, 1.0)
