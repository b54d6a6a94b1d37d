"""The two points of KOALA-M: test loss and share of errors at the predicted and at the filtered one, as it learns."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from fallline import MomentumKOALA


def measure(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean loss and share of errors: [2]."""
    with torch.no_grad():
        scores = model(x)
    return torch.stack([F.cross_entropy(scores, y), (scores.argmax(1) != y).float().mean()])


def train(size: int, seed: int, steps: tuple[int, ...] = (5, 20, 100, 400)) -> Tensor:
    """Batches of ``size``; after each of ``steps``, :func:`measure` at the predicted, then at the filtered point."""
    torch.manual_seed(seed)
    x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
    x, rows = x.float() / 16, []
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = MomentumKOALA(model.parameters())
    for step in range(1, max(steps) + 1):
        batch = torch.randint(1536, (size,))
        optimizer.zero_grad()
        optimizer.observe(F.cross_entropy(model(x[batch]), y[batch])).backward()
        optimizer.step()
        if step in steps:
            rows.append(measure(model, x[1536:], y[1536:]))
            with optimizer.posterior():
                rows.append(measure(model, x[1536:], y[1536:]))
    return torch.stack(rows).view(-1, 2, 2)


if __name__ == "__main__":
    for size in (8, 64):
        print(f"batches of {size}:", torch.stack([train(size, seed) for seed in range(5)]).mean(0), sep="\n")
