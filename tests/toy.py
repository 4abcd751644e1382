"""A training of a second, for tests of the loop, of disks and of checkpoints."""

import torch
from near import normal
from torch import nn

from mergelib.training.config import TrainConfig
from mergelib.training.loop import train

CONFIG = TrainConfig(steps=12, batch_size=4, lr=1e-2, threads=1, save_every=5, seed=3)
ROWS = [(normal(6, seed=i), i % 3) for i in range(40)]


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
    """All weights, and the training info."""
    model = Toy()
    info = train(
        model, ROWS, collate, CONFIG, device=torch.device("cpu"), scratch=scratch, desc="toy"
    )
    return nn.utils.parameters_to_vector(model.parameters()).detach(), info
