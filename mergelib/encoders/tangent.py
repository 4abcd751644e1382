"""The tangent space of f_b: an encoder linearised in its weights (Ortiz-Jimenez et al., 2023, arXiv
2305.12827)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..core.types import State, digest, state_digest
from . import Encoder, load_state


class Tangent(nn.Module):
    """``f(x; theta_b) + d f(x; theta_b) / d theta (theta - theta_b)``: linear in the weights theta,
    which are those of ``transformer``."""

    def __init__(self, module: nn.Module, theta: nn.Module):
        super().__init__()
        self.module, self.start = module, theta.requires_grad_(False)

    @property
    def transformer(self) -> nn.Module:
        return self.module.transformer

    def forward(self, **batch: Tensor) -> Tensor:
        start = dict(self.start.named_parameters())
        moved = {n: p - start[n] for n, p in self.module.named_parameters()}
        with sdpa_kernel(SDPBackend.MATH):  # the others know no forward derivative
            at_base, change = jvp(
                lambda theta: functional_call(self.module, theta, (), batch), (start,), (moved,)
            )
        return at_base + change


@dataclass(frozen=True)
class TangentEncoder:
    """An ``Encoder`` whose modules are ``Tangent``s at the weights ``base``."""

    inner: Encoder
    base: State

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    @property
    def digest(self) -> str:
        """Identity of architecture, preprocessing and base; part of the store's keys."""
        return digest(self.inner.digest, "tangent", state_digest(self.base))

    def module(self, state: State | None = None) -> Tangent:
        """A module in evaluation mode; its weights are ``state``, or the base's. Raises
        ``StateDictError`` on other keys."""
        tangent = Tangent(self.inner.module(self.base), self.inner.module(self.base)).eval()
        if state is not None:
            load_state(tangent, state)
        return tangent
