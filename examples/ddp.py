"""Several processes and DistributedDataParallel: ``torchrun --nproc-per-node 2 examples/ddp.py``."""

from contextlib import nullcontext

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fallline import MomentumKOALA


def train(accumulate: int = 1) -> tuple[nn.Module, float]:
    """Three epochs of handwritten digits in batches of 64: the model, and its loss on the test set."""
    torch.manual_seed(0)
    x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
    x = x.float() / 16
    model = DistributedDataParallel(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)))
    criterion, optimizer = nn.CrossEntropyLoss(), MomentumKOALA(model.parameters())
    optimizer.attach()  # a step averages the loss over the ranks, as DDP does the gradients
    optimizer.follow(model)  # evaluation at the filtered point
    for _ in range(3):
        for batch in torch.randperm(1536).split(64):
            mine = batch.chunk(dist.get_world_size())[dist.get_rank()].chunk(accumulate)
            for part in mine:
                with nullcontext() if part is mine[-1] else model.no_sync():
                    (criterion(model(x[part]), y[part]) / accumulate).backward()
            optimizer.step()
            optimizer.zero_grad()

    model.eval()
    with torch.no_grad():
        return model.module, criterion(model(x[1536:]), y[1536:]).item()


if __name__ == "__main__":
    dist.init_process_group("gloo")
    print(f"test loss {train()[1]:.3f}")
