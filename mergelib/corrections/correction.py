"""A correction: per site and channel a scale and a shift, folded into weights, attached to a module, or saved."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import ConfigError, StateDictError
from ..types import State, not_finite
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
        """The same with one more site."""
        return Correction({**self.scale, name: scale}, {**self.shift, name: shift})

    def tensors(self) -> dict[str, Tensor]:
        """All of it as one flat dict, ``<site>.scale`` and ``<site>.shift``, as safetensors takes it."""
        return {
            n + end: t.contiguous()
            for end, part in ((SCALE, self.scale), (SHIFT, self.shift))
            for n, t in part.items()
        }

    @classmethod
    def of(cls, tensors: State) -> Correction:
        """What ``tensors()`` gave. Raises ``StateDictError`` for names that are no pairs and for values that are not finite."""
        scale, shift = (
            {n.removesuffix(end): t for n, t in tensors.items() if n.endswith(end)}
            for end in (SCALE, SHIFT)
        )
        odd = sorted(
            {n for n in tensors if not n.endswith((SCALE, SHIFT))}
            | (scale.keys() ^ shift.keys())
            | {
                n
                for n in scale.keys() & shift.keys()
                if scale[n].shape != shift[n].shape or scale[n].dim() != 1
            }
        )
        if odd:
            raise StateDictError(
                f"No correction: {', '.join(odd[:5])}. Each site has a scale and a shift [c], saved as <site>.scale and "
                "<site>.shift."
            )
        if bad := not_finite(tensors):
            raise StateDictError(
                f"The correction holds NaN or inf in {', '.join(bad[:5])}; fit it again."
            )
        return cls(scale, shift)


def chosen(sites: Sequence[Site], correction: Correction) -> list[Site]:
    """The sites that ``correction`` corrects, in their order. Raises ``ConfigError`` for one that is not among ``sites``."""
    unknown = sorted(correction.scale.keys() - {s.name for s in sites})
    if unknown:
        raise ConfigError(
            f"The correction is for {', '.join(unknown[:5])}, which this encoder's architecture does not have as a site."
        )
    return [s for s in sites if s.name in correction.scale]


def _along(vector: Tensor, like: Tensor, axis: int, name: str) -> Tensor:
    """``vector [c]`` in the shape that broadcasts along ``axis`` of ``like``."""
    if axis >= like.dim() or like.shape[axis] != len(vector):
        raise StateDictError(
            f"{name} is {list(like.shape)}; a correction of {len(vector)} channels does not fit its axis {axis}. It was fitted on "
            "an encoder of another size."
        )
    return vector.view([-1 if a == axis else 1 for a in range(like.dim())])


def fold(
    correction: Correction, sites: Sequence[Site], state: State
) -> tuple[dict[str, Tensor], Correction]:
    """``state`` with the correction in its weights, and the rest of the correction, which no weights can hold (see ``attach``).

    The new state computes what the old one computed with the correction attached. ``state`` is left as it is. Computed in float64,
    returned in the state's dtypes. Raises ``StateDictError`` for a state without the tensors or with other shapes, ``ConfigError`` for a
    site that the encoder does not have.
    """
    folded, rest = dict(state), Correction()
    for site in chosen(sites, correction):
        scale, shift = correction.scale[site.name], correction.shift[site.name]
        if site.fold is None:
            rest = rest.with_site(site.name, scale, shift)
            continue
        names = [*(n for n, _ in site.fold.scaled), site.fold.shifted[0]]
        if missing := [n for n in names if n not in folded]:
            raise StateDictError(
                f"{site.name} folds into {', '.join(missing)}, which these weights lack. Give the encoder's own state dict."
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


def _hook(
    site: Site, transformer: nn.Module, function: Callable[[Site, Tensor], Tensor | None]
) -> RemovableHandle:
    try:
        module = transformer.get_submodule(site.module)
    except AttributeError as error:
        raise ConfigError(
            f"This encoder has no part '{site.module}'. Take the sites of its own architecture: sites_for(config)."
        ) from error

    def checked(values: object) -> Tensor | None:
        if not isinstance(values, Tensor):
            raise ConfigError(
                f"{site.name} is no tensor but {type(values).__name__}; it cannot be corrected."
            )
        return function(site, values)

    def before(module: nn.Module, args: tuple) -> tuple | None:
        changed = checked(args[0])
        return None if changed is None else (changed, *args[1:])

    if site.side == INPUT:
        return module.register_forward_pre_hook(before)
    return module.register_forward_hook(lambda module, args, output: checked(output))


def _hooks(
    transformer: nn.Module, sites: Sequence[Site], function: Callable[[Site, Tensor], Tensor | None]
) -> list[RemovableHandle]:
    """A hook at every site, or at none where one fails."""
    handles: list[RemovableHandle] = []
    try:
        for site in sites:
            handles.append(_hook(site, transformer, function))
    except ConfigError:
        for handle in handles:
            handle.remove()
        raise
    return handles


@contextmanager
def watched(
    transformer: nn.Module, sites: Sequence[Site], function: Callable[[Site, Tensor], Tensor | None]
) -> Iterator[None]:
    """While it lasts, every forward pass shows each site's activations ``[B, L, c]`` to ``function``; a tensor that it returns takes their
    place. Raises ``ConfigError`` for a site that ``transformer`` does not have."""
    handles = _hooks(transformer, sites, function)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class ChannelAffine(nn.Module):
    """y' = scale * y + shift per channel, the last axis. Both are buffers: they are saved and moved with the module, and not trained."""

    def __init__(self, scale: Tensor, shift: Tensor):
        super().__init__()
        self.register_buffer("scale", scale.clone())
        self.register_buffer("shift", shift.clone())

    def forward(self, y: Tensor) -> Tensor:
        """``[..., c] -> [..., c]``. Raises ``StateDictError`` for another number of channels."""
        if y.shape[-1] != len(self.scale):
            raise StateDictError(
                f"A correction of {len(self.scale)} channels got activations of {y.shape[-1]}; it was fitted on an encoder of another size."
            )
        return y * self.scale.to(y.dtype) + self.shift.to(y.dtype)


class Attached(nn.ModuleList):
    """The corrections of a module, as its part ``corrections``."""

    def __init__(self, module: nn.Module, sites: Sequence[Site], correction: Correction):
        super().__init__(
            ChannelAffine(correction.scale[s.name], correction.shift[s.name]) for s in sites
        )
        by_name = {s.name: affine for s, affine in zip(sites, self, strict=True)}
        self._owner = [module]  # in a list, or it would become a part of its own part
        self._handles = _hooks(module.transformer, sites, lambda site, y: by_name[site.name](y))

    def remove(self) -> None:
        """Take the corrections off again."""
        for handle in self._handles:
            handle.remove()
        delattr(self._owner[0], "corrections")


def attach(module: nn.Module, sites: Sequence[Site], correction: Correction) -> Attached:
    """Let ``module`` (its part ``transformer`` is the encoder) compute with the correction from now on.

    Each site gets a small module; together they are ``module.corrections``, so that they move with ``module`` and stand in its state dict,
    while the state dict of ``module.transformer`` stays what it was. Raises ``ConfigError`` where there is a correction already, and for
    a site that the encoder does not have.
    """
    if hasattr(module, "corrections"):
        raise ConfigError(
            "This module has a correction attached; call module.corrections.remove() first."
        )
    mine = chosen(sites, correction)
    parameter = next(module.parameters(), torch.empty(0))
    module.corrections = Attached(module, mine, correction).to(parameter.device)
    return module.corrections
