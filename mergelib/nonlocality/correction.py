"""A correction: per site and channel a scale and a shift, folded into weights or attached."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..core.spare import spare
from ..core.types import State
from .sites import INPUT, Site


@dataclass(frozen=True)
class Correction:
    """y' = scale * y + shift at each site: both by site name, ``[c]`` float32; sites may be
    added."""

    scale: dict[str, Tensor] = field(default_factory=dict)
    shift: dict[str, Tensor] = field(default_factory=dict)

    def apply(self, site: Site, y: Tensor) -> Tensor:
        """Corrected activations ``[..., c]`` of a site."""
        return _affine(y, self.scale[site.name], self.shift[site.name])

    def tensors(self) -> dict[str, Tensor]:
        """One flat dict, ``<site>.scale`` and ``<site>.shift``, for safetensors."""
        parts = vars(self).items()
        return {f"{n}.{part}": t.contiguous() for part, ts in parts for n, t in ts.items()}

    @classmethod
    def of(cls, tensors: State) -> Correction:
        """The correction that ``tensors()`` came from."""
        correction = cls()
        for name, t in tensors.items():
            site, _, part = name.rpartition(".")
            vars(correction)[part][site] = t
        return correction


def _affine(y: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return y * scale.to(y) + shift.to(y)


def _along(axis: int, values: Tensor, t: Tensor) -> Tensor:
    """A vector, shaped so that it broadcasts along one axis of ``t``."""
    return values.view([-1 if a == axis else 1 for a in range(t.dim())])


def fold(
    correction: Correction, sites: Sequence[Site], state: State
) -> tuple[dict[str, Tensor], Correction]:
    """A new state that computes what ``state`` computes with the correction attached.

    Computed in float64, returned in the state's dtypes.

    Args:
        correction: What to fold.
        sites: The architecture's sites.
        state: The encoder's weights.

    Returns:
        The state, and the part of the correction that no weights can hold (see ``attach``).
    """
    folded, rest = spare(dict(state)), Correction()
    for site in (s for s in sites if s.name in correction.scale):
        scale, shift = correction.scale[site.name], correction.shift[site.name]
        if site.fold is None:
            rest.scale[site.name], rest.shift[site.name] = scale, shift
            continue
        scale, shift = scale.double(), shift.double()
        if site.fold.through:
            shift = folded[site.fold.through].double() @ shift
        for name, axis in site.fold.scaled:
            t = folded[name]
            folded[name] = (t.double() * _along(axis, scale, t)).to(t.dtype)
        name, axis = site.fold.shifted
        t = folded[name]
        folded[name] = (t.double() + _along(axis, shift, t)).to(t.dtype)
    return folded, rest


Seen = Callable[[Site, Tensor], Tensor | None]
"""Called with a site's activations ``[B, L, c]``; if it returns a tensor, that replaces them."""


def _hook(transformer: nn.Module, site: Site, function: Seen) -> RemovableHandle:
    module = transformer.get_submodule(site.module)
    if site.side == INPUT:
        return module.register_forward_pre_hook(lambda module, args: function(site, args[0]))
    return module.register_forward_hook(lambda module, args, output: function(site, output))


@contextmanager
def watched(transformer: nn.Module, sites: Sequence[Site], function: Seen) -> Iterator[None]:
    """Within the block, forward passes call ``function`` at each site."""
    with ExitStack() as handles:
        for site in sites:
            handles.callback(_hook(transformer, site, function).remove)
        yield


class ChannelAffine(nn.Module):
    """Scale and shift of a site as buffers, which are saved and moved but not trained."""

    def __init__(self, scale: Tensor, shift: Tensor):
        super().__init__()
        self.register_buffer("scale", scale.clone())
        self.register_buffer("shift", shift.clone())

    def forward(self, site: Site, y: Tensor) -> Tensor:
        return _affine(y, self.scale, self.shift)


def attach(module: nn.Module, sites: Sequence[Site], correction: Correction) -> None:
    """Let ``module`` (its part ``transformer`` is the encoder) compute with the correction.

    Each site gets a small module; together they are ``module.corrections``, so that they move with
    ``module`` and are part of its state dict, while that of ``module.transformer`` does not change.
    """
    module.corrections = nn.ModuleList()
    for site in (s for s in sites if s.name in correction.scale):
        affine = ChannelAffine(correction.scale[site.name], correction.shift[site.name])
        _hook(module.transformer, site, affine)
        module.corrections.append(affine)
