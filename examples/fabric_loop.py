"""Lightning Fabric: attach before setup, and leave the loop as it is."""

import torch
from lightning import Fabric
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fallline import MomentumKOALA


def train(accumulate: int = 1) -> tuple[nn.Module, float]:
    """Three epochs of handwritten digits in batches of 64: the model, and its loss on the test set."""
    torch.manual_seed(0)
    x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
    x = x.float() / 16
    batches = DataLoader(TensorDataset(x[:1536], y[:1536]), 64 // accumulate, shuffle=True)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = MomentumKOALA(model.parameters())
    criterion = nn.CrossEntropyLoss()
    optimizer.attach()  # fabric's step passes no loss on
    optimizer.follow(model)  # evaluation at the filtered point

    fabric = Fabric(accelerator="cpu")
    model, optimizer = fabric.setup(model, optimizer)
    for _ in range(3):
        for i, (inputs, targets) in enumerate(fabric.setup_dataloaders(batches)):
            fabric.backward(criterion(model(inputs), targets) / accumulate)
            if (i + 1) % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()

    model.eval()
    with torch.no_grad():
        return model, criterion(model(x[1536:]), y[1536:]).item()


if __name__ == "__main__":
    print(f"test loss {train()[1]:.3f}")
