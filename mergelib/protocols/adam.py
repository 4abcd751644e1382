"""Adam for small fits: torch's own step without ``torch.optim.Adam`` around it, whose overhead is
several times the step itself for a small head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adam import adam


class Adam:
    """Updates ``weights``, given a gradient for each, as ``torch.optim.Adam(weights, lr)`` would
    (Kingma and Ba, 2015)."""

    def __init__(self, weights: Sequence[Tensor], lr: float):
        self.weights, self.lr = list(weights), lr
        self._means = [torch.zeros_like(w) for w in self.weights]  # of the gradient
        self._squares = [torch.zeros_like(w) for w in self.weights]  # of its square
        self._taken = [torch.zeros((), device=w.device) for w in self.weights]
        self._fused = all(w.device.type != "mps" for w in self.weights)

    def step(self, *gradients: Tensor) -> None:
        """One step of every weight, in place."""
        adam(
            self.weights,
            list(gradients),
            self._means,
            self._squares,
            [],
            self._taken,
            fused=self._fused,
            foreach=False,
            lr=self.lr,
            beta1=0.9,
            beta2=0.999,
            eps=1e-8,
            weight_decay=0,
            amsgrad=False,
            maximize=False,
        )

    def keep(self, rows: int) -> None:
        """Continue with only the first ``rows`` of every weight's second axis, in new tensors."""
        for tensors in (self.weights, self._means, self._squares):
            tensors[:] = [x[:, :rows].clone() for x in tensors]
