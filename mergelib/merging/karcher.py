"""Karcher mean: models averaged along arcs instead of chords (Goddard et al., 2024, arXiv
2403.13257). Of two tensors of one length it is SLERP at one half (Shoemake, 1985); of two lengths,
SLERP in mergekit and FusionBench pulls the direction towards the longer one."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.types import State
from .options import AtLeastOne
from .registry import method
from .states import Experts, Tensors, float_names, rounded

CLOSE = 1e-6  # length of a step, in radians, that changes nothing any more


def karcher_mean(directions: Tensor, steps: int) -> Tensor:
    """The unit vector ``[D]`` with the least sum of squared angles to unit vectors ``[T, D]``.

    Each step goes along the mean of the arcs towards them. It starts at their mean, and stays there
    if they cancel.
    """
    centre = F.normalize(directions.mean(0), dim=0)
    for _ in range(steps):
        cosine = directions @ centre
        tangent = directions - cosine[:, None] * centre
        sine = tangent.norm(dim=1)  # exact for small angles, where arccos is not
        arcs = torch.atan2(sine, cosine) / sine.clamp(min=torch.finfo(sine.dtype).tiny)
        step = (arcs[:, None] * tangent).mean(0)
        length = step.norm()
        if length < CLOSE:
            break
        centre = F.normalize(length.cos() * centre + length.sin() * step / length, dim=0)
    return centre


@method("karcher", label="Karcher mean", short="Karcher", paper="2403.13257")
def karcher(base: State, experts: Experts, *, steps: AtLeastOne = 10) -> Tensors:
    """Per tensor, the Karcher mean of the experts' directions at their mean length.

    A tensor of zeros has no direction: it counts towards the length alone. ``base`` contributes
    only its integer tensors.
    """
    merged = {}
    for name in float_names(base):
        weights = torch.stack([e[name].reshape(-1).float() for e in experts])
        lengths = weights.norm(dim=1)
        moving = lengths > 0
        if moving.any():
            directions = weights[moving] / lengths[moving, None]
            weights = karcher_mean(directions, steps) * lengths.mean()
        else:
            weights = weights.mean(0)  # zeros, in memory of their own
        merged[name] = weights.view(base[name].shape)
    return rounded(base, merged)
