"""Current Eval: the merged features through the old head (Eq. 4)."""

from torch import Tensor

from ..core.types import Head


def current_eval(features: Tensor, head: Head) -> Tensor:
    """Predicted class ``[..., N]`` of ``features [..., N, d]`` under ``head``: argmax_c (W_t f_m(x)
    + b_t)_c. Eq. 4."""
    return head.logits(features).argmax(-1)
