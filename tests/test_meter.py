"""Peak memory of tensors, counted by hand."""

import torch

from mergelib.core.meter import Meter


def test_what_is_alive_at_once_counts():
    outside = torch.zeros(250_000)  # 1 MB, there before
    with Meter() as meter:
        a = outside + 1
        b = a * 2
        del a
        c = b.view(500, 500) @ b.view(500, 500)  # views are not memory
        del b
        c.add_(1)
        d = c[:10]
        del c
    assert meter.cost["peak_mb"] == 2.0 and meter.cost["seconds"] > 0
    assert d.shape == (10, 500)


def test_gradients_count_and_the_same_work_costs_the_same():
    def work():
        with Meter() as meter:
            x = torch.ones(1000, 100, requires_grad=True)
            (x * x).sum().backward()
        return meter.cost["peak_mb"]

    assert work() == work() >= 3 * 0.4
