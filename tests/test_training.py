"""Training: resumes to the same bytes, depends on nothing that ran before, and refuses to hand out
weights that diverged."""

import pytest
import torch
from torch import nn

from mergelib.training import TrainConfig, train

CONFIG = TrainConfig(steps=12, batch_size=4, lr=1e-2, threads=1, save_every=5, seed=3)
ROWS = [(torch.randn(6, generator=torch.Generator().manual_seed(i)), i % 3) for i in range(40)]


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.3), nn.Linear(16, 3))

    def forward(self, x, y):
        return {"loss": nn.functional.cross_entropy(self.net(x), y)}


def collate(rows):
    x, y = zip(*rows, strict=True)
    return {"x": torch.stack(x), "y": torch.tensor(y)}


def run(scratch, collate=collate):
    model = Toy()
    train(model, ROWS, collate, CONFIG, device=torch.device("cpu"), scratch=scratch, desc="toy")
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_an_interrupted_run_resumes_to_the_same_bytes(tmp_path):
    undisturbed = run(tmp_path / "a")
    batches = 0

    def interrupted(rows):
        nonlocal batches
        batches += 1
        if batches > 8:
            raise KeyboardInterrupt
        return collate(rows)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", interrupted)
    assert list((tmp_path / "b").glob("checkpoint-5"))
    assert torch.equal(run(tmp_path / "b"), undisturbed)


def test_global_random_state_does_not_matter(tmp_path):
    first = run(tmp_path / "a")
    torch.manual_seed(99)
    torch.randn(1000)
    assert torch.equal(run(tmp_path / "b"), first)


def test_a_damaged_checkpoint_is_removed_and_said(tmp_path):
    undisturbed = run(tmp_path / "a")
    run(tmp_path / "b")
    newest = max((tmp_path / "b").glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    (newest / "pytorch_model.bin").write_bytes(b"not weights")
    with pytest.warns(UserWarning, match="cannot be resumed"):
        resumed = run(tmp_path / "b")
    assert torch.equal(resumed, undisturbed)


def test_auto_precision_is_bf16_only_where_the_device_has_it(monkeypatch):
    from mergelib.profiles import load_profile
    from mergelib.training import resolve_precision

    cpu = torch.device("cpu")
    for amx, wanted in ((True, "bf16"), (False, "float32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        assert resolve_precision("auto", cpu) == wanted
        profile = load_profile("real")
        assert (
            profile.train_config(profile.fine_tuning, cpu).precision == wanted
        )  # what the store's key holds
    assert resolve_precision("auto", torch.device("mps")) == "float32"
    assert resolve_precision("bf16", cpu) == "bf16"
