"""A plain loop: step(loss=...) after backward, with one loss for each example."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from fallline import MomentumKOALA


def train(accumulate: int = 1) -> tuple[nn.Module, float]:
    """Three epochs of handwritten digits in batches of 64: the model, and its loss on the test set."""
    torch.manual_seed(0)
    x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
    x = x.float() / 16
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = MomentumKOALA(model.parameters())
    optimizer.follow(model)  # evaluation at the filtered point

    losses = []
    for _ in range(3):
        for batch in torch.randperm(1536).split(64 // accumulate):
            losses.append(F.cross_entropy(model(x[batch]), y[batch], reduction="none"))
            (losses[-1].mean() / accumulate).backward()
            if len(losses) == accumulate:
                optimizer.step(loss=torch.cat(losses))
                optimizer.zero_grad()
                losses.clear()

    model.eval()
    with torch.no_grad():
        return model, F.cross_entropy(model(x[1536:]), y[1536:]).item()


if __name__ == "__main__":
    print(f"test loss {train()[1]:.3f}")
