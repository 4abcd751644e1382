"""How near two ways of computing the same thing must come: by the size of what is compared, not by
a fixed number. And numbers to compare on."""

import torch
from torch import Tensor

# float32, through a dozen layers of sums of some hundred products each: eps is lost once a sum, and
# not always to one side. What a leak of padding or a wrong unit changes is a hundred times that.
ROUNDING = 80 * torch.finfo(torch.float32).eps


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float32):
    """Standard normal numbers, drawn in float32."""
    return torch.randn(*shape, generator=seeded(seed)).to(dtype)


def apart(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, in units of the largest entry of ``wanted``."""
    found, wanted = found.detach(), wanted.detach()
    return float((found - wanted).abs().max() / wanted.abs().max())


def equal(found, expected):
    """Whether two states are one to the bit."""
    return found.keys() == expected.keys() and all(
        torch.equal(found[n], t) for n, t in expected.items()
    )


def assert_states_close(a, b, atol=1e-5, rtol=1e-5, names=None):
    """Two states with the same names, shapes and dtypes, and numbers that near; or no more than
    ``names`` of them, in float64."""
    if names:
        a, b = ({n: s[n].double() for n in names} for s in (a, b))
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(
            a[name], b[name], atol=atol, rtol=rtol, msg=lambda m, name=name: f"{name}: {m}"
        )
