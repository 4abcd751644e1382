"""A correction: per site and channel a scale and a shift, folded into weights or attached."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..core.errors import ConfigError, StateDictError
from ..core.spare import spare
from ..core.types import State
from .sites import INPUT, Site

SCALE, SHIFT = ".scale", ".shift"


@dataclass(frozen=True)
class Correction:
    """y' = scale * y + shift at each site: both by site name, ``[c]`` float32."""

    scale: Mapping[str, Tensor] = field(default_factory=dict)
    shift: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.scale)

    def with_site(self, name: str, scale: Tensor, shift: Tensor) -> Correction:
        """This correction with one more site."""
        return Correction({**self.scale, name: scale}, {**self.shift, name: shift})

    def apply(self, site: Site, y: Tensor) -> Tensor:
        """Corrected activations ``[..., c]`` of a site. Raises ``StateDictError`` for another c."""
        scale, shift = self.scale[site.name], self.shift[site.name]
        if y.shape[-1] != len(scale):
            raise StateDictError(
                f"A correction for {len(scale)} channels received activations with {y.shape[-1]}; "
                f"it was fitted on an encoder of another size."
            )
        return y * scale.to(y) + shift.to(y)

    def tensors(self) -> dict[str, Tensor]:
        """One flat dict, ``<site>.scale`` and ``<site>.shift``, for safetensors."""
        parts = ((SCALE, self.scale), (SHIFT, self.shift))
        return {n + end: t.contiguous() for end, part in parts for n, t in part.items()}

    @classmethod
    def of(cls, tensors: State) -> Correction:
        """The correction that ``tensors()`` came from."""
        return cls(
            *(
                {n.removesuffix(end): t for n, t in tensors.items() if n.endswith(end)}
                for end in (SCALE, SHIFT)
            )
        )


def chosen(sites: Sequence[Site], correction: Correction) -> list[Site]:
    """The corrected sites, in the architecture's order. Raises ``ConfigError`` for an unknown
    one."""
    unknown = sorted(correction.scale.keys() - {s.name for s in sites})
    if unknown:
        raise ConfigError(
            f"The correction is for {', '.join(unknown[:5])}, which this encoder's architecture "
            "does not have as a site."
        )
    return [s for s in sites if s.name in correction.scale]


def _along(vector: Tensor, like: Tensor, axis: int, name: str) -> Tensor:
    """``vector [c]`` in the shape that broadcasts along ``axis`` of ``like``."""
    if axis >= like.dim() or like.shape[axis] != len(vector):
        raise StateDictError(
            f"{name} is {list(like.shape)}; a correction for {len(vector)} channels does not fit "
            f"its axis {axis}. It was fitted on an encoder of another size."
        )
    return vector.view([-1 if a == axis else 1 for a in range(like.dim())])


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

    Raises:
        StateDictError: The state lacks tensors or has other shapes.
        ConfigError: The encoder does not have a site.
    """
    folded, rest = spare(dict(state)), Correction()
    for site in chosen(sites, correction):
        scale, shift = correction.scale[site.name], correction.shift[site.name]
        if site.fold is None:
            rest = rest.with_site(site.name, scale, shift)
            continue
        names = [*(n for n, _ in site.fold.scaled), site.fold.shifted[0]]
        if missing := [n for n in names if n not in folded]:
            raise StateDictError(
                f"{site.name} folds into {', '.join(missing)}, which these weights lack. Give the "
                "encoder's own state dict."
            )
        scale, shift = scale.double(), shift.double()
        if site.fold.through:
            matrix = folded[site.fold.through].double()
            _along(shift, matrix, 1, site.fold.through)
            shift = matrix @ shift
        for name, axis in site.fold.scaled:
            t = folded[name]
            folded[name] = (t.double() * _along(scale, t, axis, name)).to(t.dtype)
        name, axis = site.fold.shifted
        t = folded[name]
        folded[name] = (t.double() + _along(shift, t, axis, name)).to(t.dtype)
    return folded, rest


Seen = Callable[[Site, Tensor], Tensor | None]
"""Called with a site's activations ``[B, L, c]``; if it returns a tensor, that replaces them."""


def _hook(transformer: nn.Module, site: Site, function: Seen) -> RemovableHandle:
    try:
        module = transformer.get_submodule(site.module)
    except AttributeError as error:
        raise ConfigError(
            f"This encoder has no module '{site.module}'. Use the sites of its own architecture: "
            f"sites_for(config)."
        ) from error

    def before(module: nn.Module, args: tuple) -> tuple | None:
        changed = function(site, args[0])
        return None if changed is None else (changed, *args[1:])

    if site.side == INPUT:
        return module.register_forward_pre_hook(before)
    return module.register_forward_hook(lambda module, args, output: function(site, output))


@contextmanager
def watched(transformer: nn.Module, sites: Sequence[Site], function: Seen) -> Iterator[None]:
    """Within the block, forward passes call ``function`` at each site.

    Raises ``ConfigError`` for a site that ``transformer`` does not have.
    """
    with ExitStack() as handles:
        for site in sites:
            handles.callback(_hook(transformer, site, function).remove)
        yield


class ChannelAffine(nn.Module):
    """Scale and shift of a site as buffers, which are saved and moved but not trained."""

    def __init__(self, site: Site, correction: Correction):
        super().__init__()
        self.name = site.name
        self.register_buffer("scale", correction.scale[site.name].clone())
        self.register_buffer("shift", correction.shift[site.name].clone())

    def forward(self, site: Site, y: Tensor) -> Tensor:
        return Correction({self.name: self.scale}, {self.name: self.shift}).apply(site, y)


def attach(module: nn.Module, sites: Sequence[Site], correction: Correction) -> None:
    """Let ``module`` (its part ``transformer`` is the encoder) compute with the correction.

    Each site gets a small module; together they are ``module.corrections``, so that they move with
    ``module`` and are part of its state dict, while that of ``module.transformer`` does not change.

    Raises:
        ConfigError: A correction is already attached, or the encoder does not have a site.
    """
    if hasattr(module, "corrections"):
        raise ConfigError("This module has a correction attached; attach it to a new one.")
    device = next(module.parameters(), torch.empty(0)).device
    mine = {site: ChannelAffine(site, correction).to(device) for site in chosen(sites, correction)}
    for site, affine in mine.items():
        _hook(module.transformer, site, affine)
    module.corrections = nn.ModuleList(mine.values())
