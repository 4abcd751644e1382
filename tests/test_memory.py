"""A device whose memory is too small: features go through in halves, training in the pieces that
its settings name, both to the same result; or an error names the remedy."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import pytest
import torch
from near import ROUNDING, apart
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from mergelib.core.errors import DeviceMemoryError
from mergelib.encoders.features import extract_prepared
from mergelib.training.config import TrainConfig
from mergelib.training.experts import EncoderWithHeads
from mergelib.training.loop import train

CPU = torch.device("cpu")
MESSAGES = {
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "the CPU": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate "
        "memory: you tried to allocate 8 bytes"
    ),
}


class Small(nn.Module):
    """Stands for an encoder on a small device: more than ``room`` rows at once end with ``error``.
    Means over real tokens, like ours."""

    def __init__(self, room, error=MESSAGES["CUDA"]):
        super().__init__()
        torch.manual_seed(0)
        self.room, self.error, self.seen = room, error, []
        self.embed, self.mix = nn.Embedding(50, 6), nn.Linear(6, 6)

    def forward(self, ids, mask):
        self.seen.append(len(ids))
        if len(ids) > self.room:
            raise self.error
        return (self.mix(self.embed(ids)).tanh() * mask[..., None]).sum(1) / mask.sum(
            1, keepdim=True
        )


@dataclass
class Ids:
    """The part of an ``Encoder`` that feature extraction uses, over lists of token ids."""

    width: int = 6

    def length(self, row):
        return len(row)

    def collate(self, rows):
        ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        return {"ids": ids, "mask": (ids > 0).float()}


ROWS = [
    [1 + (7 * i + j) % 49 for j in range(1 + (5 * i) % 11)] for i in range(23)
]  # of many lengths, so that batching reorders them


# ---- features ------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", MESSAGES.values(), ids=MESSAGES)
def test_features_halve_the_batch_say_so_and_stay_the_same(error):
    wanted = torch.cat([extract_prepared(Ids(), Small(99), [row]) for row in ROWS])
    model = Small(3, error)
    with pytest.warns(UserWarning, match=r"encoder\.batch_size") as said:
        found = extract_prepared(Ids(), model, ROWS, batch_size=16)
    assert apart(found, wanted) < ROUNDING
    assert [str(w.message).split(";")[0] for w in said] == [
        f"Out of memory on cpu with {n} inputs at once" for n in (16, 8, 4)
    ]
    assert {w.filename for w in said} == {__file__}
    # No row goes through twice, and the work goes on in halves.
    assert model.seen[:3] == [16, 8, 4] and sum(model.seen[3:]) == len(ROWS)


def test_features_that_fit_say_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        extract_prepared(Ids(), Small(23), ROWS, batch_size=23)


class Heavy(Small):
    """Its weights alone are too large for the device."""

    def to(self, *args, **kwargs):
        raise MESSAGES["CUDA"]


@pytest.mark.filterwarnings("ignore:Out of memory")
@pytest.mark.parametrize(
    "model, says",
    [
        (Small(0), r"One input alone .* cpu.*encoder\.max_length"),
        (Heavy(99), r"weights do not fit .* take device 'cpu'"),
    ],
    ids=["one input", "weights"],
)
def test_what_does_not_fit_at_all_names_the_remedy(model, says):
    with pytest.raises(DeviceMemoryError, match=says):
        extract_prepared(Ids(), model, ROWS, batch_size=4)


OTHER = RuntimeError("CUDA error: device-side assert triggered")


def test_another_error_of_the_device_is_no_lack_of_memory(tmp_path):
    model = Small(3, OTHER)
    for work in (
        lambda: extract_prepared(Ids(), model, ROWS, batch_size=16),
        lambda: trained(model, tmp_path),
    ):
        with pytest.raises(RuntimeError, match="device-side assert") as caught:
            work()
        assert not isinstance(caught.value, DeviceMemoryError)
    assert model.seen == [16, 10]


# ---- training ------------------------------------------------------------------------------------


LABELLED = [(row, i % 3, i % 2) for i, row in enumerate(ROWS)]  # of two tasks


def collate(rows):
    inputs, labels, task = zip(*rows, strict=True)
    return {
        "batch": Ids().collate(inputs),
        "labels": torch.tensor(labels),
        "task": torch.tensor(task),
    }


def trained(encoder, tmp_path, pieces=1):
    """(weights, info) of fine-tuning with two heads. 23 rows: every third batch has 3 rows."""
    model = EncoderWithHeads(encoder, 6, [3, 3])
    config = TrainConfig(steps=7, batch_size=10, lr=0.02, threads=1, seed=3, pieces=pieces)
    info = train(
        model,
        LABELLED,
        collate,
        config,
        device=CPU,
        scratch=tmp_path,
        desc="toy",
        optional_parts=True,
    )
    return nn.utils.parameters_to_vector(model.parameters()).detach(), info


def test_training_in_pieces_leads_to_the_same_weights(tmp_path):
    start = nn.utils.parameters_to_vector(EncoderWithHeads(Small(99), 6, [3, 3]).parameters())
    wanted, undisturbed = trained(Small(99), tmp_path)
    found, info = trained(encoder := Small(3), tmp_path, pieces=4)
    assert encoder.seen[:4] == [3, 3, 2, 2] and sum(encoder.seen) == 10 + 10 + 3 + 10 + 10 + 3 + 10
    assert (found - wanted).abs().max() < 1e-5 < (wanted - start).abs().max()
    assert info == pytest.approx(undisturbed, abs=2e-4), "the logged loss is not the whole batch's"


@pytest.mark.parametrize("error", MESSAGES.values(), ids=MESSAGES)
def test_a_piece_that_does_not_fit_ends_training_and_names_the_setting(tmp_path, error):
    for pieces, rows in ((1, 10), (3, 4)):
        with pytest.raises(
            DeviceMemoryError, match=rf"toy: {rows} rows do not fit .* Raise fine_tuning\.pieces"
        ):
            trained(Small(3, error), tmp_path, pieces=pieces)


@pytest.mark.parametrize(
    "owner, method",
    [(EncoderWithHeads, "to"), (torch.optim.AdamW, "step")],
    ids=["weights", "state"],
)
def test_weights_or_an_optimizer_that_do_not_fit_name_the_remedy(
    tmp_path, monkeypatch, owner, method
):
    def no_room(*args, **kwargs):
        raise MESSAGES["CUDA"]

    monkeypatch.setattr(owner, method, no_room)
    says = r"toy: weights, gradients and the optimizer's state do not fit .* smaller encoder"
    with pytest.raises(DeviceMemoryError, match=says):
        trained(Small(99), tmp_path)
